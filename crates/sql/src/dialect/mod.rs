//! The declaration language: standard SQL with ksqlDB's everyday statements on top.
//!
//! Our own statements (CREATE STREAM, ROW FILTER, ALTER, DROP, …) and clauses (WINDOW, WITHIN, EMIT) are parsed
//! here; queries and expressions are left to `sqlparser`, with the tokens' places kept, so that every
//! error can point at its word.

mod clauses;
mod create;
mod endpoint;
mod error;
mod nesting;
mod parser;
mod rules;
mod schedule;
mod statement;
mod types;

pub use clauses::{Emit, parse_duration};
pub use endpoint::{MODELS, path_parameters};
pub use error::{Place, SqlError};
pub use parser::{check_statement, parse_live_query, parse_query, parse_script, quoted};
pub use rules::{Asker, RuleEntry, of_tenant};
pub use schedule::{Schedule, Timetable};
pub use statement::{
    Again, Alteration, Answers, Declared, EndpointParameter, Kind, Method, RowChange, Rule, Statement, Takes,
    Window, WindowKind, Within, Writes,
};
pub use types::{arrow_type, column_type, sql_type, stored_type};
