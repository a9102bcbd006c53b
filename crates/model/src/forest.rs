//! Boosted trees: learnt by smartcore, kept and walked in a form of our own.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use smartcore::linalg::basic::matrix::DenseMatrix;
use smartcore::xgboost::{XGRegressor, XGRegressorParameters};

use crate::exact;

/// Trees of a forest.
const TREES: usize = 60;
/// Decisions from the root of a tree to a leaf.
const DEPTH: u16 = 3;
/// How much of what a tree says is taken.
const RATE: f64 = 0.1;
/// The part of the rows that a leaf is of, at least; smaller ones are learnt by heart.
const LEAF_PART: usize = 100;
/// Share of the rows that a tree is made of.
const SAMPLED: f64 = 0.6;

/// A place in a tree.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Node {
    /// The feature that is looked at.
    feature: u32,
    /// Values up to it go left.
    #[serde(with = "exact")]
    bound: f64,
    /// Place of the left node; 0 when this is a leaf.
    left: u32,
    /// Place of the right node.
    right: u32,
    /// What a leaf says.
    #[serde(with = "exact")]
    value: f64,
}

/// Trees whose words add up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Forest {
    #[serde(with = "exact")]
    base: f64,
    #[serde(with = "exact")]
    rate: f64,
    trees: Vec<Vec<Node>>,
}

fn parameters(base: f64, rows: usize) -> XGRegressorParameters {
    XGRegressorParameters::default()
        .with_n_estimators(TREES)
        .with_max_depth(DEPTH)
        .with_learning_rate(RATE)
        .with_min_child_weight((rows / LEAF_PART).max(1))
        .with_subsample(SAMPLED)
        .with_base_score(base)
        .with_seed(1)
}

/// What was learnt, and how much each feature has told.
pub struct Learnt {
    pub forest: Forest,
    pub importance: Vec<f64>,
}

impl Forest {
    /// Learns from rows of finite values and whether it is so for each.
    pub fn learn(rows: Vec<Vec<f64>>, labels: &[bool], features: usize) -> Result<Learnt, String> {
        let so = labels.iter().filter(|label| **label).count();
        let base = so as f64 / labels.len().max(1) as f64;
        let labels: Vec<f64> = labels.iter().map(|label| f64::from(u8::from(*label))).collect();
        let rows = DenseMatrix::from_2d_vec(&rows).map_err(|error| error.to_string())?;
        let learnt = XGRegressor::fit(&rows, &labels, parameters(base, labels.len()))
            .map_err(|error| error.to_string())?;
        let learnt = serde_json::to_value(&learnt).map_err(|error| error.to_string())?;
        let trees = learnt["regressors"].as_array().ok_or("the trees that were learnt can't be read")?;
        let mut importance = vec![0.0; features];
        let mut forest = Self { base, rate: RATE, trees: Vec::with_capacity(trees.len()) };
        for tree in trees {
            let mut nodes = Vec::new();
            read(tree, &mut nodes, &mut importance).ok_or("a tree that was learnt can't be read")?;
            forest.trees.push(nodes);
        }
        let all: f64 = importance.iter().sum();
        if all > 0.0 {
            importance.iter_mut().for_each(|told| *told /= all);
        }
        Ok(Learnt { forest, importance })
    }

    /// What the trees say together.
    pub fn score(&self, values: &[f64]) -> f64 {
        self.trees.iter().fold(self.base, |score, tree| score + self.rate * walk(tree, values))
    }

    /// Whether every path through every tree ends, and looks at features that there are.
    pub fn is_sound(&self, features: usize) -> bool {
        let sound = |tree: &Vec<Node>| {
            let inside = |(at, node): (usize, &Node)| {
                node.left == 0
                    || ((node.feature as usize) < features
                        && [node.left, node.right].iter().all(|next| {
                            // Further on, so that no walk goes round.
                            (*next as usize) > at && (*next as usize) < tree.len()
                        }))
            };
            !tree.is_empty() && tree.iter().enumerate().all(inside)
        };
        self.trees.iter().all(sound)
    }
}

fn walk(tree: &[Node], values: &[f64]) -> f64 {
    let mut at = 0;
    while let Some(node) = tree.get(at) {
        if node.left == 0 {
            return node.value;
        }
        let value = values.get(node.feature as usize).copied().unwrap_or_default();
        at = if value <= node.bound { node.left } else { node.right } as usize;
    }
    0.0
}

/// Takes a tree of smartcore's in; answers the place of its root.
fn read(tree: &Value, nodes: &mut Vec<Node>, importance: &mut [f64]) -> Option<u32> {
    let at = nodes.len();
    let leaf = Node { feature: 0, bound: 0.0, left: 0, right: 0, value: tree["value"].as_f64()? };
    nodes.push(leaf);
    if !tree["left"].is_null() {
        let feature = tree["split_feature_idx"].as_u64()?;
        *importance.get_mut(feature as usize)? += tree["split_score"].as_f64()?;
        let left = read(&tree["left"], nodes, importance)?;
        let right = read(&tree["right"], nodes, importance)?;
        nodes[at] = Node { feature: feature as u32, bound: tree["threshold"].as_f64()?, left, right, ..leaf };
    }
    Some(at as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Our walk says what smartcore says.
    #[test]
    fn a_forest_says_what_was_learnt() {
        let rows: Vec<Vec<f64>> =
            (0..600).map(|row| vec![f64::from(row % 37), f64::from(row % 11), f64::from(row % 5)]).collect();
        let labels: Vec<bool> = rows.iter().map(|row| row[0] > 20.0 && row[1] < 6.0).collect();
        let learnt = Forest::learn(rows.clone(), &labels, 3).unwrap();
        assert!(learnt.forest.is_sound(3) && !learnt.forest.is_sound(1));
        let matrix = DenseMatrix::from_2d_vec(&rows).unwrap();
        let base = labels.iter().filter(|label| **label).count() as f64 / 600.0;
        let parameters = parameters(base, labels.len());
        let values: Vec<f64> = labels.iter().map(|label| f64::from(u8::from(*label))).collect();
        let theirs = XGRegressor::fit(&matrix, &values, parameters).unwrap().predict(&matrix).unwrap();
        for (row, theirs) in rows.iter().zip(theirs) {
            assert!((learnt.forest.score(row) - theirs).abs() < 1e-12);
        }
        assert!(learnt.importance[2] < 0.05 && learnt.importance[0] > 0.3, "{:?}", learnt.importance);
    }

    #[test]
    fn a_tree_that_goes_round_is_not_sound() {
        let node = |left, right| Node { feature: 0, bound: 0.0, left, right, value: 1.0 };
        let forest = |trees| Forest { base: 0.0, rate: 1.0, trees };
        assert!(forest(vec![vec![node(1, 2), node(0, 0), node(0, 0)]]).is_sound(1));
        for bad in [vec![node(1, 1), node(1, 1)], vec![node(1, 9), node(0, 0)], vec![]] {
            assert!(!forest(vec![bad]).is_sound(1));
        }
    }
}
