//! Errors that point at the word.

use datafusion::common::DataFusionError;
use datafusion::sql::sqlparser::tokenizer::{Location, Span};
use highwater_event::Reaction;

/// A statement or query that can't be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SqlError {
    /// Short stable name.
    pub code: &'static str,
    /// What is wrong.
    pub message: String,
    /// What would be right, when that is known.
    pub hint: Option<String>,
    /// The word at fault: line and column from 1, and its length in characters.
    pub at: Option<Place>,
}

/// A word in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Line, from 1.
    pub line: u64,
    /// Column in characters, from 1.
    pub column: u64,
    /// Characters; at least 1.
    pub length: u64,
}

impl Place {
    /// The place of a token; `None` for the end of the text.
    pub fn of(span: Span) -> Option<Self> {
        let Span { start: Location { line, column }, end } = span;
        (line > 0).then(|| Self {
            line,
            column,
            length: if end.line == line { end.column.saturating_sub(column).max(1) } else { 1 },
        })
    }
}

impl SqlError {
    /// An error at no particular word.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None, at: None }
    }

    /// Something that standard SQL or ksqlDB has and this engine does not.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new("unsupported_sql", message)
    }

    /// With a hint.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// At a word.
    pub fn at(mut self, span: Span) -> Self {
        self.at = Place::of(span);
        self
    }

    /// What to do about it.
    pub fn reaction(&self) -> Reaction {
        match self.code {
            "already_exists" | "in_use" | "being_replaced" => Reaction::Conflict,
            "internal" => Reaction::CallOperator,
            "damaged_log" => Reaction::Integrity,
            "query_timeout" | "query_memory" | "log_unavailable" => Reaction::Retry,
            _ => Reaction::FixRequest,
        }
    }

    /// The message with the line of `text` that it is about and a caret under the word.
    pub fn render(&self, text: &str) -> String {
        let mut out = self.message.clone();
        if let Some(place) = self.at
            && let Some(line) = text.lines().nth(place.line as usize - 1)
        {
            let number = place.line.to_string();
            let indent = " ".repeat(number.len());
            let before: String = line
                .chars()
                .take(place.column as usize - 1)
                .map(|character| if character == '\t' { '\t' } else { ' ' })
                .collect();
            let carets = "^".repeat(place.length as usize);
            out.push_str(&format!("\n{indent} |\n{number} | {line}\n{indent} | {before}{carets}"));
        }
        if let Some(hint) = &self.hint {
            out.push_str(&format!("\nhint: {hint}"));
        }
        out
    }
}

impl From<DataFusionError> for SqlError {
    fn from(error: DataFusionError) -> Self {
        // What our own relations said comes through as it was.
        if let DataFusionError::External(inner) = error.find_root()
            && let Some(ours) = inner.downcast_ref::<Self>()
        {
            return ours.clone();
        }
        let mut at = None;
        let mut message = None;
        for part in error.iter() {
            if let Some(diagnostic) = part.diagnostic() {
                message = Some(diagnostic.message.clone());
                at = diagnostic.span.map(|span| Place {
                    line: span.start.line,
                    column: span.start.column,
                    length: if span.end.line == span.start.line {
                        span.end.column.saturating_sub(span.start.column).max(1)
                    } else {
                        1
                    },
                });
                break;
            }
        }
        let root = error.find_root();
        let code = match root {
            DataFusionError::ResourcesExhausted(_) => "query_memory",
            DataFusionError::Internal(_) => "internal",
            DataFusionError::NotImplemented(_) => "unsupported_sql",
            DataFusionError::ArrowError(..) | DataFusionError::Execution(_) => "evaluation_failed",
            _ => "invalid_sql",
        };
        let text = root.strip_backtrace();
        let text = text
            .trim_start_matches("Error during planning: ")
            .trim_start_matches("Execution error: ")
            .trim_start_matches("Arrow error: ")
            .trim_start_matches("Schema error: ")
            .trim_start_matches("This feature is not implemented: ")
            .trim_start_matches("Resources exhausted: ")
            .to_owned();
        if let DataFusionError::SQL(error, _) = root {
            let said = error.to_string();
            let (message, at) = placed(said.trim_start_matches("sql parser error: "));
            return Self { at, ..Self::new("invalid_sql", message) };
        }
        // The library takes types that a function does not have for a fault of its own, and lists all that it has.
        if let Some((_, call)) = text.split_once("the given name and argument types '") {
            const NAMES: [(&str, &str); 7] = [
                ("Utf8View", "TEXT"),
                ("Utf8", "TEXT"),
                ("Int64", "BIGINT"),
                ("Int32", "INT"),
                ("Float64", "DOUBLE"),
                ("Date32", "DATE"),
                ("Boolean", "BOOLEAN"),
            ];
            let call = call.split('\'').next().unwrap_or_default().to_owned();
            let call = NAMES.into_iter().fold(call, |call, (theirs, ours)| call.replace(theirs, ours));
            let message = format!("there is no {call}: the function does not take these types");
            let hint = Some("CAST its arguments to types that it takes".into());
            return Self { code: "invalid_sql", message, hint, at };
        }
        let hint = match code {
            "query_memory" => {
                Some("select fewer columns, add a condition, or aggregate before joining and sorting".into())
            }
            _ if text.starts_with("Placeholder") => {
                Some("give its value: `-p name=value`, or {\"parameters\": {\"name\": value}}".into())
            }
            _ => message.is_some().then(|| shortened(&text)).filter(|text| text.contains("Did you mean")),
        };
        Self { code, message: message.unwrap_or(text), hint, at }
    }
}

/// A stream may have a thousand columns, and the library names all of them.
fn shortened(text: &str) -> String {
    match text.split_once("\nValid fields are ") {
        Some((before, fields)) if fields.len() > 400 => {
            let end =
                fields.char_indices().take(400).filter(|(_, c)| *c == ',').last().map_or(0, |(at, _)| at);
            format!("{before}\nThe first columns are {}, …; DESCRIBE lists all", &fields[..end])
        }
        _ => text.to_owned(),
    }
}

/// What the parser said, and where: it appends the place as text, `… at Line: 1, Column: 5`, and we point at it instead.
pub(super) fn placed(message: &str) -> (&str, Option<Place>) {
    let Some((head, tail)) = message.rsplit_once(" at Line: ") else { return (message, None) };
    let place = tail.split_once(", Column: ").and_then(|(line, column)| {
        Some(Place { line: line.parse().ok()?, column: column.parse().ok()?, length: 1 })
    });
    (head, place)
}
