//! What the tests of continuous statements share: declaring, and living through kills.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use arrow::record_batch::RecordBatch;
use highwater_event::{SeededRandomness, StreamName, StreamPartition, StreamSchema};
use highwater_log::LogBatch;
use highwater_log::fold::{LaneMarks, Program, Refused, StateReader, States, Stored, lane};
use highwater_log::keyed::StoreError;
use highwater_sql::stream::TableProgram;
use highwater_sql::stream::state::GroupState;
use highwater_sql::{Catalog, Engine, parse_script};

/// The catalog that a script leads to.
pub async fn declare(engine: &Engine, script: &str) -> Catalog {
    let mut catalog = Catalog::default();
    for declared in parse_script(script).unwrap_or_else(|error| panic!("{}", error.render(script))) {
        let text = declared.text.clone();
        let planned = catalog.plan(engine, declared, None).await;
        let planned = planned.unwrap_or_else(|error| panic!("{}", error.render(&text)));
        catalog.insert(engine, planned);
    }
    catalog
}

pub fn stream(catalog: &Catalog, name: &str) -> Arc<StreamSchema> {
    catalog.streams[&StreamName::new(name).unwrap()].schema.clone()
}

pub fn table(catalog: &Catalog, name: &str) -> Arc<TableProgram> {
    catalog.tables[&StreamName::new(name).unwrap()].program.clone()
}

/// States and marks as a store holds them: bytes.
#[derive(Default)]
pub struct Cold {
    states: Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
    marks: Mutex<LaneMarks>,
    floor: Mutex<Vec<u8>>,
    states_read: AtomicUsize,
}

impl Cold {
    pub fn bytes(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        self.states.lock().unwrap().clone()
    }

    /// How many states readers have read.
    pub fn states_read(&self) -> usize {
        self.states_read.load(Ordering::Relaxed)
    }

    fn read_one(&self, bytes: &[u8]) -> GroupState {
        self.states_read.fetch_add(1, Ordering::Relaxed);
        GroupState::decode(bytes).unwrap()
    }

    pub fn marks_now(&self) -> LaneMarks {
        self.marks.lock().unwrap().clone()
    }
}

impl StateReader<GroupState> for Cold {
    fn read(&self, from: &[u8], visit: &mut dyn FnMut(&[u8], &GroupState) -> bool) -> Result<(), StoreError> {
        for (key, bytes) in self.states.lock().unwrap().range(from.to_vec()..) {
            if !visit(key, &self.read_one(bytes)) {
                break;
            }
        }
        Ok(())
    }

    fn get(&self, keys: &[&[u8]]) -> Result<Vec<Option<GroupState>>, StoreError> {
        let states = self.states.lock().unwrap();
        Ok(keys.iter().map(|key| states.get(*key).map(|bytes| self.read_one(bytes))).collect())
    }

    fn last_key(&self) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.states.lock().unwrap().keys().next_back().cloned())
    }

    fn marks(&self) -> LaneMarks {
        self.marks_now()
    }
}

/// States that were loaded since the last write-back.
struct Warm<'a> {
    cold: &'a Cold,
    states: &'a mut BTreeMap<Vec<u8>, GroupState>,
}

impl States<GroupState> for Warm<'_> {
    fn peek(&mut self, key: &[u8]) -> Result<Option<&GroupState>, StoreError> {
        if !self.states.contains_key(key) {
            let cold = self.cold.states.lock().unwrap();
            let Some(bytes) = cold.get(key) else { return Ok(None) };
            self.states.insert(key.to_vec(), GroupState::decode(bytes).unwrap());
        }
        Ok(self.states.get(key))
    }

    fn state(&mut self, key: &[u8], new: &dyn Fn() -> GroupState) -> Result<&mut GroupState, StoreError> {
        if self.peek(key)?.is_none() {
            self.states.insert(key.to_vec(), new());
        }
        Ok(self.states.get_mut(key).unwrap())
    }
}

