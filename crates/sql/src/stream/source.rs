//! Running a statement over rows of a stream. Rows that it can't compute are found and set apart, so
//! that one bad event never blocks a stream.

use arrow::array::{Array, AsArray, Int64Array};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Int64Type};
use arrow::error::ArrowError;
use arrow::json::LineDelimitedWriter;
use arrow::record_batch::RecordBatch;
use datafusion::common::DataFusionError;
use highwater_event::{Offset, Partition, StreamOptions, StreamSchema};
use highwater_log::LogBatch;
use highwater_log::fold::{Derived, Refused};
use highwater_log::reader::RowReader;
use highwater_log::view::ViewError;

use super::feed::FeedPlan;

/// Rows that a statement takes, and where each comes from.
pub struct SourceRows {
    rows: RecordBatch,
    offsets: Offsets,
    /// What they hold is not for every reader.
    sealed: bool,
    /// The columns that say who brought a row, and its tenant.
    sender: Option<String>,
    tenant: Option<String>,
}

enum Offsets {
    /// Rows of one partition without gaps, from this offset on.
    From(Offset),
    /// One for each row.
    Each(Int64Array),
}

impl SourceRows {
    /// Reads batches that follow each other, as readers of the stream see them.
    pub fn read(
        stream: &StreamSchema,
        partition: Partition,
        batches: &[LogBatch],
    ) -> Result<Self, ViewError> {
        let rows = RowReader::new(stream).read_all(partition, batches).map_err(broken)?;
        let first = batches.first().map_or(0, |batch| batch.base);
        let StreamOptions { sender, tenant, .. } = &stream.options;
        Ok(Self {
            rows,
            offsets: Offsets::From(first),
            sealed: stream.has_sensitive(),
            sender: sender.clone(),
            tenant: tenant.clone(),
        })
    }

    /// Rows whose last column is the offset that brought them about.
    pub fn joined(rows: RecordBatch, sealed: bool) -> Self {
        let offsets = rows.column(rows.num_columns() - 1).as_primitive::<Int64Type>().clone();
        Self { rows, offsets: Offsets::Each(offsets), sealed, sender: None, tenant: None }
    }

    /// How many there are.
    pub fn taken(&self) -> u64 {
        self.rows.num_rows() as u64
    }

    fn offset(&self, row: usize) -> Offset {
        match &self.offsets {
            Offsets::From(first) => first + row as Offset,
            Offsets::Each(offsets) => offsets.value(row) as Offset,
        }
    }

    /// The row at an offset is set apart; only for rows of one partition.
    pub fn refuse(&self, offset: Offset, code: &'static str, detail: String) -> Refused {
        self.refuse_row((offset - self.offset(0)) as usize, code, detail)
    }

    fn refuse_row(&self, row: usize, code: &'static str, detail: String) -> Refused {
        let (offset, sealed) = (self.offset(row), self.sealed);
        let (sender, tenant) = (self.text(&self.sender, row), self.text(&self.tenant, row));
        Refused { offset, code, detail, row: row_as_json(&self.rows, row), sealed, sender, tenant }
    }

    fn text(&self, column: &Option<String>, row: usize) -> Option<String> {
        let values = self.rows.column_by_name(column.as_ref()?)?.as_string_opt::<i32>()?;
        values.is_valid(row).then(|| values.value(row).to_owned())
    }

    /// Makes rows of a stream by a statement that answers the stream's columns and then the offset that
    /// brought a row about.
    pub async fn derive(&self, plan: &FeedPlan, output: &StreamSchema) -> Result<Derived, ViewError> {
        let (answer, dead) = self.run(plan).await?;
        let Some(answer) = answer else { return Ok(Derived { dead, ..Derived::default() }) };
        let (rows, offsets) = split_offsets(&answer, output).map_err(broken)?;
        Ok(Derived { rows: Some(rows), offsets, dead })
    }

    /// Runs a statement over them: its answer, `None` when that has no rows, and the rows at fault. Where
    /// it fails for a reason that can lie in a row, halves are tried until the rows at fault stand alone.
    pub async fn run(&self, plan: &FeedPlan) -> Result<(Option<RecordBatch>, Vec<Refused>), ViewError> {
        let mut answers = Vec::new();
        let mut dead = Vec::new();
        let mut pending = vec![(0, self.rows.num_rows())];
        while let Some((start, length)) = pending.pop() {
            match plan.run(self.rows.slice(start, length)).await {
                Ok(batches) => answers.extend(batches.into_iter().filter(|batch| batch.num_rows() > 0)),
                Err(error) if !lies_in_a_row(&error) => return Err(ViewError::Broken(clean(&error))),
                Err(error) if length == 1 => {
                    dead.push(self.refuse_row(start, "evaluation_failed", clean(&error)));
                }
                Err(_) => {
                    let half = length / 2;
                    pending.push((start + half, length - half));
                    pending.push((start, half));
                }
            }
        }
        let answer = match answers.as_slice() {
            [] => None,
            [only] => Some(only.clone()),
            several => Some(concat_batches(&several[0].schema(), several).map_err(broken)?),
        };
        Ok((answer, dead))
    }
}

fn split_offsets(
    answer: &RecordBatch,
    output: &StreamSchema,
) -> Result<(RecordBatch, Vec<Offset>), ArrowError> {
    let last = answer.num_columns() - 1;
    let offsets = cast(answer.column(last), &DataType::Int64)?;
    let offsets = offsets.as_primitive::<Int64Type>().values().iter().map(|offset| *offset as Offset);
    let stored = output.stored_schema();
    let columns = answer.columns()[..last]
        .iter()
        .zip(stored.fields())
        .map(|(column, field)| cast(column, field.data_type()))
        .collect::<Result<Vec<_>, _>>()?;
    Ok((RecordBatch::try_new(stored, columns)?, offsets.collect()))
}

fn lies_in_a_row(error: &DataFusionError) -> bool {
    matches!(
        error.find_root(),
        DataFusionError::ArrowError(..) | DataFusionError::Execution(_) | DataFusionError::External(_)
    )
}

fn clean(error: &DataFusionError) -> String {
    let text = error.find_root().strip_backtrace();
    text.trim_start_matches("Execution error: ").trim_start_matches("Arrow error: ").to_owned()
}

fn broken(error: ArrowError) -> ViewError {
    ViewError::Broken(error.to_string())
}

/// One row as JSON.
fn row_as_json(rows: &RecordBatch, row: usize) -> String {
    let mut writer = LineDelimitedWriter::new(Vec::new());
    match writer.write(&rows.slice(row, 1)).and_then(|()| writer.finish()) {
        Ok(()) => String::from_utf8_lossy(writer.get_ref()).trim_end().to_owned(),
        Err(error) => format!("{{\"unprintable\":{:?}}}", error.to_string()),
    }
}
