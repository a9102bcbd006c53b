//! When two events say the same: the checksum that tells a repeat from a conflict, and ids that are
//! derived from what an event says.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Field};
use highwater_event::{
    Column, Principal, Randomness, SeededRandomness, StreamName, StreamOptions, StreamSchema, columns,
};
use highwater_ingest::Format;
use highwater_ingest::decode::{Decoder, Row, RowBatch};
use highwater_ingest::identify::RowIdentity;

/// A decoder of a stream with an id, a time and these columns.
fn decoder(declared: &[(&str, DataType)]) -> Decoder {
    let mut all =
        vec![Column::new("id", DataType::Utf8, true), Column::new("at", columns::timestamp_type(), true)];
    all.extend(declared.iter().map(|(name, data_type)| Column::new(*name, data_type.clone(), true)));
    let options = StreamOptions {
        event_id: vec!["id".into()],
        event_time: Some("at".into()),
        ..StreamOptions::default()
    };
    let schema = StreamSchema::new(StreamName::new("s").unwrap(), all, options, true).unwrap();
    Decoder::new(Arc::new(schema)).unwrap()
}

fn identity(decoder: &Decoder, body: &str, format: Format) -> RowIdentity {
    let mut found = None;
    decoder
        .decode(body.as_bytes(), format, 10, &mut Row::default(), &mut |_, row| {
            let row = row.unwrap_or_else(|error| panic!("{body}: {error:?}"));
            found = Some(decoder.identify(row, &Principal::operator(), 1_800_000_000_000_000, 1).unwrap());
        })
        .unwrap();
    found.unwrap()
}

/// A decoder that knows the members below as columns, and one that knows none of them.
fn decoders() -> [Decoder; 2] {
    let place =
        vec![Field::new("zip", DataType::Int32, true), Field::new("city", DataType::Utf8, true)].into();
    let declared = [
        ("n", DataType::Int64),
        ("f", DataType::Float64),
        ("d", DataType::Decimal128(20, 4)),
        ("ok", DataType::Boolean),
        ("text", DataType::Utf8),
        ("place", DataType::Struct(place)),
        ("tags", DataType::List(Field::new("element", DataType::Utf8, true).into())),
    ];
    [decoder(&declared), decoder(&[])]
}

const AT: &str = r#""at":"2026-01-15T10:30:00Z""#;

