//! A relation that nothing of a question gets into.
//!
//! A planner moves conditions towards the rows, next to those that are there already, and evaluates them in any
//! order. A condition of a caller that fails on a row, and says its value, must not be asked about rows that a
//! filter hides from the caller. So a relation with filters is planned by itself, and is a leaf of every question.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, TableType, ident};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};

/// The rows of a plan, as a relation.
#[derive(Debug)]
pub(super) struct Behind {
    plan: LogicalPlan,
    schema: SchemaRef,
}

impl Behind {
    /// Puts a plan behind the wall.
    pub(super) fn new(plan: LogicalPlan) -> Self {
        let schema = Arc::new(plan.schema().as_arrow().clone());
        Self { plan, schema }
    }
}

#[async_trait]
impl TableProvider for Behind {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let mut plan = self.plan.clone();
        if let Some(projection) = projection {
            let columns = projection.iter().map(|at| ident(self.schema.field(*at).name()));
            plan = LogicalPlanBuilder::new(plan).project(columns.collect::<Vec<_>>())?.build()?;
        }
        let inner = session.create_physical_plan(&plan).await?;
        Ok(Arc::new(BehindExec { inner }))
    }
}

/// Runs a plan that no rule of the planner sees.
#[derive(Debug)]
struct BehindExec {
    inner: Arc<dyn ExecutionPlan>,
}

impl DisplayAs for BehindExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BehindExec")
    }
}

impl ExecutionPlan for BehindExec {
    fn name(&self) -> &str {
        "BehindExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.inner.properties()
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _visit: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream, DataFusionError> {
        self.inner.execute(partition, context)
    }
}
