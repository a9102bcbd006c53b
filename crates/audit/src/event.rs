//! Proofs of events: that an event is in its stream as it was written, and since when.
//!
//! A stream that is declared `WITH (proof = true)` has an entry in the audit trail for each commit of its events,
//! made with them: the *seal*, which says how many they are and the root of a tree over them.
//!
//! ```text
//! record     := the event as stored, as JSON: names sorted, nulls left out, no white space
//! salt       := HMAC-SHA-256(key of the data folder, salt of the seal ‖ index ‖ record), the first 16 bytes
//! commitment := SHA-256("highwater event v1\n" ‖ salt ‖ record)          the data of the leaf, 32 bytes
//! leaf hash  := SHA-256(0x00 ‖ commitment)                               RFC 6962
//! ```
//! The leaves of a seal are in the order of partition and offset. Their salts keep whoever is shown a proof from
//! guessing the events beside it, by sending some of their own, too: no two leaves have the same one. A proof is that of the seal's entry in the tree of the trail, with the way from the
//! event to the seal in its `extra` line (c2sp.org/tlog-proof).

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use highwater_event::canonical::push_json_string;
use highwater_event::json::value_as_json;
use highwater_event::{columns, hexadecimal};
use highwater_log::audit::{SALT_BYTES, SEAL, Sealer};
use serde::{Deserialize, Serialize};

use crate::AuditError;
use crate::checkpoint::Checkpoint;
use crate::leaf::{self, Record};
use crate::note::Verifier;
use crate::proof::Proof;
use crate::tree::{Frontier, Hash, Tiles, inclusion, leaf_hash, root_of_inclusion, sha256};

/// What is hashed before an event, so that its hash can be taken for that of nothing else.
const DOMAIN: &[u8] = b"highwater event v1\n";
/// What the key behind salts is derived with.
const SALTS: &[u8] = b"highwater event salts v1";

/// Seals the events of commits, and finds the way from an event to its seal again.
pub struct EventSealer {
    salts: hmac::Key,
}

impl EventSealer {
    /// With salts behind a secret of the data folder.
    pub fn new(secret: &[u8; 32]) -> Self {
        let derived = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), SALTS);
        Self { salts: hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()) }
    }

    fn salt(&self, seal: &[u8; SALT_BYTES], index: u64, record: &str) -> [u8; SALT_BYTES] {
        let mut context = hmac::Context::with_key(&self.salts);
        context.update(seal);
        context.update(&index.to_be_bytes());
        context.update(record.as_bytes());
        let tag = context.sign();
        let mut salt = [0; SALT_BYTES];
        salt.copy_from_slice(&tag.as_ref()[..SALT_BYTES]);
        salt
    }

    /// The leaf hashes of rows, in their order; `first` is the place of the first one.
    fn leaves(&self, seal: &[u8; SALT_BYTES], first: u64, rows: &RecordBatch, each: &mut dyn FnMut(Hash)) {
        let members = members(rows);
        let mut record = String::with_capacity(512);
        for (row, index) in (0..rows.num_rows()).zip(first..) {
            record.clear();
            write_record(rows, &members, row, &mut record);
            each(leaf_hash(&commitment(&self.salt(seal, index, &record), &record)));
        }
    }

    /// The way from an event to its seal. `rows` are all events of the seal, as readers see them, in the order of
    /// partition and offset; `at` is the event's place among them; `seal` is the salt of the seal's entry.
    pub fn sealed(
        &self,
        seal: &[u8; SALT_BYTES],
        rows: &[RecordBatch],
        at: usize,
    ) -> Result<Sealed, AuditError> {
        let mut leaves = Leaves::default();
        let mut event = None;
        for batch in rows {
            let before = leaves.0.len();
            self.leaves(seal, before as u64, batch, &mut |hash| leaves.0.push(hash));
            if let Some(row) = at.checked_sub(before).filter(|row| *row < batch.num_rows()) {
                let mut record = String::new();
                write_record(batch, &members(batch), row, &mut record);
                event = Some(record);
            }
        }
        let event = event.ok_or_else(|| AuditError::Missing("the event is not among those".into()))?;
        let (index, size) = (at as u64, leaves.0.len() as u64);
        let path = inclusion(&leaves, index, size)?;
        let salt = hexadecimal::show(&self.salt(seal, index, &event));
        let path = path.iter().map(|hash| STANDARD.encode(hash)).collect();
        Ok(Sealed { event, salt, index, size, path })
    }
}

impl Sealer for EventSealer {
    fn root(&self, salt: &[u8; SALT_BYTES], rows: &[RecordBatch]) -> Result<[u8; 32], ArrowError> {
        let mut frontier = Frontier::default();
        for rows in rows {
            self.leaves(salt, frontier.size(), rows, &mut |hash| frontier.push(hash));
        }
        Ok(frontier.root())
    }
}

