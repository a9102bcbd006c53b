//! Streams that learn their columns from their events: which columns a body brings that the stream does
//! not have yet. Columns are only ever added, under their own names; a member of another type than its
//! column has is a dead letter.

use std::collections::BTreeMap;

use highwater_event::StreamSchema;
use serde_json::{Map, Value};

use crate::cell::parse_decimal;
use crate::decode::Format;

/// What numbers become: whole ones and prices alike stay exact, and the second may follow the first.
const EXACT: &str = "DECIMAL(38,9)";

/// What numbers become that would not fit.
const DOUBLE: &str = "DOUBLE";

/// Columns that one stream may learn.
pub const MAX_COLUMNS: usize = 1_000;

/// Columns that a body brings and a stream lacks, with their SQL types.
pub fn new_columns(stream: &StreamSchema, body: &[u8], format: Format) -> Vec<(String, &'static str)> {
    let mut found: BTreeMap<String, &'static str> = BTreeMap::new();
    let mut look = |event: &Map<String, Value>| {
        for (name, value) in event {
            let name = name.to_ascii_lowercase();
            if !is_name(&name) || stream.column(&name).is_some() {
                continue;
            }
            let Some(data_type) = type_of(value) else { continue };
            let known = found.entry(name).or_insert(data_type);
            // Numbers that fit and others in one body are one column of numbers.
            if *known == EXACT && data_type == DOUBLE {
                *known = DOUBLE;
            }
        }
    };
    match format {
        Format::Json => match serde_json::from_slice(body) {
            Ok(Value::Array(events)) => events.iter().filter_map(Value::as_object).for_each(&mut look),
            Ok(Value::Object(event)) => look(&event),
            _ => {}
        },
        Format::NdJson => {
            for line in body.split(|byte| *byte == b'\n') {
                if let Ok(event) = serde_json::from_slice(line) {
                    look(&event);
                }
            }
        }
        Format::Csv => {
            let mut reader = csv::Reader::from_reader(body);
            if let Ok(header) = reader.headers() {
                let texts = header.iter().map(|name| (name.trim().to_owned(), Value::from("text")));
                look(&texts.collect());
            }
        }
        // Envelopes say what they hold; what a stream wants of them it declares.
        Format::CloudEvents => {}
    }
    let room = MAX_COLUMNS.saturating_sub(stream.columns.len());
    found.into_iter().take(room).collect()
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    let head = bytes.next().is_some_and(|byte| byte.is_ascii_lowercase());
    head && name.len() <= 128
        && bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        && !["year", "month", "day"].contains(&name)
}

fn type_of(value: &Value) -> Option<&'static str> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(_) => "BOOLEAN",
        Value::Number(number) if parse_decimal(number.to_string().as_bytes(), 38, 9).is_ok() => EXACT,
        Value::Number(_) => DOUBLE,
        Value::String(_) => "TEXT",
        Value::Array(_) | Value::Object(_) => "JSON",
    })
}
