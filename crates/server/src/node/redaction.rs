//! Taking a person's name out of what the engine has written down of acts: questions, paths, bodies, what jobs were told.
//!
//! Entries of the audit trail are about whoever acted, so they stay; what names the person in them goes, and a statement that the
//! log's keys sign says in which, in one commit with the entry of the erasure and before anything is changed. Segments of
//! the log and files of the lake that hold such rows are written anew, and the old ones removed. All of it is safe to begin
//! again.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::Int64Type;
use arrow::error::ArrowError;
use highwater_audit::{Entries, Said, Tree, leaf};
use highwater_event::{Offset, StreamName, StreamPartition, columns};
use highwater_lake::Moment;
use highwater_log::Log;
use highwater_log::audit::{AUDIT, SEAL};
use highwater_log::reader::each_batch;
use highwater_privacy::Name;

use super::jobs::JOBS;
use super::trail::Leaf;
use super::{Node, RESOLUTIONS};

/// Streams in which others are named, and the columns that may do so. What says who acted is about them.
const TOLD: [(&str, &[&str]); 3] = [
    (AUDIT, &["resource", "path", "request_id", "body", "seen"]),
    (JOBS, &["detail"]),
    (RESOLUTIONS, &["reason"]),
];
/// Entries that one statement names.
const TOGETHER: usize = 4096;
/// How often new rows with the name are looked for again.
const ROUNDS: usize = 4;
/// How often and how many times the lake is looked at until it has come to where the log is.
const LOOK: Duration = Duration::from_millis(100);
const LOOKS: usize = 600;

/// The streams from which a name is to be taken: those that tell of acts, and what is derived from them.
pub fn told(node: &Node) -> Vec<StreamName> {
    let catalog = node.catalog();
    let mut names: Vec<StreamName> = TOLD.iter().map(|(name, _)| StreamName::system(name)).collect();
    let derived = names.iter().flat_map(|name| catalog.derived_from(name));
    let derived: BTreeSet<StreamName> = derived
        .filter_map(|name| catalog.streams.get(&name).map(|entry| entry.schema.name.clone()))
        .collect();
    names.extend(derived);
    names
}

/// What is looked for, and where.
struct Search {
    stream: StreamName,
    name: Arc<Name>,
    /// Jobs that have not ended: what they were told is still needed.
    going: BTreeSet<Arc<str>>,
}

/// Whether a row may be changed, by its place.
type Wanted<'a> = dyn Fn(Offset) -> bool + 'a;

impl Search {
    fn new(node: &Node, stream: StreamName, name: Arc<Name>) -> Self {
        let going = node.jobs.list(|job| !job.state.is_end()).into_iter().map(|job| job.id).collect();
        Self { stream, name, going }
    }

    fn is_searched(&self, column: &str) -> bool {
        let told = TOLD.iter().find(|(name, _)| *name == self.stream.as_str());
        told.map_or(!column.starts_with('_'), |(_, columns)| columns.contains(&column))
    }

    /// Whether a row is kept as it is, whatever it says: the seals of events, which lead to their proofs, and what jobs need
    /// that go on.
    fn is_kept(&self, rows: &RecordBatch, row: usize) -> bool {
        let says = |column: &str| {
            let texts = rows.column_by_name(column)?.as_string_opt::<i32>()?;
            texts.is_valid(row).then(|| texts.value(row))
        };
        match self.stream.as_str() {
            AUDIT => says("action") == Some(SEAL),
            JOBS => says("job").is_some_and(|job| self.going.contains(job)),
            _ => false,
        }
    }

    /// Rows without the name; `None` when they stay as they are. Of the trail only those are changed of which that was stated,
    /// and those past their retention that still lie beside others: nobody reads them.
    fn edited(
        &self,
        tree: &Tree,
        rows: &RecordBatch,
        place: &dyn Fn(usize) -> Offset,
    ) -> Result<Option<RecordBatch>, ArrowError> {
        let pruned = tree.pruned();
        let wanted = |entry| !is_trail(&self.stream) || tree.is_erased(entry) || entry < pruned;
        Ok(self.taken_out(rows, place, &wanted)?.map(|(rows, _)| rows))
    }

    /// Rows without the name, and which of them held it; `None` when none did.
    fn taken_out(
        &self,
        rows: &RecordBatch,
        place: &dyn Fn(usize) -> Offset,
        wanted: &Wanted<'_>,
    ) -> Result<Option<(RecordBatch, Vec<usize>)>, ArrowError> {
        let mut changed = BTreeSet::new();
        let mut columns: Vec<ArrayRef> = rows.columns().to_vec();
        for (field, column) in rows.schema_ref().fields().iter().zip(&mut columns) {
            let Some(texts) = column.as_string_opt::<i32>().filter(|_| self.is_searched(field.name())) else {
                continue;
            };
            let mut left: Vec<(usize, String)> = Vec::new();
            for row in (0..texts.len()).filter(|row| texts.is_valid(*row)) {
                let text = texts.value(row);
                let without = if text.starts_with(['{', '[']) {
                    self.name.taken_out_of_json(text)
                } else {
                    self.name.taken_out_of(text)
                };
                if let Some(without) = without
                    && wanted(place(row))
                    && !self.is_kept(rows, row)
                {
                    left.push((row, without));
                }
            }
            if left.is_empty() {
                continue;
            }
            changed.extend(left.iter().map(|(row, _)| *row));
            let mut left = left.into_iter().peekable();
            let texts = texts.iter().enumerate().map(|(row, text)| {
                let without = left.next_if(|(changed, _)| *changed == row).map(|(_, text)| text);
                without.or_else(|| text.map(str::to_owned))
            });
            *column = Arc::new(texts.collect::<StringArray>());
        }
        if changed.is_empty() {
            return Ok(None);
        }
        let mut left = RecordBatch::try_new(rows.schema(), columns)?;
        let changed: Vec<usize> = changed.into_iter().collect();
        if is_trail(&self.stream) {
            left = leaf::erased(rows, &left, &changed)
                .map_err(|error| ArrowError::ExternalError(error.into()))?;
        }
        Ok(Some((left, changed)))
    }

