//! Rows in memory as a relation that knows within which bounds they lie. Joins are put in order by what is known about
//! their sides, and a union knows only what all of its branches know: without bounds, a few rows of the log would hide
//! what is known about the lake's files.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::compute::{max, min};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Field, Int32Type, Int64Type, SchemaRef, TimeUnit,
    TimestampMicrosecondType,
};
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::catalog::memory::MemorySourceConfig;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Result, ScalarValue, Statistics};
use datafusion::datasource::source::{DataSource, DataSourceExec};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_expr::{EquivalenceProperties, LexOrdering, Partitioning, PhysicalExpr};
use datafusion::physical_plan::execution_plan::SchedulingType;
use datafusion::physical_plan::{DisplayFormatType, ExecutionPlan};

/// Rows in memory.
#[derive(Debug)]
pub(super) struct Held {
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
}

impl Held {
    pub(super) fn new(schema: SchemaRef, batches: Vec<RecordBatch>) -> Self {
        Self { schema, batches }
    }

    /// Lowest and highest value of a column, where it has any that plans ask for.
    fn bounds(&self, column: usize) -> Option<(ScalarValue, ScalarValue)> {
        let field = self.schema.field(column);
        match field.data_type() {
            DataType::Int32 => self.bounds_of::<Int32Type>(column, field),
            DataType::Int64 => self.bounds_of::<Int64Type>(column, field),
            DataType::Date32 => self.bounds_of::<Date32Type>(column, field),
            DataType::Timestamp(TimeUnit::Microsecond, _) => {
                self.bounds_of::<TimestampMicrosecondType>(column, field)
            }
            _ => None,
        }
    }

    fn bounds_of<T: ArrowPrimitiveType>(
        &self,
        column: usize,
        field: &Field,
    ) -> Option<(ScalarValue, ScalarValue)>
    where
        T::Native: Ord,
    {
        let columns = || {
            let columns = self.batches.iter().map(move |batch| batch.column(column));
            columns.filter_map(|column| column.as_primitive_opt::<T>())
        };
        let lowest = columns().filter_map(min).min()?;
        let highest = columns().filter_map(max).max()?;
        let value = |native| ScalarValue::new_primitive::<T>(Some(native), field.data_type()).ok();
        Some((value(lowest)?, value(highest)?))
    }
}

#[async_trait]
impl TableProvider for Held {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let rows = std::slice::from_ref(&self.batches);
        let source = MemorySourceConfig::try_new(rows, self.schema.clone(), projection.cloned())?;
        let mut known = source.partition_statistics(None)?.as_ref().clone();
        let all: Vec<usize> = (0..self.schema.fields().len()).collect();
        for (column, statistics) in projection.unwrap_or(&all).iter().zip(&mut known.column_statistics) {
            // Bounds guide plans; no answer is made of them.
            if let Some((lowest, highest)) = self.bounds(*column) {
                statistics.min_value = Precision::Inexact(lowest);
                statistics.max_value = Precision::Inexact(highest);
            }
        }
        Ok(DataSourceExec::from_data_source(Bounded { source, known: Arc::new(known) }))
    }
}

/// DataFusion's rows in memory, and their bounds.
#[derive(Debug, Clone)]
struct Bounded {
    source: MemorySourceConfig,
    known: Arc<Statistics>,
}

impl Bounded {
    /// The same rows, divided in another way.
    fn with(&self, source: Arc<dyn DataSource>) -> Option<Arc<dyn DataSource>> {
        let source: Arc<dyn Any + Send + Sync> = source;
        let source = source.downcast::<MemorySourceConfig>().ok()?;
        Some(Arc::new(Self { source: source.as_ref().clone(), known: self.known.clone() }))
    }
}

impl DataSource for Bounded {
    fn open(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        self.source.open(partition, context)
    }

    fn fmt_as(&self, format: DisplayFormatType, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt_as(format, formatter)
    }

