//! Erasure: the keys of one person are destroyed, what was made of their values is made again without them, and their name is
//! taken out of what others have asked.
//!
//! The call reads who it is about. The job that it begins is told a keyed hash, and the name under a key that is destroyed when
//! the job ends, so that no name is left in the log by forgetting it. What the job says in the end is the receipt. It says, too,
//! how many declarations name the person: these are code, and are kept as they are.

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
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use highwater_auth::Asked;
use highwater_event::{Principal, StreamName, StreamPartition, hexadecimal};
use highwater_log::audit::AUDIT;
use highwater_log::dead_letter::{DEAD_LETTERS, LATE_EVENTS, SEALED_FOR};
use highwater_log::fold::Program;
use highwater_log::reader::each_batch;
use highwater_log::view::ViewState;
use highwater_log::{Log, ReadError};
use highwater_privacy::{Name, Tag};
use serde::Deserialize;
use serde_json::{Value, json};

use super::call::Call;
use super::jobs::{self, Offered, members};
use super::problem::{Answer, Problem};
use crate::node::jobs::{Alone, JOBS, Kind, Order, Progress, Setback, Step, Work};
use crate::node::{Node, SYSTEM, redaction};

/// What the key of a name is called, before random digits.
const SEALED: &str = "erasure:";
/// How often a view that is made again is looked at.
const LOOK: Duration = Duration::from_millis(200);

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
    let named =
        |why: &String| why.contains(&subject) || Name::new(&subject).is_some_and(|name| name.is_in(why));
    if why.as_ref().is_some_and(named) {
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
    let mut random = [0; 16];
    node.machine.randomness.fill(&mut random).map_err(Problem::internal)?;
    let sealed_for = format!("{SEALED}{}", hexadecimal::show(&random));
    let sealed = STANDARD.encode(node.vault.seal(&sealed_for, &subject).map_err(Problem::internal)?);
    let input =
        json!({"subject": name, "tenant": tenant, "sealed": sealed, "sealed_for": sealed_for, "reason": why});
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
fn letters(log: &dyn Log, stream: &'static str, name: &Name) -> Result<BTreeSet<String>, ReadError> {
    let mut found = BTreeSet::new();
    let at = StreamPartition::new(StreamName::system(stream), 0);
    each_batch(log, &at, &mut 0, &mut |batch| {
        let texts = |name: &str| batch.rows.column_by_name(name)?.as_string_opt::<i32>();
        let (Some(names), Some(details)) = (texts(SEALED_FOR), texts("sealed_detail")) else { return };
        let bodies =
            batch.rows.column_by_name("sealed_body").and_then(|bodies| bodies.as_binary_opt::<i32>());
        let Some(bodies) = bodies else { return };
        for row in (0..names.len()).filter(|row| names.is_valid(*row)) {
            let detail = details.is_valid(row) && name.is_in(details.value(row));
            if detail || (bodies.is_valid(row) && name.is_within(bodies.value(row))) {
                found.insert(names.value(row).to_owned());
            }
        }
    })?;
    Ok(found)
}

/// Rows of a stream whose texts name a person.
fn mentions(log: &dyn Log, stream: &'static str, name: &Name) -> Result<usize, ReadError> {
    let mut count = 0;
    let at = StreamPartition::new(StreamName::system(stream), 0);
    each_batch(log, &at, &mut 0, &mut |batch| {
        let columns = batch.rows.columns().iter().filter_map(|column| column.as_string_opt::<i32>());
        let columns: Vec<_> = columns.collect();
        let names =
            |row: usize| columns.iter().any(|column| column.is_valid(row) && name.is_in(column.value(row)));
        count += (0..batch.rows.num_rows()).filter(|row| names(*row)).count();
    })?;
    Ok(count)
}

/// Destroys the keys of a person, and makes anew what was made of their values.
pub struct EraseJob;

/// What a job was told.
struct Told {
    /// The keyed hash, as the receipt names the person.
    subject: String,
    tenant: Option<String>,
    tag: Tag,
    /// The name under a key of its own, and what that key is called.
    sealed: Option<(Vec<u8>, String)>,
}

fn told(input: &Value) -> Result<Told, Problem> {
    let input = members(input, &["subject", "tenant", "sealed", "sealed_for", "reason"])?;
    let text = |name: &str| input.get(name).and_then(Value::as_str);
    let missing =
        || Problem::parameter("input", "subject is a keyed hash; POST /api/v1/erasures is told a name");
    let subject = text("subject").ok_or_else(missing)?;
    let tag = hexadecimal::read(subject).and_then(|tag| tag.try_into().ok()).ok_or_else(missing)?;
    let sealed = match (text("sealed"), text("sealed_for")) {
        (Some(sealed), Some(name)) => {
            let sealed = STANDARD.decode(sealed).ok().filter(|_| name.starts_with(SEALED));
            Some((sealed.ok_or_else(missing)?, name.to_owned()))
        }
        (None, None) => None,
        _ => return Err(missing()),
    };
    Ok(Told { subject: subject.to_owned(), tenant: text("tenant").map(str::to_owned), tag, sealed })
}

#[async_trait]
impl Kind for EraseJob {
    fn name(&self) -> &'static str {
        "erase"
    }

    fn alone(&self, _node: &Node, _input: &Value) -> Option<Alone> {
        Some(Alone::erase())
    }

    async fn begin(&self, node: &Arc<Node>, order: &Order) -> Result<Box<dyn Work>, Setback> {
        node.authorize(&order.identity, Asked::node("erase")).map_err(Problem::from)?;
        let told = told(&order.job.input)?;
        forget_names(node, &order.job.id)?;
        let name = match &told.sealed {
            Some((sealed, sealed_for)) => {
                // It is forgotten when all is done: then nothing but the end was missing.
                let subject = node.vault.unseal(sealed_for, sealed).map_err(Problem::internal)?;
                subject.and_then(|subject| Name::new(&subject)).map(Arc::new)
            }
            None => None,
        };
        let before = &order.job.said;
        let count = |value: &Value| value.as_u64().unwrap_or(0) as usize;
        let taken_out = before["taken_out"].as_object().into_iter().flatten();
        let taken_out = taken_out.map(|(stream, rows)| (stream.clone(), count(rows))).collect();
        let work = Erasing {
            node: node.clone(),
            principal: order.identity.principal.clone(),
            told,
            name,
            keys: count(&before["keys_destroyed"]),
            letters: count(&before["letters_destroyed"]),
            streams: VecDeque::new(),
            taken_out,
            left: BTreeMap::new(),
            rebuilding: None,
            waiting: VecDeque::new(),
            rebuilt: Vec::new(),
            destroyed: false,
        };
        Ok(Box::new(work))
    }
}

