//! The journal's bytes, version 1. Old versions are read for ever; a fixture of each is in `tests/fixtures`.
//!
//! ```text
//! segment  := header commit* [footer]                      file <first commit, 20 digits>.hwlog
//! header   := "HWLOG\r\n\x1a" version:u16 0:u16 crc:u32 log_id:[16] first_commit:u64 created:i64   (48 bytes)
//! commit   := "HWCM" head_len:u32 body_len:u64 crc:u32 0:u32 head body                               crc over the lengths and head
//! head     := postcard(CommitHead)                         each entry in it has the CRC of its part of the body
//! footer   := index summary trailer
//! index    := postcard(SegmentIndex)                       where each batch of each partition lies
//! summary  := postcard(SegmentSummary)                     ranges, ends and marks: enough to open without the index
//! trailer  := index_pos:u64 index_len:u32 index_crc:u32 summary_len:u32 summary_crc:u32 crc:u32 "HWEND1\r\n"
//! ```
//! Integers are little-endian; checksums are CRC-32C. A segment without footer is the one being
//! written, or was when the process died; it is scanned. Behind its last commit there may be zeros, which were written ahead. A commit is whole or it is not there: its
//! head and every part of its body are checked before any of it counts.

use highwater_event::{Offset, StreamPartition};
use serde::{Deserialize, Serialize};

use crate::commit::Advance;

/// First bytes of a segment.
pub const SEGMENT_MAGIC: [u8; 8] = *b"HWLOG\r\n\x1a";
/// First bytes of a commit.
pub const COMMIT_MAGIC: [u8; 4] = *b"HWCM";
/// Last bytes of a closed segment.
pub const TRAILER_MAGIC: [u8; 8] = *b"HWEND1\r\n";
/// The version that is written.
pub const VERSION: u16 = 1;
/// Length of a segment's header.
pub const SEGMENT_HEADER_LEN: usize = 48;
/// Length of the fixed part of a commit.
pub const COMMIT_PREFIX_LEN: usize = 24;
/// Length of the trailer.
pub const TRAILER_LEN: usize = 36;
/// Extension of segment files.
pub const EXTENSION: &str = "hwlog";
/// Extension of a segment that is written in the place of another and has not taken it yet.
pub const NEW_EXTENSION: &str = "hwlog-new";
/// The largest head or body that a reader believes in; a larger length is damage.
pub const MAX_PART_LEN: u64 = 1 << 30;

/// The head of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Chosen when the log was made; segments of another log are refused.
    pub log_id: [u8; 16],
    /// Number of the first commit in the segment.
    pub first_commit: u64,
    /// Microseconds UTC.
    pub created: i64,
}

/// Why a segment's head is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderFault {
    /// Not a segment, or its bytes changed.
    Damaged,
    /// Written by a newer program.
    Newer(u16),
}

impl SegmentHeader {
    /// The header's bytes.
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_LEN] {
        let mut bytes = [0; SEGMENT_HEADER_LEN];
        bytes[..8].copy_from_slice(&SEGMENT_MAGIC);
        bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.log_id);
        bytes[32..40].copy_from_slice(&self.first_commit.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.created.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[16..]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderFault> {
        let bytes: &[u8; SEGMENT_HEADER_LEN] =
            bytes.get(..SEGMENT_HEADER_LEN).and_then(|b| b.try_into().ok()).ok_or(HeaderFault::Damaged)?;
        if bytes[..8] != SEGMENT_MAGIC {
            return Err(HeaderFault::Damaged);
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version > VERSION {
            return Err(HeaderFault::Newer(version));
        }
        if version == 0 || bytes[10..12] != [0, 0] || u32_at(bytes, 12) != crc32c::crc32c(&bytes[16..]) {
            return Err(HeaderFault::Damaged);
        }
        let mut log_id = [0; 16];
        log_id.copy_from_slice(&bytes[16..32]);
        Ok(Self { log_id, first_commit: u64_at(bytes, 32), created: u64_at(bytes, 40) as i64 })
    }
}

/// The head of a commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommitHead {
    /// Number of the commit, counted from 0 without gaps.
    pub number: u64,
    /// When the log took it, microseconds UTC.
    pub recorded_at: i64,
    /// The parts of the body, in order.
    pub entries: Vec<Entry>,
    /// Marks that move with it.
    pub advances: Vec<Advance>,
}

/// A part of a commit's body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Entry {
    /// An Arrow schema that later batches of this segment refer to.
    Schema {
        /// Number inside the segment.
        id: u32,
        /// Bytes in the body.
        len: u32,
        /// CRC-32C of those bytes.
        crc: u32,
    },
    /// Rows of one partition.
    Rows {
        /// Where they belong.
        to: StreamPartition,
        /// Offset of the first row.
        base: Offset,
        /// Number of rows.
        rows: u32,
        /// Schema inside the segment.
        schema: u32,
        /// [`crate::batch::Codec`].
        codec: u8,
        /// Bytes in the body.
        len: u32,
        /// Bytes before compression.
        raw_len: u32,
        /// CRC-32C of the stored bytes.
        crc: u32,
    },
}

impl Entry {
    /// Bytes in the body and their checksum.
    pub fn extent(&self) -> (u32, u32) {
        match self {
            Self::Schema { len, crc, .. } | Self::Rows { len, crc, .. } => (*len, *crc),
        }
    }
}

