//! The audit trail of a real node: no effect without its leaf, across kill -9; copies that verify, and don't
//! when anything was changed; verified by Go's own packages, too.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use highwater_event::SeededRandomness;
use serde_json::{Value, json};
use support::{Client, Node, empty_data};

fn highwater(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_highwater")).args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Copies the trail of a node; answers the folder's path.
fn export(node: &Node, folder: &Path) -> String {
    let path = folder.to_str().unwrap().to_owned();
    let copied = highwater(&["audit", "export", &path, "--data", node.data.to_str().unwrap()]);
    assert!(copied.status.success(), "{}{}", said(&copied), node.log());
    path
}

fn stream(node: &Node) {
    let sql = "CREATE STREAM IF_NOT (id TEXT) WITH (event_id = 'id')".replace("IF_NOT", "readings");
    let (status, answer) = node.client.post("/api/v1/statements", &json!({"sql": sql}));
    assert_eq!(status, 200, "{answer}");
}

#[test]
fn no_effect_is_without_its_leaf_across_kills() {
    let (folder, data) = empty_data();
    let mut node = Node::start(&data);
    stream(&node);
    let chance = SeededRandomness::new(highwater_sim::setting("HIGHWATER_SEED", 3));
    let next = AtomicU64::new(0);
    let mut kept: Vec<String> = Vec::new();
    for cycle in 0..highwater_sim::setting("HIGHWATER_CYCLES", 6) {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let (client, next, stop) = (node.client.clone(), &next, &stop);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let number = next.fetch_add(3, Ordering::Relaxed);
                        let events: Vec<Value> =
                            (number..number + 3).map(|id| json!({"id": id.to_string()})).collect();
                        let body = Value::Array(events).to_string();
                        if client
                            .try_post("/api/v1/streams/readings/events", "application/json", &body)
                            .is_none()
                        {
                            return;
                        }
                        let user =
                            json!({"username": format!("u{number}"), "password": "purple-mountain-42"});
                        if number % 30 == 0
                            && client
                                .try_post("/api/v1/users", "application/json", &user.to_string())
                                .is_none()
                        {
                            return;
                        }
                        if client.try_get("/api/v1/streams/readings/events?limit=1").is_none() {
                            return;
                        }
                    }
                });
            }
            std::thread::sleep(std::time::Duration::from_millis(700 + chance.below(900)));
            node.kill();
            stop.store(true, Ordering::Relaxed);
        });
        node = Node::start(&data);
        // The trail continues every checkpoint that was handed out before the kill.
        let copy = folder.path().join(format!("copy{cycle}"));
        let path = export(&node, &copy);
        let mut arguments = vec!["audit", "verify", "--export", &path];
        kept.iter().for_each(|checkpoint| arguments.extend(["--checkpoint", checkpoint]));
        let verified = highwater(&arguments);
        assert!(verified.status.success(), "{}{}", said(&verified), node.log());
        kept.push(format!("{path}/checkpoint"));
    }
    node.client.settle();
    // What the trail says was accepted is what is there.
    let there = node.client.number("SELECT count(*) FROM readings");
    let accepted = node.client.number(
        "SELECT sum(CAST(regexp_replace(seen, '.*\"accepted\":([0-9]+).*', '\\1') AS BIGINT)) FROM _audit WHERE resource = 'stream:readings' AND action = 'ingest' AND seen IS NOT NULL",
    );
    assert!(there > 100 && accepted == there, "{accepted} of {there} events have a leaf");
    let commands = node.client.number("SELECT count(*) FROM _system WHERE command = 'people'");
    let leaves = node
        .client
        .number("SELECT count(*) FROM _audit WHERE action = 'manage_users' AND outcome = 'allowed'");
    assert!(commands > 0 && commands == leaves, "{leaves} leaves of {commands} commands");
}

