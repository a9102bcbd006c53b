//! Long runs: does the rate hold when much has been taken, and what happens when more comes than can be
//! taken? Batches are sent by as many connections as are asked for; a refusal with Retry-After is waited
//! out and the batch is sent again. At the end the tables are compared with what was acked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use hdrhistogram::Histogram;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::node::{Node, Target};
use crate::sender::{Outcome, STREAM, Sender, USERS, Users};

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    target: Target,
    /// Ends when so many events have been acked …
    #[arg(long, default_value_t = 100_000_000)]
    events: u64,
    /// … or after so many seconds.
    #[arg(long, default_value_t = 3600)]
    seconds: u64,
    /// Connections that send at the same time.
    #[arg(long, default_value_t = 8)]
    connections: usize,
    /// Events per batch.
    #[arg(long, default_value_t = 1000)]
    batch: usize,
    /// Seconds between two lines.
    #[arg(long, default_value_t = 20)]
    every: u64,
    /// Different users in the events.
    #[arg(long, default_value_t = USERS.number)]
    users: u64,
    /// Percent of the events that belong to one of them.
    #[arg(long, default_value_t = 0)]
    on_one: u8,
    /// Keep a table of the users up, too.
    #[arg(long)]
    table: bool,
    /// Keep the stream in the lake, and wait until it is there.
    #[arg(long)]
    lake: bool,
    /// Build the table anew at the end.
    #[arg(long, requires = "table")]
    rebuild: bool,
    /// Send so many of the first events again at the end.
    #[arg(long, default_value_t = 0)]
    again: u64,
    /// Leave the data where it is.
    #[arg(long)]
    keep: bool,
    /// Go on with the data that an earlier run left, whose events had numbers below this one.
    #[arg(long, conflicts_with_all = ["table", "lake", "again"])]
    from: Option<u64>,
}

const TABLE: &str = "CREATE TABLE per_user AS SELECT user_id, count(*) AS n, sum(amount) AS total FROM bench GROUP BY user_id;";

#[derive(Default)]
struct Progress {
    ids: AtomicU64,
    acked: AtomicU64,
    refused: AtomicU64,
    latencies: Mutex<Option<Histogram<u64>>>,
}

impl Progress {
    /// Milliseconds within which 99 of 100 bodies were acked since latencies were last begun.
    async fn p99_ms(&self) -> f64 {
        self.latencies.lock().await.as_ref().map_or(0, |all| all.value_at_quantile(0.99)) as f64 / 1000.0
    }

    async fn begin_latencies(&self) -> anyhow::Result<()> {
        *self.latencies.lock().await = Some(Histogram::new(3)?);
        Ok(())
    }
}

/// As many senders as are asked for, until so many events are acked or the time is over.
fn senders(
    node: &Arc<Node>,
    progress: &Arc<Progress>,
    arguments: &Arc<Arguments>,
    events: u64,
) -> JoinSet<anyhow::Result<()>> {
    let until = Instant::now() + Duration::from_secs(arguments.seconds);
    let one = |_| send(node.clone(), progress.clone(), arguments.clone(), events, until);
    (0..arguments.connections).map(one).collect()
}

