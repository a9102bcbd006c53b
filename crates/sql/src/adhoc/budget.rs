//! What a question may hold in values that its functions make. DataFusion's account of memory knows what
//! operators keep (sorts, groups, joins), not what expressions make of a batch of rows on the way.
//!
//! After a question is planned, each of its functions is put behind a meter. Before a call the meter weighs what
//! the function is given, constants as often as there are rows, because functions make arrays of them. After it
//! the answer is on the account for as long as anyone holds it. Constants that a projection would repeat
//! for every row, and texts that are put together with `||`, become such functions.

use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arrow::array::{Array, ArrayRef};
use arrow::compute::kernels::concat_elements::concat_elements_dyn;
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::interval_arithmetic::Interval;
use datafusion::logical_expr::sort_properties::{ExprProperties, SortProperties};
use datafusion::logical_expr::type_coercion::binary::BinaryTypeCoercer;
use datafusion::logical_expr::{
    BinaryExpr, ColumnarValue, Expr, LogicalPlan, Operator, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF,
    ScalarUDFImpl, Signature, Volatility, WindowFunctionDefinition,
};

use super::window;
use crate::functions::weight;

/// Bytes that one call may be given. No function answers many times as much; those that do are bounded
/// by themselves.
pub(super) const MOST_GIVEN: usize = 128 << 20;
/// Bytes of answers that a question may hold at one time.
pub(super) const MOST_HELD: usize = 512 << 20;
/// Answers below are not worth an entry.
const WORTH: usize = 64 << 10;
/// Longer constants are not repeated for every row without being weighed.
const LONG: usize = 256;
/// The longest constant that may say how to aggregate: an array is made of it for every batch of rows.
const LONGEST_SETTING: usize = 4096;

/// The account of one question.
#[derive(Debug, Default)]
pub struct Budget {
    held: Mutex<Vec<(Weak<dyn Array>, usize)>>,
}

impl Budget {
    /// Puts a value on the account for as long as anyone holds it.
    fn take(&self, function: &str, value: &ArrayRef) -> Result<()> {
        let bytes = weight(value.as_ref());
        if bytes < WORTH {
            return Ok(());
        }
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.push((Arc::downgrade(value), bytes));
        let sum = |held: &[(Weak<dyn Array>, usize)]| held.iter().map(|(_, bytes)| bytes).sum::<usize>();
        if sum(&held) > MOST_HELD {
            held.retain(|(value, _)| value.strong_count() > 0);
            let bytes = sum(&held);
            if bytes > MOST_HELD {
                return Err(too_much(format!(
                    "values that functions have made take {} MiB at one time, the last of them {function}(); {} MiB can be held",
                    bytes >> 20,
                    MOST_HELD >> 20
                )));
            }
        }
        Ok(())
    }
}

pub(super) fn too_much(message: String) -> DataFusionError {
    // Not as exhausted resources: the same question would be refused at any time.
    DataFusionError::Execution(message)
}

/// Puts the functions of an optimized plan on an account. What comes out is not to be optimized again.
pub fn metered(plan: LogicalPlan, budget: &Arc<Budget>) -> Result<LogicalPlan> {
    let meter =
        |function: Arc<ScalarUDF>| Arc::new(ScalarUDF::from(Metered { function, budget: budget.clone() }));
    let concat =
        meter(Arc::new(ScalarUDF::from(Concat { signature: Signature::any(2, Volatility::Immutable) })));
    let metered = plan.transform_up_with_subqueries(|node| {
        let windowed = match &node {
            LogicalPlan::Window(window) => Some(window.input.schema().clone()),
            _ => None,
        };
        // Elsewhere a constant is compared with, not repeated.
        let repeats = matches!(
            node,
            LogicalPlan::Projection(_)
                | LogicalPlan::Aggregate(_)
                | LogicalPlan::Window(_)
                | LogicalPlan::Sort(_)
        );
        let names = NamePreserver::new(&node);
        node.map_expressions(|expression| {
            let name = names.save(&expression);
            let held = hold_constants(expression, repeats, &meter)?;
            let metered = held.transform_data(|expression| {
                expression.transform_up(|expression| {
                    Ok(match expression {
                        Expr::ScalarFunction(call) if !is_plain(&call) => {
                            Transformed::yes(Expr::ScalarFunction(ScalarFunction {
                                func: meter(call.func),
                                args: call.args,
                            }))
                        }
                        Expr::BinaryExpr(BinaryExpr { left, op: Operator::StringConcat, right }) => {
                            let args = vec![*left, *right];
                            Transformed::yes(Expr::ScalarFunction(ScalarFunction {
                                func: concat.clone(),
                                args,
                            }))
                        }
                        other => Transformed::no(other),
                    })
                })
            })?;
            let bounded = match &windowed {
                Some(input) => metered.transform_data(|expression| window::bounded(expression, input))?,
                None => metered,
            };
            Ok(bounded.update_data(|expression| name.restore(expression)))
        })
    })?;
    Ok(metered.data)
}

