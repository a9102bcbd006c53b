//! More than a thousand bad inputs against a real node: each gets a clear 4xx (or a verdict of its own
//! beside its good neighbours), none takes a second, and the node is as well afterwards as before.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use highwater_event::SeededRandomness;
use highwater_sim::mutate;
use serde_json::{Value, json};
use support::{Node, empty_data};

const EVENT: &str = r#"{"id":"ID","at":"2026-01-01T00:00:00Z","n":1,"d":12.34,"ok":true,"born":"2026-01-01","place":{"city":"Z"},"tags":["p"],"map":{"k":1},"any":{"x":[1]}}"#;
const STREAM: &str = "CREATE STREAM s (id TEXT NOT NULL, at TIMESTAMP NOT NULL, n SMALLINT, d DECIMAL(6,2), ok BOOLEAN, born DATE, place STRUCT<city TEXT>, tags ARRAY<TEXT>, map MAP<TEXT, INT>, any JSON) WITH (event_id = 'id', event_time = 'at')";

struct Checked {
    node: Node,
    count: usize,
    slowest: (Duration, String),
}

impl Checked {
    /// Sends something that is wrong as a whole.
    fn refused(&mut self, path: &str, kind: &str, body: &[u8]) {
        let (status, answer) = self.send(path, kind, body);
        let shown = String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned();
        assert!((400..500).contains(&status), "{path} {kind} {shown}: {status} {answer}");
        self.is_clear(&answer, &shown);
    }

    fn is_clear(&self, answer: &Value, shown: &str) {
        if let Some(results) = answer["results"].as_array() {
            for error in results.iter().filter_map(|result| result.get("error")) {
                assert!(
                    error["code"].is_string()
                        && error["detail"].as_str().is_some_and(|detail| detail.len() > 3),
                    "{shown}: {answer}"
                );
            }
            return;
        }
        assert!(
            answer["code"].is_string() && answer["detail"].as_str().is_some_and(|detail| detail.len() > 3),
            "{shown}: {answer}"
        );
        assert!(answer["request_id"].is_string(), "{shown}: {answer}");
    }

    /// Sends a bad line between two good ones: the good ones are kept.
    fn refused_beside_good_ones(&mut self, bad: &[u8]) {
        let good = |side: &str, count: usize| EVENT.replace("ID", &format!("good-{side}-{count}"));
        let mut body = good("a", self.count).into_bytes();
        body.push(b'\n');
        body.extend_from_slice(bad);
        body.push(b'\n');
        body.extend_from_slice(good("b", self.count).as_bytes());
        let (status, answer) = self.send("/api/v1/streams/s/events", "application/x-ndjson", &body);
        let shown = String::from_utf8_lossy(&bad[..bad.len().min(300)]).into_owned();
        assert_eq!(status, 207, "{shown}: {answer}");
        assert_eq!(answer["accepted"], 2, "{shown}: {answer}");
        self.is_clear(&answer, &shown);
    }

    fn send(&mut self, path: &str, kind: &str, body: &[u8]) -> (u16, Value) {
        let started = Instant::now();
        let headers = [("content-type".to_owned(), kind.to_owned())];
        let answer = self.node.client.call("POST", path, &headers, body);
        let took = started.elapsed();
        if took > self.slowest.0 {
            self.slowest = (took, format!("{path} {kind} {} bytes", body.len()));
        }
        self.count += 1;
        answer
    }
}

