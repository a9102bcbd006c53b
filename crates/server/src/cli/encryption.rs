//! `highwater encryption`: the keys of SENSITIVE columns.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;

use super::client::Client;
use super::read::{objects, parse};
use super::{Failure, Output, Target, output};

#[derive(Debug, Subcommand)]
pub enum EncryptionCommand {
    /// The data keys and the name of the master key; never the keys themselves.
    Show {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
    /// Give every tenant a new data key: it encrypts from now on, and older ones still decrypt.
    Rotate {
        /// Wrap all data keys by a new master key instead.
        #[arg(long)]
        master: bool,
        #[command(flatten)]
        target: Target,
    },
}

/// `highwater encryption`.
pub fn encryption(command: EncryptionCommand) -> Result<ExitCode, Failure> {
    match command {
        EncryptionCommand::Show { target, output } => {
            let answer = parse(&Client::new(&target)?.get("/api/v1/keys/encryption")?)?;
            let columns = ["number", "tenant", "made_at", "encrypts"];
            output::print(output.output, &columns.map(str::to_owned), &objects(&answer["keys"]))?;
            eprintln!("wrapped by master key {}", answer["master"].as_str().unwrap_or_default());
        }
        EncryptionCommand::Rotate { master, target } => {
            let asked = json!({"master": master});
            let client = Client::new(&target)?;
            let answer = parse(&client.call("POST", "/api/v1/keys/encryption/rotate", Some(&asked))?)?;
            let keys = &answer["keys"];
            if master {
                eprintln!("{keys} keys are wrapped by a new master key");
            } else {
                eprintln!("{keys} new data keys encrypt from now on; older ones still decrypt");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
