//! Tables that callers write: their changes are rows of a stream, and the table is what the newest of them say.
//!
//! `CREATE TABLE t (…) WITH (key = 'id')` declares the stream `t_changes`, which the engine writes for whoever may, and a
//! table over it like any other: it is rebuilt, read and backed up as one, and what is derived from its changes follows them.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::DataType;
use highwater_event::{Column, SchemaError, StreamName, StreamOptions, StreamSchema};

use super::endpoint::{Taking, parameter};
use super::{Answered, Catalog, Endpoint, Intake, Parameter, StreamEntry, TableEntry, names_read};
use crate::adhoc;
use crate::dialect::{Answers, Method, RowChange, SqlError, Writes, parse_query, quoted, sql_type};
use crate::plan::plan_table;
use crate::session::Engine;
use crate::stream::aggregate::is_keepable;
use crate::stream::table::LAST_UPDATED_AT;

/// Column of the changes: what became of the row, as [`RowChange::text`].
pub const CHANGE: &str = "change";
/// Column of the changes: who did it.
pub const CHANGED_BY: &str = "changed_by";
/// Column of the changes: the Idempotency-Key that a caller sent, behind a hash of what was sent with it.
pub const REQUEST: &str = "request";
/// Column of the table: how often the row was changed.
pub const VERSION: &str = "version";
/// Name of the parameter that the key has in the query of what is answered.
pub const KEY: &str = "_key";

/// How a table is written.
#[derive(Debug)]
pub struct Written {
    /// The stream of its changes.
    pub changes: Arc<StreamEntry>,
    /// The column that tells rows apart.
    pub key: Column,
    /// The engine gives each new row its key.
    pub generated: bool,
    /// The columns that callers write, the key among them.
    pub columns: Vec<Column>,
}

/// How a path writes rows of a table.
#[derive(Debug)]
pub struct RowWrites {
    /// Columns that a caller says, with checked defaults.
    pub parameters: Vec<Parameter>,
    /// The permission that a caller needs.
    pub permission: String,
    /// What becomes of the row.
    pub change: RowChange,
    /// Columns that are not given keep what they say.
    pub partial: bool,
    /// What is answered of the row, by its key.
    pub returning: Arc<Endpoint>,
}

impl Catalog {
    /// Plans a table that callers write.
    pub(super) async fn plan_written(
        &self,
        engine: &Engine,
        name: &StreamName,
        columns: Vec<Column>,
        (key, generated): (String, bool),
        text: String,
    ) -> Result<TableEntry, SqlError> {
        let invalid = |detail: String| SqlError::new("invalid_schema", detail);
        for column in &columns {
            let name = &column.name;
            if [CHANGE, CHANGED_BY, REQUEST, VERSION, LAST_UPDATED_AT].contains(&name.as_str()) {
                return Err(invalid(format!(
                    "\"{name}\" is a column that every such table or its changes have"
                ))
                .hint("choose another name"));
            }
            if column.sensitive {
                return Err(SqlError::unsupported(format!(
                    "column \"{name}\" of a table that callers write can't be SENSITIVE"
                ))
                .hint("CREATE COLUMN MASK shows it to some only"));
            }
            if column.json || !is_keepable(&column.data_type) {
                return Err(SqlError::unsupported(format!(
                    "column \"{name}\": a table that callers write holds plain values, no JSON, STRUCT, MAP or list"
                )));
            }
        }
        let declared = columns.iter().find(|column| column.name == key);
        let declared =
            declared.ok_or_else(|| invalid(format!("key names column \"{key}\", which is not declared")))?;
        if generated && declared.data_type != DataType::Int64 {
            return Err(invalid(format!("\"{key}\" is GENERATED, so it must be a BIGINT")));
        }
        if !matches!(declared.data_type, DataType::Utf8 | DataType::Int64 | DataType::Int32) {
            return Err(invalid(format!("the key \"{key}\" must be a TEXT, an INT or a BIGINT")));
        }
        let key = Column { nullable: false, ..declared.clone() };
        let changes = StreamName::new(format!("{name}_changes"))
            .map_err(|error| SqlError::new("invalid_name", error.to_string()))?;
        let taken = self.streams.contains_key(&changes) || self.tables.contains_key(&changes);
        if taken || self.references.contains_key(&changes) {
            let detail =
                format!("\"{changes}\" is declared already, and the changes of \"{name}\" need that name");
            return Err(SqlError::new("already_exists", detail));
        }
        let schema = self.changes_schema(&changes, &columns, &key);
        let schema = Arc::new(schema.map_err(|error| invalid(error.to_string()))?);
        let newest = columns.iter().filter(|column| column.name != key.name).map(|column| {
            let column = quoted(&column.name);
            format!("latest_by_offset({column}, false) AS {column}, ")
        });
        let query = format!(
            "SELECT {key}, {}count(*) AS {VERSION} FROM {} GROUP BY {key} HAVING latest_by_offset({CHANGE}) <> 'delete'",
            newest.collect::<String>(),
            quoted(changes.as_str()),
            key = quoted(&key.name),
        );
        let table = self.next_version(name);
        let program = plan_table(engine, schema.clone(), table, None, false, parse_query(&query)?).await?;
        let changes = StreamEntry { schema, derivation: None, reads: BTreeSet::new(), text: text.clone() };
        let reads = BTreeSet::from([changes.schema.name.at_version(1)]);
        let columns =
            columns.into_iter().map(|column| if column.name == key.name { key.clone() } else { column });
        let written = Written { changes: Arc::new(changes), generated, columns: columns.collect(), key };
        Ok(TableEntry { program: Arc::new(program), reads, text, written: Some(Arc::new(written)) })
    }

