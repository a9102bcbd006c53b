//! Rows that callers write, from many sides at once and under kill -9: nobody writes over what they have not seen,
//! what is acked stays, and a request that is sent again counts once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use highwater_event::SeededRandomness;
use highwater_sim::setting;
use serde_json::{Value, json};
use support::{Client, Node, empty_data};

const WRITERS: u64 = 6;

const TABLES: &str = "
    CREATE TABLE counters (name TEXT, value BIGINT NOT NULL) WITH (key = 'name');
    CREATE ENDPOINT '/counters/{name}/' (name TEXT) REQUIRES count RETURNS OBJECT AS
    SELECT name, value, version AS _version FROM counters WHERE name = $name;
    CREATE ENDPOINT POST '/counters/' (name TEXT, value BIGINT) REQUIRES count INSERTS INTO counters;
    CREATE ENDPOINT PUT '/counters/{name}/' (name TEXT, value BIGINT) REQUIRES count UPDATES counters;
    CREATE TABLE orders (id BIGINT GENERATED ALWAYS AS IDENTITY, what TEXT NOT NULL) WITH (key = 'id');
    CREATE ENDPOINT POST '/orders/' (what TEXT) REQUIRES order INSERTS INTO orders;
";

/// What one writer knows to be in the tables.
#[derive(Default)]
struct Known {
    /// How often it has counted, for certain.
    counted: u64,
    /// How often it may have counted: it was not told.
    unsure: u64,
    /// Its orders, with their ids.
    orders: Vec<(i64, String)>,
}

fn headers(more: &[(&str, &str)]) -> Vec<(String, String)> {
    let kind = [("content-type", "application/json")];
    kind.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Counts one further, unless somebody else has meanwhile.
fn count(client: &Client, known: &mut Known) {
    let Ok((200, seen, row)) = client.try_call("GET", "/counters/all/", &headers(&[]), b"") else { return };
    let tag = seen["etag"].to_str().unwrap();
    let next = json!({"value": row["value"].as_i64().unwrap() + 1}).to_string();
    match client.try_call("PUT", "/counters/all/", &headers(&[("if-match", tag)]), next.as_bytes()) {
        Ok((200, ..)) => known.counted += 1,
        Ok((412, ..)) => {}
        Ok((503, ..)) | Err(_) => known.unsure += 1,
        Ok((status, _, answer)) => panic!("{status}: {answer}"),
    }
}

#[test]
fn nothing_is_written_over_and_nothing_is_lost() {
    let cycles = setting("HIGHWATER_CYCLES", 6);
    let (_folder, data) = empty_data();
    let mut node = Node::start(&data);
    let (status, answer) = node.client.post("/api/v1/statements", &json!({"sql": TABLES}));
    assert_eq!(status, 200, "{answer}");
    let (status, answer) = node.client.post("/counters/", &json!({"name": "all", "value": 0}));
    assert_eq!(status, 201, "{answer}");
    let current: Arc<Mutex<Client>> = Arc::new(Mutex::new(node.client.clone()));
    let stop = Arc::new(AtomicBool::new(false));
    let writer = |writer: u64| {
        let (current, stop) = (current.clone(), stop.clone());
        std::thread::spawn(move || {
            let mut known = Known::default();
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                let client = current.lock().unwrap().clone();
                count(&client, &mut known);
                // An order is sent until it is acked, whatever happens to the node meanwhile.
                let what = format!("order {number} of {writer}");
                let body = json!({"what": what}).to_string();
                let key = headers(&[("idempotency-key", &what)]);
                loop {
                    let client = current.lock().unwrap().clone();
                    match client.try_call("POST", "/orders/", &key, body.as_bytes()) {
                        Ok((201, _, row)) => {
                            known.orders.push((row["id"].as_i64().unwrap(), what.clone()));
                            break;
                        }
                        Ok((503, ..)) | Err(_) => std::thread::sleep(Duration::from_millis(20)),
                        Ok((status, _, answer)) => panic!("{status}: {answer}"),
                    }
                }
                number += 1;
            }
            known
        })
    };
    let writers: Vec<_> = (0..WRITERS).map(writer).collect();
    let chance = SeededRandomness::new(11);
    for _ in 0..cycles {
        std::thread::sleep(Duration::from_millis(300 + chance.below(700)));
        node.kill();
        node = Node::start(&data);
        *current.lock().unwrap() = node.client.clone();
    }
    std::thread::sleep(Duration::from_millis(500));
    stop.store(true, Ordering::Relaxed);
    let known: Vec<Known> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();

    let (counted, unsure) =
        known.iter().fold((0, 0), |(counted, unsure), it| (counted + it.counted, unsure + it.unsure));
    let (_, row) = node.client.get("/counters/all/");
    let value = row["value"].as_u64().unwrap();
    assert!(
        (counted..=counted + unsure).contains(&value),
        "{counted} and perhaps {unsure} more, not {value}"
    );
    assert!(counted > 0);

    let ask = |sql: &str| -> Value { node.client.post("/api/v1/sql", &json!({"query": sql})).1 };
    let answer = ask("SELECT id, what FROM orders");
    let rows = answer["rows"].as_array().unwrap();
    let found: BTreeSet<(i64, String)> = rows
        .iter()
        .map(|row| (row["id"].as_i64().unwrap(), row["what"].as_str().unwrap().to_owned()))
        .collect();
    let sent: BTreeSet<(i64, String)> = known.iter().flat_map(|it| it.orders.iter().cloned()).collect();
    assert_eq!(rows.len(), found.len(), "no order is there twice");
    assert_eq!(sent, found, "each order is there once, under the id that was answered");

    // No act without its entry: one of every change, in the commit of the change.
    let changes =
        ask("SELECT (SELECT count(*) FROM orders_changes) + (SELECT count(*) FROM counters_changes) AS n");
    let entries = ask(
        "SELECT count(*) AS n FROM _audit WHERE status IN (200, 201) AND (resource LIKE 'table:orders/%' OR resource LIKE 'table:counters/%')",
    );
    // A request that was sent again and had been answered before changes nothing, and is an act all the same.
    assert!(entries["rows"][0]["n"].as_u64() >= changes["rows"][0]["n"].as_u64(), "{entries} {changes}");
    println!("{value} counted, {} orders, {cycles} kills", found.len());
}
