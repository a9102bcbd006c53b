//! What a declaration says, before it is planned.

use datafusion::sql::sqlparser::ast::{Expr, Query};
use highwater_event::{Column, StreamName, StreamOptions};

use super::endpoint::{FILE_PARAMETERS, NUMBERED_PARAMETERS, PAGE_PARAMETERS};
use super::schedule::Schedule;

/// A statement with the text that it was written as.
#[derive(Debug, Clone)]
pub struct Declared {
    /// The statement.
    pub statement: Statement,
    /// OR REPLACE was said.
    pub replace: bool,
    /// Its text without the closing semicolon.
    pub text: String,
    /// Line of the script on which the text starts, from 1.
    pub first_line: u64,
}

/// A statement of the declaration language.
#[derive(Debug, Clone)]
pub enum Statement {
    /// CREATE STREAM name (columns) WITH (…): events come in through the door.
    CreateStream {
        /// Its name.
        name: StreamName,
        /// Its columns.
        columns: Vec<Column>,
        /// Roles and storage.
        options: StreamOptions,
    },
    /// CREATE STREAM name WITH (…) AS SELECT …: derived, row by row.
    CreateStreamAs {
        /// Its name.
        name: StreamName,
        /// Roles and storage.
        options: StreamOptions,
        /// The query.
        query: Box<Query>,
        /// How far apart the rows of a join may lie.
        within: Option<Within>,
    },
    /// CREATE TABLE name (columns) WITH (key): rows that callers write.
    CreateTable {
        /// Its name.
        name: StreamName,
        /// Its columns.
        columns: Vec<Column>,
        /// The column that tells its rows apart.
        key: String,
        /// The engine gives each new row its key.
        generated: bool,
    },
    /// CREATE TABLE name AS SELECT … GROUP BY …: keyed and aggregated.
    CreateTableAs {
        /// Its name.
        name: StreamName,
        /// The WINDOW clause.
        window: Option<Window>,
        /// The query without that clause.
        query: Box<Query>,
        /// EMIT FINAL: windows show when they are closed.
        emit_final: bool,
    },
    /// CREATE REFERENCE TABLE name (columns) WITH (csv, key, valid_from).
    CreateReferenceTable {
        /// Its name.
        name: StreamName,
        /// Its columns.
        columns: Vec<Column>,
        /// CSV file beside the script.
        csv: String,
        /// Columns that rows are looked up by.
        key: Vec<String>,
        /// Column from whose date on a row holds.
        valid_from: Option<String>,
    },
    /// CREATE ENDPOINT [POST] 'path' (parameters) REQUIRES permission [RETURNS …] AS SELECT ….
    CreateEndpoint {
        /// Its path, starting with a slash and without one at the end.
        path: String,
        /// Its parameters.
        parameters: Vec<EndpointParameter>,
        /// The permission that a caller needs.
        permission: String,
        /// What it makes of the query's rows.
        answers: Answers,
        /// It is asked with POST, with its parameters in the body.
        posted: bool,
        /// The query.
        query: Box<Query>,
    },
    /// CREATE ENDPOINT method 'path' …: events come in at a path of the pack's own, new ones or old ones again, or rows of a
    /// table are written.
    CreateIntake {
        /// How it is called.
        method: Method,
        /// Its path, starting with a slash and without one at the end.
        path: String,
        /// The stream that events go to, or the table that is written.
        into: StreamName,
        /// What comes in.
        takes: Takes,
    },
    /// CREATE MODEL name PREDICTS column AS SELECT …: what is learnt, and from which rows.
    CreateModel {
        /// Its name.
        name: StreamName,
        /// The column that says whether it is so.
        label: String,
        /// The rows.
        query: Box<Query>,
    },
    /// CREATE SCHEDULE name CRON 'pattern' … RUN job: which job is begun when.
    CreateSchedule {
        /// Its name.
        name: StreamName,
        /// When, and what.
        schedule: Box<Schedule>,
    },
    /// CREATE ROW FILTER or CREATE COLUMN MASK: what readers see of a relation. CREATE POLICY: who may do what.
    CreateRule {
        /// Its name.
        name: StreamName,
        /// The stream or table; none of a policy.
        relation: Option<StreamName>,
        /// What it does.
        rule: Rule,
    },
    /// ALTER STREAM name ….
    AlterStream {
        /// Its name.
        name: StreamName,
        /// What changes, in order.
        changes: Vec<Alteration>,
    },
    /// DROP kind [IF EXISTS] name.
    Drop {
        /// What kind of thing.
        kind: Kind,
        /// Its name or path.
        name: String,
        /// It is no error when there is none.
        if_exists: bool,
    },
    /// PAUSE name: what keeps it up stops until RESUME, also across restarts.
    Pause {
        /// A derived stream or table.
        name: StreamName,
    },
    /// RESUME name.
    Resume {
        /// A derived stream or table.
        name: StreamName,
    },
}

