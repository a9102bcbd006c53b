//! What an index is asked: conditions on columns of a stream, in a form that neither SQL nor an index owns.

use std::ops::Bound;

use crate::search::Search;

/// A condition on a row. A row fits when it is true of it; what is null fits nothing but a search for words that
/// must not be there.
#[derive(Debug, Clone, PartialEq)]
pub enum Condition {
    /// All of them hold; of none, every row.
    All(Vec<Condition>),
    /// One of them holds; of none, no row.
    Any(Vec<Condition>),
    /// A text column is this text, byte by byte.
    Text {
        /// The column.
        column: String,
        /// The text.
        text: String,
    },
    /// A text column begins with these bytes.
    Begins {
        /// The column.
        column: String,
        /// The beginning.
        text: String,
    },
    /// A number lies within bounds. Truth values are 0 and 1, dates days, times microseconds, decimals their digits without
    /// the point.
    Number {
        /// The column.
        column: String,
        /// From here on.
        from: Bound<i64>,
        /// Up to here.
        to: Bound<i64>,
    },
    /// A text column has the words of a search.
    Words {
        /// The column.
        column: String,
        /// It holds JSON, and the words are those of its names and values.
        json: bool,
        /// What is searched for.
        search: Search,
    },
}
