//! `highwater search`: words in a stream that has an index.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::client::Client;
use super::read::{encode, parse};
use super::{Failure, Output, Target, output};

#[derive(Debug, Args)]
pub struct SearchArgs {
    /// Name of the stream.
    stream: String,
    /// Words: "several words" follow each other, begin* begins a word, -word must not be there. All events without it.
    #[arg(allow_hyphen_values = true)]
    words: Option<String>,
    /// A column and the value that it has, or begin* for the beginning of a text: --where outcome=denied. May be given several times.
    #[arg(long = "where", value_name = "COLUMN=VALUE")]
    filters: Vec<String>,
    /// A column whose values are counted over all hits. May be given several times.
    #[arg(long)]
    facet: Vec<String>,
    /// First event time: RFC 3339, a date, or epoch.
    #[arg(long)]
    from: Option<String>,
    /// End of event time.
    #[arg(long)]
    to: Option<String>,
    /// Hits at most, 100 of them.
    #[arg(long, default_value_t = 20)]
    limit: usize,
    /// What the last search said at its end, to see those behind.
    #[arg(long)]
    cursor: Option<String>,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

/// `highwater search`.
pub fn search(arguments: SearchArgs) -> Result<ExitCode, Failure> {
    let mut path = format!("/api/v1/streams/{}/search?limit={}", encode(&arguments.stream), arguments.limit);
    let mut add = |name: &str, value: &str| path.push_str(&format!("&{}={}", encode(name), encode(value)));
    let own = [("q", &arguments.words), ("time_from", &arguments.from), ("time_to", &arguments.to)];
    for (name, value) in own.into_iter().chain([("cursor", &arguments.cursor)]) {
        if let Some(value) = value {
            add(name, value);
        }
    }
    if !arguments.facet.is_empty() {
        add("facets", &arguments.facet.join(","));
    }
    for filter in &arguments.filters {
        let (column, value) = filter.split_once('=').ok_or_else(|| {
            Failure::new("usage", format!("a condition is written column=value, not {filter}")).exit(2)
        })?;
        add(column, value);
    }
    let answer = parse(&Client::new(&arguments.target)?.get(&path)?)?;
    let hits = answer["hits"].as_array().cloned().unwrap_or_default();
    let mut columns: Vec<String> = ["partition", "offset"].map(str::to_owned).to_vec();
    let of_events = hits.iter().filter_map(|hit| hit["event"].as_object()).flat_map(|event| event.keys());
    for column in of_events {
        if !columns.contains(column) {
            columns.push(column.clone());
        }
    }
    let rows: Vec<Value> = hits.into_iter().map(|hit| row(&hit)).collect();
    output::print(arguments.output.output, &columns, &rows)?;
    for (column, counts) in answer["facets"].as_object().into_iter().flatten() {
        let counts = counts.as_array().into_iter().flatten();
        let counts = counts.map(|it| {
            format!(
                "{} {}",
                it["value"].as_str().map_or_else(|| it["value"].to_string(), str::to_owned),
                it["count"]
            )
        });
        eprintln!("{column}: {}", counts.collect::<Vec<_>>().join(", "));
    }
    eprintln!("{} of {} hits", rows.len(), answer["total"]);
    if let Some(cursor) = answer["next_cursor"].as_str() {
        let hint = if std::io::stderr().is_terminal() { "see those behind with " } else { "" };
        eprintln!("{hint}--cursor {cursor}");
    }
    Ok(ExitCode::SUCCESS)
}

/// A hit as a row: what the event says, and where it stands.
fn row(hit: &Value) -> Value {
    let mut row = hit["event"].clone();
    if let Some(members) = row.as_object_mut() {
        members.insert("partition".into(), json!(hit["at"]["partition"]));
        members.insert("offset".into(), json!(hit["at"]["offset"]));
    }
    row
}
