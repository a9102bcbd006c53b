//! Printing rows: a table on a terminal, tab-separated in a pipe, or JSON, NDJSON, CSV.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};

use serde::Serialize;
use serde_json::value::RawValue;

use super::{Failure, Format};

/// A row whose numbers keep every digit that the node sent.
type Row = BTreeMap<String, Box<RawValue>>;

fn text(row: &Row, column: &str) -> String {
    match row.get(column).map(|value| value.get()) {
        None | Some("null") => String::new(),
        Some(other) => serde_json::from_str::<String>(other).unwrap_or_else(|_| other.to_owned()),
    }
}

fn is_number(value: &RawValue) -> bool {
    value.get().starts_with(|first: char| first == '-' || first.is_ascii_digit())
}

/// Prints rows, which are JSON objects, with the given columns.
pub fn print(format: Format, columns: &[String], rows: &[impl Serialize]) -> Result<(), Failure> {
    let bad = |error: serde_json::Error| Failure::new("bad_answer", error.to_string());
    let mut out = std::io::stdout().lock();
    match format {
        Format::Json => {
            let text = serde_json::to_string(rows).map_err(bad)?;
            writeln!(out, "{text}")?;
            return Ok(());
        }
        Format::Ndjson => {
            for row in rows {
                let text = serde_json::to_string(row).map_err(bad)?;
                writeln!(out, "{text}")?;
            }
            return Ok(());
        }
        Format::Csv | Format::Table => {}
    }
    let rows: Vec<Row> =
        serde_json::to_string(rows).and_then(|text| serde_json::from_str(&text)).map_err(bad)?;
    if format == Format::Csv {
        lines(&mut out, ",", columns, &rows, csv_field)?;
    } else if std::io::stdout().is_terminal() {
        table(&mut out, columns, &rows)?;
    } else {
        lines(&mut out, "\t", columns, &rows, |text| text.replace(['\t', '\n'], " "))?;
    }
    Ok(())
}

fn lines(
    out: &mut impl Write,
    separator: &str,
    columns: &[String],
    rows: &[Row],
    field: impl Fn(&str) -> String,
) -> std::io::Result<()> {
    let head: Vec<String> = columns.iter().map(|column| field(column)).collect();
    writeln!(out, "{}", head.join(separator))?;
    for row in rows {
        let fields: Vec<String> = columns.iter().map(|column| field(&text(row, column))).collect();
        writeln!(out, "{}", fields.join(separator))?;
    }
    Ok(())
}

fn table(out: &mut impl Write, columns: &[String], rows: &[Row]) -> std::io::Result<()> {
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| columns.iter().map(|column| text(row, column).replace('\n', " ")).collect())
        .collect();
    let numeric: Vec<bool> = columns
        .iter()
        .map(|column| {
            rows.iter()
                .all(|row| row.get(column).is_none_or(|value| is_number(value) || value.get() == "null"))
        })
        .collect();
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(at, column)| {
            cells.iter().map(|row| row[at].chars().count()).chain([column.chars().count()]).max().unwrap_or(0)
        })
        .collect();
    let mut line = |fields: &[String]| -> std::io::Result<()> {
        let padded: Vec<String> = fields
            .iter()
            .enumerate()
            .map(|(at, field)| {
                let width = widths[at];
                if numeric[at] { format!("{field:>width$}") } else { format!("{field:<width$}") }
            })
            .collect();
        writeln!(out, "{}", padded.join("  ").trim_end())
    };
    line(columns)?;
    line(&widths.iter().map(|width| "─".repeat(*width)).collect::<Vec<_>>())?;
    for row in &cells {
        line(row)?;
    }
    Ok(())
}

fn csv_field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_not_rounded() {
        let row: Row =
            serde_json::from_str(r#"{"a":0.12345678901234567890123,"b":"x\ny","c":null,"d":[1]}"#).unwrap();
        let texts = ["a", "b", "c", "d", "e"].map(|name| text(&row, name));
        assert_eq!(texts, ["0.12345678901234567890123", "x\ny", "", "[1]", ""]);
    }
}
