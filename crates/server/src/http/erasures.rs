//! Erasure: the keys of one person are destroyed, and what was made of their values is made again without them.
//!
//! The call reads who it is about and looks for dead letters that name them; the job that it begins knows a keyed hash
//! only, so that no name is left in the log by forgetting it. What the job says in the end is the receipt. It says, too,
//! how many rows of the audit trail, of jobs and of declarations name the person in questions that somebody asked: these
//! are kept as they are.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arrow::array::{Array, AsArray};
use async_trait::async_trait;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::{Extension, Json};
use highwater_auth::Asked;
use highwater_event::{StreamName, StreamPartition, hexadecimal};
use highwater_log::audit::AUDIT;
use highwater_log::dead_letter::{DEAD_LETTERS, LATE_EVENTS, SEALED_FOR};
use highwater_log::fold::Program;
use highwater_log::reader::each_batch;
use highwater_log::view::ViewState;
use highwater_log::{Log, ReadError};
use highwater_privacy::Tag;
use serde::Deserialize;
use serde_json::{Value, json};

use super::call::Call;
use super::jobs::{self, Offered, members};
use super::problem::{Answer, Problem};
use crate::node::jobs::{JOBS, Kind, Order, Progress, Setback, Step, Work};
use crate::node::{Node, SYSTEM};

/// How often a table that is made again is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// Streams of the engine whose rows are never changed: what somebody asked or declared with a person's name in it stays, and
/// the receipt says how often.
const KEPT: [&str; 3] = [AUDIT, JOBS, SYSTEM];
/// The shortest name that is looked for inside of dead letters: a shorter one would be found everywhere.
const SHORTEST: usize = 3;

/// Who is to be forgotten.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ErasureRequest {
    /// The person, as the column says it that streams name as their `subject`.
    subject: String,
    /// In this tenant only.
    #[serde(default)]
    tenant: Option<String>,
    /// Why; the receipt keeps it, so it must not say who it is about. It has a name that the audit trail keeps no values of:
    /// a call that names the person here is refused, and has an entry all the same.
    #[serde(default)]
    why: Option<String>,
}

/// Forgets a person: everything SENSITIVE that was encrypted for them can't be read any more, in the log, the lake, indexes
/// and dead letters, and tables are made again without it. The job that this begins has the receipt.
#[utoipa::path(post, path = "/api/v1/erasures", tag = "keys", request_body = ErasureRequest,
    responses((status = 202, description = "{job_id, subject}: a job has begun; `subject` is a keyed hash, by which the receipt names the person"),
        (status = 400, description = "the subject is empty"), (status = 409, description = "no stream names a subject")))]
pub async fn erase(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    body: Result<Json<ErasureRequest>, JsonRejection>,
) -> Answer {
    let Json(ErasureRequest { subject, tenant, why }) = body?;
    if subject.is_empty() {
        return Err(Problem::parameter("subject", "who is it about?"));
    }
    if why.as_ref().is_some_and(|why| why.contains(&subject)) {
        return Err(Problem::parameter("why", "the receipt keeps it, so it must not name the person"));
    }
    if streams(&node).is_empty() {
        let detail = "no stream says whom its events are about, so there are no keys of people";
        return Err(Problem::new(StatusCode::CONFLICT, "no_subjects", detail)
            .hint("declare streams WITH (subject = 'column')"));
    }
    let tag = node.vault.tag(&subject).map_err(Problem::internal)?;
    let name = hexadecimal::show(&tag);
    call.about(format!("subject:{name}"));
    let log = node.log().clone();
    let looked = node.machine.scheduler.work(move || {
        let mut letters = naming(log.as_ref(), DEAD_LETTERS, &subject)?;
        letters.extend(naming(log.as_ref(), LATE_EVENTS, &subject)?);
        let mut left = BTreeMap::new();
        for stream in KEPT {
            let rows = mentions(log.as_ref(), stream, &subject)?;
            left.extend((rows > 0).then_some((stream, rows)));
        }
        Ok::<_, ReadError>((letters, left))
    });
    let (letters, left) = looked.await.map_err(Problem::internal)?.map_err(Problem::internal)?;
    let input =
        json!({"subject": name, "tenant": tenant, "letters": letters, "still_naming": left, "reason": why});
    let job = jobs::begin(&node, &call, EraseJob.name(), input).await?;
    Ok((StatusCode::ACCEPTED, Json(json!({"job_id": job.id, "subject": name}))).into_response())
}

