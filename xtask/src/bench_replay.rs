//! All events of a stream happen again, as a job, while others come in: what do those who bring them notice?

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::bench_pages::Caller;
use crate::node::{Node, Target};

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    target: Target,
    /// Events that happen again.
    #[arg(long, default_value_t = 1_000_000)]
    events: u64,
    /// Callers that bring one event at a time meanwhile.
    #[arg(long, default_value_t = 8)]
    callers: u64,
    /// Seconds of measuring without the job.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

const STATEMENTS: &str = "
CREATE STREAM orders (id BIGINT NOT NULL, at TIMESTAMP NOT NULL, kind TEXT, amount DECIMAL(10,2))
  WITH (event_id = 'id, at', event_time = 'at');
CREATE TABLE totals AS SELECT kind, count(*) AS orders, sum(amount) AS amount FROM orders GROUP BY kind;
CREATE ENDPOINT POST '/again' REQUIRES view_own REPLAYS orders AS JOB;
";
/// The first event's time, seconds.
const FIRST: u64 = 1_767_225_600;

fn event(number: u64) -> Value {
    json!({"id": number, "at": FIRST + number, "kind": format!("kind{}", number % 10), "amount": number % 1000})
}

/// Brings single events until it is told to stop; answers how long each took, microseconds.
fn bring(node: &Node, callers: u64, ids: &AtomicU64, stop: &AtomicBool) -> anyhow::Result<Histogram<u64>> {
    let one = || {
        let mut caller = Caller::connect(node, &node.token)?;
        let mut took = Histogram::<u64>::new(3)?;
        while !stop.load(Ordering::Relaxed) {
            let body = event(ids.fetch_add(1, Ordering::Relaxed)).to_string();
            let started = Instant::now();
            caller.call("POST", "/api/v1/streams/orders/events", &body)?;
            took.record(started.elapsed().as_micros() as u64)?;
        }
        anyhow::Ok(took)
    };
    let mut all = Histogram::<u64>::new(3)?;
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..callers).map(|_| scope.spawn(one)).collect();
        for caller in callers {
            all.add(caller.join().map_err(|_| anyhow::anyhow!("a caller panicked"))??)?;
        }
        anyhow::Ok(())
    })?;
    Ok(all)
}

/// The job that a call has begun, when it has ended.
fn ended(node: &Node) -> anyhow::Result<Value> {
    let begun = node.call("POST", "/again", "{}")?;
    let id = begun["job_id"].as_str().map_or_else(|| begun["job_id"].to_string(), str::to_owned);
    loop {
        let job = node.call("GET", &format!("/api/v1/jobs/{id}"), "")?;
        match job["state"].as_str() {
            Some("finished") => return Ok(job),
            Some("failed" | "cancelled") | None => anyhow::bail!("{job}"),
            Some(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn show(name: &str, seconds: f64, took: &Histogram<u64>) {
    let quantile = |share| took.value_at_quantile(share) as f64 / 1000.0;
    println!(
        "{name:<28} {:>8.0} events/s, p50 {:.2} ms, p99 {:.2} ms, most {:.1} ms",
        took.len() as f64 / seconds,
        quantile(0.5),
        quantile(0.99),
        quantile(1.0)
    );
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let node = arguments.target.start(STATEMENTS)?;
    for first in (0..arguments.events).step_by(1000) {
        let events: Vec<Value> = (first..(first + 1000).min(arguments.events)).map(event).collect();
        node.call("POST", "/api/v1/streams/orders/events", &Value::from(events).to_string())?;
    }
    node.settle()?;
    let (ids, stop) = (AtomicU64::new(arguments.events), AtomicBool::new(false));
    let alone = std::thread::scope(|scope| {
        let brought = scope.spawn(|| bring(&node, arguments.callers, &ids, &stop));
        std::thread::sleep(Duration::from_secs(arguments.seconds));
        stop.store(true, Ordering::Relaxed);
        brought.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
    })?;
    show("events alone", arguments.seconds as f64, &alone);
    let originals = ids.load(Ordering::Relaxed);
    stop.store(false, Ordering::Relaxed);
    let started = Instant::now();
    let (beside, job) = std::thread::scope(|scope| {
        let brought = scope.spawn(|| bring(&node, arguments.callers, &ids, &stop));
        let job = ended(&node);
        stop.store(true, Ordering::Relaxed);
        let brought = brought.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        anyhow::Ok((brought, job?))
    })?;
    let seconds = started.elapsed().as_secs_f64();
    show("while all happen again", seconds, &beside);
    println!("the job: {seconds:.1} s, {:.0} events/s: {}", originals as f64 / seconds, job["said"]);
    let ratio = beside.value_at_quantile(0.99) as f64 / alone.value_at_quantile(0.99) as f64;
    println!("p99 is {ratio:.2} times what it was");
    let count = || {
        let answer = node.ask("SELECT count(*) AS n, count(DISTINCT id) AS originals FROM orders")?;
        let (n, originals) = (&answer["rows"][0]["n"], &answer["rows"][0]["originals"]);
        anyhow::Ok((n.as_u64().context("no count")?, originals.as_u64().context("no count")?))
    };
    let (rows, known) = count()?;
    ensure!(known == ids.load(Ordering::Relaxed), "{known} originals");
    // The second brings again what came in while the first ran, the third nothing.
    let second = ended(&node)?;
    let (after, _) = count()?;
    let third = ended(&node)?;
    let (last, originals) = count()?;
    println!(
        "{rows} rows after the first job, {after} after a second one ({}), {last} after a third ({}); {originals} originals",
        second["said"], third["said"]
    );
    ensure!(
        last == after && third["said"]["accepted"] == 0,
        "a job that brings nothing new has appended something"
    );
    ensure!(after <= known * 2 && rows >= arguments.events * 2, "{after} rows of {known} originals");
    Ok(())
}