/// What can be declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A stream, raw or derived.
    Stream,
    /// A table.
    Table,
    /// A reference table.
    ReferenceTable,
    /// An endpoint that answers a query.
    Endpoint,
    /// An endpoint that takes events or writes rows.
    Intake(Method),
    /// A model.
    Model,
    /// A schedule.
    Schedule,
    /// A row filter, a column mask or a policy.
    Rule,
}

impl Kind {
    /// The kind in words.
    pub fn text(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Table => "table",
            Self::ReferenceTable => "reference table",
            Self::Endpoint => "endpoint",
            Self::Intake(method) => method.endpoint(),
            Self::Model => "model",
            Self::Schedule => "schedule",
            Self::Rule => "rule",
        }
    }
}

/// How an endpoint is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    /// It answers a query.
    Get,
    /// It takes events, makes a row, or answers a query with its parameters in the body.
    Post,
    /// It changes a row.
    Put,
    /// It changes some columns of a row.
    Patch,
    /// It takes a row away.
    Delete,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Get, Self::Post, Self::Put, Self::Patch, Self::Delete];

    /// As it stands in a call.
    pub fn text(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }

    /// An endpoint that is called so, in words.
    fn endpoint(self) -> &'static str {
        match self {
            Self::Get => "endpoint",
            Self::Post => "POST endpoint",
            Self::Put => "PUT endpoint",
            Self::Patch => "PATCH endpoint",
            Self::Delete => "DELETE endpoint",
        }
    }
}

/// What an endpoint makes of the rows of its query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answers {
    /// An array of them.
    Rows,
    /// The first one, and 404 when there is none.
    Object,
    /// Some of them at a time, the newest first, and how many there are.
    Page {
        /// The member of the answer that holds them.
        member: String,
        /// How long an answer may be given again, microseconds.
        cached: Option<i64>,
    },
    /// So many of them at a time, by the number of the page, and how many there are.
    Numbered {
        /// Rows of a page.
        size: usize,
    },
    /// The newest ones of a search, how many there are, and where in the lake they lie.
    Hits,
    /// All of them, as a file that is streamed.
    File,
    /// The first one again and again, over a WebSocket or as server-sent events.
    Live {
        /// Time between two of them, microseconds.
        every: i64,
    },
    /// The proof of the event that the first one names, and 404 when there is none.
    Proof {
        /// The stream that the event is in.
        stream: StreamName,
    },
}

/// Which events an endpoint takes in.
#[derive(Debug, Clone)]
pub enum Takes {
    /// INTO stream: the one in the body.
    One,
    /// INTO stream AS BATCH: those in the body.
    Several,
    /// REPLAYS stream: old ones of the stream, which happen again now.
    Again(Box<Again>),
    /// INSERTS INTO table, UPDATES table, DELETES FROM table: a row of it.
    Row(Box<Writes>),
    /// TRAINS MODELS: the name of a model that is to be trained.
    Training {
        /// The permission that a caller needs.
        permission: String,
    },
}

/// What becomes of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowChange {
    /// It is new.
    Insert,
    /// It is another one under the same key.
    Update,
    /// It is gone.
    Delete,
}

impl RowChange {
    /// As the stream of changes says it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }
}

/// How rows of a table are written.
#[derive(Debug, Clone)]
pub struct Writes {
    /// Columns that a caller says, in the path or in the body.
    pub parameters: Vec<EndpointParameter>,
    /// The permission that a caller needs.
    pub permission: String,
    /// What becomes of the row.
    pub change: RowChange,
    /// What is answered of it, as a SELECT list; everything without it.
    pub returning: Option<String>,
}

/// Old events that happen again.
#[derive(Debug, Clone)]
pub struct Again {
    /// Members of the body.
    pub parameters: Vec<EndpointParameter>,
    /// The permission that a caller needs.
    pub permission: String,
    /// Which events; all without it. Its parameters are `$name`.
    pub condition: Option<Expr>,
    /// What is said of them beside what they say.
    pub set: std::collections::BTreeMap<String, serde_json::Value>,
    /// All that fit, as a job, instead of the first one.
    pub job: bool,
}

