//! MATCHES: whether a text has the words of a search.
//! Of what `json(…)` answers the words are those of its names and values.

use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray};
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
        text_and_search(self.name(), arguments).map(|()| DataType::Boolean)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let of_json = is_json(&arguments.arg_fields[0]);
        let mut words = Words::default();
        let mut found = Vec::with_capacity(arguments.number_rows);
        each_search(&arguments, |text, search| {
            found.push(search.map(|search| {
                // What says nothing has no words.
                let text = text.unwrap_or_default();
                match of_json {
                    true => words.read_json(text),
                    false => words.read(text),
                }
                search.finds(&words)
            }));
        })?;
        Ok(ColumnarValue::Array(Arc::new(BooleanArray::from(found))))
    }
}

/// Checks the arguments of a function that takes a text and what to search for.
pub(super) fn text_and_search(name: &str, arguments: &[DataType]) -> Result<()> {
    let text = |it: &DataType| {
        matches!(it, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null)
    };
    match arguments.iter().find(|argument| !text(argument)) {
        None => Ok(()),
        Some(other) => plan_err!("{name} takes a text and what to search for, not {other}"),
    }
}

/// Visits the text and the search of each row; a search is read once for all rows that have the same one after the other.
pub(super) fn each_search(
    arguments: &ScalarFunctionArgs,
    mut visit: impl FnMut(Option<&str>, Option<&Search>),
) -> Result<()> {
    let rows = arguments.number_rows;
    let texts = cast(&arguments.args[0].to_array(rows)?, &DataType::Utf8)?;
    let searches = cast(&arguments.args[1].to_array(rows)?, &DataType::Utf8)?;
    let mut known: Option<(&str, Search)> = None;
    for (text, asked) in texts.as_string::<i32>().iter().zip(searches.as_string::<i32>()) {
        let Some(asked) = asked else {
            visit(text, None);
            continue;
        };
        let search = match &mut known {
            Some((read, search)) if *read == asked => search,
            other => {
                let search = Search::read(asked).map_err(|error| DataFusionError::Plan(error.to_string()))?;
                &mut other.insert((asked, search)).1
            }
        };
        visit(text, Some(search));
    }
    Ok(())
}
