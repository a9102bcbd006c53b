//! What encrypts and decrypts, and the only owner of the keys.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use arrow::error::ArrowError;
use aws_lc_rs::hmac;
use highwater_event::{Clock, Randomness};

use crate::aead::{AeadError, DataKey, Opener, SALT_LEN, Sealed, Sealer};
use crate::ring::{Entry, FINGERPRINT, KeyFile, Owner, Ring, RingError, Tag, name_of};

/// A value can't be encrypted or decrypted.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The value, or its form.
    #[error(transparent)]
    Aead(#[from] AeadError),
    /// Its key is not there.
    #[error("data key {0} is not there; restore the data keys from a backup")]
    NoKey(u32),
    /// A new key could not be made.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The decrypted bytes are not of the column's type.
    #[error(transparent)]
    Arrow(#[from] ArrowError),
    /// Which value it is.
    #[error("column {column} of partition {partition}, offset {offset}, can't be decrypted: {error}")]
    At {
        /// The column, or the member of it.
        column: String,
        /// Its partition.
        partition: u32,
        /// Its offset.
        offset: u64,
        /// Why.
        error: Box<SealError>,
    },
}

/// What may be told about a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// Its number.
    pub number: u32,
    /// Its tenant; empty for what belongs to none.
    pub tenant: Arc<str>,
    /// When it was made, microseconds UTC.
    pub made: i64,
    /// It encrypts; others only decrypt.
    pub newest: bool,
}

/// Encrypts and decrypts under the keys of one node.
pub struct Vault {
    ring: RwLock<Ring>,
    file: Box<dyn KeyFile>,
    /// One change of the file at a time.
    changing: Mutex<()>,
    randomness: Arc<dyn Randomness>,
    clock: Arc<dyn Clock>,
}

