//! Every event several times, in another order each time, while the node is killed again and again: in the end each must be
//! there once, everywhere, and what a view can't compute must be a dead letter, once.

use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Args;
use serde_json::{Value, json};

use crate::node::{Node, Target, call};
use crate::sender::splitmix;

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    target: Target,
    /// Events.
    #[arg(long, default_value_t = 1_000_000)]
    events: u64,
    /// How often each is sent.
    #[arg(long, default_value_t = 5)]
    times: u64,
    /// Seconds between two kills.
    #[arg(long, default_value_t = 4.0)]
    every: f64,
}

const STATEMENTS: &str = "
CREATE STREAM storm (n BIGINT NOT NULL, kind TEXT, words TEXT)
  WITH (event_id = 'n', partitions = 3, key = 'kind', search = 'n, kind, words');
CREATE STREAM inverse AS SELECT n, kind, 1000000 / (n % 10000) AS x FROM storm;
CREATE TABLE kinds AS SELECT kind, count(*) AS events, sum(n) AS total FROM storm GROUP BY kind;
";
/// One in so many can't be computed by a view.
const POISONED: u64 = 10_000;
/// Events of one call.
const GROUP: u64 = 1000;
const KINDS: u64 = 7;

/// The body of a group of one round: its events come in another order in each.
fn body(round: u64, group: u64, arguments: &Arguments) -> String {
    // An odd step visits every number of a power of two once.
    let size = arguments.events.next_power_of_two();
    let step = splitmix(round) | 1;
    let numbers =
        (group * GROUP..(group + 1) * GROUP).map(|at| at.wrapping_mul(step).wrapping_add(round * 77) % size);
    let events: Vec<Value> = numbers
        .filter(|number| *number < arguments.events)
        .map(|n| json!({"n": n, "kind": format!("kind{}", n % KINDS), "words": format!("storm number{}", n / 1000)}))
        .collect();
    Value::from(events).to_string()
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut node = arguments.target.start(STATEMENTS)?;
    let address = RwLock::new(node.address.clone());
    let token = node.token.clone();
    let groups = arguments.events.next_power_of_two().div_ceil(GROUP);
    let (next, again, ended) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let started = Instant::now();
    let mut kills = 0;
    std::thread::scope(|scope| {
        let senders: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        if at >= groups * arguments.times {
                            return;
                        }
                        let body = body(at / groups, at % groups, arguments);
                        if body == "[]" {
                            continue;
                        }
                        // What was not acked is sent again, as any client would.
                        loop {
                            let to = address.read().map(|address| address.clone()).unwrap_or_default();
                            if call(&to, &token, "POST", "/api/v1/streams/storm/events", &body).is_ok() {
                                break;
                            }
                            again.fetch_add(1, Ordering::Relaxed);
                            std::thread::sleep(Duration::from_millis(50));
                        }
                    }
                })
            })
            .collect();
        let watch = scope.spawn(|| {
            drop(senders.into_iter().map(|sender| sender.join()).collect::<Vec<_>>());
            ended.store(true, Ordering::Relaxed);
        });
        let mut killed = Instant::now();
        while !ended.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(100));
            if killed.elapsed().as_secs_f64() < arguments.every {
                continue;
            }
            node.keep();
            node.kill()?;
            node = arguments.target.start_again()?;
            if let Ok(mut address) = address.write() {
                address.clone_from(&node.address);
            }
            kills += 1;
            killed = Instant::now();
        }
        drop(watch);
        anyhow::Ok(())
    })?;
    println!(
        "{} events, each {} times, {kills} kills, {} calls sent again, {:.0} s",
        arguments.events,
        arguments.times,
        again.load(Ordering::Relaxed),
        started.elapsed().as_secs_f64()
    );
    node.settle()?;
    verify(&node, arguments)?;
    node.forget();
    Ok(())
}

fn verify(node: &Node, arguments: &Arguments) -> anyhow::Result<()> {
    let Arguments { events, .. } = *arguments;
    let sum = events * (events - 1) / 2;
    let poisoned = events.div_ceil(POISONED);
    let one = |what: &str, sql: &str, expected: Value| {
        let answer = node.ask(sql)?;
        let found = answer["rows"][0].clone();
        ensure!(found == expected, "{what}: {found} instead of {expected}");
        println!("{what:>44}: {found}");
        anyhow::Ok(())
    };
    let whole = json!({"n": events, "of": events, "total": sum});
    one(
        "in the stream",
        "SELECT count(*) AS n, count(DISTINCT n) AS of, CAST(sum(n) AS BIGINT) AS total FROM storm",
        whole,
    )?;
    one(
        "in the table",
        "SELECT CAST(sum(events) AS BIGINT) AS n, CAST(sum(total) AS BIGINT) AS total FROM kinds",
        json!({"n": events, "total": sum}),
    )?;
    let derived = json!({"n": events - poisoned, "of": events - poisoned});
    one("derived", "SELECT count(*) AS n, count(DISTINCT n) AS of FROM inverse", derived)?;
    let dead = json!({"n": poisoned});
    one(
        "dead letters of what can't be computed",
        "SELECT count(*) AS n FROM _dead_letters WHERE source LIKE '%inverse%'",
        dead,
    )?;
    let kind = json!({"n": (events + KINDS - 4) / KINDS});
    one("of one kind, by the index", "SELECT count(*) AS n FROM storm WHERE kind = 'kind3'", kind)?;
    one(
        "of one word, by the index",
        "SELECT count(*) AS n FROM storm WHERE matches(words, 'number5')",
        json!({"n": 1000}),
    )?;
    one(
        "of the same word, by a look at every row",
        "SELECT count(*) AS n FROM storm WHERE matches(words || '', 'number5')",
        json!({"n": 1000}),
    )?;
    Ok(())
}
