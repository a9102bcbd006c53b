//! A filter in front of the index of event ids. Nearly every id at the door is new; the filter knows of almost
//! every new id that the stored runs don't hold it.
//!
//! It is a Bloom filter in blocks of one cache line, so that a question costs one miss of the cache: two and
//! a half bytes a key, and one of three thousand new keys held for known. With more keys than it was made
//! for, more parts are added and a question costs more.

use std::alloc::{Layout, handle_alloc_error};
use std::borrow::Cow;
use std::hint::black_box;

use highwater_event::Digest128;
use memmap2::MmapMut;
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, IntoBytes};

/// Bits that one key sets.
const PROBES: u32 = 7;
/// Words of a block: one line of the cache.
const WORDS: usize = 8;
/// Bits for each key. A key that is held for known is asked of every sorted run of a generation.
const BITS_PER_KEY: usize = 20;

/// Bytes of a piece that is stored.
const PIECE: usize = 64 << 10;

/// Bytes from which on huge pages are asked for. Filters of streams with few ids are small and sparse: most of a huge page
/// would be zeros.
#[cfg(target_os = "linux")]
const HUGE: usize = 16 << 20;

/// What may have been seen.
#[derive(Clone)]
pub struct Filter {
    parts: Vec<Part>,
    keys: usize,
}

#[derive(Clone)]
struct Part {
    blocks: Blocks,
    room: usize,
}

/// Little-endian on every machine: as it lies here it is stored.
type Block = [U64; WORDS];

/// The blocks of a part, zeros at first. They have pages of their own from the system: none is taken before it is written to,
/// and they may be huge, because nearly every question is about another page, and a table of small ones misses the cache, too.
struct Blocks(MmapMut);

impl Blocks {
    fn zeros(number: usize) -> Self {
        // As when any other memory is not to be had.
        let none = || handle_alloc_error(Layout::array::<Block>(number).unwrap_or(Layout::new::<Block>()));
        Self::try_zeros(number).unwrap_or_else(none)
    }

    /// None when there is not so much memory.
    fn try_zeros(number: usize) -> Option<Self> {
        let bytes = number.checked_mul(size_of::<Block>())?;
        let pages = MmapMut::map_anon(bytes).ok()?;
        #[cfg(target_os = "linux")]
        if bytes >= HUGE
            && let Err(error) = pages.advise(memmap2::Advice::HugePage)
        {
            tracing::debug!(%error, "no huge pages: filters of event ids take longer to ask");
        }
        Some(Self(pages))
    }

    fn get(&self) -> &[Block] {
        <[Block]>::ref_from_bytes(&self.0).unwrap_or_default()
    }

    fn get_mut(&mut self) -> &mut [Block] {
        <[Block]>::mut_from_bytes(&mut self.0).unwrap_or_default()
    }
}

impl Clone for Blocks {
    fn clone(&self) -> Self {
        let mut copy = Self::zeros(self.get().len());
        copy.0.copy_from_slice(&self.0);
        copy
    }
}

impl Part {
    fn with_room(room: usize) -> Self {
        Self { blocks: Blocks::zeros((room * BITS_PER_KEY).div_ceil(WORDS * 64)), room }
    }

    fn may_hold(&self, key: &Digest128) -> bool {
        let blocks = self.blocks.get();
        let block = &blocks[place(key, blocks.len())];
        // All bits are looked at: whether the first is set is anybody's guess, and a wrong one waits for the cache.
        bits(key).fold(0, |missing, (word, bit)| missing | bit & !block[word].get()) == 0
    }
}

/// Which of so many blocks is the key's. Keys are hashes: one half chooses the block, the other the bits.
fn place(key: &Digest128, blocks: usize) -> usize {
    ((u128::from(halves(key).0) * blocks as u128) >> 64) as usize
}

