//! Inputs that are changed word by word: bytes that are changed one by one make words that no parser knows, and never leave the
//! first few of its branches.

use std::ops::Range;

use highwater_event::SeededRandomness;
use libfuzzer_sys::fuzzer_mutate;

/// Changes an input in place, half of the time by bytes; answers its new length. `dictionary` is one of the folder `dictionaries`.
pub fn change(data: &mut [u8], size: usize, max_size: usize, seed: u32, dictionary: &str) -> usize {
    let chance = SeededRandomness::new(u64::from(seed));
    let mut words = words(&data[..size]);
    if chance.chance(0.5) || words.is_empty() {
        return fuzzer_mutate(data, size, max_size);
    }
    for _ in 0..1 + chance.below(3) {
        change_once(&mut words, dictionary, &chance);
    }
    let changed = words.concat();
    let size = changed.len().min(max_size);
    data[..size].copy_from_slice(&changed[..size]);
    size
}

fn change_once(words: &mut Vec<Vec<u8>>, dictionary: &str, chance: &SeededRandomness) {
    let at = chance.below(words.len() as u64 + 1) as usize;
    let other = some(words.len(), chance);
    match chance.below(7) {
        0 => drop(words.drain(other)),
        1 => {
            let again = words[other].to_vec();
            drop(words.splice(at..at, again));
        }
        2 if at < words.len() && !other.is_empty() => words.swap(at, other.start),
        3 if at < words.len() => words[at] = of_dictionary(dictionary, chance),
        4 if at < words.len() && !other.is_empty() => words[at] = words[other.start].clone(),
        _ => words.insert(at, of_dictionary(dictionary, chance)),
    }
}

/// A few words of so many.
fn some(length: usize, chance: &SeededRandomness) -> Range<usize> {
    let start = chance.below(length as u64 + 1) as usize;
    start..(start + 1 + chance.below(8) as usize).min(length)
}

/// Letters and digits in a row, spaces in a row, and signs.
fn words(bytes: &[u8]) -> Vec<Vec<u8>> {
    let kind = |byte: &u8| match byte {
        b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | 0x80.. => 1,
        b' ' | b'\n' | b'\r' | b'\t' => 2,
        _ => 0,
    };
    bytes.chunk_by(|one, next| kind(one) != 0 && kind(one) == kind(next)).map(<[u8]>::to_vec).collect()
}

/// A word of a dictionary of libFuzzer: `"word"`, in which `\"`, `\\` and `\x0a` stand for bytes.
fn of_dictionary(dictionary: &str, chance: &SeededRandomness) -> Vec<u8> {
    let entries = || dictionary.lines().filter_map(|line| line.strip_prefix('"')?.strip_suffix('"'));
    let entry = entries().nth(chance.below(entries().count() as u64) as usize).unwrap_or_default();
    let mut word = Vec::with_capacity(entry.len());
    let mut rest = entry;
    while let Some(next) = rest.chars().next() {
        let escaped = rest.strip_prefix("\\x").and_then(|digits| digits.split_at_checked(2));
        if let Some((Ok(byte), after)) =
            escaped.map(|(digits, after)| (u8::from_str_radix(digits, 16), after))
        {
            word.push(byte);
            rest = after;
        } else {
            let plain = rest.strip_prefix('\\').unwrap_or(rest);
            let length = plain.chars().next().unwrap_or(next).len_utf8().min(plain.len());
            word.extend_from_slice(&plain.as_bytes()[..length]);
            rest = &plain[length..];
        }
    }
    word
}
