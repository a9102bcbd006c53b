//! Searches, the texts that they are held against, times and hexadecimal digits. The first line is searched for in the others.

#![no_main]

use highwater_event::search::{Search, Words};
use highwater_event::{hexadecimal, time};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Some(micros) = time::parse_micros(text) {
        assert_eq!(time::parse_micros(&time::show_micros(micros)), Some(micros), "{text}");
    }
    if let Some(bytes) = hexadecimal::read(text) {
        assert_eq!(hexadecimal::read(&hexadecimal::show(&bytes)), Some(bytes), "{text}");
    }
    let (wanted, text) = text.split_once('\n').unwrap_or((text, text));
    let mut words = Words::default();
    words.read_json(text);
    let Ok(search) = Search::read(wanted) else { return };
    search.finds(&words);
    words.read(text);
    let finds = search.finds(&words);
    let found = search.found_in(text);
    let mut end = 0;
    for range in &found {
        assert!(range.start >= end && !text[range.clone()].is_empty(), "{text}: {found:?}");
        end = range.end;
    }
    // What is found can be shown.
    let wanted = search.terms().iter().any(|term| !term.without);
    assert!(!finds || !wanted || !found.is_empty(), "{search:?} in {text}");
});
