//! Declaring: statements are checked, appended to `_system`, and then take effect. At a start the same
//! statements are replayed in the same order.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use anyhow::{Context, anyhow};
use highwater_audit::SignedNote;
use highwater_auth::Policies;
use highwater_auth::policy::InvalidPolicy;
use highwater_event::{Principal, StreamName};
use highwater_ingest::{Submission, infer};
use highwater_log::dead_letter::{self, DEAD_LETTERS, LATE_EVENTS};
use highwater_log::{AppendError, Commit};
use highwater_sql::catalog::Planned;
use highwater_sql::dialect::Rule;
use highwater_sql::stream::Step;
use highwater_sql::{Catalog, SqlError, Statement, parse_script};
use serde::Serialize;

use super::compare::Compared;
use super::system::{self, Command, CommandKind};
use super::trail::Leaf;
use super::views::Place;
use super::{Node, statement};
use crate::http::is_built_in;

/// A script with the files that its statements name.
#[derive(Debug, Clone, Default)]
pub struct Script {
    /// Its text.
    pub text: String,
    /// Content by the name that the statements use.
    pub files: BTreeMap<String, String>,
}

/// What became of one statement.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// "stream", "table", "reference table", "endpoint".
    pub kind: &'static str,
    /// Name or path.
    pub name: String,
    /// "created", "replaced", "unchanged", "building" (a new version beside the old one), "altered",
    /// "dropped", "paused", "resumed" or "abandoned".
    pub outcome: &'static str,
    /// How it is kept up; for EXPLAIN.
    #[serde(skip)]
    pub steps: Vec<Step>,
}

/// A script that has been checked: the catalog after it, its plans each with the catalog before it, what
/// became of each statement, and the commands that are to be logged.
type Checked = (Catalog, Vec<(Arc<Catalog>, Planned)>, Vec<Outcome>, Vec<Command>);

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

/// The policies that were declared: name and text.
fn written(catalog: &Catalog) -> impl Iterator<Item = (&StreamName, &str)> {
    catalog.rules.iter().filter_map(|(name, entry)| match &entry.rule {
        Rule::Policy { text } => Some((name, text.as_str())),
        Rule::RowFilter { .. } | Rule::ColumnMask { .. } => None,
    })
}

/// Those that every node has, and those that were declared.
fn policies_of(catalog: &Catalog) -> Result<Policies, InvalidPolicy> {
    let declared = written(catalog).map(|(name, text)| (name.to_string(), text.to_owned()));
    Policies::new(&declared.collect::<Vec<_>>())
}

impl Node {
    pub(super) async fn declare_builtin(self: &Arc<Self>) -> anyhow::Result<()> {
        let mut catalog = Catalog::default();
        let builtin = [
            system::system_schema(),
            system::events_schema(),
            dead_letter::schema(DEAD_LETTERS),
            dead_letter::schema(LATE_EVENTS),
            super::letters::schema(),
            super::jobs::schema(),
            super::models::schema(),
            highwater_log::idle::schema(),
            highwater_log::audit::schema(),
            highwater_audit::pruned::schema(),
        ];
        for schema in builtin {
            catalog.add_builtin(schema);
        }
        let streams: Vec<_> = catalog.streams.values().cloned().collect();
        self.put_catalog(catalog, None);
        for entry in streams {
            self.start_stream(&entry, Place::Current).await?;
        }
        self.start_tree();
        Ok(())
    }

