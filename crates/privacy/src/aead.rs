//! The form of an encrypted value.
//!
//! ```text
//! format u8 = 1 | data key u32 | salt 16 bytes | number u32 | ciphertext | tag 16 bytes      (big-endian)
//! ```
//! The salt is random and chosen once for a batch. HKDF-SHA-256 makes a key of the data key and the salt, and the
//! number, which counts the values under that key, is the nonce. So no nonce is ever used twice, however many
//! values a data key encrypts: two batches would have to draw the same 128 bits.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};

use std::collections::HashMap;
use std::collections::hash_map::Entry;

const FORMAT: u8 = 1;
/// Bytes of the salt.
pub const SALT_LEN: usize = 16;
const HEAD_LEN: usize = 1 + 4 + SALT_LEN + 4;
const TAG_LEN: usize = 16;
const INFO: &[u8] = b"highwater sealed values 1";

/// Bytes that an encrypted value is longer than the value.
pub const OVERHEAD: usize = HEAD_LEN + TAG_LEN;

/// A data key: 32 bytes that nobody can guess.
pub type DataKey = [u8; 32];

/// A value can't be encrypted or decrypted. Says nothing of what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AeadError {
    /// The bytes are not of this form.
    #[error("it is not an encrypted value")]
    Malformed,
    /// They are not what was encrypted for that place, or the key is another.
    #[error("it was changed, moved from elsewhere, or encrypted under another key")]
    Forged,
    /// 2³² values under one salt.
    #[error("too many values in one batch")]
    Exhausted,
    /// The cryptographic library refused.
    #[error("the cryptographic library refused")]
    Refused,
}

struct KeyLength;

impl KeyType for KeyLength {
    fn len(&self) -> usize {
        32
    }
}

fn derive(key: &DataKey, salt: &[u8; SALT_LEN]) -> Result<LessSafeKey, AeadError> {
    let prk: Prk = Salt::new(HKDF_SHA256, salt).extract(key);
    let mut derived = [0; 32];
    let info = [INFO];
    let okm = prk.expand(&info, KeyLength).map_err(|_| AeadError::Refused)?;
    okm.fill(&mut derived).map_err(|_| AeadError::Refused)?;
    Ok(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &derived).map_err(|_| AeadError::Refused)?))
}

fn nonce(number: u32) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[NONCE_LEN - 4..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// Encrypts the values of one batch.
pub struct Sealer {
    key: LessSafeKey,
    head: [u8; HEAD_LEN - 4],
    next: u32,
}

impl Sealer {
    /// For a data key, by its number. The salt must be random and used for nothing else.
    pub fn new(number: u32, key: &DataKey, salt: &[u8; SALT_LEN]) -> Result<Self, AeadError> {
        let mut head = [0; HEAD_LEN - 4];
        head[0] = FORMAT;
        head[1..5].copy_from_slice(&number.to_be_bytes());
        head[5..].copy_from_slice(salt);
        Ok(Self { key: derive(key, salt)?, head, next: 0 })
    }

    /// Appends a value to `out`, encrypted and bound to `place`.
    pub fn seal(&mut self, place: &[u8], value: &[u8], out: &mut Vec<u8>) -> Result<(), AeadError> {
        let number = self.next;
        self.next = number.checked_add(1).ok_or(AeadError::Exhausted)?;
        out.extend_from_slice(&self.head);
        out.extend_from_slice(&number.to_be_bytes());
        let start = out.len();
        out.extend_from_slice(value);
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(number), Aad::from(place), &mut out[start..])
            .map_err(|_| AeadError::Refused)?;
        out.extend_from_slice(tag.as_ref());
        Ok(())
    }
}

/// An encrypted value, taken apart.
#[derive(Debug, Clone, Copy)]
pub struct Sealed<'a> {
    /// Number of its data key.
    pub key: u32,
    salt: &'a [u8; SALT_LEN],
    number: u32,
    ciphertext: &'a [u8],
}

