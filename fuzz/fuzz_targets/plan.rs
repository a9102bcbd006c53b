//! Scripts that are planned. A plan takes a hundred times as long as the parsing, so that this is a target of its own.

#![no_main]

use libfuzzer_sys::fuzz_target;

mod statements;

fuzz_target!(|bytes: &[u8]| statements::check(bytes, true));
