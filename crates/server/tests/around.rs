//! What is around calls: pages of other sites, and the access log.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Node, empty_data};

fn headers(
    node: &Node,
    method: &str,
    path: &str,
    given: &[(&str, &str)],
) -> ureq::http::Response<ureq::Body> {
    let agent: ureq::Agent =
        ureq::Agent::config_builder().http_status_as_error(false).proxy(None).build().into();
    let mut request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", node.client.url));
    for (name, value) in given {
        request = request.header(*name, *value);
    }
    agent.run(request.body(()).unwrap()).unwrap()
}

#[test]
fn pages_of_the_sites_that_are_named_may_call_with_a_token() {
    let (_folder, data) = empty_data();
    let sites = "https://app.example, http://localhost:3000";
    let node = Node::start_with(&data, &[("HIGHWATER__HTTP__CORS", sites)]).unwrap();
    let allowed = |method: &str, origin: &str| {
        let given = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization"),
        ];
        let answer = headers(&node, method, "/api/v1/streams", &given);
        assert!(answer.headers().get("access-control-allow-credentials").is_none());
        let allowed = answer.headers().get("access-control-allow-origin");
        (answer.status().as_u16(), allowed.map(|origin| origin.to_str().unwrap().to_owned()))
    };
    assert_eq!(allowed("OPTIONS", "https://app.example"), (200, Some("https://app.example".into())));
    assert_eq!(allowed("OPTIONS", "http://localhost:3000").1.as_deref(), Some("http://localhost:3000"));
    // Answers say so too, errors as well, and say nothing to others.
    assert_eq!(allowed("GET", "https://app.example"), (401, Some("https://app.example".into())));
    for other in ["https://app.example.evil", "http://app.example", "null", "https://app.example:444"] {
        assert_eq!(allowed("OPTIONS", other).1, None, "{other}");
        assert_eq!(allowed("GET", other), (401, None), "{other}");
    }
}

#[test]
fn sites_that_are_none_are_refused_at_the_start() {
    for wrong in ["*", "app.example", "https://app.example/", "https://app.example/x"] {
        let (_folder, data) = empty_data();
        assert!(Node::start_with(&data, &[("HIGHWATER__HTTP__CORS", wrong)]).is_none(), "{wrong}");
        let log = std::fs::read_to_string(data.with_extension("log")).unwrap();
        assert!(log.contains("http.cors is") && log.contains("https://app.example"), "{log}");
    }
}

#[test]
fn each_call_is_a_line_and_a_file_that_was_moved_is_begun_anew() {
    let (folder, data) = empty_data();
    let file = folder.path().join("access.log");
    let node = Node::start_with(&data, &[("HIGHWATER__HTTP__ACCESS_LOG", file.to_str().unwrap())]).unwrap();
    let wait = |wanted: &str| -> Value {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            if let Some(line) = text.lines().find(|line| line.contains(wanted)) {
                return serde_json::from_str(line).unwrap();
            }
            assert!(Instant::now() < deadline, "{wanted}: {text}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    node.client.get("/api/v1/streams?secret=canary");
    let line = wait("/api/v1/streams\"");
    assert_eq!(line["actor"], "operator");
    assert_eq!((line["status"].as_u64(), line["method"].as_str()), (Some(200), Some("GET")));
    assert_eq!(line["address"], "127.0.0.1");
    assert_eq!(headers(&node, "GET", "/no/such/path", &[]).status(), 401);
    assert_eq!(wait("/no/such/path")["actor"], "anonymous");
    assert!(!std::fs::read_to_string(&file).unwrap().contains("canary"));
    std::fs::rename(&file, folder.path().join("access.log.1")).unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    node.client.get("/api/v1/tables");
    wait("/api/v1/tables");
}

#[test]
fn what_is_streamed_ends_well_when_it_is_packed() {
    let (_folder, data) = empty_data();
    let node = Node::start(&data);
    let statement = "CREATE STREAM notes (id TEXT) WITH (event_id = 'id');
        CREATE ENDPOINT '/notes/all' REQUIRES view_own RETURNS FILE AS SELECT id FROM notes ORDER BY id;";
    let (status, answer) = node.client.post("/api/v1/statements", &serde_json::json!({"sql": statement}));
    assert_eq!(status, 200, "{answer}");
    let (status, answer) =
        node.client.post("/api/v1/streams/notes/events", &serde_json::json!([{"id": "1"}, {"id": "2"}]));
    assert_eq!(status, 202, "{answer}");
    let credential = format!("Bearer {}", node.client.token);
    let given = [("authorization", credential.as_str()), ("accept-encoding", "gzip")];
    for (path, lines) in [("/notes/all", 2), ("/notes/all?format=csv", 3), ("/api/v1/audit/export?size=1", 1)]
    {
        let mut answer = headers(&node, "GET", path, &given);
        assert_eq!(answer.status(), 200, "{path}");
        assert_eq!(answer.headers()["content-encoding"], "gzip", "{path}");
        let packed = answer.body_mut().read_to_vec().unwrap_or_else(|error| panic!("{path}: {error}"));
        let mut text = String::new();
        std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(packed.as_slice()), &mut text)
            .unwrap();
        assert!(text.lines().count() >= lines, "{path}: {text}");
    }
    assert!(!node.log().contains("panicked"), "{}", node.log());
}
