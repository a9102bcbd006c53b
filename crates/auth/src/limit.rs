//! The exact sliding window: in no minute, wherever it begins, more than the limit.
//!
//! Each window keeps what was let in during the last minute, by the time on a clock that never goes back, so
//! that setting the clock of the machine gives nobody anything. After a start the windows are filled again
//! from the audit trail, as if no time had gone by meanwhile: a kill is no way around a limit.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Windows are split over so many locks.
const SHARDS: usize = 16;
/// Windows of nobody in particular that are kept; beyond it those that are empty by now are forgotten.
const MANY: usize = 4096;

/// What a limit allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// At most so much,
    pub limit: u32,
    /// in any time of this length.
    pub length: Duration,
}

impl Window {
    /// So many in a minute.
    pub fn per_minute(limit: u32) -> Self {
        Self { limit, length: Duration::from_secs(60) }
    }
}

/// What a limit said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it was let in.
    pub allowed: bool,
    /// The limit.
    pub limit: u32,
    /// What is left of it now.
    pub remaining: u32,
    /// When as much will be let in as was asked for; `None` when it never will.
    pub retry_after: Option<Duration>,
    /// When all of it is free again.
    pub reset_after: Duration,
}

#[derive(Default)]
struct Used {
    /// When, and how much; oldest first.
    acts: VecDeque<(Duration, u32)>,
    sum: u64,
    /// The latest time that was seen: two callers may ask the clock in one order and come here in the other.
    latest: Duration,
}

impl Used {
    /// Forgets what is out of the window; answers the time that it is.
    fn forget(&mut self, now: Duration, length: Duration) -> Duration {
        self.latest = self.latest.max(now);
        let Some(until) = self.latest.checked_sub(length) else { return self.latest };
        while let Some((_, cost)) = self.acts.front().copied().filter(|(at, _)| *at <= until) {
            self.sum -= u64::from(cost);
            self.acts.pop_front();
        }
        self.latest
    }
}

/// Windows by name.
pub struct Limiter {
    shards: Vec<Mutex<HashMap<Arc<str>, Used>>>,
    hasher: RandomState,
}

impl Default for Limiter {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), hasher: RandomState::new() }
    }
}

