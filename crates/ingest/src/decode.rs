//! JSON and CSV to rows: each event is parsed once, straight into typed cells, with a verdict of its own.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, FixedSizeBinaryBuilder, Int64Builder, RecordBatch, StringBuilder, TimestampMicrosecondBuilder,
};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use highwater_event::{StreamSchema, columns, time};
use jiter::{Jiter, JiterError, JiterErrorType, JsonErrorType, NumberAny, NumberInt, Peek};

use crate::cell::{Cell, Kind, Member, parse_decimal};
use crate::column::ColumnBuilder;
use crate::identify::{RowIdentity, Statement, Undeclared};
use crate::{cloud_event, delimited};

/// How a body holds its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object, or an array of them.
    Json,
    /// One JSON object a line.
    NdJson,
    /// A line of column names, then one event a line (RFC 4180).
    Csv,
    /// One CloudEvents 1.0 envelope in JSON, or an array of them.
    CloudEvents,
}

impl Format {
    /// True when the body is one JSON value, which is right or wrong as a whole.
    pub fn is_one_value(self) -> bool {
        matches!(self, Self::Json | Self::CloudEvents)
    }
}

/// Why a row is refused. The path says where in the row, in the style `location.city`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowError {
    /// Short stable name.
    pub code: &'static str,
    /// Member at fault; empty for the row itself.
    pub path: String,
    /// What is wrong and what would be right.
    pub detail: String,
}

impl RowError {
    pub(crate) fn new(code: &'static str, detail: impl Into<String>) -> Self {
        Self { code, path: String::new(), detail: detail.into() }
    }

    pub(crate) fn at(mut self, name: &str) -> Self {
        if self.path.is_empty() {
            self.path = name.to_owned();
        } else {
            self.path = format!("{name}.{}", self.path);
        }
        self
    }
}

/// A body that is not JSON at all; nothing of it was taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// Not JSON.
    #[error("the body is not valid JSON: {detail} (line {line}, column {column})")]
    Malformed {
        /// What the parser says.
        detail: String,
        /// Line, from 1.
        line: usize,
        /// Column in bytes, from 1.
        column: usize,
    },
    /// More events than one request may bring.
    #[error("the body holds more than {limit} events; send it in parts")]
    TooManyRows {
        /// The cap.
        limit: usize,
    },
    /// The line of column names is not one.
    #[error("{0}")]
    Header(String),
    /// No event in it.
    #[error("the body is empty; send a JSON object, an array of objects, or one object a line")]
    Empty,
}

/// Called with each event of a body: its bytes, and the row or why it is refused.
pub type EachRow<'a, 'b> = &'a mut dyn FnMut(&'b [u8], Result<&mut Row, RowError>);

/// The plan by which a stream's events are decoded.
#[derive(Debug)]
pub struct Decoder {
    pub(crate) stream: Arc<StreamSchema>,
    /// What events may bring, in the order of the columns.
    pub(crate) members: Vec<Member>,
    stored: SchemaRef,
    /// Positions of the event id's members.
    pub(crate) id: Vec<usize>,
    /// Position of the event time.
    pub(crate) time: Option<usize>,
    /// Position of the partition key.
    pub(crate) key: Option<usize>,
    /// Position of the tenant.
    pub(crate) tenant: Option<usize>,
    /// Position of the sender's name.
    pub(crate) sender: Option<usize>,
    /// The key that hides what keys and checksums were made of.
    pub(crate) fingerprint: Option<[u8; 32]>,
}

/// A decoded row before it is in a column.
#[derive(Debug, Default)]
pub struct Row {
    pub(crate) cells: Vec<Cell>,
    pub(crate) undeclared: Undeclared,
    /// Where the texts of the cells stand.
    pub(crate) text: String,
    /// Filled when the row is identified.
    pub(crate) statement: Statement,
    tape: Vec<u8>,
}

