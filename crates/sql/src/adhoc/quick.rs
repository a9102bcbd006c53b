//! Pages that an index answers: a planner takes longer to plan a page than an index to find it.
//!
//! Most endpoints of pages read one stream, compare its columns with parameters and show some of them. Such a query is asked of
//! the index without a plan: its condition becomes one of the index, which says how many rows fit and which stand on the page, and only
//! these are made. Rows that are not in the lake yet are compared one by one. Any other query, and any reader before whom columns are
//! hidden, is answered by a plan ([`super::page`]); both give the same page.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, AsArray, BooleanArray};
use arrow::compute::{cast, concat_batches, filter_record_batch, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, DataFusionError, ScalarValue};
use datafusion::execution::SessionState;
use datafusion::logical_expr::expr::Cast;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator, lit};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::sql::sqlparser::ast::{
    Expr as SqlExpr, ExprWithAlias, ObjectNamePart, Query, Select, SelectItem, SetExpr, TableFactor,
};
use highwater_event::Condition;

use super::index::{Found, RowIndex, condition};
use super::page::{Page, PageResult, Position, positions};
use super::{Limits, QueryResult};
use crate::dialect::{SqlError, parse_query};
use crate::functions::weight;
use crate::session::Engine;

/// A stream as somebody sees it who sees its columns as they are.
pub struct Searchable {
    /// Its columns.
    pub schema: SchemaRef,
    /// Rows that are not in the lake yet.
    pub hot: Vec<RecordBatch>,
    /// An index over those that are; it has them all.
    pub index: Arc<dyn RowIndex>,
    /// Which rows are seen, as SQL: all of it must hold.
    pub filters: Vec<String>,
}

/// A query with nothing in it but what [`Simple`] looks at.
static PLAIN: LazyLock<Option<Box<Query>>> = LazyLock::new(|| parse_query("SELECT 1 FROM one").ok());

/// A query that reads one relation row by row.
pub(super) struct Simple<'a> {
    /// The relation.
    pub relation: String,
    select: &'a Select,
}

impl<'a> Simple<'a> {
    /// Takes a query that is nothing else.
    pub fn of(query: &'a Query) -> Option<Self> {
        let SetExpr::Select(select) = query.body.as_ref() else { return None };
        let [only] = select.from.as_slice() else { return None };
        let TableFactor::Table { name, .. } = &only.relation else { return None };
        let [ObjectNamePart::Identifier(relation)] = name.0.as_slice() else { return None };
        // Made anew of the parts that are looked at here, it must be the same: then there is nothing else in it.
        let select = select.as_ref();
        let mut plain = PLAIN.clone()?;
        let SetExpr::Select(same) = plain.body.as_mut() else { return None };
        same.projection.clone_from(&select.projection);
        same.selection.clone_from(&select.selection);
        if let Some(TableFactor::Table { name: one, .. }) =
            same.from.first_mut().map(|from| &mut from.relation)
        {
            one.clone_from(name);
        }
        (*plain == *query).then(|| Self { relation: relation.value.to_ascii_lowercase(), select })
    }

    /// A page; `None` when it takes a plan.
    pub fn page(
        &self,
        engine: &Engine,
        values: &[(String, ScalarValue)],
        page: Page,
        rows: &Searchable,
        limits: Limits,
    ) -> Result<Option<PageResult>, SqlError> {
        // Whatever is not understood here is told, or answered, by a plan.
        match Asked::of(engine, self.select, values, rows) {
            Ok(Some(asked)) => asked.page(page, rows, limits),
            Ok(None) | Err(_) => Ok(None),
        }
    }
}

/// What is asked, with the values of its parameters in it.
struct Asked<'a> {
    state: &'a SessionState,
    columns: DFSchema,
    /// What is shown.
    shown: Vec<(Expr, String)>,
    /// Of rows as they are in memory.
    filter: Expr,
    /// Of the index.
    condition: Condition,
}

