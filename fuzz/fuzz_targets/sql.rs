//! Texts that are taken for SQL: scripts, questions, live queries. They are parsed; `plan` plans them.

#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};

mod statements;
mod words;

fuzz_target!(|bytes: &[u8]| statements::check(bytes, false));

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    words::change(data, size, max_size, seed, include_str!("../dictionaries/sql.dict"))
});
