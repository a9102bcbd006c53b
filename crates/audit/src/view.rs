//! The tree as a view of `_audit`: tiles and mark in one batch of the keyed store.
//!
//! ```text
//! table audit:tree     't' level:u8 index:u64   hashes of a tile, one after the other
//!                      'e' index:u64            commitments of 256 entries, one after the other
//! ```
//! Integers are big-endian. The mark of the view is the size of the tree. Tiles only grow, so that a part of
//! one answers for every smaller tree.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use highwater_event::{Offset, StreamName, StreamPartition, planted};
use highwater_log::LogBatch;
use highwater_log::audit::AUDIT;
use highwater_log::keyed::{KeyedBatch, KeyedStore, Mark};
use highwater_log::view::{Applied, Gather, View, ViewError};

use crate::AuditError;
use crate::checkpoint::Checkpoint;
use crate::leaf::records;
use crate::note::{SignedNote, Signer, Verifier};
use crate::proof::Proof;
use crate::tree::{self, Hash, TILE, Tiles, fold, leaf_hash};

/// Name of the view and of its table.
pub const TREE: &str = "audit:tree";
/// Levels of tiles that 2⁶³ entries need.
const LEVELS: u8 = 8;

fn tile_key(level: u8, index: u64) -> Vec<u8> {
    [&[b't', level][..], &index.to_be_bytes()].concat()
}

fn bundle_key(index: u64) -> Vec<u8> {
    [&b"e"[..], &index.to_be_bytes()].concat()
}

fn hashes(bytes: &[u8]) -> Vec<Hash> {
    bytes.as_chunks::<32>().0.to_vec()
}

/// The tree as readers know it: tiles, proofs, and checkpoints that it signs.
pub struct Tree {
    store: Arc<dyn KeyedStore>,
    origin: String,
    signers: Vec<Signer>,
    state: Mutex<Published>,
}

#[derive(Default)]
struct Published {
    /// The newest tree that was signed, and the signed note.
    last: Option<(Checkpoint, SignedNote)>,
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tree").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl Tiles for Tree {
    fn tile(&self, level: u8, index: u64) -> Result<Vec<Hash>, AuditError> {
        Ok(self.store.get(TREE, &tile_key(level, index))?.map_or_else(Vec::new, |bytes| hashes(&bytes)))
    }
}

