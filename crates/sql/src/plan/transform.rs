//! Planning CREATE STREAM … AS SELECT from one stream.

use std::sync::Arc;

use datafusion::common::Column as PlanColumn;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder};
use datafusion::sql::sqlparser::ast::Query;
use highwater_event::{Column, StreamName, StreamOptions, StreamSchema, columns};

use super::{as_statement, is_system_column, refuse_unrepeatable, select_also, shows, storable};
use crate::dialect::SqlError;
use crate::session::Engine;
use crate::stream::feed::FeedTable;
use crate::stream::transform::Transform;

/// Names under which event time and offset leave a plan.
pub(super) const CARRIED: [(&str, &str); 2] =
    [(columns::EVENT_TIME, "__event_time"), (columns::OFFSET, "__offset")];

/// Plans a derived stream over `source`.
pub async fn plan_transform(
    engine: &Engine,
    source: Arc<StreamSchema>,
    name: StreamName,
    mut options: StreamOptions,
    mut query: Box<Query>,
) -> Result<Transform, SqlError> {
    let feed = Arc::new(FeedTable::new(source.reader_schema()));
    let state = engine.state_with([(source.name.public().to_owned(), feed.clone() as _)])?;
    select_also(&mut query, &CARRIED);
    let planned = state.statement_to_plan(as_statement(query)).await?;
    refuse_unrepeatable(&planned)?;
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
    let is_sensitive = |expression: &Expr| shows_in(expression, &input, &source);
    let (columns, mut wanted) = output_columns(&projection.expr, &planned, &is_sensitive)?;
    let carried = projection.expr.len() - CARRIED.len();
    wanted.extend_from_slice(&projection.expr[carried..]);
    options.partitions = source.options.partitions;
    options.subject = carried_subject(&source, &columns, &wanted)?;
    let schema = StreamSchema::new(name, columns, options, false)
        .map_err(|error| SqlError::new("invalid_schema", error.to_string()))?;
    let plan = LogicalPlanBuilder::new(input.as_ref().clone()).project(wanted)?.build()?;
    let physical = state.create_physical_plan(&plan).await?;
    let plan = feed.runner(physical, state.task_ctx());
    Ok(Transform { schema: Arc::new(schema), source, plan })
}

/// The column of a derived stream that says whom its SENSITIVE columns are about, as the one of its source does.
fn carried_subject(
    source: &StreamSchema,
    columns: &[Column],
    expressions: &[Expr],
) -> Result<Option<String>, SqlError> {
    let Some(subject) = &source.options.subject else { return Ok(None) };
    if !columns.iter().any(|column| column.sensitive) {
        return Ok(None);
    }
    let is_subject = |expression: &Expr| matches!(expression.clone().unalias(), Expr::Column(column) if column.name == *subject);
    let carried = columns.iter().zip(expressions).find(|(_, expression)| is_subject(expression));
    match carried {
        Some((column, _)) => Ok(Some(column.name.clone())),
        None => Err(SqlError::unsupported(format!(
            "what is SENSITIVE in \"{}\" is about whoever \"{subject}\" names; without that column nobody could be forgotten",
            source.name.public()
        ))
        .hint(format!("select {subject}, too, or mask the SENSITIVE columns"))),
    }
}

/// The columns of a derived stream and the expressions behind them, without the carried ones at the end.
pub(super) fn output_columns(
    expressions: &[Expr],
    planned: &LogicalPlan,
    is_sensitive: &dyn Fn(&Expr) -> bool,
) -> Result<(Vec<Column>, Vec<Expr>), SqlError> {
    let (mut columns, mut wanted) = (Vec::new(), Vec::new());
    let selected = expressions.len() - CARRIED.len();
    for (expression, field) in expressions.iter().zip(planned.schema().fields()).take(selected) {
        if is_system_column(field.name()) {
            continue;
        }
        let name = field.name().to_ascii_lowercase();
        columns.push(Column {
            data_type: storable(&name, field.data_type())?,
            nullable: true,
            sensitive: is_sensitive(expression),
            json: false,
            name,
        });
        wanted.push(expression.clone());
    }
    Ok((columns, wanted))
}

/// True when an expression shows a SENSITIVE column of the source, also through the columns that UNNEST
/// puts in between.
fn shows_in(expression: &Expr, input: &LogicalPlan, source: &StreamSchema) -> bool {
    let is_sensitive = |column: &PlanColumn| {
        if source.column(&column.name).is_some() || is_system_column(&column.name) {
            return source.is_sensitive(&column.name);
        }
        match between(input, &column.name) {
            Some((inner, below)) => shows_in(&inner, &below, source),
            // Where a column comes from unseen, the worst is believed.
            None => source.columns.iter().any(|known| source.is_sensitive(&known.name)),
        }
    };
    shows(expression, &is_sensitive, &|column, member| source.is_sensitive_member(&column.name, member))
}

/// The expression that an inner projection computes under a name, and what it reads.
fn between(plan: &LogicalPlan, name: &str) -> Option<(Expr, LogicalPlan)> {
    if let LogicalPlan::Projection(projection) = plan {
        let at = projection.schema.fields().iter().position(|field| field.name() == name);
        if let Some(at) = at {
            return Some((projection.expr[at].clone().unalias(), projection.input.as_ref().clone()));
        }
    }
    // UNNEST gives its results names of its own.
    if let LogicalPlan::Unnest(unnest) = plan {
        let below = unnest.input.as_ref();
        let list = unnest.list_type_columns.iter().find(|(_, list)| list.output_column.name == name);
        if let Some((at, _)) = list {
            return between(below, below.schema().field(*at).name());
        }
        // Members of an unfolded struct come from the struct.
        let output = unnest.schema.fields().iter().position(|field| field.name() == name)?;
        let from = *unnest.dependency_indices.get(output)?;
        return between(below, below.schema().field(from).name());
    }
    plan.inputs().into_iter().find_map(|input| between(input, name))
}

pub(super) fn contains_aggregate(plan: &LogicalPlan) -> bool {
    matches!(plan, LogicalPlan::Aggregate(_) | LogicalPlan::Distinct(_) | LogicalPlan::Window(_))
        || plan.inputs().into_iter().any(contains_aggregate)
}
