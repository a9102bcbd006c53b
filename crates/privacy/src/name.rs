//! Finding a person's name in texts that were written about other things, however it is written there.

use std::ops::Range;

use serde_json::Value;

/// What stands where a name stood.
pub const ERASED: &str = "[erased]";
/// The shortest name that is looked for, in bytes: a shorter one would be found everywhere.
pub const SHORTEST: usize = 3;

/// A name that is to be found in questions, paths and bodies: as it is or with letters in another case, percent-encoded, with
/// quotes doubled as in SQL or escaped as in JSON. It is found where it stands for itself, not inside of a longer word.
pub struct Name {
    bytes: Vec<u8>,
}

impl Name {
    /// A name; `None` for one that is too short to be looked for.
    pub fn new(name: &str) -> Option<Self> {
        (name.len() >= SHORTEST).then(|| Self { bytes: name.as_bytes().to_vec() })
    }

    /// Whether a text names the person.
    pub fn is_in(&self, text: &str) -> bool {
        self.next_in(text.as_bytes(), 0).is_some()
    }

    /// Whether bytes that may be text name the person.
    pub fn is_within(&self, bytes: &[u8]) -> bool {
        self.next_in(bytes, 0).is_some()
    }

    /// The text without the name; `None` when it does not hold it.
    pub fn taken_out_of(&self, text: &str) -> Option<String> {
        let bytes = text.as_bytes();
        let mut found = self.next_in(bytes, 0)?;
        let (mut left, mut from) = (Vec::with_capacity(bytes.len()), 0);
        loop {
            left.extend_from_slice(&bytes[from..found.start]);
            left.extend_from_slice(ERASED.as_bytes());
            from = found.end;
            match self.next_in(bytes, from) {
                Some(next) => found = next,
                None => break,
            }
        }
        left.extend_from_slice(&bytes[from..]);
        // What is cut out begins and ends where a character does.
        Some(String::from_utf8_lossy(&left).into_owned())
    }

    /// JSON without the name, which may stand in its texts, be a number, or the name of a member. `None` when it does not hold it.
    pub fn taken_out_of_json(&self, text: &str) -> Option<String> {
        // JSON in a text of JSON is escaped twice: what has to be escaped is looked for in the values.
        let escaped = self.bytes.iter().any(|byte| matches!(byte, b'"' | b'\\'));
        if !escaped && !self.is_in(text) {
            return None;
        }
        let Ok(mut value) = serde_json::from_str::<Value>(text) else { return self.taken_out_of(text) };
        let before = value.clone();
        self.clear(&mut value);
        (value != before).then(|| value.to_string())
    }

    /// Takes the name out of a value.
    pub fn clear(&self, value: &mut Value) {
        match value {
            Value::String(text) => {
                if let Some(left) = self.taken_out_of(text) {
                    *text = left;
                }
            }
            Value::Number(number) if self.is_in(&number.to_string()) => *value = ERASED.into(),
            Value::Array(values) => values.iter_mut().for_each(|value| self.clear(value)),
            Value::Object(members) => {
                for (name, mut value) in std::mem::take(members) {
                    self.clear(&mut value);
                    members.insert(self.taken_out_of(&name).unwrap_or(name), value);
                }
            }
            _ => {}
        }
    }

    fn next_in(&self, text: &[u8], from: usize) -> Option<Range<usize>> {
        let first = self.bytes.first()?;
        let (lower, upper) = (first.to_ascii_lowercase(), first.to_ascii_uppercase());
        let mut at = from;
        loop {
            // Encoded characters begin with another byte than their own.
            at += memchr::memchr3(lower, upper, b'%', text.get(at..)?)?;
            if let Some(end) = self.end_at(text, at)
                && stands_alone(&self.bytes, text, at, end)
            {
                return Some(at..end);
            }
            at += 1;
        }
    }

    /// Where the name ends that begins at a place.
    fn end_at(&self, text: &[u8], mut at: usize) -> Option<usize> {
        for wanted in &self.bytes {
            at = after(text, at, *wanted)?;
        }
        Some(at)
    }
}

/// The place after one byte of a name, however it is written.
fn after(text: &[u8], at: usize, wanted: u8) -> Option<usize> {
    let rest = text.get(at..)?;
    let same = |byte: u8| byte.eq_ignore_ascii_case(&wanted);
    match (rest, wanted) {
        ([b'\'', b'\'', ..], b'\'') => Some(at + 2),
        ([b'\\', escaped, ..], b'"' | b'\\' | b'/') if *escaped == wanted => Some(at + 2),
        ([byte, ..], _) if same(*byte) => Some(at + 1),
        ([b'+', ..], b' ') => Some(at + 1),
        ([b'%', high, low, ..], _) => encoded(*high, *low).filter(|byte| same(*byte)).map(|_| at + 3),
        _ => None,
    }
}

