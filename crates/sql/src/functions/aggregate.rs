//! The language's own aggregates as batch aggregates: the meaning that the incremental tables must
//! agree with. All of them skip nulls, but LATEST_BY_OFFSET(x, false), and take rows in the order in which they come. They are written
//! for plainness, not for speed: values are collected and looked at in the end.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type};
use datafusion::common::utils::SingleRowListArrayBuilder;
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::format_state_name;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Signature, TypeSignature, Volatility,
};

use crate::stream::aggregate::Column;
use crate::stream::sketch::Sketch;

/// The value of the newest row that has one; of the newest row, with `false` as a second argument.
pub const LATEST_BY_OFFSET: &str = "latest_by_offset";
/// The value of the oldest row that has one.
pub const EARLIEST_BY_OFFSET: &str = "earliest_by_offset";
/// All values, in order.
pub const COLLECT_LIST: &str = "collect_list";
/// Every value once, sorted.
pub const COLLECT_SET: &str = "collect_set";
/// The k largest values, largest first.
pub const TOPK: &str = "topk";
/// The k largest different values, largest first.
pub const TOPKDISTINCT: &str = "topkdistinct";
/// About how many different values there are.
pub const APPROX_COUNT_DISTINCT: &str = "approx_count_distinct";

pub(super) fn functions() -> Vec<Arc<AggregateUDF>> {
    let kinds = [
        (LATEST_BY_OFFSET, Kind::Latest),
        (EARLIEST_BY_OFFSET, Kind::Earliest),
        (COLLECT_LIST, Kind::List),
        (COLLECT_SET, Kind::Set),
        (TOPK, Kind::Top { distinct: false }),
        (TOPKDISTINCT, Kind::Top { distinct: true }),
        (APPROX_COUNT_DISTINCT, Kind::ApproxDistinct),
    ];
    kinds.into_iter().map(|(name, kind)| Arc::new(AggregateUDF::from(Collecting::new(name, kind)))).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Latest,
    Earliest,
    List,
    Set,
    Top { distinct: bool },
    ApproxDistinct,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Collecting {
    name: &'static str,
    kind: Kind,
    signature: Signature,
}

impl Collecting {
    fn new(name: &'static str, kind: Kind) -> Self {
        let arguments = match kind {
            Kind::Top { .. } => TypeSignature::Any(2),
            Kind::Latest => TypeSignature::OneOf(vec![TypeSignature::Any(1), TypeSignature::Any(2)]),
            _ => TypeSignature::Any(1),
        };
        Self { name, kind, signature: Signature::new(arguments, Volatility::Immutable) }
    }
}

fn list_of(element: &DataType) -> DataType {
    DataType::List(Arc::new(Field::new("element", element.clone(), true)))
}

impl AggregateUDFImpl for Collecting {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        Ok(match self.kind {
            Kind::Latest | Kind::Earliest => arguments[0].clone(),
            Kind::List | Kind::Set | Kind::Top { .. } => list_of(&arguments[0]),
            Kind::ApproxDistinct => DataType::Int64,
        })
    }

    fn state_fields(&self, arguments: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let name = |part| format_state_name(arguments.name, part);
        let values = list_of(arguments.input_fields[0].data_type());
        Ok(vec![
            Arc::new(Field::new(name("values"), values, true)),
            Arc::new(Field::new(name("k"), DataType::Int64, true)),
        ])
    }

    fn accumulator(&self, arguments: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let element = arguments.expr_fields[0].data_type().clone();
        Ok(Box::new(Collected { kind: self.kind, element, values: Vec::new(), k: 0 }))
    }
}

#[derive(Debug)]
struct Collected {
    kind: Kind,
    element: DataType,
    values: Vec<ScalarValue>,
    /// How many are kept, or [`NULLS`].
    k: i64,
}

/// In the place of a number of values: nulls are values, too.
const NULLS: i64 = -1;

impl Collected {
    fn take(&mut self, values: &ArrayRef) -> Result<()> {
        let nulls = self.k == NULLS;
        for row in (0..values.len()).filter(|row| nulls || values.is_valid(*row)) {
            match self.kind {
                Kind::Latest => self.values.clear(),
                Kind::Earliest if !self.values.is_empty() => return Ok(()),
                _ => {}
            }
            self.values.push(ScalarValue::try_from_array(values, row)?);
        }
        Ok(())
    }

    fn array(&self, values: Vec<ScalarValue>) -> Result<ArrayRef> {
        if values.is_empty() {
            return Ok(arrow::array::new_empty_array(&self.element));
        }
        ScalarValue::iter_to_array(values)
    }

    fn list(&self, values: Vec<ScalarValue>) -> Result<ScalarValue> {
        let field = Arc::new(Field::new("element", self.element.clone(), true));
        Ok(SingleRowListArrayBuilder::new(self.array(values)?).with_field(&field).build_list_scalar())
    }
}

fn ascending(a: &ScalarValue, b: &ScalarValue) -> Ordering {
    a.partial_cmp(b).unwrap_or(Ordering::Equal)
}

impl Accumulator for Collected {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        if let (Kind::Top { .. }, Some(k)) = (self.kind, values.get(1)) {
            let k = cast(k, &DataType::Int64)?;
            let k: &Int64Array = k.as_primitive::<Int64Type>();
            if let Some(k) = k.iter().flatten().next() {
                self.k = k;
            }
            if self.k < 1 {
                return exec_err!("TOPK takes a constant above 0 as its second argument");
            }
        }
        if let (Kind::Latest, Some(skips)) = (self.kind, values.get(1)) {
            match skips.as_boolean_opt().and_then(|skips| skips.iter().flatten().next()) {
                Some(true) => {}
                Some(false) => self.k = NULLS,
                None if skips.is_empty() => {}
                None => return exec_err!("LATEST_BY_OFFSET takes true or false as its second argument"),
            }
        }
        self.take(&values[0])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        for k in states[1].as_primitive::<Int64Type>().iter().flatten() {
            self.k = if k == NULLS { k } else { self.k.max(k) };
        }
        for list in states[0].as_list::<i32>().iter().flatten() {
            self.take(&list)?;
        }
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.list(self.values.clone())?, ScalarValue::Int64(Some(self.k))])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let mut values = self.values.clone();
        match self.kind {
            Kind::Latest | Kind::Earliest => match values.pop() {
                Some(value) => Ok(value),
                None => ScalarValue::try_from(&self.element),
            },
            Kind::List => self.list(values),
            Kind::Set => {
                values.sort_by(ascending);
                values.dedup();
                self.list(values)
            }
            Kind::Top { distinct } => {
                values.sort_by(|a, b| ascending(b, a));
                if distinct {
                    values.dedup();
                }
                values.truncate(self.k.max(0) as usize);
                self.list(values)
            }
            Kind::ApproxDistinct => {
                let column = Column::read(&self.array(values)?)?;
                let mut sketch = Sketch::default();
                (0..self.values.len()).for_each(|row| sketch.insert(&column.value(row)));
                Ok(ScalarValue::Int64(Some(sketch.count())))
            }
        }
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.values.iter().map(ScalarValue::size).sum::<usize>()
    }
}
