//! Reading a table: states become rows.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::compute::cast;
use highwater_log::fold::{LaneMarks, StateReader};
use highwater_log::keyed::StoreError;

use super::{CLOSED, Group, MAX_KEY, OPEN, Span, TableProgram, low};
use crate::dialect::{SqlError, Window, WindowKind};
use crate::stream::state::{GroupState, Partial, Value, pane_prefix, split_pane};

/// Rows of a table that are put together at a time.
const CHUNK: usize = 8192;
/// Bytes of rows that one reader may hold.
const MAX_READ_BYTES: usize = 2 << 30;

const TOO_LARGE: &str = "the table has more rows than can be read at once";

/// A table's rows as readers see them.
pub struct TableRows {
    program: Arc<TableProgram>,
    states: Arc<dyn StateReader<GroupState>>,
}

/// Looks at a key and its state.
type Visit<'a> = &'a mut dyn FnMut(&[u8], &GroupState) -> Result<(), String>;

/// Which rows of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// All of them.
    All,
    /// Those of the newest window.
    NewestWindow,
    /// Those of windows that start at a time or later, microseconds UTC.
    Since(i64),
}

impl TableRows {
    /// Reads the states that `program` folds.
    pub fn new(program: Arc<TableProgram>, states: Arc<dyn StateReader<GroupState>>) -> Self {
        Self { program, states }
    }

    /// The program.
    pub fn program(&self) -> &Arc<TableProgram> {
        &self.program
    }

    /// The event time up to which closed windows are shown, for tables that show no others.
    pub fn shown_until(&self) -> Option<i64> {
        if self.program.emit_final { low(&self.states.marks()) } else { None }
    }

    /// At most so many states, counted.
    pub fn count_states(&self, most: usize) -> Result<usize, StoreError> {
        let mut count = 0;
        self.states.read(&[], &mut |_, _| {
            count += 1;
            count < most
        })?;
        Ok(count)
    }

    /// The rows as of now, in order of window and key.
    pub async fn read(&self, extent: Extent) -> Result<Vec<RecordBatch>, SqlError> {
        let failed = |message: String| match message.as_str() {
            TOO_LARGE => SqlError::new("query_memory", message)
                .hint("bound its windows with RETENTION, or read \"name$newest\" for the newest window"),
            _ => SqlError::new("internal", message),
        };
        let assembled = self.aggregated(extent).map_err(failed)?;
        let mut rows = Vec::with_capacity(assembled.len());
        for batch in assembled {
            rows.extend(self.program.select(batch).await?);
        }
        Ok(rows)
    }

    /// The rows of some groups of a table without windows, all as of one moment. A row of `keys` is the values of the group
    /// columns.
    pub async fn read_groups(&self, keys: &[ArrayRef]) -> Result<Vec<RecordBatch>, SqlError> {
        let failed = |error: &dyn std::fmt::Display| SqlError::new("internal", error.to_string());
        let count = keys.first().map_or(1, |column| column.len());
        let keys = self.program.encode_keys(keys, count).map_err(|error| failed(&error))?;
        // Longer ones are nobody's, and no store has room for them.
        let wanted: BTreeSet<&[u8]> =
            keys.iter().map(|key| key.data()).filter(|key| key.len() <= MAX_KEY).collect();
        let wanted: Vec<&[u8]> = wanted.into_iter().collect();
        let states = self.states.get(&wanted).map_err(|error| failed(&error))?;
        let found = wanted.iter().zip(states);
        let groups: Vec<Group> =
            found.filter_map(|(key, state)| Some((None, key.to_vec(), state?))).collect();
        if groups.is_empty() {
            return Ok(Vec::new());
        }
        let assembled = self.program.assemble(&groups).map_err(|error| failed(&error))?;
        self.program.select(assembled).await
    }

    /// The first offset of a partition of the source that is not in the rows yet.
    pub fn mark(&self, partition: u32) -> u64 {
        self.states.marks().get(&partition).map_or(0, |mark| mark.offset)
    }

    fn aggregated(&self, extent: Extent) -> Result<Vec<RecordBatch>, String> {
        let marks = self.states.marks();
        let mut chunks = Chunks::new(&self.program, &marks);
        match self.program.window.map(|window| (window, window.kind)) {
            None => self.visit(&[], &mut |key, state| chunks.push((None, key.to_vec(), state.clone())))?,
            Some((window, WindowKind::Hopping { size, advance })) => {
                self.windows(window, (size, advance), extent, &mut chunks)?;
            }
            Some((_, WindowKind::Session { gap })) => {
                if extent == Extent::NewestWindow {
                    return Err("sessions have no newest window: each group has windows of its own".into());
                }
                self.visit(&[], &mut |key, state| sessions(gap, key, state, &mut chunks))?;
            }
        }
        chunks.finish()
    }

