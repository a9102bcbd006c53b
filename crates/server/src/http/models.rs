//! Models: training them as a job, the versions that there are, and how far today's rows have moved from theirs.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, AsArray};
use arrow::datatypes::TimestampMicrosecondType;
use async_trait::async_trait;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::{Extension, Json};
use highwater_auth::{Asked, Identity};
use highwater_event::name::nearest;
use highwater_event::time::show_micros;
use highwater_event::{StreamName, columns};
use highwater_model::{MOST_ROWS, Model, Rows, TrainError, Trained, drift, train};
use highwater_sql::SqlError;
use highwater_sql::adhoc::{Limits, Posed, QueryResult};
use highwater_sql::catalog::{Intake, ModelEntry, Taking};
use highwater_sql::dialect::Asker;
use highwater_sql::functions::as_numbers;
use serde_json::{Value, json};

use super::call::Call;
use super::jobs::{self, Offered, members};
use super::problem::{Answer, Problem};
use crate::node::jobs::{Kind, Order, Progress, Setback, Step, Work};
use crate::node::models::Version;
use crate::node::{Node, NodeRelations, Reader};

/// What reading the rows of a model may cost.
const ROWS: Limits = Limits { time: Duration::from_secs(600), rows: MOST_ROWS, bytes: 1 << 30 };
/// Rows that drift is told of, at least.
const LEAST_MOVED: usize = 100;

fn find(node: &Node, name: &str) -> Result<Arc<ModelEntry>, Problem> {
    let catalog = node.catalog();
    let found = StreamName::new(name).ok().and_then(|name| catalog.models.get(&name).cloned());
    found.ok_or_else(|| {
        let problem = Problem::bad_request("unknown_model", format!("there is no model \"{name}\""));
        match nearest(name, catalog.models.keys().map(StreamName::as_str)) {
            Some(near) => problem.hint(format!("did you mean \"{near}\"?")),
            None => problem.hint("GET /api/v1/models lists the models"),
        }
    })
}

/// Answers a declared way to have models trained: `{model_type}` in the body.
pub async fn answer_declared(node: &Arc<Node>, call: &Arc<Call>, intake: &Intake, body: &[u8]) -> Answer {
    let body: Value = serde_json::from_slice(body)
        .map_err(|error| Problem::bad_request("malformed_json", format!("the body is not JSON: {error}")))?;
    let name = members(&body, &["model_type"])?.get("model_type").and_then(Value::as_str);
    let name = name.ok_or_else(|| Problem::parameter("model_type", "the name of a model is required"))?;
    let model = find(node, name)?;
    let input = json!({"model": model.name.as_str(), "endpoint": intake.path});
    let job = jobs::begin(node, call, TrainJob.name(), input).await?;
    let message = format!(
        "{} is being trained; GET /api/v1/jobs/{} says how far it is, and how good it is in the end",
        model.name, job.id
    );
    let answer = json!({"status": "success", "message": message, "job_id": job.id});
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

/// Trains a model.
pub struct TrainJob;

/// What a job was told: the model, and the endpoint whose permission lets it be trained.
fn told(node: &Node, identity: &Identity, input: &Value) -> Result<Arc<ModelEntry>, Problem> {
    let input = members(input, &["model", "endpoint"])?;
    let text = |name: &str| input.get(name).and_then(Value::as_str);
    let model = text("model").ok_or_else(|| Problem::parameter("input", "model is the name of one"))?;
    match text("endpoint") {
        None => node.authorize(identity, Asked::node("operate"))?,
        Some(path) => {
            let path = path.trim_end_matches('/');
            let catalog = node.catalog();
            let intake = catalog.intake("POST", path);
            let intake = intake.filter(|intake| matches!(intake.taking, Taking::Training { .. }));
            let intake = intake.ok_or_else(|| {
                Problem::parameter("input", "endpoint is the path of one that TRAINS MODELS")
            })?;
            node.authorize(identity, Asked::on(intake.requires(), "endpoint", &intake.path))?;
        }
    }
    find(node, model)
}

#[async_trait]
impl Kind for TrainJob {
    fn name(&self) -> &'static str {
        "train"
    }

    async fn begin(&self, node: &Arc<Node>, order: &Order) -> Result<Box<dyn Work>, Setback> {
        let entry = told(node, &order.identity, &order.job.input)?;
        // It had been made when the node stopped.
        let stage = match node.models.by_job(&order.job.id) {
            Some(version) => Stage::Published(version),
            None => Stage::Reading,
        };
        let call = Call::of_job(node, order, "train", format!("model:{}", entry.name));
        Ok(Box::new(Training { node: node.clone(), call, job: order.job.id.clone(), entry, stage }))
    }
}

