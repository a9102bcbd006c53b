//! The audit trail as a tree that proves itself.
//!
//! Entries of the stream `_audit` are the leaves of a Merkle tree, in their order: an entry's offset is its
//! place. [`tree`] is the mathematics of RFC 6962 over tiles as C2SP's tlog-tiles cuts them; [`leaf`] says what
//! a leaf is; [`note`], [`checkpoint`] and [`statement`] are what is signed, [`proof`] what is handed out, [`witness`]
//! what is asked of others; [`event`] seals the events of streams and proves them; [`view`] keeps the tree up as a view of the log, [`published`] shows it,
//! [`pruned`] is what stays of old entries; [`export`] is a copy that anybody can
//! verify without this program running.
//!
//! This room never changes an entry, never signs a tree that the log does not hold durably, and never signs
//! two trees of which one does not continue the other.

pub mod checkpoint;
pub mod event;
pub mod export;
pub mod leaf;
pub mod note;
pub mod proof;
pub mod pruned;
pub mod published;
pub mod statement;
pub mod tree;
pub mod view;
pub mod witness;

pub use checkpoint::Checkpoint;
pub use event::{EventProof, EventSealer};
pub use note::{SignedNote, Signer, Verifier};
pub use published::Tree;
pub use statement::{Entries, Said, Statement};
pub use tree::Hash;
pub use view::AuditTree;
pub use witness::Witness;

/// The audit trail can't be read, or is not what it was.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AuditError {
    /// The store of the tree.
    #[error(transparent)]
    Store(#[from] highwater_log::keyed::StoreError),
    /// Something is asked for that the tree does not hold.
    #[error("{0}")]
    Missing(String),
    /// Something does not fit together: it was changed, or bytes were lost.
    #[error("{0}")]
    Changed(String),
}