impl Tree {
    /// The tree in a store. It signs as `origin` with each of the keys.
    pub fn new(store: Arc<dyn KeyedStore>, origin: &str, signers: Vec<Signer>) -> Self {
        Self { store, origin: origin.to_owned(), signers, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, Published> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name that it signs under.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// What its signatures are verified with.
    pub fn verifiers(&self) -> Vec<Verifier> {
        self.signers.iter().map(Signer::verifier).collect()
    }

    /// Says what was signed before: nothing is signed any more that does not continue it.
    pub fn continue_from(&self, note: SignedNote) -> Result<(), AuditError> {
        let checkpoint = Checkpoint::open(&note, &self.verifiers())?;
        if checkpoint.origin != self.origin {
            return Err(AuditError::Changed(format!(
                "the last checkpoint is one of \"{}\", not of \"{}\"",
                checkpoint.origin, self.origin
            )));
        }
        self.state().last = Some((checkpoint, note));
        Ok(())
    }

    /// Entries in it.
    pub fn size(&self) -> Result<u64, AuditError> {
        Ok(self.store.marks(TREE)?.get(&0).map_or(0, |mark| mark.offset))
    }

    /// The newest checkpoint, signed. Refuses when the tree does not continue the last one that was signed.
    pub fn checkpoint(&self) -> Result<SignedNote, AuditError> {
        let mut state = self.state();
        let size = self.size()?;
        if let Some((last, note)) = &state.last {
            if size < last.size {
                return Err(AuditError::Missing(format!(
                    "the tree has {size} entries, but a checkpoint of {} was signed: it is still being built, or entries were lost",
                    last.size
                )));
            }
            if tree::root(self, last.size)? != last.root {
                return Err(AuditError::Changed(format!(
                    "the tree is not the one whose first {} entries were signed: entries were changed",
                    last.size
                )));
            }
            if size == last.size {
                return Ok(note.clone());
            }
        }
        let checkpoint = Checkpoint { origin: self.origin.clone(), size, root: tree::root(self, size)? };
        let note = checkpoint.sign(&self.signers);
        state.last = Some((checkpoint, note.clone()));
        Ok(note)
    }

    /// Takes in the signatures of witnesses under the checkpoint of so many entries, while it is the newest.
    pub fn cosigned(&self, size: u64, lines: &str) -> Result<(), AuditError> {
        match &mut self.state().last {
            Some((checkpoint, note)) if checkpoint.size == size => note.add(lines),
            _ => Ok(()),
        }
    }

    /// That an entry is in the newest checkpoint's tree.
    pub fn proof(&self, index: u64) -> Result<Proof, AuditError> {
        let checkpoint = self.checkpoint()?;
        let size = Checkpoint::parse(&checkpoint.text)?.size;
        Ok(Proof { index, path: tree::inclusion(self, index, size)?, checkpoint })
    }

    /// That the newest checkpoint's tree continues that of `old` entries: the hashes and the checkpoint.
    pub fn consistency(&self, old: u64) -> Result<(Vec<Hash>, SignedNote), AuditError> {
        let checkpoint = self.checkpoint()?;
        let size = Checkpoint::parse(&checkpoint.text)?.size;
        Ok((tree::consistency(self, old, size)?, checkpoint))
    }

    /// The commitments of a bundle of 256 entries so far.
    pub fn bundle(&self, index: u64) -> Result<Vec<Hash>, AuditError> {
        Ok(self.store.get(TREE, &bundle_key(index))?.map_or_else(Vec::new, |bytes| hashes(&bytes)))
    }

    /// What lies at `<L>/<N>[.p/<W>]` or `entries/<N>[.p/<W>]`; `None` when there is no such tile.
    pub fn resource(&self, path: &str) -> Result<Option<Vec<u8>>, AuditError> {
        let Some(TilePath { level, index, width }) = TilePath::parse(path) else { return Ok(None) };
        let hashes = match level {
            Some(level) => self.tile(level, index)?,
            None => self.bundle(index)?,
        };
        let Some(hashes) = hashes.get(..width) else { return Ok(None) };
        Ok(Some(match level {
            Some(_) => hashes.concat(),
            // Each entry behind its length.
            None => hashes.iter().flat_map(|entry| [&[0, 32][..], entry].concat()).collect(),
        }))
    }
}

/// The path of a tile or, without a level, of a bundle of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TilePath {
    level: Option<u8>,
    index: u64,
    width: usize,
}

impl TilePath {
    fn parse(path: &str) -> Option<Self> {
        let (level, rest) = path.split_once('/')?;
        let level = match level {
            "entries" => None,
            text => Some(text.parse::<u8>().ok().filter(|level| *level < 64 && level.to_string() == text)?),
        };
        let (index, width) = match rest.split_once(".p/") {
            Some((index, text)) => {
                let width: usize = text.parse().ok()?;
                (index, Some(width).filter(|width| (1..256).contains(width) && width.to_string() == text)?)
            }
            None => (rest, TILE as usize),
        };
        let mut number: u64 = 0;
        let mut parts = index.split('/').peekable();
        let mut first = true;
        while let Some(part) = parts.next() {
            let digits = if parts.peek().is_some() { part.strip_prefix('x')? } else { part };
            if digits.len() != 3 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            // `x000/001` would be a second name of `001`.
            if first && digits == "000" && parts.peek().is_some() {
                return None;
            }
            first = false;
            number = number.checked_mul(1000)?.checked_add(digits.parse().ok()?)?;
        }
        Some(Self { level, index: number, width })
    }
}

/// Keeps the tree up.
pub struct AuditTree {
    store: Arc<dyn KeyedStore>,
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
    /// A view that writes to a store.
    pub fn new(store: Arc<dyn KeyedStore>) -> Self {
        Self { store, newest: None }
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
        }
        changed.extend(newest.partial());
        let table: Arc<str> = TREE.into();
        let mark = Mark { offset: newest.size, ..Mark::default() };
        self.store.write(KeyedBatch {
            puts: changed.into_iter().map(|(key, value)| (table.clone(), key, Some(value))).collect(),
            marks: BTreeMap::from([((table.clone(), 0), mark)]),
        })?;
        self.newest = Some(newest);
        Ok(Applied { taken, out: taken, ..Applied::default() })
    }