/// Leaf hashes in memory: what stands above a tile of them is made of them when it is asked for.
#[derive(Default)]
struct Leaves(Vec<Hash>);

impl Tiles for Leaves {
    fn tile(&self, level: u8, index: u64) -> Result<Vec<Hash>, AuditError> {
        let width = 1usize << (8 * u32::from(level)).min(usize::BITS - 1);
        let hashes = self.0.chunks_exact(width).skip(index as usize * 256).take(256);
        Ok(hashes.map(crate::tree::fold).collect())
    }
}

fn commitment(salt: &[u8; SALT_BYTES], record: &str) -> Hash {
    sha256([DOMAIN, salt, record.as_bytes()])
}

/// The columns that are part of a record, by name: what the sender said, and the event's time. Where an event
/// stands and when it was recorded is said by its seal.
fn members(rows: &RecordBatch) -> Vec<(String, usize)> {
    let schema = rows.schema_ref();
    let said = |name: &str| !name.starts_with('_') || name == columns::EXTRA || name == columns::EVENT_TIME;
    let named = schema.fields().iter().enumerate().map(|(at, field)| (field.name().clone(), at));
    let mut members: Vec<(String, usize)> = named.filter(|(name, _)| said(name)).collect();
    members.sort_unstable();
    members
}

fn write_record(rows: &RecordBatch, members: &[(String, usize)], row: usize, record: &mut String) {
    record.push('{');
    for (name, at) in members {
        let column = rows.column(*at);
        if column.is_null(row) {
            continue;
        }
        if record.len() > 1 {
            record.push(',');
        }
        push_json_string(name, record);
        record.push(':');
        match column.data_type() {
            // Most columns by far are texts.
            DataType::Utf8 => push_json_string(column.as_string::<i32>().value(row), record),
            _ => value_as_json(column, row, record),
        }
    }
    record.push('}');
}

/// An event, and the way from it to the root that its seal says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// Its record.
    pub event: String,
    /// Its salt, hexadecimal.
    pub salt: String,
    /// Its place among the events of its seal.
    pub index: u64,
    /// Their number.
    pub size: u64,
    /// Hashes in base64, the leaf's sibling first.
    pub path: Vec<String>,
}

impl Sealed {
    /// The root that the event leads to.
    fn root(&self) -> Result<Hash, AuditError> {
        let wrong = |what: &str| AuditError::Changed(format!("this is not the proof of an event: {what}"));
        let salt = leaf::read_salt(&self.salt).ok_or_else(|| wrong("its salt is not one"))?;
        let hash = |text: &String| STANDARD.decode(text).ok().and_then(|hash| hash.try_into().ok());
        let path: Option<Vec<Hash>> = self.path.iter().map(hash).collect();
        let path = path.ok_or_else(|| wrong("a hash of its path is not one"))?;
        let leaf = leaf_hash(&commitment(&salt, &self.event));
        let root = root_of_inclusion(&leaf, self.index, self.size, &path);
        root.ok_or_else(|| wrong("its path does not fit its place"))
    }
}

/// The entry of the audit trail that seals events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SealEntry {
    /// Its record.
    entry: String,
    /// Its salt, hexadecimal.
    salt: String,
}

/// What the `extra` line of a proof holds.
#[derive(Serialize, Deserialize)]
struct Extra {
    #[serde(flatten)]
    sealed: Sealed,
    seal: SealEntry,
}

/// The members of a seal's entry that a proof goes by.
#[derive(Deserialize)]
struct SealSays {
    action: String,
    resource: String,
    time: String,
    seen: String,
}

/// What a seal says of its events ([`highwater_log::audit::sealed`]).
#[derive(Deserialize)]
struct Seen {
    events: u64,
    root: String,
}

/// The proof of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventProof {
    sealed: Sealed,
    seal: SealEntry,
    /// That the seal's entry is in the trail.
    proof: Proof,
}

/// What a proof has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    /// The event.
    pub event: String,
    /// The stream that it is in.
    pub stream: String,
    /// Since when, as the seal says it.
    pub sealed_at: String,
    /// Place of the seal's entry in the trail.
    pub entry: u64,
    /// The checkpoint that the seal's entry is in.
    pub checkpoint: Checkpoint,
}

impl EventProof {
    /// Puts a proof together; an error when its parts do not belong together: rows or entry were changed.
    pub fn new(sealed: Sealed, seal: &Record, proof: Proof) -> Result<Self, AuditError> {
        let seal = SealEntry { entry: seal.json.clone(), salt: hexadecimal::show(seal.whole()?) };
        let whole = Self { sealed, seal, proof };
        whole.stream()?;
        Ok(whole)
    }

