//! A machine with a simulated disk.

use std::sync::Arc;

use highwater_event::{Clock, SeededRandomness};
use highwater_log::Machine;

use crate::SimDisk;

/// A machine with real threads, a simulated disk, a clock, and chance that is always the same.
pub fn machine(disk: &SimDisk, clock: impl Clock + 'static) -> Machine {
    Machine {
        clock: Arc::new(clock),
        randomness: Arc::new(SeededRandomness::new(1)),
        disk: Arc::new(disk.clone()),
        ..Machine::real()
    }
}
