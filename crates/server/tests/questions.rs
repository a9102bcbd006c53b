//! No question ends the node: what would take too much memory is refused, and the next question is answered.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use serde_json::{Value, json};
use support::{Node, empty_data};

const EVENTS: usize = 60_000;
/// What the node may take at most: a GiB is for questions, and a text that grows may be there twice on each core.
const MOST_MIB: u64 = 2_500;

/// One row with a text of half a megabyte.
const LONG: &str = "(SELECT 1 AS k, string_agg(id, ',') AS s FROM big) AS long";

const REFUSED: [&str; 5] =
    ["query_memory", "result_too_large", "evaluation_failed", "unsupported_sql", "query_timeout"];

/// Questions that would take from gigabytes to terabytes.
fn greedy() -> Vec<String> {
    let times = |text: &str, count: usize| vec![text; count].join(", ");
    let columns: Vec<String> = (0..60).map(|at| format!("repeat('{at:02}', 100000) AS c{at}")).collect();
    let doubled = "SELECT t || t || t || t || t || t || t || t || t || t AS t";
    vec![
        format!("SELECT {} FROM big", columns.join(", ")),
        format!("SELECT count(DISTINCT c7) FROM (SELECT {} FROM big)", columns.join(", ")),
        format!("SELECT max(length(concat({}))) AS n FROM (SELECT repeat(id, 300) AS c FROM big)", times("c", 200)),
        format!("WITH a AS (SELECT repeat(id, 100) AS t FROM big), b AS ({doubled} FROM a), c AS ({doubled} FROM b), d AS ({doubled} FROM c) SELECT max(length(t)) AS n FROM d"),
        format!("SELECT max(length(concat_ws(repeat('-', 10000), {}))) AS n FROM big", times("id", 100)),
        "SELECT length(string_agg(repeat(id, 300), repeat('-', 30000))) AS n FROM big".into(),
        "SELECT length(string_agg(DISTINCT id, repeat('-', 1000000))) AS n FROM big".into(),
        "SELECT length(string_agg(DISTINCT id, repeat('-', 4000))) AS n FROM big".into(),
        "SELECT length(string_agg(id, repeat('-', 4000) ORDER BY n DESC)) AS n FROM big".into(),
        "SELECT string_agg(id, repeat('-', 1000000)) OVER (ORDER BY n ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) AS n FROM big".into(),
        "SELECT n % 7 AS k, length(string_agg(id, repeat('-', 4000))) AS n FROM big GROUP BY n % 7".into(),
        "SELECT n / 50000 AS k, length(string_agg(id, repeat('-', 4000))) AS n FROM big GROUP BY n / 50000".into(),
        "SELECT sum(length(array_to_string(range(0, 500), repeat('x', 100000)))) AS n FROM big".into(),
        "SELECT max(length(array_to_string(array_repeat(id, 400), repeat('x', 10000)))) AS n FROM big".into(),
        "SELECT max(length(encode(encode(encode(encode(repeat(id, 400), 'hex'), 'hex'), 'hex'), 'hex'))) AS n FROM big".into(),
        "SELECT max(cardinality(array_repeat(array_repeat(array_repeat(id, 300), 300), 300))) AS n FROM big".into(),
        "SELECT max(length(CASE WHEN id > 'e3' THEN repeat('x', 3000000) ELSE repeat('y', 3000000) END)) AS n FROM big".into(),
        "SELECT count(DISTINCT CASE WHEN id > 'e3' THEN repeat('x', 3000000) ELSE repeat('y', 3000000) END) AS n FROM big".into(),
        "SELECT max(repeat('z', 30000000)) AS m, min(repeat('z', 30000000)) AS n FROM big".into(),
        "SELECT length(array_to_string(array_agg(repeat(id, 1000)), '')) AS n FROM big".into(),
        "SELECT max(length(to_char(at, repeat('%Y-%m', 10000)))) AS n FROM big".into(),
        "SELECT levenshtein(repeat('a', 1000000), repeat('b', 1000000)) AS n".into(),
        "SELECT max(length(t)) AS n FROM (SELECT string_agg(id, ',') OVER (ORDER BY id) AS t FROM big)".into(),
        "SELECT max(cardinality(t)) AS n FROM (SELECT array_agg(id) OVER (ORDER BY id) AS t FROM big)".into(),
        "SELECT max(cardinality(t)) AS n FROM (SELECT array_agg(id) OVER (ORDER BY id ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING) AS t FROM big)".into(),
        "SELECT max(cardinality(t)) AS n FROM (SELECT array_agg(id) OVER (ORDER BY n RANGE BETWEEN 30000 PRECEDING AND CURRENT ROW) AS t FROM big)".into(),
        "SELECT max(cardinality(array_replace_all(range(0, 500), 7, n))) AS n FROM big, (SELECT 8 AS k)".into(),
        "SELECT max(length(replace(repeat(id, 400), 'e', repeat('f', 10000)))) AS n FROM big".into(),
        format!("SELECT max(length(s || id)) AS n FROM big, {LONG}"),
        format!("SELECT max(length(s)) AS n FROM big, {LONG}"),
        format!("SELECT s FROM big, {LONG}"),
        format!("SELECT max(length(s)) AS n FROM {LONG} JOIN big ON k = n % 1 + 1"),
        format!("SELECT max(length(s)) AS n FROM big LEFT JOIN {LONG} ON length(s) > n"),
        format!("SELECT max(length(s)) AS n FROM {LONG} RIGHT JOIN big ON s > id"),
        format!("SELECT max(length(a.s || b.s)) AS n FROM (SELECT s FROM {LONG}, big) AS a JOIN (SELECT s FROM {LONG}, big) AS b ON a.s = b.s"),
        "SELECT max(length((SELECT string_agg(id, ',') FROM big) || id)) AS n FROM big".into(),
        "SELECT max(cardinality(l)) AS n FROM big, (SELECT array_agg(id) AS l FROM big) AS long".into(),
        format!("SELECT max(length(s)) AS n FROM (SELECT s, unnest(range(0, 100000)) AS u FROM {LONG})"),
        format!("SELECT max(length(m)) AS n FROM (SELECT max(s) OVER () AS m FROM big LEFT JOIN {LONG} ON n = k) AS w"),
        format!("SELECT max(length(m)) AS n FROM (SELECT first_value(s) OVER (ORDER BY s IS NULL) AS m FROM big LEFT JOIN {LONG} ON n = k) AS w"),
        format!("SELECT max(length(m)) AS n FROM (SELECT max(s) OVER (ORDER BY n ROWS BETWEEN 30000 PRECEDING AND CURRENT ROW) AS m FROM big LEFT JOIN {LONG} ON n = k) AS w"),
        "SELECT n, (SELECT string_agg(id, ',') FROM big) AS s FROM big".into(),
        format!("SELECT k FROM {LONG} WHERE EXISTS (SELECT 1 FROM big WHERE big.id > long.s)"),
        format!("WITH c0 AS (SELECT 1 AS x), {} SELECT count(*) AS n FROM c40", twice(40)),
        format!("SELECT max(length(m)) AS n FROM (SELECT n, max(v) AS m FROM big, (SELECT arrow_cast(s, 'Utf8View') AS v FROM {LONG}) AS w GROUP BY n) AS g"),
        "SELECT max(cardinality(l)) AS n FROM (SELECT l, unnest(l) AS u FROM (SELECT array_agg(id) AS l FROM big) AS long)".into(),
    ]
}

