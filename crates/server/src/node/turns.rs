//! How many of something go on at a time: in all, and for one caller, so that nobody takes the turns of the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Turns to be had.
pub struct Turns {
    all: Arc<Semaphore>,
    of_one: usize,
    going: Arc<Mutex<HashMap<Arc<str>, usize>>>,
}

/// A turn; given back when it is dropped.
pub struct Turn {
    who: Arc<str>,
    going: Arc<Mutex<HashMap<Arc<str>, usize>>>,
    _permit: OwnedSemaphorePermit,
}

impl Turns {
    /// So many in all, and for one.
    pub fn new(all: usize, of_one: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), of_one, going: Arc::default() }
    }

    /// A turn for somebody, when there is one within some time.
    pub async fn take(&self, who: &Arc<str>, patience: Duration) -> Option<Turn> {
        // Whoever has all that are theirs does not wait where others do.
        let mine = *self.going.lock().unwrap_or_else(PoisonError::into_inner).get(who).unwrap_or(&0);
        if mine >= self.of_one {
            return None;
        }
        let permit = tokio::time::timeout(patience, self.all.clone().acquire_owned()).await.ok()?.ok()?;
        let mut going = self.going.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = going.entry(who.clone()).or_insert(0);
        if *mine >= self.of_one {
            return None;
        }
        *mine += 1;
        drop(going);
        Some(Turn { who: who.clone(), going: self.going.clone(), _permit: permit })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut going = self.going.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mine) = going.get_mut(&self.who) {
            *mine -= 1;
            if *mine == 0 {
                going.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_takes_all_turns() {
        let turns = Turns::new(3, 2);
        let (ada, bob): (Arc<str>, Arc<str>) = ("ada".into(), "bob".into());
        let soon = Duration::from_millis(10);
        let held = (turns.take(&ada, soon).await.unwrap(), turns.take(&ada, soon).await.unwrap());
        assert!(turns.take(&ada, soon).await.is_none(), "a third one");
        let other = turns.take(&bob, soon).await.unwrap();
        assert!(turns.take(&bob, soon).await.is_none(), "all are taken");
        drop(held);
        assert!(turns.take(&ada, soon).await.is_some() && turns.take(&bob, soon).await.is_some());
        drop(other);
        assert!(turns.going.lock().unwrap().is_empty());
    }
}
