//! Stored batches that lie although their checksum fits: an error, or whole rows; never a panic.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Int64Array, ListBuilder, RecordBatch, StringArray, StringBuilder, StructArray,
};
use arrow::datatypes::{DataType, Field, Schema};
use highwater_log::batch::{BatchEncoder, Codec, decode_batch};

fn rows() -> RecordBatch {
    let mut tags = ListBuilder::new(StringBuilder::new());
    for row in 0..4 {
        for _ in 0..row {
            tags.values().append_value("tag");
        }
        tags.append(row != 2);
    }
    let city: ArrayRef = Arc::new(StringArray::from(vec![Some("Bern"), None, Some(""), Some("Zürich")]));
    let place = StructArray::from(vec![(Arc::new(Field::new("city", DataType::Utf8, true)), city)]);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("n", Arc::new(Int64Array::from(vec![Some(1), None, Some(i64::MIN), Some(7)]))),
        ("ok", Arc::new(BooleanArray::from(vec![Some(true), None, Some(false), None]))),
        ("tags", Arc::new(tags.finish())),
        ("place", Arc::new(place)),
    ];
    let fields: Vec<Field> =
        columns.iter().map(|(name, column)| Field::new(*name, column.data_type().clone(), true)).collect();
    let columns = columns.into_iter().map(|(_, column)| column).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

#[test]
fn bytes_that_lie_are_an_error_or_whole_rows() {
    let rows = rows();
    let stored = BatchEncoder::default().encode(&rows).unwrap();
    let plain = match stored.codec {
        Codec::Plain => stored.bytes,
        Codec::Lz4 => lz4_flex::block::decompress(&stored.bytes, stored.raw_len).unwrap(),
    };
    let decode = |bytes: &[u8]| decode_batch(bytes, Codec::Plain, bytes.len(), rows.schema());
    assert_eq!(decode(&plain).unwrap(), rows);
    let (mut refused, mut taken) = (0, 0);
    let mut look = |bytes: &[u8]| match decode(bytes) {
        Ok(found) => {
            found.columns().iter().for_each(|column| column.to_data().validate_full().unwrap());
            taken += 1;
        }
        Err(_) => refused += 1,
    };
    for at in 0..plain.len() {
        for value in [0, 1, 2, 4, 8, 16, 64, 0x7f, 0x80, 0xfe, 0xff] {
            let mut bytes = plain.clone();
            bytes[at] ^= value;
            look(&bytes);
            bytes[at] = value;
            look(&bytes);
        }
        look(&plain[..at]);
    }
    println!("{taken} taken, {refused} refused");
    assert!(taken > 0 && refused > 0);
}
