//! The index of event ids, over everything that a stream has ever taken: for each hash of (stream, principal, id), where the event stands and what
//! it said. It is a view of the log that trails it; the door replays it to the head before it opens.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arrow::array::{Array, FixedSizeBinaryArray, Int64Array, RecordBatch};
use highwater_event::{Digest128, Offset, Partition, StreamName, StreamPartition, columns, planted};
use highwater_log::keyed::{KeyedBatch, KeyedStore, Mark, StoreError};
use highwater_log::{Log, LogBatch, ReadError};
use tokio::sync::watch;

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
/// Runs of the newest generation from which on its filter is stored at an orderly end: to read the keys of fewer takes half a second.
const READ_AGAIN_RUNS: usize = 4;
/// A smaller run is written when its first key has waited this long, so that a restart has little to
/// read again.
const RUN_WAITS: Duration = planted::interval(Duration::from_secs(10));

/// Keys that are looked up at a time: what the filters say about them stays in the cache.
const ASKED_AT_ONCE: usize = 1024;

/// Stored keys that the filter takes in at a time.
const LEARNED_AT_ONCE: usize = 4096;

/// What the keys of the pieces of a generation's filter begin with, in its table: they stand behind all ids.
const FILTER: [u8; 16] = [0xff; 16];

/// The index of one stream.
///
/// Keys are random, so writing them one by one would cost more than everything else at the door. They
/// are kept in memory and written as sorted runs. A run is written before the mark that covers it; when
/// a crash comes between, the log is read again and the same keys say the same.
///
/// Runs belong to generations: each is a table of the store with a filter in front, and a full one is never
/// touched again. So the cost of taking ids in does not grow with the ids that are there. The filter of a full one is stored with
/// it, and read again when the first id is asked for: a node that takes nothing needs no memory for its ids.
pub struct DedupeIndex {
    stream: StreamName,
    table: Arc<str>,
    store: Arc<dyn KeyedStore>,
    /// Keys of a run.
    run: usize,
    state: Mutex<State>,
    /// One run is written at a time.
    spilling: Mutex<()>,
    /// Whether any id was asked for since it was opened, and whoever waits for that.
    asked: AtomicBool,
    first_asked: watch::Sender<bool>,
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
    /// A filter is stored that knows all stored keys of the newest one.
    rested: bool,
}

/// Which keys of a generation its filter knows. A node that is asked for none needs no memory for it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Learnt {
    None,
    /// Those that were not stored when it began to learn, and all since.
    New,
    All,
}

struct Generation {
    table: Arc<str>,
    filter: Arc<Filter>,
    learnt: Learnt,
    /// It is full with so many keys.
    room: usize,
    /// No key is added any more.
    closed: bool,
}

impl Generation {
    /// The newest one, which takes keys in; its filter knows all where none are stored.
    fn open(table: Arc<str>, number: u32, run: usize, none_stored: bool) -> Self {
        let room = room_of(number, run);
        let learnt = if none_stored { Learnt::All } else { Learnt::None };
        Self {
            table,
            filter: Arc::new(Filter::for_keys(with_last_run(room, run))),
            learnt,
            room,
            closed: false,
        }
    }

    /// One that was closed before; its filter is to be read.
    fn closed(table: Arc<str>, number: u32, run: usize) -> Self {
        let filter = Arc::new(Filter::for_keys(1));
        Self { table, filter, learnt: Learnt::None, room: room_of(number, run), closed: true }
    }

    /// Makes ready for questions about these keys.
    fn fetch(&self, keys: &[Option<Digest128>]) {
        if self.learnt == Learnt::All && keys.len() > 1 {
            self.filter.fetch(keys.iter().flatten());
        }
    }

    /// False when the key is certainly not stored in it.
    fn may_hold(&self, key: &Digest128) -> bool {
        self.learnt != Learnt::All || self.filter.may_hold(key)
    }
}

/// Keys of a full generation.
fn room_of(number: u32, run: usize) -> usize {
    4usize.saturating_pow(number).min(GENERATION_RUNS) * run
}

/// Keys that a generation of so many may come to: its last run grows while the one before it is written.
fn with_last_run(room: usize, run: usize) -> usize {
    room + run.max(room / 8)
}

/// Stores a filter in a table, that of a closed generation beside its ids: all of it or nothing.
fn store_filter(store: &dyn KeyedStore, table: &str, filter: &Filter) -> Result<(), StoreError> {
    let pieces: Vec<_> = (0..).map(filter_key).zip(filter.pieces()).collect();
    store.load(table, &mut pieces.iter().map(|(key, piece)| (&key[..], &piece[..])))
}

fn filter_key(piece: u32) -> [u8; FILTER.len() + 4] {
    let mut key = [0; FILTER.len() + 4];
    key[..FILTER.len()].copy_from_slice(&FILTER);
    key[FILTER.len()..].copy_from_slice(&piece.to_be_bytes());
    key
}

