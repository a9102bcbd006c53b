//! Waiting for streams to grow: who follows a stream is woken by its commits and not by those of others. A node
//! has dozens of followers and thousands of commits a second.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use highwater_event::StreamName;
use tokio::sync::Notify;

/// Tells one follower that a stream of its has grown.
#[derive(Debug)]
pub struct Growth(Arc<Notify>);

impl Growth {
    /// Comes back when a stream has grown since the last time, be it before this was called. What has grown may have been
    /// seen already.
    pub async fn grown(&self) {
        self.0.notified().await;
    }
}

/// The followers of a log.
#[derive(Debug, Default)]
pub struct Followers(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    by_stream: HashMap<StreamName, Vec<Weak<Notify>>>,
    of_all: Vec<Weak<Notify>>,
}

impl Followers {
    /// Follows streams; all that there are and will be, when none is named.
    pub fn follow(&self, streams: &[StreamName]) -> Growth {
        let notify = Arc::new(Notify::new());
        let mut waiting = self.waiting();
        let join = |followers: &mut Vec<Weak<Notify>>| {
            // Who follows a quiet stream for a moment, again and again, must not be kept for ever.
            followers.retain(|follower| follower.strong_count() > 0);
            followers.push(Arc::downgrade(&notify));
        };
        if streams.is_empty() {
            join(&mut waiting.of_all);
        }
        for stream in streams {
            join(waiting.by_stream.entry(stream.clone()).or_default());
        }
        Growth(notify)
    }

    /// Wakes who follows these streams.
    pub fn wake<'a>(&self, grown: impl IntoIterator<Item = &'a StreamName>) {
        let mut waiting = self.waiting();
        wake(&mut waiting.of_all);
        for stream in grown {
            if let Some(followers) = waiting.by_stream.get_mut(stream) {
                wake(followers);
                if followers.is_empty() {
                    waiting.by_stream.remove(stream);
                }
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes followers, and forgets those that have gone.
fn wake(followers: &mut Vec<Weak<Notify>>) {
    followers.retain(|follower| match follower.upgrade() {
        Some(notify) => {
            notify.notify_one();
            true
        }
        None => false,
    });
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn followers_are_woken_by_their_streams_and_forgotten_when_they_have_gone() {
        let [a, b] = ["a", "b"].map(StreamName::system);
        let followers = Followers::default();
        let (of_a, of_both, of_all) = (
            followers.follow(std::slice::from_ref(&a)),
            followers.follow(&[a.clone(), b.clone()]),
            followers.follow(&[]),
        );
        let woken = |growth: &Growth| growth.grown().now_or_never().is_some();
        followers.wake([&b]);
        assert_eq!([woken(&of_a), woken(&of_both), woken(&of_all)], [false, true, true]);
        followers.wake([&a, &b]);
        followers.wake([&a]);
        assert_eq!([woken(&of_a), woken(&of_both), woken(&of_all)], [true; 3]);
        assert_eq!([woken(&of_a), woken(&of_both), woken(&of_all)], [false; 3], "once is enough");
        drop((of_a, of_both));
        followers.wake([&a, &b]);
        assert!(followers.waiting().by_stream.is_empty());
        for _ in 0..3 {
            drop((followers.follow(std::slice::from_ref(&a)), followers.follow(&[])));
        }
        let waiting = followers.waiting();
        assert_eq!(
            (waiting.by_stream[&a].len(), waiting.of_all.len()),
            (1, 2),
            "one that went, and one that stays"
        );
    }
}
