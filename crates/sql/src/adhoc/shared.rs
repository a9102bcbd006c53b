//! Joins and UNNEST repeat values of one row for many: a text of a megabyte that is joined to a million rows
//! would be copied a million times. So texts, bytes and lists go through them as references: below, values are
//! turned into views, which are repeated without what they refer to; above, they become values again, after
//! they have been weighed.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, GenericStringBuilder, LargeBinaryArray, OffsetSizeTrait,
    UInt32Array,
};
use arrow::compute::{cast, take};
use arrow::datatypes::{DataType, Field, FieldRef};
use arrow::row::{RowConverter, SortField};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, Result};
use datafusion::logical_expr::{
    ColumnarValue, Expr, Join, JoinType, LogicalPlan, Projection, ReturnFieldArgs, ScalarFunctionArgs,
    ScalarUDF, ScalarUDFImpl, Signature, Unnest, Volatility,
};

use super::budget::{MOST_GIVEN, too_much};
use crate::functions::weight;

/// Lets the values of an optimized plan go through its joins and UNNESTs as references. What comes out is not
/// to be optimized again.
pub fn shared(plan: LogicalPlan) -> Result<LogicalPlan> {
    let shared = plan.transform_up_with_subqueries(|node| match node {
        LogicalPlan::Join(join) => share_join(join).map(Transformed::yes),
        LogicalPlan::Unnest(unnest) => share_unnest(unnest).map(Transformed::yes),
        other => Ok(Transformed::no(other)),
    })?;
    Ok(shared.data)
}

/// True when rows of an input may come out several times.
fn repeats(join: &Join) -> bool {
    matches!(join.join_type, JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full)
}

fn share_join(join: Join) -> Result<LogicalPlan> {
    let wide: Vec<(Column, DataType)> =
        [&join.left, &join.right].into_iter().flat_map(|side| wide(side)).collect();
    // A condition is asked of pairs of rows, even where only one of them comes out.
    let asked = join
        .filter
        .as_ref()
        .is_some_and(|filter| filter.column_refs().iter().any(|column| is_among(&wide, column)));
    if wide.is_empty() || !(repeats(&join) || asked) {
        return Ok(LogicalPlan::Join(join));
    }
    let names = join.schema.columns();
    let Join { left, right, on, filter, join_type, join_constraint, null_equality, null_aware, .. } = join;
    let (mut left_columns, mut right_columns) = (columns(&left), columns(&right));
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
    let filter = filter.map(|filter| open_columns(filter, &wide)).transpose()?;
    let joined = Join::try_new(
        project(left, left_columns, &wide)?,
        project(right, right_columns, &wide)?,
        shared_on,
        filter,
        join_type,
        join_constraint,
        null_equality,
        null_aware,
    )?;
    open(LogicalPlan::Join(joined), names, &wide)
}

fn share_unnest(unnest: Unnest) -> Result<LogicalPlan> {
    let mut wide = wide(&unnest.input);
    wide.retain(|(column, _)| !unnest.exec_columns.contains(column));
    if wide.is_empty() {
        return Ok(LogicalPlan::Unnest(unnest));
    }
    let names = unnest.schema.columns();
    let all = columns(&unnest.input);
    let input = project(unnest.input, all, &wide)?;
    let unnested = Unnest::try_new(input, unnest.exec_columns, unnest.options)?;
    open(LogicalPlan::Unnest(unnested), names, &wide)
}

fn columns(plan: &LogicalPlan) -> Vec<Expr> {
    plan.schema().columns().into_iter().map(Expr::Column).collect()
}

/// Columns whose values may be long.
fn wide(plan: &LogicalPlan) -> Vec<(Column, DataType)> {
    let fields = plan.schema().columns().into_iter().zip(plan.schema().fields());
    let wide = fields.map(|(column, field)| (column, field.data_type().clone()));
    wide.filter(|(_, data_type)| is_wide(data_type)).collect()
}

/// True for types whose values may be long.
pub(super) fn is_wide(data_type: &DataType) -> bool {
    match data_type {
        DataType::Struct(fields) => fields.iter().any(|field| is_wide(field.data_type())),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            true
        }
        DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) | DataType::Map(..) => true,
        _ => false,
    }
}

fn type_of<'a>(wide: &'a [(Column, DataType)], column: &Column) -> Option<&'a DataType> {
    wide.iter().find(|(known, _)| known == column).map(|(_, data_type)| data_type)
}

fn is_among(wide: &[(Column, DataType)], column: &Column) -> bool {
    type_of(wide, column).is_some()
}

