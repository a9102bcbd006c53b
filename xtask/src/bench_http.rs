//! Durable ingest over HTTP and WebSockets: deduplicated, fsynced, load generator on the same machine.
//!
//! Each event is about 300 bytes of JSON with an id that is never repeated. An answer counts when it is
//! a 202 with nothing rejected.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Args;
use hdrhistogram::Histogram;

use crate::node::{Node, Target};
use crate::sender::{EVENT, Outcome, STREAM, Sender, USERS};
use crate::socket_sender;

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    target: Target,
    /// Seconds per measurement, after two seconds of warm-up.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Connections that send one event per request.
    #[arg(long, default_value_t = 256)]
    single_connections: usize,
    /// Connections that send batches.
    #[arg(long, default_value_t = 8)]
    batch_connections: usize,
    /// Events per batch.
    #[arg(long, default_value_t = 1000)]
    batch: usize,
    /// WebSockets that send one event a message.
    #[arg(long, default_value_t = 16)]
    sockets: usize,
    /// Messages that one of them sends before it waits for an answer.
    #[arg(long, default_value_t = 250)]
    unanswered: usize,
}

/// How the events are sent.
#[derive(Clone, Copy)]
enum Way {
    /// So many a request.
    Requests(usize),
    /// One a message, with so many unanswered.
    Messages(usize),
}

async fn measure(
    arguments: &Arguments,
    node: Arc<Node>,
    ids: Arc<AtomicU64>,
    connections: usize,
    way: Way,
) -> anyhow::Result<String> {
    let warm_up = Duration::from_secs(2);
    let until = Instant::now() + warm_up + Duration::from_secs(arguments.seconds);
    let from = Instant::now() + warm_up;
    let mut senders = tokio::task::JoinSet::new();
    for _ in 0..connections {
        let (node, ids) = (node.clone(), ids.clone());
        senders.spawn(async move {
            let events = match way {
                Way::Requests(events) => events,
                Way::Messages(unanswered) => {
                    return socket_sender::send(&node, &ids, unanswered, from, until).await;
                }
            };
            let mut sender = Sender::connect(&node, events, USERS).await?;
            let mut latencies = Histogram::<u64>::new(3)?;
            while Instant::now() < until {
                let started = Instant::now();
                let outcome = sender.send(ids.fetch_add(events as u64, Ordering::Relaxed)).await?;
                ensure!(outcome == Outcome::Taken, "the node refused under this load");
                if started >= from {
                    latencies.record(started.elapsed().as_micros() as u64)?;
                }
            }
            anyhow::Ok(latencies)
        });
    }
    tokio::time::sleep(warm_up).await;
    let (cpu, started) = (node.cpu_seconds(), Instant::now());
    let mut all = Histogram::<u64>::new(3)?;
    while let Some(sender) = senders.join_next().await {
        all.add(sender??)?;
    }
    let seconds = started.elapsed().as_secs_f64();
    let (name, events) = match way {
        Way::Requests(events) => (events.to_string(), events),
        Way::Messages(_) => ("WebSocket".to_owned(), 1),
    };
    let rate = all.len() as f64 * events as f64 / seconds;
    let quantile = |q| all.value_at_quantile(q) as f64 / 1000.0;
    Ok(format!(
        "{:>9} {connections:>12} {rate:>12.0} {:>9.2} {:>9.2} {:>9.2} {:>16.2} {:>12}",
        name,
        quantile(0.5),
        quantile(0.99),
        quantile(0.999),
        (node.cpu_seconds() - cpu) / seconds,
        node.memory("VmHWM")
    ))
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let node = Arc::new(arguments.target.start(STREAM)?);
    let ids = Arc::new(AtomicU64::new(0));
    println!("{} B per event; {} s each", EVENT.len(), arguments.seconds);
    println!(
        "   events  connections     events/s    p50 ms    p99 ms  p99.9 ms  node CPU seconds/s  peak MiB"
    );
    runtime.block_on(async {
        let ways = [
            (arguments.batch_connections, Way::Requests(arguments.batch)),
            (arguments.single_connections, Way::Requests(1)),
            (arguments.sockets, Way::Messages(arguments.unanswered)),
        ];
        for (connections, way) in ways.into_iter().filter(|(connections, _)| *connections > 0) {
            println!("{}", measure(arguments, node.clone(), ids.clone(), connections, way).await?);
        }
        Ok(())
    })
}
