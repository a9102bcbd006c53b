//! Calls about jobs and schedules, and the kinds of work that there are (`work`).

mod work;

use std::sync::Arc;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::{Extension, Json};
use datafusion::common::ScalarValue;
use highwater_auth::Asked;
use highwater_event::name::nearest;
use highwater_event::time::show_micros;
use highwater_sql::dialect::{Statement, parse_script};
use serde::Deserialize;
use serde_json::{Value, json};

use super::call::Call;
use super::problem::{Answer, Problem};
use super::sql::rows;
use crate::node::Node;
use crate::node::jobs::{Alone, JOBS, Job, NewJob, State as JobState};

pub use work::{Offered, kinds, members, plain_members};

/// Changes of a job that are shown with it.
const SHOWN: usize = 100;

/// Which jobs.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields, default)]
pub struct Which {
    /// `unapproved`, `waiting`, `running`, `finished`, `failed` or `cancelled`; all when nothing is said.
    state: Option<String>,
    /// The kind of work.
    kind: Option<String>,
    /// The schedule that has begun them.
    schedule: Option<String>,
    /// At most so many, default 50, largest 1,000.
    limit: Option<usize>,
}

/// A job that is wanted.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobRequest {
    /// The kind of work, such as `replay`, `retry_dead_letters`, `train`, `maintenance`, `retention` or `verify`.
    kind: String,
    /// What it is told.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    input: Option<Value>,
}

fn shown(job: &Job) -> Value {
    let mut shown = json!(job);
    shown["submitted_at"] = show_micros(job.submitted_at).into();
    shown["changed_at"] = show_micros(job.changed_at).into();
    shown["again_at"] = job.again_at.map(show_micros).into();
    shown["due"] = job.due.map(show_micros).into();
    shown
}

/// Whether a caller may know of a job: their own, and those of their tenants for whoever looks after them.
fn is_visible(node: &Node, call: &Call, job: &Job) -> bool {
    let principal = call.principal();
    let own = *job.principal == *principal.name && *job.tenant == *principal.tenant;
    own || (principal.is_of(&job.tenant) && node.allows(&call.identity, Asked::node("operate")))
}

fn find(node: &Node, call: &Call, id: &str) -> Result<Job, Problem> {
    let found = node.jobs.get(id).filter(|job| is_visible(node, call, job));
    found.ok_or_else(|| {
        Problem::not_found("job_not_found", format!("there is no job \"{id}\", or not for you"))
    })
}

/// Jobs, the newest first.
#[utoipa::path(get, path = "/api/v1/jobs", tag = "jobs", params(Which),
    responses((status = 200, description = "{jobs: [{id, kind, state, input, principal, tenant, schedule, due, attempts, failures, done, of, said, error, approved_by, submitted_at, changed_at, again_at}]}"), (status = 400, description = "a parameter is wrong")))]
pub async fn list(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    which: Result<Query<Which>, QueryRejection>,
) -> Answer {
    let Query(which) = which?;
    let states = ["unapproved", "waiting", "running", "finished", "failed", "cancelled"];
    if let Some(state) = which.state.as_deref().filter(|state| !states.contains(state)) {
        return Err(Problem::parameter("state", format!("\"{state}\" is not one of {}", states.join(", "))));
    }
    let is = |wanted: &Option<String>, found: Option<&str>| wanted.is_none() || wanted.as_deref() == found;
    let mut jobs = node.jobs.list(|job| {
        let state = json!(job.state);
        is(&which.state, state.as_str())
            && is(&which.kind, Some(&job.kind))
            && is(&which.schedule, job.schedule.as_deref())
            && is_visible(&node, &call, job)
    });
    jobs.truncate(which.limit.unwrap_or(50).clamp(1, 1_000));
    let jobs: Vec<Value> = jobs.iter().map(shown).collect();
    call.saw("rows", jobs.len());
    Ok(Json(json!({"jobs": jobs})).into_response())
}

/// One job, and what became of it, the newest first.
#[utoipa::path(get, path = "/api/v1/jobs/{id}", tag = "jobs", params(("id" = String, Path, description = "its id")),
    responses((status = 200, description = "the job, with changes: [{at, change, attempt, done, of, detail}]"), (status = 404, description = "there is none")))]
