//! Tokens, keys, sign-ins and commands that are almost right: reading them never panics, and none is believed that was not issued.
//! `HIGHWATER_FUZZ` sets how many, `HIGHWATER_SEED` the first.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod reading;

use highwater_event::SeededRandomness;
use highwater_sim::{mutate, setting};
use reading::{CREDENTIALS, Issuer};

#[test]
fn almost_right_credentials_never_panic_and_are_never_believed() {
    let (seed, count) = (setting("HIGHWATER_SEED", 1), setting("HIGHWATER_FUZZ", 20_000));
    println!("seed {seed}, {count} inputs");
    let chance = SeededRandomness::new(seed);
    let issuer = Issuer::new();
    for credential in CREDENTIALS {
        assert!(issuer.check(credential, &issuer.sample(credential)), "{credential:?} as it is");
    }
    let (mut read, mut refused) = (0, 0);
    for number in 0..count {
        let credential = CREDENTIALS[number as usize % CREDENTIALS.len()];
        let mut bytes = issuer.sample(credential).into_bytes();
        mutate(&mut bytes, &chance);
        let Ok(text) = String::from_utf8(bytes) else { continue };
        if issuer.check(credential, &text) {
            read += 1;
        } else {
            refused += 1;
        }
    }
    println!("{read} read, {refused} refused");
    assert!(read > 0 && refused > 0);
}
