//! The tree as others see it: tiles, checkpoints that it signs, proofs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use highwater_log::keyed::KeyedStore;

use crate::AuditError;
use crate::checkpoint::Checkpoint;
use crate::note::{SignedNote, Signer, Verifier};
use crate::proof::Proof;
use crate::statement::{self, Said, Statement};
use crate::tree::{self, Hash, TILE, Tiles};
use crate::view::{TREE, bundle_key, hashes, tile_key};

/// The tree as readers know it: tiles, proofs, and checkpoints that it signs.
pub struct Tree {
    store: Arc<dyn KeyedStore>,
    origin: String,
    state: Mutex<Published>,
    /// As the statements say; asked for by every read of the trail, which must not wait for a checkpoint.
    pruned: AtomicU64,
}

struct Published {
    /// The newest key first.
    signers: Vec<Signer>,
    /// The newest tree that was signed, and the signed note.
    last: Option<(Checkpoint, SignedNote)>,
    /// The newest tree that witnesses have signed, too.
    witnessed: Option<(Checkpoint, SignedNote)>,
    /// What the keys have signed beside checkpoints, in its order.
    statements: Vec<(Statement, SignedNote)>,
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
        let state = Published { signers, last: None, witnessed: None, statements: Vec::new() };
        let pruned = AtomicU64::new(0);
        Self { store, origin: origin.to_owned(), state: Mutex::new(state), pruned }
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
        self.state().verifiers()
    }

    /// Signs with other keys from now on, the newest first; the newest checkpoint, too.
    pub fn sign_with(&self, signers: Vec<Signer>) {
        let mut state = self.state();
        if let Some((checkpoint, note)) = &mut state.last {
            *note = checkpoint.sign(&signers);
        }
        state.signers = signers;
    }

    /// What the keys have signed beside checkpoints, one behind the other.
    pub fn statements(&self) -> String {
        self.state().statements.iter().map(|(_, note)| note.to_string()).collect()
    }

    /// The first entry that is not past its retention.
    pub fn pruned(&self) -> u64 {
        self.pruned.load(Ordering::Acquire)
    }

    /// Whether it was stated that something was taken out of an entry.
    pub fn is_erased(&self, entry: u64) -> bool {
        let erased = |said: &Said| matches!(said, Said::Erased(entries) if entries.contain(entry));
        self.state().statements.iter().any(|(statement, _)| erased(&statement.said))
    }

    /// Signs a statement with its keys, and with one that it is about.
    pub fn state_that(&self, said: Said, at: i64, also: Option<&Signer>) -> SignedNote {
        let state = self.state();
        let statement = Statement { origin: self.origin.clone(), at, said };
        // A change is between two keys, whoever else signs checkpoints.
        let signers =
            if also.is_some() { state.signers.get(..1).unwrap_or_default() } else { &state.signers };
        SignedNote::sign(statement.text(), signers.iter().chain(also))
    }

    /// Takes in what was stated.
    pub fn stated(&self, note: SignedNote) -> Result<(), AuditError> {
        let statement = Statement::open(&note)?;
        let mut state = self.state();
        if statement.origin != self.origin {
            return Err(AuditError::Changed(format!("a statement is one of \"{}\"", statement.origin)));
        }
        if let Said::Pruned { end, .. } = statement.said {
            self.pruned.fetch_max(end, Ordering::AcqRel);
        }
        state.statements.push((statement, note));
        Ok(())
    }

    /// Says what was signed before: nothing is signed any more that does not continue it.
    pub fn continue_from(&self, note: SignedNote) -> Result<(), AuditError> {
        let mut state = self.state();
        state.last = Some((self.own(&state, &note)?, note));
        Ok(())
    }

    /// Says which checkpoint witnesses have signed: proofs lead to it where they can.
    pub fn witnessed_is(&self, note: SignedNote) -> Result<(), AuditError> {
        let mut state = self.state();
        state.witnessed = Some((self.own(&state, &note)?, note));
        Ok(())
    }

    /// The newest checkpoint that witnesses have signed.
    pub fn witnessed(&self) -> Option<SignedNote> {
        self.state().witnessed.as_ref().map(|(_, note)| note.clone())
    }

    /// A checkpoint that one of its keys has signed at some time.
    fn own(&self, state: &Published, note: &SignedNote) -> Result<Checkpoint, AuditError> {
        let checkpoint = Checkpoint::open(note, &state.all_verifiers())?;
        if checkpoint.origin != self.origin {
            return Err(AuditError::Changed(format!(
                "the last checkpoint is one of \"{}\", not of \"{}\"",
                checkpoint.origin, self.origin
            )));
        }
        Ok(checkpoint)
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
        let note = checkpoint.sign(&state.signers);
        state.last = Some((checkpoint, note.clone()));
        Ok(note)
    }

    /// That an entry is in the tree of a checkpoint: one that witnesses have signed, when it is that old.
    pub fn proof(&self, index: u64) -> Result<Proof, AuditError> {
        let witnessed = self.state().witnessed.clone().filter(|(checkpoint, _)| index < checkpoint.size);
        if let Some((Checkpoint { size, root, .. }, note)) = witnessed
            // While the tree is built anew it does not reach so far.
            && tree::root(self, size).is_ok_and(|now| now == root)
        {
            return Ok(Proof { index, path: tree::inclusion(self, index, size)?, checkpoint: note });
        }
        let checkpoint = self.checkpoint()?;
        let size = Checkpoint::parse(&checkpoint.text)?.size;
        Ok(Proof { index, path: tree::inclusion(self, index, size)?, checkpoint })
    }

    /// The root of the tree of so many entries.
    pub fn root(&self, size: u64) -> Result<Hash, AuditError> {
        tree::root(self, size)
    }

    /// The hashes that show the tree of `new` entries to continue that of `old` ones.
    pub fn consistency(&self, old: u64, new: u64) -> Result<Vec<Hash>, AuditError> {
        tree::consistency(self, old, new)
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

impl Published {
    fn verifiers(&self) -> Vec<Verifier> {
        self.signers.iter().map(Signer::verifier).collect()
    }

    /// Keys that sign now or did before.
    fn all_verifiers(&self) -> Vec<Verifier> {
        let statements: Vec<Statement> = self.statements.iter().map(|(said, _)| said.clone()).collect();
        statement::predecessors(&self.verifiers(), &statements)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pruned;
    use crate::view::AuditTree;
    use highwater_event::ManualClock;
    use highwater_log::audit::{Entry, append, partition};
    use highwater_log::view::View;
    use highwater_log::{Commit, Journal, JournalOptions, Log, LogBatch};
    use highwater_sim::{SimDisk, SimStore, machine, vault};

    fn log() -> Arc<Journal> {
        let machine = machine(&SimDisk::new(), ManualClock::at(1));
        let options = JournalOptions { vault: Some(vault()), ..JournalOptions::at("log") };
        Arc::new(Journal::open(options, &machine).unwrap())
    }

    fn view(store: &SimStore) -> AuditTree {
        AuditTree::new(Arc::new(store.clone()), log())
    }

    async fn grow(view: &mut AuditTree, from: u64, to: u64) {
        put(view, from, from, to).await;
    }

    /// Entries with these numbers, from a place on.
    async fn put(view: &mut AuditTree, base: u64, from: u64, to: u64) {
        let entries: Vec<Entry> = (from..to)
            .map(|number| Entry {
                actor: format!("user {number}").into(),
                salt: [number as u8; 16],
                ..Entry::default()
            })
            .collect();
        let rows = append(&entries).unwrap().rows;
        let applied = view.apply(&partition(), vec![LogBatch { base, recorded_at: 0, rows }]).await.unwrap();
        assert_eq!(applied.out, to - from);
    }

    fn tree_over(store: &SimStore) -> Tree {
        let signer = Signer::new("log.example", &[5; 32]).unwrap();
        Tree::new(Arc::new(store.clone()), "log.example", vec![signer])
    }

    #[tokio::test]
    async fn however_it_grew_it_is_the_same_tree() {
        let (whole, parts) = (SimStore::new(), SimStore::new());
        grow(&mut view(&whole), 0, 1000).await;
        let mut from = 0;
        for to in [1, 255, 256, 300, 512, 777, 1000] {
            // Another owner each time, who knows only what is stored.
            grow(&mut view(&parts), from, to).await;
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
        grow(&mut view(&store), 0, 300).await;
        let signed = tree_over(&store).checkpoint().unwrap();
        // Fewer entries than were signed.
        grow(&mut view(&other), 0, 299).await;
        let tree = tree_over(&other);
        tree.continue_from(signed.clone()).unwrap();
        assert!(matches!(tree.checkpoint(), Err(AuditError::Missing(_))));
        // As many, but other ones.
        put(&mut view(&other), 299, 298, 400).await;
        assert!(matches!(tree.checkpoint(), Err(AuditError::Changed(_))));
        // Those that were signed, and more.
        grow(&mut view(&store), 300, 400).await;
        let tree = tree_over(&store);
        tree.continue_from(signed).unwrap();
        assert_eq!(Checkpoint::parse(&tree.checkpoint().unwrap().text).unwrap().size, 400);
    }

    #[tokio::test]
    async fn it_is_the_same_tree_when_old_entries_are_gone() {
        let (whole, rest) = (SimStore::new(), SimStore::new());
        grow(&mut view(&whole), 0, 1000).await;
        let tree = tree_over(&whole);
        let log = log();
        for bundle in 0..2 {
            let append = pruned::append(bundle, &[tree.bundle(bundle).unwrap()], 5).unwrap();
            log.append(Commit { appends: vec![append], ..Commit::default() }).await.unwrap();
        }
        assert_eq!(pruned::end(log.as_ref()), 512);
        let derived = || AuditTree::new(Arc::new(rest.clone()), log.clone());
        // Segments end where they do; what is there of the entries that may go is taken as it is.
        for (from, skip) in [(0, 300), (300, 512)] {
            assert_eq!(tree_over(&rest).size().unwrap(), from);
            derived().skip(&partition(), skip).await.unwrap();
        }
        assert!(derived().skip(&partition(), 600).await.is_err(), "nobody kept the commitments of these");
        grow(&mut derived(), 512, 1000).await;
        assert_eq!(tree_over(&rest).checkpoint().unwrap(), tree.checkpoint().unwrap());
    }

    #[tokio::test]
    async fn another_key_takes_over_and_old_checkpoints_are_still_its_own() {
        let store = SimStore::new();
        grow(&mut view(&store), 0, 10).await;
        let tree = tree_over(&store);
        let before = tree.checkpoint().unwrap();
        let key = |seed| Signer::new("log.example", &[seed; 32]).unwrap();
        let said = Said::Key { from: key(5).verifier(), to: key(6).verifier() };
        let note = tree.state_that(said, 7, Some(&key(6)));
        tree.stated(note.clone()).unwrap();
        tree.sign_with(vec![key(6), key(5)]);
        let both = tree.checkpoint().unwrap();
        assert_eq!(
            (both.verify(&[key(5).verifier()]).unwrap(), both.verify(&[key(6).verifier()]).unwrap()),
            (1, 1)
        );
        tree.sign_with(vec![key(6)]);
        assert_eq!(tree.checkpoint().unwrap().verify(&[key(5).verifier()]).unwrap(), 0);
        // After a start.
        let tree = Tree::new(Arc::new(store.clone()), "log.example", vec![key(6)]);
        assert!(tree.continue_from(before.clone()).is_err());
        tree.stated(note).unwrap();
        tree.continue_from(before).unwrap();
    }
}
