//! The simulated scheduler and clock: everything on one thread, one step at a time, in an order and with
//! delays that are drawn from a seed.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use highwater_event::{Clock, SeededRandomness};
use highwater_log::machine::{Abort, Scheduler, Task, Work};

/// A step takes up to this long, microseconds.
const LONGEST_STEP: u64 = 50;
/// One step in so many stalls for a while: a thread that is not scheduled, a disk that takes its time.
const STALLS: u64 = 64;
/// A stall takes up to two to the power of this, microseconds.
const LONGEST_STALL: u64 = 20;
/// Tasks that libraries start on the runtime get so many turns before time goes on without them.
const TURNS: u32 = 64;
/// … and so many before it is clear that nothing will ever happen again.
const HOPELESS: u32 = 100_000;

/// Number of the task that is lived through.
const MAIN: u64 = 0;

/// Runs tasks in an order that its seed decides. Its time goes on when nothing can be done now.
#[derive(Clone)]
pub struct SimScheduler(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    chance: SeededRandomness,
}

#[derive(Default)]
struct State {
    now: Duration,
    /// Numbers tasks and timers.
    last: u64,
    /// Absent while it is being polled.
    tasks: BTreeMap<u64, Option<Task>>,
    ready: BTreeSet<u64>,
    timers: BTreeMap<(Duration, u64), Waker>,
    /// Wakes whoever drives all this.
    driver: Option<Waker>,
    trace: u64,
}

struct Waking {
    task: u64,
    scheduler: Weak<Shared>,
}

