//! API keys of clients.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::{Extension, Json};
use highwater_auth::credential::{digest, key_prefix, new_id, new_key};
use highwater_auth::directory::Key;
use highwater_auth::{Asked, Command};
use highwater_event::time;
use serde::Deserialize;
use serde_json::{Value, json};

use super::call::Call;
use super::people::{known_permission, tenant};
use super::problem::{Answer, Problem};
use crate::node::Node;

/// Events a minute that a key brings when nothing else is said.
const RATE_LIMIT: u32 = 60;
/// What a key may do when nothing else is said.
const SCOPES: [&str; 2] = ["ingest", "view_own"];

/// A new key.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    /// Whose events it brings.
    client_id: String,
    /// What its owner calls it.
    name: String,
    /// Events a minute, 60 when nothing is said.
    #[serde(default)]
    rate_limit: Option<u32>,
    /// What it may do: `ingest` and `view_own` when nothing is said; `ingest@stream:orders` for one stream only.
    #[serde(default)]
    scopes: Option<Vec<String>>,
    /// Sources that it may name; all when there are none.
    #[serde(default)]
    sources: Vec<String>,
    /// When it ends: RFC 3339, a date, or epoch.
    #[serde(default)]
    expires_at: Option<String>,
    /// Tenant; by default that of whoever creates it.
    #[serde(default)]
    tenant: Option<String>,
}

fn key_json(node: &Node, key: &Key) -> Value {
    let mut shown = json!({
        "id": key.id.as_ref(),
        "client_id": key.client.as_ref(),
        "name": key.name,
        "tenant": key.tenant.as_ref(),
        "rate_limit": key.rate_limit,
        "prefix": key.prefix(),
        "active": key.active,
        "scopes": key.scopes,
        "sources": key.sources,
        "created_at": time::show_micros(key.created.at),
        "created_by": key.created.by.as_ref(),
        "last_used_at": node.people.last_used(&key.id).map(time::show_micros),
    });
    if let Some(end) = key.expires_at {
        shown["expires_at"] = time::show_micros(end).into();
    }
    shown
}

/// Makes a key. Its secret is in this answer and nowhere else.
#[utoipa::path(post, path = "/api/v1/keys/", tag = "keys", request_body = NewKey,
    responses((status = 201, description = "{id, client_id, name, rate_limit, api_key, prefix, created_at, expires_at?}"), (status = 400, description = "a member is wrong; the detail names it")))]
pub async fn create(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    body: Result<Json<NewKey>, JsonRejection>,
) -> Answer {
    let Json(new) = body?;
    let expires_at = match new.expires_at.as_deref() {
        None => None,
        Some(text) => Some(
            time::parse_micros(text).filter(|at| *at > node.machine.clock.now_micros()).ok_or_else(|| {
                Problem::bad_request(
                    "invalid_parameter",
                    format!("expires_at: \"{text}\" is not a time to come"),
                )
            })?,
        ),
    };
    let scopes = new.scopes.unwrap_or_else(|| SCOPES.map(str::to_owned).to_vec());
    for scope in &scopes {
        known_permission(&node, scope)?;
        let (permission, on) = scope.split_once('@').unwrap_or((scope, "node:"));
        let (kind, name) = on.split_once(':').unwrap_or((on, ""));
        // Nobody gives more than they have.
        if !SCOPES.contains(&permission) {
            node.authorize(&call.identity, Asked::on(permission, kind, name))?;
        }
    }
    let random = node.machine.randomness.as_ref();
    let id = new_id(random).map_err(Problem::internal)?;
    let secret = new_key(&id, random).map_err(Problem::internal)?;
    call.about(format!("key:{id}"));
    let command = Command::CreateKey {
        id: id.clone(),
        client: new.client_id,
        name: new.name,
        tenant: tenant(&call, new.tenant)?,
        scopes,
        sources: new.sources,
        rate_limit: new.rate_limit.unwrap_or(RATE_LIMIT),
        expires_at,
    };
    node.change(command.with(digest(&secret)), call.leaf(&node, StatusCode::CREATED)).await?;
    let mut made = node.people.directory().key(&id).map(|key| key_json(&node, key)).unwrap_or_default();
    made["api_key"] = secret.into();
    Ok((StatusCode::CREATED, Json(made)).into_response())
}

/// The key of that id, when the caller may look after it.
fn find(node: &Node, call: &Call, id: &str) -> Result<bool, Problem> {
    call.about(format!("key:{id}"));
    let principal = call.principal();
    let directory = node.people.directory();
    let known = directory.key(id).filter(|key| principal.is_of(&key.tenant));
    known
        .map(|key| key.active)
        .ok_or_else(|| Problem::not_found("key_not_found", format!("there is no key \"{id}\"")))
}

/// The keys, without their secrets.
#[utoipa::path(get, path = "/api/v1/keys/", tag = "keys", responses((status = 200, description = "{keys: […]}")))]
pub async fn list(State(node): State<Arc<Node>>, Extension(call): Extension<Arc<Call>>) -> Json<Value> {
    let principal = call.principal();
    let directory = node.people.directory();
    let keys = directory.keys().filter(|key| principal.is_of(&key.tenant));
    Json(json!({"keys": keys.map(|key| key_json(&node, key)).collect::<Vec<_>>()}))
}

/// Ends a key for good.
#[utoipa::path(delete, path = "/api/v1/keys/{id}", tag = "keys", params(("id" = String, Path, description = "id of a key")),
    responses((status = 204, description = "ended"), (status = 404, description = "no such key")))]
pub async fn remove(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    Path(id): Path<String>,
) -> Answer {
    find(&node, &call, &id)?;
    node.change(Command::DeleteKey { id }.into(), call.leaf(&node, StatusCode::NO_CONTENT)).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Turns a key off, or on again.
#[utoipa::path(post, path = "/api/v1/keys/{id}/toggle", tag = "keys", params(("id" = String, Path, description = "id of a key")),
    responses((status = 200, description = "the key; `active` is the new state"), (status = 404, description = "no such key")))]
pub async fn toggle(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    Path(id): Path<String>,
) -> Answer {
    let active = !find(&node, &call, &id)?;
    let command = Command::SetKeyActive { id: id.clone(), active };
    node.change(command.into(), call.leaf(&node, StatusCode::OK)).await?;
    let key = node.people.directory().key(&id).map(|key| key_json(&node, key));
    Ok(Json(key).into_response())
}

/// Another secret for a key; the old one ends now.
#[utoipa::path(post, path = "/api/v1/keys/{id}/rotate", tag = "keys", params(("id" = String, Path, description = "id of a key")),
    responses((status = 200, description = "the key with its new `api_key`"), (status = 404, description = "no such key")))]
pub async fn rotate(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    Path(id): Path<String>,
) -> Answer {
    find(&node, &call, &id)?;
    let secret = new_key(&id, node.machine.randomness.as_ref()).map_err(Problem::internal)?;
    let command = Command::RotateKey { id: id.clone() }.with(digest(&secret));
    node.change(command, call.leaf(&node, StatusCode::OK)).await?;
    let mut key = node.people.directory().key(&id).map(|key| key_json(&node, key)).unwrap_or_default();
    key["api_key"] = secret.into();
    key["prefix"] = key_prefix(&id).into();
    Ok(Json(key).into_response())
}
