//! Scripts that are planned. A plan takes a hundred times as long as the parsing, so that this is a target of its own.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/sql/tests/parsing/mod.rs"]
mod parsing;

thread_local! {
    static PARSING: parsing::Parsing = parsing::Parsing::new();
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    PARSING.with(|parsing| parsing.check(text, true));
});
