//! SCORE: what a trained model says of a row, from 0 to 1.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, AsArray, Float64Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Float64Type};
use datafusion::common::{Result, ScalarValue, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility,
};
use highwater_event::name::nearest;
use highwater_model::Model;

use crate::models::Models;

/// Its name.
pub const SCORE: &str = "score";

#[derive(Debug)]
pub(super) struct Score {
    models: Arc<Models>,
    signature: Signature,
}

impl PartialEq for Score {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.models, &other.models)
    }
}

impl Eq for Score {}

impl Hash for Score {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.models).hash(state);
    }
}

impl Score {
    pub fn new(models: Arc<Models>) -> Self {
        // Stable, not immutable: a name without a version means the newest one.
        Self { models, signature: Signature::variadic_any(Volatility::Stable) }
    }

    fn model(&self, name: Option<&ScalarValue>) -> Result<(String, Arc<Model>)> {
        let Some(name) = name.and_then(|name| name.try_as_str().flatten()) else {
            return plan_err!("score: the model is a constant text");
        };
        let name = name.to_ascii_lowercase();
        match self.models.get(&name) {
            Some(model) => Ok((name, model)),
            None => {
                let known = self.models.names();
                match nearest(&name, known.iter().map(String::as_str)) {
                    Some(near) => plan_err!("score: there is no model \"{name}\"; did you mean \"{near}\"?"),
                    None => plan_err!("score: no model \"{name}\" was trained"),
                }
            }
        }
    }
}

impl ScalarUDFImpl for Score {
    fn name(&self) -> &str {
        SCORE
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn return_field_from_args(&self, arguments: ReturnFieldArgs) -> Result<FieldRef> {
        let (name, model) = self.model(arguments.scalar_arguments.first().copied().flatten())?;
        let given = &arguments.arg_fields[1..];
        if given.len() != model.features.len() {
            let features: Vec<&str> = model.features.iter().map(|feature| feature.name.as_str()).collect();
            return plan_err!("score('{name}', {}) is how this model is asked", features.join(", "));
        }
        for (field, feature) in given.iter().zip(&model.features) {
            if !is_feature(field.data_type()) {
                return plan_err!(
                    "score: {} is a number or a truth value, not {}",
                    feature.name,
                    field.data_type()
                );
            }
        }
        Ok(Arc::new(Field::new(SCORE, DataType::Float64, false)))
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let name = match arguments.args.first() {
            Some(ColumnarValue::Scalar(name)) => Some(name),
            _ => None,
        };
        let (_, model) = self.model(name)?;
        let rows = arguments.number_rows;
        let columns = arguments.args[1..].iter().map(|column| as_numbers(&column.to_array(rows)?));
        let columns: Vec<Float64Array> = columns.collect::<Result<_>>()?;
        let mut values = vec![0.0; columns.len()];
        let scores = (0..rows).map(|row| {
            for (value, column) in values.iter_mut().zip(&columns) {
                *value = if column.is_valid(row) { column.value(row) } else { f64::NAN };
            }
            model.score(&mut values)
        });
        Ok(ColumnarValue::Array(Arc::new(Float64Array::from_iter_values(scores))))
    }
}

/// Whether a model can learn from values of a type.
pub fn is_feature(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Boolean | DataType::Null) || data_type.is_numeric()
}

/// Values of a type that a model can learn from, as numbers.
pub fn as_numbers(values: &dyn Array) -> Result<Float64Array> {
    // Arrow has no way from truth values to floats but through whole numbers.
    let values = match values.data_type() {
        DataType::Boolean => cast(values, &DataType::Int8)?,
        _ => arrow::array::make_array(values.to_data()),
    };
    Ok(cast(&values, &DataType::Float64)?.as_primitive::<Float64Type>().clone())
}
