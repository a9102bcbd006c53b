//! Letting old segments go, and copying all of them.

use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use highwater_event::{Offset, StreamPartition};

use super::{Journal, lock};
use crate::disk::Disk;
use crate::error::ReadError;
use crate::segment::{Segment, read_footer};

/// Closed segments that always stay: the newest one knows where every partition ends and how far every
/// view has come.
const KEPT: usize = 2;
/// Bytes that are copied at a time.
const COPY: usize = 4 << 20;

/// What a segment holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// When its newest rows were taken, microseconds UTC.
    pub recorded_until: i64,
    /// First and end offset of each partition.
    pub ranges: Vec<(StreamPartition, Offset, Offset)>,
}

/// What was let go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retired {
    /// Segments.
    pub segments: usize,
    /// Bytes on disk.
    pub bytes: u64,
}

/// The first offset of a partition that is in a segment.
pub(super) fn start_of(segments: &[Arc<Segment>], at: &StreamPartition, end: Offset) -> Offset {
    segments.iter().find_map(|segment| segment.range(at)).map_or(end, |(first, _)| first)
}

impl Journal {
    /// Removes the oldest segments as long as `may_go` agrees. The newest ones stay whatever it says.
    pub fn retire(&self, may_go: &dyn Fn(&Extent) -> bool) -> Result<Retired, ReadError> {
        let _alone = lock(&self.keeping);
        let failed = |error: io::Error| ReadError::Io(error.to_string());
        let mut retired = Retired::default();
        let closed = {
            let segments = self.shared.segments();
            segments.len().checked_sub(KEPT).map(|at| segments[at].clone())
        };
        // It is what knows where everything ends, so it has to be readable.
        let Some(closed) = closed else { return Ok(retired) };
        let length = closed.file.len().map_err(failed)?;
        if read_footer(closed.file.as_ref(), length).map_err(failed)?.is_none() {
            return Ok(retired);
        }
        loop {
            let oldest = {
                let segments = self.shared.segments();
                if segments.len() <= KEPT {
                    return Ok(retired);
                }
                segments[0].clone()
            };
            let extent = Extent { recorded_until: oldest.recorded_until()?, ranges: oldest.ranges() };
            oldest.forget_index();
            if !may_go(&extent) {
                return Ok(retired);
            }
            let bytes = oldest.file.len().map_err(failed)?;
            // Readers that are in it keep their file; later ones are told that it is gone.
            self.shared.segments.write().unwrap_or_else(PoisonError::into_inner).remove(0);
            self.disk.remove(&oldest.path).map_err(failed)?;
            // One after the other: a later segment must never be missing behind an earlier one.
            self.disk.sync_dir(&self.dir).map_err(failed)?;
            retired.segments += 1;
            retired.bytes += bytes;
        }
    }

    /// Copies the log, as it is durable now or a little later, into an empty folder while it goes on.
    /// The copy opens as a log of its own.
    pub fn copy_to(&self, disk: &dyn Disk, dir: &Path) -> io::Result<u64> {
        let _alone = lock(&self.keeping);
        disk.create_dir_all(dir)?;
        let segments: Vec<Arc<Segment>> = self.shared.segments().clone();
        let mut copied = 0;
        for segment in segments {
            let target = disk.create(&dir.join(segment.file_name()))?;
            // What is written while this runs is cut off as a torn tail when the copy is opened.
            let length = segment.file.len()?;
            let mut position = 0;
            while position < length {
                let mut bytes = vec![0; COPY.min((length - position) as usize)];
                match segment.file.read_at(&mut bytes, position) {
                    Ok(()) => {}
                    // A failed append was taken back meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                    Err(error) => return Err(error),
                }
                target.write_at(&bytes, position)?;
                position += bytes.len() as u64;
            }
            target.sync_data()?;
            copied += position;
        }
        disk.sync_dir(dir)?;
        Ok(copied)
    }
}
