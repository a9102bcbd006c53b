//! CSV to rows: the first line names the members, each other line is an event. An empty field is null;
//! structs, arrays and JSON are written as JSON inside a field.

use csv::{ByteRecord, ReaderBuilder};
use highwater_event::canonical::push_json_string;
use highwater_event::time;
use jiter::Jiter;

use crate::cell::{Cell, Kind, Member, parse_decimal};
use crate::decode::{BodyError, Decoder, EachRow, Row, RowError, check_present, clip, decode_value, syntax};

/// Where a field goes.
enum Target {
    Member(usize),
    /// Undeclared: kept under this name.
    Extra(String),
}

pub(crate) fn decode<'b>(
    decoder: &Decoder,
    body: &'b [u8],
    limit: usize,
    row: &mut Row,
    each: EachRow<'_, 'b>,
) -> Result<usize, BodyError> {
    // A byte order mark is what spreadsheets write in front.
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    if body.trim_ascii().is_empty() {
        return Err(BodyError::Empty);
    }
    let mut reader = ReaderBuilder::new().has_headers(false).flexible(true).from_reader(body);
    let mut record = ByteRecord::new();
    let read = |reader: &mut csv::Reader<&'b [u8]>, record: &mut ByteRecord| {
        reader.read_byte_record(record).map_err(|error| BodyError::Header(error.to_string()))
    };
    if !read(&mut reader, &mut record)? {
        return Err(BodyError::Empty);
    }
    let targets = targets(decoder, &record)?;
    let mut count = 0;
    loop {
        let start = reader.position().byte() as usize;
        if !read(&mut reader, &mut record)? {
            return match count {
                0 => Err(BodyError::Header("no line follows the one that names the columns".into())),
                _ => Ok(count),
            };
        }
        let end = (reader.position().byte() as usize).min(body.len());
        let line = body[start..end].trim_ascii();
        if line.is_empty() {
            continue;
        }
        count += 1;
        if count > limit {
            return Err(BodyError::TooManyRows { limit });
        }
        // Only what comes last can be cut short.
        let outcome = match end == body.len() && is_open(&body[start..end]) {
            true => Err(RowError::new(
                "malformed_csv",
                "a quote is not closed: everything behind it would be one field; double a quote that belongs to a text",
            )),
            false => decode_record(&decoder.members, &targets, &record, row),
        };
        each(line, outcome.map(|()| &mut *row));
    }
}

/// Follows bytes of CSV: whether what comes next stands inside of quotes. A quote opens a field only where the field begins, and two
/// inside of quotes are one that belongs to the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Quotes {
    /// At the beginning of a field.
    #[default]
    Begin,
    /// In a field without quotes, or behind the quotes of one.
    Bare,
    /// Inside of quotes.
    Open,
    /// Behind a quote that closes, unless another follows.
    Closing,
}

impl Quotes {
    /// After one more byte.
    #[must_use]
    pub fn after(self, byte: u8) -> Self {
        match (self, byte) {
            (Self::Begin | Self::Closing, b'"') => Self::Open,
            (Self::Open, b'"') => Self::Closing,
            (Self::Open, _) => Self::Open,
            (_, b',' | b'\n' | b'\r') => Self::Begin,
            _ => Self::Bare,
        }
    }
}

/// Whether a record ends inside of quotes.
fn is_open(record: &[u8]) -> bool {
    record.iter().fold(Quotes::default(), |quotes, byte| quotes.after(*byte)) == Quotes::Open
}

fn targets(decoder: &Decoder, header: &ByteRecord) -> Result<Vec<Target>, BodyError> {
    let mut seen = std::collections::HashSet::new();
    header
        .iter()
        .map(|name| {
            let name = std::str::from_utf8(name)
                .map_err(|_| BodyError::Header("the line of column names is not UTF-8".into()))?
                .trim();
            if name.is_empty() {
                return Err(BodyError::Header(
                    "a column has no name; the first line names the columns".into(),
                ));
            }
            if !seen.insert(name.to_ascii_lowercase()) {
                return Err(BodyError::Header(format!("column \"{name}\" is named twice")));
            }
            let known = decoder.members.iter().position(|member| member.name.eq_ignore_ascii_case(name));
            Ok(known.map_or_else(|| Target::Extra(name.to_owned()), Target::Member))
        })
        .collect()
}