#[test]
fn what_means_the_same_is_a_repeat_and_what_does_not_is_none() {
    // Each line is one event, said in several ways.
    let events: &[&[&str]] = &[
        &[r#"{}"#, r#"{"n":null}"#, r#"{"other":null}"#, r#" { } "#],
        &[r#"{"n":1}"#, r#"{"n":1.0}"#, r#"{ "n" : 1 }"#, r#"{"N":1}"#],
        &[r#"{"n":-1}"#],
        &[r#"{"n":9007199254740993}"#],
        &[r#"{"n":9007199254740992}"#],
        &[r#"{"f":1}"#, r#"{"f":1.0}"#, r#"{"f":10e-1}"#],
        &[r#"{"f":0}"#, r#"{"f":-0.0}"#, r#"{"f":0.0}"#],
        &[r#"{"f":0.1}"#, r#"{"f":1e-1}"#],
        &[r#"{"d":10.5}"#, r#"{"d":10.50}"#, r#"{"d":1.05e1}"#],
        &[r#"{"d":-10.5}"#],
        &[r#"{"d":10.0005}"#],
        &[r#"{"d":0.05}"#],
        &[r#"{"d":-0.05}"#],
        &[r#"{"d":1050}"#, r#"{"d":1050.00}"#],
        &[r#"{"ok":true}"#],
        &[r#"{"ok":false}"#],
        &[r#"{"text":"1"}"#, r#"{"text":"\u0031"}"#],
        &[r#"{"text":"é\n\"\\"}"#, r#"{"text":"\u00e9\u000a\u0022\u005c"}"#],
        &[r#"{"text":""}"#],
        &[r#"{"text":"true"}"#],
        &[r#"{"text":"x\",\"n\":1"}"#],
        &[r#"{"text":"x","n":1}"#, r#"{"n":1,"text":"x"}"#, r#"{"n":1,"text":"x","tags":null}"#],
        &[r#"{"place":{"city":"Rome","zip":1}}"#, r#"{"place":{ "zip":1,"city":"Rome"}}"#],
        &[r#"{"place":{"city":"Rome"}}"#],
        &[r#"{"tags":["a","b"]}"#, r#"{"tags":[ "a", "b" ]}"#],
        &[r#"{"tags":["b","a"]}"#],
        &[r#"{"tags":["ab"]}"#],
        &[r#"{"tags":[]}"#],
        &[r#"{"a":1,"n":2,"z":3}"#, r#"{"z":3,"n":2,"a":1}"#, r#"{"Z":3,"A":1.0,"n":2}"#],
        &[r#"{"a":2,"n":1,"z":3}"#],
        &[r#"{"a":{"x":[1,{"y":null}]}}"#, r#"{"a":{"x":[1.0,{"y":null}]}}"#],
    ];
    let decoders = decoders();
    let mut seen: HashMap<i64, usize> = HashMap::new();
    let mut derived: HashMap<String, usize> = HashMap::new();
    for (number, ways) in events.iter().enumerate() {
        for (way, decoder) in ways.iter().flat_map(|way| decoders.iter().map(move |decoder| (way, decoder))) {
            let inside = way.trim().trim_start_matches('{').trim_end().strip_suffix('}').unwrap().trim();
            let comma = if inside.is_empty() { "" } else { "," };
            // The time is a column of both decoders; the id is derived from what the event says.
            let identity = identity(decoder, &format!("{{{AT}{comma}{inside}}}"), Format::Json);
            let same = *seen.entry(identity.payload).or_insert(number);
            assert_eq!(same, number, "{way} is taken for {}", events[same][0]);
            let same = *derived.entry(identity.event_id.unwrap()).or_insert(number);
            assert_eq!(same, number, "{way} gets the id of {}", events[same][0]);
        }
    }
    assert_eq!(
        (seen.len(), derived.len()),
        (events.len(), events.len()),
        "one checksum and id for each event"
    );
}

#[test]
fn an_amount_is_the_same_number_as_a_column_and_as_a_member_that_is_none() {
    let [columns, members] = decoders();
    let chance = SeededRandomness::new(7);
    for round in 0..20_000 {
        // Few digits, many zeros at either end; beyond 15 digits a JSON number is not exact any more.
        let digits = chance.next_u64().unwrap() % 10u64.pow(1 + (round % 11));
        let (whole, rest) = (digits / 10_000, digits % 10_000);
        let sign = if chance.next_u64().unwrap().is_multiple_of(2) && digits > 0 { "-" } else { "" };
        let body = format!(r#"{{{AT},"d":{sign}{whole}.{rest:04}}}"#);
        let (one, other) = (identity(&columns, &body, Format::Json), identity(&members, &body, Format::Json));
        assert_eq!(one.payload, other.payload, "{body}");
    }
}

#[test]
fn a_line_of_csv_repeats_the_event_that_came_as_json() {
    let [decoder, _] = decoders();
    let json = identity(&decoder, r#"{"id":"1","text":"a, \"b\"","n":7,"note":"kept"}"#, Format::Json);
    let csv = identity(&decoder, "id,text,n,note\n1,\"a, \"\"b\"\"\",7,kept\n", Format::Csv);
    assert_eq!(json, csv);
}

/// Without a mark of who sent it, and with one.
#[test]
fn the_sender_is_written_down_and_changes_nothing_that_an_event_says() {
    let schema = |sender: Option<&str>| {
        let mut columns =
            vec![Column::new("id", DataType::Utf8, true), Column::new("n", DataType::Int64, true)];
        columns.extend(sender.map(|sender| Column::new(sender, DataType::Utf8, true)));
        let options = StreamOptions {
            event_id: vec!["id".into()],
            sender: sender.map(str::to_owned),
            ..StreamOptions::default()
        };
        Decoder::new(Arc::new(
            StreamSchema::new(StreamName::new("s").unwrap(), columns, options, true).unwrap(),
        ))
        .unwrap()
    };
    let said = |decoder: &Decoder, body: &str, principal: &Principal| {
        let mut found = None;
        decoder
            .decode(body.as_bytes(), Format::Json, 1, &mut Row::default(), &mut |_, row| {
                let row = row.unwrap();
                let identity = decoder.identify(row, principal, 1_800_000_000_000_000, 1);
                found = Some(identity.map(|identity| {
                    let mut batch = RowBatch::new(decoder).unwrap();
                    batch.push(row, &identity).unwrap();
                    (identity, batch.finish().unwrap())
                }));
            })
            .unwrap();
        found.unwrap()
    };
    let (without, with) = (schema(None), schema(Some("who")));
    let acme = Principal::new("client:acme", "default");
    let body = r#"{"id":"a","n":1}"#;
    let (known, _) = said(&without, body, &acme).unwrap();
    let (identity, rows) = said(&with, body, &acme).unwrap();
    assert_eq!(known, identity, "a column for the sender makes no other event of it");
    let who = rows.column_by_name("who").unwrap().as_string::<i32>().value(0).to_owned();
    assert_eq!(who, "client:acme");
    let own = said(&with, r#"{"id":"a","n":1,"who":"client:acme"}"#, &acme);
    assert!(own.is_ok());
    let foreign = said(&with, r#"{"id":"a","n":1,"who":"ada"}"#, &acme).unwrap_err();
    assert_eq!((foreign.code, foreign.path.as_str()), ("foreign_sender", "who"));
    let (_, rows) = said(&with, r#"{"id":"a","n":1,"who":"ada"}"#, &Principal::operator()).unwrap();
    assert_eq!(
        rows.column_by_name("who").unwrap().as_string::<i32>().value(0),
        "ada",
        "as it was, when it is brought again"
    );
}
