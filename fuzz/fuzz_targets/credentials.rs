//! Texts that callers show as tokens, keys and sign-ins, and commands about people.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

mod changed;
mod chosen;
#[path = "../../crates/auth/tests/reading/mod.rs"]
mod reading;

use reading::{CREDENTIALS, Issuer};

static ISSUER: LazyLock<Issuer> = LazyLock::new(Issuer::new);

fuzz_target!(|bytes: &[u8]| {
    if let Some((credential, text)) =
        chosen::chosen(bytes, &CREDENTIALS, |credential| ISSUER.sample(credential))
    {
        ISSUER.check(credential, &text);
    }
});
