//! What a leaf is: a commitment to an entry, behind a salt of the entry's own.
//!
//! ```text
//! record     := the entry as JSON in canonical form (RFC 8785): names sorted, nulls left out, no white space
//! commitment := SHA-256("highwater audit v1\n" ‖ salt ‖ record)          the data of the leaf, 32 bytes
//! leaf hash  := SHA-256(0x00 ‖ commitment)                               RFC 6962
//! ```
//! Whoever has entry and salt can check the leaf; whoever has the leaf alone can't guess the entry. When something is taken
//! out of an entry, its commitment takes the place of the salt: the tree stays what it was, and what is left of the entry is
//! not proven by it any more.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, UInt64Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{DataType, Int32Type, Int64Type, TimestampMicrosecondType};
use highwater_event::canonical::push_json_string;
use highwater_event::{columns, hexadecimal, time};
use highwater_log::audit::SALT_BYTES;

use crate::AuditError;
use crate::tree::{Hash, sha256};

/// What is hashed before an entry, so that its hash can be taken for no other one.
const DOMAIN: &[u8] = b"highwater audit v1\n";
/// The column that is not part of a record.
const SALT: &str = "salt";
/// What stands in the place of a salt that is gone, before the commitment in hexadecimal digits.
const ERASED: &str = "erased:";
/// A hash of the whole body, which others could try names against.
const BODY_HASH: &str = "body_hash";
/// The name of an entry's time in its record.
const TIME: &str = "time";

/// The data of a leaf.
pub fn commitment(salt: &[u8; SALT_BYTES], record: &str) -> Hash {
    sha256([DOMAIN, salt, record.as_bytes()])
}

/// The salt that a text says.
pub fn read_salt(text: &str) -> Option<[u8; SALT_BYTES]> {
    hexadecimal::read(text)?.try_into().ok()
}

/// What makes a leaf of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Salt {
    /// The entry is whole, and this is its salt.
    Kept([u8; SALT_BYTES]),
    /// Something was taken out of the entry, and this is the commitment to what it was.
    Erased(Hash),
}

impl Salt {
    fn read(text: &str) -> Option<Self> {
        match text.strip_prefix(ERASED) {
            Some(commitment) => Some(Self::Erased(hexadecimal::read(commitment)?.try_into().ok()?)),
            None => read_salt(text).map(Self::Kept),
        }
    }
}

/// An entry as the tree knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its salt, or what stands in its place.
    pub salt: Salt,
    /// What it says, in canonical form.
    pub json: String,
}

impl Record {
    /// The data of its leaf.
    pub fn commitment(&self) -> Hash {
        match &self.salt {
            Salt::Kept(salt) => commitment(salt, &self.json),
            Salt::Erased(commitment) => *commitment,
        }
    }

    /// The salt, of an entry that is whole.
    pub fn whole(&self) -> Result<&[u8; SALT_BYTES], AuditError> {
        match &self.salt {
            Salt::Kept(salt) => Ok(salt),
            Salt::Erased(_) => Err(AuditError::Missing("something was taken out of this entry".into())),
        }
    }
}

/// Entries that something was taken out of, as they are to be stored: of `rows` the commitment to what each was takes the
/// place of its salt, and the hash of its body goes, too. Both batches are rows of `_audit` with the same columns.
pub fn erased(before: &RecordBatch, after: &RecordBatch, rows: &[usize]) -> Result<RecordBatch, AuditError> {
    let changed =
        |what: String| AuditError::Changed(format!("entries of the audit trail can't be erased: {what}"));
    let places = UInt64Array::from_iter_values(rows.iter().map(|row| *row as u64));
    let were = take_record_batch(before, &places).map_err(|error| changed(error.to_string()))?;
    let were = records(&were)?
        .into_iter()
        .map(|record| format!("{ERASED}{}", hexadecimal::show(&record.commitment())));
    let gone: BTreeMap<usize, String> = rows.iter().copied().zip(were).collect();
    let columns = after.schema_ref().fields().iter().zip(after.columns()).map(|(field, column)| {
        let text =
            || column.as_string_opt::<i32>().ok_or_else(|| changed(format!("{} is no text", field.name())));
        let column: ArrayRef = match field.name().as_str() {
            SALT => {
                let salts = text()?.iter().enumerate();
                let salts = salts.map(|(row, salt)| gone.get(&row).map(String::as_str).or(salt));
                Arc::new(salts.collect::<StringArray>())
            }
            BODY_HASH => {
                let hashes = text()?.iter().enumerate();
                let hashes = hashes.map(|(row, hash)| hash.filter(|_| !gone.contains_key(&row)));
                Arc::new(hashes.collect::<StringArray>())
            }
            _ => column.clone(),
        };
        Ok(column)
    });
    let columns = columns.collect::<Result<Vec<_>, AuditError>>()?;
    RecordBatch::try_new(after.schema(), columns).map_err(|error| changed(error.to_string()))
}

