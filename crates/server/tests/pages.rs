//! Pages of a stream against an oracle: the same rows sorted and counted in memory, whatever part of them
//! is in the log, in small files, in files that were written together, or in files that overlap in time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use highwater_event::SeededRandomness;
use serde_json::{Value, json};
use support::{Client, Node, empty_data};

const KINDS: [&str; 3] = ["a", "b", "c"];

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    micros: i64,
    id: String,
    kind: &'static str,
    amount: u64,
}

/// A row at a time of its own, mostly later than those before it, sometimes by hours earlier.
fn row(number: u64, chance: &SeededRandomness) -> Row {
    let early = if chance.below(5) == 0 { chance.below(3 * 3600) } else { chance.below(20) };
    let second = 1_768_500_000 + number as i64 * 30 - early as i64;
    // The last digits are the number's, so no two rows have the same time; milliseconds are often whole.
    let below = if chance.below(2) == 0 { 0 } else { chance.below(900) as i64 * 1000 };
    Row {
        micros: second * 1_000_000 + below + number as i64 % 1000,
        id: format!("{number:05}"),
        kind: KINDS[chance.below(3) as usize],
        amount: chance.below(50),
    }
}

fn send(client: &Client, rows: &[Row]) {
    let events: Vec<Value> = rows
        .iter()
        .map(|row| {
            let at = highwater_event::time::show_micros(row.micros);
            json!({"id": row.id, "at": at, "kind": row.kind, "amount": row.amount, "card": row.id})
        })
        .collect();
    for stream in ["readings", "bare"] {
        let path = format!("/api/v1/streams/{stream}/events");
        let (status, answer) = client.post(&path, &Value::from(events.clone()));
        assert_eq!((status, &answer["rejected"]), (202, &json!(0)), "{answer}");
    }
}

/// Asks for random pages and compares them with the rows.
fn compare(client: &Client, rows: &[Row], chance: &SeededRandomness) {
    let mut newest = rows.to_vec();
    newest.sort_unstable_by(|a, b| b.cmp(a));
    for _ in 0..12 {
        let (kind, above) = (KINDS[chance.below(3) as usize], chance.below(50));
        type Holds<'a> = Box<dyn Fn(&Row) -> bool + 'a>;
        let (filter, holds): (String, Holds) = match chance.below(4) {
            0 => (String::new(), Box::new(|_| true)),
            1 => (format!("&kind={kind}"), Box::new(|row| row.kind == kind)),
            2 => (
                format!("&kind={kind}&amount_gt={above}"),
                Box::new(|row| row.kind == kind && row.amount > above),
            ),
            // A masked column is compared as it is shown.
            _ => ("&card=00001".into(), Box::new(|_| false)),
        };
        let found: Vec<&Row> = newest.iter().filter(|row| holds(row)).collect();
        let pages = found.len().div_ceil(10).max(1);
        let page = 1 + chance.below(pages as u64) as usize;
        let path = format!("/api/datalake/streams/readings/?fields=id&page={page}{filter}");
        let (status, answer) = client.get(&path);
        let expected: Vec<Value> =
            found.iter().skip((page - 1) * 10).take(10).map(|row| json!({"id": row.id})).collect();
        assert_eq!(status, 200, "{path}: {answer}");
        assert_eq!(
            (&answer["count"], &answer["total_pages"], &answer["results"]),
            (&json!(found.len()), &json!(pages), &Value::from(expected)),
            "{path}"
        );
    }
    let last = newest.last().unwrap();
    let ends = client
        .sql("SELECT count(*) AS n, min(_event_time) AS low, max(_event_time) AS high FROM readings")
        .remove(0);
    let show = |row: &Row| highwater_event::time::show_micros(row.micros);
    assert_eq!(ends, json!({"n": rows.len(), "low": show(last), "high": show(&newest[0])}));
    // One with an order and no limit.
    let all = client.sql("SELECT id FROM readings ORDER BY _event_time DESC, _offset DESC");
    assert_eq!(all.len(), rows.len());
    assert!(all.iter().zip(&newest).all(|(shown, row)| shown["id"] == row.id));
}

