//! Who acts.

use std::sync::Arc;

/// The one on whose behalf something happens. It travels as a value through every room.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Principal {
    /// Stable name; event ids are unique per principal.
    pub name: Arc<str>,
}

impl Principal {
    /// The holder of the operator's token.
    pub fn operator() -> Self {
        Self { name: "operator".into() }
    }

    /// The engine itself: derived streams and generators of the demo.
    pub fn engine() -> Self {
        Self { name: "engine".into() }
    }
}
