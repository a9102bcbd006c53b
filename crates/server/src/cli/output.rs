//! Printing rows: a table on a terminal, tab-separated in a pipe, or JSON, NDJSON, CSV.

use std::io::{IsTerminal, Write};

use serde_json::{Map, Value};

use super::{Failure, Format};

fn text(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// Prints rows with the given columns.
pub fn print(format: Format, columns: &[String], rows: &[Map<String, Value>]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match format {
        Format::Json => writeln!(out, "{}", Value::from(rows.to_vec()))?,
        Format::Ndjson => {
            for row in rows {
                writeln!(out, "{}", Value::Object(row.clone()))?;
            }
        }
        Format::Csv => {
            writeln!(
                out,
                "{}",
                columns.iter().map(|column| csv_field(column)).collect::<Vec<_>>().join(",")
            )?;
            for row in rows {
                let fields: Vec<String> =
                    columns.iter().map(|column| csv_field(&text(row.get(column)))).collect();
                writeln!(out, "{}", fields.join(","))?;
            }
        }
        Format::Table if std::io::stdout().is_terminal() => table(&mut out, columns, rows)?,
        Format::Table => {
            writeln!(out, "{}", columns.join("\t"))?;
            for row in rows {
                let fields: Vec<String> =
                    columns.iter().map(|column| text(row.get(column)).replace(['\t', '\n'], " ")).collect();
                writeln!(out, "{}", fields.join("\t"))?;
            }
        }
    }
    Ok(())
}

fn table(out: &mut impl Write, columns: &[String], rows: &[Map<String, Value>]) -> std::io::Result<()> {
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| columns.iter().map(|column| text(row.get(column)).replace('\n', " ")).collect())
        .collect();
    let numeric: Vec<bool> = columns
        .iter()
        .map(|column| {
            rows.iter().all(|row| row.get(column).is_none_or(|value| value.is_number() || value.is_null()))
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