impl<'a> Sealed<'a> {
    /// Takes bytes apart.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, AeadError> {
        let parts = bytes.split_first_chunk::<5>().and_then(|(head, rest)| {
            let (salt, rest) = rest.split_first_chunk::<SALT_LEN>()?;
            let (number, ciphertext) = rest.split_first_chunk::<4>()?;
            Some((head, salt, number, ciphertext))
        });
        match parts {
            Some(([FORMAT, key @ ..], salt, number, ciphertext)) if ciphertext.len() >= TAG_LEN => Ok(Self {
                key: u32::from_be_bytes(*key),
                salt,
                number: u32::from_be_bytes(*number),
                ciphertext,
            }),
            _ => Err(AeadError::Malformed),
        }
    }
}

/// Keys that are remembered: values of many people lie next to each other.
const REMEMBERED: usize = 4096;

/// Decrypts values; remembers the keys of batches that it saw.
#[derive(Default)]
pub struct Opener {
    known: HashMap<(u32, [u8; SALT_LEN]), LessSafeKey>,
    buffer: Vec<u8>,
}

impl Opener {
    /// The value, when it was encrypted under that data key for that place.
    pub fn open(&mut self, sealed: Sealed<'_>, key: &DataKey, place: &[u8]) -> Result<&[u8], AeadError> {
        if self.known.len() >= REMEMBERED {
            self.known.clear();
        }
        let derived = match self.known.entry((sealed.key, *sealed.salt)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(missing) => missing.insert(derive(key, sealed.salt)?),
        };
        self.buffer.clear();
        self.buffer.extend_from_slice(sealed.ciphertext);
        derived
            .open_in_place(nonce(sealed.number), Aad::from(place), &mut self.buffer)
            .map(|value| &*value)
            .map_err(|_| AeadError::Forged)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use highwater_event::{Randomness, SeededRandomness};

    use super::*;

    const KEY: DataKey = [7; 32];

    fn open(bytes: &[u8], place: &[u8]) -> Result<Vec<u8>, AeadError> {
        Opener::default().open(Sealed::parse(bytes)?, &KEY, place).map(<[u8]>::to_vec)
    }

    #[test]
    fn every_flipped_bit_and_every_other_place_is_refused() {
        let mut sealer = Sealer::new(3, &KEY, &[9; SALT_LEN]).unwrap();
        let mut bytes = Vec::new();
        sealer.seal(b"people/phone/0/17", b"+43 1 234", &mut bytes).unwrap();
        assert_eq!(bytes.len(), OVERHEAD + 9);
        assert_eq!(open(&bytes, b"people/phone/0/17").unwrap(), b"+43 1 234");
        assert_eq!(open(&bytes, b"people/phone/0/18"), Err(AeadError::Forged));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // The number of the data key chooses the key, and whoever asks gives another one then.
            let key_number = (8..40).contains(&bit);
            assert!(key_number || open(&flipped, b"people/phone/0/17").is_err(), "bit {bit}");
        }
        for cut in 0..bytes.len() {
            assert!(open(&bytes[..cut], b"people/phone/0/17").is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn values_of_one_batch_can_not_change_places() {
        let mut sealer = Sealer::new(1, &KEY, &[1; SALT_LEN]).unwrap();
        let (mut one, mut other) = (Vec::new(), Vec::new());
        sealer.seal(b"row 1", b"same", &mut one).unwrap();
        sealer.seal(b"row 2", b"same", &mut other).unwrap();
        assert_ne!(one[HEAD_LEN..], other[HEAD_LEN..], "equal values look different");
        assert_eq!(open(&one, b"row 2"), Err(AeadError::Forged));
        assert_eq!(open(&other, b"row 2").unwrap(), b"same");
    }

    #[test]
    fn no_nonce_is_used_twice() {
        let random = SeededRandomness::new(1);
        let mut seen = HashSet::new();
        for _batch in 0..200 {
            let mut salt = [0; SALT_LEN];
            random.fill(&mut salt).unwrap();
            let mut sealer = Sealer::new(1, &KEY, &salt).unwrap();
            for _value in 0..500 {
                let mut bytes = Vec::new();
                sealer.seal(b"", b"x", &mut bytes).unwrap();
                assert!(seen.insert(bytes[5..HEAD_LEN].to_vec()));
            }
        }
    }

    #[test]
    fn a_batch_ends_before_its_numbers_do() {
        let mut sealer = Sealer::new(1, &KEY, &[1; SALT_LEN]).unwrap();
        sealer.next = u32::MAX;
        assert_eq!(sealer.seal(b"", b"x", &mut Vec::new()), Err(AeadError::Exhausted));
    }
}
