//! Planning CREATE STREAM … AS SELECT … FROM a JOIN b.
//!
//! DataFusion plans the whole statement as a batch join. Its plan is then cut at the join: what lies
//! below becomes a plan over rows of each side, what lies above a plan over joined rows, and the join
//! itself is replaced by states that both sides fill.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use arrow::row::{RowConverter, SortField};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema};
use datafusion::execution::SessionState;
use datafusion::logical_expr::utils::{conjunction, split_conjunction};
use datafusion::logical_expr::{
    BinaryExpr, Expr, ExprSchemable, Join, LogicalPlan, LogicalPlanBuilder, Operator, ident,
};
use datafusion::sql::sqlparser::ast::Query;
use highwater_event::{StreamName, StreamOptions, StreamSchema, columns};
use highwater_log::idle::IDLE;

use super::transform::{contains_aggregate, output_columns};
use super::{JoinShape, as_statement, refuse_unrepeatable, shows, shows_sensitive, system_column};
use crate::dialect::{SqlError, Within};
use crate::session::Engine;
use crate::stream::feed::FeedTable;
use crate::stream::join::{JoinProgram, Reach, Right, Side, TABLE_COLUMN};
use crate::stream::table::{TableProgram, key_converter};

/// What stands on the right of a JOIN.
#[derive(Debug, Clone)]
pub enum JoinTarget {
    /// A stream.
    Stream(Arc<StreamSchema>),
    /// A table.
    Table(Arc<TableProgram>),
}

impl JoinTarget {
    fn name(&self) -> &StreamName {
        match self {
            Self::Stream(stream) => &stream.name,
            Self::Table(table) => table.table(),
        }
    }
}

