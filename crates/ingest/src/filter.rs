//! A filter in front of the index of event ids. Nearly every id at the door is new, and the index keeps
//! its keys in many sorted runs; the filter knows of almost every new id that none of them holds it.
//!
//! It is a Bloom filter in blocks of one cache line, so that a question costs one miss of the cache for each
//! part. Parts are added as keys come, each four times as large as the one before: 1.5 to 6 bytes a key.

use highwater_event::Digest128;

/// Keys of the first part.
const FIRST: usize = 1 << 18;
/// Bits that one key sets.
const PROBES: u32 = 6;
/// A block in words: one line of the cache.
const BLOCK: usize = 8;
/// Bits for each key.
const BITS_PER_KEY: usize = 12;

/// What may have been seen.
#[derive(Default)]
pub struct Filter {
    parts: Vec<Part>,
}

struct Part {
    words: Vec<u64>,
    room: usize,
}

impl Part {
    fn with_room(room: usize) -> Self {
        let blocks = (room * BITS_PER_KEY).div_ceil(BLOCK * 64);
        Self { words: vec![0; blocks * BLOCK], room }
    }

    /// The words of the key's block, by position, and the bits that it sets in them.
    fn places(&self, key: &Digest128) -> impl Iterator<Item = (usize, u64)> + use<> {
        // Keys are hashes: one half chooses the block, the other the bits.
        let (block, bits) = halves(key);
        let blocks = (self.words.len() / BLOCK) as u128;
        let first = ((u128::from(block) * blocks) >> 64) as usize * BLOCK;
        (0..PROBES).map(move |probe| {
            let bit = bits >> (9 * probe) & 511;
            (first + (bit >> 6) as usize, 1u64 << (bit & 63))
        })
    }
}

fn halves(key: &Digest128) -> (u64, u64) {
    let whole = u128::from_le_bytes(key.0);
    (whole as u64, (whole >> 64) as u64)
}

impl Filter {
    /// Notes a key.
    pub fn insert(&mut self, key: &Digest128) {
        if self.parts.last().is_none_or(|part| part.room == 0) {
            self.parts.push(Part::with_room(FIRST << (2 * self.parts.len())));
        }
        if let Some(part) = self.parts.last_mut() {
            part.room -= 1;
            for (word, bit) in part.places(key) {
                part.words[word] |= bit;
            }
        }
    }

    /// False when the key was certainly never noted.
    pub fn may_hold(&self, key: &Digest128) -> bool {
        self.parts.iter().rev().any(|part| part.places(key).all(|(word, bit)| part.words[word] & bit != 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> Digest128 {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&blake3::hash(&number.to_le_bytes()).as_bytes()[..16]);
        Digest128(bytes)
    }

    #[test]
    fn every_key_is_known_again_and_few_others() {
        let mut filter = Filter::default();
        assert!(!filter.may_hold(&key(0)));
        let count = 5 * FIRST as u64 + 1;
        (0..count).for_each(|number| filter.insert(&key(number)));
        assert_eq!(filter.parts.len(), 3);
        assert!((0..count).all(|number| filter.may_hold(&key(number))));
        let wrong = (count..count + 100_000).filter(|number| filter.may_hold(&key(*number))).count();
        assert!(wrong < 3_000, "{wrong} of 100,000 others are held for known");
    }
}
