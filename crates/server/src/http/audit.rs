//! The audit trail: pages of it, the tree over it, proofs, and a copy that anybody can verify.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use datafusion::common::ScalarValue;
use futures::StreamExt;
use highwater_audit::tree::TILE;
use highwater_audit::{AuditError, Checkpoint, SignedNote, export, leaf};
use highwater_auth::Asked;
use highwater_event::time;
use highwater_lake::Moment;
use highwater_log::LogBatch;
use highwater_log::audit::{self, AUDIT};
use highwater_sql::adhoc::{self, Lens, QueryResult};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::call::Call;
use super::endpoints::once;
use super::problem::{Answer, Problem};
use super::sql::{rows, typed};
use super::streams;
use crate::node::{Condition, Fixed, Node, QUERY_LIMITS, StreamSnapshot};

/// Entries on a page of the first application.
const PAGE: usize = 20;
/// Entries that one call answers at most.
const MOST: usize = 1000;
/// Entries that are read for a piece of a copy.
const PIECE: usize = 4096;

impl From<AuditError> for Problem {
    fn from(error: AuditError) -> Self {
        match error {
            AuditError::Missing(detail) => Self::not_found("not_in_the_tree", detail),
            AuditError::Changed(detail) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "integrity", detail),
            AuditError::Store(error) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "log_unavailable", error.to_string())
            }
        }
    }
}

/// Conditions on entries, with their values.
#[derive(Default)]
struct Wanted {
    clauses: Vec<String>,
    values: Vec<(String, ScalarValue)>,
}

impl Wanted {
    fn add(&mut self, clause: impl FnOnce(&str) -> String, value: ScalarValue) {
        let name = format!("p{}", self.values.len());
        self.clauses.push(clause(&format!("${name}")));
        self.values.push((name, value));
    }

    fn text(&mut self, clause: impl FnOnce(&str) -> String, value: &str) {
        self.add(clause, ScalarValue::Utf8(Some(value.to_owned())));
    }

    fn clause(&self) -> String {
        if self.clauses.is_empty() { String::new() } else { format!(" WHERE {}", self.clauses.join(" AND ")) }
    }

    /// Only what a caller may see: everything, their tenant's, or their own.
    fn visible(node: &Node, call: &Call) -> Self {
        let mut wanted = Self::default();
        let principal = call.principal();
        if !node.allows(&call.identity, Asked::node("read_audit")) {
            wanted.text(|value| format!("actor = {value}"), &principal.name);
        }
        if !principal.everywhere && principal.tenant.as_ref() != highwater_event::identity::HOME {
            wanted.text(|value| format!("tenant = {value}"), &principal.tenant);
        }
        wanted
    }
}

/// The trail at one moment.
struct Trail {
    node: Arc<Node>,
    snapshot: StreamSnapshot,
    schema: Arc<highwater_event::StreamSchema>,
}

impl Trail {
    async fn now(node: &Arc<Node>) -> Result<Self, Problem> {
        let schema = streams::find(node, AUDIT)?.schema.clone();
        let snapshot = node.stream_snapshot(&schema, Moment::Now).await?;
        Ok(Self { node: node.clone(), snapshot, schema })
    }

    async fn count(&self, wanted: &Wanted) -> Result<u64, Problem> {
        let condition =
            Condition { sql: &wanted.clause(), values: &wanted.values, day: None, lens: &Lens::default() };
        Ok(self.node.count(&self.schema, &self.snapshot, &condition).await?)
    }

    async fn newest(&self, wanted: &Wanted, limit: usize, skip: usize) -> Result<QueryResult, Problem> {
        let relation =
            self.snapshot.clone().relation(&self.node.engine, &self.schema, None, Lens::default())?;
        let fixed = Arc::new(Fixed::new("rows", relation));
        let sql = format!(
            "SELECT _offset AS id, _event_time AS \"time\", actor, credential, tenant, action, resource, outcome, status, method, path, request_id, address, latency_us, body, body_hash, seen FROM rows{} ORDER BY _event_time DESC, _offset DESC LIMIT {limit} OFFSET {skip}",
            wanted.clause()
        );
        let (node, values) = (self.node.clone(), wanted.values.clone());
        Ok(self
            .node
            .ask(async move { adhoc::query(&node.engine, fixed, &sql, values, QUERY_LIMITS).await })
            .await?)
    }
}

fn objects(result: &QueryResult) -> Result<Vec<Map<String, Value>>, Problem> {
    let names = result.names();
    serde_json::from_str(&format!("[{}]", rows(result, &names, ","))).map_err(Problem::internal)
}

