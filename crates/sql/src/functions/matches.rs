//! MATCHES: whether a text has the words of a search.
//! Of what `json(…)` answers the words are those of its names and values.

use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use datafusion::common::{DataFusionError, Result, plan_err};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};
use highwater_event::json::is_json;
use highwater_event::search::{Search, Words};

#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Matches {
    signature: Signature,
}

impl Matches {
    pub fn new() -> Self {
        Self { signature: Signature::any(2, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for Matches {
    fn name(&self) -> &str {
        "matches"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        let text = |it: &DataType| {
            matches!(it, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null)
        };
        match arguments.iter().find(|argument| !text(argument)) {
            None => Ok(DataType::Boolean),
            Some(other) => plan_err!("matches takes a text and what to search for, not {other}"),
        }
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = arguments.number_rows;
        // Nearly always the same search for every row.
        let mut known: Option<(String, Search)> = None;
        let texts = cast(&arguments.args[0].to_array(rows)?, &DataType::Utf8)?;
        let searches = cast(&arguments.args[1].to_array(rows)?, &DataType::Utf8)?;
        let (texts, searches) = (texts.as_string::<i32>(), searches.as_string::<i32>());
        let of_json = is_json(&arguments.arg_fields[0]);
        let mut words = Words::default();
        let mut found = Vec::with_capacity(rows);
        for row in 0..rows {
            if searches.is_null(row) {
                found.push(None);
                continue;
            }
            let asked = searches.value(row);
            let search = match &mut known {
                Some((text, search)) if text == asked => search,
                other => {
                    let search =
                        Search::read(asked).map_err(|error| DataFusionError::Plan(error.to_string()))?;
                    &mut other.insert((asked.to_owned(), search)).1
                }
            };
            // What says nothing has no words.
            let text = if texts.is_valid(row) { texts.value(row) } else { "" };
            match of_json {
                true => words.read_json(text),
                false => words.read(text),
            }
            found.push(Some(search.finds(&words)));
        }
        Ok(ColumnarValue::Array(Arc::new(BooleanArray::from(found))))
    }
}