impl<'a> Asked<'a> {
    fn of(
        engine: &'a Engine,
        select: &Select,
        values: &[(String, ScalarValue)],
        rows: &Searchable,
    ) -> Result<Option<Self>, SqlError> {
        let state = engine.template();
        let columns = DFSchema::try_from(rows.schema.as_ref().clone())?;
        let expression = |expr: &SqlExpr| {
            let expr = ExprWithAlias { expr: expr.clone(), alias: None };
            state.create_logical_expr_from_sql_expr(expr, &columns)
        };
        let mut shown = Vec::with_capacity(select.projection.len());
        for item in &select.projection {
            let (expr, name) = match item {
                SelectItem::UnnamedExpr(expr @ SqlExpr::Identifier(name)) if name.quote_style.is_none() => {
                    (expr, name.value.to_ascii_lowercase())
                }
                SelectItem::ExprWithAlias { expr, alias } if alias.quote_style.is_some() => {
                    (expr, alias.value.clone())
                }
                SelectItem::ExprWithAlias { expr, alias } => (expr, alias.value.to_ascii_lowercase()),
                _ => return Ok(None),
            };
            let expr = expression(expr)?;
            if !is_light(&expr) {
                return Ok(None);
            }
            shown.push((expr, name));
        }
        let values: HashMap<&str, &ScalarValue> =
            values.iter().map(|(name, value)| (name.as_str(), value)).collect();
        let mut parts = Vec::new();
        if let Some(condition) = &select.selection {
            parts.push(expression(condition)?);
        }
        for filter in &rows.filters {
            parts.push(state.create_logical_expr(filter, &columns)?);
        }
        let filter = parts.into_iter().reduce(Expr::and).unwrap_or_else(|| lit(true));
        let Some(filter) = bound(filter, &values)? else { return Ok(None) };
        let context = SimplifyContext::builder()
            .with_schema(Arc::new(columns.clone()))
            .with_config_options(state.config_options().clone())
            .build();
        let simplifier = ExprSimplifier::new(context);
        let filter = simplifier.simplify(simplifier.coerce(filter, &columns)?)?;
        let known = condition(&filter).filter(|condition| rows.index.knows(condition));
        Ok(known.map(|condition| Self { state, columns, shown, filter, condition }))
    }

    /// The page; `None` when its rows are too large to be held.
    fn page(&self, page: Page, rows: &Searchable, limits: Limits) -> Result<Option<PageResult>, SqlError> {
        // One more than is shown, to know whether there are more.
        let wanted = Page { limit: page.limit + 1, ..page };
        let (mut total, found) = rows.index.page(&self.condition, &wanted)?;
        let mut places: Vec<Standing> = found.into_iter().map(Standing::Kept).collect();
        let hot = self.hot(&rows.hot)?;
        for (batch, fitting) in hot.iter().enumerate() {
            total += fitting.num_rows() as u64;
            let fits = |position: &Position| page.after.is_none_or(|after| page.is_behind(position, &after));
            let standing = positions(fitting)?.into_iter().enumerate().filter(|(_, position)| fits(position));
            places.extend(standing.map(|(row, position)| Standing::Hot { position, batch, row }));
        }
        places.sort_unstable_by(|one, other| page.compare(&one.position(), &other.position()));
        let next = places
            .get(page.limit.wrapping_sub(1))
            .map(Standing::position)
            .filter(|_| places.len() > page.limit);
        places.truncate(page.limit);
        let shown = self.show(&page, &places, &hot, rows, limits.bytes)?;
        Ok(shown.map(|rows| PageResult { rows, total, next }))
    }

    /// The rows of memory that fit.
    fn hot(&self, batches: &[RecordBatch]) -> Result<Vec<RecordBatch>, SqlError> {
        if batches.is_empty() {
            return Ok(Vec::new());
        }
        let filter = self.state.create_physical_expr(self.filter.clone(), &self.columns)?;
        let mut fitting = Vec::new();
        for batch in batches {
            let fits = filter.evaluate(batch)?.into_array(batch.num_rows())?;
            let fits: &BooleanArray = fits
                .as_boolean_opt()
                .ok_or_else(|| SqlError::new("internal", "a condition without a truth value"))?;
            if fits.true_count() > 0 {
                fitting.push(filter_record_batch(batch, fits).map_err(DataFusionError::from)?);
            }
        }
        Ok(fitting)
    }

