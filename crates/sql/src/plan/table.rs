//! Planning CREATE TABLE … AS SELECT … GROUP BY.
//!
//! DataFusion plans the whole statement as a batch query. Its plan is then cut at the aggregate: what
//! lies below becomes a plan over source rows, what lies above a plan over aggregated rows, and the
//! aggregate itself is replaced by states that are kept up.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::DFSchemaRef;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::execution::SessionState;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, ident};
use datafusion::sql::sqlparser::ast::{GroupByExpr, Query, SetExpr};
use highwater_event::{StreamName, StreamSchema, columns};

use super::{as_statement, shows_sensitive, storable, system_column};
use crate::dialect::{SqlError, Window};
use crate::functions::{COLLECT_LIST, LATEST_BY_OFFSET};
use crate::session::Engine;
use crate::stream::aggregate::{Aggregate, Function, is_keepable};
use crate::stream::feed::FeedTable;
use crate::stream::table::{LAST_UPDATED_AT, Source, TableProgram, key_converter, last_updated_field};

const WINDOW_START: &str = "window_start";
const WINDOW_END: &str = "window_end";

/// Plans a table over `source`.
pub async fn plan_table(
    engine: &Engine,
    source: Arc<StreamSchema>,
    name: StreamName,
    window: Option<Window>,
    mut query: Box<Query>,
) -> Result<TableProgram, SqlError> {
    let mut fields: Vec<_> = source.reader_schema().fields().iter().cloned().collect();
    if window.is_some() {
        group_by_window(&mut query)?;
        for bound in [WINDOW_START, WINDOW_END] {
            if source.column(bound).is_some() {
                return Err(SqlError::unsupported(format!(
                    "stream {} has a column named {bound}, which the window needs",
                    source.name
                )));
            }
            fields.push(Arc::new(Field::new(bound, columns::timestamp_type(), false)));
        }
    }
    let feed = Arc::new(FeedTable::new(Arc::new(Schema::new(fields))));
    let state = engine.state_with(source.name.as_str(), feed.clone())?;
    let planned = state.statement_to_plan(as_statement(query)).await?;
    let analyzed = state.analyzer().execute_and_check(planned, state.config_options(), |_, _| {})?;
    let LogicalPlan::Projection(projection) = &analyzed else {
        return Err(not_a_table());
    };
    let LogicalPlan::Aggregate(aggregate) = projection.input.as_ref() else {
        return Err(not_a_table());
    };
    let below = aggregate.input.as_ref().clone();

    // What lies below: group columns, arguments, conditions, then where each row stands.
    let mut wanted: Vec<Expr> = Vec::new();
    let mut groups: Vec<DataType> = Vec::new();
    let mut results: Vec<Source> = Vec::new();
    for expression in &aggregate.group_expr {
        results.push(match window_bound(expression) {
            Some(bound) => bound,
            None => {
                let data_type = group_type(expression, below.schema())?;
                wanted.push(expression.clone().alias(format!("g{}", groups.len())));
                groups.push(data_type);
                Source::Group(groups.len() - 1)
            }
        });
    }
    let mut aggregates = Vec::new();
    let mut arguments: Vec<Expr> = Vec::new();
    for (at, expression) in aggregate.aggr_expr.iter().enumerate() {
        let output = aggregate.schema.field(results.len()).data_type().clone();
        aggregates.push(plan_aggregate(expression, &output, below.schema(), &mut arguments)?);
        results.push(Source::Aggregate(at));
    }
    wanted.extend(arguments.into_iter().enumerate().map(|(at, argument)| argument.alias(format!("a{at}"))));
    wanted.push(system_column(&below, columns::EVENT_TIME)?.alias("__event_time"));
    wanted.push(system_column(&below, columns::RECORDED_AT)?.alias("__recorded_at"));
    wanted.push(system_column(&below, columns::OFFSET)?.alias("__offset"));
    let input = LogicalPlanBuilder::new(below).project(wanted)?.build()?;
    let input = feed.runner(state.create_physical_plan(&input).await?, state.task_ctx());

    // What lies above, over aggregated rows.
    let mut result_fields: Vec<Field> = aggregate
        .schema
        .fields()
        .iter()
        .enumerate()
        .map(|(at, field)| Field::new(format!("c{at}"), field.data_type().clone(), true))
        .collect();
    result_fields.push(last_updated_field());
    let result_schema = Arc::new(Schema::new(result_fields));
    let (output, schema, sensitive) = plan_output(
        &state,
        &analyzed,
        &projection.expr,
        &aggregate.schema,
        &aggregate.group_expr,
        &result_schema,
        &source,
    )
    .await?;

    Ok(TableProgram {
        name: format!("table:{name}").into(),
        table: name,
        window,
        input,
        keys: key_converter(&groups).map_err(|error| SqlError::new("internal", error.to_string()))?,
        groups,
        aggregates,
        results,
        result_schema,
        output,
        schema,
        sensitive,
        source,
    })
}

