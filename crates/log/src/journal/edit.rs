//! Taking something out of rows that are durable already.
//!
//! A segment with such rows is written anew beside itself, fsynced, and takes the old one's place by a rename, so that a
//! crash leaves the one or the other, each of them whole. Offsets, times, marks and the rows of everybody else stay.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, PoisonError};

use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use highwater_event::{Offset, Sensitive, StreamName, StreamPartition, planted};
use tokio::sync::oneshot;

use super::{Journal, lock, writer};
use crate::batch::{self, BatchEncoder, Codec};
use crate::error::{AppendError, ReadError};
use crate::format::{self, CommitHead, Entry, FoundCommit, NEW_EXTENSION, SEGMENT_HEADER_LEN};
use crate::recovery;
use crate::segment::{Segment, read_footer};

/// What is to become of a batch of rows, which are as they are stored: what is SENSITIVE in them is encrypted. `None` leaves
/// them as they are; what comes instead has the same columns and as many rows.
pub type Edit<'a> =
    dyn Fn(&StreamPartition, Offset, &RecordBatch) -> Result<Option<RecordBatch>, ArrowError> + 'a;

/// What was changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Edited {
    /// Segments that were written anew.
    pub segments: usize,
    /// Batches in them that are not what they were.
    pub batches: usize,
}

/// Rows could not be changed. What was not reached is as it was.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// They can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// They can't be written.
    #[error("a segment of the log could not be written anew: {0}")]
    Write(#[from] io::Error),
    /// What was to come instead does not fit.
    #[error("rows could not be changed: {0}")]
    Rows(#[from] ArrowError),
    /// Their segment could not be closed.
    #[error(transparent)]
    Close(#[from] AppendError),
}

impl Journal {
    /// Closes the segment that grows, so that everything that is durable by now can be edited.
    pub async fn close_segment(&self) -> Result<(), AppendError> {
        let (answer, answered) = oneshot::channel();
        if self.queue.send(writer::Request::Roll(answer)).await.is_err() {
            return Err(self.shared.closed());
        }
        answered.await.unwrap_or_else(|_| Err(self.shared.closed()))
    }

    /// Changes rows of some streams in all closed segments, and forgets what was decoded of them. Safe to begin again: `edit`
    /// is asked about every batch each time.
    pub fn edit(&self, streams: &[StreamName], edit: &Edit<'_>) -> Result<Edited, EditError> {
        let _alone = lock(&self.keeping);
        let segments: Vec<Arc<Segment>> = self.shared.segments().clone();
        let Some((_growing, closed)) = segments.split_last() else { return Ok(Edited::default()) };
        let concerned =
            |segment: &Segment| segment.ranges().iter().any(|(at, ..)| streams.contains(&at.stream));
        let mut edited = Edited::default();
        for segment in closed.iter().filter(|segment| concerned(segment)) {
            let batches = self.edit_segment(segment, streams, edit)?;
            edited.segments += usize::from(batches > 0);
            edited.batches += batches;
        }
        self.forget_decoded();
        Ok(edited)
    }

    /// Writes a segment anew when `edit` changes anything in it; answers how many batches it changed.
    fn edit_segment(
        &self,
        segment: &Segment,
        streams: &[StreamName],
        edit: &Edit<'_>,
    ) -> Result<usize, EditError> {
        let name = segment.file_name();
        let length = segment.file.len()?;
        let footer = read_footer(segment.file.as_ref(), length)?;
        let end = footer.as_ref().map_or(length, |(trailer, _)| trailer.index_position);
        let mut bytes = vec![0; end as usize];
        segment.file.read_at(&mut bytes, 0)?;
        let mut fresh = Fresh::new(&bytes[..SEGMENT_HEADER_LEN], edit, streams);
        let mut position = SEGMENT_HEADER_LEN;
        while position < bytes.len() {
            let found = format::find_commit(&bytes, position).filter(|found| found.body_whole);
            let Some(found) = found else {
                let detail = format!("{name} is damaged at byte {position}; restore it from a backup");
                return Err(ReadError::Io(detail).into());
            };
            position = found.end;
            fresh.take(&bytes, found)?;
        }
        let Fresh { bytes: mut fresh, changed, .. } = fresh;
        if changed == 0 {
            return Ok(0);
        }
        let scan = recovery::scan(&name, &fresh, segment.first_commit);
        if scan.end != fresh.len() as u64 || !scan.damage.is_empty() {
            return Err(ReadError::Io(format!("{name} can't be read as it was written anew")).into());
        }
        if let Some((_, summary)) = &footer {
            let footer = format::encode_footer(&scan.index, summary, fresh.len() as u64);
            fresh.extend(footer.map_err(io::Error::other)?);
        }

        let path = segment.path.with_extension(NEW_EXTENSION);
        match self.disk.remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            // Something that was cut short, or nothing.
            _ => {}
        }
        let file = self.disk.create(&path)?;
        file.write_at(&fresh, 0)?;
        file.sync_data()?;
        planted::stop("log:edited");
        self.disk.rename(&path, &segment.path)?;
        let written = match footer {
            Some((_, summary)) => Segment::closed(segment.path.clone(), segment.first_commit, file, &summary),
            None => Segment::scanned(segment.path.clone(), segment.first_commit, file, scan),
        };
        {
            let mut segments = self.shared.segments.write().unwrap_or_else(PoisonError::into_inner);
            let place = segments.iter_mut().find(|known| known.first_commit == segment.first_commit);
            // Readers that are in the old one keep its file.
            if let Some(place) = place {
                *place = Arc::new(written);
            }
        }
        self.disk.sync_dir(&self.dir)?;
        Ok(changed)
    }
}

/// A segment that is written anew.
struct Fresh<'a> {
    bytes: Vec<u8>,
    streams: &'a [StreamName],
    edit: &'a Edit<'a>,
    schemas: HashMap<u32, SchemaRef>,
    encoder: BatchEncoder,
    /// Batches that are not what they were.
    changed: usize,
}