    fn visit(&self, from: &[u8], visit: Visit<'_>) -> Result<(), String> {
        let mut failure = None;
        let read = self.states.read(from, &mut |key, state| {
            failure = visit(key, state).err();
            failure.is_none()
        });
        read.map_err(|error| error.to_string())?;
        failure.map_or(Ok(()), Err)
    }

    /// Slides over the panes in order of time and puts each window together.
    fn windows(
        &self,
        window: Window,
        (size, advance): (i64, i64),
        extent: Extent,
        chunks: &mut Chunks<'_>,
    ) -> Result<(), String> {
        let mut from = Vec::new();
        let mut only = None;
        if extent == Extent::NewestWindow {
            let last = self.states.last_key().map_err(|error| error.to_string())?;
            let Some((newest, _)) = last.as_deref().and_then(split_pane) else { return Ok(()) };
            let newest = match low(chunks.marks) {
                // The newest window that is closed may need panes before it.
                Some(low) if self.program.emit_final => {
                    let closed = low.saturating_sub(window.grace).saturating_sub(size);
                    newest.min(closed.div_euclid(advance).saturating_mul(advance))
                }
                _ => newest,
            };
            from = pane_prefix(newest).to_vec();
            only = Some(newest);
        }
        let mut since = i64::MIN;
        if let Extent::Since(start) = extent {
            since = start;
            from = pane_prefix(start).to_vec();
        }
        let panes = VecDeque::new();
        let mut slide = Slide { size, advance, program: &self.program, panes, next: None, only, since };
        self.visit(&from, &mut |key, state| match split_pane(key) {
            Some((pane, rest)) => slide.take(pane, rest, state, chunks),
            None => Ok(()),
        })?;
        slide.finish(chunks)
    }
}

impl TableProgram {
    /// The SELECT list over aggregated rows.
    pub(crate) async fn select(&self, aggregated: RecordBatch) -> Result<Vec<RecordBatch>, SqlError> {
        let mut rows = Vec::new();
        for result in self.output.run(aggregated).await? {
            let arrays = result
                .columns()
                .iter()
                .zip(self.schema.fields())
                .map(|(array, field)| cast(array, field.data_type()))
                .collect::<Result<Vec<_>, _>>()
                .and_then(|arrays| RecordBatch::try_new(self.schema.clone(), arrays));
            rows.push(arrays.map_err(|error| SqlError::new("internal", error.to_string()))?);
        }
        Ok(rows)
    }

    /// True when readers see a window that ends, for good, at `end`; what comes `after` may still change it.
    fn shows(&self, marks: &LaneMarks, span: Span, settled: i64) -> bool {
        let (Some(window), Some(low)) = (self.window, low(marks)) else { return true };
        let kept = window.retention.is_none_or(|retention| span.1.saturating_add(retention) > low);
        let closed = !self.emit_final || settled.saturating_add(window.grace) <= low;
        kept && closed
    }
}

/// The sessions that a key holds: one that is over, or those that may still grow.
fn sessions(gap: i64, key: &[u8], state: &GroupState, chunks: &mut Chunks<'_>) -> Result<(), String> {
    let damaged = || "the state of a session can't be read; rebuild the table".to_owned();
    match key.split_first() {
        Some((&CLOSED, rest)) => {
            let (end, group) = split_pane(rest).ok_or_else(damaged)?;
            let mut state = state.clone();
            let Some(Partial::Extreme(Value::Int(start))) = state.partials.pop() else {
                return Err(damaged());
            };
            chunks.push_settled((Some((start, end)), group.to_vec(), state), end)
        }
        Some((&OPEN, group)) => {
            let Some(Partial::Sessions(sessions)) = state.partials.first() else { return Err(damaged()) };
            for session in sessions {
                let end = session.last.saturating_add(gap);
                let group = (Some((session.start, end)), group.to_vec(), session.state.clone());
                chunks.push_settled(group, end.saturating_add(gap))?;
            }
            Ok(())
        }
        _ => Err(damaged()),
    }
}

