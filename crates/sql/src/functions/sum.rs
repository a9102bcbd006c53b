//! SUM of whole numbers that says when it does not fit. DataFusion's wraps around: the sum of two large
//! numbers could be a small one.
//!
//! Sums are kept with 128 bits, so what does not fit on the way may fit in the end, and only the end counts:
//! in whatever order rows come, the answer or the error is the same.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Decimal128Array, Int64Array};
use arrow::datatypes::{DataType, Decimal128Type, Field, FieldRef, Int64Type};
use datafusion::common::{Result, ScalarValue, exec_datafusion_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::{AggregateOrderSensitivity, format_state_name};
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, ReversedUDAF, Signature,
};

/// The type of sums on their way.
const STATE: DataType = DataType::Decimal128(38, 0);

/// DataFusion's SUM, but for whole numbers.
pub(super) fn checked(sum: Arc<AggregateUDF>) -> AggregateUDF {
    AggregateUDF::from(Sum { sum })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Sum {
    sum: Arc<AggregateUDF>,
}

fn fits(sum: i128) -> Result<i64> {
    i64::try_from(sum).map_err(|_| {
        exec_datafusion_err!("the sum {sum} does not fit BIGINT; write sum(CAST(… AS DECIMAL(38,0)))")
    })
}

impl AggregateUDFImpl for Sum {
    fn name(&self) -> &str {
        self.sum.name()
    }

    fn signature(&self) -> &Signature {
        self.sum.signature()
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        self.sum.return_type(arguments)
    }

    fn state_fields(&self, arguments: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        if *arguments.return_type() == DataType::Int64 && !arguments.is_distinct {
            return Ok(vec![Arc::new(Field::new(format_state_name(arguments.name, "sum"), STATE, true))]);
        }
        self.sum.state_fields(arguments)
    }

    fn accumulator(&self, arguments: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        match (arguments.return_field.data_type(), arguments.is_distinct) {
            (DataType::Int64, false) => Ok(Box::new(Total::default())),
            (DataType::Int64, true) => Ok(Box::new(Different::default())),
            _ => self.sum.accumulator(arguments),
        }
    }

    fn create_sliding_accumulator(&self, arguments: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        match (arguments.return_field.data_type(), arguments.is_distinct) {
            (DataType::Int64, false) => Ok(Box::new(Total::default())),
            (DataType::Int64, true) => Ok(Box::new(Different::default())),
            _ => self.sum.inner().create_sliding_accumulator(arguments),
        }
    }

    fn groups_accumulator_supported(&self, arguments: AccumulatorArgs) -> bool {
        !arguments.is_distinct
    }

    fn create_groups_accumulator(&self, arguments: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        if *arguments.return_field.data_type() == DataType::Int64 {
            return Ok(Box::new(Totals::default()));
        }
        self.sum.create_groups_accumulator(arguments)
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::Identical
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }
}

/// One sum.
#[derive(Debug, Default)]
struct Total {
    sum: i128,
    /// Values that are in it; without any it is null.
    values: u64,
}

impl Total {
    fn add(&mut self, values: &ArrayRef, sign: i128) -> u64 {
        let numbers = values.as_primitive::<Int64Type>();
        self.sum += sign * numbers.iter().flatten().map(i128::from).sum::<i128>();
        (numbers.len() - numbers.null_count()) as u64
    }
}

impl Accumulator for Total {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.values += self.add(&values[0], 1);
        Ok(())
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.values -= self.add(&values[0], -1);
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let sums = states[0].as_primitive::<Decimal128Type>();
        self.sum += sums.iter().flatten().sum::<i128>();
        self.values += (sums.len() - sums.null_count()) as u64;
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![ScalarValue::Decimal128((self.values > 0).then_some(self.sum), 38, 0)])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let sum = if self.values > 0 { Some(fits(self.sum)?) } else { None };
        Ok(ScalarValue::Int64(sum))
    }

    fn size(&self) -> usize {
        size_of_val(self)
    }
}

/// SUM(DISTINCT …): how often each value is there, which a frame that moves on has to know.
#[derive(Debug, Default)]
struct Different {
    values: HashMap<i64, u64>,
}

impl Different {
    fn add(&mut self, values: &dyn Array) {
        for value in values.as_primitive::<Int64Type>().iter().flatten() {
            *self.values.entry(value).or_default() += 1;
        }
    }
}

impl Accumulator for Different {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.add(values[0].as_ref());
        Ok(())
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        for value in values[0].as_primitive::<Int64Type>().iter().flatten() {
            if let Entry::Occupied(mut entry) = self.values.entry(value) {
                *entry.get_mut() -= 1;
                if *entry.get() == 0 {
                    entry.remove();
                }
            }
        }
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        states[0].as_list::<i32>().iter().flatten().for_each(|values| self.add(values.as_ref()));
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let values: Vec<ScalarValue> =
            self.values.keys().map(|value| ScalarValue::Int64(Some(*value))).collect();
        Ok(vec![ScalarValue::List(ScalarValue::new_list_nullable(&values, &DataType::Int64))])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let sum: i128 = self.values.keys().copied().map(i128::from).sum();
        let sum = if self.values.is_empty() { None } else { Some(fits(sum)?) };
        Ok(ScalarValue::Int64(sum))
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.values.capacity() * 24
    }
}

/// A sum for each group.
#[derive(Debug, Default)]
struct Totals {
    sums: Vec<i128>,
    /// Groups that have a value.
    seen: Vec<bool>,
}

impl Totals {
    fn add<T>(
        &mut self,
        values: impl Iterator<Item = Option<T>>,
        groups: &[usize],
        filter: Option<&BooleanArray>,
        total: usize,
    ) where
        i128: From<T>,
    {
        self.sums.resize(total, 0);
        self.seen.resize(total, false);
        for (row, (group, value)) in groups.iter().zip(values).enumerate() {
            let Some(value) = value else { continue };
            if filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row)) {
                self.sums[*group] += i128::from(value);
                self.seen[*group] = true;
            }
        }
    }

    fn take(&mut self, emit: EmitTo) -> impl Iterator<Item = Option<i128>> {
        let (sums, seen) = (emit.take_needed(&mut self.sums), emit.take_needed(&mut self.seen));
        sums.into_iter().zip(seen).map(|(sum, seen)| seen.then_some(sum))
    }
}

impl GroupsAccumulator for Totals {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        total: usize,
    ) -> Result<()> {
        self.add(values[0].as_primitive::<Int64Type>().iter(), groups, filter, total);
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.add(states[0].as_primitive::<Decimal128Type>().iter(), groups, None, total);
        Ok(())
    }

    fn evaluate(&mut self, emit: EmitTo) -> Result<ArrayRef> {
        let sums = self.take(emit).map(|sum| sum.map(fits).transpose());
        Ok(Arc::new(sums.collect::<Result<Int64Array>>()?))
    }

    fn state(&mut self, emit: EmitTo) -> Result<Vec<ArrayRef>> {
        let sums: Decimal128Array = self.take(emit).collect();
        Ok(vec![Arc::new(sums.with_data_type(STATE))])
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let values = values[0].as_primitive::<Int64Type>().iter().enumerate();
        let sums: Decimal128Array = values
            .map(|(row, value)| {
                let kept = filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row));
                value.filter(|_| kept).map(i128::from)
            })
            .collect();
        Ok(vec![Arc::new(sums.with_data_type(STATE))])
    }

    fn size(&self) -> usize {
        self.sums.capacity() * size_of::<i128>() + self.seen.capacity()
    }
}
