//! Endpoints: queries with typed parameters.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::DataType;
use async_trait::async_trait;
use datafusion::catalog::TableProvider;
use datafusion::common::ScalarValue;
use datafusion::datasource::empty::EmptyTable;
use datafusion::sql::sqlparser::ast::Query;
use highwater_event::json::is_json;
use highwater_event::{columns, time};

use super::{Limits, QueryResult, Relations, Rows, context, open, plan, query, run};
use crate::catalog::{Answered, Catalog, Parameter};
use crate::dialect::{Asker, SqlError, quoted};
use crate::plan::as_statement;
use crate::session::Engine;

/// Plans an endpoint's query over what is declared, without data; answers its columns.
pub async fn check_endpoint(
    engine: &Engine,
    catalog: &Catalog,
    parameters: &[Parameter],
    query: &Query,
) -> Result<Vec<Answered>, SqlError> {
    let shapes = Arc::new(Shapes(catalog.clone()));
    let context = context(engine, shapes)?;
    let samples = parameters
        .iter()
        .map(|parameter| Ok((parameter.name.clone(), sample(parameter)?)))
        .collect::<Result<Vec<_>, SqlError>>()?;
    let statement = as_statement(asked_by(Asker { user: "", tenant: "" }, query));
    let unbound = context.state().statement_to_plan(statement.clone()).await?;
    for name in unbound.get_parameter_names()? {
        let name = name.trim_start_matches('$');
        if !parameters.iter().any(|parameter| parameter.name == name) {
            return Err(SqlError::new(
                "unknown_parameter",
                format!("${name} is not a parameter of this endpoint"),
            )
            .hint("declare it in the parentheses after the path"));
        }
    }
    let planned = plan(&context, statement, samples).await?;
    let optimized = context.state().optimize(&planned)?;
    Ok(optimized
        .schema()
        .fields()
        .iter()
        .map(|field| Answered {
            name: field.name().clone(),
            data_type: field.data_type().clone(),
            json: is_json(field),
        })
        .collect())
}

/// A value of the parameter's type, for planning.
fn sample(parameter: &Parameter) -> Result<ScalarValue, SqlError> {
    match &parameter.default {
        Some(value) => Ok(value.clone()),
        None => Ok(ScalarValue::new_one(&parameter.data_type)
            .or_else(|_| ScalarValue::new_default(&parameter.data_type))?),
    }
}

/// The values of parameters from what a caller gave.
pub async fn endpoint_values(
    engine: &Engine,
    parameters: &[Parameter],
    given: &HashMap<String, String>,
) -> Result<Vec<(String, ScalarValue)>, SqlError> {
    let mut values = Vec::new();
    for parameter in parameters {
        let Parameter { name, data_type, default, check, .. } = parameter;
        let invalid = |detail: String| SqlError::new("invalid_parameter", detail);
        let value = match (given.get(name), default) {
            (Some(text), _) => value_of(text.trim(), data_type).ok_or_else(|| {
                invalid(format!("parameter {name} must be {}, not \"{text}\"", type_name(data_type)))
            })?,
            (None, Some(default)) => default.clone(),
            (None, None) => return Err(invalid(format!("parameter {name} is required"))),
        };
        if let Some(check) = check
            && !holds(engine, name, check, &value).await?
        {
            return Err(invalid(format!("parameter {name} must satisfy {check}")));
        }
        values.push((name.clone(), value));
    }
    Ok(values)
}

/// The value that a text says.
fn value_of(text: &str, data_type: &DataType) -> Option<ScalarValue> {
    if *data_type == columns::timestamp_type() {
        let micros = time::parse_micros(text)?;
        return Some(ScalarValue::TimestampMicrosecond(Some(micros), Some("UTC".into())));
    }
    // A digit that there is no room for must not be rounded away.
    if let DataType::Decimal128(_, scale) = data_type
        && let Some((_, behind)) = text.split_once('.')
        && let digits = behind.split(['e', 'E']).next().unwrap_or(behind)
        && digits.trim_end_matches('0').len() > usize::from(scale.unsigned_abs())
    {
        return None;
    }
    ScalarValue::try_from_string(text.to_owned(), data_type).ok().filter(|value| !value.is_null())
}