/// Where the filter of the newest generation is between an orderly end and the next run. Its marks are those that the index had then: with
/// others, a run may have been written that the filter does not know.
fn rest_of(index: &str) -> Arc<str> {
    format!("{index}/rest").into()
}

/// The filter that is stored in a table, with a closed generation or at an orderly end.
fn stored_filter(store: &dyn KeyedStore, table: &str) -> Result<Option<Filter>, StoreError> {
    let mut failed = None;
    let mut numbers = 0..;
    let mut pieces = std::iter::from_fn(|| {
        store.get(table, &filter_key(numbers.next()?)).unwrap_or_else(|error| {
            failed = Some(error);
            None
        })
    });
    let filter = pieces.next().map(|head| Filter::of_pieces(&mut std::iter::once(head).chain(pieces)));
    match (failed, filter) {
        (Some(error), _) => Err(error),
        (None, None) => Ok(None),
        (None, Some(None)) => Err(StoreError::Damaged("the filter of a generation of event ids".into())),
        (None, Some(filter)) => Ok(filter),
    }
}

impl State {
    fn note(&mut self, keys: impl Iterator<Item = (Digest128, Known)>) {
        let newest = self.generations.last_mut().filter(|newest| newest.learnt != Learnt::None);
        let mut filter = newest.map(|newest| Arc::make_mut(&mut newest.filter));
        for (key, known) in keys {
            if let Some(filter) = &mut filter {
                filter.insert(&key);
            }
            self.fresh.insert(key, known);
        }
    }

    /// What is known of a key that is not in the store yet.
    fn unwritten(&self, key: &Digest128) -> Option<Known> {
        self.fresh.get(key).or_else(|| self.writing.get(key)).copied()
    }

