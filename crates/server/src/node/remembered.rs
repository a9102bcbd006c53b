//! Answers that may be given again for a moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quick_cache::Weighter;
use quick_cache::sync::Cache;
use serde_json::Value;

/// Bytes of remembered answers.
const BYTES: u64 = 64 << 20;

/// An answer.
#[derive(Debug)]
pub struct Remembered {
    /// When the rows were read, at the earliest.
    pub at: Duration,
    /// The mark of the log then.
    pub mark: i64,
    /// How many rows there are.
    pub rows: usize,
    /// Filters and masks that stood before them.
    pub lens: Option<Value>,
    /// What was answered.
    pub body: String,
    /// Its hash, as entries of the trail have it.
    pub hash: String,
    /// Somebody makes it again; nobody yet when it is new.
    pub renewing: AtomicBool,
}

impl Remembered {
    /// True once: for whoever is to make it again.
    pub fn is_first_to_renew(&self) -> bool {
        !self.renewing.swap(true, Ordering::Relaxed)
    }
}

#[derive(Debug, Clone)]
pub struct Weight;

impl Weighter<String, Arc<Remembered>> for Weight {
    fn weight(&self, key: &String, answer: &Arc<Remembered>) -> u64 {
        (key.len() + answer.body.len()) as u64
    }
}

/// Answers by everything that they depend on.
pub type Answers = Cache<String, Arc<Remembered>, Weight>;

/// None yet.
pub fn none() -> Answers {
    Cache::with_weighter(10_000, BYTES, Weight)
}
