//! Statements that run for ever, as views over the log.
//!
//! [`feed`] makes a DataFusion plan that can be executed again on the next micro-batch; [`transform`]
//! derives a stream row by row; [`table`] folds rows into groups, whose states [`aggregate`] defines.

pub mod aggregate;
pub mod feed;
pub mod isolate;
pub mod state;
pub mod table;
pub mod transform;

pub use table::{TableProgram, TableRows};
pub use transform::{DerivedStream, Transform};
