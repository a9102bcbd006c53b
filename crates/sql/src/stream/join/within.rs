//! JOIN … WITHIN: rows of two streams whose event times lie close together.
//!
//! Both sides are kept by key and by buckets of event time, each as long as the reach of the join, until no
//! row that is in time can match them any more.
//!
//! In a LEFT JOIN a row of the left waits for its match until every row of the right that could be one would
//! come too late. Then it leaves with nulls. Who waits is kept by slots of event time and, in them, by blocks of
//! offsets; which slots there are is kept under one key that stands behind all others. A row leaves with the row
//! of the log that moves the event time of the right far enough, so that every run lets it leave at the same
//! place. While nothing comes, rows of `_idle` move it, which such a join reads as a source of its own.

use std::collections::{BTreeMap, BTreeSet};

use highwater_event::{Offset, StreamName, planted};
use highwater_log::fold::{Lane, LaneMarks, States, lane, source_of};
use highwater_log::idle::Idle;
use highwater_log::keyed::StoreError;

use super::{MAX_MATCHES, Pair, RIGHT, kept_rows, no_rows};
use crate::stream::state::{GroupState, KeptRow, Partial, Value, pane_prefix};

/// Offsets of a partition whose rows wait in one state: so much is written anew when one of them comes.
const BLOCK: Offset = 1024;
/// Slots of those that wait, to one reach of the join: by so much a row may leave later than it could.
const SLOTS: i64 = 64;

/// A partition that has brought nothing holds the others up until they have brought so many rows: then its keys
/// are taken for ones that do not occur.
const MANY: Offset = 1_000_000;

/// How far rows of both sides may lie apart, microseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reach {
    /// A row of the right, before one of the left.
    pub(crate) before: i64,
    /// … after it.
    pub(crate) after: i64,
    /// How much later than that rows may still come.
    pub(crate) grace: i64,
    /// Rows of the left without a match are kept, with nulls.
    pub(crate) outer: bool,
    /// Partitions of the right and of the left.
    pub(crate) partitions: [u32; 2],
}

impl Reach {
    /// The longer way.
    pub(crate) fn longest(self) -> i64 {
        self.before.max(self.after)
    }

    /// True when a row comes too late to a partition whose newest event is from `high`.
    pub(crate) fn is_late(self, time: i64, high: i64) -> bool {
        time.saturating_add(self.longest()).saturating_add(self.grace) <= high
    }

    /// How far event time has to go on until nothing that is kept changes any more.
    pub(crate) fn settles_after(self) -> i64 {
        // What is kept goes by whole buckets, those that wait by slots that are shorter.
        self.longest().saturating_mul(3).saturating_add(self.grace)
    }

    /// How long after its event time a row without a match leaves.
    pub(crate) fn leaves_after(self) -> i64 {
        self.slot().saturating_add(self.after).saturating_add(self.longest()).saturating_add(self.grace)
    }

    /// The time before which nothing is kept when the slowest partition stands at `low`.
    pub(crate) fn floor(self, low: i64) -> Option<i64> {
        let before = low.checked_sub(self.longest().checked_mul(2)?)?.checked_sub(self.grace)?;
        let bucket = self.bucket(before);
        // A slot may begin in the bucket before.
        Some(if self.outer { bucket.saturating_sub(self.width()) } else { bucket })
    }

    /// How far every partition of a source has come; `None` while one may still bring rows of any time. `at`
    /// is the row that is being folded: the marks know the lane of it up to some row before.
    pub(crate) fn low(self, marks: &LaneMarks, source: usize, at: Option<(Lane, Offset)>) -> Option<i64> {
        let (mut low, mut seen, mut rows) = (i64::MAX, 0, 0);
        for (lane, mark) in marks.iter().filter(|(lane, _)| source_of(**lane) == source) {
            rows += at.filter(|(own, _)| own == lane).map_or(mark.offset, |(_, offset)| offset + 1);
            if mark.event_time_high != i64::MIN {
                seen += 1;
                low = low.min(mark.event_time_high);
            }
        }
        (seen >= self.partitions[source] || (seen > 0 && rows >= MANY)).then_some(low)
    }

    fn width(self) -> i64 {
        self.longest().max(1)
    }

    fn bucket(self, time: i64) -> i64 {
        start_of(time, self.width())
    }

    fn slot(self) -> i64 {
        (self.longest() / SLOTS).max(1)
    }

    /// What the event time of every partition of the right has to come to before a row leaves.
    fn leaves_at(self, time: i64) -> i64 {
        start_of(time, self.slot()).saturating_add(self.leaves_after())
    }
}

/// The start of the span of `width` in which a time lies.
fn start_of(time: i64, width: i64) -> i64 {
    time.div_euclid(width).saturating_mul(width)
}

fn keyed(start: i64, key: &[u8]) -> Vec<u8> {
    [&pane_prefix(start)[..], key].concat()
}

