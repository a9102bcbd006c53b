//! Opening a journal: from footers where there are some, from commits where there are none.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use highwater_event::{Clock, Randomness, planted};

use super::{Damage, JournalOptions, State};
use crate::disk::{Disk, DiskFile, LockGuard};
use crate::error::OpenError;
use crate::format::{
    EXTENSION, HeaderFault, NEW_EXTENSION, SEGMENT_HEADER_LEN, SegmentHeader, SegmentSummary, VERSION,
};
use crate::recovery::{self, Scan};
use crate::segment::{Segment, read_footer};

pub(super) struct Opened {
    pub state: State,
    pub segments: Vec<Arc<Segment>>,
    /// The segment that goes on growing and the position after its last commit.
    pub active: Option<(Arc<Segment>, u64)>,
    pub log_id: [u8; 16],
    pub damage: Vec<Damage>,
    pub lock: Box<dyn LockGuard>,
}

pub(super) fn open(
    options: &JournalOptions,
    disk: &dyn Disk,
    clock: &dyn Clock,
    randomness: &dyn Randomness,
) -> Result<Opened, OpenError> {
    let dir = &options.dir;
    disk.create_dir_all(dir).map_err(OpenError::io("the log's folder can't be made"))?;
    let lock = disk.lock(&dir.join("lock")).map_err(|source| match source.kind() {
        std::io::ErrorKind::WouldBlock => OpenError::Locked(dir.join("lock").display().to_string()),
        _ => OpenError::Io { context: "the log's folder can't be locked".into(), source },
    })?;
    let mut paths = disk.list(dir).map_err(OpenError::io("the log's folder can't be listed"))?;
    for unfinished in paths.iter().filter(|path| has_extension(path, NEW_EXTENSION)) {
        disk.remove(unfinished).map_err(OpenError::io("what an edit has left can't be removed"))?;
    }
    paths.retain(|path| has_extension(path, EXTENSION));

    let mut opened = Opened {
        state: State::default(),
        segments: Vec::new(),
        active: None,
        log_id: [0; 16],
        damage: Vec::new(),
        lock,
    };
    let last = paths.len().saturating_sub(1);
    for (number, path) in paths.iter().enumerate() {
        open_segment(&mut opened, disk, path, number == 0, number == last)?;
    }
    if opened.segments.is_empty() {
        randomness.fill(&mut opened.log_id).map_err(|error| OpenError::Io {
            context: "the log needs an identity".into(),
            source: std::io::Error::other(error.to_string()),
        })?;
    }
    // The newest segment that holds rows: later ones may have been made just before the crash.
    for segment in opened.segments.iter().rev() {
        let recorded_at = segment
            .recorded_until()
            .map_err(|error| OpenError::Damaged { file: segment.file_name(), detail: error.to_string() })?;
        opened.state.recorded_at = opened.state.recorded_at.max(recorded_at);
        if recorded_at > 0 {
            break;
        }
    }
    if opened.active.is_none() {
        let segment = create_segment(disk, dir, opened.log_id, opened.state.next_commit, clock.now_micros())
            .map_err(OpenError::io("a log segment can't be made"))?;
        opened.segments.push(segment.clone());
        opened.active = Some((segment, SEGMENT_HEADER_LEN as u64));
    }
    Ok(opened)
}

fn has_extension(path: &Path, wanted: &str) -> bool {
    path.extension().is_some_and(|extension| extension == wanted)
}

/// Makes a new segment durable: its header and its name in the folder.
pub(super) fn create_segment(
    disk: &dyn Disk,
    dir: &Path,
    log_id: [u8; 16],
    first_commit: u64,
    created: i64,
) -> std::io::Result<Arc<Segment>> {
    let path = dir.join(format!("{first_commit:020}.{EXTENSION}"));
    let file = disk.create(&path)?;
    file.write_at(&SegmentHeader { log_id, first_commit, created }.encode(), 0)?;
    file.sync_data()?;
    if !planted::bug("no_directory_fsync") {
        disk.sync_dir(dir)?;
    }
    Ok(Arc::new(Segment::new(path, first_commit, file)))
}

