//! Jobs: acts that take long, with their progress, on the log.
//!
//! What becomes of a job is rows of the stream `_jobs`, each in one commit with its entry of the audit trail; what is
//! known of all jobs is a view of it, made anew at every start. `runner` does the work.

mod runner;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use arrow::array::{
    Array, AsArray, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Int32Type, Int64Type, TimestampMicrosecondType};
use arrow::error::ArrowError;
use highwater_event::{Column, Principal, StreamName, StreamOptions, StreamPartition, StreamSchema, columns};
use highwater_log::reader::each_batch;
use highwater_log::{Append, Commit, LogBatch};
use highwater_privacy::Name;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::Notify;

use super::{ChangeError, Leaf, Node};

pub use runner::{Alone, Kind, Order, Progress, Setback, Step, Work};

/// What becomes of jobs.
pub const JOBS: &str = "_jobs";
/// Jobs that have ended and are still known without a question; all of them are in the stream.
const REMEMBERED: usize = 10_000;

/// How a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Somebody else has to approve it first.
    Unapproved,
    /// It will be begun, or tried again.
    Waiting,
    /// It goes on.
    Running,
    /// It has come to its end.
    Finished,
    /// It was given up.
    Failed,
    /// Somebody has ended it.
    Cancelled,
}

impl State {
    /// Whether nothing more will become of it.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Finished | Self::Failed | Self::Cancelled)
    }
}

/// A job.
#[derive(Debug, Clone, Serialize)]
pub struct Job {
    /// Its id, unique on this node.
    pub id: Arc<str>,
    /// What kind of work it is.
    pub kind: Arc<str>,
    /// How it stands.
    pub state: State,
    /// What it was told.
    pub input: Value,
    /// Who has begun it; it may do what they may.
    pub principal: Arc<str>,
    /// Their tenant.
    pub tenant: Arc<str>,
    /// The schedule that has begun it.
    pub schedule: Option<Arc<str>>,
    /// When that was due, microseconds UTC.
    #[serde(skip)]
    pub due: Option<i64>,
    /// How often it was begun, or went on after a start.
    pub attempts: u32,
    /// How often in a row it has failed.
    pub failures: u32,
    /// How much is done, in units of its own.
    pub done: u64,
    /// Of how much, when that is known.
    pub of: Option<u64>,
    /// What it says of its progress, or its result.
    pub said: Value,
    /// Why it failed last.
    pub error: Option<Value>,
    /// Who has approved it, when it needed that.
    pub approved_by: Option<Arc<str>>,
    /// Somebody has asked to end it.
    pub cancel_asked: bool,
    /// When it was submitted, microseconds UTC.
    #[serde(skip)]
    pub submitted_at: i64,
    /// When it changed last, microseconds UTC.
    #[serde(skip)]
    pub changed_at: i64,
    /// When it is tried again, microseconds UTC.
    #[serde(skip)]
    pub again_at: Option<i64>,
}

/// What becomes of a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// It is to be done.
    Submitted,
    /// It is to be done when somebody else approves it.
    Proposed,
    /// Somebody else approves it.
    Approved,
    /// It was begun, or goes on after a start.
    Started,
    /// So much is done.
    Progress,
    /// It has failed, and will be tried again.
    Retrying,
    /// It has failed for good.
    Failed,
    /// It is done.
    Finished,
    /// Somebody wants it to end.
    CancelAsked,
    /// It has ended early.
    Cancelled,
}

const CHANGES: [(Change, &str); 10] = [
    (Change::Submitted, "submitted"),
    (Change::Proposed, "proposed"),
    (Change::Approved, "approved"),
    (Change::Started, "started"),
    (Change::Progress, "progress"),
    (Change::Retrying, "retrying"),
    (Change::Failed, "failed"),
    (Change::Finished, "finished"),
    (Change::CancelAsked, "cancel_asked"),
    (Change::Cancelled, "cancelled"),
];

