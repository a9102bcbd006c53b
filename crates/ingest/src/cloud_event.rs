//! CloudEvents 1.0 in JSON: the envelope is opened and its data becomes the event.
//!
//! For the built-in stream of events the attributes become its columns. For any other stream the members
//! of `data` are those of the event; the column of the event id and that of the event time are taken
//! from `id` and `time` where `data` has none, and every attribute can be had in a column `ce_NAME`.

use highwater_event::StreamSchema;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::decode::RowError;

#[derive(Deserialize)]
struct Envelope<'a> {
    specversion: Option<String>,
    id: Option<String>,
    source: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    subject: Option<String>,
    time: Option<String>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    data_base64: Option<String>,
    #[serde(flatten)]
    extensions: Map<String, Value>,
}

/// The event inside an envelope, as a JSON object.
pub(crate) fn open(stream: &StreamSchema, bytes: &[u8]) -> Result<String, RowError> {
    let envelope: Envelope<'_> = serde_json::from_slice(bytes).map_err(|error| {
        RowError::new("not_a_cloud_event", format!("not a CloudEvents envelope: {error}"))
    })?;
    match envelope.specversion.as_deref() {
        Some("1.0") => {}
        Some(other) => {
            return Err(RowError::new(
                "not_a_cloud_event",
                format!("version {other} is not known; send 1.0"),
            )
            .at("specversion"));
        }
        None => return Err(missing("specversion")),
    }
    let id = envelope.id.filter(|id| !id.is_empty()).ok_or_else(|| missing("id"))?;
    let source = envelope.source.filter(|source| !source.is_empty()).ok_or_else(|| missing("source"))?;
    let kind = envelope.kind.filter(|kind| !kind.is_empty()).ok_or_else(|| missing("type"))?;
    let mut attributes =
        vec![("id", Value::from(id)), ("source", Value::from(source)), ("type", Value::from(kind))];
    attributes.extend(envelope.subject.map(|subject| ("subject", Value::from(subject))));
    attributes.extend(envelope.time.map(|time| ("time", Value::from(time))));
    let data = match (envelope.data, envelope.data_base64) {
        (Some(data), _) => data.get().to_owned(),
        (None, Some(base64)) => Value::from(base64).to_string(),
        (None, None) => "null".to_owned(),
    };
    let extensions: Vec<(String, Value)> = envelope.extensions.into_iter().collect();
    if stream.name.as_str() == "events" {
        Ok(built_in(&attributes, &extensions, &data))
    } else {
        declared(stream, &attributes, &extensions, &data)
    }
}

fn missing(attribute: &str) -> RowError {
    RowError::new("not_a_cloud_event", "the attribute is required").at(attribute)
}

fn built_in(attributes: &[(&str, Value)], extensions: &[(String, Value)], data: &str) -> String {
    let mut event = Map::new();
    for (name, value) in attributes {
        let name = match *name {
            "id" => "event_id",
            "type" => "event_type",
            "time" => "timestamp",
            other => other,
        };
        event.insert(name.to_owned(), value.clone());
    }
    event.extend(extensions.iter().cloned());
    with_members(Value::Object(event), &format!("\"payload\":{data}"))
}

fn declared(
    stream: &StreamSchema,
    attributes: &[(&str, Value)],
    extensions: &[(String, Value)],
    data: &str,
) -> Result<String, RowError> {
    let inside = data.trim();
    let members: Map<String, Value> = match serde_json::from_str(inside) {
        Ok(Value::Object(members)) => members,
        _ => return Err(RowError::new("not_an_object", "the data of an event is a JSON object").at("data")),
    };
    let has = |name: &str| members.keys().any(|known| known.eq_ignore_ascii_case(name));
    let mut event = Map::new();
    for (name, value) in attributes {
        let column = match *name {
            "id" => stream.options.event_id.first().filter(|_| stream.options.event_id.len() == 1),
            "time" => stream.options.event_time.as_ref(),
            _ => None,
        };
        if let Some(column) = column.filter(|column| !has(column)) {
            event.insert(column.clone(), value.clone());
        }
        event.insert(format!("ce_{name}"), value.clone());
    }
    event.extend(extensions.iter().map(|(name, value)| (format!("ce_{name}"), value.clone())));
    event.retain(|name, _| !has(name));
    let inside = inside.trim_start_matches('{').trim_end().strip_suffix('}').unwrap_or_default();
    Ok(with_members(Value::Object(event), inside))
}

/// An object with more members, given as text so that their numbers keep every digit.
fn with_members(object: Value, members: &str) -> String {
    let mut text = object.to_string();
    if members.trim().is_empty() {
        return text;
    }
    text.pop();
    if text.len() > 1 {
        text.push(',');
    }
    text.push_str(members);
    text.push('}');
    text
}
