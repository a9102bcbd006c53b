//! Aggregates that are kept up row by row.
//!
//! Rows are folded one at a time, in the order of the log. So a result never depends on how the rows
//! were cut into batches, not even for floating-point sums, and it equals what DataFusion's batch
//! aggregate answers over the same rows in the same order.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Decimal128Array, Float64Array, Int64Array, ListArray, StringArray,
};
use arrow::buffer::OffsetBuffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Decimal128Type, Field, Float64Type, Int64Type, i256};
use arrow::error::ArrowError;

use super::sketch::Sketch;
use super::state::{Partial, Value};

/// What is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// COUNT(*) and COUNT(x).
    Count,
    /// SUM(x).
    Sum,
    /// MIN(x).
    Min,
    /// MAX(x).
    Max,
    /// AVG(x).
    Average,
    /// LATEST_BY_OFFSET(x).
    Latest,
    /// LATEST_BY_OFFSET(x, false): of the newest row, also when it has none.
    LatestRow,
    /// COLLECT_LIST(x).
    List,
    /// EARLIEST_BY_OFFSET(x).
    Earliest,
    /// VAR(x), VAR_POP(x), STDDEV(x), STDDEV_POP(x).
    Spread {
        /// Over a sample: divided by one less than the count.
        sample: bool,
        /// The root of it.
        root: bool,
    },
    /// COUNT(DISTINCT x), exactly.
    CountDistinct,
    /// COLLECT_SET(x).
    Set,
    /// APPROX_COUNT_DISTINCT(x).
    ApproxDistinct,
    /// TOPK(x, k) and TOPKDISTINCT(x, k).
    Top {
        /// How many values.
        k: usize,
        /// Each value once.
        distinct: bool,
    },
}

/// Values that one state may collect; a row beyond is set apart.
const MAX_COLLECTED: usize = 1_000_000;
/// A sum of decimals below this has an average that fits: AVG adds four digits to at most 38, and where the values have 34 or fewer it always fits.
const SMALL_SUM: u128 = 10u128.pow(34);

/// An aggregate of a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aggregate {
    /// What is computed.
    pub function: Function,
    /// Column of the prepared rows that it takes; `None` counts rows.
    pub argument: Option<usize>,
    /// Column of the prepared rows that says which rows count; `None` for all.
    pub condition: Option<usize>,
    /// The argument's type.
    pub input: DataType,
    /// The result's type.
    pub output: DataType,
}

/// A column of prepared rows, ready to be read row by row.
pub enum Column {
    /// BOOLEAN.
    Bool(BooleanArray),
    /// Integers, times and dates.
    Int(Int64Array),
    /// DOUBLE.
    Float(Float64Array),
    /// DECIMAL.
    Decimal(Decimal128Array),
    /// TEXT.
    Text(StringArray),
}

/// True when values of the type can be kept in a state.
pub fn is_keepable(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Boolean
            | DataType::Utf8
            | DataType::Utf8View
            | DataType::LargeUtf8
            | DataType::Decimal128(..)
            | DataType::Timestamp(..)
            | DataType::Date32
            | DataType::Float16
            | DataType::Float32
            | DataType::Float64
    ) || data_type.is_integer()
}

