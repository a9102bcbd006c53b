//! `highwater erase`: forgets a person.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::client::Client;
use super::jobs::watch;
use super::read::parse;
use super::{Failure, Target};

#[derive(Debug, Args)]
pub struct EraseArgs {
    /// The person, as the column says it that streams name as their `subject`.
    #[arg(long)]
    subject: String,
    /// In this tenant only.
    #[arg(long)]
    tenant: Option<String>,
    /// Why; it is kept, so it must not say who it is about.
    #[arg(long)]
    reason: Option<String>,
    /// Print the id of the job instead of waiting for the receipt.
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    target: Target,
}

/// `highwater erase`.
pub fn erase(arguments: EraseArgs) -> Result<ExitCode, Failure> {
    let EraseArgs { subject, tenant, reason, no_wait, target } = arguments;
    let client = Client::new(&target)?;
    let asked = json!({"subject": subject, "tenant": tenant, "why": reason});
    let answer = parse(&client.call("POST", "/api/v1/erasures", Some(&asked))?)?;
    let job = answer["job_id"].as_str().unwrap_or_default();
    if no_wait {
        println!("{job}");
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("the receipt names the person by {}", answer["subject"].as_str().unwrap_or_default());
    watch(&client, job)
}
