//! Dead letters: what could not be taken, why, and what is done about it.
//!
//! A letter that is sent again is an event like any other, brought on behalf of whoever brought it first, with a link to
//! the letter, `_retry_of`. Event, resolution and entry of the audit trail are one commit, so that a letter is sent again
//! once, whatever happens between.

use std::sync::Arc;

use async_trait::async_trait;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::{Extension, Json};
use datafusion::common::ScalarValue;
use highwater_auth::Asked;
use highwater_event::identity::HOME;
use highwater_event::{Offset, Principal, StreamPartition, StreamSchema, columns, time};
use highwater_ingest::{Format, Outcome, Submission, Verdict};
use highwater_log::dead_letter::{DEAD_LETTERS, DeadLetter};
use highwater_sql::SqlError;
use highwater_sql::adhoc::{self, QueryResult};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::call::Call;
use super::jobs::{Offered, members};
use super::problem::{Answer, Problem};
use super::sql::{rows, typed};
use super::{bulk, events, streams};
use crate::node::jobs::{Kind, Order, Progress, Setback, Step, Work};
use crate::node::{Node, NodeRelations, QUERY_LIMITS, RESOLUTIONS, Resolution, Resolved, is_shared};

/// The member that links an event to the letter that it was.
const LINK: &str = "_retry_of";
/// Letters that one call sends again.
const AT_ONCE: usize = 10_000;
/// Letters that a job sends between two looks at whether it is to end.
const IN_ONE_STEP: usize = 200;
/// Letters that are counted at most before a job begins.
const MOST: usize = 100_000;
/// Results that the answer to such a call lists.
const LISTED: usize = 1_000;

/// Which letters.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields, default)]
pub struct Which {
    /// `open` when nothing is said, `retried`, `dropped` or `all`.
    state: Option<String>,
    /// The stream that it was sent to or read from.
    stream: Option<String>,
    /// `door`, or the name of a view.
    source: Option<String>,
    /// The code of the error.
    code: Option<String>,
    /// On whose behalf it came.
    principal: Option<String>,
    /// First time (RFC 3339, a date, or epoch).
    since: Option<String>,
    /// End of times.
    until: Option<String>,
    /// For lists: letters before this id, as `next_cursor` says.
    cursor: Option<u64>,
    /// For lists: at most so many, default 50, largest 1,000.
    limit: Option<usize>,
    /// For lists: `error` counts letters by source, stream and code instead.
    group_by: Option<String>,
    /// For sending again: only count.
    dry_run: bool,
    /// Letters behind this id.
    #[serde(skip)]
    after: Option<Offset>,
}

impl Which {
    /// As a condition on the columns of a list.
    fn condition(&self) -> Result<(String, Vec<(String, ScalarValue)>), Problem> {
        let (mut conditions, mut values) = (Vec::new(), Vec::new());
        match self.state.as_deref().unwrap_or("open") {
            "all" => {}
            state @ ("open" | "retried" | "dropped") => conditions.push(format!("state = '{state}'")),
            other => {
                return Err(Problem::parameter(
                    "state",
                    format!("open, retried, dropped or all, not \"{other}\""),
                ));
            }
        }
        let texts = [
            ("stream", &self.stream),
            ("source", &self.source),
            ("code", &self.code),
            ("principal", &self.principal),
        ];
        for (name, value) in texts {
            let Some(value) = value else { continue };
            conditions.push(format!("{name} = ${name}"));
            values.push((name.to_owned(), ScalarValue::Utf8(Some(value.clone()))));
        }
        for (name, value, comparison) in [("since", &self.since, ">="), ("until", &self.until, "<")] {
            let Some(text) = value else { continue };
            let micros = time::parse_micros(text)
                .ok_or_else(|| Problem::parameter(name, format!("\"{text}\" is not a time")))?;
            conditions.push(format!("at {comparison} ${name}"));
            let value = ScalarValue::TimestampMicrosecond(Some(micros), Some("UTC".into()));
            values.push((name.to_owned(), value));
        }
        if let Some(cursor) = self.cursor {
            let cursor = i64::try_from(cursor)
                .map_err(|_| Problem::parameter("cursor", format!("\"{cursor}\" is not an id")))?;
            conditions.push(format!("id < {cursor}"));
        }
        conditions.extend(self.after.map(|after| format!("id > {after}")));
        if conditions.is_empty() {
            conditions.push("TRUE".into());
        }
        Ok((conditions.join(" AND "), values))
    }
}