/// Streams whose events are about people.
fn streams(node: &Node) -> Vec<String> {
    let catalog = node.catalog();
    let about = catalog
        .streams
        .iter()
        .filter(|(name, entry)| !name.is_system() && entry.schema.options.subject.is_some());
    about.map(|(name, _)| name.to_string()).collect()
}

/// The names of the keys of letters that name a person. They are read as they were written, unmasked; they are for nobody.
fn naming(log: &dyn Log, stream: &'static str, subject: &str) -> Result<BTreeSet<String>, ReadError> {
    let mut found = BTreeSet::new();
    if subject.len() < SHORTEST {
        return Ok(found);
    }
    let finder = memchr::memmem::Finder::new(subject);
    let at = StreamPartition::new(StreamName::system(stream), 0);
    each_batch(log, &at, &mut 0, &mut |batch| {
        let texts = |name: &str| batch.rows.column_by_name(name)?.as_string_opt::<i32>();
        let (Some(names), Some(details)) = (texts(SEALED_FOR), texts("sealed_detail")) else { return };
        let bodies =
            batch.rows.column_by_name("sealed_body").and_then(|bodies| bodies.as_binary_opt::<i32>());
        let Some(bodies) = bodies else { return };
        for row in (0..names.len()).filter(|row| names.is_valid(*row)) {
            let detail = details.is_valid(row) && finder.find(details.value(row).as_bytes()).is_some();
            if detail || (bodies.is_valid(row) && finder.find(bodies.value(row)).is_some()) {
                found.insert(names.value(row).to_owned());
            }
        }
    })?;
    Ok(found)
}

/// Rows of a stream whose texts name a person.
fn mentions(log: &dyn Log, stream: &'static str, subject: &str) -> Result<usize, ReadError> {
    let mut count = 0;
    if subject.len() < SHORTEST {
        return Ok(count);
    }
    let finder = memchr::memmem::Finder::new(subject);
    let at = StreamPartition::new(StreamName::system(stream), 0);
    each_batch(log, &at, &mut 0, &mut |batch| {
        let columns = batch.rows.columns().iter().filter_map(|column| column.as_string_opt::<i32>());
        let columns: Vec<_> = columns.collect();
        let names = |row: usize| {
            let said = columns.iter().filter(|column| column.is_valid(row));
            said.into_iter().any(|column| finder.find(column.value(row).as_bytes()).is_some())
        };
        count += (0..batch.rows.num_rows()).filter(|row| names(*row)).count();
    })?;
    Ok(count)
}

/// Destroys the keys of a person, and makes anew what was made of their values.
pub struct EraseJob;

/// What a job was told.
struct Told {
    subject: String,
    tenant: Option<String>,
    tags: BTreeSet<Tag>,
    /// Rows that name the person and are kept, by stream.
    left: Value,
    letters: BTreeSet<Tag>,
}

fn told(node: &Node, input: &Value) -> Result<Told, Problem> {
    let input = members(input, &["subject", "tenant", "letters", "still_naming", "reason"])?;
    let text = |name: &str| input.get(name).and_then(Value::as_str);
    let missing =
        || Problem::parameter("input", "subject is a keyed hash; POST /api/v1/erasures is told a name");
    let tag_of = |text: &str| -> Option<Tag> { hexadecimal::read(text)?.try_into().ok() };
    let subject = text("subject").ok_or_else(missing)?;
    let letters = input.get("letters").and_then(Value::as_array).into_iter().flatten();
    let letters = letters.filter_map(Value::as_str).map(|name| node.vault.tag(name));
    Ok(Told {
        subject: subject.to_owned(),
        tenant: text("tenant").map(str::to_owned),
        left: input.get("still_naming").cloned().unwrap_or_else(|| json!({})),
        tags: BTreeSet::from([tag_of(subject).ok_or_else(missing)?]),
        letters: letters.collect::<Result<_, _>>().map_err(Problem::internal)?,
    })
}

