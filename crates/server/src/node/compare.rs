//! Compares a new version of a statement with the one whose place it is about to take, so that everybody
//! can look up what a redefinition changed.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use datafusion::catalog::TableProvider;
use highwater_event::StreamName;
use highwater_lake::Moment;
use highwater_log::fold::Program;
use highwater_sql::SqlError;
use highwater_sql::adhoc::{self, Lens, rows_relation};
use highwater_sql::catalog::{Building, Catalog, Planned, StreamEntry, TableEntry};
use highwater_sql::dialect::quoted;
use highwater_sql::stream::TableRows;
use highwater_sql::stream::table::{Extent, LAST_UPDATED_AT};
use serde::Serialize;

use super::{Fixed, Node, QUERY_LIMITS};

/// Versions with more rows are compared by their number only.
const MAX_ROWS: i64 = 1_000_000;

/// What a new version changes.
#[derive(Debug, Default, Serialize)]
pub(super) struct Compared {
    name: String,
    /// Rows of its sources that the new version had not applied yet: they count as differences.
    rows_behind: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    rows_before: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rows_after: Option<i64>,
    columns_added: Vec<String>,
    columns_removed: Vec<String>,
    /// Rows that the new version does not have, by the columns that both have.
    #[serde(skip_serializing_if = "Option::is_none")]
    rows_only_before: Option<i64>,
    /// Rows that the old version did not have.
    #[serde(skip_serializing_if = "Option::is_none")]
    rows_only_after: Option<i64>,
    /// Why rows could not be compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_compared: Option<String>,
}

/// One version: what it answers and the columns that it declares.
struct Version {
    rows: Arc<dyn TableProvider>,
    columns: Vec<String>,
}