/// What is shown of a letter, masked for whoever asks.
fn shown() -> String {
    format!(
        "SELECT d._offset AS id, d._recorded_at AS at, coalesce(r.action, 'open') AS state, d.source, d.stream, \
         d.source_partition, d.source_offset, d.code, d.detail, d.principal, \
         coalesce(d.tenant, '{HOME}') AS tenant, d.body, d.sealed_detail, d.sealed_body, r.reason, r.principal AS resolved_by, \
         r._recorded_at AS resolved_at FROM {DEAD_LETTERS} d LEFT JOIN {RESOLUTIONS} r ON r.letter = d._offset"
    )
}

async fn ask(
    node: &Arc<Node>,
    call: &Call,
    sql: String,
    values: Vec<(String, ScalarValue)>,
) -> Result<QueryResult, Problem> {
    let relations = Arc::new(NodeRelations::new(node.clone(), call.reader()));
    let asked = node.clone();
    let question = async move { adhoc::query(&asked.engine, relations, &sql, values, QUERY_LIMITS).await };
    Ok(node.ask(question).await?)
}

/// Dead letters, newest first, or how many there are of each error.
#[utoipa::path(get, path = "/api/v1/dead-letters", tag = "dead letters", params(Which),
    responses((status = 200, description = "{dead_letters: [{id, at, state, source, stream, code, detail, principal, body, …}], next_cursor}, or {groups: [{source, stream, code, count, first_at, last_at, example}]}"), (status = 400, description = "a parameter is wrong")))]
pub async fn list(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    which: Result<Query<Which>, QueryRejection>,
) -> Answer {
    let Query(which) = which?;
    let (condition, values) = which.condition()?;
    let limit = which.limit.unwrap_or(50).clamp(1, 1_000);
    let body = match which.group_by.as_deref() {
        None => {
            let sql =
                format!("SELECT * FROM ({}) WHERE {condition} ORDER BY id DESC LIMIT {}", shown(), limit + 1);
            let mut found = ask(&node, &call, sql, values).await?;
            let more = found.row_count() > limit;
            cut(&mut found, limit);
            let cursor = if more { last_id(&found) } else { None };
            let letters = rows(&found, &found.names(), ",");
            call.saw_rows(&node, found.row_count(), letters.as_bytes());
            format!("{{\"dead_letters\":[{letters}],\"next_cursor\":{}}}", json!(cursor))
        }
        Some("error") => {
            let sql = format!(
                "SELECT source, stream, code, count(*) AS count, min(at) AS first_at, max(at) AS last_at, max(id) AS example \
                 FROM ({}) WHERE {condition} GROUP BY source, stream, code ORDER BY count DESC, source, stream, code LIMIT {limit}",
                shown()
            );
            let found = ask(&node, &call, sql, values).await?;
            let groups = rows(&found, &found.names(), ",");
            call.saw_rows(&node, found.row_count(), groups.as_bytes());
            format!("{{\"groups\":[{groups}]}}")
        }
        Some(other) => return Err(Problem::parameter("group_by", format!("error, not \"{other}\""))),
    };
    Ok(typed("application/json", body))
}

fn cut(result: &mut QueryResult, limit: usize) {
    let mut left = limit;
    for batch in &mut result.batches {
        *batch = batch.slice(0, batch.num_rows().min(left));
        left -= batch.num_rows();
    }
}

fn last_id(result: &QueryResult) -> Option<i64> {
    use arrow::array::AsArray;
    let batch = result.batches.iter().rev().find(|batch| batch.num_rows() > 0)?;
    let ids = batch.column(0).as_primitive_opt::<arrow::datatypes::Int64Type>()?;
    Some(ids.value(batch.num_rows() - 1))
}

