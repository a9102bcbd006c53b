//! The keys of SENSITIVE columns: what there is, and new ones. Nothing here shows a key.

use std::sync::Arc;

use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::{Extension, Json};
use highwater_event::time;
use highwater_log::audit::Entry;
use serde::Deserialize;
use serde_json::{Value, json};

use super::call::Call;
use super::problem::{Answer, Problem};
use crate::node::Node;

/// The data keys, and the name of the master key that wraps them.
#[utoipa::path(get, path = "/api/v1/keys/encryption", tag = "keys",
    responses((status = 200, description = "{algorithm, master, keys: [{number, tenant, made_at, encrypts}]}")))]
pub async fn show(State(node): State<Arc<Node>>, Extension(call): Extension<Arc<Call>>) -> Json<Value> {
    let principal = call.principal();
    let (master, keys) = node.vault.describe();
    let keys = keys.iter().filter(|key| principal.is_of(&key.tenant)).map(|key| {
        json!({"number": key.number, "tenant": key.tenant.as_ref(), "made_at": time::show_micros(key.made), "encrypts": key.newest})
    });
    Json(json!({"algorithm": "AES-256-GCM", "master": master, "keys": keys.collect::<Vec<_>>()}))
}

/// What is to be new.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateEncryption {
    /// The master key, instead of the data keys.
    #[serde(default)]
    master: bool,
}

/// Gives every tenant a new data key, or wraps all data keys by a new master key. Nothing waits for it.
#[utoipa::path(post, path = "/api/v1/keys/encryption/rotate", tag = "keys", request_body = RotateEncryption,
    responses((status = 200, description = "{rotated: \"data\" or \"master\", keys}"), (status = 409, description = "the master key is not the node's to change")))]
pub async fn rotate(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    body: Result<Json<RotateEncryption>, JsonRejection>,
) -> Answer {
    let Json(RotateEncryption { master }) = body?;
    // Keys lie outside the log: no commit could hold their change and its entry, which comes first therefore.
    node.trail.write(Entry { status: None, ..call.entry(&node) }).await?;
    let asked = node.clone();
    let rotated = node
        .machine
        .scheduler
        .work(move || if master { asked.rotate_master_key() } else { asked.rotate_data_keys() });
    let keys = rotated
        .await
        .map_err(Problem::internal)?
        .map_err(|error| Problem::new(StatusCode::CONFLICT, "not_rotated", format!("{error:#}")))?;
    Ok(Json(json!({"rotated": if master { "master" } else { "data" }, "keys": keys})).into_response())
}