impl Change {
    fn text(&self) -> &'static str {
        CHANGES.iter().find(|(change, _)| change == self).map_or("", |(_, text)| text)
    }

    fn of(text: &str) -> Option<Self> {
        CHANGES.iter().find(|(_, known)| *known == text).map(|(change, _)| change.clone())
    }
}

/// What a row says beside whose it is.
#[derive(Debug, Clone, Default)]
pub struct Said {
    /// How much is done.
    pub done: u64,
    /// Of how much.
    pub of: Option<u64>,
    /// What it was told, its progress, its result, or why it failed.
    pub detail: Value,
    /// When it is tried again.
    pub again_at: Option<i64>,
}

/// A job that is to be done.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// Its id; a new one when nothing is said.
    pub id: Option<String>,
    /// What kind of work.
    pub kind: Arc<str>,
    /// What it is told.
    pub input: Value,
    /// The schedule that begins it, and when that was due.
    pub schedule: Option<(Arc<str>, i64)>,
    /// Somebody else has to approve it first.
    pub proposed: bool,
}

/// The schema of `_jobs`.
pub(super) fn schema() -> StreamSchema {
    let text = |name: &str, nullable| Column::new(name, DataType::Utf8, nullable);
    let time = |name: &str| Column::new(name, columns::timestamp_type(), true);
    StreamSchema {
        name: StreamName::system(JOBS),
        columns: vec![
            text("job", false),
            text("kind", false),
            text("change", false),
            Column::new("attempt", DataType::Int32, false),
            Column::new("done", DataType::Int64, false),
            Column::new("of", DataType::Int64, true),
            Column { json: true, ..text("detail", true) },
            time("again_at"),
            text("schedule", true),
            time("due"),
            text("principal", false),
            text("tenant", false),
        ],
        options: StreamOptions::of_engine("tenant"),
        raw: false,
    }
}

fn partition() -> StreamPartition {
    StreamPartition::new(StreamName::system(JOBS), 0)
}

fn append(job: &Job, change: &Change, said: &Said, now: i64) -> Result<Append, ArrowError> {
    let time = |value: Option<i64>| {
        Arc::new(TimestampMicrosecondArray::from(vec![value]).with_data_type(columns::timestamp_type()))
    };
    let text = |value: &str| Arc::new(StringArray::from(vec![value]));
    let detail = (!said.detail.is_null()).then(|| said.detail.to_string());
    let rows = RecordBatch::try_new(
        schema().stored_schema(),
        vec![
            text(&job.id),
            text(&job.kind),
            text(change.text()),
            Arc::new(Int32Array::from(vec![job.attempts as i32])),
            Arc::new(Int64Array::from(vec![said.done as i64])),
            Arc::new(Int64Array::from(vec![said.of.map(|of| of as i64)])),
            Arc::new(StringArray::from(vec![detail])),
            time(said.again_at),
            Arc::new(StringArray::from(vec![job.schedule.as_deref()])),
            time(job.due),
            text(&job.principal),
            text(&job.tenant),
            time(Some(now)),
        ],
    )?;
    Ok(Append { to: partition(), rows })
}

/// All jobs, as far as they are remembered.
#[derive(Default)]
pub struct Jobs {
    known: Mutex<BTreeMap<Arc<str>, Job>>,
    /// One change at a time, so that the view has them in the order of the log.
    changing: tokio::sync::Mutex<()>,
    /// Something is to be done.
    wake: Notify,
    kinds: OnceLock<Vec<&'static dyn Kind>>,
}

impl Jobs {
    fn known(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Job>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something may be due.
    pub fn look(&self) {
        self.wake.notify_one();
    }

    /// A job.
    pub fn get(&self, id: &str) -> Option<Job> {
        self.known().get(id).cloned()
    }

    /// Those that fit, the newest first.
    pub fn list(&self, fits: impl Fn(&Job) -> bool) -> Vec<Job> {
        let mut found: Vec<Job> = self.known().values().filter(|job| fits(job)).cloned().collect();
        found.sort_by(|one, other| (other.submitted_at, &other.id).cmp(&(one.submitted_at, &one.id)));
        found
    }

    /// The names of all kinds of work.
    pub fn kinds(&self) -> Vec<&'static str> {
        self.kinds.get().map_or_else(Vec::new, |kinds| kinds.iter().map(|kind| kind.name()).collect())
    }