fn not_a_table() -> SqlError {
    SqlError::unsupported("a table is SELECT keys and aggregates FROM stream GROUP BY keys")
        .hint("to derive row by row, use CREATE STREAM … AS SELECT")
}

/// Windows are groups too; the user does not have to say so.
fn group_by_window(query: &mut Query) -> Result<(), SqlError> {
    let SetExpr::Select(select) = query.body.as_mut() else { return Err(not_a_table()) };
    let GroupByExpr::Expressions(expressions, _) = &mut select.group_by else {
        return Err(SqlError::unsupported("GROUP BY ALL is not supported with WINDOW; name the keys"));
    };
    for bound in [WINDOW_START, WINDOW_END] {
        let ident = datafusion::sql::sqlparser::ast::Ident::new(bound);
        let expression = datafusion::sql::sqlparser::ast::Expr::Identifier(ident);
        if !expressions.contains(&expression) {
            expressions.push(expression);
        }
    }
    Ok(())
}

fn window_bound(expression: &Expr) -> Option<Source> {
    match expression {
        Expr::Column(column) if column.name == WINDOW_START => Some(Source::WindowStart),
        Expr::Column(column) if column.name == WINDOW_END => Some(Source::WindowEnd),
        _ => None,
    }
}

fn group_type(expression: &Expr, schema: &DFSchemaRef) -> Result<DataType, SqlError> {
    if matches!(expression, Expr::GroupingSet(_)) {
        return Err(SqlError::unsupported("GROUPING SETS, CUBE and ROLLUP are not supported in a table"));
    }
    let data_type = expression.get_type(schema.as_ref())?;
    if !is_keepable(&data_type) {
        return Err(SqlError::unsupported(format!(
            "GROUP BY {expression}: groups of type {data_type} can't be kept"
        )));
    }
    storable(&expression.to_string(), &data_type)
}

fn plan_aggregate(
    expression: &Expr,
    output: &DataType,
    schema: &DFSchemaRef,
    arguments: &mut Vec<Expr>,
) -> Result<Aggregate, SqlError> {
    let inner = expression.clone().unalias();
    let Expr::AggregateFunction(AggregateFunction { func, params }) = &inner else {
        return Err(not_a_table());
    };
    let function = match func.name() {
        "count" => Function::Count,
        "sum" => Function::Sum,
        "min" => Function::Min,
        "max" => Function::Max,
        "avg" => Function::Average,
        LATEST_BY_OFFSET => Function::Latest,
        COLLECT_LIST => Function::List,
        other => {
            return Err(SqlError::unsupported(format!(
                "{}(…) can't be kept up incrementally yet",
                other.to_ascii_uppercase()
            ))
            .hint("supported: COUNT, SUM, MIN, MAX, AVG, LATEST_BY_OFFSET, COLLECT_LIST"));
        }
    };
    let name = func.name().to_ascii_uppercase();
    if params.distinct {
        return Err(SqlError::unsupported(format!("{name}(DISTINCT …) can't be kept up incrementally yet")));
    }
    if !params.order_by.is_empty() {
        return Err(SqlError::unsupported(format!(
            "{name}(… ORDER BY …) can't be kept up incrementally: rows come in the order of the log"
        )));
    }
    let mut take = |expression: &Expr| {
        arguments.push(expression.clone());
        arguments.len() - 1
    };
    let (argument, input) = match params.args.as_slice() {
        [] => (None, DataType::Int64),
        [Expr::Literal(value, _)] if function == Function::Count && !value.is_null() => {
            (None, DataType::Int64)
        }
        [argument] => {
            let data_type = argument.get_type(schema.as_ref())?;
            if !is_keepable(&data_type) && function != Function::Count {
                return Err(SqlError::unsupported(format!("{name} of type {data_type} can't be kept up")));
            }
            if function == Function::Count && !is_keepable(&data_type) {
                (Some(take(&argument.clone().is_not_null())), DataType::Boolean)
            } else {
                (Some(take(argument)), data_type)
            }
        }
        _ => return Err(SqlError::unsupported(format!("{name} takes one argument"))),
    };
    let condition = params.filter.as_deref().map(&mut take);
    Ok(Aggregate { function, argument, condition, input, output: output.clone() })
}