impl Vault {
    /// Opens the keys in a file, making it when there is none. The first master key wraps; keys that others have
    /// wrapped are wrapped anew.
    pub fn open(
        file: Box<dyn KeyFile>,
        masters: Vec<DataKey>,
        randomness: Arc<dyn Randomness>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, RingError> {
        let ring = Ring::read(&file.read()?.unwrap_or_default(), masters)?;
        let vault = Self { ring: RwLock::new(ring), file, changing: Mutex::new(()), randomness, clock };
        if vault.ring().stale {
            vault.write_anew()?;
        }
        if vault.entry(FINGERPRINT).is_err() {
            vault.make(&[(FINGERPRINT, Owner::tenant(""))])?;
        }
        Ok(vault)
    }

    fn ring(&self) -> std::sync::RwLockReadGuard<'_, Ring> {
        self.ring.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn changing(&self) -> std::sync::MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_anew(&self) -> Result<(), RingError> {
        let text = self.ring().show(self.randomness.as_ref())?;
        self.file.replace(&text)?;
        self.ring.write().unwrap_or_else(PoisonError::into_inner).stale = false;
        Ok(())
    }

    /// Makes keys. They are used when their lines are durable and not before.
    fn make(&self, wanted: &[(u32, Owner)]) -> Result<(), RingError> {
        if self.ring().stale {
            // An append has failed and may have left half a line.
            self.write_anew()?;
        }
        let (mut made, mut lines) = (Vec::new(), Vec::new());
        for (number, owner) in wanted {
            let now = self.clock.now_micros();
            let (entry, line) = self.ring().make(*number, owner, now, self.randomness.as_ref())?;
            made.push((*number, entry));
            lines.extend(line);
        }
        let appended = self.file.append(&lines);
        let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
        match appended {
            Ok(()) => ring.take(made),
            Err(error) => {
                ring.stale = true;
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Encrypts the values of one batch of a tenant, whose key is made when it has none.
    pub fn sealer(&self, tenant: &str) -> Result<Sealer, SealError> {
        let owner = Owner::tenant(tenant);
        self.prepare(std::slice::from_ref(&owner))?;
        self.sealer_of(&owner, &self.salt()?)
    }

    /// A salt for the values of one batch.
    pub(crate) fn salt(&self) -> Result<[u8; SALT_LEN], SealError> {
        let mut salt = [0; SALT_LEN];
        self.randomness.fill(&mut salt).map_err(RingError::from)?;
        Ok(salt)
    }

    /// Makes keys for those who have none, all in one write.
    pub(crate) fn prepare(&self, owners: &[Owner]) -> Result<(), SealError> {
        let missing = |ring: &Ring| {
            let missing = owners.iter().filter(|owner| !ring.newest.contains_key(*owner));
            missing.cloned().collect::<Vec<_>>()
        };
        if missing(&self.ring()).is_empty() {
            return Ok(());
        }
        let _alone = self.changing();
        let (first, missing) = {
            let ring = self.ring();
            (ring.next_number(), missing(&ring))
        };
        let wanted: Vec<(u32, Owner)> = (first..).zip(missing).collect();
        if !wanted.is_empty() {
            self.make(&wanted)?;
        }
        Ok(())
    }

    /// Encrypts the values of one batch of somebody who has a key. One salt serves several: their keys differ.
    pub(crate) fn sealer_of(&self, owner: &Owner, salt: &[u8; SALT_LEN]) -> Result<Sealer, SealError> {
        let (number, key) = {
            let ring = self.ring();
            let number = *ring.newest.get(owner).ok_or(SealError::NoKey(0))?;
            (number, ring.keys.get(&number).ok_or(SealError::NoKey(number))?.key)
        };
        Ok(Sealer::new(number, &key, salt)?)
    }

    /// What a person is called in the file of keys: nobody without the keys can tell who it is.
    pub fn tag(&self, subject: &str) -> Result<Tag, SealError> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.fingerprint_key()?);
        let mut context = hmac::Context::with_key(&key);
        context.update(b"subject\0");
        context.update(subject.as_bytes());
        let tag = context.sign();
        tag.as_ref().first_chunk().copied().ok_or(SealError::NoKey(FINGERPRINT))
    }

    /// Destroys the keys of some people, of one tenant or of all: what they have encrypted reads as null from now on,
    /// wherever it stands. Answers how many keys there were.
    pub fn erase(&self, tenant: Option<&str>, people: &BTreeSet<Tag>) -> Result<usize, RingError> {
        let people = |owner: &Owner| {
            owner.subject.is_some_and(|tag| people.contains(&tag))
                && tenant.is_none_or(|tenant| *owner.tenant == *tenant)
        };
        let _alone = self.changing();
        let left = self.ring().without(people, self.clock.now_micros());
        let gone = |ring: &Ring| ring.keys.values().filter(|entry| entry.erased.is_some()).count();
        let count = gone(&left) - gone(&self.ring());
        if count > 0 {
            self.file.replace(&left.show(self.randomness.as_ref())?)?;
            *self.ring.write().unwrap_or_else(PoisonError::into_inner) = left;
        }
        Ok(count)
    }

    /// Encrypts a text under a key of its own, until [`Vault::erase`] destroys it by the tag of `name`.
    pub fn seal(&self, name: &str, text: &str) -> Result<Vec<u8>, SealError> {
        let owner = Owner { subject: Some(self.tag(name)?), ..Owner::tenant("") };
        self.prepare(std::slice::from_ref(&owner))?;
        let mut sealed = Vec::new();
        self.sealer_of(&owner, &self.salt()?)?.seal(name.as_bytes(), text.as_bytes(), &mut sealed)?;
        Ok(sealed)
    }

    /// What [`Vault::seal`] has encrypted; `None` when its key was destroyed.
    pub fn unseal(&self, name: &str, bytes: &[u8]) -> Result<Option<String>, SealError> {
        let text = self.open_value(&mut Opener::default(), bytes, |_| name.as_bytes())?;
        Ok(text.map(|text| String::from_utf8_lossy(&text).into_owned()))
    }

    /// A value that is bound to a place, which is told the tenant of its key; `None` when that key was destroyed.
    pub(crate) fn open_value<'a>(
        &self,
        opener: &mut Opener,
        bytes: &[u8],
        place: impl FnOnce(&str) -> &'a [u8],
    ) -> Result<Option<Vec<u8>>, SealError> {
        let sealed = Sealed::parse(bytes)?;
        let entry = self.entry(sealed.key)?;
        if entry.erased.is_some() {
            return Ok(None);
        }
        Ok(Some(opener.open(sealed, &entry.key, place(&entry.owner.tenant))?.to_vec()))
    }

    /// A value that [`Vault::sealer`] encrypted, bound to `place`.
    pub fn decrypt_value(
        &self,
        opener: &mut Opener,
        place: &[u8],
        bytes: &[u8],
    ) -> Result<Vec<u8>, SealError> {
        let sealed = Sealed::parse(bytes)?;
        let entry = self.entry(sealed.key)?;
        Ok(opener.open(sealed, &entry.key, place)?.to_vec())
    }

    pub(crate) fn entry(&self, number: u32) -> Result<Entry, SealError> {
        self.ring().keys.get(&number).cloned().ok_or(SealError::NoKey(number))
    }

    /// The key of fingerprints: who has the stored ones can't try values without it.
    pub fn fingerprint_key(&self) -> Result<DataKey, SealError> {
        Ok(self.entry(FINGERPRINT)?.key)
    }

    /// Gives every tenant a new key, which encrypts from now on. Answers how many there are.
    pub fn rotate(&self) -> Result<usize, RingError> {
        let _alone = self.changing();
        let (tenants, first) = {
            let ring = self.ring();
            // Keys of people encrypt little, and would be as many again.
            let all = ring.newest.keys().filter(|owner| owner.subject.is_none());
            let mut tenants: Vec<Owner> = all.cloned().collect();
            tenants.sort();
            (tenants, ring.next_number())
        };
        let wanted: Vec<(u32, Owner)> = (first..).zip(tenants).collect();
        if !wanted.is_empty() {
            self.make(&wanted)?;
        }
        Ok(wanted.len())
    }

    /// Wraps all keys by the first of other master keys. No value changes.
    pub fn rewrap(&self, masters: Vec<DataKey>) -> Result<usize, RingError> {
        if masters.is_empty() {
            return Err(RingError::NoMaster);
        }
        let _alone = self.changing();
        let fresh = self.ring().under(masters);
        self.file.replace(&fresh.show(self.randomness.as_ref())?)?;
        let keys = fresh.keys.len();
        *self.ring.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(keys)
    }

    /// The keys of tenants, without anything of them, and what the master key is called.
    pub fn describe(&self) -> (String, Vec<Described>) {
        let ring = self.ring();
        let of_tenants = |(number, entry): &(&u32, &Entry)| {
            **number != FINGERPRINT && entry.owner.subject.is_none() && entry.erased.is_none()
        };
        let described = ring.keys.iter().filter(of_tenants).map(|(number, entry)| Described {
            number: *number,
            tenant: entry.owner.tenant.clone(),
            made: entry.made,
            newest: ring.newest.get(&entry.owner) == Some(number),
        });
        (ring.master_name(), described.collect())
    }

    /// What a master key is called in the file of keys.
    pub fn name_of(master: &DataKey) -> String {
        name_of(master)
    }
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Vault")
    }
}
