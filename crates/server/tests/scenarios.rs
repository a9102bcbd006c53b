//! Scenarios as text: each file under `scenarios/` is played against a real node of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use serde_json::Value;
use support::Node;

/// Every member that `expected` names is there and equal; arrays may be longer than what is expected of them.
fn holds(found: &Value, expected: &Value) -> bool {
    match (found, expected) {
        (Value::Object(found), Value::Object(expected)) => expected
            .iter()
            .all(|(name, expected)| found.get(name).is_some_and(|found| holds(found, expected))),
        (Value::Array(found), Value::Array(expected)) => {
            found.len() >= expected.len()
                && found.iter().zip(expected).all(|(found, expected)| holds(found, expected))
        }
        (found, expected) => found == expected,
    }
}

fn play(text: &str) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let mut node = Node::start(&data);
    let mut lines = text.lines().enumerate().peekable();
    let mut calls = 0;
    while let Some((number, line)) = lines.next() {
        let Some(call) = line.strip_prefix("> ") else {
            match line {
                "settle" => node.client.settle(),
                "restart" => {
                    node.kill();
                    node = Node::start(&data);
                }
                _ => assert!(line.is_empty() || line.starts_with('#'), "line {}: {line}", number + 1),
            }
            continue;
        };
        let (method, path) = call.split_once(' ').unwrap();
        let mut body = String::new();
        while let Some((_, line)) = lines.next_if(|(_, line)| !line.starts_with("< ")) {
            body.push_str(line);
            body.push('\n');
        }
        let expected = lines.next().unwrap().1.strip_prefix("< ").unwrap();
        let (status, expected) = expected.split_once(' ').unwrap();
        let (found_status, found) = match method {
            "GET" => node.client.get(path),
            "PUT" => node.client.put(path),
            _ => node.client.try_post(path, "application/json", &body).unwrap(),
        };
        let expected: Value = serde_json::from_str(expected).unwrap();
        assert!(
            found_status.to_string() == status && holds(&found, &expected),
            "line {}: {call}\nexpected {status} {expected}\nfound    {found_status} {found}",
            number + 1
        );
        calls += 1;
    }
    println!("{calls} calls as written");
}

#[test]
fn transactions() {
    play(include_str!("scenarios/transactions.scenario"));
}

#[test]
fn nothing_is_open_without_the_token() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let node = Node::start(&data);
    let (_, document) = node.client.get("/api/openapi.json");
    let stranger = support::Client::new(&node.client.url, "0000000000000000000000000000000000000000");
    let mut seen = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        let path = path.replace(['{', '}'], "");
        for method in ["get", "post"].into_iter().filter(|method| item.get(method).is_some()) {
            let status =
                if method == "get" { stranger.get(&path).0 } else { stranger.post(&path, &Value::Null).0 };
            let expected = if path == "/healthz" { 200 } else { 401 };
            assert_eq!(status, expected, "{method} {path}");
            seen += 1;
        }
    }
    assert!(seen > 20, "the document lists {seen} calls");
    use std::os::unix::fs::PermissionsExt;
    for secret in ["operator.token", "token.key"] {
        assert_eq!(
            std::fs::metadata(data.join(secret)).unwrap().permissions().mode() & 0o777,
            0o600,
            "{secret}"
        );
    }
}
