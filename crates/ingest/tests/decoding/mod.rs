//! What every decoder must hold on any input; for the mutated inputs of `fuzz.rs` and the coverage-guided
//! ones of the folder `fuzz`.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field};
use highwater_event::{Column, Principal, StreamName, StreamOptions, StreamSchema, columns};
use highwater_ingest::decode::{Decoder, Row, RowBatch};
use highwater_ingest::{Format, infer};

/// A stream with a column of every kind.
pub fn schema() -> Arc<StreamSchema> {
    let column = |name: &str, data_type: DataType| Column {
        json: name == "any",
        ..Column::new(name, data_type, true)
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

/// What became of the events of a body.
#[derive(Debug, Default)]
pub struct Verdicts {
    pub good: u64,
    pub bad: u64,
    /// The body was refused as a whole.
    pub refused: bool,
}

/// Decodes a body: every event has one verdict, every error says what is wrong, what is right is taken.
pub fn check(decoder: &Decoder, body: &[u8], format: Format) -> Verdicts {
    let mut row = Row::default();
    let mut batch = RowBatch::new(decoder).unwrap();
    let mut verdicts = Verdicts::default();
    let mut seen = 0;
    let outcome = decoder.decode(body, format, 100_000, &mut row, &mut |bytes, outcome| {
        seen += 1;
        assert!(bytes.len() <= body.len());
        match outcome.and_then(|row| {
            decoder
                .identify(row, &Principal::operator(), 1_800_000_000_000_000, seen)
                .map(|identity| (row, identity))
        }) {
            Ok((row, identity)) => {
                batch.push(row, &identity).unwrap();
                verdicts.good += 1;
            }
            Err(error) => {
                assert!(!error.code.is_empty() && !error.detail.is_empty());
                verdicts.bad += 1;
            }
        }
    });
    let rows = batch.finish().unwrap();
    assert_eq!(rows.num_rows() as u64, verdicts.good, "{}", String::from_utf8_lossy(body));
    match outcome {
        Ok(count) => assert_eq!(count as u64, seen, "every event has a verdict"),
        Err(_) => verdicts.refused = true,
    }
    infer::new_columns(decoder.stream(), body, format);
    verdicts
}
