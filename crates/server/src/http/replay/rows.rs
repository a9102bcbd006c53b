//! Rows of the log as events that are appended again.

use std::collections::BTreeMap;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::error::ArrowError;
use highwater_event::canonical::push_json_string;
use highwater_event::json::value_as_json;
use highwater_event::{Column, Offset, Partition, columns, time};
use highwater_log::LogBatch;
use highwater_log::reader::RowReader;
use serde_json::json;
use serde_json::value::RawValue;

use super::{ORIGINAL, Replay, Times};

/// Rows of the log that are written as events.
pub(super) struct Rows<'a> {
    replay: &'a Replay,
    partition: Partition,
    base: Offset,
    columns: Vec<(&'a Column, ArrayRef)>,
    /// Members that the source does not declare; a derived stream has none.
    extra: Option<ArrayRef>,
    /// When each happened, be it that its columns don't say so.
    event_times: Option<ArrayRef>,
    recorded_at: i64,
    now: i64,
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
            event_times: rows.column_by_name(columns::EVENT_TIME).cloned(),
            recorded_at: batch.recorded_at,
            now: replay.node.machine.clock.now_micros(),
        })
    }

    /// Appends the event at an offset as one line; not one that this very replay has brought.
    pub(super) fn write(&self, offset: Offset, out: &mut String) {
        let Some(row) = offset.checked_sub(self.base).map(|row| row as usize) else { return };
        let Replay { source, target, name, set, .. } = self.replay;
        let extra = self.extra.as_ref().filter(|extra| extra.is_valid(row)).map(|extra| text(extra, row));
        if set.is_some() && extra.is_some_and(|extra| extra.contains(ORIGINAL)) {
            return;
        }
        let (start, now) = (out.len(), self.now());
        let original = json!({"stream": source.name.public(), "partition": self.partition, "offset": offset});
        out.push_str(&format!("{{\"{ORIGINAL}\":{original}"));
        for (column, array) in &self.columns {
            let happens = now.is_some() && target.options.event_time.as_ref() == Some(&column.name);
            if array.is_null(row) && !happens {
                continue;
            }
            out.push(',');
            push_json_string(&column.name, out);
            out.push(':');
            match name {
                _ if happens => push_json_string(now.as_deref().unwrap_or_default(), out),
                Some((name, id)) if *id == column.name => {
                    let suffix = format!("~{name}");
                    if source.name == target.name && text(array, row).ends_with(&suffix) {
                        out.truncate(start);
                        return;
                    }
                    push_json_string(&[text(array, row), &suffix].concat(), out);
                }
                _ if column.json => push_line(text(array, row), out),
                _ => value_as_json(array, row, out),
            }
        }
        self.write_time(row, extra.unwrap_or_default(), out);
        let set = set.iter().flatten();
        if let Some(extra) = extra {
            write_members(extra, &set.clone().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), out);
        }
        for (name, value) in set {
            out.push(',');
            push_json_string(name, out);
            out.push(':');
            out.push_str(&value.to_string());
        }
        out.push_str("}\n");
    }

    /// When events happen, if not when they did.
    fn now(&self) -> Option<String> {
        match self.replay.times {
            Times::Original => None,
            Times::Now => Some(time::show_micros(self.now)),
            Times::From { first, .. } => Some(time::show_micros(first.max(self.recorded_at))),
        }
    }

    /// When it happened, where the target asks for that and nothing in the event says it.
    fn write_time(&self, row: usize, extra: &str, out: &mut String) {
        let Some(wanted) = &self.replay.target.options.event_time else { return };
        let said = self.columns.iter().any(|(column, array)| {
            column.name == *wanted && (array.is_valid(row) || self.replay.times != Times::Original)
        });
        let said = said || extra.to_ascii_lowercase().contains(&format!("\"{wanted}\":"));
        let times = self.event_times.as_ref().filter(|times| !said && times.is_valid(row));
        let Some(times) = times else { return };
        out.push(',');
        push_json_string(wanted, out);
        out.push(':');
        match self.now() {
            Some(now) => push_json_string(&now, out),
            None => value_as_json(times, row, out),
        }
    }
}

/// Appends JSON on one line: outside of its strings, which have no line breaks, white space means nothing.
fn push_line(json: &str, out: &mut String) {
    out.extend(json.chars().map(|c| if matches!(c, '\n' | '\r') { ' ' } else { c }));
}

fn text(array: &ArrayRef, row: usize) -> &str {
    array.as_string_opt::<i32>().map_or("", |texts| texts.value(row))
}

/// Appends the members of an object, each after a comma. The link of an earlier replay gives way to the new one, as
/// do those that are said anew.
fn write_members(object: &str, anew: &[&str], out: &mut String) {
    if !object.contains(ORIGINAL) && !anew.iter().any(|name| object.contains(name)) {
        let inside = object.trim().trim_start_matches('{').trim_end();
        let inside = inside.strip_suffix('}').unwrap_or(inside);
        if !inside.trim().is_empty() {
            out.push(',');
            push_line(inside, out);
        }
        return;
    }
    let members: BTreeMap<String, &RawValue> = serde_json::from_str(object).unwrap_or_default();
    let kept = |name: &str| name != ORIGINAL && !anew.contains(&name);
    for (name, value) in members.into_iter().filter(|(name, _)| kept(name)) {
        out.push(',');
        push_json_string(&name, out);
        out.push(':');
        push_line(value.get(), out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_kept_as_they_came_but_for_an_earlier_link() {
        let written = |object: &str| {
            let mut out = String::new();
            write_members(object, &["again"], &mut out);
            out
        };
        assert_eq!(written(r#"{"a":1.50,"b":{"c":[]}}"#), r#","a":1.50,"b":{"c":[]}"#);
        assert_eq!(written("{}"), "");
        assert_eq!(written(r#"{"again":false,"b":"again"}"#), r#","b":"again""#);
        assert_eq!(
            written(r#"{"_replay_of":{"offset":1},"a":12345678901234567890.5}"#),
            r#","a":12345678901234567890.5"#
        );
    }
}
