//! A model is trained on transactions, judged by later ones, asked in SQL and in streams, and told how far the world has moved.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use highwater_event::SeededRandomness;
use serde_json::{Value, json};
use support::{Client, Node, empty_data};

/// Transactions of which large ones in cryptocurrency fail, and few others.
fn send(client: &Client, first: u64, count: u64, scale: u64) {
    let chance = SeededRandomness::new(first + 1);
    let events = (first..first + count).map(|number| {
        let (amount, crypto) = (10 + chance.below(990), chance.below(4) == 0);
        let fails = chance.below(100) < if crypto && amount > 500 { 85 } else { 5 };
        json!({
            "transaction_id": format!("TXN-{number:08x}"),
            "timestamp": format!("2026-03-{:02}T{:02}:{:02}:00Z", 1 + number / 720, number / 30 % 24, number % 30 * 2),
            "user_id": format!("USER-{:04}", number % 50),
            "product_id": "PROD-001",
            "amount": amount * scale,
            "currency": "USD",
            "transaction_type": "purchase",
            "status": if fails { "failed" } else { "completed" },
            "location": {"city": "Paris", "country": "France"},
            "payment_method": if crypto { "cryptocurrency" } else { "credit_card" },
            "quantity": 1,
        })
    });
    let (status, answer) =
        client.post("/api/v1/streams/transaction_log/events", &Value::from(events.collect::<Vec<_>>()));
    assert_eq!((status, &answer["accepted"]), (202, &json!(count)), "{answer}");
}

fn ask(client: &Client, sql: &str) -> (u16, Value) {
    client.post("/api/v1/sql", &json!({"query": sql}))
}

const ASKED: &str = "amount_usd, quantity, customer_rating, date_part('hour', timestamp), false, false, payment_method = 'cryptocurrency', false, false, true, false";

