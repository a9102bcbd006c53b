//! A relation that nothing of a question gets into that could tell what it hides.
//!
//! A planner moves conditions towards the rows, next to those that are there already, and evaluates them in any
//! order. A condition of a caller that fails on a row, and says its value, must not be asked about rows that a
//! filter hides from the caller. So a relation with filters is planned by itself, and is a leaf of every question. What
//! can't fail on any row, such as a comparison of a column that is shown as it is with a value, is let through: it leaves
//! out files and rows early.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DataFusionError, Result, ScalarValue};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::expr::Cast;
use datafusion::logical_expr::{
    BinaryExpr, Expr, LogicalPlan, LogicalPlanBuilder, Operator, TableProviderFilterPushDown, TableType,
    ident,
};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use highwater_event::search::Search;

/// The rows of a plan, as a relation.
#[derive(Debug)]
pub(super) struct Behind {
    plan: LogicalPlan,
    schema: SchemaRef,
    /// Columns that are shown as they are.
    open: BTreeSet<String>,
}

impl Behind {
    /// Puts a plan behind the wall; `hidden` are the columns in whose place something else is shown.
    pub(super) fn new(plan: LogicalPlan, hidden: &[&str]) -> Self {
        let schema = Arc::new(plan.schema().as_arrow().clone());
        let names = schema.fields().iter().map(|field| field.name());
        let open = names.filter(|name| !hidden.contains(&name.as_str())).cloned().collect();
        Self { plan, schema, open }
    }

    /// What is behind it.
    pub(super) fn plan(&self) -> &LogicalPlan {
        &self.plan
    }

    /// Whether a condition may be asked about rows that are hidden: it can't fail on any, so nobody learns of them.
    fn lets_through(&self, condition: &Expr) -> bool {
        use Operator::{And, Eq, Gt, GtEq, Lt, LtEq, NotEq, Or};
        match condition {
            Expr::BinaryExpr(BinaryExpr { left, op: And | Or, right }) => {
                self.lets_through(left) && self.lets_through(right)
            }
            Expr::BinaryExpr(BinaryExpr { left, op: Eq | NotEq | Lt | LtEq | Gt | GtEq, right }) => {
                self.is_plain(left) && self.is_plain(right)
            }
            Expr::Not(inner) => self.lets_through(inner),
            Expr::IsNull(inner) | Expr::IsNotNull(inner) => self.is_plain(inner),
            Expr::Between(between) => {
                [&between.expr, &between.low, &between.high].into_iter().all(|part| self.is_plain(part))
            }
            Expr::InList(list) => self.is_plain(&list.expr) && list.list.iter().all(|it| self.is_plain(it)),
            Expr::Like(like) => {
                self.is_plain(&like.expr)
                    && matches!(*like.pattern, Expr::Literal(..))
                    && !like.case_insensitive
            }
            Expr::ScalarFunction(function) if function.name() == "starts_with" => {
                function.args.iter().all(|argument| self.is_plain(argument))
            }
            Expr::ScalarFunction(function) if function.name() == "matches" => self.is_search(&function.args),
            Expr::Literal(ScalarValue::Boolean(_), _) => true,
            _ => false,
        }
    }

    /// Whether a column that is shown as it is, or the JSON in it, is searched for what can be searched for.
    fn is_search(&self, arguments: &[Expr]) -> bool {
        let [text, Expr::Literal(search, _)] = arguments else { return false };
        let text = match text {
            Expr::ScalarFunction(function) if function.name() == "json" => function.args.first(),
            plain => Some(plain),
        };
        let readable = search.try_as_str().flatten().is_some_and(|search| Search::read(search).is_ok());
        readable && text.is_some_and(|text| self.is_plain(text))
    }

    /// A value, or a column that is shown as it is; in another form of the same type at most.
    fn is_plain(&self, expression: &Expr) -> bool {
        match expression {
            Expr::Literal(..) => true,
            Expr::Column(column) => self.open.contains(&column.name),
            Expr::Cast(Cast { expr, field }) => match &**expr {
                Expr::Column(column) => {
                    self.open.contains(&column.name) && self.is_same(column, field.data_type())
                }
                _ => false,
            },
            _ => false,
        }
    }

    /// Whether a column has every one of its values in another type, too.
    fn is_same(&self, column: &Column, other: &DataType) -> bool {
        let Ok(field) = self.schema.field_with_name(&column.name) else { return false };
        let text = |it: &DataType| matches!(it, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
        match (field.data_type(), other) {
            (one, other) if one == other => true,
            (one, other) if text(one) => text(other),
            (DataType::Int32, DataType::Int64) => true,
            _ => false,
        }
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

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let through = |filter: &&Expr| match self.lets_through(filter) {
            // It is part of the plan inside.
            true => TableProviderFilterPushDown::Exact,
            false => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(through).collect())
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let mut plan = self.plan.clone();
        for filter in filters.iter().filter(|filter| self.lets_through(filter)) {
            // Named as in the question that it comes from; here there is one relation only.
            let bare = filter.clone().transform(|part| match part {
                Expr::Column(column) => Ok(Transformed::yes(ident(column.name))),
                other => Ok(Transformed::no(other)),
            });
            plan = LogicalPlanBuilder::new(plan).filter(bare?.data)?.build()?;
        }
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

#[cfg(test)]
mod tests {
    use arrow::datatypes::{Field, Schema};
    use datafusion::datasource::{MemTable, provider_as_source};
    use highwater_event::columns;

    use super::*;
    use crate::session::Engine;

    #[test]
    fn only_what_can_t_fail_and_sees_no_mask_gets_through() {
        let fields = [
            ("actor", DataType::Utf8View),
            ("secret", DataType::Utf8),
            ("n", DataType::Int32),
            ("at", columns::timestamp_type()),
        ];
        let fields: Vec<Field> =
            fields.into_iter().map(|(name, data_type)| Field::new(name, data_type, true)).collect();
        let table = MemTable::try_new(Arc::new(Schema::new(fields)), vec![Vec::new()]).unwrap();
        let plan = LogicalPlanBuilder::scan("rows", provider_as_source(Arc::new(table)), None).unwrap();
        let behind = Behind::new(plan.build().unwrap(), &["secret"]);
        let engine = Engine::new([7; 32], 64 << 20).unwrap();
        let through = |sql: &str| {
            let condition = engine.state().create_logical_expr(sql, behind.plan.schema()).unwrap();
            behind.lets_through(&condition)
        };
        for good in [
            "actor = 'ada'",
            "actor <> 'ada' AND (n >= 5 OR at IS NULL)",
            "starts_with(actor, 'a')",
            "actor LIKE 'a%'",
            "n BETWEEN 1 AND 5",
            "actor IN ('a', 'b')",
            "NOT n = 3",
            "at < to_timestamp_micros(5) IS NULL OR true",
            "matches(actor, 'ada -bob')",
            "matches(json(actor), 'ada')",
        ] {
            // A function of values alone is a value by the time that a plan is made.
            assert!(through(good) || good.contains("to_timestamp"), "{good}");
        }
        for bad in [
            "secret = 'x'",
            "actor = secret",
            "CAST(actor AS INT) = 5",
            "1 / n > 0",
            "n + 1 > 5",
            "length(actor) > 3",
            "regexp_like(actor, 'a')",
            "actor = 'a' AND CAST(actor AS BIGINT) > 0",
            "actor LIKE secret",
            "starts_with(secret, 'a')",
            "matches(secret, 'a')",
            "matches(actor, secret)",
            "CAST(at AS TEXT) = 'x'",
        ] {
            assert!(!through(bad), "{bad}");
        }
    }
}