    fn kind(&self, name: &str) -> Option<&'static dyn Kind> {
        self.kinds.get()?.iter().copied().find(|kind| kind.name() == name)
    }

    /// Takes a name out of what is known of jobs that have ended.
    pub fn take_out(&self, name: &Name) {
        for job in self.known().values_mut().filter(|job| job.state.is_end()) {
            name.clear(&mut job.input);
            name.clear(&mut job.said);
            job.error.iter_mut().for_each(|error| name.clear(error));
        }
    }

    /// When a schedule has begun a job last, by when that was due.
    pub fn last_due(&self, schedule: &str) -> Option<i64> {
        let known = self.known();
        known.values().filter(|job| job.schedule.as_deref() == Some(schedule)).filter_map(|job| job.due).max()
    }

    /// Takes a row in.
    fn apply(&self, mut job: Job, change: &Change, said: &Said, at: i64) {
        let mut known = self.known();
        if let Some(before) = known.get(&job.id) {
            job = before.clone();
        }
        job.changed_at = at;
        job.again_at = None;
        match change {
            Change::Submitted | Change::Proposed => {
                job.submitted_at = at;
                job.input = said.detail.clone();
                if *change == Change::Proposed {
                    job.state = State::Unapproved;
                }
            }
            Change::Approved => {
                job.state = State::Waiting;
                job.approved_by = said.detail["by"].as_str().map(Arc::from);
            }
            Change::Started => {
                job.state = State::Running;
                job.attempts += 1;
            }
            Change::Progress => {
                (job.done, job.of, job.failures) = (said.done, said.of, 0);
                job.said = said.detail.clone();
            }
            Change::Retrying | Change::Failed => {
                job.failures += 1;
                job.error = Some(said.detail.clone());
                job.again_at = said.again_at;
                job.state = if *change == Change::Failed { State::Failed } else { State::Waiting };
            }
            Change::Finished => {
                (job.done, job.of) = (said.done, said.of);
                job.state = State::Finished;
                job.said = said.detail.clone();
            }
            Change::CancelAsked => job.cancel_asked = true,
            Change::Cancelled => job.state = State::Cancelled,
        }
        known.insert(job.id.clone(), job);
        forget(&mut known);
    }
}

/// Lets the oldest jobs go that have ended, when there are too many.
fn forget(known: &mut BTreeMap<Arc<str>, Job>) {
    if known.len() <= REMEMBERED + REMEMBERED / 10 {
        return;
    }
    let ended = known.values().filter(|job| job.state.is_end());
    let mut ended: Vec<(i64, Arc<str>)> = ended.map(|job| (job.changed_at, job.id.clone())).collect();
    ended.sort_unstable();
    let too_many = known.len().saturating_sub(REMEMBERED);
    for (_, id) in ended.into_iter().take(too_many) {
        known.remove(&id);
    }
}

