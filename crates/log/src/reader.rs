//! Rows of the log as readers see them: declared columns followed by where and when.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use highwater_event::{Partition, StreamSchema, columns};

use crate::commit::LogBatch;

/// Turns stored batches into reader batches of one stream.
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
        let stored = batch.rows.columns();
        if stored.len() < self.kept {
            return Err(ArrowError::SchemaError(
                "the log holds fewer columns than the stream declares".into(),
            ));
        }
        let mut columns: Vec<ArrayRef> = stored[..self.kept].to_vec();
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
