//! Rows of the log as readers see them: declared columns followed by where and when.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, Int32Array, Int64Array, RecordBatch, TimestampMicrosecondArray, new_null_array,
};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use highwater_event::{Offset, Partition, StreamPartition, StreamSchema, columns};

use crate::Log;
use crate::commit::LogBatch;
use crate::error::ReadError;

/// Rows that are read at a time.
const READ_ROWS: usize = 8192;

/// Turns stored batches into reader batches of one stream. Rows that were stored before a column was
/// added show null in it; columns that were added later than this schema are left out.
#[derive(Debug, Clone)]
pub struct RowReader {
    schema: SchemaRef,
    /// Columns that are taken over as they are: declared ones, `_extra`, `_event_time`.
    kept: usize,
}

impl RowReader {
    /// A reader for a stream.
    pub fn new(stream: &StreamSchema) -> Self {
        Self { schema: stream.reader_schema(), kept: stream.columns.len() + usize::from(stream.raw) + 1 }
    }

    /// The schema of its batches, [`StreamSchema::reader_schema`].
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// A batch as readers see it.
    pub fn read(&self, partition: Partition, batch: &LogBatch) -> Result<RecordBatch, ArrowError> {
        let rows = batch.rows.num_rows();
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.schema.fields().len());
        for (at, field) in self.schema.fields().iter().take(self.kept).enumerate() {
            let stored = batch.rows.schema_ref().fields();
            let same = stored.get(at).is_some_and(|stored| stored.name() == field.name());
            let found =
                if same { Some(batch.rows.column(at)) } else { batch.rows.column_by_name(field.name()) };
            columns.push(match found {
                Some(column) => column.clone(),
                None => new_null_array(field.data_type(), rows),
            });
        }
        columns.push(Arc::new(
            TimestampMicrosecondArray::from_value(batch.recorded_at, rows)
                .with_data_type(columns::timestamp_type()),
        ));
        columns.push(Arc::new(Int32Array::from_value(partition as i32, rows)));
        columns.push(Arc::new(Int64Array::from_iter_values(
            batch.base as i64..(batch.base as i64 + rows as i64),
        )));
        RecordBatch::try_new(self.schema.clone(), columns)
    }

    /// Several batches as one.
    pub fn read_all(&self, partition: Partition, batches: &[LogBatch]) -> Result<RecordBatch, ArrowError> {
        let read = batches.iter().map(|batch| self.read(partition, batch)).collect::<Result<Vec<_>, _>>()?;
        match read.as_slice() {
            [only] => Ok(only.clone()),
            several => arrow::compute::concat_batches(&self.schema, several),
        }
    }
}

/// Visits all rows of a partition from an offset on, those of the cold tier too, and moves the offset behind them. What
/// is past its retention is passed over; what can't be read is an error, with everything before it visited.
pub fn each_batch(
    log: &dyn Log,
    at: &StreamPartition,
    next: &mut Offset,
    visit: &mut dyn FnMut(&LogBatch),
) -> Result<(), ReadError> {
    while *next < log.end(at) {
        let batches = match log.read(at, *next, READ_ROWS) {
            Err(ReadError::Retired { start, .. }) if start > *next => {
                *next = start;
                continue;
            }
            outcome => outcome?,
        };
        let end = batches.last().map(LogBatch::end).filter(|end| *end > *next);
        let end = end.ok_or_else(|| ReadError::Io(format!("offset {next} of {at} is not there")))?;
        batches.iter().filter_map(|batch| batch.clone().from_offset(*next)).for_each(|batch| visit(&batch));
        *next = end;
    }
    Ok(())
}