fn missing(id: Offset) -> Problem {
    Problem::not_found("dead_letter_not_found", format!("there is no dead letter {id}, or not for you"))
}

/// One dead letter.
#[utoipa::path(get, path = "/api/v1/dead-letters/{id}", tag = "dead letters", params(("id" = u64, Path, description = "its id")),
    responses((status = 200, description = "the letter"), (status = 404, description = "there is none")))]
pub async fn show(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    Path(id): Path<u64>,
) -> Answer {
    let found = ask(&node, &call, format!("SELECT * FROM ({}) WHERE id = {id}", shown()), Vec::new()).await?;
    if found.row_count() == 0 {
        return Err(missing(id));
    }
    let body = rows(&found, &found.names(), ",");
    call.saw_rows(&node, 1, body.as_bytes());
    Ok(typed("application/json", body))
}

/// What is done about one letter.
#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Decision {
    /// For sending again: the event as it should have been, instead of as it came.
    #[schema(value_type = Option<Object>)]
    event: Option<Map<String, Value>>,
    /// Why.
    reason: Option<String>,
}

/// A letter that nothing was done about, of the caller's tenant.
async fn open_letter(
    node: &Arc<Node>,
    call: &Call,
    id: Offset,
    resolved: &mut Resolved,
) -> Result<DeadLetter, Problem> {
    let (letter, done) = tokio::task::block_in_place(|| {
        Ok::<_, SqlError>((node.letter(id)?, resolved.holds(node.log().as_ref(), id)?))
    })?;
    let own = |letter: &DeadLetter| call.principal().is_of(letter.tenant());
    let letter = letter.filter(own).ok_or_else(|| missing(id))?;
    if done {
        let detail = format!("dead letter {id} was sent again or dropped before");
        return Err(Problem::new(StatusCode::CONFLICT, "already_resolved", detail)
            .hint("GET /api/v1/dead-letters/{id} says what was done, and by whom"));
    }
    Ok(letter)
}

/// Whoever brought it first. Only who looks after every tenant may send on behalf of somebody who does: others could
/// have an event say that it is of another tenant.
fn sender(letter: &DeadLetter, by: &Principal) -> Principal {
    let (engine, operator) = (Principal::engine(), Principal::operator());
    match letter.principal.as_str() {
        name if by.everywhere && *name == *engine.name => engine,
        name if by.everywhere && *name == *operator.name => operator,
        name => Principal::new(name, letter.tenant()),
    }
}

/// The event that a letter is sent again as.
fn event_of(
    id: Offset,
    letter: &DeadLetter,
    stream: &StreamSchema,
    edited: Option<Map<String, Value>>,
) -> Result<(Value, Format), Problem> {
    let link = json!({
        "dead_letter": id, "stream": letter.stream.public(),
        "partition": letter.position.map(|(partition, _)| partition), "offset": letter.position.map(|(_, offset)| offset),
    });
    let original = serde_json::from_slice::<Map<String, Value>>(&letter.body).ok();
    let mut event = match (edited, original.clone()) {
        (Some(event), _) => event,
        (None, Some(event)) if letter.position.is_none() => {
            // An envelope stays one.
            if event.contains_key("specversion") && stream.column("specversion").is_none() {
                let mut envelope = event;
                if let Some(Value::Object(data)) = envelope.get_mut("data") {
                    data.insert(LINK.into(), link);
                }
                return Ok((Value::Object(envelope), Format::CloudEvents));
            }
            event
        }
        (None, Some(row)) => as_it_came(row, stream),
        (None, None) => {
            let detail = format!("dead letter {id} is not a JSON object, so it can't be sent again as it is");
            return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "not_an_object", detail)
                .hint("send the event as it should be: {\"event\": {…}}"));
        }
    };
    if letter.position.is_some()
        && let [column] = stream.options.event_id.as_slice()
        && let Some(Value::String(event_id)) = event.get_mut(column)
        && original.and_then(|original| original.get(column)?.as_str().map(|before| before == event_id))
            == Some(true)
    {
        // The event itself is in the stream, under that id.
        event_id.push_str(&format!("~retry-{id}"));
    }
    event.insert(LINK.into(), link);
    Ok((Value::Object(event), Format::Json))
}

