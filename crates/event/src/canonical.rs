//! Canonical bytes and hashes: two payloads that mean the same hash the same.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Appends a text that is equal exactly when two JSON values mean the same: members sorted, no white
/// space, `1.0` written as `1`. Unlike RFC 8785 integers beyond 2^53 keep every digit, so that two of
/// them never collapse into one. For comparing and hashing, not for showing.
pub fn comparable_json(value: &serde_json::Value, out: &mut String) {
    use serde_json::Value;
    match value {
        Value::Number(number) => match number.as_f64() {
            Some(float)
                if number.is_f64() && float.fract() == 0.0 && float.abs() < 9_007_199_254_740_992.0 =>
            {
                out.push_str(&(float as i64).to_string());
            }
            _ => out.push_str(&number.to_string()),
        },
        Value::Array(elements) => {
            out.push('[');
            for element in elements {
                comparable_json(element, out);
                out.push(',');
            }
            out.push(']');
        }
        Value::Object(members) => {
            let mut members: Vec<(&String, &Value)> = members.iter().collect();
            members.sort_by_key(|(name, _)| *name);
            out.push('{');
            for (name, value) in members {
                push_json_string(name, out);
                out.push(':');
                comparable_json(value, out);
                out.push(',');
            }
            out.push('}');
        }
        Value::String(text) => push_json_string(text, out),
        plain => out.push_str(&plain.to_string()),
    }
}

/// Appends a text as a JSON string; most need no escapes.
pub fn push_json_string(text: &str, out: &mut String) {
    // No early end: so the compiler looks at many bytes at a time.
    let escaped = |byte: u8| byte < 0x20 || byte == b'"' || byte == b'\\';
    if !text.bytes().fold(false, |found, byte| found | escaped(byte)) {
        out.push('"');
        out.push_str(text);
        out.push('"');
    } else {
        out.push_str(&serde_json::Value::from(text).to_string());
    }
}

/// The first 128 bits of a BLAKE3 hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Digest128(pub [u8; 16]);

impl Digest128 {
    /// Hashes parts with their lengths, so that ("a","bc") and ("ab","c") differ.
    pub fn of_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        // What is short, as nearly all ids are, is hashed in one go: half the time.
        let mut short = [0; 256];
        let mut used = 0;
        let mut long: Option<blake3::Hasher> = None;
        for part in parts {
            for piece in [&(part.len() as u64).to_le_bytes(), part] {
                match (&mut long, short.get_mut(used..used + piece.len())) {
                    (None, Some(place)) => {
                        place.copy_from_slice(piece);
                        used += piece.len();
                    }
                    (hasher, _) => {
                        let begun = || {
                            let mut hasher = blake3::Hasher::new();
                            hasher.update(&short[..used]);
                            hasher
                        };
                        hasher.get_or_insert_with(begun).update(piece);
                    }
                }
            }
        }
        match long {
            Some(hasher) => Self::of(&hasher.finalize()),
            None => Self::of(&blake3::hash(&short[..used])),
        }
    }

    /// The same under a key: without it nobody can try out what was hashed.
    #[must_use]
    pub fn keyed(self, key: &[u8; 32]) -> Self {
        Self::of(&blake3::keyed_hash(key, &self.0))
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
    fn comparable_form_ignores_order_and_space() {
        let a: serde_json::Value = serde_json::from_str(r#"{"b": 1.0, "a": [true, "é"]}"#).unwrap();
        let b: serde_json::Value = serde_json::from_str(r#"{"a":[true,"\u00e9"],"b":1}"#).unwrap();
        assert_eq!(comparable(&a), comparable(&b));
    }

    fn comparable(value: &serde_json::Value) -> String {
        let mut out = String::new();
        comparable_json(value, &mut out);
        out
    }

    #[test]
    fn large_integers_do_not_collapse() {
        let number = |text: &str| comparable(&serde_json::from_str(text).unwrap());
        assert_ne!(number("9007199254740993"), number("9007199254740992"));
        assert_ne!(number("[1,2]"), number("[12]"));
    }

    #[test]
    fn parts_do_not_run_together() {
        let digest = |parts: &[&[u8]]| Digest128::of_parts(parts.iter().copied());
        assert_ne!(digest(&[b"a", b"bc"]), digest(&[b"ab", b"c"]));
    }

    #[test]
    fn parts_of_any_length_hash_as_their_concatenation() {
        for length in [0, 1, 100, 239, 240, 241, 248, 249, 5000] {
            let (head, tail) = (vec![b'x'; length], b"tail");
            let whole = [&(length as u64).to_le_bytes()[..], &head, &4u64.to_le_bytes(), tail].concat();
            let digest = Digest128::of_parts([head.as_slice(), tail]);
            assert_eq!(digest, Digest128::of(&blake3::hash(&whole)), "{length} bytes");
        }
    }
}