    fn repartitioned(
        &self,
        partitions: usize,
        least_bytes: usize,
        order: Option<LexOrdering>,
    ) -> Result<Option<Arc<dyn DataSource>>> {
        let divided = self.source.repartitioned(partitions, least_bytes, order)?;
        Ok(divided.and_then(|divided| self.with(divided)))
    }

    fn output_partitioning(&self) -> Partitioning {
        self.source.output_partitioning()
    }

    fn eq_properties(&self) -> EquivalenceProperties {
        self.source.eq_properties()
    }

    fn scheduling_type(&self) -> SchedulingType {
        self.source.scheduling_type()
    }

    fn partition_statistics(&self, partition: Option<usize>) -> Result<Arc<Statistics>> {
        match partition {
            None => Ok(self.known.clone()),
            some => self.source.partition_statistics(some),
        }
    }

    fn with_fetch(&self, limit: Option<usize>) -> Option<Arc<dyn DataSource>> {
        // What is known is of all rows; fewer have their own.
        self.source.with_fetch(limit)
    }

    fn fetch(&self) -> Option<usize> {
        self.source.fetch()
    }

    fn try_swapping_with_projection(
        &self,
        projection: &ProjectionExprs,
    ) -> Result<Option<Arc<dyn DataSource>>> {
        self.source.try_swapping_with_projection(projection)
    }

    fn apply_expressions(
        &self,
        visit: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        self.source.apply_expressions(visit)
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Date32Array, Int64Array, StringArray};
    use arrow::datatypes::Schema;
    use datafusion::prelude::SessionContext;

    use super::*;

    fn rows(numbers: Vec<Option<i64>>, days: Vec<Option<i32>>) -> RecordBatch {
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["t"; numbers.len()]));
        let columns = vec![texts, Arc::new(Int64Array::from(numbers)), Arc::new(Date32Array::from(days))];
        RecordBatch::try_new(schema(), columns).unwrap()
    }

    fn schema() -> SchemaRef {
        let field = |name, data_type| Field::new(name, data_type, true);
        let fields =
            [field("text", DataType::Utf8), field("n", DataType::Int64), field("day", DataType::Date32)];
        Arc::new(Schema::new(fields.to_vec()))
    }

    /// Bounds of the columns of a plan, and its rows.
    async fn known(batches: Vec<RecordBatch>, projection: &[usize]) -> Arc<Statistics> {
        let held = Held::new(schema(), batches);
        let context = SessionContext::new();
        let plan = held.scan(&context.state(), Some(&projection.to_vec()), &[], None).await.unwrap();
        let source = plan.downcast_ref::<DataSourceExec>().unwrap();
        source.data_source().partition_statistics(None).unwrap()
    }

    #[tokio::test]
    async fn bounds_are_those_of_all_batches_in_the_order_of_the_projection() {
        let batches = vec![
            rows(vec![Some(5), None], vec![None, None]),
            rows(vec![Some(-3), Some(4)], vec![Some(7), None]),
        ];
        let known = known(batches, &[2, 1, 0]).await;
        assert_eq!(known.num_rows, Precision::Exact(4));
        let bounds = |column: usize| {
            let column = &known.column_statistics[column];
            (column.min_value.clone(), column.max_value.clone())
        };
        let day = Precision::Inexact(ScalarValue::Date32(Some(7)));
        assert_eq!(bounds(0), (day.clone(), day));
        let number = |value| Precision::Inexact(ScalarValue::Int64(Some(value)));
        assert_eq!(bounds(1), (number(-3), number(5)));
        assert_eq!(bounds(2), (Precision::Absent, Precision::Absent), "texts have none");
    }

    #[tokio::test]
    async fn no_rows_have_no_bounds() {
        for batches in [Vec::new(), vec![rows(vec![None], vec![None])]] {
            let known = known(batches, &[1]).await;
            assert_eq!(known.column_statistics[0].min_value, Precision::Absent);
        }
    }
}
