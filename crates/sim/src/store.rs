//! The simulated keyed store.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use highwater_event::{Partition, SeededRandomness};
use highwater_log::keyed::{KeyedBatch, KeyedSnapshot, KeyedStore, Mark, StoreError, Visit};

type Table = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Debug, Clone, Default)]
struct Content {
    tables: BTreeMap<String, Table>,
    marks: BTreeMap<(String, Partition), Mark>,
}

#[derive(Debug)]
enum Change {
    Batch(KeyedBatch),
    Load(String, Vec<(Vec<u8>, Vec<u8>)>),
    Clear(String),
}

#[derive(Debug, Default)]
struct State {
    content: Content,
    changes: Vec<Change>,
    failing: bool,
}

/// A keyed store in memory; clones share it. Its batches become durable in order, some time after they
/// were written: a crash takes a suffix of them, never a part of one.
#[derive(Debug, Clone, Default)]
pub struct SimStore(Arc<Mutex<State>>);

impl Content {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Batch(batch) => {
                for (table, key, value) in &batch.puts {
                    let table = self.tables.entry(table.to_string()).or_default();
                    match value {
                        Some(value) => drop(table.insert(key.clone(), value.clone())),
                        None => drop(table.remove(key)),
                    }
                }
                for ((view, partition), mark) in &batch.marks {
                    self.marks.insert((view.to_string(), *partition), *mark);
                }
            }
            Change::Load(table, rows) => {
                self.tables.entry(table.clone()).or_default().extend(rows.iter().cloned());
            }
            Change::Clear(table) => {
                self.tables.remove(table);
                self.marks.retain(|(view, _), _| view != table);
            }
        }
    }
}

impl SimStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes every write fail, or no longer.
    pub fn fail(&self, failing: bool) {
        self.state().failing = failing;
    }

    /// What is found after a crash: without some of the newest batches.
    pub fn after_crash(&self, chance: &SeededRandomness) -> SimStore {
        let state = self.state();
        let is_clear = |change: &Change| matches!(change, Change::Clear(_));
        let synced = state.changes.iter().rposition(is_clear).map_or(0, |at| at + 1);
        let kept = synced + chance.below((state.changes.len() - synced) as u64 + 1) as usize;
        let mut content = Content::default();
        // A load is durable when it returns, the batches before it need not be.
        let stay = |(at, change): &(usize, &Change)| *at < kept || matches!(change, Change::Load(..));
        state.changes.iter().enumerate().filter(stay).for_each(|(_, change)| content.apply(change));
        // What was durable stays so: it is the first change of the next life.
        let batch = KeyedBatch {
            puts: content
                .tables
                .iter()
                .flat_map(|(name, table)| {
                    let name: Arc<str> = name.as_str().into();
                    table.iter().map(move |(key, value)| (name.clone(), key.clone(), Some(value.clone())))
                })
                .collect(),
            marks: content
                .marks
                .iter()
                .map(|((view, partition), mark)| ((view.as_str().into(), *partition), *mark))
                .collect(),
        };
        let changes = vec![Change::Batch(batch), Change::Clear(String::new())];
        SimStore(Arc::new(Mutex::new(State { content, changes, failing: false })))
    }

    fn change(&self, change: Change) -> Result<(), StoreError> {
        let mut state = self.state();
        if state.failing {
            return Err(StoreError::Unavailable("a simulated fault".into()));
        }
        state.content.apply(&change);
        state.changes.push(change);
        Ok(())
    }
}

struct Snapshot(Table);

impl KeyedSnapshot for Snapshot {
    fn scan(&self, from: &[u8], visit: Visit<'_>) -> Result<(), StoreError> {
        for (key, value) in self.0.range(from.to_vec()..) {
            if !visit(key, value) {
                break;
            }
        }
        Ok(())
    }

    fn last_key(&self) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0.keys().next_back().cloned())
    }
}

impl KeyedStore for SimStore {
    fn get(&self, table: &str, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.state().content.tables.get(table).and_then(|table| table.get(key)).cloned())
    }

    fn snapshot(&self, table: &str) -> Result<Box<dyn KeyedSnapshot>, StoreError> {
        Ok(Box::new(Snapshot(self.state().content.tables.get(table).cloned().unwrap_or_default())))
    }

    fn write(&self, batch: KeyedBatch) -> Result<(), StoreError> {
        self.change(Change::Batch(batch))
    }

    fn load<'a>(
        &self,
        table: &str,
        sorted: &mut dyn Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<(), StoreError> {
        let owned = sorted.map(|(key, value)| (key.to_vec(), value.to_vec()));
        self.change(Change::Load(table.to_owned(), owned.collect()))
    }

    fn marks(&self, view: &str) -> Result<BTreeMap<Partition, Mark>, StoreError> {
        let state = self.state();
        let marks = state.content.marks.iter().filter(|((name, _), _)| name == view);
        Ok(marks.map(|((_, partition), mark)| (*partition, *mark)).collect())
    }

    fn clear(&self, table: &str) -> Result<(), StoreError> {
        self.change(Change::Clear(table.to_owned()))
    }

    fn bytes_on_disk(&self) -> u64 {
        0
    }
}
