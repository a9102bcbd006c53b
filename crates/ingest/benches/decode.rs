//! What the door does with a body of 1,000 events on one core, step by step.
//!
//! `cargo bench -p highwater-server -p highwater-ingest --bench decode`

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a program that measures")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::datatypes::{DataType, Field};
use highwater_event::{Column, Principal, StreamName, StreamOptions, StreamSchema, columns};
use highwater_ingest::Format;
use highwater_ingest::decode::{Decoder, Row, RowBatch};

const EVENTS: usize = 1000;
const NOW: i64 = 1_800_000_000_000_000;

fn schema() -> Arc<StreamSchema> {
    let column = |name: &str, data_type: DataType| Column::new(name, data_type, true);
    let place = vec![Field::new("city", DataType::Utf8, true), Field::new("country", DataType::Utf8, true)];
    let columns = vec![
        column("id", DataType::Utf8),
        column("at", columns::timestamp_type()),
        column("user_id", DataType::Utf8),
        column("product_id", DataType::Utf8),
        column("amount", DataType::Decimal128(15, 2)),
        column("currency", DataType::Utf8),
        column("kind", DataType::Utf8),
        column("status", DataType::Utf8),
        column("place", DataType::Struct(place.into())),
        column("quantity", DataType::Int32),
    ];
    let options = StreamOptions {
        event_id: vec!["id".into()],
        event_time: Some("at".into()),
        ..StreamOptions::default()
    };
    Arc::new(StreamSchema::new(StreamName::new("bench").unwrap(), columns, options, true).unwrap())
}

fn event(number: usize) -> String {
    format!(
        r#"{{"id":"EVT-{number:016x}","at":"2026-01-15T10:30:00.123456Z","user_id":"USER-{:07}","product_id":"PROD-1","amount":270.43,"currency":"GBP","kind":"purchase","status":"completed","place":{{"city":"San Francisco","country":"USA"}},"quantity":3,"note":"a member that the stream does not declare"}}"#,
        number % 5_000_000
    )
}

fn csv() -> String {
    let rows = (0..EVENTS).map(|number| {
        format!("EVT-{number:016x},2026-01-15T10:30:00.123456Z,USER-{number:07},PROD-1,270.43,GBP,purchase,completed,3\n")
    });
    format!("id,at,user_id,product_id,amount,currency,kind,status,quantity\n{}", rows.collect::<String>())
}

/// How far an event is taken.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Step {
    Cells,
    Identity,
    Columns,
}

fn take(decoder: &Decoder, body: &[u8], format: Format, step: Step, row: &mut Row) {
    let mut batch = RowBatch::new(decoder).unwrap();
    let principal = Principal::operator();
    let mut sequence = 0;
    let taken = decoder.decode(body, format, EVENTS, row, &mut |_, outcome| {
        let row = outcome.unwrap_or_else(|error| panic!("{error:?}"));
        sequence += 1;
        if step >= Step::Identity {
            let identity = decoder.identify(row, &principal, NOW, sequence).unwrap();
            if step == Step::Columns {
                batch.push(row, &identity).unwrap();
            }
            black_box(&identity);
        }
    });
    assert_eq!(taken.unwrap(), EVENTS);
    if step == Step::Columns {
        black_box(batch.finish().unwrap());
    }
}

fn main() {
    let decoder = Decoder::new(schema()).unwrap();
    let events: Vec<String> = (0..EVENTS).map(event).collect();
    let array = format!("[{}]", events.join(","));
    let lines = events.join("\n");
    println!("{:<44} {:>12} {:>10} {:>9}", "step", "events/s", "ns/event", "MB/s");
    for (name, body, format, step) in [
        ("JSON array: tokens to cells", &array, Format::Json, Step::Cells),
        ("JSON array: and hashes of id and payload", &array, Format::Json, Step::Identity),
        ("JSON array: and columns", &array, Format::Json, Step::Columns),
        ("NDJSON: all of it", &lines, Format::NdJson, Step::Columns),
        ("CSV: all of it", &csv(), Format::Csv, Step::Columns),
    ] {
        let mut row = Row::default();
        take(&decoder, body.as_bytes(), format, step, &mut row);
        let (started, mut rounds) = (Instant::now(), 0u32);
        while started.elapsed() < Duration::from_secs(3) {
            take(&decoder, black_box(body.as_bytes()), format, step, &mut row);
            rounds += 1;
        }
        let seconds = started.elapsed().as_secs_f64();
        let taken = f64::from(rounds) * EVENTS as f64;
        let megabytes = f64::from(rounds) * body.len() as f64 / 1e6;
        println!(
            "{name:<44} {:>12.0} {:>10.0} {:>9.0}",
            taken / seconds,
            seconds * 1e9 / taken,
            megabytes / seconds
        );
    }
}