/// A row of a stream as the event that it was.
fn as_it_came(row: Map<String, Value>, stream: &StreamSchema) -> Map<String, Value> {
    let extra = row.get(columns::EXTRA).and_then(Value::as_str);
    let extra: Map<String, Value> =
        extra.and_then(|extra| serde_json::from_str(extra).ok()).unwrap_or_default();
    let declared = row.into_iter().filter_map(|(name, value)| {
        let column = stream.column(&name)?;
        let parsed = value.as_str().filter(|_| column.json).and_then(|text| serde_json::from_str(text).ok());
        Some((name, parsed.unwrap_or(value)))
    });
    declared.chain(extra.into_iter().filter(|(name, _)| name != LINK)).collect()
}

/// Sends a letter again.
async fn send_again(
    node: &Arc<Node>,
    call: &Call,
    id: Offset,
    letter: &DeadLetter,
    decision: Decision,
) -> Result<Verdict, Problem> {
    let name = events::find(node, letter.stream.public()).map_err(|problem| {
        problem.hint("what failed in a derived stream is derived again by CREATE OR REPLACE of the statement that failed")
    })?;
    node.authorize(
        &call.identity,
        Asked::on("ingest", "stream", name.public()).shared(is_shared(&node.catalog(), &name)),
    )?;
    let stream = streams::find(node, name.public())?.schema.clone();
    let (event, format) = event_of(id, letter, &stream, decision.event)?;
    let resolution = Resolution {
        action: "retried",
        reason: decision.reason.as_deref(),
        by: &call.principal().name,
        tenant: letter.tenant(),
    };
    let row = resolution.append(id, node.machine.clock.now_micros()).map_err(Problem::internal)?;
    call.about(format!("stream:{}", name.public()));
    let submission = Submission {
        stream: name,
        body: event.to_string().into(),
        format,
        principal: sender(letter, call.principal()),
        leaf: Some(Box::new(call.entry(node))),
        beside: vec![row],
    };
    // What is refused again is the same letter still, and no other one.
    let Submission { stream, body, format, principal, .. } = &submission;
    if let Some(error) = node.door.refusal(stream, body, *format, principal)? {
        return Ok(Verdict { event_id: None, outcome: Outcome::Rejected(error) });
    }
    let verdict = bulk::submit(node, submission).await?.pop();
    call.settle();
    verdict.ok_or_else(|| Problem::internal("the event got no verdict"))
}

/// What became of it, in words.
fn outcome_of(verdict: &Verdict) -> Value {
    match &verdict.outcome {
        Outcome::Accepted { offset, .. } => {
            json!({"status": "retried", "event_id": verdict.event_id, "offset": offset})
        }
        Outcome::Duplicate { offset, .. } => {
            json!({"status": "duplicate", "event_id": verdict.event_id, "offset": offset})
        }
        Outcome::Conflict { offset, .. } => {
            json!({"status": "conflict", "event_id": verdict.event_id, "offset": offset})
        }
        Outcome::Rejected(error) => {
            json!({"status": "rejected", "error": {"code": error.code, "path": error.path, "detail": error.detail}})
        }
    }
}

/// Sends a dead letter again, as it came or edited, as a new event that is linked to it.
#[utoipa::path(post, path = "/api/v1/dead-letters/{id}/retry", tag = "dead letters", params(("id" = u64, Path, description = "its id")), request_body = Decision,
    responses((status = 202, description = "{id, status: retried or duplicate, event_id, offset}"), (status = 404, description = "there is none"), (status = 409, description = "it was resolved before, or its event id was used for something else"), (status = 422, description = "it is still not what the stream declares")))]