/// Functions that only hand on what they are given, and are known by their type to rules of the physical plan;
/// and those that are metered already.
fn is_plain(call: &ScalarFunction) -> bool {
    call.func.name() == "get_field" || call.func.inner().is::<Metered>()
}

/// Long constants of which an array would be made. `repeated`: this is a value for every row, not something
/// that is compared with, or that a function weighs by itself.
fn hold_constants(
    expression: Expr,
    repeated: bool,
    meter: &dyn Fn(Arc<ScalarUDF>) -> Arc<ScalarUDF>,
) -> Result<Transformed<Expr>> {
    match expression {
        Expr::Literal(ref value, _) if repeated && size(value) > LONG => {
            Ok(repeated_value(expression, meter))
        }
        Expr::ScalarSubquery(_) if repeated => Ok(repeated_value(expression, meter)),
        // What comes after the first argument says how to aggregate, or how far to look.
        Expr::WindowFunction(mut call) => {
            if let WindowFunctionDefinition::AggregateUDF(function) = &call.fun {
                check_settings(function.name(), &call.params.args)?;
            }
            let changed = hold_first(&mut call.params.args, meter)?;
            Ok(Transformed::new(Expr::WindowFunction(call), changed, TreeNodeRecursion::Continue))
        }
        Expr::AggregateFunction(mut call) => {
            check_settings(call.func.name(), &call.params.args)?;
            let changed = hold_first(&mut call.params.args, meter)?;
            Ok(Transformed::new(Expr::AggregateFunction(call), changed, TreeNodeRecursion::Continue))
        }
        Expr::Alias(_) | Expr::Cast(_) | Expr::TryCast(_) => {
            expression.map_children(|child| hold_constants(child, repeated, meter))
        }
        Expr::Case(_) | Expr::Unnest(_) => {
            expression.map_children(|child| hold_constants(child, true, meter))
        }
        other => other.map_children(|child| hold_constants(child, false, meter)),
    }
}

/// Refuses what an aggregate would be given for every row, though it looks at it once.
fn check_settings(function: &str, arguments: &[Expr]) -> Result<()> {
    let long = arguments.iter().skip(1).find_map(|argument| match argument {
        Expr::Literal(value, _) if size(value) > LONGEST_SETTING => Some(size(value)),
        _ => None,
    });
    match long {
        Some(bytes) => Err(too_much(format!(
            "a constant of {} KiB can't be the second argument of {function}(); it takes up to {} KiB",
            bytes >> 10,
            LONGEST_SETTING >> 10
        ))),
        None => Ok(()),
    }
}

/// The same of the first argument of a function; true when it was one.
fn hold_first(arguments: &mut [Expr], meter: &dyn Fn(Arc<ScalarUDF>) -> Arc<ScalarUDF>) -> Result<bool> {
    let Some(first) = arguments.first_mut() else { return Ok(false) };
    let held = hold_constants(std::mem::take(first), true, meter)?;
    *first = held.data;
    Ok(held.transformed)
}

fn repeated_value(value: Expr, meter: &dyn Fn(Arc<ScalarUDF>) -> Arc<ScalarUDF>) -> Transformed<Expr> {
    let repeat = Repeat { signature: Signature::any(1, Volatility::Volatile) };
    let call = ScalarFunction { func: meter(Arc::new(ScalarUDF::from(repeat))), args: vec![value] };
    Transformed::yes(Expr::ScalarFunction(call))
}

/// Bytes of a single value.
pub(super) fn size(value: &ScalarValue) -> usize {
    match value {
        ScalarValue::Utf8(Some(text))
        | ScalarValue::Utf8View(Some(text))
        | ScalarValue::LargeUtf8(Some(text)) => text.len(),
        ScalarValue::Binary(Some(bytes))
        | ScalarValue::BinaryView(Some(bytes))
        | ScalarValue::LargeBinary(Some(bytes)) => bytes.len(),
        ScalarValue::List(values) => weight(values.as_ref()),
        ScalarValue::Struct(values) => weight(values.as_ref()),
        ScalarValue::Map(values) => weight(values.as_ref()),
        ScalarValue::Dictionary(_, value) => size(value),
        ScalarValue::FixedSizeBinary(length, _) => *length as usize,
        other if other.data_type().is_nested() => other.to_array().map_or(16, |value| weight(value.as_ref())),
        _ => 16,
    }
}