#[test]
fn changed_copies_are_found_and_go_agrees() {
    let (folder, data) = empty_data();
    let node = Node::start(&data);
    stream(&node);
    for number in 0..300 {
        let event = json!({"id": number.to_string()});
        assert_eq!(node.client.post("/api/v1/streams/readings/events", &event).0, 202);
    }
    std::thread::sleep(std::time::Duration::from_millis(300));
    let first = export(&node, &folder.path().join("first"));
    node.client.get("/api/v1/streams");
    std::thread::sleep(std::time::Duration::from_millis(300));
    let second = export(&node, &folder.path().join("second"));
    let checkpoint = format!("{first}/checkpoint");
    let verify =
        |folder: &str| highwater(&["audit", "verify", "--export", folder, "--checkpoint", &checkpoint]);
    let verified = verify(&second);
    assert!(
        verified.status.success() && said(&verified).contains("\"verified\":true"),
        "{}",
        said(&verified)
    );
    let live = highwater(&["audit", "verify", "--data", data.to_str().unwrap()]);
    assert!(live.status.success(), "{}", said(&live));

    // One bit anywhere.
    let chance = SeededRandomness::new(9);
    for file in ["entries.ndjson", "checkpoint", "keys"] {
        let path = Path::new(&second).join(file);
        let good = std::fs::read(&path).unwrap();
        for _ in 0..40 {
            let mut bad = good.clone();
            bad[chance.below(good.len() as u64) as usize] ^= 1 << chance.below(8);
            std::fs::write(&path, &bad).unwrap();
            let found = verify(&second);
            assert_eq!(found.status.code(), Some(8), "{file}: {}", said(&found));
        }
        std::fs::write(&path, &good).unwrap();
    }

    // An entry's proof, by tools of others.
    let (status, proof) = node.client.get("/api/v1/audit/entries/7/proof");
    assert_eq!(status, 200);
    std::fs::write(Path::new(&second).join("proof"), proof.as_str().unwrap()).unwrap();
    let url = node.client.url.clone();
    let go = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/independent/go");
    if Command::new("go").arg("version").output().is_err() {
        println!("NOT RUN Go: no go (apt install golang-go)");
        return;
    }
    let run = Command::new("go").args(["run", ".", &second, &url]).current_dir(go).output().unwrap();
    assert!(run.status.success(), "{}", said(&run));
    assert!(said(&run).contains("all entries"), "{}", said(&run));
}

