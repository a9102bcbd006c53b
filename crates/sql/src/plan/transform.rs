//! Planning CREATE STREAM … AS SELECT.

use std::sync::Arc;

use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder};
use datafusion::sql::sqlparser::ast::Query;
use highwater_event::{Column, StreamName, StreamOptions, StreamSchema, columns};

use super::{as_statement, is_system_column, shows_sensitive, storable, system_column};
use crate::dialect::SqlError;
use crate::session::Engine;
use crate::stream::feed::FeedTable;
use crate::stream::transform::Transform;

/// Plans a derived stream over `source`.
pub async fn plan_transform(
    engine: &Engine,
    source: Arc<StreamSchema>,
    name: StreamName,
    mut options: StreamOptions,
    query: Box<Query>,
) -> Result<Transform, SqlError> {
    let feed = Arc::new(FeedTable::new(source.reader_schema()));
    let state = engine.state_with(source.name.as_str(), feed.clone())?;
    let planned = state.statement_to_plan(as_statement(query)).await?;
    let LogicalPlan::Projection(projection) = &planned else {
        return Err(SqlError::unsupported(
            "aggregates belong to CREATE TABLE; a stream is derived row by row",
        ));
    };
    let input = projection.input.clone();
    if contains_aggregate(&input) {
        return Err(SqlError::unsupported(
            "GROUP BY and aggregates belong to CREATE TABLE; a stream is derived row by row",
        ));
    }
    let mut wanted: Vec<Expr> = Vec::new();
    let mut columns_out: Vec<Column> = Vec::new();
    for (expression, field) in projection.expr.iter().zip(planned.schema().fields()) {
        if is_system_column(field.name()) {
            continue;
        }
        let column_name = field.name().to_ascii_lowercase();
        columns_out.push(Column {
            data_type: storable(&column_name, field.data_type())?,
            nullable: true,
            sensitive: shows_sensitive(expression, &source),
            json: false,
            name: column_name,
        });
        wanted.push(expression.clone());
    }
    wanted.push(system_column(&input, columns::EVENT_TIME)?.alias("__event_time"));
    wanted.push(system_column(&input, columns::OFFSET)?.alias("__offset"));
    options.partitions = source.options.partitions;
    let schema = StreamSchema::new(name, columns_out, options, false)
        .map_err(|error| SqlError::new("invalid_schema", error.to_string()))?;
    let plan = LogicalPlanBuilder::new(input.as_ref().clone()).project(wanted)?.build()?;
    let physical = state.create_physical_plan(&plan).await?;
    let plan = feed.runner(physical, state.task_ctx());
    Ok(Transform { schema: Arc::new(schema), source, plan })
}

fn contains_aggregate(plan: &LogicalPlan) -> bool {
    matches!(plan, LogicalPlan::Aggregate(_) | LogicalPlan::Distinct(_) | LogicalPlan::Window(_))
        || plan.inputs().into_iter().any(contains_aggregate)
}