impl Column {
    /// Reads an array of a [keepable](is_keepable) type.
    pub fn read(array: &ArrayRef) -> Result<Self, ArrowError> {
        Ok(match array.data_type() {
            DataType::Boolean => Self::Bool(array.as_boolean().clone()),
            DataType::Float16 | DataType::Float32 | DataType::Float64 => {
                Self::Float(cast(array, &DataType::Float64)?.as_primitive::<Float64Type>().clone())
            }
            DataType::Decimal128(..) => Self::Decimal(array.as_primitive::<Decimal128Type>().clone()),
            DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 => {
                Self::Text(cast(array, &DataType::Utf8)?.as_string::<i32>().clone())
            }
            DataType::Date32 => Self::Int(
                cast(&cast(array, &DataType::Int32)?, &DataType::Int64)?.as_primitive::<Int64Type>().clone(),
            ),
            DataType::Timestamp(..) => {
                let micros = cast(array, &highwater_event::columns::timestamp_type())?;
                Self::Int(cast(&micros, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
            }
            _ => Self::Int(cast(array, &DataType::Int64)?.as_primitive::<Int64Type>().clone()),
        })
    }

    /// The value of a row.
    pub fn value(&self, row: usize) -> Value {
        match self {
            Self::Bool(array) if array.is_valid(row) => Value::Bool(array.value(row)),
            Self::Int(array) if array.is_valid(row) => Value::Int(array.value(row)),
            Self::Float(array) if array.is_valid(row) => Value::Float(array.value(row)),
            Self::Decimal(array) if array.is_valid(row) => Value::Decimal(array.value(row)),
            Self::Text(array) if array.is_valid(row) => Value::Text(array.value(row).into()),
            _ => Value::Null,
        }
    }
}

/// Where a row stands, for LATEST_BY_OFFSET.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowPlace {
    /// When the log took it.
    pub recorded_at: i64,
    /// Its offset.
    pub offset: u64,
}

impl Aggregate {
    /// The state of a group that has no rows.
    pub fn empty(&self) -> Partial {
        match self.function {
            Function::Count => Partial::Count(0),
            Function::Sum => Partial::Sum(Value::Null),
            Function::Min | Function::Max => Partial::Extreme(Value::Null),
            Function::Average => Partial::Average(Value::Null, 0),
            Function::Latest | Function::LatestRow => Partial::Latest(i64::MIN, 0, Value::Null),
            Function::Earliest => Partial::Latest(i64::MAX, u64::MAX, Value::Null),
            Function::List => Partial::List(Vec::new()),
            Function::Spread { .. } => Partial::Moments(0, 0.0, 0.0),
            Function::CountDistinct | Function::Set => Partial::Set(BTreeSet::new()),
            Function::ApproxDistinct => Partial::Sketch(Sketch::default()),
            Function::Top { .. } => Partial::Top(Vec::new()),
        }
    }

    /// True when the row can be folded: an exact sum that would not fit any more, or a collection that
    /// would grow beyond its limit, is an error of the row.
    pub fn fits(&self, partial: &Partial, columns: &[Column], row: usize) -> bool {
        match partial {
            Partial::Sum(sum @ (Value::Int(_) | Value::Decimal(_))) if self.counts(columns, row) => {
                sum.plus(&self.argument(columns, row)).is_some()
            }
            Partial::Average(sum, count) if self.counts(columns, row) => {
                let value = self.argument(columns, row);
                match sum.plus(&value) {
                    _ if value == Value::Null => true,
                    Some(Value::Decimal(sum)) => {
                        // Nearly every sum fits by itself, and a division of 256 bits is not for every row.
                        sum.unsigned_abs() < SMALL_SUM || self.average(sum, count + 1).is_some()
                    }
                    sum => sum.is_some(),
                }
            }
            Partial::List(values) => values.len() < MAX_COLLECTED,
            Partial::Set(values) => values.len() < MAX_COLLECTED,
            _ => true,
        }
    }

    fn counts(&self, columns: &[Column], row: usize) -> bool {
        self.condition.is_none_or(|at| columns[at].value(row) == Value::Bool(true))
    }

    fn argument(&self, columns: &[Column], row: usize) -> Value {
        self.argument.map_or(Value::Int(1), |at| columns[at].value(row))
    }

    /// Takes a row in.
    pub fn fold(&self, partial: &mut Partial, columns: &[Column], row: usize, place: RowPlace) {
        if !self.counts(columns, row) {
            return;
        }
        let value = self.argument(columns, row);
        if value == Value::Null && self.function != Function::LatestRow {
            return;
        }
        match partial {
            Partial::Count(count) => *count += 1,
            Partial::Sum(sum) => {
                if let Some(next) = sum.plus(&value) {
                    *sum = next;
                }
            }
            Partial::Extreme(best) => {
                if *best == Value::Null || value.cmp(best) == self.wanted() {
                    *best = value;
                }
            }
            Partial::Average(sum, count) => {
                if let Some(next) = sum.plus(&value) {
                    *sum = next;
                    *count += 1;
                }
            }
            Partial::Latest(recorded_at, offset, kept) => {
                if self.is_wanted((place.recorded_at, place.offset), (*recorded_at, *offset)) {
                    (*recorded_at, *offset, *kept) = (place.recorded_at, place.offset, value);
                }
            }
            Partial::List(values) => values.push((place.recorded_at, place.offset, value)),
            Partial::Moments(count, mean, squares) => {
                if let Value::Float(value) = value {
                    *count += 1;
                    let before = value - *mean;
                    *mean += before / *count as f64;
                    *squares += before * (value - *mean);
                }
            }
            Partial::Set(values) => {
                values.insert(value);
            }
            Partial::Sketch(sketch) => sketch.insert(&value),
            Partial::Top(values) => self.keep_top(values, value),
            Partial::Sessions(_) | Partial::Rows(_) => {}
        }
    }