impl Wake for Waking {
    fn wake(self: Arc<Self>) {
        if let Some(scheduler) = self.scheduler.upgrade() {
            let driver = {
                let mut state = scheduler.state();
                state.ready.insert(self.task);
                state.driver.clone()
            };
            if let Some(driver) = driver {
                driver.wake();
            }
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Draws the next task that is ready, after waking those whose time has come.
    fn choose(self: &Arc<Self>) -> Option<u64> {
        let due: Vec<Waker> = {
            let mut state = self.state();
            let later = (state.now + Duration::from_nanos(1), 0);
            let later = state.timers.split_off(&later);
            std::mem::replace(&mut state.timers, later).into_values().collect()
        };
        due.into_iter().for_each(Waker::wake);
        let mut state = self.state();
        let chosen = self.chance.below(state.ready.len() as u64) as usize;
        let task = state.ready.iter().nth(chosen).copied()?;
        state.ready.remove(&task);
        state.now += Duration::from_micros(self.chance.below(LONGEST_STEP));
        if self.chance.below(STALLS) == 0 {
            let stall = Duration::from_micros(self.chance.below(1 << self.chance.below(LONGEST_STALL + 1)));
            state.last += 1;
            let (until, number) = (state.now + stall, state.last);
            state.timers.insert((until, number), self.waker(task));
            drop(state);
            return self.choose();
        }
        state.trace = state.trace.rotate_left(5) ^ task.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        state.trace ^= state.now.as_micros() as u64;
        Some(task)
    }

    fn waker(self: &Arc<Self>, task: u64) -> Waker {
        Arc::new(Waking { task, scheduler: Arc::downgrade(self) }).into()
    }

    /// Polls a task; one that was ended meanwhile is dropped.
    fn step(self: &Arc<Self>, number: u64) {
        let Some(mut task) = self.state().tasks.get_mut(&number).and_then(Option::take) else { return };
        let waker = self.waker(number);
        let ended = task.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        let mut state = self.state();
        match state.tasks.get_mut(&number) {
            Some(place) if !ended => *place = Some(task),
            _ => {
                state.tasks.remove(&number);
                drop(state);
                // What a task holds may wake others.
                drop(task);
            }
        }
    }

    /// Goes on to the moment for which something waits. False when nothing does.
    fn skip(&self) -> bool {
        let mut state = self.state();
        let Some((next, _)) = state.timers.first_key_value().map(|(key, _)| *key) else { return false };
        state.now = state.now.max(next);
        true
    }
}

impl SimScheduler {
    /// A scheduler whose choices belong to `seed`.
    pub fn new(seed: u64) -> Self {
        let chance = SeededRandomness::new(seed);
        Self(Arc::new(Shared { state: Mutex::default(), chance }))
    }

    /// Runs a future, and what it starts, to the future's end; then ends everything where it stands. Wants to
    /// be awaited on a runtime with one thread, for the tasks that libraries start there.
    pub async fn live<T>(&self, life: impl Future<Output = T>) -> T {
        let mut life = Box::pin(life);
        let waker = self.0.waker(MAIN);
        self.0.state().ready.insert(MAIN);
        let mut quiet = 0;
        let answer = poll_fn(|context| {
            self.0.state().driver = Some(context.waker().clone());
            match self.0.choose() {
                Some(MAIN) => {
                    quiet = 0;
                    if let Poll::Ready(answer) = life.as_mut().poll(&mut Context::from_waker(&waker)) {
                        return Poll::Ready(answer);
                    }
                }
                Some(task) => {
                    quiet = 0;
                    self.0.step(task);
                }
                None => {
                    quiet += 1;
                    if quiet >= TURNS && self.0.skip() {
                        quiet = 0;
                    }
                    assert!(quiet < HOPELESS, "everybody waits for somebody else");
                }
            }
            // One step at a time: what libraries have started has its turn, too.
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        drop(life);
        self.end();
        answer
    }

    /// Sums up every choice that was made: two runs with the same sum went the same way.
    pub fn trace(&self) -> u64 {
        self.0.state().trace
    }

    fn end(&self) {
        loop {
            let tasks = {
                let mut state = self.0.state();
                state.driver = None;
                state.ready.clear();
                std::mem::take(&mut state.tasks)
            };
            if tasks.is_empty() {
                return;
            }
            drop(tasks);
        }
    }
}

impl Scheduler for SimScheduler {
    fn start(&self, task: Task) -> Abort {
        let number = {
            let mut state = self.0.state();
            state.last += 1;
            let number = state.last;
            state.tasks.insert(number, Some(task));
            number
        };
        self.0.waker(number).wake();
        let scheduler = Arc::downgrade(&self.0);
        Box::new(move || {
            let task = scheduler.upgrade().and_then(|scheduler| scheduler.state().tasks.remove(&number));
            drop(task);
        })
    }

    fn start_work(&self, work: Work) {
        drop(self.start(Box::pin(async move { work() })));
    }

    fn start_owner(&self, _name: &str, owner: Task) -> io::Result<()> {
        drop(self.start(owner));
        Ok(())
    }

    fn sleep(&self, time: Duration) -> Task {
        let mut state = self.0.state();
        state.last += 1;
        Box::pin(Sleep { key: (state.now.saturating_add(time), state.last), scheduler: self.0.clone() })
    }

    fn elapsed(&self) -> Duration {
        self.0.state().now
    }
}

struct Sleep {
    key: (Duration, u64),
    scheduler: Arc<Shared>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.scheduler.state();
        if state.now >= self.key.0 {
            return Poll::Ready(());
        }
        state.timers.insert(self.key, context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        let waker = self.scheduler.state().timers.remove(&self.key);
        drop(waker);
    }
}

/// The time of day on a simulated machine: it goes on with the scheduler's time, and is set wrong at will.
pub struct SimClock {
    scheduler: SimScheduler,
    start: AtomicI64,
}

impl SimClock {
    /// A clock that shows `micros` now.
    pub fn new(scheduler: SimScheduler, micros: i64) -> Self {
        let start = AtomicI64::new(micros - scheduler.elapsed().as_micros() as i64);
        Self { scheduler, start }
    }

    /// Sets the clock forward, or back, by so many microseconds.
    pub fn jump(&self, micros: i64) {
        self.start.fetch_add(micros, Ordering::SeqCst);
    }
}

impl Clock for SimClock {
    fn now_micros(&self) -> i64 {
        self.start.load(Ordering::SeqCst) + self.scheduler.elapsed().as_micros() as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten tasks that sleep and write down when they are there; one that would go on for ever.
    fn play(seed: u64) -> (Vec<(u64, u64)>, u64) {
        let scheduler = SimScheduler::new(seed);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let order = seen.clone();
        let beside: Arc<dyn Scheduler> = Arc::new(scheduler.clone());
        runtime.block_on(scheduler.live(async move {
            let running: Vec<_> = (0..10)
                .map(|task| {
                    let (order, again) = (order.clone(), beside.clone());
                    beside.spawn(async move {
                        for round in 0..3 {
                            again.sleep(Duration::from_secs(1)).await;
                            order.lock().unwrap().push((task, round));
                        }
                    })
                })
                .collect();
            let for_ever = beside.clone();
            let forever = beside.spawn(async move {
                loop {
                    for_ever.sleep(Duration::from_millis(1)).await;
                }
            });
            for task in running {
                task.ended().await;
            }
            forever.abort();
            forever.ended().await;
        }));
        assert!(scheduler.elapsed() >= Duration::from_secs(3));
        let seen = seen.lock().unwrap().clone();
        (seen, scheduler.trace())
    }

    #[test]
    fn a_seed_decides_who_goes_first() {
        let (order, trace) = play(1);
        assert_eq!(order.len(), 30);
        assert_eq!(play(1), (order.clone(), trace));
        assert!((2..20).any(|seed| play(seed).0 != order));
    }
}
