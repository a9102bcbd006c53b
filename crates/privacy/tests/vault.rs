//! Keys under change, crash and damage; batches there and back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int32Array, Int64Array, RecordBatch, StringArray, StructArray};
use arrow::datatypes::{DataType, Field, Fields};
use highwater_event::{Column, StreamName, StreamOptions, StreamSchema, columns};
use highwater_privacy::{Positions, RingError, SealError, Vault};
use highwater_sim::SimKeys;

const OLD: [u8; 32] = [1; 32];
const NEW: [u8; 32] = [2; 32];

fn people() -> StreamSchema {
    let place = DataType::Struct(Fields::from(vec![
        Field::new("city", DataType::Utf8, true),
        Field::new("country", DataType::Utf8, true),
    ]));
    let declared = vec![
        Column::new("id", DataType::Utf8, false),
        Column::new("tenant", DataType::Utf8, true),
        Column { sensitive: true, ..Column::new("phone", DataType::Utf8, true) },
        Column { sensitive: true, ..Column::new("born", DataType::Int64, true) },
        Column::new("place", place, true),
    ];
    let options = StreamOptions {
        tenant: Some("tenant".into()),
        sensitive: vec!["place.city".into()],
        ..StreamOptions::default()
    };
    StreamSchema::new(StreamName::new("people").unwrap(), declared, options, true).unwrap()
}

fn rows() -> RecordBatch {
    let texts = |values: [Option<&str>; 3]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
    let schema = people().stored_schema();
    let DataType::Struct(members) = schema.field_with_name("place").unwrap().data_type().clone() else {
        panic!()
    };
    let cities = texts([Some("Graz"), None, Some("Linz")]);
    let places = StructArray::new(members, vec![cities, texts([Some("AT"); 3])], None);
    let arrays: Vec<ArrayRef> = vec![
        texts([Some("a"), Some("b"), Some("c")]),
        texts([Some("acme"), Some("zeta"), None]),
        texts([Some("+43 1"), None, Some("+43 3")]),
        Arc::new(Int64Array::from(vec![Some(1970), Some(1980), None])),
        Arc::new(places),
        texts([Some("{\"x\":\"canary\"}"), None, None]),
        Arc::new(
            arrow::array::TimestampMicrosecondArray::from_value(5, 3)
                .with_data_type(columns::timestamp_type()),
        ),
        arrow::array::new_null_array(&DataType::FixedSizeBinary(16), 3),
        arrow::array::new_null_array(&DataType::Int64, 3),
    ];
    RecordBatch::try_new(schema, arrays).unwrap()
}

const RUN: Positions<'static> = Positions::Run { partition: 1, first: 10 };

fn seal(vault: &Vault) -> RecordBatch {
    vault.encrypt("people", RUN, &people().sensitive().unwrap(), &rows()).unwrap()
}

fn read(
    vault: &Vault,
    stream: &str,
    positions: Positions<'_>,
    sealed: &RecordBatch,
) -> Result<RecordBatch, SealError> {
    vault.decrypt(stream, positions, &people().sensitive().unwrap(), &rows().schema(), sealed)
}

#[test]
fn rows_come_back_at_their_own_place_only() {
    let vault = SimKeys::default().open(&[OLD], 1).unwrap();
    let sealed = seal(&vault);
    let shown = format!("{:?}", sealed.columns().iter().map(|column| column.to_data()).collect::<Vec<_>>());
    let bytes: Vec<u8> = sealed
        .columns()
        .iter()
        .flat_map(|column| column.to_data().buffers().to_vec())
        .flat_map(|buffer| buffer.to_vec())
        .collect();
    for secret in ["+43 1", "Graz", "canary"] {
        assert!(!shown.contains(secret));
        assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "{secret}");
    }
    assert_eq!(read(&vault, "people", RUN, &sealed).unwrap(), rows());

    let (partitions, offsets) = (Int32Array::from(vec![1, 1]), Int64Array::from(vec![12, 10]));
    let picked =
        arrow::compute::take_record_batch(&sealed, &arrow::array::UInt32Array::from(vec![2, 0])).unwrap();
    let expected =
        arrow::compute::take_record_batch(&rows(), &arrow::array::UInt32Array::from(vec![2, 0])).unwrap();
    let there = Positions::Rows { partitions: &partitions, offsets: &offsets };
    assert_eq!(read(&vault, "people", there, &picked).unwrap(), expected);

    for (stream, positions) in [
        ("persons", RUN),
        ("people", Positions::Run { partition: 2, first: 10 }),
        ("people", Positions::Run { partition: 1, first: 11 }),
    ] {
        let error = read(&vault, stream, positions, &sealed).unwrap_err().to_string();
        assert!(error.contains("can't be decrypted: it was changed, moved from elsewhere"), "{error}");
    }
    // One column's value in the place of another's, in the same row.
    let mut swapped = sealed.columns().to_vec();
    swapped.swap(2, 3);
    let swapped = RecordBatch::try_new(sealed.schema(), swapped).unwrap();
    assert!(read(&vault, "people", RUN, &swapped).is_err());
}

