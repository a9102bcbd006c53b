//! Calls for whoever keeps the node running: the lake's history, housekeeping, backup.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::IntoResponse;
use axum::{Extension, Json};
use highwater_event::time;
use highwater_lake::{LakeStream, Moment};
use highwater_sql::adhoc;
use serde::Deserialize;
use serde_json::{Value, json};

use super::call::Call;
use super::problem::{Answer, Problem};
use super::streams;
use crate::node::{Fixed, Node, QUERY_LIMITS};

fn lake_of(node: &Node, name: &str) -> Result<Arc<LakeStream>, Problem> {
    let entry = streams::find(node, name)?;
    node.lake(&entry.schema.name).ok_or_else(|| {
        Problem::not_found("stream_not_found", format!("stream \"{name}\" is not kept in the lake"))
    })
}

/// How many versions.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct VersionsQuery {
    /// At most so many, default 20, largest 1,000.
    limit: Option<usize>,
}

/// The newest versions of a stream's lake, newest first.
#[utoipa::path(get, path = "/api/v1/lake/{stream}/versions", tag = "lake", params(("stream" = String, Path, description = "name of a stream"), VersionsQuery),
    responses((status = 200, description = "{versions: [{version, committed_at, operation}]}"), (status = 404, description = "no such stream")))]
pub async fn versions(
    State(node): State<Arc<Node>>,
    Path(name): Path<String>,
    query: Result<Query<VersionsQuery>, QueryRejection>,
) -> Answer {
    let Query(query) = query?;
    let lake = lake_of(&node, &name)?;
    let versions =
        lake.versions(query.limit.unwrap_or(20).clamp(1, 1000)).await.map_err(Problem::internal)?;
    let versions: Vec<Value> = versions
        .into_iter()
        .map(|version| {
            let at = version.committed_at.map(|millis| time::show_micros(millis.saturating_mul(1000)));
            json!({"version": version.version, "committed_at": at, "operation": version.operation})
        })
        .collect();
    Ok(Json(json!({"versions": versions})).into_response())
}

/// Which versions are compared.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct DiffQuery {
    /// The earlier version.
    from: u64,
    /// The later one; without it the newest.
    to: Option<u64>,
}

/// How many events were added to a stream's lake between two versions, and how many were taken out.
#[utoipa::path(get, path = "/api/v1/lake/{stream}/diff", tag = "lake", params(("stream" = String, Path, description = "name of a stream"), DiffQuery),
    responses((status = 200, description = "{from, to, changes: [{change, rows}]}"), (status = 404, description = "no such stream or version")))]
pub async fn diff(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    Path(name): Path<String>,
    query: Result<Query<DiffQuery>, QueryRejection>,
) -> Answer {
    let Query(DiffQuery { from, to }) = query?;
    let entry = streams::find(&node, &name)?;
    let lake = lake_of(&node, &name)?;
    let to = to.unwrap_or_else(|| lake.size().2);
    let lens = node.lens(&call.identity, "stream", &entry.schema.name.at_version(1));
    let positions = |version: u64| {
        let (node, schema) = (node.clone(), entry.schema.clone());
        let lens = lens.clone();
        async move { node.stream_at(&schema, Moment::Version(version), lens).await }
    };
    let (before, after) = (positions(from).await?, positions(to).await?);
    let relations = Arc::new(Fixed::several([("before".to_owned(), before), ("after".to_owned(), after)]));
    let count = |kept: &'static str, gone: &'static str| {
        let (node, relations) = (node.clone(), relations.clone());
        let asked = node.clone();
        let sql = format!(
            "SELECT count(*) AS rows FROM {kept} a LEFT ANTI JOIN {gone} b ON a._partition = b._partition AND a._offset = b._offset"
        );
        async move {
            let result =
                node.ask(async move {
                    adhoc::query(&asked.engine, relations, &sql, Vec::new(), QUERY_LIMITS).await
                })
                .await?;
            Ok::<i64, Problem>(only_number(&result))
        }
    };
    let (added, removed) = (count("after", "before").await?, count("before", "after").await?);
    let changes = json!([{"change": "added", "rows": added}, {"change": "removed", "rows": removed}]);
    Ok(Json(json!({"from": from, "to": to, "changes": changes})).into_response())
}

/// The one number that a query answers.
fn only_number(result: &adhoc::QueryResult) -> i64 {
    let rows = result.batches.iter().find(|batch| batch.num_rows() > 0);
    rows.map_or(0, |batch| batch.column(0).as_primitive::<Int64Type>().value(0))
}

/// One round of housekeeping, now: compaction, retention, vacuum, old segments of the log.
#[utoipa::path(post, path = "/api/v1/maintenance", tag = "operate", responses((status = 200, description = "what was done")))]
pub async fn maintain(State(node): State<Arc<Node>>) -> Answer {
    let kept = node.keep_house(true).await.map_err(|error| Problem::internal(format!("{error:#}")))?;
    Ok(Json(kept).into_response())
}

/// Where to.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BackupRequest {
    /// An empty folder on the node's machine, by its whole path.
    #[schema(value_type = String)]
    to: PathBuf,
}

/// Copies log, lake and secrets into a folder while the node goes on. The copy is a data folder.
#[utoipa::path(post, path = "/api/v1/backup", tag = "operate", request_body = BackupRequest,
    responses((status = 200, description = "{log_bytes}"), (status = 400, description = "the folder is not empty or can't be written")))]
pub async fn backup(
    State(node): State<Arc<Node>>,
    body: Result<Json<BackupRequest>, JsonRejection>,
) -> Answer {
    let Json(request) = body?;
    let bytes = node
        .back_up(&request.to)
        .await
        .map_err(|error| Problem::bad_request("backup_failed", format!("{error:#}")))?;
    Ok(Json(json!({"log_bytes": bytes})).into_response())
}
