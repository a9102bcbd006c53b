//! A leaf of a physical plan whose rows are exchanged between executions, so that a statement is
//! planned once and run for every micro-batch.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result, internal_err, project_schema};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{
    Boundedness, EmissionType, SchedulingType, reset_plan_states,
};
use datafusion::physical_plan::memory::MemoryStream;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties, collect,
};

type Slot = Arc<Mutex<Vec<RecordBatch>>>;

/// The relation that a statement reads, as far as planning is concerned.
#[derive(Debug)]
pub struct FeedTable {
    schema: SchemaRef,
    slot: Slot,
}

impl FeedTable {
    /// A relation with these columns.
    pub fn new(schema: SchemaRef) -> Self {
        Self { schema, slot: Slot::default() }
    }

    /// The plan that reads this relation, ready to be run again and again.
    pub fn runner(&self, plan: Arc<dyn ExecutionPlan>, context: Arc<TaskContext>) -> FeedPlan {
        let stateless = is_stateless(plan.as_ref());
        FeedPlan { plan, context, slot: self.slot.clone(), stateless, running: tokio::sync::Mutex::new(()) }
    }
}

/// Nodes that keep nothing between two executions.
fn is_stateless(plan: &dyn ExecutionPlan) -> bool {
    matches!(
        plan.name(),
        "FeedExec" | "FilterExec" | "ProjectionExec" | "CooperativeExec" | "CoalesceBatchesExec"
    ) && plan.children().into_iter().all(|child| is_stateless(child.as_ref()))
}

/// A planned statement.
pub struct FeedPlan {
    plan: Arc<dyn ExecutionPlan>,
    context: Arc<TaskContext>,
    slot: Slot,
    stateless: bool,
    /// The slot holds the rows of one run at a time.
    running: tokio::sync::Mutex<()>,
}

impl fmt::Debug for FeedPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FeedPlan").field("plan", &self.plan.name()).finish_non_exhaustive()
    }
}

impl FeedPlan {
    /// Runs the statement over some rows.
    pub async fn run(&self, rows: RecordBatch) -> Result<Vec<RecordBatch>, DataFusionError> {
        let _one_at_a_time = self.running.lock().await;
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = vec![rows];
        let plan = if self.stateless { self.plan.clone() } else { reset_plan_states(self.plan.clone())? };
        let outcome = collect(plan, self.context.clone()).await;
        self.slot.lock().unwrap_or_else(PoisonError::into_inner).clear();
        outcome
    }

    /// The columns of the result.
    pub fn schema(&self) -> SchemaRef {
        self.plan.schema()
    }
}

#[async_trait]
impl TableProvider for FeedTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _session: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(FeedExec::new(&self.schema, projection.cloned(), self.slot.clone())?))
    }
}

#[derive(Debug)]
struct FeedExec {
    projection: Option<Vec<usize>>,
    slot: Slot,
    properties: Arc<PlanProperties>,
}

impl FeedExec {
    fn new(schema: &SchemaRef, projection: Option<Vec<usize>>, slot: Slot) -> Result<Self> {
        let output = project_schema(schema, projection.as_ref())?;
        let properties = PlanProperties::new(
            EquivalenceProperties::new(output),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        )
        .with_scheduling_type(SchedulingType::Cooperative);
        Ok(Self { projection, slot, properties: Arc::new(properties) })
    }
}

impl DisplayAs for FeedExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FeedExec")
    }
}

impl ExecutionPlan for FeedExec {
    fn name(&self) -> &str {
        "FeedExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
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

    fn execute(&self, partition: usize, _context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        if partition != 0 {
            return internal_err!("a feed has one partition");
        }
        let rows = self.slot.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Box::pin(MemoryStream::try_new(rows, self.schema(), self.projection.clone())?))
    }
}
