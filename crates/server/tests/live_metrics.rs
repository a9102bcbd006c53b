//! Figures that are told every second: over a WebSocket and as server-sent events, of one's own only, until one's
//! credential ends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Client, Node, empty_data};
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};

fn start() -> (tempfile::TempDir, Node) {
    let (folder, data) = empty_data();
    let node = Node::start(&data);
    node.run(&["apply", "-f", &format!("{}/../../packs/events", env!("CARGO_MANIFEST_DIR"))]);
    (folder, node)
}

fn key(node: &Node, client_id: &str) -> Client {
    let wanted = json!({"client_id": client_id, "name": "k", "rate_limit": 100_000});
    let (status, answer) = node.client.post("/api/v1/keys/", &wanted);
    assert_eq!(status, 201, "{answer}");
    Client::new(&node.client.url, answer["api_key"].as_str().unwrap())
}

fn subscribe(client: &Client, first: &str) -> WebSocket<TcpStream> {
    let address = client.url.trim_start_matches("http://");
    let mut request = format!("ws://{address}/api/v1/ws/metrics").into_client_request().unwrap();
    request.headers_mut().insert("authorization", format!("Bearer {}", client.token).parse().unwrap());
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let (mut socket, _) = tungstenite::client(request, socket).unwrap();
    socket.send(Message::text(first)).unwrap();
    socket
}

fn next(socket: &mut WebSocket<TcpStream>) -> Option<Value> {
    match socket.read().ok()? {
        Message::Text(text) => Some(serde_json::from_str(&text).unwrap()),
        _ => None,
    }
}

fn send(client: &Client, from: usize, to: usize) {
    let events: Vec<Value> =
        (from..to).map(|n| json!({"event_id": format!("e{n}"), "event_type": "click"})).collect();
    let (status, answer) = client.post("/api/v1/events/batch", &json!({"events": events}));
    assert_eq!(status, 202, "{answer}");
}

/// Reads messages until one says what is wanted.
fn until(socket: &mut WebSocket<TcpStream>, wanted: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let message = next(socket).expect("a message");
        if wanted(&message) {
            return message;
        }
        assert!(Instant::now() < deadline, "the last one: {message}");
    }
}

#[test]
fn everybody_hears_of_their_own_every_second() {
    let (_folder, node) = start();
    let (acme, other) = (key(&node, "acme"), key(&node, "other"));
    let mut own = subscribe(&acme, r#"{"type":"subscribe","client_id":"acme"}"#);
    let mut foreign = subscribe(&acme, r#"{"type":"subscribe","client_id":"other"}"#);
    let mut all = subscribe(&node.client, r#"{"type":"subscribe"}"#);
    let first = next(&mut own).unwrap();
    assert_eq!((&first["type"], &first["data"]["received"]), (&json!("metrics"), &json!(0)));
    send(&acme, 0, 300);
    send(&other, 0, 50);
    let told = until(&mut own, |told| told["data"]["processed"] == 300);
    assert_eq!(
        (&told["data"]["received"], &told["data"]["failed"], &told["missed"]),
        (&json!(300), &json!(0), &json!(0))
    );
    let latency = &told["data"]["latency_ms"];
    assert!(
        latency["p50"].as_f64().unwrap() > 0.0 && latency["p99"].as_f64() <= latency["max"].as_f64(),
        "{told}"
    );
    assert!(told["offset"].as_i64().unwrap() > first["offset"].as_i64().unwrap());
    until(&mut all, |told| told["data"]["processed"] == 350);
    assert_eq!(next(&mut foreign).unwrap()["data"]["received"], 0, "other clients' figures are not there");

    // A second from one to the next, and rates of what grows.
    let started = Instant::now();
    for _ in 0..3 {
        next(&mut own).unwrap();
    }
    let took = started.elapsed();
    assert!((Duration::from_millis(1900)..Duration::from_millis(4500)).contains(&took), "{took:?}");
    send(&acme, 300, 400);
    let told = until(&mut own, |told| told["data"]["received"] == 400);
    assert!(told["rates"]["received"].as_f64().unwrap() > 0.0, "{told}");

    // Whoever comes back misses nothing: figures are those of now.
    drop(own);
    send(&acme, 400, 500);
    let again = format!("{{\"type\":\"subscribe\",\"client_id\":\"acme\",\"from\":{}}}", told["offset"]);
    let mut own = subscribe(&acme, &again);
    until(&mut own, |told| told["data"]["processed"] == 500);

    // The twin.
    let mut events =
        BufReader::new(acme.open("/api/v1/live/metrics?client_id=acme").into_body().into_reader()).lines();
    let mut line = |prefix: &str| {
        let found = events.find_map(|line| line.unwrap().strip_prefix(prefix).map(str::to_owned));
        found.unwrap()
    };
    assert_eq!(line("event: "), "metrics");
    let id = line("id: ");
    let told: Value = serde_json::from_str(&line("data: ")).unwrap();
    assert_eq!((told["data"]["received"].as_i64(), told["offset"].to_string()), (Some(500), id));

    // It ends with the credential.
    let (_, keys) = node.client.get("/api/v1/keys/");
    let id =
        keys["keys"].as_array().unwrap().iter().find(|key| key["client_id"] == "acme").unwrap()["id"].clone();
    let (status, answer) =
        node.client.post(&format!("/api/v1/keys/{}/toggle", id.as_str().unwrap()), &json!({}));
    assert_eq!(status, 200, "{answer}");
    let last = until(&mut own, |told| told["type"] == "error");
    assert_eq!(last["error"]["code"], "credentials_changed");
    assert!(next(&mut own).is_none());
}

#[test]
fn what_is_wrong_is_said_and_ends_it() {
    let (_folder, node) = start();
    for (first, code) in [
        ("hello", "subscribe_expected"),
        (r#"{"type":"publish"}"#, "subscribe_expected"),
        (r#"{"type":"subscribe","clientid":"acme"}"#, "unknown_parameter"),
    ] {
        let mut socket = subscribe(&node.client, first);
        let told = next(&mut socket).unwrap();
        assert_eq!((&told["type"], &told["error"]["code"]), (&json!("error"), &json!(code)), "{first}");
        assert!(next(&mut socket).is_none());
    }
    let (status, answer) = node.client.get("/api/v1/live/metrics?clientid=acme");
    assert_eq!((status, &answer["code"]), (400, &json!("unknown_parameter")));
    let (status, _) = Client::new(&node.client.url, "").get("/api/v1/live/metrics");
    assert_eq!(status, 401);
}
