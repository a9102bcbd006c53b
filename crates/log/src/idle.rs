//! Partitions that nothing comes in. Windows close by event time, and event time stands still when no
//! event comes; so the node writes down, in the system stream `_idle`, how long a partition has been
//! waiting for its next row, and the partition's event time goes on by as much.
//!
//! A row of `_idle` belongs to an offset: it is only taken by the log as long as the partition ends
//! there. Every reader therefore knows all of what was said about an offset before it comes to the row
//! at that offset, and a rebuild decides about lateness as the first run did.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use arrow::array::{AsArray, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Int32Type, Int64Type, SchemaRef};
use arrow::error::ArrowError;
use highwater_event::{Column, Offset, StreamName, StreamOptions, StreamPartition, StreamSchema, columns};

use crate::Log;
use crate::commit::{Append, Commit, LogBatch};
use crate::error::ReadError;
use crate::fold::{LaneMarks, StateReader, partition_of};
use crate::keyed::StoreError;

/// How long partitions have been waiting.
pub const IDLE: &str = "_idle";
/// Rows of `_idle` that are read at a time.
const READ_ROWS: usize = 8192;

/// A partition has been waiting for its next row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idle {
    /// The partition.
    pub at: StreamPartition,
    /// The offset that its next row will get.
    pub offset: Offset,
    /// How long, in microseconds, since the row before came.
    pub micros: i64,
}

/// The schema of `_idle`.
pub fn schema() -> StreamSchema {
    let column = |name: &str, data_type: DataType| Column::new(name, data_type, false);
    StreamSchema {
        name: StreamName::system(IDLE),
        columns: vec![
            column("stream", DataType::Utf8),
            column("source_partition", DataType::Int32),
            column("source_offset", DataType::Int64),
            column("idle_micros", DataType::Int64),
        ],
        // In the lake too: a rebuild needs it for as long as it needs the rows.
        options: StreamOptions { partitions: 1, lake: true, idle_timeout: None, ..StreamOptions::default() },
        raw: false,
    }
}

static STORED: LazyLock<SchemaRef> = LazyLock::new(|| schema().stored_schema());

/// Says how long partitions have been waiting; the log refuses it when one of them has grown.
pub fn commit(waiting: &[Idle], now: i64) -> Result<Commit, ArrowError> {
    let rows = RecordBatch::try_new(
        STORED.clone(),
        vec![
            Arc::new(
                waiting
                    .iter()
                    .map(|idle| Some(String::from(idle.at.stream.clone())))
                    .collect::<StringArray>(),
            ),
            Arc::new(Int32Array::from_iter_values(waiting.iter().map(|idle| idle.at.partition as i32))),
            Arc::new(Int64Array::from_iter_values(waiting.iter().map(|idle| idle.offset as i64))),
            Arc::new(Int64Array::from_iter_values(waiting.iter().map(|idle| idle.micros))),
            Arc::new(
                TimestampMicrosecondArray::from_value(now, waiting.len())
                    .with_data_type(columns::timestamp_type()),
            ),
        ],
    )?;
    let ends = waiting.iter().map(|idle| (idle.at.clone(), idle.offset)).collect();
    let to = StreamPartition::new(StreamName::system(IDLE), 0);
    Ok(Commit { appends: vec![Append { to, rows }], ends, ..Commit::default() })
}

/// What rows of `_idle` say, each with its own offset.
pub fn waiting(batch: &LogBatch) -> Vec<(Offset, Idle)> {
    let streams = batch.rows.column(0).as_string::<i32>();
    let partitions = batch.rows.column(1).as_primitive::<Int32Type>();
    let offsets = batch.rows.column(2).as_primitive::<Int64Type>();
    let micros = batch.rows.column(3).as_primitive::<Int64Type>();
    (0..batch.rows.num_rows())
        .filter_map(|row| {
            let stream = StreamName::try_from(streams.value(row).to_owned()).ok()?;
            let idle = Idle {
                at: StreamPartition::new(stream, partitions.value(row) as u32),
                offset: offsets.value(row) as Offset,
                micros: micros.value(row).max(0),
            };
            Some((batch.base + row as Offset, idle))
        })
        .collect()
}

/// True for a view that reads `_idle` itself, because time alone makes it bring about rows: it carries its
/// marks on when it comes to what is said there.
pub fn is_read_by(sources: &[StreamName]) -> bool {
    sources.iter().any(|source| source.as_str() == IDLE)
}

/// What `_idle` says, by partition and offset.
pub struct IdleTimes {
    log: Arc<dyn Log>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// How far `_idle` has been read.
    next: Offset,
    /// The longest wait before the row at each offset.
    waits: HashMap<StreamPartition, BTreeMap<Offset, i64>>,
}

impl Known {
    fn take(&mut self, batch: &LogBatch) {
        self.next = batch.end();
        for (_, Idle { at, offset, micros }) in waiting(batch) {
            let wait = self.waits.entry(at).or_default().entry(offset).or_default();
            *wait = (*wait).max(micros);
        }
    }

    fn skip(&mut self, to: Offset) {
        self.next = self.next.max(to);
    }

