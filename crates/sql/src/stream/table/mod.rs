//! CREATE TABLE … AS SELECT … GROUP BY: rows of a stream folded into groups.
//!
//! A micro-batch passes three steps: DataFusion computes conditions, keys and arguments ([`prepare`]);
//! each row is folded into the state of its group (`fold`), which lives in a keyed store behind a memory
//! overlay; when somebody reads (`read`), states become rows and DataFusion computes the SELECT list and
//! HAVING over them.
//!
//! Hopping windows are kept as panes of the slide and combined when they are read. Sessions are kept as
//! one state per key while rows may still join them, and one state each afterwards.
//!
//! A row is late when what it belongs to ended more than GRACE PERIOD before the highest event time
//! that its partition had seen: a property of the row and those before it, never of how they were cut.
//!
//! [`prepare`]: Program::prepare

mod explain;
mod fold;
mod read;

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Int64Type, SchemaRef};
use arrow::error::ArrowError;
use arrow::row::{RowConverter, Rows, SortField};
use async_trait::async_trait;
use highwater_event::{StreamName, StreamPartition, StreamSchema, columns, planted};
use highwater_log::LogBatch;
use highwater_log::fold::{Derived, Folded, Lane, LaneMarks, Program, Refused, States};
use highwater_log::keyed::StoreError;
use highwater_log::view::ViewError;

use super::aggregate::{Aggregate, Column, column};
use super::feed::FeedPlan;
use super::source::SourceRows;
use super::state::{GroupState, Value, pane_prefix};
use crate::dialect::{Window, WindowKind};

pub use explain::Step;
pub use read::{Extent, TableRows};

/// Column that every table carries: when the log took the newest row of the group.
pub const LAST_UPDATED_AT: &str = "last_updated_at";
/// Bytes that the key of a group may take: keyed stores have 16-bit lengths.
pub(crate) const MAX_KEY: usize = 65_000;
/// First byte of the keys of sessions that are over; the end and the group follow.
const CLOSED: u8 = 0;
/// First byte of the keys under which the sessions of a group are that may still grow.
const OPEN: u8 = 1;

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
    pub(crate) sources: [StreamName; 1],
    pub(crate) source: Arc<StreamSchema>,
    pub(crate) window: Option<Window>,
    /// Readers see a window only when it is closed.
    pub(crate) emit_final: bool,
    /// Answers group columns, arguments, event time, recorded time, offset.
    pub(crate) input: FeedPlan,
    pub(crate) groups: Vec<DataType>,
    /// The group columns as written.
    pub(crate) group_texts: Vec<String>,
    /// Under which name the result shows each group column unchanged.
    pub(crate) group_names: Vec<Option<String>>,
    /// Under which name it shows the start of each window unchanged.
    pub(crate) window_name: Option<String>,
    pub(crate) aggregates: Vec<Aggregate>,
    /// The aggregates as written.
    pub(crate) aggregate_texts: Vec<String>,
    pub(crate) keys: RowConverter,
    pub(crate) results: Vec<Source>,
    /// Aggregated rows, then `last_updated_at`.
    pub(crate) result_schema: SchemaRef,
    /// Answers the SELECT list over aggregated rows that pass HAVING.
    pub(crate) output: FeedPlan,
    pub(crate) having: Option<String>,
    pub(crate) schema: SchemaRef,
    /// Columns of `schema` that show what the source declares SENSITIVE.
    pub(crate) sensitive: Vec<String>,
}

/// Rows that are ready to be folded.
pub struct Prepared {
    source: SourceRows,
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

/// A window of event time: start, and end which does not belong to it.
pub(crate) type Span = (i64, i64);

/// A group that is put together to be read; its key comes without window.
pub(crate) type Group = (Option<Span>, Vec<u8>, GroupState);

impl TableProgram {
    /// The table's name.
    pub fn table(&self) -> &StreamName {
        &self.table
    }

