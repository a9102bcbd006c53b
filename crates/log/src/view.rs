//! Views and the driver that keeps them going.
//!
//! A view reads one stream in order, or several in the order of their commits, and keeps *its output and its mark in one atomic commit of its
//! own*. The driver reads the log for it, hands it rows, retries what may pass, sets a failing view
//! aside without stopping the others, and rebuilds a view from offset 0 on request. It keeps no state
//! that matters: after a crash each view tells where it stands.

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use highwater_event::{Clock, Offset, StreamName, StreamPartition, planted};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::Log;
use crate::commit::LogBatch;
use crate::error::{AppendError, ReadError};
use crate::growth::Growth;
use crate::keyed::StoreError;
use crate::machine::{self, Machine, Scheduler, Unfinished};

/// Why a view could not apply rows.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ViewError {
    /// It may work later: a disk is full, a server is away.
    #[error("{0}")]
    Retry(String),
    /// It will not work until someone acts.
    #[error("{0}")]
    Broken(String),
}

impl From<StoreError> for ViewError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) => Self::Retry(error.to_string()),
            StoreError::Stopped(_) | StoreError::Damaged(_) => Self::Broken(error.to_string()),
        }
    }
}

impl From<AppendError> for ViewError {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::DiskFull
            | AppendError::Write(_)
            | AppendError::Fenced { .. }
            | AppendError::Outrun { .. } => Self::Retry(error.to_string()),
            AppendError::Poisoned(_) | AppendError::Encode(_) | AppendError::Closed => {
                Self::Broken(error.to_string())
            }
        }
    }
}

impl From<ReadError> for ViewError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Damaged { .. } | ReadError::Retired { .. } => Self::Broken(error.to_string()),
            ReadError::Io(_) => Self::Retry(error.to_string()),
        }
    }
}

/// When the driver hands rows to a view.
#[derive(Debug, Clone, Copy)]
pub struct Gather {
    /// At once when this many rows wait, and never more than about this many at a time.
    pub rows: usize,
    /// Otherwise when the first of them has waited this long.
    pub wait: Duration,
}

/// What became of rows that a view applied: `taken = out + filtered + late + dead`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Applied {
    /// Rows read from the source.
    pub taken: u64,
    /// Rows that became output or changed a state.
    pub out: u64,
    /// Rows left out by a condition.
    pub filtered: u64,
    /// Rows that came too late.
    pub late: u64,
    /// Rows that could not be processed and went to the dead letters.
    pub dead: u64,
}

impl AddAssign for Applied {
    fn add_assign(&mut self, other: Self) {
        self.taken += other.taken;
        self.out += other.out;
        self.filtered += other.filtered;
        self.late += other.late;
        self.dead += other.dead;
    }
}

/// Something derived from the log.
#[async_trait]
pub trait View: Send {
    /// Unique name.
    fn name(&self) -> &str;
    /// "stream", "table", "lake", "dedupe": for lists.
    fn kind(&self) -> &'static str;
    /// The streams it reads. When there are several, rows come in the order of their commits, and rows
    /// of one commit in this order: what the view makes of them does not depend on when it ran.
    fn sources(&self) -> Vec<StreamName>;
    /// When it wants rows.
    fn gather(&self) -> Gather;
    /// The next offset that it needs of a partition, from its own store.
    async fn mark(&mut self, at: &StreamPartition) -> Result<Offset, ViewError>;
    /// Applies rows of one partition, the first of which is at the mark, and moves the mark, in one
    /// atomic commit. On an error nothing may have changed.
    async fn apply(&mut self, at: &StreamPartition, batches: Vec<LogBatch>) -> Result<Applied, ViewError>;
    /// Moves the mark of a partition over rows that are nowhere any more: their retention was over before
    /// this view came to them.
    async fn skip(&mut self, at: &StreamPartition, to: Offset) -> Result<(), ViewError>;
    /// Drops the output and the marks. `Err` when the view can't be rebuilt, with the reason.
    async fn reset(&mut self) -> Result<(), ViewError>;
}

/// What a view is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ViewState {
    /// Reading the log as it grows.
    Running,
    /// Stopped by an operator.
    Paused,
    /// Failed and will be tried again.
    Retrying,
    /// Set aside: needs an operator.
    Failed,
}

