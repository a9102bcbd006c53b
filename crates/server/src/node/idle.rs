//! Notices partitions that nothing comes in and says so in the log, so that windows close and what
//! joins keep can go although no event moves their time on.
//!
//! Waiting is measured by a clock that never jumps, and only while the node runs: a machine whose clock is
//! set, or that was off for a day, makes no event late.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Weak;
use std::time::Duration;

use highwater_event::{Offset, StreamName, StreamPartition};
use highwater_log::AppendError;
use highwater_log::fold::Program;
use highwater_log::idle::{self, Idle};
use highwater_sql::catalog::{Catalog, Derivation};
use tokio::time::Instant;

use super::Node;

/// How often partitions are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// A wait is written down again when it has grown by one part in this many …
const FINENESS: i64 = 20;
/// … or by this much, microseconds.
const COARSEST: i64 = 60_000_000;

/// A view whose results depend on time.
struct Timed {
    sources: Vec<StreamName>,
    /// How long after its last row it can still change, microseconds.
    settles_after: i64,
}

/// Where a partition was last seen, and since when it has been there.
struct Seen {
    end: Offset,
    since: Instant,
    /// What had been written down about this offset before it was seen, microseconds.
    before: i64,
    /// What has been written down about it, microseconds.
    written: i64,
}

impl Seen {
    fn waited(&self) -> i64 {
        self.before.saturating_add(i64::try_from(self.since.elapsed().as_micros()).unwrap_or(i64::MAX))
    }
}

/// Watches until the node is gone.
pub async fn watch(node: Weak<Node>) {
    let mut seen: BTreeMap<StreamPartition, Seen> = BTreeMap::new();
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(node) = node.upgrade() else { return };
        let waiting = match node.waiting(&mut seen) {
            Ok(waiting) if waiting.is_empty() => continue,
            Ok(waiting) => waiting,
            Err(error) => {
                tracing::error!(%error, "windows of idle streams stay open: _idle can't be read");
                continue;
            }
        };
        let said = match idle::commit(&waiting, node.clock.now_micros()) {
            Ok(commit) => node.log.append(commit).await,
            Err(error) => Err(AppendError::Encode(error.to_string())),
        };
        match said {
            Ok(_) => {
                for Idle { at, micros, .. } in waiting {
                    if let Some(seen) = seen.get_mut(&at) {
                        seen.written = micros;
                    }
                }
            }
            // A row came just now; the others are tried again at the next look.
            Err(AppendError::Outrun { .. }) => {}
            Err(error) => tracing::warn!(%error, "idle partitions could not be written down"),
        }
    }
}

impl Node {
    /// What is due to be written down.
    fn waiting(
        &self,
        seen: &mut BTreeMap<StreamPartition, Seen>,
    ) -> Result<Vec<Idle>, highwater_log::ReadError> {
        let catalog = self.catalog();
        let timed = timed(&catalog);
        let sources: BTreeSet<&StreamName> = timed.iter().flat_map(|view| &view.sources).collect();
        seen.retain(|at, _| sources.contains(&at.stream));
        for source in sources {
            for partition in self.log.partitions(source) {
                let at = StreamPartition::new(source.clone(), partition);
                let end = self.log.end(&at);
                if seen.get(&at).is_none_or(|seen| seen.end != end) {
                    let before = self.idle.before(&at, end)?;
                    seen.insert(at, Seen { end, since: Instant::now(), before, written: before });
                }
            }
        }
        let mut due = BTreeMap::new();
        for view in &timed {
            let partitions = || seen.iter().filter(|(at, _)| view.sources.contains(&at.stream));
            let newest = partitions().map(|(_, seen)| seen.waited()).min().unwrap_or(0);
            // When all of it has been quiet for long enough there is nothing left to close.
            let over = |seen: &Seen| newest > view.settles_after && seen.written > view.settles_after;
            for (at, seen) in partitions().filter(|(_, seen)| !over(seen)) {
                let waited = seen.waited();
                let timeout = idle_timeout(&catalog, &at.stream);
                let grown = waited - seen.written >= (seen.written / FINENESS).clamp(1, COARSEST);
                if grown && timeout.is_some_and(|timeout| waited >= timeout) {
                    due.insert(at.clone(), Idle { at: at.clone(), offset: seen.end, micros: waited });
                }
            }
        }
        Ok(due.into_values().collect())
    }
}

fn timed(catalog: &Catalog) -> Vec<Timed> {
    let timed = |sources: &[StreamName], settles_after: Option<i64>| {
        settles_after.map(|settles_after| Timed { sources: sources.to_vec(), settles_after })
    };
    let tables = catalog.tables.values().map(|entry| &entry.program);
    let joins = catalog.streams.values().filter_map(|entry| match &entry.derivation {
        Some(Derivation::Join(join)) => Some(join),
        _ => None,
    });
    tables
        .filter_map(|table| timed(table.sources(), table.settles_after()))
        .chain(joins.filter_map(|join| timed(join.sources(), join.settles_after())))
        .collect()
}

fn idle_timeout(catalog: &Catalog, stream: &StreamName) -> Option<i64> {
    catalog.streams.get(&stream.at_version(1))?.schema.options.idle_timeout
}
