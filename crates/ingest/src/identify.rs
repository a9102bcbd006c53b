//! Who an event is: its id, a checksum of what it says, and the partition that it goes to.

use std::fmt::Write;

use highwater_event::canonical::push_json_string;
use highwater_event::identity::HOME;
use highwater_event::{Digest128, Principal, comparable_json, time};
use xxhash_rust::xxh3::xxh3_64;

use crate::cell::{Cell, Kind, Member};
use crate::decode::{Decoder, Row, RowError};

/// How far an event's own time may be ahead of the server's clock, microseconds.
const MAX_AHEAD: i64 = 3_600_000_000;

/// What the door needs to know of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowIdentity {
    /// Hash of stream, principal and event id; `None` when every event of the stream is new.
    pub key: Option<Digest128>,
    /// The event id as a text.
    pub event_id: Option<String>,
    /// Checksum of everything the event says: tells a repeat from another event under the same id. It
    /// guards against mistakes; whoever crafts two events of one checksum gets the second one answered as
    /// a repeat of the first, nothing else.
    pub payload: i64,
    /// Event time, microseconds UTC.
    pub event_time: i64,
    /// Where it goes.
    pub partition: u32,
}

/// What an event says, member by member, in a form that depends neither on their order nor on which of
/// them the stream declares: a column that is added later must not make a repeat look like another event.
#[derive(Debug, Default)]
pub(crate) struct Statement {
    text: String,
    /// Where each member ends in `text`.
    ends: Vec<usize>,
}

impl Statement {
    fn fill(&mut self, cells: &[Cell], members: &[Member], text: &str, undeclared: &Undeclared) {
        self.text.clear();
        self.ends.clear();
        for (cell, member) in cells.iter().zip(members).filter(|(cell, _)| !cell.is_missing()) {
            push_json_string(&member.name, &mut self.text);
            self.text.push(':');
            write_cell(cell, &member.kind, text, &mut self.text);
            self.ends.push(self.text.len());
        }
        for (name, value) in undeclared.members().filter(|(_, value)| *value != "null") {
            let start = self.text.len();
            self.text.push_str(name);
            self.text[start..].make_ascii_lowercase();
            self.text.push(':');
            write_json(value, &mut self.text);
            self.ends.push(self.text.len());
        }
    }

    fn members(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.text.as_bytes()[start..*end])
    }

    /// A sum does not ask for the order of what is summed up.
    fn checksum(&self) -> i64 {
        self.members().map(xxh3_64).fold(0, u64::wrapping_add) as i64
    }

    /// For ids: nobody can make two events of one digest.
    fn digest(&self) -> Digest128 {
        let mut members: Vec<&[u8]> = self.members().collect();
        members.sort_unstable();
        Digest128::of_parts(members)
    }
}

/// Members that the stream does not declare, kept as they came.
#[derive(Debug, Default)]
pub(crate) struct Undeclared {
    /// A JSON object; empty when there is none.
    json: String,
    /// For each member: the ends of its name (a JSON string) and of its value in `json`.
    ends: Vec<(usize, usize)>,
}

impl Undeclared {
    pub(crate) fn clear(&mut self) {
        self.json.clear();
        self.ends.clear();
    }

    /// Keeps a member; `write` appends its value as JSON.
    pub(crate) fn keep(&mut self, name: &str, write: impl FnOnce(&mut String)) {
        let before = if self.json.pop().is_some() { ',' } else { '{' };
        self.json.push(before);
        push_json_string(name, &mut self.json);
        let name = self.json.len();
        self.json.push(':');
        write(&mut self.json);
        self.ends.push((name, self.json.len()));
        self.json.push('}');
    }

    /// A JSON object; `None` when there is nothing.
    pub(crate) fn json(&self) -> Option<&str> {
        (!self.ends.is_empty()).then_some(self.json.as_str())
    }

    /// Names (as JSON strings) and values.
    fn members(&self) -> impl Iterator<Item = (&str, &str)> {
        // A brace or comma stands before each member, a colon between name and value.
        let starts = std::iter::once(1).chain(self.ends.iter().map(|(_, end)| end + 1));
        starts
            .zip(&self.ends)
            .map(|(start, (name, value))| (&self.json[start..*name], &self.json[name + 1..*value]))
    }
}

