//! Queries that never end: what a reader is told when the stream that it follows is replaced or dropped, and which marks are taken.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};
use support::{Client, Node, empty_data};
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};

fn declare(client: &Client, sql: &str) {
    let (status, answer) = client.post("/api/v1/statements", &json!({"sql": sql}));
    assert_eq!(status, 200, "{answer}");
}

fn send(client: &Client, from: usize, to: usize) {
    let events: Vec<Value> = (from..to).map(|n| json!({"id": format!("e{n}"), "n": n})).collect();
    let (status, answer) = client.post("/api/v1/streams/numbers/events", &Value::from(events));
    assert_eq!(status, 202, "{answer}");
}

fn follow(client: &Client, query: &str, from: &str) -> WebSocket<TcpStream> {
    let address = client.url.trim_start_matches("http://");
    let query = query.replace(' ', "%20");
    let url = format!("ws://{address}/api/v1/subscribe?query={query}&from={from}");
    let mut request = url.into_client_request().unwrap();
    request.headers_mut().insert("authorization", format!("Bearer {}", client.token).parse().unwrap());
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    tungstenite::client(request, socket).unwrap().0
}

/// Reads messages of a kind until one says what is wanted.
fn next(socket: &mut WebSocket<TcpStream>, kind: &str) -> Value {
    loop {
        let Message::Text(text) = socket.read().expect("a message") else { continue };
        let message: Value = serde_json::from_str(&text).unwrap();
        if message["type"] == kind {
            return message;
        }
        assert_ne!(message["type"], "error", "{message}");
    }
}

#[test]
fn who_follows_a_stream_hears_when_it_is_another_one() {
    let (_folder, data) = empty_data();
    let node = Node::start(&data);
    let client = &node.client;
    declare(
        client,
        "CREATE STREAM numbers (id TEXT NOT NULL, n INT) WITH (event_id = 'id'); CREATE STREAM some AS SELECT id, n FROM numbers;",
    );
    send(client, 0, 4);
    client.settle();

    let query = "SELECT n FROM some";
    let mut socket = follow(client, query, "earliest");
    let told = next(&mut socket, "rows");
    assert_eq!(told["data"], json!([{"n": 0}, {"n": 1}, {"n": 2}, {"n": 3}]));
    let mark = told["mark"].as_str().unwrap().to_owned();
    assert_eq!(mark, "0:4");

    declare(client, "CREATE OR REPLACE STREAM some AS SELECT id, n FROM numbers WHERE n > 2;");
    let error = next(&mut socket, "error");
    assert_eq!(error["data"]["code"], "stream_changed", "{error}");

    // The mark of the version before names other rows now.
    let refused = |from: &str| {
        let (status, answer) =
            client.get(&format!("/api/v1/subscribe?query=SELECT%20n%20FROM%20some&from={from}"));
        (status, answer["code"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(refused(&mark), (400, "stream_changed".into()));
    for beyond in ["2@0:900", "2@7:0", "2@x", "x@0:1"] {
        assert_eq!(refused(beyond), (400, "invalid_parameter".into()), "{beyond}");
    }

    let mut socket = follow(client, query, "earliest");
    let told = next(&mut socket, "rows");
    assert_eq!((told["mark"].as_str().unwrap(), &told["data"]), ("2@0:1", &json!([{"n": 3}])));
    send(client, 4, 6);
    assert_eq!(next(&mut socket, "rows")["data"], json!([{"n": 4}, {"n": 5}]));
    let mut again = follow(client, query, "2@0:1");
    assert_eq!(next(&mut again, "rows")["data"], json!([{"n": 4}, {"n": 5}]));

    declare(client, "DROP STREAM some;");
    for socket in [&mut socket, &mut again] {
        assert_eq!(next(socket, "error")["data"]["code"], "stream_changed");
    }
}

#[test]
fn snapshots_in_the_lake_follow_a_statement_that_is_replaced() {
    let (_folder, data) = empty_data();
    let node = Node::start(&data);
    let client = &node.client;
    declare(
        client,
        "CREATE STREAM numbers (id TEXT NOT NULL, n INT) WITH (event_id = 'id'); CREATE TABLE t AS SELECT n % 2 AS k, count(*) AS c FROM numbers GROUP BY n % 2;",
    );
    send(client, 0, 4);
    let columns = || {
        let folder = format!("{}/lake/tables/T", data.display());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let url = deltalake::ensure_table_uri(&folder).ok()?;
        let table = runtime.block_on(deltalake::open_table(url)).ok()?;
        let snapshot = table.snapshot().ok()?;
        let names: Vec<String> = snapshot.schema().fields().map(|field| field.name().clone()).collect();
        let rows: Vec<String> = table.get_file_uris().ok()?.collect();
        (!rows.is_empty()).then_some(names)
    };
    let until = |wanted: &[&str]| {
        for _ in 0..200 {
            if columns().is_some_and(|found| found == wanted) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("{:?} and not {wanted:?}", columns());
    };
    until(&["k", "c", "last_updated_at"]);
    declare(
        client,
        "CREATE OR REPLACE TABLE t AS SELECT n % 2 AS k, count(*) AS c, max(n) AS m FROM numbers GROUP BY n % 2;",
    );
    until(&["k", "c", "m", "last_updated_at"]);
    declare(
        client,
        "CREATE OR REPLACE TABLE t AS SELECT n % 2 AS k, CAST(sum(n) AS TEXT) AS c FROM numbers GROUP BY n % 2;",
    );
    until(&["k", "c", "last_updated_at"]);
    assert!(!node.log().contains("no snapshot"), "{}", node.log());
}

#[test]
fn hundreds_of_new_members_become_columns() {
    let (_folder, data) = empty_data();
    let node = Node::start(&data);
    let client = &node.client;
    declare(client, "CREATE STREAM wide WITH (event_id = 'id');");
    let mut event: serde_json::Map<String, Value> =
        (0..900).map(|n| (format!("m{n:03}"), json!(n))).collect();
    event.insert("id".into(), json!("one"));
    let (status, answer) = client.post("/api/v1/streams/wide/events", &Value::from(event));
    assert_eq!(status, 202, "{answer}");
    assert_eq!(client.number("SELECT CAST(m000 + m899 AS BIGINT) FROM wide"), 899);
}
