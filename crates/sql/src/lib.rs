//! The declaration language and what runs it.
//!
//! * [`dialect`] turns text into statements, with errors that point at the word.
//! * [`plan`] checks statements against the [`catalog`] and plans them with DataFusion.
//! * [`stream`] runs them over the log: derived streams row by row, tables group by group, as views.
//! * [`adhoc`] answers queries: endpoints and read-only SQL over everything that is declared.
//! * [`functions`] and [`reference`](mod@reference) are what the language adds to DataFusion.
//!
//! Plans are finite: a micro-batch goes in, rows come out. What lasts between batches (marks, states)
//! is in the log or in a keyed store, never in a plan. Nothing here opens a socket, or a file but those that a
//! question puts aside what its memory does not hold in, encrypted and without a name.

pub mod adhoc;
pub mod catalog;
pub mod dialect;
pub mod functions;
pub mod models;
pub mod plan;
pub mod reference;
pub mod session;
mod spill;
pub mod stream;

pub use catalog::{Catalog, Endpoint, StreamEntry};

pub use dialect::{SqlError, Statement, parse_script};
pub use reference::{ReferenceTable, References};
pub use session::Engine;
