//! Pages of an endpoint: rows in the order of their time, some at a time, from where the last page ended.
//!
//! Where a page ends is the time and the place of its last row, not a number of rows: rows that come in meanwhile
//! move no page.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{
    Array, ArrayRef, AsArray, Int32Array, Int64Array, RecordBatch, TimestampMicrosecondArray,
};
use arrow::datatypes::{Int32Type, Int64Type, SchemaRef, TimestampMicrosecondType};
use arrow::error::ArrowError;
use async_trait::async_trait;
use datafusion::catalog::TableProvider;
use datafusion::common::ScalarValue;
use datafusion::sql::sqlparser::ast::{Query, SetExpr, TableFactor};
use highwater_event::columns::{EVENT_TIME, OFFSET, PARTITION};

use super::endpoint::Posed;
use super::quick::{Searchable, Simple};
use super::{QueryResult, Relations, context, run};
use crate::dialect::{SqlError, parse_query};
use crate::plan::as_statement;

/// Where a row stands in the order of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Event time, microseconds UTC.
    pub time: i64,
    /// Partition of its stream.
    pub partition: i32,
    /// Offset in it.
    pub offset: i64,
}

/// Which page is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// Rows of it at most.
    pub limit: usize,
    /// The oldest rows first instead of the newest.
    pub oldest_first: bool,
    /// The last row of the page before; none of the first page.
    pub after: Option<Position>,
}

/// A page.
#[derive(Debug)]
pub struct PageResult {
    /// Its rows, in order, with their positions.
    pub rows: QueryResult,
    /// How many rows there are on all pages together.
    pub total: u64,
    /// Its last row, when there are more behind it.
    pub next: Option<Position>,
}

impl Page {
    /// Compares where rows stand in its order.
    pub(super) fn compare(&self, one: &Position, other: &Position) -> Ordering {
        let key = |it: &Position| (it.time, it.partition, it.offset);
        let order = key(one).cmp(&key(other));
        if self.oldest_first { order } else { order.reverse() }
    }

    /// Whether a row stands behind another.
    pub(super) fn is_behind(&self, position: &Position, other: &Position) -> bool {
        self.compare(position, other).is_gt()
    }

    /// The order of its rows.
    fn order(&self) -> String {
        let order = if self.oldest_first { "ASC" } else { "DESC" };
        format!("ORDER BY {EVENT_TIME} {order}, {PARTITION} {order}, {OFFSET} {order}")
    }

    /// Places of rows: one more than is shown, to know whether there are more.
    fn places(&self) -> String {
        let rest = self.after.map(|_| format!(" WHERE {}", self.behind(AFTER, false)));
        format!(
            "SELECT {EVENT_TIME}, {PARTITION}, {OFFSET} FROM (SELECT 1) AS page{} {} LIMIT {}",
            rest.unwrap_or_default(),
            self.order(),
            self.limit + 1
        )
    }

    /// The rows from one place to another: whatever it takes to make them is done for these alone.
    fn between(&self) -> String {
        let turned = Self { oldest_first: !self.oldest_first, ..*self };
        let (from, to) = (self.behind(FIRST, true), turned.behind(LAST, true));
        format!("SELECT * FROM (SELECT 1) AS page WHERE {from} AND {to} {}", self.order())
    }

    /// The condition that a row stands behind a place, or at it. Its time is said by itself, too, for files and row groups
    /// to be left out.
    fn behind(&self, place: [&str; 3], included: bool) -> String {
        let [time, partition, offset] = place;
        let beyond = if self.oldest_first { '>' } else { '<' };
        let last = if included { "=" } else { "" };
        format!(
            "{EVENT_TIME} {beyond}= ${time} AND ({EVENT_TIME} {beyond} ${time} OR {PARTITION} {beyond} ${partition} OR ({PARTITION} = ${partition} AND {OFFSET} {beyond}{last} ${offset}))"
        )
    }
}

/// Parameters that say places; no parameter that a statement declares begins with a number.
const AFTER: [&str; 3] = ["0after_time", "0after_partition", "0after_offset"];
const FIRST: [&str; 3] = ["0first_time", "0first_partition", "0first_offset"];
const LAST: [&str; 3] = ["0last_time", "0last_partition", "0last_offset"];

impl Position {
    fn values(&self, [time, partition, offset]: [&str; 3]) -> [(String, ScalarValue); 3] {
        let at = ScalarValue::TimestampMicrosecond(Some(self.time), Some("UTC".into()));
        [
            (time.to_owned(), at),
            (partition.to_owned(), ScalarValue::Int32(Some(self.partition))),
            (offset.to_owned(), ScalarValue::Int64(Some(self.offset))),
        ]
    }
}

impl QueryResult {
    /// Where its rows stand, when it shows that.
    pub fn positions(&self) -> Result<Vec<Position>, SqlError> {
        let mut places = Vec::with_capacity(self.row_count());
        for batch in self.batches.iter().filter(|batch| batch.num_rows() > 0) {
            places.extend(positions(batch)?);
        }
        Ok(places)
    }
}

/// A query with another one in the place of its first relation.
fn over(query: &Query, outer: &str) -> Result<Box<Query>, SqlError> {
    let mut whole = parse_query(outer)?;
    if let SetExpr::Select(select) = &mut *whole.body
        && let Some(from) = select.from.first_mut()
        && let TableFactor::Derived { subquery, .. } = &mut from.relation
    {
        **subquery = query.clone();
        return Ok(whole);
    }
    Err(SqlError::new("internal", "there is no place for the query of a page"))
}

