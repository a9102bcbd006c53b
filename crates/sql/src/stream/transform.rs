//! CREATE STREAM … AS SELECT: rows of one stream become rows of another.
//!
//! The output and the position in the source are one commit of the log, so a derived stream is
//! exactly-once without keeping anything of its own.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Int64Type, SchemaRef};
use async_trait::async_trait;
use highwater_event::{
    Clock, Offset, Partition, Principal, StreamName, StreamPartition, StreamSchema, planted,
};
use highwater_log::dead_letter::{self, DEAD_LETTERS, DeadLetter};
use highwater_log::reader::RowReader;
use highwater_log::view::{Applied, Gather, View, ViewError};
use highwater_log::{Advance, Append, Commit, Log, LogBatch};

use super::feed::FeedPlan;
use super::isolate::{row_as_json, run_isolated};
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

/// What became of some rows.
#[derive(Debug)]
pub struct Transformed {
    /// New rows in the stored schema of the derived stream; `None` when there are none.
    pub rows: Option<RecordBatch>,
    /// Source offsets of the new rows.
    pub offsets: Vec<Offset>,
    /// Rows at fault: offset in the source, reason, the row as JSON.
    pub dead: Vec<(Offset, String, String)>,
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
    pub async fn transform(
        &self,
        partition: Partition,
        batches: &[LogBatch],
    ) -> Result<Transformed, ViewError> {
        let broken = |error: arrow::error::ArrowError| ViewError::Broken(error.to_string());
        let source = RowReader::new(&self.source).read_all(partition, batches).map_err(broken)?;
        let first = batches.first().map_or(0, |batch| batch.base);
        let (results, bad) = run_isolated(&self.plan, &source).await?;
        let stored = self.schema.stored_schema();
        let mut offsets = Vec::new();
        let mut rows = Vec::with_capacity(results.len());
        for result in &results {
            let last = result.num_columns() - 1;
            let column = cast(result.column(last), &DataType::Int64).map_err(broken)?;
            offsets
                .extend(column.as_primitive::<Int64Type>().values().iter().map(|offset| *offset as Offset));
            rows.push(store(&stored, &result.columns()[..last]).map_err(broken)?);
        }
        let rows = match rows.as_slice() {
            [] => None,
            [only] => Some(only.clone()),
            several => Some(concat_batches(&stored, several).map_err(broken)?),
        };
        let dead = bad
            .into_iter()
            .map(|bad| (first + bad.row as Offset, bad.reason, row_as_json(&source, bad.row)))
            .collect();
        Ok(Transformed { rows, offsets, dead })
    }
}

pub(crate) fn store(
    schema: &SchemaRef,
    columns: &[ArrayRef],
) -> Result<RecordBatch, arrow::error::ArrowError> {
    let columns = columns
        .iter()
        .zip(schema.fields())
        .map(|(column, field)| {
            if column.data_type() == field.data_type() {
                Ok(column.clone())
            } else {
                cast(column, field.data_type())
            }
        })
        .collect::<Result<Vec<_>, _>>()?;
    RecordBatch::try_new(schema.clone(), columns)
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
        let transformed = self.transform.transform(at.partition, &batches).await?;
        // UNNEST makes several rows of one, or none; what counts is the row that was taken.
        let mut sources = transformed.offsets.clone();
        sources.dedup();
        let mut applied = Applied {
            taken: to - from,
            out: sources.len() as u64,
            dead: transformed.dead.len() as u64,
            ..Applied::default()
        };
        applied.filtered = applied.taken - applied.out - applied.dead;
        let mut commit = Commit {
            appends: Vec::new(),
            advances: vec![Advance { writer: self.name.clone(), source: at.clone(), from, to }],
        };
        if let Some(rows) = transformed.rows {
            commit.appends.push(Append {
                to: StreamPartition::new(self.transform.schema.name.clone(), at.partition),
                rows,
            });
        }
        if !transformed.dead.is_empty() {
            let letters: Vec<DeadLetter> = transformed
                .dead
                .into_iter()
                .map(|(offset, detail, body)| DeadLetter {
                    source: self.name.clone(),
                    stream: at.stream.clone(),
                    position: Some((at.partition, offset)),
                    code: "evaluation_failed".into(),
                    detail,
                    principal: Principal::engine().name.to_string(),
                    body: body.into_bytes(),
                })
                .collect();
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
        self.log.append(Commit { appends: Vec::new(), advances: vec![advance] }).await?;
        Ok(())
    }

    async fn reset(&mut self) -> Result<(), ViewError> {
        Err(ViewError::Broken(
            "a derived stream is append-only, and other views have read it; CREATE OR REPLACE STREAM derives it again beside the old one and swaps them".into(),
        ))
    }
}
