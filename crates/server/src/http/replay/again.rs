//! Declared replays (`CREATE ENDPOINT POST … REPLAYS stream`): old events happen again now, linked to their originals,
//! the first that fits at once, or all that fit as a job.
//!
//! What happens again is an original, never an event that a replay has brought. A job gives each event the time at
//! which a job of its name was begun first, or its own when it came later: so a job that is begun again, or a second one
//! of that name, appends nothing twice.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::{Int32Type, Int64Type};
use async_trait::async_trait;
use axum::Json;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use datafusion::common::ScalarValue;
use highwater_auth::Asked;
use highwater_event::Principal;
use highwater_sql::adhoc::endpoint_values;
use highwater_sql::catalog::{Intake, Replays, Taking};
use highwater_sql::dialect::quoted;
use serde_json::{Map, Value, json};

use super::{ORIGINAL, Replay, Times};
use crate::http::call::Call;
use crate::http::endpoints::first_row;
use crate::http::jobs::{self, Offered, members, plain_members};
use crate::http::problem::{Answer, Problem};
use crate::http::streams;
use crate::node::jobs::{Alone, Kind, Order, Setback, Work};
use crate::node::{Node, Reader, is_shared};

/// The name of jobs that none is given.
const USUAL_NAME: &str = "usual";

type Values = Vec<(String, ScalarValue)>;

/// The values of parameters in a body; `beside` are members that mean something else.
async fn values(node: &Node, replays: &Replays, body: &Value, beside: &[&str]) -> Result<Values, Problem> {
    let own: Vec<&str> = replays.parameters.iter().map(|parameter| parameter.name.as_str()).collect();
    let known: Vec<&str> = own.iter().chain(beside).copied().collect();
    let given =
        plain_members(members(body, &known)?)?.into_iter().filter(|(name, _)| own.contains(&name.as_str()));
    let given: HashMap<String, String> = given.collect();
    Ok(endpoint_values(&node.engine, &replays.parameters, &given).await?)
}

fn replays_of(intake: &Intake) -> Option<&Replays> {
    if let Taking::Again(replays) = &intake.taking { Some(replays) } else { None }
}

impl Replay {
    /// A declared replay of all that fit.
    async fn declared(
        node: &Arc<Node>,
        call: Arc<Call>,
        intake: &Intake,
        replays: &Replays,
        values: Values,
        times: Times,
    ) -> Result<Self, Problem> {
        let stream = streams::find(node, intake.into.as_str())?.schema.clone();
        let reader = Reader::Endpoint(call.identity.clone());
        let mut condition = format!("({})", replays.condition.as_deref().unwrap_or("TRUE"));
        if let Times::From { until, .. } = times {
            condition.push_str(&super::recorded_by(until));
        }
        let replay = Self {
            reader,
            // Whoever begins it: what has happened again has, for everybody.
            sender: Principal::engine(),
            set: Some(replays.set.clone()),
            times,
            ..Self::new(node.clone(), call, (stream.clone(), stream), condition, values)
        };
        Ok(replay)
    }
}

/// Answers a declared replay.
pub async fn answer(node: &Arc<Node>, call: &Arc<Call>, intake: &Arc<Intake>, body: &[u8]) -> Answer {
    let Some(replays) = replays_of(intake) else { return Err(Problem::internal("this is no replay")) };
    let body: Value = if body.trim_ascii().is_empty() {
        json!({})
    } else {
        serde_json::from_slice(body)
            .map_err(|error| Problem::bad_request("malformed_json", error.to_string()))?
    };
    if replays.job {
        values(node, replays, &body, &["name", "dry_run"]).await?;
        let input = json!({"endpoint": intake.path, "given": body});
        let job = jobs::begin(node, call, AgainJob.name(), input).await?;
        let message = format!("job {} was begun; GET /api/v1/jobs/{} says how far it is", job.id, job.id);
        let answer = json!({"status": "success", "message": message, "job_id": job.id});
        return Ok((StatusCode::ACCEPTED, Json(answer)).into_response());
    }
    jobs::only_approved(node, call, &Alone::replay(intake.into.public()))?;
    let values = values(node, replays, &body, &[]).await?;
    let mut replay = Replay::declared(node, call.clone(), intake, replays, values, Times::Now).await?;
    let first = format!(
        "SELECT _partition, _offset FROM {} WHERE {} ORDER BY _recorded_at, _partition, _offset LIMIT 1",
        quoted(intake.into.as_str()),
        replay.condition
    );
    let found = replay.ask(first).await?;
    let place = found.batches.iter().find(|batch| batch.num_rows() > 0).map(|batch| {
        let partition = batch.column(0).as_primitive::<Int32Type>().value(0);
        (partition.unsigned_abs(), batch.column(1).as_primitive::<Int64Type>().value(0).unsigned_abs())
    });
    let missing = || Problem::not_found("not_found", format!("no event of \"{}\" fits", intake.into));
    let (partition, offset) = place.ok_or_else(missing)?;
    let totals = replay.append(partition, &[offset]).await?;
    let Some((to_partition, to_offset)) = totals.last else {
        return Err(if totals.rejected > 0 {
            let detail = "the event does not fit its stream any more; it is a dead letter";
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "event_rejected", detail)
        } else {
            missing()
        });
    };
    // Its entry is in the commit of the event.
    call.settle();
    let shown = format!(
        "SELECT * FROM {} WHERE _partition = {to_partition} AND _offset = {to_offset}",
        quoted(intake.into.as_str())
    );
    replay.parameters.clear();
    let row = first_row(&replay.ask(shown).await?);
    let mut event: Map<String, Value> =
        if row.is_empty() { Map::new() } else { serde_json::from_str(&row).map_err(Problem::internal)? };
    event.retain(|name, value| !name.starts_with('_') && !value.is_null());
    event.extend(replays.set.clone());
    let stream = intake.into.public();
    event.insert(ORIGINAL.into(), json!({"stream": stream, "partition": partition, "offset": offset}));
    let message = format!("the event was sent again; it is at offset {to_offset} of {stream}");
    Ok(Json(json!({"status": "success", "message": message, "new_data": event})).into_response())
}

