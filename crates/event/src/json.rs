//! Rows as JSON. Decimals are exact numbers without useless zeros, times RFC 3339 in UTC, bytes the text
//! they hold or else hexadecimal.

use std::borrow::Cow;
use std::fmt::Write;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Field, Float32Type, Float64Type, TimestampMicrosecondType,
};
use arrow::util::display::{ArrayFormatter, FormatOptions};

use crate::canonical::push_json_string;
use crate::{columns, time};

/// What the metadata of a column says whose texts are JSON that was checked.
pub const JSON_MARK: &str = "highwater.json";

/// Whether the texts of a column are JSON that was checked: they are shown as the values that they say.
pub fn is_json(field: &Field) -> bool {
    field.metadata().contains_key(JSON_MARK)
}

/// A JSON text without white space between its parts; numbers keep every digit.
pub fn compact(text: &str) -> Cow<'_, str> {
    let space = |byte: u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    if !text.bytes().any(space) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let (mut inside, mut escaped, mut from) = (false, false, 0);
    for (at, byte) in text.bytes().enumerate() {
        match (inside, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => inside = !inside,
            (false, byte) if space(byte) => {
                out.push_str(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    out.push_str(&text[from..]);
    Cow::Owned(out)
}

/// Appends each row as a JSON object, calling `between` before all but the first. `names` gives the keys.
pub fn rows_as_json(batch: &RecordBatch, names: &[String], first: bool, between: &str, out: &mut String) {
    let schema = batch.schema_ref();
    for row in 0..batch.num_rows() {
        if !(first && row == 0) {
            out.push_str(between);
        }
        out.push('{');
        for (at, (column, name)) in batch.columns().iter().zip(names).enumerate() {
            if at > 0 {
                out.push(',');
            }
            push_json_string(name, out);
            out.push(':');
            if column.is_valid(row) && *column.data_type() == DataType::Utf8 && is_json(schema.field(at)) {
                out.push_str(column.as_string::<i32>().value(row));
            } else {
                value_as_json(column, row, out);
            }
        }
        out.push('}');
    }
}

fn write_display(value: impl std::fmt::Display, out: &mut String) {
    if write!(out, "{value}").is_err() {
        out.push_str("null");
    }
}

/// Appends one value as JSON.
pub fn value_as_json(array: &ArrayRef, row: usize, out: &mut String) {
    if array.is_null(row) {
        return out.push_str("null");
    }
    match array.data_type() {
        DataType::Null => out.push_str("null"),
        DataType::Boolean => write_display(array.as_boolean().value(row), out),
        DataType::Utf8 => push_json_string(array.as_string::<i32>().value(row), out),
        DataType::LargeUtf8 => push_json_string(array.as_string::<i64>().value(row), out),
        DataType::Utf8View => push_json_string(array.as_string_view().value(row), out),
        DataType::Float64 => write_float(array.as_primitive::<Float64Type>().value(row), out),
        DataType::Float32 => write_float(f64::from(array.as_primitive::<Float32Type>().value(row)), out),
        DataType::Decimal128(_, scale) => {
            write_decimal(array.as_primitive::<Decimal128Type>().value(row), *scale, out)
        }
        DataType::Timestamp(..) => {
            match arrow::compute::cast(&array.slice(row, 1), &columns::timestamp_type()) {
                Ok(micros) => {
                    let micros = micros.as_primitive::<TimestampMicrosecondType>().value(0);
                    push_json_string(&time::show_micros(micros), out);
                }
                Err(_) => out.push_str("null"),
            }
        }
        DataType::Date32 => {
            push_json_string(&time::show_date(array.as_primitive::<Date32Type>().value(row)), out)
        }
        DataType::Binary => write_bytes(array.as_binary::<i32>().value(row), out),
        DataType::BinaryView => write_bytes(array.as_binary_view().value(row), out),
        DataType::Struct(fields) => {
            out.push('{');
            for (at, (column, field)) in array.as_struct().columns().iter().zip(fields).enumerate() {
                if at > 0 {
                    out.push(',');
                }
                push_json_string(field.name(), out);
                out.push(':');
                value_as_json(column, row, out);
            }
            out.push('}');
        }
        DataType::List(_) => {
            let values = array.as_list::<i32>().value(row);
            out.push('[');
            for at in 0..values.len() {
                if at > 0 {
                    out.push(',');
                }
                value_as_json(&values, at, out);
            }
            out.push(']');
        }
        DataType::Map(..) => {
            let map = array.as_map();
            let entries = map.value(row);
            out.push('{');
            for at in 0..entries.len() {
                if at > 0 {
                    out.push(',');
                }
                // Keys are texts whatever their type.
                let mut key = String::new();
                value_as_json(entries.column(0), at, &mut key);
                if key.starts_with('"') {
                    out.push_str(&key)
                } else {
                    push_json_string(&key, out)
                }
                out.push(':');
                value_as_json(entries.column(1), at, out);
            }
            out.push('}');
        }
        other if other.is_integer() => match ArrayFormatter::try_new(array, &FormatOptions::default()) {
            Ok(formatter) => write_display(formatter.value(row), out),
            Err(_) => out.push_str("null"),
        },
        _ => match ArrayFormatter::try_new(array, &FormatOptions::default()) {
            Ok(formatter) => push_json_string(&formatter.value(row).to_string(), out),
            Err(_) => out.push_str("null"),
        },
    }
}

fn write_float(value: f64, out: &mut String) {
    match serde_json::Number::from_f64(value) {
        Some(number) => write_display(number, out),
        None => out.push_str("null"),
    }
}

fn write_decimal(value: i128, scale: i8, out: &mut String) {
    let scale = usize::from(scale.unsigned_abs());
    let digits = format!("{:0>width$}", value.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let fraction = fraction.trim_end_matches('0');
    if value < 0 {
        out.push('-');
    }
    out.push_str(whole);
    if !fraction.is_empty() {
        out.push('.');
        out.push_str(fraction);
    }
}

fn write_bytes(bytes: &[u8], out: &mut String) {
    match std::str::from_utf8(bytes) {
        Ok(text) => push_json_string(text, out),
        Err(_) => {
            let mut hexadecimal = String::with_capacity(2 + bytes.len() * 2);
            hexadecimal.push_str("\\x");
            bytes.iter().for_each(|byte| write_display(format_args!("{byte:02x}"), &mut hexadecimal));
            push_json_string(&hexadecimal, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{compact, write_decimal};

    #[test]
    fn white_space_goes_and_texts_stay() {
        let text = "{ \"a b\" :\n [1.50,\t\"x \\\" y\\\\\", {}] , \"é\": null }";
        assert_eq!(compact(text), "{\"a b\":[1.50,\"x \\\" y\\\\\",{}],\"é\":null}");
        assert_eq!(compact("[1,2]"), "[1,2]");
    }

    #[test]
    fn decimals_are_exact_and_short() {
        for (value, scale, shown) in
            [(338_037_500, 6, "338.0375"), (-5, 2, "-0.05"), (1000, 2, "10"), (7, 0, "7"), (0, 4, "0")]
        {
            let mut out = String::new();
            write_decimal(value, scale, &mut out);
            assert_eq!(out, shown);
        }
    }
}