/// A view as lists show it.
#[derive(Debug, Clone, Serialize)]
pub struct ViewStatus {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: &'static str,
    /// The stream it reads, or several with commas between them.
    pub source: String,
    /// What it is doing.
    pub state: ViewState,
    /// Next offset by partition, written `stream/partition`.
    pub marks: BTreeMap<String, Offset>,
    /// Rows of the source that it has not applied.
    pub lag: u64,
    /// Rows per second, smoothed over some seconds.
    pub rate: f64,
    /// Totals since the process started.
    pub applied: Applied,
    /// The last failure, kept until the view works again.
    pub last_error: Option<String>,
    /// When it last applied rows, microseconds UTC.
    pub last_applied_at: Option<i64>,
}

enum Control {
    Pause(oneshot::Sender<()>),
    Resume(oneshot::Sender<()>),
    Rebuild(oneshot::Sender<Result<(), ViewError>>),
}

/// A request to a view that does not exist or no longer runs.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ControlError {
    /// No such view.
    #[error("no view \"{0}\"")]
    Unknown(String),
    /// The view refused.
    #[error("{0}")]
    Refused(#[from] ViewError),
    /// The driver is stopping.
    #[error("the views are being stopped")]
    Stopped,
}

struct Running {
    status: Arc<Mutex<ViewStatus>>,
    marks: SharedMarks,
    sources: Vec<StreamName>,
    control: mpsc::Sender<Control>,
    task: machine::Running,
}