/// Plans a join of `left` with `right`.
pub async fn plan_join(
    engine: &Engine,
    left: Arc<StreamSchema>,
    (right, shape): (JoinTarget, &JoinShape),
    within: Option<Within>,
    name: StreamName,
    mut options: StreamOptions,
    query: Box<Query>,
) -> Result<JoinProgram, SqlError> {
    check_kinds(&left, &right, shape, within)?;
    let left_feed = Arc::new(FeedTable::new(left.reader_schema()));
    let right_schema = match &right {
        JoinTarget::Stream(stream) => stream.reader_schema(),
        JoinTarget::Table(table) => table.schema().clone(),
    };
    let right_feed = Arc::new(FeedTable::new(right_schema));
    let state = engine.state_with([
        (left.name.public().to_owned(), left_feed.clone() as _),
        (right.name().public().to_owned(), right_feed.clone() as _),
    ])?;
    let planned = state.statement_to_plan(as_statement(query)).await?;
    refuse_unrepeatable(&planned)?;
    let analyzed = state.analyzer().execute_and_check(planned, state.config_options(), |_, _| {})?;
    let cut = Cut::of(&analyzed)?;
    let conditions = Conditions::of(cut.join, shape)?;

    // Columns that anything above the join needs.
    let arity = cut.join.left.schema().fields().len();
    let joined = cut.join.schema.as_ref();
    let mut needed: Vec<usize> = Vec::new();
    let above = cut.expressions.iter().chain(cut.filter).chain(&conditions.residual);
    for column in above.flat_map(Expr::column_refs) {
        let at = joined.index_of_column(column)?;
        if !needed.contains(&at) {
            needed.push(at);
        }
    }
    // Each side carries something, or its rows could not be counted.
    for (first, schema) in [(0, cut.join.left.schema()), (arity, cut.join.right.schema())] {
        let any = needed.iter().any(|at| (first..first + schema.fields().len()).contains(at));
        if !any && let Some(at) = schema.fields().iter().position(|field| !field.data_type().is_nested()) {
            needed.push(first + at);
        }
    }
    needed.sort_unstable();

    let (left_keys, right_keys): (Vec<Expr>, Vec<Expr>) = conditions.keys.iter().cloned().unzip();
    let on_the_right = |key: &Expr| match &right {
        JoinTarget::Stream(stream) => shows_sensitive(key, stream),
        JoinTarget::Table(table) => {
            let is_sensitive = |column: &Column| table.sensitive().contains(&column.name);
            super::shows(key, &is_sensitive, &|column, _| is_sensitive(column))
        }
    };
    let shown = left_keys.iter().find(|key| shows_sensitive(key, &left));
    if let Some(key) = shown.or_else(|| right_keys.iter().find(|key| on_the_right(key))) {
        return Err(super::refuse_sensitive_key("ON", key));
    }
    let (left_time, right_time) = match &conditions.times {
        Some((left, right, _)) => (Some(left.clone()), Some(right.clone())),
        None => (None, None),
    };
    let planner = SidePlanner { state: &state };
    let left_side = planner
        .plan(
            &left,
            &left_feed,
            &cut.join.left,
            &left_keys,
            needed.iter().copied().filter(|at| *at < arity),
            left_time,
            0,
        )
        .await?;
    let right_side = match &right {
        JoinTarget::Stream(stream) => Some(
            planner
                .plan(
                    stream,
                    &right_feed,
                    &cut.join.right,
                    &right_keys,
                    needed.iter().copied().filter(|at| *at >= arity).map(|at| at - arity),
                    right_time,
                    arity,
                )
                .await?,
        ),
        JoinTarget::Table(_) => None,
    };
    let key_types = left_keys
        .iter()
        .map(|key| key.get_type(cut.join.left.schema().as_ref()))
        .collect::<Result<Vec<_>, _>>()?;
    let keys = key_converter(&key_types).map_err(|error| SqlError::unsupported(error.to_string()))?;
    let (kept, source) = match (right.clone(), right_side) {
        (JoinTarget::Table(table), _) => {
            let order = table_keys(&table, &right_keys)?;
            let source = table.source().name.clone();
            (Right::Table(table, order), source)
        }
        (JoinTarget::Stream(stream), Some(side)) => {
            let kept = match (within, &conditions.times) {
                (Some(Within { before, after, grace }), _) => {
                    let partitions = [stream.options.partitions.max(1), left.options.partitions.max(1)];
                    Right::Within(side, Reach { before, after, grace, outer: shape.outer, partitions })
                }
                (None, Some((_, _, inclusive))) => Right::AsOf { side, inclusive: *inclusive },
                (None, None) => return Err(SqlError::new("internal", "a join of streams without times")),
            };
            (kept, stream.name.clone())
        }
        (JoinTarget::Stream(_), None) => {
            return Err(SqlError::new("internal", "a join without a right side"));
        }
    };
    if source == left.name {
        return Err(SqlError::unsupported(format!(
            "both sides of the join come from \"{}\"",
            left.name.public()
        ))
        .at(shape.span)
        .hint("derive a stream for one side first: CREATE STREAM other_side AS SELECT … "));
    }

    // What lies above, over joined rows.
    let mut fields: Vec<Field> = Vec::new();
    for at in &needed {
        let (_, field) = joined.qualified_field(*at);
        let mut joined_field = Field::new(format!("j{at}"), field.data_type().clone(), true);
        if matches!(right, JoinTarget::Table(_)) && *at >= arity {
            joined_field =
                joined_field.with_metadata([(TABLE_COLUMN.to_owned(), field.name().clone())].into());
        }
        fields.push(joined_field);
    }
    fields.push(Field::new("__event_time", columns::timestamp_type(), true));
    fields.push(Field::new("__offset", DataType::Int64, false));
    let joined_schema = Arc::new(Schema::new(fields));
    let sides = Sides { joined, arity, left: &left, right: &right };
    let carried: Vec<Expr> = ["__event_time", "__offset"].map(ident).into();
    let with_carried: Vec<Expr> = cut.expressions.iter().chain(&carried).cloned().collect();
    let (output, wanted) =
        output_columns(&with_carried, &analyzed, &|expression| sides.shows_sensitive(expression))?;
    if let Some(column) = needed.iter().find_map(|at| sides.erasable(*at)) {
        return Err(SqlError::unsupported(format!(
            "\"{column}\" is SENSITIVE and about one person: what a join remembers could not be forgotten"
        ))
        .hint("mask it, or tokenize(…) it, in a stream before the join"));
    }
    let feed = Arc::new(FeedTable::new(joined_schema.clone()));
    let mut plan =
        LogicalPlanBuilder::scan("joined", datafusion::datasource::provider_as_source(feed.clone()), None)?;
    if let Some(residual) = conjunction(conditions.residual.iter().chain(cut.filter).cloned()) {
        plan = plan.filter(rewrite(&residual, joined)?)?;
    }
    let mut selected = wanted
        .iter()
        .zip(&output)
        .map(|(expression, column)| Ok(rewrite(expression, joined)?.unalias().alias(&column.name)))
        .collect::<Result<Vec<_>, SqlError>>()?;
    selected.extend(carried);
    let physical = state.create_physical_plan(&plan.project(selected)?.build()?).await?;
    options.partitions = left.options.partitions;
    let schema = StreamSchema::new(name, output, options, false)
        .map_err(|error| SqlError::new("invalid_schema", error.to_string()))?;
    let sealed = left.has_sensitive()
        || match &right {
            JoinTarget::Table(table) => table.source().has_sensitive(),
            JoinTarget::Stream(stream) => stream.has_sensitive(),
        };
    let mut sources = vec![source, left.name.clone()];
    if let Right::Within(_, Reach { outer: true, .. }) = kept {
        // Rows without a match leave when time has gone on, be it that nothing comes.
        sources.push(StreamName::system(IDLE));
    }
    Ok(JoinProgram {
        name: format!("stream:{}", schema.name).into(),
        sources,
        schema: Arc::new(schema),
        left: left_side,
        right: kept,
        outer: shape.outer,
        keys,
        joined: joined_schema,
        output: feed.runner(physical, state.task_ctx()),
        sealed,
        condition: cut.join.filter.as_ref().map(ToString::to_string).unwrap_or_default(),
    })
}

