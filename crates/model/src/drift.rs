//! Drift: how far rows have moved from those that a model has learnt from.
//!
//! The figure is the population stability index of a feature over ranges that had a tenth of the rows each, and one of rows
//! without a value. Below 0.1 nothing has moved, from 0.25 on the model speaks of something else than it has learnt.

use serde::{Deserialize, Serialize};

use crate::{Feature, Model};

/// Ranges of a feature.
pub(crate) const RANGES: usize = 10;
/// The smallest share that a range counts as: an empty one would be infinitely far away.
const LEAST_SHARE: f64 = 1e-4;

/// How far a feature has moved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Moved {
    /// The column.
    pub feature: String,
    /// Population stability index.
    pub psi: f64,
    /// Mean of the values that there are; `None` when there are none.
    pub mean: Option<f64>,
}

impl Feature {
    /// A feature of some rows.
    pub(crate) fn of(name: &str, values: &[f64]) -> Self {
        let mut known: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
        known.sort_by(f64::total_cmp);
        let mut bounds: Vec<f64> =
            (1..RANGES).filter_map(|part| known.get(part * known.len() / RANGES).copied()).collect();
        bounds.dedup();
        let mut feature =
            Self { name: name.into(), mean: mean(&known).unwrap_or_default(), bounds, shares: Vec::new() };
        feature.shares = feature.shares_of(values);
        feature
    }

    /// The share of values in each range.
    fn shares_of(&self, values: &[f64]) -> Vec<f64> {
        let mut counts = vec![0.0; self.bounds.len() + 2];
        let missing = counts.len() - 1;
        for value in values {
            let range = match value.is_finite() {
                true => self.bounds.partition_point(|bound| bound <= value),
                false => missing,
            };
            counts[range] += 1.0;
        }
        counts.iter().map(|count| count / values.len().max(1) as f64).collect()
    }
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// How far each feature has moved in rows of today, the furthest first. Values that are missing are no numbers.
pub fn drift(model: &Model, rows: &[Vec<f64>]) -> Vec<Moved> {
    let mut moved: Vec<Moved> = model
        .features
        .iter()
        .enumerate()
        .map(|(at, feature)| {
            let values: Vec<f64> = rows.iter().map(|row| row.get(at).copied().unwrap_or(f64::NAN)).collect();
            let known: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
            let shares = feature.shares_of(&values);
            let psi = feature.shares.iter().zip(&shares).map(|(then, now)| {
                let (then, now) = (then.max(LEAST_SHARE), now.max(LEAST_SHARE));
                (now - then) * (now / then).ln()
            });
            Moved { feature: feature.name.clone(), psi: psi.sum(), mean: mean(&known) }
        })
        .collect();
    moved.sort_by(|one, other| other.psi.total_cmp(&one.psi));
    moved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_that_moves_is_seen() {
        let values: Vec<f64> = (0..1000).map(f64::from).collect();
        let feature = Feature::of("amount", &values);
        assert_eq!((feature.bounds.len(), feature.mean), (9, 499.5));
        let forest = serde_json::json!({"base": "0", "rate": "1", "trees": []});
        let model = Model::new(vec![feature], serde_json::from_value(forest).unwrap());
        let rows = |shift: f64| values.iter().map(|value| vec![value + shift]).collect::<Vec<_>>();
        assert!(drift(&model, &rows(0.0))[0].psi < 1e-9);
        let little = drift(&model, &rows(30.0))[0].psi;
        let much = drift(&model, &rows(600.0))[0].psi;
        assert!(little < 0.1 && much > 0.25, "{little} {much}");
        let gone = vec![vec![f64::NAN]; 100];
        let moved = &drift(&model, &gone)[0];
        assert!(moved.psi > 1.0 && moved.mean.is_none());
    }

    #[test]
    fn one_value_has_one_range() {
        let feature = Feature::of("flag", &[1.0; 50]);
        assert_eq!(feature.bounds, [1.0]);
        assert_eq!(feature.shares, [0.0, 1.0, 0.0]);
        assert_eq!(Feature::of("empty", &[f64::NAN; 3]).shares, [0.0, 1.0]);
    }
}