/// Values that fit no column, or not this one.
fn wrong_values() -> Vec<(&'static str, Vec<&'static str>)> {
    let numbers = vec![
        "\"x\"",
        "1e999",
        "-1e999",
        "1.5",
        "99999",
        "-32769",
        "true",
        "[]",
        "{}",
        "\"\"",
        "0x10",
        "NaN",
        "Infinity",
        "1e",
        "--1",
        "01",
        "9223372036854775808",
    ];
    let decimals = vec![
        "\"abc\"", "12345.67", "1.005", "1e20", "true", "[1]", "{}", "\"1,5\"", "1e-9", "\"-\"", "\"\"",
        "\"１\"",
    ];
    let times = vec![
        "\"yesterday\"",
        "\"2026-13-01\"",
        "\"2026-02-30T00:00:00Z\"",
        "\"\"",
        "true",
        "[]",
        "1e400",
        "\"9999-01-01T00:00:00Z\"",
        "99999999999999999",
        "null",
        "\"25:00\"",
        "1.5",
    ];
    vec![
        ("n", numbers),
        ("d", decimals),
        ("at", times),
        ("ok", vec!["\"true\"", "1", "0", "[]", "\"yes\"", "True"]),
        ("born", vec!["\"2026-02-30\"", "\"x\"", "true", "{}", "[1]"]),
        (
            "place",
            vec!["\"x\"", "1", "[]", "{\"city\":1}", "{\"town\":\"x\"}", "{\"city\":\"a\",\"city\":\"b\"}"],
        ),
        ("tags", vec!["\"x\"", "1", "{}", "[1]", "[[]]", "[\"a\",{}]", "[\"a\",]"]),
        ("map", vec!["\"x\"", "1", "[]", "{\"k\":\"v\"}", "{\"k\":1,\"k\":2}", "{\"k\":1e99}", "{k:1}"]),
        ("id", vec!["1", "true", "[]", "{}", "null", "\"\\ud800\"", "\"\\x\"", "\"\n\"", "'a'"]),
        ("any", vec!["{\"a\":}", "[1,", "{\"a\" 1}", "tru", "\"\\u12\""]),
    ]
}

fn with_member(name: &str, value: &str) -> String {
    let event: serde_json::Map<String, Value> = serde_json::from_str(EVENT).unwrap();
    let members: Vec<String> = event
        .iter()
        .map(|(known, kept)| {
            format!("\"{known}\":{}", if known == name { value.to_owned() } else { kept.to_string() })
        })
        .collect();
    format!("{{{}}}", members.join(","))
}

