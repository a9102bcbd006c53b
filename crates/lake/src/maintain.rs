//! Keeping a stream's table small and fast: compaction, retention, vacuum, and its history.
//!
//! Appends make many small files. Compaction writes the files of a day anew, newest rows first, and swaps
//! them in one commit that changes no data: readers of other versions, and other engines, see the same
//! rows before and after. Files that no version needs any more are removed by the vacuum, after the time
//! for which earlier versions can be read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use deltalake::kernel::Action;
use deltalake::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use deltalake::protocol::{DeltaOperation, checkpoints};
use deltalake::{DeltaTable, ensure_table_uri};
use futures::TryStreamExt;
use highwater_event::{Offset, columns};

use crate::stream::{LakeStream, State, newest_first};
use crate::{DAY_COLUMNS, LakeError, commit, write_files};

/// A day is compacted when so many of its files are small.
const SMALL_FILES: usize = 8;
/// A file below this many bytes is small.
const SMALL: u64 = 8 << 20;
/// How long readers may take to their end before files that must go are taken from them, and how often they are looked at.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);
/// About how many bytes one compaction reads; a day with more is compacted in parts.
const BATCH: u64 = 64 << 20;

/// What is to become of the rows of a file, as they are stored; `None` leaves them as they are.
pub type Edit = dyn Fn(&RecordBatch) -> Result<Option<RecordBatch>, ArrowError> + Send + Sync;

/// What a compaction did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Files before.
    pub removed: usize,
    /// Files after.
    pub added: usize,
}

/// A version of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Its number.
    pub version: u64,
    /// When it was committed, milliseconds UTC.
    pub committed_at: Option<i64>,
    /// What was done.
    pub operation: Option<String>,
}

/// A file of the newest version.
#[derive(Debug, Clone)]
struct DataFile {
    path: String,
    day: Vec<Option<String>>,
    size: u64,
    /// When its newest row was recorded, microseconds UTC.
    recorded_until: Option<i64>,
    /// Its newest row.
    last_offset: Option<Offset>,
}

/// What is past its retention: rows before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Past {
    /// When they were recorded, microseconds UTC.
    Recorded(i64),
    /// Their offsets, in a stream of one partition.
    Offset(Offset),
}

impl Past {
    /// True when all rows of a file are.
    fn is_over(self, file: &DataFile) -> bool {
        match self {
            Self::Recorded(before) => file.recorded_until.is_some_and(|until| until < before),
            Self::Offset(before) => file.last_offset.is_some_and(|last| last < before),
        }
    }
}

impl LakeStream {
    fn files(&self) -> Result<Vec<DataFile>, LakeError> {
        let state = self.current();
        let snapshot = state.table.snapshot()?;
        Ok(snapshot
            .log_data()
            .iter()
            .map(|file| {
                let values = file.partition_values_map();
                let stats = file.stats().and_then(|stats| serde_json::from_str(&stats).ok());
                let stats: serde_json::Value = stats.unwrap_or_default();
                let most = |column| &stats["maxValues"][column];
                DataFile {
                    path: file.path().to_string(),
                    day: DAY_COLUMNS.iter().map(|column| values.get(*column).cloned().flatten()).collect(),
                    size: file.size().max(0) as u64,
                    recorded_until: most(columns::RECORDED_AT).as_str().and_then(recorded_until),
                    last_offset: most(columns::OFFSET).as_u64(),
                }
            })
            .collect())
    }

    /// Writes small files of the same day together. Answers what was done; nothing when there was no need.
    pub async fn compact(self: &Arc<Self>) -> Result<Compacted, LakeError> {
        let _writing = self.writing.read().await;
        let mut days: BTreeMap<Vec<Option<String>>, Vec<DataFile>> = BTreeMap::new();
        for file in self.files()?.into_iter().filter(|file| file.size < SMALL) {
            days.entry(file.day.clone()).or_default().push(file);
        }
        let mut done = Compacted::default();
        for files in days.into_values().filter(|files| files.len() >= SMALL_FILES) {
            let mut part = Vec::new();
            let mut bytes = 0;
            for file in files {
                bytes += file.size;
                part.push(file.path);
                if bytes >= BATCH {
                    self.rewrite(std::mem::take(&mut part), &mut done).await?;
                    bytes = 0;
                }
            }
            if part.len() > 1 {
                self.rewrite(part, &mut done).await?;
            }
        }
        Ok(done)
    }

