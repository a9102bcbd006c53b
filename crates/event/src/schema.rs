//! What a stream looks like: its columns and the roles that some of them play.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use crate::columns;
use crate::name::StreamName;
use crate::search::Kind;
use crate::sensitive::Sensitive;

/// A declared column.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// Lower-case name.
    pub name: String,
    /// Arrow type; nested types are structs and lists.
    pub data_type: DataType,
    /// False for `NOT NULL`.
    pub nullable: bool,
    /// Declared (or inherited) as SENSITIVE: readers see the mask.
    pub sensitive: bool,
    /// Text that must hold a JSON value.
    pub json: bool,
}

impl Column {
    /// A column with nothing special about it.
    pub fn new(name: impl Into<String>, data_type: DataType, nullable: bool) -> Self {
        Self { name: name.into(), data_type, nullable, sensitive: false, json: false }
    }
}

/// The `WITH (…)` of a stream.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamOptions {
    /// Columns that together identify an event for deduplication; empty: every event is new.
    pub event_id: Vec<String>,
    /// Column with the event's own time; absent: the time it is recorded.
    pub event_time: Option<String>,
    /// Column whose value chooses the partition.
    pub key: Option<String>,
    /// How many partitions, at least 1.
    pub partitions: u32,
    /// Keep the stream in the lake.
    pub lake: bool,
    /// Names under which the page reader also knows a column (alias → column).
    pub aliases: BTreeMap<String, String>,
    /// Columns that a reader gets only by name.
    pub hidden: Vec<String>,
    /// Members of struct columns that are SENSITIVE, as `column.member`.
    pub sensitive: Vec<String>,
    /// How long events are kept after they were recorded, microseconds; `None` for ever.
    pub retention: Option<i64>,
    /// Columns are added as events bring new members.
    pub inferred: bool,
    /// Column with the tenant that an event belongs to: whoever is of a tenant brings and sees its events only.
    pub tenant: Option<String>,
    /// Column with the name of whoever brought an event; the door writes it.
    pub sender: Option<String>,
    /// After how long without an event a partition's event time goes on with the wall clock,
    /// microseconds; `None`: it never does.
    pub idle_timeout: Option<i64>,
    /// Each commit of its events is sealed in the audit trail, so that every event can be proven.
    pub proof: bool,
    /// Columns that are found through an index, without reading every event.
    pub search: Vec<String>,
    /// SENSITIVE column with the person that an event is about: what is SENSITIVE is encrypted under a key of that
    /// person, and can't be read any more when it is destroyed.
    pub subject: Option<String>,
}

/// [`StreamOptions::idle_timeout`] of streams that do not say one: a minute.
pub const DEFAULT_IDLE_TIMEOUT: i64 = 60_000_000;

impl Default for StreamOptions {
    fn default() -> Self {
        Self {
            event_id: Vec::new(),
            event_time: None,
            key: None,
            partitions: 0,
            lake: false,
            aliases: BTreeMap::new(),
            hidden: Vec::new(),
            sensitive: Vec::new(),
            retention: None,
            inferred: false,
            tenant: None,
            sender: None,
            idle_timeout: Some(DEFAULT_IDLE_TIMEOUT),
            proof: false,
            search: Vec::new(),
            subject: None,
        }
    }
}

impl StreamOptions {
    /// Those of a stream that the engine writes itself, with a column that says whose each row is.
    pub fn of_engine(tenant: &str) -> Self {
        Self { partitions: 1, lake: true, tenant: Some(tenant.into()), ..Self::default() }
    }
}

/// A stream's name, columns and options.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamSchema {
    /// The stream.
    pub name: StreamName,
    /// Declared columns in order.
    pub columns: Vec<Column>,
    /// Roles and storage.
    pub options: StreamOptions,
    /// True when events come in through a door; false when a statement derives them.
    pub raw: bool,
}