fn check_kinds(
    left: &StreamSchema,
    right: &JoinTarget,
    shape: &JoinShape,
    within: Option<Within>,
) -> Result<(), SqlError> {
    let refuse = |message: String| Err(SqlError::unsupported(message).at(shape.span));
    match right {
        JoinTarget::Table(table) if table.window().is_some() => {
            refuse(format!("\"{}\" has windows; a stream can be joined with a table without WINDOW", table.table().public()))
        }
        JoinTarget::Table(table) if table.having.is_some() => {
            refuse(format!("\"{}\" has HAVING; join the table without it and filter in WHERE", table.table().public()))
        }
        JoinTarget::Table(_) if within.is_some() => refuse("WITHIN joins two streams; a table is joined as it stands".into()),
        JoinTarget::Table(_) if shape.as_of => refuse("ASOF joins two streams; a table is joined as it stands at the row's commit".into()),
        JoinTarget::Stream(_) if shape.as_of && within.is_some() => refuse("a join is either ASOF or WITHIN".into()),
        JoinTarget::Stream(stream) if within.is_none() && !shape.as_of => Err(SqlError::unsupported(format!(
            "a join of the streams \"{}\" and \"{}\" needs to say how long rows wait for each other",
            left.name.public(),
            stream.name.public()
        ))
        .at(shape.span)
        .hint("write JOIN other WITHIN 10 MINUTES ON …, or ASOF JOIN other MATCH_CONDITION (a.time >= other.time) ON …")),
        _ => Ok(()),
    }
}

/// A planned statement, cut at its join.
struct Cut<'a> {
    expressions: &'a [Expr],
    filter: Option<&'a Expr>,
    join: &'a Join,
}

impl<'a> Cut<'a> {
    fn of(plan: &'a LogicalPlan) -> Result<Self, SqlError> {
        let not_a_join = || {
            SqlError::unsupported(
                "a stream is derived from a join row by row: SELECT columns FROM a JOIN b ON … WHERE …",
            )
            .hint("aggregate in a CREATE TABLE over the joined stream")
        };
        let LogicalPlan::Projection(projection) = plan else { return Err(not_a_join()) };
        let (filter, below) = match projection.input.as_ref() {
            LogicalPlan::Filter(filter) => (Some(&filter.predicate), filter.input.as_ref()),
            other => (None, other),
        };
        let LogicalPlan::Join(join) = below else { return Err(not_a_join()) };
        if contains_aggregate(&join.left) || contains_aggregate(&join.right) {
            return Err(not_a_join());
        }
        Ok(Self { expressions: &projection.expr, filter, join })
    }
}

