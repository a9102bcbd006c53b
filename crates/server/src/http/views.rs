//! Views: marks, lag, and what an operator can do to them.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::IntoResponse;
use axum::{Extension, Json};
use highwater_auth::Asked;
use highwater_event::{StreamName, StreamPartition};
use highwater_log::view::ViewStatus;
use highwater_sql::SqlError;
use serde_json::{Value, json};

use super::call::Call;
use super::problem::{Answer, Problem};
use crate::node::{EVENTS, Node, unreadable};

/// Every view with mark, lag, rate, state and last error.
#[utoipa::path(get, path = "/api/v1/views", tag = "views", responses((status = 200, description = "the views")))]
pub async fn list(State(node): State<Arc<Node>>) -> Json<Value> {
    Json(json!({"views": node.driver.statuses()}))
}

/// One view.
#[utoipa::path(get, path = "/api/v1/views/{view}", tag = "views", params(("view" = String, Path, description = "name, such as table:total_by_type")),
    responses((status = 200, description = "the view"), (status = 404, description = "no such view")))]
pub async fn show(State(node): State<Arc<Node>>, Path(name): Path<String>) -> Answer {
    match node.driver.status(&node.view_named(&name)) {
        Some(status) => Ok(Json(status).into_response()),
        None => Err(Problem::not_found("view_not_found", format!("no view \"{name}\""))),
    }
}

/// Drops a view's output and derives it again from the log.
#[utoipa::path(post, path = "/api/v1/views/{view}/rebuild", tag = "views", params(("view" = String, Path, description = "name of a view")),
    responses((status = 202, description = "started"), (status = 404, description = "no such view"), (status = 409, description = "this view can't be rebuilt in place")))]
pub async fn rebuild(State(node): State<Arc<Node>>, Path(name): Path<String>) -> Answer {
    node.driver.rebuild(&node.view_named(&name)).await?;
    Ok((axum::http::StatusCode::ACCEPTED, Json(json!({"view": name, "state": "running"}))).into_response())
}

/// Stops a view until it is resumed.
#[utoipa::path(post, path = "/api/v1/views/{view}/pause", tag = "views", params(("view" = String, Path, description = "name of a view")),
    responses((status = 200, description = "paused"), (status = 404, description = "no such view")))]
pub async fn pause(State(node): State<Arc<Node>>, Path(name): Path<String>) -> Answer {
    node.driver.pause(&node.view_named(&name)).await?;
    Ok(Json(json!({"view": name, "state": "paused"})).into_response())
}

/// Lets a paused or failed view go on.
#[utoipa::path(post, path = "/api/v1/views/{view}/resume", tag = "views", params(("view" = String, Path, description = "name of a view")),
    responses((status = 200, description = "running"), (status = 404, description = "no such view")))]
pub async fn resume(State(node): State<Arc<Node>>, Path(name): Path<String>) -> Answer {
    node.driver.resume(&node.view_named(&name)).await?;
    Ok(Json(json!({"view": name, "state": "running"})).into_response())
}

/// How long the oldest row that a view has not taken has been waiting, seconds.
fn waiting(node: &Node, view: &ViewStatus) -> Result<f64, SqlError> {
    let mut oldest = None;
    let sources = view.source.split(", ").filter_map(|source| StreamName::new(source).ok());
    for at in sources.flat_map(|stream| {
        let partitions = node.log().partitions(&stream).into_iter();
        partitions.map(move |partition| StreamPartition::new(stream.clone(), partition))
    }) {
        let mark = view.marks.get(&format!("{}/{}", at.stream, at.partition)).copied().unwrap_or(0);
        if mark >= node.log().end(&at) {
            continue;
        }
        let next = node.log().read(&at, mark.max(node.log().start(&at)), 1);
        let next = next.map_err(unreadable)?;
        oldest = oldest.into_iter().chain(next.first().map(|batch| batch.recorded_at)).min();
    }
    let now = node.machine.clock.now_micros();
    Ok(oldest.map_or(0.0, |oldest| (now - oldest).max(0) as f64 / 1e6))
}

/// What waits: for each view how far it is behind, in events and seconds, and how many dead letters there are.
///
/// Whoever may not describe what the node has sees the views of the stream `events` only.
#[utoipa::path(get, path = "/api/v1/analytics/queue-status", tag = "views",
    responses((status = 200, description = "{views: [{name, kind, source, state, lag_events, lag_seconds, rate}], lag_events, lag_seconds, dead_letters}")))]
pub async fn queue(State(node): State<Arc<Node>>, Extension(call): Extension<Arc<Call>>) -> Answer {
    let all = node.allows(&call.identity, Asked::node("describe"));
    let asked = node.clone();
    let found = tokio::task::spawn_blocking(move || {
        let statuses = asked.driver.statuses();
        let seen =
            statuses.into_iter().filter(|view| all || view.source.split(", ").any(|source| source == EVENTS));
        seen.map(|view| waiting(&asked, &view).map(|seconds| (view, seconds))).collect::<Result<Vec<_>, _>>()
    });
    let views = found.await.map_err(Problem::internal)??;
    let letters = StreamPartition::new(StreamName::system(highwater_log::dead_letter::DEAD_LETTERS), 0);
    let lag: u64 = views.iter().map(|(view, _)| view.lag).max().unwrap_or(0);
    let seconds = views.iter().map(|(_, seconds)| *seconds).fold(0.0, f64::max);
    let shown = views.iter().map(|(view, seconds)| {
        json!({
            "name": view.name, "kind": view.kind, "source": view.source, "state": view.state,
            "lag_events": view.lag, "lag_seconds": seconds, "rate": view.rate,
        })
    });
    let mut body = json!({"views": shown.collect::<Vec<_>>(), "lag_events": lag, "lag_seconds": seconds});
    if all {
        body["dead_letters"] = node.log().end(&letters).into();
    }
    Ok(Json(body).into_response())
}
