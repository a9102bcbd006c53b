//! Scenarios as text: each file under `scenarios/` is played against a real node of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;

use serde_json::Value;
use support::{Node, empty_data};

/// Every member that `expected` names is there and equal; arrays may be longer than what is expected of them, and texts
/// than one that ends in `…`.
fn holds(found: &Value, expected: &Value) -> bool {
    match (found, expected) {
        (Value::Object(found), Value::Object(expected)) => expected
            .iter()
            .all(|(name, expected)| found.get(name).is_some_and(|found| holds(found, expected))),
        (Value::Array(found), Value::Array(expected)) => {
            found.len() >= expected.len()
                && found.iter().zip(expected).all(|(found, expected)| holds(found, expected))
        }
        (Value::String(found), Value::String(expected)) if expected.ends_with('…') => {
            found.starts_with(expected.trim_end_matches('…'))
        }
        (Value::Number(found), Value::Number(expected)) => found.as_f64() == expected.as_f64(),
        (found, expected) => found == expected,
    }
}

/// A call as it is written.
struct Call {
    line: usize,
    text: String,
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// The answer may take a moment.
    patient: bool,
    status: u16,
    expected: Value,
    /// Headers of the answer.
    answered: Vec<(String, String)>,
    /// Members of the answer that later calls know under a name.
    kept: Vec<(String, String)>,
}

/// Reads a call: `> METHOD path [type]`, `> APPLY` with a script, or `> SQL question`; then headers (`| name:
/// value`, `| gzip`, or `| gzip lines` with each line packed by itself), the body, and what is expected (`< status {members}`, or `<~` when it may take a while).
/// `^ name: value` is a header of the answer, and `= name member.of.it` keeps something of the answer: later calls say `{{name}}`.
fn read_call<'a>(
    number: usize,
    call: &str,
    lines: &mut std::iter::Peekable<impl Iterator<Item = (usize, &'a str)>>,
) -> Call {
    let (mut headers, mut body, mut gzip) = (Vec::new(), String::new(), None);
    while let Some((_, line)) = lines.next_if(|(_, line)| !line.starts_with("< ") && !line.starts_with("<~ "))
    {
        match line.strip_prefix("| ") {
            Some("gzip") => gzip = Some(false),
            Some("gzip lines") => gzip = Some(true),
            Some(header) => {
                let (name, value) = header.split_once(": ").unwrap();
                headers.push((name.to_owned(), value.to_owned()));
            }
            None => {
                body.push_str(line);
                body.push('\n');
            }
        }
    }
    let (_, answer) = lines.next().unwrap_or_else(|| panic!("line {}: nothing is expected", number + 1));
    let (mark, answer) = answer.split_once(' ').unwrap();
    let (status, expected) = answer.split_once(' ').unwrap_or((answer, "{}"));
    let mut words = call.splitn(3, ' ');
    let (mut method, mut path) =
        (words.next().unwrap().to_owned(), words.next().unwrap_or_default().to_owned());
    let mut kind = words.next().unwrap_or("application/json").to_owned();
    if method == "APPLY" {
        body = serde_json::json!({"sql": body}).to_string();
        (method, path) = ("POST".into(), "/api/v1/statements".into());
    } else if method == "SQL" {
        body = serde_json::json!({"query": call.strip_prefix("SQL ").unwrap()}).to_string();
        (method, path, kind) = ("POST".into(), "/api/v1/sql".into(), "application/json".into());
    }
    headers.push(("content-type".into(), kind));
    let mut body = body.into_bytes();
    if let Some(by_lines) = gzip {
        body = match by_lines {
            true => body.split_inclusive(|byte| *byte == b'\n').flat_map(packed).collect(),
            false => packed(&body),
        };
        headers.push(("content-encoding".into(), "gzip".into()));
    }
    let expected =
        serde_json::from_str(expected).unwrap_or_else(|error| panic!("line {}: {error}", number + 1));
    let (text, patient, status) = (call.to_owned(), mark == "<~", status.parse().unwrap());
    let mut answered = Vec::new();
    while let Some((_, line)) = lines.next_if(|(_, line)| line.starts_with("^ ")) {
        let (name, value) = line[2..].split_once(": ").unwrap();
        answered.push((name.to_owned(), value.to_owned()));
    }
    let mut kept = Vec::new();
    while let Some((_, line)) = lines.next_if(|(_, line)| line.starts_with("= ")) {
        let (name, member) = line[2..].split_once(' ').unwrap();
        kept.push((name.to_owned(), member.to_owned()));
    }
    Call { line: number + 1, text, method, path, headers, body, patient, status, expected, answered, kept }
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A text with what was kept in the places of its names.
fn filled(text: &str, kept: &BTreeMap<String, String>) -> String {
    kept.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("{{{{{name}}}}}"), value))
}

