//! Limits of keys: 200 senders at once never get more than the limit in any minute, a kill is no way around it,
//! and neither is another header or path. Sign-in that fails is slowed down.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use support::{Client, Node, empty_data};

fn key(node: &Node, limit: u32) -> String {
    let (status, answer) =
        node.client.post("/api/v1/keys/", &json!({"client_id": "acme", "name": "k", "rate_limit": limit}));
    assert_eq!(status, 201, "{answer}");
    answer["api_key"].as_str().unwrap().to_owned()
}

fn event(number: usize) -> Value {
    json!({"event_id": format!("e{number}"), "event_type": "t", "payload": {"n": number}})
}

#[test]
fn two_hundred_senders_never_get_more_than_the_limit() {
    const LIMIT: u32 = 300;
    let (_folder, data) = empty_data();
    let mut node = Node::start(&data);
    let key = key(&node, LIMIT);
    let (next, let_in, refused) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let send = |url: &str, each: usize| {
        std::thread::scope(|scope| {
            for sender in 0..200 {
                let client = Client::new(url, &key);
                let (next, let_in, refused) = (&next, &let_in, &refused);
                scope.spawn(move || {
                    for _ in 0..each {
                        let number = next.fetch_add(3, Ordering::Relaxed);
                        // One at a time, and several in one call, which cost as many.
                        let (status, events, answer) = if sender % 2 == 0 {
                            let (status, answer) = client.post("/api/v1/events/ingest", &event(number));
                            (status, 1, answer)
                        } else {
                            let events =
                                json!({"events": [event(number), event(number + 1), event(number + 2)]});
                            let (status, answer) = client.post("/api/v1/events/batch/", &events);
                            (status, 3, answer)
                        };
                        match status {
                            202 => let_in.fetch_add(events, Ordering::Relaxed),
                            429 => refused.fetch_add(events, Ordering::Relaxed),
                            other => panic!("{other}: {answer}"),
                        };
                    }
                });
            }
        });
    };
    let began = std::time::Instant::now();
    send(&node.client.url, 3);
    let within = began.elapsed().as_secs();
    assert!(within < 55, "too slow to tell: {within} s");
    let first = let_in.load(Ordering::Relaxed);
    assert!(first <= LIMIT as usize && first + 3 > LIMIT as usize, "{first} were let in");
    assert!(refused.load(Ordering::Relaxed) > 100);
    assert_eq!(
        node.client.number("SELECT count(*) FROM events") as usize,
        first,
        "what was refused left nothing"
    );
    // A kill gives nobody another minute.
    node.kill();
    node = Node::start(&data);
    if began.elapsed().as_secs() < 50 {
        send(&node.client.url, 1);
        let second = let_in.load(Ordering::Relaxed);
        assert!(second <= LIMIT as usize, "{second} were let in with a kill between");
    }
    // Whatever else a call says.
    let client = Client::new(&node.client.url, &key);
    for (name, value) in
        [("x-forwarded-for", "1.2.3.4"), ("x-api-key", key.as_str()), ("x-real-ip", "9.9.9.9")]
    {
        let (status, _) = client.call(
            "POST",
            "/api/v1/events/ingest/",
            &[(name.into(), value.into())],
            event(9_000_001).to_string().as_bytes(),
        );
        assert_eq!(status, 429, "{name}");
    }
}

#[test]
fn sign_in_that_fails_is_slowed_down_and_tells_nothing() {
    let (_folder, data) = empty_data();
    let node = Node::start(&data);
    let user = json!({"username": "ada", "password": "purple-mountain-42"});
    assert_eq!(node.client.post("/api/v1/users", &user).0, 201);
    let stranger = Client::new(&node.client.url, "");
    let mut answers = Vec::new();
    for name in ["ada", "nobody"] {
        let guess = json!({"username": name, "password": "wrong-wrong-wrong"});
        let all: Vec<(u16, Value)> = (0..12).map(|_| stranger.post("/api-token-auth/", &guess)).collect();
        assert!(all[..10].iter().all(|(status, _)| *status == 400), "{all:?}");
        assert_eq!(all[11].0, 429, "{all:?}");
        answers.push(all[0].1["detail"].clone());
    }
    assert_eq!(answers[0], answers[1], "the answer does not tell who is known");
    let right = stranger.post("/api-token-auth/", &user);
    assert_eq!(right.0, 429, "whoever knows the password waits, too");
}

#[test]
fn an_address_has_a_limit_of_its_own_that_a_kill_does_not_lift() {
    let (_folder, data) = empty_data();
    let environment = [("HIGHWATER__HTTP__ADDRESS_LIMIT", "60")];
    let mut node = Node::start_with(&data, &environment).unwrap();
    let (let_in, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let call = |client: &Client| {
        let count = match client.get("/api/v1/streams").0 {
            200 => &let_in,
            429 => &refused,
            other => panic!("{other}"),
        };
        count.fetch_add(1, Ordering::Relaxed);
    };
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| (0..10).for_each(|_| call(&node.client)));
        }
    });
    // The start of the test has called, too.
    assert!(let_in.load(Ordering::Relaxed) <= 60 && refused.load(Ordering::Relaxed) >= 140);
    // What is for load balancers has none.
    assert_eq!(node.client.get("/healthz").0, 200);
    let before = let_in.load(Ordering::Relaxed);
    node.kill();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_highwater"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(&data).envs(environment);
    std::fs::remove_file(data.join("server.json")).unwrap();
    let mut child = command.stderr(std::process::Stdio::null()).spawn().unwrap();
    let url = loop {
        let file = std::fs::read_to_string(data.join("server.json")).ok();
        if let Some(address) = file.and_then(|file| serde_json::from_str::<Value>(&file).ok()) {
            break address["url"].as_str().unwrap().to_owned();
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    call(&Client::new(&url, &node.client.token));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(let_in.load(Ordering::Relaxed), before, "the minute is not over");
}