#[test]
fn invented_methods_are_refused_and_add_nothing_to_the_metrics() {
    let (_folder, data) = empty_data();
    let node = Node::start(&data);
    for path in ["/", "/api/v1/streams"] {
        for number in 0..20 {
            let mut stream = TcpStream::connect(node.client.url.trim_start_matches("http://")).unwrap();
            write!(stream, "BREW{number} {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
                .unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            let status = if path == "/" { "405" } else { "401" };
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        }
    }
    let (_, metrics) = node.client.try_get("/metrics").unwrap();
    assert!(metrics.contains("method=\"other\"") && !metrics.contains("BREW"), "{metrics}");
}

#[test]
fn a_thousand_bad_inputs_get_a_clear_answer() {
    let (_folder, data) = empty_data();
    let node = Node::start(&data);
    assert_eq!(node.client.post("/api/v1/statements", &json!({"sql": STREAM})).0, 200);
    let mut checked = Checked { node, count: 0, slowest: (Duration::ZERO, String::new()) };
    let events = "/api/v1/streams/s/events";

    // Wrong values, alone and between good lines, as JSON and as CSV.
    for (name, values) in wrong_values() {
        for value in values {
            let event = with_member(name, value);
            checked.refused(events, "application/json", event.as_bytes());
            if !event.contains('\n') {
                checked.refused_beside_good_ones(event.as_bytes());
            }
        }
    }
    // An event cut off at every byte, in every form.
    for end in 1..EVENT.len() {
        checked.refused(events, "application/json", &EVENT.as_bytes()[..end]);
        checked.refused_beside_good_ones(&EVENT.as_bytes()[..end]);
        checked.refused(events, "application/json", format!("[{}", &EVENT[..end]).as_bytes());
    }
    // Bytes that are not text, at every tenth place.
    for at in (0..EVENT.len()).step_by(10) {
        for bad in [&b"\xff"[..], b"\0", b"\xed\xa0\x80", b"\xc0\xaf"] {
            let mut bytes = EVENT.as_bytes().to_vec();
            bytes.splice(at..at + 1, bad.iter().copied());
            let (status, answer) = checked.send(events, "application/json", &bytes);
            assert!(status == 202 || (400..500).contains(&status), "{status} {answer}");
        }
    }
    // Almost right, in every form: whatever the answer, it is one, and it is clear.
    let chance = SeededRandomness::new(7);
    let csv = "id,at,n,d,ok,born,place,tags,map,any\nx,2026-01-01,1,1.5,true,2026-01-01,\"{\"\"city\"\":\"\"Z\"\"}\",[],{},1\ny,2026-01-02,2,,,,,,,\n";
    let cloud = "[{\"specversion\":\"1.0\",\"id\":\"c\",\"source\":\"/s\",\"type\":\"t\",\"time\":\"2026-01-01T00:00:00Z\",\"data\":{\"n\":1}}]";
    let forms = [
        ("application/json", EVENT),
        ("application/x-ndjson", EVENT),
        ("text/csv", csv),
        ("application/cloudevents+json", cloud),
    ];
    for _ in 0..200 {
        for (kind, text) in forms {
            let mut body = text.as_bytes().to_vec();
            mutate(&mut body, &chance);
            let (status, answer) = checked.send(events, kind, &body);
            assert!(
                [202, 207].contains(&status) || (400..500).contains(&status),
                "{kind} {}: {status} {answer}",
                String::from_utf8_lossy(&body)
            );
            if status != 202 {
                checked.is_clear(&answer, kind);
            }
        }
    }
    // Depth, size, and things that are not events at all.
    let deep = |open: &str, close: &str, depth: usize| {
        format!("{{\"id\":\"x\",\"at\":1,\"any\":{}{}}}", open.repeat(depth), close.repeat(depth))
    };
    let long = format!("{{\"id\":\"{}\"", "x".repeat(3 << 20));
    let wide: String = (0..50_000).map(|n| format!("\"m{n}\":")).collect();
    let bombs = [
        deep("[", "]", 100_000),
        deep("{\"a\":", "}", 50_000),
        deep("[", "", 1_000),
        long,
        format!("{{{wide}"),
        "[".repeat(1 << 20),
    ];
    for bomb in &bombs {
        checked.refused(events, "application/json", bomb.as_bytes());
        checked.refused(events, "application/x-ndjson", bomb.as_bytes());
    }
    for nothing in [
        "",
        " ",
        "\n\n",
        "null",
        "1",
        "\"x\"",
        "[]",
        "[[]]",
        "[1,2]",
        "[null]",
        "{}",
        "{\"a\":1}",
        "<xml/>",
        "id=1&at=2",
        "\u{feff}",
        "{\"id\":\"a\"}{\"id\":\"b\"}",
        "[{}]x",
        "nul",
        "{'id':1}",
    ] {
        checked.refused(events, "application/json", nothing.as_bytes());
    }
    for csv in [
        "",
        "id",
        "id,at\n",
        "id,at\nx\n",
        "id,at\nx,y,z\n",
        "id,at\n\"x,1\n",
        "id,,at\nx,1,2\n",
        "id,at,id\nx,1,y\n",
        "at,n\n2026-01-01,1\n",
        "id,at,n\nx,2026-01-01,much\n",
        "id,at,map\nx,2026-01-01,{bad}\n",
        "\0\n\0",
        "id;at\nx;1\n",
    ] {
        checked.refused(events, "text/csv", csv.as_bytes());
    }
    for event in [
        "{}",
        "{\"specversion\":\"1.0\"}",
        "{\"specversion\":1,\"id\":\"a\"}",
        "[{\"specversion\":\"1.0\",\"id\":\"\",\"source\":\"s\",\"type\":\"t\"}]",
        "[1]",
        "{\"specversion\":\"1.0\",\"id\":\"a\",\"source\":\"s\",\"type\":\"t\",\"data\":5}",
        "[",
        "{\"specversion\":\"1.0\",\"id\":\"a\",\"source\":\"s\",\"type\":\"t\"}",
    ] {
        checked.refused(events, "application/cloudevents+json", event.as_bytes());
    }
    for kind in ["text/plain", "application/xml", "multipart/form-data", "image/png", "application/avro"] {
        checked.refused(events, kind, EVENT.as_bytes());
    }
    // Statements and questions, cut off after every word.
    let statements = [
        STREAM,
        "CREATE TABLE t AS SELECT n, count(*) AS c FROM s WINDOW HOPPING (SIZE 5 MINUTES, ADVANCE BY 1 MINUTE, GRACE PERIOD 1 HOUR) WHERE n > 0 GROUP BY",
        "CREATE ENDPOINT '/api/x/' (x INT DEFAULT 10 CHECK (x > 0)) REQUIRES view AS SELECT * FROM s LIMIT",
        "CREATE OR REPLACE STREAM d AS SELECT a.id FROM s a JOIN events b WITHIN 5 MINUTES ON a.id =",
        "ALTER STREAM s ADD COLUMN z DECIMAL(10,2) SENSITIVE,",
        "DROP STREAM IF EXISTS",
    ];
    for statement in statements {
        let words: Vec<&str> = statement.split(' ').collect();
        for end in 1..words.len() {
            let text = words[..end].join(" ");
            let body = json!({"sql": text, "dry_run": true}).to_string();
            let (status, answer) = checked.send("/api/v1/statements", "application/json", body.as_bytes());
            assert!(status == 200 || (400..500).contains(&status), "{text}: {status} {answer}");
            if status != 200 {
                checked.is_clear(&answer, &text);
            }
            let body = json!({"query": text}).to_string();
            checked.refused("/api/v1/sql", "application/json", body.as_bytes());
        }
    }
    for query in [
        "SELECT",
        "SELECT 1 +",
        "SELECT * FROM nowhere",
        "SELECT nope FROM s",
        "SELECT 1/0",
        "SELECT CAST('x' AS INT)",
        "DELETE FROM s",
        "INSERT INTO s VALUES (1)",
        "DROP TABLE s",
        "COPY s TO '/tmp/x'",
        "SET a = 1",
        "SELECT * FROM s EMIT CHANGES",
        "SELECT tokenize(id) FROM s",
        "WITH RECURSIVE",
        "SELECT $x",
        "(((((",
        "SELECT ';",
        "EXPLAIN nothing",
        "EXPLAIN CREATE TABLE",
    ] {
        checked.refused("/api/v1/sql", "application/json", json!({"query": query}).to_string().as_bytes());
    }
    // Behind each of these the parser reads what follows in more than one way.
    for opening in ["CAST(", "NOT (", "CASE (", "POSITION(", "(SELECT a FROM ("] {
        for nested in [8, 40].map(|levels| format!("SELECT {} x y z", opening.repeat(levels))) {
            for query in [format!("EXPLAIN {nested}"), nested] {
                checked.refused(
                    "/api/v1/sql",
                    "application/json",
                    json!({"query": query}).to_string().as_bytes(),
                );
            }
        }
    }
    for body in [
        "",
        "{",
        "[]",
        "{\"query\":1}",
        "{\"q\":\"SELECT 1\"}",
        "{\"query\":\"SELECT 1\",\"more\":1}",
        "{\"query\":\"SELECT $x\",\"params\":{\"x\":[1]}}",
    ] {
        checked.refused("/api/v1/sql", "application/json", body.as_bytes());
        checked.refused("/api/v1/statements", "application/json", body.as_bytes());
    }
    // An answer that comes before the body is read does not close the socket on a caller that still sends,
    // nor on its next call.
    let unread = vec![b'x'; 1 << 20];
    for _ in 0..200 {
        checked.refused("/api/v1/statements", "text/plain", &unread);
        checked.refused("/api/v1/sql", "application/json", b"{");
    }
    println!(
        "{} bad inputs; the slowest took {:?} ({})",
        checked.count, checked.slowest.0, checked.slowest.1
    );
    assert!(checked.count > 1_500, "{}", checked.count);
    assert!(checked.slowest.0 < Duration::from_secs(1), "{:?}", checked.slowest);

    // The node is well, and every good neighbour is there once.
    let client = &checked.node.client;
    client.settle();
    let good = client.number("SELECT count(*) FROM s WHERE id LIKE 'good-%'");
    assert_eq!(good, client.number("SELECT count(DISTINCT id) FROM s WHERE id LIKE 'good-%'"));
    assert!(good > 400, "{good}");
    assert!(!checked.node.log().contains("panicked"), "{}", checked.node.log());
}
