//! Does the work of jobs, two at a time, and begins those of schedules.
//!
//! A job is done in steps, between which it can be cancelled and says how far it is. One that was running when the node
//! stopped goes on after the start: work of every kind is safe to begin again. What fails for a passing reason is
//! tried again, later each time.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use highwater_auth::{Asked, Identity};
use highwater_event::{Principal, StreamName, time};
use highwater_sql::catalog::ScheduleEntry;
use serde_json::{Value, json};

use super::{Change, Job, NewJob, Said, State};
use crate::node::{Leaf, Node};

/// Jobs that go on at a time.
const AT_ONCE: usize = 2;
/// How often in a row a job may fail.
const MOST_FAILURES: u32 = 8;
/// How long it waits after the first failure, and after many.
const SHORTEST_WAIT: Duration = Duration::from_secs(2);
const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// Time between two rows about the progress of a job.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// The longest time between two looks at what is due.
const LOOK: Duration = Duration::from_secs(30);
/// What is begun so much after it was due was missed.
const MISSED: i64 = 90_000_000;

/// A kind of work.
#[async_trait]
pub trait Kind: Send + Sync {
    /// Its name.
    fn name(&self) -> &'static str;
    /// What is asked before it is done without the approval of a second person; nothing for work that needs none.
    fn alone(&self, _node: &Node, _input: &Value) -> Option<Alone> {
        None
    }
    /// Begins the work, or goes on with it: what was done before must not be done twice.
    async fn begin(&self, node: &Arc<Node>, order: &Order) -> Result<Box<dyn Work>, Setback>;
}

/// May this be done without the approval of a second person?
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alone {
    permission: &'static str,
    stream: Option<String>,
}

impl Alone {
    /// A replay of a stream.
    pub fn replay(stream: impl Into<String>) -> Self {
        Self { permission: "replay_alone", stream: Some(stream.into()) }
    }

    /// An erasure.
    pub fn erase() -> Self {
        Self { permission: "erase_alone", stream: None }
    }

    /// Whether somebody may.
    pub fn is_allowed(&self, node: &Node, identity: &Identity) -> bool {
        let asked = match &self.stream {
            Some(stream) => Asked::on(self.permission, "stream", stream),
            None => Asked::node(self.permission),
        };
        node.allows(identity, asked)
    }

    /// Why it is not done.
    pub fn detail(&self) -> String {
        match &self.stream {
            Some(stream) => {
                format!("a policy wants a replay of \"{stream}\" to be approved by somebody else")
            }
            None => "a policy wants an erasure to be approved by somebody else".into(),
        }
    }
}

/// What is to be done, and on whose behalf.
pub struct Order {
    /// The job.
    pub job: Job,
    /// Whoever has begun it, as they are now.
    pub identity: Arc<Identity>,
}

/// Work that goes on.
#[async_trait]
pub trait Work: Send {
    /// Does a part that takes a second or so.
    async fn step(&mut self) -> Result<Step, Setback>;
}

/// What a part of the work came to.
pub enum Step {
    /// There is more to do.
    More(Progress),
    /// All is done; this is the result.
    Done(Progress),
}

/// How far work is.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// How much is done.
    pub done: u64,
    /// Of how much, when that is known.
    pub of: Option<u64>,
    /// What else there is to say.
    pub said: Value,
}

/// Why work can't go on.
#[derive(Debug)]
pub struct Setback {
    /// Code, detail and what else there is to say.
    pub error: Value,
    /// It would fail again.
    pub lasting: bool,
}

impl Setback {
    /// A setback that comes again however often the work is tried.
    pub fn lasting(code: &str, detail: impl Into<String>) -> Self {
        Self { error: json!({"code": code, "detail": detail.into()}), lasting: true }
    }

    /// One that may pass.
    pub fn passing(code: &str, detail: impl Into<String>) -> Self {
        Self { error: json!({"code": code, "detail": detail.into()}), lasting: false }
    }
}