/// The key of a slot, under which stand its blocks; keys of rows are never empty.
fn slot_key(start: i64) -> Vec<u8> {
    keyed(start, &[])
}

/// The key of a block of those that wait in a slot; keys of rows never begin with nothing, which is zero.
fn block_key(start: i64, lane: Lane, block: Offset) -> Vec<u8> {
    keyed(start, &[&[0][..], &lane.to_be_bytes(), &block.to_be_bytes()].concat())
}

/// What stands behind all buckets and slots: the slots in which rows wait, and how long each partition has
/// been idle so far (lane, the offset it waits for, microseconds).
fn directory_key() -> Vec<u8> {
    keyed(i64::MAX, b"waiting")
}

fn no_directory() -> GroupState {
    GroupState {
        partials: vec![Partial::Set(BTreeSet::new()), Partial::List(Vec::new())],
        last_updated_at: i64::MIN,
    }
}

/// A join's states, while some rows of one partition are folded into them.
pub(crate) struct Matching<'a> {
    pub(crate) reach: Reach,
    pub(crate) states: &'a mut dyn States<GroupState>,
    pub(crate) pairs: Vec<Pair>,
}

impl Matching<'_> {
    /// Pairs a row with the kept rows of the other side that are near enough, in the order in which the log
    /// took them, and keeps it. False when there are too many; then nothing has changed.
    pub(crate) fn take(
        &mut self,
        mut row: KeptRow,
        key: &[u8],
        low: Option<i64>,
    ) -> Result<bool, StoreError> {
        let Reach { before, after, outer, .. } = self.reach;
        let (back, ahead) = if row.side == 0 { (before, after) } else { (after, before) };
        let (mut from, to) = (row.time.saturating_sub(back), row.time.saturating_add(ahead));
        if planted::bug("one_bucket") {
            from = from.max(self.reach.bucket(row.time));
        }
        let near = |other: &&KeptRow| other.time >= from && other.time <= to;
        let mut found: Vec<KeptRow> = Vec::new();
        let mut waited_for = Vec::new();
        let mut at = self.reach.bucket(from);
        while at <= to {
            let others = kept_rows(self.states.peek(&keyed(at, key))?).iter();
            let before = found.len();
            found.extend(
                others
                    .filter(|other| other.side != row.side && !other.gone)
                    .filter(near)
                    .take(MAX_MATCHES + 1)
                    .cloned(),
            );
            if found.len() > MAX_MATCHES {
                return Ok(false);
            }
            if outer && row.side == 1 && found[before..].iter().any(|left| !left.matched) {
                waited_for.push(at);
            }
            match at.checked_add(self.reach.width()) {
                Some(next) => at = next,
                None => break,
            }
        }
        if !planted::bug("forgets_matches") {
            for at in waited_for {
                let state = self.states.state(&keyed(at, key), &no_rows)?;
                let rows = rows_of(state)?.iter_mut();
                rows.filter(|left| left.side == 0 && !left.gone && near(&&**left))
                    .for_each(|left| left.matched = true);
            }
        }
        found.sort_unstable_by_key(|other| (other.recorded_at, other.lane, other.offset));
        row.matched = !found.is_empty();
        for other in found {
            let time = other.time.max(row.time);
            let (left, right) =
                if row.side == 0 { (row.row.clone(), other.row) } else { (other.row, row.row.clone()) };
            self.pairs.push(Pair { left, right: Some(right), time, offset: row.offset });
        }
        if outer && row.side == 0 && !row.matched {
            row.gone = low.is_some_and(|low| self.reach.leaves_at(row.time) <= low);
            if row.gone {
                self.pairs.push(Pair {
                    left: row.row.clone(),
                    right: None,
                    time: row.time,
                    offset: row.offset,
                });
            } else {
                self.wait(&row, key)?;
            }
        }
        let state = self.states.state(&keyed(self.reach.bucket(row.time), key), &no_rows)?;
        state.last_updated_at = row.recorded_at;
        rows_of(state)?.push(row);
        Ok(true)
    }

    /// Lets event time go on with a row that matches nothing, and those leave who wait for that.
    pub(crate) fn pass(
        &mut self,
        time: i64,
        (lane, offset): (Lane, Offset),
        marks: &mut LaneMarks,
    ) -> Result<(), StoreError> {
        let mark = marks.entry(lane).or_default();
        if time <= mark.event_time_high {
            return Ok(());
        }
        mark.event_time_high = time;
        if !self.reach.outer || source_of(lane) != RIGHT {
            return Ok(());
        }
        self.release(self.reach.low(marks, RIGHT, Some((lane, offset))), offset)
    }

    /// Notes that a row of the left waits for its match.
    fn wait(&mut self, row: &KeptRow, key: &[u8]) -> Result<(), StoreError> {
        let start = start_of(row.time, self.reach.slot());
        let block = row.offset / BLOCK;
        let waiting = rows_of(self.states.state(&block_key(start, row.lane, block), &no_rows)?)?;
        waiting.push(KeptRow { row: key.into(), ..row.clone() });
        if waiting.len() > 1 {
            return Ok(());
        }
        let blocks = rows_of(self.states.state(&slot_key(start), &no_rows)?)?;
        blocks.push(KeptRow { offset: block, row: Box::default(), ..row.clone() });
        if blocks.len() == 1 {
            let directory = self.states.state(&directory_key(), &no_directory)?;
            if let Some(Partial::Set(slots)) = directory.partials.first_mut() {
                slots.insert(Value::Int(start));
            }
        }
        Ok(())
    }

    /// Lets those leave, with the row of the log at `offset`, that wait in vain when the right stands at `low`.
    pub(crate) fn release(&mut self, low: Option<i64>, offset: Offset) -> Result<(), StoreError> {
        let Some(low) = low else { return Ok(()) };
        let directory = directory_key();
        loop {
            let slots = match self.states.peek(&directory)?.map(|state| &state.partials[..]) {
                Some([Partial::Set(slots), ..]) => slots,
                _ => return Ok(()),
            };
            let start = match slots.first() {
                Some(Value::Int(start)) if start.saturating_add(self.reach.leaves_after()) <= low => *start,
                _ => return Ok(()),
            };
            let state = self.states.state(&directory, &no_directory)?;
            if let Some(Partial::Set(slots)) = state.partials.first_mut() {
                slots.remove(&Value::Int(start));
            }
            self.leave(start, offset)?;
        }
    }

    /// Lets all of a slot leave that have found no match, in the order of their times.
    fn leave(&mut self, start: i64, offset: Offset) -> Result<(), StoreError> {
        let blocks = std::mem::take(rows_of(self.states.state(&slot_key(start), &no_rows)?)?);
        let mut waiting: BTreeMap<Vec<u8>, BTreeSet<(Lane, Offset)>> = BTreeMap::new();
        for block in blocks {
            let key = block_key(start, block.lane, block.offset);
            for waiter in std::mem::take(rows_of(self.states.state(&key, &no_rows)?)?) {
                let bucket = keyed(self.reach.bucket(waiter.time), &waiter.row);
                waiting.entry(bucket).or_default().insert((waiter.lane, waiter.offset));
            }
        }
        let mut leaving = Vec::new();
        for (bucket, waiters) in waiting {
            let waits = |row: &KeptRow| {
                row.side == 0 && !row.matched && !row.gone && waiters.contains(&(row.lane, row.offset))
            };
            if !kept_rows(self.states.peek(&bucket)?).iter().any(waits) {
                continue;
            }
            for row in rows_of(self.states.state(&bucket, &no_rows)?)?.iter_mut().filter(|row| waits(row)) {
                // A partition of the right that brings its first row late must not match it once more.
                row.gone = true;
                leaving.push(row.clone());
            }
        }
        leaving.sort_unstable_by_key(|row| (row.time, row.recorded_at, row.lane, row.offset));
        self.pairs.extend(leaving.into_iter().map(|row| Pair {
            left: row.row,
            right: None,
            time: row.time,
            offset,
        }));
        Ok(())
    }

    /// Lets the event time of an idle partition go on. False when this join does not read it, or no row has
    /// come from it yet.
    pub(crate) fn idle(
        &mut self,
        idle: &Idle,
        offset: Offset,
        sources: &[StreamName],
        marks: &mut LaneMarks,
    ) -> Result<bool, StoreError> {
        let Some(lane) = lane(sources, &idle.at) else { return Ok(false) };
        let Some(mark) = marks.get_mut(&lane).filter(|mark| mark.offset == idle.offset) else {
            return Ok(false);
        };
        let state = self.states.state(&directory_key(), &no_directory)?;
        mark.wait(longer(state, lane, idle));
        self.release(self.reach.low(marks, RIGHT, None), offset)?;
        Ok(true)
    }
}

/// By how much a partition has waited longer than was known, which is known from now on.
fn longer(directory: &mut GroupState, lane: Lane, idle: &Idle) -> i64 {
    let Some(Partial::List(waits)) = directory.partials.get_mut(1) else { return 0 };
    let now = (i64::from(lane), idle.offset, Value::Int(idle.micros));
    match waits.iter_mut().find(|(known, ..)| *known == i64::from(lane)) {
        Some(known) => {
            let before = match known {
                (_, offset, Value::Int(micros)) if *offset == idle.offset => *micros,
                _ => 0,
            };
            if idle.micros > before {
                *known = now;
            }
            (idle.micros - before).max(0)
        }
        None => {
            waits.push(now);
            idle.micros
        }
    }
}

/// The rows of a state that was made by [`no_rows`].
fn rows_of(state: &mut GroupState) -> Result<&mut Vec<KeptRow>, StoreError> {
    match state.partials.first_mut() {
        Some(Partial::Rows(rows)) => Ok(rows),
        _ => Err(StoreError::Damaged("rows that a join keeps".into())),
    }
}
