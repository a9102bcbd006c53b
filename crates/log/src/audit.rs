//! Who did or saw what, as rows of the system stream `_audit`: one entry for each act, in the commit of its
//! effect where it has one.
//!
//! Everybody appends entries; only the room `audit` reads them as a tree. Its leaves are commitments: what an
//! entry says, behind a salt of its own, so that an entry can be erased and the tree still be proven.

use std::sync::{Arc, LazyLock};

use arrow::array::{
    ArrayRef, Int32Builder, Int64Builder, RecordBatch, StringBuilder, TimestampMicrosecondBuilder,
};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::error::ArrowError;
use highwater_event::{
    Column, StreamName, StreamOptions, StreamPartition, StreamSchema, columns, hexadecimal,
};

use crate::commit::Append;

/// Who did or saw what.
pub const AUDIT: &str = "_audit";
/// Bytes of a salt.
pub const SALT_BYTES: usize = 16;

/// The action of an entry that seals the events of a commit.
pub const SEAL: &str = "seal";

/// Makes one hash of the events of a commit, so that each of them can be proven to be among them.
pub trait Sealer: Send + Sync {
    /// The root of the tree over the rows of batches, in their order; they are in their stream's stored schema. The salt
    /// is that of the entry which will say the root.
    fn root(&self, salt: &[u8; SALT_BYTES], rows: &[RecordBatch]) -> Result<[u8; 32], ArrowError>;
}

/// What a seal says was seen: how many events, and the root of the tree over them.
pub fn sealed(events: usize, root: &[u8; 32]) -> String {
    format!("{{\"events\":{events},\"root\":\"{}\"}}", hexadecimal::show(root))
}

/// What became of an act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Outcome {
    /// It was allowed and done.
    #[default]
    Allowed,
    /// It was refused: no credential, no permission, a limit.
    Denied,
    /// It was allowed, and could not be done.
    Failed,
}

impl Outcome {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Failed => "failed",
        }
    }
}

/// An act. Texts that came from outside are as long as their writers allow; nothing here may be a secret.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entry {
    /// When it was decided, microseconds UTC.
    pub at: i64,
    /// Who: a stable name, `anonymous` without a credential.
    pub actor: Arc<str>,
    /// What it showed: `key:ID`, `session:ID`, `token`, `operator`; empty for nothing.
    pub credential: Arc<str>,
    /// On whose behalf.
    pub tenant: Arc<str>,
    /// What was done: the name of the action that the policy decided about.
    pub action: Arc<str>,
    /// To what, such as `stream:orders`.
    pub resource: String,
    /// What became of it.
    pub outcome: Outcome,
    /// Status of the answer, for calls.
    pub status: Option<u16>,
    /// Method of the call, or the command of an act at the command line.
    pub method: String,
    /// Path of the call.
    pub path: String,
    /// Id of the call.
    pub request_id: String,
    /// Address of the caller.
    pub address: String,
    /// How long it took until now, microseconds.
    pub latency: i64,
    /// What it costs of the caller's limit: events that it brought, at least 1; 0 when it was not let in.
    pub cost: i64,
    /// Allow-listed members of the body as JSON.
    pub body: Option<String>,
    /// SHA-256 of the body, hexadecimal.
    pub body_hash: Option<String>,
    /// What was seen or changed, as JSON: question, marks, filters and masks, rows, hash of the result.
    pub seen: Option<String>,
    /// What keeps others from guessing the entry from its leaf.
    pub salt: [u8; SALT_BYTES],
}

/// The schema of `_audit`. The time of an entry is its event time.
pub fn schema() -> StreamSchema {
    let text = |name: &str, nullable| Column::new(name, DataType::Utf8, nullable);
    StreamSchema {
        name: StreamName::system(AUDIT),
        columns: vec![
            text("actor", false),
            text("credential", false),
            text("tenant", false),
            text("action", false),
            text("resource", false),
            text("outcome", false),
            Column::new("status", DataType::Int32, true),
            text("method", false),
            text("path", false),
            text("request_id", false),
            text("address", false),
            Column::new("latency_us", DataType::Int64, false),
            Column::new("cost", DataType::Int64, false),
            Column { json: true, ..text("body", true) },
            text("body_hash", true),
            Column { json: true, ..text("seen", true) },
            text("salt", false),
        ],
        // In the lake too, so that old segments of the log may go.
        options: StreamOptions { partitions: 1, lake: true, ..StreamOptions::default() },
        raw: false,
    }
}

/// The one partition of `_audit`: an entry's offset is its place in the tree.
pub fn partition() -> StreamPartition {
    StreamPartition::new(StreamName::system(AUDIT), 0)
}

static STORED: LazyLock<SchemaRef> = LazyLock::new(|| schema().stored_schema());

/// Entries as an append, in their order.
pub fn append(entries: &[Entry]) -> Result<Append, ArrowError> {
    fn maybe<'a>(values: impl Iterator<Item = Option<&'a str>>) -> ArrayRef {
        let mut builder = StringBuilder::new();
        values.for_each(|value| builder.append_option(value));
        Arc::new(builder.finish())
    }
    fn text<'a>(values: impl Iterator<Item = &'a str>) -> ArrayRef {
        maybe(values.map(Some))
    }
    let mut status = Int32Builder::with_capacity(entries.len());
    let mut latency = Int64Builder::with_capacity(entries.len());
    let mut cost = Int64Builder::with_capacity(entries.len());
    let mut salt = StringBuilder::new();
    let mut time = TimestampMicrosecondBuilder::new().with_data_type(columns::timestamp_type());
    for entry in entries {
        status.append_option(entry.status.map(i32::from));
        latency.append_value(entry.latency);
        cost.append_value(entry.cost);
        salt.append_value(hexadecimal::show(&entry.salt));
        time.append_value(entry.at);
    }
    let rows = RecordBatch::try_new(
        STORED.clone(),
        vec![
            text(entries.iter().map(|entry| entry.actor.as_ref())),
            text(entries.iter().map(|entry| entry.credential.as_ref())),
            text(entries.iter().map(|entry| entry.tenant.as_ref())),
            text(entries.iter().map(|entry| entry.action.as_ref())),
            text(entries.iter().map(|entry| entry.resource.as_str())),
            text(entries.iter().map(|entry| entry.outcome.as_str())),
            Arc::new(status.finish()),
            text(entries.iter().map(|entry| entry.method.as_str())),
            text(entries.iter().map(|entry| entry.path.as_str())),
            text(entries.iter().map(|entry| entry.request_id.as_str())),
            text(entries.iter().map(|entry| entry.address.as_str())),
            Arc::new(latency.finish()),
            Arc::new(cost.finish()),
            maybe(entries.iter().map(|entry| entry.body.as_deref())),
            maybe(entries.iter().map(|entry| entry.body_hash.as_deref())),
            maybe(entries.iter().map(|entry| entry.seen.as_deref())),
            Arc::new(salt.finish()),
            Arc::new(time.finish()),
        ],
    )?;
    Ok(Append { to: partition(), rows })
}