pub async fn show(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    Path(id): Path<String>,
) -> Answer {
    let job = find(&node, &call, &id)?;
    let sql = format!(
        "SELECT _event_time AS at, change, attempt, done, \"of\", json(detail) AS detail FROM {JOBS} WHERE job = $job ORDER BY _offset DESC LIMIT {SHOWN}"
    );
    let found = node.ask_engine(sql, vec![("job".to_owned(), ScalarValue::Utf8(Some(id)))]).await?;
    let names = found.names();
    let changes = rows(&found, &names, ",");
    let mut body = shown(&job);
    body["changes"] = serde_json::from_str(&format!("[{changes}]")).map_err(Problem::internal)?;
    Ok(Json(body).into_response())
}

/// Begins a job. It goes on when the caller goes away and when the node is stopped in between. When a policy wants a second
/// person for it, it is `unapproved` and waits for them.
#[utoipa::path(post, path = "/api/v1/jobs", tag = "jobs", request_body = JobRequest,
    responses((status = 202, description = "the job"), (status = 400, description = "there is no such kind of work, or what it is told is wrong"), (status = 403, description = "the work needs a permission, which is named")))]
pub async fn submit(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    body: Result<Json<JobRequest>, JsonRejection>,
) -> Answer {
    let Json(request) = body.map_err(|rejection| {
        Problem::from(rejection).hint("send {\"kind\": \"replay\", \"input\": {\"stream\": \"…\"}}")
    })?;
    let job = begin(&node, &call, &request.kind, request.input.unwrap_or_else(|| json!({}))).await?;
    Ok((StatusCode::ACCEPTED, Json(shown(&job))).into_response())
}

/// Jobs are for people and services.
fn no_key(call: &Call, done: &str) -> Result<(), Problem> {
    if call.identity.key.is_none() {
        return Ok(());
    }
    let detail = format!("a key is for events; jobs are {done} by users and services");
    Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", detail))
}

/// Whether what the schedules of a script begin could be begun by whoever declares them: what they are told has the right form, and
/// they have the permission. What can't be parsed is told by the declaration itself.
pub async fn check_schedules(node: &Arc<Node>, call: &Arc<Call>, script: &str) -> Result<(), Problem> {
    for declared in parse_script(script).unwrap_or_default() {
        let Statement::CreateSchedule { name, schedule } = declared.statement else { continue };
        let Some(known) = work::KINDS.iter().find(|known| known.name() == schedule.job) else { continue };
        match known.check(node, call, &json!(schedule.input)).await {
            // What it is about may be declared by the same script, or later.
            Err(problem) if !problem.is_not_found() => {
                return Err(problem.hint(format!("this is what schedule {name} would begin")));
            }
            _ => call.about(format!("schedule:{name}")),
        }
    }
    Ok(())
}

/// Puts a job on the log when it is one that the caller may have done.
pub async fn begin(node: &Arc<Node>, call: &Arc<Call>, kind: &str, input: Value) -> Result<Job, Problem> {
    let known = work::KINDS.iter().find(|known| known.name() == kind);
    let known = known.ok_or_else(|| {
        let problem = Problem::bad_request("unknown_job", format!("there is no job \"{kind}\""));
        match nearest(kind, work::KINDS.iter().map(|known| known.name())) {
            Some(near) => problem.hint(format!("did you mean \"{near}\"?")),
            None => problem,
        }
    })?;
    no_key(call, "begun")?;
    known.check(node, call, &input).await?;
    let proposed = known.alone(node, &input).is_some_and(|alone| !alone.is_allowed(node, &call.identity));
    let wanted = NewJob { id: None, kind: known.name().into(), input, schedule: None, proposed };
    call.saw("kind", known.name());
    if proposed {
        call.saw("state", "unapproved");
    }
    Ok(node.submit_job(call.principal(), wanted, &call.leaf(node, StatusCode::ACCEPTED)).await?)
}

