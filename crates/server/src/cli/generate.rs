//! `highwater generate`: events for trying things out.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use highwater_event::{Clock, SystemClock, time};

use super::client::Client;
use super::{Failure, GenerateArgs, NexmarkArgs, NexmarkKind};
use crate::demo::{Shares, Transactions};

/// Events that are sent in one request.
const BATCH: usize = 1000;

pub fn transactions(arguments: GenerateArgs) -> Result<ExitCode, Failure> {
    let usage = |message: String| Failure::new("usage", message).exit(2);
    for (name, share) in
        [("bad", arguments.bad), ("duplicate", arguments.duplicate), ("late", arguments.late)]
    {
        if !(0.0..=1.0).contains(&share) {
            return Err(usage(format!("--{name} is a share between 0 and 1")));
        }
    }
    let span = (arguments.hours.max(0.0) * 3.6e9) as i64;
    let start = match &arguments.start {
        Some(text) => {
            time::parse_micros(text).ok_or_else(|| usage(format!("--start \"{text}\" is not a time")))?
        }
        None => SystemClock.now_micros() - span,
    };
    let shares = Shares { bad: arguments.bad, duplicate: arguments.duplicate, late: arguments.late };
    let mut events = Transactions::new(arguments.seed, shares);
    let client = arguments.send.then(|| Client::new(&arguments.target)).transpose()?;
    let started = Instant::now();
    let mut batch = Vec::new();
    let mut lines = 0;
    for number in 0..arguments.count {
        let at = start + (span as i128 * i128::from(number) / i128::from(arguments.count.max(1))) as i64;
        batch.extend_from_slice(events.next(at).as_bytes());
        batch.push(b'\n');
        lines += 1;
        let paced = arguments.rate > 0.0;
        if lines == BATCH || paced || number + 1 == arguments.count {
            flush(client.as_ref(), "transaction_log", &batch)?;
            batch.clear();
            lines = 0;
        }
        if paced {
            let due = Duration::from_secs_f64((number + 1) as f64 / arguments.rate);
            std::thread::sleep(due.saturating_sub(started.elapsed()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Time of the first event of the benchmark, milliseconds UTC.
const NEXMARK_START: u64 = 1_767_225_600_000;

pub fn nexmark(arguments: NexmarkArgs) -> Result<ExitCode, Failure> {
    use nexmark::event::Event;
    if !arguments.send && arguments.kind.is_none() {
        return Err(Failure::new(
            "usage",
            "say which kind to print with --kind, or --send to send all to their streams",
        )
        .exit(2));
    }
    let config = nexmark::config::NexmarkConfig {
        base_time: NEXMARK_START,
        first_rate: arguments.event_rate.max(1),
        next_rate: arguments.event_rate.max(1),
        ..Default::default()
    };
    let client = arguments.send.then(|| Client::new(&arguments.target)).transpose()?;
    let mut batches: [(NexmarkKind, &[&str], Vec<u8>, usize); 3] = [
        (NexmarkKind::Person, &["person"], Vec::new(), 0),
        (NexmarkKind::Auction, &["auction"], Vec::new(), 0),
        (NexmarkKind::Bid, &["bid", "bid_arrival"], Vec::new(), 0),
    ];
    let written = |error: serde_json::Error| Failure::new("internal", error.to_string());
    for event in nexmark::EventGenerator::new(config).take(arguments.count as usize) {
        let (kind, text) = match &event {
            Event::Person(person) => (NexmarkKind::Person, serde_json::to_vec(person).map_err(written)?),
            Event::Auction(auction) => (NexmarkKind::Auction, serde_json::to_vec(auction).map_err(written)?),
            Event::Bid(bid) => (NexmarkKind::Bid, serde_json::to_vec(bid).map_err(written)?),
        };
        if arguments.kind.is_some_and(|wanted| wanted != kind) {
            continue;
        }
        let Some((_, streams, batch, lines)) = batches.iter_mut().find(|(known, ..)| *known == kind) else {
            continue;
        };
        batch.extend_from_slice(&text);
        batch.push(b'\n');
        *lines += 1;
        if *lines == BATCH {
            flush_all(client.as_ref(), streams, batch)?;
            *lines = 0;
        }
    }
    for (_, streams, batch, _) in &mut batches {
        flush_all(client.as_ref(), streams, batch)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn flush_all(client: Option<&Client>, streams: &[&str], batch: &mut Vec<u8>) -> Result<(), Failure> {
    let streams = if client.is_some() { streams } else { &streams[..1] };
    if !batch.is_empty() {
        streams.iter().try_for_each(|stream| flush(client, stream, batch))?;
        batch.clear();
    }
    Ok(())
}

fn flush(client: Option<&Client>, stream: &str, batch: &[u8]) -> Result<(), Failure> {
    match client {
        Some(client) => {
            client.post(
                &format!("/api/v1/streams/{stream}/events"),
                "application/x-ndjson",
                "application/json",
                batch,
            )?;
        }
        None => {
            let mut out = std::io::stdout().lock();
            out.write_all(batch)?;
            out.flush()?;
        }
    }
    Ok(())
}
