//! From statements to things that run: names are resolved, types checked, plans made, and what can't be
//! maintained incrementally is refused by name.

mod join;
mod shape;
mod table;
mod transform;

use arrow::datatypes::DataType;
use datafusion::common::Column;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};
use datafusion::sql::parser::Statement as DFStatement;
use datafusion::sql::sqlparser::ast::{Query, Statement};
use highwater_event::{StreamSchema, columns};

use crate::dialect::SqlError;
use crate::functions::{HIDING, LOOKING_UP, SCORE};
use crate::models::split_version;

pub use join::{JoinTarget, plan_join};
pub use shape::{JoinShape, Reads, reads_of};
pub use table::plan_table;
pub use transform::plan_transform;

/// A query as DataFusion plans it.
pub(crate) fn as_statement(query: Box<Query>) -> DFStatement {
    DFStatement::Statement(Box::new(Statement::Query(query)))
}

/// True for the columns that the engine adds to every stream.
fn is_system_column(name: &str) -> bool {
    matches!(
        name,
        columns::EVENT_TIME | columns::RECORDED_AT | columns::PARTITION | columns::OFFSET | columns::EXTRA
    )
}

/// Adds the engine's columns to a query's SELECT list, so that they flow through whatever it does.
fn select_also(query: &mut Query, columns: &[(&str, &str)]) {
    use datafusion::sql::sqlparser::ast::{Expr as SqlExpr, Ident, SelectItem, SetExpr};
    if let SetExpr::Select(select) = query.body.as_mut() {
        for (column, alias) in columns {
            select.projection.push(SelectItem::ExprWithAlias {
                expr: SqlExpr::Identifier(Ident::new(*column)),
                alias: Ident::with_quote('"', *alias),
            });
        }
    }
}

/// A system column of the rows that a plan reads, under whatever alias the query gave them.
fn system_column(plan: &LogicalPlan, name: &str) -> Result<Expr, SqlError> {
    plan.schema()
        .iter()
        .find(|(_, field)| field.name() == name)
        .map(|(qualifier, field)| Expr::Column(Column::new(qualifier.cloned(), field.name())))
        .ok_or_else(|| SqlError::new("internal", format!("the plan lost column {name}")))
}

/// True when an expression shows what a SENSITIVE column holds. What a hiding function covers is hidden.
fn shows_sensitive(expression: &Expr, source: &StreamSchema) -> bool {
    shows(expression, &|column| source.is_sensitive(&column.name), &|column, member| {
        source.is_sensitive_member(&column.name, member)
    })
}

/// The same, asking about each column and each member of a struct column.
fn shows(
    expression: &Expr,
    is_sensitive: &dyn Fn(&Column) -> bool,
    is_sensitive_member: &dyn Fn(&Column, &str) -> bool,
) -> bool {
    let mut shows = false;
    // The visitor can't fail.
    let walked = expression.apply(|node| {
        Ok(match node {
            Expr::ScalarFunction(function) if HIDING.contains(&function.name()) => TreeNodeRecursion::Jump,
            Expr::ScalarFunction(function) if function.name() == "get_field" => {
                match function.args.as_slice() {
                    [Expr::Column(column), Expr::Literal(member, _), ..] => {
                        let member = member.try_as_str().flatten().unwrap_or_default();
                        shows |= is_sensitive_member(column, member);
                        TreeNodeRecursion::Jump
                    }
                    _ => TreeNodeRecursion::Continue,
                }
            }
            Expr::Column(column) if is_sensitive(column) => {
                shows = true;
                TreeNodeRecursion::Stop
            }
            _ => TreeNodeRecursion::Continue,
        })
    });
    (shows || walked.is_err()) && !highwater_event::planted::bug("lost_mask")
}

/// Keys of states stand in the store as they are, so that equal ones meet.
fn refuse_sensitive_key(clause: &str, key: &Expr) -> SqlError {
    let shown = unqualified(key);
    SqlError::new(
        "sensitive_key",
        format!("{clause} {shown} needs the values of a SENSITIVE column as they are"),
    )
    .hint(format!("write {clause} tokenize({shown}): equal values have equal tokens"))
}

/// An expression without the names of its relations, as people write it.
fn unqualified(expression: &Expr) -> String {
    let bare = expression.clone().transform(|node| {
        Ok(match node {
            Expr::Column(column) => Transformed::yes(Expr::Column(Column::new_unqualified(column.name))),
            other => Transformed::no(other),
        })
    });
    bare.map_or_else(|_| expression.to_string(), |bare| bare.data.to_string())
}

/// Refuses functions whose answer depends on when or how often they are asked: a rebuild would come to
/// other rows.
fn refuse_unrepeatable(plan: &LogicalPlan) -> Result<(), SqlError> {
    let mut found = None;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expression| {
            expression.apply(|inner| {
                if let Expr::ScalarFunction(function) = inner
                    && function.func.signature().volatility != Volatility::Immutable
                    && !LOOKING_UP.contains(&function.name())
                    && !asks_one_version(function)
                {
                    found = Some(function.name().to_owned());
                    return Ok(TreeNodeRecursion::Stop);
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    match found {
        None => Ok(()),
        Some(name) => Err(SqlError::unsupported(format!(
            "{name}() answers something else each time; what is derived must come out the same when it is rebuilt"
        ))
        .hint("_recorded_at is when the log took an event, _event_time what the event says of itself")),
    }
}

/// Whether a function asks a model for one version of it: what that says never changes.
fn asks_one_version(function: &ScalarFunction) -> bool {
    let name = function.args.first().and_then(|name| match name {
        Expr::Literal(name, _) => name.try_as_str().flatten(),
        _ => None,
    });
    function.name() == SCORE && name.is_some_and(|name| split_version(name).1.is_some())
}

fn storable(name: &str, data_type: &DataType) -> Result<DataType, SqlError> {
    crate::dialect::stored_type(data_type).ok_or_else(|| {
        SqlError::unsupported(format!(
            "column \"{name}\" would have type {data_type}, which can't be stored; CAST it"
        ))
    })
}
