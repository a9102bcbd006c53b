//! The kinds of work: what each needs, how it is checked when it is asked for, and how it is done.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use highwater_audit::leaf;
use highwater_auth::Asked;
use highwater_event::{Offset, StreamName, StreamPartition};
use highwater_log::audit::AUDIT;
use highwater_log::{LogBatch, ReadError};
use serde_json::{Map, Value, json};

use crate::http::call::Call;
use crate::http::dead_letters::RetryLetters;
use crate::http::erasures::EraseJob;
use crate::http::models::TrainJob;
use crate::http::problem::Problem;
use crate::http::replay::{AgainJob, ReplayJob};
use crate::http::streams;
use crate::node::Node;
use crate::node::jobs::{Kind, Order, Progress, Setback, Step, Work};

/// Rows that are looked at in one part.
const PART: u64 = 50_000;
/// Rows that are read at a time.
const READ_ROWS: usize = 8192;
/// Faults that a result lists.
const LISTED: usize = 100;
/// Hashes in a bundle of the tree.
const BUNDLE: u64 = highwater_audit::tree::TILE;

/// Work that somebody may ask for.
#[async_trait]
pub trait Offered: Kind {
    /// Checks that the caller may have it done, and what it is told, before it is put on the log.
    async fn check(&self, node: &Arc<Node>, call: &Arc<Call>, input: &Value) -> Result<(), Problem>;
}

/// All kinds.
pub const KINDS: [&'static dyn Offered; 8] =
    [&ReplayJob, &AgainJob, &RetryLetters, &TrainJob, &EraseJob, &Maintenance, &Retention, &Verify];

/// All kinds, for the node.
pub fn kinds() -> Vec<&'static dyn Kind> {
    KINDS.into_iter().map(|kind| kind as &dyn Kind).collect()
}

impl From<Problem> for Setback {
    fn from(problem: Problem) -> Self {
        Self { lasting: problem.is_lasting(), error: problem.summary() }
    }
}

/// Members that are plain values, as texts; those that are null are left out.
pub fn plain_members(members: &Map<String, Value>) -> Result<BTreeMap<String, String>, Problem> {
    let mut plain = BTreeMap::new();
    for (name, value) in members {
        let text = match value {
            Value::Null => continue,
            Value::String(text) => text.clone(),
            Value::Number(_) | Value::Bool(_) => value.to_string(),
            _ => return Err(Problem::parameter(name, "a plain value is expected")),
        };
        plain.insert(name.clone(), text);
    }
    Ok(plain)
}

/// The members of an input, of which only some are known.
pub fn members<'a>(input: &'a Value, known: &[&str]) -> Result<&'a Map<String, Value>, Problem> {
    let members = input.as_object();
    let members = members.ok_or_else(|| Problem::parameter("input", "a JSON object is expected"))?;
    match members.keys().find(|name| !known.contains(&name.as_str())) {
        None => Ok(members),
        Some(name) => {
            let detail = format!("there is no \"{name}\"; this work is told {}", known.join(", "));
            Err(Problem::parameter(
                "input",
                if known.is_empty() { "this work is told nothing".into() } else { detail },
            ))
        }
    }
}

fn operate(node: &Node, call: &Call) -> Result<(), Problem> {
    Ok(node.authorize(&call.identity, Asked::node("operate"))?)
}

/// Work that is done in one part.
struct Once<F>(Option<F>);

#[async_trait]
impl<F: Future<Output = Result<Value, Setback>> + Send> Work for Once<F> {
    async fn step(&mut self) -> Result<Step, Setback> {
        match self.0.take() {
            Some(work) => Ok(Step::Done(Progress { done: 1, of: Some(1), said: work.await? })),
            None => Ok(Step::Done(Progress::default())),
        }
    }
}

/// A round of housekeeping.
pub struct Maintenance;

#[async_trait]
impl Kind for Maintenance {
    fn name(&self) -> &'static str {
        "maintenance"
    }

    async fn begin(&self, node: &Arc<Node>, _order: &Order) -> Result<Box<dyn Work>, Setback> {
        let node = node.clone();
        let work = async move {
            let kept = node.keep_house(true).await;
            Ok(json!(kept.map_err(|error| Setback::passing("internal", format!("{error:#}")))?))
        };
        Ok(Box::new(Once(Some(work))))
    }
}

#[async_trait]
impl Offered for Maintenance {
    async fn check(&self, node: &Arc<Node>, call: &Arc<Call>, input: &Value) -> Result<(), Problem> {
        members(input, &[])?;
        operate(node, call)
    }
}

/// Lets go what is past its retention, of one stream or of all.
pub struct Retention;

fn retained(node: &Node, input: &Value) -> Result<Option<StreamName>, Problem> {
    match members(input, &["stream"])?.get("stream") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(name)) => Ok(Some(streams::find(node, name)?.schema.name.clone())),
        Some(_) => Err(Problem::parameter("input", "stream is the name of one")),
    }
}

#[async_trait]
impl Kind for Retention {
    fn name(&self) -> &'static str {
        "retention"
    }

    async fn begin(&self, node: &Arc<Node>, order: &Order) -> Result<Box<dyn Work>, Setback> {
        let stream = retained(node, &order.job.input)?;
        let node = node.clone();
        let work = async move {
            let kept = node.let_go(stream.as_ref()).await;
            Ok(json!(kept.map_err(|error| Setback::passing("internal", format!("{error:#}")))?))
        };
        Ok(Box::new(Once(Some(work))))
    }
}

#[async_trait]
impl Offered for Retention {
    async fn check(&self, node: &Arc<Node>, call: &Arc<Call>, input: &Value) -> Result<(), Problem> {
        operate(node, call)?;
        retained(node, input).map(drop)
    }
}

