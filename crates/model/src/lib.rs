//! Models: learning from rows whether something is so, and saying how likely it is of others.
//!
//! * [`train`] learns from rows in the order of time: the last part of them is kept aside, and what the model says of it is
//!   what its [`Report`] is about. It never sees the future of what it is judged by.
//! * [`Model`] is what was learnt: boosted trees (learnt by smartcore), in a form of our own that is stored as JSON and
//!   read by every later version. It is immutable, so what is derived with it comes out the same whenever it is rebuilt.
//! * [`drift`] says how far rows of today have moved from those that were learnt from.
//!
//! Non-goals: text, images, more than two classes, and rows that don't fit into memory: it learns from [`MOST_ROWS`] at most.

mod drift;
mod exact;
mod forest;
mod metrics;
mod train;

use serde::{Deserialize, Serialize};

pub use drift::{Moved, drift};
pub use train::{LEAST_OF_CLASS, LEAST_ROWS, MOST_FEATURES, MOST_ROWS, Rows, TrainError, Trained, train};

use forest::Forest;

/// What a model was judged to be, by rows that came after those that it has learnt from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Rows that it has learnt from.
    pub train_rows: usize,
    /// Rows that it was judged by.
    pub test_rows: usize,
    /// Share of rows for which it was so, among those that it has learnt from.
    pub train_share: f64,
    /// The same among those that it was judged by.
    pub test_share: f64,
    /// Time of the first row that it was judged by, microseconds UTC.
    pub split_at: i64,
    /// Time of the last row, microseconds UTC.
    pub until: i64,
    /// How likely a row for which it is so has a higher score than one for which it is not: 0.5 is chance, 1 is certain.
    pub auc: f64,
    /// Among rows from `threshold` on, the share for which it is so; `None` when there are none.
    pub precision: Option<f64>,
    /// Among rows for which it is so, the share from `threshold` on.
    pub recall: f64,
    /// The score from which on both together were best among the rows that it has learnt from.
    pub threshold: f64,
    /// The same as `auc` on the rows that it has learnt from: much more than `auc` means that it has learnt them by heart.
    pub train_auc: f64,
    /// How much each feature has told it; together 1, or 0 when nothing told anything.
    pub importance: Vec<(String, f64)>,
    /// How far the rows that it was judged by have moved from those that it has learnt from.
    pub drift: Vec<Moved>,
}

/// A feature as it was when the model was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Feature {
    /// The column.
    pub name: String,
    /// Its mean, which stands in for values that are missing.
    #[serde(with = "exact")]
    pub mean: f64,
    /// Bounds between its ranges, each of which had about a tenth of the rows.
    #[serde(with = "exact::list")]
    pub bounds: Vec<f64>,
    /// The share of rows in each range; the last one is of rows without a value.
    #[serde(with = "exact::list")]
    pub shares: Vec<f64>,
}

/// What was learnt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// Version of this form.
    format: u32,
    /// The features, in the order in which they are given.
    pub features: Vec<Feature>,
    forest: Forest,
}

/// Version of the stored form.
const FORMAT: u32 = 1;

/// A stored model can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// It is no model.
    #[error("the model can't be read: {0}")]
    Unreadable(String),
    /// A later version has written it.
    #[error("the model has format {0}; this version reads {FORMAT}")]
    Newer(u32),
}

impl Model {
    fn new(features: Vec<Feature>, forest: Forest) -> Self {
        Self { format: FORMAT, features, forest }
    }

    /// Reads a stored model.
    pub fn parse(text: &str) -> Result<Self, ModelError> {
        let model: Self =
            serde_json::from_str(text).map_err(|error| ModelError::Unreadable(error.to_string()))?;
        if model.format != FORMAT {
            return Err(ModelError::Newer(model.format));
        }
        if !model.forest.is_sound(model.features.len()) {
            return Err(ModelError::Unreadable("its trees are damaged".into()));
        }
        Ok(model)
    }

    /// The stored form.
    pub fn show(&self) -> Result<String, ModelError> {
        serde_json::to_string(self).map_err(|error| ModelError::Unreadable(error.to_string()))
    }

    /// How likely it is so, from 0 to 1. Features are in the model's order; those that are missing, or no number, count
    /// as their mean.
    pub fn score(&self, values: &mut [f64]) -> f64 {
        for (value, feature) in values.iter_mut().zip(&self.features) {
            if !value.is_finite() {
                *value = feature.mean;
            }
        }
        self.forest.score(values).clamp(0.0, 1.0)
    }
}
