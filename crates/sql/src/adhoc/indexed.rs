//! Rows of the lake that an index finds when it finds few of them, and that are read otherwise.

use std::fmt;
use std::sync::Arc;

use arrow::compute::cast;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use async_trait::async_trait;
use datafusion::catalog::memory::MemorySourceConfig;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, DataFusionError, Result};
use datafusion::logical_expr::utils::{conjunction, expr_to_columns};
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType, ident};
use datafusion::physical_expr::expressions::col;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::union::UnionExec;
use highwater_event::{Condition, columns};

use super::index::{RowIndex, condition};
use super::page::Page;

/// Found rows that are unpacked from the index; with more of them the files are read, in order and with all cores.
const MOST_ROWS: u64 = 20_000;
/// Bytes of them.
const MOST_BYTES: usize = 64 << 20;
/// Found rows whose places alone are wanted.
const MOST_PLACES: u64 = 200_000;

/// The files of a lake, and an index over their rows.
pub(super) struct Indexed {
    files: Arc<dyn TableProvider>,
    index: Arc<dyn RowIndex>,
}

impl Indexed {
    pub(super) fn new(files: Arc<dyn TableProvider>, index: Arc<dyn RowIndex>) -> Self {
        Self { files, index }
    }

    /// What is asked of the index for a filter; `None` when it is asked of the rows.
    fn condition(&self, filter: &Expr) -> Option<Condition> {
        condition(filter).filter(|condition| self.index.knows(condition))
    }

    /// The rows that an index finds, with some columns; `None` when the files are to be read.
    fn found(
        &self,
        condition: &Condition,
        wanted: &SchemaRef,
        limit: Option<usize>,
    ) -> Result<Option<RecordBatch>> {
        let failed = |error: crate::SqlError| DataFusionError::External(Box::new(error));
        let kept = self.index.schema();
        if !wanted.fields().iter().all(|field| kept.field_with_name(field.name()).is_ok()) {
            return Ok(None);
        }
        let total = self.index.count(condition).map_err(failed)?;
        let options = RecordBatchOptions::new().with_row_count(Some(total as usize));
        if wanted.fields().is_empty() {
            return Ok(Some(RecordBatch::try_new_with_options(wanted.clone(), Vec::new(), &options)?));
        }
        if total > MOST_PLACES {
            return Ok(None);
        }
        let is_place =
            |name: &str| [columns::EVENT_TIME, columns::PARTITION, columns::OFFSET].contains(&name);
        let places = wanted.fields().iter().all(|field| is_place(field.name()));
        if !places && total > MOST_ROWS {
            return Ok(None);
        }
        let limit = limit.map_or(total as usize, |limit| limit.min(total as usize));
        let first = Page { limit, oldest_first: false, after: None };
        let (_, found) = self.index.page(condition, &first).map_err(failed)?;
        if places {
            let positions: Vec<_> = found.iter().map(|found| found.position).collect();
            return Ok(Some(super::page::places(&positions, wanted)?));
        }
        let documents: Vec<u64> = found.iter().map(|found| found.document).collect();
        let Some(rows) = self.index.rows(&documents, MOST_BYTES).map_err(failed)? else { return Ok(None) };
        let columns = wanted.fields().iter().map(|field| {
            let column = rows.column(rows.schema_ref().index_of(field.name())?);
            // Members inside of a column may have other names in the files.
            cast(column, field.data_type())
        });
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        Ok(Some(RecordBatch::try_new_with_options(wanted.clone(), columns, &options)?))
    }

    /// The rows of the files that fit.
    async fn read(
        &self,
        session: &dyn Session,
        wanted: &SchemaRef,
        filters: &[Expr],
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = self.files.schema();
        let Some(filter) = conjunction(filters.iter().map(bare).collect::<Result<Vec<_>>>()?) else {
            let at = wanted.fields().iter().map(|field| schema.index_of(field.name()));
            return self.files.scan(session, Some(&at.collect::<Result<Vec<_>, _>>()?), &[], None).await;
        };
        let mut needed = std::collections::HashSet::new();
        expr_to_columns(&filter, &mut needed)?;
        let is_needed = |name: &str| {
            needed.iter().any(|column| column.name == name) || wanted.field_with_name(name).is_ok()
        };
        let fields = schema.fields().iter().enumerate();
        let at: Vec<usize> = fields.filter(|(_, field)| is_needed(field.name())).map(|(at, _)| at).collect();
        let scan = self.files.scan(session, Some(&at), &[], None).await?;
        let read = scan.schema();
        let condition = session.create_physical_expr(filter, &DFSchema::try_from(read.clone())?)?;
        let filtered = Arc::new(FilterExec::try_new(condition, scan)?);
        let columns =
            wanted.fields().iter().map(|field| Ok((col(field.name(), &read)?, field.name().clone())));
        Ok(Arc::new(ProjectionExec::try_new(columns.collect::<Result<Vec<_>>>()?, filtered)?))
    }
}

/// An expression without the names of relations: here there is one only.
fn bare(expression: &Expr) -> Result<Expr> {
    let bare = expression.clone().transform(|part| match part {
        Expr::Column(column) => Ok(Transformed::yes(ident(column.name))),
        other => Ok(Transformed::no(other)),
    });
    Ok(bare?.data)
}

impl fmt::Debug for Indexed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Indexed").field("index", &self.index).finish_non_exhaustive()
    }
}

#[async_trait]
impl TableProvider for Indexed {
    fn schema(&self) -> SchemaRef {
        self.files.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let known = |filter: &&Expr| match self.condition(filter) {
            // Asked of the index, or else of the rows here: never twice.
            Some(_) => TableProviderFilterPushDown::Exact,
            None => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(known).collect())
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let conditions = filters.iter().map(|filter| self.condition(filter)).collect::<Option<Vec<_>>>();
        let conditions = match conditions {
            Some(conditions) if !conditions.is_empty() => conditions,
            _ => return self.files.scan(session, projection, filters, limit).await,
        };
        let schema = self.files.schema();
        let wanted = match projection {
            Some(projection) => Arc::new(schema.project(projection)?),
            None => schema,
        };
        let Some(found) = self.found(&Condition::All(conditions), &wanted, limit)? else {
            return self.read(session, &wanted, filters).await;
        };
        let found: Arc<dyn ExecutionPlan> =
            MemorySourceConfig::try_new_exec(&[vec![found]], wanted.clone(), None)?;
        let Some(missing) = self.index.missing() else { return Ok(found) };
        let rest = [filters, &[missing]].concat();
        let rest = self.read(session, &wanted, &rest).await?;
        UnionExec::try_new(vec![found, rest])
    }
}
