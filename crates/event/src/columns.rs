//! The columns that the engine adds to every stream. Their names start with an underscore, which no
//! declared column may.

use arrow::datatypes::{DataType, Field, TimeUnit};

/// Event time, microseconds UTC: what the event says of itself, else when it was recorded.
pub const EVENT_TIME: &str = "_event_time";
/// When the log took the event, microseconds UTC.
pub const RECORDED_AT: &str = "_recorded_at";
/// Partition of the stream.
pub const PARTITION: &str = "_partition";
/// Offset inside the partition.
pub const OFFSET: &str = "_offset";
/// Members of a JSON event that the stream does not declare, as a JSON object; null when there were none.
pub const EXTRA: &str = "_extra";
/// 128-bit hash of (stream, principal, event id); only in the log, for the dedupe index.
pub const EVENT_KEY: &str = "_event_key";
/// 64-bit hash of the payload; only in the log, to tell a repeat from a conflict.
pub const PAYLOAD_HASH: &str = "_payload_hash";

/// Timestamps are microseconds in UTC everywhere.
pub fn timestamp_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// The field for event time as it is stored in the log and the lake.
pub fn event_time_field() -> Field {
    Field::new(EVENT_TIME, timestamp_type(), false)
}

/// The columns a reader sees after the declared ones: where an event stands and when it was recorded.
pub fn position_fields() -> [Field; 4] {
    [
        event_time_field(),
        Field::new(RECORDED_AT, timestamp_type(), false),
        Field::new(PARTITION, DataType::Int32, false),
        Field::new(OFFSET, DataType::Int64, false),
    ]
}