impl Node {
    /// Starts to do jobs of some kinds.
    pub fn start_jobs(self: &Arc<Self>, kinds: Vec<&'static dyn Kind>) {
        if self.jobs.kinds.set(kinds).is_err() {
            return;
        }
        let running = self.machine.scheduler.spawn(run(Arc::downgrade(self)));
        super::super::lock(&self.background).push(running);
    }

    /// Whoever has begun a job, as they are now.
    fn identity_of(&self, job: &Job) -> Result<Identity, Setback> {
        let (engine, operator) = (Principal::engine(), Principal::operator());
        if *job.principal == *engine.name {
            return Ok(Identity { principal: engine, ..Identity::operator() });
        }
        if *job.principal == *operator.name {
            return Ok(Identity::operator());
        }
        let found = self.people.directory().identify_user(&job.principal);
        found.map_err(|error| Setback::lasting("credentials_disabled", format!("{}: {error}", job.principal)))
    }

    fn job_leaf(&self, job: &Job, seen: Value) -> Leaf {
        let principal = Principal::new(job.principal.clone(), job.tenant.clone());
        let mut leaf = self.leaf(&principal, "job", format!("job:{}", job.id));
        leaf.entry.seen = Some(seen.to_string());
        leaf
    }

    /// How long a job that has failed so often waits: longer each time, and not as long as others.
    fn wait_after(&self, failures: u32) -> i64 {
        let longest = LONGEST_WAIT.as_micros() as u64;
        let wait = (SHORTEST_WAIT.as_micros() as u64).saturating_mul(1 << failures.min(20)).min(longest);
        let mut chance = [0; 2];
        let quarter = match self.machine.randomness.fill(&mut chance) {
            Ok(()) => wait / 2 * u64::from(u16::from_le_bytes(chance)) / u64::from(u16::MAX),
            Err(_) => wait / 4,
        };
        (wait - wait / 4 + quarter) as i64
    }
}

/// Does jobs until the node is gone.
async fn run(node: Weak<Node>) {
    let mut running: FuturesUnordered<BoxFuture<'static, Arc<str>>> = FuturesUnordered::new();
    let mut going: BTreeSet<Arc<str>> = BTreeSet::new();
    let mut seen = Seen::default();
    while let Some(node) = node.upgrade() {
        begin_scheduled(&node, &mut seen).await;
        let now = node.machine.clock.now_micros();
        let waits =
            |job: &Job| job.state == State::Waiting || (job.state == State::Unapproved && job.cancel_asked);
        let mut waiting = node.jobs.list(|job| waits(job) && !going.contains(&job.id));
        // The oldest first.
        waiting.reverse();
        for job in waiting {
            let due = job.again_at.is_none_or(|at| at <= now) || job.cancel_asked;
            if due && going.len() < AT_ONCE {
                going.insert(job.id.clone());
                running.push(execute(node.clone(), job).boxed());
            }
        }
        let pause = node.machine.scheduler.sleep(until_next(&node, &going));
        tokio::select! {
            Some(id) = running.next(), if !running.is_empty() => {
                going.remove(&id);
            }
            () = node.jobs.wake.notified() => {}
            () = pause => {}
        }
    }
}

/// Time until something is due.
fn until_next(node: &Node, going: &BTreeSet<Arc<str>>) -> Duration {
    let now = node.machine.clock.now_micros();
    // Whoever waits for a place is begun when one is free.
    let waits = |job: &Job| going.len() < AT_ONCE && job.state == State::Waiting && !going.contains(&job.id);
    let again = node.jobs.list(waits).into_iter().filter_map(|job| job.again_at).min();
    let catalog = node.catalog();
    let due = catalog.schedules.values().filter_map(|entry| entry.schedule.timetable.next(now)).min();
    let next = again.into_iter().chain(due).min().map_or(LOOK.as_micros() as i64, |at| at - now);
    Duration::from_micros(next.max(1_000).unsigned_abs()).min(LOOK)
}

