//! Bodies of events in every format; the first byte chooses it.

#![no_main]

use std::sync::LazyLock;

use highwater_ingest::Format;
use highwater_ingest::decode::Decoder;
use libfuzzer_sys::{fuzz_mutator, fuzz_target};

#[path = "../../crates/ingest/tests/decoding/mod.rs"]
mod decoding;
mod words;

static DECODER: LazyLock<Decoder> = LazyLock::new(|| Decoder::new(decoding::schema()).unwrap());

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, body)) = bytes.split_first() else { return };
    let format = match choice % 4 {
        0 => Format::Json,
        1 => Format::NdJson,
        2 => Format::Csv,
        _ => Format::CloudEvents,
    };
    decoding::check(&DECODER, body, format);
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    words::change(data, size, max_size, seed, include_str!("../dictionaries/decode.dict"))
});
