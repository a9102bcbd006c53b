//! What windows may take. DataFusion has no account of the rows that they keep, nor of the values that they
//! answer: a long text that is the first of a window is its answer for every row.

use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, FieldRef, SchemaRef};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::utils::memory::RecordBatchMemoryCounter;
use datafusion::common::{DFSchema, Result, ScalarValue, internal_err, not_impl_err};
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::function::{
    AccumulatorArgs, ExpressionArgs, PartitionEvaluatorArgs, StateFieldsArgs, WindowUDFFieldArgs,
};
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Expr, ExprSchemable, LimitEffect, PartitionEvaluator,
    Signature, WindowFrameBound, WindowFrameUnits, WindowFunctionDefinition, WindowUDF, WindowUDFImpl,
};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::windows::WindowAggExec;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties,
    ReplaceChildrenOptions,
};
use futures::StreamExt;

use super::budget::{MOST_HELD, size, too_much};
use super::shared::is_wide;
use crate::functions::{COLLECT_LIST, COLLECT_SET};

/// Aggregates that keep what they are given.
const GATHERING: [&str; 4] = ["string_agg", "array_agg", COLLECT_LIST, COLLECT_SET];

/// Rows before or after another one that they may gather.
const LONGEST_FRAME: u64 = 1000;

/// Values up to so many bytes are taken for part of their rows.
const SHORT: usize = 4096;

/// Refuses a text or list for every row that may be as long as all rows together, and counts others.
pub(super) fn bounded(expression: Expr, input: &DFSchema) -> Result<Transformed<Expr>> {
    expression.transform_up(|expression| {
        let Expr::WindowFunction(mut call) = expression else { return Ok(Transformed::no(expression)) };
        let frame = &call.params.window_frame;
        let is_short = |bound: &WindowFrameBound| match bound {
            WindowFrameBound::CurrentRow => true,
            WindowFrameBound::Preceding(rows) | WindowFrameBound::Following(rows) => {
                matches!(rows, ScalarValue::UInt64(Some(rows)) if *rows <= LONGEST_FRAME)
            }
        };
        let short =
            frame.units == WindowFrameUnits::Rows && is_short(&frame.start_bound) && is_short(&frame.end_bound);
        if !short && GATHERING.contains(&call.fun.name()) {
            return not_impl_err!(
                "{}() over a long window would gather as many rows in every row; array_agg() takes frames such as ROWS BETWEEN 100 PRECEDING AND CURRENT ROW, up to {LONGEST_FRAME}",
                call.fun.name()
            );
        }
        let expression = Expr::WindowFunction(call.clone());
        if !is_wide(&expression.get_type(input)?) {
            return Ok(Transformed::no(expression));
        }
        if call.params.filter.is_some() {
            return not_impl_err!(
                "{}() of texts or lists over a window can't have a FILTER; CASE WHEN … THEN … END inside of it does the same",
                call.fun.name()
            );
        }
        let long = Arc::new(AtomicUsize::new(0));
        call.fun = match call.fun {
            WindowFunctionDefinition::AggregateUDF(function) => {
                let counted = AggregateUDF::from(Counted { function, long });
                WindowFunctionDefinition::AggregateUDF(Arc::new(counted))
            }
            WindowFunctionDefinition::WindowUDF(function) => {
                let counted = WindowUDF::from(Counted { function, long });
                WindowFunctionDefinition::WindowUDF(Arc::new(counted))
            }
        };
        Ok(Transformed::yes(Expr::WindowFunction(call)))
    })
}

/// A function whose long answers are counted.
#[derive(Debug)]
struct Counted<F> {
    function: Arc<F>,
    long: Arc<AtomicUsize>,
}

impl<F: PartialEq> PartialEq for Counted<F> {
    fn eq(&self, other: &Self) -> bool {
        self.function == other.function
    }
}

impl<F: Eq> Eq for Counted<F> {}

impl<F: Hash> Hash for Counted<F> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.function.hash(state);
    }
}

/// Counts an answer, which so many rows may get, when it is long.
fn count(long: &AtomicUsize, answer: ScalarValue, rows: usize) -> Result<ScalarValue> {
    let bytes = size(&answer);
    let all = bytes.saturating_mul(rows.max(1));
    if bytes > SHORT && long.fetch_add(all, Ordering::Relaxed).saturating_add(all) > MOST_HELD {
        return Err(too_much(format!(
            "a window answers long values for so many rows that they take more than {} MiB",
            MOST_HELD >> 20
        )));
    }
    Ok(answer)
}

impl AggregateUDFImpl for Counted<AggregateUDF> {
    fn name(&self) -> &str {
        self.function.name()
    }

    fn signature(&self) -> &Signature {
        self.function.signature()
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        self.function.return_type(arguments)
    }

    fn return_field(&self, arguments: &[FieldRef]) -> Result<FieldRef> {
        self.function.return_field(arguments)
    }

    fn is_nullable(&self) -> bool {
        self.function.is_nullable()
    }

    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        self.function.coerce_types(arguments)
    }

    fn state_fields(&self, arguments: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        self.function.state_fields(arguments)
    }

    fn default_value(&self, data_type: &DataType) -> Result<ScalarValue> {
        self.function.default_value(data_type)
    }

    fn accumulator(&self, arguments: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let inner = self.function.accumulator(arguments)?;
        Ok(Box::new(CountedAccumulator { inner, long: self.long.clone(), rows: 0 }))
    }

    fn create_sliding_accumulator(&self, arguments: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let inner = self.function.create_sliding_accumulator(arguments)?;
        Ok(Box::new(CountedAccumulator { inner, long: self.long.clone(), rows: 0 }))
    }
}

