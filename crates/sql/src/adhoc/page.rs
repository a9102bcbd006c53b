//! Pages of an endpoint: rows in the order of their time, some at a time, from where the last page ended.
//!
//! Where a page ends is the time and the place of its last row, not a number of rows: rows that come in meanwhile
//! move no page.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Int32Type, Int64Type, TimestampMicrosecondType};
use async_trait::async_trait;
use datafusion::catalog::TableProvider;
use datafusion::common::ScalarValue;
use datafusion::sql::sqlparser::ast::{Query, SetExpr, TableFactor};
use highwater_event::columns::{EVENT_TIME, OFFSET, PARTITION};

use super::{Limits, QueryResult, Relations, context, run};
use crate::catalog::Endpoint;
use crate::dialect::{Asker, SqlError, parse_query};
use crate::plan::as_statement;
use crate::session::Engine;

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
    /// What is asked around an endpoint's query: one row more than is shown, to know whether there are more.
    fn around(&self) -> String {
        let (order, beyond) = if self.oldest_first { ("ASC", '>') } else { ("DESC", '<') };
        let rest = self.after.map(|Position { time, partition, offset }| {
            let time = format!("to_timestamp_micros({time})");
            format!(
                " WHERE {EVENT_TIME} {beyond}= {time} AND ({EVENT_TIME} {beyond} {time} OR {PARTITION} {beyond} {partition} OR ({PARTITION} = {partition} AND {OFFSET} {beyond} {offset}))"
            )
        });
        format!(
            "SELECT * FROM (SELECT 1) AS page{} ORDER BY {EVENT_TIME} {order}, {PARTITION} {order}, {OFFSET} {order} LIMIT {}",
            rest.unwrap_or_default(),
            self.limit + 1
        )
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

/// Asks an endpoint for a page on somebody's behalf. Rows and total are those of one moment.
pub async fn run_page(
    engine: &Engine,
    relations: Arc<dyn Relations>,
    endpoint: &Endpoint,
    asker: Asker<'_>,
    values: Vec<(String, ScalarValue)>,
    page: Page,
    limits: Limits,
) -> Result<PageResult, SqlError> {
    let relations: Arc<dyn Relations> = Arc::new(Held { relations, found: Mutex::default() });
    let mut query = endpoint.query.clone();
    asker.put(&mut *query);
    let asked = as_statement(over(&query, &page.around())?);
    let mut rows = run(&context(engine, relations.clone())?, asked, values.clone(), limits).await?;
    let found = rows.row_count();
    if rows.truncated {
        return Err(SqlError::new("result_too_large", "a page holds more rows than one answer may"));
    }
    let next = if found > page.limit { cut(&mut rows, page.limit)? } else { None };
    let total = if page.after.is_none() && next.is_none() {
        found as u64
    } else {
        let asked = as_statement(over(&query, "SELECT count(*) AS total FROM (SELECT 1) AS page")?);
        count(&run(&context(engine, relations)?, asked, values, limits).await?)
    };
    Ok(PageResult { rows, total, next })
}

fn count(result: &QueryResult) -> u64 {
    let batch = result.batches.iter().find(|batch| batch.num_rows() > 0);
    let count = batch.and_then(|batch| batch.column(0).as_primitive_opt::<Int64Type>().map(|it| it.value(0)));
    count.map_or(0, i64::unsigned_abs)
}

/// Keeps the first rows; answers where the last of them stands.
fn cut(rows: &mut QueryResult, keep: usize) -> Result<Option<Position>, SqlError> {
    let mut left = keep;
    let mut last = None;
    for batch in &mut rows.batches {
        let taken = left.min(batch.num_rows());
        *batch = batch.slice(0, taken);
        left -= taken;
        if taken > 0 {
            last = Some((batch.clone(), taken - 1));
        }
    }
    rows.batches.retain(|batch| batch.num_rows() > 0);
    let Some((batch, row)) = last else { return Ok(None) };
    let missing = |name: &str| SqlError::new("internal", format!("a page has no column {name}"));
    let number = |name: &str| {
        let column = batch.column_by_name(name)?;
        if column.is_null(row) {
            return None;
        }
        match column.data_type() {
            DataType::Timestamp(..) => {
                Some(column.as_primitive_opt::<TimestampMicrosecondType>()?.value(row))
            }
            DataType::Int32 => Some(column.as_primitive::<Int32Type>().value(row).into()),
            DataType::Int64 => Some(column.as_primitive::<Int64Type>().value(row)),
            _ => None,
        }
    };
    let partition = number(PARTITION).and_then(|partition| i32::try_from(partition).ok());
    Ok(Some(Position {
        time: number(EVENT_TIME).ok_or_else(|| missing(EVENT_TIME))?,
        partition: partition.ok_or_else(|| missing(PARTITION))?,
        offset: number(OFFSET).ok_or_else(|| missing(OFFSET))?,
    }))
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
