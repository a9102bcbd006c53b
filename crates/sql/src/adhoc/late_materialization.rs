//! How the lake's files are read: rows that are wanted are picked while columns are read, one condition after the other (late
//! materialization), or all rows are read and conditions asked afterwards. Picking pays where few rows are wanted; where many are, the bookkeeping of which
//! ones costs more than reading them all, and filters that a join learns from its other side, which often let nearly all rows through, make it worse.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::datasource::physical_plan::{FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::expressions::{BinaryExpr, Column, Literal};
use datafusion::physical_expr::{PhysicalExpr, split_conjunction};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::limit::{GlobalLimitExec, LocalLimitExec};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{ExecutionPlan, replace_children_if_necessary};

/// Lets scans pick rows below a limit, and below a condition that a column equals a value. The lake's relation
/// decides for all others.
#[derive(Debug)]
pub(super) struct PickFewRows;

impl PhysicalOptimizerRule for PickFewRows {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _options: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        pick(plan, false)
    }

    fn name(&self) -> &str {
        "PickFewRows"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// `few`: whether few of the plan's rows are wanted.
fn pick(plan: Arc<dyn ExecutionPlan>, few: bool) -> Result<Arc<dyn ExecutionPlan>> {
    if let Some(scan) = plan.downcast_ref::<DataSourceExec>() {
        let picking = if few { picking(scan) } else { None };
        return Ok(picking.unwrap_or(plan));
    }
    let few = if let Some(sort) = plan.downcast_ref::<SortExec>() {
        sort.fetch().is_some()
    } else if let Some(filter) = plan.downcast_ref::<FilterExec>() {
        few || filter.fetch().is_some() || split_conjunction(filter.predicate()).into_iter().any(is_one_value)
    } else if plan.is::<GlobalLimitExec>() || plan.is::<LocalLimitExec>() {
        true
    } else {
        few && (plan.is::<ProjectionExec>() || plan.is::<UnionExec>())
    };
    let children = plan.children().into_iter().map(|child| pick(child.clone(), few));
    let children = children.collect::<Result<Vec<_>>>()?;
    replace_children_if_necessary(plan, children)
}

/// The same scan of Parquet files, picking rows while it reads.
fn picking(scan: &DataSourceExec) -> Option<Arc<dyn ExecutionPlan>> {
    let (config, source) = scan.downcast_to_file_source::<ParquetSource>()?;
    let source = Arc::new(source.clone().with_pushdown_filters(true));
    let config = FileScanConfigBuilder::from(config.clone()).with_source(source).build();
    Some(DataSourceExec::from_data_source(config))
}

fn is_one_value(condition: &Arc<dyn PhysicalExpr>) -> bool {
    let Some(comparison) = condition.downcast_ref::<BinaryExpr>() else { return false };
    let is = |column: &Arc<dyn PhysicalExpr>, value: &Arc<dyn PhysicalExpr>| {
        column.is::<Column>() && value.is::<Literal>()
    };
    let (left, right) = (comparison.left(), comparison.right());
    *comparison.op() == Operator::Eq && (is(left, right) || is(right, left))
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, RecordBatch, StringArray};
    use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
    use datafusion::dataframe::DataFrameWriteOptions;
    use datafusion::execution::SessionStateBuilder;
    use datafusion::prelude::{ParquetReadOptions, SessionContext};

    use super::*;

    /// Whether the scan of a question picks rows.
    async fn picks(context: &SessionContext, question: &str) -> bool {
        let plan = context.sql(question).await.unwrap().create_physical_plan().await.unwrap();
        let mut picks = None;
        plan.apply(|node| {
            let scan = node.downcast_ref::<DataSourceExec>();
            if let Some((_, source)) = scan.and_then(|scan| scan.downcast_to_file_source::<ParquetSource>()) {
                picks = Some(source.table_parquet_options().global.pushdown_filters);
            }
            Ok(TreeNodeRecursion::Continue)
        })
        .unwrap();
        picks.unwrap()
    }

    #[tokio::test]
    async fn rows_are_picked_where_few_are_wanted() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rows.parquet");
        let rules = crate::adhoc::physical_rules();
        let state = SessionStateBuilder::new().with_default_features().with_physical_optimizer_rules(rules);
        let context = SessionContext::new_with_state(state.build());
        let rows = RecordBatch::try_from_iter([
            ("n", Arc::new(Int64Array::from(vec![3, 1, 2])) as _),
            ("text", Arc::new(StringArray::from(vec!["a", "b", "c"])) as _),
        ]);
        let rows = context.read_batch(rows.unwrap()).unwrap();
        rows.write_parquet(file.to_str().unwrap(), DataFrameWriteOptions::new(), None).await.unwrap();
        context.register_parquet("t", file.to_str().unwrap(), ParquetReadOptions::default()).await.unwrap();
        for (question, picking) in [
            ("SELECT n FROM t WHERE text > 'a' ORDER BY n LIMIT 2", true),
            ("SELECT n FROM t WHERE text > 'a' LIMIT 2", true),
            ("SELECT n FROM t WHERE text = 'a'", true),
            ("SELECT n FROM t WHERE n > 1 AND 'a' = text", true),
            ("SELECT n FROM t WHERE text > 'a'", false),
            ("SELECT n FROM t WHERE text = 'a' OR n > 1", false),
            ("SELECT text, count(*) FROM t WHERE n > 1 GROUP BY text ORDER BY text LIMIT 1", false),
            (
                "SELECT a.n FROM t AS a JOIN t AS b ON a.n = b.n WHERE a.text > 'a' ORDER BY a.n LIMIT 1",
                false,
            ),
        ] {
            assert_eq!(picks(&context, question).await, picking, "{question}");
        }
    }
}
