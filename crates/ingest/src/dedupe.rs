//! The index of event ids, over everything that a stream has ever taken: for each hash of (stream, principal, id), where the event stands and what
//! it said. It is a view of the log that trails it; the door replays it to the head before it opens.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arrow::array::{Array, FixedSizeBinaryArray, Int64Array, RecordBatch};
use highwater_event::{Digest128, Offset, Partition, StreamName, StreamPartition, columns, planted};
use highwater_log::keyed::{KeyedBatch, KeyedStore, Mark, StoreError};
use highwater_log::{Log, LogBatch, ReadError};

use crate::filter::Filter;

/// Where an event stands and what it said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Partition of the original.
    pub partition: Partition,
    /// Offset of the original.
    pub offset: Offset,
    /// Hash of its payload.
    pub payload: i64,
}

impl Known {
    /// Partition, offset, payload hash, little-endian.
    const BYTES: usize = 20;

    fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..4].copy_from_slice(&self.partition.to_le_bytes());
        bytes[4..12].copy_from_slice(&self.offset.to_le_bytes());
        bytes[12..].copy_from_slice(&self.payload.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (partition, rest) = bytes.split_first_chunk()?;
        let (offset, rest) = rest.split_first_chunk()?;
        Some(Self {
            partition: u32::from_le_bytes(*partition),
            offset: u64::from_le_bytes(*offset),
            payload: i64::from_le_bytes(rest.try_into().ok()?),
        })
    }
}

/// First letters of the tables of the indexes. The store keeps tables of that kind for loading in runs.
const IDS: &str = "_ids/";

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

/// New keys that wait in memory before they are written as one sorted run.
const RUN: usize = 500_000;
/// Runs of a generation when many ids have come before it; early ones are smaller, so that an index with
/// few ids is small in memory. The store merges the runs of a table when they are more than this.
const GENERATION_RUNS: usize = 60;
/// A smaller run is written when its first key has waited this long, so that a restart has little to
/// read again.
const RUN_WAITS: Duration = planted::interval(Duration::from_secs(10));

/// Stored keys that the filter takes in at a time.
const LEARNED_AT_ONCE: usize = 4096;

/// The index of one stream.
///
/// Keys are random, so writing them one by one would cost more than everything else at the door. They
/// are kept in memory and written as sorted runs. A run is written before the mark that covers it; when
/// a crash comes between, the log is read again and the same keys say the same.
///
/// Runs belong to generations: each is a table of the store with a filter in front, and a full one is never
/// touched again. So the cost of taking ids in does not grow with the ids that are there.
pub struct DedupeIndex {
    stream: StreamName,
    table: Arc<str>,
    store: Arc<dyn KeyedStore>,
    /// Keys of a run.
    run: usize,
    state: Mutex<State>,
    /// One run is written at a time.
    spilling: Mutex<()>,
}

struct State {
    /// Keys that are not in the store yet, and those that are on their way there.
    fresh: Keys,
    writing: Arc<Keys>,
    /// The table that `writing` is on its way to.
    destination: Arc<str>,
    marks: HashMap<Partition, Offset>,
    /// When fresh keys were first seen waiting.
    since: Option<Duration>,
    /// Oldest first, at least one; fresh keys belong to the newest.
    generations: Vec<Generation>,
}

struct Generation {
    table: Arc<str>,
    /// Knows every key since the index was opened, and those that were stored before when it is `whole`.
    filter: Filter,
    whole: bool,
    /// It is full with so many keys.
    room: usize,
}

impl Generation {
    fn new(table: Arc<str>, number: u32, run: usize, whole: bool) -> Self {
        let runs = 4usize.saturating_pow(number).min(GENERATION_RUNS);
        // The last run may be larger than others.
        Self { table, filter: Filter::for_keys((runs + 1) * run), whole, room: runs * run }
    }
}

impl State {
    fn note(&mut self, key: Digest128, known: Known) {
        if let Some(newest) = self.generations.last_mut() {
            newest.filter.insert(&key);
        }
        self.fresh.insert(key, known);
    }
}

/// The table of a generation; the first is that of the index itself.
fn table_of(index: &str, generation: u32) -> Arc<str> {
    if generation == 0 { index.into() } else { format!("{index}/g{generation}").into() }
}

type Keys = HashMap<Digest128, Known, Hasher>;