/// Why a declaration is not a schema.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum SchemaError {
    /// Two columns with one name.
    #[error("column \"{0}\" is declared twice")]
    Twice(String),
    /// An underscore name.
    #[error("column \"{0}\" starts with an underscore, which is kept for the engine's own columns")]
    Reserved(String),
    /// An option names a column that is not there.
    #[error("{option} names column \"{column}\", which is not declared")]
    NoSuchColumn {
        /// The option.
        option: &'static str,
        /// The column it names.
        column: String,
    },
    /// An option names a column of the wrong type.
    #[error("{option} names column \"{column}\", which is not {wanted}")]
    WrongType {
        /// The option.
        option: &'static str,
        /// The column it names.
        column: String,
        /// What it would have to be.
        wanted: &'static str,
    },
    /// A name that the lake needs for its folders.
    #[error(
        "column \"{0}\" has the name of a folder level of the lake; rename it, or declare the stream WITH (lake = false)"
    )]
    LakeFolder(String),
    /// No columns at all.
    #[error("a stream needs at least one column")]
    Empty,
    /// A SENSITIVE column whose values are stored as they are by the role that it plays.
    #[error("{role} = '{column}' needs column \"{column}\" as it is, so it can't be SENSITIVE")]
    Shown {
        /// The option that names it.
        role: &'static str,
        /// The column.
        column: String,
    },
    /// A proof shows the whole event, and what is SENSITIVE may have to be forgotten.
    #[error(
        "proof = true proves events as they were written, so none of their columns can be SENSITIVE; declare the SENSITIVE columns in a stream of their own"
    )]
    Proven,
    /// A person whose name would be left when everything else of theirs is gone.
    #[error(
        "subject = '{0}': the column must be SENSITIVE, or the name of whoever is to be forgotten would stay"
    )]
    Subject(String),
    /// An index over a stream that the lake does not have.
    #[error("search finds rows of the lake, so it needs lake = true")]
    SearchedLake,
    /// Too many or no partitions.
    #[error("partitions must be between 1 and 1024")]
    Partitions,
}

impl StreamSchema {
    /// Checks a declaration.
    pub fn new(
        name: StreamName,
        columns: Vec<Column>,
        mut options: StreamOptions,
        raw: bool,
    ) -> Result<Self, SchemaError> {
        if columns.is_empty() && !options.inferred {
            return Err(SchemaError::Empty);
        }
        let mut seen = std::collections::HashSet::new();
        for column in &columns {
            if column.name.starts_with('_') && !name.is_system() {
                return Err(SchemaError::Reserved(column.name.clone()));
            }
            if !seen.insert(column.name.as_str()) {
                return Err(SchemaError::Twice(column.name.clone()));
            }
            if options.lake && ["year", "month", "day"].contains(&column.name.as_str()) {
                return Err(SchemaError::LakeFolder(column.name.clone()));
            }
            if let Some(member) = twice_inside(&column.data_type) {
                return Err(SchemaError::Twice(format!("{}.{member}", column.name)));
            }
        }
        if options.partitions == 0 {
            options.partitions = 1;
        }
        if options.partitions > 1024 {
            return Err(SchemaError::Partitions);
        }
        let schema = Self { name, columns, options, raw };
        for column in &schema.options.event_id {
            let data_type = &schema.role("event_id", column)?.data_type;
            if data_type.is_nested() {
                return Err(SchemaError::WrongType {
                    option: "event_id",
                    column: column.clone(),
                    wanted: "a plain value",
                });
            }
        }
        if let Some(column) = &schema.options.event_time
            && schema.role("event_time", column)?.data_type != columns::timestamp_type()
        {
            return Err(SchemaError::WrongType {
                option: "event_time",
                column: column.clone(),
                wanted: "a TIMESTAMP",
            });
        }
        for (option, column) in [("tenant", &schema.options.tenant), ("sender", &schema.options.sender)] {
            if let Some(column) = column
                && schema.role(option, column)?.data_type != DataType::Utf8
            {
                return Err(SchemaError::WrongType { option, column: column.clone(), wanted: "a TEXT" });
            }
        }
        if let Some(column) = &schema.options.key {
            schema.role("key", column)?;
        }
        for column in schema.options.aliases.values() {
            schema.role("aliases", column)?;
        }
        for column in &schema.options.hidden {
            schema.role("hidden", column)?;
        }
        let shown = [("event_time", &schema.options.event_time), ("tenant", &schema.options.tenant)];
        for (role, column) in shown {
            if let Some(column) = column
                && schema.is_sensitive(column)
            {
                return Err(SchemaError::Shown { role, column: column.clone() });
            }
        }
        if let Some(column) = &schema.options.subject {
            let declared = schema.role("subject", column)?;
            if !matches!(declared.data_type, DataType::Utf8 | DataType::Int32 | DataType::Int64) {
                let wanted = "a TEXT, INT or BIGINT";
                return Err(SchemaError::WrongType { option: "subject", column: column.clone(), wanted });
            }
            if !declared.sensitive {
                return Err(SchemaError::Subject(column.clone()));
            }
        }
        if schema.options.proof && schema.has_sensitive() {
            return Err(SchemaError::Proven);
        }
        for column in &schema.options.search {
            if Kind::of(schema.role("search", column)?).is_none() {
                return Err(SchemaError::WrongType {
                    option: "search",
                    column: column.clone(),
                    wanted: "a TEXT, JSON, INT, BIGINT, BOOLEAN, DATE, TIMESTAMP or DECIMAL of at most 18 digits",
                });
            }
            if schema.is_sensitive(column) {
                return Err(SchemaError::Shown { role: "search", column: column.clone() });
            }
        }
        if !schema.options.search.is_empty() && !schema.options.lake {
            return Err(SchemaError::SearchedLake);
        }
        for path in &schema.options.sensitive {
            let (column, member) = path.split_once('.').unwrap_or((path, ""));
            let known = match &schema.role("sensitive", column)?.data_type {
                DataType::Struct(members) => members.iter().any(|known| known.name() == member),
                _ => false,
            };
            if !known {
                return Err(SchemaError::WrongType {
                    option: "sensitive",
                    column: path.clone(),
                    wanted: "a member of a STRUCT column, written column.member; for a whole column write SENSITIVE behind its type",
                });
            }
        }
        Ok(schema)
    }