struct Chunks<'a> {
    program: &'a TableProgram,
    marks: &'a LaneMarks,
    pending: Vec<Group>,
    batches: Vec<RecordBatch>,
    bytes: usize,
}

impl<'a> Chunks<'a> {
    fn new(program: &'a TableProgram, marks: &'a LaneMarks) -> Self {
        Self { program, marks, pending: Vec::new(), batches: Vec::new(), bytes: 0 }
    }

    fn push(&mut self, group: Group) -> Result<(), String> {
        let settled = group.0.map_or(0, |span| span.1);
        self.push_settled(group, settled)
    }

    /// Takes a group whose window can't change any more when events have come to `settled` and the grace
    /// period beyond.
    fn push_settled(&mut self, group: Group, settled: i64) -> Result<(), String> {
        if group.0.is_some_and(|span| !self.program.shows(self.marks, span, settled)) {
            return Ok(());
        }
        self.pending.push(group);
        if self.pending.len() >= CHUNK { self.assemble() } else { Ok(()) }
    }

    fn assemble(&mut self) -> Result<(), String> {
        let groups = std::mem::take(&mut self.pending);
        let batch = self.program.assemble(&groups).map_err(|error| error.to_string())?;
        self.bytes += batch.get_array_memory_size();
        if self.bytes > MAX_READ_BYTES {
            return Err(TOO_LARGE.into());
        }
        self.batches.push(batch);
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<RecordBatch>, String> {
        if !self.pending.is_empty() {
            self.assemble()?;
        }
        Ok(self.batches)
    }
}

/// The panes that the next window may still need.
struct Slide<'a> {
    size: i64,
    advance: i64,
    program: &'a TableProgram,
    panes: VecDeque<(i64, BTreeMap<Vec<u8>, GroupState>)>,
    /// Start of the next window to put together.
    next: Option<i64>,
    /// When set, no other window is wanted.
    only: Option<i64>,
    /// Windows before are not wanted, and may lack panes.
    since: i64,
}

impl Slide<'_> {
    fn take(
        &mut self,
        pane: i64,
        key: &[u8],
        state: &GroupState,
        chunks: &mut Chunks<'_>,
    ) -> Result<(), String> {
        if self.panes.back().is_none_or(|(last, _)| *last != pane) {
            self.emit_before(pane, chunks)?;
            self.panes.push_back((pane, BTreeMap::new()));
            if self.next.is_none() {
                self.next = Some(self.first_window(pane));
            }
        }
        if let Some((_, groups)) = self.panes.back_mut() {
            groups.insert(key.to_vec(), state.clone());
        }
        Ok(())
    }

    fn first_window(&self, pane: i64) -> i64 {
        pane.saturating_add(self.advance).saturating_sub(self.size)
    }

    /// Puts together the windows that `pane` can't belong to any more.
    fn emit_before(&mut self, pane: i64, chunks: &mut Chunks<'_>) -> Result<(), String> {
        while let Some(start) = self.next
            && start.saturating_add(self.size) <= pane
            && !self.panes.is_empty()
        {
            self.emit(start, chunks)?;
        }
        if self.panes.is_empty() && self.next.is_some() {
            self.next = Some(self.first_window(pane));
        }
        Ok(())
    }

    fn emit(&mut self, start: i64, chunks: &mut Chunks<'_>) -> Result<(), String> {
        if self.only.is_none_or(|only| only == start) && start >= self.since {
            let end = start.saturating_add(self.size);
            let mut groups: BTreeMap<&[u8], GroupState> = BTreeMap::new();
            for (_, pane) in self.panes.iter().filter(|(pane, _)| *pane >= start && *pane < end) {
                for (key, state) in pane {
                    let into = groups.entry(key).or_insert_with(|| self.program.empty());
                    self.program.combine(into, state).ok_or("a sum over a window does not fit any more")?;
                }
            }
            for (key, state) in groups {
                chunks.push((Some((start, end)), key.to_vec(), state))?;
            }
        }
        let next = start.saturating_add(self.advance);
        while self.panes.front().is_some_and(|(pane, _)| *pane < next) {
            self.panes.pop_front();
        }
        self.next = Some(next);
        Ok(())
    }

    fn finish(mut self, chunks: &mut Chunks<'_>) -> Result<(), String> {
        while let Some(start) = self.next
            && !self.panes.is_empty()
        {
            self.emit(start, chunks)?;
        }
        Ok(())
    }
}
