//! Dead letters, and what became of them since.
//!
//! A letter stays what it is; that it was sent again, or dropped, is a row of `_resolutions`, in one commit with the
//! event that was sent and with the entry of the audit trail. A letter has one resolution at most.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{Array, AsArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Int32Type, Int64Type};
use arrow::error::ArrowError;
use highwater_event::identity::HOME;
use highwater_event::{Column, Offset, StreamName, StreamOptions, StreamPartition, StreamSchema, columns};
use highwater_log::dead_letter::{self, DEAD_LETTERS, DeadLetter};
use highwater_log::reader::{RowReader, each_batch};
use highwater_log::{Append, Commit, Log, ReadError};
use highwater_sql::SqlError;

use super::{ChangeError, Leaf, Node, unreadable};

/// What became of dead letters.
pub const RESOLUTIONS: &str = "_resolutions";

/// The schema of `_resolutions`.
pub(super) fn schema() -> StreamSchema {
    StreamSchema {
        name: StreamName::system(RESOLUTIONS),
        columns: vec![
            Column::new("letter", DataType::Int64, false),
            Column::new("action", DataType::Utf8, false),
            Column::new("reason", DataType::Utf8, true),
            Column::new("principal", DataType::Utf8, false),
            Column::new("tenant", DataType::Utf8, false),
        ],
        options: StreamOptions::of_engine("tenant"),
        raw: false,
    }
}

/// What is done about a letter.
#[derive(Debug, Clone)]
pub struct Resolution<'a> {
    /// `retried` or `dropped`.
    pub action: &'static str,
    /// Why, as somebody says.
    pub reason: Option<&'a str>,
    /// Who does it.
    pub by: &'a str,
    /// The tenant of the letter.
    pub tenant: &'a str,
}

impl Resolution<'_> {
    /// As a row of `_resolutions`.
    pub fn append(&self, letter: Offset, now: i64) -> Result<Append, ArrowError> {
        let rows = RecordBatch::try_new(
            schema().stored_schema(),
            vec![
                Arc::new(Int64Array::from(vec![letter as i64])),
                Arc::new(StringArray::from(vec![self.action])),
                Arc::new(StringArray::from(vec![self.reason])),
                Arc::new(StringArray::from(vec![self.by])),
                Arc::new(StringArray::from(vec![self.tenant])),
                Arc::new(
                    TimestampMicrosecondArray::from(vec![now]).with_data_type(columns::timestamp_type()),
                ),
            ],
        )?;
        Ok(Append { to: StreamPartition::new(StreamName::system(RESOLUTIONS), 0), rows })
    }
}

/// The letter in a row of `_dead_letters` as readers see them.
fn letter_of(rows: &RecordBatch, row: usize) -> Option<DeadLetter> {
    let column = |name: &str| rows.column_by_name(name).filter(|column| column.is_valid(row));
    let text = |name: &str| Some(column(name)?.as_string_opt::<i32>()?.value(row).to_owned());
    let bytes = |name: &str| Some(column(name)?.as_binary_opt::<i32>()?.value(row).to_vec());
    let partition = column("source_partition").and_then(|column| column.as_primitive_opt::<Int32Type>());
    let offset = column("source_offset").and_then(|column| column.as_primitive_opt::<Int64Type>());
    let position = partition
        .zip(offset)
        .map(|(partition, offset)| (partition.value(row) as u32, offset.value(row) as u64));
    let sealed = bytes("sealed_body");
    Some(DeadLetter {
        source: text("source")?,
        stream: StreamName::new(&text("stream")?).ok()?,
        position,
        code: text("code")?,
        detail: text("sealed_detail").or_else(|| text("detail"))?,
        principal: text("principal")?,
        tenant: Some(text("tenant").unwrap_or_else(|| HOME.to_owned())),
        sealed: sealed.is_some(),
        body: sealed.or_else(|| bytes("body"))?,
    })
}

/// The letters that something was done about: a view of `_resolutions`, as far as it was read.
#[derive(Debug, Default)]
pub struct Resolved {
    next: Offset,
    letters: BTreeSet<Offset>,
}

impl Resolved {
    /// Whether something was done about a letter by now.
    pub fn holds(&mut self, log: &dyn Log, letter: Offset) -> Result<bool, SqlError> {
        let at = StreamPartition::new(StreamName::system(RESOLUTIONS), 0);
        // What can't be read may say that something was done about the letter.
        each_batch(log, &at, &mut self.next, &mut |batch| {
            let letters = batch.rows.column_by_name("letter");
            let letters = letters.and_then(|column| column.as_primitive_opt::<Int64Type>());
            self.letters.extend(letters.into_iter().flatten().flatten().map(|letter| letter as Offset));
        })
        .map_err(unreadable)?;
        Ok(self.letters.contains(&letter))
    }
}

impl Node {
    /// A letter as it was written. It is for the node itself: what is SENSITIVE in it is not masked.
    pub fn letter(&self, id: Offset) -> Result<Option<DeadLetter>, SqlError> {
        let at = StreamPartition::new(StreamName::system(DEAD_LETTERS), 0);
        if id >= self.log.end(&at) {
            return Ok(None);
        }
        let batches = match self.log.read(&at, id, 1) {
            Err(ReadError::Retired { .. }) => return Ok(None),
            outcome => outcome.map_err(unreadable)?,
        };
        let reader = RowReader::new(&dead_letter::schema(DEAD_LETTERS));
        for batch in batches {
            let Some(batch) = batch.from_offset(id).filter(|batch| batch.base == id) else { continue };
            let rows = reader.read(0, &batch);
            let rows = rows.map_err(|error| SqlError::new("damaged_log", error.to_string()))?;
            return Ok(letter_of(&rows, 0));
        }
        Ok(None)
    }

    /// Writes down what is done about a letter, with the entry of whoever does it.
    pub async fn resolve(
        &self,
        letter: Offset,
        resolution: &Resolution<'_>,
        leaf: &Leaf,
    ) -> Result<(), ChangeError> {
        let row = resolution
            .append(letter, self.machine.clock.now_micros())
            .map_err(|error| ChangeError::Internal(error.to_string()))?;
        self.log.append(Commit { appends: vec![row, leaf.append()?], ..Commit::default() }).await?;
        leaf.settle();
        Ok(())
    }
}