impl Decoder {
    /// A plan for a stream; an error names the column that events can't bring.
    pub fn new(stream: Arc<StreamSchema>) -> Result<Self, String> {
        let members = stream
            .columns
            .iter()
            .map(|column| {
                Member::of_column(column).ok_or_else(|| {
                    format!(
                        "column \"{}\" has type {}, which events can't bring",
                        column.name, column.data_type
                    )
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let position = |name: &String| stream.columns.iter().position(|column| column.name == *name);
        Ok(Self {
            members,
            stored: stream.stored_schema(),
            id: stream.options.event_id.iter().filter_map(position).collect(),
            time: stream.options.event_time.as_ref().and_then(position),
            key: stream.options.key.as_ref().and_then(position),
            tenant: stream.options.tenant.as_ref().and_then(position),
            sender: stream.options.sender.as_ref().and_then(position),
            stream,
            fingerprint: None,
        })
    }

    /// Makes keys and checksums of events under a key, so that who has the stored ones can't try out what was said.
    pub fn with_fingerprint(self, key: [u8; 32]) -> Self {
        Self { fingerprint: Some(key), ..self }
    }

    /// The stream.
    pub fn stream(&self) -> &Arc<StreamSchema> {
        &self.stream
    }

    /// Calls `each` with every event of a body: its bytes, and the row or why it is refused. Stops with
    /// an error when the body as a whole is not what it says; the caller then forgets the rows it got.
    pub fn decode<'b>(
        &self,
        body: &'b [u8],
        format: Format,
        limit: usize,
        row: &mut Row,
        each: EachRow<'_, 'b>,
    ) -> Result<usize, BodyError> {
        match format {
            Format::Json => self.decode_json(body, limit, row, false, each),
            Format::CloudEvents => self.decode_json(body, limit, row, true, each),
            Format::NdJson => self.decode_lines(body, limit, row, each),
            Format::Csv => delimited::decode(self, body, limit, row, each),
        }
    }

    fn decode_lines<'b>(
        &self,
        body: &'b [u8],
        limit: usize,
        row: &mut Row,
        each: EachRow<'_, 'b>,
    ) -> Result<usize, BodyError> {
        let mut count = 0;
        for line in body.split(|byte| *byte == b'\n') {
            let line = line.trim_ascii();
            if line.is_empty() {
                continue;
            }
            count += 1;
            if count > limit {
                return Err(BodyError::TooManyRows { limit });
            }
            let mut parser = Jiter::with_tape(line, std::mem::take(&mut row.tape));
            let outcome = self
                .decode_row(&mut parser, row)
                .and_then(|()| parser.finish().map_err(|error| syntax(&parser, &error)));
            row.tape = parser.into_tape();
            each(line, outcome.map(|()| &mut *row));
        }
        if count == 0 { Err(BodyError::Empty) } else { Ok(count) }
    }

    fn decode_json<'b>(
        &self,
        body: &'b [u8],
        limit: usize,
        row: &mut Row,
        enveloped: bool,
        each: EachRow<'_, 'b>,
    ) -> Result<usize, BodyError> {
        let malformed = |at: usize, error: &JiterError| malformed(body, at + error.index, error);
        let mut base = 0;
        let mut parser = Jiter::with_tape(body, std::mem::take(&mut row.tape));
        let mut next = match parser.peek() {
            Ok(Peek::Array) => parser.known_array().map_err(|error| malformed(base, &error))?,
            Ok(peek) => Some(peek),
            Err(_) if body.trim_ascii().is_empty() => return Err(BodyError::Empty),
            Err(error) => return Err(malformed(base, &error)),
        };
        let single = body.trim_ascii_start().first() != Some(&b'[');
        let mut count = 0;
        while next.is_some() {
            count += 1;
            if count > limit {
                return Err(BodyError::TooManyRows { limit });
            }
            let start = parser.current_index();
            if enveloped {
                let peek = next.unwrap_or(Peek::Null);
                parser.known_skip(peek).map_err(|error| malformed(base, &error))?;
                let bytes = &body[base + start..base + parser.current_index()];
                let opened = cloud_event::open(&self.stream, bytes);
                let outcome = opened.and_then(|event| {
                    let mut inner = Jiter::new(event.as_bytes());
                    self.decode_row(&mut inner, row)
                });
                each(bytes, outcome.map(|()| &mut *row));
                next = if single {
                    None
                } else {
                    parser.array_step().map_err(|error| malformed(base, &error))?
                };
                continue;
            }
            match self.decode_row(&mut parser, row) {
                Ok(()) => {
                    let end = parser.current_index();
                    each(&body[base + start..base + end], Ok(&mut *row));
                }
                Err(refused) => {
                    // The parser stands inside the refused value; a fresh one finds its end.
                    let mut skipper = Jiter::new(&body[base + start..]);
                    skipper.next_skip().map_err(|error| malformed(base + start, &error))?;
                    let end = base + start + skipper.current_index();
                    each(body[base + start..end].trim_ascii(), Err(refused));
                    base = end;
                    let tape = parser.into_tape();
                    parser = Jiter::with_tape(&body[base..], tape);
                }
            }
            next =
                if single { None } else { parser.array_step().map_err(|error| malformed(base, &error))? };
        }
        parser.finish().map_err(|error| malformed(base, &error))?;
        row.tape = parser.into_tape();
        if count == 0 { Err(BodyError::Empty) } else { Ok(count) }
    }

    /// Decodes the object that comes next.
    fn decode_row(&self, parser: &mut Jiter<'_>, row: &mut Row) -> Result<(), RowError> {
        row.text.clear();
        row.undeclared.clear();
        let peek = parser.peek().map_err(|error| syntax(parser, &error))?;
        if peek != Peek::Object {
            let detail = format!("an event is a JSON object, this is {}", shape(peek));
            return Err(RowError::new("not_an_object", detail));
        }
        let Row { cells, text, undeclared, .. } = row;
        decode_members(parser, &self.members, cells, text, Some(undeclared))
    }
}

/// Rows of one stream on their way into an Arrow batch.
pub struct RowBatch {
    schema: SchemaRef,
    columns: Vec<ColumnBuilder>,
    extra: StringBuilder,
    event_time: TimestampMicrosecondBuilder,
    key: FixedSizeBinaryBuilder,
    payload: Int64Builder,
    rows: usize,
}

impl RowBatch {
    /// An empty batch.
    pub fn new(decoder: &Decoder) -> Result<Self, ArrowError> {
        Ok(Self {
            schema: decoder.stored.clone(),
            columns: decoder
                .stream
                .columns
                .iter()
                .map(|column| ColumnBuilder::new(&column.data_type))
                .collect::<Result<_, _>>()?,
            extra: StringBuilder::new(),
            event_time: TimestampMicrosecondBuilder::new().with_data_type(columns::timestamp_type()),
            key: FixedSizeBinaryBuilder::new(16),
            payload: Int64Builder::new(),
            rows: 0,
        })
    }