async fn send(
    node: Arc<Node>,
    progress: Arc<Progress>,
    arguments: Arc<Arguments>,
    events: u64,
    until: Instant,
) -> anyhow::Result<()> {
    let users = Users { number: arguments.users, on_one: arguments.on_one };
    let mut sender = Sender::connect(&node, arguments.batch, users).await?;
    while Instant::now() < until && progress.acked.load(Ordering::Relaxed) < events {
        let batch = arguments.batch as u64;
        let first = progress.ids.fetch_add(batch, Ordering::Relaxed);
        let started = Instant::now();
        while sender.send(first).await? == Outcome::Refused {
            progress.refused.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        progress.acked.fetch_add(batch, Ordering::Relaxed);
        if let Some(latencies) = progress.latencies.lock().await.as_mut() {
            latencies.record(started.elapsed().as_micros() as u64)?;
        }
    }
    Ok(())
}

pub fn run(arguments: Arguments) -> anyhow::Result<()> {
    let arguments = Arc::new(arguments);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let stream =
        if arguments.lake { STREAM.replace("lake = false", "lake = true") } else { STREAM.to_owned() };
    let statements = if arguments.table { stream + TABLE } else { stream };
    let (node, before) = match arguments.from {
        Some(_) => {
            let node = arguments.target.start_again()?;
            let before = events(&node)?;
            (Arc::new(node), before)
        }
        None => (Arc::new(arguments.target.start(&statements)?), 0),
    };
    let first = arguments.from.unwrap_or(0);
    let progress = Arc::new(Progress { ids: AtomicU64::new(first), ..Progress::default() });
    let started = Instant::now();
    println!("{} connections, {} events per batch", arguments.connections, arguments.batch);
    println!("   s   M acked   events/s  refused/s    p99 ms  node CPU s/s  RSS MiB  disk MiB");
    runtime.block_on(async {
        let mut senders = senders(&node, &progress, &arguments, arguments.events);
        loop {
            progress.begin_latencies().await?;
            let since = (Instant::now(), count(&progress), node.cpu_seconds());
            let mut done = false;
            let tick = tokio::time::sleep(Duration::from_secs(arguments.every));
            tokio::pin!(tick);
            while !done {
                tokio::select! {
                    () = &mut tick => break,
                    ended = senders.join_next() => match ended {
                        Some(ended) => ended??,
                        None => done = true,
                    },
                }
            }
            let seconds = since.0.elapsed().as_secs_f64();
            let (acked, refused) = count(&progress);
            println!(
                "{:>4.0} {:>9.1} {:>10.0} {:>10.1} {:>9.1} {:>13.2} {:>8} {:>9}",
                started.elapsed().as_secs_f64(),
                acked as f64 / 1e6,
                (acked - since.1.0) as f64 / seconds,
                (refused - since.1.1) as f64 / seconds,
                progress.p99_ms().await,
                (node.cpu_seconds() - since.2) / seconds,
                node.memory("VmRSS"),
                node.disk()
            );
            if done {
                return anyhow::Ok(());
            }
        }
    })?;
    println!("peak memory {} MiB", node.memory("VmHWM"));
    let acked = before + count(&progress).0;
    check(&arguments, &node, acked)?;
    if arguments.again > 0 {
        runtime.block_on(again(&arguments, &node))?;
        check(&arguments, &node, acked)?;
    }
    if arguments.rebuild {
        rebuild(&arguments, &node, acked)?;
    }
    if arguments.keep {
        node.keep();
    }
    Ok(())
}

/// How fast the first events are known again, which lie deepest.
async fn again(arguments: &Arc<Arguments>, node: &Arc<Node>) -> anyhow::Result<()> {
    let progress = Arc::new(Progress::default());
    progress.begin_latencies().await?;
    let (started, cpu) = (Instant::now(), node.cpu_seconds());
    let mut senders = senders(node, &progress, arguments, arguments.again);
    while let Some(ended) = senders.join_next().await {
        ended??;
    }
    let seconds = started.elapsed().as_secs_f64();
    let events = count(&progress).0 as f64;
    println!(
        "{events} events again: {:.0} events/s, batches p99 {:.1} ms, node CPU s/s {:.2}, RSS {} MiB",
        events / seconds,
        progress.p99_ms().await,
        (node.cpu_seconds() - cpu) / seconds,
        node.memory("VmRSS")
    );
    Ok(())
}

/// How fast the table is built from the log again.
fn rebuild(arguments: &Arguments, node: &Node, acked: u64) -> anyhow::Result<()> {
    let (started, cpu) = (Instant::now(), node.cpu_seconds());
    node.call("POST", "/api/v1/views/table:per_user/rebuild", "")?;
    node.settle()?;
    let (seconds, cpu) = (started.elapsed().as_secs_f64(), node.cpu_seconds() - cpu);
    let events = acked as f64;
    println!(
        "built anew in {seconds:.1} s: {:.0} events/s, {:.0} per CPU second",
        events / seconds,
        events / cpu
    );
    check(arguments, node, acked)
}

fn count(progress: &Progress) -> (u64, u64) {
    (progress.acked.load(Ordering::Relaxed), progress.refused.load(Ordering::Relaxed))
}

/// Events of the stream.
fn events(node: &Node) -> anyhow::Result<u64> {
    let answer = node.call("GET", "/api/v1/streams/bench", "")?;
    answer["events"].as_u64().with_context(|| format!("no number of events: {answer}"))
}

/// What was acked is there, once.
fn check(arguments: &Arguments, node: &Node, acked: u64) -> anyhow::Result<()> {
    let started = Instant::now();
    if arguments.table || arguments.lake {
        node.settle()?;
        println!("the views had caught up {:.1} s later", started.elapsed().as_secs_f64());
    }
    if arguments.table {
        let answer = node.ask("SELECT sum(n) AS n, count(*) AS users FROM per_user")?;
        ensure!(answer["rows"][0]["n"].as_u64() == Some(acked), "{acked} acked, the table says {answer}");
        println!(
            "{acked} acked, {} in the table, {} users",
            answer["rows"][0]["n"], answer["rows"][0]["users"]
        );
    } else {
        let there = events(node)?;
        println!("{acked} acked, the stream says {there}");
        ensure!(there == acked, "{acked} acked, the stream says {there}");
    }
    Ok(())
}
