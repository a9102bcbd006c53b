//! Names of streams and positions inside them.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Position of an event inside one partition of one stream, counted from 0 without gaps.
pub type Offset = u64;

/// Number of a partition inside a stream, counted from 0.
pub type Partition = u32;

/// The longest name that is accepted, in bytes: it becomes a folder in the lake.
pub const MAX_NAME_BYTES: usize = 128;

/// The name of a stream or table: lower case, `[a-z_][a-z0-9_]*`. Upper case is accepted and folded,
/// because SQL users write it; a leading underscore is kept for streams of the system.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StreamName(Arc<str>);

/// Why a text is not a name.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error(
    "\"{name}\" is not a name: use 1 to {MAX_NAME_BYTES} letters, digits and underscores, not starting with a digit"
)]
pub struct NameError {
    /// The text as given.
    pub name: String,
}

impl StreamName {
    /// Checks and folds a name.
    pub fn new(name: impl AsRef<str>) -> Result<Self, NameError> {
        let name = name.as_ref();
        let mut bytes = name.bytes();
        let head = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
        let tail = bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if head && tail && name.len() <= MAX_NAME_BYTES {
            Ok(Self(name.to_ascii_lowercase().into()))
        } else {
            Err(NameError { name: name.chars().take(MAX_NAME_BYTES).collect() })
        }
    }

    /// A name of the system, known to be well formed.
    pub fn system(name: &'static str) -> Self {
        debug_assert!(Self::new(name).is_ok_and(|n| n.as_str() == name));
        Self(name.into())
    }

    /// The name as it is stored: lower case.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as the first application shows it: upper case.
    pub fn shown(&self) -> String {
        self.0.to_ascii_uppercase()
    }

    /// The name as users know it: without the version that a replaced statement has in the log.
    pub fn public(&self) -> &str {
        self.0.split('@').next().unwrap_or(&self.0)
    }

    /// Which version of the name this is, from 1. A statement that replaces another, or takes the name
    /// of a dropped one, has a history of its own in the log, under the next version: `orders@2`.
    pub fn version(&self) -> u32 {
        self.0.split_once('@').and_then(|(_, version)| version.parse().ok()).unwrap_or(1)
    }

    /// The same name in another version.
    pub fn at_version(&self, version: u32) -> Self {
        if version <= 1 {
            Self(self.public().into())
        } else {
            Self(format!("{}@{version}", self.public()).into())
        }
    }

    /// True for `_system`, `_dead_letters` and the like, which nobody may declare.
    pub fn is_system(&self) -> bool {
        self.0.starts_with('_')
    }
}

impl TryFrom<String> for StreamName {
    type Error = NameError;
    fn try_from(name: String) -> Result<Self, NameError> {
        match name.split_once('@') {
            None => Self::new(name),
            Some((base, version)) => match version.parse::<u32>() {
                Ok(number) if number > 1 && version == number.to_string() => {
                    Ok(Self::new(base)?.at_version(number))
                }
                _ => Err(NameError { name }),
            },
        }
    }
}

impl From<StreamName> for String {
    fn from(name: StreamName) -> String {
        name.0.to_string()
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One partition of one stream: the unit that has an order.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StreamPartition {
    /// The stream.
    pub stream: StreamName,
    /// The partition inside it.
    pub partition: Partition,
}

impl StreamPartition {
    /// Names a partition.
    pub fn new(stream: StreamName, partition: Partition) -> Self {
        Self { stream, partition }
    }
}

impl fmt::Display for StreamPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.stream, self.partition)
    }
}

impl fmt::Debug for StreamPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The name in `known` that is nearest to `name`, for "did you mean" hints. `None` when nothing is near.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_ascii_lowercase();
    known
        .into_iter()
        .map(|candidate| (edit_distance(&name, &candidate.to_ascii_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len().min(name.len()) / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let cost = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = cost.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fold_and_refuse() {
        assert_eq!(StreamName::new("Transaction_Log").map(|n| n.to_string()), Ok("transaction_log".into()));
        for bad in ["", "1a", "a-b", "a/b", "é", "..", &"x".repeat(129)] {
            assert!(StreamName::new(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn versions_are_parts_of_stored_names_only() {
        let orders = StreamName::new("orders").unwrap();
        let second = orders.at_version(2);
        assert_eq!((second.as_str(), second.public(), second.version()), ("orders@2", "orders", 2));
        assert_eq!(second.at_version(1), orders);
        assert_eq!(StreamName::try_from("orders@2".to_owned()), Ok(second));
        for bad in ["orders@", "orders@1", "orders@02", "orders@x", "@2"] {
            assert!(StreamName::try_from(bad.to_owned()).is_err(), "{bad}");
        }
        assert!(StreamName::new("orders@2").is_err(), "users can't write versions");
    }

    #[test]
    fn nearest_finds_typos_only() {
        assert_eq!(nearest("paymnts", ["payments", "orders"]), Some("payments"));
        assert_eq!(nearest("zebra", ["payments", "orders"]), None);
    }
}
