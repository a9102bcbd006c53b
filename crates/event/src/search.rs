//! Searches: words of a text, and what is searched for in them.
//!
//! Words are runs of letters and digits, whatever their case. A search has words, all of which must be there;
//! `"several words"` must follow each other, `pre*` begins a word, and `-word` must not be there. Of JSON the
//! words are those of its names and values, whatever is escaped in it.

use std::ops::Range;

use arrow::datatypes::DataType;
use serde_json::Value;

use crate::columns;
use crate::schema::Column;

/// How a column is searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// By its words, by all of it, and by its beginning.
    Text,
    /// By the words of its names and values.
    Json,
    /// By value and by bounds: numbers, dates, times and truth values, as whole numbers.
    Number,
}

impl Kind {
    /// The kind of a column; `None` when it can't be searched.
    pub fn of(column: &Column) -> Option<Self> {
        match &column.data_type {
            DataType::Utf8 if column.json => Some(Self::Json),
            DataType::Utf8 => Some(Self::Text),
            DataType::Boolean | DataType::Int32 | DataType::Int64 | DataType::Date32 => Some(Self::Number),
            DataType::Decimal128(1..=18, _) => Some(Self::Number),
            time if *time == columns::timestamp_type() => Some(Self::Number),
            _ => None,
        }
    }
}

/// Words of one search at most.
const MOST_WORDS: usize = 64;

/// The words of a text, in lower case.
#[derive(Debug, Default)]
pub struct Words {
    text: String,
    places: Vec<Range<usize>>,
}

impl Words {
    /// Takes the words of a text in the place of those that are there.
    pub fn read(&mut self, text: &str) {
        self.text.clear();
        self.places.clear();
        if text.is_ascii() {
            self.text.push_str(text);
            self.text.make_ascii_lowercase();
        } else {
            self.text.push_str(&text.to_lowercase());
        }
        self.places.extend(runs(&self.text));
    }

    /// The words of the names and values of JSON. Most texts have no escapes, and are read as they are.
    pub fn read_json(&mut self, text: &str) {
        let value = text.contains('\\').then(|| serde_json::from_str::<Value>(text).ok()).flatten();
        let Some(value) = value else { return self.read(text) };
        let mut plain = String::with_capacity(text.len());
        gather(&value, &mut plain);
        self.read(&plain);
    }

    /// The word at a place, counted from 0.
    pub fn get(&self, at: usize) -> Option<&str> {
        self.places.get(at).map(|place| &self.text[place.clone()])
    }
}

/// Where the bytes of a text in lower case come from: a letter may be longer there, or two.
struct Origins {
    /// For each letter, where it ends in lower case, and its place in the text. None where both are the same.
    letters: Vec<(usize, Range<usize>)>,
}

impl Origins {
    fn of(text: &str) -> Self {
        if text.is_ascii() {
            return Self { letters: Vec::new() };
        }
        let mut end = 0;
        let letters = text.char_indices().map(|(at, letter)| {
            end += letter.to_lowercase().map(char::len_utf8).sum::<usize>();
            (end, at..at + letter.len_utf8())
        });
        Self { letters: letters.collect() }
    }

    /// The place of the letter that a byte in lower case belongs to.
    fn origin(&self, byte: usize) -> Range<usize> {
        let letter = self.letters.partition_point(|(end, _)| *end <= byte);
        self.letters.get(letter).map_or(byte..byte + 1, |(_, place)| place.clone())
    }
}

/// Runs of letters and digits.
fn runs(text: &str) -> impl Iterator<Item = Range<usize>> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let start = from + text[from..].find(char::is_alphanumeric)?;
        let end = text[start..].find(|it: char| !it.is_alphanumeric()).map_or(text.len(), |at| start + at);
        from = end;
        Some(start..end)
    })
}

/// Names and values of JSON, apart from each other.
fn gather(value: &Value, out: &mut String) {
    match value {
        Value::Object(members) => members.iter().for_each(|(name, value)| {
            out.push_str(name);
            out.push(' ');
            gather(value, out);
        }),
        Value::Array(elements) => elements.iter().for_each(|element| gather(element, out)),
        Value::String(text) => out.push_str(text),
        other => out.push_str(&other.to_string()),
    }
    out.push(' ');
}

/// Words that follow each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    /// At least one.
    pub words: Vec<String>,
    /// The last one is the beginning of a word.
    pub prefix: bool,
    /// They must not be there.
    pub without: bool,
}

/// What is searched for: all of it must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Search(Vec<Term>);

/// A search with more words than one may have.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("a search may have {MOST_WORDS} words, not {0}")]
pub struct TooManyWords(usize);