#[test]
fn tenants_have_keys_of_their_own() {
    let vault = SimKeys::default().open(&[OLD], 1).unwrap();
    seal(&vault);
    let (_, keys) = vault.describe();
    let mut tenants: Vec<&str> = keys.iter().map(|key| key.tenant.as_ref()).collect();
    tenants.sort_unstable();
    assert_eq!(tenants, ["", "acme", "zeta"]);
}

#[test]
fn new_keys_encrypt_and_old_ones_still_decrypt() {
    let file = SimKeys::default();
    let vault = file.open(&[OLD], 1).unwrap();
    let before = seal(&vault);
    assert_eq!(vault.rotate().unwrap(), 3);
    let after = seal(&vault);
    let number = |rows: &RecordBatch| rows.column(2).as_binary::<i32>().value(0)[1..5].to_vec();
    assert_ne!(number(&before), number(&after));
    let again = file.open(&[OLD], 2).unwrap();
    for sealed in [&before, &after] {
        assert_eq!(read(&again, "people", RUN, sealed).unwrap(), rows());
    }
}

#[test]
fn another_master_key_takes_over_and_a_stop_in_between_harms_nothing() {
    let file = SimKeys::default();
    let vault = file.open(&[OLD], 1).unwrap();
    let sealed = seal(&vault);
    // The new master key has been written down, the keys have not been wrapped by it yet.
    let between = file.open(&[NEW, OLD], 2).unwrap();
    assert_eq!(read(&between, "people", RUN, &sealed).unwrap(), rows());
    let after = file.open(&[NEW], 3).unwrap();
    assert_eq!(read(&after, "people", RUN, &sealed).unwrap(), rows());
    assert!(matches!(file.open(&[OLD], 4), Err(RingError::UnknownMaster { line: 1, .. })));
    let fingerprint = after.fingerprint_key().unwrap();
    assert_eq!(after.rewrap(vec![OLD]).unwrap(), 4);
    assert_eq!(file.open(&[OLD], 5).unwrap().fingerprint_key().unwrap(), fingerprint);
}

#[test]
fn half_a_line_was_never_used() {
    let file = SimKeys::default();
    let vault = file.open(&[OLD], 1).unwrap();
    let whole = file.bytes().len();
    for cut in [0, 1, 50, 150] {
        file.fail_after(cut);
        assert!(matches!(vault.sealer("acme"), Err(SealError::Ring(RingError::Io(_)))));
        let after_crash = SimKeys::default();
        after_crash.put(file.bytes());
        assert!(after_crash.open(&[OLD], 9).unwrap().describe().1.is_empty(), "cut at {cut}");
    }
    vault.sealer("acme").unwrap();
    assert!(file.bytes().len() > whole);
    assert_eq!(file.open(&[OLD], 2).unwrap().describe().1.len(), 1);
}

#[test]
fn every_bit_of_the_file_matters() {
    let file = SimKeys::default();
    let vault = file.open(&[OLD], 1).unwrap();
    let sealed = seal(&vault);
    let bytes = file.bytes();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let damaged = SimKeys::default();
        damaged.put(flipped);
        // When a key was made is told and decides nothing.
        let Ok(vault) = damaged.open(&[OLD], 2) else { continue };
        if let Ok(read) = read(&vault, "people", RUN, &sealed) {
            assert_eq!(read, rows());
        }
    }
}

