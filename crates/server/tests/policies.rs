//! Policies that packs bring: they are declared, hold at once and after a start, and can't undo what holds for
//! every node.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use serde_json::{Value, json};
use support::{Client, Node, empty_data};

fn user(node: &Node, name: &str, role: &str) -> Client {
    node.user(name, json!({"roles": [role]}))
}

fn declare(client: &Client, sql: &str) -> (u16, Value) {
    client.post("/api/v1/statements", &json!({"sql": sql}))
}

fn ask(client: &Client) -> (u16, Value) {
    client.post("/api/v1/sql", &json!({"query": "SELECT id FROM orders"}))
}

const NIGHT: &str = r#"CREATE POLICY closed_orders AS $$
    // A comment; with a semicolon in it.
    @id("analysts don't read orders")
    forbid (principal in Role::"DataAnalyst", action == Action::"read", resource == Resource::"stream:orders");
    @id("auditors may declare")
    permit (principal in Role::"SecurityAuditor", action == Action::"declare", resource);
$$"#;

#[test]
fn a_declared_policy_holds_at_once_and_after_a_start() {
    let (_folder, data) = empty_data();
    let mut node = Node::start(&data);
    assert_eq!(
        declare(&node.client, "CREATE STREAM orders (id TEXT NOT NULL) WITH (event_id = 'id')").0,
        200
    );
    let analyst = user(&node, "ada", "DataAnalyst");
    let auditor = user(&node, "grace", "SecurityAuditor");
    let stream = "CREATE STREAM more (id TEXT)";
    assert_eq!(ask(&analyst).0, 200);
    assert_eq!(declare(&auditor, stream).0, 403);

    let (status, answer) = declare(&node.client, NIGHT);
    assert_eq!(status, 200, "{answer}");
    assert!(answer.to_string().contains("\"policy\""), "{answer}");
    assert_eq!(ask(&analyst).0, 403);
    assert_eq!(declare(&auditor, stream).0, 200);
    let asked = json!({"username": "ada", "permission": "read", "on": "stream:orders"});
    let (_, explained) = node.client.post("/api/v1/policy/explain", &asked);
    assert!(explained.to_string().contains("closed_orders: analysts don't read orders"), "{explained}");
    assert_eq!(declare(&node.client, NIGHT).1["statements"][0]["outcome"], "unchanged");
    assert_eq!(declare(&node.client, &NIGHT.replace("analysts don't", "nobody may")).0, 409);

    node.kill();
    let node = Node::start(&data);
    let at = |client: &Client| Client::new(&node.client.url, &client.token);
    assert_eq!(ask(&at(&analyst)).0, 403);
    let (status, answer) = declare(&node.client, "DROP POLICY closed_orders");
    assert_eq!(status, 200, "{answer}");
    assert_eq!(ask(&at(&analyst)).0, 200);
    assert_eq!(declare(&at(&auditor), "CREATE STREAM even_more (id TEXT)").0, 403);
}

#[test]
fn only_who_gives_permissions_declares_policies_and_takes_rules_away() {
    let (_folder, data) = empty_data();
    let node = Node::start(&data);
    let engineer = user(&node, "lin", "DataEngineer");
    assert_eq!(declare(&engineer, "CREATE STREAM orders (id TEXT NOT NULL, who TEXT)").0, 200);
    let grab = "CREATE POLICY grab AS $$ permit (principal in Role::\"DataEngineer\", action, resource); $$";
    let (status, answer) = declare(&engineer, grab);
    assert!(status == 403 && answer["detail"].to_string().contains("manage_permissions"), "{answer}");
    assert_eq!(declare(&engineer, "CREATE COLUMN MASK hide ON orders (who) USING mask(who)").0, 200);
    assert_eq!(declare(&engineer, "DROP COLUMN MASK hide").0, 403);
    assert_eq!(declare(&engineer, "CREATE OR REPLACE COLUMN MASK hide ON orders (who) USING who").0, 403);
    assert_eq!(declare(&node.client, "DROP COLUMN MASK hide").0, 200);
}

#[test]
fn what_holds_for_every_node_can_t_be_undone_and_what_is_no_policy_is_refused() {
    let (_folder, data) = empty_data();
    let node = Node::start(&data);
    let sql = "CREATE STREAM people (id TEXT NOT NULL, card TEXT SENSITIVE) WITH (event_id = 'id')";
    assert_eq!(declare(&node.client, sql).0, 200);
    let event = json!({"id": "1", "card": "4111111111111111"});
    assert_eq!(node.client.post("/api/v1/streams/people/events", &event).0, 202);
    let everything = "CREATE POLICY everything AS 'permit (principal, action, resource);'";
    let (status, answer) = declare(&node.client, everything);
    assert_eq!(status, 200, "{answer}");
    let analyst = user(&node, "ada", "DataAnalyst");
    node.client.settle();
    let (status, rows) = analyst.post("/api/v1/sql", &json!({"query": "SELECT card FROM people"}));
    assert!(status == 200 && !rows.to_string().contains("4111111111111111"), "{rows}");
    let key = json!({"client_id": "acme", "name": "backend"});
    let (_, key) = node.client.post("/api/v1/keys", &key);
    let client = Client::new(&node.client.url, key["api_key"].as_str().unwrap());
    assert_eq!(client.get("/api/v1/users").0, 403, "a key manages no people, whatever is permitted");

    for (bad, says) in [
        ("'permit'", "invalid_policy"),
        ("$$ permit (principal, action, resource) when { resource.colour }; $$", "invalid_policy"),
        ("$$ permit (principal == User::\"ada\", action, resource); $$", "can't name people"),
        ("$$ permit (principal, action == Action::\"fly\", resource); $$", "invalid_policy"),
        ("42", "invalid_sql"),
        ("", "invalid_sql"),
    ] {
        let (status, answer) = declare(&node.client, &format!("CREATE POLICY wrong AS {bad}"));
        assert!(status == 400 && answer.to_string().contains(says), "{bad}: {answer}");
    }
    assert_eq!(declare(&node.client, "DROP POLICY wrong").0, 404);
}
