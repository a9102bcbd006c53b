//! Statements that run for ever, as views over the log.
//!
//! [`feed`] makes a DataFusion plan that can be executed again on the next micro-batch, [`source`] runs
//! it and sets rows at fault apart; [`transform`] derives a stream row by row; [`join`] derives one from
//! two; [`table`] folds rows into groups, whose states [`aggregate`] defines.

pub mod aggregate;
pub mod feed;
pub mod join;
pub mod sketch;
pub mod source;
pub mod state;
pub mod table;
pub mod transform;

pub use join::JoinProgram;
pub use table::{Step, TableProgram, TableRows};
pub use transform::{DerivedStream, Transform};

/// A duration in microseconds as the language writes it.
pub fn show_duration(micros: i64) -> String {
    const UNITS: [(i64, &str); 5] = [
        (86_400_000_000, "DAY"),
        (3_600_000_000, "HOUR"),
        (60_000_000, "MINUTE"),
        (1_000_000, "SECOND"),
        (1_000, "MILLISECOND"),
    ];
    let unit = UNITS.into_iter().find(|(length, _)| micros != 0 && micros % length == 0);
    // What is computed is seldom a whole number of anything.
    if micros > 1_000_000 && unit.is_none_or(|(length, _)| length < 1_000_000) {
        return format!("{} SECONDS", micros as f64 / 1e6);
    }
    let (length, name) = unit.unwrap_or((1, "MICROSECOND"));
    let number = micros / length;
    format!("{number} {name}{}", if number == 1 { "" } else { "S" })
}
