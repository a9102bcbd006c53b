//! JSON: a text that holds JSON, to be shown as the value that it says and not as a text.

use std::sync::Arc;

use arrow::array::{AsArray, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{Result, internal_err, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};
use highwater_event::json::{JSON_MARK, compact};
use serde::de::IgnoredAny;

#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Json {
    signature: Signature,
}

impl Json {
    pub fn new() -> Self {
        Self { signature: Signature::any(1, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for Json {
    fn name(&self) -> &str {
        "json"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        internal_err!("json says the whole field")
    }

    fn return_field_from_args(&self, arguments: ReturnFieldArgs) -> Result<FieldRef> {
        match arguments.arg_fields[0].data_type() {
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => {}
            other => return plan_err!("json takes a text, not {other}"),
        }
        let marked = Field::new(self.name(), DataType::Utf8, true);
        Ok(Arc::new(marked.with_metadata([(JSON_MARK.to_owned(), "1".to_owned())].into())))
    }

    /// What is not JSON is null: an answer must stay readable whatever a text holds, and on one line where lines count.
    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let texts = cast(&arguments.args[0].to_array(arguments.number_rows)?, &DataType::Utf8)?;
        let is_value = |text: &&str| serde_json::from_str::<IgnoredAny>(text).is_ok();
        let checked: StringArray =
            texts.as_string::<i32>().iter().map(|text| text.filter(is_value).map(compact)).collect();
        Ok(ColumnarValue::Array(Arc::new(checked)))
    }
}
