//! The mathematics of the tree: RFC 6962, section 2.1, over tiles of 256 hashes (c2sp.org/tlog-tiles).
//!
//! Functions that build ask a [`Tiles`] for what is stored; functions that verify need nothing but hashes.

use aws_lc_rs::digest::{Context, SHA256};

use crate::AuditError;

/// SHA-256.
pub type Hash = [u8; 32];
/// Hashes in a full tile.
pub const TILE: u64 = 256;
/// Levels of the tree that a tile spans.
const HEIGHT: u32 = 8;

/// SHA-256 of parts, one after the other.
pub fn sha256<const PARTS: usize>(parts: [&[u8]; PARTS]) -> Hash {
    let mut context = Context::new(&SHA256);
    parts.iter().for_each(|part| context.update(part));
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// The hash of a leaf's data.
pub fn leaf_hash(data: &[u8]) -> Hash {
    sha256([&[0], data])
}

/// The hash of an inner node.
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    sha256([&[1], left, right])
}

/// The root of a tree without leaves.
pub fn empty_root() -> Hash {
    sha256([])
}

/// Where the hashes of a tree are kept.
pub trait Tiles {
    /// The hashes of a tile so far, oldest first; none when there is no such tile.
    fn tile(&self, level: u8, index: u64) -> Result<Vec<Hash>, AuditError>;
}

/// The hash over hashes that stand side by side, as many as a power of two.
pub fn fold(hashes: &[Hash]) -> Hash {
    match hashes {
        [] => empty_root(),
        [only] => *only,
        several => {
            let (left, right) = several.split_at(several.len() / 2);
            node_hash(&fold(left), &fold(right))
        }
    }
}

/// The hash of the leaves from `index << level` on, `1 << level` of them.
fn subtree(tiles: &dyn Tiles, level: u32, index: u64) -> Result<Hash, AuditError> {
    let (tile_level, inside) = (level / HEIGHT, level % HEIGHT);
    let first = index << inside;
    let at = (first % TILE) as usize;
    let tile = tiles.tile(tile_level as u8, first / TILE)?;
    match tile.get(at..at + (1 << inside)) {
        Some(hashes) => Ok(fold(hashes)),
        None => Err(AuditError::Missing(format!("the tree does not hold hash {index} of level {level}"))),
    }
}

/// The largest power of two below `n`, which is at least 2.
fn split(n: u64) -> u64 {
    1 << (u64::BITS - 1 - (n - 1).leading_zeros())
}

/// The hash of the leaves from `from` on, `n` of them; `from` is a multiple of the power of two above `n - 1`.
fn range(tiles: &dyn Tiles, from: u64, n: u64) -> Result<Hash, AuditError> {
    if n.is_power_of_two() {
        let level = n.trailing_zeros();
        return subtree(tiles, level, from >> level);
    }
    let k = split(n);
    Ok(node_hash(&range(tiles, from, k)?, &range(tiles, from + k, n - k)?))
}

/// The root of the tree of the first `size` leaves.
pub fn root(tiles: &dyn Tiles, size: u64) -> Result<Hash, AuditError> {
    if size == 0 { Ok(empty_root()) } else { range(tiles, 0, size) }
}

/// The hashes that lead from leaf `index` to the root of the tree of `size` leaves, the leaf's sibling first.
pub fn inclusion(tiles: &dyn Tiles, index: u64, size: u64) -> Result<Vec<Hash>, AuditError> {
    if index >= size {
        return Err(AuditError::Missing(format!("the tree of {size} entries has no entry {index}")));
    }
    let mut path = Vec::new();
    let (mut from, mut n) = (0, size);
    while n > 1 {
        let k = split(n);
        if index - from < k {
            path.push(range(tiles, from + k, n - k)?);
            n = k;
        } else {
            path.push(range(tiles, from, k)?);
            (from, n) = (from + k, n - k);
        }
    }
    path.reverse();
    Ok(path)
}

/// The hashes that show the tree of `new` leaves to continue the tree of `old` ones.
pub fn consistency(tiles: &dyn Tiles, old: u64, new: u64) -> Result<Vec<Hash>, AuditError> {
    if old > new {
        return Err(AuditError::Missing(format!("the tree has {new} entries only, not {old}")));
    }
    let mut path = Vec::new();
    if old == 0 || old == new {
        return Ok(path);
    }
    let (mut from, mut m, mut n, mut whole) = (0, old, new, true);
    while m != n {
        let k = split(n);
        if m <= k {
            path.push(range(tiles, from + k, n - k)?);
            n = k;
        } else {
            path.push(range(tiles, from, k)?);
            (from, m, n, whole) = (from + k, m - k, n - k, false);
        }
    }
    if !whole {
        path.push(range(tiles, from, m)?);
    }
    path.reverse();
    Ok(path)
}

