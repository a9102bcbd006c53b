//! Texts that are taken for SQL: scripts, questions, live queries. They are parsed; `plan` plans them.

#![no_main]

use libfuzzer_sys::fuzz_target;

mod statements;

fuzz_target!(|bytes: &[u8]| statements::check(bytes, false));