impl Answers {
    /// The parameters that every endpoint of its kind has.
    pub fn parameters(&self) -> &'static [&'static str] {
        match self {
            Self::Page { .. } => &PAGE_PARAMETERS,
            Self::Numbered { .. } => &NUMBERED_PARAMETERS,
            Self::File => &FILE_PARAMETERS,
            Self::Rows | Self::Object | Self::Hits | Self::Live { .. } | Self::Proof { .. } => &[],
        }
    }

    /// The stream that the answers are about, beside those that the query reads.
    pub fn stream(&self) -> Option<&StreamName> {
        match self {
            Self::Proof { stream } => Some(stream),
            Self::Rows
            | Self::Object
            | Self::Hits
            | Self::Page { .. }
            | Self::Numbered { .. }
            | Self::File
            | Self::Live { .. } => None,
        }
    }
}

/// What readers see, and who may do what.
#[derive(Debug, Clone)]
pub enum Rule {
    /// Rows for which a condition holds.
    RowFilter {
        /// Over the columns as they are; session_tenant() and session_user() say who asks.
        using: Box<Expr>,
    },
    /// Something else in the place of a column.
    ColumnMask {
        /// The column.
        column: String,
        /// What is seen.
        using: Box<Expr>,
        /// Who has this permission sees the column as it is.
        unless: Option<String>,
    },
    /// Rules beside those that every node has.
    Policy {
        /// Cedar.
        text: String,
    },
}

/// A change of a stream.
#[derive(Debug, Clone)]
pub enum Alteration {
    /// A column at the end.
    Add(Column),
    /// Options.
    Set(std::collections::BTreeMap<String, Expr>),
}

/// A window over event time, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Its shape.
    pub kind: WindowKind,
    /// How much older than the newest event an event may be and still count.
    pub grace: i64,
    /// How long after its end a window is kept; `None` for ever.
    pub retention: Option<i64>,
}

/// The shape of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WindowKind {
    /// Windows of one length that start at regular times.
    Hopping {
        /// Length.
        size: i64,
        /// Distance between two starts; equal to the length when windows tumble.
        advance: i64,
    },
    /// Windows of one group that last as long as rows follow each other closely.
    Session {
        /// The longest distance between two rows of one session.
        gap: i64,
    },
}

impl Window {
    /// How long a window lasts; for sessions how long after its last row it ends.
    pub fn longest(&self) -> i64 {
        match self.kind {
            WindowKind::Hopping { size, .. } => size,
            WindowKind::Session { gap } => gap.saturating_mul(2),
        }
    }
}

/// How far apart the event times of two rows of a join may lie, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Within {
    /// How much earlier the row of the right may be.
    pub before: i64,
    /// How much later.
    pub after: i64,
    /// How much older than the newest event of its side a row may be and still be matched.
    pub grace: i64,
}

/// A typed query parameter.
#[derive(Debug, Clone)]
pub struct EndpointParameter {
    /// Its name, in the query as `$name`.
    pub name: String,
    /// Its type.
    pub data_type: arrow::datatypes::DataType,
    /// It names a tenant, which must be one that the caller is of.
    pub tenant: bool,
    /// The value when it is not given; without one it is required.
    pub default: Option<Expr>,
    /// A condition on it.
    pub check: Option<Expr>,
}

impl Statement {
    /// What kind of thing it declares, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::CreateStream { .. } | Self::CreateStreamAs { .. } => "stream",
            Self::CreateTable { .. } | Self::CreateTableAs { .. } => "table",
            Self::CreateReferenceTable { .. } => "reference table",
            Self::CreateEndpoint { .. } => "endpoint",
            Self::CreateIntake { method, .. } => Kind::Intake(*method).text(),
            Self::CreateModel { .. } => Kind::Model.text(),
            Self::CreateSchedule { .. } => Kind::Schedule.text(),
            Self::AlterStream { .. } => "stream",
            Self::CreateRule { rule, .. } => super::rules::kind(rule),
            Self::Drop { kind, .. } => kind.text(),
            Self::Pause { .. } | Self::Resume { .. } => "view",
        }
    }

    /// The name or path that it declares.
    pub fn name(&self) -> &str {
        match self {
            Self::CreateStream { name, .. }
            | Self::CreateStreamAs { name, .. }
            | Self::CreateTable { name, .. }
            | Self::CreateTableAs { name, .. }
            | Self::CreateReferenceTable { name, .. }
            | Self::AlterStream { name, .. }
            | Self::CreateModel { name, .. }
            | Self::CreateSchedule { name, .. }
            | Self::CreateRule { name, .. }
            | Self::Pause { name }
            | Self::Resume { name } => name.as_str(),
            Self::CreateEndpoint { path, .. } | Self::CreateIntake { path, .. } => path,
            Self::Drop { name, .. } => name,
        }
    }
}
