//! Proofs that can be verified without the log (c2sp.org/tlog-proof).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::AuditError;
use crate::checkpoint::Checkpoint;
use crate::note::{SignedNote, Verifier};
use crate::tree::{Hash, leaf_hash, root_of_inclusion};

/// The first line.
const HEAD: &str = "c2sp.org/tlog-proof@v1";

/// That an entry is in a checkpoint's tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// The entry's place.
    pub index: u64,
    /// From the leaf's sibling up to the root's child.
    pub path: Vec<Hash>,
    /// The signed checkpoint.
    pub checkpoint: SignedNote,
}

impl Proof {
    /// As text.
    pub fn text(&self) -> String {
        let path: String = self.path.iter().map(|hash| format!("{}\n", STANDARD.encode(hash))).collect();
        format!("{HEAD}\nindex {}\n{path}\n{}", self.index, self.checkpoint)
    }

    /// Reads a proof; says nothing about what it proves yet.
    pub fn parse(text: &str) -> Result<Self, AuditError> {
        let wrong = |what: &str| AuditError::Changed(format!("this is not a proof: {what}"));
        let (head, checkpoint) = text.split_once("\n\n").ok_or_else(|| wrong("it holds no checkpoint"))?;
        let mut lines = head.split('\n').peekable();
        if lines.next() != Some(HEAD) {
            return Err(wrong("the first line is another one"));
        }
        lines.next_if(|line| line.starts_with("extra "));
        let index = lines.next().and_then(|line| line.strip_prefix("index "));
        let index = index.and_then(|text| text.parse::<u64>().ok().filter(|index| index.to_string() == text));
        let hash = |line: &str| STANDARD.decode(line).ok().and_then(|hash| hash.try_into().ok());
        Ok(Self {
            index: index.ok_or_else(|| wrong("it has no index"))?,
            path: lines.map(hash).collect::<Option<_>>().ok_or_else(|| wrong("a line is not a hash"))?,
            checkpoint: SignedNote::parse(checkpoint)?,
        })
    }

    /// The checkpoint that it proves a commitment to be in, signed by one of the keys.
    pub fn verify(&self, commitment: &Hash, keys: &[Verifier]) -> Result<Checkpoint, AuditError> {
        let checkpoint = Checkpoint::open(&self.checkpoint, keys)?;
        let root = root_of_inclusion(&leaf_hash(commitment), self.index, checkpoint.size, &self.path);
        if root != Some(checkpoint.root) {
            return Err(AuditError::Changed(format!(
                "entry {} is not in the tree of {} entries",
                self.index, checkpoint.size
            )));
        }
        Ok(checkpoint)
    }
}
