//! Joins and UNNEST repeat values of one row for many: a text of a megabyte that is joined to a million rows
//! would be copied a million times. So texts, bytes and lists go through them as references: below, values are
//! turned into views or dictionaries, which are repeated without what they refer to; above, they become values
//! again, after they have been weighed.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, DictionaryArray, Int32Array, LargeBinaryArray, LargeStringArray,
    StringArray,
};
use arrow::compute::{cast, take};
use arrow::datatypes::{DataType, Field, FieldRef, Int32Type};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, Result, exec_err};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, Join, JoinType, LogicalPlan, Projection, ReturnFieldArgs, ScalarFunctionArgs,
    ScalarUDF, ScalarUDFImpl, Signature, Unnest, Volatility,
};

use super::budget::{Budget, MOST_HELD, too_much};
use crate::functions::weight;

/// Lets the values of an optimized plan go through its joins and UNNESTs as references. What comes out is not
/// to be optimized again.
pub fn shared(plan: LogicalPlan, budget: &Arc<Budget>) -> Result<LogicalPlan> {
    let shared = plan.transform_up_with_subqueries(|node| match node {
        LogicalPlan::Join(join) if repeats(&join) => share_join(join, budget).map(Transformed::yes),
        LogicalPlan::Unnest(unnest) => share_unnest(unnest, budget).map(Transformed::yes),
        other => Ok(Transformed::no(other)),
    })?;
    Ok(shared.data)
}

/// True when rows of an input may come out several times.
fn repeats(join: &Join) -> bool {
    matches!(join.join_type, JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full)
}

fn share_join(join: Join, budget: &Arc<Budget>) -> Result<LogicalPlan> {
    let Join { left, right, on, filter, join_type, join_constraint, null_equality, null_aware, .. } = join;
    let (mut left_columns, mut right_columns) = (columns(&left), columns(&right));
    let wide: Vec<(Column, DataType)> = [&left, &right].into_iter().flat_map(|side| wide(side)).collect();
    if wide.is_empty() {
        let join =
            Join::try_new(left, right, on, filter, join_type, join_constraint, null_equality, null_aware)?;
        return Ok(LogicalPlan::Join(join));
    }
    let mut shared_on = Vec::with_capacity(on.len());
    for (number, (of_left, of_right)) in on.into_iter().enumerate() {
        // Rows are found by values, which nobody reads after that.
        let key = |columns: &mut Vec<Expr>, key: Expr, side: &str| {
            if !key.column_refs().iter().any(|column| is_among(&wide, column)) {
                return key;
            }
            let name = format!("{side} key {number} of a join");
            columns.push(key.alias(name.as_str()));
            Expr::Column(Column::new_unqualified(name))
        };
        shared_on.push((key(&mut left_columns, of_left, "left"), key(&mut right_columns, of_right, "right")));
    }
    let opened = |expression: Expr| open_columns(expression, &wide, budget);
    let filter = filter.map(opened).transpose()?;
    let (left_plan, right_plan) =
        (project(left.clone(), left_columns, &wide)?, project(right.clone(), right_columns, &wide)?);
    let joined = Join::try_new(
        left_plan,
        right_plan,
        shared_on,
        filter,
        join_type,
        join_constraint,
        null_equality,
        null_aware,
    )?;
    let names = columns(&left).into_iter().chain(columns(&right));
    open(LogicalPlan::Join(joined), names.collect(), &wide, budget)
}

fn share_unnest(unnest: Unnest, budget: &Arc<Budget>) -> Result<LogicalPlan> {
    let mut wide = wide(&unnest.input);
    wide.retain(|(column, _)| !unnest.exec_columns.contains(column));
    if wide.is_empty() {
        return Ok(LogicalPlan::Unnest(unnest));
    }
    let names = unnest.schema.columns().into_iter().map(Expr::Column).collect();
    let input = project(unnest.input.clone(), columns(&unnest.input), &wide)?;
    let unnested = Unnest::try_new(input, unnest.exec_columns, unnest.options)?;
    open(LogicalPlan::Unnest(unnested), names, &wide, budget)
}

fn columns(plan: &LogicalPlan) -> Vec<Expr> {
    plan.schema().columns().into_iter().map(Expr::Column).collect()
}

/// Columns whose values may be long, and that are not references already.
fn wide(plan: &LogicalPlan) -> Vec<(Column, DataType)> {
    let fields = plan.schema().columns().into_iter().zip(plan.schema().fields());
    let wide = fields.map(|(column, field)| (column, field.data_type().clone()));
    wide.filter(|(_, data_type)| is_wide(data_type)).collect()
}

/// True for types whose values may be long.
pub(super) fn is_wide(data_type: &DataType) -> bool {
    match data_type {
        DataType::Struct(fields) => fields.iter().any(|field| is_wide(field.data_type())),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Binary | DataType::LargeBinary => true,
        DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) | DataType::Map(..) => true,
        _ => false,
    }
}

fn is_among(wide: &[(Column, DataType)], column: &Column) -> bool {
    wide.iter().any(|(known, _)| known == column)
}

/// What a value is referred to by.
fn reference(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 => DataType::Utf8View,
        DataType::Binary | DataType::LargeBinary => DataType::BinaryView,
        other => DataType::Dictionary(Box::new(DataType::Int32), Box::new(other.clone())),
    }
}

