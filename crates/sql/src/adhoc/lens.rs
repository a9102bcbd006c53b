//! What a reader sees of a relation: which rows, and what stands in the place of columns. It is put inside the
//! plan, below everything that a question says, so that no door leads around it.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::datasource::ViewTable;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, cast, ident};

use highwater_event::planted;

use super::behind::Behind;
use crate::dialect::SqlError;
use crate::session::Engine;

/// A reader's view of one relation. The usual one shows every row, and the mask of what is SENSITIVE.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Lens {
    /// Conditions, as SQL over the columns as they are: a row is seen when all of them hold.
    pub filters: Vec<String>,
    /// Columns with what is seen in their place, as SQL over the columns as they are.
    pub masks: Vec<(String, String)>,
    /// What is SENSITIVE is shown as it is.
    pub revealed: bool,
}

impl Lens {
    /// What it does, in words for the audit trail; `None` for the usual one.
    pub fn describe(&self) -> Option<String> {
        let masked = self.masks.iter().map(|(column, _)| column.as_str()).collect::<Vec<_>>().join(", ");
        let mut parts = Vec::new();
        if !self.filters.is_empty() {
            parts.push(format!("rows where {}", self.filters.join(" and ")));
        }
        if !masked.is_empty() {
            parts.push(format!("masked: {masked}"));
        }
        if self.revealed {
            parts.push("SENSITIVE columns revealed".into());
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }

    /// The rows of a plan as a relation that is seen through the lens; `sensitive` are the columns whose mask is usual.
    pub(super) fn relation(
        &self,
        engine: &Engine,
        plan: LogicalPlan,
        schema: &SchemaRef,
        sensitive: &[&str],
    ) -> Result<Arc<dyn TableProvider>, SqlError> {
        let plan = self.over(engine, plan, schema, sensitive)?;
        if self.filters.is_empty() || planted::bug("no_wall") {
            return Ok(Arc::new(ViewTable::new(plan, None)));
        }
        let masked = self.masks.iter().map(|(column, _)| column.as_str());
        let usual = if self.revealed { &[][..] } else { sensitive };
        let hidden: Vec<&str> = masked.chain(usual.iter().copied()).collect();
        Ok(Arc::new(Behind::new(plan, &hidden)))
    }

    /// A plan as it is seen through the lens; `sensitive` are the columns whose mask is usual.
    pub(super) fn over(
        &self,
        engine: &Engine,
        mut plan: LogicalPlan,
        schema: &SchemaRef,
        sensitive: &[&str],
    ) -> Result<LogicalPlan, SqlError> {
        let state = engine.state();
        for filter in &self.filters {
            let condition = state.create_logical_expr(filter, plan.schema())?;
            plan = LogicalPlanBuilder::new(plan).filter(condition)?.build()?;
        }
        let sensitive = if self.revealed { &[][..] } else { sensitive };
        if sensitive.is_empty() && self.masks.is_empty() {
            return Ok(plan);
        }
        let mask = state.scalar_functions().get("mask").cloned();
        let mask = mask.ok_or_else(|| SqlError::new("internal", "the mask function is missing"))?;
        let columns = schema.fields().iter().map(|field| {
            let name = field.name();
            let own = self.masks.iter().find(|(column, _)| column == name);
            Ok(match own {
                // Of the column's own type, so that a mask changes no question's types.
                Some((_, sql)) => {
                    cast(state.create_logical_expr(sql, plan.schema())?, field.data_type().clone())
                        .alias(name)
                }
                None if sensitive.contains(&name.as_str()) => mask.call(vec![ident(name)]).alias(name),
                None => ident(name),
            })
        });
        let columns = columns.collect::<Result<Vec<Expr>, SqlError>>()?;
        Ok(LogicalPlanBuilder::new(plan).project(columns)?.build()?)
    }
}