/// What a value is referred to by. Lists and structs go as the bytes of their rows: dictionaries would be put
/// together with all of their values wherever batches are.
fn reference(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8View,
        _ => DataType::BinaryView,
    }
}

fn project(
    input: Arc<LogicalPlan>,
    columns: Vec<Expr>,
    wide: &[(Column, DataType)],
) -> Result<Arc<LogicalPlan>> {
    let share = |expression: Expr| match expression {
        Expr::Column(column) if is_among(wide, &column) => {
            let share = ScalarUDF::from(Share { signature: any() });
            share.call(vec![Expr::Column(column.clone())]).alias_qualified(column.relation, column.name)
        }
        other => other,
    };
    let columns = columns.into_iter().map(share).collect();
    Ok(Arc::new(LogicalPlan::Projection(Projection::try_new(columns, input)?)))
}

fn open_column(column: Column, data_type: &DataType) -> Expr {
    let open = Open { data_type: data_type.clone(), signature: any() };
    ScalarUDF::from(open).call(vec![Expr::Column(column)])
}

fn open_columns(expression: Expr, wide: &[(Column, DataType)]) -> Result<Expr> {
    let opened = expression.transform_up(|expression| match expression {
        Expr::Column(column) if let Some(data_type) = type_of(wide, &column) => {
            Ok(Transformed::yes(open_column(column, data_type)))
        }
        other => Ok(Transformed::no(other)),
    })?;
    Ok(opened.data)
}

/// Values again, under the names that they had.
fn open(plan: LogicalPlan, names: Vec<Column>, wide: &[(Column, DataType)]) -> Result<LogicalPlan> {
    let opened = names.into_iter().map(|column| match type_of(wide, &column) {
        Some(data_type) => {
            open_column(column.clone(), data_type).alias_qualified(column.relation, column.name)
        }
        None => Expr::Column(column),
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
        let shared: ArrayRef = match values.data_type() {
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Binary | DataType::LargeBinary => {
                cast(&values, &reference(values.data_type()))?
            }
            DataType::Utf8View | DataType::BinaryView => values,
            other => {
                let converter = RowConverter::new(vec![SortField::new(other.clone())])?;
                cast(&converter.convert_columns(&[values])?.try_into_binary()?, &DataType::BinaryView)?
            }
        };
        Ok(ColumnarValue::Array(shared))
    }
}

/// Values that references stand for, unless they are too many and too long.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Open {
    data_type: DataType,
    signature: Signature,
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
        if bytes > MOST_GIVEN {
            return Err(too_much(format!(
                "a join or UNNEST repeats values: {} MiB in {} rows; {} MiB can be held",
                bytes >> 20,
                shared.len(),
                MOST_GIVEN >> 20
            )));
        }
        // Not by a cast, which makes room for what stands behind nulls, too.
        Ok(ColumnarValue::Array(match &self.data_type {
            DataType::Utf8View | DataType::BinaryView => shared,
            DataType::Utf8 => texts::<i32>(&shared, bytes),
            DataType::LargeUtf8 => texts::<i64>(&shared, bytes),
            DataType::Binary => Arc::new(BinaryArray::from_iter(shared.as_binary_view())),
            DataType::LargeBinary => Arc::new(LargeBinaryArray::from_iter(shared.as_binary_view())),
            other => rows(&shared, other)?,
        }))
    }
}

fn texts<O: OffsetSizeTrait>(shared: &ArrayRef, bytes: usize) -> ArrayRef {
    let mut texts = GenericStringBuilder::<O>::with_capacity(shared.len(), bytes);
    shared.as_string_view().iter().for_each(|text| texts.append_option(text));
    Arc::new(texts.finish())
}

fn rows(shared: &ArrayRef, data_type: &DataType) -> Result<ArrayRef> {
    let converter = RowConverter::new(vec![SortField::new(data_type.clone())])?;
    let (parser, shared) = (converter.parser(), shared.as_binary_view());
    let values = converter.convert_rows(shared.iter().flatten().map(|row| parser.parse(row)))?;
    let mut next = 0;
    let places: UInt32Array = shared
        .iter()
        .map(|row| {
            next += u32::from(row.is_some());
            row.map(|_| next - 1)
        })
        .collect();
    let values = if shared.null_count() == 0 { values[0].clone() } else { take(&values[0], &places, None)? };
    // A dictionary inside comes back as the values that it stood for.
    Ok(if values.data_type() == data_type { values } else { cast(&values, data_type)? })
}