    fn before(&self, at: &StreamPartition, offset: Offset) -> i64 {
        self.waits.get(at).and_then(|waits| waits.get(&offset)).copied().unwrap_or(0)
    }
}

impl IdleTimes {
    /// Reads `_idle` of a log as it is needed.
    pub fn new(log: Arc<dyn Log>) -> Self {
        Self { log, known: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what has been said since the last time; never under the lock, because old rows may have to
    /// be fetched from the cold tier. It is not asked where `_idle` ends: rows that came together with a
    /// row of `_idle` may be seen a moment before the end says so.
    pub fn load(&self) -> Result<(), ReadError> {
        let at = StreamPartition::new(StreamName::system(IDLE), 0);
        loop {
            let next = self.known().next;
            let batches = match self.log.read(&at, next, READ_ROWS) {
                Ok(batches) if batches.is_empty() => return Ok(()),
                Ok(batches) => batches,
                Err(ReadError::Retired { start, .. }) if start > next => {
                    self.known().skip(start);
                    continue;
                }
                Err(ReadError::Damaged { to, from, .. }) if to > next => {
                    tracing::error!(
                        from,
                        to,
                        "damaged rows of _idle are passed over: a rebuild may find fewer events late than the first run"
                    );
                    self.known().skip(to);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let mut known = self.known();
            for batch in batches {
                let Some(batch) = batch.from_offset(known.next) else { continue };
                known.take(&batch);
            }
        }
    }

    /// How long the partition waited for the row at `offset`, or has waited so far; microseconds.
    pub fn before(&self, at: &StreamPartition, offset: Offset) -> Result<i64, ReadError> {
        self.load()?;
        Ok(self.known().before(at, offset))
    }

    fn within(&self, at: &StreamPartition, offsets: Range<Offset>) -> Result<Vec<(Offset, i64)>, ReadError> {
        self.load()?;
        let known = self.known();
        let Some(waits) = known.waits.get(at) else { return Ok(Vec::new()) };
        Ok(waits.range(offsets).map(|(offset, wait)| (*offset, *wait)).collect())
    }

    /// Cuts batches that follow each other where the partition had to wait: how long before each run of
    /// batches, and the run.
    pub fn cut(
        &self,
        at: &StreamPartition,
        batches: Vec<LogBatch>,
    ) -> Result<Vec<(i64, Vec<LogBatch>)>, ReadError> {
        let (Some(first), Some(last)) = (batches.first(), batches.last()) else { return Ok(Vec::new()) };
        let start = first.base;
        let mut waits = self.within(at, start..last.end())?.into_iter().peekable();
        let before = waits.next_if(|(offset, _)| *offset == start).map_or(0, |(_, wait)| wait);
        let mut runs = vec![(before, Vec::new())];
        for batch in batches {
            let mut rest = Some(batch);
            while let Some(batch) = rest.take() {
                let (head, tail) = match waits.peek() {
                    Some((offset, _)) if *offset < batch.end() => batch.split_at(*offset),
                    _ => (Some(batch), None),
                };
                if let (Some(head), Some((_, run))) = (head, runs.last_mut()) {
                    run.push(head);
                }
                if tail.is_some()
                    && let Some((_, wait)) = waits.next()
                {
                    runs.push((wait, Vec::new()));
                }
                rest = tail;
            }
        }
        Ok(runs)
    }

    /// Marks whose event time has gone on while their partitions were waiting for the row that a view
    /// needs next.
    pub fn carry_on(&self, sources: &[StreamName], mut marks: LaneMarks) -> Result<LaneMarks, ReadError> {
        if is_read_by(sources) {
            return Ok(marks);
        }
        self.load()?;
        let known = self.known();
        for (lane, mark) in &mut marks {
            if let Some(at) = partition_of(sources, *lane) {
                mark.wait(known.before(&at, mark.offset));
            }
        }
        Ok(marks)
    }
}

/// States of a view as readers see them: with marks that go on while nothing comes in.
pub struct Waiting<S> {
    states: Arc<dyn StateReader<S>>,
    sources: Vec<StreamName>,
    times: Arc<IdleTimes>,
}

impl<S> Waiting<S> {
    /// The states of a view that reads `sources`.
    pub fn new(states: Arc<dyn StateReader<S>>, sources: Vec<StreamName>, times: Arc<IdleTimes>) -> Self {
        Self { states, sources, times }
    }
}

impl<S> StateReader<S> for Waiting<S> {
    fn read(&self, from: &[u8], visit: &mut dyn FnMut(&[u8], &S) -> bool) -> Result<(), StoreError> {
        self.states.read(from, visit)
    }

    fn get(&self, keys: &[&[u8]]) -> Result<Vec<Option<S>>, StoreError> {
        self.states.get(keys)
    }

    fn last_key(&self) -> Result<Option<Vec<u8>>, StoreError> {
        self.states.last_key()
    }

    fn marks(&self) -> LaneMarks {
        let marks = self.states.marks();
        self.times.carry_on(&self.sources, marks.clone()).unwrap_or_else(|error| {
            tracing::error!(%error, "windows of idle streams stay open: _idle can't be read");
            marks
        })
    }
}