/// A keyed view that is written back now and then, and killed now and then: what was not written back is
/// forgotten and folded again, and rows that the log has already are not appended twice.
pub struct Life<P> {
    program: Arc<P>,
    pub cold: Arc<Cold>,
    /// Rows in the output stream.
    pub out: Vec<RecordBatch>,
    pub late: Vec<Refused>,
    pub dead: Vec<Refused>,
    /// How far the log knows each partition to have been consumed.
    advanced: BTreeMap<StreamPartition, u64>,
    pub kills: usize,
}

impl<P: Program<State = GroupState>> Life<P> {
    pub fn new(program: Arc<P>) -> Self {
        let (out, late, dead) = (Vec::new(), Vec::new(), Vec::new());
        Self { program, cold: Arc::default(), out, late, dead, advanced: BTreeMap::new(), kills: 0 }
    }

    pub async fn run(&mut self, runs: &[(StreamPartition, Vec<LogBatch>)], chance: &SeededRandomness) {
        let mut next = 0;
        let mut kept_until = 0;
        let mut marks = self.cold.marks_now();
        let mut warm = BTreeMap::new();
        while next < runs.len() {
            let (at, batches) = &runs[next];
            let to = batches.last().unwrap().end();
            let prepared = self.program.prepare(at, batches).await.unwrap();
            let lane = lane(self.program.sources(), at).unwrap();
            let mut states = Warm { cold: &self.cold, states: &mut warm };
            let folded = self.program.fold(prepared, lane, &mut marks, &mut states).unwrap();
            marks.entry(lane).or_default().offset = to;
            let rows: u64 = batches.iter().map(|batch| batch.rows.num_rows() as u64).sum();
            let apart = (folded.late.len() + folded.dead.len()) as u64;
            assert_eq!(rows, folded.folded + folded.filtered + apart, "in = out + filtered + late + dead");

            // One commit: rows above what the log knows, and the new position.
            let from = self.advanced.get(at).copied().unwrap_or(0);
            let (mut late, mut dead) = (folded.late, folded.dead);
            if let Some(pending) = folded.pending {
                let derived = self.program.finish(pending).await.unwrap();
                if let Some(rows) = derived.rows {
                    assert!(derived.offsets.is_sorted());
                    let known = derived.offsets.partition_point(|offset| *offset < from);
                    self.out.push(rows.slice(known, rows.num_rows() - known));
                }
                dead.extend(derived.dead);
            }
            late.retain(|refused| refused.offset >= from);
            dead.retain(|refused| refused.offset >= from);
            self.late.extend(late);
            self.dead.extend(dead);
            self.advanced.insert(at.clone(), from.max(to));
            next += 1;
            if let Some(floor) = self.program.expired(&marks) {
                warm.retain(|key, _| *key >= floor);
                let mut known = self.cold.floor.lock().unwrap();
                assert!(*known <= floor, "the floor never falls");
                *known = floor;
            }
            if chance.chance(0.1) {
                // A kill.
                self.kills += 1;
                warm.clear();
                marks = self.cold.marks_now();
                *self.cold.floor.lock().unwrap() = Vec::new();
                next = kept_until;
            } else if chance.chance(0.3) {
                self.write_back(&mut warm, &marks);
                kept_until = next;
            }
        }
        self.write_back(&mut warm, &marks);
    }

    fn write_back(&self, warm: &mut BTreeMap<Vec<u8>, GroupState>, marks: &LaneMarks) {
        let mut states = self.cold.states.lock().unwrap();
        for (key, state) in std::mem::take(warm) {
            let mut bytes = Vec::new();
            state.encode(&mut bytes);
            states.insert(key, bytes);
        }
        let floor = self.cold.floor.lock().unwrap();
        states.retain(|key, _| *key >= *floor);
        *self.cold.marks.lock().unwrap() = marks.clone();
    }
}