    /// Rows so far.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Takes a row.
    pub fn push(&mut self, row: &Row, identity: &RowIdentity) -> Result<(), ArrowError> {
        for (column, cell) in self.columns.iter_mut().zip(&row.cells) {
            column.append(cell, &row.text);
        }
        self.extra.append_option(row.undeclared.json());
        self.event_time.append_value(identity.event_time);
        match identity.key {
            Some(key) => self.key.append_value(key.0)?,
            None => self.key.append_null(),
        }
        self.payload.append_value(identity.payload);
        self.rows += 1;
        Ok(())
    }

    /// The rows as a batch in the stream's stored schema.
    pub fn finish(&mut self) -> Result<RecordBatch, ArrowError> {
        let mut columns =
            self.columns.iter_mut().map(ColumnBuilder::finish).collect::<Result<Vec<ArrayRef>, _>>()?;
        columns.push(Arc::new(self.extra.finish()));
        columns.push(Arc::new(self.event_time.finish()));
        columns.push(Arc::new(self.key.finish()));
        columns.push(Arc::new(self.payload.finish()));
        self.rows = 0;
        RecordBatch::try_new(self.schema.clone(), columns)
    }
}

/// Decodes the members of the object that comes next into `cells`. Undeclared members are kept at the top
/// level and refused inside structs, where there is no place for them.
fn decode_members(
    parser: &mut Jiter<'_>,
    members: &[Member],
    cells: &mut Vec<Cell>,
    text: &mut String,
    mut undeclared: Option<&mut Undeclared>,
) -> Result<(), RowError> {
    cells.clear();
    cells.resize(members.len(), Cell::Absent);
    let mut expected = 0;
    let mut unknown: Option<String> = None;
    let mut key = parser.known_object().map(|key| key.map(|key| find(members, expected, key, &mut unknown)));
    loop {
        match key {
            Ok(None) => break,
            Ok(Some(Some(at))) => {
                if !matches!(cells[at], Cell::Absent) {
                    return Err(
                        RowError::new("duplicate_member", "the member occurs twice").at(&members[at].name)
                    );
                }
                cells[at] = decode_value(parser, &members[at].kind, text)
                    .map_err(|error| error.at(&members[at].name))?;
                expected = at + 1;
            }
            Ok(Some(None)) => {
                let name = unknown.take().unwrap_or_default();
                let value = raw_value(parser)?;
                let Some(undeclared) = &mut undeclared else {
                    return Err(RowError::new("unknown_member", "the struct has no such member").at(&name));
                };
                undeclared.keep(&name, |json| json.push_str(value));
            }
            Err(error) => return Err(syntax(parser, &error)),
        }
        key = parser.next_key().map(|key| key.map(|key| find(members, expected, key, &mut unknown)));
    }
    check_present(cells, members)
}

/// Checks that no NOT NULL member is missing.
pub(crate) fn check_present(cells: &[Cell], members: &[Member]) -> Result<(), RowError> {
    for (cell, member) in cells.iter().zip(members) {
        if !member.nullable && cell.is_missing() {
            let state = if *cell == Cell::Null { "null" } else { "missing" };
            return Err(RowError::new(
                "missing_member",
                format!("the member is {state} but declared NOT NULL"),
            )
            .at(&member.name));
        }
    }
    Ok(())
}

/// The member of that name: most events bring their members in the declared order.
fn find(members: &[Member], expected: usize, key: &str, unknown: &mut Option<String>) -> Option<usize> {
    if members.get(expected).is_some_and(|member| member.name == key) {
        return Some(expected);
    }
    let found = members
        .iter()
        .position(|member| member.name == key)
        .or_else(|| members.iter().position(|member| member.name.eq_ignore_ascii_case(key)));
    if found.is_none() {
        *unknown = Some(key.to_owned());
    }
    found
}

fn raw_value<'j>(parser: &mut Jiter<'j>) -> Result<&'j str, RowError> {
    let peek = parser.peek().map_err(|error| syntax(parser, &error))?;
    let start = parser.current_index();
    parser.known_skip(peek).map_err(|error| syntax(parser, &error))?;
    std::str::from_utf8(parser.slice_to_current(start))
        .map_err(|_| RowError::new("malformed_json", "the text is not UTF-8"))
}