/// Asks declared endpoints for all pages of random questions, one after the other.
fn compare_declared(client: &Client, rows: &[Row], chance: &SeededRandomness) {
    let mut sorted = rows.to_vec();
    sorted.sort_unstable();
    for path in ["/shown", "/planned"] {
        let (kind, above) = (KINDS[chance.below(3) as usize], chance.below(50));
        let found = sorted.iter().filter(|row| row.kind == kind && row.amount > above);
        let mut expected: Vec<&str> = found.map(|row| row.id.as_str()).collect();
        let sort = if chance.below(2) == 0 { "asc" } else { "desc" };
        if sort == "desc" {
            expected.reverse();
        }
        let limit = 1 + chance.below(40);
        let question = format!("{path}?kind={kind}&above={above}&sort={sort}&limit={limit}");
        let (mut shown, mut cursor) = (Vec::new(), String::new());
        loop {
            let (status, answer) = client.get(&format!("{question}{cursor}"));
            assert_eq!((status, &answer["total"]), (200, &json!(expected.len())), "{question}: {answer}");
            let page = answer["rows"].as_array().unwrap();
            shown.extend(page.iter().map(|row| row["id"].as_str().unwrap().to_owned()));
            match answer["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!(shown, expected, "{question}");
    }
}

#[test]
fn pages_equal_sorted_rows() {
    play("");
}

#[test]
fn pages_from_an_index_equal_sorted_rows() {
    let node = play(", search = 'kind, amount'");
    let (status, view) = node.client.get("/api/v1/views/search:readings");
    assert_eq!((status, &view["state"]), (200, &json!("running")), "{view}");
}

/// Plays a stream with these options more; answers the node and its folder.
fn play(options: &str) -> Played {
    let (folder, data) = empty_data();
    let mut node = Node::start(&data);
    let statement = "CREATE STREAM readings (id TEXT NOT NULL, at TIMESTAMP NOT NULL, kind TEXT, amount INT, card TEXT SENSITIVE)
        WITH (event_id = 'id', event_time = 'at', partitions = 3";
    let pages = "CREATE ENDPOINT '/shown' (kind TEXT, above INT) REQUIRES view_own RETURNS PAGE OF rows AS
          SELECT id, _event_time, _partition, _offset FROM bare WHERE ($kind IS NULL OR kind = $kind) AND amount > $above;
        CREATE ENDPOINT '/planned' (kind TEXT, above INT) REQUIRES view_own RETURNS PAGE OF rows AS
          SELECT upper(id) AS id, _event_time, _partition, _offset FROM bare WHERE kind = $kind AND amount > $above;";
    // A stream whose columns are all shown as they are.
    let bare = statement.replace("readings", "bare").replace(" SENSITIVE", "");
    let statement = format!("{statement}{options}); {bare}{options}); {pages}");
    let (status, answer) = node.client.post("/api/v1/statements", &json!({"sql": statement}));
    assert!(status < 300, "{answer}");
    let chance = SeededRandomness::new(5);
    let mut rows = Vec::new();
    for round in 0..24 {
        let fresh: Vec<Row> = (0..40).map(|number| row(round * 40 + number, &chance)).collect();
        send(&node.client, &fresh);
        rows.extend(fresh);
        if chance.below(3) > 0 {
            // Otherwise some of them are in the log only.
            node.client.settle();
        }
        if round % 9 == 8 {
            let (status, answer) = node.client.post("/api/v1/maintenance", &json!({}));
            assert_eq!(status, 200, "{answer}");
        }
        if round == 15 {
            node.kill();
            node = Node::start(&data);
        }
        compare(&node.client, &rows, &chance);
        // Without an index a page takes a plan, which is slow in a program that was not optimised.
        if !options.is_empty() || round % 6 == 5 {
            compare_declared(&node.client, &rows, &chance);
        }
    }
    let (_, streams) = node.client.get("/api/v1/streams");
    let entry =
        streams["streams"].as_array().unwrap().iter().find(|entry| entry["name"] == "readings").unwrap();
    assert!(entry["lake"]["files"].as_u64().unwrap() > 1, "{entry}");
    Played { client: node.client.clone(), _node: node, _folder: folder }
}

struct Played {
    client: Client,
    _node: Node,
    _folder: tempfile::TempDir,
}
