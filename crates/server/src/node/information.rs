//! What the node knows about itself, as relations: `_streams`, `_tables`, `_columns`, `_endpoints`,
//! `_views`, `_schedules`. SHOW and DESCRIBE are questions about them.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::error::ArrowError;
use datafusion::catalog::{MemTable, TableProvider};
use highwater_auth::{Asked, Identity};
use highwater_event::{Principal, StreamName, StreamPartition, time};
use highwater_sql::SqlError;
use highwater_sql::adhoc::QueryResult;
use highwater_sql::catalog::ScheduleEntry;
use highwater_sql::dialect::{column_type, sql_type};
use highwater_sql::stream::Step;

use super::{DeclareError, FORBIDDEN, Node, Script};

/// The relations, for messages.
pub(super) const NAMES: [&str; 6] = ["_streams", "_tables", "_columns", "_endpoints", "_views", "_schedules"];

/// A relation that is put together column by column.
struct Rows {
    fields: Vec<Field>,
    columns: Vec<ArrayRef>,
}

impl Rows {
    fn new() -> Self {
        Self { fields: Vec::new(), columns: Vec::new() }
    }

    fn text<T: AsRef<str>>(mut self, name: &str, values: impl Iterator<Item = Option<T>>) -> Self {
        self.fields.push(Field::new(name, DataType::Utf8, true));
        self.columns.push(Arc::new(values.collect::<StringArray>()));
        self
    }

    fn int(mut self, name: &str, values: impl Iterator<Item = Option<i64>>) -> Self {
        self.fields.push(Field::new(name, DataType::Int64, true));
        self.columns.push(Arc::new(values.collect::<Int64Array>()));
        self
    }

    fn flag(mut self, name: &str, values: impl Iterator<Item = bool>) -> Self {
        self.fields.push(Field::new(name, DataType::Boolean, true));
        self.columns.push(Arc::new(values.map(Some).collect::<BooleanArray>()));
        self
    }

    fn batch(self) -> Result<RecordBatch, ArrowError> {
        RecordBatch::try_new(Arc::new(Schema::new(self.fields)), self.columns)
    }
}

/// A declared column: relation, name, type, not null, sensitive.
type ColumnRow = (String, String, String, bool, bool);

impl Node {
    /// A relation about the node itself.
    pub(super) fn information(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, SqlError> {
        let rows = match name {
            "_streams" => self.stream_rows(),
            "_tables" => self.table_rows(),
            "_columns" => self.column_rows(),
            "_endpoints" => self.endpoint_rows(),
            "_schedules" => self.schedule_rows(),
            "_views" => self.view_rows(),
            _ => return Ok(None),
        };
        let batch = rows.batch().map_err(|error| SqlError::new("internal", error.to_string()))?;
        Ok(Some(Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?)))
    }

    fn stream_rows(&self) -> Rows {
        let catalog = self.catalog();
        let entries: Vec<_> = catalog.streams.values().collect();
        let events = |schema: &highwater_event::StreamSchema| -> i64 {
            let partitions = self.log.partitions(&schema.name).into_iter();
            partitions
                .map(|partition| self.log.end(&StreamPartition::new(schema.name.clone(), partition)) as i64)
                .sum()
        };
        let origin = |entry: &highwater_sql::StreamEntry| match &entry.derivation {
            Some(derivation) => derivation.origin(),
            None if entry.schema.raw => "door".to_owned(),
            None => "engine".to_owned(),
        };
        Rows::new()
            .text("name", entries.iter().map(|entry| Some(entry.schema.name.public())))
            .text("origin", entries.iter().map(|entry| Some(origin(entry))))
            .int("events", entries.iter().map(|entry| Some(events(&entry.schema))))
            .int("partitions", entries.iter().map(|entry| Some(i64::from(entry.schema.options.partitions))))
            .flag("lake", entries.iter().map(|entry| entry.schema.options.lake))
            .int("version", entries.iter().map(|entry| Some(i64::from(entry.schema.name.version()))))
            .text("sql", entries.iter().map(|entry| (!entry.text.is_empty()).then_some(entry.text.as_str())))
    }

    fn table_rows(&self) -> Rows {
        let catalog = self.catalog();
        let tables: Vec<_> = catalog
            .tables
            .values()
            .map(|entry| {
                (
                    "table",
                    entry.program.table().clone(),
                    Some(entry.program.source().name.public().to_owned()),
                    entry.text.clone(),
                )
            })
            .collect();
        let references = catalog
            .references
            .values()
            .map(|entry| ("reference", entry.table.name.clone(), None, entry.text.clone()));
        let rows: Vec<_> = tables.into_iter().chain(references).collect();
        Rows::new()
            .text("name", rows.iter().map(|(_, name, ..)| Some(name.public())))
            .text("kind", rows.iter().map(|(kind, ..)| Some(kind)))
            .text("source", rows.iter().map(|(_, _, source, _)| source.as_deref()))
            .int("version", rows.iter().map(|(_, name, ..)| Some(i64::from(name.version()))))
            .text("sql", rows.iter().map(|(.., text)| Some(text.as_str())))
    }

