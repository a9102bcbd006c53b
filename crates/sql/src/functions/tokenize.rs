//! TOKENIZE: a keyed, deterministic stand-in for an identifier. Equal values give equal tokens, so one
//! can group and join on them; without the key a token says nothing.

use std::sync::Arc;

use arrow::array::{AsArray, StringArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use datafusion::common::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};
use highwater_event::Digest128;

#[derive(PartialEq, Eq, Hash)]
pub(super) struct Tokenize {
    key: [u8; 32],
    signature: Signature,
}

impl std::fmt::Debug for Tokenize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokenize")
    }
}

impl Tokenize {
    pub fn new(key: [u8; 32]) -> Self {
        Self { key, signature: Signature::any(1, Volatility::Immutable) }
    }

    fn token(&self, text: &str) -> String {
        format!("tok_{}", Digest128::of(&blake3::keyed_hash(&self.key, text.as_bytes())))
    }
}

impl ScalarUDFImpl for Tokenize {
    fn name(&self) -> &str {
        "tokenize"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let texts = cast(&arguments.args[0].to_array(arguments.number_rows)?, &DataType::Utf8)?;
        let tokens: StringArray =
            texts.as_string::<i32>().iter().map(|text| text.map(|text| self.token(text))).collect();
        Ok(ColumnarValue::Array(Arc::new(tokens)))
    }
}
