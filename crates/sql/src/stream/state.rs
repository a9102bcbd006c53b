//! What a table keeps under each key, and how keys are written.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use highwater_log::fold::Stored;
use serde::{Deserialize, Serialize};

use super::sketch::Sketch;

/// A value inside a state. Times are microseconds, dates days.
#[derive(Debug, Clone, Serialize, Deserialize)]
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

impl Ord for Value {
    /// Order of two values of one column, nulls first; NaN is above every number, as DataFusion has it.
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Bool(a), Self::Bool(b)) => a.cmp(b),
            (Self::Int(a), Self::Int(b)) => a.cmp(b),
            (Self::Float(a), Self::Float(b)) => a.total_cmp(b),
            (Self::Decimal(a), Self::Decimal(b)) => a.cmp(b),
            (Self::Text(a), Self::Text(b)) => a.cmp(b),
            (a, b) => a.kind().cmp(&b.kind()),
        }
    }
}

impl PartialOrd for Value {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Value {}

impl Value {
    fn kind(&self) -> u8 {
        match self {
            Self::Null => 0,
            Self::Bool(_) => 1,
            Self::Int(_) => 2,
            Self::Float(_) => 3,
            Self::Decimal(_) => 4,
            Self::Text(_) => 5,
        }
    }

    /// Bytes that tell it from every other value of its column.
    pub fn bytes(&self, out: &mut Vec<u8>) {
        out.push(self.kind());
        match self {
            Self::Null => {}
            Self::Bool(value) => out.push(u8::from(*value)),
            Self::Int(value) => out.extend_from_slice(&value.to_le_bytes()),
            Self::Float(value) => out.extend_from_slice(&value.to_le_bytes()),
            Self::Decimal(value) => out.extend_from_slice(&value.to_le_bytes()),
            Self::Text(value) => out.extend_from_slice(value.as_bytes()),
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
    /// VAR and STDDEV: count, mean, and sum of squared distances from it (Welford 1962).
    Moments(u64, f64, f64),
    /// COUNT(DISTINCT x) and COLLECT_SET: every value once.
    Set(BTreeSet<Value>),
    /// APPROX_COUNT_DISTINCT.
    Sketch(Sketch),
    /// TOPK: the largest values, largest first.
    Top(Vec<Value>),
    /// Sessions of a key to which rows may still come, in order of time.
    Sessions(Vec<Session>),
    /// Rows that wait for their match in a join.
    Rows(Vec<KeptRow>),
}

/// A session that may still grow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// Event time of its first row, microseconds UTC.
    pub start: i64,
    /// Event time of its last row.
    pub last: i64,
    /// What its rows were folded into.
    pub state: GroupState,
}

/// A row that one side of a join keeps for the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptRow {
    /// Which side it came from: 0 left, 1 right.
    pub side: u8,
    /// Its event time, or the time that it is matched by, microseconds UTC.
    pub time: i64,
    /// When the log took it.
    pub recorded_at: i64,
    /// Its lane, to order rows of one commit.
    pub lane: u32,
    /// Its offset.
    pub offset: u64,
    /// LEFT JOIN: a row of the left that has found a match.
    pub matched: bool,
    /// LEFT JOIN: a row of the left that has left without one.
    pub gone: bool,
    /// Its columns.
    pub row: Box<[u8]>,
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
                            Partial::Count(_) | Partial::Moments(..) => 0,
                            Partial::Set(values) => values.iter().map(|value| 32 + value.weight()).sum(),
                            Partial::Sketch(sketch) => sketch.weight(),
                            Partial::Top(values) => values.iter().map(Value::weight).sum(),
                            Partial::Sessions(sessions) => {
                                sessions.iter().map(|session| 16 + session.state.weight()).sum()
                            }
                            Partial::Rows(rows) => {
                                rows.iter().map(|row| size_of::<KeptRow>() + row.row.len()).sum()
                            }
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
                Partial::Set([Value::Null, Value::Float(f64::NAN), Value::Text("a".into())].into()),
                Partial::Moments(3, 0.5, 1.5),
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