pub(crate) fn decode_value(parser: &mut Jiter<'_>, kind: &Kind, text: &mut String) -> Result<Cell, RowError> {
    let peek = parser.peek().map_err(|error| syntax(parser, &error))?;
    if peek == Peek::Null {
        parser.known_null().map_err(|error| syntax(parser, &error))?;
        return Ok(Cell::Null);
    }
    let wrong =
        |wanted: &str| RowError::new("wrong_type", format!("expected {wanted}, found {}", shape(peek)));
    match kind {
        Kind::Text if peek == Peek::String => {
            let value = match parser.known_str() {
                Ok(value) => value,
                Err(error) => return Err(RowError::new("malformed_json", error.to_string())),
            };
            let start = text.len() as u32;
            text.push_str(value);
            Ok(Cell::Text(start, text.len() as u32))
        }
        Kind::Text => Err(wrong("a string")),
        Kind::Json => {
            let raw = raw_value(parser)?;
            let start = text.len() as u32;
            text.push_str(raw);
            Ok(Cell::Text(start, text.len() as u32))
        }
        Kind::Bool if matches!(peek, Peek::True | Peek::False) => {
            parser.known_bool(peek).map(Cell::Bool).map_err(|error| syntax(parser, &error))
        }
        Kind::Bool => Err(wrong("true or false")),
        Kind::Int { min, max, name } => {
            if !peek.is_num() {
                return Err(wrong("an integer"));
            }
            let value = integer(parser, peek)?;
            if value < *min || value > *max {
                return Err(RowError::new(
                    "out_of_range",
                    format!("{value} does not fit {name} ({min} to {max})"),
                ));
            }
            Ok(Cell::Int(value))
        }
        Kind::Float if peek.is_num() => {
            let value = parser.known_float(peek).map_err(|error| syntax(parser, &error))?;
            if !value.is_finite() {
                return Err(RowError::new("out_of_range", "the number is too large for DOUBLE"));
            }
            Ok(Cell::Float(value))
        }
        Kind::Float => Err(wrong("a number")),
        Kind::Decimal { precision, scale } => {
            let bytes = if peek.is_num() {
                parser.known_number_bytes(peek)
            } else if peek == Peek::String {
                parser.known_bytes()
            } else {
                return Err(wrong("a number, or a string that holds one"));
            };
            let bytes = match bytes {
                Ok(bytes) => bytes,
                Err(error) => return Err(RowError::new("malformed_json", error.to_string())),
            };
            parse_decimal(bytes, *precision, *scale)
                .map(Cell::Decimal)
                .map_err(|detail| RowError::new("out_of_range", detail))
        }
        Kind::Timestamp | Kind::Date => {
            let wanted = if *kind == Kind::Timestamp { "a time" } else { "a date" };
            let micros = if peek == Peek::String {
                match parser.known_str() {
                    Ok(value) => time::parse_micros(value)
                        .ok_or_else(|| RowError::new("bad_time", format!("\"{}\" is not {wanted} in the years 1 to 9999: write RFC 3339, a date, or epoch seconds or milliseconds", clip(value)))),
                    Err(error) => Err(RowError::new("malformed_json", error.to_string())),
                }?
            } else if peek.is_num() {
                let number = integer(parser, peek)?;
                time::epoch_micros(number).ok_or_else(|| {
                    RowError::new("bad_time", format!("{number} is not {wanted} in the years 1 to 9999"))
                })?
            } else {
                return Err(wrong(wanted));
            };
            Ok(Cell::Int(if *kind == Kind::Timestamp { micros } else { micros.div_euclid(86_400_000_000) }))
        }
        Kind::Struct(members) if peek == Peek::Object => {
            let mut cells = Vec::with_capacity(members.len());
            decode_members(parser, members, &mut cells, text, None)?;
            Ok(Cell::Struct(cells))
        }
        Kind::Struct(_) => Err(wrong("an object")),
        Kind::List(element) if peek == Peek::Array => {
            let mut cells = Vec::new();
            let mut next = parser.known_array().map_err(|error| syntax(parser, &error))?;
            while next.is_some() {
                let cell = decode_value(parser, &element.kind, text)
                    .map_err(|error| error.at(&cells.len().to_string()))?;
                if !element.nullable && cell.is_missing() {
                    return Err(RowError::new("missing_member", "null is not allowed in this array"));
                }
                cells.push(cell);
                next = parser.array_step().map_err(|error| syntax(parser, &error))?;
            }
            Ok(Cell::List(cells))
        }
        Kind::List(_) => Err(wrong("an array")),
        Kind::Map(value) if peek == Peek::Object => {
            let mut entries: Vec<((u32, u32), Cell)> = Vec::new();
            let keep = |key: &str, text: &mut String| {
                let start = text.len() as u32;
                text.push_str(key);
                (start, text.len() as u32)
            };
            let mut key = parser.known_object().map(|key| key.map(|key| keep(key, text)));
            loop {
                let range = match key {
                    Ok(None) => break,
                    Ok(Some(range)) => range,
                    Err(error) => return Err(syntax(parser, &error)),
                };
                let name = text[range.0 as usize..range.1 as usize].to_owned();
                if entries.iter().any(|((start, end), _)| text[*start as usize..*end as usize] == name) {
                    return Err(RowError::new("duplicate_member", "the key occurs twice").at(&name));
                }
                let cell = decode_value(parser, &value.kind, text).map_err(|error| error.at(&name))?;
                entries.push((range, cell));
                key = parser.next_key().map(|key| key.map(|key| keep(key, text)));
            }
            // In order of their keys, so that equal maps are stored and hashed alike.
            entries.sort_by(|(a, _), (b, _)| {
                text[a.0 as usize..a.1 as usize].cmp(&text[b.0 as usize..b.1 as usize])
            });
            Ok(Cell::Map(entries))
        }
        Kind::Map(_) => Err(wrong("an object")),
    }
}

