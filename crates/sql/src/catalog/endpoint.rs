//! Endpoints: queries that are published as REST resources, and the paths that they are found at.

use std::collections::{BTreeMap, BTreeSet};

use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::sql::sqlparser::ast::{Expr, GroupByExpr, Query, SelectItem, SetExpr, TableFactor, Value};
use highwater_event::{StreamName, columns};

use super::Catalog;
use super::written::RowWrites;
use crate::adhoc;
use crate::dialect::{Again, Answers, EndpointParameter, Method, SqlError, Takes, parse_query, quoted};
use crate::session::Engine;

/// A query published as a REST resource.
#[derive(Debug)]
pub struct Endpoint {
    /// Path without a slash at its end; parameters in it are `{name}`.
    pub path: String,
    /// Parameters, with checked defaults.
    pub parameters: Vec<Parameter>,
    /// The permission that a caller needs.
    pub permission: String,
    /// What it makes of the query's rows.
    pub answers: Answers,
    /// It is asked with POST, with its parameters in the body.
    pub posted: bool,
    /// The query.
    pub query: Box<Query>,
    /// Columns of its rows.
    pub columns: Vec<Answered>,
    /// Names that the query reads.
    pub reads: BTreeSet<StreamName>,
    /// The statement.
    pub text: String,
}

/// A column of what an endpoint answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// Its name.
    pub name: String,
    /// Its type.
    pub data_type: DataType,
    /// Its texts are JSON, and shown as what they say.
    pub json: bool,
}

/// A path that events come in at, or rows are written at.
#[derive(Debug)]
pub struct Intake {
    /// How it is called.
    pub method: Method,
    /// Path without a slash at its end; parameters in it are `{name}`.
    pub path: String,
    /// The stream that events go to, or the table that is written.
    pub into: StreamName,
    /// What comes in.
    pub taking: Taking,
    /// The statement.
    pub text: String,
}

/// What a path takes in.
#[derive(Debug)]
pub enum Taking {
    /// The one in the body.
    One,
    /// Those in the body.
    Several,
    /// Old ones of the stream, which happen again now.
    Again(Replays),
    /// A row of a table.
    Row(RowWrites),
    /// The name of a model that is to be trained.
    Training {
        /// The permission that a caller needs.
        permission: String,
    },
}

/// Old events that happen again.
#[derive(Debug)]
pub struct Replays {
    /// Members of the body, with checked defaults.
    pub parameters: Vec<Parameter>,
    /// The permission that a caller needs.
    pub permission: String,
    /// Which events, as SQL with parameters `$name`.
    pub condition: Option<String>,
    /// What is said of them beside what they say.
    pub set: BTreeMap<String, serde_json::Value>,
    /// All that fit, as a job, instead of the first one.
    pub job: bool,
}

impl Intake {
    /// The permission that a caller needs, as lists show it.
    pub fn requires(&self) -> &str {
        match &self.taking {
            Taking::One | Taking::Several => "ingest",
            Taking::Again(replays) => &replays.permission,
            Taking::Row(writes) => &writes.permission,
            Taking::Training { permission } => permission,
        }
    }

    /// Values of the parameters in a path that it is found at, as they were sent.
    pub fn in_path<'a>(&'a self, path: &'a str) -> Option<InPath<'a>> {
        fitted(&self.path, path)
    }
}

/// A parameter of an endpoint.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// Its type.
    pub data_type: DataType,
    /// It names a tenant, which must be one that the caller is of.
    pub tenant: bool,
    /// The value when it is not given; without one it is required.
    pub default: Option<ScalarValue>,
    /// A condition on it, as SQL.
    pub check: Option<String>,
}

/// Parameters that a path says, by name, as they were sent.
pub type InPath<'a> = Vec<(&'a str, &'a str)>;

/// Whether every path that one template fits is one that the other fits, too.
pub(super) fn same_places(one: &str, other: &str) -> bool {
    let open = |part: &str| part.starts_with('{');
    let mut parts = other.split('/');
    let same = one
        .split('/')
        .all(|part| parts.next().is_some_and(|other| part == other || (open(part) && open(other))));
    same && parts.next().is_none()
}

/// Values of a template's parameters in a path that it fits, as they were sent.
pub(super) fn fitted<'a>(template: &'a str, path: &'a str) -> Option<InPath<'a>> {
    let mut given = path.split('/');
    let mut values = Vec::new();
    for part in template.split('/') {
        let value = given.next()?;
        match part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
            Some(name) if !value.is_empty() => values.push((name, value)),
            Some(_) => return None,
            None if part != value => return None,
            None => {}
        }
    }
    given.next().is_none().then_some(values)
}

impl Endpoint {
    /// Values of the parameters in a path that it is found at, as they were sent.
    pub fn in_path<'a>(&'a self, path: &'a str) -> Option<InPath<'a>> {
        fitted(&self.path, path)
    }
}