/// Schedules as they were seen last, and when they began to be what they are.
#[derive(Default)]
struct Seen {
    /// What was there at the start has been looked at: what comes from now on is new.
    started: bool,
    known: BTreeMap<StreamName, (String, i64)>,
}

impl Seen {
    /// After when a schedule is due. What a schedule was due for before it was declared, or declared anew, is not its
    /// business; what was missed while the node stood still is.
    fn since(&mut self, entry: &ScheduleEntry, last: Option<i64>, now: i64) -> i64 {
        let began = match self.known.get(&entry.name) {
            Some((text, began)) if *text == entry.text => *began,
            _ => {
                let began = if self.started { now } else { last.unwrap_or(now) };
                self.known.insert(entry.name.clone(), (entry.text.clone(), began));
                began
            }
        };
        last.map_or(began, |last| last.max(began))
    }
}

/// Puts what schedules want done on the log, once for each time that it was due.
async fn begin_scheduled(node: &Arc<Node>, seen: &mut Seen) {
    let catalog = node.catalog();
    let now = node.machine.clock.now_micros();
    seen.known.retain(|name, _| catalog.schedules.contains_key(name));
    for entry in catalog.schedules.values() {
        let last = node.jobs.last_due(entry.name.as_str());
        let after = seen.since(entry, last, now);
        let Some(due) = entry.schedule.timetable.last(now).filter(|due| *due > after) else { continue };
        if now - due > MISSED && !entry.schedule.catch_up {
            continue;
        }
        let unfinished =
            |job: &Job| job.schedule.as_deref() == Some(entry.name.as_str()) && !job.state.is_end();
        if !node.jobs.list(unfinished).is_empty() {
            // The one before is still at it; the next time comes.
            continue;
        }
        if let Err(error) = submit_scheduled(node, entry, due).await {
            tracing::warn!(schedule = entry.name.as_str(), %error, "a job of a schedule could not be begun; it is tried again");
        }
    }
    seen.started = true;
}

async fn submit_scheduled(
    node: &Arc<Node>,
    entry: &ScheduleEntry,
    due: i64,
) -> Result<(), crate::node::ChangeError> {
    let digits: String = time::show_micros(due).chars().filter(char::is_ascii_digit).take(14).collect();
    let wanted = NewJob {
        // The same time is never begun twice.
        id: Some(format!("{}-{digits}", entry.name)),
        kind: entry.schedule.job.as_str().into(),
        input: json!(entry.schedule.input),
        schedule: Some((entry.name.as_str().into(), due)),
        proposed: false,
    };
    let engine = Principal::engine();
    let mut leaf = node.leaf(&engine, "job", format!("schedule:{}", entry.name));
    leaf.entry.seen = Some(json!({"kind": entry.schedule.job, "due": time::show_micros(due)}).to_string());
    node.submit_job(&engine, wanted, &leaf).await.map(drop)
}

/// Does a job to its end, or until it is set back; answers its id.
async fn execute(node: Arc<Node>, job: Job) -> Arc<str> {
    let id = job.id.clone();
    let worked = AssertUnwindSafe(work(&node, &job)).catch_unwind().await;
    let outcome = worked.unwrap_or_else(|panic| {
        let said = highwater_log::machine::Unfinished::panicked(panic.as_ref());
        Err(Setback::passing("internal", said.to_string()))
    });
    let now = node.jobs.get(&id).unwrap_or(job);
    let (change, said) = match outcome {
        Ok(Some(Progress { done, of, said })) => {
            (Change::Finished, Said { done, of, detail: said, again_at: None })
        }
        Ok(None) => (Change::Cancelled, Said { done: now.done, of: now.of, ..Said::default() }),
        Err(Setback { error, lasting }) => {
            tracing::warn!(job = id.as_ref(), kind = now.kind.as_ref(), %error, lasting, "a job was set back");
            let last = lasting || now.failures + 1 >= MOST_FAILURES;
            let again_at = (!last).then(|| node.machine.clock.now_micros() + node.wait_after(now.failures));
            let change = if last { Change::Failed } else { Change::Retrying };
            (change, Said { done: now.done, of: now.of, detail: error, again_at })
        }
    };
    let mut leaf =
        node.job_leaf(&now, json!({"kind": now.kind, "change": change.text(), "detail": said.detail}));
    if change == Change::Failed {
        leaf.entry.outcome = highwater_log::audit::Outcome::Failed;
    }
    if let Err(error) = node.change_job(&now, change, said, &leaf).await {
        // It is as if the node had stopped before: the work is done again.
        tracing::error!(job = id.as_ref(), %error, "what became of a job could not be written down");
        node.machine.scheduler.sleep(SHORTEST_WAIT).await;
        if let Some(job) = node.jobs.known().get_mut(&id) {
            job.state = State::Waiting;
        }
    }
    id
}

