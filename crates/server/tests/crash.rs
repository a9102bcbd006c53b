//! kill -9 under eight writers: nothing acked is lost and nothing is there twice, in the log, every
//! derived stream, every table and the lake. `HIGHWATER_CYCLES` sets how many kills.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use highwater_event::SeededRandomness;
use highwater_sim::setting;
use serde_json::{Value, json};
use support::bytes::holding;
use support::{Client, Node, empty_data};

const WRITERS: u64 = 8;
const STATUSES: [&str; 5] = ["completed", "pending", "failed", "processing", "cancelled"];

/// An event whose every member follows from its number.
fn event(number: u64) -> Value {
    json!({
        "transaction_id": format!("TXN-{number:08x}"),
        "timestamp": format!("2026-03-{:02}T{:02}:{:02}:00Z", 1 + number % 3, number / 60 % 24, number % 60),
        "user_id": format!("USER-{:04}", number % 50),
        "user_name": "Ada Moreau",
        "product_id": format!("PROD-{:03}", number % 20),
        "amount": (1000 + number % 9000) as f64 / 100.0,
        "currency": (["USD", "EUR", "GBP"][(number % 3) as usize]),
        "transaction_type": (["purchase", "refund"][(number % 2) as usize]),
        "status": (STATUSES[(number % 5) as usize]),
        "location": {"city": if number.is_multiple_of(10) { "Berlin" } else { "Munich" }, "country": "Germany"},
    })
}

