//! A filter in front of the index of event ids. Nearly every id at the door is new; the filter knows of almost
//! every new id that the stored runs don't hold it.
//!
//! It is a Bloom filter in blocks of one cache line, so that a question costs one miss of the cache: two and
//! a half bytes a key, and one of three thousand new keys held for known. With more keys than it was made
//! for, more parts are added and a question costs more.

use std::borrow::Cow;

use highwater_event::Digest128;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, IntoBytes};

/// Bits that one key sets.
const PROBES: u32 = 7;
/// A block in words: one line of the cache.
const BLOCK: usize = 8;
/// Bits for each key. A key that is held for known is asked of every sorted run of a generation.
const BITS_PER_KEY: usize = 20;

/// Bytes of a piece that is stored.
const PIECE: usize = 64 << 10;

/// What may have been seen.
#[derive(Clone)]
pub struct Filter {
    parts: Vec<Part>,
    keys: usize,
}

#[derive(Clone)]
struct Part {
    /// Little-endian on every machine: as they lie here they are stored.
    words: Vec<u64>,
    room: usize,
}

impl Part {
    fn with_room(room: usize) -> Self {
        let blocks = (room * BITS_PER_KEY).div_ceil(BLOCK * 64);
        // Memory that the system hands out as zeros takes none before it is written to.
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
    /// A filter for about so many keys.
    pub fn for_keys(keys: usize) -> Self {
        Self { parts: vec![Part::with_room(keys.max(1))], keys: 0 }
    }

    /// How many keys were noted.
    pub fn keys(&self) -> usize {
        self.keys
    }

    /// Notes a key.
    pub fn insert(&mut self, key: &Digest128) {
        self.keys += 1;
        if let Some(part) = self.parts.last()
            && part.room == 0
        {
            self.parts.push(Part::with_room(4 * self.keys));
        }
        if let Some(part) = self.parts.last_mut() {
            part.room -= 1;
            for (word, bit) in part.places(key) {
                part.words[word] |= bit.to_le();
            }
        }
    }

    /// All of it in pieces, to be stored.
    pub fn pieces(&self) -> impl Iterator<Item = Cow<'_, [u8]>> {
        let sizes = self.parts.iter().flat_map(|part| [part.words.len(), part.room]);
        let head: Vec<U64> =
            [self.keys].into_iter().chain(sizes).map(|number| U64::new(number as u64)).collect();
        let words = self.parts.iter().flat_map(|part| part.words.chunks(PIECE / 8));
        [Cow::Owned(head.as_bytes().to_vec())]
            .into_iter()
            .chain(words.map(|words| Cow::Borrowed(words.as_bytes())))
    }

    /// A filter of its pieces; `None` when they are not all of one.
    pub fn of_pieces(pieces: &mut dyn Iterator<Item = Vec<u8>>) -> Option<Self> {
        let head = pieces.next()?;
        let (keys, sizes) = <[U64]>::ref_from_bytes(&head).ok()?.split_first()?;
        let (sizes, []) = sizes.as_chunks::<2>() else { return None };
        let mut parts = Vec::with_capacity(sizes.len());
        for [length, room] in sizes {
            let length = usize::try_from(length.get()).ok().filter(|length| *length > 0)?;
            let mut part = Part { words: Vec::new(), room: usize::try_from(room.get()).ok()? };
            while part.words.len() < length {
                let piece = pieces.next()?;
                let words = <[U64]>::ref_from_bytes(&piece).ok().filter(|words| !words.is_empty())?;
                part.words.extend(words.iter().map(|word| word.get().to_le()));
            }
            let whole = part.words.len() == length && length.is_multiple_of(BLOCK);
            whole.then(|| parts.push(part))?;
        }
        (!parts.is_empty()).then_some(Self { parts, keys: usize::try_from(keys.get()).ok()? })
    }

    /// False when the key was certainly never noted.
    pub fn may_hold(&self, key: &Digest128) -> bool {
        self.parts
            .iter()
            .rev()
            .any(|part| part.places(key).all(|(word, bit)| part.words[word] & bit.to_le() != 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> Digest128 {
        Digest128::of_parts([&number.to_le_bytes()[..]])
    }

    #[test]
    fn every_key_is_known_again_and_few_others() {
        let mut filter = Filter::for_keys(100_000);
        assert!(!filter.may_hold(&key(0)));
        for (count, parts) in [(100_000, 1), (300_000, 2)] {
            (filter.keys() as u64..count).for_each(|number| filter.insert(&key(number)));
            assert_eq!((filter.parts.len(), filter.keys() as u64), (parts, count));
            assert!((0..count).all(|number| filter.may_hold(&key(number))));
            let wrong = (count..count + 100_000).filter(|number| filter.may_hold(&key(*number))).count();
            assert!(wrong < 200 * parts, "{wrong} of 100,000 others are held for known");
            let again = Filter::of_pieces(&mut filter.pieces().map(Cow::into_owned)).unwrap();
            assert_eq!(again.keys(), filter.keys());
            assert!(
                (0..2 * count).all(|number| again.may_hold(&key(number)) == filter.may_hold(&key(number)))
            );
        }
    }

    #[test]
    fn a_filter_that_is_not_whole_is_none() {
        let mut filter = Filter::for_keys(20_000);
        (0..90_000).for_each(|number| filter.insert(&key(number)));
        let pieces: Vec<Vec<u8>> = filter.pieces().map(Cow::into_owned).collect();
        assert!(pieces.len() > 4 && pieces.iter().all(|piece| piece.len() <= PIECE));
        for left_out in 0..pieces.len() {
            let mut some = pieces.clone();
            some.remove(left_out);
            assert!(Filter::of_pieces(&mut some.into_iter()).is_none(), "without piece {left_out}");
        }
        for cut in [0, 1, 7, 8] {
            let mut cut_short = pieces.clone();
            cut_short.last_mut().unwrap().truncate(cut);
            assert!(Filter::of_pieces(&mut cut_short.into_iter()).is_none(), "cut at {cut}");
        }
    }
}
