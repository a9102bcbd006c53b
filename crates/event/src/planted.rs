//! Planted bugs and stops, for tests of the tests. Compiled in only with the feature `planted`, which no
//! release has: then `HIGHWATER_PLANTED=name` turns one bug on, and `HIGHWATER_STOP_AT=name:n` ends the
//! process, as `kill -9` would, when it comes to a place for the n-th time.

/// True when the bug of that name is planted.
#[cfg(feature = "planted")]
pub fn bug(name: &str) -> bool {
    use std::sync::OnceLock;
    static PLANTED: OnceLock<Option<String>> = OnceLock::new();
    PLANTED.get_or_init(|| std::env::var("HIGHWATER_PLANTED").ok()).as_deref() == Some(name)
}

/// True when the bug of that name is planted: never.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn bug(_name: &str) -> bool {
    false
}

/// A place between two commits, at which the process may be made to end.
#[cfg(feature = "planted")]
pub fn stop(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    static AT: OnceLock<Option<(String, u64)>> = OnceLock::new();
    static SEEN: AtomicU64 = AtomicU64::new(0);
    let at = AT.get_or_init(|| {
        let text = std::env::var("HIGHWATER_STOP_AT").ok()?;
        let (name, count) = text.rsplit_once(':')?;
        Some((name.to_owned(), count.parse().ok()?))
    });
    if let Some((wanted, count)) = at
        && wanted == name
        && SEEN.fetch_add(1, Ordering::SeqCst) + 1 == *count
    {
        std::process::abort();
    }
}

/// A place between two commits.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn stop(_name: &str) {}

/// What happens at intervals, so that it happens seldom: as given, but every 200 ms where stops are compiled
/// in, so that hundreds of rounds come to all of them.
pub const fn interval(usual: std::time::Duration) -> std::time::Duration {
    if cfg!(feature = "planted") { std::time::Duration::from_millis(200) } else { usual }
}
