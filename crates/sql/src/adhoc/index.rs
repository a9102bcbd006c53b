//! What a question may ask an index instead of the files of the lake, and which conditions of SQL that is.

use std::fmt;
use std::ops::Bound;

use arrow::datatypes::{DataType, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::common::ScalarValue;
use datafusion::logical_expr::expr::{Cast, ScalarFunction};
use datafusion::logical_expr::{BinaryExpr, Expr, Operator};
use highwater_event::Condition;
use highwater_event::search::Search;

use super::page::{Page, Position};
use crate::dialect::SqlError;

/// A row that an index has found.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    /// Where it stands.
    pub position: Position,
    /// Where the index keeps it.
    pub document: u64,
}

/// An index over the rows of a stream that are in the lake, as of one commit of both.
pub trait RowIndex: Send + Sync + fmt::Debug {
    /// Columns of [`rows`](Self::rows): those of the lake that readers see, texts as [`DataType::Utf8View`].
    fn schema(&self) -> SchemaRef;
    /// The rows of the lake that it does not have yet, as a condition; `None` when it has all.
    fn missing(&self) -> Option<Expr>;
    /// Whether it can tell exactly which rows fit.
    fn knows(&self, condition: &Condition) -> bool;
    /// How many rows fit.
    fn count(&self, condition: &Condition) -> Result<u64, SqlError>;
    /// How many rows fit, and the first ones of a page in its order.
    fn page(&self, condition: &Condition, page: &Page) -> Result<(u64, Vec<Found>), SqlError>;
    /// The rows of documents, in no order; `None` when they are larger than so many bytes.
    fn rows(&self, documents: &[u64], most: usize) -> Result<Option<RecordBatch>, SqlError>;
}

/// A condition of SQL as one that an index may know; `None` when it is none. Columns are those of the lake.
pub(super) fn condition(expression: &Expr) -> Option<Condition> {
    use Operator::{And, Eq, Gt, GtEq, Lt, LtEq, Or};
    Some(match expression {
        Expr::Alias(alias) => return condition(&alias.expr),
        Expr::Literal(ScalarValue::Boolean(value), _) => match value {
            Some(true) => Condition::All(Vec::new()),
            _ => Condition::Any(Vec::new()),
        },
        Expr::BinaryExpr(BinaryExpr { left, op: And, right }) => {
            Condition::All(vec![condition(left)?, condition(right)?])
        }
        Expr::BinaryExpr(BinaryExpr { left, op: Or, right }) => {
            Condition::Any(vec![condition(left)?, condition(right)?])
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let (column, op, value) = match (column(left), value(right)) {
                (Some(column), Some(value)) => (column, *op, value),
                _ => (column(right)?, op.swap()?, value(left)?),
            };
            if let (Eq, Some(text)) = (op, text(value)) {
                return Some(Condition::Text { column, text });
            }
            let number = number(value)?;
            let (from, to) = match op {
                Eq => (Bound::Included(number), Bound::Included(number)),
                Gt => (Bound::Excluded(number), Bound::Unbounded),
                GtEq => (Bound::Included(number), Bound::Unbounded),
                Lt => (Bound::Unbounded, Bound::Excluded(number)),
                LtEq => (Bound::Unbounded, Bound::Included(number)),
                _ => return None,
            };
            Condition::Number { column, from, to }
        }
        Expr::Between(between) if !between.negated => Condition::Number {
            column: column(&between.expr)?,
            from: Bound::Included(number(value(&between.low)?)?),
            to: Bound::Included(number(value(&between.high)?)?),
        },
        Expr::InList(list) if !list.negated => {
            let column = column(&list.expr)?;
            let fits = |item: &Expr| {
                let value = value(item)?;
                if let Some(text) = text(value) {
                    return Some(Condition::Text { column: column.clone(), text });
                }
                let number = number(value)?;
                let (from, to) = (Bound::Included(number), Bound::Included(number));
                Some(Condition::Number { column: column.clone(), from, to })
            };
            Condition::Any(list.list.iter().map(fits).collect::<Option<_>>()?)
        }
        Expr::Like(like) if !like.negated && !like.case_insensitive && like.escape_char.is_none() => {
            let pattern = text(value(&like.pattern)?)?;
            let beginning = pattern.strip_suffix('%')?;
            if beginning.contains(['%', '_', '\\']) {
                return None;
            }
            Condition::Begins { column: column(&like.expr)?, text: beginning.to_owned() }
        }
        Expr::ScalarFunction(function) => return function_condition(function),
        _ => return None,
    })
}

fn function_condition(ScalarFunction { func, args }: &ScalarFunction) -> Option<Condition> {
    let [first, second] = args.as_slice() else { return None };
    let second = text(value(second)?)?;
    match func.name() {
        "starts_with" => Some(Condition::Begins { column: column(first)?, text: second }),
        "matches" => {
            let (column, json) = match first {
                Expr::ScalarFunction(inner) if inner.func.name() == "json" => {
                    let [inside] = inner.args.as_slice() else { return None };
                    (column(inside)?, true)
                }
                plain => (column(plain)?, false),
            };
            // Who searches for too much is told so where rows are read.
            Some(Condition::Words { column, json, search: Search::read(&second).ok()? })
        }
        _ => None,
    }
}

/// A column, in another form of its texts at most.
fn column(expression: &Expr) -> Option<String> {
    let is_text = |it: &DataType| matches!(it, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    match expression {
        Expr::Column(column) => Some(column.name.clone()),
        Expr::Alias(alias) => column(&alias.expr),
        Expr::Cast(Cast { expr, field }) if is_text(field.data_type()) => match expr.as_ref() {
            // A number as a text is another comparison; what it is found by tells, since no number is found by texts.
            Expr::Column(column) => Some(column.name.clone()),
            _ => None,
        },
        _ => None,
    }
}

fn value(expression: &Expr) -> Option<&ScalarValue> {
    match expression {
        Expr::Literal(value, _) => Some(value),
        Expr::Alias(alias) => value(&alias.expr),
        _ => None,
    }
}

fn text(value: &ScalarValue) -> Option<String> {
    match value {
        ScalarValue::Utf8(text) | ScalarValue::Utf8View(text) | ScalarValue::LargeUtf8(text) => text.clone(),
        _ => None,
    }
}

/// A number as an index has it. It is of its column's own type, as the planner has seen to.
fn number(value: &ScalarValue) -> Option<i64> {
    match value {
        ScalarValue::Int32(number) => number.map(i64::from),
        ScalarValue::Int64(number) | ScalarValue::TimestampMicrosecond(number, _) => *number,
        ScalarValue::Date32(day) => day.map(i64::from),
        ScalarValue::Boolean(truth) => truth.map(i64::from),
        ScalarValue::Decimal128(digits, 1..=18, _) => digits.and_then(|digits| digits.try_into().ok()),
        _ => None,
    }
}
