//! Streams and tables as relations of a query.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::catalog::TableProvider;
use datafusion::common::ScalarValue;
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, cast, ident, lit};
use highwater_event::name::nearest;
use highwater_event::{StreamName, StreamSchema, columns};

use super::decrypt::Decrypt;
use super::held::Held;
use super::index::RowIndex;
use super::indexed::Indexed;
use super::keyed::Keyed;
use super::lens::Lens;
use crate::catalog::Catalog;
use crate::dialect::{Asker, Rule, SqlError};
use crate::session::Engine;
use crate::stream::TableRows;
use crate::stream::table::Extent;

/// A UTC day: its zero-padded parts and its bounds in microseconds, the second exclusive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Day {
    /// Year, month, day.
    pub parts: (String, String, String),
    /// First microsecond, and the first one after.
    pub bounds: (i64, i64),
}

/// The rows of a stream at one moment.
#[derive(Default)]
pub struct StreamRows<'a> {
    /// Rows of the lake below its marks. Texts are [`DataType::Utf8View`] there.
    pub lake: Option<Arc<dyn TableProvider>>,
    /// An index over them, if there is one.
    pub index: Option<Arc<dyn RowIndex>>,
    /// Rows of the log from the marks of that very lake on.
    pub hot: Vec<RecordBatch>,
    /// Rows that were recorded before it are not seen, microseconds UTC.
    pub oldest: Option<i64>,
    /// The UTC day whose rows are meant; all without it.
    pub day: Option<&'a Day>,
    /// A column of the lake's that is shown after the stream's own, a whole number; null for rows of the log.
    pub beside: Option<&'a str>,
    /// What is seen of them.
    pub lens: Lens,
}

/// A stream as one relation.
pub fn stream_relation(
    engine: &Engine,
    stream: &StreamSchema,
    rows: StreamRows<'_>,
) -> Result<Arc<dyn TableProvider>, SqlError> {
    let StreamRows { lake, index, hot, oldest, day, beside, lens } = rows;
    let mut schema = stream.reader_schema();
    let all_in_lake = lake.is_some() && hot.iter().all(|batch| batch.num_rows() == 0);
    let hot = Held::new(schema.clone(), hot);
    let lake = match (lake, index) {
        (Some(lake), Some(index)) => Some(Arc::new(Indexed::new(lake, index)) as Arc<dyn TableProvider>),
        (lake, _) => lake,
    };
    let views = lake.is_some();
    let as_there = |field: &Field| match field.data_type() {
        DataType::Utf8 if views => DataType::Utf8View,
        other => other.clone(),
    };
    let mut names: Vec<Expr> = schema
        .fields()
        .iter()
        .map(|field| match as_there(field) {
            same if same == *field.data_type() => ident(field.name()),
            view => cast(ident(field.name()), view).alias(field.name()),
        })
        .collect();
    if let Some(beside) = beside {
        names.push(lit(ScalarValue::Int32(None)).alias(beside));
        let beside = Arc::new(Field::new(beside, DataType::Int32, true));
        schema = Arc::new(Schema::new(schema.fields().iter().cloned().chain([beside]).collect::<Vec<_>>()));
    }
    let mut plan =
        LogicalPlanBuilder::scan("log", provider_as_source(Arc::new(hot)), None)?.project(names)?;
    if let Some(day) = day {
        plan = plan.filter(within(day))?;
    }
    if let Some(lake) = lake {
        let mut cold = LogicalPlanBuilder::scan("lake", provider_as_source(lake), None)?;
        if let Some(day) = day {
            let (year, month, date) = day.parts.clone();
            cold = cold.filter(
                ident("year")
                    .eq(lit(year))
                    .and(ident("month").eq(lit(month)))
                    .and(ident("day").eq(lit(date))),
            )?;
        }
        // An earlier version lacks the columns that were added since.
        let known = cold.schema().fields().iter().map(|field| field.name().clone()).collect::<Vec<_>>();
        let decrypt = Decrypt::of(engine, stream)?;
        let columns = schema.fields().iter().map(|field| {
            if known.contains(field.name()) {
                return Ok(match &decrypt {
                    Some(decrypt) => decrypt.column(field, as_there(field)),
                    // Delta has names of its own for what a map is made of.
                    None if matches!(field.data_type(), DataType::Map(..)) => {
                        cast(ident(field.name()), field.data_type().clone()).alias(field.name())
                    }
                    None => ident(field.name()),
                });
            }
            let null = ScalarValue::try_from(&as_there(field))?;
            Ok(lit(null).alias(field.name()))
        });
        let columns = columns.collect::<Result<Vec<Expr>, datafusion::common::DataFusionError>>()?;
        let cold = cold.project(columns)?;
        // A branch without rows would hide from the planner what it knows of the other.
        plan = if all_in_lake { cold } else { plan.union(cold.build()?)? };
    }
    if let Some(oldest) = oldest {
        plan = plan.filter(ident(columns::RECORDED_AT).gt_eq(at(oldest)))?;
    }
    lens.relation(engine, plan.build()?, &schema, &sensitive_columns(stream))
}

