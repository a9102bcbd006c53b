//! What a declaration says, before it is planned.

use datafusion::sql::sqlparser::ast::{Expr, Query};
use highwater_event::{Column, StreamName, StreamOptions};

/// A statement with the text that it was written as.
#[derive(Debug, Clone)]
pub struct Declared {
    /// The statement.
    pub statement: Statement,
    /// Its text without the closing semicolon.
    pub text: String,
    /// Line of the script on which the text starts, from 1.
    pub first_line: u64,
}

/// A statement of the declaration language.
#[derive(Debug, Clone)]
pub enum Statement {
    /// CREATE STREAM name (columns) WITH (…): events come in through the door.
    CreateStream {
        /// Its name.
        name: StreamName,
        /// Its columns.
        columns: Vec<Column>,
        /// Roles and storage.
        options: StreamOptions,
    },
    /// CREATE STREAM name WITH (…) AS SELECT …: derived, row by row.
    CreateStreamAs {
        /// Its name.
        name: StreamName,
        /// Roles and storage.
        options: StreamOptions,
        /// The query.
        query: Box<Query>,
    },
    /// CREATE TABLE name AS SELECT … GROUP BY …: keyed and aggregated.
    CreateTableAs {
        /// Its name.
        name: StreamName,
        /// The WINDOW clause.
        window: Option<Window>,
        /// The query without that clause.
        query: Box<Query>,
    },
    /// CREATE REFERENCE TABLE name (columns) WITH (csv, key, valid_from).
    CreateReferenceTable {
        /// Its name.
        name: StreamName,
        /// Its columns.
        columns: Vec<Column>,
        /// CSV file beside the script.
        csv: String,
        /// Columns that rows are looked up by.
        key: Vec<String>,
        /// Column from whose date on a row holds.
        valid_from: Option<String>,
    },
    /// CREATE ENDPOINT 'path' (parameters) REQUIRES permission AS SELECT ….
    CreateEndpoint {
        /// Its path, starting with a slash and without one at the end.
        path: String,
        /// Its parameters.
        parameters: Vec<EndpointParameter>,
        /// The permission that a caller needs.
        permission: String,
        /// The query.
        query: Box<Query>,
    },
}

/// A window over event time, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Length.
    pub size: i64,
    /// Distance between two starts; equal to the length when windows tumble.
    pub advance: i64,
    /// How much older than the newest event an event may be and still count.
    pub grace: i64,
}

/// A typed query parameter.
#[derive(Debug, Clone)]
pub struct EndpointParameter {
    /// Its name, in the query as `$name`.
    pub name: String,
    /// Its type.
    pub data_type: arrow::datatypes::DataType,
    /// The value when it is not given; without one it is required.
    pub default: Option<Expr>,
    /// A condition on it.
    pub check: Option<Expr>,
}

impl Statement {
    /// What kind of thing it declares, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::CreateStream { .. } | Self::CreateStreamAs { .. } => "stream",
            Self::CreateTableAs { .. } => "table",
            Self::CreateReferenceTable { .. } => "reference table",
            Self::CreateEndpoint { .. } => "endpoint",
        }
    }

    /// The name or path that it declares.
    pub fn name(&self) -> &str {
        match self {
            Self::CreateStream { name, .. }
            | Self::CreateStreamAs { name, .. }
            | Self::CreateTableAs { name, .. }
            | Self::CreateReferenceTable { name, .. } => name.as_str(),
            Self::CreateEndpoint { path, .. } => path,
        }
    }
}
