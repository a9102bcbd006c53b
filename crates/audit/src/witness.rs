//! What is said to a witness (c2sp.org/tlog-witness): somebody elsewhere who signs a checkpoint after having seen
//! that it continues the last one. With its signature nobody can be shown another tree.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::AuditError;
use crate::note::{SignedNote, Verifier};
use crate::tree::Hash;

/// A witness: where it is asked, and what its signatures are verified with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    url: String,
    key: Verifier,
}

/// What a witness said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It has signed; its signature is under the note now.
    Cosigned,
    /// The newest tree that it has seen has so many entries: it needs the hashes from there on.
    Knows(u64),
}

impl Witness {
    /// Reads `URL VKEY`.
    pub fn parse(text: &str) -> Result<Self, AuditError> {
        let wrong = |what: String| AuditError::Changed(format!("\"{text}\" is not a witness: {what}"));
        let (url, key) = text.trim().split_once(' ').ok_or_else(|| {
            wrong("write its address and its key, with a space between them: https://witness.example NAME+ID+KEY".into())
        })?;
        if !url.starts_with("https://") && !url.starts_with("http://") {
            return Err(wrong("its address begins with https://".into()));
        }
        let key = Verifier::parse(key.trim()).map_err(|error| wrong(error.to_string()))?;
        if !key.is_witness() {
            return Err(wrong("its key is not one of a witness (of the kind 4, for cosignatures)".into()));
        }
        Ok(Self { url: url.trim_end_matches('/').to_owned(), key })
    }

    /// The name of its key.
    pub fn name(&self) -> &str {
        self.key.name()
    }

    /// Where it is asked.
    pub fn url(&self) -> String {
        format!("{}/add-checkpoint", self.url)
    }

    /// The body of the question: the tree that it knows, the hashes that lead to this one, this one.
    pub fn question(knows: u64, path: &[Hash], checkpoint: &SignedNote) -> String {
        let path: String = path.iter().map(|hash| format!("{}\n", STANDARD.encode(hash))).collect();
        format!("old {knows}\n{path}\n{checkpoint}")
    }

    /// Reads what it answers, and takes its signature under the checkpoint that it was asked about.
    pub fn answer(&self, status: u16, body: &str, checkpoint: &mut SignedNote) -> Result<Answer, AuditError> {
        match status {
            200 => checkpoint.cosign(&self.key, body).map(|()| Answer::Cosigned),
            409 => match body.trim_end_matches('\n').parse() {
                Ok(size) => Ok(Answer::Knows(size)),
                Err(_) => Err(AuditError::Missing("it knows another tree, and does not say which".into())),
            },
            // It has seen a tree that this one does not continue, or believes so.
            422 => Err(AuditError::Changed("it finds that the tree does not continue the one it has signed".into())),
            403 => Err(AuditError::Missing("it believes none of the keys that have signed: it has to be told the key of this log (/audit/keys)".into())),
            404 => Err(AuditError::Missing("it does not know this log: it has to be told its origin and key (/audit/keys)".into())),
            status => Err(AuditError::Missing(format!("it answers with status {status}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::note::{Signer, cosigner};

    #[test]
    fn a_witness_is_an_address_and_a_key_for_cosignatures() {
        let (_, key) = cosigner("witness.example", &[4; 32]);
        let witness = Witness::parse(&format!("https://witness.example/a/ {key}")).unwrap();
        assert_eq!(
            (witness.url().as_str(), witness.name()),
            ("https://witness.example/a/add-checkpoint", "witness.example")
        );
        let log = Signer::new("log.example", &[3; 32]).unwrap().verifier();
        for bad in [
            "",
            "https://witness.example",
            &format!("ftp://a {key}"),
            &format!("https://a {log}"),
            "https://a b+c",
        ] {
            assert!(Witness::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_its_own_signature_over_this_checkpoint_counts() {
        let signer = Signer::new("log.example", &[3; 32]).unwrap();
        let (sign, key) = cosigner("witness.example", &[4; 32]);
        let (other, _) = cosigner("witness.example", &[5; 32]);
        let witness = Witness::parse(&format!("https://witness.example {key}")).unwrap();
        let note = SignedNote::sign("log.example\n1\nroot\n".into(), [&signer]);
        assert_eq!(
            Witness::question(7, &[[0; 32]], &note),
            format!("old 7\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\n{note}")
        );
        let mut signed = note.clone();
        assert_eq!(witness.answer(200, &sign(&note.text), &mut signed).unwrap(), Answer::Cosigned);
        assert_eq!((signed.signatures(), signed.verify(&[key]).unwrap()), (2, 1));
        for wrong in [other(&note.text), sign("log.example\n2\nroot\n"), String::new(), "what".into()] {
            let mut kept = note.clone();
            assert!(witness.answer(200, &wrong, &mut kept).is_err(), "{wrong}");
            assert_eq!(kept, note);
        }
        assert_eq!(witness.answer(409, "12\n", &mut signed).unwrap(), Answer::Knows(12));
        assert!(matches!(witness.answer(422, "", &mut signed), Err(AuditError::Changed(_))));
        for status in [400, 403, 404, 409, 500] {
            assert!(matches!(witness.answer(status, "no", &mut signed), Err(AuditError::Missing(_))));
        }
    }
}
