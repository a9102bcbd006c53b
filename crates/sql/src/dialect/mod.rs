//! The declaration language: standard SQL with ksqlDB's everyday statements on top.
//!
//! Our own statements (CREATE STREAM, TABLE, REFERENCE TABLE, ENDPOINT) and clauses (WINDOW) are parsed
//! here; queries and expressions are left to `sqlparser`, with the tokens' places kept, so that every
//! error can point at its word.

mod error;
mod parser;
mod statement;
mod types;

pub use error::{Place, SqlError};
pub use parser::{check_statement, parse_query, parse_script};
pub use statement::{Declared, EndpointParameter, Statement, Window};
pub use types::{arrow_type, stored_type};