/// The work itself: its result, or nothing when it was cancelled.
async fn work(node: &Arc<Node>, job: &Job) -> Result<Option<Progress>, Setback> {
    let cancelled = || node.jobs.get(&job.id).is_none_or(|job| job.cancel_asked);
    if cancelled() {
        return Ok(None);
    }
    let leaf =
        node.job_leaf(job, json!({"kind": job.kind, "change": "started", "attempt": job.attempts + 1}));
    let begun = Said { done: job.done, of: job.of, ..Said::default() };
    let started = node.change_job(job, Change::Started, begun, &leaf).await;
    started.map_err(|error| Setback::passing("log_unavailable", error.to_string()))?;
    let kind = node.jobs.kind(&job.kind);
    let kind =
        kind.ok_or_else(|| Setback::lasting("unknown_job", format!("there is no job \"{}\"", job.kind)))?;
    let order = Order { job: job.clone(), identity: Arc::new(node.identity_of(job)?) };
    // The policy may be younger than the job, and a schedule asks nobody.
    if let Some(alone) = kind.alone(node, &job.input)
        && job.approved_by.is_none()
        && !alone.is_allowed(node, &order.identity)
    {
        return Err(Setback::lasting("approval_needed", alone.detail()));
    }
    let mut work = kind.begin(node, &order).await?;
    let mut told = None;
    loop {
        if cancelled() {
            return Ok(None);
        }
        let progress = match work.step().await? {
            Step::Done(result) => return Ok(Some(result)),
            Step::More(progress) => progress,
        };
        let now = node.machine.scheduler.elapsed();
        if told.is_none_or(|told| now.saturating_sub(told) >= PROGRESS_EVERY) {
            told = Some(now);
            let said = Said { done: progress.done, of: progress.of, detail: progress.said, again_at: None };
            let noted = node.note_progress(job, said).await;
            noted.map_err(|error| Setback::passing("log_unavailable", error.to_string()))?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use highwater_sql::dialect::{Statement, parse_script};

    fn entry(text: &str) -> ScheduleEntry {
        let declared = parse_script(text).unwrap().remove(0);
        let Statement::CreateSchedule { name, schedule } = declared.statement else { panic!("{text}") };
        ScheduleEntry { name, schedule: *schedule, text: text.into() }
    }

    #[test]
    fn a_schedule_is_due_for_what_came_after_it_was_declared() {
        let hourly = entry("CREATE SCHEDULE s CRON '0 * * * *' RUN maintenance");
        let daily = entry("CREATE SCHEDULE s CRON '0 2 * * *' RUN maintenance");
        let mut seen = Seen::default();
        // There when the node started, and missed since its last job.
        assert_eq!(seen.since(&hourly, Some(100), 500), 100);
        // There when the node started, and never run: it may have been declared a moment before.
        assert_eq!(Seen::default().since(&hourly, None, 500), 500);
        seen.started = true;
        assert_eq!(seen.since(&hourly, Some(300), 600), 300);
        // Another one under its name.
        assert_eq!(seen.since(&daily, Some(300), 700), 700);
        assert_eq!(seen.since(&daily, Some(800), 900), 800);
        assert_eq!(seen.since(&daily, Some(300), 900), 700);
    }
}
