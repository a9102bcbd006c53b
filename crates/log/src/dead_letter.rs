//! Rows that could not be processed, as rows of the system streams `_dead_letters` and `_late_events`:
//! nothing that came in is ever dropped on the floor.

use std::sync::{Arc, LazyLock};

use arrow::array::{
    BinaryBuilder, Int32Builder, Int64Builder, RecordBatch, StringBuilder, TimestampMicrosecondBuilder,
};
use arrow::datatypes::DataType;
use highwater_event::identity::HOME;
use highwater_event::{
    Column, Digest128, StreamName, StreamOptions, StreamPartition, StreamSchema, columns, hexadecimal,
};

use crate::commit::Append;

/// What could not be processed.
pub const DEAD_LETTERS: &str = "_dead_letters";
/// What came after its window had closed.
pub const LATE_EVENTS: &str = "_late_events";

/// Column with the name under whose key sealed letters are encrypted.
pub const SEALED_FOR: &str = "sealed_for";
/// What stands in the place of a reason that may show SENSITIVE values.
const SEALED: &str = "the stream has SENSITIVE columns; the reason is in sealed_detail";

/// A row that was set apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Where it happened: `door` or the name of a view.
    pub source: String,
    /// The stream that it was sent to or read from.
    pub stream: StreamName,
    /// Partition and offset in that stream; absent for what never became an event.
    pub position: Option<(u32, u64)>,
    /// Short stable name of the reason.
    pub code: String,
    /// The reason in words.
    pub detail: String,
    /// On whose behalf it came.
    pub principal: String,
    /// Of which tenant that is; the node's own when nothing is said.
    pub tenant: Option<String>,
    /// The original bytes.
    pub body: Vec<u8>,
    /// Reason and bytes may show SENSITIVE values: readers see their masks.
    pub sealed: bool,
}

impl DeadLetter {
    /// The tenant that it belongs to.
    pub fn tenant(&self) -> &str {
        self.tenant.as_deref().unwrap_or(HOME)
    }
}

/// The schema of both streams.
pub fn schema(name: &'static str) -> StreamSchema {
    StreamSchema {
        name: StreamName::system(name),
        columns: vec![
            Column::new("source", DataType::Utf8, false),
            Column::new("stream", DataType::Utf8, false),
            Column::new("source_partition", DataType::Int32, true),
            Column::new("source_offset", DataType::Int64, true),
            Column::new("code", DataType::Utf8, false),
            Column::new("detail", DataType::Utf8, false),
            Column::new("principal", DataType::Utf8, false),
            Column::new("body", DataType::Binary, false),
            Column { sensitive: true, ..Column::new("sealed_detail", DataType::Utf8, true) },
            Column { sensitive: true, ..Column::new("sealed_body", DataType::Binary, true) },
            Column::new("tenant", DataType::Utf8, true),
            Column::new(SEALED_FOR, DataType::Utf8, true),
        ],
        options: StreamOptions {
            // Letters that were written together have a key of their own, so that they can be erased.
            subject: Some(SEALED_FOR.into()),
            ..StreamOptions::of_engine("tenant")
        },
        raw: false,
    }
}

static STORED: LazyLock<arrow::datatypes::SchemaRef> = LazyLock::new(|| schema(DEAD_LETTERS).stored_schema());

/// A name for letters that are written together, which says nothing of them.
fn together(letters: &[DeadLetter], now: i64) -> String {
    let first = letters.iter().find(|letter| letter.sealed);
    let place = first.map(|letter| format!("{}{}{:?}", letter.source, letter.stream, letter.position));
    let parts = [now.to_be_bytes().to_vec(), place.unwrap_or_default().into_bytes()];
    hexadecimal::show(&Digest128::of_parts(parts.iter().map(Vec::as_slice)).0)
}

/// The rows as an append to `stream`, one of the two streams. `now` is their event time.
pub fn append(
    stream: &'static str,
    letters: &[DeadLetter],
    now: i64,
) -> Result<Append, arrow::error::ArrowError> {
    let mut source = StringBuilder::new();
    let mut from = StringBuilder::new();
    let mut partition = Int32Builder::new();
    let mut offset = Int64Builder::new();
    let mut code = StringBuilder::new();
    let mut detail = StringBuilder::new();
    let mut principal = StringBuilder::new();
    let mut body = BinaryBuilder::new();
    let mut sealed_detail = StringBuilder::new();
    let mut sealed_body = BinaryBuilder::new();
    let mut tenant = StringBuilder::new();
    let mut sealed_for = StringBuilder::new();
    let together = together(letters, now);
    let mut time = TimestampMicrosecondBuilder::new().with_data_type(columns::timestamp_type());
    for letter in letters {
        source.append_value(&letter.source);
        from.append_value(letter.stream.public());
        partition.append_option(letter.position.map(|(partition, _)| partition as i32));
        offset.append_option(letter.position.map(|(_, offset)| offset as i64));
        code.append_value(&letter.code);
        detail.append_value(if letter.sealed { SEALED } else { &letter.detail });
        sealed_detail.append_option(letter.sealed.then_some(&letter.detail));
        principal.append_value(&letter.principal);
        body.append_value(if letter.sealed { &[][..] } else { &letter.body });
        sealed_body.append_option(letter.sealed.then_some(&letter.body));
        tenant.append_value(letter.tenant());
        sealed_for.append_option(letter.sealed.then_some(&together));
        time.append_value(now);
    }
    let rows = RecordBatch::try_new(
        STORED.clone(),
        vec![
            Arc::new(source.finish()),
            Arc::new(from.finish()),
            Arc::new(partition.finish()),
            Arc::new(offset.finish()),
            Arc::new(code.finish()),
            Arc::new(detail.finish()),
            Arc::new(principal.finish()),
            Arc::new(body.finish()),
            Arc::new(sealed_detail.finish()),
            Arc::new(sealed_body.finish()),
            Arc::new(tenant.finish()),
            Arc::new(sealed_for.finish()),
            Arc::new(time.finish()),
        ],
    )?;
    Ok(Append { to: StreamPartition::new(StreamName::system(stream), 0), rows })
}
