//! From an ack until the event can be read: in a table, and by a reader of the lake.
//!
//! Ten views are kept up. First as much is sent as the door takes, which shows what the views keep up with;
//! then half of that, evenly, while single events are sent and looked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Args;
use hdrhistogram::Histogram;

use crate::node::{Node, Target};
use crate::sender::{Outcome, STREAM, Sender, Users};

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    target: Target,
    /// Seconds at full load.
    #[arg(long, default_value_t = 10)]
    full: u64,
    /// Seconds at half load.
    #[arg(long, default_value_t = 30)]
    half: u64,
    /// Events per batch.
    #[arg(long, default_value_t = 200)]
    batch: usize,
}

/// Five streams and five tables over the events; `probes` holds those that are looked for.
const VIEWS: &str = "
CREATE STREAM probes AS SELECT id, at, user_id, amount FROM bench WHERE kind = 'probe';
CREATE STREAM purchases AS SELECT id, at, user_id, amount FROM bench WHERE kind = 'purchase';
CREATE STREAM cancelled AS SELECT id, at, user_id, amount FROM bench WHERE status = 'cancelled';
CREATE STREAM large AS SELECT id, at, user_id, amount FROM bench WHERE amount > 1000;
CREATE STREAM abroad AS SELECT id, at, user_id, place['city'] AS city FROM bench WHERE place['country'] <> 'USA';
CREATE TABLE seen AS SELECT id, count(*) AS n FROM probes GROUP BY id;
CREATE TABLE per_user AS SELECT user_id, count(*) AS n, sum(amount) AS total FROM bench GROUP BY user_id;
CREATE TABLE per_product AS SELECT product_id, count(*) AS n FROM bench GROUP BY product_id;
CREATE TABLE per_minute AS SELECT kind, sum(amount) AS total FROM bench
  WINDOW TUMBLING (SIZE 1 MINUTE, GRACE PERIOD 1 HOUR) GROUP BY kind;
CREATE TABLE per_country AS SELECT place['country'] AS country, max(amount) AS highest FROM bench GROUP BY place['country'];
";
const USERS: Users = Users { number: 100_000, on_one: 0 };
const CONNECTIONS: u64 = 4;

/// Sends until a time, at most so many events a second and connection; answers how many.
async fn load(
    node: Arc<Node>,
    ids: Arc<AtomicU64>,
    batch: usize,
    pace: f64,
    until: Instant,
) -> anyhow::Result<u64> {
    let mut sender = Sender::connect(&node, batch, USERS).await?;
    let (started, mut sent) = (Instant::now(), 0);
    while Instant::now() < until {
        let due = started + Duration::from_secs_f64(sent as f64 / pace);
        tokio::time::sleep_until(due.into()).await;
        let first = ids.fetch_add(batch as u64, Ordering::Relaxed);
        ensure!(sender.send(first).await? == Outcome::Taken, "the node refused under this load");
        sent += batch as u64;
    }
    Ok(sent)
}

fn under_load(
    runtime: &tokio::runtime::Runtime,
    node: &Arc<Node>,
    ids: &Arc<AtomicU64>,
    batch: usize,
    pace: f64,
    until: Instant,
) -> tokio::task::JoinSet<anyhow::Result<u64>> {
    let mut senders = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        senders.spawn_on(load(node.clone(), ids.clone(), batch, pace, until), runtime.handle());
    }
    senders
}

/// Sends single events and looks for each; answers the microseconds from its ack until it was found.
fn probe(
    node: &Node,
    name: &str,
    found: impl Fn(&str) -> anyhow::Result<bool>,
    until: Instant,
) -> anyhow::Result<Histogram<u64>> {
    let mut latencies = Histogram::new(3)?;
    for number in 0.. {
        if Instant::now() >= until {
            break;
        }
        let id = format!("{name}-{number}");
        let event = serde_json::json!({"id": id, "at": "2026-01-15T10:30:00Z", "kind": "probe"});
        node.call("POST", "/api/v1/streams/bench/events", &event.to_string())?;
        let acked = Instant::now();
        while !found(&id)? {
            ensure!(acked.elapsed() < Duration::from_secs(30), "{id} was not found for 30 s");
            std::thread::sleep(Duration::from_millis(2));
        }
        latencies.record(acked.elapsed().as_micros() as u64)?;
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(latencies)
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let stream = STREAM.replace("lake = false", "lake = true");
    let node = Arc::new(arguments.target.start(&(stream + VIEWS))?);
    let ids = Arc::new(AtomicU64::new(0));
    let total = |senders: tokio::task::JoinSet<_>| -> anyhow::Result<u64> {
        runtime.block_on(senders.join_all()).into_iter().sum::<anyhow::Result<u64>>()
    };

    let started = Instant::now();
    let until = started + Duration::from_secs(arguments.full);
    let sent = total(under_load(&runtime, &node, &ids, arguments.batch, f64::INFINITY, until))?;
    node.settle()?;
    let sustained = sent as f64 / started.elapsed().as_secs_f64();
    println!("full load: {sustained:.0} events/s until all ten views were up to date");

    let until = Instant::now() + Duration::from_secs(arguments.half);
    let pace = sustained / 2.0 / CONNECTIONS as f64;
    let (started, cpu) = (Instant::now(), node.cpu_seconds());
    let senders = under_load(&runtime, &node, &ids, arguments.batch, pace, until);
    let in_table = |id: &str| {
        let answer = node.ask(&format!("SELECT n FROM seen WHERE id = '{id}'"))?;
        anyhow::Ok(answer["rows"].as_array().is_some_and(|rows| !rows.is_empty()))
    };
    let in_lake = |id: &str| {
        let page = node.call("GET", &format!("/api/datalake/streams/probes/?id={id}"), "")?;
        anyhow::Ok(page["count"].as_u64().is_some_and(|count| count > 0))
    };
    let (table, lake) = std::thread::scope(|scope| {
        let table = scope.spawn(|| probe(&node, "table", in_table, until));
        let lake = scope.spawn(|| probe(&node, "lake", in_lake, until));
        (table.join(), lake.join())
    });
    let seconds = started.elapsed().as_secs_f64();
    let rate = total(senders)? as f64 / seconds;
    println!("half load: {rate:.0} events/s, {:.2} CPU seconds/s", (node.cpu_seconds() - cpu) / seconds);
    println!("  ack until    probes    p50 ms    p99 ms    max ms");
    for (name, latencies) in [("in a table", table), ("in the lake", lake)] {
        let latencies = latencies.map_err(|_| anyhow::anyhow!("the probe of {name} ended"))??;
        let ms = |micros: u64| micros as f64 / 1000.0;
        println!(
            "{name:>11} {:>9} {:>9.1} {:>9.1} {:>9.1}",
            latencies.len(),
            ms(latencies.value_at_quantile(0.5)),
            ms(latencies.value_at_quantile(0.99)),
            ms(latencies.max())
        );
    }
    Ok(())
}
