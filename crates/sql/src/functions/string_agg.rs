//! STRING_AGG that says when its text grows too long. DataFusion's is on the account of memory only after it has
//! grown, by doubling: what it takes on the way, and what its separator adds when it sorts, is in no account.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray};
use arrow::compute::cast;
use arrow::compute::kernels::length::length;
use arrow::datatypes::{DataType, FieldRef, Int64Type};
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, ReversedUDAF, Signature,
};
use datafusion::physical_expr::expressions::Literal;

use super::weight;

/// Bytes of texts and separators that may be put together at one time.
const MOST_BYTES: usize = 128 << 20;

/// DataFusion's STRING_AGG with a bound on what it gathers.
pub(super) fn bounded(string_agg: Arc<AggregateUDF>) -> AggregateUDF {
    AggregateUDF::from(StringAgg { string_agg })
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct StringAgg {
    string_agg: Arc<AggregateUDF>,
}

impl AggregateUDFImpl for StringAgg {
    fn name(&self) -> &str {
        self.string_agg.name()
    }

    fn signature(&self) -> &Signature {
        self.string_agg.signature()
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        self.string_agg.return_type(arguments)
    }

    fn state_fields(&self, arguments: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        self.string_agg.state_fields(arguments)
    }

    fn accumulator(&self, arguments: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let separator = separator(&arguments);
        let inner = self.string_agg.accumulator(arguments)?;
        Ok(Box::new(One { inner, separator, gathered: 0 }))
    }

    fn groups_accumulator_supported(&self, arguments: AccumulatorArgs) -> bool {
        self.string_agg.groups_accumulator_supported(arguments)
    }

    fn create_groups_accumulator(&self, arguments: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        let separator = separator(&arguments);
        let inner = self.string_agg.create_groups_accumulator(arguments)?;
        Ok(Box::new(Groups { inner, separator, gathered: Vec::new() }))
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        ReversedUDAF::Reversed(Arc::new(AggregateUDF::from(self.clone())))
    }
}

/// Bytes of what stands between two texts; it is a constant, or the function itself refuses it.
fn separator(arguments: &AccumulatorArgs) -> usize {
    let literal = arguments.exprs.get(1).and_then(|separator| separator.downcast_ref::<Literal>());
    literal.and_then(|literal| literal.value().try_as_str().flatten()).map_or(0, str::len)
}

/// Bytes that these texts, or lists of texts, make with a separator for each.
fn grown(texts: &ArrayRef, separator: usize) -> usize {
    let number = match texts.data_type() {
        DataType::List(_) => {
            let offsets = texts.as_list::<i32>().value_offsets();
            (offsets[texts.len()] - offsets[0]) as usize
        }
        _ => texts.len() - texts.null_count(),
    };
    weight(texts.as_ref()).saturating_add(number.saturating_mul(separator))
}

fn check(bytes: usize) -> Result<()> {
    if bytes > MOST_BYTES {
        return exec_err!(
            "string_agg() would put {} MiB together; {} MiB can be held",
            bytes >> 20,
            MOST_BYTES >> 20
        );
    }
    Ok(())
}

/// One text.
#[derive(Debug)]
struct One {
    inner: Box<dyn Accumulator>,
    separator: usize,
    gathered: usize,
}

impl One {
    fn gather(&mut self, texts: &ArrayRef) -> Result<()> {
        self.gathered = self.gathered.saturating_add(grown(texts, self.separator));
        check(self.gathered)
    }
}

impl Accumulator for One {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.gather(&values[0])?;
        self.inner.update_batch(values)
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.gather(&states[0])?;
        self.inner.merge_batch(states)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.inner.state()
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.inner.evaluate()
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.inner.size()
    }
}

/// A text for each group. All of them together are on the account of memory; one alone must not grow too long.
struct Groups {
    inner: Box<dyn GroupsAccumulator>,
    separator: usize,
    /// Bytes of each.
    gathered: Vec<usize>,
}

impl Groups {
    fn gather(
        &mut self,
        texts: &ArrayRef,
        groups: &[usize],
        filter: Option<&BooleanArray>,
        total: usize,
    ) -> Result<()> {
        self.gathered.resize(total, 0);
        let lengths = cast(&length(texts.as_ref())?, &DataType::Int64)?;
        for (row, (group, bytes)) in groups.iter().zip(lengths.as_primitive::<Int64Type>()).enumerate() {
            let Some(bytes) = bytes else { continue };
            if filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row)) {
                self.gathered[*group] += bytes as usize + self.separator;
                check(self.gathered[*group])?;
            }
        }
        Ok(())
    }
}

impl GroupsAccumulator for Groups {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        total: usize,
    ) -> Result<()> {
        self.gather(&values[0], groups, filter, total)?;
        self.inner.update_batch(values, groups, filter, total)
    }

    fn merge_batch(&mut self, states: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.gather(&states[0], groups, None, total)?;
        self.inner.merge_batch(states, groups, total)
    }

    fn evaluate(&mut self, emit: EmitTo) -> Result<ArrayRef> {
        emit.take_needed(&mut self.gathered);
        self.inner.evaluate(emit)
    }

    fn state(&mut self, emit: EmitTo) -> Result<Vec<ArrayRef>> {
        emit.take_needed(&mut self.gathered);
        self.inner.state(emit)
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        self.inner.convert_to_state(values, filter)
    }

    fn size(&self) -> usize {
        self.inner.size() + self.gathered.capacity() * size_of::<usize>()
    }
}
