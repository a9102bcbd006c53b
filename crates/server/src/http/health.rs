//! Whether the node can give acks, and how its parts are.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use highwater_log::Log;
use highwater_log::view::ViewState;
use serde_json::{Value, json};

use crate::node::Node;

fn state(node: &Node) -> (StatusCode, Value) {
    let poisoned = node.journal.poisoned().borrow().is_some();
    let status = if poisoned { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let body = json!({
        "status": if poisoned { "failed" } else { "ok" },
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": node.uptime() / 1_000_000,
    });
    (status, body)
}

/// 200 when an event that is sent now would be taken.
#[utoipa::path(get, path = "/healthz", tag = "operate", responses((status = 200, description = "acks can be given"), (status = 503, description = "they can't")))]
pub async fn healthz(State(node): State<Arc<Node>>) -> Response {
    let (status, body) = state(&node);
    (status, Json(body)).into_response()
}

/// The same with the state of each part; `components` names no view, only how many are in which state.
#[utoipa::path(get, path = "/api/v1/health", tag = "operate",
    responses((status = 200, description = "{status, version, uptime_s, components: {log, door, views, keyed_store, audit}}"), (status = 503, description = "acks can't be given")))]
pub async fn health(State(node): State<Arc<Node>>) -> Response {
    let (status, mut body) = state(&node);
    let views = node.driver.statuses();
    let count = |wanted: ViewState| views.iter().filter(|view| view.state == wanted).count();
    let ill = count(ViewState::Failed) + count(ViewState::Retrying);
    let entries = node.tree.size().ok();
    let word = |good: bool| if good { "ok" } else { "failed" };
    body["components"] = json!({
        "log": {"status": word(status == StatusCode::OK), "damaged_ranges": node.journal.damage().len()},
        "door": {"status": word(!node.door.is_broken())},
        "views": {
            "status": if ill == 0 { "ok" } else { "degraded" },
            "running": count(ViewState::Running),
            "paused": count(ViewState::Paused),
            "retrying": count(ViewState::Retrying),
            "failed": count(ViewState::Failed),
            "lag": views.iter().map(|view| view.lag).sum::<u64>(),
        },
        "keyed_store": {"status": word(node.failed.borrow().is_none()), "dirty_keys": node.write_back.dirty_keys()},
        "audit": {"status": word(entries.is_some()), "entries": entries},
    });
    (status, Json(body)).into_response()
}
