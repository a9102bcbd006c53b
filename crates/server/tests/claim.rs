//! The link that a start prints: it signs in once, for somebody at the machine itself, until an administrator can.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::process::Command;

use serde_json::{Value, json};
use support::{Client, Node, empty_data};

fn claims(node: &Node) -> Vec<String> {
    node.log()
        .lines()
        .filter_map(|line| Some(line.split_once("/#claim=")?.1.split(' ').next().unwrap().to_owned()))
        .collect()
}

fn claim(node: &Node, claim: &str) -> (u16, Value) {
    Client::new(&node.client.url, "").post("/auth/claim", &json!({"claim": claim}))
}

#[test]
fn the_link_signs_in_once_until_there_is_an_administrator() {
    let (_folder, data) = empty_data();
    let mut node = Node::start(&data);
    let first = claims(&node).pop().unwrap();
    assert_eq!(first.len(), 40);
    assert_eq!(claim(&node, &"0".repeat(40)).1["code"], "claim_invalid");
    let (status, session) = claim(&node, &first);
    assert_eq!(status, 200, "{session}");
    let signed_in = Client::new(&node.client.url, session["access_token"].as_str().unwrap());
    let (status, users) = signed_in.get("/api/v1/users");
    assert!(status == 200 && users.to_string().contains("\"admin\""), "{users}");
    assert_eq!(claim(&node, &first).0, 401, "it is good once");
    node.client.settle();
    for action in ["manage_users", "sign_in"] {
        let entries = format!(
            "SELECT count(*) FROM _audit WHERE action = '{action}' AND actor = 'admin' AND outcome = 'allowed' AND path = '/auth/claim'"
        );
        assert_eq!(node.client.number(&entries), 1, "{action}");
    }

    // Nobody but the claimed account is there, and it has no password: the next start offers it again.
    node.kill();
    let mut node = Node::start(&data);
    let second = claims(&node).pop().unwrap();
    assert_ne!(second, first);
    assert_eq!(claim(&node, &first).0, 401);
    assert_eq!(claim(&node, &second).0, 200);

    // An administrator with a password: nothing is offered any more.
    let created = Command::new(env!("CARGO_BIN_EXE_highwater"))
        .args(["user", "create", "ada", "--admin", "--data", data.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(created.status.success(), "{created:?}");
    node.kill();
    let node = Node::start(&data);
    assert_eq!(claims(&node).len(), 2);
}

#[test]
fn it_counts_on_the_machine_itself_only() {
    let (_folder, data) = empty_data();
    let node = Node::start_with(&data, &[("HIGHWATER__HTTP__TRUSTED_PROXIES", "127.0.0.1")]).unwrap();
    let link = claims(&node).pop().unwrap();
    let headers = [
        ("content-type".to_owned(), "application/json".to_owned()),
        ("x-forwarded-for".to_owned(), "192.0.2.9".to_owned()),
    ];
    let body = json!({"claim": link}).to_string();
    let (status, answer) = node.client.call("POST", "/auth/claim", &headers, body.as_bytes());
    assert!(status == 403 && answer.to_string().contains("claim_elsewhere"), "{answer:?}");
    assert_eq!(claim(&node, &link).0, 200, "it was not spent");
}
