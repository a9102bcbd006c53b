//! Calls that bring events.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::{FromRequest, Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use highwater_event::StreamName;
use highwater_event::canonical::push_json_string;
use highwater_event::name::nearest;
use highwater_ingest::{Format, Outcome, Room, Submission, Verdict};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::call::Call;
use super::problem::{Answer, Problem};
use crate::node::Node;

/// How long a body may take to arrive; it holds room that others wait for.
const ARRIVAL: Duration = Duration::from_secs(30);

/// Reads a body when there is room for it.
async fn read(node: &Node, request: Request) -> Result<(Bytes, Room), Problem> {
    let declared = request.headers().get(header::CONTENT_LENGTH);
    let length = declared.and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length| length > super::router::MAX_BODY) {
        return Err(too_large());
    }
    let room = node.door.room(length).await?;
    match tokio::time::timeout(ARRIVAL, Bytes::from_request(request, &())).await {
        Ok(Ok(body)) => Ok((body, room)),
        Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => Err(too_large()),
        Ok(Err(rejection)) => Err(Problem::bad_request("body_unreadable", rejection.body_text())),
        Err(_) => {
            let detail = format!("the body did not arrive within {} s", ARRIVAL.as_secs());
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", detail)
                .hint("send the events in smaller parts, or as NDJSON, which is taken as it comes"))
        }
    }
}

fn too_large() -> Problem {
    let detail = format!("a body may hold {} MiB; send the events in parts", super::router::MAX_BODY >> 20);
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
}

/// Takes events for a stream.
///
/// A JSON object, an array of objects, one object a line (`application/x-ndjson`), CSV, or CloudEvents
/// (structured, batch or binary); plain, gzip or zstd. Answers when every accepted event is durable; each
/// event has a verdict of its own. NDJSON and CSV may be of any length.
#[utoipa::path(post, path = "/api/v1/streams/{stream}/events", tag = "ingest",
    params(("stream" = String, Path, description = "name of a declared stream")),
    request_body(content = serde_json::Value, content_type = "application/json", description = "an event, or an array of events; or NDJSON"),
    responses((status = 202, description = "all accepted, or known already"), (status = 207, description = "some were rejected; they are dead letters"),
        (status = 400, description = "the body is not JSON"), (status = 404, description = "no such stream"),
        (status = 409, description = "the stream is written by the engine"), (status = 422, description = "all were rejected"),
        (status = 503, description = "busy; Retry-After says when to send again"), (status = 507, description = "the disk is full")))]
pub async fn stream_events(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    Path(stream): Path<String>,
    headers: HeaderMap,
    body: Request,
) -> Answer {
    let stream = find(&node, &stream)?;
    let mut format = format(&headers)?;
    if matches!(format, Format::NdJson | Format::Csv) {
        let parts = super::bulk::take(&node, stream, &call, format, body.into_body());
        // In a box: a call that brings one event should not move around what a long one needs.
        return Box::pin(parts).await;
    }
    let (mut body, room) = read(&node, body).await?;
    if let Some(envelope) = from_headers(&headers, &body)? {
        (format, body) = (Format::CloudEvents, envelope);
    }
    let verdicts = submit(&node, room, &call, stream, body, format).await?;
    Ok(batch_answer(&verdicts))
}

/// Hands events to the door; a stream that learns its columns from them learns first.
async fn submit(
    node: &Arc<Node>,
    room: Room,
    call: &Call,
    stream: StreamName,
    body: Bytes,
    format: Format,
) -> Result<Vec<Verdict>, Problem> {
    let submission = submission(node, call, stream, body, format)?;
    node.learn(&submission).await?;
    let verdicts = node.door.submit_into(room, submission).await?;
    // The entry is in the commit of the events.
    call.settle();
    Ok(verdicts)
}

/// What a call hands to the door, when its limit allows so many events.
pub fn submission(
    node: &Node,
    call: &Call,
    stream: StreamName,
    body: Bytes,
    format: Format,
) -> Result<Submission, Problem> {
    if call.identity.key.is_some() {
        call.charge(node, count(format, &body))?;
    }
    if let Some(entry) = node.catalog().streams.get(&stream.at_version(1)) {
        call.brought_events(&entry.schema, &body);
    }
    let leaf = Some(Box::new(call.entry(node)));
    Ok(Submission { stream, body, format, principal: call.principal().clone(), leaf, beside: Vec::new() })
}