/// 200 secrets, sent in every place that one can be sent in: none is written down anywhere.
#[test]
fn secrets_are_written_down_nowhere() {
    let (_folder, data) = empty_data();
    let node = Node::start(&data);
    let sql = "CREATE STREAM people (id TEXT NOT NULL, card TEXT SENSITIVE, n INT) WITH (event_id = 'id')";
    assert_eq!(node.client.post("/api/v1/statements", &json!({"sql": sql})).0, 200);
    let chance = SeededRandomness::new(5);
    let mut secrets = Vec::new();
    for number in 0..25 {
        let mut secret = || {
            let secret = format!("canary{:016x}{:08x}", chance.next(), number);
            secrets.push(secret.clone());
            secret
        };
        let name = format!("user{number}");
        let password = secret();
        assert_eq!(
            node.client.post("/api/v1/users", &json!({"username": name, "password": password})).0,
            201
        );
        node.client.post("/api-token-auth/", &json!({"username": name, "password": secret()}));
        node.client.post("/login", &json!({"email": name, "password": secret()}));
        node.client.post(
            "/signup",
            &json!({"email": "x@y.z", "password": secret(), "confirm_password": "", "role": "Client"}),
        );
        Client::new(&node.client.url, &secret()).get("/api/v1/streams");
        let headers = [("x-api-key".to_owned(), secret())];
        node.client.call("POST", "/api/v1/sql", &headers, b"{}");
        node.client.post("/api/v1/sql", &json!({"query": "SELECT $x", "params": {"x": secret()}}));
        let change = json!({"password": secret()}).to_string();
        let json_type = ("content-type".to_owned(), "application/json".to_owned());
        assert_eq!(
            node.client.call("PATCH", &format!("/api/v1/users/{name}"), &[json_type], change.as_bytes()).0,
            200
        );
    }
    assert_eq!(secrets.len(), 200);
    // Credentials that the node itself has made.
    let key = node.client.post("/api/v1/keys/", &json!({"client_id": "c", "name": "k"})).1["api_key"]
        .as_str()
        .unwrap()
        .to_owned();
    Client::new(&node.client.url, &key).get("/api/v1/streams");
    secrets.push(key);
    node.client.settle();
    let (_, metrics) = node.client.try_get("/metrics").unwrap();
    let mut texts = vec![metrics, node.log()];
    for stream in ["_audit", "_system", "_dead_letters", "_late_events"] {
        texts.extend(node.client.sql(&format!("SELECT * FROM {stream}")).iter().map(Value::to_string));
    }
    let shown = texts.concat();
    drop(node);
    let mut files = Vec::new();
    let mut folders = vec![data.clone()];
    while let Some(folder) = folders.pop() {
        for inside in std::fs::read_dir(folder).unwrap() {
            let path = inside.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    // The log packs what it holds; what the engine shows of it was looked through above.
    let plain: Vec<String> = files
        .iter()
        .map(|file| String::from_utf8_lossy(&std::fs::read(file).unwrap()).into_owned())
        .collect();
    for secret in &secrets {
        assert!(!shown.contains(secret.as_str()), "{secret} is shown");
    }
    for beginning in ["canary", "hwk_"] {
        let found = plain.iter().filter_map(|text| text.split_once(beginning)).map(|(_, rest)| rest);
        // Lists show the beginning of a key.
        let found = found.filter(|rest| beginning == "canary" || rest.get(16..17) == Some("_"));
        assert_eq!(found.count(), 0, "a secret that begins with {beginning} is on the disk");
    }
}

/// A log that has lost what was acked is not gone on with: the trail speaks of more than it holds.
#[test]
fn a_log_that_has_lost_rows_is_not_gone_on_with() {
    let (_folder, data) = empty_data();
    let mut node = Node::start(&data);
    stream(&node);
    for number in 0..200 {
        assert_eq!(
            node.client.post("/api/v1/streams/readings/events", &json!({"id": number.to_string()})).0,
            202
        );
    }
    node.client.settle();
    std::thread::sleep(std::time::Duration::from_millis(1500));
    node.kill();
    let segments = || {
        let files = std::fs::read_dir(data.join("log")).unwrap().map(|file| file.unwrap().path());
        let mut files: Vec<_> =
            files.filter(|path| path.extension().is_some_and(|it| it == "hwlog")).collect();
        files.sort();
        files
    };
    let last = segments().pop().unwrap();
    let whole = std::fs::read(&last).unwrap();
    let kept = std::fs::OpenOptions::new().write(true).open(&last).unwrap();
    // Behind the last commit there are zeros, which say nothing.
    let said = whole.iter().rposition(|byte| *byte != 0).unwrap();
    kept.set_len(said as u64 / 2).unwrap();
    drop(kept);
    assert!(Node::start_with(&data, &[]).is_none(), "it must not give acks");
    let log = std::fs::read_to_string(data.with_extension("log")).unwrap();
    assert!(
        log.contains("the log has lost rows") && log.contains("restore the data folder from a backup"),
        "{log}"
    );
    // What was cut is there again.
    std::fs::write(&last, whole).unwrap();
    let node = Node::start(&data);
    assert_eq!(node.client.number("SELECT count(*) FROM readings"), 200);
}

/// Nobody who reads the trail can try out passwords, or values that are SENSITIVE.
#[test]
fn hashes_of_bodies_tell_no_secrets() {
    let (_folder, data) = empty_data();
    let node = Node::start(&data);
    let sql = "CREATE STREAM people (id TEXT, card TEXT SENSITIVE) WITH (event_id = 'id'); CREATE STREAM plain (id TEXT) WITH (event_id = 'id')";
    assert_eq!(node.client.post("/api/v1/statements", &json!({"sql": sql})).0, 200);
    let user = json!({"username": "frank", "password": "purple-mountain-42"});
    assert_eq!(node.client.post("/api/v1/users", &user).0, 201);
    node.client.post("/login", &json!({"email": "frank", "password": "purple-mountain-42"}));
    node.client.post("/api-token-auth/", &user);
    node.client.post("/api/v1/streams/people/events", &json!({"id": "p", "card": "4111"}));
    node.client.post("/api/v1/streams/plain/events", &json!({"id": "p"}));
    node.client.post("/api/v1/sql", &json!({"query": "SELECT $x AS x", "params": {"x": "4111"}}));
    node.client.post("/api/v1/sql", &json!({"query": "SELECT 1 AS x"}));
    let hashed =
        node.client.sql("SELECT path, body FROM _audit WHERE body_hash IS NOT NULL ORDER BY _offset");
    let paths: Vec<&str> = hashed.iter().map(|row| row["path"].as_str().unwrap()).collect();
    assert!(paths.contains(&"/api/v1/streams/plain/events") && paths.contains(&"/api/v1/sql"), "{paths:?}");
    for row in &hashed {
        assert!(!row.to_string().contains("[redacted]"), "{row}");
        let path = row["path"].as_str().unwrap();
        assert!(
            !["/login", "/api-token-auth", "/api/v1/users", "/api/v1/streams/people/events"].contains(&path),
            "{path}"
        );
    }
}
