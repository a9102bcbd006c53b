//! Parts of a question that WITH names and others use twice. Thirty lines that use the line before twice are a
//! billion relations when they are put in, so they are counted before that.

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;

use datafusion::sql::parser::Statement as DFStatement;
use datafusion::sql::sqlparser::ast::{ObjectName, Query, Visit, Visitor};

use crate::dialect::SqlError;

/// Relations that a question may read, each as often as it is used.
const MOST_RELATIONS: u64 = 1_000;

/// Refuses a question that is too large when all its parts are put in.
pub(super) fn check(statement: &DFStatement) -> Result<(), SqlError> {
    let counted = match statement {
        DFStatement::Explain(explain) => return check(&explain.statement),
        DFStatement::Statement(statement) => statement.visit(&mut Counter::default()),
        _ => return Ok(()),
    };
    if counted.is_break() {
        return Err(SqlError::new(
            "unsupported_sql",
            format!("the question reads more than {MOST_RELATIONS} relations when the parts that WITH names are put in"),
        )
        .hint("use fewer parts several times"));
    }
    Ok(())
}

/// A query that is being visited.
#[derive(Default)]
struct Level {
    /// Names of its parts that have not been visited.
    parts: VecDeque<String>,
    relations: u64,
}

#[derive(Default)]
struct Counter {
    levels: Vec<Level>,
    /// Relations behind the names of parts.
    known: HashMap<String, u64>,
}

impl Visitor for Counter {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let parts = query.with.iter().flat_map(|with| &with.cte_tables);
        let parts = parts.map(|part| part.alias.name.value.to_ascii_lowercase()).collect();
        self.levels.push(Level { parts, relations: 0 });
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _query: &Query) -> ControlFlow<()> {
        let Some(Level { relations, .. }) = self.levels.pop() else { return ControlFlow::Continue(()) };
        let Some(outer) = self.levels.last_mut() else { return ControlFlow::Continue(()) };
        // The parts of a query are visited first, in their order.
        match outer.parts.pop_front() {
            Some(name) => drop(self.known.insert(name, relations)),
            None => outer.relations = outer.relations.saturating_add(relations),
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        let behind = self.known.get(&relation.to_string().replace('"', "").to_ascii_lowercase());
        let behind = behind.copied().unwrap_or(1).max(1);
        let Some(level) = self.levels.last_mut() else { return ControlFlow::Continue(()) };
        level.relations = level.relations.saturating_add(behind);
        if level.relations > MOST_RELATIONS { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}