    /// True when the row at `place` says more to LATEST or EARLIEST than the one at `kept`.
    fn is_wanted(&self, place: (i64, u64), kept: (i64, u64)) -> bool {
        if self.function == Function::Earliest { place < kept } else { place >= kept }
    }

    fn keep_top(&self, values: &mut Vec<Value>, value: Value) {
        let Function::Top { k, distinct } = self.function else { return };
        let at = values.partition_point(|kept| *kept >= value);
        if at >= k || (distinct && at > 0 && values[at - 1] == value) {
            return;
        }
        values.insert(at, value);
        values.truncate(k);
    }

    fn wanted(&self) -> Ordering {
        if self.function == Function::Min { Ordering::Less } else { Ordering::Greater }
    }

    /// Joins the states of two panes of one window, the earlier first. `None` when a sum does not fit.
    pub fn combine(&self, earlier: &mut Partial, later: &Partial) -> Option<()> {
        match (earlier, later) {
            (Partial::Count(a), Partial::Count(b)) => *a = a.checked_add(*b)?,
            (Partial::Sum(a), Partial::Sum(b)) => *a = a.plus(b)?,
            (Partial::Extreme(a), Partial::Extreme(b)) => {
                if *b != Value::Null && (*a == Value::Null || b.cmp(a) == self.wanted()) {
                    *a = b.clone();
                }
            }
            (Partial::Average(a, count), Partial::Average(b, more)) => {
                *a = a.plus(b)?;
                *count = count.checked_add(*more)?;
            }
            (Partial::Latest(at, offset, value), Partial::Latest(other_at, other_offset, other)) => {
                let counts = *other != Value::Null || self.function == Function::LatestRow;
                if counts && self.is_wanted((*other_at, *other_offset), (*at, *offset)) {
                    (*at, *offset, *value) = (*other_at, *other_offset, other.clone());
                }
            }
            (Partial::List(a), Partial::List(b)) => {
                a.extend_from_slice(b);
                a.sort_by_key(|(recorded_at, offset, _)| (*recorded_at, *offset));
            }
            // Chan et al. 1979.
            (Partial::Moments(count, mean, squares), Partial::Moments(more, other, other_squares)) => {
                let total = *count + *more;
                if *more > 0 {
                    let distance = other - *mean;
                    *squares +=
                        other_squares + distance * distance * (*count as f64) * (*more as f64) / total as f64;
                    *mean += distance * (*more as f64) / total as f64;
                    *count = total;
                }
            }
            (Partial::Set(a), Partial::Set(b)) => a.extend(b.iter().cloned()),
            (Partial::Sketch(a), Partial::Sketch(b)) => a.merge(b),
            (Partial::Top(a), Partial::Top(b)) => b.iter().for_each(|value| self.keep_top(a, value.clone())),
            _ => return None,
        }
        Some(())
    }

    /// The results of many groups as a column.
    pub fn finish<'a>(&self, partials: impl Iterator<Item = &'a Partial>) -> Result<ArrayRef, ArrowError> {
        if let DataType::List(element) = &self.output {
            let mut lengths = Vec::new();
            let mut values = Vec::new();
            for partial in partials {
                let before = values.len();
                match partial {
                    Partial::List(list) => values.extend(list.iter().map(|(_, _, value)| value.clone())),
                    Partial::Set(set) => values.extend(set.iter().cloned()),
                    Partial::Top(top) => values.extend(top.iter().cloned()),
                    _ => {}
                }
                lengths.push(values.len() - before);
            }
            let values = column(values.into_iter(), element.data_type())?;
            let field = Arc::new(Field::new("element", element.data_type().clone(), true));
            return Ok(Arc::new(ListArray::try_new(
                field,
                OffsetBuffer::from_lengths(lengths),
                values,
                None,
            )?));
        }
        let values = partials.map(|partial| self.result(partial)).collect::<Result<Vec<_>, _>>()?;
        column(values.into_iter(), &self.output)
    }

