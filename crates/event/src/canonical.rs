//! Canonical bytes and hashes: two payloads that mean the same hash the same.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Appends bytes that are equal exactly when two JSON values mean the same: members sorted, no white
/// space, `1.0` written as `1`. Unlike RFC 8785 integers beyond 2^53 keep every digit, so that two of
/// them never collapse into one. For comparing and hashing, not for showing.
pub fn comparable_json(value: &serde_json::Value, out: &mut Vec<u8>) {
    use serde_json::Value;
    match value {
        Value::Number(number) => match number.as_f64() {
            Some(float)
                if number.is_f64() && float.fract() == 0.0 && float.abs() < 9_007_199_254_740_992.0 =>
            {
                out.extend_from_slice((float as i64).to_string().as_bytes());
            }
            _ => out.extend_from_slice(number.to_string().as_bytes()),
        },
        Value::Array(elements) => {
            out.push(b'[');
            for element in elements {
                comparable_json(element, out);
                out.push(b',');
            }
            out.push(b']');
        }
        Value::Object(members) => {
            let mut names: Vec<&String> = members.keys().collect();
            names.sort();
            out.push(b'{');
            for name in names {
                comparable_json(&Value::String(name.clone()), out);
                out.push(b':');
                comparable_json(&members[name], out);
                out.push(b',');
            }
            out.push(b'}');
        }
        plain => out.extend_from_slice(plain.to_string().as_bytes()),
    }
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
    fn comparable_form_ignores_order_and_space() {
        let a: serde_json::Value = serde_json::from_str(r#"{"b": 1.0, "a": [true, "é"]}"#).unwrap();
        let b: serde_json::Value = serde_json::from_str(r#"{"a":[true,"\u00e9"],"b":1}"#).unwrap();
        assert_eq!(comparable(&a), comparable(&b));
    }

    fn comparable(value: &serde_json::Value) -> Vec<u8> {
        let mut out = Vec::new();
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
        assert_ne!(Digest128::of_parts(&[b"a", b"bc"]), Digest128::of_parts(&[b"ab", b"c"]));
    }
}
