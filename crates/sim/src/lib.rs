//! A disk that behaves as badly as disks may, for tests of everything that is durable.
//!
//! [`SimDisk`] keeps files in memory and remembers which bytes and names have been synced. A power cut
//! keeps what was synced; of the rest it keeps, tears at sector borders, or forgets each write by
//! chance, in any order. Operations can be made to fail, and the disk can be full. Every choice comes
//! from a seed, so a failure can be played again.

mod disk;

pub use disk::{Fault, SimDisk};
