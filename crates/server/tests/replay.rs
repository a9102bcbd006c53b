//! A replay that is cut short is begun again, and every event is there once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use serde_json::{Value, json};
use support::{Node, empty_data};

const EVENTS: usize = 60_000;

/// Begins a replay and reads its first line; the caller goes away when the reader is dropped.
fn begin(node: &Node) -> (BufReader<TcpStream>, Value) {
    let host = node.client.url.strip_prefix("http://").unwrap();
    let mut connection = TcpStream::connect(host).unwrap();
    let body = r#"{"into":"copy"}"#;
    write!(
        connection,
        "POST /api/v1/streams/history/replay HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        node.client.token,
        body.len()
    )
    .unwrap();
    let mut lines = BufReader::new(connection);
    let mut line = String::new();
    while !line.starts_with('{') {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0, "the answer ended before its first line");
    }
    (lines, serde_json::from_str(&line).unwrap())
}

#[test]
fn what_was_cut_short_goes_on_under_its_name() {
    let (_folder, data) = empty_data();
    let mut node = Node::start(&data);
    for name in ["history", "copy"] {
        let sql = format!("CREATE STREAM {name} (id TEXT, n BIGINT) WITH (event_id = 'id', partitions = 3)");
        assert_eq!(node.client.post("/api/v1/statements", &json!({"sql": sql})).0, 200);
    }
    for part in 0..EVENTS / 1000 {
        let events: Vec<Value> =
            (part * 1000..(part + 1) * 1000).map(|n| json!({"id": format!("e{n}"), "n": n})).collect();
        assert_eq!(node.client.post("/api/v1/streams/history/events", &Value::from(events)).0, 202);
    }
    // The caller goes away.
    let (caller, first) = begin(&node);
    assert!(
        first["events"].as_u64().unwrap() < EVENTS as u64,
        "the first line comes before the end: {first}"
    );
    drop(caller);
    // The node ends.
    let (caller, _) = begin(&node);
    node.kill();
    drop(caller);
    let mut node = Node::start(&data);
    let (caller, _) = begin(&node);
    let last = caller
        .lines()
        .map(Result::unwrap)
        .filter(|line| line.starts_with('{'))
        .find(|line| line.contains("finished"));
    let last: Value = serde_json::from_str(&last.expect("a last line")).unwrap();
    assert_eq!(last["events"], EVENTS, "{last}");
    assert!(last["duplicates"].as_u64().unwrap() > 0, "what had arrived is known: {last}");
    for question in ["count(*)", "count(DISTINCT id)", "count(DISTINCT _extra)", "max(n) + 1"] {
        let found = node.client.number(&format!("SELECT {question} FROM copy"));
        assert_eq!(found, EVENTS as i64, "{question}");
    }
    node.kill();
}