    /// As text.
    pub fn text(&self) -> Result<String, AuditError> {
        let extra = Extra { sealed: self.sealed.clone(), seal: self.seal.clone() };
        let extra = serde_json::to_vec(&extra).map_err(|error| AuditError::Changed(error.to_string()))?;
        Ok(self.proof.text_with(&extra))
    }

    /// Reads a proof; says nothing about what it proves yet.
    pub fn parse(text: &str) -> Result<Self, AuditError> {
        let wrong = |what: String| AuditError::Changed(format!("this is not the proof of an event: {what}"));
        let (proof, extra) = Proof::parse_with(text)?;
        let extra = extra.ok_or_else(|| wrong("it has no extra line".into()))?;
        let read: Extra = serde_json::from_slice(&extra).map_err(|error| wrong(error.to_string()))?;
        let whole = Self { sealed: read.sealed, seal: read.seal, proof };
        // Nothing may stand in the file that the proof does not cover, white space included.
        if whole.text()? == text { Ok(whole) } else { Err(wrong("it is not written as proofs are".into())) }
    }

    /// What the seal says, when it seals the event: its stream and its time.
    fn stream(&self) -> Result<(String, String), AuditError> {
        let changed = |what: &str| AuditError::Changed(format!("the event is not what was sealed: {what}"));
        let says: SealSays =
            serde_json::from_str(&self.seal.entry).map_err(|_| changed("its entry is not that of a seal"))?;
        let seen: Seen =
            serde_json::from_str(&says.seen).map_err(|_| changed("its entry is not that of a seal"))?;
        let stream = says.resource.strip_prefix("stream:").filter(|_| says.action == SEAL);
        let stream = stream.ok_or_else(|| changed("its entry is not that of a seal"))?;
        if seen.events != self.sealed.size {
            return Err(changed("it is among another number of events"));
        }
        if hexadecimal::show(&self.sealed.root()?) != seen.root {
            return Err(changed("its hash does not lead to the root of the seal"));
        }
        Ok((stream.to_owned(), says.time))
    }

