//! What is declared: streams, tables, reference tables and endpoints, each with its plan.
//!
//! The catalog is a deterministic view of the statements in the log: applying the same statements in
//! the same order gives the same catalog. It checks and plans; it starts nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::common::ScalarValue;
use datafusion::sql::sqlparser::ast::{Expr, Query, Value};
use highwater_event::name::nearest;
use highwater_event::{StreamName, StreamSchema};

use crate::adhoc;
use crate::dialect::{Declared, EndpointParameter, SqlError, Statement};
use crate::plan::{plan_table, plan_transform, source_of};
use crate::reference::ReferenceTable;
use crate::session::Engine;
use crate::stream::{TableProgram, Transform};

/// A declared or built-in stream.
#[derive(Debug)]
pub struct StreamEntry {
    /// Its columns and options.
    pub schema: Arc<StreamSchema>,
    /// How it is derived; `None` when events come in through the door or the engine writes it.
    pub transform: Option<Arc<Transform>>,
    /// The statement.
    pub text: String,
}

/// A declared table.
#[derive(Debug)]
pub struct TableEntry {
    /// Its plan.
    pub program: Arc<TableProgram>,
    /// The statement.
    pub text: String,
}

/// A declared reference table.
#[derive(Debug)]
pub struct ReferenceEntry {
    /// Its current version.
    pub table: Arc<ReferenceTable>,
    /// The statement.
    pub text: String,
    /// The file's content.
    pub csv: String,
}

/// A query published as a REST resource.
#[derive(Debug)]
pub struct Endpoint {
    /// Path without a slash at its end.
    pub path: String,
    /// Parameters, with checked defaults.
    pub parameters: Vec<Parameter>,
    /// The permission that a caller needs.
    pub permission: String,
    /// The query.
    pub query: Box<Query>,
    /// Columns of its rows: name and type.
    pub columns: Vec<(String, arrow::datatypes::DataType)>,
    /// The statement.
    pub text: String,
}

/// A parameter of an endpoint.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// Its type.
    pub data_type: arrow::datatypes::DataType,
    /// The value when it is not given; without one it is required.
    pub default: Option<ScalarValue>,
    /// A condition on it, as SQL.
    pub check: Option<String>,
}

/// A statement that has been checked and planned.
#[derive(Debug, Clone)]
pub enum Planned {
    /// The same thing is declared already.
    Unchanged,
    /// A stream.
    Stream(Arc<StreamEntry>),
    /// A table.
    Table(Arc<TableEntry>),
    /// A new version of a reference table, or a new one.
    Reference(Arc<ReferenceEntry>),
    /// An endpoint, new or in the place of the one with its path.
    Endpoint(Arc<Endpoint>),
}

/// All declarations.
#[derive(Debug, Default, Clone)]
pub struct Catalog {
    /// Streams by name.
    pub streams: BTreeMap<StreamName, Arc<StreamEntry>>,
    /// Tables by name.
    pub tables: BTreeMap<StreamName, Arc<TableEntry>>,
    /// Reference tables by name.
    pub references: BTreeMap<StreamName, Arc<ReferenceEntry>>,
    /// Endpoints by path.
    pub endpoints: BTreeMap<String, Arc<Endpoint>>,
}

impl Catalog {
    /// Adds a stream that the engine declares itself.
    pub fn add_builtin(&mut self, schema: StreamSchema) {
        let entry = StreamEntry { schema: Arc::new(schema), transform: None, text: String::new() };
        self.streams.insert(entry.schema.name.clone(), Arc::new(entry));
    }

    /// Checks a statement against what is declared and plans it. `csv` is the content of the file that a
    /// reference table names.
    pub async fn plan(
        &self,
        engine: &Engine,
        declared: Declared,
        csv: Option<String>,
    ) -> Result<Planned, SqlError> {
        let Declared { statement, text, .. } = declared;
        if self.is_unchanged(&statement, &text, csv.as_deref()) {
            return Ok(Planned::Unchanged);
        }
        self.check_free(&statement)?;
        Ok(match statement {
            Statement::CreateStream { name, columns, options } => {
                let schema = StreamSchema::new(name, columns, options, true)
                    .map_err(|error| SqlError::new("invalid_schema", error.to_string()))?;
                Planned::Stream(Arc::new(StreamEntry { schema: Arc::new(schema), transform: None, text }))
            }
            Statement::CreateStreamAs { name, options, query } => {
                let source = self.source(&query)?;
                let transform = plan_transform(engine, source, name, options, query).await?;
                let schema = transform.schema.clone();
                Planned::Stream(Arc::new(StreamEntry { schema, transform: Some(Arc::new(transform)), text }))
            }
            Statement::CreateTableAs { name, window, query } => {
                let source = self.source(&query)?;
                let program = plan_table(engine, source, name, window, query).await?;
                Planned::Table(Arc::new(TableEntry { program: Arc::new(program), text }))
            }
            Statement::CreateReferenceTable { name, columns, csv: file, key, valid_from } => {
                let csv = csv.ok_or_else(|| {
                    SqlError::new(
                        "missing_file",
                        format!("the content of '{file}' has to be sent with the statement"),
                    )
                    .hint("`highwater apply -f DIR` sends it")
                })?;
                let table = ReferenceTable::from_csv(name, &columns, key, valid_from, &csv)?;
                Planned::Reference(Arc::new(ReferenceEntry { table: Arc::new(table), text, csv }))
            }
            Statement::CreateEndpoint { path, parameters, permission, query } => {
                let parameters = parameters.into_iter().map(parameter).collect::<Result<Vec<_>, _>>()?;
                let columns = adhoc::check_endpoint(engine, self, &parameters, &query).await?;
                Planned::Endpoint(Arc::new(Endpoint { path, parameters, permission, query, columns, text }))
            }
        })
    }