    fn column_rows(&self) -> Rows {
        let catalog = self.catalog();
        let mut columns: Vec<ColumnRow> = Vec::new();
        for (name, entry) in &catalog.streams {
            for column in &entry.schema.columns {
                let data_type = column_type(column);
                let sensitive = entry.schema.is_sensitive(&column.name);
                columns.push((name.to_string(), column.name.clone(), data_type, !column.nullable, sensitive));
            }
        }
        for (name, entry) in &catalog.tables {
            for field in entry.program.schema().fields() {
                let sensitive = entry.program.sensitive().contains(field.name());
                columns.push((
                    name.to_string(),
                    field.name().clone(),
                    sql_type(field.data_type()),
                    false,
                    sensitive,
                ));
            }
        }
        for (name, entry) in &catalog.references {
            for field in entry.table.rows.schema_ref().fields() {
                columns.push((
                    name.to_string(),
                    field.name().clone(),
                    sql_type(field.data_type()),
                    false,
                    false,
                ));
            }
        }
        let positions: Vec<i64> = columns
            .iter()
            .scan((String::new(), 0), |(last, number), (relation, ..)| {
                *number = if last == relation { *number + 1 } else { 1 };
                last.clone_from(relation);
                Some(*number)
            })
            .collect();
        Rows::new()
            .text("relation", columns.iter().map(|(relation, ..)| Some(relation)))
            .int("position", positions.into_iter().map(Some))
            .text("column", columns.iter().map(|(_, column, ..)| Some(column)))
            .text("type", columns.iter().map(|(_, _, data_type, ..)| Some(data_type)))
            .flag("not_null", columns.iter().map(|(_, _, _, not_null, _)| *not_null))
            .flag("sensitive", columns.iter().map(|(.., sensitive)| *sensitive))
    }

    fn endpoint_rows(&self) -> Rows {
        let catalog = self.catalog();
        let method = |posted| if posted { "POST" } else { "GET" };
        let read = catalog
            .endpoints
            .values()
            .map(|it| (method(it.posted), &it.path, it.permission.as_str(), &it.text));
        let taken = catalog.intakes.values().map(|it| (it.method.text(), &it.path, it.requires(), &it.text));
        let endpoints: Vec<_> = read.chain(taken).collect();
        Rows::new()
            .text("path", endpoints.iter().map(|(_, path, ..)| Some(format!("{path}/"))))
            .text("method", endpoints.iter().map(|(method, ..)| Some(*method)))
            .text("requires", endpoints.iter().map(|(_, _, permission, _)| Some(*permission)))
            .text("sql", endpoints.iter().map(|(.., sql)| Some(sql.as_str())))
    }

    fn schedule_rows(&self) -> Rows {
        let (catalog, now) = (self.catalog(), self.machine.clock.now_micros());
        let schedules: Vec<_> = catalog.schedules.values().collect();
        let next = |entry: &ScheduleEntry| entry.schedule.timetable.next(now).map(time::show_micros);
        let last = |entry: &ScheduleEntry| self.jobs.last_due(entry.name.as_str()).map(time::show_micros);
        Rows::new()
            .text("name", schedules.iter().map(|entry| Some(entry.name.as_str())))
            .text("cron", schedules.iter().map(|entry| Some(entry.schedule.pattern.as_str())))
            .text("time_zone", schedules.iter().map(|entry| Some(entry.schedule.zone.as_str())))
            .text("job", schedules.iter().map(|entry| Some(entry.schedule.job.as_str())))
            .text("next", schedules.iter().map(|entry| next(entry)))
            .text("last", schedules.iter().map(|entry| last(entry)))
            .text("sql", schedules.iter().map(|entry| Some(entry.text.as_str())))
    }

    fn view_rows(&self) -> Rows {
        let views = self.driver.statuses();
        let state = |view: &highwater_log::view::ViewStatus| format!("{:?}", view.state).to_ascii_lowercase();
        Rows::new()
            .text("name", views.iter().map(|view| Some(view.name.as_str())))
            .text("kind", views.iter().map(|view| Some(view.kind)))
            .text("source", views.iter().map(|view| Some(view.source.as_str())))
            .text("state", views.iter().map(|view| Some(state(view))))
            .int("lag", views.iter().map(|view| Some(view.lag as i64)))
            .int("taken", views.iter().map(|view| Some(view.applied.taken as i64)))
            .int("out", views.iter().map(|view| Some(view.applied.out as i64)))
            .int("filtered", views.iter().map(|view| Some(view.applied.filtered as i64)))
            .int("late", views.iter().map(|view| Some(view.applied.late as i64)))
            .int("dead", views.iter().map(|view| Some(view.applied.dead as i64)))
            .text("last_error", views.iter().map(|view| view.last_error.as_deref()))
    }

