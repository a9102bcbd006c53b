//! LATEST_BY_OFFSET and COLLECT_LIST as batch aggregates: the meaning that the incremental tables must
//! agree with. Both skip nulls and take rows in the order in which they come.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::utils::SingleRowListArrayBuilder;
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::format_state_name;
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, Signature, Volatility};

/// The value of the newest row that has one.
pub const LATEST_BY_OFFSET: &str = "latest_by_offset";
/// All values, in order.
pub const COLLECT_LIST: &str = "collect_list";

pub(super) fn functions() -> Vec<Arc<AggregateUDF>> {
    vec![Arc::new(AggregateUDF::from(Latest::default())), Arc::new(AggregateUDF::from(Collect::default()))]
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Latest {
    signature: Signature,
}

impl Default for Latest {
    fn default() -> Self {
        Self { signature: Signature::any(1, Volatility::Immutable) }
    }
}

impl AggregateUDFImpl for Latest {
    fn name(&self) -> &str {
        LATEST_BY_OFFSET
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        Ok(arguments[0].clone())
    }

    fn accumulator(&self, arguments: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(LatestState { value: ScalarValue::try_from(arguments.return_field.data_type())? }))
    }
}

#[derive(Debug)]
struct LatestState {
    value: ScalarValue,
}

impl Accumulator for LatestState {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let values = &values[0];
        if let Some(row) = (0..values.len()).rev().find(|row| values.is_valid(*row)) {
            self.value = ScalarValue::try_from_array(values, row)?;
        }
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.update_batch(states)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.value.clone()])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(self.value.clone())
    }

    fn size(&self) -> usize {
        self.value.size()
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Collect {
    signature: Signature,
}

impl Default for Collect {
    fn default() -> Self {
        Self { signature: Signature::any(1, Volatility::Immutable) }
    }
}

fn list_of(element: &DataType) -> DataType {
    DataType::List(Arc::new(Field::new("element", element.clone(), true)))
}

impl AggregateUDFImpl for Collect {
    fn name(&self) -> &str {
        COLLECT_LIST
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        Ok(list_of(&arguments[0]))
    }

    fn state_fields(&self, arguments: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let name = format_state_name(arguments.name, "values");
        Ok(vec![Arc::new(Field::new(name, arguments.return_field.data_type().clone(), true))])
    }

    fn accumulator(&self, arguments: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let element = arguments.expr_fields[0].data_type().clone();
        Ok(Box::new(CollectState { element, values: Vec::new() }))
    }
}

#[derive(Debug)]
struct CollectState {
    element: DataType,
    values: Vec<ScalarValue>,
}

impl Accumulator for CollectState {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let values = &values[0];
        for row in (0..values.len()).filter(|row| values.is_valid(*row)) {
            self.values.push(ScalarValue::try_from_array(values, row)?);
        }
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        use arrow::array::AsArray;
        let lists = states[0].as_list::<i32>();
        for list in lists.iter().flatten() {
            self.update_batch(&[list])?;
        }
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.evaluate()?])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let values = if self.values.is_empty() {
            arrow::array::new_empty_array(&self.element)
        } else {
            ScalarValue::iter_to_array(self.values.iter().cloned())?
        };
        let field = Arc::new(Field::new("element", self.element.clone(), true));
        Ok(SingleRowListArrayBuilder::new(values).with_field(&field).build_list_scalar())
    }

    fn size(&self) -> usize {
        self.values.iter().map(ScalarValue::size).sum()
    }
}
