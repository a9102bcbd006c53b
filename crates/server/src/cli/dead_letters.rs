//! `highwater dead-letter`: what could not be taken, and what is done about it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::Client;
use super::read::{encode, objects, parse};
use super::{Failure, Output, Target, output};

#[derive(Debug, Subcommand)]
pub enum DeadLetterCommand {
    /// The newest letters.
    List {
        #[command(flatten)]
        which: Which,
        /// open, retried, dropped or all.
        #[arg(long, default_value = "open")]
        state: String,
        /// At most so many.
        #[arg(long, default_value_t = 50)]
        limit: usize,
        /// Count them by error instead.
        #[arg(long)]
        group: bool,
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
    /// One letter, whole.
    Show {
        /// Its id.
        id: u64,
        #[command(flatten)]
        target: Target,
    },
    /// Send one again, as it came or edited, or all that are open and fit.
    Retry {
        /// Its id.
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        id: Option<u64>,
        /// All that are open and fit, as they came.
        #[arg(long)]
        all: bool,
        /// Only count them.
        #[arg(long, requires = "all")]
        dry_run: bool,
        #[command(flatten)]
        which: Which,
        /// A file with the event as it should have been, in JSON.
        #[arg(long, value_name = "FILE", conflicts_with = "all")]
        event: Option<PathBuf>,
        /// Why.
        #[arg(long, conflicts_with = "all")]
        reason: Option<String>,
        #[command(flatten)]
        target: Target,
    },
    /// Say that nothing will be done about one, and why.
    Drop {
        /// Its id.
        id: u64,
        /// Why.
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        target: Target,
    },
}

/// Which letters.
#[derive(Debug, Args)]
pub struct Which {
    /// The stream that they were sent to or read from.
    #[arg(long)]
    stream: Option<String>,
    /// `door`, or the name of a view, such as stream:orders.
    #[arg(long)]
    source: Option<String>,
    /// The code of the error.
    #[arg(long)]
    code: Option<String>,
    /// First time.
    #[arg(long)]
    since: Option<String>,
    /// End of times.
    #[arg(long)]
    until: Option<String>,
}

impl Which {
    fn query(&self) -> String {
        let given = [
            ("stream", &self.stream),
            ("source", &self.source),
            ("code", &self.code),
            ("since", &self.since),
            ("until", &self.until),
        ];
        let pairs = given.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
        pairs.map(|(name, value)| format!("&{name}={}", encode(value))).collect()
    }
}

/// `highwater dead-letter`.
pub fn dead_letter(command: DeadLetterCommand) -> Result<ExitCode, Failure> {
    match command {
        DeadLetterCommand::List { which, state, limit, group, target, output } => {
            let group_by = if group { "&group_by=error" } else { "" };
            let path = format!(
                "/api/v1/dead-letters?state={}&limit={limit}{group_by}{}",
                encode(&state),
                which.query()
            );
            let answer = parse(&Client::new(&target)?.get(&path)?)?;
            let (member, columns): (_, &[&str]) = match group {
                true => ("groups", &["count", "source", "stream", "code", "last_at", "example"]),
                false => ("dead_letters", &["id", "at", "state", "source", "stream", "code", "detail"]),
            };
            let columns: Vec<String> = columns.iter().map(|column| (*column).to_owned()).collect();
            output::print(output.output, &columns, &objects(&answer[member]))?;
        }
        DeadLetterCommand::Show { id, target } => {
            let answer = parse(&Client::new(&target)?.get(&format!("/api/v1/dead-letters/{id}"))?)?;
            println!("{}", serde_json::to_string_pretty(&answer).unwrap_or_default());
        }
        DeadLetterCommand::Retry { id: Some(id), event, reason, target, .. } => {
            let event = match event {
                None => Value::Null,
                Some(file) => {
                    let text = std::fs::read_to_string(&file)
                        .with_context(|| format!("{} can't be read", file.display()))?;
                    serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()))?
                }
            };
            let body = json!({"event": event, "reason": reason});
            let path = format!("/api/v1/dead-letters/{id}/retry");
            let answer = parse(&Client::new(&target)?.call("POST", &path, Some(&body))?)?;
            eprintln!(
                "{}: event {} at offset {}",
                answer["status"].as_str().unwrap_or_default(),
                answer["event_id"].as_str().unwrap_or("without an id"),
                answer["offset"]
            );
        }
        DeadLetterCommand::Retry { dry_run, which, target, .. } => {
            let path = format!("/api/v1/dead-letters/retry?dry_run={dry_run}{}", which.query());
            let answer = parse(&Client::new(&target)?.call("POST", &path, Some(&json!({})))?)?;
            if dry_run {
                eprintln!("{} letters would be sent again", answer["of"]);
                return Ok(ExitCode::SUCCESS);
            }
            let count = |name: &str| answer[name].as_u64().unwrap_or_default();
            eprintln!(
                "of {} letters {} were sent again, {} were there before, {} still fail",
                count("of"),
                count("retried"),
                count("duplicates"),
                count("conflicts") + count("rejected") + count("failed")
            );
            for result in objects(&answer["results"]) {
                if !["retried", "duplicate"].contains(&result["status"].as_str().unwrap_or_default()) {
                    eprintln!(
                        "  {}: {}",
                        result["id"],
                        result["error"]["detail"].as_str().unwrap_or("its event id was used before")
                    );
                }
            }
            if answer["more"] == true {
                eprintln!("there are more; run it again");
            }
        }
        DeadLetterCommand::Drop { id, reason, target } => {
            let path = format!("/api/v1/dead-letters/{id}/drop");
            Client::new(&target)?.call("POST", &path, Some(&json!({"reason": reason})))?;
            eprintln!("dead letter {id} is dropped");
        }
    }
    Ok(ExitCode::SUCCESS)
}
