//! Streams that the engine declares itself.

use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use highwater_auth::Credentials;
use highwater_event::{Column, StreamName, StreamOptions, StreamPartition, StreamSchema, columns};
use highwater_log::{Append, LogBatch};

/// Commands: what was declared, in order.
pub const SYSTEM: &str = "_system";
/// The stream behind /api/v1/events.
pub const EVENTS: &str = "events";

/// The one partition of `_system`: its end counts what was decided.
pub fn partition() -> StreamPartition {
    StreamPartition::new(StreamName::system(SYSTEM), 0)
}

/// The schema of `_system`.
pub fn system_schema() -> StreamSchema {
    StreamSchema {
        name: StreamName::system(SYSTEM),
        columns: vec![
            Column::new("command", DataType::Utf8, false),
            Column::new("text", DataType::Utf8, false),
            Column::new("csv", DataType::Utf8, true),
            Column::new("principal", DataType::Utf8, false),
            Column { json: true, ..Column::new("comparison", DataType::Utf8, true) },
            Column { sensitive: true, ..Column::new("secret", DataType::Utf8, true) },
        ],
        // In the lake too, so that old segments of the log may go.
        options: StreamOptions { partitions: 1, lake: true, ..StreamOptions::default() },
        raw: false,
    }
}

/// The schema of `events`.
pub fn events_schema() -> StreamSchema {
    StreamSchema {
        name: StreamName::system(EVENTS),
        columns: vec![
            Column::new("event_id", DataType::Utf8, true),
            Column::new("event_type", DataType::Utf8, false),
            Column { json: true, ..Column::new("payload", DataType::Utf8, true) },
            Column::new("timestamp", columns::timestamp_type(), true),
            Column::new("sender", DataType::Utf8, true),
            Column::new("tenant", DataType::Utf8, true),
        ],
        options: StreamOptions {
            sender: Some("sender".into()),
            tenant: Some("tenant".into()),
            event_id: vec!["event_id".into()],
            event_time: Some("timestamp".into()),
            partitions: 1,
            lake: true,
            ..StreamOptions::default()
        },
        raw: true,
    }
}

/// A declaration on its way into `_system`, or out of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// What is to be done.
    pub kind: CommandKind,
    /// The statement, or the name that is swapped.
    pub text: String,
    /// Content of the file that a reference table names.
    pub csv: Option<String>,
    /// For a swap: how the new version differs from the old one, as JSON. For people to read.
    pub comparison: Option<String>,
    /// For commands about people: what is kept of the secret that came with it.
    pub secret: Option<String>,
}

impl Command {
    /// A command of that kind and no more.
    pub fn new(kind: CommandKind, text: String) -> Self {
        Self { kind, text, csv: None, comparison: None, secret: None }
    }

    /// A change of the directory of people and keys.
    pub fn people(given: &Credentials) -> Result<Self, serde_json::Error> {
        let text = serde_json::to_string(&given.command)?;
        Ok(Self { secret: given.secret.clone(), ..Self::new(CommandKind::People, text) })
    }
}

/// What a command does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandKind {
    /// Declares what a statement says.
    Declare,
    /// Puts the new version of a statement, which has caught up, in the place of the old one.
    Swap,
    /// Changes the directory of people and keys.
    People,
    /// Is a signed statement about the audit trail.
    State,
}

impl CommandKind {
    /// As it stands in the log.
    pub fn text(self) -> &'static str {
        match self {
            Self::Declare => "declare",
            Self::Swap => "swap",
            Self::People => "people",
            Self::State => "state",
        }
    }

    fn of(text: &str) -> Option<Self> {
        [Self::Declare, Self::Swap, Self::People, Self::State].into_iter().find(|kind| kind.text() == text)
    }
}

/// Declarations as an append to `_system`.
pub fn append(commands: &[Command], principal: &str, now: i64) -> Result<Append, ArrowError> {
    let rows = commands.len();
    let batch = RecordBatch::try_new(
        system_schema().stored_schema(),
        vec![
            Arc::new(commands.iter().map(|command| Some(command.kind.text())).collect::<StringArray>()),
            Arc::new(commands.iter().map(|command| Some(command.text.as_str())).collect::<StringArray>()),
            Arc::new(commands.iter().map(|command| command.csv.as_deref()).collect::<StringArray>()),
            Arc::new(StringArray::from(vec![principal; rows])),
            Arc::new(commands.iter().map(|command| command.comparison.as_deref()).collect::<StringArray>()),
            Arc::new(commands.iter().map(|command| command.secret.as_deref()).collect::<StringArray>()),
            Arc::new(
                TimestampMicrosecondArray::from_value(now, rows).with_data_type(columns::timestamp_type()),
            ),
        ],
    )?;
    Ok(Append { to: partition(), rows: batch })
}

/// The commands of a batch of `_system`; those about people are for [`super::people`].
pub fn commands(batch: &LogBatch) -> Vec<Command> {
    let kinds = batch.rows.column(0).as_string::<i32>();
    let texts = batch.rows.column(1).as_string::<i32>();
    let csvs = batch.rows.column(2).as_string::<i32>();
    (0..batch.rows.num_rows())
        .filter_map(|row| Some((row, CommandKind::of(kinds.value(row))?)))
        .filter(|(_, kind)| *kind != CommandKind::People)
        .map(|(row, kind)| Command {
            csv: csvs.is_valid(row).then(|| csvs.value(row).to_owned()),
            ..Command::new(kind, texts.value(row).to_owned())
        })
        .collect()
}
