//! Planning CREATE TABLE … AS SELECT … GROUP BY.
//!
//! DataFusion plans the whole statement as a batch query. Its plan is then cut at the aggregate: what
//! lies below becomes a plan over source rows, what lies above a plan over aggregated rows, and the
//! aggregate itself is replaced by states that are kept up.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchemaRef, ScalarValue};
use datafusion::execution::SessionState;
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, ident};
use datafusion::sql::sqlparser::ast::{GroupByExpr, Query, SetExpr};
use highwater_event::{StreamName, StreamSchema, columns};

use super::{as_statement, refuse_unrepeatable, shows_sensitive, storable, system_column};
use crate::dialect::{SqlError, Window, WindowKind};
use crate::functions::{
    APPROX_COUNT_DISTINCT, COLLECT_LIST, COLLECT_SET, EARLIEST_BY_OFFSET, LATEST_BY_OFFSET, TOPK,
    TOPKDISTINCT,
};
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
    emit_final: bool,
    mut query: Box<Query>,
) -> Result<TableProgram, SqlError> {
    if matches!(window, Some(Window { kind: WindowKind::Session { .. }, .. }))
        && source.options.partitions > 1
    {
        return Err(SqlError::unsupported(format!(
            "SESSION needs a stream of one partition, and \"{}\" has {}: a session could not tell when it is over",
            source.name.public(),
            source.options.partitions
        )));
    }
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
    let state = engine.state_with([(source.name.public().to_owned(), feed.clone() as _)])?;
    let planned = state.statement_to_plan(as_statement(query)).await?;
    refuse_unrepeatable(&planned)?;
    let analyzed = state.analyzer().execute_and_check(planned, state.config_options(), |_, _| {})?;
    let LogicalPlan::Projection(projection) = &analyzed else {
        return Err(not_a_table());
    };
    // HAVING lies between the two.
    let (aggregate, having) = match projection.input.as_ref() {
        LogicalPlan::Aggregate(aggregate) => (aggregate, None),
        LogicalPlan::Filter(filter) => match filter.input.as_ref() {
            LogicalPlan::Aggregate(aggregate) => (aggregate, Some(&filter.predicate)),
            _ => return Err(not_a_table()),
        },
        _ => return Err(not_a_table()),
    };
    let below = aggregate.input.as_ref().clone();

    // What lies below: group columns, arguments, conditions, then where each row stands.
    let mut wanted: Vec<Expr> = Vec::new();
    let mut groups: Vec<DataType> = Vec::new();
    let mut results: Vec<Source> = Vec::new();
    let mut group_texts = Vec::new();
    for expression in &aggregate.group_expr {
        results.push(match window.and_then(|_| window_bound(expression)) {
            Some(bound) => bound,
            None => {
                if shows_sensitive(expression, &source) {
                    return Err(super::refuse_sensitive_key("GROUP BY", expression));
                }
                let data_type = group_type(expression, below.schema())?;
                wanted.push(expression.clone().alias(format!("g{}", groups.len())));
                groups.push(data_type);
                group_texts.push(expression.to_string());
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
    let above = Above {
        expressions: &projection.expr,
        having,
        names: analyzed.schema(),
        aggregated: &aggregate.schema,
        group_expr: &aggregate.group_expr,
        aggr_expr: &aggregate.aggr_expr,
    };
    let (output, schema, sensitive) = above.plan(&state, &result_schema, &source).await?;
    let shown = |source: Source| above.shown(&results, source);
    let group_names = (0..groups.len()).map(|group| shown(Source::Group(group))).collect();
    let window_name = shown(Source::WindowStart);

    Ok(TableProgram {
        name: format!("table:{name}").into(),
        table: name,
        sources: [source.name.clone()],
        window,
        emit_final,
        input,
        keys: key_converter(&groups).map_err(|error| SqlError::new("internal", error.to_string()))?,
        groups,
        group_texts,
        group_names,
        window_name,
        aggregate_texts: aggregate
            .aggr_expr
            .iter()
            .map(|expression| expression.clone().unalias().to_string())
            .collect(),
        aggregates,
        results,
        result_schema,
        output,
        having: having.map(ToString::to_string),
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
    let name = func.name().to_ascii_uppercase();
    let mut function = function_of(func.name())?;
    if params.distinct {
        // The smallest and largest of a set are those of the rows.
        function = match function {
            Function::Count => Function::CountDistinct,
            Function::Min | Function::Max | Function::Set | Function::ApproxDistinct => function,
            _ => {
                return Err(SqlError::unsupported(format!(
                    "{name}(DISTINCT …) can't be kept up incrementally"
                )));
            }
        };
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
    let mut arguments_given = params.args.as_slice();
    if let Function::Top { k, .. } = &mut function {
        let given = match arguments_given {
            [_, Expr::Literal(value, _)] => value.cast_to(&DataType::Int64).ok(),
            _ => None,
        };
        *k = match given {
            Some(ScalarValue::Int64(Some(given))) if (1..=10_000).contains(&given) => given as usize,
            _ => {
                return Err(SqlError::unsupported(format!(
                    "{name}(x, k) takes a constant k from 1 to 10,000"
                )));
            }
        };
        arguments_given = &arguments_given[..1];
    }
    if let (Function::Latest, [_, skips_nulls]) = (function, arguments_given) {
        let Expr::Literal(ScalarValue::Boolean(Some(skips_nulls)), _) = skips_nulls else {
            return Err(SqlError::unsupported(format!(
                "{name}(x, ignoreNulls) takes true or false as its second argument"
            )));
        };
        if !skips_nulls {
            function = Function::LatestRow;
        }
        arguments_given = &arguments_given[..1];
    }
    let (argument, input) = match arguments_given {
        [] => (None, DataType::Int64),
        [Expr::Literal(value, _)] if function == Function::Count && !value.is_null() => {
            (None, DataType::Int64)
        }
        [argument] if matches!(function, Function::Spread { .. }) => {
            let argument = datafusion::logical_expr::cast(argument.clone(), DataType::Float64);
            (Some(take(&argument)), DataType::Float64)
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

fn function_of(name: &str) -> Result<Function, SqlError> {
    Ok(match name {
        "count" => Function::Count,
        "sum" => Function::Sum,
        "min" | "bool_and" => Function::Min,
        "max" | "bool_or" => Function::Max,
        "avg" => Function::Average,
        "var" | "stddev" => Function::Spread { sample: true, root: name == "stddev" },
        "var_pop" | "stddev_pop" => Function::Spread { sample: false, root: name == "stddev_pop" },
        LATEST_BY_OFFSET => Function::Latest,
        EARLIEST_BY_OFFSET => Function::Earliest,
        COLLECT_LIST => Function::List,
        COLLECT_SET => Function::Set,
        APPROX_COUNT_DISTINCT => Function::ApproxDistinct,
        TOPK | TOPKDISTINCT => Function::Top { k: 0, distinct: name == TOPKDISTINCT },
        other => {
            return Err(SqlError::unsupported(format!(
                "{}(…) can't be kept up incrementally",
                other.to_ascii_uppercase()
            ))
            .hint("supported: COUNT, COUNT(DISTINCT), SUM, MIN, MAX, AVG, VAR, VAR_POP, STDDEV, STDDEV_POP, BOOL_AND, BOOL_OR, EARLIEST_BY_OFFSET, LATEST_BY_OFFSET, COLLECT_LIST, COLLECT_SET, TOPK, TOPKDISTINCT, APPROX_COUNT_DISTINCT"));
        }
    })
}

/// What lies above the aggregate.
struct Above<'a> {
    /// The SELECT list.
    expressions: &'a [Expr],
    having: Option<&'a Expr>,
    /// What the results are called.
    names: &'a DFSchemaRef,
    /// The aggregated rows.
    aggregated: &'a DFSchemaRef,
    group_expr: &'a [Expr],
    aggr_expr: &'a [Expr],
}

impl Above<'_> {
    /// The SELECT list over aggregated rows that pass HAVING, with `last_updated_at` at its end.
    async fn plan(
        &self,
        state: &SessionState,
        result_schema: &Arc<Schema>,
        source: &StreamSchema,
    ) -> Result<(crate::stream::feed::FeedPlan, Arc<Schema>, Vec<String>), SqlError> {
        let feed = Arc::new(FeedTable::new(result_schema.clone()));
        let mut wanted = Vec::new();
        let mut fields: Vec<Field> = Vec::new();
        let mut sensitive = Vec::new();
        for (expression, field) in self.expressions.iter().zip(self.names.fields()) {
            let name = field.name().to_ascii_lowercase();
            if fields.iter().any(|known| *known.name() == name) {
                return Err(SqlError::new(
                    "invalid_schema",
                    format!("column \"{name}\" is selected twice; give one of them an alias"),
                ));
            }
            if self.shows_sensitive(expression, source) {
                sensitive.push(name.clone());
            }
            fields.push(Field::new(&name, storable(&name, field.data_type())?, true));
            wanted.push(self.rewrite(expression)?.unalias().alias(&name));
        }
        if !fields.iter().any(|field| field.name() == LAST_UPDATED_AT) {
            wanted.push(ident(LAST_UPDATED_AT));
            fields.push(last_updated_field());
        }
        let mut plan = LogicalPlanBuilder::scan(
            "aggregated",
            datafusion::datasource::provider_as_source(feed.clone()),
            None,
        )?;
        if let Some(having) = self.having {
            plan = plan.filter(self.rewrite(having)?)?;
        }
        let physical = state.create_physical_plan(&plan.project(wanted)?.build()?).await?;
        Ok((feed.runner(physical, state.task_ctx()), Arc::new(Schema::new(fields)), sensitive))
    }

    /// An expression over the columns `c0`, `c1`, … of aggregated rows.
    fn rewrite(&self, expression: &Expr) -> Result<Expr, SqlError> {
        let rewritten = expression.clone().transform_down(|node| {
            Ok(match &node {
                Expr::Column(column) => match self.aggregated.maybe_index_of_column(column) {
                    Some(at) => Transformed::yes(ident(format!("c{at}"))),
                    None => Transformed::no(node),
                },
                _ => Transformed::no(node),
            })
        })?;
        Ok(rewritten.data)
    }

    /// Under which name the result shows a column of the aggregated rows as it is.
    fn shown(&self, results: &[Source], source: Source) -> Option<String> {
        let mut columns = self.expressions.iter().zip(self.names.fields());
        let shows = |expression: &Expr| match expression.clone().unalias() {
            Expr::Column(column) => {
                self.aggregated.maybe_index_of_column(&column).and_then(|at| results.get(at)) == Some(&source)
            }
            _ => false,
        };
        columns.find(|(expression, _)| shows(expression)).map(|(_, field)| field.name().to_ascii_lowercase())
    }

    /// True when a column of the result shows what the source declares SENSITIVE, as a key or inside an
    /// aggregate that keeps values. A COUNT shows nothing.
    fn shows_sensitive(&self, expression: &Expr, source: &StreamSchema) -> bool {
        let columns = expression.column_refs();
        columns.into_iter().any(|column| match self.aggregated.maybe_index_of_column(column) {
            Some(at) if at < self.group_expr.len() => shows_sensitive(&self.group_expr[at], source),
            Some(at) => self.aggr_expr.get(at - self.group_expr.len()).is_none_or(|expression| {
                let inner = expression.clone().unalias();
                let counts = matches!(&inner, Expr::AggregateFunction(function) if ["count", APPROX_COUNT_DISTINCT].contains(&function.func.name()));
                !counts && shows_sensitive(&inner, source)
            }),
            None => true,
        })
    }
}
