//! Searching a stream that has an index: words, filters by column, facets, and where each hit lies.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::DataType;
use axum::Extension;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use datafusion::common::ScalarValue;
use highwater_event::name::nearest;
use highwater_event::search::{Kind, Search, Term};
use highwater_event::{Column, StreamSchema, columns, time};
use highwater_sql::adhoc::{self, Page, PageResult, Posed, Position, QueryResult, endpoint_values};
use highwater_sql::catalog::Parameter;
use highwater_sql::dialect::{Asker, parse_query, quoted};
use highwater_sql::functions::highlighted;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::call::Call;
use super::endpoints::{mark, next_cursor, once, page_of, resource, said_of, shown};
use super::problem::{Answer, Problem};
use super::sql::{rows, typed};
use super::streams;
use crate::node::{Node, NodeRelations, QUERY_LIMITS};

/// Hits when nothing is said, and at most.
const HITS: (usize, usize) = (20, 100);
/// Values of a facet that are counted: those that most hits have.
const VALUES: usize = 20;
/// Facets of one search at most.
const FACETS: usize = 8;
/// Parameters that are no filters.
const OWN: [&str; 7] = ["q", "facets", "limit", "sort", "cursor", "time_from", "time_to"];

/// What is searched for, as a condition in SQL with its parameters.
#[derive(Default)]
struct Wanted {
    conditions: Vec<String>,
    values: Vec<(String, ScalarValue)>,
}

impl Wanted {
    /// A parameter with a value.
    fn value(&mut self, value: ScalarValue) -> String {
        let name = format!("v{}", self.values.len());
        self.values.push((name.clone(), value));
        format!("${name}")
    }

    fn text(&mut self, text: String) -> String {
        self.value(ScalarValue::Utf8(Some(text)))
    }

    /// Words, each of which stands in one of the columns; those that must not be there stand in none.
    fn words(&mut self, search: &Search, of: &[(&Column, Kind)]) {
        for term in search.terms() {
            let words = self.text(said(term));
            let one = |(column, kind): &(&Column, Kind)| {
                let name = quoted(&column.name);
                let text = if *kind == Kind::Json { format!("json({name})") } else { name };
                // A column without a value has no word that must not be there.
                let unless = if term.without { " IS NOT FALSE" } else { "" };
                format!("matches({text}, {words}){unless}")
            };
            let all: Vec<String> = of.iter().map(one).collect();
            self.conditions.push(format!("({})", all.join(if term.without { " AND " } else { " OR " })));
        }
    }

    fn sql(&self) -> String {
        if self.conditions.is_empty() {
            String::new()
        } else {
            format!(" WHERE {}", self.conditions.join(" AND "))
        }
    }
}

/// A term as it is written in a search.
fn said(term: &Term) -> String {
    let (without, prefix) = (if term.without { "-" } else { "" }, if term.prefix { "*" } else { "" });
    format!("{without}\"{}\"{prefix}", term.words.join(" "))
}

/// Columns that are shown.
fn visible(schema: &StreamSchema) -> impl Iterator<Item = &Column> {
    schema.columns.iter().filter(|column| !schema.options.hidden.contains(&column.name))
}

/// The column of a filter or facet.
fn column_of<'a>(schema: &'a StreamSchema, name: &str) -> Result<&'a Column, Problem> {
    let lower = name.to_ascii_lowercase();
    let lower = schema.options.aliases.get(&lower).unwrap_or(&lower);
    let found = visible(schema).find(|column| column.name == *lower);
    found.filter(|column| !column.data_type.is_nested()).ok_or_else(|| {
        let detail = format!("\"{name}\" is neither a parameter of a search nor a column of {}", schema.name);
        let known = visible(schema).map(|column| column.name.as_str()).chain(OWN);
        let problem = Problem::bad_request("unknown_parameter", detail);
        match nearest(lower, known) {
            Some(near) => problem.hint(format!("did you mean {near}?")),
            None => problem,
        }
    })
}

/// A value that something of a type is compared with.
async fn compared(node: &Node, name: &str, data_type: &DataType, text: &str) -> Result<ScalarValue, Problem> {
    let (name, data_type) = (name.to_owned(), data_type.clone());
    let given = HashMap::from([(name.clone(), text.to_owned())]);
    let parameter = Parameter { name, data_type, tenant: false, default: None, check: None };
    let mut values = endpoint_values(&node.engine, &[parameter], &given).await?;
    values.pop().map(|(_, value)| value).ok_or_else(|| Problem::internal("a value was lost"))
}

