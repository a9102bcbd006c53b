//! Queries that follow a stream: rows of the log are put through one plan as they come.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::{LogicalPlan, LogicalPlanBuilder};
use datafusion::sql::sqlparser::ast::Query;
use highwater_event::StreamSchema;

use super::lens::Lens;
use super::relation::sensitive_columns;
use crate::dialect::SqlError;
use crate::plan::{as_statement, reads_of};
use crate::session::Engine;
use crate::stream::feed::{FeedPlan, FeedTable};

/// A planned query over one stream.
#[derive(Debug)]
pub struct LiveQuery {
    plan: FeedPlan,
}

/// The stream that a query follows row by row; `None` when it asks for more than that: joins, groups,
/// an order. Such a query can be asked again whenever something has changed.
pub fn followed(query: &Query) -> Option<highwater_event::StreamName> {
    let mut query = query.clone();
    let reads = reads_of(&mut query).ok()?;
    let select = query.body.as_select()?;
    let grouped = !matches!(&select.group_by, datafusion::sql::sqlparser::ast::GroupByExpr::Expressions(by, _) if by.is_empty());
    (reads.join.is_none() && !grouped && select.having.is_none()).then_some(reads.source)
}

impl LiveQuery {
    /// Plans a query over a stream as it is seen through a lens. `None` when it
    /// aggregates.
    pub async fn plan(
        engine: &Engine,
        stream: &StreamSchema,
        query: Box<Query>,
        lens: &Lens,
        may_look_up: bool,
    ) -> Result<Option<Self>, SqlError> {
        let schema = stream.reader_schema();
        let feed = Arc::new(FeedTable::new(schema.clone()));
        let scan = LogicalPlanBuilder::scan("log", provider_as_source(feed.clone()), None)?.build()?;
        let rows = lens.relation(engine, scan, &schema, &sensitive_columns(stream))?;
        let state = engine.state_with([(stream.name.public().to_owned(), rows)])?;
        let context = datafusion::prelude::SessionContext::new_with_state(state);
        super::withhold(&context, may_look_up);
        let state = context.state();
        let planned = state.statement_to_plan(as_statement(query)).await?;
        if aggregates(&planned) {
            return Ok(None);
        }
        let physical = super::physical(&state, &planned).await?;
        Ok(Some(Self { plan: feed.runner(physical, state.task_ctx()) }))
    }

    /// The columns of its rows.
    pub fn schema(&self) -> SchemaRef {
        self.plan.schema()
    }

    /// What it answers for some rows of the stream.
    pub async fn run(&self, rows: RecordBatch) -> Result<Vec<RecordBatch>, SqlError> {
        Ok(self.plan.run(rows).await?)
    }
}

fn aggregates(plan: &LogicalPlan) -> bool {
    matches!(plan, LogicalPlan::Aggregate(_) | LogicalPlan::Distinct(_) | LogicalPlan::Window(_))
        || plan.inputs().into_iter().any(aggregates)
}
