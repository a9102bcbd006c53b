//! Time as a value that is handed in.

use std::sync::atomic::{AtomicI64, Ordering};

/// Tells the time. The engine asks no other source, so that a test or a simulator can own it.
pub trait Clock: Send + Sync {
    /// Microseconds since 1970-01-01T00:00:00Z. May go back when the machine's clock is set back:
    /// callers that need order use offsets.
    fn now_micros(&self) -> i64;
}

/// The machine's clock.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]
    fn now_micros(&self) -> i64 {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or_else(|before| -(before.duration().as_micros() as i64), |after| after.as_micros() as i64)
    }
}

/// A clock that stands still until it is moved.
#[derive(Debug, Default)]
pub struct ManualClock(AtomicI64);

impl ManualClock {
    /// A clock that shows `micros`.
    pub fn at(micros: i64) -> Self {
        Self(AtomicI64::new(micros))
    }

    /// Moves the clock by `micros`, which may be negative.
    pub fn advance(&self, micros: i64) {
        self.0.fetch_add(micros, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now_micros(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }
}