    /// Answers EXPLAIN of a declaration, or of the name of a stream or table: how each part is kept up
    /// and what that costs. `None` when it is about a query.
    pub async fn explain(
        self: &Arc<Self>,
        identity: &Identity,
        sql: &str,
    ) -> Result<Option<QueryResult>, SqlError> {
        let sql = sql.trim().trim_end_matches(';').trim_end();
        let Some((word, rest)) = sql.split_once(char::is_whitespace) else { return Ok(None) };
        if ["explain", "describe", "desc"].iter().any(|known| word.eq_ignore_ascii_case(known)) {
            self.authorize(identity, Asked::node("describe"))?;
            // How many rows a filter left out is not for everybody.
            let second = rest.split_whitespace().next().unwrap_or_default();
            if second.eq_ignore_ascii_case("analyze") && !identity.principal.everywhere {
                return Err(SqlError::new(FORBIDDEN, "EXPLAIN ANALYZE is for administrators of the node"));
            }
        }
        if word.eq_ignore_ascii_case("describe") || word.eq_ignore_ascii_case("desc") {
            // What is not there has no columns, but that is not what was asked.
            let bare =
                rest.split_whitespace().last().unwrap_or_default().trim_matches('"').to_ascii_lowercase();
            let names =
                highwater_sql::adhoc::Relations::names(&super::NodeRelations::for_engine(self.clone()));
            if !names.contains(&bare) {
                let error = SqlError::new("relation_not_found", format!("no stream or table \"{bare}\""));
                return Err(match highwater_event::name::nearest(&bare, names.iter().map(String::as_str)) {
                    Some(near) => error.hint(format!("did you mean \"{near}\"?")),
                    None => error,
                });
            }
            return Ok(None);
        }
        if !word.eq_ignore_ascii_case("explain") {
            return Ok(None);
        }
        let rest = rest.trim();
        let steps = if rest.split_whitespace().next().is_some_and(|word| word.eq_ignore_ascii_case("create"))
        {
            self.authorize(identity, Asked::node("declare"))?;
            self.authorize_script(identity, rest)?;
            let script = Script { text: rest.to_owned(), files: Default::default() };
            let leaf = self.leaf(&Principal::engine(), "query", "node");
            let outcomes = self.declare(&script, &leaf, true).await.map_err(|error| match error {
                DeclareError::Sql { error, .. } => SqlError { at: None, ..error },
                other => SqlError::new("internal", other.to_string()),
            })?;
            outcomes.into_iter().flat_map(|outcome| outcome.steps).collect::<Vec<Step>>()
        } else {
            let bare = rest.trim_matches('"');
            let Ok(name) = StreamName::new(bare) else { return Ok(None) };
            let catalog = self.catalog();
            let Some(steps) = catalog.explain(&name) else {
                return Err(SqlError::new("relation_not_found", format!("no stream or table \"{bare}\"")));
            };
            steps
        };
        let rows = Rows::new()
            .text("part", steps.iter().map(|step| Some(&step.part)))
            .text("how", steps.iter().map(|step| Some(&step.how)))
            .text("cost", steps.iter().map(|step| Some(&step.cost)));
        let batch = rows.batch().map_err(|error| SqlError::new("internal", error.to_string()))?;
        Ok(Some(QueryResult { schema: batch.schema(), batches: vec![batch], truncated: false }))
    }
}

/// SHOW and DESCRIBE as questions about the relations above; other questions as they are.
pub fn as_question(sql: &str) -> String {
    let words: Vec<String> =
        sql.trim().trim_end_matches(';').split_whitespace().map(str::to_ascii_lowercase).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let question = match words.as_slice() {
        ["show" | "list", "streams"] => {
            "SELECT name, origin, events, partitions, lake FROM _streams ORDER BY name"
        }
        ["show" | "list", "tables"] => "SELECT name, kind, source FROM _tables ORDER BY name",
        ["show" | "list", "endpoints"] => {
            "SELECT path, method, requires FROM _endpoints ORDER BY path, method"
        }
        ["show" | "list", "schedules"] => {
            "SELECT name, cron, time_zone, job, next, last FROM _schedules ORDER BY name"
        }
        ["show" | "list", "views" | "queries"] => {
            "SELECT name, kind, source, state, lag, last_error FROM _views ORDER BY name"
        }
        ["describe" | "desc", name]
        | ["describe" | "desc", "stream" | "table", name]
        | ["show", "columns", "from", name] => {
            let name = name.trim_matches('"').replace('\'', "''");
            return format!(
                "SELECT \"column\", type, not_null, sensitive FROM _columns WHERE relation = '{name}' ORDER BY position"
            );
        }
        _ => return sql.to_owned(),
    };
    question.to_owned()
}