/// The root that a leaf and its path lead to; `None` when the path does not fit the size (RFC 9162, 2.1.3.2).
pub fn root_of_inclusion(leaf: &Hash, index: u64, size: u64, path: &[Hash]) -> Option<Hash> {
    if index >= size {
        return None;
    }
    let (mut at, mut last, mut hash) = (index, size - 1, *leaf);
    for sibling in path {
        if last == 0 {
            return None;
        }
        if at & 1 == 1 || at == last {
            hash = node_hash(sibling, &hash);
            while at & 1 == 0 && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    (last == 0).then_some(hash)
}

/// True when a path shows that a tree continues an earlier one (RFC 9162, 2.1.4.2).
pub fn is_consistent(old: (u64, &Hash), new: (u64, &Hash), path: &[Hash]) -> bool {
    let ((old_size, old_root), (new_size, new_root)) = (old, new);
    if old_size == 0 || old_size == new_size {
        return path.is_empty() && (old_size == 0 && *old_root == empty_root() || old_root == new_root);
    }
    if old_size > new_size {
        return false;
    }
    let mut rest = path.iter();
    let first = if old_size.is_power_of_two() { Some(old_root) } else { rest.next() };
    let Some(first) = first else { return false };
    let (mut at, mut last) = (old_size - 1, new_size - 1);
    while at & 1 == 1 {
        (at, last) = (at >> 1, last >> 1);
    }
    let (mut older, mut newer) = (*first, *first);
    for hash in rest {
        if last == 0 {
            return false;
        }
        if at & 1 == 1 || at == last {
            (older, newer) = (node_hash(hash, &older), node_hash(hash, &newer));
            while at & 1 == 0 && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            newer = node_hash(&newer, hash);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    last == 0 && older == *old_root && newer == *new_root
}

/// A root that grows leaf by leaf and keeps one hash a level.
#[derive(Debug, Clone, Default)]
pub struct Frontier {
    size: u64,
    /// Whole subtrees from the left, largest first.
    whole: Vec<Hash>,
}

impl Frontier {
    /// Takes the next leaf.
    pub fn push(&mut self, leaf: Hash) {
        let mut hash = leaf;
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.whole.pop() {
                hash = node_hash(&left, &hash);
            }
        }
        self.whole.push(hash);
        self.size += 1;
    }

    /// Number of leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The root over all leaves so far.
    pub fn root(&self) -> Hash {
        let mut subtrees = self.whole.iter().rev();
        match subtrees.next() {
            None => empty_root(),
            Some(last) => subtrees.fold(*last, |right, left| node_hash(left, &right)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tiles of so many leaves, made the slow way.
    struct Slow(Vec<Vec<Hash>>);

    impl Slow {
        fn of(leaves: u64) -> Self {
            let mut levels = vec![(0..leaves).map(|leaf| leaf_hash(&leaf.to_be_bytes())).collect::<Vec<_>>()];
            while levels.last().is_some_and(|level| level.len() >= 256) {
                let level = &levels[levels.len() - 1];
                levels.push(level.chunks_exact(256).map(fold).collect());
            }
            Self(levels)
        }
    }

    impl Tiles for Slow {
        fn tile(&self, level: u8, index: u64) -> Result<Vec<Hash>, AuditError> {
            let hashes = self.0.get(usize::from(level)).map_or(&[][..], Vec::as_slice);
            Ok(hashes.iter().skip(index as usize * 256).take(256).copied().collect())
        }
    }

    #[test]
    fn every_leaf_leads_to_the_root_and_no_other_does() {
        for size in [1, 2, 3, 7, 8, 255, 256, 257, 300, 1000] {
            let tiles = Slow::of(size);
            let whole = root(&tiles, size).unwrap();
            for index in (0..size).step_by(1 + size as usize / 40) {
                let path = inclusion(&tiles, index, size).unwrap();
                let leaf = leaf_hash(&index.to_be_bytes());
                assert_eq!(root_of_inclusion(&leaf, index, size, &path), Some(whole));
                assert_ne!(root_of_inclusion(&leaf_hash(b"other"), index, size, &path), Some(whole));
                assert_ne!(
                    root_of_inclusion(&leaf, index ^ 1, size, &path),
                    Some(whole),
                    "{index} of {size}"
                );
                assert_ne!(root_of_inclusion(&leaf, index, size * 2, &path), Some(whole));
            }
        }
    }

    #[test]
    fn a_tree_continues_its_beginnings_and_no_others() {
        let tiles = Slow::of(700);
        let roots: Vec<Hash> = (0..=700).map(|size| root(&tiles, size).unwrap()).collect();
        let mut frontier = Frontier::default();
        for (size, root) in roots.iter().enumerate() {
            assert_eq!((frontier.size(), frontier.root()), (size as u64, *root));
            frontier.push(leaf_hash(&(size as u64).to_be_bytes()));
        }
        for old in [0, 1, 2, 3, 255, 256, 257, 511, 600, 700] {
            for new in [1, 2, 64, 256, 258, 512, 699, 700] {
                if old > new {
                    assert!(consistency(&tiles, old, new).is_err());
                    continue;
                }
                let path = consistency(&tiles, old, new).unwrap();
                let (before, after) = (&roots[old as usize], &roots[new as usize]);
                assert!(is_consistent((old, before), (new, after), &path), "{old} to {new}");
                if old > 0 {
                    assert!(!is_consistent((old, &roots[old as usize - 1]), (new, after), &path));
                    assert!(!is_consistent((old, before), (new, &leaf_hash(b"other")), &path));
                }
            }
        }
    }

    #[test]
    fn known_roots() {
        let hex = |hash: Hash| highwater_event::hexadecimal::show(&hash);
        assert_eq!(hex(empty_root()), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        // The first and the last root of the vectors that certificate-transparency-go tests with.
        let leaves: [&[u8]; 8] = [
            b"",
            b"\x00",
            b"\x10",
            b"\x20\x21",
            b"\x30\x31",
            b"\x40\x41\x42\x43",
            b"\x50\x51\x52\x53\x54\x55\x56\x57",
            b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
        ];
        let mut frontier = Frontier::default();
        frontier.push(leaf_hash(leaves[0]));
        assert_eq!(hex(frontier.root()), "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d");
        leaves[1..].iter().for_each(|leaf| frontier.push(leaf_hash(leaf)));
        assert_eq!(hex(frontier.root()), "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328");
    }
}
