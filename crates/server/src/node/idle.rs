//! Notices partitions that nothing comes in and says so in the log, so that windows close and what
//! joins keep can go although no event moves their time on.
//!
//! Waiting is measured by a clock that never jumps, and only while the node runs: a machine whose clock is
//! set, or that was off for a day, makes no event late.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use highwater_event::{Offset, StreamName, StreamPartition};
use highwater_log::fold::{Lane, Program, partition_of};
use highwater_log::idle::{self, Idle};
use highwater_log::view::ViewState;
use highwater_log::{AppendError, ReadError};
use highwater_sql::catalog::{Catalog, Derivation};

use super::{Node, rest};

/// How often partitions are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// A wait is written down again when it has grown by one part in this many …
const FINENESS: i64 = 20;
/// … or by this much, microseconds …
const COARSEST: i64 = 60_000_000;
/// … or, when it has lasted for days, by one part in this many.
const DAY_PARTS: i64 = 1440;
/// A view whose oldest row has waited this long is held up, microseconds.
const HELD_UP: i64 = 5_000_000;

/// A view whose results depend on time.
struct Timed {
    view: Arc<str>,
    sources: Vec<StreamName>,
    /// It reads `_idle` itself, after its other sources.
    reads_idle: bool,
    /// How long after its last row it can still change, microseconds.
    settles_after: i64,
}

/// Where a partition was last seen, and since when it has been there.
struct Seen {
    end: Offset,
    since: Duration,
    /// What had been written down about this offset before it was seen, microseconds.
    before: i64,
    /// What has been written down about it, microseconds.
    written: i64,
}

impl Seen {
    /// Counts on from here: what went by was not idleness.
    fn restart(&mut self, now: Duration) {
        self.before = self.written;
        self.since = now;
    }

    fn waited(&self, now: Duration) -> i64 {
        let waited = now.saturating_sub(self.since).as_micros();
        self.before.saturating_add(i64::try_from(waited).unwrap_or(i64::MAX))
    }
}

/// Watches until the node is gone.
pub async fn watch(node: Weak<Node>) {
    let mut seen: BTreeMap<StreamPartition, Seen> = BTreeMap::new();
    while let Some(node) = rest(&node, |_| LOOK).await {
        let waiting = match node.waiting(&mut seen) {
            Ok(waiting) if waiting.is_empty() => continue,
            Ok(waiting) => waiting,
            Err(error) => {
                tracing::error!(%error, "windows of idle streams stay open: _idle can't be read");
                continue;
            }
        };
        let said = match idle::commit(&waiting, node.machine.clock.now_micros()) {
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
            // Senders hear the same from the log and come again later.
            Err(error) => {
                tracing::warn!(%error, "idle partitions could not be written down");
                let now = node.machine.scheduler.elapsed();
                seen.values_mut().for_each(|seen| seen.restart(now));
            }
        }
    }
}

impl Node {
    /// What is due to be written down.
    fn waiting(&self, seen: &mut BTreeMap<StreamPartition, Seen>) -> Result<Vec<Idle>, ReadError> {
        // Asked whenever it counts: reading old rows in between may take long, which nobody was idle for.
        let now = || self.machine.scheduler.elapsed();
        let catalog = self.catalog();
        let timed = timed(&catalog);
        let sources: BTreeSet<&StreamName> = timed.iter().flat_map(|view| &view.sources).collect();
        seen.retain(|at, _| sources.contains(&at.stream));
        for source in sources {
            let flows = self.flows(&catalog, source)?;
            for partition in self.log.partitions(source) {
                let at = StreamPartition::new(source.clone(), partition);
                let end = self.log.end(&at);
                match seen.get_mut(&at) {
                    Some(seen) if seen.end == end && flows => {}
                    Some(seen) if seen.end == end => seen.restart(now()),
                    _ => {
                        let before = self.idle.before(&at, end)?;
                        seen.insert(at, Seen { end, since: now(), before, written: before });
                    }
                }
            }
        }
        let mut due = BTreeMap::new();
        for view in &timed {
            if self.has_settled(view)? {
                continue;
            }
            for (at, seen) in seen.iter().filter(|(at, _)| view.sources.contains(&at.stream)) {
                let waited = seen.waited(now());
                let timeout = idle_timeout(&catalog, &at.stream);
                let step = (seen.written / FINENESS).clamp(1, COARSEST.max(seen.written / DAY_PARTS));
                if waited - seen.written >= step && timeout.is_some_and(|timeout| waited >= timeout) {
                    due.insert(at.clone(), Idle { at: at.clone(), offset: seen.end, micros: waited });
                }
            }
        }
        Ok(due.into_values().collect())
    }