/// The keys are hashes already; their first bytes will do.
#[derive(Default, Clone, Copy)]
pub(crate) struct Hasher(u64);

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
        Self::open_with_runs_of(RUN, stream, store, log)
    }

    /// The same with runs of so many keys, and generations that are as much smaller.
    pub fn open_with_runs_of(
        run: usize,
        stream: &StreamName,
        store: Arc<dyn KeyedStore>,
        log: &dyn Log,
    ) -> Result<Self, DedupeError> {
        let table: Arc<str> = format!("{IDS}{stream}").into();
        let marks = store.marks(&table)?;
        if marks.is_empty() {
            // What a clearing that was cut short may have left.
            for table in tables(store.as_ref(), &table)?.iter().rev() {
                store.clear(table)?;
            }
        }
        let mut tables = tables(store.as_ref(), &table)?;
        // The last one is not there yet.
        tables.pop();
        let whole = marks.is_empty();
        let generations =
            tables.into_iter().zip(0..).map(|(table, number)| Generation::new(table, number, run, whole));
        let index = Self {
            stream: stream.clone(),
            store,
            run,
            state: Mutex::new(State {
                fresh: Keys::default(),
                writing: Arc::default(),
                destination: table.clone(),
                marks: marks.into_iter().map(|(partition, mark)| (partition, mark.offset)).collect(),
                since: None,
                generations: generations.collect(),
            }),
            table,
            spilling: Mutex::new(()),
        };
        for partition in log.partitions(stream) {
            index.replay(log, &StreamPartition::new(stream.clone(), partition))?;
        }
        Ok(index)
    }

    /// Up to which offset of a partition the store holds every key.
    pub fn stored_until(&self, partition: Partition) -> Result<Offset, StoreError> {
        Ok(self.store.marks(&self.table)?.get(&partition).map_or(0, |mark| mark.offset))
    }

    /// The names of its tables in the keyed store, in the order in which they are to be cleared: first the
    /// one with the marks, without which the others count for nothing, then from the newest on, so that
    /// those that a crash leaves are found again.
    pub fn tables(&self) -> Vec<Arc<str>> {
        let state = self.state();
        let others = state.generations.iter().skip(1).rev().map(|generation| generation.table.clone());
        [self.table.clone()].into_iter().chain(others).collect()
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
                    self.state().marks.insert(at.partition, next);
                    self.spill(self.run)?;
                }
                // Ids in a damaged range can't be known any more; the rest still protects.
                Err(ReadError::Damaged { to, from, .. }) => {
                    tracing::error!(partition = %at, from, to, "event ids in a damaged range are not in the dedupe index");
                    next = to;
                }
                // Events that are gone for good can't be repeated either.
                Err(ReadError::Retired { start, .. }) if start > next => next = start,
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
                state.note(Digest128(key), known);
            }
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks a key up.
    pub fn find(&self, key: &Digest128) -> Result<Option<Known>, StoreError> {
        let asked: Vec<Arc<str>> = {
            let state = self.state();
            if let Some(known) = state.fresh.get(key).or_else(|| state.writing.get(key)) {
                return Ok(Some(*known));
            }
            let may_hold = |generation: &&Generation| !generation.whole || generation.filter.may_hold(key);
            let generations = state.generations.iter().rev().filter(may_hold);
            generations.map(|generation| generation.table.clone()).collect()
        };
        for table in asked {
            let Some(bytes) = self.store.get(&table, &key.0)? else { continue };
            let damaged = || StoreError::Damaged("an entry of the index of event ids".into());
            return Known::decode(&bytes).map(Some).ok_or_else(damaged);
        }
        Ok(None)
    }

    /// Reads the keys that were stored when the index was opened, so that the filters know them too. Until
    /// then questions go to the store. Ends early when nobody holds the index any more.
    pub fn learn_stored(index: &Weak<Self>) -> Result<(), StoreError> {
        // The newest is the one that questions are mostly about.
        let unknown: Vec<usize> = match index.upgrade() {
            Some(index) => {
                let state = index.state();
                (0..state.generations.len()).rev().filter(|at| !state.generations[*at].whole).collect()
            }
            None => return Ok(()),
        };
        unknown.into_iter().try_for_each(|generation| Self::learn_generation(index, generation))
    }

    fn learn_generation(index: &Weak<Self>, generation: usize) -> Result<(), StoreError> {
        let Some(held) = index.upgrade() else { return Ok(()) };
        let table = held.state().generations[generation].table.clone();
        let snapshot = held.store.snapshot(&table)?;
        drop(held);
        let mut learned: Vec<Digest128> = Vec::with_capacity(LEARNED_AT_ONCE);
        let learn = |learned: &mut Vec<Digest128>| {
            let index = index.upgrade()?;
            let mut state = index.state();
            let filter = &mut state.generations[generation].filter;
            learned.drain(..).for_each(|key| filter.insert(&key));
            Some(())
        };
        let mut held = Some(());
        snapshot.scan(&[], &mut |key, _| {
            if let Ok(key) = key.try_into() {
                learned.push(Digest128(key));
            }
            if learned.len() == LEARNED_AT_ONCE {
                held = learn(&mut learned);
            }
            held.is_some()
        })?;
        if learn(&mut learned).is_some()
            && held.is_some()
            && let Some(index) = index.upgrade()
        {
            index.state().generations[generation].whole = true;
        }
        Ok(())
    }

    /// Writes a run when one is due; called from time to time, `now` by a clock that never goes back.
    pub fn tick(&self, now: Duration) -> Result<(), StoreError> {
        let waited = {
            let mut state = self.state();
            let waits = !state.fresh.is_empty();
            waits && now.saturating_sub(*state.since.get_or_insert(now)) >= RUN_WAITS
        };
        self.spill(if waited { 1 } else { self.run })
    }

    /// Writes the keys in memory as a run when there are at least so many, and moves the marks.
    pub fn spill(&self, at_least: usize) -> Result<(), StoreError> {
        let _one_at_a_time = self.spilling.lock().unwrap_or_else(PoisonError::into_inner);
        let (keys, table, marks) = {
            let mut state = self.state();
            if state.writing.is_empty() {
                if state.fresh.len() < at_least.max(1) {
                    return Ok(());
                }
                state.writing = Arc::new(std::mem::take(&mut state.fresh));
                state.since = None;
                self.choose_destination(&mut state);
            }
            // A run that could not be written before holds fewer keys than the marks of now cover.
            let covered = state.fresh.is_empty();
            (state.writing.clone(), state.destination.clone(), covered.then(|| state.marks.clone()))
        };
        let mut sorted: Vec<(Digest128, [u8; Known::BYTES])> =
            keys.iter().map(|(key, known)| (*key, known.encode())).collect();
        sorted.sort_unstable_by_key(|(key, _)| *key);
        if !planted::bug("mark_before_ids") {
            self.store.load(&table, &mut sorted.iter().map(|(key, known)| (&key.0[..], &known[..])))?;
        }
        planted::stop("ids:loaded");
        let marks = marks
            .into_iter()
            .flatten()
            .map(|(partition, offset)| ((self.table.clone(), partition), Mark { offset, ..Mark::default() }));
        let mut marks: BTreeMap<(Arc<str>, Partition), Mark> = marks.collect();
        if table != self.table {
            // So that the table is found again.
            marks.insert((table, 0), Mark::default());
        }
        self.store.write(KeyedBatch { puts: Vec::new(), marks: marks.into_iter().collect() })?;
        self.state().writing = Arc::default();
        Ok(())
    }

    /// The run that is taken now goes to the newest generation. When that is full, what comes next belongs
    /// to another: nothing is fresh at this moment, so that no run has keys of two.
    fn choose_destination(&self, state: &mut State) {
        let number = state.generations.len() as u32;
        let Some(newest) = state.generations.last() else { return };
        state.destination = newest.table.clone();
        // How full it is becomes known when its stored keys have been read.
        if newest.whole && newest.filter.keys() >= newest.room {
            state.generations.push(Generation::new(table_of(&self.table, number), number, self.run, true));
        }
    }

    /// Notes keys that became durable, and that the index has seen the log up to `marks` at least.
    pub fn insert(&self, keys: impl IntoIterator<Item = (Digest128, Known)>, marks: &[(Partition, Offset)]) {
        let mut state = self.state();
        for (key, known) in keys {
            state.note(key, known);
        }
        for (partition, offset) in marks {
            let mark = state.marks.entry(*partition).or_insert(0);
            *mark = (*mark).max(*offset);
        }
    }
}

/// The tables of the generations of an index, oldest first, and after them the one that would be next: a run
/// may have been written there before a crash.
fn tables(store: &dyn KeyedStore, index: &str) -> Result<Vec<Arc<str>>, StoreError> {
    let mut tables = vec![table_of(index, 0)];
    for number in 1.. {
        let table = table_of(index, number);
        let there = !store.marks(&table)?.is_empty();
        tables.push(table);
        if !there {
            break;
        }
    }
    Ok(tables)
}

/// The columns that the index is rebuilt from.
fn key_columns(rows: &RecordBatch) -> Option<(&FixedSizeBinaryArray, &Int64Array)> {
    let keys = rows.column_by_name(columns::EVENT_KEY)?.as_any().downcast_ref()?;
    let payloads = rows.column_by_name(columns::PAYLOAD_HASH)?.as_any().downcast_ref()?;
    Some((keys, payloads))
}
