//! Learning, and judging what was learnt.

use crate::forest::{Forest, Learnt};
use crate::metrics::{auc, best_threshold, precision_and_recall};
use crate::{Feature, Model, Report, drift};

/// Rows that are learnt from and judged by, at most.
pub const MOST_ROWS: usize = 50_000;
/// At least.
pub const LEAST_ROWS: usize = 200;
/// Rows for which it is so, and for which it is not, that both parts need at least.
pub const LEAST_OF_CLASS: usize = 10;
/// Features at most.
pub const MOST_FEATURES: usize = 64;
/// The part of the rows that is learnt from, in hundredths; the others came later.
const LEARNT_FROM: usize = 80;

/// Rows in the order of time.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    /// The features' names.
    pub features: Vec<String>,
    /// Their values, row by row; what is missing is no number.
    pub values: Vec<Vec<f64>>,
    /// Whether it is so.
    pub labels: Vec<bool>,
    /// When, microseconds UTC.
    pub times: Vec<i64>,
}

/// Nothing could be learnt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrainError {
    /// Too few rows.
    #[error("a model needs {LEAST_ROWS} rows with a label, and there are {0}")]
    Few(usize),
    /// It is always so, or never, in one part of the rows.
    #[error(
        "among the {part} {rows} rows the label is true {so} times; it must be true and false {LEAST_OF_CLASS} times in the earlier rows, which are learnt from, and in the later ones, which the model is judged by"
    )]
    OneSided {
        /// "earlier" or "later".
        part: &'static str,
        /// Its rows.
        rows: usize,
        /// For how many it is so.
        so: usize,
    },
    /// The library refused.
    #[error("nothing could be learnt: {0}")]
    Refused(String),
}

/// A model, and how good it is.
#[derive(Debug)]
pub struct Trained {
    /// What was learnt.
    pub model: Model,
    /// What it was judged to be.
    pub report: Report,
}

fn share(labels: &[bool]) -> f64 {
    labels.iter().filter(|label| **label).count() as f64 / labels.len().max(1) as f64
}

fn both_classes(part: &'static str, labels: &[bool]) -> Result<(), TrainError> {
    let so = labels.iter().filter(|label| **label).count();
    if so.min(labels.len() - so) < LEAST_OF_CLASS {
        return Err(TrainError::OneSided { part, rows: labels.len(), so });
    }
    Ok(())
}

/// Learns from the earlier rows, and judges by the later ones. The same rows always make the same model.
pub fn train(rows: &Rows) -> Result<Trained, TrainError> {
    let count = rows.labels.len();
    if count < LEAST_ROWS {
        return Err(TrainError::Few(count));
    }
    let mut split = count * LEARNT_FROM / 100;
    // Rows of one moment are on the same side.
    while split > 0 && rows.times[split - 1] == rows.times[split] {
        split -= 1;
    }
    let (earlier, later) = (&rows.labels[..split], &rows.labels[split..]);
    both_classes("earlier", earlier)?;
    both_classes("later", later)?;
    let features = rows.features.iter().enumerate().map(|(at, name)| {
        let values: Vec<f64> = rows.values[..split].iter().map(|row| row[at]).collect();
        Feature::of(name, &values)
    });
    let features: Vec<Feature> = features.collect();
    let whole = |row: &Vec<f64>| -> Vec<f64> {
        let values = row.iter().zip(&features);
        values.map(|(value, feature)| if value.is_finite() { *value } else { feature.mean }).collect()
    };
    let learnt_from = rows.values[..split].iter().map(whole).collect();
    let Learnt { forest, importance } =
        Forest::learn(learnt_from, earlier, features.len()).map_err(TrainError::Refused)?;
    let model = Model::new(features, forest);
    let scores: Vec<f64> = rows.values.iter().map(|row| model.score(&mut row.clone())).collect();
    let (before, after) = scores.split_at(split);
    let threshold = best_threshold(before, earlier);
    let (precision, recall) = precision_and_recall(after, later, threshold);
    let mut importance: Vec<(String, f64)> = rows.features.iter().cloned().zip(importance).collect();
    importance.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    let report = Report {
        train_rows: split,
        test_rows: count - split,
        train_share: share(earlier),
        test_share: share(later),
        split_at: rows.times[split],
        until: rows.times[count - 1],
        auc: auc(after, later),
        precision,
        recall,
        threshold,
        train_auc: auc(before, earlier),
        importance,
        drift: drift(&model, &rows.values[split..]),
    };
    Ok(Trained { model, report })
}

