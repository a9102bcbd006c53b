//! Texts that are taken for proofs, notes, statements, keys, paths of tiles or a copy of the trail; the first byte chooses what for. What stands
//! behind it is the text itself, or changes of one that is right.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

mod changed;
#[path = "../../crates/audit/tests/reading/mod.rs"]
mod reading;

use changed::changed;
use reading::{PARTS, Trail};

static TRAIL: LazyLock<Trail> = LazyLock::new(Trail::new);

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, bytes)) = bytes.split_first() else { return };
    let choice = usize::from(*choice);
    let part = PARTS[choice % PARTS.len()];
    let text = match choice / PARTS.len() % 2 {
        0 => bytes.to_vec(),
        _ => changed(TRAIL.sample(part).into_bytes(), bytes),
    };
    if let Ok(text) = std::str::from_utf8(&text) {
        TRAIL.check(part, text);
    }
});