fn number(given: &BTreeMap<String, String>, name: &str, usual: usize, most: usize) -> Result<usize, Problem> {
    match given.get(name) {
        None => Ok(usual),
        Some(text) => match text.parse() {
            Ok(number) if (1..=most).contains(&number) => Ok(number),
            _ => Err(Problem::parameter(name, format!("\"{text}\" is not a number from 1 to {most}"))),
        },
    }
}

fn instant(given: &BTreeMap<String, String>, name: &str) -> Result<Option<ScalarValue>, Problem> {
    let Some(text) = given.get(name) else { return Ok(None) };
    let micros = time::parse_micros(text);
    let micros = micros.ok_or_else(|| {
        Problem::parameter(name, format!("\"{text}\" is not a time (RFC 3339, a date, or epoch)"))
    })?;
    Ok(Some(ScalarValue::TimestampMicrosecond(Some(micros), Some("UTC".into()))))
}

fn only(given: &BTreeMap<String, String>, known: &[&str]) -> Result<(), Problem> {
    let Some(name) = given.keys().find(|name| !known.contains(&name.as_str())) else { return Ok(()) };
    let problem = Problem::bad_request("unknown_parameter", format!("there is no filter \"{name}\""));
    Err(match highwater_event::name::nearest(name, known.iter().copied()) {
        Some(near) => problem.hint(format!("did you mean {near}?")),
        None => problem,
    })
}

/// A pattern for texts that contain another.
fn contains(text: &str) -> String {
    format!("%{}%", text.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_"))
}

/// A page of the trail, newest first, as the first application shows it.
#[utoipa::path(get, path = "/api/audit-logs/", tag = "audit",
    params(("page" = Option<u32>, Query, description = "from 1"), ("path" = Option<String>, Query, description = "what the path contains"),
        ("user_id" = Option<String>, Query, description = "name of a user")),
    responses((status = 200, description = "{count, total_pages, current_page, results: [{id, timestamp, user, path, method, request_body}]}"),
        (status = 404, description = "there is no such page")))]
pub async fn pages(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    Query(given): Query<Vec<(String, String)>>,
) -> Answer {
    let given = once(given)?;
    only(&given, &["page", "path", "user_id"])?;
    let page = number(&given, "page", 1, usize::MAX / PAGE)?;
    let mut wanted = Wanted::visible(&node, &call);
    // Calls; acts of the engine and of the command line have no path.
    wanted.clauses.push("path <> ''".into());
    if let Some(path) = given.get("path") {
        wanted.text(|value| format!("path LIKE {value}"), &contains(path));
    }
    if let Some(user) = given.get("user_id") {
        let user = if user == "Anonymous" { "anonymous" } else { user };
        wanted.text(|value| format!("actor = {value}"), user);
    }
    let trail = Trail::now(&node).await?;
    let count = trail.count(&wanted).await? as usize;
    let pages = count.div_ceil(PAGE).max(1);
    if page > pages {
        let detail = format!("there is no page {page}; the last one is {pages}");
        return Err(Problem::not_found("page_not_found", detail));
    }
    let found = trail.newest(&wanted, PAGE, (page - 1) * PAGE).await?;
    let results: Vec<Value> = objects(&found)?
        .into_iter()
        .map(|entry| {
            let user =
                if entry["actor"] == "anonymous" { json!("Anonymous") } else { entry["actor"].clone() };
            json!({"id": entry["id"], "timestamp": entry["time"], "user": user, "path": entry["path"],
                "method": entry["method"], "request_body": entry["body"]})
        })
        .collect();
    let body =
        json!({"count": count, "total_pages": pages, "current_page": page, "results": results}).to_string();
    call.saw_rows(&node, results.len(), body.as_bytes());
    Ok(typed("application/json", body))
}

/// The newest entries: a client's own, or all for those who read the trail.
#[utoipa::path(get, path = "/api/v1/audit/logs", tag = "audit",
    params(("limit" = Option<u32>, Query, description = "50 when nothing is said, at most 1000"), ("endpoint" = Option<String>, Query, description = "what the path contains; `failed` finds what did not succeed"),
        ("client_id" = Option<String>, Query, description = "a client, or the name of a user"), ("from" = Option<String>, Query, description = "first time"), ("to" = Option<String>, Query, description = "end; an entry at it is left out"),
        ("before" = Option<u64>, Query, description = "entries before this id: the `next` of the last answer")),
    responses((status = 200, description = "{logs: […], count, next}")))]
