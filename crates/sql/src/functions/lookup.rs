//! LOOKUP and IN_REFERENCE: rows of reference tables by key, and by date where they are dated.
//!
//! A row that is not there is an error of the *row that asks*: it goes to the dead letters instead of
//! becoming a null that nobody notices.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, UInt32Array};
use arrow::compute::{cast, take};
use arrow::datatypes::{DataType, Date32Type, Field, FieldRef};
use datafusion::common::{Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};

use crate::reference::{ReferenceTable, References};

#[derive(Debug)]
pub(super) struct Lookup {
    references: Arc<References>,
    signature: Signature,
}

#[derive(Debug)]
pub(super) struct InReference {
    references: Arc<References>,
    signature: Signature,
}

macro_rules! same_references {
    ($function:ty) => {
        impl PartialEq for $function {
            fn eq(&self, other: &Self) -> bool {
                Arc::ptr_eq(&self.references, &other.references)
            }
        }
        impl Eq for $function {}
        impl Hash for $function {
            fn hash<H: Hasher>(&self, state: &mut H) {
                Arc::as_ptr(&self.references).hash(state);
            }
        }
    };
}
same_references!(Lookup);
same_references!(InReference);

impl Lookup {
    pub fn new(references: Arc<References>) -> Self {
        // Stable, not immutable: an operator may apply a new version of the table.
        Self { references, signature: Signature::variadic_any(Volatility::Stable) }
    }
}

impl InReference {
    pub fn new(references: Arc<References>) -> Self {
        Self { references, signature: Signature::variadic_any(Volatility::Stable) }
    }
}

fn constant(function: &str, what: &str, value: Option<&ScalarValue>) -> Result<String> {
    match value.and_then(|value| value.try_as_str().flatten()) {
        Some(text) => Ok(text.to_ascii_lowercase()),
        None => plan_err!("{function}: the {what} is a constant text"),
    }
}

fn table(references: &References, function: &str, name: &str) -> Result<Arc<ReferenceTable>> {
    match references.get(name) {
        Some(table) => Ok(table),
        None => plan_err!("{function}: there is no reference table \"{name}\""),
    }
}

fn keys(values: &[ColumnarValue], rows: usize) -> Result<Vec<ArrayRef>> {
    values.iter().map(|value| Ok(cast(&value.to_array(rows)?, &DataType::Utf8)?)).collect()
}

fn scalar(value: &ColumnarValue) -> Option<&ScalarValue> {
    if let ColumnarValue::Scalar(value) = value { Some(value) } else { None }
}

impl ScalarUDFImpl for Lookup {
    fn name(&self) -> &str {
        "lookup"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        plan_err!("lookup needs to see its arguments")
    }

    fn return_field_from_args(&self, arguments: ReturnFieldArgs) -> Result<FieldRef> {
        let constants = arguments.scalar_arguments;
        let name = constant("lookup", "table", constants.first().copied().flatten())?;
        let column = constant("lookup", "column", constants.get(1).copied().flatten())?;
        let table = table(&self.references, "lookup", &name)?;
        let wanted = 2 + table.key.len() + usize::from(table.valid_from.is_some());
        if constants.len() != wanted {
            let date = if table.valid_from.is_some() { ", date" } else { "" };
            return plan_err!(
                "lookup('{name}', 'column', {}{date}) is how this table is asked",
                table.key.join(", ")
            );
        }
        match table.rows.schema_ref().field_with_name(&column) {
            Ok(field) => Ok(Arc::new(Field::new("lookup", field.data_type().clone(), true))),
            Err(_) => plan_err!("lookup: reference table \"{name}\" has no column \"{column}\""),
        }
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let name = constant("lookup", "table", scalar(&arguments.args[0]))?;
        let column = constant("lookup", "column", scalar(&arguments.args[1]))?;
        let table = table(&self.references, "lookup", &name)?;
        let rows = arguments.number_rows;
        let key_end = 2 + table.key.len();
        let keys = keys(&arguments.args[2..key_end], rows)?;
        let dates = match arguments.args.get(key_end) {
            Some(date) => Some(cast(&date.to_array(rows)?, &DataType::Date32)?),
            None => None,
        };
        let mut found = Vec::with_capacity(rows);
        for row in 0..rows {
            let date = match &dates {
                Some(dates) if dates.is_null(row) => return exec_err!("{name}: the date is null"),
                Some(dates) => Some(dates.as_primitive::<Date32Type>().value(row)),
                None => None,
            };
            let key: Vec<Option<&str>> = keys
                .iter()
                .map(|values| values.is_valid(row).then(|| values.as_string::<i32>().value(row)))
                .collect();
            match table.find(&key, date) {
                Some(place) => found.push(place),
                None => {
                    let key: Vec<&str> = key.into_iter().map(|part| part.unwrap_or("NULL")).collect();
                    let on = date
                        .map(|days| format!(" on {}", highwater_event::time::show_date(days)))
                        .unwrap_or_default();
                    return exec_err!("{name} has no row for {}{on}", key.join(", "));
                }
            }
        }
        let Some(values) = table.rows.column_by_name(&column) else {
            return exec_err!("{name} has no column {column}");
        };
        Ok(ColumnarValue::Array(take(values, &UInt32Array::from(found), None)?))
    }
}

impl ScalarUDFImpl for InReference {
    fn name(&self) -> &str {
        "in_reference"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    fn return_field_from_args(&self, arguments: ReturnFieldArgs) -> Result<FieldRef> {
        let name = constant("in_reference", "table", arguments.scalar_arguments.first().copied().flatten())?;
        let table = table(&self.references, "in_reference", &name)?;
        if arguments.scalar_arguments.len() != 1 + table.key.len() {
            return plan_err!("in_reference('{name}', {}) is how this table is asked", table.key.join(", "));
        }
        Ok(Arc::new(Field::new("in_reference", DataType::Boolean, false)))
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let name = constant("in_reference", "table", scalar(&arguments.args[0]))?;
        let table = table(&self.references, "in_reference", &name)?;
        let keys = keys(&arguments.args[1..], arguments.number_rows)?;
        let listed: BooleanArray = (0..arguments.number_rows)
            .map(|row| {
                let key: Vec<Option<&str>> = keys
                    .iter()
                    .map(|values| values.is_valid(row).then(|| values.as_string::<i32>().value(row)))
                    .collect();
                Some(table.find(&key, None).is_some())
            })
            .collect();
        Ok(ColumnarValue::Array(Arc::new(listed)))
    }
}
