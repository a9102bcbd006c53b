//! Words as the index cuts them: as [`Words`] does, so that a search finds the same with it and without it.

use highwater_event::search::Words;
use tantivy::tokenizer::{Token, TokenStream, Tokenizer};

/// Bytes of a word that are indexed; a longer one is found by its beginning only.
pub(crate) const LONGEST_WORD: usize = 255;
/// Bytes of a text that are indexed as they are.
pub(crate) const LONGEST_TEXT: usize = 1024;
/// Stands behind the beginning of a longer word. No word holds it.
pub(crate) const CUT: char = '\u{1}';

/// A text as it is compared: a longer one by its beginning and its hash.
pub(crate) fn exact(text: &str) -> std::borrow::Cow<'_, str> {
    if text.len() <= LONGEST_TEXT {
        return text.into();
    }
    let hash = blake3::hash(text.as_bytes()).to_hex();
    format!("{}{CUT}{hash}", beginning(text, LONGEST_TEXT)).into()
}

/// The longest beginning of whole characters with at most so many bytes.
fn beginning(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or(0)]
}

/// Cuts texts, or the names and values of JSON.
#[derive(Clone, Default)]
pub(crate) struct Cutter {
    pub json: bool,
}

impl Tokenizer for Cutter {
    type TokenStream<'a> = Cuts;

    fn token_stream<'a>(&'a mut self, text: &'a str) -> Cuts {
        let mut words = Words::default();
        match self.json {
            true => words.read_json(text),
            false => words.read(text),
        }
        Cuts { words, next: 0, token: Token::default() }
    }
}

pub(crate) struct Cuts {
    words: Words,
    next: usize,
    token: Token,
}

impl TokenStream for Cuts {
    fn advance(&mut self) -> bool {
        let Some(word) = self.words.get(self.next) else { return false };
        self.token.text.clear();
        match word.len() > LONGEST_WORD {
            true => {
                self.token.text.push_str(beginning(word, LONGEST_WORD));
                self.token.text.push(CUT);
            }
            false => self.token.text.push_str(word),
        }
        self.token.position = self.next;
        self.token.position_length = 1;
        self.next += 1;
        true
    }

    fn token(&self) -> &Token {
        &self.token
    }

    fn token_mut(&mut self) -> &mut Token {
        &mut self.token
    }
}
