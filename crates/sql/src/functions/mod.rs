//! Functions that the language adds to DataFusion's.

mod aggregate;
mod arithmetic;
mod bounded;
mod highlight;
mod json;
mod lookup;
mod mask;
mod matches;
mod money;
mod score;
mod string_agg;
mod sum;
mod tokenize;
mod weight;

use std::sync::Arc;

use datafusion::logical_expr::{AggregateUDF, ScalarUDF};

use crate::models::Models;
use crate::reference::References;

pub use aggregate::{
    APPROX_COUNT_DISTINCT, COLLECT_LIST, COLLECT_SET, EARLIEST_BY_OFFSET, LATEST_BY_OFFSET, TOPK,
    TOPKDISTINCT,
};
pub use arithmetic::CheckedArithmetic;
pub use bounded::bounded;
pub use highlight::highlighted;
pub use mask::mask_text;
pub use score::{SCORE, as_numbers, is_feature};
pub use weight::weight;

/// Functions that hide what they are given, so that their result is no longer sensitive.
pub const HIDING: [&str; 6] =
    ["mask", "mask_left", "mask_right", "mask_keep_left", "mask_keep_right", "tokenize"];

/// Functions that look into reference tables, which change by statements only.
pub const LOOKING_UP: [&str; 2] = ["lookup", "in_reference"];

/// All scalar functions.
pub fn scalar_functions(
    references: &Arc<References>,
    models: &Arc<Models>,
    token_key: [u8; 32],
) -> Vec<Arc<ScalarUDF>> {
    let mut functions: Vec<Arc<ScalarUDF>> = mask::functions();
    functions.push(Arc::new(ScalarUDF::from(lookup::Lookup::new(references.clone()))));
    functions.push(Arc::new(ScalarUDF::from(lookup::InReference::new(references.clone()))));
    functions.push(Arc::new(ScalarUDF::from(highlight::Highlight::new())));
    functions.push(Arc::new(ScalarUDF::from(json::Json::new())));
    functions.push(Arc::new(ScalarUDF::from(matches::Matches::new())));
    functions.push(Arc::new(ScalarUDF::from(money::Money::new())));
    functions.push(Arc::new(ScalarUDF::from(score::Score::new(models.clone()))));
    functions.push(Arc::new(ScalarUDF::from(tokenize::Tokenize::new(token_key))));
    functions
}

/// All aggregate functions; `find` answers those of DataFusion.
pub fn aggregate_functions(find: impl Fn(&str) -> Option<Arc<AggregateUDF>>) -> Vec<Arc<AggregateUDF>> {
    let mut functions = aggregate::functions();
    functions.extend(find("sum").map(|sum| Arc::new(sum::checked(sum))));
    functions.extend(find("string_agg").map(|joined| Arc::new(string_agg::bounded(joined))));
    functions
}