impl Node {
    /// Compares each part of a building with what it replaces; parts that are new are left out. Only
    /// numbers come out, so values are compared and not their masks.
    pub(super) async fn compare(self: &Arc<Self>, building: &Arc<Building>) -> Vec<Compared> {
        let (node, building) = (self.clone(), building.clone());
        let compared = self.queries.spawn(async move { node.compare_all(&node.catalog(), &building).await });
        compared.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a comparison ended in a panic");
            Vec::new()
        })
    }

    async fn compare_all(&self, before: &Catalog, building: &Building) -> Vec<Compared> {
        let mut all = Vec::new();
        for member in &building.members {
            let versions = match member {
                Planned::Stream(entry) => {
                    let name = entry.schema.name.at_version(1);
                    before.streams.get(&name).map(|old| (name, Pair::Stream(old.clone(), entry.clone())))
                }
                Planned::Table(entry) => {
                    let name = entry.program.table().at_version(1);
                    before.tables.get(&name).map(|old| (name, Pair::Table(old.clone(), entry.clone())))
                }
                _ => None,
            };
            if let Some((name, pair)) = versions {
                all.push(self.compare_pair(&name, &pair).await.unwrap_or_else(|error| Compared {
                    name: name.to_string(),
                    not_compared: Some(error.message),
                    ..Compared::default()
                }));
            }
        }
        all
    }

    async fn compare_pair(&self, name: &StreamName, pair: &Pair) -> Result<Compared, SqlError> {
        let rows_behind = self.driver.status(&pair.view()).map_or(0, |status| status.lag);
        if let Pair::Table(old, new) = pair
            && (self.is_large(old)? || self.is_large(new)?)
        {
            let not_compared = Some(format!("more than {MAX_ROWS} groups"));
            return Ok(Compared { name: name.to_string(), rows_behind, not_compared, ..Compared::default() });
        }
        let (before, after) = match pair {
            Pair::Stream(old, new) => (self.stream_version(old).await?, self.stream_version(new).await?),
            Pair::Table(old, new) => (self.table_version(old).await?, self.table_version(new).await?),
        };
        let known: BTreeSet<&String> = before.columns.iter().collect();
        let wanted: BTreeSet<&String> = after.columns.iter().collect();
        let only = |a: &BTreeSet<&String>, b: &BTreeSet<&String>| {
            a.difference(b).map(|column| (*column).clone()).collect::<Vec<_>>()
        };
        let mut compared = Compared {
            name: name.to_string(),
            rows_behind,
            columns_added: only(&wanted, &known),
            columns_removed: only(&known, &wanted),
            ..Compared::default()
        };
        // When a group was last folded says nothing of what it holds.
        let is_told =
            |column: &&&String| matches!(pair, Pair::Stream(..)) || column.as_str() != LAST_UPDATED_AT;
        let common = known.intersection(&wanted).filter(is_told);
        let common: Vec<String> = common.map(|column| quoted(column)).collect();
        let relations =
            Arc::new(Fixed::several([("before".to_owned(), before.rows), ("after".to_owned(), after.rows)]));
        let count = "SELECT (SELECT count(*) FROM before) AS b, (SELECT count(*) FROM after) AS a";
        let [rows_before, rows_after] = self.two_numbers(&relations, count.into()).await?;
        (compared.rows_before, compared.rows_after) = (Some(rows_before), Some(rows_after));
        if rows_before.max(rows_after) > MAX_ROWS {
            compared.not_compared = Some(format!("more than {MAX_ROWS} rows"));
            return Ok(compared);
        }
        let common = common.join(", ");
        let separator = if common.is_empty() { "" } else { ", " };
        let group = if common.is_empty() { String::new() } else { format!(" GROUP BY {common}") };
        // Rows are counted, not just looked for: both versions may hold one several times.
        let differences = format!(
            "SELECT coalesce(sum(CASE WHEN b > a THEN b - a ELSE 0 END), 0), coalesce(sum(CASE WHEN a > b THEN a - b ELSE 0 END), 0) FROM \
             (SELECT sum(b) AS b, sum(a) AS a FROM (SELECT 1 AS b, 0 AS a{separator}{common} FROM before UNION ALL SELECT 0, 1{separator}{common} FROM after){group})"
        );
        match self.two_numbers(&relations, differences).await {
            Ok([only_before, only_after]) => {
                (compared.rows_only_before, compared.rows_only_after) = (Some(only_before), Some(only_after));
            }
            Err(error) => compared.not_compared = Some(error.message),
        }
        Ok(compared)
    }

    async fn stream_version(&self, entry: &StreamEntry) -> Result<Version, SqlError> {
        let columns = entry.schema.columns.iter().map(|column| column.name.clone()).collect();
        let mut schema = entry.schema.as_ref().clone();
        schema.options.sensitive.clear();
        schema.columns.iter_mut().for_each(|column| column.sensitive = false);
        Ok(Version { rows: self.stream_at(&schema, Moment::Now, Lens::default()).await?, columns })
    }

    async fn table_version(&self, entry: &TableEntry) -> Result<Version, SqlError> {
        let program = &entry.program;
        let rows = self.running_rows(entry)?;
        let rows = rows.read(Extent::All).await?;
        let columns = program.schema().fields().iter().map(|field| field.name().clone()).collect();
        let rows = rows_relation(&self.engine, program.schema().clone(), rows, &[], &Lens::default())?;
        Ok(Version { rows, columns })
    }

    fn running_rows(&self, entry: &TableEntry) -> Result<Arc<TableRows>, SqlError> {
        let program = &entry.program;
        let missing = || SqlError::new("internal", format!("the table {} is not running", program.table()));
        self.rows_of(program).ok_or_else(missing)
    }

    fn is_large(&self, entry: &TableEntry) -> Result<bool, SqlError> {
        let count = self.running_rows(entry)?.count_states(MAX_ROWS as usize + 1);
        Ok(count.map_err(|error| SqlError::new("internal", error.to_string()))? > MAX_ROWS as usize)
    }

    async fn two_numbers(&self, relations: &Arc<Fixed>, sql: String) -> Result<[i64; 2], SqlError> {
        let answer = adhoc::query(&self.engine, relations.clone(), &sql, Vec::new(), QUERY_LIMITS).await?;
        let number = |at: usize| {
            let column = answer.batches.first().map(|rows| rows.column(at).clone());
            column.and_then(|column| column.as_primitive_opt::<Int64Type>().map(|values| values.value(0)))
        };
        match (number(0), number(1)) {
            (Some(first), Some(second)) => Ok([first, second]),
            _ => Err(SqlError::new("internal", "a count has no answer")),
        }
    }
}

/// The old and the new version of something.
enum Pair {
    Stream(Arc<StreamEntry>, Arc<StreamEntry>),
    Table(Arc<TableEntry>, Arc<TableEntry>),
}

impl Pair {
    /// The view that keeps the new version up.
    fn view(&self) -> String {
        match self {
            Self::Stream(_, new) => format!("stream:{}", new.schema.name),
            Self::Table(_, new) => new.program.name().to_string(),
        }
    }
}
