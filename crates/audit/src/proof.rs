//! Proofs that can be verified without the log (c2sp.org/tlog-proof).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::AuditError;
use crate::checkpoint::Checkpoint;
use crate::note::{SignedNote, Verifier};
use crate::tree::{Hash, leaf_hash, root_of_inclusion};

/// The first line.
const HEAD: &str = "c2sp.org/tlog-proof@v1";
/// What a line with data of the application's own begins with.
const EXTRA: &str = "extra ";

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
        self.write("")
    }

    /// As text with data of the application's own, which the proof says nothing about.
    pub fn text_with(&self, extra: &[u8]) -> String {
        self.write(&format!("{EXTRA}{}\n", STANDARD.encode(extra)))
    }

    fn write(&self, extra: &str) -> String {
        let path: String = self.path.iter().map(|hash| format!("{}\n", STANDARD.encode(hash))).collect();
        format!("{HEAD}\n{extra}index {}\n{path}\n{}", self.index, self.checkpoint)
    }

    /// Reads a proof; says nothing about what it proves yet.
    pub fn parse(text: &str) -> Result<Self, AuditError> {
        Self::parse_with(text).map(|(proof, _)| proof)
    }

    /// Reads a proof and the application's data in it.
    pub fn parse_with(text: &str) -> Result<(Self, Option<Vec<u8>>), AuditError> {
        let wrong = |what: &str| AuditError::Changed(format!("this is not a proof: {what}"));
        let (head, checkpoint) = text.split_once("\n\n").ok_or_else(|| wrong("it holds no checkpoint"))?;
        let mut lines = head.split('\n').peekable();
        if lines.next() != Some(HEAD) {
            return Err(wrong("the first line is another one"));
        }
        let extra =
            lines.next_if(|line| line.starts_with(EXTRA)).map(|line| STANDARD.decode(&line[EXTRA.len()..]));
        let extra = extra.transpose().map_err(|_| wrong("its extra line is not base64"))?;
        let index = lines.next().and_then(|line| line.strip_prefix("index "));
        let index = index.and_then(|text| text.parse::<u64>().ok().filter(|index| index.to_string() == text));
        let hash = |line: &str| STANDARD.decode(line).ok().and_then(|hash| hash.try_into().ok());
        let proof = Self {
            index: index.ok_or_else(|| wrong("it has no index"))?,
            path: lines.map(hash).collect::<Option<_>>().ok_or_else(|| wrong("a line is not a hash"))?,
            checkpoint: SignedNote::parse(checkpoint)?,
        };
        Ok((proof, extra))
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
