//! The lake as pages: streams newest first, with filters, chosen columns and versions by day.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::DataType;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, header};
use axum::{Extension, Json};
use chrono::NaiveDate;
use datafusion::common::ScalarValue;
use highwater_event::name::nearest;
use highwater_event::{StreamSchema, columns, time};
use highwater_lake::Moment;
use highwater_sql::adhoc::{self, Day};
use highwater_sql::dialect::quoted;
use serde_json::{Value, json};

use super::call::Call;
use super::problem::{Answer, Problem};
use super::sql::{rows, typed};
use super::streams;
use crate::node::{Condition, Fixed, Node, QUERY_LIMITS};

/// Events on a page.
const PAGE: usize = 10;
/// Pages up to this one are read while their rows are counted; others when it is known that they are there.
const NEAR: usize = 100;
/// Parameters that are not filters.
const CONTROLS: [&str; 7] = ["page", "fields", "year", "month", "day", "as_of", "version"];

/// Streams and tables of the lake.
#[utoipa::path(get, path = "/api/datalake/resources/", tag = "lake", responses((status = 200, description = "{data_lake_root, available_resources: {streams, tables}}")))]
pub async fn resources(State(node): State<Arc<Node>>) -> Json<Value> {
    let catalog = node.catalog();
    let streams: Vec<String> = catalog
        .streams
        .values()
        .filter(|entry| entry.schema.options.lake && !entry.schema.name.is_system())
        .map(|entry| entry.schema.name.at_version(1).shown())
        .collect();
    let tables: Vec<String> = catalog.tables.keys().map(|name| name.shown()).collect();
    Json(json!({
        "data_lake_root": "highwater-lake",
        "available_resources": {"streams": streams, "tables": tables},
    }))
}

/// A page of a stream, newest first.
///
/// Filters are column names (exact) or column names with `_gt`, `_lt`, `_eq`; all must hold. `fields`
/// chooses columns; `year`, `month` and `day` choose the version of a day; `as_of` and `version` an
/// earlier state of the lake.
#[utoipa::path(get, path = "/api/datalake/streams/{name}/", tag = "lake",
    params(("name" = String, Path, description = "name of a stream, in either case"), ("page" = Option<u32>, Query, description = "from 1"),
        ("fields" = Option<String>, Query, description = "columns, with commas between them"), ("year" = Option<String>, Query, description = "with month and day"),
        ("month" = Option<String>, Query, description = "zero-padded or not"), ("day" = Option<String>, Query, description = "zero-padded or not"),
        ("as_of" = Option<String>, Query, description = "a time"), ("version" = Option<u64>, Query, description = "a version of the Delta table")),
    responses((status = 200, description = "{topic, count, total_pages, current_page, results}"), (status = 400, description = "a parameter is wrong; the detail names it"),
        (status = 404, description = "no such stream, day, version or page")))]
pub async fn stream(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    Path(name): Path<String>,
    Query(given): Query<Vec<(String, String)>>,
    headers: HeaderMap,
) -> Answer {
    let given = super::endpoints::once(given)?;
    let entry = streams::find(&node, &name)?;
    let schema = &entry.schema;
    if !schema.options.lake {
        return Err(Problem::not_found(
            "stream_not_found",
            format!("stream \"{name}\" is not kept in the lake"),
        ));
    }
    let page = page(&given)?;
    let fields = fields(schema, given.get("fields").map(String::as_str))?;
    let day = day(&given)?;
    let moment = moment(&given)?;
    let (condition, values) = conditions(schema, &given)?;

    let lens = node.lens(&call.identity, "stream", &schema.name.at_version(1));
    if let Some(seen) = lens.describe() {
        call.saw("lens", seen);
    }
    let snapshot = node.stream_snapshot(schema, moment).await?;
    let relation = snapshot.clone().relation(&node.engine, schema, day.as_ref(), lens.clone())?;
    let fixed = Arc::new(Fixed::new("rows", relation));
    let ask = |sql: String, values: Vec<(String, ScalarValue)>| {
        let (node, fixed) = (node.clone(), fixed.clone());
        let asked = node.clone();
        async move {
            node.ask(async move { adhoc::query(&asked.engine, fixed, &sql, values, QUERY_LIMITS).await })
                .await
        }
    };
    let columns: Vec<&str> = fields.iter().map(|(_, expression)| expression.as_str()).collect();
    let sql = format!(
        "SELECT {} FROM rows{condition} ORDER BY {} DESC, {} DESC LIMIT {PAGE} OFFSET {}",
        columns.join(", "),
        columns::EVENT_TIME,
        columns::OFFSET,
        (page - 1).saturating_mul(PAGE)
    );
    let sql_of_page = sql.clone();
    let condition = Condition { sql: &condition, values: &values, day: day.as_ref(), lens: &lens };
    let counted = node.count(schema, &snapshot, &condition);
    let (count, result) = if page <= NEAR {
        let (count, result) = tokio::try_join!(counted, ask(sql.clone(), values.clone()))?;
        (count as usize, Some(result))
    } else {
        (counted.await? as usize, None)
    };
    if let Some(day) = &day
        && count == 0
        && ask("SELECT 1 FROM rows LIMIT 1".into(), Vec::new()).await?.row_count() == 0
    {
        return Err(no_such_day(day, &headers));
    }
    let pages = count.div_ceil(PAGE).max(1);
    if page > pages {
        return Err(Problem::not_found(
            "page_not_found",
            format!("there is no page {page}; the last one is {pages}"),
        ));
    }
    let result = match result {
        Some(result) => result,
        None => ask(sql, values.clone()).await?,
    };
    let names: Vec<String> = fields.into_iter().map(|(name, _)| name).collect();
    let body = format!(
        "{{\"topic\":{},\"count\":{count},\"total_pages\":{pages},\"current_page\":{page},\"results\":[{}]}}",
        Value::from(schema.name.at_version(1).shown()),
        rows(&result, &names, ",")
    );
    call.saw("query", sql_of_page);
    call.saw_rows(&node, result.row_count(), body.as_bytes());
    Ok(typed("application/json", body))
}

