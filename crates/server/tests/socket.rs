//! Events over a WebSocket: each message gets its answer in order, whatever its neighbours are, and what was
//! answered survives kill -9.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};
use support::{Client, Node, empty_data};
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};

fn connect(client: &Client, stream: &str) -> Result<WebSocket<TcpStream>, String> {
    let address = client.url.trim_start_matches("http://");
    let url = format!("ws://{address}/api/v1/streams/{stream}/socket");
    let mut request = url.into_client_request().unwrap();
    request.headers_mut().insert("authorization", format!("Bearer {}", client.token).parse().unwrap());
    let socket = TcpStream::connect(address).map_err(|error| error.to_string())?;
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    tungstenite::client(request, socket).map(|(socket, _)| socket).map_err(|error| error.to_string())
}

fn answer(socket: &mut WebSocket<TcpStream>) -> Option<Value> {
    match socket.read().ok()? {
        Message::Text(text) => Some(serde_json::from_str(&text).unwrap()),
        other => panic!("{other:?}"),
    }
}

fn start() -> (tempfile::TempDir, Node) {
    let (folder, data) = empty_data();
    let node = Node::start(&data);
    let statement = "CREATE STREAM readings (id TEXT NOT NULL, n BIGINT) WITH (event_id = 'id');";
    let (status, answer) = node.client.post("/api/v1/statements", &json!({"sql": statement}));
    assert!(status < 300, "{answer}");
    (folder, node)
}