/// The byte that two hexadecimal digits stand for.
fn encoded(high: u8, low: u8) -> Option<u8> {
    let digit = |digit: u8| char::from(digit).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

/// Whether what was found is no part of a longer word or number.
fn stands_alone(name: &[u8], text: &[u8], start: usize, end: usize) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte >= 0x80;
    let before = match text[..start] {
        [.., b'%', high, low] if encoded(high, low).is_some() => encoded(high, low),
        // The end of an escape, such as a new line.
        [.., b'\\', _] => None,
        [.., byte] => Some(byte),
        [] => None,
    };
    let behind = match text[end..] {
        [b'%', high, low, ..] if encoded(high, low).is_some() => encoded(high, low),
        [byte, ..] => Some(byte),
        [] => None,
    };
    let joined = |edge: Option<&u8>, beside: Option<u8>| {
        edge.is_some_and(|byte| is_word(*byte)) && beside.is_some_and(is_word)
    };
    !joined(name.first(), before) && !joined(name.last(), behind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(name: &str, text: &str) -> Option<String> {
        Name::new(name).unwrap().taken_out_of(text)
    }

    #[test]
    fn a_name_is_found_however_it_is_written() {
        let cases = [
            ("ada@example.org", "WHERE who = 'ada@example.org' OR 1", "WHERE who = '[erased]' OR 1"),
            ("ada@example.org", "/people?who=Ada%40Example.org&x=1", "/people?who=[erased]&x=1"),
            ("ada@example.org", "?q=%27ada%40example.org%27", "?q=%27[erased]%27"),
            ("O'Brien", "name = 'O''Brien'", "name = '[erased]'"),
            ("O'Brien", "name = \"O'Brien\"", "name = \"[erased]\""),
            ("Ada Lovelace", "?name=ada+lovelace", "?name=[erased]"),
            ("Ada Lovelace", "?name=ada%20lovelace", "?name=[erased]"),
            ("Zoë", "?name=Zo%C3%AB", "?name=[erased]"),
            ("Zoë", "of Zoë, and Zoë.", "of [erased], and [erased]."),
            ("12345", "id=12345", "id=[erased]"),
            ("a\"b\\c", r#"{"x":"a\"b\\c"}"#, r#"{"x":"[erased]"}"#),
            ("ada", "line one\\nada", "line one\\n[erased]"),
            ("%ada", "a %ada b", "a [erased] b"),
        ];
        for (name, text, expected) in cases {
            assert_eq!(left(name, text).as_deref(), Some(expected), "{name} in {text}");
            assert_eq!(left(name, expected), None, "{name} in {expected}");
        }
    }

    #[test]
    fn a_longer_word_is_another_one() {
        for (name, text) in [
            ("ada", "adapter, Granada, adage, x1ada, ada2"),
            ("12345", "123456 or 012345"),
            ("ada", "%41ada"),
            ("Zoë", "Zoëlle"),
            ("ada", ""),
            ("ada", "ad"),
            ("ada", "%4"),
        ] {
            assert_eq!(left(name, text), None, "{name} in {text}");
        }
        assert!(Name::new("ab").is_none());
        assert_eq!(left("ada", "adapter of ada").as_deref(), Some("adapter of [erased]"));
    }

    #[test]
    fn json_stays_json() {
        let name = Name::new("12345").unwrap();
        let text = r#"{"12345":{"id":12345,"of":[12345,1234567]},"query":"WHERE id = 12345","x":true}"#;
        let left = name.taken_out_of_json(text).unwrap();
        assert_eq!(
            serde_json::from_str::<Value>(&left).unwrap(),
            serde_json::json!({"[erased]": {"id": "[erased]", "of": ["[erased]", 1234567]}, "query": "WHERE id = [erased]", "x": true})
        );
        assert_eq!(name.taken_out_of_json(&left), None);
        assert_eq!(name.taken_out_of_json("no json, 12345").as_deref(), Some("no json, [erased]"));
        let quoted = Name::new("Ada \"Countess\" L").unwrap();
        let nested =
            serde_json::json!({"body": serde_json::json!({"who": "Ada \"Countess\" L"}).to_string()})
                .to_string();
        let left = quoted.taken_out_of_json(&nested).unwrap();
        assert!(!left.contains("Countess"), "{left}");
    }
}