    /// Rows as they are shown, in the order of a page.
    fn show(
        &self,
        page: &Page,
        places: &[Standing],
        hot: &[RecordBatch],
        rows: &Searchable,
        most: usize,
    ) -> Result<Option<QueryResult>, SqlError> {
        let arrow = |error: arrow::error::ArrowError| SqlError::from(DataFusionError::from(error));
        let documents: Vec<u64> = places.iter().filter_map(Standing::document).collect();
        let mut batches = Vec::new();
        if !documents.is_empty() {
            let Some(kept) = rows.index.rows(&documents, most)? else { return Ok(None) };
            let columns = rows.schema.fields().iter().map(|field| {
                let column = kept.column(kept.schema_ref().index_of(field.name())?);
                cast(column, field.data_type())
            });
            let columns = columns.collect::<Result<Vec<ArrayRef>, _>>().map_err(arrow)?;
            batches.push(RecordBatch::try_new(rows.schema.clone(), columns).map_err(arrow)?);
        }
        for place in places {
            if let Standing::Hot { batch, row, .. } = place {
                batches.push(hot[*batch].slice(*row, 1));
            }
        }
        let bytes = batches.iter().flat_map(RecordBatch::columns).map(|column| weight(column.as_ref()));
        if bytes.sum::<usize>() > most {
            return Ok(None);
        }
        let all = concat_batches(&rows.schema, &batches).map_err(arrow)?;
        let mut order: Vec<(usize, Position)> = positions(&all)?.into_iter().enumerate().collect();
        order.sort_unstable_by(|(_, one), (_, other)| page.compare(one, other));
        let order = arrow::array::UInt32Array::from_iter_values(order.into_iter().map(|(at, _)| at as u32));
        let all = take_record_batch(&all, &order).map_err(arrow)?;
        let mut fields = Vec::with_capacity(self.shown.len());
        let mut columns = Vec::with_capacity(self.shown.len());
        for (expr, name) in &self.shown {
            let shown = self.state.create_physical_expr(expr.clone(), &self.columns)?;
            let field = shown.return_field(&rows.schema)?;
            let mut column = shown.evaluate(&all)?.into_array(all.num_rows())?;
            let mut field =
                Field::new(name, field.data_type().clone(), true).with_metadata(field.metadata().clone());
            if *field.data_type() == DataType::Utf8View {
                field = field.with_data_type(DataType::Utf8);
                column = cast(&column, &DataType::Utf8).map_err(arrow)?;
            }
            fields.push(field);
            columns.push(column);
        }
        let schema = Arc::new(Schema::new(fields));
        let batch = RecordBatch::try_new(schema.clone(), columns).map_err(arrow)?;
        Ok(Some(QueryResult { schema, batches: vec![batch], truncated: false }))
    }
}

/// A row of a page.
enum Standing {
    /// In the index.
    Kept(Found),
    /// In memory.
    Hot { position: Position, batch: usize, row: usize },
}

impl Standing {
    fn position(&self) -> Position {
        match self {
            Self::Kept(found) => found.position,
            Self::Hot { position, .. } => *position,
        }
    }

    fn document(&self) -> Option<u64> {
        match self {
            Self::Kept(found) => Some(found.document),
            Self::Hot { .. } => None,
        }
    }
}

/// What costs no more than the value that it shows: for all else a plan keeps an account.
fn is_light(expression: &Expr) -> bool {
    match expression {
        Expr::Column(_) => true,
        Expr::Alias(alias) => is_light(&alias.expr),
        Expr::Cast(Cast { expr, .. }) => is_light(expr),
        Expr::ScalarFunction(function) if function.name() == "json" => function.args.iter().all(is_light),
        _ => false,
    }
}

/// A condition with the values of its parameters; `None` when it calculates, which a plan checks.
fn bound(condition: Expr, values: &HashMap<&str, &ScalarValue>) -> Result<Option<Expr>, SqlError> {
    use Operator::{Divide, Minus, Modulo, Multiply, Plus};
    let mut plain = true;
    condition.apply(|part| {
        plain &= match part {
            Expr::BinaryExpr(BinaryExpr { op, .. }) => {
                !matches!(op, Plus | Minus | Multiply | Divide | Modulo)
            }
            Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) => false,
            _ => true,
        };
        Ok(TreeNodeRecursion::Continue)
    })?;
    if !plain {
        return Ok(None);
    }
    let bound = condition.transform(|part| {
        Ok(match &part {
            Expr::Placeholder(placeholder) => match values.get(placeholder.id.trim_start_matches('$')) {
                Some(value) => Transformed::yes(lit((*value).clone())),
                None => Transformed::no(part),
            },
            _ => Transformed::no(part),
        })
    })?;
    Ok(Some(bound.data))
}
