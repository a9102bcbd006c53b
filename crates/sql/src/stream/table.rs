//! CREATE TABLE … AS SELECT … GROUP BY: rows of a stream folded into groups.
//!
//! A micro-batch passes three steps: DataFusion computes conditions, keys and arguments ([`prepare`]);
//! each row is folded into the state of its group, which lives in a keyed store behind a memory
//! overlay; when somebody reads, states become rows and DataFusion computes the SELECT list over them.
//! Windows are kept as panes of the slide and combined when they are read.
//!
//! A row is late when its pane ended more than GRACE PERIOD before the highest event time that its
//! partition had seen: a property of the row and those before it, never of how they were cut.
//!
//! [`prepare`]: Program::prepare

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Field, Int64Type, SchemaRef};
use arrow::error::ArrowError;
use arrow::row::{RowConverter, Rows, SortField};
use async_trait::async_trait;
use highwater_event::{Offset, Partition, StreamName, StreamSchema, columns};
use highwater_log::LogBatch;
use highwater_log::fold::{Folded, Program, Refused, StateReader, States};
use highwater_log::keyed::{Mark, StoreError};
use highwater_log::reader::RowReader;
use highwater_log::view::ViewError;

use super::aggregate::{Aggregate, Column, RowPlace, column};
use super::feed::FeedPlan;
use super::isolate::{row_as_json, run_isolated};
use super::state::{GroupState, Value, pane_prefix, split_pane};
use crate::dialect::{SqlError, Window};

/// Column that every table carries: when the log took the newest row of the group.
pub const LAST_UPDATED_AT: &str = "last_updated_at";
/// Bytes that the key of a group may take: keyed stores have 16-bit lengths.
const MAX_KEY: usize = 65_000;
/// Rows of a table that are put together at a time.
const CHUNK: usize = 8192;

/// Where a column of the aggregated rows comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Group(usize),
    WindowStart,
    WindowEnd,
    Aggregate(usize),
}

/// A planned table.
#[derive(Debug)]
pub struct TableProgram {
    pub(crate) name: Arc<str>,
    pub(crate) table: StreamName,
    pub(crate) source: Arc<StreamSchema>,
    pub(crate) window: Option<Window>,
    /// Answers group columns, arguments, event time, recorded time, offset.
    pub(crate) input: FeedPlan,
    pub(crate) groups: Vec<DataType>,
    pub(crate) aggregates: Vec<Aggregate>,
    pub(crate) keys: RowConverter,
    pub(crate) results: Vec<Source>,
    /// Aggregated rows, then `last_updated_at`.
    pub(crate) result_schema: SchemaRef,
    /// Answers the SELECT list over aggregated rows.
    pub(crate) output: FeedPlan,
    pub(crate) schema: SchemaRef,
    /// Columns of `schema` that show what the source declares SENSITIVE.
    pub(crate) sensitive: Vec<String>,
}

/// Rows that are ready to be folded.
pub struct Prepared {
    source: RecordBatch,
    first: Offset,
    taken: u64,
    ready: Option<Ready>,
    dead: Vec<Refused>,
}

struct Ready {
    keys: Rows,
    columns: Vec<Column>,
    event_times: Int64Array,
    recorded_at: Int64Array,
    offsets: Int64Array,
}

impl TableProgram {
    /// The table's name.
    pub fn table(&self) -> &StreamName {
        &self.table
    }

    /// The columns that readers see.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Columns that show what the source declares SENSITIVE.
    pub fn sensitive(&self) -> &[String] {
        &self.sensitive
    }

    /// The window, for tables that have one.
    pub fn window(&self) -> Option<Window> {
        self.window
    }