async fn wanted(
    node: &Node,
    schema: &StreamSchema,
    given: &BTreeMap<String, String>,
    search: &Search,
    of: &[(&Column, Kind)],
) -> Result<Wanted, Problem> {
    let mut wanted = Wanted::default();
    wanted.words(search, of);
    for (name, comparison) in [("time_from", ">="), ("time_to", "<")] {
        let Some(text) = given.get(name) else { continue };
        let value = compared(node, name, &columns::timestamp_type(), text).await?;
        let value = wanted.value(value);
        wanted.conditions.push(format!("{} {comparison} {value}", columns::EVENT_TIME));
    }
    for (name, text) in given.iter().filter(|(name, _)| !OWN.contains(&name.as_str())) {
        let column = column_of(schema, name)?;
        let sql = quoted(&column.name);
        let condition = match text.strip_suffix('*') {
            Some(beginning) if column.data_type == DataType::Utf8 => {
                format!("starts_with({sql}, {})", wanted.text(beginning.to_owned()))
            }
            _ => {
                let value = compared(node, &column.name, &column.data_type, text).await?;
                format!("{sql} = {}", wanted.value(value))
            }
        };
        wanted.conditions.push(condition);
    }
    Ok(wanted)
}

/// Searches a stream that is declared WITH (search = …), the newest hits first.
///
/// `q` has words, each of which stands in one of the stream's texts; `"several words"` follow each other, `begin*` begins a word,
/// `-word` must not be there. Every other parameter is the name of a column and the value that it has, `begin*` for the
/// beginning of a text. Hits are what the caller may see: masked columns are searched masked.
#[utoipa::path(get, path = "/api/v1/streams/{stream}/search", tag = "query",
    params(("stream" = String, Path, description = "name of a stream"), ("q" = Option<String>, Query, description = "words"),
        ("facets" = Option<String>, Query, description = "columns whose values are counted over all hits, separated by commas"),
        ("time_from" = Option<String>, Query, description = "first event time"), ("time_to" = Option<String>, Query, description = "end of event time; an event at it is left out"),
        ("limit" = Option<u32>, Query, description = "20 when nothing is said, at most 100"), ("sort" = Option<String>, Query, description = "`desc`, the newest first, or `asc`"),
        ("cursor" = Option<String>, Query, description = "the next_cursor of the last answer")),
    responses((status = 200, description = "{stream, total, hits: [{event, highlights, at: {partition, offset, time}, resource}], facets: {column: [{value, count}]}, next_cursor, took_ms}"),
        (status = 400, description = "a parameter is wrong; the detail names it"), (status = 404, description = "no such stream"), (status = 409, description = "the stream has no index")))]
pub async fn search(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    Path(name): Path<String>,
    Query(given): Query<Vec<(String, String)>>,
) -> Answer {
    let started = Instant::now();
    let given = once(given)?;
    let entry = streams::find(&node, &name)?;
    let schema = &entry.schema;
    let searched = schema.searched();
    if searched.is_empty() {
        let detail = format!("stream \"{name}\" has no search index");
        return Err(Problem::new(StatusCode::CONFLICT, "not_searchable", detail)
            .hint("declare it WITH (search = 'column, column'), or ask in SQL: matches(column, 'words')"));
    }
    let texts: Vec<(&Column, Kind)> =
        searched.into_iter().filter(|(_, kind)| matches!(kind, Kind::Text | Kind::Json)).collect();
    let words = given.get("q").map(String::as_str).unwrap_or_default();
    let search = Search::read(words).map_err(|error| Problem::parameter("q", error.to_string()))?;
    let facets = facets_of(schema, given.get("facets").map(String::as_str).unwrap_or_default())?;
    let wanted = wanted(&node, schema, &given, &search, &texts).await?;
    // A cursor goes on with what it was found by, whatever is counted beside it.
    let asked =
        given.iter().filter(|(name, _)| !["cursor", "limit", "facets", "sort"].contains(&name.as_str()));
    let own = mark(schema.name.as_str(), asked);
    let page = page_of(|name| given.get(name).map(String::as_str), &own, HITS)?;
    call.saw("parameters", said_of(given.iter().map(|(name, value)| (name.as_str(), value))));

    let relations = Arc::new(NodeRelations::new(node.clone(), call.reader()));
    let found = hits(&node, &call, &relations, schema, &wanted, page).await?;
    let mut counted = Map::new();
    for column in facets {
        counted.insert(column.name.clone(), facet(&node, &relations, schema, &wanted, column).await?);
    }
    if let Some(applied) = relations.applied() {
        call.saw("lens", applied);
    }
    let next = found.next.map(|position| next_cursor(position, page.oldest_first, &own));
    let places = found.rows.positions()?;
    let result = shown(found.rows)?;
    let texts: Vec<&str> = texts
        .iter()
        .filter(|(_, kind)| *kind == Kind::Text)
        .map(|(column, _)| column.name.as_str())
        .collect();
    let hits = as_hits(schema, &result, &places, &search, &texts)?;
    let body = format!(
        "{{\"stream\":{},\"total\":{},\"hits\":[{hits}],\"facets\":{},\"next_cursor\":{}",
        json!(schema.name.public()),
        found.total,
        Value::Object(counted),
        json!(next)
    );
    call.saw_rows(&node, result.row_count(), body.as_bytes());
    let took = started.elapsed().as_secs_f64() * 1000.0;
    Ok(typed("application/json", format!("{body},\"took_ms\":{took:.3}}}")))
}