/// The columns of a stream whose mask readers see.
pub(super) fn sensitive_columns(stream: &StreamSchema) -> Vec<&str> {
    let columns = stream.columns.iter().map(|column| column.name.as_str());
    let mut sensitive: Vec<&str> = columns.filter(|column| stream.is_sensitive(column)).collect();
    if !sensitive.is_empty() {
        // What an event says beyond its declared members may be as secret as they are.
        sensitive.push(columns::EXTRA);
    }
    sensitive
}

fn at(micros: i64) -> Expr {
    lit(ScalarValue::TimestampMicrosecond(Some(micros), Some("UTC".into())))
}

fn within(day: &Day) -> Expr {
    ident(columns::EVENT_TIME).gt_eq(at(day.bounds.0)).and(ident(columns::EVENT_TIME).lt(at(day.bounds.1)))
}

/// A table, or a part of it, as a relation: what a question needs is read when it is asked.
pub fn table_relation(
    engine: &Engine,
    rows: Arc<TableRows>,
    extent: Extent,
    lens: &Lens,
) -> Result<Arc<dyn TableProvider>, SqlError> {
    let program = rows.program().clone();
    seen_table(engine, Arc::new(Keyed::new(rows, extent)), program.sensitive(), lens)
}

/// Rows of a table as a relation.
pub fn rows_relation(
    engine: &Engine,
    schema: SchemaRef,
    rows: Vec<RecordBatch>,
    sensitive: &[String],
    lens: &Lens,
) -> Result<Arc<dyn TableProvider>, SqlError> {
    seen_table(engine, Arc::new(Held::new(schema, rows)), sensitive, lens)
}

fn seen_table(
    engine: &Engine,
    table: Arc<dyn TableProvider>,
    sensitive: &[String],
    lens: &Lens,
) -> Result<Arc<dyn TableProvider>, SqlError> {
    let schema = table.schema();
    if sensitive.is_empty() && *lens == Lens::default() {
        return Ok(table);
    }
    let plan = LogicalPlanBuilder::scan("rows", provider_as_source(table), None)?.build()?;
    let sensitive: Vec<&str> = sensitive.iter().map(String::as_str).collect();
    lens.relation(engine, plan, &schema, &sensitive)
}

/// Checks what a row filter or column mask says against the relation that it is about.
pub fn check_rule(
    engine: &Engine,
    catalog: &Catalog,
    relation: &StreamName,
    rule: &Rule,
) -> Result<(), SqlError> {
    let schema = if let Some(entry) = catalog.streams.get(relation) {
        entry.schema.reader_schema()
    } else if let Some(entry) = catalog.tables.get(relation) {
        entry.program.schema().clone()
    } else {
        return Err(SqlError::new("relation_not_found", format!("no stream or table \"{relation}\"")));
    };
    let somebody = Asker { user: "somebody", tenant: "a tenant" };
    let lens = match rule {
        Rule::RowFilter { using } => Lens { filters: vec![somebody.of(using)], ..Lens::default() },
        Rule::ColumnMask { column, using, .. } => {
            if schema.field_with_name(column).is_err() {
                let error =
                    SqlError::new("invalid_schema", format!("\"{relation}\" has no column \"{column}\""));
                let names = schema.fields().iter().map(|field| field.name().as_str());
                return Err(match nearest(column, names) {
                    Some(near) => error.hint(format!("did you mean \"{near}\"?")),
                    None => error,
                });
            }
            Lens { masks: vec![(column.clone(), somebody.of(using))], ..Lens::default() }
        }
        Rule::Policy { .. } => return Ok(()),
    };
    let rows = provider_as_source(Arc::new(Held::new(schema.clone(), Vec::new())));
    let scan = LogicalPlanBuilder::scan("rows", rows, None)?.build()?;
    let plan = lens.over(engine, scan, &schema, &[])?;
    engine.state().optimize(&plan)?;
    Ok(())
}