impl WindowUDFImpl for Counted<WindowUDF> {
    fn name(&self) -> &str {
        self.function.name()
    }

    fn signature(&self) -> &Signature {
        self.function.signature()
    }

    fn expressions(&self, arguments: ExpressionArgs) -> Vec<Arc<dyn PhysicalExpr>> {
        self.function.expressions(arguments)
    }

    fn partition_evaluator(&self, arguments: PartitionEvaluatorArgs) -> Result<Box<dyn PartitionEvaluator>> {
        let inner = self.function.partition_evaluator_factory(arguments)?;
        Ok(Box::new(CountedEvaluator { inner, long: self.long.clone() }))
    }

    fn field(&self, arguments: WindowUDFFieldArgs) -> Result<FieldRef> {
        self.function.field(arguments)
    }

    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        self.function.coerce_types(arguments)
    }

    fn limit_effect(&self, arguments: &[Arc<dyn PhysicalExpr>]) -> LimitEffect {
        self.function.inner().limit_effect(arguments)
    }
}

#[derive(Debug)]
struct CountedAccumulator {
    inner: Box<dyn Accumulator>,
    long: Arc<AtomicUsize>,
    /// Rows since the last answer: where a window is all of a partition, all of them get one answer.
    rows: usize,
}

impl Accumulator for CountedAccumulator {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.rows += values.first().map_or(0, |values| values.len());
        self.inner.update_batch(values)
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.inner.retract_batch(values)
    }

    fn supports_retract_batch(&self) -> bool {
        self.inner.supports_retract_batch()
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.inner.merge_batch(states)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.inner.state()
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        count(&self.long, self.inner.evaluate()?, std::mem::take(&mut self.rows))
    }

    fn size(&self) -> usize {
        self.inner.size()
    }
}

#[derive(Debug)]
struct CountedEvaluator {
    inner: Box<dyn PartitionEvaluator>,
    long: Arc<AtomicUsize>,
}

impl PartitionEvaluator for CountedEvaluator {
    fn memoize(&mut self, state: &mut datafusion::logical_expr::window_state::WindowAggState) -> Result<()> {
        self.inner.memoize(state)
    }

    fn get_range(&self, row: usize, rows: usize) -> Result<Range<usize>> {
        self.inner.get_range(row, rows)
    }

    fn is_causal(&self) -> bool {
        self.inner.is_causal()
    }

    fn evaluate_all(&mut self, values: &[ArrayRef], rows: usize) -> Result<ArrayRef> {
        self.inner.evaluate_all(values, rows)
    }

    fn evaluate(&mut self, values: &[ArrayRef], range: &Range<usize>) -> Result<ScalarValue> {
        count(&self.long, self.inner.evaluate(values, range)?, 1)
    }

    fn evaluate_all_with_rank(&self, rows: usize, ranks: &[Range<usize>]) -> Result<ArrayRef> {
        self.inner.evaluate_all_with_rank(rows, ranks)
    }

    fn supports_bounded_execution(&self) -> bool {
        self.inner.supports_bounded_execution()
    }

    fn uses_window_frame(&self) -> bool {
        self.inner.uses_window_frame()
    }

    fn include_rank(&self) -> bool {
        self.inner.include_rank()
    }
}

/// Puts the rows that a window keeps to its end on the account of memory.
#[derive(Debug)]
pub(super) struct AccountForWindows;

impl PhysicalOptimizerRule for AccountForWindows {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _options: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|plan| {
            let Some(window) = plan.downcast_ref::<WindowAggExec>() else { return Ok(Transformed::no(plan)) };
            let kept: Arc<dyn ExecutionPlan> = Arc::new(Kept { input: window.input().clone() });
            let same = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Keep);
            plan.replace_children(vec![kept], same).map(Transformed::yes)
        })
        .data()
    }

    fn name(&self) -> &str {
        "AccountForWindows"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// Rows that whoever reads them keeps.
#[derive(Debug)]
struct Kept {
    input: Arc<dyn ExecutionPlan>,
}

impl DisplayAs for Kept {
    fn fmt_as(&self, _type: DisplayFormatType, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Kept")
    }
}

impl ExecutionPlan for Kept {
    fn name(&self) -> &str {
        "Kept"
    }

    fn schema(&self) -> SchemaRef {
        self.input.schema()
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.input.properties()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _visit: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.is_empty()) {
            (Some(input), true) => Ok(Arc::new(Self { input })),
            _ => internal_err!("kept rows come from one input"),
        }
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let account = MemoryConsumer::new("rows of a window").register(context.memory_pool());
        // Batches may be parts of the same arrays.
        let mut counter = RecordBatchMemoryCounter::new();
        let rows = self.input.execute(partition, context)?.map(move |batch| {
            let batch = batch?;
            // They are put together at the end, and are there twice then.
            account.try_grow(2 * counter.count_batch(&batch))?;
            Ok(batch)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), rows)))
    }
}
