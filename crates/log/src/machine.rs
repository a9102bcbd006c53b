//! What a node runs on. Clock, chance, disk and scheduler are handed in, so that a simulator can own all of
//! them; then a run, whatever goes on in it at the same time, is decided by one seed.

use std::any::Any;
use std::future::poll_fn;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures::FutureExt;
use highwater_event::{Clock, Randomness, SystemClock, SystemRandomness};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::disk::{Disk, RealDisk};

/// What a node runs on; clones share it.
#[derive(Clone)]
pub struct Machine {
    /// Tells the time of day.
    pub clock: Arc<dyn Clock>,
    /// Where chance comes from.
    pub randomness: Arc<dyn Randomness>,
    /// Where the log is kept.
    pub disk: Arc<dyn Disk>,
    /// What runs, and when.
    pub scheduler: Arc<dyn Scheduler>,
}

impl Machine {
    /// This machine; tasks run on the runtime of those who start them.
    pub fn real() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            randomness: Arc::new(SystemRandomness),
            disk: Arc::new(RealDisk),
            scheduler: Arc::new(Threads::new(None)),
        }
    }
}

/// Something that goes on beside its caller.
pub type Task = Pin<Box<dyn Future<Output = ()> + Send>>;
/// Work that is done in one go.
pub type Work = Box<dyn FnOnce() + Send>;
/// Ends a task where it stands.
pub type Abort = Box<dyn Fn() + Send + Sync>;

/// Runs what goes on beside its caller, and lets it wait. The engine asks nobody else, so that a simulator
/// can decide who goes first and how long everything takes.
pub trait Scheduler: Send + Sync {
    /// Starts a task among others, which it must not hold up.
    fn start(&self, task: Task) -> Abort;
    /// Starts work that keeps a core busy or waits for a disk.
    fn start_work(&self, work: Work);
    /// Starts the owner of something, which may hold up whoever runs beside it: a thread of its own.
    fn start_owner(&self, name: &str, owner: Task) -> io::Result<()>;
    /// Is over after some time.
    fn sleep(&self, time: Duration) -> Task;
    /// Time since some moment before the scheduler was first asked. Never goes back or jumps.
    fn elapsed(&self) -> Duration;
}

/// A task that was started. It goes on when this is dropped.
pub struct Running {
    abort: Abort,
    ended: oneshot::Receiver<()>,
}

impl Running {
    /// Ends the task where it stands.
    pub fn abort(&self) {
        (self.abort)();
    }

    /// Waits until the task has come to its end: by itself, by a panic, or because it was ended.
    pub async fn ended(self) {
        drop(self.ended.await);
    }
}

/// Something did not come to its end.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Unfinished {
    /// It panicked, and said this.
    #[error("it ended in a panic: {0}")]
    Panicked(String),
    /// Whoever ran it has stopped.
    #[error("it was given up before its end")]
    GivenUp,
}

impl Unfinished {
    /// What a panic left.
    pub fn panicked(payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        Self::Panicked(text.unwrap_or_else(|| "without a message".into()))
    }
}

impl dyn Scheduler {
    /// Starts a task among others.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> Running {
        let (ends, ended) = oneshot::channel();
        let abort = self.start(Box::pin(async move {
            task.await;
            // However it ends, this goes with it.
            drop(ends);
        }));
        Running { abort, ended }
    }

    /// Runs a task to its end, be it that its caller goes away.
    pub async fn complete<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Unfinished> {
        let (answer, answered) = oneshot::channel();
        drop(self.start(Box::pin(async move {
            let ended = AssertUnwindSafe(task).catch_unwind().await;
            drop(answer.send(ended.map_err(|payload| Unfinished::panicked(payload.as_ref()))));
        })));
        answered.await.unwrap_or(Err(Unfinished::GivenUp))
    }

    /// Does work that keeps a core busy or waits for a disk.
    pub async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Unfinished> {
        let (answer, answered) = oneshot::channel();
        self.start_work(Box::new(move || {
            let ended = catch_unwind(AssertUnwindSafe(work));
            drop(answer.send(ended.map_err(|payload| Unfinished::panicked(payload.as_ref()))));
        }));
        answered.await.unwrap_or(Err(Unfinished::GivenUp))
    }

    /// What a future answers, if it does in time.
    pub async fn in_time<T>(&self, time: Duration, future: impl Future<Output = T>) -> Option<T> {
        // Most answers are there at once, and need no timer.
        let (mut future, mut over) = (pin!(future), None);
        poll_fn(|context| match future.as_mut().poll(context) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending => {
                over.get_or_insert_with(|| self.sleep(time)).as_mut().poll(context).map(|()| None)
            }
        })
        .await
    }
}

/// Lets other threads have this core that wait for it. Whatever computes for longer than a millisecond calls it in between: a
/// core's turns are longer than a call should take, and nobody moves to another core that is idle for a moment only.
pub fn give_way() {
    std::thread::yield_now();
}

/// The threads of this machine.
#[derive(Debug, Clone)]
pub struct Threads {
    runtime: Option<Handle>,
    since: Instant,
}

impl Threads {
    /// Runs tasks on a runtime, without one on that of whoever starts them, who must then be on one.
    pub fn new(runtime: Option<Handle>) -> Self {
        Self { runtime, since: Instant::now() }
    }

    fn runtime(&self) -> Handle {
        self.runtime.clone().unwrap_or_else(Handle::current)
    }
}

impl Scheduler for Threads {
    fn start(&self, task: Task) -> Abort {
        let running = self.runtime().spawn(task);
        Box::new(move || running.abort())
    }

    fn start_work(&self, work: Work) {
        drop(self.runtime().spawn_blocking(work));
    }

    fn start_owner(&self, name: &str, owner: Task) -> io::Result<()> {
        let run = move || futures::executor::block_on(owner);
        std::thread::Builder::new().name(name.to_owned()).spawn(run).map(drop)
    }

    fn sleep(&self, time: Duration) -> Task {
        Box::pin(tokio::time::sleep(time))
    }

    fn elapsed(&self) -> Duration {
        self.since.elapsed()
    }
}
