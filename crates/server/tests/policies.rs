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

const FOUR_EYES: &str = r#"CREATE POLICY four_eyes AS $$
    @id("orders are replayed by two")
    forbid (principal, action == Action::"replay_alone", resource == Resource::"stream:orders");
    @id("erasures are for two")
    forbid (principal, action == Action::"erase_alone", resource);
$$"#;

/// A replay waits for somebody else where a policy says so: in every way there is to begin one, and across a start.
#[test]
fn a_replay_waits_for_a_second_person() {
    let (_folder, data) = empty_data();
    let mut node = Node::start(&data);
    let sql = "CREATE STREAM orders (id TEXT NOT NULL, n BIGINT, at TIMESTAMP) WITH (event_id = 'id, at', event_time = 'at');
        CREATE STREAM copies (id TEXT NOT NULL, n BIGINT, at TIMESTAMP) WITH (event_id = 'id, at', event_time = 'at');
        CREATE STREAM people (who TEXT SENSITIVE) WITH (subject = 'who');
        CREATE ENDPOINT POST '/api/again/' (id TEXT) REQUIRES send_again REPLAYS orders WHERE id = $id;
        CREATE ENDPOINT POST '/api/all-again/' REQUIRES send_again REPLAYS orders AS JOB";
    let (status, answer) = declare(&node.client, sql);
    assert_eq!(status, 200, "{answer}");
    let events: Vec<Value> =
        (0..5).map(|n| json!({"id": format!("o{n}"), "n": n, "at": 1_780_000_000 + n})).collect();
    assert_eq!(node.client.post("/api/v1/streams/orders/events", &Value::from(events)).0, 202);
    node.client.settle();
    let ada = user(&node, "ada", "DataEngineer");
    let lin = user(&node, "lin", "DataEngineer");
    let grace = user(&node, "grace", "DataAnalyst");
    let wanted = json!({"kind": "replay", "input": {"stream": "orders", "into": "copies"}});
    let count = |client: &Client| {
        client.settle();
        let (_, answer) = client.post("/api/v1/sql", &json!({"query": "SELECT count(*) AS n FROM copies"}));
        answer["rows"][0]["n"].clone()
    };
    // Nobody is needed as long as no rule says so.
    let (status, job) = ada.post("/api/v1/jobs", &wanted);
    assert_eq!((status, &job["state"]), (202, &json!("waiting")), "{job}");
    assert_eq!(ada.end_of(job["id"].as_str().unwrap())["state"], "finished");
    assert_eq!(count(&node.client), 5);

    assert_eq!(declare(&node.client, FOUR_EYES).0, 200);
    let named =
        |name: &str| json!({"kind": "replay", "input": {"stream": "orders", "into": "copies", "name": name}});
    let (status, job) = ada.post("/api/v1/jobs", &named("two"));
    assert_eq!((status, &job["state"]), (202, &json!("unapproved")), "{job}");
    let id = job["id"].as_str().unwrap().to_owned();
    let approve = |client: &Client, id: &str| client.post(&format!("/api/v1/jobs/{id}/approve"), &json!({}));
    let (status, answer) = approve(&ada, &id);
    assert!(status == 403 && answer["detail"].as_str().unwrap().contains("somebody else"), "{answer}");
    let (status, answer) = approve(&grace, &id);
    assert!(status == 403 && answer["detail"].as_str().unwrap().contains("replay on stream"), "{answer}");
    // It waits in the next life, too.
    node.kill();
    node = Node::start(&data);
    let at = |client: &Client| Client::new(&node.client.url, &client.token);
    let (ada, lin) = (at(&ada), at(&lin));
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(ada.get(&format!("/api/v1/jobs/{id}")).1["state"], "unapproved");
    assert_eq!(count(&node.client), 5);
    let (status, answer) = approve(&lin, &id);
    assert_eq!((status, &answer["approved_by"]), (202, &json!("lin")), "{answer}");
    assert_eq!(ada.end_of(&id)["state"], "finished");
    assert_eq!(count(&node.client), 10);
    let (status, answer) = approve(&lin, &id);
    assert_eq!((status, &answer["code"]), (409, &json!("nothing_to_approve")), "{answer}");
    let seen =
        "SELECT actor, resource, seen FROM _audit WHERE action = 'approve_job' AND outcome = 'allowed'";
    let (_, trail) = node.client.post("/api/v1/sql", &json!({"query": seen}));
    assert_eq!(trail["rows"][0]["actor"], "lin", "{trail}");
    assert!(trail["rows"][0]["seen"].as_str().unwrap().contains("\"submitted_by\":\"ada\""), "{trail}");

    // At once it can't be done; counted it can. Somebody may take a job back, and the operator is one person, too.
    let (status, answer) = ada.post("/api/v1/streams/orders/replay", &json!({"into": "copies"}));
    assert_eq!((status, &answer["code"]), (409, &json!("approval_needed")), "{answer}");
    assert_eq!(ada.post("/api/v1/streams/orders/replay", &json!({"into": "copies", "dry_run": true})).0, 200);
    let (status, answer) = node.client.post("/api/again/", &json!({"id": "o1"}));
    assert_eq!((status, &answer["code"]), (409, &json!("approval_needed")), "{answer}");
    let (status, answer) = node.client.post("/api/all-again/", &json!({}));
    assert_eq!(status, 202, "{answer}");
    let again = answer["job_id"].as_str().unwrap();
    assert_eq!(node.client.get(&format!("/api/v1/jobs/{again}")).1["state"], "unapproved");
    assert_eq!(node.client.post(&format!("/api/v1/jobs/{again}/cancel"), &json!({})).0, 202);
    assert_eq!(node.client.end_of(again)["state"], "cancelled");
    let (status, answer) = node.client.post("/api/v1/erasures", &json!({"subject": "somebody"}));
    assert_eq!(status, 202, "{answer}");
    let erasure = answer["job_id"].as_str().unwrap();
    let (status, answer) = approve(&lin, erasure);
    assert!(status == 403 && answer["detail"].as_str().unwrap().contains("permission erase"), "{answer}");
    let root = user(&node, "root", "admin");
    assert_eq!(approve(&root, erasure).0, 202);
    assert_eq!(root.end_of(erasure)["state"], "finished");
    assert_eq!(count(&node.client), 10);
    // By the command line, on behalf of somebody who waits.
    let (_, job) = ada.post("/api/v1/jobs", &named("three"));
    let id = job["id"].as_str().unwrap();
    node.run(&["job", "approve", id]);
    assert_eq!(ada.end_of(id)["approved_by"], "operator");
    assert_eq!(count(&node.client), 15);
}