    fn ready(&self, rows: &RecordBatch) -> Result<Ready, ArrowError> {
        let groups = &rows.columns()[..self.groups.len()];
        let groups: Vec<ArrayRef> = groups
            .iter()
            .zip(&self.groups)
            .map(|(group, wanted)| cast(group, wanted))
            .collect::<Result<_, _>>()?;
        let last = rows.num_columns() - 3;
        let int = |at: usize| -> Result<Int64Array, ArrowError> {
            Ok(cast(rows.column(at), &DataType::Int64)?.as_primitive::<Int64Type>().clone())
        };
        let keys = if groups.is_empty() {
            // A table without GROUP BY has one group; its key is the empty row.
            let constant: ArrayRef = Arc::new(arrow::array::BooleanArray::from(vec![true; rows.num_rows()]));
            self.keys.convert_columns(&[constant])?
        } else {
            self.keys.convert_columns(&groups)?
        };
        Ok(Ready {
            keys,
            columns: rows.columns()[self.groups.len()..last]
                .iter()
                .map(Column::read)
                .collect::<Result<_, _>>()?,
            event_times: int(last)?,
            recorded_at: int(last + 1)?,
            offsets: int(last + 2)?,
        })
    }

    fn empty(&self) -> GroupState {
        GroupState {
            partials: self.aggregates.iter().map(Aggregate::empty).collect(),
            last_updated_at: i64::MIN,
        }
    }

    /// Aggregated rows of some groups; the key comes without its pane.
    fn assemble(&self, groups: &[(Option<i64>, Vec<u8>, GroupState)]) -> Result<RecordBatch, ArrowError> {
        let parser = self.keys.parser();
        let keys = self.keys.convert_rows(groups.iter().map(|(_, key, _)| parser.parse(key)))?;
        let size = self.window.map_or(0, |window| window.size);
        let times = |add: i64| -> Result<ArrayRef, ArrowError> {
            column(
                groups.iter().map(|(start, _, _)| start.map_or(Value::Null, |start| Value::Int(start + add))),
                &columns::timestamp_type(),
            )
        };
        let mut arrays: Vec<ArrayRef> = Vec::with_capacity(self.results.len() + 1);
        for (source, field) in self.results.iter().zip(self.result_schema.fields()) {
            arrays.push(match source {
                Source::Group(at) => cast(&keys[*at], field.data_type())?,
                Source::WindowStart => times(0)?,
                Source::WindowEnd => times(size)?,
                Source::Aggregate(at) => {
                    self.aggregates[*at].finish(groups.iter().map(|(_, _, state)| &state.partials[*at]))?
                }
            });
        }
        arrays.push(column(
            groups.iter().map(|(_, _, state)| Value::Int(state.last_updated_at)),
            &columns::timestamp_type(),
        )?);
        RecordBatch::try_new(self.result_schema.clone(), arrays)
    }

    /// The state of a window from the panes it spans, the earliest first.
    fn combine(&self, into: &mut GroupState, pane: &GroupState) -> Option<()> {
        for ((aggregate, earlier), later) in
            self.aggregates.iter().zip(&mut into.partials).zip(&pane.partials)
        {
            aggregate.combine(earlier, later)?;
        }
        into.last_updated_at = into.last_updated_at.max(pane.last_updated_at);
        Some(())
    }
}

#[async_trait]
impl Program for TableProgram {
    type State = GroupState;
    type Prepared = Prepared;

    fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn source(&self) -> &StreamName {
        &self.source.name
    }

    async fn prepare(&self, partition: Partition, batches: &[LogBatch]) -> Result<Prepared, ViewError> {
        let broken = |error: ArrowError| ViewError::Broken(error.to_string());
        let source = RowReader::new(&self.source).read_all(partition, batches).map_err(broken)?;
        let first = batches.first().map_or(0, |batch| batch.base);
        let (results, bad) = run_isolated(&self.input, &source).await?;
        let ready = match results.as_slice() {
            [] => None,
            [only] => Some(self.ready(only).map_err(broken)?),
            several => {
                let rows = concat_batches(&several[0].schema(), several).map_err(broken)?;
                Some(self.ready(&rows).map_err(broken)?)
            }
        };
        let dead = bad
            .into_iter()
            .map(|bad| Refused {
                offset: first + bad.row as Offset,
                code: "evaluation_failed",
                detail: bad.reason,
                row: row_as_json(&source, bad.row),
            })
            .collect();
        Ok(Prepared { taken: source.num_rows() as u64, source, first, ready, dead })
    }

