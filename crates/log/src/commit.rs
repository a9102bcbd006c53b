//! What goes into the log and what comes out.

use arrow::record_batch::RecordBatch;
use highwater_event::{Offset, StreamPartition};
use serde::{Deserialize, Serialize};

/// Rows for one partition.
#[derive(Debug, Clone)]
pub struct Append {
    /// Where they go.
    pub to: StreamPartition,
    /// The rows, in the stream's stored schema.
    pub rows: RecordBatch,
}

/// "I have consumed `source` up to `to`": moves a writer's mark by compare-and-set, in the same commit
/// as what the writer made of those rows. A second owner of the same view loses the race here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advance {
    /// The view that writes.
    pub writer: String,
    /// What it reads.
    pub source: StreamPartition,
    /// The mark that it believes to hold.
    pub from: Offset,
    /// The mark after this commit.
    pub to: Offset,
}

/// One atomic change of the log.
#[derive(Debug, Clone, Default)]
pub struct Commit {
    /// New rows; several may go to one partition.
    pub appends: Vec<Append>,
    /// Marks that move with them.
    pub advances: Vec<Advance>,
    /// Partitions that must still end here when the commit is made: what it says of their rows so far
    /// would not be true of any later one.
    pub ends: Vec<(StreamPartition, Offset)>,
}

impl Commit {
    /// A commit of one batch.
    pub fn of(to: StreamPartition, rows: RecordBatch) -> Self {
        Self { appends: vec![Append { to, rows }], ..Self::default() }
    }
}

/// Where a commit's rows stand.
#[derive(Debug, Clone)]
pub struct Receipt {
    /// Offset of the first row of each append, in the commit's order.
    pub bases: Vec<Offset>,
    /// When the log took them, microseconds UTC.
    pub recorded_at: i64,
}

/// Durable rows as a reader gets them.
#[derive(Debug, Clone)]
pub struct LogBatch {
    /// Offset of the first row.
    pub base: Offset,
    /// When the log took them, microseconds UTC.
    pub recorded_at: i64,
    /// The rows, in the stream's stored schema.
    pub rows: RecordBatch,
}

impl LogBatch {
    /// Offset after the last row.
    pub fn end(&self) -> Offset {
        self.base + self.rows.num_rows() as u64
    }

    /// The parts before and from `at` on; an absent one has no rows.
    pub fn split_at(self, at: Offset) -> (Option<LogBatch>, Option<LogBatch>) {
        let before = (at > self.base).then(|| LogBatch {
            rows: self.rows.slice(0, self.rows.num_rows().min((at - self.base) as usize)),
            ..self.clone()
        });
        (before, self.from_offset(at))
    }

    /// The part at or after `from`; `None` when all of it is before.
    pub fn from_offset(self, from: Offset) -> Option<LogBatch> {
        if from <= self.base {
            return Some(self);
        }
        let skip = (from - self.base) as usize;
        let rows = self.rows.num_rows();
        (skip < rows).then(|| LogBatch {
            base: from,
            recorded_at: self.recorded_at,
            rows: self.rows.slice(skip, rows - skip),
        })
    }
}
