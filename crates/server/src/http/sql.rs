//! Ad-hoc SQL.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use datafusion::common::ScalarValue;
use highwater_event::json::{rows_as_json, value_as_json};
use highwater_sql::adhoc::{self, QueryResult};
use highwater_sql::dialect::sql_type;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use super::call::Call;
use super::problem::{Answer, Problem};
use crate::node::{Node, NodeRelations, QUERY_LIMITS, as_question};

/// A question.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QueryRequest {
    /// SQL; parameters are written `$name`.
    query: String,
    /// Values of the parameters.
    #[serde(default)]
    params: BTreeMap<String, Value>,
}

/// Asks a question in SQL over streams, tables, reference tables and system streams. Read-only.
#[utoipa::path(post, path = "/api/v1/sql", tag = "query", request_body = QueryRequest,
    responses((status = 200, description = "{columns:[{name,type}],rows:[{…}],row_count,took_ms}; by Accept also application/x-ndjson, text/csv or application/vnd.apache.arrow.stream"),
        (status = 400, description = "the query is wrong; `at` points at the word"), (status = 503, description = "stopped by a limit")))]
pub async fn query(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    headers: HeaderMap,
    body: Result<Json<QueryRequest>, JsonRejection>,
) -> Answer {
    let Json(request) = body.map_err(|rejection| {
        Problem::from(rejection).hint("send {\"query\": \"SELECT …\"} as application/json")
    })?;
    let started = Instant::now();
    let parameters = request
        .params
        .into_iter()
        .map(|(name, value)| Ok((name.clone(), scalar(&name, value)?)))
        .collect::<Result<Vec<_>, Problem>>()?;
    let relations = Arc::new(NodeRelations::new(node.clone(), call.reader()));
    let seen = relations.clone();
    let (asked, given, sql) = (node.clone(), request.query.clone(), as_question(&request.query));
    let identity = call.identity.clone();
    let question = async move {
        match asked.explain(&identity, &given).await? {
            Some(explained) => Ok(explained),
            None => adhoc::query(&asked.engine, relations, &sql, parameters, QUERY_LIMITS).await,
        }
    };
    let answer = node.ask(question).await;
    if let Some(applied) = seen.applied() {
        call.saw("lens", applied);
    }
    let result = answer.map_err(|error| {
        let rendered = error.render(&request.query);
        Problem::from(error).with("rendered", rendered.into())
    })?;
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let (content_type, body): (_, Vec<u8>) = if accept.contains(ARROW) {
        (ARROW, arrow_stream(&result)?)
    } else if accept.contains("application/x-ndjson") {
        ("application/x-ndjson", ndjson(&result).into())
    } else if accept.contains("text/csv") {
        ("text/csv; charset=utf-8", csv(&result)?.into())
    } else {
        ("application/json", json(&result, started.elapsed().as_secs_f64() * 1000.0).into())
    };
    call.saw_rows(&node, result.row_count(), &body);
    let mut response = typed(content_type, body);
    // JSON says it in the body, too.
    if result.truncated {
        response.headers_mut().insert("x-truncated", HeaderValue::from_static("true"));
    }
    Ok(response)
}

fn scalar(name: &str, value: Value) -> Result<ScalarValue, Problem> {
    Ok(match value {
        Value::Null => ScalarValue::Null,
        Value::Bool(value) => ScalarValue::Boolean(Some(value)),
        Value::String(text) => ScalarValue::Utf8(Some(text)),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(value), _) => ScalarValue::Int64(Some(value)),
            (None, value) => ScalarValue::Float64(value),
        },
        _ => {
            return Err(Problem::bad_request(
                "invalid_parameter",
                format!("parameter {name} must be a plain value"),
            ));
        }
    })
}

/// The media type of an Arrow IPC stream.
const ARROW: &str = "application/vnd.apache.arrow.stream";

fn arrow_stream(result: &QueryResult) -> Result<Vec<u8>, Problem> {
    let failed = |error: arrow::error::ArrowError| {
        Problem::bad_request("not_as_arrow", format!("the rows can't be written as Arrow: {error}"))
    };
    let mut writer = arrow::ipc::writer::StreamWriter::try_new(Vec::new(), &result.schema).map_err(failed)?;
    for batch in &result.batches {
        writer.write(batch).map_err(failed)?;
    }
    writer.into_inner().map_err(failed)
}

/// A body with its type.
pub fn typed(content_type: &'static str, body: impl IntoResponse) -> Response {
    let mut response = body.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn names(result: &QueryResult) -> Vec<String> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let fields = result.schema.fields().iter();
    fields
        .map(|field| {
            // JSON objects can't hold two members of one name.
            let count = seen.entry(field.name()).or_insert(0);
            *count += 1;
            if *count == 1 { field.name().clone() } else { format!("{}_{count}", field.name()) }
        })
        .collect()
}

/// The rows as the inside of a JSON array.
pub fn rows(result: &QueryResult, names: &[String], between: &str) -> String {
    let mut out = String::new();
    let mut first = true;
    for batch in &result.batches {
        rows_as_json(batch, names, first, between, &mut out);
        first = first && batch.num_rows() == 0;
    }
    out
}

fn json(result: &QueryResult, took_ms: f64) -> String {
    let names = names(result);
    let columns: Vec<Value> = result
        .schema
        .fields()
        .iter()
        .zip(&names)
        .map(|(field, name)| serde_json::json!({"name": name, "type": sql_type(field.data_type())}))
        .collect();
    format!(
        "{{\"columns\":{},\"rows\":[{}],\"row_count\":{},\"truncated\":{},\"took_ms\":{:.3}}}",
        Value::from(columns),
        rows(result, &names, ","),
        result.row_count(),
        result.truncated,
        took_ms
    )
}

fn ndjson(result: &QueryResult) -> String {
    let mut out = rows(result, &names(result), "\n");
    if !out.is_empty() {
        out.push('\n');
    }
    out
}

/// The rows with nested columns as JSON texts: CSV has plain fields only.
pub fn flat(
    batch: &arrow::record_batch::RecordBatch,
) -> Result<arrow::record_batch::RecordBatch, arrow::error::ArrowError> {
    use arrow::array::{Array, ArrayRef, StringArray};
    use arrow::datatypes::{DataType, Field, Schema};
    let columns = batch.schema_ref().fields().iter().zip(batch.columns()).map(|(field, column)| {
        if !field.data_type().is_nested() {
            return (field.as_ref().clone(), column.clone());
        }
        let texts = (0..column.len()).map(|row| {
            let mut text = String::new();
            value_as_json(column, row, &mut text);
            column.is_valid(row).then_some(text)
        });
        let texts: ArrayRef = Arc::new(texts.collect::<StringArray>());
        (Field::new(field.name(), DataType::Utf8, true), texts)
    });
    let (fields, arrays): (Vec<_>, Vec<_>) = columns.unzip();
    arrow::record_batch::RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)
}

fn csv(result: &QueryResult) -> Result<String, Problem> {
    let failed = |error: arrow::error::ArrowError| {
        Problem::bad_request("not_as_csv", format!("the rows can't be written as CSV: {error}"))
    };
    let mut out = Vec::new();
    {
        let mut writer = arrow::csv::WriterBuilder::new().with_header(true).build(&mut out);
        for batch in &result.batches {
            writer.write(&flat(batch).map_err(failed)?).map_err(failed)?;
        }
    }
    if result.row_count() == 0 {
        out = format!("{}\n", names(result).join(",")).into_bytes();
    }
    Ok(String::from_utf8_lossy(&out).into_owned())
}