    /// Lets `edit` change rows in all files of the newest version, and removes what others could still be read from: the files
    /// that held them, earlier versions, and what the table's log says of both. `edit` gets the rows of a file as they are
    /// stored, and answers `None` when they stay as they are. Answers how many files were written anew; safe to begin again.
    pub async fn edit(self: &Arc<Self>, edit: Arc<Edit>) -> Result<usize, LakeError> {
        // Files that nobody is writing and no version has were left by a crash.
        let _nobody_writes = self.writing.write().await;
        let _alone = self.committing.lock().await;
        let state = self.current();
        let mut table = state.table.clone();
        let (mut adds, mut gone) = (Vec::new(), Vec::new());
        for file in self.files()? {
            let (lake, edit, path) = (self.clone(), edit.clone(), file.path.clone());
            let left = move || -> Result<_, LakeError> {
                let rows = read_files(&lake.dir, &[path], &lake.schema)?;
                edit(&rows)?.map(|rows| lake.with_day(&rows)).transpose().map_err(LakeError::from)
            };
            let left = tokio::task::spawn_blocking(left).await.map_err(std::io::Error::other)??;
            if let Some(rows) = left {
                adds.extend(write_files(&table, move || Ok(vec![rows])).await?);
                gone.push(file.path);
            }
        }
        if !gone.is_empty() {
            let removes = removals(&table, &gone, true).await?;
            let changed = DeltaOperation::Update { predicate: None };
            commit(&mut table, &self.dir, adds, removes, changed, None).await?;
        }
        let before = state.read_by();
        self.put(State::new(table.clone(), state.marks.clone()));
        drop(state);
        // Whoever reads what is about to go may come to an end.
        let mut waited = Duration::ZERO;
        while before.strong_count() > 0 && waited < PATIENCE {
            tokio::time::sleep(LOOK).await;
            waited += LOOK;
        }
        // Also when nothing was changed: what was begun before may have been cut short here.
        self.forget_history(&table).await?;
        // What was known of the table refers to commits that are gone.
        let table = DeltaTable::try_from_url(ensure_table_uri(self.dir.to_string_lossy())?).await?;
        let state = self.current();
        self.put(state.then(table, state.marks.clone()));
        Ok(gone.len())
    }

    /// Removes every file that the newest version does not need, and what the table's log says of earlier versions. Nobody may
    /// be writing files meanwhile.
    async fn forget_history(&self, table: &DeltaTable) -> Result<(), LakeError> {
        let version = table.version().unwrap_or(0);
        checkpoints::create_checkpoint(table, None).await?;
        crate::sync_commit(self.dir.clone(), version).await?;
        let live =
            table.snapshot()?.log_data().iter().map(|file| self.dir.join(file.path().as_ref())).collect();
        let dir = self.dir.clone();
        let remove = move || -> std::io::Result<()> {
            remove_others(&dir, &live)?;
            remove_before(&dir.join("_delta_log"), version)
        };
        Ok(tokio::task::spawn_blocking(remove).await.map_err(std::io::Error::other)??)
    }

    async fn rewrite(self: &Arc<Self>, paths: Vec<String>, done: &mut Compacted) -> Result<(), LakeError> {
        let (lake, read) = (self.clone(), paths.clone());
        let rows = move || {
            let rows = read_files(&lake.dir, &read, &lake.schema)?;
            Ok(vec![lake.with_day(&newest_first(&rows)?)?])
        };
        let mut adds = write_files(&self.current().table, rows).await?;
        adds.iter_mut().for_each(|add| add.data_change = false);
        let added = adds.len();

        let _alone = self.committing.lock().await;
        let state = self.current();
        let mut table = state.table.clone();
        let removes = removals(&table, &paths, false).await?;
        if removes.len() != paths.len() {
            // Retention has taken one of them meanwhile; what was written here is left to the vacuum.
            return Ok(());
        }
        let compacted = DeltaOperation::Optimize { predicate: None, target_size: BATCH as i64 };
        commit(&mut table, &self.dir, adds, removes, compacted, None).await?;
        self.put(state.then(table, state.marks.clone()));
        done.removed += paths.len();
        done.added += added;
        Ok(())
    }

    /// Takes files out of the newest version all of whose rows are past their retention. Answers how many.
    pub async fn retire(&self, past: Past) -> Result<usize, LakeError> {
        let old: Vec<String> =
            self.files()?.into_iter().filter(|file| past.is_over(file)).map(|file| file.path).collect();
        if old.is_empty() {
            return Ok(0);
        }
        let _alone = self.committing.lock().await;
        let state = self.current();
        let mut table = state.table.clone();
        let removes = removals(&table, &old, true).await?;
        let count = removes.len();
        let retired = DeltaOperation::Delete { predicate: None };
        commit(&mut table, &self.dir, Vec::new(), removes, retired, None).await?;
        self.put(state.then(table, state.marks.clone()));
        Ok(count)
    }

