//! The search index: which rows of a stream have these words and these values, without reading the others.
//!
//! An index is a view (tantivy): documents and the offsets up to which it has read are one commit of its own. It
//! holds each row as the lake does, what is SENSITIVE encrypted, so that a page of found rows needs no file of the lake.
//! It decides nothing about who may see what: it is asked below the filters and masks of whoever asks, as the lake's files are, and
//! what it finds is exactly what they would have shown. It can be dropped at any time; then they are read instead.

mod fields;
mod found;
mod index;
mod question;
mod tokens;
mod view;

pub use found::{Found, Place, Wanted};
pub use index::{SearchIndex, Snapshot};
pub use view::SearchView;

/// What may go wrong with an index.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// A column can't be searched; why, and what can.
    #[error("column \"{column}\" can't be searched: {why}")]
    Column {
        /// The column.
        column: String,
        /// Why not.
        why: String,
    },
    /// Rows that are not the next ones.
    #[error("rows from offset {expected} on came where those from {mark} on are next")]
    Moved {
        /// Where the rows begin.
        expected: u64,
        /// Where the index stands.
        mark: u64,
    },
    /// The index itself.
    #[error("the search index failed: {0}")]
    Index(#[from] tantivy::TantivyError),
    /// Its folder.
    #[error("the folder of the search index failed: {0}")]
    Io(#[from] std::io::Error),
    /// Rows that are not what they should be.
    #[error("rows could not be indexed: {0}")]
    Arrow(#[from] arrow::error::ArrowError),
    /// What is SENSITIVE could not be encrypted.
    #[error(transparent)]
    Seal(#[from] highwater_privacy::SealError),
}