/// Reads everything that the log and its cold tier hold, and compares the audit trail with its tree.
pub struct Verify;

#[async_trait]
impl Kind for Verify {
    fn name(&self) -> &'static str {
        "verify"
    }

    async fn begin(&self, node: &Arc<Node>, _order: &Order) -> Result<Box<dyn Work>, Setback> {
        let catalog = node.catalog();
        let streams = catalog.streams.values().map(|entry| entry.schema.name.clone());
        let mut parts = VecDeque::new();
        for stream in streams {
            for partition in node.log().partitions(&stream) {
                let at = StreamPartition::new(stream.clone(), partition);
                let end = node.log().end(&at);
                parts.push_back(Part { at, next: 0, end });
            }
        }
        let of = parts.iter().map(|part| part.end).sum();
        let node = node.clone();
        Ok(Box::new(Scan { node, parts, rows: 0, gone: 0, done: 0, of, faults: Vec::new(), many: 0 }))
    }
}

#[async_trait]
impl Offered for Verify {
    async fn check(&self, node: &Arc<Node>, call: &Arc<Call>, input: &Value) -> Result<(), Problem> {
        members(input, &[])?;
        operate(node, call)
    }
}

/// Offsets of a partition that are still to be looked at.
struct Part {
    at: StreamPartition,
    next: Offset,
    end: Offset,
}

/// A look at everything.
struct Scan {
    node: Arc<Node>,
    parts: VecDeque<Part>,
    /// Rows that could be read.
    rows: u64,
    /// Offsets that are past their retention.
    gone: u64,
    done: u64,
    of: u64,
    faults: Vec<Value>,
    many: usize,
}

/// What a part of a scan has found.
#[derive(Default)]
struct Found {
    next: Offset,
    rows: u64,
    gone: u64,
    faults: Vec<Value>,
}

#[async_trait]
impl Work for Scan {
    async fn step(&mut self) -> Result<Step, Setback> {
        while self.parts.front().is_some_and(|part| part.next >= part.end) {
            self.parts.pop_front();
        }
        let Some(part) = self.parts.front_mut() else { return Ok(Step::Done(self.progress())) };
        let (node, at, from, end) = (self.node.clone(), part.at.clone(), part.next, part.end);
        let looked = self.node.machine.scheduler.work(move || look(&node, &at, from, end));
        let found = looked.await.map_err(|error| Setback::passing("internal", error.to_string()))??;
        self.done += found.next.min(part.end) - part.next;
        part.next = found.next;
        self.rows += found.rows;
        self.gone += found.gone;
        self.many += found.faults.len();
        self.faults.extend(found.faults);
        self.faults.truncate(LISTED);
        Ok(Step::More(self.progress()))
    }
}

impl Scan {
    fn progress(&self) -> Progress {
        let said = json!({"rows": self.rows, "past_retention": self.gone, "whole": self.many == 0, "faults": self.faults, "fault_count": self.many});
        Progress { done: self.done, of: Some(self.of), said }
    }
}

/// Reads a part of a partition.
fn look(node: &Node, at: &StreamPartition, from: Offset, end: Offset) -> Result<Found, Setback> {
    let mut found = Found { next: from, ..Found::default() };
    let upto = end.min(from + PART);
    while found.next < upto {
        match node.log().read(at, found.next, READ_ROWS) {
            Ok(batches) => {
                let next = batches.last().map(LogBatch::end).filter(|next| *next > found.next);
                let Some(next) = next else {
                    found.faults.push(
                        json!({"at": at.to_string(), "from": found.next, "detail": "rows are missing"}),
                    );
                    found.next = end;
                    break;
                };
                for batch in batches.iter().filter_map(|batch| batch.clone().from_offset(found.next)) {
                    found.rows += batch.rows.num_rows() as u64;
                    if at.stream.as_str() == AUDIT {
                        found.faults.extend(differs(node, &batch));
                    }
                }
                found.next = next;
            }
            Err(ReadError::Retired { start, .. }) if start > found.next => {
                found.gone += start.min(end) - found.next;
                found.next = start;
            }
            Err(ReadError::Damaged { from, to, detail, .. }) if to > found.next => {
                found.faults.push(json!({"at": at.to_string(), "from": from, "to": to, "detail": detail}));
                found.next = to;
            }
            Err(error) => return Err(Setback::passing("log_unavailable", error.to_string())),
        }
    }
    found.next = found.next.min(end);
    Ok(found)
}

/// Entries of the trail whose commitments are not those in the tree.
fn differs(node: &Node, batch: &LogBatch) -> Vec<Value> {
    let fault = |entry: Offset, detail: String| json!({"at": AUDIT, "from": entry, "to": entry + 1, "detail": detail});
    let records = match leaf::records(&batch.rows) {
        Ok(records) => records,
        Err(error) => return vec![fault(batch.base, error.to_string())],
    };
    let mut faults = Vec::new();
    let mut bundle = (u64::MAX, Vec::new());
    for (entry, record) in (batch.base..).zip(records) {
        if matches!(record.salt, leaf::Salt::Erased(_)) && !node.tree.is_erased(entry) {
            faults.push(fault(
                entry,
                "something was taken out of the entry, and no statement of the log says so".into(),
            ));
        }
        let index = entry / BUNDLE;
        if bundle.0 != index {
            bundle = (index, node.tree.bundle(index).unwrap_or_default());
        }
        match bundle.1.get((entry % BUNDLE) as usize) {
            // The tree follows its log by some milliseconds.
            None => {}
            Some(known) if *known == record.commitment() => {}
            Some(_) => faults.push(fault(entry, "the entry is not the one in the tree".into())),
        }
    }
    faults
}
