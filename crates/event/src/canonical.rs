//! Canonical bytes and hashes: two payloads that mean the same hash the same.

use std::fmt;

use serde::{Deserialize, Serialize};

/// JSON in the canonical form of RFC 8785 (members sorted, shortest numbers, no white space).
/// Numbers are doubles there, so the form is for comparing and hashing, never for storing.
pub fn canonical_json(value: &serde_json::Value) -> Result<Vec<u8>, serde_json::Error> {
    serde_json_canonicalizer::to_vec(value)
}

/// The first 128 bits of a BLAKE3 hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Digest128(pub [u8; 16]);

impl Digest128 {
    /// Hashes parts with their lengths, so that ("a","bc") and ("ab","c") differ.
    pub fn of_parts(parts: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Self::of(&hasher.finalize())
    }

    /// Truncates a finished hash.
    pub fn of(hash: &blake3::Hash) -> Self {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.as_bytes()[..16]);
        Self(bytes)
    }
}

impl fmt::Display for Digest128 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest128 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_form_ignores_order_and_space() {
        let a: serde_json::Value = serde_json::from_str(r#"{"b": 1.0, "a": [true, "é"]}"#).unwrap();
        let b: serde_json::Value = serde_json::from_str(r#"{"a":[true,"\u00e9"],"b":1}"#).unwrap();
        assert_eq!(canonical_json(&a).unwrap(), canonical_json(&b).unwrap());
    }

    #[test]
    fn parts_do_not_run_together() {
        assert_ne!(Digest128::of_parts(&[b"a", b"bc"]), Digest128::of_parts(&[b"ab", b"c"]));
    }
}
