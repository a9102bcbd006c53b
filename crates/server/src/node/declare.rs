//! Declaring: statements are checked, appended to `_system`, and then take effect. At a start the same
//! statements are replayed in the same order.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use anyhow::{Context, anyhow};
use highwater_event::{Principal, StreamName, StreamPartition};
use highwater_log::dead_letter::{self, DEAD_LETTERS, LATE_EVENTS};
use highwater_log::{AppendError, Commit};
use highwater_sql::catalog::Planned;
use highwater_sql::{Catalog, SqlError, Statement, parse_script};
use serde::Serialize;

use super::Node;
use super::system::{self, Command, SYSTEM};
use crate::http::BUILT_IN_PATHS;

/// A script with the files that its statements name.
#[derive(Debug, Clone, Default)]
pub struct Script {
    /// Its text.
    pub text: String,
    /// Content by the name that the statements use.
    pub files: BTreeMap<String, String>,
}

/// What became of one statement.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct Outcome {
    /// "stream", "table", "reference table", "endpoint".
    pub kind: &'static str,
    /// Name or path.
    pub name: String,
    /// "created", "replaced" or "unchanged".
    pub outcome: &'static str,
}

/// Nothing of the script took effect.
#[derive(Debug, thiserror::Error)]
pub enum DeclareError {
    /// A statement is wrong.
    #[error("{}", .error.message)]
    Sql {
        /// What is wrong; places are relative to the script.
        error: SqlError,
        /// The script.
        script: String,
    },
    /// The log refused.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// A fault of the program or the disk.
    #[error("{0}")]
    Start(String),
}

impl Node {
    pub(super) async fn declare_builtin(self: &Arc<Self>) -> anyhow::Result<()> {
        let mut catalog = Catalog::default();
        let builtin = [
            system::system_schema(),
            system::events_schema(),
            dead_letter::schema(DEAD_LETTERS),
            dead_letter::schema(LATE_EVENTS),
        ];
        for schema in builtin {
            catalog.add_builtin(schema);
        }
        let streams: Vec<_> = catalog.streams.values().cloned().collect();
        *self.catalog.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(catalog);
        for entry in streams {
            self.start_stream(&entry).await?;
        }
        Ok(())
    }

    pub(super) async fn replay_declarations(self: &Arc<Self>) -> anyhow::Result<()> {
        let at = StreamPartition::new(StreamName::system(SYSTEM), 0);
        let mut next = 0;
        while next < self.log.end(&at) {
            let batches =
                self.log.read(&at, next, 1024).context("the declarations can't be read from the log")?;
            for batch in batches {
                let Some(batch) = batch.from_offset(next) else { continue };
                next = batch.end();
                for command in system::commands(&batch) {
                    // One statement that does not fit any more must not keep the others from running.
                    if let Err(error) = self.replay(command).await {
                        tracing::error!(error = format!("{error:#}"), "a declaration is left out");
                    }
                }
            }
        }
        Ok(())
    }

    async fn replay(self: &Arc<Self>, command: Command) -> anyhow::Result<()> {
        let failed = |error: SqlError| {
            anyhow!("a declaration in the log can't be applied any more: {}\n{}", error.message, command.text)
        };
        let mut catalog = self.catalog().as_ref().clone();
        for declared in parse_script(&command.text).map_err(failed)? {
            let planned = catalog.plan(&self.engine, declared, command.csv.clone()).await.map_err(failed)?;
            catalog.insert(&self.engine, planned.clone());
            *self.catalog.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(catalog.clone());
            self.start(&planned).await?;
        }
        Ok(())
    }

    /// Checks a script as a whole and, unless `dry_run`, makes it take effect in one commit.
    /// Goes on to its end when the caller goes away: a statement that is in the log must take effect.
    pub async fn declare(
        self: &Arc<Self>,
        script: &Script,
        principal: &Principal,
        dry_run: bool,
    ) -> Result<Vec<Outcome>, DeclareError> {
        let (node, script, principal) = (self.clone(), script.clone(), principal.clone());
        let declared = tokio::spawn(async move { node.declare_now(&script, &principal, dry_run).await });
        declared.await.unwrap_or_else(|error| Err(DeclareError::Start(error.to_string())))
    }

    async fn declare_now(
        self: &Arc<Self>,
        script: &Script,
        principal: &Principal,
        dry_run: bool,
    ) -> Result<Vec<Outcome>, DeclareError> {
        let _one_at_a_time = self.declaring.lock().await;
        let before = self.catalog();
        let checked = self.check(&before, script).await;
        let (catalog, planned, outcomes, commands) = match checked {
            Ok(checked) if !dry_run => checked,
            other => {
                // Checking put new versions of reference tables in place; take them back.
                for entry in before.references.values() {
                    self.engine.references().put(entry.table.clone());
                }
                return other.map(|(_, _, outcomes, _)| outcomes);
            }
        };
        if commands.is_empty() {
            return Ok(outcomes);
        }
        let append = system::append(&commands, &principal.name, self.clock.now_micros())
            .map_err(|error| DeclareError::Start(error.to_string()))?;
        self.log.append(Commit { appends: vec![append], advances: Vec::new() }).await?;
        *self.catalog.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(catalog);
        for planned in &planned {
            self.start(planned).await.map_err(|error| DeclareError::Start(format!("{error:#}")))?;
        }
        Ok(outcomes)
    }

    async fn check(
        &self,
        before: &Catalog,
        script: &Script,
    ) -> Result<(Catalog, Vec<Planned>, Vec<Outcome>, Vec<Command>), DeclareError> {
        let wrong = |error: SqlError| DeclareError::Sql { error, script: script.text.clone() };
        let mut catalog = before.clone();
        let mut planned = Vec::new();
        let mut outcomes = Vec::new();
        let mut commands = Vec::new();
        for declared in parse_script(&script.text).map_err(wrong)? {
            let (kind, name) = (declared.statement.kind(), declared.statement.name().to_owned());
            let csv = match &declared.statement {
                Statement::CreateReferenceTable { csv, .. } => script.files.get(csv).cloned(),
                Statement::CreateEndpoint { path, .. } if BUILT_IN_PATHS.contains(&path.as_str()) => {
                    return Err(wrong(SqlError::new(
                        "already_exists",
                        format!("{path} is a path of the engine's own"),
                    )));
                }
                _ => None,
            };
            let known = match kind {
                "endpoint" => catalog.endpoints.contains_key(&name),
                _ => StreamName::new(&name).is_ok_and(|name| catalog.references.contains_key(&name)),
            };
            let command = Command { text: declared.text.clone(), csv: csv.clone() };
            let plan = catalog.plan(&self.engine, declared, csv).await.map_err(wrong)?;
            let outcome = match plan {
                Planned::Unchanged => "unchanged",
                _ if known => "replaced",
                _ => "created",
            };
            if outcome != "unchanged" {
                catalog.insert(&self.engine, plan.clone());
                planned.push(plan);
                commands.push(command);
            }
            outcomes.push(Outcome { kind, name, outcome });
        }
        Ok((catalog, planned, outcomes, commands))
    }
}
