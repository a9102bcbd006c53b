//! Scripts that are planned. A plan takes a hundred times as long as the parsing, so that this is a target of its own.

#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};

mod statements;
mod words;

fuzz_target!(|bytes: &[u8]| statements::check(bytes, true));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    words::change(data, size, max_size, seed, include_str!("../dictionaries/sql.dict"))
});
