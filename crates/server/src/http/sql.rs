//! Ad-hoc SQL.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use datafusion::common::ScalarValue;
use highwater_sql::adhoc::{self, QueryResult, rows_as_json};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use super::problem::{Answer, Problem};
use crate::node::{Node, NodeRelations, QUERY_LIMITS};

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
    responses((status = 200, description = "{columns:[{name,type}],rows:[{…}],row_count,took_ms}; by Accept also application/x-ndjson or text/csv"),
        (status = 400, description = "the query is wrong; `at` points at the word"), (status = 503, description = "stopped by a limit")))]
pub async fn query(
    State(node): State<Arc<Node>>,
    headers: HeaderMap,
    body: Result<Json<QueryRequest>, JsonRejection>,
) -> Answer {
    let Json(request) = body.map_err(|rejection| {
        Problem::bad_request("malformed_json", rejection.body_text())
            .hint("send {\"query\": \"SELECT …\"} as application/json")
    })?;
    let started = Instant::now();
    let parameters = request
        .params
        .into_iter()
        .map(|(name, value)| Ok((name.clone(), scalar(&name, value)?)))
        .collect::<Result<Vec<_>, Problem>>()?;
    let relations = Arc::new(NodeRelations(node.clone()));
    let (asked, sql) = (node.clone(), request.query.clone());
    let answer = node
        .ask(async move { adhoc::query(&asked.engine, relations, &sql, parameters, QUERY_LIMITS).await })
        .await;
    let result = answer.map_err(|error| {
        let rendered = error.render(&request.query);
        Problem::from(error).with("rendered", rendered.into())
    })?;
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    Ok(if accept.contains("application/x-ndjson") {
        typed("application/x-ndjson", ndjson(&result))
    } else if accept.contains("text/csv") {
        typed("text/csv; charset=utf-8", csv(&result)?)
    } else {
        typed("application/json", json(&result, started.elapsed().as_secs_f64() * 1000.0))
    })
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

/// A body with its type.
pub fn typed(content_type: &'static str, body: String) -> Response {
    let mut response = body.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn names(result: &QueryResult) -> Vec<String> {
    result.schema.fields().iter().map(|field| field.name().clone()).collect()
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
        .map(|field| serde_json::json!({"name": field.name(), "type": type_name(field.data_type())}))
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

fn csv(result: &QueryResult) -> Result<String, Problem> {
    let failed = |error: arrow::error::ArrowError| {
        Problem::bad_request("not_as_csv", format!("the rows can't be written as CSV: {error}"))
    };
    let mut out = Vec::new();
    {
        let mut writer = arrow::csv::WriterBuilder::new().with_header(true).build(&mut out);
        for batch in &result.batches {
            writer.write(batch).map_err(failed)?;
        }
    }
    if result.row_count() == 0 {
        out = format!("{}\n", names(result).join(",")).into_bytes();
    }
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// A type as SQL users write it.
pub fn type_name(data_type: &arrow::datatypes::DataType) -> String {
    use arrow::datatypes::DataType;
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "TEXT".into(),
        DataType::Boolean => "BOOLEAN".into(),
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => "SMALLINT".into(),
        DataType::Int32 | DataType::UInt16 => "INT".into(),
        DataType::Int64 | DataType::UInt32 | DataType::UInt64 => "BIGINT".into(),
        DataType::Float16 | DataType::Float32 | DataType::Float64 => "DOUBLE".into(),
        DataType::Decimal128(precision, scale) => format!("DECIMAL({precision},{scale})"),
        DataType::Timestamp(..) => "TIMESTAMP".into(),
        DataType::Date32 | DataType::Date64 => "DATE".into(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "BYTES".into(),
        DataType::Struct(fields) => {
            let members: Vec<String> = fields
                .iter()
                .map(|field| format!("{} {}", field.name(), type_name(field.data_type())))
                .collect();
            format!("STRUCT<{}>", members.join(", "))
        }
        DataType::List(element) => format!("ARRAY<{}>", type_name(element.data_type())),
        other => other.to_string(),
    }
}