/// How many events a body brings, as far as a look at it tells: at least 1.
fn count(format: Format, body: &[u8]) -> usize {
    let lines = || body.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()).count();
    let events = match format {
        Format::NdJson => lines(),
        // A record of CSV may end in a carriage return alone.
        Format::Csv => {
            let ends = |byte: &u8| matches!(byte, b'\n' | b'\r');
            body.split(ends).filter(|line| !line.trim_ascii().is_empty()).count().saturating_sub(1)
        }
        Format::Json | Format::CloudEvents => {
            serde_json::from_slice::<Vec<&RawValue>>(body).map_or(1, |events| events.len())
        }
    };
    events.max(1)
}

/// Takes one event of the built-in stream `events`.
#[utoipa::path(post, path = "/api/v1/events/ingest", tag = "ingest",
    request_body(content = serde_json::Value, content_type = "application/json", description = "{event_id?, event_type, payload, timestamp?}"),
    responses((status = 202, description = "{event_id, status: accepted or duplicate, offset}"), (status = 409, description = "the id was used for another payload"),
        (status = 422, description = "the event is not valid; path names the member")))]
pub async fn ingest(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    headers: HeaderMap,
    body: Request,
) -> Answer {
    take_one(&node, &call, StreamName::system(crate::node::EVENTS), &headers, body).await
}

/// Takes one event of a stream.
pub async fn take_one(
    node: &Arc<Node>,
    call: &Call,
    stream: StreamName,
    headers: &HeaderMap,
    body: Request,
) -> Answer {
    let (body, room) = read(node, body).await?;
    if body.trim_ascii_start().first() == Some(&b'[') {
        return Err(Problem::bad_request("not_an_object", "this call takes one event")
            .hint("send several to the path of batches, such as /api/v1/events/batch"));
    }
    let (format, body) = match from_headers(headers, &body)? {
        Some(envelope) => (Format::CloudEvents, envelope),
        None if media_type(headers) == "application/cloudevents+json" => (Format::CloudEvents, body),
        None => (Format::Json, body),
    };
    let mut verdicts = submit(node, room, call, stream, body, format).await?;
    let Some(Verdict { event_id, outcome }) = verdicts.pop() else {
        return Err(Problem::bad_request("empty_body", "the body holds no event"));
    };
    let event_id = event_id.unwrap_or_default();
    let answer = |status: &str, offset: u64| {
        (
            StatusCode::ACCEPTED,
            axum::Json(serde_json::json!({"event_id": event_id, "status": status, "offset": offset})),
        )
            .into_response()
    };
    match outcome {
        Outcome::Accepted { offset, .. } => Ok(answer("accepted", offset)),
        Outcome::Duplicate { offset, .. } => Ok(answer("duplicate", offset)),
        Outcome::Conflict { offset, .. } => Err(Problem::new(
            StatusCode::CONFLICT,
            "event_conflict",
            format!("event id \"{event_id}\" was used before, at offset {offset}, for another payload"),
        )),
        Outcome::Rejected(error) => Err(Problem::row(error)),
    }
}

#[derive(Deserialize)]
struct EventBatch<'a> {
    #[serde(borrow)]
    events: &'a RawValue,
}

/// Takes several events of the built-in stream `events`: `{"events":[…]}` or NDJSON.
#[utoipa::path(post, path = "/api/v1/events/batch", tag = "ingest",
    request_body(content = serde_json::Value, content_type = "application/json", description = "{events: […]} or NDJSON"),
    responses((status = 202, description = "all accepted, or known already"), (status = 207, description = "some were rejected"),
        (status = 409, description = "their ids were used for other payloads"), (status = 422, description = "all were rejected")))]
pub async fn batch(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    headers: HeaderMap,
    body: Request,
) -> Answer {
    take_several(&node, &call, StreamName::system(crate::node::EVENTS), &headers, body).await
}