#[async_trait]
impl Offered for TrainJob {
    async fn check(&self, node: &Arc<Node>, call: &Arc<Call>, input: &Value) -> Result<(), Problem> {
        told(node, &call.identity, input).map(drop)
    }
}

/// A model on its way.
struct Training {
    node: Arc<Node>,
    call: Call,
    job: Arc<str>,
    entry: Arc<ModelEntry>,
    stage: Stage,
}

enum Stage {
    Reading,
    Learning(Rows),
    Publishing(Box<Trained>),
    Published(Version),
}

#[async_trait]
impl Work for Training {
    async fn step(&mut self) -> Result<Step, Setback> {
        let more =
            |done, doing: &str| Step::More(Progress { done, of: Some(3), said: json!({"doing": doing}) });
        Ok(match std::mem::replace(&mut self.stage, Stage::Reading) {
            Stage::Reading => {
                let rows = read(&self.node, &self.entry, &self.call.identity).await.map_err(Problem::from)?;
                let rows = rows_of(&self.entry, &rows, i64::MIN)?;
                let said = format!("learning from {} rows", rows.labels.len());
                self.stage = Stage::Learning(rows);
                more(1, &said)
            }
            Stage::Learning(rows) => {
                let learnt = self.node.machine.scheduler.work(move || train(&rows)).await;
                let trained = learnt.map_err(|error| Setback::passing("internal", error.to_string()))?;
                let code = |error: &TrainError| match error {
                    TrainError::Few(_) => "too_few_rows",
                    TrainError::OneSided { .. } => "one_sided",
                    TrainError::Refused(_) => "not_learnt",
                };
                let trained = trained.map_err(|error| Setback::lasting(code(&error), error.to_string()))?;
                self.stage = Stage::Publishing(Box::new(trained));
                more(2, "writing it down")
            }
            Stage::Publishing(trained) => {
                let Trained { model, report } = *trained;
                let what = (self.entry.name.as_str(), self.entry.label.as_str(), self.job.as_ref());
                let leaf = |name: &str| {
                    self.call.about(format!("model:{name}"));
                    self.call.saw("auc", report.auc);
                    self.call.leaf(&self.node, StatusCode::OK)
                };
                let trained = (model, report.clone());
                let published = self.node.publish_model(self.call.principal(), what, trained, leaf).await;
                let version = published.map_err(Problem::from)?;
                Step::Done(done(&version))
            }
            Stage::Published(version) => Step::Done(done(&version)),
        })
    }
}

fn done(version: &Version) -> Progress {
    Progress { done: 3, of: Some(3), said: json!({"model": version.name, "report": version.report}) }
}

/// The newest rows of a model, as somebody may see them.
async fn read(
    node: &Arc<Node>,
    entry: &Arc<ModelEntry>,
    identity: &Arc<Identity>,
) -> Result<QueryResult, SqlError> {
    let relations = Arc::new(NodeRelations::new(node.clone(), Reader::Endpoint(identity.clone())));
    let (asked, entry, identity) = (node.clone(), entry.clone(), identity.clone());
    let question = async move {
        let principal = &identity.principal;
        let asker = Asker { user: &principal.name, tenant: &principal.tenant };
        Posed::new(&asked.engine, relations, &entry.rows.query, asker, ROWS).rows().await
    };
    node.ask(question).await
}

