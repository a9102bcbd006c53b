//! Reference tables: small tables that come from a CSV file and change only when an operator applies a
//! new version. Their rows travel in the log with the statement, so a rebuild finds what was applied.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Date32Type, Schema};
use highwater_event::{Column, StreamName};

use crate::dialect::SqlError;

/// Rows by key: from which day on, and which row.
type Index = HashMap<Vec<String>, Vec<(i32, u32)>>;

/// One version of a reference table.
#[derive(Debug)]
pub struct ReferenceTable {
    /// Its name.
    pub name: StreamName,
    /// Columns that rows are looked up by.
    pub key: Vec<String>,
    /// Column from whose date on a row holds.
    pub valid_from: Option<String>,
    /// Its rows.
    pub rows: RecordBatch,
    /// Rows by key, the newest date first.
    index: Index,
}

/// The reference tables that functions look into; shared by every plan.
#[derive(Debug, Default)]
pub struct References(RwLock<BTreeMap<String, Arc<ReferenceTable>>>);

impl References {
    /// The current version of a table.
    pub fn get(&self, name: &str) -> Option<Arc<ReferenceTable>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Takes a table away.
    pub fn remove(&self, name: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// Puts a version in place.
    pub fn put(&self, table: Arc<ReferenceTable>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(table.name.to_string(), table);
    }
}

impl ReferenceTable {
    /// Reads a version from CSV with a header line.
    pub fn from_csv(
        name: StreamName,
        columns: &[Column],
        key: Vec<String>,
        valid_from: Option<String>,
        csv: &str,
    ) -> Result<Self, SqlError> {
        let wrong = |message: String| SqlError::new("invalid_reference_table", format!("{name}: {message}"));
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(csv.as_bytes());
        let header: Vec<String> = reader
            .headers()
            .map_err(|error| wrong(error.to_string()))?
            .iter()
            .map(|name| name.trim_start_matches('\u{feff}').to_ascii_lowercase())
            .collect();
        let declared: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        if header != declared {
            return Err(wrong(format!(
                "the CSV has the columns {}, declared are {}",
                header.join(", "),
                declared.join(", ")
            )));
        }
        let mut texts: Vec<Vec<Option<String>>> = vec![Vec::new(); columns.len()];
        for record in reader.records() {
            let record = record.map_err(|error| wrong(error.to_string()))?;
            for (column, value) in texts.iter_mut().zip(record.iter()) {
                column.push((!value.is_empty()).then(|| value.to_owned()));
            }
        }
        let schema = Schema::new(
            columns
                .iter()
                .map(|column| arrow::datatypes::Field::new(&column.name, column.data_type.clone(), true))
                .collect::<Vec<_>>(),
        );
        let strict = arrow::compute::CastOptions { safe: false, ..Default::default() };
        let arrays = texts
            .into_iter()
            .zip(columns)
            .map(|(texts, column)| {
                let texts = arrow::array::StringArray::from(texts);
                arrow::compute::cast_with_options(&texts, &column.data_type, &strict)
                    .map_err(|error| wrong(format!("column {}: {error}", column.name)))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let rows =
            RecordBatch::try_new(Arc::new(schema), arrays).map_err(|error| wrong(error.to_string()))?;
        let mut table = Self { name: name.clone(), key, valid_from, rows, index: HashMap::new() };
        table.index = table.build_index().map_err(wrong)?;
        Ok(table)
    }

    fn build_index(&self) -> Result<Index, String> {
        let text = |column: &str| {
            let values =
                self.rows.column_by_name(column).ok_or_else(|| format!("column {column} is missing"))?;
            cast(values, &DataType::Utf8).map_err(|error| error.to_string())
        };
        let keys = self.key.iter().map(|column| text(column)).collect::<Result<Vec<_>, _>>()?;
        let dates = match &self.valid_from {
            Some(column) => {
                let values =
                    self.rows.column_by_name(column).ok_or_else(|| format!("column {column} is missing"))?;
                Some(
                    cast(values, &DataType::Date32)
                        .map_err(|error| format!("{column} is not a date: {error}"))?,
                )
            }
            None => None,
        };
        let mut index = Index::new();
        for row in 0..self.rows.num_rows() {
            let key = keys
                .iter()
                .map(|values| {
                    values
                        .is_valid(row)
                        .then(|| values.as_string::<i32>().value(row).to_owned())
                        .ok_or_else(|| format!("line {} has no key", row + 2))
                })
                .collect::<Result<Vec<_>, _>>()?;
            let from = match &dates {
                Some(dates) if dates.is_null(row) => return Err(format!("line {} has no date", row + 2)),
                Some(dates) => dates.as_primitive::<Date32Type>().value(row),
                None => i32::MIN,
            };
            let versions = index.entry(key).or_default();
            if versions.iter().any(|(other, _)| *other == from) {
                return Err(format!("line {} has the key of another line", row + 2));
            }
            versions.push((from, row as u32));
        }
        index.values_mut().for_each(|versions| versions.sort_unstable_by(|a, b| b.cmp(a)));
        Ok(index)
    }

    /// The row of a key that holds on a date (days since 1970); without a date the newest.
    pub fn find(&self, key: &[Option<&str>], date: Option<i32>) -> Option<u32> {
        let key = key.iter().map(|part| part.map(str::to_owned)).collect::<Option<Vec<String>>>()?;
        let versions = self.index.get(&key)?;
        match date {
            Some(date) => versions.iter().find(|(from, _)| *from <= date).map(|(_, row)| *row),
            None => versions.first().map(|(_, row)| *row),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::{Statement, parse_script};

    fn rates(csv: &str) -> Result<ReferenceTable, SqlError> {
        let text = "CREATE REFERENCE TABLE rates (currency TEXT, valid_from DATE, usd DECIMAL(12,6)) WITH (csv = 'x', key = 'currency', valid_from = 'valid_from')";
        match parse_script(text).unwrap().remove(0).statement {
            Statement::CreateReferenceTable { name, columns, key, valid_from, .. } => {
                ReferenceTable::from_csv(name, &columns, key, valid_from, csv)
            }
            _ => unreachable!(),
        }
    }

    #[test]
    fn the_rate_of_the_day_is_found() {
        let table = rates("currency,valid_from,usd\nEUR,2026-01-01,1.2\nEUR,2000-01-01,1.1\n").unwrap();
        assert_eq!(table.find(&[Some("EUR")], Some(20_453)), Some(1), "31 December 2025");
        assert_eq!(table.find(&[Some("EUR")], Some(20_454)), Some(0), "1 January 2026");
        assert_eq!(table.find(&[Some("EUR")], Some(0)), None, "before the first");
        assert_eq!(table.find(&[Some("XXX")], Some(20_454)), None);
        assert_eq!(table.find(&[None], None), None);
    }

    #[test]
    fn bad_files_are_refused_by_line() {
        assert!(rates("currency,usd\nEUR,1").unwrap_err().message.contains("declared are"));
        assert!(
            rates("currency,valid_from,usd\nEUR,2026-01-01,1\nEUR,2026-01-01,2")
                .unwrap_err()
                .message
                .contains("line 3")
        );
        assert!(rates("currency,valid_from,usd\nEUR,soon,1").unwrap_err().message.contains("valid_from"));
    }
}
