//! Whole numbers that do not fit are an error. DataFusion's `+`, `-` and `*` wrap around; here they become
//! functions that don't.

use std::sync::Arc;

use arrow::compute::kernels::numeric;
use arrow::datatypes::DataType;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result, ScalarValue};
use datafusion::logical_expr::expr_rewriter::FunctionRewrite;
use datafusion::logical_expr::type_coercion::binary::BinaryTypeCoercer;
use datafusion::logical_expr::{
    BinaryExpr, ColumnarValue, Expr, ExprSchemable, Operator, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl,
    Signature, Volatility,
};
use datafusion::physical_expr_common::datum::apply;

/// An operator on two whole numbers of one type.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Checked {
    operator: Operator,
    signature: Signature,
}

impl ScalarUDFImpl for Checked {
    fn name(&self) -> &str {
        match self.operator {
            Operator::Plus => "checked_add",
            Operator::Minus => "checked_subtract",
            _ => "checked_multiply",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        BinaryTypeCoercer::new(&arguments[0], &self.operator, &arguments[1]).get_result_type()
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let kernel = match self.operator {
            Operator::Plus => numeric::add,
            Operator::Minus => numeric::sub,
            _ => numeric::mul,
        };
        apply(&arguments.args[0], &arguments.args[1], kernel)
    }
}

/// Puts the functions in the place of the operators.
#[derive(Debug)]
pub struct CheckedArithmetic {
    add: Arc<ScalarUDF>,
    subtract: Arc<ScalarUDF>,
    multiply: Arc<ScalarUDF>,
}

impl Default for CheckedArithmetic {
    fn default() -> Self {
        let function = |operator| {
            let signature = Signature::any(2, Volatility::Immutable);
            Arc::new(ScalarUDF::from(Checked { operator, signature }))
        };
        Self {
            add: function(Operator::Plus),
            subtract: function(Operator::Minus),
            multiply: function(Operator::Multiply),
        }
    }
}

impl FunctionRewrite for CheckedArithmetic {
    fn name(&self) -> &str {
        "checked_arithmetic"
    }

    fn rewrite(
        &self,
        expression: Expr,
        schema: &DFSchema,
        _config: &ConfigOptions,
    ) -> Result<Transformed<Expr>> {
        if let Expr::Negative(value) = &expression
            && let Ok(data_type) = value.get_type(schema)
            && data_type.is_signed_integer()
        {
            let zero = Expr::Literal(ScalarValue::new_zero(&data_type)?, None);
            return Ok(Transformed::yes(self.subtract.call(vec![zero, value.as_ref().clone()])));
        }
        let Expr::BinaryExpr(BinaryExpr { left, op, right }) = &expression else {
            return Ok(Transformed::no(expression));
        };
        let function = match op {
            Operator::Plus => &self.add,
            Operator::Minus => &self.subtract,
            Operator::Multiply => &self.multiply,
            _ => return Ok(Transformed::no(expression)),
        };
        // What has no type yet is left to those who give it one.
        let (Ok(left_type), Ok(right_type)) = (left.get_type(schema), right.get_type(schema)) else {
            return Ok(Transformed::no(expression));
        };
        if !(left_type.is_integer() && right_type.is_integer()) {
            return Ok(Transformed::no(expression));
        }
        let (left_type, right_type) =
            BinaryTypeCoercer::new(&left_type, op, &right_type).get_input_types()?;
        let left = left.as_ref().clone().cast_to(&left_type, schema)?;
        let right = right.as_ref().clone().cast_to(&right_type, schema)?;
        Ok(Transformed::yes(function.call(vec![left, right])))
    }
}
