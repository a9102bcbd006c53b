//! Endpoints that write rows of tables: POST makes one, PUT and PATCH change it, DELETE takes it away.
//!
//! An answer has the version of the row as its ETag. A caller that sends it back as If-Match writes nothing when
//! somebody else has changed the row since, and one that sends an Idempotency-Key makes a row once, however often it asks.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::IntoResponse;
use datafusion::catalog::TableProvider;
use datafusion::common::ScalarValue;
use highwater_sql::SqlError;
use highwater_sql::adhoc::{Posed, QueryResult, Relations, endpoint_values};
use highwater_sql::catalog::{Intake, KEY, Parameter, RowWrites, TableEntry, VERSION};
use highwater_sql::dialect::{Asker, RowChange};
use serde_json::{Map, Value, json};

use super::{Asked, first_row, members_of, of_own_tenant, shown};
use crate::http::call::Call;
use crate::http::jobs::plain_members;
use crate::http::problem::{Answer, Problem};
use crate::http::sql::typed;
use crate::node::written::{Changed, RowError, Wanted, whole_number_in};
use crate::node::{Node, NodeRelations, QUERY_LIMITS, Reader};

/// The header by which a request that is sent again is known.
const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// The most characters of it.
const LONGEST_REQUEST: usize = 255;

/// Answers a call that writes a row.
pub async fn answer(
    node: &Arc<Node>,
    call: &Arc<Call>,
    (intake, writes): (&Intake, &RowWrites),
    (path, headers): (&str, &HeaderMap),
    body: &[u8],
) -> Answer {
    let catalog = node.catalog();
    let entry = catalog.tables.get(&intake.into);
    let entry = entry.and_then(|entry| Some((entry, entry.written.as_deref()?)));
    let (entry, written) = entry.ok_or_else(|| Problem::internal("the table of an endpoint is gone"))?;
    let given = members(body)?;
    let nulls: Vec<&String> =
        given.iter().filter(|(_, value)| value.is_null()).map(|(name, _)| name).collect();
    let asked = Asked::of(
        (&writes.parameters, &[]),
        plain_members(&given)?,
        intake.in_path(path).unwrap_or_default(),
    )?;
    let values = values(node, call, writes, &asked.given, &nulls).await?;
    let wanted = Wanted {
        identity: &call.identity,
        change: writes.change,
        values: values.iter().map(|(name, value)| (name.as_str(), value.clone())).collect(),
        version: expected(headers)?,
        request: request_key(headers, writes.change)?,
    };
    let status = match writes.change {
        RowChange::Insert => StatusCode::CREATED,
        RowChange::Update => StatusCode::OK,
        RowChange::Delete => StatusCode::NO_CONTENT,
    };
    call.about(format!("table:{}", intake.into));
    let leaf = |key: &ScalarValue| {
        call.about(format!("table:{}/{key}", intake.into));
        call.leaf(node, status)
    };
    let changed = node.change_row(entry, written, wanted, &leaf).await.map_err(problem)?;
    let Changed { key, rows: Some(rows) } = changed else {
        let answer = json!({"status": "accepted", "message": "the change is in the log; the table does not show it yet"});
        return Ok((StatusCode::ACCEPTED, axum::Json(answer)).into_response());
    };
    if writes.change == RowChange::Delete {
        return Ok(status.into_response());
    }
    let version = whole_number_in(&rows, VERSION);
    let row = returned(node, call, entry, writes, (key.clone(), rows)).await?;
    let body = first_row(&shown(row)?);
    let mut response = typed("application/json", body);
    *response.status_mut() = status;
    let set = response.headers_mut();
    if let Some(tag) = version.and_then(|version| HeaderValue::from_str(&tag(version)).ok()) {
        set.insert(header::ETAG, tag);
    }
    if writes.change == RowChange::Insert {
        let key = percent_encoding::utf8_percent_encode(&key.to_string(), percent_encoding::NON_ALPHANUMERIC)
            .to_string();
        if let Ok(place) = HeaderValue::from_str(&format!("{}/{key}/", intake.path)) {
            set.insert(header::LOCATION, place);
        }
    }
    Ok(response)
}

/// A version as a tag.
pub fn tag(version: i64) -> String {
    format!("\"{version}\"")
}

/// The members of a body; none when there is no body.
fn members(body: &[u8]) -> Result<Map<String, Value>, Problem> {
    if body.trim_ascii().is_empty() { Ok(Map::new()) } else { members_of(body, "columns of the row") }
}

/// The columns that a caller says.
async fn values(
    node: &Node,
    call: &Call,
    writes: &RowWrites,
    given: &HashMap<String, String>,
    nulls: &[&String],
) -> Result<Vec<(String, ScalarValue)>, Problem> {
    let said = |parameter: &&Parameter| !writes.partial || given.contains_key(&parameter.name);
    let parameters: Vec<Parameter> = writes.parameters.iter().filter(said).cloned().collect();
    let mut values = endpoint_values(&node.engine, &parameters, given).await?;
    if writes.partial {
        for parameter in writes.parameters.iter().filter(|parameter| nulls.contains(&&parameter.name)) {
            let null = ScalarValue::try_from(&parameter.data_type).map_err(Problem::internal)?;
            values.push((parameter.name.clone(), null));
        }
    }
    of_own_tenant(call, &parameters, &values)?;
    Ok(values)
}