/// Takes several events of a stream.
pub async fn take_several(
    node: &Arc<Node>,
    call: &Call,
    stream: StreamName,
    headers: &HeaderMap,
    body: Request,
) -> Answer {
    let format = format(headers)?;
    let (mut body, room) = read(node, body).await?;
    if format == Format::Json && body.trim_ascii_start().first() != Some(&b'[') {
        let batch: EventBatch<'_> = serde_json::from_slice(&body).map_err(|error| {
            Problem::bad_request("malformed_json", format!("expected {{\"events\": […]}}: {error}"))
        })?;
        body = body.slice_ref(batch.events.get().as_bytes());
    }
    if format == Format::Csv {
        drop(room);
        return Box::pin(super::bulk::take(node, stream, call, format, body.into())).await;
    }
    let verdicts = submit(node, room, call, stream, body, format).await?;
    Ok(batch_answer(&verdicts))
}

/// The stream of that name that takes events.
pub fn find(node: &Node, name: &str) -> Result<StreamName, Problem> {
    let missing = |known: &highwater_sql::Catalog| {
        let names =
            known.streams.values().filter(|entry| entry.schema.raw).map(|entry| entry.schema.name.as_str());
        let problem = Problem::not_found("stream_not_found", format!("no stream \"{name}\" takes events"));
        match nearest(name, names) {
            Some(near) => problem.hint(format!("did you mean \"{near}\"?")),
            None => problem,
        }
    };
    let catalog = node.catalog();
    let Ok(stream) = StreamName::new(name) else { return Err(missing(&catalog)) };
    match catalog.streams.get(&stream) {
        Some(entry) if entry.schema.raw => Ok(entry.schema.name.clone()),
        Some(_) => Err(Problem::new(
            StatusCode::CONFLICT,
            "stream_is_derived",
            format!("stream \"{stream}\" is written by the engine; events can't be sent to it"),
        )),
        None => Err(missing(&catalog)),
    }
}

fn media_type(headers: &HeaderMap) -> String {
    let declared =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("application/json");
    declared.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn format(headers: &HeaderMap) -> Result<Format, Problem> {
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING)
        && encoding != "identity"
    {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_encoding",
            "a body may be compressed with gzip or zstd",
        ));
    }
    match media_type(headers).as_str() {
        // curl's default, when a user forgets the header.
        "application/json" | "text/json" | "" | "application/x-www-form-urlencoded" => Ok(Format::Json),
        "application/x-ndjson" | "application/ndjson" | "application/jsonl" | "application/x-jsonlines" => {
            Ok(Format::NdJson)
        }
        "text/csv" | "application/csv" => Ok(Format::Csv),
        "application/cloudevents+json" | "application/cloudevents-batch+json" => Ok(Format::CloudEvents),
        other => Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            format!(
                "\"{other}\" is not taken; send application/json, application/x-ndjson, text/csv, application/cloudevents+json or application/cloudevents-batch+json"
            ),
        )),
    }
}

/// A CloudEvent whose attributes are headers, as its envelope in JSON; `None` when the call is not one.
fn from_headers(headers: &HeaderMap, body: &Bytes) -> Result<Option<Bytes>, Problem> {
    if !headers.contains_key("ce-specversion") {
        return Ok(None);
    }
    let mut envelope = serde_json::Map::new();
    for (name, value) in headers {
        let Some(attribute) = name.as_str().strip_prefix("ce-") else { continue };
        let value = value.to_str().map_err(|_| {
            Problem::bad_request("malformed_header", format!("the header {name} is not plain text"))
        })?;
        envelope.insert(attribute.to_owned(), value.into());
    }
    let mut text = serde_json::Value::Object(envelope).to_string();
    if !body.trim_ascii().is_empty() {
        let data: &RawValue = serde_json::from_slice(body).map_err(|error| {
            Problem::bad_request("malformed_json", format!("the data is not valid JSON: {error}"))
        })?;
        text.pop();
        text.push_str(",\"data\":");
        text.push_str(data.get());
        text.push('}');
    }
    Ok(Some(text.into()))
}