    /// Takes a planned statement in.
    pub fn insert(&mut self, engine: &Engine, planned: Planned) {
        match planned {
            Planned::Unchanged => {}
            Planned::Stream(entry) => {
                self.streams.insert(entry.schema.name.clone(), entry);
            }
            Planned::Table(entry) => {
                self.tables.insert(entry.program.table().clone(), entry);
            }
            Planned::Reference(entry) => {
                engine.references().put(entry.table.clone());
                self.references.insert(entry.table.name.clone(), entry);
            }
            Planned::Endpoint(entry) => {
                self.endpoints.insert(entry.path.clone(), entry);
            }
        }
    }

    fn is_unchanged(&self, statement: &Statement, text: &str, csv: Option<&str>) -> bool {
        let name = statement.name();
        let known = StreamName::new(name).ok();
        let known = known.as_ref();
        let same = |known: &str| normalized(known) == normalized(text);
        match statement {
            Statement::CreateStream { .. } | Statement::CreateStreamAs { .. } => {
                known.and_then(|name| self.streams.get(name)).is_some_and(|entry| same(&entry.text))
            }
            Statement::CreateTableAs { .. } => {
                known.and_then(|name| self.tables.get(name)).is_some_and(|entry| same(&entry.text))
            }
            Statement::CreateReferenceTable { .. } => known
                .and_then(|name| self.references.get(name))
                .is_some_and(|entry| same(&entry.text) && csv.is_none_or(|csv| csv == entry.csv)),
            Statement::CreateEndpoint { .. } => {
                self.endpoints.get(name).is_some_and(|entry| same(&entry.text))
            }
        }
    }

    /// Endpoints and reference tables may be declared anew; what other views have read may not.
    fn check_free(&self, statement: &Statement) -> Result<(), SqlError> {
        let Ok(name) = StreamName::new(statement.name()) else { return Ok(()) };
        let kind = if self.streams.contains_key(&name) {
            "stream"
        } else if self.tables.contains_key(&name) {
            "table"
        } else if self.references.contains_key(&name) && statement.kind() != "reference table" {
            "reference table"
        } else {
            return Ok(());
        };
        Err(SqlError::new(
            "already_exists",
            format!("a {kind} \"{name}\" is declared already, and differently"),
        )
        .hint("changing a running statement is not possible yet: declare it under a new name"))
    }

    fn source(&self, query: &Query) -> Result<Arc<StreamSchema>, SqlError> {
        use datafusion::sql::sqlparser::ast::Spanned;
        let name = source_of(query)?;
        if let Some(entry) = self.streams.get(&name) {
            return Ok(entry.schema.clone());
        }
        let error = if self.tables.contains_key(&name) || self.references.contains_key(&name) {
            SqlError::unsupported(format!("\"{name}\" is a table; a continuous statement reads a stream"))
        } else {
            let error = SqlError::new("stream_not_found", format!("no stream \"{name}\""));
            match nearest(name.as_str(), self.streams.keys().map(StreamName::as_str)) {
                Some(near) => error.hint(format!("did you mean \"{near}\"?")),
                None => error,
            }
        };
        let from = query.body.as_select().and_then(|select| select.from.first());
        Err(match from {
            Some(from) => error.at(from.span()),
            None => error,
        })
    }
}

fn normalized(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn parameter(declared: EndpointParameter) -> Result<Parameter, SqlError> {
    let EndpointParameter { name, data_type, default, check } = declared;
    let default = default
        .map(|value| {
            let text = match &value {
                Expr::Value(value) => match &value.value {
                    Value::Number(text, _) | Value::SingleQuotedString(text) => Some(text.clone()),
                    Value::Boolean(value) => Some(value.to_string()),
                    Value::Null => return ScalarValue::try_from(&data_type).map_err(SqlError::from),
                    _ => None,
                },
                _ => None,
            };
            text.and_then(|text| ScalarValue::try_from_string(text, &data_type).ok()).ok_or_else(|| {
                SqlError::new(
                    "invalid_option",
                    format!("the default of {name} is not a constant of type {data_type}"),
                )
            })
        })
        .transpose()?;
    Ok(Parameter { name, data_type, default, check: check.map(|check| check.to_string()) })
}
