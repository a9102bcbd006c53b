//! One table: its states in memory and in the store.
//!
//! Rows are folded into states in memory. A write-back collects what changed since the last one,
//! together with the mark that belongs to it, and the store takes both in one batch. So the store is
//! always a whole state of the table at some mark, and after a crash the log is read from there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use highwater_event::{Offset, StreamName, StreamPartition, planted};
use highwater_log::dead_letter::{self, DEAD_LETTERS, DeadLetter, LATE_EVENTS};
use highwater_log::fold::{
    Derived, Folded, Lane, LaneMarks, Program, Refused, StateReader, States, Stored, lane,
};
use highwater_log::idle::{self, IdleTimes};
use highwater_log::keyed::{Dirty, KeyedBatch, KeyedStore, Mark, Put, StoreError, WriteBack};
use highwater_log::view::{Applied, Gather, View, ViewError};
use highwater_log::{Advance, Append, Commit, Log, LogBatch, Machine};
use highwater_privacy::aead::{OVERHEAD, Opener};
use highwater_privacy::{SealError, Vault};

/// A table's states.
pub struct Table<S: Stored> {
    name: Arc<str>,
    store: Arc<dyn KeyedStore>,
    overlay: Mutex<Overlay<S>>,
    /// Bytes that clean states may take in memory.
    capacity: usize,
    /// Encrypts states of what is SENSITIVE.
    vault: Option<Arc<Vault>>,
}

struct Overlay<S> {
    slots: HashMap<Vec<u8>, Slot<S>>,
    marks: LaneMarks,
    /// Keys below it have expired.
    floor: Vec<u8>,
    /// The floor that is on its way to the store, and the one that has arrived.
    sinking: Vec<u8>,
    sunk: Vec<u8>,
    weight: usize,
    /// Keys of the states that changed since they were collected, each once.
    dirty: Vec<Vec<u8>>,
    /// Keys of those that are on their way to the store.
    writing: Vec<Vec<u8>>,
    /// Rows were folded whose late and dead ones are not in the log yet: nothing may be written.
    held: bool,
    /// Counts resets: what was collected before one must not be confirmed after it.
    generation: u64,
    collected: Option<u64>,
}

struct Slot<S> {
    state: S,
    weight: usize,
    change: Change,
    /// Touched since the last eviction passed by.
    warm: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Clean,
    /// On its way to the store.
    Writing,
    Dirty,
}

impl<S: Stored> Table<S> {
    /// Opens a table at the marks of its store.
    ///
    /// With a vault its states are encrypted in the store. Its keys are not: they must show nothing SENSITIVE.
    pub fn open(
        name: Arc<str>,
        store: Arc<dyn KeyedStore>,
        capacity: usize,
        vault: Option<Arc<Vault>>,
    ) -> Result<Self, StoreError> {
        let marks = store.marks(&name)?;
        if marks.is_empty() {
            // A reset that was cut short may have left states, and folding from the start would add to them.
            store.clear(&name)?;
        }
        let overlay = Overlay::at(marks, 0);
        Ok(Self { name, store, overlay: Mutex::new(overlay), capacity, vault })
    }

    /// What has changed, as the store is to have it.
    fn encode(&self, overlay: &Overlay<S>) -> Result<Vec<Put>, SealError> {
        let mut sealer = self.vault.as_ref().map(|vault| vault.sealer("")).transpose()?;
        let changed = overlay.dirty.iter().filter_map(|key| overlay.slots.get_key_value(key));
        let put = changed.map(|(key, slot)| {
            let mut bytes = Vec::new();
            slot.state.encode(&mut bytes);
            if let Some(sealer) = &mut sealer {
                let mut sealed = Vec::with_capacity(bytes.len() + OVERHEAD);
                sealer.seal(&Self::place(&self.name, key), &bytes, &mut sealed)?;
                bytes = sealed;
            }
            Ok((self.name.clone(), key.clone(), Some(bytes)))
        });
        put.collect()
    }

    /// What an encrypted state is bound to.
    fn place(name: &str, key: &[u8]) -> Vec<u8> {
        [b"state\0", name.as_bytes(), &[0], key].concat()
    }

    /// A state as the store has it.
    fn decode(&self, opener: &mut Opener, key: &[u8], bytes: &[u8]) -> Option<S> {
        match &self.vault {
            Some(vault) => {
                let opened = vault.decrypt_value(opener, &Self::place(&self.name, key), bytes);
                let told = opened.inspect_err(|error| {
                    tracing::error!(table = %self.name, %error, "a state can't be decrypted");
                });
                S::decode(&told.ok()?)
            }
            None => S::decode(bytes),
        }
    }