impl Catalog {
    /// Plans a path that events come in at.
    pub(super) async fn plan_intake(
        &self,
        engine: &Engine,
        (method, path, stream): (Method, String, StreamName),
        takes: Takes,
        text: String,
    ) -> Result<Intake, SqlError> {
        if let Takes::Training { permission } = takes {
            let taking = Taking::Training { permission };
            return Ok(Intake { method, path, into: stream, taking, text });
        }
        if let Takes::Row(writes) = takes {
            return self.plan_writes(engine, (method, path, stream), *writes, text).await;
        }
        let entry = self.streams.get(&stream).ok_or_else(|| self.no_stream(&stream))?;
        if !entry.schema.raw {
            return Err(SqlError::new(
                "stream_is_derived",
                format!("stream \"{stream}\" is written by the engine; events can't be sent to it"),
            ));
        }
        let taking = match takes {
            Takes::One | Takes::Row(_) | Takes::Training { .. } => Taking::One,
            Takes::Several => Taking::Several,
            Takes::Again(again) => {
                let Again { parameters, permission, condition, set, job } = *again;
                let options = &entry.schema.options;
                let dated = options.event_time.as_ref().is_some_and(|time| options.event_id.contains(time));
                if !dated && !options.event_id.is_empty() {
                    return Err(SqlError::unsupported(format!(
                        "events of \"{stream}\" that happen again would be taken for the ones that they were: their id holds no time"
                    ))
                    .hint("name the event time among the columns of event_id"));
                }
                let parameters = parameters.into_iter().map(parameter).collect::<Result<Vec<_>, _>>()?;
                let condition = condition.map(|condition| condition.to_string());
                let clause = condition.as_ref().map(|it| format!(" WHERE {it}")).unwrap_or_default();
                let question = format!("SELECT {} FROM {}{clause}", columns::OFFSET, quoted(stream.as_str()));
                adhoc::check_endpoint(engine, self, &parameters, &*parse_query(&question)?).await?;
                Taking::Again(Replays { parameters, permission, condition, set, job })
            }
        };
        Ok(Intake { method, path, into: stream, taking, text })
    }

    /// An endpoint's query must answer what its answers are made of.
    pub(super) fn check_answers(
        &self,
        answers: &Answers,
        query: &Query,
        answered: &[Answered],
    ) -> Result<(), SqlError> {
        let time = [(columns::EVENT_TIME, columns::timestamp_type())];
        let place = [(columns::PARTITION, DataType::Int32), (columns::OFFSET, DataType::Int64)];
        let (what, needed) = match answers {
            Answers::Rows
            | Answers::Object
            | Answers::File
            | Answers::Numbered { .. }
            | Answers::Live { .. } => return Ok(()),
            Answers::Page { .. } | Answers::Hits => {
                if !is_of_one_stream(query) {
                    return Err(SqlError::unsupported(
                        "a page is of the rows of one stream, each once: it has no JOIN, UNION, GROUP BY, DISTINCT or WITH",
                    )
                    .hint("derive a stream with what it needs, and read that; lookup(…) reads reference tables"));
                }
                let what = if *answers == Answers::Hits { "search" } else { "PAGE" };
                (what, [&time[..], &place[..]].concat())
            }
            Answers::Proof { stream } => {
                let entry = self.streams.get(stream).ok_or_else(|| self.no_stream(stream))?;
                if !entry.schema.options.proof {
                    return Err(SqlError::new(
                        "not_proven",
                        format!("the events of \"{stream}\" are not sealed, so none of them can be proven"),
                    )
                    .hint("declare the stream WITH (proof = true)"));
                }
                ("PROOF", place.to_vec())
            }
        };
        let has = |(name, data_type): &(&str, DataType)| {
            answered.iter().any(|found| found.name == *name && found.data_type == *data_type)
        };
        match needed.iter().find(|needed| !has(needed)) {
            None => Ok(()),
            Some((missing, _)) => {
                let detail =
                    format!("the query of a {what} must answer the column {missing} as it is in the stream");
                let names: Vec<&str> = needed.iter().map(|(name, _)| *name).collect();
                Err(SqlError::new("invalid_schema", detail)
                    .hint(format!("select {} of the stream, too; they are not shown", names.join(", "))))
            }
        }
    }
}

/// Whether a query answers rows of one stream, each once, with the engine's own columns as they are.
fn is_of_one_stream(query: &Query) -> bool {
    let SetExpr::Select(select) = &*query.body else { return false };
    let groups = match &select.group_by {
        GroupByExpr::Expressions(expressions, modifiers) => !expressions.is_empty() || !modifiers.is_empty(),
        GroupByExpr::All(_) => true,
    };
    let plain = matches!(select.from.as_slice(), [from] if from.joins.is_empty() && matches!(from.relation, TableFactor::Table { args: None, .. }));
    // Nothing else may stand there under the name of a place.
    let own = select.projection.iter().all(|item| match item {
        SelectItem::ExprWithAlias { alias, .. } => !alias.value.starts_with('_'),
        _ => true,
    });
    query.with.is_none()
        && query.pipe_operators.is_empty()
        && plain
        && own
        && !groups
        && select.distinct.is_none()
        && select.having.is_none()
}

pub(super) fn parameter(declared: EndpointParameter) -> Result<Parameter, SqlError> {
    let EndpointParameter { name, data_type, tenant, default, check } = declared;
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
    Ok(Parameter { name, data_type, tenant, default, check: check.map(|check| check.to_string()) })
}
