//! Whether the node can give acks.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use highwater_log::Log;
use serde_json::json;

use crate::node::Node;

/// 200 when an event that is sent now would be taken.
#[utoipa::path(get, path = "/healthz", tag = "operate", responses((status = 200, description = "acks can be given"), (status = 503, description = "they can't")))]
pub async fn healthz(State(node): State<Arc<Node>>) -> Response {
    let poisoned = node.journal.poisoned().borrow().is_some();
    let status = if poisoned { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let body = json!({
        "status": if poisoned { "failed" } else { "ok" },
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": node.uptime() / 1_000_000,
    });
    (status, Json(body)).into_response()
}
