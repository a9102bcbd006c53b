//! Views: marks, lag, and what an operator can do to them.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::IntoResponse;
use serde_json::{Value, json};

use super::problem::{Answer, Problem};
use crate::node::Node;

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