pub async fn logs(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    Query(given): Query<Vec<(String, String)>>,
) -> Answer {
    let given = once(given)?;
    only(&given, &["limit", "endpoint", "client_id", "from", "to", "before"])?;
    let limit = number(&given, "limit", 50, MOST)?;
    let mut wanted = Wanted::visible(&node, &call);
    match given.get("endpoint").map(String::as_str) {
        None => {}
        Some("failed") => wanted.clauses.push("outcome <> 'allowed'".into()),
        Some(path) => wanted.text(|value| format!("path LIKE {value}"), &contains(path)),
    }
    if let Some(client) = given.get("client_id") {
        wanted.text(|value| format!("(actor = {value} OR actor = 'client:' || {value})"), client);
    }
    if let Some(from) = instant(&given, "from")? {
        wanted.add(|value| format!("_event_time >= {value}"), from);
    }
    if let Some(to) = instant(&given, "to")? {
        wanted.add(|value| format!("_event_time < {value}"), to);
    }
    if let Some(before) = given.get("before") {
        let before = before
            .parse()
            .ok()
            .filter(|before| *before >= 0_i64)
            .ok_or_else(|| Problem::parameter("before", format!("\"{before}\" is not an id")))?;
        wanted.add(|value| format!("_offset < {value}"), ScalarValue::Int64(Some(before)));
    }
    let found = Trail::now(&node).await?.newest(&wanted, limit, 0).await?;
    let mut logs = objects(&found)?;
    for entry in &mut logs {
        entry.insert("timestamp".into(), entry["time"].clone());
        entry.insert("endpoint".into(), entry["path"].clone());
    }
    let next = if logs.len() == limit { logs.last().map(|entry| entry["id"].clone()) } else { None };
    let body = json!({"logs": logs, "count": logs.len(), "next": next}).to_string();
    call.saw_rows(&node, logs.len(), body.as_bytes());
    Ok(typed("application/json", body))
}

fn text(body: String) -> Response {
    typed("text/plain; charset=utf-8", body)
}

/// A checkpoint, which will be another one soon.
fn newest(note: &SignedNote) -> Response {
    let mut response = text(note.to_string());
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

/// The newest checkpoint of the tree, signed (c2sp.org/tlog-checkpoint).
#[utoipa::path(get, path = "/audit/checkpoint", tag = "audit", security(()), responses((status = 200, description = "a signed note", content_type = "text/plain")))]
pub async fn checkpoint(State(node): State<Arc<Node>>) -> Answer {
    let tree = node.tree.clone();
    let note = node.machine.scheduler.work(move || tree.checkpoint()).await.map_err(Problem::internal)??;
    Ok(newest(&note))
}

/// What checkpoints are verified with, one key a line.
#[utoipa::path(get, path = "/audit/keys", tag = "audit", security(()), responses((status = 200, description = "verifier keys", content_type = "text/plain")))]
pub async fn keys(State(node): State<Arc<Node>>) -> Response {
    text(node.tree.verifiers().iter().map(|key| format!("{key}\n")).collect())
}

/// The newest checkpoint that witnesses have signed, too (c2sp.org/tlog-cosignature).
#[utoipa::path(get, path = "/audit/witnessed", tag = "audit", security(()),
    responses((status = 200, description = "a signed note", content_type = "text/plain"), (status = 404, description = "no witness has signed yet")))]
pub async fn witnessed(State(node): State<Arc<Node>>) -> Answer {
    let note = node.tree.witnessed().ok_or_else(|| {
        Problem::not_found("not_witnessed", "no witness has signed a checkpoint yet")
            .hint("name witnesses with the setting audit.witnesses")
    })?;
    Ok(newest(&note))
}

/// What the keys have signed beside checkpoints: that another key takes over, that old entries are gone.
#[utoipa::path(get, path = "/audit/statements", tag = "audit", security(()), responses((status = 200, description = "signed notes, one behind the other", content_type = "text/plain")))]
pub async fn statements(State(node): State<Arc<Node>>) -> Response {
    text(node.tree.statements())
}

/// How the key is changed.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyChange {
    /// The old key signs no more from now on, because others may have it. Otherwise it signs along until the next change.
    #[serde(default)]
    at_once: bool,
}

/// Signs the trail with a new key from now on.
#[utoipa::path(post, path = "/api/v1/audit/keys/rotate", tag = "audit", request_body = KeyChange,
    responses((status = 200, description = "{key: the new verifier key, at_once}")))]