    fn overlay(&self) -> MutexGuard<'_, Overlay<S>> {
        self.overlay.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what is in memory; the store holds a whole, older state.
    fn discard(&self) -> Result<(), StoreError> {
        let marks = self.store.marks(&self.name)?;
        let mut overlay = self.overlay();
        let generation = overlay.generation + 1;
        *overlay = Overlay::at(marks, generation);
        Ok(())
    }

    /// Bytes of states in memory and number of those that are not in the store yet.
    pub fn memory(&self) -> (usize, usize) {
        let overlay = self.overlay();
        (overlay.weight, overlay.dirty.len())
    }
}

impl<S: Stored> Overlay<S> {
    fn at(marks: LaneMarks, generation: u64) -> Self {
        Self {
            slots: HashMap::new(),
            marks,
            floor: Vec::new(),
            sinking: Vec::new(),
            sunk: Vec::new(),
            weight: 0,
            dirty: Vec::new(),
            writing: Vec::new(),
            held: false,
            generation,
            collected: None,
        }
    }

    /// Forgets the states below a key; the next write-back removes them from the store.
    fn expire(&mut self, floor: Vec<u8>) {
        if floor <= self.floor {
            return;
        }
        let mut weight = self.weight;
        self.slots.retain(|key, slot| {
            let kept = *key >= floor;
            if !kept {
                weight = weight.saturating_sub(slot.weight + key.len());
            }
            kept
        });
        self.weight = weight;
        self.dirty.retain(|key| *key >= floor);
        self.writing.retain(|key| *key >= floor);
        self.floor = floor;
    }

    /// What the store does not have yet, from a key on; what has changed while it was written comes twice.
    fn fresh(&self, from: &[u8]) -> impl Iterator<Item = (&Vec<u8>, &S)> {
        let changed = self.dirty.iter().chain(&self.writing).filter(move |key| key.as_slice() >= from);
        changed.filter_map(|key| self.slots.get_key_value(key)).map(|(key, slot)| (key, &slot.state))
    }

    /// What was on its way is in the store, or still to be written.
    fn arrived(&mut self, success: bool) {
        let Self { slots, dirty, writing, .. } = self;
        for key in writing.drain(..) {
            // What has changed again meanwhile is among the dirty ones already.
            let Some(slot) = slots.get_mut(&key).filter(|slot| slot.change == Change::Writing) else {
                continue;
            };
            slot.change = if success { Change::Clean } else { Change::Dirty };
            if !success {
                dirty.push(key);
            }
        }
    }

    /// Second chance: a clean state that nobody touched since the last pass goes.
    fn evict(&mut self, capacity: usize) {
        for _pass in 0..2 {
            if self.weight <= capacity {
                return;
            }
            let target = capacity - capacity / 4;
            let mut weight = self.weight;
            self.slots.retain(|key, slot| {
                if weight <= target || slot.change != Change::Clean {
                    return true;
                }
                if std::mem::take(&mut slot.warm) {
                    return true;
                }
                weight -= slot.weight + key.len();
                false
            });
            self.weight = weight;
        }
    }
}

/// The states as a fold sees them.
struct Folding<'a, S: Stored> {
    overlay: &'a mut Overlay<S>,
    table: &'a Table<S>,
    opener: Opener,
}

impl<S: Stored> Folding<'_, S> {
    /// Brings a state into memory; false when the store has none either.
    fn load(&mut self, key: &[u8]) -> Result<bool, StoreError> {
        if self.overlay.slots.contains_key(key) {
            return Ok(true);
        }
        let Some(bytes) = self.table.store.get(&self.table.name, key)? else { return Ok(false) };
        let state = self.table.decode(&mut self.opener, key, &bytes);
        let state = state.ok_or_else(|| StoreError::Damaged(format!("a state of {}", self.table.name)))?;
        self.insert(key, state);
        Ok(true)
    }

    fn insert(&mut self, key: &[u8], state: S) {
        let weight = state.weight();
        self.overlay.weight += weight + key.len();
        let slot = Slot { state, weight, change: Change::Clean, warm: true };
        self.overlay.slots.insert(key.to_vec(), slot);
    }
}