/// Approves a job that waits for a second person: somebody else who could have begun it.
#[utoipa::path(post, path = "/api/v1/jobs/{id}/approve", tag = "jobs", params(("id" = String, Path, description = "its id")),
    responses((status = 202, description = "the job"), (status = 403, description = "it is the caller's own, or they could not have begun it"), (status = 404, description = "there is none"),
        (status = 400, description = "what it was told does not fit any more"), (status = 409, description = "it waits for nobody")))]
pub async fn approve(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    Path(id): Path<String>,
) -> Answer {
    let job = node.jobs.get(&id).filter(|job| call.principal().is_of(&job.tenant));
    let job = job.ok_or_else(|| Problem::not_found("job_not_found", format!("there is no job \"{id}\"")))?;
    no_key(&call, "approved")?;
    if job.principal == call.principal().name {
        let detail = format!("job \"{id}\" is yours: somebody else has to approve it");
        return Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", detail));
    }
    if let Some(known) = work::KINDS.iter().find(|known| *known.name() == *job.kind) {
        known.check(&node, &call, &job.input).await?;
    }
    call.about(format!("job:{id}"));
    if job.state != JobState::Unapproved || job.cancel_asked {
        let detail = format!("job \"{id}\" waits for no approval");
        return Err(
            Problem::new(StatusCode::CONFLICT, "nothing_to_approve", detail).with("state", json!(job.state))
        );
    }
    call.saw("kind", job.kind.as_ref());
    call.saw("submitted_by", job.principal.as_ref());
    let leaf = call.leaf(&node, StatusCode::ACCEPTED);
    let job = node.approve_job(&job, &call.principal().name, &leaf).await?;
    Ok((StatusCode::ACCEPTED, Json(shown(&job))).into_response())
}

/// Answers that something can only be done as a job that somebody else approves.
pub fn only_approved(node: &Node, call: &Call, alone: &Alone) -> Result<(), Problem> {
    if alone.is_allowed(node, &call.identity) {
        return Ok(());
    }
    Err(Problem::new(StatusCode::CONFLICT, "approval_needed", alone.detail())
        .hint("begin it as a job (POST /api/v1/jobs), and have it approved (POST /api/v1/jobs/{id}/approve)"))
}

/// Asks for a job to end. It does so after the part that it is at.
#[utoipa::path(post, path = "/api/v1/jobs/{id}/cancel", tag = "jobs", params(("id" = String, Path, description = "its id")),
    responses((status = 202, description = "the job"), (status = 404, description = "there is none"), (status = 409, description = "it has ended")))]
pub async fn cancel(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    Path(id): Path<String>,
) -> Answer {
    call.about(format!("job:{id}"));
    let job = find(&node, &call, &id)?;
    if job.state.is_end() {
        let detail = format!("job \"{id}\" has ended");
        return Err(Problem::new(StatusCode::CONFLICT, "job_ended", detail).with("state", json!(job.state)));
    }
    let job = node.cancel_job(&job, &call.leaf(&node, StatusCode::ACCEPTED)).await?;
    Ok((StatusCode::ACCEPTED, Json(shown(&job))).into_response())
}

/// The schedules, with the time that each is due next.
#[utoipa::path(get, path = "/api/v1/schedules", tag = "jobs", responses((status = 200, description = "{schedules: [{name, cron, time_zone, missed, job, input, next, last}]}")))]
pub async fn schedules(State(node): State<Arc<Node>>) -> Json<Value> {
    let now = node.machine.clock.now_micros();
    let catalog = node.catalog();
    let schedules: Vec<Value> = catalog
        .schedules
        .values()
        .map(|entry| {
            let schedule = &entry.schedule;
            let mut jobs = node.jobs.list(|job| job.schedule.as_deref() == Some(entry.name.as_str()));
            jobs.truncate(1);
            json!({
                "name": entry.name.as_str(), "cron": schedule.pattern, "time_zone": schedule.zone,
                "missed": if schedule.catch_up { "run" } else { "skip" }, "job": schedule.job, "input": schedule.input,
                "next": schedule.timetable.next(now).map(show_micros), "last": jobs.first().map(shown), "sql": entry.text,
            })
        })
        .collect();
    Json(json!({"schedules": schedules}))
}