    /// From now on the filter of the newest generation takes in what is noted; it begins with what is not stored yet.
    fn begin_to_learn(&mut self) {
        let Some(newest) = self.generations.last_mut() else { return };
        if newest.learnt == Learnt::None {
            newest.learnt = Learnt::New;
            let filter = Arc::make_mut(&mut newest.filter);
            self.writing.keys().chain(self.fresh.keys()).for_each(|key| filter.insert(key));
        }
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
            if !store.marks(&rest_of(&table))?.is_empty() {
                store.clear(&rest_of(&table))?;
            }
            for table in tables(store.as_ref(), &table)?.iter().rev() {
                store.clear(table)?;
            }
        }
        let mut tables = tables(store.as_ref(), &table)?;
        // The last one is not there yet. What a crash may have left in it is in no mark, and read again; a filter must not be: it would not know of
        // what is read in another order this time.
        if let Some(next) = tables.pop()
            && store.get(&next, &filter_key(0))?.is_some()
        {
            store.clear(&next)?;
        }
        let none_stored = marks.is_empty();
        let newest = tables.len() as u32 - 1;
        let mut generations = Vec::new();
        for (stored, number) in tables.into_iter().zip(0..) {
            // The newest one may have been closed before the first run of the next was written. What is read again now belongs to the next:
            // the filter that is stored would not know it.
            let is_closed = number < newest || store.get(&stored, &filter_key(0))?.is_some();
            generations.push(match is_closed {
                true => Generation::closed(stored, number, run),
                false => Generation::open(stored, number, run, none_stored),
            });
        }
        if generations.last().is_none_or(|newest| newest.closed) {
            let number = generations.len() as u32;
            generations.push(Generation::open(table_of(&table, number), number, run, true));
        }
        let rest = store.marks(&rest_of(&table))?;
        let rested = !rest.is_empty() && (rest == marks || planted::bug("filter_outlives_run"));
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
                generations,
                rested,
            }),
            table,
            spilling: Mutex::new(()),
            asked: AtomicBool::new(false),
            first_asked: watch::Sender::new(false),
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
    /// one with the marks, without which the others count for nothing, then what an orderly end left, then from the
    /// newest on, so that those that a crash leaves are found again.
    pub fn tables(&self) -> Vec<Arc<str>> {
        let state = self.state();
        let others = state.generations.iter().skip(1).rev().map(|generation| generation.table.clone());
        [self.table.clone(), rest_of(&self.table)].into_iter().chain(others).collect()
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
        let rows = (0..batch.rows.num_rows()).filter(|row| keys.is_valid(*row));
        self.state().note(rows.map(|row| {
            let mut key = [0; 16];
            key.copy_from_slice(keys.value(row));
            (
                Digest128(key),
                Known { partition, offset: batch.base + row as Offset, payload: payloads.value(row) },
            )
        }));
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the first key is looked up; false when nobody holds the index any more.
    pub fn first_asked(&self) -> impl Future<Output = bool> + Send + use<> {
        let mut asked = self.first_asked.subscribe();
        async move { asked.wait_for(|asked| *asked).await.is_ok() }
    }

    /// Looks a key up.
    pub fn find(&self, key: &Digest128) -> Result<Option<Known>, StoreError> {
        Ok(self.find_all(&[Some(*key)])?.pop().flatten())
    }

    /// Looks keys up; what is known of each stands at its place.
    pub fn find_all(&self, keys: &[Option<Digest128>]) -> Result<Vec<Option<Known>>, StoreError> {
        if !self.asked.load(Ordering::Relaxed) {
            self.asked.store(true, Ordering::Relaxed);
            self.first_asked.send_replace(true);
        }
        let mut found = Vec::with_capacity(keys.len());
        for some in keys.chunks(ASKED_AT_ONCE) {
            self.find_some(some, &mut found)?;
        }
        Ok(found)
    }

    fn find_some(
        &self,
        keys: &[Option<Digest128>],
        found: &mut Vec<Option<Known>>,
    ) -> Result<(), StoreError> {
        let first = found.len();
        let mut stored: Vec<(usize, Digest128, Arc<str>)> = Vec::new();
        {
            let state = self.state();
            found.extend(keys.iter().map(|key| state.unwritten(key.as_ref()?)));
            for generation in state.generations.iter().rev() {
                generation.fetch(keys);
                for (at, key) in (first..).zip(keys) {
                    let Some(key) = key else { continue };
                    if generation.may_hold(key) && found[at].is_none() {
                        stored.push((at, *key, generation.table.clone()));
                    }
                }
            }
        }
        for (at, key, table) in stored {
            if found[at].is_none()
                && let Some(bytes) = self.store.get(&table, &key.0)?
            {
                let damaged = || StoreError::Damaged("an entry of the index of event ids".into());
                found[at] = Some(Known::decode(&bytes).ok_or_else(damaged)?);
            }
        }
        Ok(())
    }

    /// Brings the filters up to what was stored when the index was opened: reads those of closed generations, and the keys of others. Until
    /// then questions go to the store. Ends early when nobody holds the index any more.
    pub fn learn_stored(index: &Weak<Self>) -> Result<(), StoreError> {
        let (mut unknown, rested): (Vec<usize>, bool) = match index.upgrade() {
            Some(index) => {
                let mut state = index.state();
                state.begin_to_learn();
                let unknown = |at: &usize| state.generations[*at].learnt != Learnt::All;
                ((0..state.generations.len()).filter(unknown).collect(), state.rested)
            }
            None => return Ok(()),
        };
        if rested {
            // Before the next run clears it.
            unknown.reverse();
        }
        // Else the newest comes last: its keys are read one by one, the filters of others in no time.
        for generation in unknown {
            let Some(held) = index.upgrade() else { return Ok(()) };
            let (table, is_closed) = {
                let generation = &held.state().generations[generation];
                (generation.table.clone(), generation.closed)
            };
            let (store, rest) = (held.store.clone(), rest_of(&held.table));
            drop(held);
            if is_closed {
                Self::learn_closed(index, generation, store.as_ref(), &table)?;
            } else if !rested || !Self::learn_rested(index, generation, store.as_ref(), &rest)? {
                Self::learn_keys(index, store.as_ref(), &table, &mut |keys, state| {
                    let filter = Arc::make_mut(&mut state.generations[generation].filter);
                    keys.iter().for_each(|key| filter.insert(key));
                })?;
            }
            let Some(held) = index.upgrade() else { return Ok(()) };
            held.state().generations[generation].learnt = Learnt::All;
        }
        Ok(())
    }

    /// Takes on the filter that was stored at an orderly end, which knows of all keys that were stored when learning began. False when it is
    /// not whole any more: a run that was written since has cleared it.
    fn learn_rested(
        index: &Weak<Self>,
        generation: usize,
        store: &dyn KeyedStore,
        rest: &str,
    ) -> Result<bool, StoreError> {
        let stored = match stored_filter(store, rest) {
            Ok(Some(stored)) => stored,
            Ok(None) | Err(StoreError::Damaged(_)) => return Ok(false),
            Err(error) => return Err(error),
        };
        let Some(held) = index.upgrade() else { return Ok(true) };
        Arc::make_mut(&mut held.state().generations[generation].filter).absorb(stored);
        Ok(true)
    }

    /// The filter of a closed generation, as it was stored; where it was not, it is made of the keys and stored.
    fn learn_closed(
        index: &Weak<Self>,
        generation: usize,
        store: &dyn KeyedStore,
        table: &str,
    ) -> Result<(), StoreError> {
        let stored = match stored_filter(store, table) {
            Err(error @ StoreError::Damaged(_)) => {
                tracing::warn!(table, %error, "it is made again");
                None
            }
            stored => stored?,
        };
        let is_stored = stored.is_some();
        let filter = match stored {
            Some(filter) => filter,
            None => {
                let Some(held) = index.upgrade() else { return Ok(()) };
                let room = with_last_run(held.state().generations[generation].room, held.run);
                drop(held);
                let mut filter = Filter::for_keys(room);
                Self::learn_keys(index, store, table, &mut |keys, _| {
                    keys.iter().for_each(|key| filter.insert(key));
                })?;
                filter
            }
        };
        let Some(held) = index.upgrade() else { return Ok(()) };
        if !is_stored {
            store_filter(store, table, &filter)?;
        }
        held.state().generations[generation].filter = Arc::new(filter);
        Ok(())
    }

    /// Hands out the keys of a table, some at a time; ends early when nobody holds the index any more.
    fn learn_keys(
        index: &Weak<Self>,
        store: &dyn KeyedStore,
        table: &str,
        learn: &mut dyn FnMut(&[Digest128], &mut State),
    ) -> Result<(), StoreError> {
        let mut keys: Vec<Digest128> = Vec::with_capacity(LEARNED_AT_ONCE);
        let mut hand_out = |keys: &mut Vec<Digest128>| {
            let held = index.upgrade()?;
            learn(keys, &mut held.state());
            keys.clear();
            Some(())
        };
        let mut held = Some(());
        store.snapshot(table)?.scan(&[], &mut |key, _| {
            // What is longer is a piece of a filter.
            if let Ok(key) = key.try_into() {
                keys.push(Digest128(key));
            }
            if keys.len() == LEARNED_AT_ONCE {
                held = hand_out(&mut keys);
            }
            held.is_some()
        })?;
        hand_out(&mut keys);
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
        // Durably gone before there is a key that it does not know.
        if self.state().rested {
            if !planted::bug("filter_outlives_run") {
                self.store.clear(&rest_of(&self.table))?;
            }
            self.state().rested = false;
        }
        let mut sorted: Vec<(Digest128, [u8; Known::BYTES])> =
            keys.iter().map(|(key, known)| (*key, known.encode())).collect();
        sorted.sort_unstable_by_key(|(key, _)| *key);
        if !planted::bug("mark_before_ids") {
            self.store.load(&table, &mut sorted.iter().map(|(key, known)| (&key.0[..], &known[..])))?;
        }
        planted::stop("ids:loaded");
        let closed = {
            let state = self.state();
            let destination = state.generations.iter().find(|generation| generation.table == table);
            destination.filter(|generation| generation.closed).map(|generation| generation.filter.clone())
        };
        if let Some(filter) = closed {
            store_filter(self.store.as_ref(), &table, &filter)?;
        }
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

    /// Stores what is known about the newest generation when all its keys are stored, so that they need not be read one by one at the next
    /// start; for an orderly end.
    pub fn rest(&self) -> Result<(), StoreError> {
        let _one_at_a_time = self.spilling.lock().unwrap_or_else(PoisonError::into_inner);
        let filter = {
            let state = self.state();
            let Some(newest) = state.generations.last() else { return Ok(()) };
            let all_stored = state.fresh.is_empty() && state.writing.is_empty();
            let few = newest.filter.keys() < READ_AGAIN_RUNS * self.run;
            if !all_stored || newest.learnt != Learnt::All || few || state.rested {
                return Ok(());
            }
            newest.filter.clone()
        };
        let rest = rest_of(&self.table);
        self.store.clear(&rest)?;
        store_filter(self.store.as_ref(), &rest, &filter)?;
        let marks = self.store.marks(&self.table)?.into_iter();
        let marks = marks.map(|(partition, mark)| ((rest.clone(), partition), mark)).collect();
        self.store.write(KeyedBatch { puts: Vec::new(), marks })?;
        self.state().rested = true;
        Ok(())
    }

    /// The run that is taken now goes to the newest generation. When that is full, what comes next belongs
    /// to another: nothing is fresh at this moment, so that no run has keys of two.
    fn choose_destination(&self, state: &mut State) {
        let number = state.generations.len() as u32;
        let Some(newest) = state.generations.last_mut() else { return };
        state.destination = newest.table.clone();
        // How full it is becomes known when its stored keys have been read.
        if newest.learnt == Learnt::All && newest.filter.keys() >= newest.room {
            newest.closed = true;
            state.generations.push(Generation::open(table_of(&self.table, number), number, self.run, true));
        }
    }

    /// Notes keys that became durable, and that the index has seen the log up to `marks` at least.
    pub fn insert(&self, keys: impl IntoIterator<Item = (Digest128, Known)>, marks: &[(Partition, Offset)]) {
        let mut state = self.state();
        state.note(keys.into_iter());
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