    /// The stream it reads.
    pub fn source(&self) -> &Arc<StreamSchema> {
        &self.source
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

    /// How far event time has to go beyond the newest row until nothing of the table changes any more,
    /// microseconds; `None` for tables without a window.
    pub fn settles_after(&self) -> Option<i64> {
        let window = self.window?;
        let closed = window.longest().saturating_add(window.grace);
        Some(closed.saturating_add(window.retention.unwrap_or(0)))
    }

    fn ready(&self, rows: &RecordBatch) -> Result<Ready, ArrowError> {
        let last = rows.num_columns() - 3;
        let int = |at: usize| -> Result<Int64Array, ArrowError> {
            Ok(cast(rows.column(at), &DataType::Int64)?.as_primitive::<Int64Type>().clone())
        };
        Ok(Ready {
            keys: self.encode_keys(&rows.columns()[..self.groups.len()], rows.num_rows())?,
            columns: rows.columns()[self.groups.len()..last]
                .iter()
                .map(Column::read)
                .collect::<Result<_, _>>()?,
            event_times: int(last)?,
            recorded_at: int(last + 1)?,
            offsets: int(last + 2)?,
        })
    }

    /// Group columns as keys of states.
    pub(crate) fn encode_keys(&self, groups: &[ArrayRef], rows: usize) -> Result<Rows, ArrowError> {
        if groups.is_empty() {
            // A table without GROUP BY has one group; its key is the empty row.
            let constant: ArrayRef = Arc::new(arrow::array::BooleanArray::from(vec![true; rows]));
            return self.keys.convert_columns(&[constant]);
        }
        let groups: Vec<ArrayRef> = groups
            .iter()
            .zip(&self.groups)
            .map(|(group, wanted)| cast(group, wanted))
            .collect::<Result<_, _>>()?;
        self.keys.convert_columns(&groups)
    }

    pub(crate) fn empty(&self) -> GroupState {
        GroupState {
            partials: self.aggregates.iter().map(Aggregate::empty).collect(),
            last_updated_at: i64::MIN,
        }
    }

    /// Aggregated rows of some groups.
    pub(crate) fn assemble(&self, groups: &[Group]) -> Result<RecordBatch, ArrowError> {
        let parser = self.keys.parser();
        let keys = self.keys.convert_rows(groups.iter().map(|(_, key, _)| parser.parse(key)))?;
        let times = |bound: fn(&Span) -> i64| -> Result<ArrayRef, ArrowError> {
            let bounds = groups
                .iter()
                .map(|(span, _, _)| span.as_ref().map_or(Value::Null, |span| Value::Int(bound(span))));
            column(bounds, &columns::timestamp_type())
        };
        let mut arrays: Vec<ArrayRef> = Vec::with_capacity(self.results.len() + 1);
        for (source, field) in self.results.iter().zip(self.result_schema.fields()) {
            arrays.push(match source {
                Source::Group(at) => cast(&keys[*at], field.data_type())?,
                Source::WindowStart => times(|span| span.0)?,
                Source::WindowEnd => times(|span| span.1)?,
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

    /// Joins two states of one group, the earlier first; `None` when a sum does not fit.
    fn combine(&self, into: &mut GroupState, later: &GroupState) -> Option<()> {
        for ((aggregate, earlier), later) in
            self.aggregates.iter().zip(&mut into.partials).zip(&later.partials)
        {
            aggregate.combine(earlier, later)?;
        }
        into.last_updated_at = into.last_updated_at.max(later.last_updated_at);
        Some(())
    }
}

#[async_trait]
impl Program for TableProgram {
    type State = GroupState;
    type Prepared = Prepared;
    type Pending = ();

    fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "table"
    }

    fn sources(&self) -> &[StreamName] {
        &self.sources
    }

    fn output(&self) -> Option<(&StreamName, u32)> {
        None
    }

    fn follows_time(&self) -> bool {
        self.window.is_some()
    }

    async fn prepare(&self, at: &StreamPartition, batches: &[LogBatch]) -> Result<Prepared, ViewError> {
        let source = SourceRows::read(&self.source, at.partition, batches)?;
        let (rows, dead) = source.run(&self.input).await?;
        let ready = rows.map(|rows| self.ready(&rows)).transpose();
        let ready = ready.map_err(|error| ViewError::Broken(error.to_string()))?;
        Ok(Prepared { source, ready, dead })
    }

    fn fold(
        &self,
        prepared: Prepared,
        lane: Lane,
        marks: &mut LaneMarks,
        states: &mut dyn States<GroupState>,
    ) -> Result<Folded<()>, StoreError> {
        self.fold_rows(prepared, marks.entry(lane).or_default(), states)
    }

    async fn finish(&self, (): ()) -> Result<Derived, ViewError> {
        Ok(Derived::default())
    }

    fn expired(&self, marks: &LaneMarks) -> Option<Vec<u8>> {
        let window = self.window?;
        let retention = if planted::bug("early_expiry") { 0 } else { window.retention? };
        let before = low(marks)?.checked_sub(retention)?;
        Some(match window.kind {
            // The last window that a pane belongs to ends one length after the pane begins.
            WindowKind::Hopping { size, .. } => {
                pane_prefix(before.saturating_sub(size).saturating_add(1)).to_vec()
            }
            WindowKind::Session { .. } => [&[CLOSED][..], &pane_prefix(before.saturating_add(1))].concat(),
        })
    }
}

/// The event time that every partition has reached.
fn low(marks: &LaneMarks) -> Option<i64> {
    marks.values().map(|mark| mark.event_time_high).min()
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
