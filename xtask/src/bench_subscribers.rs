//! Many subscribers at a time, each of which follows its own part of a stream that events come into steadily: is each told
//! everything, how late, and what does the node take for it?

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use futures::StreamExt;
use hdrhistogram::Histogram;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::node::{Node, Target};

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    target: Target,
    /// Subscribers.
    #[arg(long, default_value_t = 1000)]
    subscribers: u64,
    /// Events a second.
    #[arg(long, default_value_t = 10_000)]
    rate: u64,
    /// Parts that the events are of; each subscriber follows one.
    #[arg(long, default_value_t = 100)]
    parts: u64,
    /// Seconds of sending.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Subscribers that read nothing until everything is sent.
    #[arg(long, default_value_t = 10)]
    asleep: u64,
}

const STATEMENTS: &str = "CREATE STREAM ticks (n BIGINT NOT NULL, part BIGINT, sent BIGINT) WITH (event_id = 'n', lake = false);\n";
/// How long after the last event a subscriber may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Microseconds since this was first asked.
fn micros() -> u64 {
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    BEGAN.elapsed().as_micros() as u64
}

/// Follows one part until it has as many events as are sent of it; answers how late they were.
async fn follow(
    node: Arc<Node>,
    part: u64,
    expected: u64,
    ready: Arc<AtomicU64>,
    sleep: Option<Duration>,
) -> anyhow::Result<Histogram<u64>> {
    let stream = TcpStream::connect(&node.address).await?;
    let query = format!("SELECT%20n,%20sent%20FROM%20ticks%20WHERE%20part%20=%20{part}");
    let mut request =
        format!("ws://{}/api/v1/subscribe?query={query}", node.address).into_client_request()?;
    request.headers_mut().insert("authorization", format!("Bearer {}", node.token).parse()?);
    let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await?;
    let mut late = Histogram::<u64>::new(3)?;
    let mut seen = BTreeSet::new();
    loop {
        let message = socket.next().await.context("the node hung up")??;
        let Message::Text(text) = message else { continue };
        let update: Value = serde_json::from_str(&text)?;
        match update["type"].as_str() {
            Some("columns") => {
                ready.fetch_add(1, Ordering::Relaxed);
                if let Some(time) = sleep {
                    tokio::time::sleep(time).await;
                }
            }
            Some("rows") => {
                let now = micros();
                for row in update["data"].as_array().context("no rows")? {
                    let number = row["n"].as_u64().context("no number")?;
                    ensure!(seen.insert(number), "{number} came twice");
                    if sleep.is_none() {
                        late.record(now.saturating_sub(row["sent"].as_u64().unwrap_or(now)).max(1))?;
                    }
                }
            }
            Some("error") => bail!("{text}"),
            _ => {}
        }
        if seen.len() as u64 == expected {
            // Whether the other side hears of it does not matter.
            drop(socket.close(None).await);
            return Ok(late);
        }
    }
}

fn send(node: &Node, arguments: &Arguments) -> anyhow::Result<()> {
    let Arguments { rate, parts, seconds, .. } = *arguments;
    let started = Instant::now();
    let group = (rate / 20).max(1);
    for first in (0..rate * seconds).step_by(group as usize) {
        let due = started + Duration::from_secs_f64(first as f64 / rate as f64);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let sent = micros();
        let events: Vec<String> = (first..(first + group).min(rate * seconds))
            .map(|number| format!("{{\"n\":{number},\"part\":{},\"sent\":{sent}}}", number % parts))
            .collect();
        node.call("POST", "/api/v1/streams/ticks/events", &format!("[{}]", events.join(",")))?;
    }
    Ok(())
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let node = Arc::new(arguments.target.start(STATEMENTS)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ready = Arc::new(AtomicU64::new(0));
    let expected = arguments.rate * arguments.seconds / arguments.parts;
    let before = node.memory("VmRSS");
    let followers: Vec<_> = (0..arguments.subscribers)
        .map(|number| {
            let sleep = (number < arguments.asleep).then(|| Duration::from_secs(arguments.seconds));
            let part = number % arguments.parts;
            runtime.spawn(follow(node.clone(), part, expected, ready.clone(), sleep))
        })
        .collect();
    let deadline = Instant::now() + PATIENCE;
    while ready.load(Ordering::Relaxed) < arguments.subscribers {
        ensure!(Instant::now() < deadline, "only {} subscribers are let in", ready.load(Ordering::Relaxed));
        std::thread::sleep(Duration::from_millis(20));
    }
    let connected = node.memory("VmRSS");
    let (cpu, started) = (node.cpu_seconds(), Instant::now());
    send(&node, arguments)?;
    let sent = started.elapsed().as_secs_f64();
    let mut late = Histogram::<u64>::new(3)?;
    let all = async {
        for follower in followers {
            late.add(follower.await??)?;
        }
        anyhow::Ok(())
    };
    runtime.block_on(async {
        tokio::time::timeout(PATIENCE, all).await.context("a subscriber lacks events")?
    })?;
    let quantile = |share| late.value_at_quantile(share) as f64 / 1000.0;
    println!(
        "{} subscribers, {:.0} events/s for {sent:.1} s: each was told all of its {expected} events, once",
        arguments.subscribers,
        (arguments.rate * arguments.seconds) as f64 / sent
    );
    println!("late by ms: p50 {:.0}, p99 {:.0}, most {:.0}", quantile(0.5), quantile(0.99), quantile(1.0));
    println!(
        "all told after {:.1} s, CPU {:.1} s; MiB before {before}, with all {connected}, peak {}",
        started.elapsed().as_secs_f64(),
        node.cpu_seconds() - cpu,
        node.memory("VmHWM")
    );
    Ok(())
}