impl Search {
    /// Reads what somebody searches for.
    pub fn read(text: &str) -> Result<Self, TooManyWords> {
        let mut terms = Vec::new();
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let without = rest.starts_with('-');
            rest = rest.strip_prefix('-').unwrap_or(rest);
            let (part, behind) = match rest.strip_prefix('"') {
                // A quotation mark that is missing is taken to stand at the end.
                Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
                None => rest.split_at(rest.find(char::is_whitespace).unwrap_or(rest.len())),
            };
            let prefix = part.ends_with('*') || behind.starts_with('*');
            rest = behind.strip_prefix('*').unwrap_or(behind).trim_start();
            let mut words = Words::default();
            words.read(part);
            let words: Vec<String> = (0..).map_while(|at| words.get(at).map(str::to_owned)).collect();
            if !words.is_empty() {
                terms.push(Term { words, prefix, without });
            }
        }
        match terms.iter().map(|term| term.words.len()).sum::<usize>() {
            0..=MOST_WORDS => Ok(Self(terms)),
            many => Err(TooManyWords(many)),
        }
    }

    /// Where a text has what is searched for: from the first byte of the first word of a term to the last byte of its last.
    pub fn found_in(&self, text: &str) -> Vec<Range<usize>> {
        let mut words = Words::default();
        words.read(text);
        let origins = Origins::of(text);
        let mut found = Vec::new();
        for term in self.0.iter().filter(|term| !term.without) {
            let starts = (0..words.places.len()).filter(|start| term.stands_at(*start, |at| words.get(at)));
            found.extend(starts.map(|start| {
                let (first, last) = (&words.places[start], &words.places[start + term.words.len() - 1]);
                origins.origin(first.start).start..origins.origin(last.end - 1).end
            }));
        }
        found.sort_unstable_by_key(|range| (range.start, range.end));
        // Those that overlap are one.
        found.dedup_by(|next, before| {
            let overlap = next.start < before.end;
            if overlap {
                before.end = before.end.max(next.end);
            }
            overlap
        });
        found
    }

    /// Its terms.
    pub fn terms(&self) -> &[Term] {
        &self.0
    }

    /// Whether a text with these words is found.
    pub fn finds(&self, words: &Words) -> bool {
        self.0.iter().all(|term| term.stands_in(words) != term.without)
    }
}

impl Term {
    /// Whether its words follow each other from a place on.
    fn stands_at<'a>(&self, start: usize, word: impl Fn(usize) -> Option<&'a str>) -> bool {
        let last = self.words.len() - 1;
        self.words.iter().enumerate().all(|(at, wanted)| {
            word(start + at).is_some_and(|word| {
                if self.prefix && at == last { word.starts_with(wanted.as_str()) } else { word == wanted }
            })
        })
    }

    fn stands_in(&self, words: &Words) -> bool {
        (0..words.places.len()).any(|start| self.stands_at(start, |at| words.get(at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finds(search: &str, text: &str) -> bool {
        let mut words = Words::default();
        words.read(text);
        Search::read(search).unwrap().finds(&words)
    }

    #[test]
    fn what_is_escaped_in_json_is_found() {
        let mut words = Words::default();
        words.read_json(r#"{"city":"Stra\u00dfe","note":"first line\nrefund","n":[1.5,true]}"#);
        for found in ["straße", "refund", "\"line refund\"", "city", "1.5", "true"] {
            assert!(Search::read(found).unwrap().finds(&words), "{found}");
        }
        assert!(!Search::read("nrefund").unwrap().finds(&words));
    }

    #[test]
    fn what_is_found_is_told() {
        let found = |search: &str, text: &str| -> Vec<String> {
            let ranges = Search::read(search).unwrap().found_in(text);
            ranges.into_iter().map(|range| text[range].to_owned()).collect()
        };
        let text = "Über the Limit, over the limit: card declined";
        assert_eq!(found("limit über", text), ["Über", "Limit", "limit"]);
        assert_eq!(found("\"the lim\"*", text), ["the Limit", "the limit"]);
        assert_eq!(found("\"over the\" \"the limit\"", text), ["the Limit", "over the limit"]);
        assert!(found("-card gone", text).is_empty() && found("a", "").is_empty());
        // Letters that are longer, shorter or two in lower case, and one that has two forms there.
        assert_eq!(found("stanbul", "vor İstanbul"), ["stanbul"]);
        assert_eq!(found("i", "vor İstanbul"), ["İ"]);
        assert_eq!(found("kelvin ⱥb", "ǅ KELVIN Ⱥb ẞ"), ["KELVIN", "Ⱥb"]);
        assert_eq!(found("οδος", "ΟΔΟΣ 4, Οδός"), ["ΟΔΟΣ"]);
    }

    #[test]
    fn words_phrases_beginnings_and_what_must_not_be_there() {
        let text = r#"{"reason":"Card declined: over Limit","amount":12.50,"note":"façade Über 42nd"}"#;
        for found in [
            "",
            "declined",
            "DECLINED card",
            "\"card declined\"",
            "\"card declined",
            "decl*",
            "\"over lim\"*",
            "\"over lim*\"",
            "über",
            "FAÇADE",
            "12",
            "12.50",
            "-refund",
            "card -refund",
            "reason:",
            "42n*",
            "*",
        ] {
            assert!(finds(found, text), "{found}");
        }
        for missing in [
            "decline",
            "\"declined card\"",
            "card refund",
            "-card",
            "card -declined",
            "imit",
            "\"over lim\"",
            "125",
        ] {
            assert!(!finds(missing, text), "{missing}");
        }
        assert!(!finds("a", "") && finds("-a", ""));
        assert!(Search::read(&"a ".repeat(65)).is_err());
    }
}