    fn changes_schema(
        &self,
        name: &StreamName,
        columns: &[Column],
        key: &Column,
    ) -> Result<StreamSchema, SchemaError> {
        // A row that is gone has a key and nothing else.
        let kept =
            columns.iter().map(|column| Column { nullable: column.name != key.name, ..column.clone() });
        let text = |name: &str, nullable| Column::new(name, DataType::Utf8, nullable);
        let own = [text(CHANGE, false), text(CHANGED_BY, false), text(REQUEST, true)];
        let options = StreamOptions { partitions: 1, lake: true, ..StreamOptions::default() };
        StreamSchema::new(self.next_version(name), kept.chain(own).collect(), options, false)
    }

    /// The table that a stream has the changes of.
    pub fn written_by(&self, changes: &StreamName) -> Option<&StreamName> {
        let of = |entry: &TableEntry| {
            entry.written.as_ref().is_some_and(|it| it.changes.schema.name.at_version(1) == *changes)
        };
        self.tables.iter().find(|(_, entry)| of(entry)).map(|(name, _)| name)
    }

    /// Plans a path that rows are written at.
    pub(super) async fn plan_writes(
        &self,
        engine: &Engine,
        (method, path, table): (Method, String, StreamName),
        writes: Writes,
        text: String,
    ) -> Result<Intake, SqlError> {
        let Writes { parameters, permission, change, returning } = writes;
        let written = match self.tables.get(&table) {
            Some(entry) => entry.written.as_ref().ok_or_else(|| {
                SqlError::unsupported(format!(
                    "\"{table}\" is kept up by the engine; its rows can't be written"
                ))
                .hint("CREATE TABLE name (columns) WITH (key = 'column') declares a table that callers write")
            })?,
            None => return Err(self.no_table(&table)),
        };
        let parameters = parameters.into_iter().map(parameter).collect::<Result<Vec<_>, _>>()?;
        check_parameters(&table, written, change, &parameters, method)?;
        let returning = returning.unwrap_or_else(|| {
            let shown = written.columns.iter().map(|column| quoted(&column.name));
            format!("{}, {VERSION} AS _{VERSION}", shown.collect::<Vec<_>>().join(", "))
        });
        let key = quoted(&written.key.name);
        let query = format!("SELECT {returning} FROM {} WHERE {key} = ${KEY}", quoted(table.as_str()));
        let query = parse_query(&query)?;
        let by_key = Parameter {
            name: KEY.into(),
            data_type: written.key.data_type.clone(),
            tenant: false,
            default: None,
            check: None,
        };
        let columns: Vec<Answered> =
            adhoc::check_endpoint(engine, self, std::slice::from_ref(&by_key), &query).await?;
        let returning = Endpoint {
            path: path.clone(),
            parameters: vec![by_key],
            permission: permission.clone(),
            answers: Answers::Object,
            posted: true,
            reads: names_read(&query),
            query,
            columns,
            text: text.clone(),
        };
        let partial = method == Method::Patch;
        let writes = RowWrites { parameters, permission, change, partial, returning: Arc::new(returning) };
        Ok(Intake { method, path, into: table, taking: Taking::Row(writes), text })
    }
}

/// Parameters are columns, of the same type, and enough of them.
fn check_parameters(
    table: &StreamName,
    written: &Written,
    change: RowChange,
    parameters: &[Parameter],
    method: Method,
) -> Result<(), SqlError> {
    let invalid = |detail: String| SqlError::new("invalid_schema", detail);
    let key = &written.key;
    for parameter in parameters {
        let name = &parameter.name;
        let column = written.columns.iter().find(|column| column.name == *name);
        let column =
            column.ok_or_else(|| invalid(format!("parameter {name} is no column of \"{table}\"")))?;
        if column.data_type != parameter.data_type {
            let wanted = sql_type(&column.data_type);
            return Err(invalid(format!("parameter {name} must be {wanted}, as the column is")));
        }
        if column == key && change == RowChange::Insert && written.generated {
            return Err(invalid(format!("\"{name}\" is GENERATED: a new row is given it")));
        }
        if column != key && change == RowChange::Delete {
            return Err(invalid(format!("a row is taken away by its key \"{}\" alone", key.name)));
        }
    }
    let is_given = |column: &Column| parameters.iter().any(|parameter| parameter.name == column.name);
    let by_key = change != RowChange::Insert || !written.generated;
    if by_key && !is_given(key) {
        return Err(invalid(format!("the key \"{}\" must be a parameter", key.name))
            .hint(format!("a path may hold it: '/api/…/{{{}}}/'", key.name)));
    }
    let needed = |column: &&Column| {
        let given = is_given(column) || (*column == key && written.generated);
        change == RowChange::Insert && !column.nullable && !given
    };
    if let Some(column) = written.columns.iter().find(needed) {
        return Err(invalid(format!("\"{}\" is NOT NULL, so it must be a parameter", column.name)));
    }
    if method == Method::Patch
        && let Some(parameter) = parameters.iter().find(|it| it.default.is_some())
    {
        return Err(invalid(format!(
            "parameter {} can't have a DEFAULT: with PATCH what is not given stays as it is",
            parameter.name
        )));
    }
    Ok(())
}
