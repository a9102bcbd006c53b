//! CREATE STREAM … AS SELECT … FROM a JOIN b: rows of two streams, or of a stream and a table, matched
//! by key.
//!
//! Both sides are read in the order of their commits, so that what a row meets does not depend on when
//! the view ran: the join of a rebuild is the join of the first run.
//!
//! * **With a table** each row of the stream meets the group of its key as the table stood at the row's
//!   commit. The join folds the table's source itself, with the table's own program.
//! * **WITHIN** ([`within`]) matches rows of two streams whose event times lie close together.
//! * **ASOF** matches each row of the left stream with the newest row of the right whose time is not
//!   after its own. The right side is kept by key and time.
//!
//! Matches are made in the fold; their SELECT list is computed afterwards, and rows of the log carry the
//! position in the source with them, so that a crash between states and log repeats nothing.

mod within;

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::{cast, concat_batches, take};
use arrow::datatypes::{DataType, Int64Type, SchemaRef};
use arrow::error::ArrowError;
use arrow::row::{RowConverter, Rows};
use async_trait::async_trait;
use highwater_event::{Offset, StreamName, StreamPartition, StreamSchema, columns, time};
use highwater_log::LogBatch;
use highwater_log::fold::{Derived, Folded, Lane, LaneMarks, Program, Refused, States};
use highwater_log::idle::{self, Idle};
use highwater_log::keyed::StoreError;
use highwater_log::view::ViewError;

use self::within::Matching;
pub(crate) use self::within::Reach;
use super::feed::FeedPlan;
use super::show_duration;
use super::source::SourceRows;
use super::state::{GroupState, KeptRow, Partial, pane_prefix};
use super::table::{Group, MAX_KEY, Prepared as TablePrepared, Step, TableProgram};

/// Rows that one row may be matched with; one that has more is set apart.
const MAX_MATCHES: usize = 10_000;
/// Rows that are matched at a time: each may bring many.
const ROWS_AT_ONCE: usize = 1024;
/// Numbers of the sources in their list; at one commit the right side comes first.
const RIGHT: usize = 0;
const LEFT: usize = 1;

/// A side of a join that is read row by row.
#[derive(Debug)]
pub(crate) struct Side {
    pub(crate) schema: Arc<StreamSchema>,
    /// Answers keys, the columns that are needed, the time to match by, event time, recorded time, offset.
    pub(crate) input: FeedPlan,
    pub(crate) keys: usize,
    /// Turns the needed columns into bytes and back.
    pub(crate) rows: RowConverter,
}

/// What the left stream is joined with.
#[derive(Debug)]
pub(crate) enum Right {
    /// A table; for each of its group columns the number of the key that it is compared with.
    Table(Arc<TableProgram>, Vec<usize>),
    /// A stream, some time before and after a row of the left.
    Within(Side, Reach),
    /// A stream, up to the time of a row of the left, `inclusive` or not.
    AsOf { side: Side, inclusive: bool },
}

/// A planned join.
#[derive(Debug)]
pub struct JoinProgram {
    pub(crate) name: Arc<str>,
    /// Right, then left; then `_idle`, where time alone brings about rows.
    pub(crate) sources: Vec<StreamName>,
    pub(crate) schema: Arc<StreamSchema>,
    pub(crate) left: Side,
    pub(crate) right: Right,
    /// Rows of the left without a match are kept, with nulls.
    pub(crate) outer: bool,
    /// Turns keys into bytes.
    pub(crate) keys: RowConverter,
    /// Columns of the left, columns of the right, event time, offset.
    pub(crate) joined: SchemaRef,
    /// Answers the SELECT list over joined rows that pass WHERE, then event time and offset.
    pub(crate) output: FeedPlan,
    /// The condition as written.
    pub(crate) condition: String,
    /// One of the sides has SENSITIVE columns.
    pub(crate) sealed: bool,
}

/// Rows that are ready to be joined.
pub enum Prepared {
    /// Of the table's source.
    Table(TablePrepared),
    /// Of a side.
    Rows(SideRows),
    /// Of `_idle`: how many rows, and what they say at their offsets.
    Idle(u64, Vec<(Offset, Idle)>),
}

