//! Inputs that are almost right: what parsers meet when they meet the world.

use highwater_event::SeededRandomness;

/// Pieces that have broken parsers before.
const PIECES: [&[u8]; 24] = [
    b"\"",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"null",
    b"1e999",
    b"-0",
    b"-",
    b"\n",
    b"\r\n",
    b"\0",
    b"\xff\xfe",
    b"99999999999999999999999999999999999999999",
    b"\xef\xbb\xbf",
    b"'",
    b";",
    b"--",
    b"(",
];

/// Changes some bytes: flips, cuts, repeats, swaps, and inserts pieces that have broken parsers before.
pub fn mutate(bytes: &mut Vec<u8>, chance: &SeededRandomness) {
    for _ in 0..1 + chance.below(4) {
        let length = bytes.len() as u64;
        let at = chance.below(length + 1) as usize;
        match chance.below(7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << chance.below(8),
            1 if at < bytes.len() => bytes[at] = chance.next() as u8,
            2 => bytes.truncate(at),
            3 => {
                let end = (at + chance.below(40) as usize).min(bytes.len());
                bytes.drain(at..end);
            }
            4 => {
                let end = (at + chance.below(40) as usize).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                let times = 1 + chance.below(20) as usize;
                bytes.splice(at..at, piece.repeat(times));
            }
            5 => {
                let piece = PIECES[chance.below(PIECES.len() as u64) as usize];
                let times = if chance.chance(0.05) { 5_000 } else { 1 };
                bytes.splice(at..at, piece.repeat(times));
            }
            _ => {
                let other = chance.below(length + 1) as usize;
                if at < bytes.len() && other < bytes.len() {
                    bytes.swap(at, other);
                }
            }
        }
    }
}
