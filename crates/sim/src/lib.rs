//! A disk and a keyed store that behave as badly as they may, for tests of everything that is durable.
//!
//! [`SimDisk`] keeps files in memory and remembers which bytes and names have been synced. A power cut
//! keeps what was synced; of the rest it keeps, tears at sector borders, or forgets each write by
//! chance, in any order. [`SimStore`] loses its newest batches in a crash. Operations can be made to fail, and the disk can be full. Every choice comes
//! from a seed, so a failure can be played again.

mod disk;
mod mutate;
mod store;

pub use disk::{Fault, SimDisk};
pub use mutate::mutate;
pub use store::SimStore;