    /// What it proves, by a checkpoint that one of the keys has signed.
    pub fn verify(&self, keys: &[Verifier]) -> Result<Proven, AuditError> {
        let (stream, sealed_at) = self.stream()?;
        let salt = leaf::read_salt(&self.seal.salt)
            .ok_or_else(|| AuditError::Changed("the salt of the seal is not one".into()))?;
        let checkpoint = self.proof.verify(&leaf::commitment(&salt, &self.seal.entry), keys)?;
        Ok(Proven {
            event: self.sealed.event.clone(),
            stream,
            sealed_at,
            entry: self.proof.index,
            checkpoint,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        ArrayRef, Decimal128Array, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray,
    };
    use highwater_log::audit::{self, Entry, sealed};

    use super::*;
    use crate::note::Signer;
    use crate::tree;

    const SEAL_SALT: [u8; SALT_BYTES] = [9; SALT_BYTES];

    fn events(from: i64, to: i64) -> RecordBatch {
        let at = |n: i64| 1_767_268_800_000_000 + n;
        let numbers: Vec<i64> = (from..to).collect();
        let columns: Vec<(&str, ArrayRef)> = vec![
            (
                "who",
                Arc::new(
                    numbers.iter().map(|n| (n % 3 > 0).then(|| format!("ada {n}"))).collect::<StringArray>(),
                ),
            ),
            (
                "amount",
                Arc::new(
                    Decimal128Array::from_iter_values(numbers.iter().map(|n| i128::from(n * 150)))
                        .with_precision_and_scale(18, 2)
                        .unwrap(),
                ),
            ),
            ("share", Arc::new(Float64Array::from_iter_values(numbers.iter().map(|n| *n as f64 / 7.0)))),
            ("count", Arc::new(Int64Array::from(numbers.clone()))),
            ("_event_key", Arc::new(Int64Array::from(numbers.clone()))),
            (
                "_event_time",
                Arc::new(
                    TimestampMicrosecondArray::from_iter_values(numbers.iter().map(|n| at(*n)))
                        .with_timezone("UTC"),
                ),
            ),
        ];
        RecordBatch::try_from_iter_with_nullable(
            columns.into_iter().map(|(name, column)| (name, column, true)),
        )
        .unwrap()
    }

    /// A proof of event `at` of so many, and the keys that it verifies with.
    fn proven(size: i64, at: usize) -> (EventProof, Vec<Verifier>) {
        let sealer = EventSealer::new(&[7; 32]);
        let half = size / 2;
        let rows = [events(0, half), events(half, size)];
        let entry = Entry {
            at: 1_767_268_800_000_123,
            action: SEAL.into(),
            resource: "stream:orders".into(),
            seen: Some(sealed(size as usize, &sealer.root(&SEAL_SALT, &rows).unwrap())),
            salt: SEAL_SALT,
            ..Entry::default()
        };
        let record = leaf::records(&audit::append(&[entry]).unwrap().rows).unwrap().remove(0);
        // The seal is the second of three entries.
        let leaves = [leaf_hash(b"one"), leaf_hash(&record.commitment()), leaf_hash(b"three")];
        let tiles = Leaves(leaves.to_vec());
        let signer = Signer::new("highwater/test", &[3; 32]).unwrap();
        let checkpoint =
            Checkpoint { origin: "highwater/test".into(), size: 3, root: tree::root(&tiles, 3).unwrap() };
        let checkpoint = checkpoint.sign([&signer]);
        let proof = Proof { index: 1, path: inclusion(&tiles, 1, 3).unwrap(), checkpoint };
        // As readers see the rows: in other pieces than they were written in.
        let seen = [events(0, 1), events(1, size)];
        let sealed = sealer.sealed(&SEAL_SALT, &seen, at).unwrap();
        (EventProof::new(sealed, &record, proof).unwrap(), vec![signer.verifier()])
    }

    #[test]
    fn an_event_is_proven_in_commits_of_any_size() {
        for size in [2, 3, 255, 256, 257, 70_000] {
            for at in [0, 1, size as usize / 2, size as usize - 1] {
                let (proof, keys) = proven(size, at);
                let said = EventProof::parse(&proof.text().unwrap()).unwrap().verify(&keys).unwrap();
                let event: serde_json::Value = serde_json::from_str(&said.event).unwrap();
                assert_eq!(event["count"], at as i64);
                assert_eq!((said.stream.as_str(), said.entry, said.checkpoint.size), ("orders", 1, 3));
                assert_eq!(said.sealed_at, "2026-01-01T12:00:00.000123Z");
            }
        }
    }

    #[test]
    fn a_record_says_what_was_stored_and_nothing_of_where() {
        let sealed = EventSealer::new(&[7; 32]).sealed(&SEAL_SALT, &[events(0, 2)], 1).unwrap();
        assert_eq!(
            sealed.event,
            r#"{"_event_time":"2026-01-01T12:00:00.000001Z","amount":1.5,"count":1,"share":0.14285714285714285,"who":"ada 1"}"#
        );
        let without = EventSealer::new(&[7; 32]).sealed(&SEAL_SALT, &[events(0, 1)], 0).unwrap();
        assert!(!without.event.contains("who"), "what is null is not there: {}", without.event);
    }

    #[test]
    fn every_bit_of_a_proof_counts() {
        let (proof, keys) = proven(5, 3);
        let text = proof.text().unwrap();
        for bit in 0..text.len() * 8 {
            let mut bytes = text.clone().into_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let Ok(changed) = String::from_utf8(bytes) else { continue };
            let verified = EventProof::parse(&changed).and_then(|proof| proof.verify(&keys));
            assert!(verified.is_err(), "bit {bit} made\n{changed}");
        }
    }

    #[test]
    fn another_key_has_other_salts_and_another_root() {
        let rows = [events(0, 9)];
        let root = |key| EventSealer::new(&[key; 32]).root(&SEAL_SALT, &rows).unwrap();
        assert_ne!(root(1), root(2));
        assert_eq!(root(1), root(1));
    }

    /// Whoever sends an event twice, or in two commits, sees another hash each time: theirs tell nothing of others.
    #[test]
    fn equal_events_have_other_hashes() {
        let sealer = EventSealer::new(&[7; 32]);
        let twice =
            arrow::compute::concat_batches(&events(0, 1).schema(), &[events(0, 1), events(0, 1)]).unwrap();
        let salts =
            |seal| [0, 1].map(|at| sealer.sealed(&seal, std::slice::from_ref(&twice), at).unwrap().salt);
        let [one, two] = salts(SEAL_SALT);
        let [three, _] = salts([8; SALT_BYTES]);
        assert!(one != two && one != three && two != three);
    }

    #[test]
    fn what_was_changed_has_no_proof() {
        let (good, _) = proven(5, 3);
        let sealer = EventSealer::new(&[7; 32]);
        let salt = leaf::Salt::Kept(leaf::read_salt(&good.seal.salt).unwrap());
        let seal = Record { salt, json: good.seal.entry.clone() };
        let build = |rows: &[RecordBatch]| {
            EventProof::new(sealer.sealed(&SEAL_SALT, rows, 3).unwrap(), &seal, good.proof.clone())
        };
        assert!(build(&[events(0, 5)]).is_ok());
        assert!(build(&[events(0, 4)]).unwrap_err().to_string().contains("another number"));
        assert!(build(&[events(1, 6)]).unwrap_err().to_string().contains("does not lead"));
    }
}
