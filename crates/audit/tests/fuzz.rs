//! Proofs, notes, statements, keys, copies of the trail that are almost right: reading them never panics, and nothing verifies that nobody
//! signed. `HIGHWATER_FUZZ` sets how many, `HIGHWATER_SEED` the first.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod reading;

use highwater_event::SeededRandomness;
use highwater_sim::{mutate, setting};
use reading::{PARTS, Part, Trail};

#[test]
fn almost_right_parts_of_a_trail_never_panic_and_never_verify() {
    let (seed, count) = (setting("HIGHWATER_SEED", 1), setting("HIGHWATER_FUZZ", 20_000));
    println!("seed {seed}, {count} inputs");
    let chance = SeededRandomness::new(seed);
    let trail = Trail::new();
    for part in PARTS {
        let (sample, readable) = (trail.sample(part), part != Part::TilePath && part != Part::Answer);
        assert_eq!(trail.check(part, &sample), readable, "{part:?} as it is:\n{sample}");
    }
    let (mut read, mut refused) = (0, 0);
    for number in 0..count {
        let part = PARTS[number as usize % PARTS.len()];
        let mut bytes = trail.sample(part).into_bytes();
        mutate(&mut bytes, &chance);
        let Ok(text) = String::from_utf8(bytes) else { continue };
        if trail.check(part, &text) {
            read += 1;
        } else {
            refused += 1;
        }
    }
    println!("{read} read, {refused} refused");
    assert!(read > 0 && refused > 0);
}
