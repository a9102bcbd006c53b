//! Acts on a data folder that no node runs on: the first administrator, above all.

use std::path::Path;

use anyhow::{Context, bail};
use highwater_auth::directory::Applied;
use highwater_auth::{Credentials, Directory};
use highwater_event::Principal;
use highwater_log::audit::{self, Entry};
use highwater_log::{Commit, Journal, JournalOptions, Log, Machine};

use super::people::apply_commands;
use super::system::{self, Command};
use super::{keys, secrets};

/// Changes the directory of a folder, with its entry of the trail in the same commit.
pub async fn change(
    data: &Path,
    master_key: Option<&Path>,
    given: Credentials,
    action: &str,
    resource: String,
) -> anyhow::Result<Applied> {
    let machine = Machine::real();
    secrets::make_folder(data)?;
    let vault = keys::open_vault(data, master_key, &machine)?;
    let log = JournalOptions { vault: Some(vault), ..JournalOptions::at(data.join("log")) };
    let journal = Journal::open(log, &machine)
        .context("the log can't be opened; a node that runs on it is asked with its own token")?;
    let at = system::partition();
    if journal.start(&at) > 0 {
        bail!("old commands are in the lake only: start the node, and do this while it runs");
    }
    let mut directory = Directory::default();
    let mut next = 0;
    while next < journal.end(&at) {
        for batch in journal.read(&at, next, 1024)? {
            let Some(batch) = batch.from_offset(next) else { continue };
            next = batch.end();
            apply_commands(&batch, |given, by, at| directory.apply(given, by, at));
        }
    }
    if directory.check(&given)? == Applied::Unchanged {
        return Ok(Applied::Unchanged);
    }
    let principal = Principal::operator();
    let now = machine.clock.now_micros();
    let mut entry = Entry {
        at: now,
        actor: principal.name.clone(),
        credential: "folder".into(),
        tenant: principal.tenant.clone(),
        action: action.into(),
        resource,
        method: "highwater".into(),
        ..Entry::default()
    };
    machine.randomness.fill(&mut entry.salt)?;
    let command = Command::people(&given)?;
    let appends = vec![system::append(&[command], &principal.name, now)?, audit::append(&[entry])?];
    journal.append(Commit { appends, ..Commit::default() }).await?;
    let applied = directory.apply(&given, &principal.name, now)?;
    journal.close();
    Ok(applied)
}
