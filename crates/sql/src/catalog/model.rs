//! Models: what is learnt, and from which rows.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::sql::sqlparser::ast::{Query, SetExpr};
use highwater_event::{StreamName, columns};
use highwater_model::MOST_FEATURES;

use super::{Catalog, Endpoint, names_read};
use crate::adhoc;
use crate::dialect::{Answers, SqlError, parse_query};
use crate::functions::is_feature;
use crate::session::Engine;

/// A declared model.
#[derive(Debug)]
pub struct ModelEntry {
    /// Its name.
    pub name: StreamName,
    /// The column that says whether it is so.
    pub label: String,
    /// The columns that it learns from, in order.
    pub features: Vec<String>,
    /// The newest rows, newest first, with features, label and event time.
    pub rows: Arc<Endpoint>,
    /// Names that the statement reads.
    pub reads: BTreeSet<StreamName>,
    /// The statement.
    pub text: String,
}

impl Catalog {
    /// Plans a model.
    pub(super) async fn plan_model(
        &self,
        engine: &Engine,
        (name, label): (&StreamName, String),
        mut query: Box<Query>,
        text: String,
    ) -> Result<ModelEntry, SqlError> {
        let invalid = |detail: String| SqlError::new("invalid_schema", detail);
        if !matches!(&*query.body, SetExpr::Select(select) if select.distinct.is_none())
            || query.order_by.is_some()
            || query.limit_clause.is_some()
            || query.fetch.is_some()
        {
            return Err(SqlError::unsupported(
                "a model learns from one SELECT without DISTINCT, ORDER BY and LIMIT",
            )
            .hint("the engine takes the newest rows itself"));
        }
        let most = highwater_model::MOST_ROWS;
        let newest = parse_query(&format!("SELECT 1 ORDER BY {} DESC LIMIT {most}", columns::EVENT_TIME))?;
        query.order_by = newest.order_by;
        query.limit_clause = newest.limit_clause;
        let answered = adhoc::check_endpoint(engine, self, &[], &query).await?;
        let time = answered.iter().find(|column| column.name == columns::EVENT_TIME);
        if time.is_none_or(|column| column.data_type != columns::timestamp_type()) {
            return Err(invalid(format!("the query of a model must answer {}", columns::EVENT_TIME)).hint(
                "select _event_time, too: a model learns from earlier rows and is judged by later ones",
            ));
        }
        let labelled = answered.iter().find(|column| column.name == label);
        match labelled.map(|column| &column.data_type) {
            Some(DataType::Boolean) => {}
            Some(other) => {
                return Err(invalid(format!("\"{label}\" must be true or false, not {other}"))
                    .hint(format!("say what it is: SELECT (… = …) AS {label}")));
            }
            None => return Err(invalid(format!("the query does not answer the column \"{label}\""))),
        }
        let features = answered.iter().filter(|column| column.name != label && !column.name.starts_with('_'));
        let mut names = Vec::new();
        for column in features {
            if !is_feature(&column.data_type) {
                return Err(invalid(format!(
                    "\"{}\" is {}; a model learns from numbers and truth values",
                    column.name, column.data_type
                ))
                .hint(format!("say what counts about it: SELECT ({} = '…') AS …", column.name)));
            }
            names.push(column.name.clone());
        }
        if names.is_empty() || names.len() > MOST_FEATURES {
            return Err(invalid(format!("a model learns from 1 to {MOST_FEATURES} columns")));
        }
        let reads = names_read(&query);
        let rows = Endpoint {
            path: format!("model:{name}"),
            parameters: Vec::new(),
            permission: String::new(),
            answers: Answers::Rows,
            posted: false,
            query,
            columns: answered.clone(),
            reads: reads.clone(),
            text: text.clone(),
        };
        Ok(ModelEntry { name: name.clone(), label, features: names, rows: Arc::new(rows), reads, text })
    }
}
