//! Functions whose result can be as large as a number in the statement says. What they would need is
//! reckoned before they are asked: memory that a function takes is in no account, so one statement could
//! end the node.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::kernels::length::length;
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, FieldRef, Int64Type, IntervalMonthDayNanoType};
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};

use super::weight;

/// Bytes that one call may answer for a batch of rows.
const MOST_BYTES: u128 = 32 << 20;
/// The same where the most that is thinkable is far from what is likely.
const MOST_THINKABLE: u128 = 512 << 20;
/// A character takes at most so many bytes.
const CHARACTER: u128 = 4;
/// A number takes at most so many bytes as a text.
const NUMBER: u128 = 48;
/// One letter of a format stands for at most so many.
const FORMATTED: u128 = 20;
/// Steps of a comparison that take as long as a byte of an answer may: 32 MiB of them are some seconds.
const STEPS: u128 = 128;

/// How large the answer is, from the arguments of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Growth {
    /// `repeat(text, times)`
    Repeat,
    /// `lpad(text, characters[, with])`, `rpad`
    Pad,
    /// `replace(text, what, with)`
    Replace,
    /// `regexp_replace(text, pattern, with[, flags])`
    ReplacePattern,
    /// `array_repeat(value, times)`
    RepeatValue,
    /// `array_resize(list, length[, value])`
    Resize,
    /// `range(from, to, step)`, `generate_series`
    Range,
    /// `array_to_string(list, between[, null])`
    Join,
    /// `array_replace(list, what, with)`, `array_replace_n`, `array_replace_all`
    ReplaceValue,
    /// `concat_ws(between, text, …)`
    JoinTexts,
    /// `to_char(time, format)`
    Format,
    /// `levenshtein(text, text)`: what grows is the time that it takes.
    Distance,
}

const FUNCTIONS: [(&str, Growth); 16] = [
    ("repeat", Growth::Repeat),
    ("lpad", Growth::Pad),
    ("rpad", Growth::Pad),
    ("replace", Growth::Replace),
    ("regexp_replace", Growth::ReplacePattern),
    ("array_repeat", Growth::RepeatValue),
    ("array_resize", Growth::Resize),
    ("range", Growth::Range),
    ("generate_series", Growth::Range),
    ("array_to_string", Growth::Join),
    ("array_replace", Growth::ReplaceValue),
    ("array_replace_n", Growth::ReplaceValue),
    ("array_replace_all", Growth::ReplaceValue),
    ("concat_ws", Growth::JoinTexts),
    ("to_char", Growth::Format),
    ("levenshtein", Growth::Distance),
];

/// The functions that are there, with a bound on what they answer.
pub fn bounded(find: impl Fn(&str) -> Option<Arc<ScalarUDF>>) -> Vec<Arc<ScalarUDF>> {
    let found = FUNCTIONS.iter().filter_map(|(name, growth)| Some((find(name)?, *growth)));
    found.map(|(function, growth)| Arc::new(ScalarUDF::from(Bounded { function, growth }))).collect()
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Bounded {
    function: Arc<ScalarUDF>,
    growth: Growth,
}

impl ScalarUDFImpl for Bounded {
    fn name(&self) -> &str {
        self.function.name()
    }

    fn aliases(&self) -> &[String] {
        self.function.aliases()
    }

    fn signature(&self) -> &Signature {
        self.function.signature()
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        self.function.return_type(arguments)
    }

    fn return_field_from_args(&self, arguments: ReturnFieldArgs) -> Result<FieldRef> {
        self.function.return_field_from_args(arguments)
    }

    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        self.function.coerce_types(arguments)
    }

    fn simplify(&self, arguments: Vec<Expr>, context: &SimplifyContext) -> Result<ExprSimplifyResult> {
        // What it is turned into would have no bound.
        match self.function.simplify(arguments.clone(), context)? {
            ExprSimplifyResult::Simplified(Expr::Literal(value, metadata)) => {
                Ok(ExprSimplifyResult::Simplified(Expr::Literal(value, metadata)))
            }
            _ => Ok(ExprSimplifyResult::Original(arguments)),
        }
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let all_constant = arguments.args.iter().all(|value| matches!(value, ColumnarValue::Scalar(_)));
        let rows = if all_constant { 1 } else { arguments.number_rows };
        let given = arguments.args.iter().map(Given::of).collect::<Result<Vec<_>>>()?;
        let mut bytes = 0u128;
        for row in 0..rows {
            bytes = bytes.saturating_add(self.growth.bytes(&given, row)?);
        }
        let most = match self.growth {
            Growth::Replace | Growth::ReplacePattern => MOST_THINKABLE,
            _ => MOST_BYTES,
        };
        if bytes > most && self.growth == Growth::Distance {
            return exec_err!("{}() would take too long for texts of this length", self.name());
        }
        if bytes > most {
            return exec_err!(
                "{}() would answer up to {} MiB for {rows} rows at once; at most {} MiB can be held",
                self.name(),
                bytes >> 20,
                most >> 20
            );
        }
        self.function.invoke_with_args(arguments)
    }
}

/// An argument: one for all rows, or one for each.
struct Given {
    values: ArrayRef,
    /// Whole numbers, and lengths in bytes or elements, where it has them.
    numbers: Option<ArrayRef>,
    lengths: Option<ArrayRef>,
}