/// Destroys the keys of names that erasures were told which have ended, also of those that were cancelled or have failed.
fn forget_names(node: &Node, but: &str) -> Result<(), Problem> {
    let ended = node.jobs.list(|job| *job.kind == *"erase" && job.state.is_end() && *job.id != *but);
    let names = ended.iter().filter_map(|job| job.input.get("sealed_for").and_then(Value::as_str));
    let tags = names.map(|name| node.vault.tag(name)).collect::<Result<BTreeSet<_>, _>>();
    node.vault.erase(None, &tags.map_err(Problem::internal)?).map_err(Problem::internal)?;
    Ok(())
}

#[async_trait]
impl Offered for EraseJob {
    async fn check(&self, node: &Arc<Node>, call: &Arc<Call>, input: &Value) -> Result<(), Problem> {
        node.authorize(&call.identity, Asked::node("erase"))?;
        told(input).map(drop)
    }
}

/// An erasure on its way.
struct Erasing {
    node: Arc<Node>,
    /// Who has asked for it.
    principal: Principal,
    told: Told,
    /// Whose name is looked for; none when it is too short, or not known.
    name: Option<Arc<Name>>,
    keys: usize,
    letters: usize,
    destroyed: bool,
    /// Streams that the name is still to be taken from.
    streams: VecDeque<StreamName>,
    /// From how many rows it was taken, by stream.
    taken_out: BTreeMap<String, usize>,
    /// Rows that name the person and are kept, by stream.
    left: BTreeMap<&'static str, usize>,
    /// The view that is made again, and until where, as soon as that is known.
    rebuilding: Option<(String, Option<u64>)>,
    waiting: VecDeque<String>,
    rebuilt: Vec<String>,
}

#[async_trait]
impl Work for Erasing {
    async fn step(&mut self) -> Result<Step, Setback> {
        if !self.destroyed {
            self.destroy().await?;
            let told = redaction::told(&self.node);
            self.waiting = views(&self.node, &told).into();
            self.streams = if self.name.is_some() { told.into() } else { VecDeque::new() };
            self.destroyed = true;
            return Ok(Step::More(self.progress()));
        }
        if let Some(stream) = self.streams.front().cloned() {
            self.take_out(&stream).await?;
            self.streams.pop_front();
            return Ok(Step::More(self.progress()));
        }
        if let Some((view, until)) = &mut self.rebuilding {
            let status = self.node.driver.status(view);
            let status = status.map(|status| (status.state, status.marks.values().sum::<u64>(), status.lag));
            let is_done = match status {
                // Dropped meanwhile, with all that it held.
                None => true,
                // What comes in meanwhile does not keep it from being done.
                Some((ViewState::Running, mark, lag)) => mark >= *until.get_or_insert(mark + lag),
                Some((ViewState::Failed, ..)) => {
                    return Err(Setback::passing("view_failed", format!("{view} can't be made again")));
                }
                Some(_) => false,
            };
            if !is_done {
                self.node.machine.scheduler.sleep(LOOK).await;
                return Ok(Step::More(self.progress()));
            }
            self.rebuilt.extend(self.rebuilding.take().map(|(view, _)| view));
        }
        if let Some(view) = self.waiting.pop_front() {
            self.node.driver.rebuild(&view).await.map_err(Problem::from)?;
            self.rebuilding = Some((view, None));
            return Ok(Step::More(self.progress()));
        }
        self.end().await?;
        Ok(Step::Done(self.progress()))
    }
}

