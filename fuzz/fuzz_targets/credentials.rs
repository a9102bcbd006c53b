//! Texts that callers show as tokens, keys and sign-ins, and commands about people; the first byte chooses what for. What stands
//! behind it is the text itself, or changes of one that is right.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

mod changed;
#[path = "../../crates/auth/tests/reading/mod.rs"]
mod reading;

use changed::changed;
use reading::{CREDENTIALS, Issuer};

static ISSUER: LazyLock<Issuer> = LazyLock::new(Issuer::new);

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, bytes)) = bytes.split_first() else { return };
    let choice = usize::from(*choice);
    let credential = CREDENTIALS[choice % CREDENTIALS.len()];
    let text = match choice / CREDENTIALS.len() % 2 {
        0 => bytes.to_vec(),
        _ => changed(ISSUER.sample(credential).into_bytes(), bytes),
    };
    if let Ok(text) = std::str::from_utf8(&text) {
        ISSUER.check(credential, text);
    }
});
