//! Who acts.

use std::sync::Arc;

/// The tenant of a node's owner, whose people look after the node itself.
pub const HOME: &str = "default";

/// Who acts without a credential.
pub const ANONYMOUS: &str = "anonymous";

/// The one on whose behalf something happens. It travels as a value through every room.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Principal {
    /// Stable name; event ids are unique per principal.
    pub name: Arc<str>,
    /// Whose data it works on.
    pub tenant: Arc<str>,
    /// It sees the data of every tenant.
    pub everywhere: bool,
}

impl Principal {
    /// Somebody of a tenant.
    pub fn new(name: impl Into<Arc<str>>, tenant: impl Into<Arc<str>>) -> Self {
        Self { name: name.into(), tenant: tenant.into(), everywhere: false }
    }

    /// Whether it sees the data of a tenant: its own, or that of every one.
    pub fn is_of(&self, tenant: &str) -> bool {
        self.everywhere || *self.tenant == *tenant
    }

    /// The holder of the operator's token.
    pub fn operator() -> Self {
        Self { everywhere: true, ..Self::new("operator", HOME) }
    }

    /// The engine itself: derived streams and generators of the demo.
    pub fn engine() -> Self {
        Self { everywhere: true, ..Self::new("engine", HOME) }
    }
}