async fn holds(engine: &Engine, name: &str, check: &str, value: &ScalarValue) -> Result<bool, SqlError> {
    let sql = format!("SELECT coalesce(({check}), false) FROM (SELECT $value AS {})", quoted(name));
    let limits = Limits { time: std::time::Duration::from_secs(5), rows: 1, bytes: 1 << 20 };
    let parameters = vec![("value".to_owned(), value.clone())];
    let result = query(engine, Arc::new(Shapes(Catalog::default())), &sql, parameters, limits).await?;
    let Some(batch) = result.batches.iter().find(|batch| batch.num_rows() > 0) else { return Ok(false) };
    Ok(ScalarValue::try_from_array(batch.column(0), 0)? == ScalarValue::Boolean(Some(true)))
}

fn type_name(data_type: &DataType) -> Cow<'static, str> {
    let name = match data_type {
        DataType::Boolean => "true or false",
        DataType::Decimal128(_, scale) => {
            return format!("a number with at most {scale} digits behind the point").into();
        }
        DataType::Float64 => "a number",
        DataType::Timestamp(..) => "a time (RFC 3339, a date, or epoch)",
        DataType::Date32 => "a date (YYYY-MM-DD)",
        other if other.is_integer() => "a whole number",
        _ => "a text",
    };
    name.into()
}

/// A query with who asks in it.
pub(super) fn asked_by(asker: Asker<'_>, query: &Query) -> Box<Query> {
    let mut query = Box::new(query.clone());
    asker.put(&mut *query);
    query
}

/// A query that is known before it is asked, as an endpoint's is, with who asks it and what they ask about.
pub struct Posed<'a> {
    pub(super) engine: &'a Engine,
    pub(super) relations: Arc<dyn Relations>,
    pub(super) query: Box<Query>,
    pub(super) values: Vec<(String, ScalarValue)>,
    pub(super) limits: Limits,
}

impl<'a> Posed<'a> {
    /// A query on somebody's behalf.
    pub fn new(
        engine: &'a Engine,
        relations: Arc<dyn Relations>,
        query: &Query,
        asker: Asker<'_>,
        limits: Limits,
    ) -> Self {
        Self { engine, relations, query: asked_by(asker, query), values: Vec::new(), limits }
    }

    /// The same with values of its parameters.
    pub fn with(self, values: Vec<(String, ScalarValue)>) -> Self {
        Self { values, ..self }
    }

    /// All rows.
    pub async fn rows(self) -> Result<QueryResult, SqlError> {
        let context = context(self.engine, self.relations)?;
        run(&context, as_statement(self.query), self.values, self.limits).await
    }

    /// All rows as they come, however many they are and long it takes.
    pub async fn open(self) -> Result<Rows, SqlError> {
        let context = context(self.engine, self.relations)?;
        open(&context, as_statement(self.query), self.values).await
    }
}

/// The relations of a catalog without their rows.
struct Shapes(Catalog);

impl fmt::Debug for Shapes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shapes")
    }
}

#[async_trait]
impl Relations for Shapes {
    fn names(&self) -> Vec<String> {
        let catalog = &self.0;
        catalog
            .streams
            .keys()
            .chain(catalog.tables.keys())
            .chain(catalog.references.keys())
            .map(ToString::to_string)
            .collect()
    }

    async fn relation(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, SqlError> {
        let bare = name.strip_suffix("$newest").unwrap_or(name);
        let Ok(name) = highwater_event::StreamName::new(bare) else { return Ok(None) };
        let schema = if let Some(entry) = self.0.streams.get(&name) {
            entry.schema.reader_schema()
        } else if let Some(entry) = self.0.tables.get(&name) {
            entry.program.schema().clone()
        } else if let Some(entry) = self.0.references.get(&name) {
            entry.table.rows.schema()
        } else {
            return Ok(None);
        };
        Ok(Some(Arc::new(EmptyTable::new(schema))))
    }
}