impl<S: Stored> States<S> for Folding<'_, S> {
    fn peek(&mut self, key: &[u8]) -> Result<Option<&S>, StoreError> {
        self.load(key)?;
        Ok(self.overlay.slots.get_mut(key).map(|slot| {
            slot.warm = true;
            &slot.state
        }))
    }

    fn state(&mut self, key: &[u8], new: &dyn Fn() -> S) -> Result<&mut S, StoreError> {
        if !self.load(key)? {
            self.insert(key, new());
        }
        let Some(slot) = self.overlay.slots.get_mut(key) else {
            return Err(StoreError::Unavailable("a state vanished from memory".into()));
        };
        if slot.change != Change::Dirty {
            slot.change = Change::Dirty;
            self.overlay.dirty.push(key.to_vec());
        }
        slot.warm = true;
        Ok(&mut slot.state)
    }
}

impl<S: Stored> Dirty for Table<S> {
    fn collect(&self, batch: &mut KeyedBatch) {
        let mut overlay = self.overlay();
        if overlay.held && !planted::bug("write_back_while_held") {
            return;
        }
        // Of a write-back that ended in a panic nobody was told.
        overlay.arrived(false);
        match self.encode(&overlay) {
            Ok(puts) => batch.puts.extend(puts),
            Err(error) => {
                tracing::error!(table = %self.name, %error, "states can't be encrypted; they stay in memory");
                return;
            }
        }
        let Overlay { slots, weight, dirty, writing, .. } = &mut *overlay;
        for key in dirty.drain(..) {
            let Some(slot) = slots.get_mut(&key) else { continue };
            slot.change = Change::Writing;
            let now = slot.state.weight();
            *weight = (*weight + now).saturating_sub(slot.weight);
            slot.weight = now;
            writing.push(key);
        }
        if overlay.floor > overlay.sunk {
            // Expired keys may be written again by nothing: rows for them are late.
            let scanned = self.store.snapshot(&self.name).and_then(|snapshot| {
                snapshot.scan(&[], &mut |key, _| {
                    let below = key < overlay.floor.as_slice();
                    if below {
                        batch.puts.push((self.name.clone(), key.to_vec(), None));
                    }
                    below
                })
            });
            match scanned {
                Ok(()) => overlay.sinking = overlay.floor.clone(),
                Err(error) => {
                    tracing::warn!(table = %self.name, %error, "expired states stay until the next write-back");
                }
            }
        }
        overlay.collected = Some(overlay.generation);
        // Without any mark a table is emptied when it is opened, so that it would be right again.
        let left_out = |mark: &Mark| planted::bug("states_without_marks") && mark.offset % 2 == 1;
        for (partition, mark) in overlay.marks.iter().filter(|(_, mark)| !left_out(mark)) {
            batch.marks.insert((self.name.clone(), *partition), *mark);
        }
    }

    fn written(&self, success: bool) {
        let mut overlay = self.overlay();
        let Some(generation) = overlay.collected.take() else { return };
        if generation != overlay.generation {
            return;
        }
        overlay.arrived(success);
        if success && !overlay.sinking.is_empty() {
            overlay.sunk = std::mem::take(&mut overlay.sinking);
        }
        overlay.evict(self.capacity);
    }

    fn dirty_keys(&self) -> usize {
        self.overlay().dirty.len()
    }
}

impl<S: Stored> StateReader<S> for Table<S> {
    fn read(&self, from: &[u8], visit: &mut dyn FnMut(&[u8], &S) -> bool) -> Result<(), StoreError> {
        let mut from = from.to_vec();
        // What is not in the store yet, and the store as of the same moment.
        let (mut fresh, snapshot) = {
            let overlay = self.overlay();
            from = from.max(overlay.floor.clone());
            let fresh = overlay.fresh(&from).map(|(key, state)| (key.clone(), state.clone()));
            (fresh.collect::<Vec<_>>(), self.store.snapshot(&self.name)?)
        };
        fresh.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        fresh.dedup_by(|(one, _), (other, _)| one == other);
        let mut fresh = fresh.into_iter().peekable();
        let mut damaged = false;
        let mut going = true;
        let mut opener = Opener::default();
        snapshot.scan(&from, &mut |key, bytes| {
            while going && let Some((before, state)) = fresh.next_if(|(before, _)| before.as_slice() < key) {
                going = visit(&before, &state);
            }
            if going {
                going = match fresh.next_if(|(same, _)| same.as_slice() == key) {
                    Some((same, state)) => visit(&same, &state),
                    None => match self.decode(&mut opener, key, bytes) {
                        Some(state) => visit(key, &state),
                        None => {
                            damaged = true;
                            false
                        }
                    },
                };
            }
            going
        })?;
        if damaged {
            return Err(StoreError::Damaged(format!("a state of {}", self.name)));
        }
        for (key, state) in fresh {
            going = going && visit(&key, &state);
        }
        Ok(())
    }