fn batch_answer(verdicts: &[Verdict]) -> Response {
    let mut tally = Tally::default();
    tally.take(verdicts);
    tally.answer()
}

/// Results that an answer lists for every event; of longer bodies it lists what was not accepted.
const LISTED: usize = 100_000;
/// Refused events that the answer to a longer body lists.
const LISTED_REFUSED: usize = 1_000;

/// The answer to a batch: counts, and a result for each event in the order of the body.
#[derive(Default)]
pub struct Tally {
    accepted: usize,
    duplicates: usize,
    rejected: usize,
    conflicts: usize,
    listed: usize,
    omitted: bool,
    results: String,
}

impl Tally {
    /// Events so far.
    pub fn events(&self) -> usize {
        self.accepted + self.duplicates + self.rejected
    }

    /// Counts an event; true when it was refused.
    pub fn count(&mut self, verdict: &Verdict) -> bool {
        match &verdict.outcome {
            Outcome::Accepted { .. } => self.accepted += 1,
            Outcome::Duplicate { .. } => self.duplicates += 1,
            Outcome::Conflict { .. } => {
                self.conflicts += 1;
                self.rejected += 1;
                return true;
            }
            Outcome::Rejected(_) => {
                self.rejected += 1;
                return true;
            }
        }
        false
    }

    /// Takes the verdicts of the next events.
    pub fn take(&mut self, verdicts: &[Verdict]) {
        self.results.reserve(verdicts.len() * 64);
        for verdict in verdicts {
            let index = self.events();
            let refused = self.count(verdict);
            if index >= LISTED && (!refused || self.listed >= LISTED + LISTED_REFUSED) {
                self.omitted = true;
                continue;
            }
            if self.listed > 0 {
                self.results.push(',');
            }
            self.listed += 1;
            // Writing to a String can't fail.
            if write_result(&mut self.results, index, verdict).is_err() {
                return;
            }
        }
    }

    fn status(&self) -> StatusCode {
        if self.rejected == 0 {
            StatusCode::ACCEPTED
        } else if self.rejected < self.events() {
            StatusCode::MULTI_STATUS
        } else if self.conflicts == self.rejected {
            StatusCode::CONFLICT
        } else {
            StatusCode::UNPROCESSABLE_ENTITY
        }
    }

    /// Adds the counts to the node's metrics.
    pub fn publish(&self) {
        let counts =
            [("accepted", self.accepted), ("duplicate", self.duplicates), ("rejected", self.rejected)];
        for (outcome, count) in counts {
            metrics::counter!("highwater_events_total", "outcome" => outcome).increment(count as u64);
        }
    }

    /// The answer.
    pub fn answer(self) -> Response {
        let status = self.status();
        self.publish();
        let omitted = if self.omitted { ",\"results_omitted\":true" } else { "" };
        let body = format!(
            "{{\"accepted\":{},\"duplicates\":{},\"rejected\":{},\"results\":[{}]{omitted}}}",
            self.accepted, self.duplicates, self.rejected, self.results
        );
        let mut response = (status, body).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

/// Appends what became of an event.
pub fn write_result(out: &mut String, index: usize, verdict: &Verdict) -> std::fmt::Result {
    write!(out, "{{\"index\":{index},\"event_id\":")?;
    match &verdict.event_id {
        None => out.push_str("null"),
        Some(id) => push_json_string(id, out),
    }
    match &verdict.outcome {
        Outcome::Accepted { offset, .. } => write!(out, ",\"status\":\"accepted\",\"offset\":{offset}}}"),
        Outcome::Duplicate { offset, .. } => write!(out, ",\"status\":\"duplicate\",\"offset\":{offset}}}"),
        Outcome::Conflict { offset, .. } => {
            let detail = format!("the id was used before, at offset {offset}, for another payload");
            let error = serde_json::json!({"code": "event_conflict", "detail": detail});
            write!(out, ",\"status\":\"conflict\",\"offset\":{offset},\"error\":{error}}}")
        }
        Outcome::Rejected(error) => {
            let error = serde_json::json!({"code": error.code, "path": error.path, "detail": error.detail});
            write!(out, ",\"status\":\"rejected\",\"error\":{error}}}")
        }
    }
}