impl Given {
    fn of(value: &ColumnarValue) -> Result<Self> {
        let values = match value {
            ColumnarValue::Array(array) => array.clone(),
            ColumnarValue::Scalar(scalar) => scalar.to_array()?,
        };
        let as_numbers = |array: &dyn Array| {
            cast_with_options(array, &DataType::Int64, &CastOptions { safe: true, ..CastOptions::default() })
                .ok()
        };
        let lengths = length(values.as_ref()).ok().and_then(|lengths| as_numbers(&lengths));
        let numbers = if lengths.is_some() { None } else { as_numbers(&values) };
        Ok(Self { values, numbers, lengths })
    }

    fn at(array: &Option<ArrayRef>, row: usize) -> Option<i64> {
        let array = array.as_ref()?.as_primitive::<Int64Type>();
        let row = if array.len() == 1 { 0 } else { row };
        array.is_valid(row).then(|| array.value(row))
    }

    fn number(&self, row: usize) -> u128 {
        Self::at(&self.numbers, row).map_or(0, |number| number.max(0) as u128)
    }

    fn length(&self, row: usize) -> u128 {
        Self::at(&self.lengths, row).map_or(0, |length| length.max(0) as u128)
    }

    /// About the bytes of one value.
    fn size(&self, row: usize) -> u128 {
        match self.values.data_type() {
            data_type if data_type.is_nested() => {
                let row = if self.values.len() == 1 { 0 } else { row };
                weight(self.values.slice(row, 1).as_ref()) as u128
            }
            data_type => data_type.primitive_width().map_or_else(|| self.length(row), |width| width as u128),
        }
    }

    /// A list of texts, which are counted with its size.
    fn holds_texts(&self) -> bool {
        let element = match self.values.data_type() {
            DataType::List(element) | DataType::LargeList(element) => element.data_type(),
            _ => return false,
        };
        matches!(element, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
    }

    /// Where a range stands or ends, in units of its own type.
    fn position(&self, row: usize) -> Option<i128> {
        Self::at(&self.numbers, row).map(i128::from)
    }
}

impl Growth {
    fn bytes(self, given: &[Given], row: usize) -> Result<u128> {
        let length = |at: usize| given.get(at).map_or(0, |given| given.length(row));
        let number = |at: usize| given.get(at).map_or(0, |given| given.number(row));
        let size = |at: usize| given.get(at).map_or(0, |given| given.size(row));
        Ok(match self {
            Self::Repeat => length(0) * number(1),
            Self::Pad => number(1) * CHARACTER,
            Self::Replace => length(0) + (length(0) / length(1).max(1) + 1) * length(2),
            Self::ReplacePattern => length(0) + (length(0) + 1) * length(2),
            Self::RepeatValue => number(1) * size(0).max(1),
            Self::Resize => number(1) * size(2).max(8),
            Self::Range => steps(given, row)? * 8,
            Self::Join => {
                let texts = given.first().is_some_and(|list| list.holds_texts());
                size(0) + length(0) * (length(1) + length(2).max(if texts { 0 } else { NUMBER }))
            }
            Self::ReplaceValue => size(0) + length(0) * size(2).max(1),
            Self::JoinTexts => {
                let texts = (1..given.len()).map(|at| length(at).max(NUMBER) + length(0));
                texts.sum()
            }
            Self::Format => length(1) * FORMATTED,
            Self::Distance => length(0) * length(1) / STEPS,
        })
    }
}

/// How many values a range has at most.
fn steps(given: &[Given], row: usize) -> Result<u128> {
    // With one argument it begins at nothing.
    let (from, to) = match given {
        [to] => (Some(0), to.position(row)),
        [from, to, ..] => (from.position(row), to.position(row)),
        [] => (None, None),
    };
    let (Some(from), Some(to)) = (from, to) else { return Ok(0) };
    let distance = (to - from).unsigned_abs();
    let step = match given.get(2) {
        None => 1,
        Some(step) => match step.values.data_type() {
            DataType::Interval(_) => interval(step, row, given[0].values.data_type())?,
            _ => step.position(row).unwrap_or(0).unsigned_abs(),
        },
    };
    Ok(distance / step.max(1) + 1)
}

/// The least that an interval is, in units of the type that it steps through.
fn interval(step: &Given, row: usize, of: &DataType) -> Result<u128> {
    let intervals = arrow::compute::cast(
        &step.values,
        &DataType::Interval(arrow::datatypes::IntervalUnit::MonthDayNano),
    )?;
    let intervals = intervals.as_primitive::<IntervalMonthDayNanoType>();
    let at = if intervals.len() == 1 { 0 } else { row };
    if intervals.is_null(at) {
        return Ok(u128::MAX);
    }
    let value = intervals.value(at);
    let parts = [i64::from(value.months), i64::from(value.days), value.nanoseconds];
    if parts.iter().any(|part| *part > 0) && parts.iter().any(|part| *part < 0) {
        return exec_err!("a step of a range must go one way: its months, days and time differ in sign");
    }
    let nanos = (i128::from(value.months) * 28 + i128::from(value.days)) * 86_400_000_000_000
        + i128::from(value.nanoseconds);
    let unit = match of {
        DataType::Date32 => 86_400_000_000_000,
        DataType::Timestamp(arrow::datatypes::TimeUnit::Second, _) => 1_000_000_000,
        DataType::Timestamp(arrow::datatypes::TimeUnit::Millisecond, _) | DataType::Date64 => 1_000_000,
        DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, _) => 1_000,
        _ => 1,
    };
    Ok(nanos.unsigned_abs() / unit)
}
