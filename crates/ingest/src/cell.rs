//! One row between JSON and Arrow: typed, checked values that are not in a column yet. A row is
//! decoded into cells first, so that a fault in its last member leaves no half row behind.

use arrow::datatypes::{DataType, TimeUnit};
use highwater_event::Column;

/// A checked value.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Cell {
    /// The member was not there.
    #[default]
    Absent,
    /// The member was null.
    Null,
    /// A boolean.
    Bool(bool),
    /// An integer, a date in days, or a time in microseconds.
    Int(i64),
    /// A double.
    Float(f64),
    /// A decimal as an integer at the column's scale.
    Decimal(i128),
    /// A text, as a range of the row's text buffer.
    Text(u32, u32),
    /// The members of a struct, in the order of the type.
    Struct(Vec<Cell>),
    /// The elements of a list.
    List(Vec<Cell>),
    /// Keys, as ranges of the row's text buffer, and values of a map.
    Map(Vec<((u32, u32), Cell)>),
}

impl Cell {
    /// True for absent and null.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Absent | Self::Null)
    }
}

/// What a member may hold.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// A JSON string.
    Text,
    /// Any JSON value, kept as its text.
    Json,
    /// true or false.
    Bool,
    /// An integer in the range.
    Int {
        /// Smallest value.
        min: i64,
        /// Largest value.
        max: i64,
        /// The type as users know it.
        name: &'static str,
    },
    /// A finite number.
    Float,
    /// An exact number.
    Decimal {
        /// Digits in all.
        precision: u8,
        /// Digits after the point.
        scale: i8,
    },
    /// A time; see [`highwater_event::time::parse_micros`].
    Timestamp,
    /// A day.
    Date,
    /// An object with these members.
    Struct(Vec<Member>),
    /// An array of these.
    List(Box<Member>),
    /// An object whose members are all such values.
    Map(Box<Member>),
}

/// A named value.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// Its name, as declared (lower case).
    pub name: String,
    /// What it may hold.
    pub kind: Kind,
    /// Null and absence are allowed.
    pub nullable: bool,
}

impl Member {
    /// The member for a declared column; `None` when events can't bring such a type.
    pub fn of_column(column: &Column) -> Option<Self> {
        let kind = if column.json { Kind::Json } else { kind_of(&column.data_type)? };
        Some(Self { name: column.name.clone(), kind, nullable: column.nullable })
    }
}

/// What a type accepts; `None` for types that events can't bring.
pub fn kind_of(data_type: &DataType) -> Option<Kind> {
    Some(match data_type {
        DataType::Utf8 => Kind::Text,
        DataType::Boolean => Kind::Bool,
        DataType::Int16 => Kind::Int { min: i16::MIN.into(), max: i16::MAX.into(), name: "SMALLINT" },
        DataType::Int32 => Kind::Int { min: i32::MIN.into(), max: i32::MAX.into(), name: "INT" },
        DataType::Int64 => Kind::Int { min: i64::MIN, max: i64::MAX, name: "BIGINT" },
        DataType::Float64 => Kind::Float,
        DataType::Decimal128(precision, scale) => Kind::Decimal { precision: *precision, scale: *scale },
        DataType::Timestamp(TimeUnit::Microsecond, _) => Kind::Timestamp,
        DataType::Date32 => Kind::Date,
        DataType::Struct(fields) => Kind::Struct(
            fields
                .iter()
                .map(|field| {
                    kind_of(field.data_type()).map(|kind| Member {
                        name: field.name().clone(),
                        kind,
                        nullable: field.is_nullable(),
                    })
                })
                .collect::<Option<_>>()?,
        ),
        DataType::List(element) => Kind::List(Box::new(Member {
            name: element.name().clone(),
            kind: kind_of(element.data_type())?,
            nullable: element.is_nullable(),
        })),
        DataType::Map(entries, _) => {
            let DataType::Struct(fields) = entries.data_type() else { return None };
            let [key, value] = fields.iter().collect::<Vec<_>>()[..] else { return None };
            if *key.data_type() != DataType::Utf8 {
                return None;
            }
            let kind = kind_of(value.data_type())?;
            Kind::Map(Box::new(Member { name: value.name().clone(), kind, nullable: true }))
        }
        _ => return None,
    })
}

/// Parses a JSON number (or the text of one) as an exact decimal of `precision` digits, `scale` of them
/// after the point. Trailing zeros are free; a digit that would be lost is an error.
pub fn parse_decimal(text: &[u8], precision: u8, scale: i8) -> Result<i128, String> {
    let shown = || String::from_utf8_lossy(text).into_owned();
    let (negative, digits) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (mantissa, exponent) = match digits.iter().position(|byte| matches!(byte, b'e' | b'E')) {
        Some(at) => {
            let exponent = std::str::from_utf8(&digits[at + 1..])
                .ok()
                .and_then(|exponent| exponent.parse::<i32>().ok())
                .ok_or_else(|| format!("{} is not a decimal number", shown()))?;
            (&digits[..at], exponent)
        }
        None => (digits, 0),
    };
    let mut value: i128 = 0;
    let mut after_point: i32 = 0;
    let mut point = false;
    let mut any = false;
    for byte in mantissa {
        match byte {
            b'0'..=b'9' => {
                any = true;
                value = value
                    .checked_mul(10)
                    .and_then(|value| value.checked_add(i128::from(byte - b'0')))
                    .ok_or_else(|| {
                        format!("{} has more digits than DECIMAL({precision},{scale}) holds", shown())
                    })?;
                after_point += i32::from(point);
            }
            b'.' if !point => point = true,
            _ => return Err(format!("{} is not a decimal number", shown())),
        }
    }
    if !any {
        return Err(format!("{} is not a decimal number", shown()));
    }
    let too_large = || format!("{} is too large for DECIMAL({precision},{scale})", shown());
    // value · 10^(exponent - after_point) has to become an integer at the column's scale.
    let mut shift = i32::from(scale).saturating_add(exponent).saturating_sub(after_point);
    while shift > 0 && value != 0 {
        value = value.checked_mul(10).ok_or_else(too_large)?;
        shift -= 1;
    }
    while shift < 0 && value != 0 {
        if value % 10 != 0 {
            return Err(format!(
                "{} has more than {scale} digits after the point, which DECIMAL({precision},{scale}) would lose",
                shown()
            ));
        }
        value /= 10;
        shift += 1;
    }
    if value >= 10i128.pow(u32::from(precision.min(38))) {
        return Err(too_large());
    }
    Ok(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_exact_or_refused() {
        for (text, expected) in [
            ("270.43", 27043),
            ("-0.01", -1),
            ("10", 1000),
            ("10.5000", 1050),
            ("1.5e2", 15000),
            ("15000e-2", 15000),
            ("0", 0),
            ("0e999999999", 0),
        ] {
            assert_eq!(parse_decimal(text.as_bytes(), 15, 2), Ok(expected), "{text}");
        }
        for bad in ["1.005", "1e-3", "", "-", "1.2.3", "abc", "1e20", "99999999999999.99", "1e99999999999"] {
            assert!(parse_decimal(bad.as_bytes(), 15, 2).is_err(), "{bad}");
        }
    }
}