impl Erasing {
    /// Destroys the keys of the person and of dead letters that name them.
    async fn destroy(&mut self) -> Result<(), Setback> {
        let (node, tenant, name) = (self.node.clone(), self.told.tenant.clone(), self.name.clone());
        let tags = BTreeSet::from([self.told.tag]);
        let destroyed = self.node.machine.scheduler.work(move || {
            let mut naming = BTreeSet::new();
            if let Some(name) = &name {
                for stream in [DEAD_LETTERS, LATE_EVENTS] {
                    naming.extend(letters(node.log().as_ref(), stream, name).map_err(Problem::internal)?);
                }
            }
            let naming = naming.iter().map(|name| node.vault.tag(name)).collect::<Result<BTreeSet<_>, _>>();
            let keys = node.vault.erase(tenant.as_deref(), &tags).map_err(Problem::internal)?;
            let letters = node.vault.erase(None, &naming.map_err(Problem::internal)?);
            Ok::<_, Problem>((keys, letters.map_err(Problem::internal)?))
        });
        let (keys, letters) = destroyed.await.map_err(Problem::internal)??;
        self.keys += keys;
        self.letters += letters;
        // What was read before is nowhere read from memory any more.
        self.node.journal.forget_decoded();
        self.node.generation.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// Takes the name out of one stream.
    async fn take_out(&mut self, stream: &StreamName) -> Result<(), Setback> {
        let Some(name) = &self.name else { return Ok(()) };
        let resource = format!("subject:{}", self.told.subject);
        let leaf = || self.node.leaf(&self.principal, "erase", resource.clone());
        let rows = self.node.take_out(stream, name, leaf).await;
        let rows = rows.map_err(|error| Setback::passing("not_taken_out", format!("{stream}: {error:#}")))?;
        if rows > 0 {
            *self.taken_out.entry(stream.to_string()).or_default() += rows;
        }
        Ok(())
    }

    /// Counts what is left, and forgets the name.
    async fn end(&mut self) -> Result<(), Setback> {
        if let Some(name) = self.name.clone() {
            let (catalog, told) = (self.node.catalog(), redaction::told(&self.node));
            for (table, entry) in &catalog.tables {
                if told.contains(&entry.program.source().name) {
                    let renewed = self.node.renew_snapshots(table).await;
                    renewed
                        .map_err(|error| Setback::passing("not_taken_out", format!("{table}: {error:#}")))?;
                }
            }
            self.node.jobs.take_out(&name);
            self.node.generation.fetch_add(1, Ordering::SeqCst);
            let log = self.node.log().clone();
            let counted = self.node.machine.scheduler.work(move || {
                let mut left = BTreeMap::new();
                for stream in [AUDIT, JOBS, SYSTEM] {
                    let rows = mentions(log.as_ref(), stream, &name)?;
                    left.extend((rows > 0).then_some((stream, rows)));
                }
                Ok::<_, ReadError>(left)
            });
            self.left = counted.await.map_err(Problem::internal)?.map_err(Problem::internal)?;
        }
        if let Some((_, sealed_for)) = &self.told.sealed {
            let tag = self.node.vault.tag(sealed_for).map_err(Problem::internal)?;
            self.node.vault.erase(None, &BTreeSet::from([tag])).map_err(Problem::internal)?;
        }
        Ok(())
    }

    fn progress(&self) -> Progress {
        let rebuilt = self.rebuilt.len() + self.waiting.len() + usize::from(self.rebuilding.is_some());
        let said = json!({
            "subject": self.told.subject,
            "keys_destroyed": self.keys,
            "letters_destroyed": self.letters,
            "taken_out": self.taken_out,
            "still_naming": self.left,
            "streams": streams(&self.node),
            "searching": self.streams.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "rebuilt": self.rebuilt,
            "rebuilding": self.rebuilding.as_ref().map(|(view, _)| view),
            "waiting": self.waiting,
        });
        Progress {
            done: (usize::from(self.destroyed) + self.rebuilt.len()) as u64,
            of: Some((1 + rebuilt + self.streams.len()) as u64),
            said,
        }
    }
}

/// Views that may hold what people said of themselves: tables over streams with subjects, and tables and indexes over the
/// streams that a name is taken from.
fn views(node: &Node, told: &[StreamName]) -> Vec<String> {
    let catalog = node.catalog();
    let building = catalog.building.values().flat_map(|building| &building.members);
    let building = building.filter_map(|member| match member {
        highwater_sql::catalog::Planned::Table(entry) => Some(entry.clone()),
        _ => None,
    });
    let entries = catalog.tables.values().cloned().chain(building);
    let about = entries.filter(|entry| {
        let source = entry.program.source();
        let people = source.options.subject.is_some() && source.has_sensitive();
        people || told.contains(&source.name)
    });
    let tables = about.map(|entry| entry.program.name().to_string());
    let indexes = told.iter().map(|stream| format!("search:{stream}"));
    tables.chain(indexes.filter(|view| node.driver.status(view).is_some())).collect()
}
