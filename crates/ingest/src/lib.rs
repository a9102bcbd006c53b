//! The door: what comes in is decoded once, checked row by row, deduplicated and appended.
//!
//! * [`decode`] turns JSON, CSV and CloudEvents into typed cells and cells into Arrow columns, with a
//!   verdict for each row; [`identify`] says who each event is; [`infer`] finds the columns of streams that
//!   learn them from their events.
//! * [`dedupe`] is the index of event ids: a view of the log that is replayed to the head before the
//!   first event is accepted.
//! * [`door`] is the one owner of "check, then append".
//!
//! The door answers only when the log has fsynced. It never drops a row: a bad one goes to
//! `_dead_letters` in the same commit as its good neighbours.

pub mod cell;
mod cloud_event;
pub mod column;
pub mod decode;
pub mod dedupe;
mod delimited;
pub mod door;
mod filter;
pub mod identify;
pub mod infer;

pub use decode::{Format, RowError};
pub use dedupe::DedupeIndex;
pub use delimited::Quotes;
pub use door::{Door, DoorError, DoorOptions, Outcome, Room, Submission, Verdict};