    fn put_catalog(&self, catalog: Catalog, policies: Option<Policies>) {
        // Before what they are about is there for anybody.
        if let Some(policies) = policies {
            self.people.govern(policies);
        }
        *self.catalog.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(catalog);
        // After it: what is read under a new number is read by new rules.
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// Brings the catalog to where the commands in the log leave it, then starts what it holds.
    pub(super) async fn replay_declarations(self: &Arc<Self>) -> anyhow::Result<()> {
        let at = system::partition();
        let builtin = self.catalog();
        let mut catalog = builtin.as_ref().clone();
        let mut next = 0;
        while next < self.log.end(&at) {
            let batches =
                self.log.read(&at, next, 1024).context("the declarations can't be read from the log")?;
            for batch in batches {
                let Some(batch) = batch.from_offset(next) else { continue };
                next = batch.end();
                self.people.replay(&batch);
                for command in system::commands(&batch) {
                    // One statement that does not fit any more must not keep the others from running.
                    if let Err(error) = self.replay(&mut catalog, command).await {
                        tracing::error!(error = format!("{error:#}"), "a declaration is left out");
                    }
                }
            }
        }
        statement::finish_key_change(&self.options.data, &self.tree)?;
        // Without a policy that forbids something it would be allowed: there is no start without all of them.
        let policies = policies_of(&catalog).map_err(|error| anyhow!(error.to_string()))?;
        self.put_catalog(catalog.clone(), Some(policies));
        // All lakes first: views may have to read old rows from them.
        for (name, entry) in &catalog.streams {
            if !builtin.streams.contains_key(name) && entry.schema.options.lake {
                self.start_lake(&entry.schema, Place::Current).await?;
            }
        }
        for (name, entry) in &catalog.streams {
            if !builtin.streams.contains_key(name) {
                self.start_stream(entry, Place::Current).await?;
            }
        }
        for entry in catalog.tables.values() {
            self.start_table(entry)?;
        }
        for building in catalog.building.values() {
            self.start_building(building).await?;
        }
        for name in &catalog.paused {
            self.pause(&catalog, name, true).await;
        }
        Ok(())
    }

    async fn replay(self: &Arc<Self>, catalog: &mut Catalog, command: Command) -> anyhow::Result<()> {
        let failed = |error: SqlError| {
            anyhow!("a declaration in the log can't be applied any more: {}\n{}", error.message, command.text)
        };
        if command.kind == CommandKind::State {
            return Ok(self.tree.stated(SignedNote::parse(&command.text)?)?);
        }
        if command.kind == CommandKind::Swap {
            if let Some(swapped) =
                StreamName::new(&command.text).ok().and_then(|root| catalog.plan_swap(&root))
            {
                catalog.insert(&self.engine, swapped);
            }
            return Ok(());
        }
        for declared in parse_script(&command.text).map_err(failed)? {
            let planned = catalog.plan(&self.engine, declared, command.csv.clone()).await.map_err(failed)?;
            catalog.insert(&self.engine, planned);
        }
        Ok(())
    }

    /// Adds the columns that events bring to a stream that learns its columns from them.
    pub async fn learn(self: &Arc<Self>, submission: &Submission) -> Result<(), DeclareError> {
        let inferred = |node: &Self| {
            let entry = node.catalog().streams.get(&submission.stream.at_version(1)).cloned();
            entry.filter(|entry| entry.schema.options.inferred)
        };
        let mut before = usize::MAX;
        loop {
            let Some(entry) = inferred(self) else { return Ok(()) };
            let columns = infer::new_columns(&entry.schema, &submission.body, submission.format);
            if columns.is_empty() {
                return Ok(());
            }
            // A statement may have so many words.
            let some = &columns[..columns.len().min(400)];
            match self.add_columns(&entry.schema.name, some).await {
                // Another call has brought some of the same columns a moment before.
                Err(DeclareError::Sql { .. }) if columns.len() < before => {}
                added => added?,
            }
            before = columns.len();
        }
    }

    async fn add_columns(
        self: &Arc<Self>,
        stream: &StreamName,
        columns: &[(String, &str)],
    ) -> Result<(), DeclareError> {
        let added: Vec<String> =
            columns.iter().map(|(name, data_type)| format!("ADD COLUMN \"{name}\" {data_type}")).collect();
        let text = format!("ALTER STREAM {} {}", stream.public(), added.join(", "));
        let leaf = self.leaf(&Principal::engine(), "declare", format!("stream:{}", stream.public()));
        // In a box: almost no call comes this far, and none should carry what it takes.
        Box::pin(self.declare(&Script { text, files: BTreeMap::new() }, &leaf, false)).await.map(|_| ())
    }

    /// The new version of a statement takes the names, when it is still being built.
    pub(super) async fn swap(
        self: &Arc<Self>,
        root: &StreamName,
        comparison: &[Compared],
    ) -> anyhow::Result<()> {
        let _one_at_a_time = self.declaring.lock().await;
        let before = self.catalog();
        let Some(swapped) = before.plan_swap(root) else { return Ok(()) };
        let comparison = serde_json::to_string(comparison).ok();
        let command = Command { comparison, ..Command::new(CommandKind::Swap, root.to_string()) };
        let leaf = self.leaf(&Principal::engine(), "declare", format!("statement:{root}"));
        let append = system::append(&[command], &leaf.entry.actor, self.machine.clock.now_micros())?;
        self.log.append(Commit { appends: vec![append, leaf.append()?], ..Commit::default() }).await?;
        let mut catalog = before.as_ref().clone();
        catalog.insert(&self.engine, swapped.clone());
        self.put_catalog(catalog, None);
        self.start(&before, &swapped).await
    }

    /// Checks a script as a whole and, unless `dry_run`, makes it take effect in one commit.
    /// `leaf` goes into the same commit. Goes on to its end when the caller goes away: a statement that is in the log must take effect.
    pub async fn declare(
        self: &Arc<Self>,
        script: &Script,
        leaf: &Leaf,
        dry_run: bool,
    ) -> Result<Vec<Outcome>, DeclareError> {
        let (node, script, leaf) = (self.clone(), script.clone(), leaf.clone());
        let declare = async move { node.declare_now(&script, leaf, dry_run).await };
        let declared = self.machine.scheduler.complete(declare).await;
        declared.unwrap_or_else(|error| Err(DeclareError::Start(error.to_string())))
    }

    async fn declare_now(
        self: &Arc<Self>,
        script: &Script,
        mut leaf: Leaf,
        dry_run: bool,
    ) -> Result<Vec<Outcome>, DeclareError> {
        let _one_at_a_time = self.declaring.lock().await;
        let before = self.catalog();
        let checked = self.check(&before, script).await.and_then(|checked| {
            let governed = written(&before).ne(written(&checked.0));
            let policies = governed.then(|| policies_of(&checked.0)).transpose();
            let wrong = |error: InvalidPolicy| DeclareError::Sql {
                error: SqlError::new("invalid_policy", error.to_string())
                    .hint("`highwater policy show` prints the policies that every node has, and what they may speak of"),
                script: script.text.clone(),
            };
            Ok((checked, policies.map_err(wrong)?))
        });
        let ((catalog, planned, outcomes, commands), policies) = match checked {
            Ok(checked) if !dry_run => checked,
            other => {
                // Checking put new versions of reference tables in place; take them back.
                for entry in before.references.values() {
                    self.engine.references().put(entry.table.clone());
                }
                return other.map(|((_, _, outcomes, _), _)| outcomes);
            }
        };
        if commands.is_empty() {
            return Ok(outcomes);
        }
        tracing::debug!(statements = commands.len(), principal = %leaf.entry.actor, "declared");
        let append = system::append(&commands, &leaf.entry.actor, self.machine.clock.now_micros())
            .map_err(|error| DeclareError::Start(error.to_string()))?;
        leaf.entry.seen = serde_json::to_string(&outcomes).ok();
        self.log.append(Commit { appends: vec![append, leaf.append()?], ..Commit::default() }).await?;
        leaf.settle();
        self.put_catalog(catalog, policies);
        self.jobs.look();
        // They are in the log: one that can't be started must not keep the others from it.
        let mut failed = None;
        for (before, planned) in &planned {
            if let Err(error) = self.start(before, planned).await {
                tracing::error!(
                    error = format!("{error:#}"),
                    "a statement was taken but could not be started; it is tried again at the next start"
                );
                failed.get_or_insert(error);
            }
        }
        match failed {
            Some(error) => Err(DeclareError::Start(format!("{error:#}"))),
            None => Ok(outcomes),
        }
    }

    /// A schedule must begin something that there is.
    fn check_job(&self, statement: &Statement) -> Result<(), SqlError> {
        let (Statement::CreateSchedule { schedule, .. }, kinds) = (statement, self.jobs.kinds()) else {
            return Ok(());
        };
        // None are known before the node is up: then a pack is declared that was taken before.
        if kinds.is_empty() || kinds.contains(&schedule.job.as_str()) {
            return Ok(());
        }
        let error = SqlError::new("unknown_job", format!("there is no job \"{}\"", schedule.job));
        Err(match highwater_event::name::nearest(&schedule.job, kinds.iter().copied()) {
            Some(near) => error.hint(format!("did you mean {near}?")),
            None => error.hint(format!("there are {}", kinds.join(", "))),
        })
    }

    async fn check(&self, before: &Catalog, script: &Script) -> Result<Checked, DeclareError> {
        let wrong = |error: SqlError| DeclareError::Sql { error, script: script.text.clone() };
        let mut catalog = before.clone();
        let mut planned = Vec::new();
        let mut outcomes = Vec::new();
        let mut commands = Vec::new();
        for declared in parse_script(&script.text).map_err(wrong)? {
            let (kind, name) = (declared.statement.kind(), declared.statement.name().to_owned());
            self.check_job(&declared.statement).map_err(wrong)?;
            let csv = match &declared.statement {
                Statement::CreateReferenceTable { csv, .. } => script.files.get(csv).cloned(),
                Statement::CreateEndpoint { path, .. } | Statement::CreateIntake { path, .. }
                    if is_built_in(path) =>
                {
                    return Err(wrong(SqlError::new(
                        "already_exists",
                        format!("{path} is a path of the engine's own"),
                    )));
                }
                _ => None,
            };
            let known = match kind {
                _ if let Statement::CreateIntake { method, path, .. } = &declared.statement => {
                    catalog.intakes.contains_key(&(*method, path.clone()))
                }
                "endpoint" => catalog.endpoints.contains_key(&name),
                "model" => StreamName::new(&name).is_ok_and(|name| catalog.models.contains_key(&name)),
                "schedule" => StreamName::new(&name).is_ok_and(|name| catalog.schedules.contains_key(&name)),
                "row filter" | "column mask" | "policy" => {
                    StreamName::new(&name).is_ok_and(|name| catalog.rules.contains_key(&name))
                }
                _ => StreamName::new(&name).is_ok_and(|name| catalog.references.contains_key(&name)),
            };
            let command =
                Command { csv: csv.clone(), ..Command::new(CommandKind::Declare, declared.text.clone()) };
            let plan = catalog.plan(&self.engine, declared, csv).await.map_err(wrong)?;
            let outcome = match plan {
                Planned::Unchanged => "unchanged",
                Planned::Building(_) => "building",
                Planned::Altered(_) => "altered",
                Planned::Dropped(..) => "dropped",
                Planned::Paused(_) => "paused",
                Planned::Resumed(_) => "resumed",
                Planned::Abandoned(_) => "abandoned",
                _ if known => "replaced",
                _ => "created",
            };
            outcomes.push(Outcome { kind, name, outcome, steps: plan.explain() });
            if outcome != "unchanged" {
                let before = Arc::new(catalog.clone());
                catalog.insert(&self.engine, plan.clone());
                planned.push((before, plan));
                commands.push(command);
            }
        }
        Ok((catalog, planned, outcomes, commands))
    }
}
