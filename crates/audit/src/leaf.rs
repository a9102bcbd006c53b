//! What a leaf is: a commitment to an entry, behind a salt of the entry's own.
//!
//! ```text
//! record     := the entry as JSON in canonical form (RFC 8785): names sorted, nulls left out, no white space
//! commitment := SHA-256("highwater audit v1\n" ‖ salt ‖ record)          the data of the leaf, 32 bytes
//! leaf hash  := SHA-256(0x00 ‖ commitment)                               RFC 6962
//! ```
//! Whoever has entry and salt can check the leaf; whoever has the leaf alone can't guess the entry. When an
//! entry is erased, its salt goes with it and its commitment stays.

use arrow::array::{Array, AsArray, RecordBatch};
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

/// An entry as the tree knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its salt.
    pub salt: [u8; SALT_BYTES],
    /// What it says, in canonical form.
    pub json: String,
}

impl Record {
    /// The data of its leaf.
    pub fn commitment(&self) -> Hash {
        commitment(&self.salt, &self.json)
    }
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
            let salt = salts.is_valid(row).then(|| read_salt(salts.value(row))).flatten();
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
    fn the_form_of_a_leaf_never_changes() {
        let salt: [u8; SALT_BYTES] = std::array::from_fn(|at| at as u8);
        assert_eq!(
            hexadecimal::show(&commitment(&salt, r#"{"action":"query","actor":"ada"}"#)),
            "af489636e699a2668a9d13b875c7c96efdc8c761d377fa918ece378feeb0cded"
        );
    }
}