/// Keeps views going.
pub struct Driver {
    log: Arc<dyn Log>,
    machine: Machine,
    running: Mutex<BTreeMap<String, Running>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Driver {
    /// A driver that runs its views on a machine.
    pub fn new(log: Arc<dyn Log>, machine: Machine) -> Self {
        Self { log, machine, running: Mutex::new(BTreeMap::new()) }
    }

    /// Starts a view. A running view of the same name is stopped first.
    pub fn start(&self, view: Box<dyn View>) {
        let name = view.name().to_owned();
        let sources = view.sources();
        let status = Arc::new(Mutex::new(ViewStatus {
            name: name.clone(),
            kind: view.kind(),
            source: sources.iter().map(|source| source.public().to_owned()).collect::<Vec<_>>().join(", "),
            state: ViewState::Running,
            marks: BTreeMap::new(),
            lag: 0,
            rate: 0.0,
            applied: Applied::default(),
            last_error: None,
            last_applied_at: None,
        }));
        let (control, controls) = mpsc::channel(8);
        let marks = SharedMarks::default();
        let task = Task {
            sources: sources.clone(),
            shown: marks.clone(),
            growth: self.log.growth(&sources),
            log: self.log.clone(),
            clock: self.machine.clock.clone(),
            scheduler: self.machine.scheduler.clone(),
            view,
            status: status.clone(),
            controls,
            marks: BTreeMap::new(),
            waiting_since: None,
            failures: 0,
        };
        let shown = status.clone();
        let task = self.machine.scheduler.spawn(async move {
            if let Err(payload) = AssertUnwindSafe(task.run()).catch_unwind().await {
                let error = Unfinished::panicked(payload.as_ref());
                let mut status = lock(&shown);
                tracing::error!(view = status.name, %error, "a view is set aside until the next start");
                status.state = ViewState::Failed;
                status.last_error = Some("it ended in a panic; the log of the server says more".into());
            }
        });
        let running = Running { status, marks, sources, control, task };
        if let Some(previous) = lock(&self.running).insert(name, running) {
            previous.task.abort();
        }
    }

    /// Ends a view for good: it is no longer listed and touches nothing any more. False when there is
    /// none of that name.
    pub async fn remove(&self, name: &str) -> bool {
        let Some(running) = lock(&self.running).remove(name) else { return false };
        drop(running.control);
        running.task.ended().await;
        true
    }

    /// How far each view has read a partition, for those that read it.
    pub fn readers(&self, at: &StreamPartition) -> Vec<(String, Offset)> {
        let running = lock(&self.running);
        let readers = running.iter().filter(|(_, running)| running.sources.contains(&at.stream));
        readers
            .map(|(name, running)| (name.clone(), lock(&running.marks).get(at).copied().unwrap_or(0)))
            .collect()
    }

    /// When the log took the oldest of the rows that a view has not applied; `None` when there are none.
    pub fn waiting_since(&self, name: &str) -> Result<Option<i64>, ReadError> {
        let (sources, marks) = match lock(&self.running).get(name) {
            Some(running) => (running.sources.clone(), lock(&running.marks).clone()),
            None => return Ok(None),
        };
        let mut oldest: Option<i64> = None;
        for at in partitions(self.log.as_ref(), &sources) {
            let mark = marks.get(&at).copied().unwrap_or(0).max(self.log.start(&at));
            if mark < self.log.end(&at)
                && let Some(batch) = read(self.log.as_ref(), &at, mark, 1)?.first()
            {
                oldest = Some(oldest.map_or(batch.recorded_at, |oldest| oldest.min(batch.recorded_at)));
            }
        }
        Ok(oldest)
    }

    /// All views by name.
    pub fn statuses(&self) -> Vec<ViewStatus> {
        let running = lock(&self.running);
        running.values().map(|running| self.fresh(running)).collect()
    }

    /// One view.
    pub fn status(&self, name: &str) -> Option<ViewStatus> {
        lock(&self.running).get(name).map(|running| self.fresh(running))
    }

    /// The status with a lag as of now rather than as of the last apply.
    fn fresh(&self, running: &Running) -> ViewStatus {
        let marks = lock(&running.marks).clone();
        let mut status = lock(&running.status).clone();
        status.lag = lag(self.log.as_ref(), &running.sources, &marks);
        status.marks = marks
            .iter()
            .map(|(at, mark)| (format!("{}/{}", at.stream.public(), at.partition), *mark))
            .collect();
        status
    }

    /// Stops applying until [`Driver::resume`].
    pub async fn pause(&self, name: &str) -> Result<(), ControlError> {
        self.ask(name, Control::Pause).await
    }

    /// Goes on after a pause or a failure.
    pub async fn resume(&self, name: &str) -> Result<(), ControlError> {
        self.ask(name, Control::Resume).await
    }

    /// Drops the view's output and derives it again from offset 0.
    pub async fn rebuild(&self, name: &str) -> Result<(), ControlError> {
        Ok(self.ask(name, Control::Rebuild).await??)
    }

    async fn ask<T>(
        &self,
        name: &str,
        control: impl FnOnce(oneshot::Sender<T>) -> Control,
    ) -> Result<T, ControlError> {
        let sender = lock(&self.running)
            .get(name)
            .map(|running| running.control.clone())
            .ok_or_else(|| ControlError::Unknown(name.to_owned()))?;
        let (answer, answered) = oneshot::channel();
        sender.send(control(answer)).await.map_err(|_| ControlError::Stopped)?;
        answered.await.map_err(|_| ControlError::Stopped)
    }

    /// Stops every view where it stands.
    pub async fn stop(&self) {
        let running = std::mem::take(&mut *lock(&self.running));
        for view in running.into_values() {
            drop(view.control);
            view.task.ended().await;
        }
    }
}

type Marks = BTreeMap<StreamPartition, Offset>;
type SharedMarks = Arc<Mutex<Marks>>;

fn partitions(log: &dyn Log, sources: &[StreamName]) -> Vec<StreamPartition> {
    let of = |source: &StreamName| {
        let partitions = log.partitions(source);
        partitions
            .into_iter()
            .map(|partition| StreamPartition::new(source.clone(), partition))
            .collect::<Vec<_>>()
    };
    sources.iter().flat_map(of).collect()
}

fn lag(log: &dyn Log, sources: &[StreamName], marks: &Marks) -> u64 {
    partitions(log, sources)
        .into_iter()
        .map(|at| log.end(&at).saturating_sub(marks.get(&at).copied().unwrap_or(0)))
        .sum()
}

struct Task {
    log: Arc<dyn Log>,
    clock: Arc<dyn Clock>,
    scheduler: Arc<dyn Scheduler>,
    growth: Growth,
    view: Box<dyn View>,
    status: Arc<Mutex<ViewStatus>>,
    controls: mpsc::Receiver<Control>,
    sources: Vec<StreamName>,
    marks: Marks,
    /// The marks as others see them.
    shown: SharedMarks,
    /// When the first of the rows came that are being gathered.
    waiting_since: Option<Duration>,
    failures: u32,
}

/// Rows from a mark on.
fn read(log: &dyn Log, at: &StreamPartition, mark: Offset, rows: usize) -> Result<Vec<LogBatch>, ReadError> {
    Ok(log.read(at, mark, rows)?.into_iter().filter_map(|batch| batch.from_offset(mark)).collect())
}

/// First wait after a failure; doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// How often rates are worked out while nothing happens.
const IDLE_TICK: Duration = Duration::from_secs(2);

/// Why a task woke up.
enum Wake {
    Log,
    Timer,
    Control(Option<Control>),
}

impl Task {
    async fn run(mut self) {
        let mut sleep = Duration::ZERO;
        loop {
            let paused = matches!(lock(&self.status).state, ViewState::Paused | ViewState::Failed);
            match self.wait(sleep, paused).await {
                Wake::Control(None) => return,
                Wake::Control(Some(control)) => self.control(control).await,
                Wake::Log | Wake::Timer => {}
            }
            if matches!(lock(&self.status).state, ViewState::Paused | ViewState::Failed) {
                sleep = IDLE_TICK;
                continue;
            }
            sleep = match self.step().await {
                Ok(sleep) => sleep,
                Err(error) => self.failed(&error),
            };
        }
    }

