//! The vocabulary of Highwater: names, offsets, schemas, envelopes, canonical bytes, and the traits
//! through which the rest of the program meets time and chance.
//!
//! Nothing here does I/O and nothing here knows how events are stored or served. Every other room
//! may import this one; this one imports none.

pub mod canonical;
pub mod clock;
pub mod columns;
pub mod condition;
pub mod hexadecimal;
pub mod identity;
pub mod json;
pub mod name;
pub mod planted;
pub mod random;
pub mod reaction;
pub mod schema;
pub mod search;
pub mod sensitive;
pub mod time;

pub use canonical::{Digest128, comparable_json};
pub use clock::{Clock, ManualClock, SystemClock};
pub use condition::Condition;
pub use identity::Principal;
pub use name::{NameError, Offset, Partition, StreamName, StreamPartition};
pub use random::{Randomness, SeededRandomness, SystemRandomness};
pub use reaction::Reaction;
pub use schema::{Column, SchemaError, StreamOptions, StreamSchema};
pub use sensitive::Sensitive;