    /// Removes files that no version of the last `history` needs. Answers how many.
    pub async fn vacuum(&self, history: Duration) -> Result<usize, LakeError> {
        let _alone = self.committing.lock().await;
        let state = self.current();
        let period = chrono::Duration::from_std(history).unwrap_or(chrono::Duration::days(7));
        let vacuum = state.table.clone().vacuum();
        let (table, metrics) =
            vacuum.with_retention_period(period).with_enforce_retention_duration(false).await?;
        crate::sync_commit(self.dir.clone(), table.version().unwrap_or(0)).await?;
        self.put(state.then(table, state.marks.clone()));
        Ok(metrics.files_deleted.len())
    }

    /// The newest versions, newest first.
    pub async fn versions(&self, limit: usize) -> Result<Vec<Version>, LakeError> {
        let table = self.current().table.clone();
        let newest = table.version().unwrap_or(0);
        let commits: Vec<_> = table.history(Some(limit)).try_collect().await?;
        Ok(commits
            .into_iter()
            .enumerate()
            .map(|(number, commit)| Version {
                version: newest.saturating_sub(number as u64),
                committed_at: commit.timestamp,
                operation: commit.operation,
            })
            .collect())
    }
}

/// Reads whole files into the columns that a table has, without those of the day.
fn read_files(dir: &Path, paths: &[String], wanted: &SchemaRef) -> Result<RecordBatch, LakeError> {
    let mut batches: Vec<RecordBatch> = Vec::new();
    let kept: Vec<_> = wanted
        .fields()
        .iter()
        .filter(|field| !DAY_COLUMNS.contains(&field.name().as_str()))
        .cloned()
        .collect();
    let schema = std::sync::Arc::new(arrow::datatypes::Schema::new(
        kept.iter().map(|field| field.as_ref().clone().with_nullable(true)).collect::<Vec<_>>(),
    ));
    for path in paths {
        let file = File::open(dir.join(path))?;
        let reader = ParquetRecordBatchReaderBuilder::try_new(file)
            .and_then(ParquetRecordBatchReaderBuilder::build)
            .map_err(|error| LakeError::Sync(std::io::Error::other(error)))?;
        for batch in reader {
            let batch = batch?;
            let arrays = schema
                .fields()
                .iter()
                .map(|field| match batch.column_by_name(field.name()) {
                    Some(column) => arrow::compute::cast(column, field.data_type()),
                    None => Ok(arrow::array::new_null_array(field.data_type(), batch.num_rows())),
                })
                .collect::<Result<Vec<_>, _>>()?;
            batches.push(RecordBatch::try_new(schema.clone(), arrays)?);
        }
    }
    Ok(concat_batches(&schema, &batches)?)
}

/// Removes files of a table's folder that are not among those to keep, but nothing of its log.
fn remove_others(dir: &Path, live: &BTreeSet<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_name() == "_delta_log" || live.contains(&path) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            remove_others(&path, live)?;
        } else {
            std::fs::remove_file(&path)?;
        }
    }
    File::open(dir)?.sync_all()
}

/// Removes what a table's log says of versions before one of which it has a checkpoint.
fn remove_before(log: &Path, version: u64) -> std::io::Result<()> {
    for entry in std::fs::read_dir(log)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        let of = name.split_once('.').and_then(|(number, _)| number.parse::<u64>().ok());
        if of.is_some_and(|of| of < version) {
            std::fs::remove_file(log.join(name.as_ref()))?;
        }
    }
    File::open(log)?.sync_all()
}

async fn removals(table: &DeltaTable, paths: &[String], data_change: bool) -> Result<Vec<Action>, LakeError> {
    let log_store = table.log_store();
    let found = table
        .snapshot()?
        .snapshot()
        .file_views(&log_store, None)
        .try_filter(|file| std::future::ready(paths.iter().any(|path| *path == file.path())))
        .map_ok(|file| Action::Remove(file.remove_action(data_change)));
    Ok(found.try_collect().await?)
}

/// A time in a file's statistics, microseconds UTC.
fn recorded_until(text: &str) -> Option<i64> {
    // Statistics may be cut to milliseconds: the row may be later than they say.
    highwater_event::time::parse_micros(text).map(|micros| micros.saturating_add(1_000))
}