#[cfg(test)]
mod tests {
    use highwater_event::SeededRandomness;

    use super::*;

    /// Rows of which some fail: those with a large amount at night, and few others.
    fn rows(count: usize, told: bool) -> Rows {
        let chance = SeededRandomness::new(3);
        let mut rows =
            Rows { features: vec!["amount".into(), "hour".into(), "noise".into()], ..Rows::default() };
        for row in 0..count {
            let (amount, hour) = (chance.below(1000) as f64, chance.below(24) as f64);
            let risky = if told { amount > 700.0 && hour < 6.0 } else { false };
            let so = chance.below(100) < if risky { 90 } else { 10 };
            let noise = if row % 7 == 0 { f64::NAN } else { chance.below(100) as f64 };
            rows.values.push(vec![amount, hour, noise]);
            rows.labels.push(so);
            rows.times.push(row as i64 * 1_000_000);
        }
        rows
    }

    #[test]
    fn what_is_there_is_learnt() {
        let trained = train(&rows(4000, true)).unwrap();
        let report = &trained.report;
        assert_eq!((report.train_rows, report.test_rows), (3200, 800));
        assert_eq!((report.split_at, report.until), (3200 * 1_000_000, 3999 * 1_000_000));
        assert!(report.auc > 0.6 && report.precision.unwrap() > 0.7, "{report:?}");
        assert!(report.importance.last().unwrap().0 == "noise", "{report:?}");
        assert!(report.drift.iter().all(|moved| moved.psi < 0.1), "{report:?}");
        let model = &trained.model;
        let (risky, safe) = (model.score(&mut [900.0, 2.0, 5.0]), model.score(&mut [100.0, 15.0, 5.0]));
        assert!(risky > 0.6 && safe < 0.3, "{risky} {safe}");
        assert!(model.score(&mut [f64::NAN; 3]) < 0.6);
    }

    /// Where there is nothing to learn the figures say so.
    #[test]
    fn chance_is_called_chance() {
        let report = train(&rows(4000, false)).unwrap().report;
        assert!((report.auc - 0.5).abs() < 0.1, "{report:?}");
        assert!(report.train_auc > report.auc, "{report:?}");
    }

    #[test]
    fn the_same_rows_make_the_same_model_and_it_comes_back() {
        let (one, other) = (train(&rows(1000, true)).unwrap(), train(&rows(1000, true)).unwrap());
        assert_eq!(one.model, other.model);
        let back = Model::parse(&one.model.show().unwrap()).unwrap();
        assert_eq!(back, one.model);
        let text = one.model.show().unwrap();
        assert!(Model::parse(&text.replacen("\"format\":1", "\"format\":2", 1)).is_err());
        assert!(Model::parse(&text[1..]).is_err());
    }

    #[test]
    fn too_little_is_refused() {
        assert_eq!(train(&rows(199, true)).unwrap_err(), TrainError::Few(199));
        let mut always = rows(400, true);
        always.labels = vec![true; 400];
        assert!(matches!(train(&always), Err(TrainError::OneSided { part: "earlier", so: 320, .. })));
        let mut once = rows(400, true);
        once.times = vec![5; 400];
        assert!(matches!(train(&once), Err(TrainError::OneSided { part: "earlier", rows: 0, .. })));
    }
}