/// The ON condition, taken apart.
struct Conditions {
    /// Pairs of a left and a right expression that must be equal.
    keys: Vec<(Expr, Expr)>,
    /// ASOF: the times of both sides, and whether equal ones match.
    times: Option<(Expr, Expr, bool)>,
    /// What else must hold.
    residual: Vec<Expr>,
}

impl Conditions {
    fn of(join: &Join, shape: &JoinShape) -> Result<Self, SqlError> {
        let (left, right) = (join.left.schema().as_ref(), join.right.schema().as_ref());
        let mut conditions = Self { keys: join.on.clone(), times: None, residual: Vec::new() };
        for part in join.filter.iter().flat_map(split_conjunction) {
            let Expr::BinaryExpr(BinaryExpr { left: a, op, right: b }) = part else {
                conditions.residual.push(part.clone());
                continue;
            };
            let (a, b, op) = if belongs(a, left) && belongs(b, right) {
                (a, b, *op)
            } else if belongs(b, left) && belongs(a, right) {
                (b, a, op.swap().unwrap_or(*op))
            } else {
                conditions.residual.push(part.clone());
                continue;
            };
            match op {
                Operator::Eq => conditions.keys.push((a.as_ref().clone(), b.as_ref().clone())),
                Operator::GtEq | Operator::Gt if shape.as_of && conditions.times.is_none() => {
                    for (side, schema) in [(a, left), (b, right)] {
                        let data_type = side.get_type(schema)?;
                        if !matches!(data_type, DataType::Timestamp(..)) {
                            return Err(SqlError::unsupported(format!(
                                "MATCH_CONDITION compares two TIMESTAMPs; {side} has type {data_type}"
                            ))
                            .at(shape.span));
                        }
                    }
                    conditions.times = Some((a.as_ref().clone(), b.as_ref().clone(), op == Operator::GtEq));
                }
                _ => conditions.residual.push(part.clone()),
            }
        }
        if conditions.keys.is_empty() {
            return Err(
                SqlError::unsupported("ON must compare a column of each side for equality").at(shape.span)
            );
        }
        if shape.as_of && conditions.times.is_none() {
            return Err(
                SqlError::unsupported("MATCH_CONDITION is left_time >= right_time (or >)").at(shape.span)
            );
        }
        if shape.outer && !conditions.residual.is_empty() {
            return Err(SqlError::unsupported(
                "where rows without a match are kept, ON may only compare both sides for equality",
            )
            .at(shape.span)
            .hint("other conditions belong into WHERE"));
        }
        Ok(conditions)
    }
}

/// True when an expression has columns, and all of them are of one side.
fn belongs(expression: &Expr, side: &DFSchema) -> bool {
    let columns = expression.column_refs();
    !columns.is_empty() && columns.into_iter().all(|column| side.is_column_from_schema(column))
}

/// For each group of the table the number of the key that is compared with it.
fn table_keys(table: &TableProgram, right_keys: &[Expr]) -> Result<Vec<usize>, SqlError> {
    let shown: Vec<String> = table.group_names.iter().flatten().cloned().collect();
    let refuse = || {
        let key = if shown.is_empty() { "no columns".to_owned() } else { shown.join(", ") };
        SqlError::unsupported(format!(
            "ON must compare the whole key of table \"{}\" ({key}) and nothing else of it",
            table.table().public()
        ))
    };
    let mut order = vec![None; table.group_names.len()];
    for (number, key) in right_keys.iter().enumerate() {
        let column = uncast(key);
        let Expr::Column(Column { name, .. }) = column else { return Err(refuse()) };
        let group = table.group_names.iter().position(|known| known.as_deref() == Some(name.as_str()));
        let group = group.ok_or_else(refuse)?;
        if order[group].replace(number).is_some() {
            return Err(refuse());
        }
    }
    order.into_iter().collect::<Option<Vec<usize>>>().filter(|order| !order.is_empty()).ok_or_else(refuse)
}

fn uncast(expression: &Expr) -> &Expr {
    match expression {
        Expr::Cast(cast) => uncast(&cast.expr),
        Expr::TryCast(cast) => uncast(&cast.expr),
        other => other,
    }
}

struct SidePlanner<'a> {
    state: &'a SessionState,
}

