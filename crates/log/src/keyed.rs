//! Keyed storage as views see it: puts of many views and their marks in one atomic batch.
//!
//! A keyed view folds in memory and is written back from time to time; [`WriteBack`] collects what all
//! of them changed, together with their marks, into one batch. After a crash every view is at the mark
//! of the last batch and reads the log again from there.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use highwater_event::{Offset, Partition, Reaction};
use serde::{Deserialize, Serialize};

/// The store did not do what it was asked. Nothing of a failed batch is visible.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The disk or server did not answer, or is full.
    #[error("the keyed store did not answer: {0}")]
    Unavailable(String),
    /// The store takes nothing any more until the process is started again.
    #[error("the keyed store stopped ({0}); restart after checking the disk")]
    Stopped(String),
    /// Stored bytes can't be read.
    #[error("the keyed store holds bytes that can't be read ({0}); rebuild the view")]
    Damaged(String),
}

impl StoreError {
    /// What to do about it.
    pub fn reaction(&self) -> Reaction {
        match self {
            Self::Unavailable(_) => Reaction::Retry,
            Self::Stopped(_) => Reaction::CallOperator,
            Self::Damaged(_) => Reaction::Integrity,
        }
    }
}

/// How far a view has applied one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The next offset to apply.
    pub offset: Offset,
    /// The highest event time seen so far, microseconds UTC: what lateness is measured against.
    pub event_time_high: i64,
}

impl Mark {
    /// Lets event time go on while no row comes. Where none has been seen yet there is nothing to go on from.
    pub fn wait(&mut self, micros: i64) {
        if self.event_time_high != i64::MIN {
            self.event_time_high = self.event_time_high.saturating_add(micros);
        }
    }
}

impl Default for Mark {
    fn default() -> Self {
        Self { offset: 0, event_time_high: i64::MIN }
    }
}

/// Table, key and value; no value removes the key.
pub type Put = (Arc<str>, Vec<u8>, Option<Vec<u8>>);

/// Changes that become visible together.
#[derive(Debug, Default)]
pub struct KeyedBatch {
    /// In the order in which they are applied.
    pub puts: Vec<Put>,
    /// Marks by view and partition.
    pub marks: BTreeMap<(Arc<str>, Partition), Mark>,
}

impl KeyedBatch {
    /// True when there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.puts.is_empty() && self.marks.is_empty()
    }
}

/// Called for each key and value, in order of the keys; `false` ends the scan.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> bool;

/// A table as of one moment.
pub trait KeyedSnapshot: Send {
    /// Visits the keys from `from` on.
    fn scan(&self, from: &[u8], visit: Visit<'_>) -> Result<(), StoreError>;
    /// The last key.
    fn last_key(&self) -> Result<Option<Vec<u8>>, StoreError>;
}

/// A store of named tables of keys and values.
pub trait KeyedStore: Send + Sync {
    /// The value of a key.
    fn get(&self, table: &str, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;
    /// The table as it stands now; later batches do not change what it shows.
    fn snapshot(&self, table: &str) -> Result<Box<dyn KeyedSnapshot>, StoreError>;
    /// Applies a batch: all of it or nothing, also across a crash. Need not be durable on return:
    /// batches become durable in order.
    fn write(&self, batch: KeyedBatch) -> Result<(), StoreError>;
    /// Adds many keys of a table at once, sorted by key. Cheaper than a batch; visible when it returns,
    /// and durable before any batch that is written after it. All of it or nothing, also across a crash.
    fn load<'a>(
        &self,
        table: &str,
        sorted: &mut dyn Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<(), StoreError>;
    /// The marks of a view.
    fn marks(&self, view: &str) -> Result<BTreeMap<Partition, Mark>, StoreError>;
    /// Empties a table and forgets its view's marks.
    fn clear(&self, table: &str) -> Result<(), StoreError>;
    /// Bytes on disk.
    fn bytes_on_disk(&self) -> u64;
}

/// A view whose changes wait in memory.
pub trait Dirty: Send + Sync {
    /// Adds what changed since the last call, and the marks that belong to it.
    fn collect(&self, batch: &mut KeyedBatch);
    /// Tells whether the collected changes were written; if not, they stay dirty.
    fn written(&self, success: bool);
    /// Number of changed keys.
    fn dirty_keys(&self) -> usize;
}

/// Writes back all keyed views of one store together.
pub struct WriteBack {
    store: Arc<dyn KeyedStore>,
    views: Mutex<Vec<Arc<dyn Dirty>>>,
    /// One flush at a time: two would interleave marks.
    flushing: Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Told<'a> {
    views: &'a [Arc<dyn Dirty>],
    success: bool,
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        for view in self.views {
            view.written(self.success);
        }
    }
}

impl WriteBack {
    /// Writes to `store`.
    pub fn new(store: Arc<dyn KeyedStore>) -> Self {
        Self { store, views: Mutex::new(Vec::new()), flushing: Mutex::new(()) }
    }

    /// The store behind it.
    pub fn store(&self) -> &Arc<dyn KeyedStore> {
        &self.store
    }

    /// Takes a view in.
    pub fn register(&self, view: Arc<dyn Dirty>) {
        lock(&self.views).push(view);
    }

    /// Lets a view go: its changes are not written any more. Returns when no write of them is under way.
    pub fn release(&self, view: &Arc<dyn Dirty>) {
        let _one_at_a_time = lock(&self.flushing);
        lock(&self.views).retain(|known| !Arc::ptr_eq(known, view));
    }

    /// Writes everything that changed in one batch; answers the number of keys.
    pub fn flush(&self) -> Result<usize, StoreError> {
        let _one_at_a_time = lock(&self.flushing);
        let views = lock(&self.views).clone();
        let mut batch = KeyedBatch::default();
        for view in &views {
            view.collect(&mut batch);
        }
        let keys = batch.puts.len();
        // Whatever happens in the store, a panic included, every view is told.
        let mut told = Told { views: &views, success: false };
        let outcome = if batch.is_empty() { Ok(()) } else { self.store.write(batch) };
        told.success = outcome.is_ok();
        drop(told);
        outcome.map(|()| keys)
    }

    /// Runs something while no flush is under way, such as clearing a table.
    pub fn exclusively<T>(&self, act: impl FnOnce() -> T) -> T {
        let _one_at_a_time = lock(&self.flushing);
        act()
    }

    /// Number of keys that wait.
    pub fn dirty_keys(&self) -> usize {
        lock(&self.views).iter().map(|view| view.dirty_keys()).sum()
    }
}