    /// Whether a stream gets its rows as they come: one that is derived is not idle while what derives it
    /// is held up.
    fn flows(&self, catalog: &Catalog, name: &StreamName) -> Result<bool, ReadError> {
        let name = name.at_version(1);
        if let Some(table) = catalog.tables.get(&name) {
            return self.flows(catalog, &table.program.source().name);
        }
        let Some(entry) = catalog.streams.get(&name).filter(|entry| entry.derivation.is_some()) else {
            return Ok(true);
        };
        let view = format!("stream:{}", entry.schema.name);
        let runs = self.driver.status(&view).is_some_and(|status| status.state == ViewState::Running);
        let oldest = self.driver.waiting_since(&view)?.unwrap_or(i64::MAX);
        if !runs || oldest < self.machine.clock.now_micros().saturating_sub(HELD_UP) {
            return Ok(false);
        }
        for read in &entry.reads {
            if !self.flows(catalog, read)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the least of a view's event times has gone so far beyond the newest row that nothing of it
    /// can change any more.
    fn has_settled(&self, view: &Timed) -> Result<bool, ReadError> {
        let keyed =
            self.keyed.read().unwrap_or_else(PoisonError::into_inner).get(view.view.as_ref()).cloned();
        let Some(keyed) = keyed else { return Ok(false) };
        let mut folded = keyed.states.marks();
        if view.reads_idle {
            let (lane, said) = ((view.sources.len() as Lane) << 16, StreamName::system(idle::IDLE));
            let heard = folded.remove(&lane).map_or(0, |mark| mark.offset);
            if heard != self.log.end(&StreamPartition::new(said, 0)) {
                return Ok(false);
            }
        }
        // Where no row has passed the conditions there is no time to go on from.
        folded.retain(|_, mark| mark.event_time_high != i64::MIN);
        let behind = folded.iter().any(|(lane, mark)| {
            partition_of(&view.sources, *lane).is_some_and(|at| mark.offset != self.log.end(&at))
        });
        let (newest, carried) = if view.reads_idle {
            // Its marks have gone on with what it has read; its newest row has not.
            let mut newest = None;
            for (lane, mark) in &folded {
                let Some(at) = partition_of(&view.sources, *lane) else { continue };
                newest = newest.max(Some(mark.event_time_high - self.idle.before(&at, mark.offset)?));
            }
            (newest, folded)
        } else {
            let newest = folded.values().map(|mark| mark.event_time_high).max();
            (newest, self.idle.carry_on(&view.sources, folded)?)
        };
        let least = carried.values().map(|mark| mark.event_time_high).min();
        Ok(!behind
            && match (least, newest) {
                (Some(least), Some(newest)) => least > newest.saturating_add(view.settles_after),
                _ => true,
            })
    }
}

fn timed(catalog: &Catalog) -> Vec<Timed> {
    let timed = |view: &Arc<str>, sources: &[StreamName], settles_after: Option<i64>| {
        // Of what is written down here nothing is written down.
        let reads_idle = idle::is_read_by(sources);
        let sources = sources.iter().filter(|source| source.as_str() != idle::IDLE).cloned().collect();
        let view = view.clone();
        settles_after.map(|settles_after| Timed { view, sources, reads_idle, settles_after })
    };
    let tables = catalog.tables.values().map(|entry| &entry.program);
    let joins = catalog.streams.values().filter_map(|entry| match &entry.derivation {
        Some(Derivation::Join(join)) => Some(join),
        _ => None,
    });
    tables
        .filter_map(|table| timed(table.name(), table.sources(), table.settles_after()))
        .chain(joins.filter_map(|join| timed(join.name(), join.sources(), join.settles_after())))
        .collect()
}

fn idle_timeout(catalog: &Catalog, stream: &StreamName) -> Option<i64> {
    catalog.streams.get(&stream.at_version(1))?.schema.options.idle_timeout
}