    fn fold(
        &self,
        prepared: Prepared,
        mark: &mut Mark,
        states: &mut dyn States<GroupState>,
    ) -> Result<Folded, StoreError> {
        let Prepared { source, first, taken, ready, dead } = prepared;
        let mut folded = Folded { dead, ..Folded::default() };
        let refuse = |offset: Offset, code: &'static str, detail: String| Refused {
            offset,
            code,
            detail,
            row: row_as_json(&source, (offset - first) as usize),
        };
        let mut key = Vec::new();
        if let Some(ready) = ready {
            for row in 0..ready.offsets.len() {
                let place = RowPlace {
                    recorded_at: ready.recorded_at.value(row),
                    offset: ready.offsets.value(row) as Offset,
                };
                key.clear();
                if let Some(window) = self.window {
                    let time = ready.event_times.value(row);
                    let pane = time.div_euclid(window.advance).saturating_mul(window.advance);
                    let closes = pane.saturating_add(window.advance).saturating_add(window.grace);
                    if closes <= mark.event_time_high {
                        let detail = format!(
                            "event time {} is older than {} by more than the grace period",
                            highwater_event::time::show_micros(time),
                            highwater_event::time::show_micros(mark.event_time_high)
                        );
                        folded.late.push(refuse(place.offset, "late", detail));
                        continue;
                    }
                    mark.event_time_high = mark.event_time_high.max(time);
                    key.extend_from_slice(&pane_prefix(pane));
                }
                key.extend_from_slice(ready.keys.row(row).as_ref());
                if key.len() > MAX_KEY {
                    folded.dead.push(refuse(
                        place.offset,
                        "key_too_long",
                        format!("a group's key may take {MAX_KEY} bytes"),
                    ));
                    continue;
                }
                let state = states.state(&key, &|| self.empty())?;
                let fits = self
                    .aggregates
                    .iter()
                    .zip(&state.partials)
                    .all(|(aggregate, partial)| aggregate.fits(partial, &ready.columns, row));
                if !fits {
                    let detail = "an exact sum of its group would not fit any more".to_owned();
                    folded.dead.push(refuse(place.offset, "overflow", detail));
                    continue;
                }
                for (aggregate, partial) in self.aggregates.iter().zip(&mut state.partials) {
                    aggregate.fold(partial, &ready.columns, row, place);
                }
                state.last_updated_at = state.last_updated_at.max(place.recorded_at);
                folded.folded += 1;
            }
        }
        folded.filtered = taken - folded.folded - folded.late.len() as u64 - folded.dead.len() as u64;
        Ok(folded)
    }
}

/// A table's rows as readers see them.
pub struct TableRows {
    program: Arc<TableProgram>,
    states: Arc<dyn StateReader<GroupState>>,
}

/// Which rows of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// All of them.
    All,
    /// Those of the newest window.
    NewestWindow,
}

type Group = (Option<i64>, Vec<u8>, GroupState);

impl TableRows {
    /// Reads the states that `program` folds.
    pub fn new(program: Arc<TableProgram>, states: Arc<dyn StateReader<GroupState>>) -> Self {
        Self { program, states }
    }

    /// The program.
    pub fn program(&self) -> &Arc<TableProgram> {
        &self.program
    }

    /// The rows as of now, in order of window and key.
    pub async fn read(&self, extent: Extent) -> Result<Vec<RecordBatch>, SqlError> {
        let failed = |message: String| SqlError::new("internal", message);
        let assembled = self.aggregated(extent).map_err(failed)?;
        let mut rows = Vec::with_capacity(assembled.len());
        for batch in assembled {
            for result in self.program.output.run(batch).await? {
                let arrays = result
                    .columns()
                    .iter()
                    .zip(self.program.schema.fields())
                    .map(|(array, field)| cast(array, field.data_type()))
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(|error| failed(error.to_string()))?;
                let batch = RecordBatch::try_new(self.program.schema.clone(), arrays);
                rows.push(batch.map_err(|error| failed(error.to_string()))?);
            }
        }
        Ok(rows)
    }