    fn get(&self, keys: &[&[u8]]) -> Result<Vec<Option<S>>, StoreError> {
        let overlay = self.overlay();
        let mut opener = Opener::default();
        let state = |key: &&[u8]| {
            if *key < overlay.floor.as_slice() {
                return Ok(None);
            }
            if let Some(slot) = overlay.slots.get(*key) {
                return Ok(Some(slot.state.clone()));
            }
            let Some(bytes) = self.store.get(&self.name, key)? else { return Ok(None) };
            let state = self.decode(&mut opener, key, &bytes);
            state.map(Some).ok_or_else(|| StoreError::Damaged(format!("a state of {}", self.name)))
        };
        keys.iter().map(state).collect()
    }

    fn last_key(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let (fresh, snapshot) = {
            let overlay = self.overlay();
            let fresh = overlay.fresh(&[]).map(|(key, _)| key).max().cloned();
            (fresh, self.store.snapshot(&self.name)?)
        };
        Ok(fresh.max(snapshot.last_key()?))
    }

    fn marks(&self) -> LaneMarks {
        self.overlay().marks.clone()
    }
}

/// A table as a view.
pub struct TableView<P: Program> {
    program: Arc<P>,
    table: Arc<Table<P::State>>,
    write_back: Arc<WriteBack>,
    log: Arc<dyn Log>,
    idle: Arc<IdleTimes>,
    machine: Machine,
    /// Keys that may wait before a write-back is made in the middle of a backlog.
    dirty_limit: usize,
}

impl<P: Program> TableView<P> {
    /// Runs a program over the log.
    pub fn new(
        program: Arc<P>,
        table: Arc<Table<P::State>>,
        write_back: Arc<WriteBack>,
        log: Arc<dyn Log>,
        idle: Arc<IdleTimes>,
        machine: Machine,
        dirty_limit: usize,
    ) -> Self {
        Self { program, table, write_back, log, idle, machine, dirty_limit }
    }

    fn lane(&self, at: &StreamPartition) -> Result<Lane, ViewError> {
        lane(self.program.sources(), at)
            .ok_or_else(|| ViewError::Broken(format!("{at} is not read by this view")))
    }

    /// Applies rows that follow each other, before the first of which the partition was `idle`.
    async fn apply_run(
        &self,
        at: &StreamPartition,
        idle: i64,
        batches: &[LogBatch],
    ) -> Result<Applied, ViewError> {
        let lane = self.lane(at)?;
        let (Some(first), Some(last)) = (batches.first(), batches.last()) else {
            return Ok(Applied::default());
        };
        let (from, to) = (first.base, last.end());
        if self.table.dirty_keys() > self.dirty_limit {
            // Before more is taken in: a store that does not answer stops the intake.
            let write_back = self.write_back.clone();
            let flushed = self.machine.scheduler.work(move || write_back.flush()).await;
            flushed.map_err(|error| ViewError::Broken(error.to_string()))??;
        }
        let prepared = self.program.prepare(at, batches).await?;
        let folded = {
            let mut overlay = self.table.overlay();
            let mut marks = overlay.marks.clone();
            let mark = marks.entry(lane).or_default();
            if mark.offset != from {
                return Err(ViewError::Retry(format!(
                    "the table stands at {} and was given rows from {from}",
                    mark.offset
                )));
            }
            if !planted::bug("deaf_to_idle") {
                mark.wait(idle);
            }
            // From here until it is settled nothing may be written back, whatever happens.
            overlay.held = true;
            let mut states = Folding { overlay: &mut overlay, table: &self.table, opener: Opener::default() };
            let folded = self.program.fold(prepared, lane, &mut marks, &mut states);
            marks.entry(lane).or_default().offset = to;
            overlay.marks = marks;
            folded
        };
        let outcome = match folded {
            Ok(folded) => self.settle(at, (from, to), folded).await,
            Err(error) => Err(error.into()),
        };
        match outcome {
            Ok(applied) => {
                let mut overlay = self.table.overlay();
                overlay.held = false;
                if self.program.follows_time()
                    && let marks = self.idle.carry_on(self.program.sources(), overlay.marks.clone())?
                    && let Some(floor) = self.program.expired(&marks)
                {
                    overlay.expire(floor);
                }
                Ok(applied)
            }
            Err(error) => {
                // States in memory hold half of these rows; the store holds a whole, older state.
                self.write_back.exclusively(|| self.table.discard())?;
                Err(error)
            }
        }
    }

