//! The tree as a view of `_audit`: tiles and mark in one batch of the keyed store.
//!
//! ```text
//! table audit:tree     't' level:u8 index:u64   hashes of a tile, one after the other
//!                      'e' index:u64            commitments of 256 entries, one after the other
//! ```
//! Integers are big-endian. The mark of the view is the size of the tree. Tiles only grow, so that a part of
//! one answers for every smaller tree.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use highwater_event::{Offset, StreamName, StreamPartition, planted};
use highwater_log::audit::AUDIT;
use highwater_log::keyed::{KeyedBatch, KeyedStore, Mark};
use highwater_log::machine::give_way;
use highwater_log::view::{Applied, Gather, View, ViewError};
use highwater_log::{Log, LogBatch};

use crate::leaf::records;
use crate::pruned;
use crate::tree::{Hash, TILE, fold, leaf_hash};

/// Name of the view and of its table.
pub const TREE: &str = "audit:tree";
/// Levels of tiles that 2⁶³ entries need.
const LEVELS: u8 = 8;

pub(crate) fn tile_key(level: u8, index: u64) -> Vec<u8> {
    [&[b't', level][..], &index.to_be_bytes()].concat()
}

pub(crate) fn bundle_key(index: u64) -> Vec<u8> {
    [&b"e"[..], &index.to_be_bytes()].concat()
}

pub(crate) fn hashes(bytes: &[u8]) -> Vec<Hash> {
    bytes.as_chunks::<32>().0.to_vec()
}

/// Keeps the tree up.
pub struct AuditTree {
    store: Arc<dyn KeyedStore>,
    /// Has the commitments of entries that are gone.
    log: Arc<dyn Log>,
    /// Its newest tiles, by level, and its newest bundle, as they stand in the store.
    newest: Option<Newest>,
}

#[derive(Debug, Clone, Default)]
struct Newest {
    size: u64,
    bundle: Vec<Hash>,
    tiles: Vec<Vec<Hash>>,
}

impl AuditTree {
    /// A view that writes to a store. Where entries of the log are gone it takes what the log kept of them.
    pub fn new(store: Arc<dyn KeyedStore>, log: Arc<dyn Log>) -> Self {
        Self { store, log, newest: None }
    }

    fn newest(&self) -> Result<Newest, ViewError> {
        if let Some(newest) = &self.newest {
            return Ok(newest.clone());
        }
        let size = self.store.marks(TREE)?.get(&0).map_or(0, |mark| mark.offset);
        let read = |key: Vec<u8>, width: u64| -> Result<Vec<Hash>, ViewError> {
            let stored = if width == 0 { None } else { self.store.get(TREE, &key)? };
            let stored = hashes(&stored.unwrap_or_default());
            if stored.len() as u64 != width {
                return Err(ViewError::Broken(
                    "the tree of the audit trail has lost hashes; `highwater rebuild audit:tree` derives it again"
                        .into(),
                ));
            }
            Ok(stored)
        };
        let mut newest =
            Newest { size, bundle: read(bundle_key(size / TILE), size % TILE)?, tiles: Vec::new() };
        let mut hashes = size;
        for level in 0..LEVELS {
            newest.tiles.push(read(tile_key(level, hashes / TILE), hashes % TILE)?);
            hashes /= TILE;
        }
        Ok(newest)
    }

    /// Writes what changed, with the mark.
    fn write(&mut self, newest: Newest, mut changed: BTreeMap<Vec<u8>, Vec<u8>>) -> Result<(), ViewError> {
        changed.extend(newest.partial());
        let table: Arc<str> = TREE.into();
        let mark = Mark { offset: newest.size, ..Mark::default() };
        self.store.write(KeyedBatch {
            puts: changed.into_iter().map(|(key, value)| (table.clone(), key, Some(value))).collect(),
            marks: BTreeMap::from([((table.clone(), 0), mark)]),
        })?;
        self.newest = Some(newest);
        Ok(())
    }
}

impl Newest {
    /// Takes the next entry; tiles that became full go to `full`.
    fn push(&mut self, commitment: Hash, full: &mut BTreeMap<Vec<u8>, Vec<u8>>) {
        let (mut hash, mut at) = (leaf_hash(&commitment), self.size);
        self.bundle.push(commitment);
        self.size += 1;
        if self.bundle.len() as u64 == TILE {
            full.insert(bundle_key(at / TILE), self.bundle.concat());
            self.bundle.clear();
        }
        for (level, tile) in self.tiles.iter_mut().enumerate() {
            tile.push(hash);
            if (tile.len() as u64) < TILE {
                return;
            }
            full.insert(tile_key(level as u8, at / TILE), tile.concat());
            hash = fold(tile);
            at /= TILE;
            tile.clear();
        }
    }

    /// The tiles that are not full.
    fn partial(&self) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
        let mut hashes = self.size;
        let tiles = self.tiles.iter().enumerate().map(move |(level, tile)| {
            hashes /= if level == 0 { 1 } else { TILE };
            (tile_key(level as u8, hashes / TILE), tile)
        });
        let bundle = (bundle_key(self.size / TILE), &self.bundle);
        let partial = tiles.chain([bundle]).filter(|(_, hashes)| !hashes.is_empty());
        partial.map(|(key, hashes)| (key, hashes.concat()))
    }
}

#[async_trait]
impl View for AuditTree {
    fn name(&self) -> &str {
        TREE
    }

    fn kind(&self) -> &'static str {
        "tree"
    }

    fn sources(&self) -> Vec<StreamName> {
        vec![StreamName::system(AUDIT)]
    }

    fn gather(&self) -> Gather {
        Gather { rows: 4096, wait: Duration::from_millis(20) }
    }

    async fn mark(&mut self, _at: &StreamPartition) -> Result<Offset, ViewError> {
        Ok(self.store.marks(TREE)?.get(&0).map_or(0, |mark| mark.offset))
    }

    async fn apply(&mut self, _at: &StreamPartition, batches: Vec<LogBatch>) -> Result<Applied, ViewError> {
        let mut newest = self.newest()?;
        self.newest = None;
        let mut changed = BTreeMap::new();
        let mut taken = 0;
        for batch in batches {
            if batch.base != newest.size {
                let detail = format!("after entry {} of the audit trail comes {}", newest.size, batch.base);
                return Err(ViewError::Broken(detail));
            }
            let records = records(&batch.rows).map_err(|error| ViewError::Broken(error.to_string()))?;
            for record in records {
                let commitment = if planted::bug("unsalted") {
                    crate::leaf::commitment(&Default::default(), &record.json)
                } else {
                    record.commitment()
                };
                newest.push(commitment, &mut changed);
                taken += 1;
            }
            give_way();
        }
        self.write(newest, changed)?;
        Ok(Applied { taken, out: taken, ..Applied::default() })
    }

    async fn skip(&mut self, _at: &StreamPartition, to: Offset) -> Result<(), ViewError> {
        let mut newest = self.newest()?;
        self.newest = None;
        while newest.size < to {
            let kept = pruned::commitments(self.log.as_ref(), newest.size, to)
                .map_err(|error| ViewError::Broken(error.to_string()))?;
            let mut changed = BTreeMap::new();
            kept.into_iter().for_each(|commitment| newest.push(commitment, &mut changed));
            self.write(newest.clone(), changed)?;
        }
        Ok(())
    }

    async fn reset(&mut self) -> Result<(), ViewError> {
        self.newest = None;
        Ok(self.store.clear(TREE)?)
    }
}