/// The columns of facets.
fn facets_of<'a>(schema: &'a StreamSchema, given: &str) -> Result<Vec<&'a Column>, Problem> {
    let names = given.split(',').map(str::trim).filter(|name| !name.is_empty());
    let mut facets: Vec<&Column> = Vec::new();
    for name in names {
        let column = column_of(schema, name)?;
        if !facets.iter().any(|known| known.name == column.name) {
            facets.push(column);
        }
    }
    if facets.len() > FACETS {
        return Err(Problem::parameter("facets", format!("at most {FACETS} columns are counted")));
    }
    Ok(facets)
}

async fn hits(
    node: &Arc<Node>,
    call: &Arc<Call>,
    relations: &Arc<NodeRelations>,
    schema: &StreamSchema,
    wanted: &Wanted,
    page: Page,
) -> Result<PageResult, Problem> {
    let column = |column: &Column| {
        let name = quoted(&column.name);
        if column.json { format!("json({name}) AS {name}") } else { format!("{name} AS {name}") }
    };
    let mut columns: Vec<String> = visible(schema).map(column).collect();
    columns.extend([columns::EVENT_TIME, columns::PARTITION, columns::OFFSET].map(str::to_owned));
    let sql = format!("SELECT {} FROM {}{}", columns.join(", "), quoted(schema.name.public()), wanted.sql());
    let query = parse_query(&sql)?;
    let (asked, relations, values) = (node.clone(), relations.clone(), wanted.values.clone());
    let call = call.clone();
    let question = async move {
        let principal = call.principal();
        let asker = Asker { user: &principal.name, tenant: &principal.tenant };
        let posed = Posed::new(&asked.engine, relations, &query, asker, QUERY_LIMITS);
        posed.with(values).page(page).await
    };
    Ok(node.ask(question).await?)
}

/// The values of a column that most hits have, and how many.
async fn facet(
    node: &Arc<Node>,
    relations: &Arc<NodeRelations>,
    schema: &StreamSchema,
    wanted: &Wanted,
    column: &Column,
) -> Result<Value, Problem> {
    let name = quoted(&column.name);
    let sql = format!(
        "SELECT {name} AS value, count(*) AS count FROM {}{} GROUP BY {name} ORDER BY count DESC, value LIMIT {VALUES}",
        quoted(schema.name.public()),
        wanted.sql()
    );
    let (asked, relations, values) = (node.clone(), relations.clone(), wanted.values.clone());
    let question = async move { adhoc::query(&asked.engine, relations, &sql, values, QUERY_LIMITS).await };
    let counted = node.ask(question).await?;
    let text = rows(&counted, &counted.names(), ",");
    serde_json::from_str(&format!("[{text}]")).map_err(Problem::internal)
}

/// Hits as JSON, one behind the other.
fn as_hits(
    schema: &StreamSchema,
    result: &QueryResult,
    places: &[Position],
    search: &Search,
    texts: &[&str],
) -> Result<String, Problem> {
    let events = format!("[{}]", rows(result, &result.names(), ","));
    let events: Vec<Box<RawValue>> = serde_json::from_str(&events).map_err(Problem::internal)?;
    let rows = result.batches.iter().flat_map(|batch| (0..batch.num_rows()).map(move |row| (batch, row)));
    let mut out = String::new();
    for ((event, place), (batch, row)) in events.iter().zip(places).zip(rows) {
        let found = texts.iter().filter_map(|name| {
            let column = batch.column_by_name(name)?.as_string_opt::<i32>()?;
            let text = column.is_valid(row).then(|| column.value(row))?;
            Some(((*name).to_owned(), Value::from(highlighted(text, search)?)))
        });
        let highlights = Value::Object(found.collect());
        let at = json!({"partition": place.partition, "offset": place.offset, "time": time::show_micros(place.time)});
        let resource = json!(resource(&schema.name, place.time));
        let comma = if out.is_empty() { "" } else { "," };
        let hit = write!(
            out,
            "{comma}{{\"event\":{},\"highlights\":{highlights},\"at\":{at},\"resource\":{resource}}}",
            event.get()
        );
        hit.map_err(Problem::internal)?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_may_stand_in_any_column_and_unwanted_ones_in_none() {
        let (one, two) = (Column::new("one", DataType::Utf8, true), Column::new("t w", DataType::Utf8, true));
        let of = [(&one, Kind::Text), (&two, Kind::Json)];
        let mut wanted = Wanted::default();
        wanted.words(&Search::read("red -\"light blue\" gre*").unwrap(), &of);
        assert_eq!(
            wanted.sql(),
            " WHERE (matches(\"one\", $v0) OR matches(json(\"t w\"), $v0)) AND (matches(\"one\", $v1) IS NOT FALSE AND matches(json(\"t w\"), $v1) IS NOT FALSE) AND (matches(\"one\", $v2) OR matches(json(\"t w\"), $v2))"
        );
        let texts: Vec<String> = wanted.values.iter().map(|(_, value)| value.to_string()).collect();
        assert_eq!(texts, ["\"red\"", "-\"light blue\"", "\"gre\"*"]);
        for (_, value) in &wanted.values {
            let ScalarValue::Utf8(Some(text)) = value else { panic!("{value}") };
            assert_eq!(Search::read(text).unwrap().terms().len(), 1);
        }
    }
}
