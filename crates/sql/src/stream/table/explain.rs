//! How a table is kept up, in words.

use super::{LAST_UPDATED_AT, TableProgram};
use crate::dialect::WindowKind;
use crate::stream::aggregate::Function;
use crate::stream::show_duration;

/// One part of a statement: what it is, how it is kept up, and what that costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The part as written.
    pub part: String,
    /// How it is kept up.
    pub how: String,
    /// What it costs in state and work.
    pub cost: String,
}

impl Step {
    /// A step.
    pub fn new(part: impl Into<String>, how: impl Into<String>, cost: impl Into<String>) -> Self {
        Self { part: part.into(), how: how.into(), cost: cost.into() }
    }
}

impl TableProgram {
    /// How each part of the statement is kept up.
    pub fn explain(&self) -> Vec<Step> {
        let mut steps = vec![
            Step::new(
                format!("FROM {}", self.source.name.public()),
                "each micro-batch is read from the log once; DataFusion computes WHERE, keys and arguments",
                "about 15 µs a batch and 0.1 µs a row",
            ),
            Step::new(
                format!(
                    "GROUP BY {}",
                    if self.group_texts.is_empty() {
                        "nothing (one group)".into()
                    } else {
                        self.group_texts.join(", ")
                    }
                ),
                "one state per group in a memory overlay, written back to the keyed store with the mark",
                "one look-up a row; a cold group is one read of the store",
            ),
        ];
        if let Some(window) = self.window {
            let (how, cost) = match window.kind {
                WindowKind::Hopping { size, advance } if size == advance => (
                    format!("tumbling: one state per group and {}", show_duration(size)),
                    "one state touched a row".to_owned(),
                ),
                WindowKind::Hopping { size, advance } => (
                    format!(
                        "hopping: one pane per group and {}; {} panes are combined when a window is read",
                        show_duration(advance),
                        size / advance
                    ),
                    "one state touched a row, whatever the overlap".to_owned(),
                ),
                WindowKind::Session { gap } => (
                    format!(
                        "sessions: rows of a group that are at most {} apart; one state per group holds the sessions that may still grow",
                        show_duration(gap)
                    ),
                    "one state touched a row; a bridging row merges sessions".to_owned(),
                ),
            };
            let grace = format!("; rows later than {} go to _late_events", show_duration(window.grace));
            let kept = match window.retention {
                Some(retention) => format!("; windows go {} after their end", show_duration(retention)),
                None => "; windows are kept for ever: add RETENTION to bound them".into(),
            };
            steps.push(Step::new("WINDOW", how, format!("{cost}{grace}{kept}")));
        }
        for (aggregate, text) in self.aggregates.iter().zip(&self.aggregate_texts) {
            let (how, cost) = match aggregate.function {
                Function::Count => ("a counter", "8 bytes a group"),
                Function::Sum => {
                    ("an exact running sum (DOUBLE: in the order of the log)", "up to 17 bytes a group")
                }
                Function::Min | Function::Max => {
                    ("the extreme so far; rows are never taken back", "one value a group")
                }
                Function::Average => ("sum and count", "up to 25 bytes a group"),
                Function::Latest | Function::LatestRow | Function::Earliest => {
                    ("the value with its place in the log", "one value and 16 bytes a group")
                }
                Function::List => (
                    "every value, in the order of the log",
                    "grows with the group: every value and 16 bytes; at most 1,000,000",
                ),
                Function::Spread { .. } => ("count, mean and sum of squares (Welford)", "24 bytes a group"),
                Function::CountDistinct | Function::Set => (
                    "the set of values, exactly",
                    "grows with the group: every distinct value once; at most 1,000,000. APPROX_COUNT_DISTINCT is bounded",
                ),
                Function::ApproxDistinct => {
                    ("HyperLogLog, exact up to 256 values, standard error 1.6 %", "at most 4 KiB a group")
                }
                Function::Top { .. } => ("the largest values so far", "k values a group"),
            };
            steps.push(Step::new(text, how, cost));
        }
        if let Some(having) = &self.having {
            steps.push(Step::new(
                format!("HAVING {having}"),
                "asked when the table is read; the states of all groups are kept",
                "nothing when rows come",
            ));
        }
        if self.emit_final {
            steps.push(Step::new(
                "EMIT FINAL",
                "a window shows when every partition has passed its end and the grace period",
                "nothing when rows come",
            ));
        }
        steps.push(Step::new(
            LAST_UPDATED_AT,
            "when the log took the newest row of the group",
            "8 bytes a group",
        ));
        steps
    }
}