#[test]
fn a_model_is_trained_judged_asked_and_watched() {
    let (_folder, data) = empty_data();
    let mut node = Node::start(&data);
    let nobody = node.user("nobody", json!({"roles": []}));
    let train =
        |client: &Client| client.post("/api/rpc/train-model/", &json!({"model_type": "fraud_detection"}));
    let (status, answer) = train(&nobody);
    assert_eq!((status, &answer["permission"]), (403, &json!("trigger_ml_model")));

    // What can't be asked for is told so.
    let (status, answer) =
        node.client.post("/api/rpc/train-model/", &json!({"model_type": "fraud_detektion"}));
    assert_eq!((status, &answer["code"]), (400, &json!("unknown_model")));
    assert_eq!(answer["hint"], "did you mean \"fraud_detection\"?");
    let (status, answer) = node.client.post("/api/rpc/train-model/", &json!({}));
    assert_eq!((status, &answer["code"]), (400, &json!("invalid_parameter")), "{answer}");
    let (status, answer) = ask(&node.client, "SELECT score('fraud_detection', 1)");
    assert_eq!(status, 400, "{answer}");

    // Too little to learn from: the job says what is missing.
    send(&node.client, 0, 50, 1);
    node.client.settle();
    let (status, answer) = train(&node.client);
    assert_eq!((status, &answer["status"]), (202, &json!("success")), "{answer}");
    let job = node.client.end_of(answer["job_id"].as_str().unwrap());
    assert_eq!((&job["state"], &job["error"]["code"]), (&json!("failed"), &json!("too_few_rows")), "{job}");

    send(&node.client, 50, 2950, 1);
    node.client.settle();
    let trainer = node.user("trainer", json!({"roles": []}));
    let (status, _) = node
        .client
        .post("/api/admin/permissions/", &json!({"username": "trainer", "permission": "trigger_ml_model"}));
    assert_eq!(status, 201);
    let (status, answer) = train(&trainer);
    assert_eq!(status, 202, "{answer}");
    let job = trainer.end_of(answer["job_id"].as_str().unwrap());
    assert_eq!(job["state"], "finished", "{job}");
    assert_eq!(job["said"]["model"], "fraud_detection_v1");
    let report = &job["said"]["report"];
    assert_eq!((&report["train_rows"], &report["test_rows"]), (&json!(2400), &json!(600)), "{report}");
    assert!(report["auc"].as_f64().unwrap() > 0.75, "{report}");
    assert!(report["precision"].as_f64().unwrap() > 0.7, "{report}");
    let told = [report["importance"][0][0].as_str().unwrap(), report["importance"][1][0].as_str().unwrap()];
    assert!(told.contains(&"amount_usd") && told.contains(&"cryptocurrency"), "{report}");

    // No act without its entry.
    let (_, entries) = ask(
        &node.client,
        "SELECT actor, action FROM _audit WHERE resource = 'model:fraud_detection_v1' AND outcome = 'allowed'",
    );
    assert_eq!(entries["rows"][0], json!({"actor": "trainer", "action": "train"}), "{entries}");

    // Asked in a question, and in a stream: by its version, so that the stream can be rebuilt.
    let question = format!(
        "SELECT avg(score('fraud_detection', {ASKED})) FILTER (WHERE status = 'failed') AS failed, avg(score('fraud_detection_v1', {ASKED})) FILTER (WHERE status <> 'failed') AS others FROM transactions_processed"
    );
    let (status, scores) = ask(&node.client, &question);
    assert_eq!(status, 200, "{scores}");
    let score = |name: &str| scores["rows"][0][name].as_f64().unwrap();
    assert!(score("failed") > 2.0 * score("others"), "{scores}");
    let risky = |name: &str| {
        let sql = format!(
            "CREATE STREAM risky AS SELECT transaction_id, score('{name}', {ASKED}) AS risk FROM transactions_processed WHERE score('{name}', {ASKED}) > 0.5"
        );
        node.client.post("/api/v1/statements", &json!({"sql": sql}))
    };
    let (status, answer) = risky("fraud_detection");
    assert_eq!((status, &answer["code"]), (400, &json!("unsupported_sql")), "{answer}");
    let (status, answer) = risky("fraud_detection_v1");
    assert_eq!(status, 200, "{answer}");
    node.client.settle();
    let count = format!(
        "SELECT count(*) AS n FROM transactions_processed WHERE score('fraud_detection_v1', {ASKED}) > 0.5"
    );
    let (_, expected) = ask(&node.client, &count);
    let (_, found) = ask(&node.client, "SELECT count(*) AS n FROM risky");
    assert_eq!(found["rows"], expected["rows"]);
    assert!(found["rows"][0]["n"].as_u64().unwrap() > 50, "{found}");
    let (status, answer) = ask(&node.client, "SELECT score('fraud_detection_v1', 1, 2)");
    assert_eq!(status, 400);
    assert!(answer["detail"].as_str().unwrap().contains("amount_usd, quantity"), "{answer}");
    // It has learnt from rows of all tenants.
    let foreign = node.user("foreign", json!({"roles": ["DataAnalyst"], "tenant": "acme"}));
    let (status, answer) =
        ask(&foreign, &format!("SELECT score('fraud_detection_v1', {})", ["1"; 11].join(", ")));
    assert_eq!(status, 400, "{answer}");

    // It says the same after a restart, and the next one has the next number.
    node.kill();
    let node = Node::start(&data);
    assert_eq!(ask(&node.client, &question).1["rows"], scores["rows"]);
    let (status, answer) = node.client.get("/api/v1/models/fraud_detection_v1/drift");
    assert_eq!((status, &answer["code"]), (409, &json!("no_drift")), "{answer}");
    send(&node.client, 4000, 500, 9);
    node.client.settle();
    let (status, moved) = node.client.get("/api/v1/models/fraud_detection/drift");
    assert_eq!((status, &moved["rows"]), (200, &json!(500)), "{moved}");
    assert_eq!(moved["drift"][0]["feature"], "amount_usd");
    assert!(moved["moved"].as_f64().unwrap() > 0.25, "{moved}");
    let (_, answer) =
        node.client.post("/api/v1/jobs", &json!({"kind": "train", "input": {"model": "fraud_detection"}}));
    let job = node.client.end_of(answer["id"].as_str().unwrap());
    assert_eq!(job["said"]["model"], "fraud_detection_v2", "{job}");
    let (_, models) = node.client.get("/api/v1/models");
    let versions = models["models"][0]["versions"].as_array().unwrap();
    assert_eq!(versions.iter().map(|it| it["version"].as_u64().unwrap()).collect::<Vec<_>>(), [2, 1]);
}
