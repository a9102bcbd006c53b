//! Texts that are taken for SQL, whatever is done with them.

#[path = "../../crates/sql/tests/parsing/mod.rs"]
mod parsing;

thread_local! {
    static PARSING: parsing::Parsing = parsing::Parsing::new();
}

/// Parses an input in every way, and plans it when that is asked for, too.
pub fn check(input: &[u8], plan: bool) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    PARSING.with(|parsing| parsing.check(text, plan));
}