/// The version in If-Match; any, without it or with `*`.
fn expected(headers: &HeaderMap) -> Result<Option<i64>, Problem> {
    let Some(tag) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let tag = tag.to_str().unwrap_or_default().trim();
    if tag == "*" {
        return Ok(None);
    }
    let version = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')?.parse().ok());
    match version {
        Some(version) => Ok(Some(version)),
        None => {
            Err(Problem::bad_request("invalid_header", format!("If-Match: {tag} is no version of a row"))
                .hint("send back the ETag of an answer, as it was"))
        }
    }
}

fn request_key(headers: &HeaderMap, change: RowChange) -> Result<Option<&str>, Problem> {
    let Some(key) = headers.get(IDEMPOTENCY_KEY).filter(|_| change == RowChange::Insert) else {
        return Ok(None);
    };
    let key = key.to_str().ok().map(str::trim).filter(|key| !key.is_empty() && key.len() <= LONGEST_REQUEST);
    key.map(Some).ok_or_else(|| {
        let detail = format!("Idempotency-Key is a text of at most {LONGEST_REQUEST} ASCII characters");
        Problem::bad_request("invalid_header", detail)
    })
}

fn problem(error: RowError) -> Problem {
    let detail = error.to_string();
    match error {
        RowError::Missing => Problem::not_found("not_found", detail),
        RowError::Exists => Problem::new(StatusCode::CONFLICT, "already_exists", detail),
        RowError::Stale(version) => {
            Problem::new(StatusCode::PRECONDITION_FAILED, "changed_meanwhile", detail)
                .header(header::ETAG, &tag(version))
                .hint("read the row again, and send its ETag as If-Match")
        }
        RowError::Foreign => Problem::new(StatusCode::FORBIDDEN, "foreign_row", detail),
        RowError::Reused => Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "request_key_reused", detail)
            .hint("a request that is not the same needs an Idempotency-Key of its own"),
        RowError::Null(_) => Problem::bad_request("invalid_parameter", detail),
        RowError::Behind => Problem::new(StatusCode::SERVICE_UNAVAILABLE, "table_behind", detail)
            .hint("GET /api/v1/views says whether the table is paused or has failed"),
        RowError::Sql(error) => error.into(),
        RowError::Change(error) => error.into(),
    }
}

/// What is answered of a row, as the caller sees it.
async fn returned(
    node: &Arc<Node>,
    call: &Arc<Call>,
    entry: &TableEntry,
    writes: &RowWrites,
    (key, rows): (ScalarValue, Vec<arrow::record_batch::RecordBatch>),
) -> Result<QueryResult, Problem> {
    let name = entry.program.table().at_version(1);
    let lens = node.lens(&call.identity, "table", &name);
    let relations = Arc::new(OneRow {
        name: name.to_string(),
        row: node.rows_as_seen(&entry.program, rows, &lens)?,
        others: NodeRelations::new(node.clone(), Reader::Endpoint(call.identity.clone())),
    });
    let (asked, endpoint, call) = (node.clone(), writes.returning.clone(), call.clone());
    let question = async move {
        let asker = Asker { user: &call.principal().name, tenant: &call.principal().tenant };
        let values = vec![(KEY.to_owned(), key)];
        let posed = Posed::new(&asked.engine, relations, &endpoint.query, asker, QUERY_LIMITS);
        posed.with(values).rows().await
    };
    Ok(node.ask(question).await?)
}

/// Relations in which a table has one row.
struct OneRow {
    name: String,
    row: Arc<dyn TableProvider>,
    others: NodeRelations,
}

impl fmt::Debug for OneRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OneRow").field("name", &self.name).finish_non_exhaustive()
    }
}

#[async_trait]
impl Relations for OneRow {
    fn names(&self) -> Vec<String> {
        self.others.names()
    }

    fn may_look_up(&self) -> bool {
        self.others.may_look_up()
    }

    async fn relation(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, SqlError> {
        if name == self.name { Ok(Some(self.row.clone())) } else { self.others.relation(name).await }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_a_version() {
        let with = |tag: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_MATCH, HeaderValue::from_static(tag));
            expected(&headers)
        };
        assert_eq!(with("\"7\"").ok(), Some(Some(7)));
        assert_eq!(with("*").ok(), Some(None));
        assert_eq!(expected(&HeaderMap::new()).ok(), Some(None));
        for bad in ["7", "W/\"7\"", "\"x\"", "\"1\", \"2\""] {
            assert!(with(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_members_of_a_body_are_an_object() {
        assert!(members(b" ").unwrap().is_empty());
        assert_eq!(members(b"{\"a\":1}").unwrap().len(), 1);
        assert!(members(b"[1]").is_err() && members(b"{").is_err());
    }

    #[test]
    fn a_request_key_counts_for_new_rows() {
        let mut headers = HeaderMap::new();
        headers.insert(IDEMPOTENCY_KEY, HeaderValue::from_static(" k1 "));
        assert_eq!(request_key(&headers, RowChange::Insert).ok(), Some(Some("k1")));
        assert_eq!(request_key(&headers, RowChange::Update).ok(), Some(None));
        headers.insert(IDEMPOTENCY_KEY, HeaderValue::from_static(" "));
        assert!(request_key(&headers, RowChange::Insert).is_err());
    }
}