#[test]
fn kill_9_under_eight_writers() {
    let cycles = setting("HIGHWATER_CYCLES", 50);
    let (_folder, data) = empty_data();
    let mut node = Node::start(&data);

    let current: Arc<Mutex<Client>> = Arc::new(Mutex::new(node.client.clone()));
    let stop = Arc::new(AtomicBool::new(false));
    let numbers = Arc::new(AtomicU64::new(0));
    let mut writers = Vec::new();
    for _ in 0..WRITERS {
        let (current, stop, numbers) = (current.clone(), stop.clone(), numbers.clone());
        writers.push(std::thread::spawn(move || {
            let mut acked = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let first = numbers.fetch_add(20, Ordering::Relaxed);
                let body = Value::from((first..first + 20).map(event).collect::<Vec<_>>()).to_string();
                // The same batch is sent until it is acked, whatever happens to the node meanwhile.
                loop {
                    let client = current.lock().unwrap().clone();
                    match client.try_post("/api/v1/streams/transaction_log/events", "application/json", &body)
                    {
                        Some((202, answer)) => {
                            assert_eq!(answer["rejected"], 0);
                            break;
                        }
                        Some((503, _)) | None => std::thread::sleep(Duration::from_millis(20)),
                        Some((status, answer)) => panic!("{status}: {answer}"),
                    }
                }
                acked.extend(first..first + 20);
            }
            acked
        }));
    }

    let chance = SeededRandomness::new(7);
    for cycle in 0..cycles {
        std::thread::sleep(Duration::from_millis(50 + chance.below(600)));
        node.kill();
        node = Node::start(&data);
        *current.lock().unwrap() = node.client.clone();
        if cycle % 10 == 9 {
            println!("{} kills, {} events sent", cycle + 1, numbers.load(Ordering::Relaxed));
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut acked: Vec<u64> = writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect();
    acked.sort_unstable();
    node.client.settle();
    check(&node, &acked);
    println!("{cycles} kills: {} events acked, 0 lost, 0 duplicate", acked.len());
}

/// A segment was written without a person's name, and does not have its place yet.
const EDITED: &str = "log:edited";

/// Every place between two commits at which a process may end; see `highwater_event::planted`.
const STOPS: [&str; 14] = [
    "door:before_append",
    "door:appended",
    "log:written",
    "log:durable",
    EDITED,
    "stream:before_append",
    "stream:appended",
    "view:before_append",
    "view:appended",
    "store:before_commit",
    "store:committed",
    "ids:loaded",
    "lake:before_commit",
    "lake:committed",
];

/// Events of one body. Few: tables are written to the lake as a whole every two seconds, and hundreds of rounds
/// are not to become slower and slower.
const AT_ONCE: u64 = 4;

/// Ends the node at every named point, `HIGHWATER_CYCLES` times each, with the seed `HIGHWATER_SEED`; `HIGHWATER_POINTS` names some of them. The
/// node has to be built with the feature `planted` of `highwater-event`: `tests/planted.sh` does.
#[test]
#[ignore = "needs a node with stops: tests/planted.sh"]
fn stopped_at_every_named_point() {
    let cycles = setting("HIGHWATER_CYCLES", 10);
    let some = std::env::var("HIGHWATER_POINTS").ok();
    let is_asked = |point: &&str| some.as_deref().is_none_or(|some| some.split(',').any(|one| one == *point));
    let stops: Vec<&str> = STOPS.into_iter().filter(is_asked).collect();
    assert!(!stops.is_empty(), "HIGHWATER_POINTS names some of {STOPS:?}");
    let (_folder, data) = empty_data();
    let chance = SeededRandomness::new(setting("HIGHWATER_SEED", 11));
    let mut next = 0u64;
    let mut stopped = BTreeMap::new();
    let mut forgotten = Vec::new();
    let mut node = Node::start(&data);
    let notes =
        "CREATE STREAM notes (who TEXT NOT NULL SENSITIVE, said TEXT SENSITIVE) WITH (subject = 'who')";
    assert_eq!(node.client.post("/api/v1/statements", &json!({"sql": notes})).0, 200);
    node.kill();
    for cycle in 0..cycles {
        for point in stops.iter().copied() {
            // Early ones while it starts, later ones under load. What happens at intervals comes less often.
            let most = match point {
                EDITED => 1,
                rare if ["store", "lake", "ids"].iter().any(|kind| rare.starts_with(kind)) => 3,
                _ if cycle % 2 == 1 => 40,
                _ => 3,
            };
            // A forgetting rewrites whatever holds the name, while others send.
            let patience = Duration::from_secs(if point == EDITED { 60 } else { 8 });
            let at = format!("{point}:{}", 1 + chance.below(most));
            // Small files are written together all the time, so that this is interrupted, too.
            let settings = [("HIGHWATER_STOP_AT", at.as_str()), ("HIGHWATER__LAKE__KEEP", "1s")];
            let Some(mut node) = Node::start_with(&data, &settings) else {
                *stopped.entry(point).or_insert(0u64) += 1;
                continue;
            };
            if point == EDITED {
                let who = format!("Person-{cycle:04}-Nobody");
                forgotten.extend(forget(&node.client, &who).map(|job| (who, job)));
            }
            let deadline = std::time::Instant::now() + patience;
            while std::time::Instant::now() < deadline && node.is_running() {
                let body = Value::from((next..next + AT_ONCE).map(event).collect::<Vec<_>>()).to_string();
                let path = "/api/v1/streams/transaction_log/events";
                if let Some((202, _)) = node.client.try_post(path, "application/json", &body) {
                    next += AT_ONCE;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            if !node.is_running() {
                *stopped.entry(point).or_insert(0) += 1;
            }
            node.kill();
        }
        println!("round {} of {cycles}: {next} events acked; stopped {stopped:?}", cycle + 1);
    }
    for point in stops {
        let count = stopped.get(point).copied().unwrap_or(0);
        assert!(count > 0, "the node never stopped at {point}: is it built with the feature planted?");
    }
    let mut node = Node::start(&data);
    let client = &node.client;
    for (_, job) in &forgotten {
        assert_eq!(client.end_of(job)["state"], "finished");
    }
    // What was sent last may be there without an ack; it is sent until it is.
    let body = Value::from((next..next + AT_ONCE).map(event).collect::<Vec<_>>()).to_string();
    let (status, _) =
        client.try_post("/api/v1/streams/transaction_log/events", "application/json", &body).unwrap();
    assert_eq!(status, 202);
    client.settle();
    check(&node, &(0..next + AT_ONCE).collect::<Vec<_>>());
    assert!(node.run(&["audit", "verify"]).contains("verified"), "the tree and its checkpoint");
    node.kill();
    let names: Vec<Vec<u8>> = forgotten.into_iter().map(|(who, _)| who.into_bytes()).collect();
    assert_eq!(holding(&data, &names), Vec::<String>::new());
    println!("{} people forgotten", names.len());
}

/// Says something of a person, asks about them and has them forgotten; answers the job when it was acked.
fn forget(client: &Client, who: &str) -> Option<String> {
    let json = "application/json";
    let note = json!([{"who": who, "said": format!("{who} was here")}]).to_string();
    client.try_post("/api/v1/streams/notes/events", json, &note)?;
    let question = json!({"query": format!("SELECT count(*) AS n FROM notes WHERE who = '{who}'")});
    client.try_post("/api/v1/sql", json, &question.to_string())?;
    let (status, answer) = client.try_post("/api/v1/erasures", json, &json!({"subject": who}).to_string())?;
    assert_eq!(status, 202, "{answer}");
    answer["job_id"].as_str().map(str::to_owned)
}

/// Compares log, lake, streams and tables with what was acked.
fn check(node: &Node, acked: &[u64]) {
    let client = &node.client;
    // Every number that was ever sent was acked in the end, so the expected state is exact.
    let total = acked.len() as u64;
    assert_eq!(acked, (0..total).collect::<Vec<_>>());
    let clean: Vec<u64> = (0..total).filter(|number| number % 10 != 0).collect();
    let mut expected: BTreeMap<String, usize> = BTreeMap::from([
        ("transaction_log".into(), acked.len()),
        ("transactions_flat".into(), acked.len()),
        ("transactions_processed".into(), clean.len()),
        ("transactions_blacklisted".into(), acked.len() - clean.len()),
    ]);
    for (at, status) in STATUSES.iter().enumerate() {
        let count = clean.iter().filter(|number| **number % 5 == at as u64).count();
        expected.insert(format!("transactions_{status}"), count);
    }
    let (_, streams) = client.get("/api/v1/streams");
    for (stream, count) in &expected {
        let rows = client.number(&format!("SELECT count(*) FROM {stream}"));
        let distinct = client.number(&format!("SELECT count(DISTINCT transaction_id) FROM {stream}"));
        assert_eq!((rows, distinct), (*count as i64, *count as i64), "{stream}, log and lake together");
        let entry =
            streams["streams"].as_array().unwrap().iter().find(|entry| entry["name"] == **stream).unwrap();
        assert_eq!(entry["events"], *count, "{stream}, in the log");
        let version = &entry["lake"]["version"];
        let (status, page) = client.get(&format!("/api/datalake/streams/{stream}/?version={version}"));
        assert_eq!((status, &page["count"]), (200, &json!(count)), "{stream}, in the lake alone");
    }

    // Tables, against sums over what was sent: cents at rates of two digits are exact in ten-thousandths.
    let rate = [10_000u64, 11_000, 12_500];
    let usd = |number: &u64| (1000 + number % 9000) * rate[(number % 3) as usize];
    let sum =
        |filter: &dyn Fn(&u64) -> bool| clean.iter().filter(|number| filter(number)).map(usd).sum::<u64>();
    for (at, kind) in ["purchase", "refund"].iter().enumerate() {
        let rows = client.sql(&format!(
            "SELECT CAST(total_usd * 1000000 AS BIGINT) AS total, transactions FROM total_par_transaction_type WHERE transaction_type = '{kind}'"
        ));
        let of_kind = |number: &u64| number % 2 == at as u64;
        assert_eq!(rows[0]["total"], sum(&of_kind), "{kind}");
        assert_eq!(rows[0]["transactions"], clean.iter().filter(|number| of_kind(number)).count());
    }
    assert_eq!(client.number("SELECT count(*) FROM transaction_lifecycle"), clean.len() as i64);
    assert_eq!(
        client.number("SELECT CAST(sum(array_length(status_history)) AS BIGINT) FROM transaction_lifecycle"),
        clean.len() as i64
    );
    let purchases = clean.iter().filter(|number| **number % 2 == 0).count() as i64;
    assert_eq!(client.number("SELECT sum(purchase_count) FROM product_purchase_counts"), purchases);
    assert_eq!(
        client.number(
            "SELECT CAST(sum(total_depense_usd) * 1000000 AS BIGINT) FROM total_depense_par_user_type"
        ),
        sum(&|_| true) as i64
    );
    let late = client.number("SELECT count(*) FROM _late_events");
    let late_distinct = client.number("SELECT count(DISTINCT source_offset) FROM _late_events");
    assert_eq!(late, late_distinct, "late events are set apart once");
    assert_eq!(client.number("SELECT count(*) FROM _dead_letters"), 0);

    // A table that is derived again comes out the same.
    let tables = [
        "total_depense_par_user_type",
        "total_par_type_5min_sliding",
        "transaction_lifecycle",
        "product_purchase_counts",
    ];
    for table in tables {
        let rows = || client.sql(&format!("SELECT * FROM {table} ORDER BY 1, 2, 3"));
        let kept = rows();
        let (status, _) = client.post(&format!("/api/v1/views/table:{table}/rebuild"), &json!({}));
        assert_eq!(status, 202);
        client.settle();
        assert_eq!(rows(), kept, "{table} after a rebuild");
    }
    assert!(!node.log().contains(" ERROR "), "an unexpected error:\n{}", node.log());
}
