//! The decoders on inputs that are almost right: they never panic, account for every event, and take
//! what is right. `HIGHWATER_FUZZ` sets how many inputs, `HIGHWATER_SEED` the first.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod decoding;

use highwater_event::SeededRandomness;
use highwater_ingest::Format;
use highwater_ingest::decode::Decoder;
use highwater_sim::{mutate, setting};

/// Bodies that are right; the coverage-guided inputs begin with them, too. Their first byte chooses the format there.
const BODIES: [(Format, &str); 4] = [
    (Format::Json, include_str!("../../../fuzz/seeds/decode/json")),
    (Format::NdJson, include_str!("../../../fuzz/seeds/decode/ndjson")),
    (Format::Csv, include_str!("../../../fuzz/seeds/decode/csv")),
    (Format::CloudEvents, include_str!("../../../fuzz/seeds/decode/cloudevents")),
];

#[test]
fn decoders_never_panic_and_account_for_every_event() {
    let (seed, count) = (setting("HIGHWATER_SEED", 1), setting("HIGHWATER_FUZZ", 40_000));
    println!("seed {seed}, {count} inputs");
    let chance = SeededRandomness::new(seed);
    let decoder = Decoder::new(decoding::schema()).unwrap();
    let (mut good, mut bad, mut refused) = (0, 0, 0);
    for number in 0..count {
        let (format, text) = BODIES[number as usize % BODIES.len()];
        let mut body = text.as_bytes()[1..].to_vec();
        mutate(&mut body, &chance);
        let verdicts = decoding::check(&decoder, &body, format);
        good += verdicts.good;
        bad += verdicts.bad;
        refused += u64::from(verdicts.refused);
    }
    println!("{good} events taken, {bad} refused, {refused} bodies refused as a whole");
    assert!(good > 0 && bad > 0 && refused > 0);
}