fn decode_record(
    members: &[Member],
    targets: &[Target],
    record: &ByteRecord,
    row: &mut Row,
) -> Result<(), RowError> {
    row.text.clear();
    row.undeclared.clear();
    row.cells.clear();
    row.cells.resize(members.len(), Cell::Absent);
    if record.len() != targets.len() {
        return Err(RowError::new(
            "wrong_field_count",
            format!("the line has {} fields, the first line names {}", record.len(), targets.len()),
        ));
    }
    for (field, target) in record.iter().zip(targets) {
        let field = std::str::from_utf8(field)
            .map_err(|_| RowError::new("not_utf8", "a field is not UTF-8; save the file as UTF-8"))?;
        match target {
            Target::Member(at) => {
                let member = &members[*at];
                row.cells[*at] =
                    cell(&member.kind, field, &mut row.text).map_err(|error| error.at(&member.name))?;
            }
            Target::Extra(_) if field.is_empty() => {}
            Target::Extra(name) => {
                row.undeclared.keep(name, |json| push_json_string(field, json));
            }
        }
    }
    check_present(&row.cells, members)
}

fn cell(kind: &Kind, field: &str, text: &mut String) -> Result<Cell, RowError> {
    if field.is_empty() {
        return Ok(Cell::Null);
    }
    let trimmed = field.trim();
    let wrong =
        |wanted: &str| RowError::new("wrong_type", format!("expected {wanted}, found \"{}\"", clip(field)));
    let kept = |value: &str, text: &mut String| {
        let start = text.len() as u32;
        text.push_str(value);
        Cell::Text(start, text.len() as u32)
    };
    match kind {
        Kind::Text => Ok(kept(field, text)),
        Kind::Bool => match trimmed.to_ascii_lowercase().as_str() {
            "true" | "t" | "1" | "yes" => Ok(Cell::Bool(true)),
            "false" | "f" | "0" | "no" => Ok(Cell::Bool(false)),
            _ => Err(wrong("true or false")),
        },
        Kind::Int { min, max, name } => {
            let value: i64 = trimmed.parse().map_err(|_| wrong("an integer"))?;
            if value < *min || value > *max {
                return Err(RowError::new(
                    "out_of_range",
                    format!("{value} does not fit {name} ({min} to {max})"),
                ));
            }
            Ok(Cell::Int(value))
        }
        Kind::Float => match trimmed.parse::<f64>() {
            Ok(value) if value.is_finite() => Ok(Cell::Float(value)),
            _ => Err(wrong("a number")),
        },
        Kind::Decimal { precision, scale } => parse_decimal(trimmed.as_bytes(), *precision, *scale)
            .map(Cell::Decimal)
            .map_err(|detail| RowError::new("out_of_range", detail)),
        Kind::Timestamp => time::parse_micros(trimmed).map(Cell::Int).ok_or_else(|| {
            RowError::new("bad_time", format!("\"{}\" is not a time in the years 1 to 9999", clip(field)))
        }),
        Kind::Date => time::parse_micros(trimmed)
            .map(|micros| Cell::Int(micros.div_euclid(86_400_000_000)))
            .ok_or_else(|| {
                RowError::new("bad_time", format!("\"{}\" is not a date in the years 1 to 9999", clip(field)))
            }),
        Kind::Json | Kind::Struct(_) | Kind::List(_) | Kind::Map(_) => {
            let mut parser = Jiter::new(field.as_bytes());
            let value = decode_value(&mut parser, kind, text)?;
            parser.finish().map_err(|error| syntax(&parser, &error))?;
            Ok(value)
        }
    }
}