pub async fn retry(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    Path(id): Path<u64>,
    decision: Result<Json<Decision>, JsonRejection>,
) -> Answer {
    let Json(decision) = decision?;
    let mut resolved = node.resolved.lock().await;
    let letter = open_letter(&node, &call, id, &mut resolved).await?;
    let verdict = send_again(&node, &call, id, &letter, decision).await?;
    match verdict.outcome {
        Outcome::Rejected(error) => {
            Err(Problem::row(error).hint("send the event as it should be: {\"event\": {…}}"))
        }
        Outcome::Conflict { offset, .. } => {
            let detail = format!("its event id was used before, at offset {offset}, for another payload");
            Err(Problem::new(StatusCode::CONFLICT, "event_conflict", detail))
        }
        Outcome::Accepted { .. } | Outcome::Duplicate { .. } => {
            let mut body = outcome_of(&verdict);
            body["id"] = id.into();
            Ok((StatusCode::ACCEPTED, Json(body)).into_response())
        }
    }
}

/// Says that nothing will be done about a dead letter, and why. It stays where it is.
#[utoipa::path(post, path = "/api/v1/dead-letters/{id}/drop", tag = "dead letters", params(("id" = u64, Path, description = "its id")), request_body = Decision,
    responses((status = 200, description = "{id, status: dropped}"), (status = 400, description = "no reason is said"), (status = 404, description = "there is none"), (status = 409, description = "it was resolved before")))]
pub async fn drop_letter(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    Path(id): Path<u64>,
    decision: Result<Json<Decision>, JsonRejection>,
) -> Answer {
    let Json(decision) = decision?;
    let mut resolved = node.resolved.lock().await;
    let letter = open_letter(&node, &call, id, &mut resolved).await?;
    let Some(reason) = decision.reason.as_deref().filter(|reason| !reason.trim().is_empty()) else {
        return Err(Problem::parameter("reason", "who drops a letter says why: {\"reason\": \"…\"}"));
    };
    let resolution = Resolution {
        action: "dropped",
        reason: Some(reason),
        by: &call.principal().name,
        tenant: letter.tenant(),
    };
    node.resolve(id, &resolution, &call.leaf(&node, StatusCode::OK)).await?;
    Ok(Json(json!({"id": id, "status": "dropped"})).into_response())
}

/// Sends all open letters again that fit, oldest first, as they came; at most 10,000 a call.
#[utoipa::path(post, path = "/api/v1/dead-letters/retry", tag = "dead letters", params(Which),
    responses((status = 200, description = "{of, retried, duplicates, conflicts, rejected, failed, more, dry_run, results: [{id, status, …}]}"), (status = 400, description = "a parameter is wrong")))]
pub async fn retry_all(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    which: Result<Query<Which>, QueryRejection>,
) -> Answer {
    let Query(which) = which?;
    let mut sending = Sending::begin(&node, call, which)?;
    let mut results = Vec::new();
    let found = sending.open(AT_ONCE + 1).await?;
    let (more, of) = (found.len() > AT_ONCE, found.len().min(AT_ONCE));
    let dry_run = sending.which.dry_run;
    for id in found.into_iter().take(if dry_run { 0 } else { AT_ONCE }) {
        let mut result = sending.send(id).await;
        result["id"] = id.into();
        if results.len() < LISTED {
            results.push(result);
        }
    }
    let mut body = sending.summary();
    body["of"] = of.into();
    body["more"] = more.into();
    body["dry_run"] = dry_run.into();
    body["results"] = results.into();
    Ok(Json(body).into_response())
}

