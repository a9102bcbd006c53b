//! A machine that behaves as badly as it may, for tests of everything that is durable or goes on at the same time.
//!
//! [`SimDisk`] keeps files in memory and remembers which bytes and names have been synced. A power cut
//! keeps what was synced; of the rest it keeps, tears at sector borders, or forgets each write by
//! chance, in any order. [`SimStore`] loses its newest batches in a crash. Operations can be made to fail,
//! and the disk can be full. [`SimScheduler`] runs tasks, threads and waits one step at a time, in an order of
//! its own, and [`SimClock`] shows whatever time it is set to. Every choice comes from a seed, so a failure can
//! be played again.

mod disk;
mod keys;
mod machine;
mod mutate;
mod scheduler;
mod setting;
mod store;

pub use disk::{Fault, SimDisk};
pub use keys::{SimKeys, vault};
pub use machine::machine;
pub use mutate::mutate;
pub use scheduler::{SimClock, SimScheduler};
pub use setting::setting;
pub use store::SimStore;
