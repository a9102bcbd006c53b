//! The embedded store.
//!
//! Each table is a keyspace, marks are a keyspace of their own. A batch is one fjall batch, which is
//! atomic across keyspaces. Readers must not see half of one, as a snapshot would that is taken while it is
//! applied: until it is whole, they get the snapshot that was taken before. Nobody waits for it.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use fjall::compaction::Leveled;
use fjall::config::{
    BloomConstructionPolicy, CompressionPolicy, FilterPolicy, FilterPolicyEntry, PartitioningPolicy,
    PinningPolicy,
};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode, Readable, Snapshot};
use highwater_event::{Partition, planted};
use highwater_log::keyed::{KeyedBatch, KeyedSnapshot, KeyedStore, Mark, StoreError, Visit};

const MARKS: &str = "marks";

/// A fjall database.
pub struct FjallStore {
    database: Database,
    keyspaces: Mutex<HashMap<String, Keyspace>>,
    marks: Keyspace,
    /// What readers see while a batch is applied: the store without it.
    before: RwLock<Option<Snapshot>>,
    /// One batch at a time.
    applying: Mutex<()>,
}

fn unavailable(error: fjall::Error) -> StoreError {
    match error {
        fjall::Error::Poisoned => StoreError::Stopped(error.to_string()),
        other => StoreError::Unavailable(other.to_string()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FjallStore {
    /// Opens the store in a folder. A store whose journal did not survive a power cut is set aside and
    /// started anew: everything in it is derived from the log.
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<Self, StoreError> {
        let open = || {
            Database::builder(dir)
                .cache_size(cache_bytes)
                .worker_threads(2)
                .max_journaling_size(512 << 20)
                .open()
        };
        let database = match open() {
            Ok(database) => database,
            Err(
                error @ (fjall::Error::JournalRecovery(_)
                | fjall::Error::InvalidTrailer
                | fjall::Error::InvalidTag(_)),
            ) => {
                let aside = set_aside(dir)?;
                tracing::error!(%error, aside = %aside.display(), "the keyed store is damaged; it is set aside and every table is derived from the log again");
                open().map_err(unavailable)?
            }
            Err(error) => return Err(unavailable(error)),
        };
        let marks = database.keyspace(MARKS, KeyspaceCreateOptions::default).map_err(unavailable)?;
        Ok(Self {
            database,
            keyspaces: Mutex::new(HashMap::new()),
            marks,
            before: RwLock::new(None),
            applying: Mutex::new(()),
        })
    }

    fn keyspace(&self, table: &str) -> Result<Keyspace, StoreError> {
        let mut keyspaces = lock(&self.keyspaces);
        if let Some(keyspace) = keyspaces.get(table) {
            return Ok(keyspace.clone());
        }
        let options = || if table.starts_with(LOADED) { loaded_options() } else { table_options() };
        let keyspace = self.database.keyspace(&keyspace_name(table), options).map_err(unavailable)?;
        keyspaces.insert(table.to_owned(), keyspace.clone());
        Ok(keyspace)
    }

    /// Applies a batch; readers see all of it from some moment on.
    fn apply(&self, batch: OwnedWriteBatch) -> Result<(), StoreError> {
        let _one_at_a_time = lock(&self.applying);
        let _shown = Shown::instead_of(&self.before, self.database.snapshot());
        batch.commit().map_err(unavailable)
    }
}

/// Readers see a snapshot until this is dropped.
struct Shown<'a>(&'a RwLock<Option<Snapshot>>);

impl<'a> Shown<'a> {
    fn instead_of(place: &'a RwLock<Option<Snapshot>>, snapshot: Snapshot) -> Self {
        *place.write().unwrap_or_else(PoisonError::into_inner) = Some(snapshot);
        Self(place)
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn table_options() -> KeyspaceCreateOptions {
    let filter = FilterPolicyEntry::Bloom(BloomConstructionPolicy::BitsPerKey(12.0));
    KeyspaceCreateOptions::default().max_memtable_size(32 << 20).filter_policy(FilterPolicy::all(filter))
}

/// First letters of tables that are written in sorted runs of random keys and mostly asked for keys that
/// they do not hold.
const LOADED: &str = "_ids/";

fn loaded_options() -> KeyspaceCreateOptions {
    let filter = FilterPolicyEntry::Bloom(BloomConstructionPolicy::BitsPerKey(10.0));
    KeyspaceCreateOptions::default()
        .filter_policy(FilterPolicy::all(filter))
        // In parts of 4 KiB that the block cache holds while they are asked for: whole and pinned they would take a byte
        // and a half of memory for every id that was ever taken.
        .filter_block_partitioning_policy(PartitioningPolicy::all(true))
        .index_block_partitioning_policy(PartitioningPolicy::all(true))
        .filter_block_pinning_policy(PinningPolicy::all(false))
        .index_block_pinning_policy(PinningPolicy::all(false))
        .data_block_compression_policy(CompressionPolicy::disabled())
        // Questions hardly ever come through to the runs, so they are merged rarely: each merge writes
        // most of what there is, because keys are random.
        .compaction_strategy(Arc::new(Leveled::default().with_l0_threshold(64)))
}

fn keyspace_name(table: &str) -> String {
    table.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '#' }).collect()
}

fn set_aside(dir: &Path) -> Result<PathBuf, StoreError> {
    for number in 1..1000 {
        let aside = dir.with_extension(format!("damaged-{number}"));
        if !aside.exists() {
            std::fs::rename(dir, &aside).map_err(|error| StoreError::Unavailable(error.to_string()))?;
            return Ok(aside);
        }
    }
    Err(StoreError::Unavailable("too many damaged stores are set aside; remove them".into()))
}

fn mark_key(view: &str, partition: Partition) -> Vec<u8> {
    [view.as_bytes(), &[0], &partition.to_be_bytes()].concat()
}

impl KeyedStore for FjallStore {
    fn get(&self, table: &str, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.keyspace(table)?.get(key).map_err(unavailable)?.map(|value| value.to_vec()))
    }

    fn snapshot(&self, table: &str) -> Result<Box<dyn KeyedSnapshot>, StoreError> {
        let keyspace = self.keyspace(table)?;
        // Held until it is taken: no batch begins meanwhile.
        let before = self.before.read().unwrap_or_else(PoisonError::into_inner);
        let snapshot = before.clone().unwrap_or_else(|| self.database.snapshot());
        Ok(Box::new(TableSnapshot { snapshot, keyspace }))
    }

    fn write(&self, batch: KeyedBatch) -> Result<(), StoreError> {
        // The page cache survives the process; a power cut takes a suffix of batches, never a part of one.
        let mut write = self.database.batch().durability(Some(PersistMode::Buffer));
        let mut last: Option<(Arc<str>, Keyspace)> = None;
        for (table, key, value) in batch.puts {
            let keyspace = match &last {
                Some((name, keyspace)) if *name == table => keyspace.clone(),
                _ => {
                    let keyspace = self.keyspace(&table)?;
                    last = Some((table, keyspace.clone()));
                    keyspace
                }
            };
            match value {
                Some(value) => write.insert(&keyspace, key, value),
                None => write.remove(&keyspace, key),
            }
        }
        for ((view, partition), mark) in batch.marks {
            let value = postcard::to_stdvec(&mark).map_err(|error| StoreError::Damaged(error.to_string()))?;
            write.insert(&self.marks, mark_key(&view, partition), value);
        }
        planted::stop("store:before_commit");
        self.apply(write)?;
        planted::stop("store:committed");
        Ok(())
    }

    fn marks(&self, view: &str) -> Result<BTreeMap<Partition, Mark>, StoreError> {
        let prefix = [view.as_bytes(), &[0]].concat();
        let mut marks = BTreeMap::new();
        for entry in self.marks.prefix(&prefix) {
            let (key, value) = entry.into_inner().map_err(unavailable)?;
            let partition = key
                .get(prefix.len()..)
                .and_then(|bytes| <[u8; 4]>::try_from(bytes).ok())
                .map(u32::from_be_bytes)
                .ok_or_else(|| StoreError::Damaged("the key of a mark".into()))?;
            let mark =
                postcard::from_bytes(&value).map_err(|error| StoreError::Damaged(error.to_string()))?;
            marks.insert(partition, mark);
        }
        Ok(marks)
    }

    fn clear(&self, table: &str) -> Result<(), StoreError> {
        let partitions: Vec<Partition> = self.marks(table)?.into_keys().collect();
        // Marks go first: a table without marks is derived again from the start, whatever it still holds.
        let mut write = self.database.batch().durability(Some(PersistMode::SyncData));
        for partition in partitions {
            write.remove(&self.marks, mark_key(table, partition));
        }
        self.apply(write)?;
        // The keyspace goes as a whole and the next one of that name is a new one: emptying it would be
        // repeated by a recovery, after keys that were loaded since.
        let keyspace = self.keyspace(table)?;
        {
            // Held until it is deleted: nobody may get the old one in between and go on writing to it.
            let mut keyspaces = lock(&self.keyspaces);
            keyspaces.remove(table);
            self.database.delete_keyspace(keyspace).map_err(unavailable)?;
        }
        self.database.persist(PersistMode::SyncData).map_err(unavailable)
    }

    fn load<'a>(
        &self,
        table: &str,
        sorted: &mut dyn Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<(), StoreError> {
        let keyspace = self.keyspace(table)?;
        let mut load = keyspace.start_ingestion().map_err(unavailable)?;
        for (key, value) in sorted {
            load.write(key, value).map_err(unavailable)?;
        }
        // Visible when it is done: not while readers see what was before.
        let _one_at_a_time = lock(&self.applying);
        load.finish().map_err(unavailable)
    }

    fn bytes_on_disk(&self) -> u64 {
        self.database.disk_space().unwrap_or(0)
    }
}

struct TableSnapshot {
    snapshot: Snapshot,
    keyspace: Keyspace,
}

impl KeyedSnapshot for TableSnapshot {
    fn scan(&self, from: &[u8], visit: Visit<'_>) -> Result<(), StoreError> {
        for entry in self.snapshot.range(&self.keyspace, from.to_vec()..) {
            let (key, value) = entry.into_inner().map_err(unavailable)?;
            if !visit(&key, &value) {
                break;
            }
        }
        Ok(())
    }

    fn last_key(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let last = self.snapshot.iter(&self.keyspace).next_back();
        last.map(|entry| entry.key().map(|key| key.to_vec()).map_err(unavailable)).transpose()
    }
}