/// The rows of an answer that came after a time, the oldest first; those without a label are left out.
fn rows_of(entry: &ModelEntry, found: &QueryResult, after: i64) -> Result<Rows, Problem> {
    let mut rows = Rows { features: entry.features.clone(), ..Rows::default() };
    let missing = |name: &str| Problem::internal(format!("the rows of a model have no column {name}"));
    for batch in &found.batches {
        let times = batch.column_by_name(columns::EVENT_TIME);
        let times = times.and_then(|times| times.as_primitive_opt::<TimestampMicrosecondType>());
        let times = times.ok_or_else(|| missing(columns::EVENT_TIME))?;
        let labels = batch.column_by_name(&entry.label).and_then(|labels| labels.as_boolean_opt());
        let labels = labels.ok_or_else(|| missing(&entry.label))?;
        let mut features = Vec::new();
        for name in &entry.features {
            let column = batch.column_by_name(name).ok_or_else(|| missing(name))?;
            features.push(as_numbers(column).map_err(|error| Problem::from(SqlError::from(error)))?);
        }
        for row in 0..batch.num_rows() {
            if labels.is_null(row) || times.is_null(row) || times.value(row) <= after {
                continue;
            }
            let value = |column: &arrow::array::Float64Array| {
                if column.is_valid(row) { column.value(row) } else { f64::NAN }
            };
            rows.values.push(features.iter().map(value).collect());
            rows.labels.push(labels.value(row));
            rows.times.push(times.value(row));
        }
    }
    rows.values.reverse();
    rows.labels.reverse();
    rows.times.reverse();
    Ok(rows)
}

fn shown(version: &Version) -> Value {
    let mut shown = json!(version);
    shown["trained_at"] = show_micros(version.trained_at).into();
    shown["report"]["split_at"] = show_micros(version.report.split_at).into();
    shown["report"]["until"] = show_micros(version.report.until).into();
    shown
}

/// The declared models with their versions, the newest first, and what each was judged to be.
#[utoipa::path(get, path = "/api/v1/models", tag = "models",
    responses((status = 200, description = "{models: [{name, label, features, sql, versions: [{name, version, trained_at, principal, job, report}]}]}")))]
pub async fn list(State(node): State<Arc<Node>>) -> Json<Value> {
    let catalog = node.catalog();
    let models = catalog.models.values().map(|entry| {
        let versions: Vec<Value> = node.models.of(entry.name.as_str()).iter().map(shown).collect();
        json!({"name": entry.name.as_str(), "label": entry.label, "features": entry.features, "sql": entry.text, "versions": versions})
    });
    Json(json!({"models": models.collect::<Vec<_>>()}))
}

/// How far rows that came after those of a version have moved from them, feature by feature.
#[utoipa::path(get, path = "/api/v1/models/{model}/drift", tag = "models",
    params(("model" = String, Path, description = "a version such as fraud_v3, or a model, which is its newest version")),
    responses((status = 200, description = "{model, since, rows, label_share, train_share, drift: [{feature, psi, mean}], moved}: below 0.1 nothing has moved, from 0.25 on the model should be trained anew"),
        (status = 404, description = "there is none, or none was trained"), (status = 409, description = "the model is declared otherwise by now, or too few rows came since")))]
pub async fn moved(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    Path(name): Path<String>,
) -> Answer {
    let name = name.to_ascii_lowercase();
    call.about(format!("model:{name}"));
    let version = node.models.named(&name).or_else(|| node.models.of(&name).into_iter().next());
    let missing = || Problem::not_found("model_not_found", format!("no model \"{name}\" was trained"));
    let version = version.ok_or_else(missing)?;
    let model: Arc<Model> = node.engine.models().get(&version.name).ok_or_else(missing)?;
    let conflict = |detail: String| Problem::new(StatusCode::CONFLICT, "no_drift", detail);
    let catalog = node.catalog();
    let entry =
        StreamName::new(version.model.as_ref()).ok().and_then(|name| catalog.models.get(&name).cloned());
    let same = |entry: &Arc<ModelEntry>| {
        entry.label == *version.label
            && entry.features.iter().eq(model.features.iter().map(|feature| &feature.name))
    };
    let entry = entry.filter(same).ok_or_else(|| {
        conflict(format!(
            "model \"{}\" is not declared any more as {} was trained",
            version.model, version.name
        ))
    })?;
    let found = read(&node, &entry, &call.identity).await?;
    let rows = rows_of(&entry, &found, version.report.until)?;
    call.saw("rows", rows.labels.len());
    if rows.labels.len() < LEAST_MOVED {
        let count = rows.labels.len();
        return Err(conflict(format!("{count} rows came since; drift is told of {LEAST_MOVED} and more")));
    }
    let moved = drift(&model, &rows.values);
    let share = rows.labels.iter().filter(|label| **label).count() as f64 / rows.labels.len() as f64;
    Ok(Json(json!({
        "model": version.name,
        "since": show_micros(version.report.until),
        "rows": rows.labels.len(),
        "label_share": share,
        "train_share": version.report.train_share,
        "moved": moved.first().map_or(0.0, |furthest| furthest.psi),
        "drift": moved,
    }))
    .into_response())
}