/// A function whose answers are on an account.
#[derive(Debug)]
struct Metered {
    function: Arc<ScalarUDF>,
    budget: Arc<Budget>,
}

impl PartialEq for Metered {
    fn eq(&self, other: &Self) -> bool {
        self.function == other.function
    }
}

impl Eq for Metered {}

impl Hash for Metered {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.function.hash(state);
    }
}

impl ScalarUDFImpl for Metered {
    fn name(&self) -> &str {
        self.function.name()
    }

    fn schema_name(&self, arguments: &[Expr]) -> Result<String> {
        self.function.schema_name(arguments)
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

    fn is_strict(&self) -> bool {
        self.function.is_strict()
    }

    fn short_circuits(&self) -> bool {
        self.function.short_circuits()
    }

    fn evaluate_bounds(&self, input: &[&Interval]) -> Result<Interval> {
        self.function.evaluate_bounds(input)
    }

    fn propagate_constraints(
        &self,
        interval: &Interval,
        inputs: &[&Interval],
    ) -> Result<Option<Vec<Interval>>> {
        self.function.propagate_constraints(interval, inputs)
    }

    fn output_ordering(&self, inputs: &[ExprProperties]) -> Result<SortProperties> {
        self.function.output_ordering(inputs)
    }

    fn preserves_lex_ordering(&self, inputs: &[ExprProperties]) -> Result<bool> {
        self.function.preserves_lex_ordering(inputs)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = arguments.number_rows;
        let all_constant = arguments.args.iter().all(|value| matches!(value, ColumnarValue::Scalar(_)));
        if !all_constant {
            let given = arguments.args.iter().map(|value| match value {
                ColumnarValue::Array(array) => weight(array.as_ref()),
                ColumnarValue::Scalar(scalar) => size(scalar).saturating_mul(rows),
            });
            let given = given.fold(0usize, usize::saturating_add);
            if given > MOST_GIVEN {
                return Err(too_much(format!(
                    "{}() is given {} MiB for {rows} rows at once; {} MiB can be held",
                    self.name(),
                    given >> 20,
                    MOST_GIVEN >> 20
                )));
            }
        }
        let answer = self.function.invoke_with_args(arguments)?;
        if let ColumnarValue::Array(array) = &answer {
            self.budget.take(self.name(), array)?;
        }
        Ok(answer)
    }
}

/// A constant, or the one value of a question inside the question, that is repeated for every row.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Repeat {
    signature: Signature,
}

impl ScalarUDFImpl for Repeat {
    fn name(&self) -> &str {
        "constant"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        Ok(arguments[0].clone())
    }

    fn return_field_from_args(&self, arguments: ReturnFieldArgs) -> Result<FieldRef> {
        let field = &arguments.arg_fields[0];
        Ok(Arc::new(Field::new(self.name(), field.data_type().clone(), field.is_nullable())))
    }

    fn invoke_with_args(&self, mut arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = arguments.number_rows;
        let value = arguments.args.remove(0);
        match &value {
            ColumnarValue::Scalar(value) if size(value).saturating_mul(rows) > MOST_GIVEN => Err(too_much(
                format!("a constant of {} KiB can't be repeated for {rows} rows at once", size(value) >> 10),
            )),
            _ => Ok(ColumnarValue::Array(value.into_array(rows)?)),
        }
    }
}

/// Two texts put together; null when one of them is.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Concat {
    signature: Signature,
}

impl ScalarUDFImpl for Concat {
    fn name(&self) -> &str {
        "||"
    }

    fn schema_name(&self, arguments: &[Expr]) -> Result<String> {
        // As the operator has it, so that columns keep their names.
        Ok(format!("{} || {}", arguments[0].schema_name(), arguments[1].schema_name()))
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        BinaryTypeCoercer::new(&arguments[0], &Operator::StringConcat, &arguments[1]).get_result_type()
    }

    fn return_field_from_args(&self, arguments: ReturnFieldArgs) -> Result<FieldRef> {
        let types: Vec<DataType> =
            arguments.arg_fields.iter().map(|field| field.data_type().clone()).collect();
        let nullable = arguments.arg_fields.iter().any(|field| field.is_nullable());
        Ok(Arc::new(Field::new(self.name(), self.return_type(&types)?, nullable)))
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let values = ColumnarValue::values_to_arrays(&arguments.args)?;
        Ok(ColumnarValue::Array(concat_elements_dyn(&values[0], &values[1])?))
    }
}