impl Decoder {
    /// Who this row is. Fills in a derived id when the event brought none and may.
    pub fn identify(
        &self,
        row: &mut Row,
        principal: &Principal,
        now: i64,
        sequence: u64,
    ) -> Result<RowIdentity, RowError> {
        self.own(row, self.tenant, &principal.tenant, principal)?;
        let event_time = self.event_time(row, now)?;
        let Row { cells, undeclared, text, statement, .. } = row;
        statement.fill(cells, &self.members, text, undeclared);
        let payload = self.hidden_checksum(statement.checksum());
        // Not something that the event says: a stream that begins to write it down knows old events again.
        self.own(row, self.sender, &principal.name, principal)?;
        let mut identity = RowIdentity {
            key: None,
            event_id: None,
            payload,
            event_time: event_time.unwrap_or(now),
            partition: 0,
        };
        if !self.id.is_empty() {
            let mut id = match self.id_parts(row) {
                Some(id) => id,
                None => vec![self.derive_id(row, principal, event_time, now, sequence)?],
            };
            // Each part with its length: ("a|b", "c") is not ("a", "b|c").
            let parts = [self.stream.name.as_str(), &principal.name].into_iter();
            // Names of clients are unique in a tenant only.
            let tenant = (principal.tenant.as_ref() != HOME).then_some(principal.tenant.as_ref());
            let parts = parts.chain(tenant).chain(id.iter().map(String::as_str));
            identity.key = Some(self.hidden(Digest128::of_parts(parts.map(str::as_bytes))));
            identity.event_id = if id.len() == 1 { id.pop() } else { Some(id.join("|")) };
        }
        if self.stream.options.partitions > 1 {
            let hash = match self.key {
                Some(at) => {
                    let key = &mut row.statement.text;
                    key.clear();
                    write_cell(&row.cells[at], &self.members[at].kind, &row.text, key);
                    crc32c::crc32c(key.as_bytes())
                }
                None => crc32c::crc32c(&payload.to_le_bytes()),
            };
            identity.partition = hash % self.stream.options.partitions;
        }
        Ok(identity)
    }

    fn hidden(&self, digest: Digest128) -> Digest128 {
        self.fingerprint.as_ref().map_or(digest, |key| digest.keyed(key))
    }

    fn hidden_checksum(&self, checksum: i64) -> i64 {
        if self.fingerprint.is_none() {
            return checksum;
        }
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&checksum.to_le_bytes());
        let hidden = self.hidden(Digest128(bytes)).0;
        i64::from_le_bytes([
            hidden[0], hidden[1], hidden[2], hidden[3], hidden[4], hidden[5], hidden[6], hidden[7],
        ])
    }

    /// What an event says of its sender or their tenant is true; when it says nothing it is filled in.
    fn own(
        &self,
        row: &mut Row,
        member: Option<usize>,
        own: &str,
        principal: &Principal,
    ) -> Result<(), RowError> {
        let Some(at) = member else { return Ok(()) };
        match &row.cells[at] {
            Cell::Absent | Cell::Null => {
                let start = row.text.len() as u32;
                row.text.push_str(own);
                row.cells[at] = Cell::Text(start, row.text.len() as u32);
                Ok(())
            }
            _ if principal.everywhere => Ok(()),
            Cell::Text(start, end) if row.text.get(*start as usize..*end as usize) == Some(own) => Ok(()),
            _ if member == self.sender => {
                Err(RowError::new("foreign_sender", "the event names somebody else as its sender")
                    .at(&self.members[at].name))
            }
            _ => Err(RowError::new("foreign_tenant", "the event names a tenant that its sender is not of")
                .at(&self.members[at].name)),
        }
    }

    /// The event's own time; an error when it lies too far ahead.
    fn event_time(&self, row: &Row, now: i64) -> Result<Option<i64>, RowError> {
        let Some(at) = self.time else { return Ok(None) };
        let Cell::Int(time) = row.cells[at] else { return Ok(None) };
        if time > now.saturating_add(MAX_AHEAD) {
            let detail = format!(
                "{} lies more than an hour ahead of the server's clock; one such event would make all others late",
                time::show_micros(time)
            );
            return Err(RowError::new("time_in_future", detail).at(&self.members[at].name));
        }
        Ok(Some(time))
    }

    fn id_parts(&self, row: &Row) -> Option<Vec<String>> {
        let part = |at: &usize| {
            Some(match &row.cells[*at] {
                Cell::Text(start, end) => row.text[*start as usize..*end as usize].to_owned(),
                Cell::Int(micros) if self.members[*at].kind == Kind::Timestamp => time::show_micros(*micros),
                Cell::Int(value) => value.to_string(),
                Cell::Bool(value) => value.to_string(),
                Cell::Float(value) => value.to_string(),
                Cell::Decimal(value) => value.to_string(),
                _ => return None,
            })
        };
        self.id.iter().map(part).collect()
    }

    /// An id from what the event says; an event without a time of its own is always new.
    fn derive_id(
        &self,
        row: &mut Row,
        principal: &Principal,
        event_time: Option<i64>,
        now: i64,
        sequence: u64,
    ) -> Result<String, RowError> {
        let [at] = self.id.as_slice() else {
            return Err(RowError::new(
                "missing_event_id",
                "the members that make up the event id must be present",
            ));
        };
        if self.members[*at].kind != Kind::Text {
            return Err(
                RowError::new("missing_event_id", "the event id is missing").at(&self.members[*at].name)
            );
        }
        let salt = if event_time.is_some() {
            Vec::new()
        } else {
            [now.to_le_bytes(), sequence.to_le_bytes()].concat()
        };
        let said = row.statement.digest();
        let id = self.hidden(Digest128::of_parts([principal.name.as_bytes(), &said.0, &salt])).to_string();
        let start = row.text.len() as u32;
        row.text.push_str(&id);
        row.cells[*at] = Cell::Text(start, row.text.len() as u32);
        Ok(id)
    }
}

