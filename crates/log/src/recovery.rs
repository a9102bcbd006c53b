//! Reading a segment from its commits alone: after a crash, or when its footer is damaged.
//!
//! Commits are written one at a time and each is fsynced before the next is written. So bytes that
//! are not a commit are a torn tail exactly when no whole commit follows them, and damage otherwise.

use std::collections::BTreeMap;

use highwater_event::{Offset, StreamPartition};

use crate::commit::Advance;
use crate::format::{self, BatchPlace, COMMIT_MAGIC, Entry, FoundCommit, SEGMENT_HEADER_LEN, SegmentIndex};

/// Bytes in the middle of a segment that are not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Segment file.
    pub file: String,
    /// Position of the first unreadable byte.
    pub position: u64,
    /// Number of unreadable bytes.
    pub length: u64,
    /// Numbers of the commits that are lost: first, and the one after the last.
    pub commits: (u64, u64),
}

/// What a segment's commits say.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub index: SegmentIndex,
    pub next_commit: u64,
    /// When the newest commit was taken.
    pub recorded_at: i64,
    pub ranges: BTreeMap<StreamPartition, (Offset, Offset)>,
    pub advances: Vec<Advance>,
    /// Position after the last whole commit.
    pub end: u64,
    pub damage: Vec<Damage>,
}

/// Reads every commit of a segment. `file` is its name, for reports.
pub(crate) fn scan(file: &str, bytes: &[u8], first_commit: u64) -> Scan {
    let mut scan = Scan { next_commit: first_commit, ..Scan::default() };
    let mut position = SEGMENT_HEADER_LEN;
    loop {
        let found = match whole_commit(bytes, position, scan.next_commit) {
            Some(found) if found.head.number == scan.next_commit => Some((position, found)),
            _ => next_commit_after(bytes, position, scan.next_commit),
        };
        let Some((at, found)) = found else {
            scan.end = position as u64;
            return scan;
        };
        if at != position || found.head.number != scan.next_commit {
            scan.damage.push(Damage {
                file: file.to_owned(),
                position: position as u64,
                length: (at - position) as u64,
                commits: (scan.next_commit, found.head.number),
            });
        }
        position = found.end;
        scan.take(bytes, found);
    }
}

fn whole_commit(bytes: &[u8], position: usize, at_least: u64) -> Option<FoundCommit> {
    format::find_commit(bytes, position).filter(|found| found.body_whole && found.head.number >= at_least)
}

fn next_commit_after(bytes: &[u8], position: usize, at_least: u64) -> Option<(usize, FoundCommit)> {
    let rest = bytes.get(position + 1..)?;
    memchr::memmem::find_iter(rest, &COMMIT_MAGIC)
        .map(|hit| position + 1 + hit)
        .find_map(|at| whole_commit(bytes, at, at_least).map(|found| (at, found)))
}

impl Scan {
    fn take(&mut self, bytes: &[u8], found: FoundCommit) {
        let mut at = found.body;
        for entry in found.head.entries {
            let len = entry.extent().0 as usize;
            match entry {
                Entry::Schema { id, .. } => {
                    let id = id as usize;
                    if self.index.schemas.len() <= id {
                        self.index.schemas.resize(id + 1, Vec::new());
                    }
                    self.index.schemas[id] = bytes[at..at + len].to_vec();
                }
                Entry::Rows { to, base, rows, schema, codec, len, raw_len, crc } => {
                    let end = base + Offset::from(rows);
                    self.ranges.entry(to.clone()).and_modify(|range| range.1 = end).or_insert((base, end));
                    self.index.places.entry(to).or_default().push(BatchPlace {
                        base,
                        rows,
                        recorded_at: found.head.recorded_at,
                        position: at as u64,
                        len,
                        raw_len,
                        crc,
                        schema,
                        codec,
                    });
                }
            }
            at += len;
        }
        self.advances.extend(found.head.advances);
        self.next_commit = found.head.number + 1;
        self.recorded_at = self.recorded_at.max(found.head.recorded_at);
    }
}