/// Rows of one side.
pub struct SideRows {
    left: bool,
    source: SourceRows,
    dead: Vec<Refused>,
    ready: Option<Ready>,
}

struct Ready {
    keys: Rows,
    /// Rows with a null in their key match nothing.
    keyed: Vec<bool>,
    columns: Vec<ArrayRef>,
    rows: Rows,
    /// What is matched by, and the event times.
    times: Int64Array,
    event_times: Int64Array,
    recorded_at: Int64Array,
    offsets: Int64Array,
}

/// Matches whose columns are not computed yet.
pub enum Pending {
    /// Rows of the left, each with its group.
    Lookup(Box<Lookup>),
    /// Pairs of kept rows.
    Pairs(Vec<Pair>),
}

/// Rows of the left and the groups that they meet.
pub struct Lookup {
    /// Columns of the left.
    columns: Vec<ArrayRef>,
    /// Row of the left, group.
    picks: Vec<(u32, Option<u32>)>,
    /// Groups by number.
    groups: Vec<Group>,
    /// Event times of the left.
    times: Int64Array,
    /// Offsets of the left.
    offsets: Int64Array,
}

/// A row of the left and its match.
pub struct Pair {
    left: Box<[u8]>,
    right: Option<Box<[u8]>>,
    time: i64,
    offset: Offset,
}

fn broken(error: ArrowError) -> ViewError {
    ViewError::Broken(error.to_string())
}

impl JoinProgram {
    /// True when a side has SENSITIVE columns: states may show them.
    pub fn has_sensitive(&self) -> bool {
        self.sealed
    }

    /// The stream that it derives.
    pub fn schema(&self) -> &Arc<StreamSchema> {
        &self.schema
    }

    /// The stream on the left.
    pub fn left(&self) -> &Arc<StreamSchema> {
        &self.left.schema
    }

    /// The stream or table on the right.
    pub fn right(&self) -> &StreamName {
        match &self.right {
            Right::Table(table, _) => table.table(),
            Right::Within(side, _) | Right::AsOf { side, .. } => &side.schema.name,
        }
    }

    /// How each part is kept up.
    pub fn explain(&self) -> Vec<Step> {
        let (left, right) = (self.left.schema.name.public(), self.right().public());
        let (how, cost) = match &self.right {
            Right::Table(table, _) => (
                format!(
                    "each row of {left} meets {right} as it stood at the row's commit; {} is folded once more for it",
                    table.source.name.public()
                ),
                "one look-up a row; a second copy of the table's states".to_owned(),
            ),
            Right::Within(_, reach) => {
                let mut how = format!(
                    "rows of {right} from {} before to {} after; both sides are kept by key and time",
                    show_duration(reach.before),
                    show_duration(reach.after)
                );
                if self.outer {
                    let leaves = show_duration(reach.leaves_after());
                    how.push_str(&format!(
                        "; a row of {left} without a match comes out, with nulls, when {right} has gone on {leaves} beyond it: windows over {} need a GRACE PERIOD as long",
                        self.schema.name.public()
                    ));
                }
                let kept = show_duration(2 * reach.longest() + reach.grace);
                let cost = format!(
                    "up to three look-ups and one change a row; rows are kept for {kept}, later ones go to _late_events"
                );
                (how, cost)
            }
            Right::AsOf { .. } => (
                format!(
                    "the newest row of {right} up to the time of the row of {left}, as known at its commit"
                ),
                format!("one look-up a row; every version of {right} is kept"),
            ),
        };
        let kind = if self.outer { "LEFT JOIN" } else { "JOIN" };
        vec![
            Step::new(
                format!("FROM {left}, {right}"),
                "both sides are read in the order of their commits",
                "each row of the log once",
            ),
            Step::new(format!("{kind} {right} ON {}", self.condition), how, cost),
            Step::new(
                "SELECT",
                "computed over matches, appended to the log with the position in the source",
                "about 15 µs a batch",
            ),
        ]
    }

