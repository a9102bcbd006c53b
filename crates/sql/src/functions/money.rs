//! MONEY: an exact amount as a text with two digits, rounded half away from zero.

use std::sync::Arc;

use arrow::array::{AsArray, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Decimal128Type};
use datafusion::common::{Result, plan_err};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};

#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Money {
    signature: Signature,
}

impl Money {
    pub fn new() -> Self {
        Self { signature: Signature::any(1, Volatility::Immutable) }
    }
}

/// An integer at `scale` with two digits after the point.
pub(crate) fn money_text(value: i128, scale: i8) -> String {
    let scale = u32::from(scale.unsigned_abs());
    let cents = if scale <= 2 {
        value.saturating_mul(10i128.pow(2 - scale))
    } else {
        let unit = 10i128.pow(scale - 2);
        let (whole, rest) = (value / unit, value % unit);
        if rest.abs() * 2 >= unit { whole + value.signum() } else { whole }
    };
    let sign = if cents < 0 { "-" } else { "" };
    format!("{sign}{}.{:02}", cents.abs() / 100, cents.abs() % 100)
}

impl ScalarUDFImpl for Money {
    fn name(&self) -> &str {
        "money"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        match &arguments[0] {
            DataType::Decimal128(_, scale) if *scale >= 0 => Ok(DataType::Utf8),
            other if other.is_integer() => Ok(DataType::Utf8),
            DataType::Null => Ok(DataType::Utf8),
            other => plan_err!("money takes an exact number, not {other}: CAST it to DECIMAL first"),
        }
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let values = arguments.args[0].to_array(arguments.number_rows)?;
        let scale = if let DataType::Decimal128(_, scale) = values.data_type() { *scale } else { 0 };
        let values = cast(&values, &DataType::Decimal128(38, scale))?;
        let texts: StringArray = values
            .as_primitive::<Decimal128Type>()
            .iter()
            .map(|value| value.map(|value| money_text(value, scale)))
            .collect();
        Ok(ColumnarValue::Array(Arc::new(texts)))
    }
}

#[cfg(test)]
mod tests {
    use super::money_text;

    #[test]
    fn rounds_half_away_from_zero() {
        for (value, scale, shown) in [
            (3380375, 4, "338.04"),
            (12345, 3, "12.35"),
            (-12345, 3, "-12.35"),
            (12344, 3, "12.34"),
            (-4, 3, "0.00"),
            (-5, 3, "-0.01"),
            (7, 0, "7.00"),
            (75, 1, "7.50"),
            (99_995, 3, "100.00"),
        ] {
            assert_eq!(money_text(value, scale), shown, "{value} at {scale}");
        }
    }
}
