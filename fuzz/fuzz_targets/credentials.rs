//! Texts that callers show as tokens, keys and sign-ins, and commands about people; the first byte chooses what for.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/auth/tests/reading/mod.rs"]
mod reading;

use reading::{CREDENTIALS, Issuer};

static ISSUER: LazyLock<Issuer> = LazyLock::new(Issuer::new);

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, bytes)) = bytes.split_first() else { return };
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    ISSUER.check(CREDENTIALS[usize::from(*choice) % CREDENTIALS.len()], text);
});