    fn role(&self, option: &'static str, column: &str) -> Result<&Column, SchemaError> {
        self.column(column).ok_or_else(|| SchemaError::NoSuchColumn { option, column: column.to_owned() })
    }

    /// The declared column of that (lower-case) name.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// True when there is anything in its events that not every reader may see.
    pub fn has_sensitive(&self) -> bool {
        !self.options.sensitive.is_empty() || self.columns.iter().any(|column| column.sensitive)
    }

    /// True when a reader must not see the column as it is: it, or a member of it, is SENSITIVE.
    pub fn is_sensitive(&self, column: &str) -> bool {
        (column == columns::EXTRA && self.raw && self.has_sensitive())
            || self.column(column).is_some_and(|column| column.sensitive)
            || self.options.sensitive.iter().any(|path| path.split('.').next() == Some(column))
    }

    /// True when a member of a struct column is SENSITIVE, by itself or with the whole column.
    pub fn is_sensitive_member(&self, column: &str, member: &str) -> bool {
        self.column(column).is_some_and(|column| column.sensitive)
            || self.options.sensitive.iter().any(|path| path.split_once('.') == Some((column, member)))
    }

    /// What an index finds rows by: the columns that are declared for it, and those by which events are told apart.
    pub fn searched(&self) -> Vec<(&Column, Kind)> {
        let StreamOptions { search, tenant, event_id, .. } = &self.options;
        if search.is_empty() {
            return Vec::new();
        }
        let named = |column: &&Column| {
            [search, event_id].iter().any(|names| names.contains(&column.name))
                || tenant.as_ref() == Some(&column.name)
        };
        let open = self.columns.iter().filter(named).filter(|column| !self.is_sensitive(&column.name));
        open.filter_map(|column| Some((column, Kind::of(column)?))).collect()
    }

    /// The declared columns as Arrow fields.
    pub fn fields(&self) -> Vec<Field> {
        // What was erased reads as null, whatever had to be said.
        let erasable = |column: &Column| column.sensitive && self.options.subject.is_some();
        let field = |column: &Column| {
            Field::new(&column.name, column.data_type.clone(), column.nullable || erasable(column))
        };
        self.columns.iter().map(field).collect()
    }