pub async fn rotate_key(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    body: Result<Json<KeyChange>, JsonRejection>,
) -> Answer {
    let Json(KeyChange { at_once }) = body?;
    call.about("stream:_audit");
    let changed = node.change_audit_key(at_once, call.leaf(&node, StatusCode::OK)).await;
    let key = changed.map_err(|error| Problem::internal(format!("{error:#}")))?;
    Ok(Json(json!({"key": key, "at_once": at_once})).into_response())
}

/// A tile of the tree, or the commitments of 256 entries (c2sp.org/tlog-tiles).
#[utoipa::path(get, path = "/audit/tile/{path}", tag = "audit", security(()), params(("path" = String, Path, description = "<level>/<index> or entries/<index>, each perhaps with .p/<width>")),
    responses((status = 200, description = "hashes", content_type = "application/octet-stream"), (status = 404, description = "there is no such tile yet")))]
pub async fn tile(State(node): State<Arc<Node>>, Path(path): Path<String>) -> Answer {
    let (tree, wanted) = (node.tree.clone(), path.clone());
    let found =
        node.machine.scheduler.work(move || tree.resource(&wanted)).await.map_err(Problem::internal)??;
    let Some(bytes) = found else {
        return Err(Problem::not_found("tile_not_found", format!("there is no tile {path}")));
    };
    let mut response = typed("application/octet-stream", bytes);
    let forever = HeaderValue::from_static("public, max-age=31536000, immutable");
    response.headers_mut().insert(header::CACHE_CONTROL, forever);
    Ok(response)
}

/// Rows of the trail in the log or the lake, from an entry on.
async fn read(node: &Arc<Node>, from: u64, most: usize) -> Result<Vec<LogBatch>, Problem> {
    let log = node.log().clone();
    let read = node.machine.scheduler.work(move || log.read(&audit::partition(), from, most)).await;
    read.map_err(Problem::internal)?.map_err(|error| Problem::internal(error.to_string()))
}

/// One entry with its salt and the line that an export has of it.
#[utoipa::path(get, path = "/api/v1/audit/entries/{id}", tag = "audit", params(("id" = u64, Path, description = "place of an entry")),
    responses((status = 200, description = "{entry, index, salt}"), (status = 404, description = "no such entry")))]
pub async fn entry(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    Path(id): Path<String>,
) -> Answer {
    find(&node, &call, place(&id)?).await.map(|line| typed("application/json", line))
}

fn place(id: &str) -> Result<u64, Problem> {
    id.parse().map_err(|_| Problem::not_found("entry_not_found", format!("there is no entry \"{id}\"")))
}

/// The line of an entry that the caller may see.
async fn find(node: &Arc<Node>, call: &Call, id: u64) -> Result<String, Problem> {
    call.about(format!("entry:{id}"));
    let missing = || Problem::not_found("entry_not_found", format!("there is no entry {id}"));
    if id >= node.log().end(&audit::partition()) {
        return Err(missing());
    }
    let mut wanted = Wanted::visible(node, call);
    if id < node.tree.pruned() {
        // Whose it was is not known any more: only whoever may see all of them learns that it was there.
        if !wanted.clauses.is_empty() {
            return Err(missing());
        }
        return gone(node, id).ok_or_else(missing);
    }
    wanted.add(|value| format!("_offset = {value}"), ScalarValue::Int64(Some(id as i64)));
    if Trail::now(node).await?.newest(&wanted, 1, 0).await?.row_count() == 0 {
        return Err(missing());
    }
    let batches = read(node, id, 1).await?;
    let batch = batches.into_iter().find_map(|batch| batch.from_offset(id)).ok_or_else(missing)?;
    let record = leaf::records(&batch.rows.slice(0, 1))?.pop().ok_or_else(missing)?;
    Ok(export::line(id, &record))
}

/// The line of an entry of which only the commitment is there.
fn gone(node: &Node, id: u64) -> Option<String> {
    let commitments = node.tree.bundle(id / TILE).ok()?;
    Some(export::erased_line(id, commitments.get((id % TILE) as usize)?))
}

/// That an entry is in the tree: a proof that is verified without this node (c2sp.org/tlog-proof).
#[utoipa::path(get, path = "/api/v1/audit/entries/{id}/proof", tag = "audit", params(("id" = u64, Path, description = "place of an entry")),
    responses((status = 200, description = "a proof with its signed checkpoint", content_type = "text/plain"), (status = 404, description = "no such entry, or not in the tree yet")))]