#[async_trait]
impl Kind for EraseJob {
    fn name(&self) -> &'static str {
        "erase"
    }

    async fn begin(&self, node: &Arc<Node>, order: &Order) -> Result<Box<dyn Work>, Setback> {
        node.authorize(&order.identity, Asked::node("erase")).map_err(Problem::from)?;
        let told = told(node, &order.job.input)?;
        let work = Erasing {
            node: node.clone(),
            told,
            keys: 0,
            letters: 0,
            rebuilding: None,
            waiting: VecDeque::new(),
            rebuilt: Vec::new(),
            destroyed: false,
        };
        Ok(Box::new(work))
    }
}

#[async_trait]
impl Offered for EraseJob {
    async fn check(&self, node: &Arc<Node>, call: &Arc<Call>, input: &Value) -> Result<(), Problem> {
        node.authorize(&call.identity, Asked::node("erase"))?;
        told(node, input).map(drop)
    }
}

/// An erasure on its way.
struct Erasing {
    node: Arc<Node>,
    told: Told,
    keys: usize,
    letters: usize,
    destroyed: bool,
    /// The table that is made again.
    rebuilding: Option<String>,
    waiting: VecDeque<String>,
    rebuilt: Vec<String>,
}

#[async_trait]
impl Work for Erasing {
    async fn step(&mut self) -> Result<Step, Setback> {
        if !self.destroyed {
            self.destroy().await?;
            self.waiting = tables(&self.node).into();
            self.destroyed = true;
            return Ok(Step::More(self.progress()));
        }
        if let Some(view) = &self.rebuilding {
            let status = self.node.driver.status(view);
            match status.map(|status| (status.state, status.lag)) {
                // Dropped meanwhile, with all that it held.
                None => {}
                Some((ViewState::Running, 0)) => {}
                Some((ViewState::Failed, _)) => {
                    return Err(Setback::passing("view_failed", format!("{view} can't be made again")));
                }
                Some(_) => {
                    self.node.machine.scheduler.sleep(LOOK).await;
                    return Ok(Step::More(self.progress()));
                }
            }
            self.rebuilt.extend(self.rebuilding.take());
        }
        let Some(view) = self.waiting.pop_front() else { return Ok(Step::Done(self.progress())) };
        self.node.driver.rebuild(&view).await.map_err(Problem::from)?;
        self.rebuilding = Some(view);
        Ok(Step::More(self.progress()))
    }
}

impl Erasing {
    async fn destroy(&mut self) -> Result<(), Setback> {
        let (node, tenant) = (self.node.clone(), self.told.tenant.clone());
        let (tags, letters) = (self.told.tags.clone(), self.told.letters.clone());
        let destroyed = self.node.machine.scheduler.work(move || {
            let keys = node.vault.erase(tenant.as_deref(), &tags)?;
            Ok::<_, highwater_privacy::RingError>((keys, node.vault.erase(None, &letters)?))
        });
        let passing = |error: &dyn std::fmt::Display| Setback::passing("keys_unavailable", error.to_string());
        let destroyed = destroyed.await.map_err(|error| passing(&error))?;
        (self.keys, self.letters) = destroyed.map_err(|error| passing(&error))?;
        // What was read before is nowhere read from memory any more.
        self.node.journal.forget_decoded();
        self.node.generation.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn progress(&self) -> Progress {
        let all = self.rebuilt.len() + self.waiting.len() + usize::from(self.rebuilding.is_some());
        let said = json!({
            "subject": self.told.subject,
            "keys_destroyed": self.keys,
            "letters_destroyed": self.letters,
            "still_naming": self.told.left,
            "streams": streams(&self.node),
            "rebuilt": self.rebuilt,
            "rebuilding": self.rebuilding,
            "waiting": self.waiting,
        });
        Progress {
            done: (usize::from(self.destroyed) + self.rebuilt.len()) as u64,
            of: Some(1 + all as u64),
            said,
        }
    }
}

/// Tables that may hold what people said of themselves: those over streams with subjects.
fn tables(node: &Node) -> Vec<String> {
    let catalog = node.catalog();
    let building = catalog.building.values().flat_map(|building| &building.members);
    let building = building.filter_map(|member| match member {
        highwater_sql::catalog::Planned::Table(entry) => Some(entry.clone()),
        _ => None,
    });
    let entries = catalog.tables.values().cloned().chain(building);
    let about = entries.filter(|entry| {
        let source = entry.program.source();
        source.options.subject.is_some() && source.has_sensitive()
    });
    about.map(|entry| entry.program.name().to_string()).collect()
}
