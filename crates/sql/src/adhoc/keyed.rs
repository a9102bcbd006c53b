//! A table as a relation that reads what a question needs of it: the groups that it names, the windows from some time
//! on, or all.
//!
//! What is read stays for the questions that the same relation is asked, so that all of them see one moment. A
//! question that names a table several times reads the whole of it once for the same reason.

use std::collections::HashSet;
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::{ArrayRef, Int64Array, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result};
use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::{Expr, LogicalPlan, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use highwater_event::Condition;
use tokio::sync::Mutex;

use super::behind::Behind;
use super::held::Held;
use super::index::condition;
use crate::dialect::SqlError;
use crate::stream::TableRows;
use crate::stream::table::Extent;

/// Groups that are looked up; where more are named, the table is read.
const MOST_GROUPS: usize = 1024;

/// A table, or a part of it.
pub(super) struct Keyed {
    rows: Arc<TableRows>,
    extent: Extent,
    /// A question names it several times.
    several: AtomicBool,
    read: Mutex<Vec<(Wanted, Arc<Held>)>>,
}

/// What a scan needs.
#[derive(PartialEq)]
enum Wanted {
    /// Rows of a part of the table.
    Part(Extent),
    /// Some groups, as the values of their group columns.
    Groups(Vec<ArrayRef>),
}

/// A value as conditions have it.
#[derive(Clone)]
enum Value {
    Text(String),
    Number(i64),
}

impl Keyed {
    pub(super) fn new(rows: Arc<TableRows>, extent: Extent) -> Self {
        Self { rows, extent, several: AtomicBool::new(false), read: Mutex::default() }
    }

    fn wanted(&self, conditions: &[Condition]) -> Wanted {
        let whole = Wanted::Part(self.extent);
        if self.extent != Extent::All || self.several.load(Ordering::Relaxed) {
            return whole;
        }
        let program = self.rows.program();
        if program.window().is_some() {
            let name = program.window_name.as_deref();
            let from = name.and_then(|name| conditions.iter().filter_map(|it| lowest(it, name)).max());
            return from.map_or(whole, |from| Wanted::Part(Extent::Since(from)));
        }
        let mut groups = Vec::new();
        let mut count = 1_usize;
        for name in &program.group_names {
            let values = |name: &String| conditions.iter().find_map(|condition| values(condition, name));
            let Some(values) = name.as_ref().and_then(values) else { return whole };
            count = count.saturating_mul(values.len());
            groups.push(values);
        }
        if count > MOST_GROUPS {
            return whole;
        }
        self.columns(&groups).map_or(whole, Wanted::Groups)
    }

    /// All combinations of values, as the group columns have them; `None` when a column can't have such a value.
    fn columns(&self, groups: &[Vec<Value>]) -> Option<Vec<ArrayRef>> {
        let program = self.rows.program();
        let count: usize = groups.iter().map(Vec::len).product();
        let mut stretch = count;
        let columns = groups.iter().zip(&program.group_names).map(|(values, name)| {
            stretch /= values.len().max(1);
            let field = program.schema().field_with_name(name.as_deref()?).ok()?;
            let each = (0..count).map(|row| &values[row / stretch.max(1) % values.len()]);
            column(each, field.data_type())
        });
        columns.collect()
    }

    async fn rows(&self, wanted: &Wanted) -> Result<Held, SqlError> {
        let batches = match wanted {
            Wanted::Part(extent) => self.rows.read(*extent).await?,
            Wanted::Groups(groups) => self.rows.read_groups(groups).await?,
        };
        Ok(Held::new(self.rows.program().schema().clone(), batches))
    }
}

impl fmt::Debug for Keyed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyed").field("table", self.rows.program().table()).finish_non_exhaustive()
    }
}