    async fn wait(&mut self, sleep: Duration, paused: bool) -> Wake {
        // While rows are being gathered, or a failure is waited out, growth of the log is no reason to wake.
        let gathering = paused || self.waiting_since.is_some() || self.failures > 0;
        tokio::select! {
            biased;
            control = self.controls.recv() => Wake::Control(control),
            () = self.growth.grown(), if !gathering && !sleep.is_zero() => Wake::Log,
            () = self.scheduler.sleep(sleep) => Wake::Timer,
        }
    }

    /// Applies what is due; answers how long to sleep when nothing more is.
    async fn step(&mut self) -> Result<Duration, ViewError> {
        let gather = self.view.gather();
        // Asked before anything else: up to here every source can be read to its end.
        let complete = self.log.recorded_until();
        for at in partitions(self.log.as_ref(), &self.sources) {
            if let std::collections::btree_map::Entry::Vacant(slot) = self.marks.entry(at) {
                let mark = self.view.mark(slot.key()).await?;
                slot.insert(mark);
            }
        }
        self.skip_retired().await?;
        let waiting = lag(self.log.as_ref(), &self.sources, &self.marks);
        if waiting == 0 {
            self.waiting_since = None;
            self.recovered();
            return Ok(IDLE_TICK);
        }
        let now = self.scheduler.elapsed();
        let waited = now.saturating_sub(*self.waiting_since.get_or_insert(now));
        if waiting < gather.rows as u64 && waited < gather.wait {
            return Ok((gather.wait - waited).min(IDLE_TICK));
        }
        if self.sources.len() > 1 {
            for (at, batches) in self.merged(gather.rows, complete)? {
                self.apply(&at, batches).await?;
            }
        } else {
            let partitions: Vec<StreamPartition> = self.marks.keys().cloned().collect();
            for at in partitions {
                let mark = self.marks.get(&at).copied().unwrap_or(0);
                let batches = read(self.log.as_ref(), &at, mark, gather.rows)?;
                self.apply(&at, batches).await?;
            }
        }
        self.waiting_since = None;
        self.recovered();
        Ok(Duration::ZERO)
    }

    /// Passes over rows that neither the log nor its cold tier has any more.
    async fn skip_retired(&mut self) -> Result<(), ViewError> {
        let behind: Vec<(StreamPartition, Offset)> = self
            .marks
            .iter()
            .filter(|(at, mark)| **mark < self.log.start(at))
            .map(|(at, mark)| (at.clone(), *mark))
            .collect();
        for (at, mark) in behind {
            if let Err(ReadError::Retired { start, .. }) = self.log.read(&at, mark, 1)
                && start > mark
            {
                tracing::info!(view = self.view.name(), partition = %at, from = mark, to = start, "rows past their retention are passed over");
                self.view.skip(&at, start).await?;
                self.marks.insert(at, start);
            }
        }
        Ok(())
    }

