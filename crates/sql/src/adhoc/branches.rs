//! The newest rows of a stream are asked for all the time: of the lake, whose files are in that order, and
//! of the log, which is not. The planner would sort both together, and read the lake's files for it.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::physical_expr::LexOrdering;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::limit::LocalLimitExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};

/// Sorts the branches of a union instead of the union when only some rows are wanted and a branch is in
/// order already: that branch is read only as far as it is wanted.
#[derive(Debug)]
pub(super) struct SortBranches;

impl PhysicalOptimizerRule for SortBranches {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _options: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_down(|plan| {
            let Some((sort, fetch)) =
                plan.downcast_ref::<SortExec>().and_then(|sort| Some((sort, sort.fetch()?)))
            else {
                return Ok(Transformed::no(plan));
            };
            // The merge above it brings the partitions together.
            if !sort.preserve_partitioning() || !sort.input().is::<UnionExec>() {
                return Ok(Transformed::no(plan));
            }
            let (branches, found) = sorted(sort.input().children(), sort.expr(), fetch)?;
            if found { UnionExec::try_new(branches).map(Transformed::yes) } else { Ok(Transformed::no(plan)) }
        })
        .data()
    }

    fn name(&self) -> &str {
        "SortBranches"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// The first `fetch` rows of each branch in order, and whether one of them was in order before.
fn sorted(
    branches: Vec<&Arc<dyn ExecutionPlan>>,
    order: &LexOrdering,
    fetch: usize,
) -> Result<(Vec<Arc<dyn ExecutionPlan>>, bool)> {
    let mut found = false;
    let mut sorted: Vec<Arc<dyn ExecutionPlan>> = Vec::with_capacity(branches.len());
    for branch in branches {
        let branch = branch.clone();
        if branch.equivalence_properties().ordering_satisfy(order.clone())? {
            found = true;
            // A limit of its own stays.
            let rows = branch.fetch().map_or(fetch, |own| own.min(fetch));
            let limited = branch.with_fetch(Some(rows));
            sorted.push(limited.unwrap_or_else(|| Arc::new(LocalLimitExec::new(branch, rows))));
        } else {
            let sort = SortExec::new(order.clone(), branch).with_fetch(Some(fetch));
            sorted.push(Arc::new(sort.with_preserve_partitioning(true)));
        }
    }
    Ok((sorted, found))
}