impl Limiter {
    fn with<T>(&self, name: &str, window: Duration, now: Duration, act: impl FnOnce(&mut Used) -> T) -> T {
        let shard = self.hasher.hash_one(name) as usize % SHARDS;
        let mut used = self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner);
        if used.len() > MANY && !used.contains_key(name) {
            used.retain(|_, used| {
                used.forget(now, window);
                !used.acts.is_empty()
            });
        }
        let used = used.entry(name.into()).or_default();
        act(used)
    }

    /// Lets an act in that costs so much, or says when it may come again. What costs more than the whole limit
    /// is never let in.
    pub fn admit(&self, name: &str, window: Window, cost: u32, now: Duration) -> Verdict {
        let Window { limit, length } = window;
        self.with(name, length, now, |used| {
            let now = used.forget(now, length);
            let allowed = used.sum + u64::from(cost) <= u64::from(limit);
            if allowed && cost > 0 {
                used.sum += u64::from(cost);
                match used.acts.back_mut() {
                    Some((at, sum)) if *at == now => *sum += cost,
                    _ => used.acts.push_back((now, cost)),
                }
            }
            let remaining = u64::from(limit).saturating_sub(used.sum) as u32;
            let free_at = |at: Duration| (at + length).saturating_sub(now);
            let retry_after = if cost > limit {
                None
            } else {
                let mut missing = (used.sum + u64::from(cost)).saturating_sub(u64::from(limit));
                let mut after = Duration::ZERO;
                for (at, cost) in &used.acts {
                    if missing == 0 {
                        break;
                    }
                    missing = missing.saturating_sub(u64::from(*cost));
                    after = free_at(*at);
                }
                Some(after)
            };
            let reset_after = used.acts.back().map_or(Duration::ZERO, |(at, _)| free_at(*at));
            Verdict { allowed, limit, remaining, retry_after, reset_after }
        })
    }

    /// Takes back what was let in a moment ago and did not happen.
    pub fn give_back(&self, name: &str, window: Window, cost: u32, now: Duration) {
        self.with(name, window.length, now, |used| {
            let mut left = cost;
            while let Some((_, spent)) = used.acts.back_mut().filter(|_| left > 0) {
                let back = left.min(*spent);
                (*spent, left) = (*spent - back, left - back);
                used.sum -= u64::from(back);
                if *spent == 0 {
                    used.acts.pop_back();
                }
            }
        });
    }

    /// Notes what was let in before a start, `age` before now. Given oldest first.
    pub fn remember(&self, name: &str, window: Window, cost: u32, at: Duration) {
        self.with(name, window.length, at, |used| {
            used.latest = used.latest.max(at);
            used.acts.push_back((at, cost));
            used.sum += u64::from(cost);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use highwater_event::SeededRandomness;
    use std::sync::atomic::{AtomicU64, Ordering};

    fn at(millis: u64) -> Duration {
        Duration::from_secs(3600) + Duration::from_millis(millis)
    }

    #[test]
    fn never_more_than_the_limit_in_any_window() {
        let (limiter, window) =
            (Limiter::default(), Window { limit: 50, length: Duration::from_millis(1000) });
        let chance = SeededRandomness::new(5);
        let (mut now, mut let_in, mut refused) = (0, Vec::new(), 0);
        for _ in 0..20_000 {
            now += chance.below(30);
            let cost = 1 + chance.below(9) as u32;
            let verdict = limiter.admit("k", window, cost, at(now));
            if verdict.allowed {
                let_in.push((now, u64::from(cost)));
            } else {
                refused += 1;
                let again = now + verdict.retry_after.unwrap().as_millis() as u64;
                assert!(again > now && again <= now + 1000);
                if chance.chance(0.1) {
                    assert!(!limiter.admit("k", window, cost, at(again) - Duration::from_nanos(1)).allowed);
                    assert!(limiter.admit("k", window, cost, at(again)).allowed);
                    now = again;
                    let_in.push((now, u64::from(cost)));
                }
            }
        }
        assert!(refused > 1000);
        for (first, _) in &let_in {
            let inside = let_in.iter().filter(|(at, _)| at >= first && *at < first + 1000);
            assert!(inside.map(|(_, cost)| cost).sum::<u64>() <= 50);
        }
    }

    #[test]
    fn two_hundred_at_once_share_one_window() {
        let (limiter, let_in) = (Limiter::default(), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..200 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let verdict = limiter.admit("k", Window::per_minute(60), 1, at(0));
                        let_in.fetch_add(u64::from(verdict.allowed), Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(let_in.load(Ordering::Relaxed), 60);
        let other = limiter.admit("other", Window::per_minute(60), 60, at(0));
        assert!(other.allowed && other.remaining == 0);
    }

    #[test]
    fn what_was_given_back_is_free_and_what_was_remembered_counts() {
        let (limiter, window) = (Limiter::default(), Window::per_minute(10));
        limiter.remember("k", window, 7, at(0));
        assert!(!limiter.admit("k", window, 4, at(59_999)).allowed);
        assert!(limiter.admit("k", window, 3, at(59_999)).allowed);
        limiter.give_back("k", window, 2, at(59_999));
        assert_eq!(limiter.admit("k", window, 0, at(59_999)).remaining, 2);
        let verdict = limiter.admit("k", window, 9, at(60_000));
        assert!(verdict.allowed && verdict.remaining == 0, "{verdict:?}");
        let never = limiter.admit("k", window, 11, at(200_000));
        assert_eq!((never.allowed, never.retry_after), (false, None));
    }
}
