//! Bytes of a segment: heads of commits with a checksum that fits, schemas, and batches of rows. None of
//! them may make the reader panic, and rows that are read back must be whole.

#![no_main]

use std::sync::{Arc, LazyLock};

use arrow::array::{
    ArrayRef, BooleanArray, Decimal128Array, FixedSizeBinaryArray, Int64Array, ListBuilder, RecordBatch,
    StringArray, StringBuilder,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use highwater_log::batch::{self, BatchEncoder, Codec};
use highwater_log::format;
use libfuzzer_sys::fuzz_target;

mod changed;

use changed::changed;

fn schema() -> SchemaRef {
    let list = DataType::List(Arc::new(Field::new("element", DataType::Utf8, true)));
    Arc::new(Schema::new(vec![
        Field::new("n", DataType::Int64, true),
        Field::new("text", DataType::Utf8, true),
        Field::new("ok", DataType::Boolean, true),
        Field::new("d", DataType::Decimal128(15, 2), true),
        Field::new("tags", list, true),
        Field::new("key", DataType::FixedSizeBinary(16), true),
    ]))
}

/// A batch as it is stored before compression: most bytes that are tried are this one with some changes.
static WHOLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut tags = ListBuilder::new(StringBuilder::new());
    for row in 0..5 {
        for _ in 0..row {
            tags.values().append_value("tag");
        }
        tags.append(row != 3);
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![Some(1), None, Some(-3), Some(i64::MAX), Some(0)])),
        Arc::new(StringArray::from(vec![
            Some("a"),
            Some("Z\u{fc}rich"),
            None,
            Some(""),
            Some("long enough"),
        ])),
        Arc::new(BooleanArray::from(vec![Some(true), None, Some(false), Some(true), None])),
        Arc::new(
            Decimal128Array::from(vec![Some(1), Some(-270_43), None, Some(0), Some(9)])
                .with_precision_and_scale(15, 2)
                .unwrap(),
        ),
        Arc::new(tags.finish()),
        Arc::new(FixedSizeBinaryArray::try_from_iter((0..5u8).map(|row| [row; 16])).unwrap()),
    ];
    let nullable: Vec<Field> = schema().fields().iter().map(|field| field.as_ref().clone()).collect();
    let columns = columns.into_iter().zip(&nullable).map(|(column, field)| {
        let data = column.to_data().into_builder().data_type(field.data_type().clone()).build().unwrap();
        arrow::array::make_array(data)
    });
    let rows = RecordBatch::try_new(schema(), columns.collect()).unwrap();
    let stored = BatchEncoder::default().encode(&rows).unwrap();
    match stored.codec {
        Codec::Plain => stored.bytes,
        Codec::Lz4 => lz4_flex::block::decompress(&stored.bytes, stored.raw_len).unwrap(),
    }
});

/// A commit whose head is `head`, with checksums that fit.
fn commit(head: &[u8], body: &[u8]) -> Vec<u8> {
    let mut bytes = format::COMMIT_MAGIC.to_vec();
    bytes.extend_from_slice(&(head.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[4..]), head);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(head);
    bytes.extend_from_slice(body);
    bytes
}

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, bytes)) = bytes.split_first() else { return };
    match choice % 5 {
        0 => drop(format::find_commit(bytes, 0)),
        1 => {
            let (head, body) = bytes.split_at(bytes.len() / 2);
            drop(format::find_commit(&commit(head, body), 0));
        }
        2 => drop(batch::decode_schema(bytes)),
        kind => {
            let (bytes, codec) = match kind {
                3 => (changed(WHOLE.clone(), bytes), Codec::Plain),
                _ => (bytes.to_vec(), Codec::Lz4),
            };
            let raw_len = bytes.len().saturating_mul(8).min(1 << 16);
            if let Ok(rows) = batch::decode_batch(&bytes, codec, raw_len, schema()) {
                for column in rows.columns() {
                    column.to_data().validate_full().unwrap();
                }
            }
        }
    }
});