/// Appends what [`comparable_json`] would for the value: a text that is equal exactly when two values mean
/// the same. Times are written as microseconds.
fn write_cell(cell: &Cell, kind: &Kind, text: &str, out: &mut String) {
    match cell {
        Cell::Absent | Cell::Null => out.push_str("null"),
        Cell::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Cell::Int(value) => out.push_str(itoa::Buffer::new().format(*value)),
        Cell::Float(value) => comparable_json(&serde_json::Value::from(*value), out),
        Cell::Decimal(value) => write_decimal(*value, kind, out),
        Cell::Text(start, end) => {
            let value = &text[*start as usize..*end as usize];
            if *kind == Kind::Json { write_json(value, out) } else { push_json_string(value, out) }
        }
        Cell::Struct(cells) => {
            out.push('{');
            if let Kind::Struct(members) = kind {
                let mut named: Vec<(&Member, &Cell)> = members.iter().zip(cells).collect();
                named.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
                for (member, cell) in named.into_iter().filter(|(_, cell)| !cell.is_missing()) {
                    push_json_string(&member.name, out);
                    out.push(':');
                    write_cell(cell, &member.kind, text, out);
                    out.push(',');
                }
            }
            out.push('}');
        }
        Cell::List(cells) => {
            out.push('[');
            if let Kind::List(element) = kind {
                for cell in cells {
                    write_cell(cell, &element.kind, text, out);
                    out.push(',');
                }
            }
            out.push(']');
        }
        Cell::Map(entries) => {
            out.push('{');
            if let Kind::Map(value) = kind {
                for ((start, end), cell) in entries {
                    push_json_string(&text[*start as usize..*end as usize], out);
                    out.push(':');
                    write_cell(cell, &value.kind, text, out);
                    out.push(',');
                }
            }
            out.push('}');
        }
    }
}

/// The comparable form of a JSON text. Short whole numbers and strings without escapes have it already.
fn write_json(json: &str, out: &mut String) {
    let plain = match json.as_bytes() {
        [b'"', ..] => !json.contains('\\'),
        [b'0'] => true,
        [b'1'..=b'9', rest @ ..] => rest.len() < 15 && rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    match (!plain).then(|| serde_json::from_str(json)) {
        Some(Ok(value)) => comparable_json(&value, out),
        _ => out.push_str(json),
    }
}

/// An exact number without useless zeros, as JSON numbers are compared.
fn write_decimal(value: i128, kind: &Kind, out: &mut String) {
    let mut scale = if let Kind::Decimal { scale, .. } = kind { (*scale).max(0) as u32 } else { 0 };
    // Nearly all amounts fit 64 bits, where a division is many times cheaper.
    if let Ok(mut value) = i64::try_from(value)
        && scale < 19
    {
        while scale > 0 && value % 10 == 0 {
            value /= 10;
            scale -= 1;
        }
        let unit = 10u64.pow(scale);
        let size = value.unsigned_abs();
        if value < 0 {
            out.push('-');
        }
        out.push_str(itoa::Buffer::new().format(size / unit));
        if scale > 0 {
            let mut buffer = itoa::Buffer::new();
            // The leading one keeps the zeros that follow the point.
            out.push('.');
            out.push_str(&buffer.format(unit + size % unit)[1..]);
        }
        return;
    }
    let mut value = value;
    while scale > 0 && value % 10 == 0 {
        value /= 10;
        scale -= 1;
    }
    let sign = if value < 0 { "-" } else { "" };
    let (unit, size) = (10u128.pow(scale.min(38)), value.unsigned_abs());
    // Writing to memory can't fail.
    let written = match scale {
        0 => write!(out, "{value}"),
        _ => write!(out, "{sign}{}.{:0width$}", size / unit, size % unit, width = scale as usize),
    };
    debug_assert!(written.is_ok());
}