/// Something of an answer, as a text.
fn member(answer: &Value, path: &str) -> String {
    let found = path.split('.').fold(answer, |value, part| match part.parse::<usize>() {
        Ok(at) => &value[at],
        Err(_) => &value[part],
    });
    assert!(!found.is_null(), "{path} is not in {answer}");
    found.as_str().map_or_else(|| found.to_string(), str::to_owned)
}

fn play(text: &str) {
    play_on(text, "");
}

/// Plays a scenario against a node with a pack.
fn play_on(text: &str, pack: &str) {
    let (_folder, data) = empty_data();
    let mut node = Node::start(&data);
    if !pack.is_empty() {
        let folder = format!("{}/../../packs/{pack}", env!("CARGO_MANIFEST_DIR"));
        node.run(&["apply", "-f", &folder]);
    }
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    let mut lines = text.lines().enumerate().peekable();
    let mut calls = 0;
    while let Some((number, line)) = lines.next() {
        let Some(call) = line.strip_prefix("> ") else {
            match line {
                "settle" => node.client.settle(),
                "restart" => {
                    node.kill();
                    node = Node::start(&data);
                }
                _ => assert!(line.is_empty() || line.starts_with('#'), "line {}: {line}", number + 1),
            }
            continue;
        };
        let mut call = read_call(number, call, &mut lines);
        call.path = filled(&call.path, &known);
        call.headers.iter_mut().for_each(|(_, value)| *value = filled(value, &known));
        if let Ok(body) = std::str::from_utf8(&call.body) {
            call.body = filled(body, &known).into_bytes();
        }
        if let Ok(expected) = serde_json::from_str(&filled(&call.expected.to_string(), &known)) {
            call.expected = expected;
        }
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        loop {
            let (status, headers, found) =
                node.client.call_whole(&call.method, &call.path, &call.headers, &call.body);
            // Of an answer that comes line by line the last one counts.
            let found = match found {
                Value::String(text) if !call.expected.is_string() => {
                    let last = text.lines().last().and_then(|line| serde_json::from_str(line).ok());
                    last.unwrap_or(Value::String(text))
                }
                found => found,
            };
            let right = status == call.status && holds(&found, &call.expected);
            if !right && call.patient && std::time::Instant::now() < deadline {
                std::thread::sleep(std::time::Duration::from_millis(50));
                continue;
            }
            assert!(
                right,
                "line {}: {}\nexpected {} {}\nfound    {status} {found}",
                call.line, call.text, call.status, call.expected
            );
            for (name, value) in &call.answered {
                let found = headers.get(name).map(|value| value.to_str().unwrap());
                assert_eq!(found, Some(filled(value, &known).as_str()), "line {}: {name}", call.line);
            }
            for (name, path) in &call.kept {
                known.insert(name.clone(), member(&found, path));
            }
            break;
        }
        calls += 1;
    }
    // What came in is accounted for, in every view.
    node.client.settle();
    let (_, answer) = node.client.get("/api/v1/views");
    for view in answer["views"].as_array().unwrap() {
        let count = |name: &str| view["applied"][name].as_u64().unwrap();
        assert_eq!(
            count("taken"),
            count("out") + count("filtered") + count("late") + count("dead"),
            "in = out + filtered + late + dead: {view}"
        );
    }
    println!("{calls} calls as written");
}

#[test]
fn transactions() {
    play(include_str!("scenarios/transactions.scenario"));
}

#[test]
fn statements() {
    play(include_str!("scenarios/statements.scenario"));
}

#[test]
fn time() {
    play(include_str!("scenarios/time.scenario"));
}

#[test]
fn doors() {
    play(include_str!("scenarios/doors.scenario"));
}

#[test]
fn replay() {
    play(include_str!("scenarios/replay.scenario"));
}

#[test]
fn events() {
    play_on(include_str!("scenarios/events.scenario"), "events");
}

#[test]
fn dead_letters() {
    play(include_str!("scenarios/dead_letters.scenario"));
}

#[test]
fn audit_events() {
    play_on(include_str!("scenarios/audit_events.scenario"), "audit-events");
}

#[test]
fn jobs() {
    play(include_str!("scenarios/jobs.scenario"));
}

#[test]
fn repush() {
    play(include_str!("scenarios/repush.scenario"));
}

#[test]
fn products() {
    play_on(include_str!("scenarios/products.scenario"), "transactions");
}

#[test]
fn written_tables() {
    play(include_str!("scenarios/written.scenario"));
}

#[test]
fn events_are_found_by_their_words() {
    play(include_str!("scenarios/search.scenario"));
}
