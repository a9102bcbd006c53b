//! What a table keeps under each key, and how keys are written.

use std::cmp::Ordering;

use highwater_log::fold::Stored;
use serde::{Deserialize, Serialize};

/// A value inside a state. Times are microseconds, dates days.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Value {
    /// No value yet.
    Null,
    /// BOOLEAN.
    Bool(bool),
    /// Integers, times and dates.
    Int(i64),
    /// DOUBLE.
    Float(f64),
    /// DECIMAL at the scale of its column.
    Decimal(i128),
    /// TEXT.
    Text(Box<str>),
}

impl Value {
    /// Order of two values of one column; NaN is above every number, as DataFusion has it.
    pub fn order(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => a.cmp(b),
            (Self::Int(a), Self::Int(b)) => a.cmp(b),
            (Self::Float(a), Self::Float(b)) => a.total_cmp(b),
            (Self::Decimal(a), Self::Decimal(b)) => a.cmp(b),
            (Self::Text(a), Self::Text(b)) => a.cmp(b),
            _ => Ordering::Equal,
        }
    }

    /// The sum; `None` when it does not fit. Null adds nothing.
    pub fn plus(&self, other: &Self) -> Option<Self> {
        Some(match (self, other) {
            (Self::Null, value) | (value, Self::Null) => value.clone(),
            (Self::Int(a), Self::Int(b)) => Self::Int(a.checked_add(*b)?),
            (Self::Float(a), Self::Float(b)) => Self::Float(a + b),
            (Self::Decimal(a), Self::Decimal(b)) => Self::Decimal(a.checked_add(*b)?),
            _ => return None,
        })
    }

    fn weight(&self) -> usize {
        size_of::<Self>() + if let Self::Text(text) = self { text.len() } else { 0 }
    }
}

/// The state of one aggregate of one group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Partial {
    /// COUNT.
    Count(i64),
    /// SUM.
    Sum(Value),
    /// MIN or MAX.
    Extreme(Value),
    /// AVG.
    Average(Value, i64),
    /// LATEST_BY_OFFSET: recorded at, offset, value.
    Latest(i64, u64, Value),
    /// COLLECT_LIST: recorded at, offset, value. The place keeps the order of the log when the panes of a
    /// window are joined.
    List(Vec<(i64, u64, Value)>),
}

/// What is kept under a key: a partial per aggregate and when the last row came.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupState {
    /// In the order of the statement's aggregates.
    pub partials: Vec<Partial>,
    /// When the log took the newest row of the group, microseconds UTC.
    pub last_updated_at: i64,
}

impl Stored for GroupState {
    fn encode(&self, out: &mut Vec<u8>) {
        if let Err(error) = postcard::to_io(self, out) {
            // Writing to memory fails only when memory does.
            tracing::error!(%error, "a state could not be encoded");
        }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok()
    }

    fn weight(&self) -> usize {
        size_of::<Self>()
            + self
                .partials
                .iter()
                .map(|partial| {
                    size_of::<Partial>()
                        + match partial {
                            Partial::List(values) => {
                                values.iter().map(|(_, _, value)| 16 + value.weight()).sum()
                            }
                            Partial::Sum(value)
                            | Partial::Extreme(value)
                            | Partial::Average(value, _)
                            | Partial::Latest(_, _, value) => value.weight(),
                            Partial::Count(_) => 0,
                        }
                })
                .sum::<usize>()
    }
}

/// The start of a pane as the first bytes of a key, in order of time.
pub fn pane_prefix(start: i64) -> [u8; 8] {
    ((start as u64) ^ (1 << 63)).to_be_bytes()
}

/// Reads back [`pane_prefix`]; the rest of the key follows.
pub fn split_pane(key: &[u8]) -> Option<(i64, &[u8])> {
    let (head, rest) = key.split_first_chunk::<8>()?;
    Some(((u64::from_be_bytes(*head) ^ (1 << 63)) as i64, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panes_sort_by_time_and_come_back() {
        let starts = [i64::MIN, -60_000_000, 0, 60_000_000, i64::MAX];
        let keys: Vec<_> = starts.iter().map(|start| pane_prefix(*start)).collect();
        assert!(keys.is_sorted());
        for (start, key) in starts.iter().zip(&keys) {
            assert_eq!(split_pane(key), Some((*start, &[][..])));
        }
        assert_eq!(split_pane(&[0; 7]), None);
    }

    #[test]
    fn states_survive_storage() {
        let state = GroupState {
            partials: vec![
                Partial::Count(3),
                Partial::Sum(Value::Decimal(-(1 << 100))),
                Partial::Latest(7, 8, Value::Text("é".into())),
                Partial::List(vec![
                    (1, 2, Value::Int(1)),
                    (3, 4, Value::Bool(true)),
                    (5, 6, Value::Float(0.5)),
                ]),
            ],
            last_updated_at: 5,
        };
        let mut bytes = Vec::new();
        state.encode(&mut bytes);
        assert_eq!(GroupState::decode(&bytes), Some(state));
    }
}
