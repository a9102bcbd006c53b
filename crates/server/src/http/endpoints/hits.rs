//! Endpoints that answer a search: the newest hits, how many there are, and where in the lake they lie.

use std::collections::BTreeSet;

use datafusion::common::ScalarValue;
use highwater_event::{StreamName, time};
use highwater_lake::Moment;
use highwater_sql::adhoc::{Page, Position, followed};
use serde_json::{Value, json};

use super::{Asked, Question, shown};
use crate::http::problem::{Answer, Problem};
use crate::http::sql::{rows, typed};

/// Hits that are shown.
const SHOWN: usize = 100;
/// With more hits than this nobody looks at them one by one.
const MANY: u64 = 1000;

/// Answers what was found.
pub async fn answer(question: &Question, asked: &Asked) -> Answer {
    let (node, call) = (&question.node, &question.call);
    let page = Page { limit: SHOWN, oldest_first: false, after: None };
    let found = question.page(page).await?;
    let places = found.rows.positions()?;
    let files = files(question, &places).await?;
    let result = shown(found.rows)?;
    let names = result.names();
    let hits = rows(&result, &names, ",");
    let mut head = serde_json::Map::new();
    for (name, value) in &question.values {
        let given = asked.given.get(name).map(|text| Value::from(text.as_str()));
        head.insert(name.clone(), given.unwrap_or_else(|| said(value)));
    }
    head.insert("recommendation".into(), recommendation(found.total, places.len()).into());
    head.insert("results_found".into(), found.total.into());
    head.insert("files".into(), files);
    let head = Value::Object(head).to_string();
    let body = format!("{},\"hits\":[{hits}]}}", head.trim_end_matches('}'));
    call.saw_rows(node, result.row_count(), body.as_bytes());
    Ok(typed("application/json", body))
}

/// A parameter that was not given.
fn said(value: &ScalarValue) -> Value {
    if value.is_null() { Value::Null } else { value.to_string().into() }
}

/// What somebody may do next.
fn recommendation(total: u64, shown: usize) -> String {
    match total {
        0 => "nothing was found: search for fewer words, for the beginning of a word (begin*), or from an earlier date".into(),
        total if total > MANY => format!("{total} events were found and the newest {shown} are shown: add words, put words that belong together in quotation marks, or choose a later date"),
        total if total > shown as u64 => format!("the newest {shown} of {total} events are shown: choose a later date or add words to see others"),
        _ => "all events that were found are shown, the newest first".into(),
    }
}

/// The files of the lake that hits lie in: folders by day, and what is in them by what their bounds say. Of events that are not in
/// a file yet the folder is said.
async fn files(question: &Question, places: &[Position]) -> Result<Value, Problem> {
    let catalog = question.node.catalog();
    // Its query is of the rows of one stream, whatever else it looks at.
    let stream = followed(&question.endpoint.query).and_then(|name| catalog.streams.get(&name));
    let Some(stream) = stream else { return Ok(json!([])) };
    let lake = question.node.lake(&stream.schema.name);
    let files = match &lake {
        Some(lake) => Some(lake.snapshot(Moment::Now).await.map_err(Problem::internal)?.files),
        None => None,
    };
    let mut found = BTreeSet::new();
    for place in places {
        let resource = resource(&stream.schema.name, place.time);
        let holding = files.iter().flat_map(|files| files.holding(place.time, place.partition, place.offset));
        let mut names: Vec<Option<String>> = holding.map(|name| Some(name.to_owned())).collect();
        if names.is_empty() {
            names.push(None);
        }
        found.extend(names.into_iter().map(|name| (resource.clone(), name)));
    }
    Ok(found.into_iter().map(|(resource, file)| json!({"resource": resource, "file": file})).collect())
}

/// The folder in the lake that a row of a stream lies in, by its event time in microseconds UTC.
pub fn resource(stream: &StreamName, time: i64) -> String {
    let (year, month, day) = time::day_parts(time);
    format!("/streams/{}/year={year}/month={month}/day={day}", stream.public().to_ascii_uppercase())
}