    /// How far event time has to go beyond the newest row until nothing that is kept changes any more,
    /// microseconds; `None` when time plays no part.
    pub fn settles_after(&self) -> Option<i64> {
        match &self.right {
            Right::Table(table, _) => table.settles_after(),
            Right::Within(_, reach) => Some(reach.settles_after()),
            Right::AsOf { .. } => None,
        }
    }

    fn side(&self, left: bool) -> Option<&Side> {
        match &self.right {
            _ if left => Some(&self.left),
            Right::Within(side, _) | Right::AsOf { side, .. } => Some(side),
            Right::Table(..) => None,
        }
    }

    async fn prepare_side(
        &self,
        side: &Side,
        left: bool,
        at: &StreamPartition,
        batches: &[LogBatch],
    ) -> Result<SideRows, ViewError> {
        let source = SourceRows::read(&side.schema, at.partition, batches)?;
        let (rows, dead) = source.run(&side.input).await?;
        let ready = rows.map(|rows| self.ready(side, &rows)).transpose().map_err(broken)?;
        Ok(SideRows { left, source, dead, ready })
    }

    fn ready(&self, side: &Side, rows: &RecordBatch) -> Result<Ready, ArrowError> {
        let last = rows.num_columns() - 4;
        let int = |at: usize| -> Result<Int64Array, ArrowError> {
            let micros = if matches!(rows.column(at).data_type(), DataType::Timestamp(..)) {
                cast(rows.column(at), &columns::timestamp_type())?
            } else {
                rows.column(at).clone()
            };
            Ok(cast(&micros, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
        };
        let key_columns = &rows.columns()[..side.keys];
        let columns = rows.columns()[side.keys..last].to_vec();
        let times = int(last)?;
        let keyed = (0..rows.num_rows())
            .map(|row| {
                let null_time = arrow::array::Array::is_null(&times, row);
                !null_time && key_columns.iter().all(|column| arrow::array::Array::is_valid(column, row))
            })
            .collect();
        let keys = match &self.right {
            Right::Table(table, order) => {
                let groups: Vec<ArrayRef> = order.iter().map(|key| key_columns[*key].clone()).collect();
                table.encode_keys(&groups, rows.num_rows())?
            }
            _ => self.keys.convert_columns(key_columns)?,
        };
        let rows = side.rows.convert_columns(&columns)?;
        let (event_times, recorded_at, offsets) = (int(last + 1)?, int(last + 2)?, int(last + 3)?);
        Ok(Ready { keys, keyed, rows, columns, times, event_times, recorded_at, offsets })
    }

    /// Looks the groups of the left rows up.
    fn look_up(
        &self,
        ready: Ready,
        folded: &mut Folded<Pending>,
        states: &mut dyn States<GroupState>,
    ) -> Result<(), StoreError> {
        let mut known: HashMap<Vec<u8>, Option<u32>> = HashMap::new();
        let (mut picks, mut groups) = (Vec::new(), Vec::new());
        for row in 0..ready.offsets.len() {
            let key = ready.keys.row(row);
            let found = match known.get(key.as_ref()) {
                _ if !ready.keyed[row] || key.as_ref().len() > MAX_KEY => None,
                Some(found) => *found,
                None => {
                    let found = states.peek(key.as_ref())?.map(|state| {
                        groups.push((None, key.as_ref().to_vec(), state.clone()));
                        groups.len() as u32 - 1
                    });
                    known.insert(key.as_ref().to_vec(), found);
                    found
                }
            };
            if found.is_some() || self.outer {
                picks.push((row as u32, found));
                folded.folded += 1;
            }
        }
        if !picks.is_empty() {
            let Ready { columns, event_times: times, offsets, .. } = ready;
            folded.pending =
                Some(Pending::Lookup(Box::new(Lookup { columns, picks, groups, times, offsets })));
        }
        Ok(())
    }

    /// Matches rows with what the other side has kept, and keeps them for it.
    fn match_rows(
        &self,
        rows: SideRows,
        ready: &Ready,
        lane: Lane,
        marks: &mut LaneMarks,
        folded: &mut Folded<Pending>,
        states: &mut dyn States<GroupState>,
    ) -> Result<(), StoreError> {
        let mut pairs = Vec::new();
        for row in 0..ready.offsets.len() {
            let offset = ready.offsets.value(row) as Offset;
            let refuse = |code, detail| rows.source.refuse(offset, code, detail);
            let event_time = ready.event_times.value(row);
            let usable = ready.keyed[row] && ready.keys.row(row).as_ref().len() <= MAX_KEY;
            if let Right::Within(_, reach) = &self.right
                && !usable
            {
                // It matches nothing, but time has come as far.
                let mut matching = Matching { reach: *reach, states: &mut *states, pairs };
                matching.pass(ready.times.value(row), (lane, offset), marks)?;
                pairs = matching.pairs;
            }
            if !ready.keyed[row] {
                if rows.left && self.outer {
                    let left = ready.rows.row(row).as_ref().into();
                    pairs.push(Pair { left, right: None, time: event_time, offset });
                    folded.folded += 1;
                }
                continue;
            }
            if !usable {
                folded.dead.push(refuse("key_too_long", format!("a key of a join may take {MAX_KEY} bytes")));
                continue;
            }
            let kept = KeptRow {
                side: u8::from(!rows.left),
                time: ready.times.value(row),
                recorded_at: ready.recorded_at.value(row),
                lane,
                offset,
                matched: false,
                gone: false,
                row: ready.rows.row(row).as_ref().into(),
            };
            let key = ready.keys.row(row);
            match &self.right {
                Right::Within(_, reach) => {
                    let mark = marks.entry(lane).or_default();
                    let (time, high) = (kept.time, mark.event_time_high);
                    if reach.is_late(time, high) {
                        let (time, high) = (time::show_micros(time), time::show_micros(high));
                        let detail = format!(
                            "event time {time} is older than {high} by more than the window and the grace period"
                        );
                        folded.late.push(refuse("late", detail));
                        continue;
                    }
                    mark.event_time_high = high.max(time);
                    let low = if reach.outer { reach.low(marks, RIGHT, Some((lane, offset))) } else { None };
                    let mut matching = Matching { reach: *reach, states: &mut *states, pairs };
                    let taken = matching.take(kept, key.as_ref(), low)?;
                    if reach.outer && !rows.left && time > high {
                        matching.release(low, offset)?;
                    }
                    pairs = matching.pairs;
                    if !taken {
                        let detail = format!("it has more than {MAX_MATCHES} matches");
                        folded.dead.push(refuse("too_many_matches", detail));
                        continue;
                    }
                }
                Right::AsOf { inclusive, .. } if rows.left => {
                    let found = newest_before(states.peek(key.as_ref())?, kept.time, *inclusive);
                    if found.is_some() || self.outer {
                        pairs.push(Pair { left: kept.row, right: found, time: event_time, offset });
                    } else {
                        continue;
                    }
                }
                _ => keep_version(states.state(key.as_ref(), &no_rows)?, kept),
            }
            folded.folded += 1;
        }
        if !pairs.is_empty() {
            folded.pending = Some(Pending::Pairs(pairs));
        }
        Ok(())
    }

    /// Lets event time go on where nothing comes, and rows leave that wait in vain.
    fn carry_on(
        &self,
        rows: u64,
        said: &[(Offset, Idle)],
        marks: &mut LaneMarks,
        states: &mut dyn States<GroupState>,
    ) -> Result<Folded<Pending>, StoreError> {
        let Right::Within(_, reach) = &self.right else { return Ok(Folded::default()) };
        let mut folded = Folded::default();
        let mut matching = Matching { reach: *reach, states, pairs: Vec::new() };
        for (offset, idle) in said {
            folded.folded += u64::from(matching.idle(idle, *offset, &self.sources, marks)?);
        }
        folded.filtered = rows - folded.folded;
        folded.pending = Some(matching.pairs).filter(|pairs| !pairs.is_empty()).map(Pending::Pairs);
        Ok(folded)
    }

    /// Joined columns, event time and offset.
    fn joined_rows(
        &self,
        mut arrays: Vec<ArrayRef>,
        times: Int64Array,
        offsets: Int64Array,
    ) -> Result<RecordBatch, ArrowError> {
        arrays.push(cast(&times, &columns::timestamp_type())?);
        arrays.push(Arc::new(offsets));
        let arrays = arrays
            .iter()
            .zip(self.joined.fields())
            .map(|(array, field)| cast(array, field.data_type()))
            .collect::<Result<Vec<_>, _>>()?;
        RecordBatch::try_new(self.joined.clone(), arrays)
    }

    async fn looked_up(&self, found: Lookup) -> Result<RecordBatch, ViewError> {
        let Right::Table(table, _) = &self.right else {
            return Err(ViewError::Broken("a look-up without a table".into()));
        };
        let Lookup { columns, picks, groups, times, offsets } = found;
        let mut found = vec![RecordBatch::new_empty(table.schema().clone())];
        if !groups.is_empty() {
            let aggregated = table.assemble(&groups).map_err(broken)?;
            let rows = table.select(aggregated).await;
            found.extend(rows.map_err(|error| ViewError::Broken(error.message))?);
        }
        let found = concat_batches(table.schema(), &found).map_err(broken)?;
        if found.num_rows() != groups.len() {
            return Err(ViewError::Broken("the table answered another number of rows than groups".into()));
        }
        let left: UInt32Array = picks.iter().map(|(row, _)| *row).collect::<Vec<_>>().into();
        let right: UInt32Array = picks.iter().map(|(_, group)| *group).collect();
        let mut arrays = Vec::new();
        for column in &columns {
            arrays.push(take(column, &left, None).map_err(broken)?);
        }
        for field in &self.joined.fields()[columns.len()..self.joined.fields().len() - 2] {
            let name = field.metadata().get(TABLE_COLUMN).map_or(field.name().as_str(), String::as_str);
            let column = found
                .column_by_name(name)
                .ok_or_else(|| ViewError::Broken(format!("the table has no column {name} any more")))?;
            arrays.push(take(column, &right, None).map_err(broken)?);
        }
        let of = |values: &Int64Array| {
            picks.iter().map(|(row, _)| values.value(*row as usize)).collect::<Vec<_>>()
        };
        self.joined_rows(arrays, of(&times).into(), of(&offsets).into()).map_err(broken)
    }

    fn paired(&self, pairs: &[Pair]) -> Result<RecordBatch, ViewError> {
        let right = self.side(false).ok_or_else(|| ViewError::Broken("pairs without a right side".into()))?;
        let left_parser = self.left.rows.parser();
        let mut arrays = self
            .left
            .rows
            .convert_rows(pairs.iter().map(|pair| left_parser.parse(&pair.left)))
            .map_err(broken)?;
        // Rows of the right that are there, then spread over the pairs.
        let parser = right.rows.parser();
        let found = pairs.iter().filter_map(|pair| pair.right.as_ref()).map(|row| parser.parse(row));
        let found = right.rows.convert_rows(found).map_err(broken)?;
        let mut next = 0u32;
        let places: UInt32Array = pairs
            .iter()
            .map(|pair| {
                pair.right.as_ref().map(|_| {
                    next += 1;
                    next - 1
                })
            })
            .collect();
        for column in &found {
            arrays.push(take(column, &places, None).map_err(broken)?);
        }
        let times = pairs.iter().map(|pair| pair.time).collect::<Vec<_>>();
        let offsets = pairs.iter().map(|pair| pair.offset as i64).collect::<Vec<_>>();
        self.joined_rows(arrays, times.into(), offsets.into()).map_err(broken)
    }
}

/// Key of a joined field's metadata: the table's column that it shows.
pub(crate) const TABLE_COLUMN: &str = "table_column";

fn no_rows() -> GroupState {
    GroupState { partials: vec![Partial::Rows(Vec::new())], last_updated_at: i64::MIN }
}

fn kept_rows(state: Option<&GroupState>) -> &[KeptRow] {
    match state.and_then(|state| state.partials.first()) {
        Some(Partial::Rows(rows)) => rows,
        _ => &[],
    }
}

/// Keeps a version; of two with one time the later in the log holds.
fn keep_version(state: &mut GroupState, row: KeptRow) {
    state.last_updated_at = row.recorded_at;
    if let Some(Partial::Rows(rows)) = state.partials.first_mut() {
        let at = rows.partition_point(|kept| kept.time < row.time);
        match rows.get_mut(at) {
            Some(same) if same.time == row.time => *same = row,
            _ => rows.insert(at, row),
        }
    }
}

fn newest_before(state: Option<&GroupState>, time: i64, inclusive: bool) -> Option<Box<[u8]>> {
    let rows = kept_rows(state);
    let end = rows.partition_point(|kept| if inclusive { kept.time <= time } else { kept.time < time });
    end.checked_sub(1).map(|at| rows[at].row.clone())
}

#[async_trait]
impl Program for JoinProgram {
    type State = GroupState;
    type Prepared = Prepared;
    type Pending = Pending;

    fn name(&self) -> &Arc<str> {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "join"
    }

    fn sources(&self) -> &[StreamName] {
        &self.sources
    }

    fn output(&self) -> Option<(&StreamName, u32)> {
        Some((&self.schema.name, self.schema.options.partitions.max(1)))
    }

    fn follows_time(&self) -> bool {
        self.settles_after().is_some()
    }

    fn rows_at_once(&self) -> usize {
        match self.right {
            Right::Within(..) => ROWS_AT_ONCE,
            _ => 64 * 1024,
        }
    }

    async fn prepare(&self, at: &StreamPartition, batches: &[LogBatch]) -> Result<Prepared, ViewError> {
        if at.stream.as_str() == idle::IDLE {
            let rows = batches.iter().map(|batch| batch.rows.num_rows() as u64).sum();
            return Ok(Prepared::Idle(rows, batches.iter().flat_map(idle::waiting).collect()));
        }
        let left = at.stream == self.sources[LEFT];
        match (self.side(left), &self.right) {
            (Some(side), _) => self.prepare_side(side, left, at, batches).await.map(Prepared::Rows),
            (None, Right::Table(table, _)) => table.prepare(at, batches).await.map(Prepared::Table),
            (None, _) => Err(ViewError::Broken(format!("{at} is not read by this join"))),
        }
    }

    fn fold(
        &self,
        prepared: Prepared,
        lane: Lane,
        marks: &mut LaneMarks,
        states: &mut dyn States<GroupState>,
    ) -> Result<Folded<Pending>, StoreError> {
        let mut rows = match (prepared, &self.right) {
            (Prepared::Table(prepared), Right::Table(table, _)) => {
                let Folded { folded, filtered, late, dead, .. } =
                    table.fold(prepared, lane, marks, states)?;
                return Ok(Folded { folded, filtered, late, dead, pending: None });
            }
            (Prepared::Table(_), _) => return Ok(Folded::default()),
            (Prepared::Idle(rows, said), _) => return self.carry_on(rows, &said, marks, states),
            (Prepared::Rows(rows), _) => rows,
        };
        let taken = rows.source.taken();
        let mut folded = Folded { dead: std::mem::take(&mut rows.dead), ..Folded::default() };
        match (rows.ready.take(), &self.right) {
            (None, _) => {}
            (Some(ready), Right::Table(..)) => self.look_up(ready, &mut folded, states)?,
            (Some(ready), _) => self.match_rows(rows, &ready, lane, marks, &mut folded, states)?,
        }
        folded.filtered = taken - folded.folded - folded.late.len() as u64 - folded.dead.len() as u64;
        Ok(folded)
    }

    async fn finish(&self, pending: Pending) -> Result<Derived, ViewError> {
        let joined = match pending {
            Pending::Pairs(pairs) => self.paired(&pairs)?,
            Pending::Lookup(found) => self.looked_up(*found).await?,
        };
        SourceRows::joined(joined, self.sealed).derive(&self.output, &self.schema).await
    }

    fn expired(&self, marks: &LaneMarks) -> Option<Vec<u8>> {
        let Right::Within(_, reach) = &self.right else { return None };
        let low = reach.low(marks, RIGHT, None)?.min(reach.low(marks, LEFT, None)?);
        Some(pane_prefix(reach.floor(low)?).to_vec())
    }
}