    fn aggregated(&self, extent: Extent) -> Result<Vec<RecordBatch>, String> {
        let mut chunks = Chunks { program: &self.program, pending: Vec::new(), batches: Vec::new() };
        match self.program.window {
            None => {
                let mut failure = None;
                self.states
                    .read(&[], &mut |key, state| {
                        failure = chunks.push((None, key.to_vec(), state.clone())).err();
                        failure.is_none()
                    })
                    .map_err(|error| error.to_string())?;
                if let Some(error) = failure {
                    return Err(error);
                }
            }
            Some(window) => self.windows(window, extent, &mut chunks)?,
        }
        chunks.finish()
    }

    /// Slides over the panes in order of time and puts each window together.
    fn windows(&self, window: Window, extent: Extent, chunks: &mut Chunks<'_>) -> Result<(), String> {
        let mut from = Vec::new();
        let mut only = None;
        if extent == Extent::NewestWindow {
            let last = self.states.last_key().map_err(|error| error.to_string())?;
            let Some((newest, _)) = last.as_deref().and_then(split_pane) else { return Ok(()) };
            from = pane_prefix(newest).to_vec();
            only = Some(newest);
        }
        let mut slide = Slide { window, program: &self.program, panes: VecDeque::new(), next: None, only };
        let mut failure = None;
        self.states
            .read(&from, &mut |key, state| {
                let Some((pane, rest)) = split_pane(key) else { return true };
                failure = slide.take(pane, rest, state, chunks).err();
                failure.is_none()
            })
            .map_err(|error| error.to_string())?;
        match failure {
            Some(error) => Err(error),
            None => slide.finish(chunks),
        }
    }
}

struct Chunks<'a> {
    program: &'a TableProgram,
    pending: Vec<Group>,
    batches: Vec<RecordBatch>,
}

impl Chunks<'_> {
    fn push(&mut self, group: Group) -> Result<(), String> {
        self.pending.push(group);
        if self.pending.len() >= CHUNK { self.assemble() } else { Ok(()) }
    }

    fn assemble(&mut self) -> Result<(), String> {
        let groups = std::mem::take(&mut self.pending);
        self.batches.push(self.program.assemble(&groups).map_err(|error| error.to_string())?);
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
    window: Window,
    program: &'a TableProgram,
    panes: VecDeque<(i64, BTreeMap<Vec<u8>, GroupState>)>,
    /// Start of the next window to put together.
    next: Option<i64>,
    /// When set, no other window is wanted.
    only: Option<i64>,
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
        pane.saturating_add(self.window.advance).saturating_sub(self.window.size)
    }

    /// Puts together the windows that `pane` can't belong to any more.
    fn emit_before(&mut self, pane: i64, chunks: &mut Chunks<'_>) -> Result<(), String> {
        while let Some(start) = self.next
            && start.saturating_add(self.window.size) <= pane
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
        if self.only.is_none_or(|only| only == start) {
            let end = start.saturating_add(self.window.size);
            let mut groups: BTreeMap<&[u8], GroupState> = BTreeMap::new();
            for (_, pane) in self.panes.iter().filter(|(pane, _)| *pane >= start && *pane < end) {
                for (key, state) in pane {
                    let into = groups.entry(key).or_insert_with(|| self.program.empty());
                    self.program.combine(into, state).ok_or("a sum over a window does not fit any more")?;
                }
            }
            for (key, state) in groups {
                chunks.push((Some(start), key.to_vec(), state))?;
            }
        }
        let next = start.saturating_add(self.window.advance);
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

/// The key converter for these group columns.
pub(crate) fn key_converter(groups: &[DataType]) -> Result<RowConverter, ArrowError> {
    let fields = if groups.is_empty() {
        vec![SortField::new(DataType::Boolean)]
    } else {
        groups.iter().cloned().map(SortField::new).collect()
    };
    RowConverter::new(fields)
}

/// The field for [`LAST_UPDATED_AT`].
pub(crate) fn last_updated_field() -> Field {
    Field::new(LAST_UPDATED_AT, columns::timestamp_type(), true)
}