/// The rows of a batch of `_jobs`.
fn rows(batch: &LogBatch) -> Vec<(Job, Change, Said, i64)> {
    let column = |name: &str| batch.rows.column_by_name(name);
    let text = |name: &str, row: usize| {
        let column = column(name)?.as_string_opt::<i32>()?;
        column.is_valid(row).then(|| Arc::<str>::from(column.value(row)))
    };
    let int = |name: &str, row: usize| {
        let column = column(name)?.as_primitive_opt::<Int64Type>()?;
        column.is_valid(row).then(|| column.value(row).unsigned_abs())
    };
    let time = |name: &str, row: usize| {
        let column = column(name)?.as_primitive_opt::<TimestampMicrosecondType>()?;
        column.is_valid(row).then(|| column.value(row))
    };
    let read = |row: usize| {
        let attempt = column("attempt")?.as_primitive_opt::<Int32Type>()?.value(row);
        let said = Said {
            done: int("done", row)?,
            of: int("of", row),
            detail: text("detail", row).and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default(),
            again_at: time("again_at", row),
        };
        let principal = Principal::new(text("principal", row)?, text("tenant", row)?);
        let mut job = new(text("job", row)?, text("kind", row)?, &principal);
        job.schedule = text("schedule", row);
        job.due = time("due", row);
        job.attempts = attempt.unsigned_abs();
        Some((job, Change::of(&text("change", row)?)?, said, time(columns::EVENT_TIME, row)?))
    };
    (0..batch.rows.num_rows()).filter_map(read).collect()
}

fn new(id: Arc<str>, kind: Arc<str>, principal: &Principal) -> Job {
    Job {
        id,
        kind,
        state: State::Waiting,
        input: Value::Null,
        principal: principal.name.clone(),
        tenant: principal.tenant.clone(),
        schedule: None,
        due: None,
        attempts: 0,
        failures: 0,
        done: 0,
        of: None,
        said: Value::Null,
        error: None,
        approved_by: None,
        cancel_asked: false,
        submitted_at: 0,
        changed_at: 0,
        again_at: None,
    }
}

impl Node {
    /// Brings the view of jobs to where the log is. What was running goes on from there.
    pub(super) fn load_jobs(&self) -> anyhow::Result<()> {
        each_batch(self.log.as_ref(), &partition(), &mut 0, &mut |batch| {
            for (job, change, said, time) in rows(batch) {
                self.jobs.apply(job, &change, &said, time);
            }
        })?;
        for job in self.jobs.known().values_mut().filter(|job| job.state == State::Running) {
            job.state = State::Waiting;
        }
        Ok(())
    }

    /// Puts a job on the log, in one commit with the entry of whoever wants it done.
    pub async fn submit_job(
        &self,
        principal: &Principal,
        wanted: NewJob,
        leaf: &Leaf,
    ) -> Result<Job, ChangeError> {
        let internal = |error: &dyn std::fmt::Display| ChangeError::Internal(error.to_string());
        let id = match wanted.id {
            Some(id) => id,
            None => {
                let mut bytes = [0; 8];
                self.machine.randomness.fill(&mut bytes).map_err(|error| internal(&error))?;
                format!("job-{}", highwater_event::hexadecimal::show(&bytes))
            }
        };
        let mut job = new(id.into(), wanted.kind, principal);
        if let Some((schedule, due)) = wanted.schedule {
            (job.schedule, job.due) = (Some(schedule), Some(due));
        }
        let said = Said { detail: wanted.input, ..Said::default() };
        let change = if wanted.proposed { Change::Proposed } else { Change::Submitted };
        self.change_job(&job, change, said, leaf).await?;
        self.jobs.look();
        self.jobs.get(&job.id).ok_or_else(|| internal(&"the job was lost"))
    }

    /// Lets a job go on that has waited for the approval of somebody else.
    pub async fn approve_job(&self, job: &Job, by: &str, leaf: &Leaf) -> Result<Job, ChangeError> {
        let said = Said { detail: serde_json::json!({"by": by}), ..Said::default() };
        self.change_job(job, Change::Approved, said, leaf).await?;
        self.jobs.look();
        Ok(self.jobs.get(&job.id).unwrap_or_else(|| job.clone()))
    }

    /// Asks for a job to end; one that does not run ends at once.
    pub async fn cancel_job(&self, job: &Job, leaf: &Leaf) -> Result<Job, ChangeError> {
        self.change_job(job, Change::CancelAsked, Said::default(), leaf).await?;
        self.jobs.look();
        Ok(self.jobs.get(&job.id).unwrap_or_else(|| job.clone()))
    }

