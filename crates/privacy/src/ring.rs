//! The keys: one data key and more for each tenant, wrapped by a master key.
//!
//! The file is text, a JSON object on each line, newest last:
//! ```text
//! {"number":3,"tenant":"acme","made":1790000000000000,"master":"9f86d081","wrapped":"…"}
//! {"number":4,"tenant":"acme","subject":"5d41402abc4b2a76b9719d911017c592","made":…,"master":"9f86d081","wrapped":"…"}
//! {"number":4,"tenant":"acme","made":…,"erased":1800000000000000}
//! ```
//! `wrapped` is a nonce of 12 bytes and the data key under AES-256-GCM, bound to number and tenant. A line that a
//! crash cut off was never used: a key encrypts nothing before its line is durable. A tenant's newest key encrypts,
//! older ones decrypt what they have encrypted. A person may have a key of their own: `subject` is a keyed hash of who that
//! is. When it is destroyed its line says so, and what it has encrypted is gone wherever it stands. Key 0 belongs to
//! nobody: it makes fingerprints.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::digest;
use highwater_event::{Randomness, hexadecimal};
use serde::{Deserialize, Serialize};

use crate::aead::DataKey;

/// Where the keys are kept. Both ways to write are durable when they return.
pub trait KeyFile: Send + Sync {
    /// All of it; `None` when there is no such file yet.
    fn read(&self) -> io::Result<Option<Vec<u8>>>;
    /// Writes lines behind the others.
    fn append(&self, lines: &[u8]) -> io::Result<()>;
    /// Writes all of it anew: all or nothing.
    fn replace(&self, lines: &[u8]) -> io::Result<()>;
}

/// The keys can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// A line is not what was written.
    #[error("line {line} of the data keys can't be read ({detail}); restore the file from a backup")]
    Unreadable {
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        detail: String,
    },
    /// A line's master key is not among those that were given.
    #[error(
        "line {line} of the data keys was wrapped by master key {master}, which was not given; restore the master key"
    )]
    UnknownMaster {
        /// Counted from 1.
        line: usize,
        /// Its name.
        master: String,
    },
    /// No master key at all.
    #[error("no master key was given")]
    NoMaster,
    /// The file.
    #[error("the data keys can't be read or written: {0}")]
    Io(#[from] io::Error),
    /// No random bytes.
    #[error(transparent)]
    Randomness(#[from] highwater_event::random::RandomnessError),
    /// The cryptographic library refused.
    #[error("the cryptographic library refused")]
    Refused,
}

/// Number of the key that makes fingerprints.
pub(crate) const FINGERPRINT: u32 = 0;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    number: u32,
    tenant: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    made: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    erased: Option<i64>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    master: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    wrapped: String,
}

/// A person, told by a keyed hash of who they are.
pub type Tag = [u8; 16];

/// Whose a key is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Owner {
    pub tenant: Arc<str>,
    /// One person of the tenant's.
    pub subject: Option<Tag>,
}

impl Owner {
    pub fn tenant(tenant: &str) -> Self {
        Self { tenant: tenant.into(), subject: None }
    }
}

/// A key of a tenant, or of a person.
#[derive(Clone)]
pub(crate) struct Entry {
    pub owner: Owner,
    pub key: DataKey,
    pub made: i64,
    /// When it was destroyed, microseconds UTC; nothing of it is left then.
    pub erased: Option<i64>,
}

/// All keys, unwrapped.
pub(crate) struct Ring {
    masters: Vec<DataKey>,
    pub keys: BTreeMap<u32, Entry>,
    /// The newest key of each tenant, and of each person.
    pub newest: HashMap<Owner, u32>,
    /// Some lines are not under the newest master key, or the file does not end in a whole line.
    pub stale: bool,
}

/// What a master key is called: nothing of it can be told from that.
pub(crate) fn name_of(master: &DataKey) -> String {
    hexadecimal::show(&digest::digest(&digest::SHA256, master).as_ref()[..4])
}

/// What a wrapped key is bound to.
fn place(number: u32, owner: &Owner) -> Vec<u8> {
    let tenant = [b"highwater data key\0", &number.to_be_bytes()[..], owner.tenant.as_bytes()].concat();
    match &owner.subject {
        Some(tag) => [&tenant[..], b"\0", tag].concat(),
        None => tenant,
    }
}

fn cipher(master: &DataKey) -> Result<LessSafeKey, RingError> {
    Ok(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, master).map_err(|_| RingError::Refused)?))
}

