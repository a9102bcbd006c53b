//! `highwater generate`: events for trying things out.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use highwater_event::{Clock, SystemClock, time};

use super::client::Client;
use super::{Failure, GenerateArgs};
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
            flush(client.as_ref(), &batch)?;
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

fn flush(client: Option<&Client>, batch: &[u8]) -> Result<(), Failure> {
    match client {
        Some(client) => {
            client.post(
                "/api/v1/streams/transaction_log/events",
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
