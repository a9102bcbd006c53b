//! Checkpoints (c2sp.org/tlog-checkpoint): whose tree it is, how many entries it has, and its root.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::AuditError;
use crate::note::{SignedNote, Signer, Verifier};
use crate::tree::Hash;

/// A tree at one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log's name.
    pub origin: String,
    /// Entries.
    pub size: u64,
    /// Root over them.
    pub root: Hash,
}

impl Checkpoint {
    /// The text that is signed.
    pub fn text(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, STANDARD.encode(self.root))
    }

    /// Reads the text of a note.
    pub fn parse(text: &str) -> Result<Self, AuditError> {
        let wrong = || AuditError::Changed("this is not a checkpoint (origin, size, root)".into());
        let mut lines = text.strip_suffix('\n').ok_or_else(wrong)?.split('\n');
        let (Some(origin), Some(size), Some(root)) = (lines.next(), lines.next(), lines.next()) else {
            return Err(wrong());
        };
        let number: u64 = size.parse().map_err(|_| wrong())?;
        let root = STANDARD.decode(root).ok().and_then(|root| root.try_into().ok()).ok_or_else(wrong)?;
        if origin.is_empty() || number.to_string() != size || lines.next().is_some() {
            return Err(wrong());
        }
        Ok(Self { origin: origin.to_owned(), size: number, root })
    }

    /// Signs it.
    pub fn sign<'a>(&self, signers: impl IntoIterator<Item = &'a Signer>) -> SignedNote {
        SignedNote::sign(self.text(), signers)
    }

    /// Reads a signed checkpoint that at least one of the keys has signed.
    pub fn open(note: &SignedNote, keys: &[Verifier]) -> Result<Self, AuditError> {
        if note.verify(keys)? == 0 {
            return Err(AuditError::Changed("no known key has signed the checkpoint".into()));
        }
        Self::parse(&note.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_come_back() {
        let checkpoint = Checkpoint { origin: "log.example/a".into(), size: 42, root: [9; 32] };
        assert_eq!(Checkpoint::parse(&checkpoint.text()).unwrap(), checkpoint);
        let text = checkpoint.text();
        for bad in
            [&text[1..text.len() - 1], &text.replace("42", "042"), &text.replace("42", "+42"), "\n\n\n"]
        {
            assert!(Checkpoint::parse(bad).is_err(), "{bad:?}");
        }
        let signer = Signer::new("log.example/a", &[1; 32]).unwrap();
        let other = Signer::new("log.example/a", &[2; 32]).unwrap().verifier();
        let note = checkpoint.sign([&signer]);
        assert_eq!(Checkpoint::open(&note, &[signer.verifier()]).unwrap(), checkpoint);
        assert!(Checkpoint::open(&note, &[other]).is_err());
    }
}