    /// What the log holds: declared columns, `_extra` when raw, `_event_time`, and what the dedupe
    /// index is rebuilt from when raw.
    pub fn stored_schema(&self) -> SchemaRef {
        let mut fields = self.fields();
        if self.raw {
            fields.push(Field::new(columns::EXTRA, DataType::Utf8, true));
        }
        fields.push(columns::event_time_field());
        if self.raw {
            fields.push(Field::new(columns::EVENT_KEY, DataType::FixedSizeBinary(16), true));
            fields.push(Field::new(columns::PAYLOAD_HASH, DataType::Int64, true));
        }
        let metadata = self.sensitive().map(|sensitive| sensitive.metadata()).unwrap_or_default();
        Arc::new(Schema::new_with_metadata(fields, metadata))
    }

    /// What is stored encrypted; `None` when nothing is SENSITIVE. What an event says beyond its declared members
    /// may be as secret as they are, so `_extra` is one of them then.
    pub fn sensitive(&self) -> Option<Sensitive> {
        self.has_sensitive().then(|| {
            let whole = self.columns.iter().filter(|column| column.sensitive).map(|column| &column.name);
            // A member of a column that is SENSITIVE as a whole is not encrypted again.
            let members = self.options.sensitive.iter().filter(|path| {
                !path
                    .split('.')
                    .next()
                    .and_then(|name| self.column(name))
                    .is_some_and(|column| column.sensitive)
            });
            let mut paths: Vec<String> = whole.chain(members).cloned().collect();
            if self.raw {
                paths.push(columns::EXTRA.to_owned());
            }
            let StreamOptions { tenant, subject, .. } = &self.options;
            Sensitive { paths, tenant: tenant.clone(), subject: subject.clone() }
        })
    }

    /// What a reader and the lake see: declared columns, `_extra` when raw, then
    /// [`columns::position_fields`].
    pub fn reader_schema(&self) -> SchemaRef {
        let mut fields = self.fields();
        if self.raw {
            fields.push(Field::new(columns::EXTRA, DataType::Utf8, true));
        }
        fields.extend(columns::position_fields());
        Arc::new(Schema::new(fields))
    }
}

/// A member that a struct, at any depth, declares twice.
fn twice_inside(data_type: &DataType) -> Option<String> {
    match data_type {
        DataType::Struct(members) => {
            let mut seen = std::collections::HashSet::new();
            members.iter().find_map(|member| {
                let name = member.name().to_ascii_lowercase();
                if seen.insert(name.clone()) { twice_inside(member.data_type()) } else { Some(name) }
            })
        }
        DataType::List(element) => twice_inside(element.data_type()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, data_type: DataType) -> Column {
        Column::new(name, data_type, true)
    }

    #[test]
    fn roles_must_name_fitting_columns() {
        let name = StreamName::new("s").unwrap();
        let columns = || vec![column("id", DataType::Utf8), column("at", columns::timestamp_type())];
        let good = StreamOptions {
            event_id: vec!["id".into()],
            event_time: Some("at".into()),
            ..Default::default()
        };
        assert!(StreamSchema::new(name.clone(), columns(), good, true).is_ok());
        let wrong = StreamOptions { event_time: Some("id".into()), ..Default::default() };
        assert!(matches!(
            StreamSchema::new(name.clone(), columns(), wrong, true),
            Err(SchemaError::WrongType { option: "event_time", .. })
        ));
        let missing = StreamOptions { key: Some("nope".into()), ..Default::default() };
        assert!(matches!(
            StreamSchema::new(name.clone(), columns(), missing, true),
            Err(SchemaError::NoSuchColumn { option: "key", .. })
        ));
        assert_eq!(
            StreamSchema::new(
                name.clone(),
                vec![column("_x", DataType::Utf8)],
                StreamOptions::default(),
                true
            ),
            Err(SchemaError::Reserved("_x".into()))
        );
        let twice = vec![column("a", DataType::Utf8), column("a", DataType::Int64)];
        assert_eq!(
            StreamSchema::new(name, twice, StreamOptions::default(), true),
            Err(SchemaError::Twice("a".into()))
        );
    }
}