/// Letters that are sent again, the oldest first.
struct Sending {
    node: Arc<Node>,
    call: Arc<Call>,
    which: Which,
    /// Letters that come while these are sent again, such as those of views, are not looked at.
    end: Offset,
    counts: [(&'static str, u64); 5],
}

impl Sending {
    fn begin(node: &Arc<Node>, call: Arc<Call>, which: Which) -> Result<Self, Problem> {
        if which.state.as_deref().is_some_and(|state| state != "open") {
            return Err(Problem::parameter("state", "only letters that are open are sent again"));
        }
        which.condition()?;
        let at = StreamPartition::new(highwater_event::StreamName::system(DEAD_LETTERS), 0);
        let counts = ["retried", "duplicate", "conflict", "rejected", "failed"].map(|name| (name, 0));
        Ok(Self { end: node.log().end(&at), node: node.clone(), call, which, counts })
    }

    /// The next letters that fit.
    async fn open(&self, limit: usize) -> Result<Vec<Offset>, Problem> {
        use arrow::array::AsArray;
        let (condition, values) = self.which.condition()?;
        let sql = format!(
            "SELECT id FROM ({}) WHERE {condition} AND id < {} ORDER BY id LIMIT {limit}",
            shown(),
            self.end
        );
        let found = ask(&self.node, &self.call, sql, values).await?;
        let ids = found.batches.iter().flat_map(|batch| {
            let ids = batch.column(0).as_primitive::<arrow::datatypes::Int64Type>();
            ids.values().iter().map(|id| *id as Offset).collect::<Vec<_>>()
        });
        Ok(ids.collect())
    }

    /// Sends one, and counts what became of it.
    async fn send(&mut self, id: Offset) -> Value {
        let mut resolved = self.node.resolved.lock().await;
        let sent = match open_letter(&self.node, &self.call, id, &mut resolved).await {
            Ok(letter) => send_again(&self.node, &self.call, id, &letter, Decision::default()).await,
            Err(problem) => Err(problem),
        };
        let result = match sent {
            Ok(verdict) => outcome_of(&verdict),
            Err(problem) => json!({"status": "failed", "error": problem.summary()}),
        };
        for (name, count) in &mut self.counts {
            *count += u64::from(result["status"] == *name);
        }
        result
    }

    fn summary(&self) -> Value {
        let [retried, duplicates, conflicts, rejected, failed] = self.counts.map(|(_, count)| count);
        json!({"retried": retried, "duplicates": duplicates, "conflicts": conflicts, "rejected": rejected, "failed": failed})
    }
}

/// Sends dead letters again as a job, however many they are.
pub struct RetryLetters;

impl RetryLetters {
    fn read(input: &Value) -> Result<Which, Problem> {
        members(input, &["stream", "source", "code", "principal", "since", "until", "dry_run"])?;
        serde_json::from_value(input.clone()).map_err(|error| Problem::parameter("input", error))
    }
}

#[async_trait]
impl Kind for RetryLetters {
    fn name(&self) -> &'static str {
        "retry_dead_letters"
    }

    async fn begin(&self, node: &Arc<Node>, order: &Order) -> Result<Box<dyn Work>, Setback> {
        let mut which = Self::read(&order.job.input)?;
        // Letters that came after it was wanted, those of its own among them, are not meant.
        let until = which.until.as_deref().and_then(time::parse_micros).unwrap_or(i64::MAX);
        which.until = Some(time::show_micros(until.min(order.job.submitted_at)));
        let call = Arc::new(Call::of_job(node, order, "replay", format!("stream:{DEAD_LETTERS}")));
        let sending = Sending::begin(node, call, which)?;
        let of = sending.open(MOST).await?.len() as u64;
        Ok(Box::new(SendingAll { sending, done: 0, of }))
    }
}

#[async_trait]
impl Offered for RetryLetters {
    async fn check(&self, node: &Arc<Node>, call: &Arc<Call>, input: &Value) -> Result<(), Problem> {
        let shared = is_shared(&node.catalog(), &highwater_event::StreamName::system(DEAD_LETTERS));
        node.authorize(&call.identity, Asked::on("replay", "stream", DEAD_LETTERS).shared(shared))?;
        Sending::begin(node, call.clone(), Self::read(input)?).map(drop)
    }
}

struct SendingAll {
    sending: Sending,
    done: u64,
    of: u64,
}

#[async_trait]
impl Work for SendingAll {
    async fn step(&mut self) -> Result<Step, Setback> {
        let found = self.sending.open(IN_ONE_STEP).await?;
        let dry_run = self.sending.which.dry_run;
        let Some(last) = found.last().copied().filter(|_| !dry_run) else {
            let mut said = self.sending.summary();
            said["of"] = self.of.into();
            return Ok(Step::Done(Progress { done: self.done, of: Some(self.of), said }));
        };
        for id in found {
            self.sending.send(id).await;
            self.done += 1;
        }
        self.sending.which.after = Some(last);
        Ok(Step::More(Progress { done: self.done, of: Some(self.of), said: self.sending.summary() }))
    }
}