    async fn skip(&mut self, _at: &StreamPartition, _to: Offset) -> Result<(), ViewError> {
        Err(ViewError::Broken("entries of the audit trail are gone that are not in its tree".into()))
    }

    async fn reset(&mut self) -> Result<(), ViewError> {
        self.newest = None;
        Ok(self.store.clear(TREE)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use highwater_log::audit::{Entry, append, partition};
    use highwater_sim::SimStore;

    async fn grow(view: &mut AuditTree, from: u64, to: u64) {
        let entries: Vec<Entry> = (from..to)
            .map(|number| Entry {
                actor: format!("user {number}").into(),
                salt: [number as u8; 16],
                ..Entry::default()
            })
            .collect();
        let rows = append(&entries).unwrap().rows;
        let applied =
            view.apply(&partition(), vec![LogBatch { base: from, recorded_at: 0, rows }]).await.unwrap();
        assert_eq!(applied.out, to - from);
    }

    fn tree_over(store: &SimStore) -> Tree {
        let signer = Signer::new("log.example", &[5; 32]).unwrap();
        Tree::new(Arc::new(store.clone()), "log.example", vec![signer])
    }

    #[tokio::test]
    async fn however_it_grew_it_is_the_same_tree() {
        let (whole, parts) = (SimStore::new(), SimStore::new());
        grow(&mut AuditTree::new(Arc::new(whole.clone())), 0, 1000).await;
        let mut from = 0;
        for to in [1, 255, 256, 300, 512, 777, 1000] {
            // Another owner each time, who knows only what is stored.
            grow(&mut AuditTree::new(Arc::new(parts.clone())), from, to).await;
            from = to;
        }
        let (whole, parts) = (tree_over(&whole), tree_over(&parts));
        assert_eq!(whole.checkpoint().unwrap(), parts.checkpoint().unwrap());
        for index in [0, 255, 256, 999] {
            let proof = whole.proof(index).unwrap();
            let again = Proof::parse(&proof.text()).unwrap();
            assert_eq!(again, proof);
            let commitment = whole.bundle(index / 256).unwrap()[index as usize % 256];
            assert_eq!(again.verify(&commitment, &whole.verifiers()).unwrap().size, 1000);
            assert!(again.verify(&[0; 32], &whole.verifiers()).is_err());
        }
        assert!(whole.proof(1000).is_err());
        assert_eq!(whole.resource("0/003.p/232").unwrap().unwrap().len(), 232 * 32);
        assert_eq!(whole.resource("0/003.p/233").unwrap(), None);
        assert_eq!(whole.resource("1/000.p/3").unwrap().unwrap().len(), 96);
        assert_eq!(whole.resource("entries/000").unwrap().unwrap().len(), 256 * 34);
        for bad in
            ["0/3", "0/x000/003", "00/000", "64/000", "0/000.p/0", "0/000.p/256", "x/000", "0", "0/000/../1"]
        {
            assert_eq!(whole.resource(bad).unwrap(), None, "{bad}");
        }
    }

    #[tokio::test]
    async fn nothing_is_signed_that_does_not_continue_what_was() {
        let (store, other) = (SimStore::new(), SimStore::new());
        grow(&mut AuditTree::new(Arc::new(store.clone())), 0, 300).await;
        let signed = tree_over(&store).checkpoint().unwrap();
        // Fewer entries than were signed.
        grow(&mut AuditTree::new(Arc::new(other.clone())), 0, 299).await;
        let tree = tree_over(&other);
        tree.continue_from(signed.clone()).unwrap();
        assert!(matches!(tree.checkpoint(), Err(AuditError::Missing(_))));
        // As many, but other ones.
        grow(&mut AuditTree::new(Arc::new(other.clone())), 298, 400).await;
        assert!(matches!(tree.checkpoint(), Err(AuditError::Changed(_))));
        // Those that were signed, and more.
        grow(&mut AuditTree::new(Arc::new(store.clone())), 300, 400).await;
        let tree = tree_over(&store);
        tree.continue_from(signed).unwrap();
        assert_eq!(Checkpoint::parse(&tree.checkpoint().unwrap().text).unwrap().size, 400);
    }
}