    /// Writes down what becomes of a job, and takes it into the view.
    async fn change_job(
        &self,
        job: &Job,
        change: Change,
        said: Said,
        leaf: &Leaf,
    ) -> Result<(), ChangeError> {
        let now = self.machine.clock.now_micros();
        let row =
            append(job, &change, &said, now).map_err(|error| ChangeError::Internal(error.to_string()))?;
        let _alone = self.jobs.changing.lock().await;
        self.log.append(Commit { appends: vec![row, leaf.append()?], ..Commit::default() }).await?;
        leaf.settle();
        self.jobs.apply(job.clone(), &change, &said, now);
        Ok(())
    }

    /// Writes down how far a job is. It is no act of its own, so it has no entry of the trail.
    async fn note_progress(&self, job: &Job, said: Said) -> Result<(), ChangeError> {
        let now = self.machine.clock.now_micros();
        let row = append(job, &Change::Progress, &said, now)
            .map_err(|error| ChangeError::Internal(error.to_string()))?;
        let _alone = self.jobs.changing.lock().await;
        self.log.append(Commit { appends: vec![row], ..Commit::default() }).await?;
        self.jobs.apply(job.clone(), &Change::Progress, &said, now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(id: &str) -> Job {
        new(id.into(), "work".into(), &Principal::new("ada", "north"))
    }

    /// What is read back from rows is what was told while they were written.
    #[test]
    fn the_view_is_the_same_from_the_log() {
        let (told, read) = (Jobs::default(), Jobs::default());
        let said = |done, detail: Value| Said { done, of: Some(9), detail, again_at: None };
        let input = serde_json::json!({"stream": "orders"});
        let changes = [
            (Change::Proposed, said(0, input.clone())),
            (Change::Approved, said(0, serde_json::json!({"by": "grace"}))),
            (Change::Started, said(0, Value::Null)),
            (Change::Progress, said(4, serde_json::json!({"events": 4}))),
            (Change::Retrying, Said { again_at: Some(77), ..said(4, serde_json::json!({"code": "busy"})) }),
            (Change::CancelAsked, said(4, Value::Null)),
            (Change::Started, said(4, Value::Null)),
            (Change::Finished, said(9, serde_json::json!({"events": 9}))),
        ];
        for (at, (change, said)) in changes.iter().enumerate() {
            let mut job = job("j");
            (job.schedule, job.due) = (Some("nightly".into()), Some(5));
            let rows_of = append(&job, change, said, at as i64).unwrap().rows;
            told.apply(job, change, said, at as i64);
            let batch = LogBatch { base: 0, recorded_at: 0, rows: rows_of };
            for (job, change, said, at) in rows(&batch) {
                read.apply(job, &change, &said, at);
            }
            assert_eq!(format!("{:?}", told.get("j")), format!("{:?}", read.get("j")));
        }
        let end = read.get("j").unwrap();
        assert_eq!((end.state, end.done, end.attempts, end.submitted_at), (State::Finished, 9, 2, 0));
        assert_eq!((end.input, end.cancel_asked), (input, true));
        assert_eq!((read.last_due("nightly"), read.last_due("other")), (Some(5), None));
    }

    #[test]
    fn the_oldest_that_have_ended_are_forgotten() {
        let jobs = Jobs::default();
        jobs.apply(job("waits"), &Change::Submitted, &Said::default(), 0);
        for number in 0..2 * REMEMBERED as i64 {
            let id = format!("j{number:06}");
            jobs.apply(job(&id), &Change::Submitted, &Said::default(), number);
            jobs.apply(job(&id), &Change::Cancelled, &Said::default(), number);
        }
        assert!(jobs.known().len() <= REMEMBERED + REMEMBERED / 10);
        assert!(jobs.get("waits").is_some() && jobs.get("j000000").is_none());
        assert_eq!(jobs.list(|_| true)[0].id.as_ref(), format!("j{:06}", 2 * REMEMBERED - 1));
    }
}