pub async fn proof(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    Path(id): Path<String>,
) -> Answer {
    let id = place(&id)?;
    find(&node, &call, id).await?;
    let tree = node.tree.clone();
    let proof = node.machine.scheduler.work(move || tree.proof(id)).await.map_err(Problem::internal)??;
    Ok(text(proof.text()))
}

/// The entries of a checkpoint's tree, a line for each: what `highwater audit export` puts into a folder.
#[utoipa::path(get, path = "/api/v1/audit/export", tag = "audit", params(("size" = Option<u64>, Query, description = "entries; those of the newest checkpoint when nothing is said")),
    responses((status = 200, description = "application/x-ndjson of {entry, index, salt}"), (status = 404, description = "there are not so many entries")))]
pub async fn export(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    Query(given): Query<Vec<(String, String)>>,
) -> Answer {
    // Whoever reads the trail of the owner's tenant reads that of every tenant: they see the entries by SQL, too.
    if !call.principal().everywhere && call.principal().tenant.as_ref() != highwater_event::identity::HOME {
        let detail = "the whole trail is for auditors of the node's owner";
        return Err(
            Problem::new(StatusCode::FORBIDDEN, "forbidden", detail).with("permission", "read_audit".into())
        );
    }
    let given = once(given)?;
    only(&given, &["size"])?;
    let newest = Checkpoint::parse(&node.tree.checkpoint()?.text)?.size;
    let size = match given.get("size") {
        None => newest,
        Some(text) => {
            text.parse().map_err(|_| Problem::parameter("size", format!("\"{text}\" is not a number")))?
        }
    };
    if size > newest {
        return Err(Problem::not_found(
            "not_in_the_tree",
            format!("the newest checkpoint has {newest} entries"),
        ));
    }
    call.saw("entries", size);
    let pieces = futures::stream::unfold(Some(0), move |next| {
        let node = node.clone();
        async move {
            let from = next.filter(|from| *from < size)?;
            Some(match piece(&node, from, size).await {
                Ok((text, next)) => (Ok(Bytes::from(text)), Some(next)),
                Err(problem) => {
                    let detail = problem.summary();
                    tracing::error!(%detail, "an export of the audit trail was cut short");
                    (Err(std::io::Error::other(detail.to_string())), None)
                }
            })
        }
    });
    let mut response = Body::from_stream(pieces.fuse()).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    Ok(response)
}

async fn piece(node: &Arc<Node>, from: u64, size: u64) -> Result<(String, u64), Problem> {
    let (mut text, mut next) = (String::new(), from);
    let pruned = node.tree.pruned().min(size);
    while next < pruned && next < from + PIECE as u64 {
        // A bundle at a time; the last one may be cut by the size that is asked for.
        let commitments = node.tree.bundle(next / TILE)?;
        let wanted = commitments.iter().skip((next % TILE) as usize).take((pruned - next) as usize);
        let before = next;
        for commitment in wanted {
            text.push_str(&export::erased_line(next, commitment));
            next += 1;
        }
        if next == before {
            return Err(Problem::internal(format!("entry {next} is missing")));
        }
    }
    if next > from {
        return Ok((text, next));
    }
    for batch in read(node, from, PIECE).await? {
        if next == size {
            break;
        }
        let Some(batch) = batch.from_offset(next) else { continue };
        if batch.base != next {
            return Err(Problem::internal(format!("entry {next} is missing")));
        }
        for record in leaf::records(&batch.rows)? {
            if next < size {
                text.push_str(&export::line(next, &record));
                next += 1;
            }
        }
    }
    if next == from {
        Err(Problem::internal(format!("entry {from} can't be read")))
    } else {
        Ok((text, next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use highwater_log::reader::RowReader;

    #[test]
    fn records_are_the_same_from_log_and_as_readers_see_them() {
        let entry =
            audit::Entry { actor: "ada".into(), status: Some(200), salt: [3; 16], ..Default::default() };
        let rows = audit::append(&[entry]).unwrap().rows;
        let batch = LogBatch { base: 0, recorded_at: 5, rows };
        let seen = RowReader::new(&audit::schema()).read(0, &batch).unwrap();
        assert_eq!(leaf::records(&batch.rows).unwrap(), leaf::records(&seen).unwrap());
    }

    #[test]
    fn patterns_are_taken_as_texts() {
        assert_eq!(contains("50%_a\\"), "%50\\%\\_a\\\\%");
    }
}
