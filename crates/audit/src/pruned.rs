//! What stays of entries whose retention is over: their commitments, in the stream `_audit_pruned`, so that the
//! tree can be derived from the log for ever.
//!
//! A row holds a bundle of 256 commitments; its offset is the bundle's number. Rows are written before anything of
//! their entries goes.

use std::sync::Arc;

use arrow::array::{AsArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use highwater_event::{Column, Offset, StreamName, StreamOptions, StreamPartition, StreamSchema, columns};
use highwater_log::{Append, Log};

use crate::AuditError;
use crate::tree::{Hash, TILE};

/// Commitments of entries that are gone.
pub const AUDIT_PRUNED: &str = "_audit_pruned";
/// Bundles that are read at a time.
const PIECE: usize = 64;

/// The schema of `_audit_pruned`.
pub fn schema() -> StreamSchema {
    StreamSchema {
        name: StreamName::system(AUDIT_PRUNED),
        columns: vec![
            Column::new("first", DataType::Int64, false),
            Column::new("commitments", DataType::Utf8, false),
        ],
        options: StreamOptions { partitions: 1, lake: true, ..StreamOptions::default() },
        raw: false,
    }
}

/// The one partition of `_audit_pruned`.
pub fn partition() -> StreamPartition {
    StreamPartition::new(StreamName::system(AUDIT_PRUNED), 0)
}

/// The first entry of which more than its commitment may be there.
pub fn end(log: &dyn Log) -> Offset {
    log.end(&partition()) * TILE
}

/// Bundles as an append: those from number `first` on, 256 commitments in each.
pub fn append(first: u64, bundles: &[Vec<Hash>], now: i64) -> Result<Append, ArrowError> {
    let starts = (first..).map(|bundle| (bundle * TILE) as i64).take(bundles.len());
    let texts = bundles.iter().map(|bundle| Some(STANDARD.encode(bundle.concat())));
    let rows = RecordBatch::try_new(
        schema().stored_schema(),
        vec![
            Arc::new(Int64Array::from_iter_values(starts)),
            Arc::new(texts.collect::<StringArray>()),
            Arc::new(
                TimestampMicrosecondArray::from_value(now, bundles.len())
                    .with_data_type(columns::timestamp_type()),
            ),
        ],
    )?;
    Ok(Append { to: partition(), rows })
}

/// Commitments of entries that are gone, from `from` on: at least one, those before `to` at most.
pub fn commitments(log: &dyn Log, from: Offset, to: Offset) -> Result<Vec<Hash>, AuditError> {
    let lost = || AuditError::Changed(format!("entry {from} is gone, and so is its commitment"));
    let first = from / TILE;
    let batches = log
        .read(&partition(), first, PIECE)
        .map_err(|error| AuditError::Missing(format!("commitments of old entries can't be read: {error}")))?;
    let batch = batches.into_iter().find_map(|batch| batch.from_offset(first)).ok_or_else(lost)?;
    let texts = batch.rows.column_by_name("commitments").and_then(|column| column.as_string_opt::<i32>());
    let mut found = Vec::new();
    for text in texts.ok_or_else(lost)?.iter().take(PIECE) {
        let bytes = text.and_then(|text| STANDARD.decode(text).ok()).unwrap_or_default();
        let hashes = crate::view::hashes(&bytes);
        if hashes.len() as u64 != TILE {
            return Err(lost());
        }
        found.extend(hashes);
    }
    let (skipped, wanted) = ((from % TILE) as usize, (to - from) as usize);
    found.drain(..skipped.min(found.len()));
    found.truncate(wanted);
    if found.is_empty() { Err(lost()) } else { Ok(found) }
}
