//! What holds of whatever is taken for a part of the trail: reading it never panics, what is read is written back as it was, and nothing
//! verifies but what was signed. For the mutated inputs of `fuzz.rs` and the coverage-guided ones of the folder `fuzz`.

use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch, StringArray};
use highwater_audit::event::EventSealer;
use highwater_audit::export::{self, Signed, Trust, Verified};
use highwater_audit::leaf::{self, Record, Salt};
use highwater_audit::proof::Proof;
use highwater_audit::statement;
use highwater_audit::tree::{Frontier, Hash, leaf_hash, node_hash};
use highwater_audit::{Checkpoint, EventProof, Said, SignedNote, Signer, Statement, Tree, Verifier, Witness};
use highwater_log::audit::{self, Entry, SEAL, Sealer};
use highwater_sim::SimStore;

const ORIGIN: &str = "log.example";
const AT: i64 = 1_767_268_800_000_000;
/// A witness of somebody else's.
const WITNESS: &str =
    "https://witness.example/a witness.example+9f3b8ddd+BAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8g";

/// What a text is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Note,
    Checkpoint,
    Proof,
    Statements,
    EventProof,
    Keys,
    TilePath,
    Witness,
    Answer,
    Entries,
    StatementsOfExport,
}

/// All of them.
pub const PARTS: [Part; 11] = [
    Part::Note,
    Part::Checkpoint,
    Part::Proof,
    Part::Statements,
    Part::EventProof,
    Part::Keys,
    Part::TilePath,
    Part::Witness,
    Part::Answer,
    Part::Entries,
    Part::StatementsOfExport,
];

/// A trail of three entries, the first of which is gone, and everything that is signed about it.
pub struct Trail {
    keys: Vec<Verifier>,
    commitment: Hash,
    checkpoint: SignedNote,
    proof: Proof,
    event: EventProof,
    entries: String,
    signed: Signed,
    verified: Verified,
    tree: Tree,
}

fn seal(rows: &[RecordBatch], sealer: &EventSealer) -> Record {
    let salt = [9; 16];
    let seen = Some(audit::sealed(4, &sealer.root(&salt, rows).unwrap()));
    let entry = Entry {
        at: AT,
        action: SEAL.into(),
        resource: "stream:orders".into(),
        seen,
        salt,
        ..Entry::default()
    };
    leaf::records(&audit::append(&[entry]).unwrap().rows).unwrap().remove(0)
}

