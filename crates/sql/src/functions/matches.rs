//! MATCHES: whether a text has the words of a search.
//!
//! Words are runs of letters and digits, whatever their case. A search has words, all of which must be there;
//! `"several words"` must follow each other, `pre*` begins a word, and `-word` must not be there. Of what `json(…)` answers the
//! words are those of its names and values, whatever is escaped in it.

use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use datafusion::common::{Result, plan_err};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};
use highwater_event::json::is_json;
use serde_json::Value;

/// Words of one search at most.
const MOST_WORDS: usize = 64;

#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Matches {
    signature: Signature,
}

impl Matches {
    pub fn new() -> Self {
        Self { signature: Signature::any(2, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for Matches {
    fn name(&self) -> &str {
        "matches"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        let text = |it: &DataType| {
            matches!(it, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null)
        };
        match arguments.iter().find(|argument| !text(argument)) {
            None => Ok(DataType::Boolean),
            Some(other) => plan_err!("matches takes a text and what to search for, not {other}"),
        }
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = arguments.number_rows;
        // Nearly always the same search for every row.
        let mut known: Option<(String, Search)> = None;
        let texts = cast(&arguments.args[0].to_array(rows)?, &DataType::Utf8)?;
        let searches = cast(&arguments.args[1].to_array(rows)?, &DataType::Utf8)?;
        let (texts, searches) = (texts.as_string::<i32>(), searches.as_string::<i32>());
        let of_json = is_json(&arguments.arg_fields[0]);
        let mut words = Words::default();
        let mut found = Vec::with_capacity(rows);
        for row in 0..rows {
            if searches.is_null(row) {
                found.push(None);
                continue;
            }
            let asked = searches.value(row);
            let search = match &mut known {
                Some((text, search)) if text == asked => search,
                other => &mut other.insert((asked.to_owned(), Search::read(asked)?)).1,
            };
            // What says nothing has no words.
            let text = if texts.is_valid(row) { texts.value(row) } else { "" };
            match of_json {
                true => words.read_json(text),
                false => words.read(text),
            }
            found.push(Some(search.finds(&words)));
        }
        Ok(ColumnarValue::Array(Arc::new(BooleanArray::from(found))))
    }
}

/// The words of a text, in lower case.
#[derive(Default)]
struct Words {
    text: String,
    places: Vec<(usize, usize)>,
}

impl Words {
    fn read(&mut self, text: &str) {
        self.text.clear();
        self.places.clear();
        if text.is_ascii() {
            self.text.push_str(text);
            self.text.make_ascii_lowercase();
        } else {
            self.text.push_str(&text.to_lowercase());
        }
        let mut start = None;
        for (at, character) in self.text.char_indices() {
            match (character.is_alphanumeric(), start) {
                (true, None) => start = Some(at),
                (false, Some(from)) => {
                    self.places.push((from, at));
                    start = None;
                }
                _ => {}
            }
        }
        self.places.extend(start.map(|from| (from, self.text.len())));
    }

    /// The words of names and values. Most texts have no escapes, and are read as they are.
    fn read_json(&mut self, text: &str) {
        let value = text.contains('\\').then(|| serde_json::from_str::<Value>(text).ok()).flatten();
        let Some(value) = value else { return self.read(text) };
        let mut plain = String::with_capacity(text.len());
        gather(&value, &mut plain);
        self.read(&plain);
    }

    fn get(&self, at: usize) -> Option<&str> {
        self.places.get(at).map(|(from, to)| &self.text[*from..*to])
    }
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
struct Term {
    words: Vec<String>,
    /// The last one is the beginning of a word.
    prefix: bool,
    /// They must not be there.
    without: bool,
}

/// What is searched for.
struct Search(Vec<Term>);

impl Search {
    fn read(text: &str) -> Result<Self> {
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
            many => plan_err!("a search may have {MOST_WORDS} words, not {many}"),
        }
    }

    fn finds(&self, words: &Words) -> bool {
        self.0.iter().all(|term| term.stands_in(words) != term.without)
    }
}

impl Term {
    fn stands_in(&self, words: &Words) -> bool {
        let last = self.words.len() - 1;
        let fits = |start: usize| {
            self.words.iter().enumerate().all(|(at, wanted)| {
                words.get(start + at).is_some_and(|word| {
                    if self.prefix && at == last { word.starts_with(wanted.as_str()) } else { word == wanted }
                })
            })
        };
        (0..words.places.len().saturating_sub(last)).any(fits)
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