/// Where one batch lies inside a segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchPlace {
    /// Offset of the first row.
    pub base: Offset,
    /// Number of rows.
    pub rows: u32,
    /// When the log took it.
    pub recorded_at: i64,
    /// Position of its bytes in the file.
    pub position: u64,
    /// Stored length.
    pub len: u32,
    /// Length before compression.
    pub raw_len: u32,
    /// CRC-32C of the stored bytes.
    pub crc: u32,
    /// Schema inside the segment.
    pub schema: u32,
    /// [`crate::batch::Codec`].
    pub codec: u8,
}

/// Where everything lies inside a segment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentIndex {
    /// Arrow schemas by their number.
    pub schemas: Vec<Vec<u8>>,
    /// Batches by partition, in order of offset.
    pub places: std::collections::BTreeMap<StreamPartition, Vec<BatchPlace>>,
}

/// What opening the log needs to know of a closed segment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentSummary {
    /// Number of the commit after the last one.
    pub next_commit: u64,
    /// First and end offset of each partition that has rows here.
    pub ranges: Vec<(StreamPartition, Offset, Offset)>,
    /// End offset of every partition of the log when the segment was closed.
    pub ends: Vec<(StreamPartition, Offset)>,
    /// Every writer's marks when the segment was closed.
    pub marks: Vec<(String, StreamPartition, Offset)>,
}

/// A commit as bytes, ready to be written at a file position.
pub fn encode_commit(head: &CommitHead, body: &[u8], out: &mut Vec<u8>) -> Result<(), postcard::Error> {
    let head = postcard::to_stdvec(head)?;
    out.extend_from_slice(&COMMIT_MAGIC);
    let lengths = out.len();
    out.extend_from_slice(&(head.len() as u32).to_le_bytes());
    out.extend_from_slice(&(body.len() as u64).to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&out[lengths..]), &head);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&head);
    out.extend_from_slice(body);
    Ok(())
}

/// A commit found in a segment.
#[derive(Debug)]
pub struct FoundCommit {
    /// Its head.
    pub head: CommitHead,
    /// Position of its body in the slice.
    pub body: usize,
    /// Position after it.
    pub end: usize,
    /// All parts of the body match their checksums.
    pub body_whole: bool,
}

/// Reads the commit at `position`; `None` when there is no whole head there or the body runs past
/// the end of the slice.
pub fn find_commit(bytes: &[u8], position: usize) -> Option<FoundCommit> {
    let prefix = bytes.get(position..position.checked_add(COMMIT_PREFIX_LEN)?)?;
    if prefix[..4] != COMMIT_MAGIC || prefix[20..24] != [0; 4] {
        return None;
    }
    let head_len = u64::from(u32_at(prefix, 4));
    let body_len = u64_at(prefix, 8);
    if head_len > MAX_PART_LEN || body_len > MAX_PART_LEN {
        return None;
    }
    let head_at = position + COMMIT_PREFIX_LEN;
    let body_at = head_at + head_len as usize;
    let head_bytes = bytes.get(head_at..body_at)?;
    if u32_at(prefix, 16) != crc32c::crc32c_append(crc32c::crc32c(&prefix[4..16]), head_bytes) {
        return None;
    }
    let head: CommitHead = postcard::from_bytes(head_bytes).ok()?;
    let end = body_at + body_len as usize;
    let body = bytes.get(body_at..end)?;
    let mut at = 0usize;
    let mut body_whole = true;
    for entry in &head.entries {
        let (len, crc) = entry.extent();
        let part = body.get(at..at + len as usize)?;
        body_whole &= crc32c::crc32c(part) == crc || highwater_event::planted::bug("no_checksum");
        at += len as usize;
    }
    (at == body.len()).then_some(FoundCommit { head, body: body_at, end, body_whole })
}

/// The footer of a closed segment, to be written at `position`.
pub fn encode_footer(
    index: &SegmentIndex,
    summary: &SegmentSummary,
    position: u64,
) -> Result<Vec<u8>, postcard::Error> {
    let index = postcard::to_stdvec(index)?;
    let summary = postcard::to_stdvec(summary)?;
    let mut out = Vec::with_capacity(index.len() + summary.len() + TRAILER_LEN);
    out.extend_from_slice(&index);
    out.extend_from_slice(&summary);
    let trailer = out.len();
    out.extend_from_slice(&position.to_le_bytes());
    out.extend_from_slice(&(index.len() as u32).to_le_bytes());
    out.extend_from_slice(&crc32c::crc32c(&index).to_le_bytes());
    out.extend_from_slice(&(summary.len() as u32).to_le_bytes());
    out.extend_from_slice(&crc32c::crc32c(&summary).to_le_bytes());
    let crc = crc32c::crc32c(&out[trailer..]);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&TRAILER_MAGIC);
    Ok(out)
}

/// The last bytes of a closed segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// Position of the index; commits end here.
    pub index_position: u64,
    /// Length of the index.
    pub index_len: u32,
    /// CRC-32C of the index.
    pub index_crc: u32,
    /// Length of the summary, which follows the index.
    pub summary_len: u32,
    /// CRC-32C of the summary.
    pub summary_crc: u32,
}

impl Trailer {
    /// Reads a trailer; `None` when the bytes are not one.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; TRAILER_LEN] = bytes.try_into().ok()?;
        if bytes[28..] != TRAILER_MAGIC || u32_at(bytes, 24) != crc32c::crc32c(&bytes[..24]) {
            return None;
        }
        Some(Self {
            index_position: u64_at(bytes, 0),
            index_len: u32_at(bytes, 8),
            index_crc: u32_at(bytes, 12),
            summary_len: u32_at(bytes, 16),
            summary_crc: u32_at(bytes, 20),
        })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}
