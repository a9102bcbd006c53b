//! CREATE STREAM … AS SELECT: rows of one stream become rows of another.
//!
//! The output and the position in the source are one commit of the log, so a derived stream is
//! exactly-once without keeping anything of its own.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use highwater_event::{Clock, Offset, Partition, StreamName, StreamPartition, StreamSchema, planted};
use highwater_log::dead_letter::{self, DEAD_LETTERS, DeadLetter};
use highwater_log::fold::Derived;
use highwater_log::view::{Applied, Gather, View, ViewError};
use highwater_log::{Advance, Append, Commit, Log, LogBatch};

use super::feed::FeedPlan;
use super::source::SourceRows;
use super::table::Step;

/// A planned derivation. Its plan answers the declared columns, then event time, then source offset.
#[derive(Debug)]
pub struct Transform {
    /// The stream that it writes.
    pub schema: Arc<StreamSchema>,
    /// The stream that it reads.
    pub source: Arc<StreamSchema>,
    pub(crate) plan: FeedPlan,
}

impl Transform {
    /// How it is kept up.
    pub fn explain(&self) -> Vec<Step> {
        vec![
            Step::new(
                format!("FROM {}", self.source.name.public()),
                "each micro-batch is read from the log once",
                "about 15 µs a batch",
            ),
            Step::new(
                "SELECT … WHERE",
                "one DataFusion plan, made once; its rows and the position in the source are one commit of the log",
                "no state",
            ),
        ]
    }

    /// Derives rows of one partition.
    pub async fn transform(&self, partition: Partition, batches: &[LogBatch]) -> Result<Derived, ViewError> {
        let rows = SourceRows::read(&self.source, partition, batches)?;
        rows.derive(&self.plan, &self.schema).await
    }
}

/// A derived stream as a view.
pub struct DerivedStream {
    name: String,
    transform: Arc<Transform>,
    log: Arc<dyn Log>,
    clock: Arc<dyn Clock>,
}

impl DerivedStream {
    /// Runs a derivation over the log.
    pub fn new(transform: Arc<Transform>, log: Arc<dyn Log>, clock: Arc<dyn Clock>) -> Self {
        Self { name: format!("stream:{}", transform.schema.name), transform, log, clock }
    }
}

#[async_trait]
impl View for DerivedStream {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "stream"
    }

    fn sources(&self) -> Vec<StreamName> {
        vec![self.transform.source.name.clone()]
    }

    fn gather(&self) -> Gather {
        Gather { rows: 64 * 1024, wait: Duration::from_millis(5) }
    }

    async fn mark(&mut self, at: &StreamPartition) -> Result<Offset, ViewError> {
        Ok(self.log.advanced(&self.name, at))
    }

    async fn apply(&mut self, at: &StreamPartition, batches: Vec<LogBatch>) -> Result<Applied, ViewError> {
        let (Some(first), Some(last)) = (batches.first(), batches.last()) else {
            return Ok(Applied::default());
        };
        let (from, to) = (first.base, last.end());
        let derived = self.transform.transform(at.partition, &batches).await?;
        // UNNEST makes several rows of one, or none; what counts is the row that was taken.
        let mut sources = derived.offsets.clone();
        sources.dedup();
        let mut applied = Applied {
            taken: to - from,
            out: sources.len() as u64,
            dead: derived.dead.len() as u64,
            ..Applied::default()
        };
        applied.filtered = applied.taken - applied.out - applied.dead;
        let mut commit = Commit {
            advances: vec![Advance { writer: self.name.clone(), source: at.clone(), from, to }],
            ..Commit::default()
        };
        if let Some(rows) = derived.rows {
            commit.appends.push(Append {
                to: StreamPartition::new(self.transform.schema.name.clone(), at.partition),
                rows,
            });
        }
        if !derived.dead.is_empty() {
            let letters: Vec<DeadLetter> =
                derived.dead.into_iter().map(|refused| refused.into_letter(&self.name, at)).collect();
            let append = dead_letter::append(DEAD_LETTERS, &letters, self.clock.now_micros())
                .map_err(|error| ViewError::Broken(error.to_string()))?;
            commit.appends.push(append);
        }
        planted::stop("stream:before_append");
        self.log.append(commit).await?;
        planted::stop("stream:appended");
        Ok(applied)
    }

    async fn skip(&mut self, at: &StreamPartition, to: Offset) -> Result<(), ViewError> {
        let from = self.log.advanced(&self.name, at);
        let advance = Advance { writer: self.name.clone(), source: at.clone(), from, to };
        self.log.append(Commit { advances: vec![advance], ..Commit::default() }).await?;
        Ok(())
    }

    async fn reset(&mut self) -> Result<(), ViewError> {
        Err(ViewError::Broken(
            "a derived stream is append-only, and other views have read it; CREATE OR REPLACE STREAM derives it again beside the old one and swaps them".into(),
        ))
    }
}
