//! The shape that continuous statements may have.

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, JoinConstraint, JoinOperator, Query, Select, SetExpr, Spanned, TableFactor, Visit,
    Visitor,
};
use std::ops::ControlFlow;

use highwater_event::StreamName;

use crate::dialect::SqlError;

/// What a continuous statement reads.
#[derive(Debug, Clone)]
pub struct Reads {
    /// The stream in FROM.
    pub source: StreamName,
    /// What it is joined with.
    pub join: Option<JoinShape>,
}

/// The JOIN of a continuous statement.
#[derive(Debug, Clone)]
pub struct JoinShape {
    /// The stream or table on the right.
    pub right: StreamName,
    /// Rows of the left without a match are kept.
    pub outer: bool,
    /// ASOF: the newest row of the right up to the time of the left.
    pub as_of: bool,
    /// The place of the right side.
    pub span: datafusion::sql::sqlparser::tokenizer::Span,
}

/// What the SELECT of a continuous statement reads. An ASOF JOIN becomes a plain one whose ON holds the
/// match condition too, for planning.
pub fn reads_of(query: &mut Query) -> Result<Reads, SqlError> {
    let select = simple_select(query)?;
    let [from] = select.from.as_slice() else {
        let error = SqlError::unsupported(
            "a continuous statement reads a stream: FROM stream, or FROM stream JOIN other ON …",
        );
        return Err(match select.from.get(1) {
            Some(second) => error.at(second.span()),
            None => error.at(select.span()),
        });
    };
    let source = relation_name(&from.relation)?;
    let join = match from.joins.as_slice() {
        [] => None,
        [join] => {
            let (outer, as_of) = match &join.join_operator {
                JoinOperator::Join(JoinConstraint::On(_)) | JoinOperator::Inner(JoinConstraint::On(_)) => {
                    (false, false)
                }
                JoinOperator::Left(JoinConstraint::On(_))
                | JoinOperator::LeftOuter(JoinConstraint::On(_)) => (true, false),
                JoinOperator::AsOf { constraint: JoinConstraint::On(_), .. } => (true, true),
                _ => {
                    return Err(SqlError::unsupported(
                        "a continuous statement joins with [INNER] JOIN … ON, LEFT JOIN … ON, or ASOF JOIN … MATCH_CONDITION (…) ON",
                    )
                    .at(join.relation.span()));
                }
            };
            Some(JoinShape {
                right: relation_name(&join.relation)?,
                outer,
                as_of,
                span: join.relation.span(),
            })
        }
        [_, second, ..] => {
            return Err(SqlError::unsupported("a continuous statement joins two sides")
                .at(second.relation.span())
                .hint("derive a stream from the first join, and join that one"));
        }
    };
    if join.as_ref().is_some_and(|join| join.as_of) {
        plain_join(query);
    }
    Ok(Reads { source, join })
}

/// `a ASOF JOIN b MATCH_CONDITION (m) ON c` becomes `a LEFT JOIN b ON c AND m`.
fn plain_join(query: &mut Query) {
    let SetExpr::Select(select) = query.body.as_mut() else { return };
    for join in select.from.iter_mut().flat_map(|from| &mut from.joins) {
        if let JoinOperator::AsOf { match_condition, constraint: JoinConstraint::On(on) } =
            &join.join_operator
        {
            let both = Expr::BinaryOp {
                left: Box::new(Expr::Nested(Box::new(on.clone()))),
                op: BinaryOperator::And,
                right: Box::new(Expr::Nested(Box::new(match_condition.clone()))),
            };
            join.join_operator = JoinOperator::Left(JoinConstraint::On(both));
        }
    }
}

fn relation_name(relation: &TableFactor) -> Result<StreamName, SqlError> {
    match relation {
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
