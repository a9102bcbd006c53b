//! What the node states about its audit trail, signed: that another key signs it from now on, and that entries
//! past their retention are gone.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use highwater_audit::tree::{TILE, Tiles, leaf_hash};
use highwater_audit::{AuditError, Said, SignedNote, Signer, Statement, Tree, pruned, statement};
use highwater_event::{Offset, Principal};
use highwater_log::audit;
use highwater_log::{Commit, ReadError};

use super::system::{self, Command, CommandKind};
use super::trail::Leaf;
use super::{Node, secrets};

/// Bundles of commitments that are written in one commit.
const TOGETHER: usize = 64;

/// Signers under a name, for the keys of a data folder, the newest first.
pub(super) fn signers(origin: &str, seeds: &[[u8; 32]]) -> Result<Vec<Signer>, AuditError> {
    seeds.iter().map(|seed| Signer::new(origin, seed)).collect()
}

/// A change of keys that was stated and then interrupted is ended; one that was not stated is forgotten.
pub(super) fn finish_key_change(data: &Path, tree: &Tree) -> anyhow::Result<()> {
    let Some(seeds) = secrets::next_audit_keys(data)? else { return Ok(()) };
    let next = signers(tree.origin(), &seeds)?;
    let stated = statement::read(&tree.statements())?;
    let stated = stated.iter().map(Statement::open).collect::<Result<Vec<_>, _>>()?;
    let takes_over = next.first().is_some_and(|next| {
        stated.iter().any(|known| matches!(&known.said, Said::Key { to, .. } if *to == next.verifier()))
    });
    if !takes_over {
        return secrets::forget_next_audit_keys(data);
    }
    secrets::take_next_audit_keys(data)?;
    tree.sign_with(next);
    Ok(())
}

impl Node {
    /// A statement and its entry of the trail are one commit.
    pub(super) async fn state(&self, note: SignedNote, leaf: &Leaf) -> anyhow::Result<()> {
        let _one_at_a_time = self.declaring.lock().await;
        let command = Command::new(CommandKind::State, note.to_string());
        let now = self.machine.clock.now_micros();
        let append = system::append(&[command], &leaf.entry.actor, now)?;
        self.log.append(Commit { appends: vec![append, leaf.append()?], ..Commit::default() }).await?;
        leaf.settle();
        Ok(self.tree.stated(note)?)
    }

    /// Signs the trail with a new key from now on. The old one signs along, so that whoever knows it alone can
    /// go on verifying, unless `at_once`: then it may be known to others. Answers the new key.
    pub async fn change_audit_key(self: &Arc<Self>, at_once: bool, mut leaf: Leaf) -> anyhow::Result<String> {
        let node = self.clone();
        let change = async move {
            let _alone = node.keeping.lock().await;
            let seed = secrets::random_key(node.machine.randomness.as_ref())?;
            let next = Signer::new(node.tree.origin(), &seed)?;
            let from = node.tree.verifiers().first().cloned().context("no key signs the trail")?;
            let to = next.verifier();
            let known = secrets::audit_keys(&node.options.data, node.machine.randomness.as_ref())?;
            let old = known.first().filter(|_| !at_once);
            let seeds: Vec<[u8; 32]> = [&seed].into_iter().chain(old).copied().collect();
            secrets::stage_audit_keys(&node.options.data, &seeds)?;
            let said = Said::Key { from: from.clone(), to: to.clone() };
            let note = node.tree.state_that(said, node.machine.clock.now_micros(), Some(&next));
            let seen =
                serde_json::json!({"from": from.to_string(), "to": to.to_string(), "at_once": at_once});
            leaf.entry.seen = Some(seen.to_string());
            node.state(note, &leaf).await?;
            secrets::take_next_audit_keys(&node.options.data)?;
            node.tree.sign_with(signers(node.tree.origin(), &seeds)?);
            anyhow::Ok(to.to_string())
        };
        // Goes on to its end when the caller goes away.
        self.machine.scheduler.complete(change).await?
    }

    /// Lets entries go that are past the retention of the trail: their commitments stay in the log, the tree stays
    /// whole, and a signed statement says so. Answers how many.
    pub(super) async fn prune_trail(&self) -> anyhow::Result<u64> {
        let Some(retention) = self.options.audit_retention else { return Ok(0) };
        let before = self.machine.clock.now_micros().saturating_sub(retention.as_micros() as i64);
        let gone = self.tree.pruned();
        let end = self.recorded_before(before, gone, self.tree.size()?)?;
        let end = end - end % TILE;
        if end <= gone {
            return Ok(0);
        }
        let mut next = pruned::end(self.log.as_ref()) / TILE;
        while next * TILE < end {
            let until = (end / TILE).min(next + TOGETHER as u64);
            let bundles = (next..until).map(|bundle| whole_bundle(&self.tree, bundle));
            let bundles = bundles.collect::<anyhow::Result<Vec<_>>>()?;
            let append = pruned::append(next, &bundles, self.machine.clock.now_micros())?;
            self.log.append(Commit { appends: vec![append], ..Commit::default() }).await?;
            next = until;
        }
        // Nothing is let go of a tree that is not the one that was signed.
        self.tree.checkpoint()?;
        let said = Said::Pruned { end, root: self.tree.root(end)? };
        let note = self.tree.state_that(said, self.machine.clock.now_micros(), None);
        let mut leaf = self.leaf(&Principal::engine(), "prune_audit", "stream:_audit");
        leaf.entry.seen = Some(serde_json::json!({"from": gone, "to": end}).to_string());
        self.state(note, &leaf).await?;
        tracing::info!(
            from = gone,
            to = end,
            "entries of the audit trail are past their retention; their hashes stay"
        );
        Ok(end - gone)
    }

    /// The first entry from `low` to `high` that was not recorded before a time.
    fn recorded_before(&self, before: i64, mut low: Offset, mut high: Offset) -> Result<Offset, ReadError> {
        let at = audit::partition();
        while low < high {
            let middle = low + (high - low) / 2;
            let batches = self.log.read(&at, middle, 1)?;
            if batches.first().is_some_and(|batch| batch.recorded_at < before) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }
}

/// The commitments of a bundle, which must be those that the tree is made of.
fn whole_bundle(tree: &Tree, bundle: u64) -> anyhow::Result<Vec<highwater_audit::Hash>> {
    let commitments = tree.bundle(bundle)?;
    let leaves: Vec<_> = commitments.iter().map(|commitment| leaf_hash(commitment)).collect();
    ensure!(
        leaves.len() as u64 == TILE && leaves == tree.tile(0, bundle)?,
        "commitments {} to {} are not those of the tree; nothing is let go",
        bundle * TILE,
        (bundle + 1) * TILE
    );
    Ok(commitments)
}
