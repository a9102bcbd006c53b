//! The decoders on inputs that are almost right: they never panic, account for every event, and take
//! what is right. `HIGHWATER_FUZZ` sets how many inputs, `HIGHWATER_SEED` the first.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;

use arrow::datatypes::{DataType, Field};
use highwater_event::{
    Column, Principal, SeededRandomness, StreamName, StreamOptions, StreamSchema, columns,
};
use highwater_ingest::decode::{Decoder, Row, RowBatch};
use highwater_ingest::{Format, infer};
use highwater_sim::mutate;

fn schema() -> Arc<StreamSchema> {
    let column = |name: &str, data_type: DataType| Column {
        name: name.into(),
        data_type,
        nullable: true,
        sensitive: false,
        json: name == "any",
    };
    let place = DataType::Struct(
        vec![Field::new("city", DataType::Utf8, true), Field::new("zip", DataType::Int32, true)].into(),
    );
    let entries = DataType::Struct(
        vec![Field::new("key", DataType::Utf8, false), Field::new("value", DataType::Int64, true)].into(),
    );
    let columns = vec![
        column("id", DataType::Utf8),
        column("at", columns::timestamp_type()),
        column("n", DataType::Int64),
        column("small", DataType::Int16),
        column("f", DataType::Float64),
        column("d", DataType::Decimal128(15, 2)),
        column("ok", DataType::Boolean),
        column("day", DataType::Date32),
        column("any", DataType::Utf8),
        column("place", place),
        column("tags", DataType::List(Field::new("element", DataType::Utf8, true).into())),
        column("map", DataType::Map(Field::new("entries", entries, false).into(), false)),
    ];
    let options = StreamOptions {
        event_id: vec!["id".into()],
        event_time: Some("at".into()),
        ..StreamOptions::default()
    };
    Arc::new(StreamSchema::new(StreamName::new("s").unwrap(), columns, options, true).unwrap())
}

const JSON: &str = r#"[{"id":"a","at":"2026-01-01T00:00:00Z","n":1,"small":-3,"f":1.5e3,"d":12.34,"ok":true,"day":"2026-01-01","any":{"x":[1,{"y":null}]},"place":{"city":"Züri\n","zip":8000},"tags":["p","q",null],"map":{"k":1,"l":null},"extra":"é"},
{"id":"b","at":1767225600000,"d":"0.10","tags":[],"map":{}}]"#;
const CSV: &str = "id,at,n,small,f,d,ok,day,any,place,tags,map,extra\na,2026-01-01,1,-3,1.5,12.34,true,2026-01-01,\"{\"\"x\"\":1}\",\"{\"\"city\"\":\"\"Z\"\"}\",\"[\"\"p\"\"]\",\"{\"\"k\"\":1}\",é\nb,,,,,,,,,,,,\n";
const CLOUD: &str = r#"[{"specversion":"1.0","id":"a","source":"/s","type":"t","time":"2026-01-01T00:00:00Z","subject":"x","ext":5,"data":{"n":1,"d":1.10}},{"specversion":"1.0","id":"b","source":"/s","type":"t","data_base64":"AA=="}]"#;

#[test]
fn decoders_never_panic_and_account_for_every_event() {
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let (seed, count) = (number("HIGHWATER_SEED", 1), number("HIGHWATER_FUZZ", 40_000));
    println!("seed {seed}, {count} inputs");
    let chance = SeededRandomness::new(seed);
    let decoder = Decoder::new(schema()).unwrap();
    let lines = JSON.trim_matches(['[', ']']).replace("},\n{", "}\n{");
    let (mut good, mut bad, mut refused) = (0, 0, 0);
    for number in 0..count {
        let (format, text) = match number % 4 {
            0 => (Format::Json, JSON),
            1 => (Format::NdJson, lines.as_str()),
            2 => (Format::Csv, CSV),
            _ => (Format::CloudEvents, CLOUD),
        };
        let mut body = text.as_bytes().to_vec();
        mutate(&mut body, &chance);
        let mut row = Row::default();
        let mut batch = RowBatch::new(&decoder).unwrap();
        let (mut seen, mut pushed) = (0, 0);
        let outcome = decoder.decode(&body, format, 100_000, &mut row, &mut |bytes, outcome| {
            seen += 1;
            assert!(bytes.len() <= body.len());
            match outcome.and_then(|row| {
                decoder
                    .identify(row, &Principal::operator(), 1_800_000_000_000_000, seen)
                    .map(|identity| (row, identity))
            }) {
                Ok((row, identity)) => {
                    batch.push(row, &identity).unwrap();
                    pushed += 1;
                }
                Err(error) => {
                    assert!(!error.code.is_empty() && !error.detail.is_empty());
                    bad += 1;
                }
            }
        });
        let rows = batch.finish().unwrap();
        assert_eq!(rows.num_rows(), pushed, "{}", String::from_utf8_lossy(&body));
        good += pushed;
        match outcome {
            Ok(count) => assert_eq!(count as u64, seen, "every event has a verdict"),
            Err(_) => refused += 1,
        }
        infer::new_columns(&schema(), &body, format);
    }
    println!("{good} events taken, {bad} refused, {refused} bodies refused as a whole");
    assert!(good > 0 && bad > 0 && refused > 0);
}