impl Ring {
    /// Reads the lines of a file; the first master key is the one that wraps.
    pub fn read(text: &[u8], masters: Vec<DataKey>) -> Result<Self, RingError> {
        let Some(first) = masters.first().map(name_of) else { return Err(RingError::NoMaster) };
        let end = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let mut ring =
            Self { masters, keys: BTreeMap::new(), newest: HashMap::new(), stale: end < text.len() };
        for (line, bytes) in (1..).zip(text[..end].split(|byte| *byte == b'\n')) {
            if bytes.is_empty() {
                continue;
            }
            let unreadable = |detail: String| RingError::Unreadable { line, detail };
            let parsed: Line =
                serde_json::from_slice(bytes).map_err(|error| unreadable(error.to_string()))?;
            if let Some(erased) = parsed.erased {
                let owner = Owner::tenant(&parsed.tenant);
                let entry = Entry { owner, key: [0; 32], made: parsed.made, erased: Some(erased) };
                ring.insert(parsed.number, entry);
                continue;
            }
            let subject = match &parsed.subject {
                Some(tag) => {
                    let tag = hexadecimal::read(tag).and_then(|tag| tag.try_into().ok());
                    Some(tag.ok_or_else(|| unreadable("its subject is no hash".into()))?)
                }
                None => None,
            };
            let master = ring.masters.iter().find(|master| name_of(master) == parsed.master);
            let master =
                master.ok_or_else(|| RingError::UnknownMaster { line, master: parsed.master.clone() })?;
            let owner = Owner { tenant: parsed.tenant.as_str().into(), subject };
            let key = unwrap(master, &parsed, &owner);
            let key = key.ok_or_else(|| unreadable("its key was changed".into()))?;
            ring.stale |= parsed.master != first;
            ring.insert(parsed.number, Entry { owner, key, made: parsed.made, erased: None });
        }
        Ok(ring)
    }

    fn insert(&mut self, number: u32, entry: Entry) {
        if number != FINGERPRINT && entry.erased.is_none() {
            let newest = self.newest.entry(entry.owner.clone()).or_default();
            *newest = number.max(*newest);
        }
        self.keys.insert(number, entry);
    }

    /// A new key, and its line. It may be used when the line is durable.
    pub fn make(
        &self,
        number: u32,
        owner: &Owner,
        now: i64,
        randomness: &dyn Randomness,
    ) -> Result<(Entry, Vec<u8>), RingError> {
        let mut key = [0; 32];
        randomness.fill(&mut key)?;
        let entry = Entry { owner: owner.clone(), key, made: now, erased: None };
        let line = self.line(number, &entry, randomness)?;
        Ok((entry, line))
    }

    /// The number that the next key gets.
    pub fn next_number(&self) -> u32 {
        self.keys.last_key_value().map_or(1, |(last, _)| last + 1)
    }

    /// Takes keys in whose lines are durable.
    pub fn take(&mut self, made: Vec<(u32, Entry)>) {
        made.into_iter().for_each(|(number, entry)| self.insert(number, entry));
    }

    fn line(&self, number: u32, entry: &Entry, randomness: &dyn Randomness) -> Result<Vec<u8>, RingError> {
        let master = self.masters.first().ok_or(RingError::NoMaster)?;
        let mut line = Line {
            number,
            tenant: entry.owner.tenant.to_string(),
            subject: None,
            made: entry.made,
            erased: entry.erased,
            master: String::new(),
            wrapped: String::new(),
        };
        if entry.erased.is_some() {
            return shown(&line);
        }
        let mut nonce = [0; NONCE_LEN];
        randomness.fill(&mut nonce)?;
        let mut bytes = entry.key.to_vec();
        cipher(master)?
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(place(number, &entry.owner)),
                &mut bytes,
            )
            .map_err(|_| RingError::Refused)?;
        line.subject = entry.owner.subject.map(|tag| hexadecimal::show(&tag));
        line.master = name_of(master);
        line.wrapped = hexadecimal::show(&[&nonce[..], &bytes].concat());
        shown(&line)
    }

    /// The same keys without those of some people.
    pub fn without(&self, people: impl Fn(&Owner) -> bool, now: i64) -> Self {
        let mut left = Self {
            masters: self.masters.clone(),
            keys: self.keys.clone(),
            newest: self.newest.clone(),
            stale: false,
        };
        for entry in left.keys.values_mut().filter(|entry| people(&entry.owner)) {
            let owner = Owner { subject: None, ..entry.owner.clone() };
            *entry = Entry { owner, key: [0; 32], made: entry.made, erased: Some(now) };
        }
        left.newest.retain(|owner, _| !people(owner));
        left
    }

    /// The whole file, under the first master key.
    pub fn show(&self, randomness: &dyn Randomness) -> Result<Vec<u8>, RingError> {
        let lines = self.keys.iter().map(|(number, entry)| self.line(*number, entry, randomness));
        Ok(lines.collect::<Result<Vec<_>, _>>()?.concat())
    }

    /// The same keys under other master keys.
    pub fn under(&self, masters: Vec<DataKey>) -> Self {
        Self { masters, keys: self.keys.clone(), newest: self.newest.clone(), stale: false }
    }

    pub fn master_name(&self) -> String {
        self.masters.first().map(name_of).unwrap_or_default()
    }
}

fn shown(line: &Line) -> Result<Vec<u8>, RingError> {
    let mut text = serde_json::to_vec(line).map_err(io::Error::other)?;
    text.push(b'\n');
    Ok(text)
}

fn unwrap(master: &DataKey, line: &Line, owner: &Owner) -> Option<DataKey> {
    let mut bytes = hexadecimal::read(&line.wrapped)?;
    let (nonce, _) = bytes.split_first_chunk::<NONCE_LEN>()?;
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let key = cipher(master).ok()?.open_within(
        nonce,
        Aad::from(place(line.number, owner)),
        &mut bytes,
        NONCE_LEN..,
    );
    (*key.ok()?).try_into().ok()
}