fn page(given: &BTreeMap<String, String>) -> Result<usize, Problem> {
    match given.get("page") {
        None => Ok(1),
        Some(text) => match text.parse() {
            Ok(page) if page > 0 => Ok(page),
            _ => Err(Problem::parameter("page", format!("\"{text}\" is not a page number (1, 2, …)"))),
        },
    }
}

/// The SQL for a column as callers name it: in either case, by an alias, or `a.b` inside a struct.
fn column_of(schema: &StreamSchema, name: &str) -> Option<(String, DataType)> {
    let lower = name.to_ascii_lowercase();
    let lower = schema.options.aliases.get(&lower).map_or(lower.as_str(), String::as_str);
    if let Some(column) = schema.column(lower) {
        return Some((quoted(lower), column.data_type.clone()));
    }
    let mut parts = lower.split('.');
    let first = schema.column(parts.next()?)?;
    // A sensitive struct is masked as a whole, so its members are masked too.
    let mut data_type = first.data_type.clone();
    let mut sql = quoted(&first.name);
    for part in parts {
        let DataType::Struct(members) = &data_type else { return None };
        let member = members.iter().find(|member| member.name() == part)?.clone();
        sql = format!("{sql}['{}']", part.replace('\'', "''"));
        data_type = member.data_type().clone();
    }
    (lower.contains('.')).then_some((sql, data_type))
}

fn fields(schema: &StreamSchema, chosen: Option<&str>) -> Result<Vec<(String, String)>, Problem> {
    let Some(chosen) = chosen.filter(|chosen| !chosen.trim().is_empty()) else {
        return Ok(schema
            .columns
            .iter()
            .filter(|column| !schema.options.hidden.contains(&column.name))
            .map(|column| (column.name.to_ascii_uppercase(), quoted(&column.name)))
            .collect());
    };
    let mut seen = std::collections::HashSet::new();
    chosen
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty() && seen.insert(name.to_ascii_lowercase()))
        .map(|name| match column_of(schema, name) {
            // The alias keeps equal columns apart for the planner.
            Some((sql, _)) => Ok((name.to_owned(), format!("{sql} AS {}", quoted(name)))),
            None => Err(unknown(schema, "fields", name)),
        })
        .collect()
}

fn unknown(schema: &StreamSchema, parameter: &str, name: &str) -> Problem {
    let known = schema
        .columns
        .iter()
        .map(|column| column.name.as_str())
        .chain(schema.options.aliases.keys().map(String::as_str));
    let problem = Problem::bad_request(
        "unknown_parameter",
        if parameter == "fields" {
            format!("parameter fields: there is no column \"{name}\"")
        } else {
            format!("there is no filter \"{parameter}\"")
        },
    );
    match nearest(name, known) {
        Some(near) => problem.hint(format!("did you mean {near}?")),
        None => problem,
    }
}

