//! `highwater replay`: old events of a stream are appended again.

use std::io::{BufRead, BufReader};
use std::process::ExitCode;

use serde_json::{Map, Value};

use super::client::Client;
use super::read::encode;
use super::send::{Progress, Unit};
use super::{Failure, ReplayArgs};

pub fn replay(arguments: ReplayArgs) -> Result<ExitCode, Failure> {
    let client = Client::new(&arguments.target)?;
    let path = format!("/api/v1/streams/{}/replay", encode(&arguments.stream));
    let answer = client.open_post(&path, &request(&arguments))?;
    let mut progress: Option<(Progress, u64)> = None;
    for line in BufReader::new(answer).lines() {
        let line: Value = serde_json::from_str(&line?).map_err(|error| {
            Failure::new("bad_answer", format!("the node's answer can't be read: {error}"))
        })?;
        let number = |name: &str| line[name].as_u64().unwrap_or(0);
        let (bar, seen) = progress
            .get_or_insert_with(|| (Progress::new(Some(number("of")), &arguments.stream, Unit::Events), 0));
        bar.advance(number("events").saturating_sub(*seen));
        *seen = number("events");
        if let Some(error) = line.get("error") {
            bar.finish();
            let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
            let failure = Failure::new(&text("code"), format!("{} after {seen} events", text("detail")));
            return Err(failure.hint(
                "what was appended stays; where events have ids, begin again under the same name to go on",
            ));
        }
        if line["finished"] == true {
            bar.finish();
            return Ok(finished(&arguments, &line));
        }
    }
    Err(Failure::new("cut_off", "the node ended before the replay did")
        .hint("what was appended stays; where events have ids, begin again under the same name to go on"))
}

fn request(arguments: &ReplayArgs) -> Value {
    let mut request = Map::new();
    let texts = [
        ("into", &arguments.into),
        ("name", &arguments.name),
        ("where", &arguments.condition),
        ("from", &arguments.from),
        ("until", &arguments.until),
    ];
    for (name, text) in texts {
        request.extend(text.as_ref().map(|text| (name.to_owned(), text.as_str().into())));
    }
    let numbers = [
        ("partition", arguments.partition.map(u64::from)),
        ("from_offset", arguments.from_offset),
        ("until_offset", arguments.until_offset),
    ];
    for (name, number) in numbers {
        request.extend(number.map(|number| (name.to_owned(), number.into())));
    }
    request.insert("now".into(), arguments.now.into());
    request.insert("dry_run".into(), arguments.dry_run.into());
    request.into()
}

fn finished(arguments: &ReplayArgs, line: &Value) -> ExitCode {
    let into = line["into"].as_str().unwrap_or_default();
    if arguments.dry_run {
        println!("{} events of {} would go into {into}", line["of"], arguments.stream);
        return ExitCode::SUCCESS;
    }
    let number = |name: &str| line[name].as_u64().unwrap_or(0);
    println!(
        "accepted {}  duplicates {}  conflicts {}  rejected {}",
        number("accepted"),
        number("duplicates"),
        number("conflicts"),
        number("rejected")
    );
    if let Some(name) = line["name"].as_str() {
        eprintln!("their ids end in ~{name}; `--name {name}` again appends nothing twice");
    }
    if number("gone") > 0 {
        eprintln!("{} events were gone before they were read: their retention ended", number("gone"));
    }
    let missing = number("conflicts") + number("rejected") + number("gone");
    if missing > 0 { ExitCode::from(3) } else { ExitCode::SUCCESS }
}
