//! `highwater job`: what takes long, how far it is, and what begins it by the clock.

use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use serde_json::{Map, Value, json};

use super::client::Client;
use super::read::{encode, objects, parse};
use super::send::{Progress, Unit};
use super::{Failure, Output, Target, output};

/// Time between two looks at a job that is followed.
const LOOK: Duration = Duration::from_millis(500);

#[derive(Debug, Subcommand)]
pub enum JobCommand {
    /// The newest jobs.
    List {
        /// unapproved, waiting, running, finished, failed or cancelled.
        #[arg(long)]
        state: Option<String>,
        /// The kind of work.
        #[arg(long)]
        kind: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 50)]
        limit: usize,
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
    /// One job, and what became of it.
    Show {
        /// Its id.
        id: String,
        #[command(flatten)]
        target: Target,
    },
    /// Begin one: replay, retry_dead_letters, maintenance, retention or verify.
    Submit {
        /// The kind of work.
        kind: String,
        /// What it is told, as a JSON object.
        #[arg(long, default_value = "{}")]
        input: String,
        /// Wait until it has ended, and show how far it is.
        #[arg(long)]
        follow: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Wait until a job has ended, and show how far it is. Exit code 3 when it failed or was cancelled, 8 when `verify` has
    /// found something that is not as it was written.
    Follow {
        /// Its id.
        id: String,
        #[command(flatten)]
        target: Target,
    },
    /// Approve a job of somebody else that waits for a second person.
    Approve {
        /// Its id.
        id: String,
        #[command(flatten)]
        target: Target,
    },
    /// Ask for a job to end.
    Cancel {
        /// Its id.
        id: String,
        #[command(flatten)]
        target: Target,
    },
    /// The schedules, with the time that each is due next.
    Schedules {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
}

fn path(id: &str) -> String {
    format!("/api/v1/jobs/{}", encode(id))
}

/// `highwater job`.
pub fn job(command: JobCommand) -> Result<ExitCode, Failure> {
    match command {
        JobCommand::List { state, kind, limit, target, output } => {
            let mut path = format!("/api/v1/jobs?limit={limit}");
            for (name, value) in [("state", state), ("kind", kind)] {
                if let Some(value) = value {
                    path.push_str(&format!("&{name}={}", encode(&value)));
                }
            }
            let answer = parse(&Client::new(&target)?.get(&path)?)?;
            let columns =
                ["id", "kind", "state", "done", "of", "attempts", "principal", "submitted_at", "changed_at"];
            output::print(output.output, &columns.map(str::to_owned), &objects(&answer["jobs"]))?;
            Ok(ExitCode::SUCCESS)
        }
        JobCommand::Show { id, target } => {
            let answer = parse(&Client::new(&target)?.get(&path(&id))?)?;
            println!("{}", serde_json::to_string_pretty(&answer).unwrap_or_default());
            Ok(ExitCode::SUCCESS)
        }
        JobCommand::Submit { kind, input, follow, target } => {
            let input: Map<String, Value> = serde_json::from_str(&input).map_err(|error| {
                Failure::new("malformed_json", format!("--input is not a JSON object: {error}")).exit(2)
            })?;
            let client = Client::new(&target)?;
            let wanted = json!({"kind": kind, "input": input});
            let answer = parse(&client.call("POST", "/api/v1/jobs", Some(&wanted))?)?;
            let id = answer["id"].as_str().unwrap_or_default();
            if follow {
                return watch(&client, id);
            }
            println!("{id}");
            Ok(ExitCode::SUCCESS)
        }
        JobCommand::Follow { id, target } => watch(&Client::new(&target)?, &id),
        JobCommand::Approve { id, target } => {
            Client::new(&target)?.call("POST", &format!("{}/approve", path(&id)), None)?;
            eprintln!("{id} will be begun");
            Ok(ExitCode::SUCCESS)
        }
        JobCommand::Cancel { id, target } => {
            Client::new(&target)?.call("POST", &format!("{}/cancel", path(&id)), None)?;
            eprintln!("{id} ends after the part that it is at");
            Ok(ExitCode::SUCCESS)
        }
        JobCommand::Schedules { target, output } => {
            let answer = parse(&Client::new(&target)?.get("/api/v1/schedules")?)?;
            let columns = ["name", "cron", "time_zone", "missed", "job", "next"];
            output::print(output.output, &columns.map(str::to_owned), &objects(&answer["schedules"]))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Shows how far a job is until it has ended, then its result.
pub(super) fn watch(client: &Client, id: &str) -> Result<ExitCode, Failure> {
    let mut progress: Option<(Progress, u64)> = None;
    let mut told = false;
    loop {
        let job = parse(&client.get(&path(id))?)?;
        if job["state"] == "unapproved" && !std::mem::replace(&mut told, true) {
            eprintln!("{id} waits until somebody else approves it: highwater job approve {id}");
        }
        let done = job["done"].as_u64().unwrap_or(0);
        let (bar, seen) =
            progress.get_or_insert_with(|| (Progress::new(job["of"].as_u64(), id, Unit::Events), 0));
        bar.advance(done.saturating_sub(*seen));
        *seen = done.max(*seen);
        let ended = match job["state"].as_str() {
            Some("finished") => ExitCode::SUCCESS,
            Some("failed" | "cancelled") => ExitCode::from(3),
            _ => {
                std::thread::sleep(LOOK);
                continue;
            }
        };
        bar.finish();
        let said = if job["state"] == "failed" { &job["error"] } else { &job["said"] };
        println!("{}", json!({"id": id, "state": job["state"], "said": said}));
        // What `verify` has found wrong is not a job that failed.
        let damaged = job["kind"] == "verify" && said["whole"] == false;
        return Ok(if damaged { ExitCode::from(8) } else { ended });
    }
}
