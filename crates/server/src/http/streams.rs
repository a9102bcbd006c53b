//! Streams: what there is, and their newest events.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::IntoResponse;
use axum::{Extension, Json};
use highwater_event::name::nearest;
use highwater_event::{StreamName, StreamPartition, StreamSchema};
use highwater_sql::StreamEntry;
use highwater_sql::adhoc::{self, StreamRows, stream_relation};
use serde::Deserialize;
use serde_json::{Value, json};

use super::call::Call;
use super::problem::{Answer, Problem};
use super::sql::{rows, typed};
use crate::node::{Fixed, Node, QUERY_LIMITS};
use highwater_sql::dialect::column_type;

/// The stream of that name, or a problem with the nearest name.
pub fn find(node: &Node, name: &str) -> Result<Arc<StreamEntry>, Problem> {
    let catalog = node.catalog();
    let entry = StreamName::new(name).ok().and_then(|name| catalog.streams.get(&name).cloned());
    entry.ok_or_else(|| {
        let problem = Problem::not_found("stream_not_found", format!("no stream \"{name}\""));
        match nearest(name, catalog.streams.keys().map(StreamName::as_str)) {
            Some(near) => problem.hint(format!("did you mean \"{near}\"?")),
            None => problem,
        }
    })
}

fn stream_json(node: &Node, entry: &StreamEntry) -> Value {
    let schema = &entry.schema;
    let events: u64 = ends(node, schema).into_values().sum();
    let columns: Vec<Value> = schema
        .columns
        .iter()
        .map(|column| {
            json!({
                "name": column.name,
                "type": column_type(column),
                "nullable": column.nullable,
                "sensitive": schema.is_sensitive(&column.name),
            })
        })
        .collect();
    let origin = match &entry.derivation {
        Some(derivation) => derivation.origin(),
        None if schema.raw => "door".into(),
        None => "engine".into(),
    };
    let lake = node.lake(&schema.name).map(|lake| {
        let (files, bytes, version) = lake.size();
        json!({"files": files, "bytes": bytes, "version": version})
    });
    let view = node.driver.status(&format!("stream:{}", schema.name));
    json!({
        "name": schema.name.public(),
        "origin": origin,
        "events": events,
        "columns": columns,
        "lake": lake,
        "lag": view.map(|view| view.lag),
        "sql": entry.text,
    })
}

fn ends(node: &Node, schema: &StreamSchema) -> BTreeMap<u32, u64> {
    let log = node.log();
    log.partitions(&schema.name)
        .into_iter()
        .map(|partition| (partition, log.end(&StreamPartition::new(schema.name.clone(), partition))))
        .collect()
}

/// The streams, the engine's own included.
#[utoipa::path(get, path = "/api/v1/streams", tag = "declare", responses((status = 200, description = "streams with columns, number of events and lake")))]
pub async fn list(State(node): State<Arc<Node>>) -> Json<Value> {
    let catalog = node.catalog();
    Json(
        json!({"streams": catalog.streams.values().map(|entry| stream_json(&node, entry)).collect::<Vec<_>>()}),
    )
}

/// One stream.
#[utoipa::path(get, path = "/api/v1/streams/{stream}", tag = "declare", params(("stream" = String, Path, description = "name of a stream")),
    responses((status = 200, description = "the stream"), (status = 404, description = "no such stream")))]
pub async fn show(State(node): State<Arc<Node>>, Path(name): Path<String>) -> Answer {
    let entry = find(&node, &name)?;
    Ok(Json(stream_json(&node, &entry)).into_response())
}

/// Which events.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct TailQuery {
    /// First offset; without it the newest events.
    from: Option<u64>,
    /// Partition, default 0.
    partition: Option<u32>,
    /// At most so many, default 100, largest 10,000.
    limit: Option<usize>,
}

/// Events of a stream in the order of the log, newest last. `next` is the `from` of the next call.
#[utoipa::path(get, path = "/api/v1/streams/{stream}/events", tag = "query", params(("stream" = String, Path, description = "name of a stream"), TailQuery),
    responses((status = 200, description = "{events: […], next}"), (status = 404, description = "no such stream")))]
pub async fn tail(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    Path(name): Path<String>,
    query: Result<Query<TailQuery>, QueryRejection>,
) -> Answer {
    let Query(query) = query?;
    let entry = find(&node, &name)?;
    let schema = &entry.schema;
    let partition = query.partition.unwrap_or(0);
    let limit = query.limit.unwrap_or(100).clamp(1, 10_000);
    let end = ends(&node, schema).get(&partition).copied().unwrap_or(0);
    let from = query.from.unwrap_or(end.saturating_sub(limit as u64)).min(end);
    let mut marks: BTreeMap<u32, u64> = ends(&node, schema);
    marks.insert(partition, from);
    let hot = node.hot_rows(schema, &marks, Some(limit))?;
    let read: u64 = hot.iter().map(|batch| batch.num_rows() as u64).sum();
    let lens = node.lens(&call.identity, "stream", &schema.name.at_version(1));
    let relation = stream_relation(&node.engine, schema, StreamRows { hot, lens, ..StreamRows::default() })?;
    let hidden = if schema.raw { ", _extra" } else { "" };
    let columns: Vec<String> = schema.columns.iter().map(|column| format!("\"{}\"", column.name)).collect();
    let sql = format!(
        "SELECT {}{hidden}, _event_time, _recorded_at, _partition, _offset FROM rows ORDER BY _offset LIMIT {limit}",
        columns.join(", ")
    );
    let result =
        adhoc::query(&node.engine, Arc::new(Fixed::new("rows", relation)), &sql, Vec::new(), QUERY_LIMITS)
            .await?;
    let names = result.names();
    // Rows that are not for this reader are passed over, too.
    let next = from + read.min(limit as u64);
    let body = format!("{{\"events\":[{}],\"next\":{next}}}", rows(&result, &names, ","));
    call.saw("offsets", serde_json::json!({"partition": partition, "from": from, "next": next}));
    call.saw_rows(&node, result.row_count(), body.as_bytes());
    Ok(typed("application/json", body))
}
