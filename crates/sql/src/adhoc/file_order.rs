//! Files that are in order are read in order. Limits that are pushed down to a scan can make DataFusion (55) forget that what
//! lies above relies on it: its readers then take files from each other as they come, and rows come out in a wrong order.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::datasource::source::DataSourceExec;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};

/// Tells scans of files that are in order to keep it.
#[derive(Debug)]
pub(super) struct KeepFileOrder;

impl PhysicalOptimizerRule for KeepFileOrder {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _options: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_down(|plan| {
            let in_order = plan.is::<DataSourceExec>() && plan.output_ordering().is_some();
            let kept = if in_order { plan.with_preserve_order(true) } else { None };
            Ok(kept.map_or_else(|| Transformed::no(plan), Transformed::yes))
        })
        .data()
    }

    fn name(&self) -> &str {
        "KeepFileOrder"
    }

    fn schema_check(&self) -> bool {
        true
    }
}