/// The WHERE clause of all filters, with its values as parameters.
fn conditions(
    schema: &StreamSchema,
    given: &BTreeMap<String, String>,
) -> Result<(String, Vec<(String, ScalarValue)>), Problem> {
    let mut clauses = Vec::new();
    let mut values = Vec::new();
    for (parameter, text) in given.iter().filter(|(name, _)| !CONTROLS.contains(&name.as_str())) {
        let found = column_of(schema, parameter).map(|column| (column, "=")).or_else(|| {
            [("_gt", ">"), ("_lt", "<"), ("_eq", "=")].into_iter().find_map(|(suffix, operator)| {
                let name = parameter.strip_suffix(suffix)?;
                Some((column_of(schema, name)?, operator))
            })
        });
        let Some(((sql, data_type), operator)) = found else {
            let bare = ["_gt", "_lt", "_eq"]
                .iter()
                .find_map(|suffix| parameter.strip_suffix(suffix))
                .unwrap_or(parameter);
            return Err(unknown(schema, parameter, bare));
        };
        let name = format!("p{}", values.len());
        clauses.push(format!("{sql} {operator} ${name}"));
        values.push((name, filter_value(parameter, text, &data_type)?));
    }
    let clause = if clauses.is_empty() { String::new() } else { format!(" WHERE {}", clauses.join(" AND ")) };
    Ok((clause, values))
}

fn filter_value(parameter: &str, text: &str, data_type: &DataType) -> Result<ScalarValue, Problem> {
    let wrong = |wanted: &str| Problem::parameter(parameter, format!("\"{text}\" is not {wanted}"));
    match data_type {
        DataType::Utf8 => Ok(ScalarValue::Utf8(Some(text.to_owned()))),
        DataType::Timestamp(..) => {
            let micros = time::parse_micros(text)
                .ok_or_else(|| wrong("a time (RFC 3339, a date, or epoch seconds or milliseconds)"))?;
            Ok(ScalarValue::TimestampMicrosecond(Some(micros), Some("UTC".into())))
        }
        DataType::Struct(_) | DataType::List(_) => {
            Err(Problem::parameter(parameter, "a nested column can't be compared; name a member like a.b"))
        }
        // Numbers are compared as exact decimals, so that 10.005 finds nothing in a column of two digits
        // instead of failing.
        DataType::Decimal128(..) | DataType::Int16 | DataType::Int32 | DataType::Int64 => {
            highwater_ingest::cell::parse_decimal(text.trim().as_bytes(), 38, 10)
                .map(|value| ScalarValue::Decimal128(Some(value), 38, 10))
                .map_err(|_| wrong("a number"))
        }
        other => ScalarValue::try_from_string(text.trim().to_owned(), other)
            .map_err(|_| wrong("a value of the column's type")),
    }
}

fn day(given: &BTreeMap<String, String>) -> Result<Option<Day>, Problem> {
    let parts: Vec<Option<&String>> = ["year", "month", "day"].iter().map(|part| given.get(*part)).collect();
    let [year, month, date] = match parts.as_slice() {
        [None, None, None] => return Ok(None),
        [Some(year), Some(month), Some(date)] => [year, month, date],
        _ => return Err(Problem::parameter("year, month, day", "a version by day needs all three")),
    };
    let number = |name: &str, text: &str| {
        text.parse::<u32>().map_err(|_| Problem::parameter(name, format!("\"{text}\" is not a number")))
    };
    let (year, month, date) = (number("year", year)?, number("month", month)?, number("day", date)?);
    let start = i32::try_from(year)
        .ok()
        .and_then(|year| NaiveDate::from_ymd_opt(year, month, date))
        .and_then(|day| day.and_hms_opt(0, 0, 0))
        .ok_or_else(|| {
            Problem::parameter("year, month, day", format!("{year}-{month}-{date} is not a day"))
        })?;
    let start = start.and_utc().timestamp_micros();
    Ok(Some(Day { parts: time::day_parts(start), bounds: (start, start + 86_400_000_000) }))
}

fn no_such_day(day: &Day, headers: &HeaderMap) -> Problem {
    let (year, month, date) = &day.parts;
    let french = headers
        .get(header::ACCEPT_LANGUAGE)
        .and_then(|language| language.to_str().ok())
        .is_some_and(|language| language.trim_start().to_ascii_lowercase().starts_with("fr"));
    let text = if french { "Version (date) non trouvée" } else { "Version (date) not found" };
    Problem::not_found("day_not_found", format!("{text} : {year}-{month}-{date}"))
}

fn moment(given: &BTreeMap<String, String>) -> Result<Moment, Problem> {
    match (given.get("version"), given.get("as_of")) {
        (Some(_), Some(_)) => Err(Problem::parameter("version, as_of", "give one of them")),
        (Some(version), None) => version
            .parse()
            .map(Moment::Version)
            .map_err(|_| Problem::parameter("version", format!("\"{version}\" is not a version number"))),
        (None, Some(text)) => time::parse_micros(text)
            .map(Moment::Time)
            .ok_or_else(|| Problem::parameter("as_of", format!("\"{text}\" is not a time"))),
        (None, None) => Ok(Moment::Now),
    }
}