/// People of two tenants, one of whom is in both.
fn persons() -> (StreamSchema, RecordBatch) {
    let declared = vec![
        Column { sensitive: true, ..Column::new("who", DataType::Utf8, false) },
        Column { sensitive: true, ..Column::new("phone", DataType::Utf8, true) },
        Column::new("tenant", DataType::Utf8, true),
    ];
    let options = StreamOptions {
        tenant: Some("tenant".into()),
        subject: Some("who".into()),
        ..StreamOptions::default()
    };
    let schema = StreamSchema::new(StreamName::new("persons").unwrap(), declared, options, false).unwrap();
    let texts = |values: [&str; 4]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
    let arrays: Vec<ArrayRef> = vec![
        texts(["ada", "bob", "ada", "ada"]),
        texts(["+43 1", "+43 2", "+43 3", "+43 4"]),
        texts(["acme", "acme", "zeta", "acme"]),
        Arc::new(
            arrow::array::TimestampMicrosecondArray::from_value(5, 4)
                .with_data_type(columns::timestamp_type()),
        ),
    ];
    let rows = RecordBatch::try_new(schema.stored_schema(), arrays).unwrap();
    (schema, rows)
}

#[test]
fn a_person_is_forgotten_and_nobody_else() {
    let (schema, rows) = persons();
    let sensitive = schema.sensitive().unwrap();
    let file = SimKeys::default();
    let vault = file.open(&[OLD], 1).unwrap();
    let seal = |vault: &Vault| vault.encrypt("persons", RUN, &sensitive, &rows).unwrap();
    let phones = |vault: &Vault, sealed: &RecordBatch| -> Vec<Option<String>> {
        let read = vault.decrypt("persons", RUN, &sensitive, &rows.schema(), sealed).unwrap();
        let phones = read.column(1).as_string::<i32>().iter();
        phones.map(|phone| phone.map(str::to_owned)).collect()
    };
    let told = |phones: [Option<&str>; 4]| phones.map(|phone| phone.map(str::to_owned)).to_vec();
    let sealed = seal(&vault);
    assert_eq!(vault.decrypt("persons", RUN, &sensitive, &rows.schema(), &sealed).unwrap(), rows);
    // Keys of people are not those of tenants: nothing was encrypted for a tenant as a whole.
    assert!(vault.describe().1.is_empty());

    let (ada, bob) = (vault.tag("ada").unwrap(), vault.tag("bob").unwrap());
    let shown = |tag: &[u8; 16]| highwater_event::hexadecimal::show(tag);
    let lines = || String::from_utf8(file.bytes()).unwrap();
    assert!(lines().contains(&shown(&ada)) && !lines().contains("ada"));
    assert_eq!(vault.erase(Some("acme"), &[ada].into()).unwrap(), 1);
    assert_eq!(phones(&vault, &sealed), told([None, Some("+43 2"), Some("+43 3"), None]));
    assert_eq!(vault.erase(None, &[ada].into()).unwrap(), 1);
    assert_eq!(vault.erase(None, &[ada].into()).unwrap(), 0, "there is nothing left");
    let left = told([None, Some("+43 2"), None, None]);
    assert_eq!(phones(&vault, &sealed), left);
    assert!(!lines().contains(&shown(&ada)) && lines().contains(&shown(&bob)));
    // Whatever was read again or wrapped anew since.
    vault.rewrap(vec![NEW]).unwrap();
    let again = file.open(&[NEW], 2).unwrap();
    assert_eq!(phones(&again, &sealed), left);

    // Who comes back has another key, and what was forgotten stays so.
    let later = seal(&again);
    assert_eq!(phones(&again, &later), told([Some("+43 1"), Some("+43 2"), Some("+43 3"), Some("+43 4")]));
    assert_eq!(phones(&again, &sealed), left);
    // A key that was moved to somebody else would outlive its person: it is bound to them.
    let moved = SimKeys::default();
    moved.put(lines().replace(&shown(&bob), &shown(&ada)).into_bytes());
    assert!(matches!(moved.open(&[NEW], 3), Err(RingError::Unreadable { .. })));
}