    /// Rows of all sources in the order of their commits, cut into runs of one partition.
    fn merged(
        &self,
        rows: usize,
        mut complete: i64,
    ) -> Result<Vec<(StreamPartition, Vec<LogBatch>)>, ViewError> {
        let log = self.log.as_ref();
        let mut found: Vec<(i64, usize, StreamPartition, LogBatch)> = Vec::new();
        for (at, mark) in &self.marks {
            let order = self.sources.iter().position(|source| *source == at.stream).unwrap_or(0);
            let mut batches = read(log, at, *mark, rows)?;
            // A commit is taken whole or not at all, so reading goes on until the next one begins.
            while let (Some(first), Some(last)) = (batches.first(), batches.last())
                && last.end() < log.end(at)
            {
                if last.recorded_at > first.recorded_at {
                    complete = complete.min(last.recorded_at - 1);
                    break;
                }
                let more = read(log, at, last.end(), rows)?;
                if more.is_empty() {
                    break;
                }
                batches.extend(more);
            }
            found.extend(batches.into_iter().map(|batch| (batch.recorded_at, order, at.clone(), batch)));
        }
        found.retain(|(recorded_at, ..)| *recorded_at <= complete || planted::bug("no_frontier"));
        found.sort_by_key(|(recorded_at, order, at, batch)| (*recorded_at, *order, at.partition, batch.base));
        let mut runs: Vec<(StreamPartition, Vec<LogBatch>)> = Vec::new();
        for (_, _, at, batch) in found {
            match runs.last_mut() {
                Some((same, batches)) if *same == at => batches.push(batch),
                _ => runs.push((at, vec![batch])),
            }
        }
        Ok(runs)
    }

    async fn apply(&mut self, at: &StreamPartition, batches: Vec<LogBatch>) -> Result<(), ViewError> {
        let Some(end) = batches.last().map(LogBatch::end) else { return Ok(()) };
        let started = self.scheduler.elapsed();
        let outcome = self.view.apply(at, batches).await;
        if outcome.is_err() {
            // Whoever moved a mark (a second owner, a half-known commit) is believed, not us.
            self.marks.clear();
        }
        let applied = outcome?;
        self.marks.insert(at.clone(), end);
        lock(&self.shown).insert(at.clone(), end);
        let mut status = lock(&self.status);
        status.applied += applied;
        status.last_applied_at = Some(self.clock.now_micros());
        let took = self.scheduler.elapsed().saturating_sub(started);
        let rate = applied.taken as f64 / took.as_secs_f64().max(1e-6);
        status.rate = if status.rate == 0.0 { rate } else { status.rate * 0.9 + rate * 0.1 };
        Ok(())
    }

    fn recovered(&mut self) {
        let mut status = lock(&self.status);
        if self.failures > 0 {
            tracing::info!(view = status.name, "works again");
            self.failures = 0;
            status.last_error = None;
        }
        status.state = ViewState::Running;
        *lock(&self.shown) = self.marks.clone();
    }

    fn failed(&mut self, error: &ViewError) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let mut status = lock(&self.status);
        status.last_error = Some(error.to_string());
        match error {
            ViewError::Retry(_) => {
                status.state = ViewState::Retrying;
                tracing::warn!(view = status.name, failures = self.failures, %error, "will be tried again");
                MIN_BACKOFF.saturating_mul(1 << (self.failures - 1).min(16)).min(MAX_BACKOFF)
            }
            ViewError::Broken(_) => {
                status.state = ViewState::Failed;
                tracing::error!(view = status.name, %error, "set aside; resume or rebuild it when the cause is gone");
                IDLE_TICK
            }
        }
    }

    async fn control(&mut self, control: Control) {
        let delivered = match control {
            Control::Pause(answer) => {
                lock(&self.status).state = ViewState::Paused;
                answer.send(()).is_ok()
            }
            Control::Resume(answer) => {
                self.restart();
                answer.send(()).is_ok()
            }
            Control::Rebuild(answer) => {
                let outcome = self.view.reset().await;
                if outcome.is_ok() {
                    self.restart();
                    lock(&self.status).applied = Applied::default();
                }
                answer.send(outcome).is_ok()
            }
        };
        if !delivered {
            tracing::debug!("a view was controlled by someone who did not wait for the answer");
        }
    }

    fn restart(&mut self) {
        self.marks.clear();
        self.failures = 0;
        self.waiting_since = None;
        let mut status = lock(&self.status);
        status.state = ViewState::Running;
        status.last_error = None;
        lock(&self.shown).clear();
    }
}