/// The bits that a key sets in its block, by word.
fn bits(key: &Digest128) -> impl Iterator<Item = (usize, u64)> {
    let bits = halves(key).1;
    (0..PROBES).map(move |probe| {
        let bit = bits >> (9 * probe) & 511;
        ((bit >> 6) as usize, 1u64 << (bit & 63))
    })
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
            self.parts.push(Part::with_room(self.keys / 2 + 1));
        }
        if let Some(part) = self.parts.last_mut() {
            part.room -= 1;
            let blocks = part.blocks.get_mut();
            let block = &mut blocks[place(key, blocks.len())];
            bits(key).for_each(|(word, bit)| block[word] |= U64::new(bit));
        }
    }

    /// Takes in all keys of another one.
    pub fn absorb(&mut self, other: Self) {
        self.keys += other.keys;
        for theirs in other.parts.into_iter().rev() {
            let blocks = theirs.blocks.get();
            match self.parts.iter_mut().find(|own| own.blocks.get().len() == blocks.len()) {
                Some(own) => {
                    own.room = own.room.min(theirs.room);
                    let words = own.blocks.get_mut().as_flattened_mut();
                    words.iter_mut().zip(blocks.as_flattened()).for_each(|(own, theirs)| *own |= *theirs);
                }
                // The last one is for what comes next.
                None => self.parts.insert(0, theirs),
            }
        }
    }

    /// All of it in pieces, to be stored.
    pub fn pieces(&self) -> impl Iterator<Item = Cow<'_, [u8]>> {
        let sizes = self.parts.iter().flat_map(|part| [part.blocks.get().len() * WORDS, part.room]);
        let head: Vec<U64> =
            [self.keys].into_iter().chain(sizes).map(|number| U64::new(number as u64)).collect();
        let words = self.parts.iter().flat_map(|part| part.blocks.get().as_flattened().chunks(PIECE / 8));
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
            let whole = |length: &usize| *length > 0 && length.is_multiple_of(WORDS);
            let length = usize::try_from(length.get()).ok().filter(whole)?;
            let blocks = Blocks::try_zeros(length / WORDS)?;
            let mut part = Part { blocks, room: usize::try_from(room.get()).ok()? };
            let mut rest = part.blocks.get_mut().as_flattened_mut();
            while !rest.is_empty() {
                let piece = pieces.next()?;
                let words = <[U64]>::ref_from_bytes(&piece).ok().filter(|words| !words.is_empty())?;
                let (these, behind) = rest.split_at_mut_checked(words.len())?;
                these.copy_from_slice(words);
                rest = behind;
            }
            parts.push(part);
        }
        (!parts.is_empty()).then_some(Self { parts, keys: usize::try_from(keys.get()).ok()? })
    }

    /// False when the key was certainly never noted.
    pub fn may_hold(&self, key: &Digest128) -> bool {
        self.parts.iter().rev().any(|part| part.may_hold(key))
    }

    /// Brings what is about some keys into the cache. A question alone waits for the memory; here many wait at once.
    pub fn fetch<'k>(&self, keys: impl Iterator<Item = &'k Digest128> + Clone) {
        for part in &self.parts {
            let blocks = part.blocks.get();
            let fetched = keys.clone().fold(0, |some, key| some ^ blocks[place(key, blocks.len())][0].get());
            black_box(fetched);
        }
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
        for (count, parts) in [(100_000, 1), (150_000, 2), (200_000, 3)] {
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
    fn a_filter_absorbs_what_another_knows() {
        for (own, theirs) in [(20_000, 20_000), (20_000, 10_000), (10_000, 20_000)] {
            let (mut filter, mut other) = (Filter::for_keys(own), Filter::for_keys(theirs));
            (0..15_000).for_each(|number| other.insert(&key(number)));
            (15_000..20_000).for_each(|number| filter.insert(&key(number)));
            filter.absorb(other);
            (20_000..25_000).for_each(|number| filter.insert(&key(number)));
            assert_eq!(filter.keys(), 25_000);
            assert!((0..25_000).all(|number| filter.may_hold(&key(number))));
            let wrong = (25_000..125_000).filter(|number| filter.may_hold(&key(*number))).count();
            assert!(wrong < 600, "{wrong} of 100,000 others are held for known");
            assert_eq!(filter.parts.len() == 1, own == theirs, "of one size they become one");
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
