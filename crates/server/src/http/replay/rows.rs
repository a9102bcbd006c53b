//! Rows of the log as events that are appended again.

use std::collections::BTreeMap;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::error::ArrowError;
use highwater_event::canonical::push_json_string;
use highwater_event::{Column, Offset, Partition, columns, time};
use highwater_log::LogBatch;
use highwater_log::reader::RowReader;
use highwater_sql::adhoc::value_as_json;
use serde_json::json;
use serde_json::value::RawValue;

use super::Replay;

/// The member that links an event to its original.
const ORIGINAL: &str = "_replay_of";

/// Rows of the log that are written as events.
pub(super) struct Rows<'a> {
    replay: &'a Replay,
    partition: Partition,
    base: Offset,
    columns: Vec<(&'a Column, ArrayRef)>,
    /// Members that the source does not declare; a derived stream has none.
    extra: Option<ArrayRef>,
    now: String,
}

impl<'a> Rows<'a> {
    pub(super) fn of(replay: &'a Replay, partition: Partition, batch: &LogBatch) -> Result<Self, ArrowError> {
        let rows = RowReader::new(&replay.source).read(partition, batch)?;
        // They come first, in the order of the schema.
        let declared = replay.source.columns.iter().zip(rows.columns().iter().cloned());
        Ok(Self {
            replay,
            partition,
            base: batch.base,
            columns: declared.collect(),
            extra: rows.column_by_name(columns::EXTRA).cloned(),
            now: time::show_micros(replay.node.clock.now_micros()),
        })
    }

    /// Appends the event at an offset as one line; not one that this very replay has brought.
    pub(super) fn write(&self, offset: Offset, out: &mut String) {
        let Some(row) = offset.checked_sub(self.base).map(|row| row as usize) else { return };
        let Replay { source, target, name, now, .. } = self.replay;
        let start = out.len();
        let original = json!({"stream": source.name.public(), "partition": self.partition, "offset": offset});
        out.push_str(&format!("{{\"{ORIGINAL}\":{original}"));
        for (column, array) in &self.columns {
            let happens = *now && target.options.event_time.as_ref() == Some(&column.name);
            if array.is_null(row) && !happens {
                continue;
            }
            out.push(',');
            push_json_string(&column.name, out);
            out.push(':');
            match name {
                _ if happens => push_json_string(&self.now, out),
                Some((name, id)) if *id == column.name => {
                    let suffix = format!("~{name}");
                    if source.name == target.name && text(array, row).ends_with(&suffix) {
                        out.truncate(start);
                        return;
                    }
                    push_json_string(&[text(array, row), &suffix].concat(), out);
                }
                _ if column.json => out.push_str(text(array, row)),
                _ => value_as_json(array, row, out),
            }
        }
        if let Some(extra) = self.extra.as_ref().filter(|extra| extra.is_valid(row)) {
            write_members(text(extra, row), out);
        }
        out.push_str("}\n");
    }
}

fn text(array: &ArrayRef, row: usize) -> &str {
    array.as_string_opt::<i32>().map_or("", |texts| texts.value(row))
}

/// Appends the members of an object, each after a comma. The link of an earlier replay gives way to the new one.
fn write_members(object: &str, out: &mut String) {
    if !object.contains(ORIGINAL) {
        let inside = object.trim().trim_start_matches('{').trim_end();
        let inside = inside.strip_suffix('}').unwrap_or(inside);
        if !inside.trim().is_empty() {
            out.push(',');
            out.push_str(inside);
        }
        return;
    }
    let members: BTreeMap<String, &RawValue> = serde_json::from_str(object).unwrap_or_default();
    for (name, value) in members.into_iter().filter(|(name, _)| name != ORIGINAL) {
        out.push(',');
        push_json_string(&name, out);
        out.push(':');
        out.push_str(value.get());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_kept_as_they_came_but_for_an_earlier_link() {
        let written = |object: &str| {
            let mut out = String::new();
            write_members(object, &mut out);
            out
        };
        assert_eq!(written(r#"{"a":1.50,"b":{"c":[]}}"#), r#","a":1.50,"b":{"c":[]}"#);
        assert_eq!(written("{}"), "");
        assert_eq!(
            written(r#"{"_replay_of":{"offset":1},"a":12345678901234567890.5}"#),
            r#","a":12345678901234567890.5"#
        );
    }
}
