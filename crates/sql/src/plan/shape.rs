//! The shape that continuous statements may have.

use datafusion::sql::sqlparser::ast::{Expr, Query, Select, SetExpr, Spanned, TableFactor, Visit, Visitor};
use std::ops::ControlFlow;

use highwater_event::StreamName;

use crate::dialect::SqlError;

/// The SELECT of a continuous statement and the stream that it reads.
pub fn source_of(query: &Query) -> Result<StreamName, SqlError> {
    let select = simple_select(query)?;
    let [from] = select.from.as_slice() else {
        let error = SqlError::unsupported("a continuous statement reads exactly one stream: FROM stream");
        return Err(match select.from.get(1) {
            Some(second) => error.at(second.span()),
            None => error.at(select.span()),
        });
    };
    if let Some(join) = from.joins.first() {
        return Err(SqlError::unsupported("JOIN in a continuous statement is not supported yet")
            .at(join.relation.span())
            .hint("look small tables up with lookup('table', 'column', key) or in_reference('table', key)"));
    }
    match &from.relation {
        TableFactor::Table { name, args: None, .. } => {
            let [part] = name.0.as_slice() else {
                return Err(SqlError::new("invalid_name", format!("\"{name}\" is not the name of a stream"))
                    .at(name.span()));
            };
            let text = part.as_ident().map_or_else(|| part.to_string(), |ident| ident.value.clone());
            StreamName::new(&text)
                .map_err(|error| SqlError::new("invalid_name", error.to_string()).at(name.span()))
        }
        other => Err(SqlError::unsupported(
            "a continuous statement reads a stream by its name; subqueries in FROM are not supported",
        )
        .at(other.span())),
    }
}

fn simple_select(query: &Query) -> Result<&Select, SqlError> {
    let SetExpr::Select(select) = query.body.as_ref() else {
        return Err(SqlError::unsupported(
            "a continuous statement is one SELECT; UNION and the like are not supported yet",
        )
        .at(query.span()));
    };
    if query.with.is_some() {
        return Err(SqlError::unsupported("WITH is not supported in a continuous statement").at(query.span()));
    }
    if let Some(order) = &query.order_by {
        return Err(SqlError::unsupported(
            "ORDER BY has no meaning in a continuous statement: sort when you read",
        )
        .at(order.span()));
    }
    if query.limit_clause.is_some() || query.fetch.is_some() {
        return Err(SqlError::unsupported(
            "LIMIT has no meaning in a continuous statement: limit when you read",
        )
        .at(select.span()));
    }
    if select.distinct.is_some() {
        return Err(SqlError::unsupported(
            "DISTINCT is not supported in a continuous statement; use GROUP BY in a table",
        )
        .at(select.span()));
    }
    if let Some(having) = &select.having {
        return Err(SqlError::unsupported(
            "HAVING is not supported yet in a continuous statement: filter when you read",
        )
        .at(having.span()));
    }
    if let ControlFlow::Break(error) = query.visit(&mut Subqueries) {
        return Err(*error);
    }
    Ok(select)
}

struct Subqueries;

impl Visitor for Subqueries {
    type Break = Box<SqlError>;

    fn pre_visit_expr(&mut self, expression: &Expr) -> ControlFlow<Self::Break> {
        let message = match expression {
            Expr::Subquery(_) | Expr::Exists { .. } | Expr::InSubquery { .. } => {
                "subqueries are not supported in a continuous statement"
            }
            Expr::Function(function) if function.over.is_some() => {
                "window functions (OVER) are not supported in a continuous statement"
            }
            _ => return ControlFlow::Continue(()),
        };
        ControlFlow::Break(Box::new(SqlError::unsupported(message).at(expression.span())))
    }
}