/// The records of rows of `_audit`, as the log stores them or as readers see them.
pub fn records(rows: &RecordBatch) -> Result<Vec<Record>, AuditError> {
    let changed = |what: &str| AuditError::Changed(format!("an entry of the audit trail {what}"));
    let schema = rows.schema_ref();
    let salts = rows.column_by_name(SALT).and_then(|column| column.as_string_opt::<i32>());
    let salts = salts.ok_or_else(|| changed("has no salt"))?;
    let mut members: Vec<(&str, usize)> = Vec::new();
    for (at, field) in schema.fields().iter().enumerate() {
        match field.name().as_str() {
            SALT => {}
            columns::EVENT_TIME => members.push((TIME, at)),
            name if name.starts_with('_') => {}
            name => members.push((name, at)),
        }
    }
    members.sort_unstable();
    (0..rows.num_rows())
        .map(|row| {
            let salt = salts.is_valid(row).then(|| Salt::read(salts.value(row))).flatten();
            let mut json = String::with_capacity(512);
            for (name, at) in &members {
                let column = rows.column(*at);
                if column.is_null(row) {
                    continue;
                }
                json.push(if json.is_empty() { '{' } else { ',' });
                push_json_string(name, &mut json);
                json.push(':');
                match column.data_type() {
                    DataType::Utf8 => push_json_string(column.as_string::<i32>().value(row), &mut json),
                    DataType::Int32 => {
                        json.push_str(&column.as_primitive::<Int32Type>().value(row).to_string());
                    }
                    DataType::Int64 => {
                        json.push_str(&column.as_primitive::<Int64Type>().value(row).to_string());
                    }
                    DataType::Timestamp(..) => {
                        let micros = column.as_primitive::<TimestampMicrosecondType>().value(row);
                        push_json_string(&time::show_micros(micros), &mut json);
                    }
                    _ => return Err(changed("has a column of a type that it can't have")),
                }
            }
            json.push('}');
            Ok(Record { salt: salt.ok_or_else(|| changed("has no salt"))?, json })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use highwater_log::audit::{Entry, append};

    #[test]
    fn a_record_is_canonical_json() {
        let entry = Entry {
            at: 1_767_268_800_000_001,
            actor: "ada \"the\" first\n".into(),
            status: Some(200),
            salt: [7; SALT_BYTES],
            seen: Some("{\"rows\":1}".into()),
            ..Entry::default()
        };
        let rows = append(&[entry]).unwrap().rows;
        let record = records(&rows).unwrap().remove(0);
        let value: serde_json::Value = serde_json::from_str(&record.json).unwrap();
        assert_eq!(value["actor"], "ada \"the\" first\n");
        assert_eq!(value["time"], "2026-01-01T12:00:00.000001Z");
        assert_eq!(value["seen"], "{\"rows\":1}");
        assert!(value.get("body").is_none() && value.get("salt").is_none());
        let names: Vec<&String> = value.as_object().unwrap().keys().collect();
        assert!(names.is_sorted(), "{names:?}");
        assert_eq!(value.to_string(), record.json, "the form that serde_json writes is canonical, too");
    }

    #[test]
    fn an_entry_that_something_was_taken_out_of_keeps_its_leaf() {
        let entry = |resource: &str, salt: u8| Entry {
            resource: resource.into(),
            body_hash: Some("ab".repeat(32)),
            salt: [salt; SALT_BYTES],
            ..Entry::default()
        };
        let before = append(&[entry("ada", 1), entry("grace", 2)]).unwrap().rows;
        let edited = append(&[entry("[erased]", 1), entry("grace", 2)]).unwrap().rows;
        let after = erased(&before, &edited, &[0]).unwrap();
        let (was, is) = (records(&before).unwrap(), records(&after).unwrap());
        assert_eq!(is[0].commitment(), was[0].commitment());
        assert!(matches!(is[0].salt, Salt::Erased(_)) && is[0].json.contains("[erased]"));
        assert!(!is[0].json.contains("body_hash"), "{}", is[0].json);
        assert_eq!(is[1], was[1]);
        // Once more, when something else is taken out of it.
        let again = append(&[entry("", 1), entry("grace", 2)]).unwrap().rows;
        let columns = again.columns().iter().enumerate();
        let salts = after.schema().index_of(SALT).unwrap();
        let columns =
            columns.map(|(at, column)| if at == salts { after.column(at).clone() } else { column.clone() });
        let again = RecordBatch::try_new(again.schema(), columns.collect()).unwrap();
        let again = records(&erased(&after, &again, &[0]).unwrap()).unwrap();
        assert_eq!(again[0].commitment(), was[0].commitment());
        assert_eq!(erased(&before, &before, &[]).unwrap(), before);
    }

    #[test]
    fn the_form_of_a_leaf_never_changes() {
        let salt: [u8; SALT_BYTES] = std::array::from_fn(|at| at as u8);
        assert_eq!(
            hexadecimal::show(&commitment(&salt, r#"{"action":"query","actor":"ada"}"#)),
            "af489636e699a2668a9d13b875c7c96efdc8c761d377fa918ece378feeb0cded"
        );
    }
}