/// Parts of a question, each of which names the one before twice.
fn twice(parts: usize) -> String {
    let part = |at: usize| format!("c{} AS (SELECT * FROM c{at} UNION ALL SELECT * FROM c{at})", at + 1);
    (0..parts).map(part).collect::<Vec<_>>().join(", ")
}

fn peak_mib(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

#[test]
fn what_would_take_too_much_memory_is_refused() {
    let (_folder, data) = empty_data();
    let mut node = Node::start(&data);
    let sql = "CREATE STREAM big (id TEXT, n BIGINT, at TIMESTAMP) WITH (event_id = 'id', event_time = 'at')";
    assert_eq!(node.client.post("/api/v1/statements", &json!({"sql": sql})).0, 200);
    for part in 0..EVENTS / 1000 {
        let events: Vec<Value> = (part * 1000..(part + 1) * 1000)
            .map(|n| json!({"id": format!("e{n:06}"), "n": n, "at": "2026-05-01T10:00:00Z"}))
            .collect();
        assert_eq!(node.client.post("/api/v1/streams/big/events", &Value::from(events)).0, 202);
    }
    for question in greedy() {
        let (status, answer) = node.client.post("/api/v1/sql", &json!({"query": question}));
        let peak = peak_mib(&node);
        println!(
            "{status} {peak} MiB  {}  {}",
            &question[..question.len().min(70)],
            answer["detail"].as_str().unwrap_or_default()
        );
        assert!(node.is_running(), "{question} ended the node");
        assert!(peak < MOST_MIB, "{question} took {peak} MiB");
        let code = answer["code"].as_str().unwrap_or_default();
        assert!(status == 200 || REFUSED.contains(&code), "{question}: {answer}");
        let alive = node.client.number("SELECT count(*) FROM big");
        assert_eq!(alive, EVENTS as i64);
    }
    // What is modest is answered, and means what it meant.
    for (question, expected) in modest() {
        let (status, answer) = node.client.post("/api/v1/sql", &json!({"query": question}));
        assert_eq!((status, &answer["rows"]), (200, &expected), "{question}: {answer}");
    }
    node.kill();
}

fn modest() -> Vec<(&'static str, Value)> {
    vec![
        (
            "SELECT id || '-' || n AS t, id || NULL AS u, 'a' || 'b' AS v FROM big WHERE n = 7",
            json!([{"t": "e000007-7", "u": null, "v": "ab"}]),
        ),
        ("SELECT max(length(repeat('x', 5000) || id)) AS n FROM big WHERE n < 1000", json!([{"n": 5007}])),
        (
            "SELECT length(max(CASE WHEN n % 2 = 0 THEN repeat('a', 3000) ELSE repeat('b', 3000) END)) AS n FROM big",
            json!([{"n": 3000}]),
        ),
        (
            "SELECT count(*) AS n FROM big WHERE id || 'x' = 'e000009x' OR id IN ('e000001', 'e000002')",
            json!([{"n": 3}]),
        ),
        (
            "SELECT array_to_string(array_agg(id) OVER (ORDER BY n ROWS BETWEEN 1 PRECEDING AND CURRENT ROW), ',') AS t FROM big ORDER BY n DESC LIMIT 1",
            json!([{"t": "e059998,e059999"}]),
        ),
        ("SELECT length(string_agg(id, ',')) AS n FROM big", json!([{"n": 479_999}])),
        (
            "SELECT n % 2 AS k, string_agg(id, ',' ORDER BY n DESC) AS d, string_agg(id, '' ORDER BY n) AS o, length(string_agg(DISTINCT id, '')) AS l, string_agg(id, NULL) FILTER (WHERE n < 2) AS f FROM big WHERE n < 4 GROUP BY n % 2 ORDER BY k",
            json!([{"k": 0, "d": "e000002,e000000", "o": "e000000e000002", "l": 14, "f": "e000000"}, {"k": 1, "d": "e000003,e000001", "o": "e000001e000003", "l": 14, "f": "e000001"}]),
        ),
        (
            "SELECT id, first_value(id) OVER (ORDER BY n) AS f, lag(id, 1, 'none') OVER (ORDER BY n) AS l, max(id) OVER () AS m, max(id) OVER (ORDER BY n ROWS BETWEEN 1 PRECEDING AND 1 FOLLOWING) AS x, count(*) OVER () AS c FROM big ORDER BY n LIMIT 1",
            json!([{"id": "e000000", "f": "e000000", "l": "none", "m": "e059999", "x": "e000001", "c": 60000}]),
        ),
        (
            "SELECT a.id, b.id AS next, l, b.s['t'] AS t FROM big AS a LEFT JOIN (SELECT id, n, make_array(id, NULL, 'x') AS l, named_struct('t', id) AS s FROM big) AS b ON a.n = b.n - 1 WHERE a.n IN (3, 59999) ORDER BY a.n",
            json!([{"id": "e000003", "next": "e000004", "l": ["e000004", null, "x"], "t": "e000004"}, {"id": "e059999", "next": null, "l": null, "t": null}]),
        ),
        (
            "SELECT a.id, b.t FROM big AS a JOIN (SELECT upper(id) AS t FROM big WHERE n < 2) AS b ON upper(a.id) = b.t AND a.id > b.t || 'x' WHERE a.n < 5 ORDER BY 1",
            json!([{"id": "e000000", "t": "E000000"}, {"id": "e000001", "t": "E000001"}]),
        ),
        (
            "SELECT count(*) AS n, max(a.id) AS m FROM big AS a JOIN big AS b ON a.id = b.id JOIN big AS c ON c.id = b.id WHERE b.id LIKE '%99'",
            json!([{"n": 600, "m": "e059999"}]),
        ),
        (
            "SELECT id, u FROM (SELECT id, n, unnest(make_array(id, 'y')) AS u FROM big) WHERE n = 2 ORDER BY u",
            json!([{"id": "e000002", "u": "e000002"}, {"id": "e000002", "u": "y"}]),
        ),
        (
            "SELECT length(s) AS n, id FROM (SELECT 1 AS k, string_agg(id, ',') AS s FROM big) AS long, big WHERE n < 2 ORDER BY id",
            json!([{"n": 479_999, "id": "e000000"}, {"n": 479_999, "id": "e000001"}]),
        ),
        (
            "SELECT concat_ws('/', upper(id), n) AS t, array_to_string(make_array(n, n + 1), '+') AS s, to_char(at, '%Y') AS y FROM big WHERE n = 3",
            json!([{"t": "E000003/3", "s": "3+4", "y": "2026"}]),
        ),
        (
            "SELECT length(repeat('y', 100000)) AS n, levenshtein('kitten', 'sitting') AS d",
            json!([{"n": 100_000, "d": 3}]),
        ),
    ]
}
