//! How good scores are.

use smartcore::metrics::Metrics;
use smartcore::metrics::auc::AUC;

/// How likely a row for which it is so has a higher score than one for which it is not.
pub fn auc(scores: &[f64], labels: &[bool]) -> f64 {
    let labels: Vec<f64> = labels.iter().map(|label| f64::from(u8::from(*label))).collect();
    AUC::new().get_score(&labels, &scores.to_vec())
}

/// Precision and recall of a threshold; no precision when no score comes up to it.
pub fn precision_and_recall(scores: &[f64], labels: &[bool], threshold: f64) -> (Option<f64>, f64) {
    let (mut found, mut said, mut so) = (0.0, 0.0, 0.0);
    for (score, label) in scores.iter().zip(labels) {
        let is_said = *score >= threshold;
        said += f64::from(u8::from(is_said));
        so += f64::from(u8::from(*label));
        found += f64::from(u8::from(is_said && *label));
    }
    ((said > 0.0).then(|| found / said), if so > 0.0 { found / so } else { 0.0 })
}

/// The score from which on precision and recall are best together (their harmonic mean).
pub fn best_threshold(scores: &[f64], labels: &[bool]) -> f64 {
    let mut rows: Vec<(f64, bool)> = scores.iter().copied().zip(labels.iter().copied()).collect();
    rows.sort_by(|(one, _), (other, _)| other.total_cmp(one));
    let so = labels.iter().filter(|label| **label).count() as f64;
    let (mut best, mut threshold, mut found) = (0.0, 0.5, 0.0);
    for (at, (score, label)) in rows.iter().enumerate() {
        found += f64::from(u8::from(*label));
        // Rows with the same score are on the same side.
        if rows.get(at + 1).is_some_and(|(next, _)| next == score) {
            continue;
        }
        let together = 2.0 * found / ((at + 1) as f64 + so);
        if together > best {
            (best, threshold) = (together, *score);
        }
    }
    threshold
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_the_textbook() {
        let scores = [0.1, 0.4, 0.35, 0.8];
        let labels = [false, false, true, true];
        assert_eq!(auc(&scores, &labels), 0.75);
        assert_eq!(precision_and_recall(&scores, &labels, 0.35), (Some(2.0 / 3.0), 1.0));
        assert_eq!(precision_and_recall(&scores, &labels, 0.9), (None, 0.0));
        assert_eq!(best_threshold(&scores, &labels), 0.35);
        // Equal scores tell nothing.
        assert_eq!(auc(&[0.5; 4], &labels), 0.5);
        assert_eq!(best_threshold(&[0.5; 4], &labels), 0.5);
    }
}
