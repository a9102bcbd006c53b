//! Declaring, and what is declared.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::{Extension, Json};
use highwater_event::StreamName;
use highwater_sql::catalog::TableEntry;
use serde::Deserialize;
use serde_json::{Value, json};

use super::call::Call;
use super::jobs;
use super::problem::{Answer, Problem};
use crate::node::{FORBIDDEN, Node, Script};
use highwater_sql::dialect::{Kind, sql_type};

/// A script.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeclareRequest {
    /// Statements with semicolons between them.
    sql: String,
    /// Content of the files that statements name, such as the CSV of a reference table.
    #[serde(default)]
    files: BTreeMap<String, String>,
    /// Check only.
    #[serde(default)]
    dry_run: bool,
}

/// Declares streams, tables, reference tables and endpoints. All of a script takes effect, or nothing.
#[utoipa::path(post, path = "/api/v1/statements", tag = "declare", request_body = DeclareRequest,
    responses((status = 200, description = "what became of each statement"), (status = 400, description = "a statement is wrong; `rendered` shows where"),
        (status = 409, description = "something of that name is declared differently")))]
pub async fn declare(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    body: Result<Json<DeclareRequest>, JsonRejection>,
) -> Answer {
    let Json(request) = body?;
    let script = Script { text: request.sql, files: request.files };
    // What can't be parsed is told by the declaration itself, with its place.
    match node.authorize_script(&call.identity, &script.text) {
        Err(error) if error.code == FORBIDDEN => return Err(error.into()),
        _ => {}
    }
    jobs::check_schedules(&node, &call, &script.text).await?;
    let outcomes = node.declare(&script, &call.leaf(&node, StatusCode::OK), request.dry_run).await?;
    Ok((StatusCode::OK, Json(json!({"statements": outcomes, "dry_run": request.dry_run}))).into_response())
}

/// Every statement that is in force.
#[utoipa::path(get, path = "/api/v1/statements", tag = "declare", responses((status = 200, description = "statements by kind and name")))]
pub async fn list(State(node): State<Arc<Node>>) -> Json<Value> {
    let catalog = node.catalog();
    let streams = catalog.streams.iter().map(|(name, entry)| ("stream", name.to_string(), &entry.text));
    let references = catalog
        .references
        .values()
        .map(|entry| ("reference table", entry.table.name.to_string(), &entry.text));
    let tables = catalog.tables.iter().map(|(name, entry)| ("table", name.to_string(), &entry.text));
    let endpoints = catalog.endpoints.values().map(|entry| ("endpoint", entry.path.clone(), &entry.text));
    let models = catalog.models.values().map(|entry| ("model", entry.name.to_string(), &entry.text));
    let intakes = catalog.intakes.values();
    let intakes = intakes.map(|entry| (Kind::Intake(entry.method).text(), entry.path.clone(), &entry.text));
    let statements: Vec<Value> = references
        .chain(streams)
        .chain(tables)
        .chain(endpoints)
        .chain(intakes)
        .chain(models)
        .filter(|(_, _, text)| !text.is_empty())
        .map(|(kind, name, text)| json!({"kind": kind, "name": name, "sql": text}))
        .collect();
    let building: Vec<Value> = catalog
        .building
        .values()
        .map(|building| {
            let names: Vec<String> = building.names().iter().map(ToString::to_string).collect();
            let views: Vec<Value> =
                node.building_views(building).into_iter().map(|status| json!(status)).collect();
            json!({"name": building.root.as_str(), "statements": names, "views": views})
        })
        .collect();
    let paused: Vec<String> = catalog.paused.iter().map(ToString::to_string).collect();
    Json(json!({"statements": statements, "building": building, "paused": paused}))
}

fn table_json(node: &Node, entry: &TableEntry) -> Value {
    use highwater_log::fold::Program;
    let program = &entry.program;
    let columns: Vec<Value> = program
        .schema()
        .fields()
        .iter()
        .map(|field| json!({"name": field.name(), "type": sql_type(field.data_type())}))
        .collect();
    let status = node.driver.status(program.name());
    json!({
        "name": program.table().public(),
        "source": program.source().name.public(),
        "columns": columns,
        "windowed": program.window().is_some(),
        "lag": status.as_ref().map(|status| status.lag),
        "state": status.as_ref().map(|status| status.state),
        "sql": entry.text,
    })
}

/// The tables.
#[utoipa::path(get, path = "/api/v1/tables", tag = "declare", responses((status = 200, description = "tables with columns and lag")))]
pub async fn tables(State(node): State<Arc<Node>>) -> Json<Value> {
    let catalog = node.catalog();
    Json(json!({"tables": catalog.tables.values().map(|entry| table_json(&node, entry)).collect::<Vec<_>>()}))
}

/// One table.
#[utoipa::path(get, path = "/api/v1/tables/{table}", tag = "declare", params(("table" = String, Path, description = "name of a table")),
    responses((status = 200, description = "the table"), (status = 404, description = "no such table")))]
pub async fn table(State(node): State<Arc<Node>>, Path(name): Path<String>) -> Answer {
    let catalog = node.catalog();
    let entry = StreamName::new(&name).ok().and_then(|name| catalog.tables.get(&name));
    match entry {
        Some(entry) => Ok(Json(table_json(&node, entry)).into_response()),
        None => Err(Problem::not_found("table_not_found", format!("no table \"{name}\""))),
    }
}

/// The declared endpoints.
#[utoipa::path(get, path = "/api/v1/endpoints", tag = "declare", responses((status = 200, description = "endpoints with parameters and permission")))]
pub async fn endpoints(State(node): State<Arc<Node>>) -> Json<Value> {
    let catalog = node.catalog();
    let endpoints: Vec<Value> = catalog
        .endpoints
        .values()
        .map(|endpoint| {
            let parameters: Vec<Value> = endpoint
                .parameters
                .iter()
                .map(|parameter| {
                    json!({
                        "name": parameter.name,
                        "type": if parameter.tenant { "TENANT".into() } else { sql_type(&parameter.data_type) },
                        "required": parameter.default.is_none(),
                        "check": parameter.check,
                    })
                })
                .collect();
            json!({"path": format!("{}/", endpoint.path), "method": if endpoint.posted { "POST" } else { "GET" }, "requires": endpoint.permission, "parameters": parameters, "sql": endpoint.text})
        })
        .chain(catalog.intakes.values().map(|intake| {
            json!({"path": format!("{}/", intake.path), "method": intake.method.text(), "requires": intake.requires(), "into": intake.into.public(), "sql": intake.text})
        }))
        .collect();
    Json(json!({"endpoints": endpoints}))
}