#[async_trait]
impl TableProvider for Keyed {
    fn schema(&self) -> SchemaRef {
        self.rows.program().schema().clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        // More than they let through may come out: they are asked again above.
        let told = |filter: &&Expr| match condition(filter) {
            Some(_) => TableProviderFilterPushDown::Inexact,
            None => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(told).collect())
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let conditions: Vec<Condition> = filters.iter().filter_map(condition).collect();
        let wanted = self.wanted(&conditions);
        let held = {
            let mut read = self.read.lock().await;
            let whole = Wanted::Part(self.extent);
            match read.iter().find(|(known, _)| *known == wanted || *known == whole) {
                Some((_, held)) => held.clone(),
                None => {
                    let rows = self.rows(&wanted).await;
                    let held = Arc::new(rows.map_err(|error| DataFusionError::External(Box::new(error)))?);
                    read.push((wanted, held.clone()));
                    held
                }
            }
        };
        held.scan(session, projection, &[], limit).await
    }
}

/// Tells the tables that an optimized plan names several times to read all they have: all of its scans see one moment then.
pub(super) fn hold_still(plan: &LogicalPlan) -> Result<()> {
    count_scans(plan, &mut HashSet::new())
}

fn count_scans(plan: &LogicalPlan, seen: &mut HashSet<*const ()>) -> Result<()> {
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            let provider = source_as_provider(&scan.source)?;
            if let Some(behind) = provider.downcast_ref::<Behind>() {
                count_scans(behind.plan(), seen)?;
            }
            if let Some(keyed) = provider.downcast_ref::<Keyed>()
                && !seen.insert(Arc::as_ptr(&provider).cast())
            {
                keyed.several.store(true, Ordering::Relaxed);
            }
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(())
}

/// The values that a column has where a condition holds; `None` when it may have others.
fn values(condition: &Condition, name: &str) -> Option<Vec<Value>> {
    match condition {
        Condition::Text { column, text } if column == name => Some(vec![Value::Text(text.clone())]),
        Condition::Number { column, from: Bound::Included(from), to: Bound::Included(to) }
            if column == name && from == to =>
        {
            Some(vec![Value::Number(*from)])
        }
        Condition::All(all) => all.iter().find_map(|condition| values(condition, name)),
        Condition::Any(any) => {
            let each: Option<Vec<_>> = any.iter().map(|condition| values(condition, name)).collect();
            each.map(|each| each.concat())
        }
        _ => None,
    }
}

/// The lowest number that a column may have where a condition holds.
fn lowest(condition: &Condition, name: &str) -> Option<i64> {
    match condition {
        Condition::Number { column, from: Bound::Included(from) | Bound::Excluded(from), .. }
            if column == name =>
        {
            Some(*from)
        }
        Condition::All(all) => all.iter().filter_map(|condition| lowest(condition, name)).max(),
        Condition::Any(any) => {
            let each: Option<Vec<_>> = any.iter().map(|condition| lowest(condition, name)).collect();
            each?.into_iter().min()
        }
        _ => None,
    }
}

/// Values as a column of a type; `None` when it has none such.
fn column<'a>(values: impl Iterator<Item = &'a Value> + Clone, data_type: &DataType) -> Option<ArrayRef> {
    let numbers = || {
        let numbers = values.clone().map(|value| match value {
            Value::Number(number) => Some(*number),
            Value::Text(_) => None,
        });
        Some(Int64Array::from_iter_values(numbers.collect::<Option<Vec<_>>>()?))
    };
    match data_type {
        DataType::Utf8 => {
            let texts = values.map(|value| match value {
                Value::Text(text) => Some(text.as_str()),
                Value::Number(_) => None,
            });
            Some(Arc::new(StringArray::from(texts.collect::<Option<Vec<_>>>()?)))
        }
        DataType::Int32 => {
            let numbers = numbers()?;
            // A number that the type does not have is the key of no group.
            let exact = cast(&numbers, data_type).ok()?;
            (arrow::array::Array::null_count(&exact) == 0).then_some(exact)
        }
        DataType::Int64 => Some(Arc::new(numbers()?)),
        DataType::Timestamp(TimeUnit::Microsecond, _) => cast(&numbers()?, data_type).ok(),
        DataType::Date32 => {
            let days = cast(&numbers()?, &DataType::Int32).ok()?;
            cast(&days, data_type).ok()
        }
        _ => None,
    }
}
