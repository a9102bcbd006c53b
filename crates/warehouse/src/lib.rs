//! Keyed tables: a bounded memory overlay written back to an embedded store.
//!
//! * [`FjallStore`] is the embedded [`KeyedStore`](highwater_log::keyed::KeyedStore): one fjall database
//!   for tables, dedupe index and marks, so that one batch commits all of a tick.
//! * [`Table`] keeps the states that a [`Program`](highwater_log::fold::Program) folds: touched states
//!   live in memory, from which reads are served at once, and go to the store with the mark.
//!
//! The warehouse does not know what a state means and never fsyncs to be safe: the log did. What a
//! power cut takes from the store is read from the log again.

mod fjall_store;
mod table;

pub use fjall_store::FjallStore;
pub use table::{Table, TableView};