fn project(
    input: Arc<LogicalPlan>,
    columns: Vec<Expr>,
    wide: &[(Column, DataType)],
) -> Result<Arc<LogicalPlan>> {
    let share = |expression: Expr| match expression {
        Expr::Column(column) if is_among(wide, &column) => {
            let call = ScalarFunction {
                func: Arc::new(ScalarUDF::from(Share::default())),
                args: vec![Expr::Column(column.clone())],
            };
            Expr::ScalarFunction(call).alias_qualified(column.relation, column.name)
        }
        other => other,
    };
    let columns = columns.into_iter().map(share).collect();
    Ok(Arc::new(LogicalPlan::Projection(Projection::try_new(columns, input)?)))
}

fn open_column(column: Column, data_type: &DataType, budget: &Arc<Budget>) -> Expr {
    let open = Open { data_type: data_type.clone(), budget: budget.clone(), signature: any() };
    let call = ScalarFunction { func: Arc::new(ScalarUDF::from(open)), args: vec![Expr::Column(column)] };
    Expr::ScalarFunction(call)
}

fn open_columns(expression: Expr, wide: &[(Column, DataType)], budget: &Arc<Budget>) -> Result<Expr> {
    let opened = expression.transform_up(|expression| {
        Ok(match expression {
            Expr::Column(column) => match wide.iter().find(|(known, _)| *known == column) {
                Some((_, data_type)) => Transformed::yes(open_column(column, data_type, budget)),
                None => Transformed::no(Expr::Column(column)),
            },
            other => Transformed::no(other),
        })
    })?;
    Ok(opened.data)
}

/// Values again, under the names that they had.
fn open(
    plan: LogicalPlan,
    names: Vec<Expr>,
    wide: &[(Column, DataType)],
    budget: &Arc<Budget>,
) -> Result<LogicalPlan> {
    let opened = names.into_iter().map(|name| match name {
        Expr::Column(column) => match wide.iter().find(|(known, _)| *known == column) {
            Some((_, data_type)) => {
                open_column(column.clone(), data_type, budget).alias_qualified(column.relation, column.name)
            }
            None => Expr::Column(column),
        },
        other => other,
    });
    Ok(LogicalPlan::Projection(Projection::try_new(opened.collect(), Arc::new(plan))?))
}

fn any() -> Signature {
    Signature::any(1, Volatility::Immutable)
}

/// References to values.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Share {
    signature: Signature,
}

impl Default for Share {
    fn default() -> Self {
        Self { signature: any() }
    }
}

impl ScalarUDFImpl for Share {
    fn name(&self) -> &str {
        "share"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        Ok(reference(&arguments[0]))
    }

    fn return_field_from_args(&self, arguments: ReturnFieldArgs) -> Result<FieldRef> {
        let field = &arguments.arg_fields[0];
        Ok(Arc::new(Field::new(self.name(), reference(field.data_type()), field.is_nullable())))
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let values = arguments.args[0].to_array(arguments.number_rows)?;
        let shared: ArrayRef = match reference(values.data_type()) {
            DataType::Dictionary(..) => {
                let keys = Int32Array::new((0..values.len() as i32).collect(), values.nulls().cloned());
                Arc::new(DictionaryArray::<Int32Type>::try_new(keys, values)?)
            }
            view => cast(&values, &view)?,
        };
        Ok(ColumnarValue::Array(shared))
    }
}

/// Values that references stand for, unless they are too many and too long.
#[derive(Debug)]
struct Open {
    data_type: DataType,
    budget: Arc<Budget>,
    signature: Signature,
}

impl PartialEq for Open {
    fn eq(&self, other: &Self) -> bool {
        self.data_type == other.data_type
    }
}

impl Eq for Open {}

impl Hash for Open {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.data_type.hash(state);
    }
}

impl ScalarUDFImpl for Open {
    fn name(&self) -> &str {
        "open"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(self.data_type.clone())
    }

    fn return_field_from_args(&self, arguments: ReturnFieldArgs) -> Result<FieldRef> {
        let nullable = arguments.arg_fields[0].is_nullable();
        Ok(Arc::new(Field::new(self.name(), self.data_type.clone(), nullable)))
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let shared = arguments.args[0].to_array(arguments.number_rows)?;
        let bytes = weight(shared.as_ref());
        if bytes > MOST_HELD {
            return Err(too_much(format!(
                "a join or UNNEST repeats values: {} MiB in {} rows; {} MiB can be held",
                bytes >> 20,
                shared.len(),
                MOST_HELD >> 20
            )));
        }
        // Not by a cast, which makes room for what stands behind nulls, too.
        let values = match shared.data_type() {
            DataType::Dictionary(..) => {
                let Some(shared) = shared.as_dictionary_opt::<Int32Type>() else {
                    return exec_err!("references of another type");
                };
                take(shared.values(), shared.keys(), None)?
            }
            DataType::Utf8View => {
                let texts = shared.as_string_view().iter();
                match self.data_type {
                    DataType::LargeUtf8 => Arc::new(LargeStringArray::from_iter(texts)),
                    _ => Arc::new(StringArray::from_iter(texts)) as ArrayRef,
                }
            }
            _ => {
                let bytes = shared.as_binary_view().iter();
                match self.data_type {
                    DataType::LargeBinary => Arc::new(LargeBinaryArray::from_iter(bytes)),
                    _ => Arc::new(BinaryArray::from_iter(bytes)) as ArrayRef,
                }
            }
        };
        self.budget.take("a join or UNNEST", &values)?;
        Ok(ColumnarValue::Array(values))
    }
}