/// A declared replay of all that fit.
pub struct AgainJob;

/// What a job was told: the endpoint, and what was given to it.
async fn told(
    node: &Arc<Node>,
    identity: &highwater_auth::Identity,
    input: &Value,
) -> Result<(Arc<Intake>, Values, String, bool), Problem> {
    let input = members(input, &["endpoint", "given"])?;
    let path = input.get("endpoint").and_then(Value::as_str).unwrap_or_default().trim_end_matches('/');
    let catalog = node.catalog();
    let intake = catalog.intake("POST", path).cloned();
    let missing = || Problem::parameter("input", "endpoint is the path of one that REPLAYS a stream AS JOB");
    let intake = intake.filter(|intake| replays_of(intake).is_some_and(|it| it.job)).ok_or_else(missing)?;
    let replays = replays_of(&intake).ok_or_else(missing)?;
    let shared = is_shared(&catalog, &intake.into);
    node.authorize(identity, Asked::on(&replays.permission, "endpoint", &intake.path).shared(shared))?;
    let given = input.get("given").cloned().unwrap_or_else(|| json!({}));
    let values = values(node, replays, &given, &["name", "dry_run"]).await?;
    let name = given.get("name").and_then(Value::as_str).unwrap_or(USUAL_NAME).to_owned();
    let dry_run = given.get("dry_run") == Some(&Value::Bool(true));
    Ok((intake, values, name, dry_run))
}

#[async_trait]
impl Kind for AgainJob {
    fn name(&self) -> &'static str {
        "repush"
    }

    fn alone(&self, node: &Node, input: &Value) -> Option<Alone> {
        let path = input["endpoint"].as_str()?.trim_end_matches('/');
        let stream = node.catalog().intake("POST", path)?.into.clone();
        (input["given"]["dry_run"] != true).then(|| Alone::replay(stream.public()))
    }

    async fn begin(&self, node: &Arc<Node>, order: &Order) -> Result<Box<dyn Work>, Setback> {
        let (intake, values, name, dry_run) = told(node, &order.identity, &order.job.input).await?;
        let replays = replays_of(&intake).ok_or_else(|| Setback::lasting("internal", "this is no replay"))?;
        // What the first job of that name was begun at is the time of them all.
        let namesakes = node.jobs.list(|job| {
            let given = &job.input["given"];
            job.kind == order.job.kind
                && job.input["endpoint"] == order.job.input["endpoint"]
                && given["dry_run"] != true
                && given["name"].as_str().unwrap_or(USUAL_NAME) == name
        });
        let until = order.job.submitted_at;
        let first =
            namesakes.iter().map(|job| job.submitted_at).min().map_or(until, |first| first.min(until));
        let call =
            Arc::new(Call::of_job(node, order, &replays.permission, format!("stream:{}", intake.into)));
        let times = Times::From { first, until };
        let mut replay = Replay::declared(node, call, &intake, replays, values, times).await?;
        replay.find().await?;
        Ok(super::job::work(node, replay, None, dry_run))
    }
}

#[async_trait]
impl Offered for AgainJob {
    async fn check(&self, node: &Arc<Node>, call: &Arc<Call>, input: &Value) -> Result<(), Problem> {
        told(node, &call.identity, input).await.map(drop)
    }
}