fn open_segment(
    opened: &mut Opened,
    disk: &dyn Disk,
    path: &Path,
    first: bool,
    last: bool,
) -> Result<(), OpenError> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let file = disk.open(path).map_err(OpenError::io(format!("{name} can't be opened")))?;
    let length = file.len().map_err(OpenError::io(format!("{name} can't be read")))?;
    let mut head = vec![0; SEGMENT_HEADER_LEN.min(length as usize)];
    file.read_at(&mut head, 0).map_err(OpenError::io(format!("{name} can't be read")))?;
    let header = match SegmentHeader::decode(&head) {
        Ok(header) => header,
        Err(HeaderFault::Newer(found)) => {
            return Err(OpenError::Version { file: name, found, known: VERSION });
        }
        // A crash while the segment was made: no commit can be in it, because its header is fsynced first.
        Err(HeaderFault::Damaged) if last && length <= SEGMENT_HEADER_LEN as u64 => {
            drop(file);
            return disk.remove(path).map_err(OpenError::io(format!("{name} can't be removed")));
        }
        Err(HeaderFault::Damaged) => {
            return Err(OpenError::Damaged {
                file: name,
                detail: "its header is not what was written".into(),
            });
        }
    };
    if first {
        opened.log_id = header.log_id;
        // Older segments may have been removed after their retention.
        opened.state.next_commit = header.first_commit;
    } else if header.log_id != opened.log_id {
        return Err(OpenError::Damaged { file: name, detail: "it belongs to another log".into() });
    } else if header.first_commit < opened.state.next_commit {
        return Err(OpenError::Damaged { file: name, detail: "it overlaps the segment before it".into() });
    } else if header.first_commit > opened.state.next_commit {
        opened.damage.push(Damage {
            file: name.clone(),
            position: 0,
            length: 0,
            commits: (opened.state.next_commit, header.first_commit),
        });
    }

    let footer =
        read_footer(file.as_ref(), length).map_err(OpenError::io(format!("{name} can't be read")))?;
    match footer {
        Some((_, summary)) => {
            let segment = Segment::closed(path.to_owned(), header.first_commit, file, &summary);
            opened.state.take_summary(summary);
            opened.segments.push(Arc::new(segment));
        }
        None => scan_segment(opened, path.to_owned(), file, length, header, last)?,
    }
    Ok(())
}

fn scan_segment(
    opened: &mut Opened,
    path: PathBuf,
    file: Box<dyn DiskFile>,
    length: u64,
    header: SegmentHeader,
    last: bool,
) -> Result<(), OpenError> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut bytes = vec![0; length as usize];
    file.read_at(&mut bytes, 0).map_err(OpenError::io(format!("{name} can't be read")))?;
    let mut scan = recovery::scan(&name, &bytes, header.first_commit);
    let torn = bytes[(scan.end as usize).min(bytes.len())..].iter().any(|byte| *byte != 0);
    drop(bytes);
    // A damaged segment is never written again: its schemas and offsets can't be trusted to be complete.
    let sound = scan.damage.is_empty();
    opened.damage.append(&mut scan.damage);
    let end = scan.end;
    if last {
        if torn {
            tracing::info!(
                segment = name,
                bytes = length - end,
                "cut a torn tail that no answer had confirmed"
            );
        }
        if end < length {
            file.truncate(end).map_err(OpenError::io(format!("{name} can't be cut")))?;
        }
        // What the last process wrote but did not fsync becomes visible now, so it is made durable first.
        file.sync_data().map_err(OpenError::io(format!("{name} can't be synced")))?;
    } else if end < length && scan.next_commit == header.first_commit {
        return Err(OpenError::Damaged { file: name, detail: "no commit in it can be read".into() });
    } else {
        tracing::error!(
            segment = name,
            "a closed segment has no sound footer; its commits were read instead"
        );
    }
    opened.state.take_scan(&scan);
    let segment = Arc::new(Segment::scanned(path, header.first_commit, file, scan));
    opened.segments.push(segment.clone());
    if last && sound {
        opened.active = Some((segment, end));
    }
    Ok(())
}

impl State {
    fn take_summary(&mut self, summary: SegmentSummary) {
        self.next_commit = summary.next_commit;
        self.ends.extend(summary.ends);
        self.marks.extend(summary.marks.into_iter().map(|(writer, at, mark)| ((writer, at), mark)));
    }

    fn take_scan(&mut self, scan: &Scan) {
        self.next_commit = scan.next_commit;
        self.recorded_at = self.recorded_at.max(scan.recorded_at);
        for (at, (_, end)) in &scan.ranges {
            self.ends.insert(at.clone(), *end);
        }
        for advance in &scan.advances {
            self.marks.insert((advance.writer.clone(), advance.source.clone()), advance.to);
            // A view has seen rows up to here: where damage took the last of them, their offsets stay taken.
            let end = self.ends.entry(advance.source.clone()).or_insert(0);
            *end = (*end).max(advance.to);
        }
    }
}
