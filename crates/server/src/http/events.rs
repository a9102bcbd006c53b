//! Calls that bring events.

use std::fmt::Write;
use std::sync::Arc;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use highwater_event::name::nearest;
use highwater_event::{Principal, StreamName};
use highwater_ingest::{Format, Outcome, Submission, Verdict};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::problem::{Answer, Problem};
use crate::node::Node;

type Body = Result<Bytes, BytesRejection>;

fn taken(body: Body) -> Result<Bytes, Problem> {
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            format!("a body may hold {} MiB; send the events in parts", super::router::MAX_BODY >> 20),
        ),
        _ => Problem::bad_request("body_unreadable", rejection.body_text()),
    })
}

/// Takes events for a stream.
///
/// A JSON object, an array of objects, or one object a line (`application/x-ndjson`). Answers when every
/// accepted event is durable; each event has a verdict of its own.
#[utoipa::path(post, path = "/api/v1/streams/{stream}/events", tag = "ingest",
    params(("stream" = String, Path, description = "name of a declared stream")),
    request_body(content = serde_json::Value, content_type = "application/json", description = "an event, or an array of events; or NDJSON"),
    responses((status = 202, description = "all accepted, or known already"), (status = 207, description = "some were rejected; they are dead letters"),
        (status = 400, description = "the body is not JSON"), (status = 404, description = "no such stream"), (status = 422, description = "all were rejected"),
        (status = 503, description = "busy; Retry-After says when to send again"), (status = 507, description = "the disk is full")))]
pub async fn stream_events(
    State(node): State<Arc<Node>>,
    Extension(principal): Extension<Principal>,
    Path(stream): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let stream = find(&node, &stream)?;
    let format = format(&headers)?;
    let verdicts = node.door.submit(Submission { stream, body: taken(body)?, format, principal }).await?;
    Ok(batch_answer(&verdicts))
}

/// Takes one event of the built-in stream `events`.
#[utoipa::path(post, path = "/api/v1/events/ingest", tag = "ingest",
    request_body(content = serde_json::Value, content_type = "application/json", description = "{event_id?, event_type, payload, timestamp?}"),
    responses((status = 202, description = "{event_id, status: accepted or duplicate, offset}"), (status = 409, description = "the id was used for another payload"),
        (status = 422, description = "the event is not valid; path names the member")))]
pub async fn ingest(
    State(node): State<Arc<Node>>,
    Extension(principal): Extension<Principal>,
    body: Body,
) -> Answer {
    let body = taken(body)?;
    if body.trim_ascii_start().first() == Some(&b'[') {
        return Err(Problem::bad_request("not_an_object", "this call takes one event")
            .hint("send several to /api/v1/events/batch"));
    }
    let stream = StreamName::system(crate::node::EVENTS);
    let submission = Submission { stream, body, format: Format::Json, principal };
    let mut verdicts = node.door.submit(submission).await?;
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
    responses((status = 202, description = "all accepted, or known already"), (status = 207, description = "some were rejected"), (status = 422, description = "all were rejected")))]
pub async fn batch(
    State(node): State<Arc<Node>>,
    Extension(principal): Extension<Principal>,
    headers: HeaderMap,
    body: Body,
) -> Answer {
    let mut body = taken(body)?;
    let format = format(&headers)?;
    if format == Format::Json && body.trim_ascii_start().first() != Some(&b'[') {
        let batch: EventBatch<'_> = serde_json::from_slice(&body).map_err(|error| {
            Problem::bad_request("malformed_json", format!("expected {{\"events\": […]}}: {error}"))
        })?;
        body = body.slice_ref(batch.events.get().as_bytes());
    }
    let stream = StreamName::system(crate::node::EVENTS);
    let verdicts = node.door.submit(Submission { stream, body, format, principal }).await?;
    Ok(batch_answer(&verdicts))
}

fn find(node: &Node, name: &str) -> Result<StreamName, Problem> {
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
        Some(entry) if entry.schema.raw => Ok(stream),
        Some(_) => Err(Problem::new(
            StatusCode::CONFLICT,
            "stream_is_derived",
            format!("stream \"{stream}\" is written by the engine; events can't be sent to it"),
        )),
        None => Err(missing(&catalog)),
    }
}

fn format(headers: &HeaderMap) -> Result<Format, Problem> {
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING)
        && encoding != "identity"
    {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_encoding",
            "compressed bodies are not taken yet",
        ));
    }
    let declared =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("application/json");
    match declared.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        // curl's default, when a user forgets the header.
        "application/json" | "text/json" | "" | "application/x-www-form-urlencoded" => Ok(Format::Json),
        "application/x-ndjson" | "application/ndjson" | "application/jsonl" | "application/x-jsonlines" => {
            Ok(Format::NdJson)
        }
        other => Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            format!("\"{other}\" is not taken; send application/json or application/x-ndjson"),
        )),
    }
}

/// The answer to a batch: counts, and a result for each event in the order of the body.
fn batch_answer(verdicts: &[Verdict]) -> Response {
    let (mut accepted, mut duplicates, mut rejected) = (0usize, 0usize, 0usize);
    let mut results = String::with_capacity(verdicts.len() * 64);
    for (index, Verdict { event_id, outcome }) in verdicts.iter().enumerate() {
        let separator = if index == 0 { "" } else { "," };
        let id = event_id
            .as_ref()
            .map_or_else(|| "null".to_owned(), |id| serde_json::Value::from(id.as_str()).to_string());
        let rest = match outcome {
            Outcome::Accepted { offset, .. } => {
                accepted += 1;
                format!("\"status\":\"accepted\",\"offset\":{offset}")
            }
            Outcome::Duplicate { offset, .. } => {
                duplicates += 1;
                format!("\"status\":\"duplicate\",\"offset\":{offset}")
            }
            Outcome::Conflict { offset, .. } => {
                rejected += 1;
                let error = serde_json::json!({"code": "event_conflict", "detail": format!("the id was used before, at offset {offset}, for another payload")});
                format!("\"status\":\"conflict\",\"offset\":{offset},\"error\":{error}")
            }
            Outcome::Rejected(error) => {
                rejected += 1;
                let error =
                    serde_json::json!({"code": error.code, "path": error.path, "detail": error.detail});
                format!("\"status\":\"rejected\",\"error\":{error}")
            }
        };
        // Writing to a String can't fail.
        if write!(results, "{separator}{{\"index\":{index},\"event_id\":{id},{rest}}}").is_err() {
            break;
        }
    }
    let status = if rejected == 0 {
        StatusCode::ACCEPTED
    } else if rejected == verdicts.len() {
        let conflicts = verdicts.iter().all(|verdict| matches!(verdict.outcome, Outcome::Conflict { .. }));
        if conflicts { StatusCode::CONFLICT } else { StatusCode::UNPROCESSABLE_ENTITY }
    } else {
        StatusCode::MULTI_STATUS
    };
    metrics::counter!("highwater_events_total", "outcome" => "accepted").increment(accepted as u64);
    metrics::counter!("highwater_events_total", "outcome" => "duplicate").increment(duplicates as u64);
    metrics::counter!("highwater_events_total", "outcome" => "rejected").increment(rejected as u64);
    let body = format!(
        "{{\"accepted\":{accepted},\"duplicates\":{duplicates},\"rejected\":{rejected},\"results\":[{results}]}}"
    );
    let mut response = (status, body).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
