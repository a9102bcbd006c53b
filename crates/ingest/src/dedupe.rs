//! The index of event ids: for each hash of (stream, principal, id), where the event stands and what
//! it said. It is a view of the log that trails it; the door replays it to the head before it opens.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::{Array, FixedSizeBinaryArray, Int64Array, RecordBatch};
use highwater_event::{Digest128, Offset, Partition, StreamName, StreamPartition, columns};
use highwater_log::keyed::{Dirty, KeyedBatch, KeyedStore, Mark, StoreError};
use highwater_log::{Log, LogBatch, ReadError};
use serde::{Deserialize, Serialize};

/// Where an event stands and what it said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Partition of the original.
    pub partition: Partition,
    /// Offset of the original.
    pub offset: Offset,
    /// Hash of its payload.
    pub payload: i64,
}

/// The index could not be read or brought up to date.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DedupeError {
    /// The keyed store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log failed.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The log holds rows that the index does not understand.
    #[error("stream {0} holds rows without the columns of the dedupe index")]
    Columns(StreamName),
}

/// Rows that are read at a time while the index catches up.
const REPLAY_ROWS: usize = 64 * 1024;

/// The index of one stream.
pub struct DedupeIndex {
    stream: StreamName,
    table: Arc<str>,
    store: Arc<dyn KeyedStore>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Entries that are not in the store yet, and those that are on their way there.
    fresh: HashMap<Digest128, Known, Hasher>,
    writing: HashMap<Digest128, Known, Hasher>,
    marks: HashMap<Partition, Offset>,
}

/// The keys are hashes already; their first bytes will do.
#[derive(Default, Clone, Copy)]
struct Hasher(u64);

impl std::hash::BuildHasher for Hasher {
    type Hasher = Self;
    fn build_hasher(&self) -> Self {
        Self(0)
    }
}

impl std::hash::Hasher for Hasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 = self.0.rotate_left(5) ^ u64::from_le_bytes(word);
        }
    }
}

impl DedupeIndex {
    /// Opens the index of a stream and reads the log from the index's marks to the head.
    pub fn open(stream: &StreamName, store: Arc<dyn KeyedStore>, log: &dyn Log) -> Result<Self, DedupeError> {
        let table: Arc<str> = format!("_dedupe/{stream}").into();
        let marks = store.marks(&table)?;
        if marks.is_empty() {
            // What a clearing that was cut short may have left.
            store.clear(&table)?;
        }
        let index = Self {
            stream: stream.clone(),
            table,
            store,
            state: Mutex::new(State {
                marks: marks.into_iter().map(|(partition, mark)| (partition, mark.offset)).collect(),
                ..State::default()
            }),
        };
        for partition in log.partitions(stream) {
            index.replay(log, &StreamPartition::new(stream.clone(), partition))?;
        }
        Ok(index)
    }

    /// The name of its table in the keyed store.
    pub fn table(&self) -> &str {
        &self.table
    }

    fn replay(&self, log: &dyn Log, at: &StreamPartition) -> Result<(), DedupeError> {
        let mut next = self.state().marks.get(&at.partition).copied().unwrap_or(0);
        let end = log.end(at);
        while next < end {
            match log.read(at, next, REPLAY_ROWS) {
                Ok(batches) => {
                    for batch in batches {
                        let Some(batch) = batch.from_offset(next) else { continue };
                        next = batch.end();
                        self.take(at.partition, &batch)?;
                    }
                }
                // Ids in a damaged range can't be known any more; the rest still protects.
                Err(ReadError::Damaged { to, from, .. }) => {
                    tracing::error!(partition = %at, from, to, "event ids in a damaged range are not in the dedupe index");
                    next = to;
                }
                Err(error) => return Err(error.into()),
            }
            self.state().marks.insert(at.partition, next);
        }
        Ok(())
    }

    /// Takes in rows of the log.
    fn take(&self, partition: Partition, batch: &LogBatch) -> Result<(), DedupeError> {
        let Some((keys, payloads)) = key_columns(&batch.rows) else {
            return Err(DedupeError::Columns(self.stream.clone()));
        };
        let mut state = self.state();
        for row in 0..batch.rows.num_rows() {
            if keys.is_valid(row) {
                let mut key = [0; 16];
                key.copy_from_slice(keys.value(row));
                let known =
                    Known { partition, offset: batch.base + row as Offset, payload: payloads.value(row) };
                state.fresh.insert(Digest128(key), known);
            }
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks a key up.
    pub fn find(&self, key: &Digest128) -> Result<Option<Known>, StoreError> {
        {
            let state = self.state();
            if let Some(known) = state.fresh.get(key).or_else(|| state.writing.get(key)) {
                return Ok(Some(*known));
            }
        }
        let Some(bytes) = self.store.get(&self.table, &key.0)? else { return Ok(None) };
        postcard::from_bytes(&bytes).map(Some).map_err(|error| StoreError::Damaged(error.to_string()))
    }

    /// Notes keys that became durable, and that the index has seen the log up to `marks` at least.
    pub fn insert(&self, keys: impl IntoIterator<Item = (Digest128, Known)>, marks: &[(Partition, Offset)]) {
        let mut state = self.state();
        state.fresh.extend(keys);
        for (partition, offset) in marks {
            let mark = state.marks.entry(*partition).or_insert(0);
            *mark = (*mark).max(*offset);
        }
    }
}

/// The columns that the index is rebuilt from.
fn key_columns(rows: &RecordBatch) -> Option<(&FixedSizeBinaryArray, &Int64Array)> {
    let keys = rows.column_by_name(columns::EVENT_KEY)?.as_any().downcast_ref()?;
    let payloads = rows.column_by_name(columns::PAYLOAD_HASH)?.as_any().downcast_ref()?;
    Some((keys, payloads))
}

impl Dirty for DedupeIndex {
    fn collect(&self, batch: &mut KeyedBatch) {
        let mut state = self.state();
        if state.fresh.is_empty() && state.writing.is_empty() {
            return;
        }
        // What an earlier write-back left behind is still on its way.
        let fresh = std::mem::take(&mut state.fresh);
        state.writing.extend(fresh);
        batch.puts.reserve(state.writing.len());
        let mut bytes = Vec::new();
        for (key, known) in &state.writing {
            bytes.clear();
            if postcard::to_io(known, &mut bytes).is_ok() {
                batch.puts.push((self.table.clone(), key.0.to_vec(), Some(bytes.clone())));
            }
        }
        for (partition, offset) in &state.marks {
            batch.marks.insert((self.table.clone(), *partition), Mark { offset: *offset, ..Mark::default() });
        }
    }

    fn written(&self, success: bool) {
        let mut state = self.state();
        let writing = std::mem::take(&mut state.writing);
        if !success {
            for (key, known) in writing {
                state.fresh.entry(key).or_insert(known);
            }
        }
    }

    fn dirty_keys(&self) -> usize {
        self.state().fresh.len()
    }
}