    /// The average of decimals, at the scale of the result; `None` when it does not fit.
    fn average(&self, sum: i128, count: i64) -> Option<i128> {
        let (DataType::Decimal128(_, from), DataType::Decimal128(precision, to)) =
            (&self.input, &self.output)
        else {
            return None;
        };
        // The sum fits, but not always at the scale of the result: the wider type does the division.
        let factor = i256::from_i128(10).checked_pow(u32::from((to - from).unsigned_abs()))?;
        let scaled = i256::from_i128(sum).checked_mul(factor)?;
        let average = scaled.checked_div(i256::from_i128(i128::from(count)))?.to_i128()?;
        (average.unsigned_abs() < 10u128.checked_pow(u32::from(*precision))?).then_some(average)
    }

    fn result(&self, partial: &Partial) -> Result<Value, ArrowError> {
        Ok(match partial {
            Partial::Count(count) => Value::Int(*count),
            Partial::Sum(value) | Partial::Extreme(value) | Partial::Latest(_, _, value) => value.clone(),
            Partial::Average(_, 0) => Value::Null,
            Partial::Average(Value::Float(sum), count) => Value::Float(*sum / *count as f64),
            Partial::Average(Value::Decimal(sum), count) => {
                // It fits: a row with which it would not was refused.
                self.average(*sum, *count).map_or(Value::Null, Value::Decimal)
            }
            Partial::Moments(count, _, squares) => {
                let Function::Spread { sample, root } = self.function else { return Ok(Value::Null) };
                match count.checked_sub(u64::from(sample)) {
                    None | Some(0) => Value::Null,
                    Some(divisor) => {
                        let variance = squares / divisor as f64;
                        Value::Float(if root { variance.sqrt() } else { variance })
                    }
                }
            }
            Partial::Set(values) => Value::Int(values.len() as i64),
            Partial::Sketch(sketch) => Value::Int(sketch.count()),
            Partial::Average(..)
            | Partial::List(_)
            | Partial::Top(_)
            | Partial::Sessions(_)
            | Partial::Rows(_) => Value::Null,
        })
    }
}

/// Values as a column of a [keepable](is_keepable) type.
pub fn column(values: impl Iterator<Item = Value>, data_type: &DataType) -> Result<ArrayRef, ArrowError> {
    let int = |value: Value| if let Value::Int(value) = value { Some(value) } else { None };
    Ok(match data_type {
        DataType::Boolean => Arc::new(
            values
                .map(|value| if let Value::Bool(value) = value { Some(value) } else { None })
                .collect::<BooleanArray>(),
        ),
        DataType::Float16 | DataType::Float32 | DataType::Float64 => {
            let floats: Float64Array = values
                .map(|value| if let Value::Float(value) = value { Some(value) } else { None })
                .collect();
            cast(&floats, data_type)?
        }
        DataType::Decimal128(..) => {
            let decimals: Decimal128Array = values
                .map(|value| if let Value::Decimal(value) = value { Some(value) } else { None })
                .collect();
            Arc::new(decimals.with_data_type(data_type.clone()))
        }
        DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 => {
            let texts: StringArray =
                values.map(|value| if let Value::Text(value) = value { Some(value) } else { None }).collect();
            cast(&texts, data_type)?
        }
        DataType::Date32 => {
            let days: Int64Array = values.map(int).collect();
            cast(&cast(&days, &DataType::Int32)?, data_type)?
        }
        DataType::Timestamp(..) => {
            let micros: Int64Array = values.map(int).collect();
            cast(&cast(&micros, &highwater_event::columns::timestamp_type())?, data_type)?
        }
        _ => {
            let ints: Int64Array = values.map(int).collect();
            cast(&ints, data_type)?
        }
    })
}
