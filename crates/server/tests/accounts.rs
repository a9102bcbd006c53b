//! Accounts: the link that a start prints signs in once, for somebody at the machine itself, until an administrator
//! can; programs have accounts of their own.

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

#[test]
fn a_program_has_an_account_with_tokens_and_no_password() {
    let (_folder, data) = empty_data();
    let node = Node::start(&data);
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_highwater"))
            .args(arguments)
            .args(["--data", data.to_str().unwrap()])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), said, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (made, said, more) = run(&["user", "create", "bot", "--service", "--role", "DataAnalyst"]);
    assert!(made && said.contains("\"service\": true") && !more.contains("password"), "{said}{more}");
    let token = |arguments: &[&str]| {
        let (made, said, more) = run(&[&["user", "token", "bot"], arguments].concat());
        assert!(made, "{more}");
        serde_json::from_str::<Value>(&said).unwrap()["token"].as_str().unwrap().to_owned()
    };
    let first = token(&["--days", "7"]);
    let ask = |token: &str| {
        Client::new(&node.client.url, token).post("/api/v1/sql", &json!({"query": "SELECT 1 AS one"})).0
    };
    assert_eq!(ask(&first), 200);
    let second = token(&[]);
    assert_eq!((ask(&first), ask(&second)), (200, 200));
    let third = token(&["--replace"]);
    assert_eq!((ask(&first), ask(&second), ask(&third)), (401, 401, 200));
    // Nobody signs in as it with a password, and nobody makes tokens in the name of a person.
    assert!(!run(&["user", "password", "bot"]).0);
    let person = json!({"username": "ada", "password": "purple-mountain-42"});
    assert_eq!(node.client.post("/api/v1/users", &person).0, 201);
    let (made, _, more) = run(&["user", "token", "ada"]);
    assert!(!made && more.contains("not_a_service_account"), "{more}");
    for wrong in [json!({"days": 0}), json!({"days": 400})] {
        assert_eq!(node.client.post("/api/v1/users/bot/tokens", &wrong).0, 400);
    }
    assert!(run(&["user", "disable", "bot"]).0);
    assert_eq!(ask(&third), 401);
}
