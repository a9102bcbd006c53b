//! HIGHLIGHT: what a search has found in a text, with some of what stands around it, to be shown on a page.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::StringArray;
use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};

use highwater_event::search::Search;

use super::matches::{each_search, text_and_search};

/// Bytes that are shown before the first word that was found, and behind it.
const AROUND: usize = 100;

#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Highlight {
    signature: Signature,
}

impl Highlight {
    pub fn new() -> Self {
        Self { signature: Signature::any(2, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for Highlight {
    fn name(&self) -> &str {
        "highlight"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        text_and_search(self.name(), arguments).map(|()| DataType::Utf8)
    }

    /// Null where nothing is found.
    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let mut shown = Vec::with_capacity(arguments.number_rows);
        each_search(&arguments, |text, search| {
            let both = text.zip(search);
            shown.push(both.and_then(|(text, search)| highlighted(text, search)));
        })?;
        Ok(ColumnarValue::Array(Arc::new(StringArray::from(shown))))
    }
}

/// A part of a text as HTML, with marks around what a search finds in it; `None` when it finds nothing.
pub fn highlighted(text: &str, search: &Search) -> Option<String> {
    marked(text, &search.found_in(text))
}

/// A part of a text as HTML, with marks around what was found; everything else stands for itself.
fn marked(text: &str, found: &[Range<usize>]) -> Option<String> {
    let first = found.first()?;
    let boundary = |from: usize, step: isize| {
        let mut at = from.min(text.len());
        while !text.is_char_boundary(at) {
            at = at.saturating_add_signed(step);
        }
        at
    };
    let start = boundary(first.start.saturating_sub(AROUND), 1);
    let end = boundary(first.end.saturating_add(AROUND), -1).max(first.end);
    let mut out = String::with_capacity(end - start + 32);
    if start > 0 {
        out.push('\u{2026}');
    }
    let mut at = start;
    for range in found.iter().filter(|range| range.end <= end) {
        escape(&text[at..range.start], &mut out);
        out.push_str("<mark>");
        escape(&text[range.clone()], &mut out);
        out.push_str("</mark>");
        at = range.end;
    }
    escape(&text[at..end], &mut out);
    if end < text.len() {
        out.push('\u{2026}');
    }
    Some(out)
}

fn escape(text: &str, out: &mut String) {
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, search: &str) -> Option<String> {
        marked(text, &Search::read(search).unwrap().found_in(text))
    }

    #[test]
    fn what_was_found_is_marked_and_nothing_else_is_markup() {
        assert_eq!(
            shown("<b>Card</b> declined & gone", "declined card").unwrap(),
            "&lt;b&gt;<mark>Card</mark>&lt;/b&gt; <mark>declined</mark> &amp; gone"
        );
        assert_eq!(shown("card", "gone"), None);
        let long = format!("{} needle {} needle", "é".repeat(300), "é".repeat(300));
        let part = shown(&long, "needle").unwrap();
        assert!(part.starts_with("\u{2026}é") && part.ends_with("é\u{2026}") && part.len() < 300, "{part}");
        assert_eq!(part.matches("<mark>needle</mark>").count(), 1);
    }
}