impl Posed<'_> {
    /// A page. Rows and total are those of one moment.
    pub async fn page(self, page: Page) -> Result<PageResult, SqlError> {
        let asked = self.held();
        if let Some(simple) = Simple::of(&asked.query)
            && let Some(rows) = asked.relations.searchable(&simple.relation).await?
            && let Some(page) = simple.page(asked.engine, &asked.values, page, &rows, asked.limits)?
        {
            return Ok(page);
        }
        let after = page.after.map(|after| after.values(AFTER).to_vec()).unwrap_or_default();
        let found = asked.over(&page.places(), after).await?;
        if found.truncated {
            return Err(SqlError::new("result_too_large", "a page holds more rows than one answer may"));
        }
        let places = found.positions()?;
        let shown = &places[..places.len().min(page.limit)];
        let next = shown.last().copied().filter(|_| places.len() > page.limit);
        let rows = match (shown.first(), shown.last()) {
            (Some(first), Some(last)) => {
                let ends = [first.values(FIRST), last.values(LAST)].concat();
                asked.over(&page.between(), ends).await?
            }
            _ => QueryResult { schema: found.schema.clone(), batches: Vec::new(), truncated: false },
        };
        let total = if page.after.is_none() && next.is_none() {
            places.len() as u64
        } else {
            count(&asked.over(COUNTED, Vec::new()).await?)
        };
        Ok(PageResult { rows, total, next })
    }

    /// The page of a number, from 1, and how many rows there are. All are those of one moment.
    pub async fn numbered(self, size: usize, page: u64) -> Result<(QueryResult, u64), SqlError> {
        let mut asked = self.held();
        let total = count(&asked.over(COUNTED, Vec::new()).await?);
        let skipped = (page - 1).saturating_mul(size as u64).min(total);
        asked.query.limit_clause =
            parse_query(&format!("SELECT 1 LIMIT {size} OFFSET {skipped}"))?.limit_clause;
        Ok((asked.rows().await?, total))
    }

    /// The same, of relations as they are when they are first asked for.
    fn held(self) -> Self {
        let relations = self.relations;
        Self { relations: Arc::new(Held { relations, found: Mutex::default() }), ..self }
    }

    /// Asks another query, in which this one is a relation.
    async fn over(&self, outer: &str, more: Vec<(String, ScalarValue)>) -> Result<QueryResult, SqlError> {
        let asked = as_statement(over(&self.query, outer)?);
        let values = self.values.iter().cloned().chain(more).collect();
        run(&context(self.engine, self.relations.clone())?, asked, values, self.limits).await
    }
}

/// How many rows a query has; it stands in the place of the inner one.
const COUNTED: &str = "SELECT count(*) AS total FROM (SELECT 1) AS page";

fn count(result: &QueryResult) -> u64 {
    let batch = result.batches.iter().find(|batch| batch.num_rows() > 0);
    let count = batch.and_then(|batch| batch.column(0).as_primitive_opt::<Int64Type>().map(|it| it.value(0)));
    count.map_or(0, i64::unsigned_abs)
}

/// Places as columns: their times, partitions and offsets, as far as `wanted` has them.
pub(super) fn places(positions: &[Position], wanted: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let columns = wanted.fields().iter().map(|field| -> ArrayRef {
        match field.name().as_str() {
            EVENT_TIME => Arc::new(
                TimestampMicrosecondArray::from_iter_values(positions.iter().map(|it| it.time))
                    .with_data_type(field.data_type().clone()),
            ),
            PARTITION => Arc::new(Int32Array::from_iter_values(positions.iter().map(|it| it.partition))),
            _ => Arc::new(Int64Array::from_iter_values(positions.iter().map(|it| it.offset))),
        }
    });
    RecordBatch::try_new(wanted.clone(), columns.collect())
}

/// Where rows stand, told by their own columns.
pub(super) fn positions(rows: &RecordBatch) -> Result<Vec<Position>, SqlError> {
    let missing = || SqlError::new("internal", "a row of a page has no place");
    let column = |name: &str| {
        let column = rows.column_by_name(name).filter(|column| column.null_count() == 0);
        column.ok_or_else(missing)
    };
    let times = column(EVENT_TIME)?.as_primitive_opt::<TimestampMicrosecondType>().ok_or_else(missing)?;
    let partitions = column(PARTITION)?.as_primitive_opt::<Int32Type>().ok_or_else(missing)?;
    let offsets = column(OFFSET)?.as_primitive_opt::<Int64Type>().ok_or_else(missing)?;
    let places = times.values().iter().zip(partitions.values()).zip(offsets.values());
    let place = |((time, partition), offset): ((&i64, &i32), &i64)| Position {
        time: *time,
        partition: *partition,
        offset: *offset,
    };
    Ok(places.map(place).collect())
}

/// Relations as they were when they were first named.
struct Held {
    relations: Arc<dyn Relations>,
    found: Mutex<BTreeMap<String, Arc<dyn TableProvider>>>,
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("relations", &self.relations).finish_non_exhaustive()
    }
}

#[async_trait]
impl Relations for Held {
    fn names(&self) -> Vec<String> {
        self.relations.names()
    }

    fn may_look_up(&self) -> bool {
        self.relations.may_look_up()
    }

    async fn searchable(&self, name: &str) -> Result<Option<Searchable>, SqlError> {
        self.relations.searchable(name).await
    }

    async fn relation(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, SqlError> {
        let held = self.found.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        if held.is_some() {
            return Ok(held);
        }
        let found = self.relations.relation(name).await?;
        if let Some(found) = &found {
            let mut held = self.found.lock().unwrap_or_else(PoisonError::into_inner);
            held.insert(name.to_owned(), found.clone());
        }
        Ok(found)
    }
}