impl Trail {
    pub fn new() -> Self {
        let signer = || Signer::new(ORIGIN, &[5; 32]).unwrap();
        let sealer = EventSealer::new(&[7; 32]);
        let numbers = Int64Array::from(vec![1, 2, 3, 4]);
        let texts = StringArray::from(vec![Some("a"), None, Some("Z\u{fc}rich"), Some("\"")]);
        let columns = [("n", Arc::new(numbers) as _, true), ("who", Arc::new(texts) as _, true)];
        let rows = [RecordBatch::try_from_iter_with_nullable(columns).unwrap()];
        let sealed = seal(&rows, &sealer);
        let said = |number: u8| Record {
            salt: Salt::Kept([number; 16]),
            json: format!(r#"{{"action":"query","actor":"user {number}"}}"#),
        };

        let commitments = [said(0).commitment(), sealed.commitment(), said(2).commitment()];
        let leaves = commitments.map(|commitment| leaf_hash(&commitment));
        let mut frontier = Frontier::default();
        frontier.push(leaves[0]);
        let root = frontier.root();
        leaves[1..].iter().for_each(|leaf| frontier.push(*leaf));
        let checkpoint =
            Checkpoint { origin: ORIGIN.into(), size: 3, root: frontier.root() }.sign([&signer()]);
        assert_eq!(node_hash(&node_hash(&leaves[0], &leaves[1]), &leaves[2]), frontier.root());
        let proof = Proof { index: 1, path: vec![leaves[0], leaves[2]], checkpoint: checkpoint.clone() };

        let entries =
            [export::erased_line(0, &commitments[0]), export::line(1, &sealed), export::line(2, &said(2))];
        let statement = Statement { origin: ORIGIN.into(), at: AT, said: Said::Pruned { end: 1, root } };
        let signed = Signed {
            checkpoint: checkpoint.to_string(),
            keys: format!("{}\n", signer().verifier()),
            statements: SignedNote::sign(statement.text(), [&signer()]).to_string(),
        };
        let entries = entries.concat();
        let verified = export::verify(entries.as_bytes(), &signed, &Trust::default()).unwrap();
        Self {
            keys: vec![signer().verifier()],
            commitment: commitments[1],
            event: EventProof::new(sealer.sealed(&[9; 16], &rows, 2).unwrap(), &sealed, proof.clone())
                .unwrap(),
            proof,
            checkpoint,
            entries,
            signed,
            verified,
            tree: Tree::new(Arc::new(SimStore::default()), ORIGIN, vec![signer()]),
        }
    }

    /// A text that is right, for a part.
    pub fn sample(&self, part: Part) -> String {
        match part {
            Part::Note => self.signed.checkpoint.clone(),
            Part::Checkpoint => self.checkpoint.text.clone(),
            Part::Proof => self.proof.text_with(b"of one's own"),
            Part::Statements | Part::StatementsOfExport => self.signed.statements.clone(),
            Part::EventProof => self.event.text().unwrap(),
            Part::Keys => self.signed.keys.clone(),
            Part::TilePath => "entries/x001/x234/067.p/255".into(),
            Part::Witness => WITNESS.into(),
            Part::Answer => self.signed.checkpoint.lines().last().unwrap_or_default().to_owned() + "\n",
            Part::Entries => self.entries.clone(),
        }
    }

    /// Reads a text as a part, and looks whether what is promised holds; true when it could be read.
    pub fn check(&self, part: Part, text: &str) -> bool {
        match part {
            Part::Note => SignedNote::parse(text).is_ok_and(|note| {
                assert_eq!(note.to_string(), text);
                let valid = note.verify(&self.keys).unwrap_or(0);
                assert!(valid == 0 || note.text == self.checkpoint.text, "a note that nobody signed");
                true
            }),
            Part::Checkpoint => Checkpoint::parse(text).is_ok_and(|checkpoint| {
                assert_eq!(checkpoint.text(), text);
                true
            }),
            Part::Proof => Proof::parse_with(text).is_ok_and(|(proof, extra)| {
                let again = extra.map_or_else(|| proof.text(), |extra| proof.text_with(&extra));
                assert_eq!(again, text);
                if proof.verify(&self.commitment, &self.keys).is_ok() {
                    assert_eq!((proof.index, &proof.path), (self.proof.index, &self.proof.path));
                }
                true
            }),
            Part::Statements => statement::read(text).is_ok_and(|notes| {
                assert_eq!(notes.iter().map(SignedNote::to_string).collect::<String>(), text);
                for note in notes {
                    if let Ok(statement) = Statement::open(&note) {
                        assert_eq!(statement.text(), note.text);
                    }
                }
                true
            }),
            Part::EventProof => EventProof::parse(text).is_ok_and(|proof| {
                assert_eq!(proof.text().unwrap(), text);
                if let Ok(proven) = proof.verify(&self.keys) {
                    let own = self.event.verify(&self.keys).unwrap();
                    assert_eq!((proven.event, proven.entry), (own.event, own.entry));
                }
                true
            }),
            Part::Keys => export::read_keys(text).is_ok_and(|keys| {
                assert_eq!(keys.iter().map(|key| format!("{key}\n")).collect::<String>(), text);
                true
            }),
            // A path without a tile is no error.
            Part::TilePath => self.tree.resource(text).unwrap().is_some(),
            Part::Witness => Witness::parse(text).is_ok(),
            Part::Answer => {
                let Ok(witness) = Witness::parse(WITNESS) else { return false };
                let mut note = self.checkpoint.clone();
                assert!(witness.answer(200, text, &mut note).is_err(), "a witness that has not signed");
                assert_eq!(note, self.checkpoint);
                witness.answer(409, text, &mut note).is_ok()
            }
            Part::Entries => {
                export::verify(text.as_bytes(), &self.signed, &Trust::default()).is_ok_and(|verified| {
                    assert_eq!((&verified, text), (&self.verified, self.entries.as_str()));
                    true
                })
            }
            Part::StatementsOfExport => {
                let signed = Signed { statements: text.to_owned(), ..self.signed.clone() };
                export::verify(self.entries.as_bytes(), &signed, &Trust::default()).is_ok_and(|verified| {
                    assert_eq!(verified, self.verified);
                    true
                })
            }
        }
    }
}