/// The SELECT list over aggregated rows, with `last_updated_at` at its end.
async fn plan_output(
    state: &SessionState,
    analyzed: &LogicalPlan,
    expressions: &[Expr],
    aggregated: &DFSchemaRef,
    group_expr: &[Expr],
    result_schema: &Arc<Schema>,
    source: &StreamSchema,
) -> Result<(crate::stream::feed::FeedPlan, Arc<Schema>, Vec<String>), SqlError> {
    let feed = Arc::new(FeedTable::new(result_schema.clone()));
    let mut wanted = Vec::new();
    let mut fields: Vec<Field> = Vec::new();
    let mut sensitive = Vec::new();
    for (expression, field) in expressions.iter().zip(analyzed.schema().fields()) {
        let name = field.name().to_ascii_lowercase();
        if fields.iter().any(|known| *known.name() == name) {
            return Err(SqlError::new(
                "invalid_schema",
                format!("column \"{name}\" is selected twice; give one of them an alias"),
            ));
        }
        let rewritten = expression.clone().transform_down(|node| {
            Ok(match &node {
                Expr::Column(column) => match aggregated.maybe_index_of_column(column) {
                    Some(at) => Transformed::yes(ident(format!("c{at}"))),
                    None => Transformed::no(node),
                },
                _ => Transformed::no(node),
            })
        })?;
        if shows_sensitive_result(expression, aggregated, group_expr, source, analyzed) {
            sensitive.push(name.clone());
        }
        fields.push(Field::new(&name, storable(&name, field.data_type())?, true));
        wanted.push(rewritten.data.unalias().alias(&name));
    }
    if !fields.iter().any(|field| field.name() == LAST_UPDATED_AT) {
        wanted.push(ident(LAST_UPDATED_AT));
        fields.push(last_updated_field());
    }
    let scan = LogicalPlanBuilder::scan(
        "aggregated",
        datafusion::datasource::provider_as_source(feed.clone()),
        None,
    )?;
    let plan = scan.project(wanted)?.build()?;
    let physical = state.create_physical_plan(&plan).await?;
    Ok((feed.runner(physical, state.task_ctx()), Arc::new(Schema::new(fields)), sensitive))
}

/// True when a column of the result shows what the source declares SENSITIVE, as a key or inside an
/// aggregate that keeps values. A COUNT shows nothing.
fn shows_sensitive_result(
    expression: &Expr,
    aggregated: &DFSchemaRef,
    group_expr: &[Expr],
    source: &StreamSchema,
    analyzed: &LogicalPlan,
) -> bool {
    let LogicalPlan::Projection(projection) = analyzed else { return true };
    let LogicalPlan::Aggregate(aggregate) = projection.input.as_ref() else { return true };
    expression.column_refs().into_iter().any(|column| match aggregated.maybe_index_of_column(column) {
        Some(at) if at < group_expr.len() => shows_sensitive(&group_expr[at], source),
        Some(at) => aggregate.aggr_expr.get(at - group_expr.len()).is_none_or(|expression| {
            let inner = expression.clone().unalias();
            let counts =
                matches!(&inner, Expr::AggregateFunction(function) if function.func.name() == "count");
            !counts && shows_sensitive(&inner, source)
        }),
        None => true,
    })
}