    /// Brings what a fold has left into the log.
    async fn settle(
        &self,
        at: &StreamPartition,
        (from, to): (Offset, Offset),
        folded: Folded<P::Pending>,
    ) -> Result<Applied, ViewError> {
        let derived = match folded.pending {
            Some(pending) => self.program.finish(pending).await?,
            None => Derived::default(),
        };
        let applied = Applied {
            taken: to - from,
            out: folded.folded,
            filtered: folded.filtered,
            late: folded.late.len() as u64,
            dead: folded.dead.len() as u64,
        };
        self.set_apart(at, to, derived, folded.late, folded.dead).await?;
        Ok(applied)
    }

    /// Puts derived, late and dead rows into the log, once: rows that an earlier run put there are left
    /// out. States may be older than what the log holds after a crash; folding again makes the same rows.
    async fn set_apart(
        &self,
        at: &StreamPartition,
        to: Offset,
        derived: Derived,
        late: Vec<Refused>,
        mut dead: Vec<Refused>,
    ) -> Result<(), ViewError> {
        let writer = self.program.name().to_string();
        let from = if planted::bug("no_suppression") { 0 } else { self.log.advanced(&writer, at) };
        let mut commit = Commit::default();
        if let (Some(rows), Some((stream, partitions))) = (derived.rows, self.program.output()) {
            let known = derived.offsets.partition_point(|offset| *offset < from);
            if known < rows.num_rows() {
                let to = StreamPartition::new(stream.clone(), at.partition % partitions);
                commit.appends.push(Append { to, rows: rows.slice(known, rows.num_rows() - known) });
            }
        }
        dead.extend(derived.dead);
        for (stream, refused) in [(LATE_EVENTS, late), (DEAD_LETTERS, dead)] {
            let letters: Vec<DeadLetter> = refused
                .into_iter()
                .filter(|refused| refused.offset >= from)
                .map(|refused| refused.into_letter(&writer, at))
                .collect();
            if !letters.is_empty() {
                let append = dead_letter::append(stream, &letters, self.machine.clock.now_micros());
                commit.appends.push(append.map_err(|error| ViewError::Broken(error.to_string()))?);
            }
        }
        if commit.appends.is_empty() {
            return Ok(());
        }
        commit.advances.push(Advance { writer, source: at.clone(), from, to });
        planted::stop("view:before_append");
        self.log.append(commit).await?;
        planted::stop("view:appended");
        Ok(())
    }
}

#[async_trait]
impl<P: Program> View for TableView<P> {
    fn name(&self) -> &str {
        self.program.name()
    }

    fn kind(&self) -> &'static str {
        self.program.kind()
    }

    fn sources(&self) -> Vec<StreamName> {
        self.program.sources().to_vec()
    }

    fn gather(&self) -> Gather {
        Gather { rows: self.program.rows_at_once(), wait: Duration::from_millis(20) }
    }

    async fn mark(&mut self, at: &StreamPartition) -> Result<Offset, ViewError> {
        let lane = self.lane(at)?;
        if self.table.overlay().held {
            // A fold did not come to its end: what is in memory is half of it.
            self.write_back.exclusively(|| self.table.discard())?;
        }
        Ok(self.table.overlay().marks.get(&lane).map_or(0, |mark| mark.offset))
    }

    async fn apply(&mut self, at: &StreamPartition, batches: Vec<LogBatch>) -> Result<Applied, ViewError> {
        let mut applied = Applied::default();
        let program = &self.program;
        let runs = match program.follows_time() && !idle::is_read_by(program.sources()) {
            true => self.idle.cut(at, batches)?,
            false => vec![(0, batches)],
        };
        for (idle, batches) in runs {
            applied += self.apply_run(at, idle, &batches).await?;
        }
        Ok(applied)
    }

    async fn skip(&mut self, at: &StreamPartition, to: Offset) -> Result<(), ViewError> {
        let lane = self.lane(at)?;
        self.table.overlay().marks.entry(lane).or_default().offset = to;
        Ok(())
    }

    async fn reset(&mut self) -> Result<(), ViewError> {
        self.write_back.exclusively(|| {
            self.table.store.clear(&self.table.name)?;
            self.table.discard()
        })?;
        Ok(())
    }
}