impl SidePlanner<'_> {
    /// A plan over rows of one side: keys, needed columns, the time to match by, event time, recorded
    /// time, offset. Needed columns are named after their place in the joined rows.
    #[allow(clippy::too_many_arguments, reason = "everything that makes up a side")]
    async fn plan(
        &self,
        schema: &Arc<StreamSchema>,
        feed: &FeedTable,
        below: &LogicalPlan,
        keys: &[Expr],
        needed: impl Iterator<Item = usize>,
        time: Option<Expr>,
        first: usize,
    ) -> Result<Side, SqlError> {
        let mut wanted: Vec<Expr> =
            keys.iter().enumerate().map(|(at, key)| key.clone().alias(format!("k{at}"))).collect();
        let mut types = Vec::new();
        for at in needed {
            let (qualifier, field) = below.schema().qualified_field(at);
            types.push(field.data_type().clone());
            let column = Expr::Column(Column::new(qualifier.cloned(), field.name()));
            wanted.push(column.alias(format!("j{}", first + at)));
        }
        let event_time = system_column(below, columns::EVENT_TIME)?;
        wanted.push(time.unwrap_or_else(|| event_time.clone()).alias("__match_time"));
        wanted.push(event_time.alias("__event_time"));
        wanted.push(system_column(below, columns::RECORDED_AT)?.alias("__recorded_at"));
        wanted.push(system_column(below, columns::OFFSET)?.alias("__offset"));
        let plan = LogicalPlanBuilder::new(below.clone()).project(wanted)?.build()?;
        let physical = self.state.create_physical_plan(&plan).await?;
        let rows = RowConverter::new(types.into_iter().map(SortField::new).collect()).map_err(|error| {
            SqlError::unsupported(format!(
                "a column of \"{}\" can't be kept for a join: {error}",
                schema.name.public()
            ))
        })?;
        Ok(Side {
            schema: schema.clone(),
            input: feed.runner(physical, self.state.task_ctx()),
            keys: keys.len(),
            rows,
        })
    }
}

/// An expression over the columns `j0`, `j1`, … of joined rows.
fn rewrite(expression: &Expr, joined: &DFSchema) -> Result<Expr, SqlError> {
    let rewritten = expression.clone().transform_down(|node| {
        Ok(match &node {
            Expr::Column(column) => match joined.maybe_index_of_column(column) {
                Some(at) => Transformed::yes(ident(format!("j{at}"))),
                None => Transformed::no(node),
            },
            _ => Transformed::no(node),
        })
    })?;
    Ok(rewritten.data)
}

/// The columns of both sides, to tell which of them are SENSITIVE.
struct Sides<'a> {
    joined: &'a DFSchema,
    arity: usize,
    left: &'a StreamSchema,
    right: &'a JoinTarget,
}

impl Sides<'_> {
    /// The column at a place, when it is SENSITIVE and one person's.
    fn erasable(&self, at: usize) -> Option<String> {
        let (_, field) = self.joined.qualified_field(at);
        let name = field.name();
        let of_stream = |stream: &StreamSchema| stream.options.subject.is_some() && stream.is_sensitive(name);
        let erasable = match self.right {
            _ if at < self.arity => of_stream(self.left),
            JoinTarget::Stream(stream) => of_stream(stream),
            JoinTarget::Table(table) => {
                table.source().options.subject.is_some() && table.sensitive().contains(name)
            }
        };
        erasable.then(|| name.clone())
    }

    fn shows_sensitive(&self, expression: &Expr) -> bool {
        let is_left = |column: &Column| self.joined.maybe_index_of_column(column).map(|at| at < self.arity);
        let of_right = |column: &Column| match self.right {
            JoinTarget::Stream(stream) => stream.is_sensitive(&column.name),
            JoinTarget::Table(table) => table.sensitive().contains(&column.name),
        };
        shows(
            expression,
            &|column| match is_left(column) {
                Some(true) => self.left.is_sensitive(&column.name),
                Some(false) => of_right(column),
                None => !column.name.starts_with("__"),
            },
            &|column, member| match (is_left(column), self.right) {
                (Some(true), _) => self.left.is_sensitive_member(&column.name, member),
                (Some(false), JoinTarget::Stream(stream)) => stream.is_sensitive_member(&column.name, member),
                _ => of_right(column),
            },
        )
    }
}