impl<'a> Fresh<'a> {
    fn new(header: &[u8], edit: &'a Edit<'a>, streams: &'a [StreamName]) -> Self {
        let (schemas, encoder) = (HashMap::new(), BatchEncoder::default());
        Self { bytes: header.to_vec(), streams, edit, schemas, encoder, changed: 0 }
    }

    /// Takes over the next commit.
    fn take(&mut self, bytes: &[u8], found: FoundCommit) -> Result<(), EditError> {
        let mut at = found.body;
        let mut body = Vec::with_capacity(found.end - found.body);
        let mut entries = Vec::with_capacity(found.head.entries.len());
        for entry in found.head.entries {
            let part = &bytes[at..at + entry.extent().0 as usize];
            at += part.len();
            if let Entry::Schema { id, .. } = &entry {
                self.schemas.insert(*id, Arc::new(batch::decode_schema(part)?));
            }
            match self.edited(&entry, part)? {
                Some((entry, part)) => {
                    body.extend_from_slice(&part);
                    entries.push(entry);
                }
                None => {
                    body.extend_from_slice(part);
                    entries.push(entry);
                }
            }
        }
        let head = CommitHead { entries, ..found.head };
        format::encode_commit(&head, &body, &mut self.bytes).map_err(io::Error::other)?;
        Ok(())
    }

    /// A part of a commit as it is to be; `None` when it stays as it is.
    fn edited(&mut self, entry: &Entry, part: &[u8]) -> Result<Option<(Entry, Vec<u8>)>, EditError> {
        let Entry::Rows { to, base, rows, schema, codec, raw_len, .. } = entry else { return Ok(None) };
        if !self.streams.contains(&to.stream) {
            return Ok(None);
        }
        let unknown = |what: String| EditError::Rows(ArrowError::IpcError(what));
        let stored =
            self.schemas.get(schema).ok_or_else(|| unknown(format!("schema {schema} is missing")))?;
        let stored = match Sensitive::of(stored) {
            Some(sensitive) => Arc::new(sensitive.stored(stored)),
            None => stored.clone(),
        };
        let known = Codec::from_u8(*codec).ok_or_else(|| unknown(format!("unknown codec {codec}")))?;
        let before = batch::decode_batch(part, known, *raw_len as usize, stored)?;
        let Some(after) = (self.edit)(to, *base, &before)? else { return Ok(None) };
        if after.num_rows() != before.num_rows() || after.schema() != before.schema() {
            return Err(unknown("what comes instead has other columns or rows".into()));
        }
        let encoded = self.encoder.encode(&after)?;
        self.changed += 1;
        let entry = Entry::Rows {
            to: to.clone(),
            base: *base,
            rows: *rows,
            schema: *schema,
            codec: encoded.codec as u8,
            len: encoded.bytes.len() as u32,
            raw_len: encoded.raw_len as u32,
            crc: crc32c::crc32c(&encoded.bytes),
        };
        Ok(Some((entry, encoded.bytes)))
    }
}
