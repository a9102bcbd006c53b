//! Numbers that choose a run.

/// A number from the environment, such as a seed or how many of them; the usual one when it is not set or is none.
pub fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}