fn files_that_may_be_open() -> u64 {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// As many as there may be, and then one more; whoever goes makes room.
fn fill_up(client: &Client) {
    let mut open: Vec<_> = (0..1024).map(|_| connect(client, "readings").unwrap()).collect();
    assert!(connect(client, "readings").unwrap_err().contains("503"));
    let mut last = open.pop().unwrap();
    last.close(None).unwrap();
    while last.read().is_ok() {}
    let again = (0..100).find_map(|_| {
        std::thread::sleep(Duration::from_millis(20));
        connect(client, "readings").ok()
    });
    assert!(again.is_some(), "there is room again");
    drop(open);
}

#[test]
fn every_message_has_its_answer() {
    let (_folder, node) = start();
    let mut socket = connect(&node.client, "readings").unwrap();
    // What is sent, and what the answer says of it.
    let messages: Vec<(&str, &str)> = vec![
        (r#"{"id":"a","n":1}"#, "accepted"),
        (r#"{"id":"b","n":2}"#, "accepted"),
        (r#"{"id":"a","n":1}"#, "duplicate"),
        (r#"{"id":"a","n":7}"#, "conflict"),
        (r#"{"id":"c","n":"many"}"#, "rejected"),
        ("{\"id\":\"d\",\n\"n\":4}", "accepted"),
        ("{\"id\":\"e\n\",\"n\":5}", "rejected"),
        ("", "rejected"),
        ("  \n", "rejected"),
        (r#"[{"id":"f","n":6},{"id":"g","n":6}]"#, "rejected"),
        (r#"{"id":"h","n":8},{"id":"i","n":8}"#, "rejected"),
        ("no JSON", "rejected"),
        (r#"{"id":"j","n":9}"#, "accepted"),
    ];
    for round in 0..3 {
        for (text, _) in &messages {
            // One by one, all at once, and as bytes.
            let message =
                if round == 2 { Message::binary(text.as_bytes().to_vec()) } else { Message::text(*text) };
            socket.write(message).unwrap();
            if round == 0 {
                socket.flush().unwrap();
            }
        }
        socket.flush().unwrap();
        for (at, (text, status)) in messages.iter().enumerate() {
            let answer = answer(&mut socket).unwrap();
            let expected = if round > 0 && *status == "accepted" { "duplicate" } else { status };
            assert_eq!(
                (&answer["index"], &answer["status"]),
                (&json!(round * messages.len() + at), &json!(expected)),
                "{text}: {answer}"
            );
            assert_eq!(
                answer["error"]["code"].is_string(),
                !matches!(expected, "accepted" | "duplicate"),
                "{answer}"
            );
        }
    }
    // Long groups and single messages come into the stream in order.
    for number in 0..600 {
        let newline = if number % 97 == 3 { "\n" } else { "" };
        socket.write(Message::text(format!("{{\"id\":\"o{number}\",{newline}\"n\":{number}}}"))).unwrap();
    }
    socket.flush().unwrap();
    let offsets: Vec<u64> =
        (0..600).map(|_| answer(&mut socket).unwrap()["offset"].as_u64().unwrap()).collect();
    assert!(offsets.is_sorted(), "{offsets:?}");
    socket.close(None).unwrap();
    assert!(matches!(socket.read(), Ok(Message::Close(_))));
    assert_eq!(node.client.number("SELECT count(*) FROM readings"), 604);

    // A message that is too long: those before it are answered, and the end says why.
    let mut socket = connect(&node.client, "readings").unwrap();
    socket.write(Message::text(r#"{"id":"k","n":1}"#)).unwrap();
    socket.flush().unwrap();
    assert_eq!(answer(&mut socket).unwrap()["status"], "accepted");
    socket.write(Message::text(format!(r#"{{"id":"l","note":"{}"}}"#, "x".repeat(1 << 20)))).unwrap();
    socket.flush().ok();
    match socket.read() {
        Ok(Message::Close(Some(frame))) => assert_eq!(u16::from(frame.code), 1009, "{frame:?}"),
        other => panic!("{other:?}"),
    }

    if files_that_may_be_open() > 3000 {
        fill_up(&node.client);
    } else {
        println!("not run: as many sockets as there may be, for want of open files (ulimit -n 4096)");
    }

    // Ways to get it wrong.
    assert!(connect(&node.client, "nope").unwrap_err().contains("404"));
    let (status, problem) = node.client.get("/api/v1/streams/readings/socket");
    assert_eq!((status, &problem["code"]), (426, &json!("websocket_expected")));
    let stranger = Client::new(&node.client.url, "wrong");
    assert!(connect(&stranger, "readings").unwrap_err().contains("401"));
}

#[test]
fn what_was_answered_survives_kill_9() {
    let (folder, mut node) = start();
    let mut answered: BTreeMap<u64, u64> = BTreeMap::new();
    for life in 0..5 {
        let mut socket = connect(&node.client, "readings").unwrap();
        // What has no answer is sent again, as a sender would.
        let mut next = answered.len() as u64;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(150 + life * 130));
                node.kill();
            });
            let mut waiting = std::collections::VecDeque::new();
            'life: loop {
                while waiting.len() < 300 {
                    let text = format!("{{\"id\":\"e{next}\",\"n\":{next}}}");
                    if socket.write(Message::text(text)).is_err() {
                        break 'life;
                    }
                    waiting.push_back(next);
                    next += 1;
                }
                if socket.flush().is_err() {
                    break;
                }
                let Some(answer) = answer(&mut socket) else { break };
                assert!(["accepted", "duplicate"].contains(&answer["status"].as_str().unwrap()), "{answer}");
                let offset = answer["offset"].as_u64().unwrap();
                let number = waiting.pop_front().unwrap();
                assert!(answered.insert(number, offset).is_none_or(|before| before == offset));
            }
        });
        node = Node::start(&folder.path().join("data"));
    }
    // As many as one answer may hold at a time.
    let rows: Vec<Value> = (0..answered.len() + 1000)
        .step_by(50_000)
        .flat_map(|from| {
            let to = from + 50_000;
            node.client.sql(&format!("SELECT n, _offset FROM readings WHERE n >= {from} AND n < {to}"))
        })
        .collect();
    let found: BTreeMap<u64, u64> =
        rows.iter().map(|row| (row["n"].as_u64().unwrap(), row["_offset"].as_u64().unwrap())).collect();
    assert_eq!(found.len(), rows.len(), "each is there once");
    assert!(answered.len() > 500, "{}", answered.len());
    for (number, offset) in &answered {
        assert_eq!(found.get(number), Some(offset), "e{number} was answered");
    }
}
