//! Commands that read: sql, tail, list, show.

use std::io::{Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::client::Client;
use super::{Failure, ListCommand, SqlArgs, TailArgs, ViewCommand, output};

pub(super) fn parse(body: &str) -> Result<Value, Failure> {
    serde_json::from_str(body).map_err(not_json)
}

fn not_json(error: serde_json::Error) -> Failure {
    Failure::new("bad_answer", format!("the node's answer is not as expected: {error}"))
}

/// The answer to a query. Rows are kept as they came: their numbers may have more digits than a float.
#[derive(Deserialize)]
struct Answer {
    columns: Vec<Column>,
    rows: Vec<Box<RawValue>>,
    #[serde(default)]
    truncated: bool,
}

#[derive(Deserialize)]
struct Column {
    name: String,
}

pub(super) fn objects(value: &Value) -> Vec<Map<String, Value>> {
    value.as_array().into_iter().flatten().filter_map(|row| row.as_object().cloned()).collect()
}

pub fn sql(arguments: SqlArgs) -> Result<ExitCode, Failure> {
    let client = Client::new(&arguments.target)?;
    let mut query = arguments.query;
    if query == "-" {
        query.clear();
        std::io::stdin().read_to_string(&mut query)?;
    }
    let mut params = Map::new();
    for param in &arguments.params {
        let (name, value) = param.split_once('=').ok_or_else(|| {
            Failure::new("usage", format!("a parameter is written name=value, not {param}")).exit(2)
        })?;
        params.insert(name.into(), serde_json::from_str(value).unwrap_or_else(|_| Value::from(value)));
    }
    let request = json!({"query": query, "params": params}).to_string();
    let body = client.post("/api/v1/sql", "application/json", "application/json", request.as_bytes())?;
    let answer: Answer = serde_json::from_str(&body).map_err(not_json)?;
    let columns: Vec<String> = answer.columns.into_iter().map(|column| column.name).collect();
    output::print(arguments.output.output, &columns, &answer.rows)?;
    if answer.truncated {
        eprintln!("only the first {} rows are shown; add LIMIT or a condition", answer.rows.len());
        return Ok(ExitCode::from(3));
    }
    Ok(ExitCode::SUCCESS)
}

pub fn tail(arguments: TailArgs) -> Result<ExitCode, Failure> {
    let client = Client::new(&arguments.target)?;
    let mut next = arguments.from;
    let mut left = arguments.lines.unwrap_or(u64::MAX);
    loop {
        let from = next.map_or_else(|| "limit=10".to_owned(), |next| format!("from={next}&limit=1000"));
        let body = client.get(&format!("/api/v1/streams/{}/events?{from}", encode(&arguments.stream)))?;
        let answer = parse(&body)?;
        let events = objects(&answer["events"]);
        let empty = events.is_empty();
        let mut out = std::io::stdout().lock();
        for event in events {
            if left == 0 {
                return Ok(ExitCode::SUCCESS);
            }
            writeln!(out, "{}", Value::Object(event))?;
            left -= 1;
        }
        out.flush()?;
        next = answer["next"].as_u64();
        if left == 0 {
            return Ok(ExitCode::SUCCESS);
        }
        if empty {
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

pub(super) fn encode(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

pub fn list(kind: &str, columns: &[&str], command: ListCommand) -> Result<ExitCode, Failure> {
    match command {
        ListCommand::List { target, output } => {
            let answer = parse(&Client::new(&target)?.get(&format!("/api/v1/{kind}"))?)?;
            let columns: Vec<String> = columns.iter().map(|column| (*column).to_owned()).collect();
            output::print(output.output, &columns, &objects(&answer[kind]))?;
        }
        ListCommand::Show { name, target } => {
            let client = Client::new(&target)?;
            // Endpoints are known by their path, which is no name for a path of its own.
            let shown = if kind == "endpoints" {
                let wanted = name.trim_end_matches('/').to_owned();
                let answer = parse(&client.get("/api/v1/endpoints")?)?;
                let found = objects(&answer[kind]).into_iter().find(|endpoint| {
                    endpoint["path"].as_str().is_some_and(|path| path.trim_end_matches('/') == wanted)
                });
                Value::Object(found.ok_or_else(|| {
                    Failure::new("endpoint_not_found", format!("no endpoint \"{name}\"")).exit(6)
                })?)
            } else {
                parse(&client.get(&format!("/api/v1/{kind}/{}", encode(&name)))?)?
            };
            print_json(&shown)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn print_json(value: &Value) -> Result<(), Failure> {
    let text =
        serde_json::to_string_pretty(value).map_err(|error| Failure::new("bad_answer", error.to_string()))?;
    writeln!(std::io::stdout().lock(), "{text}")?;
    Ok(())
}

pub fn view(command: ViewCommand) -> Result<ExitCode, Failure> {
    let (target, name, action) = match command {
        ViewCommand::List { target, output } => {
            let columns = &["name", "kind", "source", "state", "lag", "last_error"];
            return list("views", columns, ListCommand::List { target, output });
        }
        ViewCommand::Show { name, target } => return list("views", &[], ListCommand::Show { name, target }),
        ViewCommand::Rebuild { name, target } => (target, name, "rebuild"),
        ViewCommand::Pause { name, target } => (target, name, "pause"),
        ViewCommand::Resume { name, target } => (target, name, "resume"),
    };
    let path = format!("/api/v1/views/{}/{action}", encode(&name));
    let answer = Client::new(&target)?.post(&path, "application/json", "application/json", b"")?;
    print_json(&parse(&answer)?)?;
    Ok(ExitCode::SUCCESS)
}
