//! Texts that are taken for proofs, notes, statements, keys, paths of tiles or a copy of the trail.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

mod changed;
mod chosen;
#[path = "../../crates/audit/tests/reading/mod.rs"]
mod reading;

use reading::{PARTS, Trail};

static TRAIL: LazyLock<Trail> = LazyLock::new(Trail::new);

fuzz_target!(|bytes: &[u8]| {
    if let Some((part, text)) = chosen::chosen(bytes, &PARTS, |part| TRAIL.sample(part)) {
        TRAIL.check(part, &text);
    }
});