fn integer(parser: &mut Jiter<'_>, peek: Peek) -> Result<i64, RowError> {
    match parser.known_number(peek) {
        Ok(NumberAny::Int(NumberInt::Int(value))) => Ok(value),
        Ok(NumberAny::Float(value)) if value.fract() == 0.0 && value.abs() < 9_007_199_254_740_992.0 => {
            Ok(value as i64)
        }
        Ok(NumberAny::Float(value)) => {
            Err(RowError::new("wrong_type", format!("expected an integer, found {value}")))
        }
        Err(error) => Err(RowError::new("out_of_range", error.to_string())),
    }
}

fn shape(peek: Peek) -> &'static str {
    match peek {
        Peek::Null => "null",
        Peek::True | Peek::False => "a boolean",
        Peek::String => "a string",
        Peek::Array => "an array",
        Peek::Object => "an object",
        peek if peek.is_num() => "a number",
        _ => "something that is not JSON",
    }
}

pub(crate) fn clip(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Checks that the whole body is one JSON value. Needed before [`Decoder::decode`] where rows can't be
/// taken back when the end of the body turns out to be broken.
pub fn check_json(body: &[u8]) -> Result<(), BodyError> {
    if body.trim_ascii().is_empty() {
        return Err(BodyError::Empty);
    }
    let mut parser = Jiter::new(body);
    parser.next_skip().and_then(|()| parser.finish()).map_err(|error| malformed(body, error.index, &error))
}

fn malformed(body: &[u8], index: usize, error: &JiterError) -> BodyError {
    let position = jiter::LinePosition::find(body, index.min(body.len()));
    BodyError::Malformed {
        detail: error.error_type.to_string(),
        line: position.line,
        column: position.column,
    }
}

pub(crate) fn syntax(parser: &Jiter<'_>, error: &JiterError) -> RowError {
    let position = error.get_position(parser);
    let what = match &error.error_type {
        JiterErrorType::JsonError(JsonErrorType::RecursionLimitExceeded) => {
            "values are nested more than 200 deep".to_owned()
        }
        other => other.to_string(),
    };
    RowError::new("malformed_json", format!("{what} at line {}, column {}", position.line, position.column))
}