    /// The places of rows that hold the name.
    fn found_in(&self, log: &dyn Log) -> anyhow::Result<Vec<Offset>> {
        let (mut found, mut fault) = (Vec::new(), None);
        for partition in log.partitions(&self.stream) {
            let at = StreamPartition::new(self.stream.clone(), partition);
            each_batch(log, &at, &mut 0, &mut |batch| {
                let place = |row: usize| batch.base + row as Offset;
                match self.taken_out(&batch.rows, &place, &|_| true) {
                    Ok(Some((_, rows))) => found.extend(rows.into_iter().map(place)),
                    Ok(None) => {}
                    Err(error) => fault = Some(error),
                }
            })?;
        }
        fault.map_or(Ok(found), |error| Err(error.into()))
    }
}

impl Node {
    /// Takes a name out of a stream of those that [`told`] lists, in log and lake; answers out of how many rows. `leaf` begins the
    /// entry that says so.
    pub async fn take_out(
        self: &Arc<Self>,
        stream: &StreamName,
        name: &Arc<Name>,
        leaf: impl Fn() -> Leaf,
    ) -> anyhow::Result<usize> {
        let mut rows = 0;
        for round in 0..ROUNDS {
            let search = Arc::new(Search::new(self, stream.clone(), name.clone()));
            let (log, looking) = (self.log.clone(), search.clone());
            let found = self.machine.scheduler.work(move || looking.found_in(log.as_ref())).await??;
            // In the first round even then: what was begun before may have been cut short between log and lake.
            if found.is_empty() && round > 0 {
                break;
            }
            rows += found.len();
            if is_trail(stream) {
                self.state_erased(&found, &leaf).await?;
            }
            self.edit_log(&search).await?;
            self.edit_lake(&search).await?;
        }
        Ok(rows)
    }

    /// States that something is about to be taken out of entries.
    async fn state_erased(
        self: &Arc<Self>,
        found: &[Offset],
        leaf: &impl Fn() -> Leaf,
    ) -> anyhow::Result<()> {
        let new: Vec<Offset> = found.iter().copied().filter(|entry| !self.tree.is_erased(*entry)).collect();
        for entries in new.chunks(TOGETHER) {
            let said = Said::Erased(Entries::of(entries.iter().copied()));
            let note = self.tree.state_that(said, self.machine.clock.now_micros(), None);
            let mut leaf = leaf();
            leaf.entry.seen = Some(serde_json::json!({"entries": entries.len()}).to_string());
            self.state(note, &leaf).await?;
        }
        Ok(())
    }

    async fn edit_log(self: &Arc<Self>, search: &Arc<Search>) -> anyhow::Result<()> {
        self.journal.close_segment().await?;
        let (node, search) = (self.clone(), search.clone());
        let edit = move || {
            let streams = [search.stream.clone()];
            node.journal
                .edit(&streams, &|_, base, rows| search.edited(&node.tree, rows, &|row| base + row as Offset))
        };
        let edited = self.machine.scheduler.work(edit).await??;
        tracing::info!(?edited, "took a name out of the log");
        Ok(())
    }

    async fn edit_lake(self: &Arc<Self>, search: &Arc<Search>) -> anyhow::Result<()> {
        let lake = self.lakes.read().unwrap_or_else(PoisonError::into_inner).get(&search.stream).cloned();
        let Some(lake) = lake else { return Ok(()) };
        // What the lake has not taken yet it takes from the log as it is now, unless it has read it before.
        let at = |partition| StreamPartition::new(search.stream.clone(), partition);
        let partitions = self.log.partitions(&search.stream).into_iter();
        let ends: Vec<_> = partitions.map(|partition| (partition, self.log.end(&at(partition)))).collect();
        for look in 0.. {
            let marks = lake.snapshot(Moment::Now).await?.marks;
            let mark = |partition| marks.get(partition).copied().unwrap_or(0);
            if ends.iter().all(|(partition, end)| mark(partition) >= *end) {
                break;
            }
            if look == LOOKS {
                bail!("the lake of {} is behind its log", search.stream);
            }
            self.machine.scheduler.sleep(LOOK).await;
        }
        let _no_swap = self.declaring.lock().await;
        let (node, search) = (self.clone(), search.clone());
        let edit = move |rows: &RecordBatch| {
            let offsets = rows
                .column_by_name(columns::OFFSET)
                .and_then(|column| column.as_primitive_opt::<Int64Type>());
            let offsets =
                offsets.ok_or_else(|| ArrowError::SchemaError("a file of the lake has no offsets".into()))?;
            search.edited(&node.tree, rows, &|row| offsets.value(row).unsigned_abs())
        };
        lake.edit(Arc::new(edit)).await.context("a name could not be taken out of the lake")?;
        Ok(())
    }
}

fn is_trail(stream: &StreamName) -> bool {
    stream.as_str() == AUDIT
}
