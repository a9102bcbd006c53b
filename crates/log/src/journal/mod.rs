//! The embedded log: one journal on local disk.
//!
//! Appends are handed to one writer thread. It takes all that wait, gives them offsets, writes them as
//! one commit, fsyncs once, and only then shows the rows and answers. The first fsync that fails
//! poisons the journal: nothing is accepted after it, because nobody knows what the disk still holds.
//!
//! What a schema calls SENSITIVE is encrypted when rows get their offsets, because each value is bound to its own;
//! the newest rows, which stay decoded in memory, and all that readers get are as they were handed in.
//!
//! Rows never change, with one exception: [`Journal::edit`] takes out of them what a person has asked to be taken out.
//!
//! Non-goals: deleting single events, reading what is not durable yet.

mod edit;
mod open;
mod retire;
mod writer;

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use async_trait::async_trait;
use futures::FutureExt;
use highwater_event::{Offset, Partition, StreamName, StreamPartition};
use highwater_privacy::Vault;
use tokio::sync::{mpsc, oneshot, watch};

use crate::Log;
use crate::commit::{Commit, LogBatch, Receipt};
use crate::disk::{Disk, LockGuard};
use crate::error::{AppendError, OpenError, ReadError};
use crate::growth::{Followers, Growth};
use crate::machine::{Machine, Unfinished};
use crate::segment::Segment;
use crate::tail::Tail;

pub use crate::recovery::Damage;
pub use edit::{Edit, EditError, Edited};
pub use retire::{Extent, Retired};

/// How a journal is kept.
#[derive(Debug, Clone)]
pub struct JournalOptions {
    /// Folder of the segments.
    pub dir: PathBuf,
    /// A segment is closed when it has grown beyond this many bytes.
    pub segment_bytes: u64,
    /// So many bytes of the segment that grows are written ahead, as zeros: an fsync of bytes that a file has already costs half of
    /// one that lets it grow.
    pub reserve_bytes: u64,
    /// The newest batches stay decoded in memory up to this many bytes.
    pub tail_bytes: usize,
    /// Appends that may wait for the writer.
    pub queue: usize,
    /// Encrypts what is SENSITIVE on its way to disk. Without it such rows are refused.
    pub vault: Option<Arc<Vault>>,
}

impl JournalOptions {
    /// Sensible values for a folder.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            segment_bytes: 64 << 20,
            reserve_bytes: 256 << 10,
            tail_bytes: 256 << 20,
            queue: 1024,
            vault: None,
        }
    }
}

/// The embedded log.
pub struct Journal {
    shared: Arc<Shared>,
    queue: mpsc::Sender<writer::Request>,
    /// Is over when the writer has ended.
    written: oneshot::Receiver<()>,
    damage: Vec<Damage>,
    id: [u8; 16],
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// Old segments are removed, or all are copied: one at a time.
    keeping: Mutex<()>,
    _lock: Box<dyn LockGuard>,
}

/// What readers and the writer share.
struct Shared {
    state: RwLock<State>,
    segments: RwLock<Vec<Arc<Segment>>>,
    tail: Mutex<Tail>,
    /// Closed segments whose index is in memory, oldest read first.
    loaded: Mutex<VecDeque<u64>>,
    followers: Followers,
    poisoned: watch::Sender<Option<String>>,
    vault: Option<Arc<Vault>>,
}

/// What is durable.
#[derive(Debug, Clone, Default)]
struct State {
    next_commit: u64,
    /// When the newest commit was taken. Every commit is later than the one before it, whatever the
    /// machine's clock does, so that `recorded_at` orders rows across streams.
    recorded_at: i64,
    ends: HashMap<StreamPartition, Offset>,
    marks: HashMap<(String, StreamPartition), Offset>,
}

/// Closed segments whose index is kept in memory.
const LOADED_INDEXES: usize = 16;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Journal {
    /// Opens the journal in a folder, making it when it is empty, and recovers what a crash left.
    pub fn open(options: JournalOptions, machine: &Machine) -> Result<Self, OpenError> {
        let Machine { clock, randomness, disk, scheduler } = machine.clone();
        let opened = open::open(&options, disk.as_ref(), clock.as_ref(), randomness.as_ref())?;
        let shared = Arc::new(Shared {
            state: RwLock::new(opened.state),
            segments: RwLock::new(opened.segments),
            tail: Mutex::new(Tail::new(options.tail_bytes)),
            loaded: Mutex::new(VecDeque::new()),
            followers: Followers::default(),
            poisoned: watch::Sender::new(None),
            vault: options.vault.clone(),
        });
        let (queue, requests) = mpsc::channel(options.queue);
        let (kept_disk, dir) = (disk.clone(), options.dir.clone());
        let writer = writer::Writer::new(shared.clone(), options, disk, clock, opened.active, opened.log_id);
        let (ends, written) = oneshot::channel();
        let watched = shared.clone();
        let owner = async move {
            if let Err(payload) = AssertUnwindSafe(writer.run(requests)).catch_unwind().await {
                let error = Unfinished::panicked(payload.as_ref());
                tracing::error!(%error, "the journal's thread has ended");
                watched.poisoned.send_replace(Some(format!("the journal's thread has ended: {error}")));
            }
            if ends.send(()).is_err() {
                tracing::debug!("the journal's thread has ended; nobody waited for it");
            }
        };
        scheduler
            .start_owner("journal", Box::pin(owner))
            .map_err(OpenError::io("the journal's thread could not be started"))?;
        Ok(Self {
            shared,
            queue,
            written,
            damage: opened.damage,
            id: opened.log_id,
            disk: kept_disk,
            dir,
            keeping: Mutex::new(()),
            _lock: opened.lock,
        })
    }

    /// What tells this log from any other; a copy of its files has the same.
    pub fn id(&self) -> &[u8; 16] {
        &self.id
    }

    /// Damage that was found in the middle of segments when the journal was opened.
    pub fn damage(&self) -> &[Damage] {
        &self.damage
    }

    /// All partitions of the log with the offset after their last durable row.
    pub fn ends(&self) -> Vec<(StreamPartition, Offset)> {
        let state = self.shared.state();
        let mut ends: Vec<_> = state.ends.iter().map(|(at, end)| (at.clone(), *end)).collect();
        ends.sort();
        ends
    }

    /// Forgets the decoded batches in memory: what they hold is read from the disk again, as it stands there.
    pub fn forget_decoded(&self) {
        lock(&self.shared.tail).clear();
    }

    /// Bytes of all segments on disk.
    pub fn bytes_on_disk(&self) -> u64 {
        self.shared.segments().iter().filter_map(|segment| segment.file.len().ok()).sum()
    }

    /// Waits, in place, until everything that was handed in is written, then stops the writer.
    pub fn close(self) {
        let Self { queue, written, .. } = self;
        drop(queue);
        // An error says that it has been ended from outside; a panic has been told.
        drop(futures::executor::block_on(written));
    }
}

impl Shared {
    fn state(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn segments(&self) -> std::sync::RwLockReadGuard<'_, Vec<Arc<Segment>>> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the number of loaded indexes bounded.
    fn note_use(&self, segments: &[Arc<Segment>], used: &Segment) {
        let mut loaded = lock(&self.loaded);
        if segments.last().is_some_and(|active| active.first_commit == used.first_commit) {
            return;
        }
        loaded.retain(|first| *first != used.first_commit);
        loaded.push_back(used.first_commit);
        if loaded.len() > LOADED_INDEXES
            && let Some(oldest) = loaded.pop_front()
            && let Some(segment) = segments.iter().find(|segment| segment.first_commit == oldest)
        {
            segment.forget_index();
        }
    }

    fn read_segments(
        &self,
        at: &StreamPartition,
        from: Offset,
        end: Offset,
        max_rows: usize,
    ) -> Result<Vec<LogBatch>, ReadError> {
        let segments: Vec<Arc<Segment>> = self.segments().clone();
        let start = retire::start_of(&segments, at, end);
        if from < start && segments.first().is_some_and(|segment| segment.first_commit > 0) {
            return Err(ReadError::Retired { at: at.clone(), start });
        }
        let mut batches: Vec<LogBatch> = Vec::new();
        let mut rows = 0usize;
        let mut expected = from;
        for segment in &segments {
            let Some((_, segment_end)) = segment.range(at) else { continue };
            if segment_end <= expected {
                continue;
            }
            let places = segment.places(at, expected, max_rows - rows)?;
            self.note_use(&segments, segment);
            for place in places {
                if place.base >= end {
                    return Ok(batches);
                }
                let gap = place.base > expected;
                let fetched = if gap {
                    Err(missing(at, expected, place.base))
                } else {
                    segment.fetch(at, &place, self.vault.as_deref())
                };
                match fetched {
                    Ok(fetched) => {
                        rows += fetched.num_rows();
                        let batch =
                            LogBatch { base: place.base, recorded_at: place.recorded_at, rows: fetched };
                        expected = batch.end();
                        batches.push(batch);
                    }
                    // What was read before the fault is served; the next read meets the fault first.
                    Err(_) if !batches.is_empty() => return Ok(batches),
                    Err(error) => return Err(error),
                }
            }
            // The summary of a segment knows of rows that its commits do not show any more.
            if batches.is_empty() && segment_end > expected {
                return Err(missing(at, expected, segment_end.min(end)));
            }
            // A segment's places stop early when they are large: the next read goes on from there.
            if rows >= max_rows || segment_end > expected {
                return Ok(batches);
            }
        }
        if batches.is_empty() && expected < end {
            return Err(missing(at, expected, end));
        }
        Ok(batches)
    }
}

fn missing(at: &StreamPartition, from: Offset, to: Offset) -> ReadError {
    ReadError::Damaged {
        at: at.clone(),
        from,
        to,
        detail: "the commits that held them are unreadable".into(),
    }
}

#[async_trait]
impl Log for Journal {
    async fn append(&self, commit: Commit) -> Result<Receipt, AppendError> {
        let (answer, answered) = oneshot::channel();
        let waiting = writer::Waiting { commit, answer };
        if self.queue.send(writer::Request::Append(waiting)).await.is_err() {
            return Err(self.shared.closed());
        }
        answered.await.unwrap_or_else(|_| Err(self.shared.closed()))
    }

    fn read(&self, at: &StreamPartition, from: Offset, max_rows: usize) -> Result<Vec<LogBatch>, ReadError> {
        let end = self.end(at);
        if from >= end || max_rows == 0 {
            return Ok(Vec::new());
        }
        if let Some(batches) = lock(&self.shared.tail).read(at, from, max_rows) {
            return Ok(batches);
        }
        self.shared.read_segments(at, from, end, max_rows)
    }

    fn start(&self, at: &StreamPartition) -> Offset {
        retire::start_of(&self.shared.segments(), at, self.end(at))
    }

    fn end(&self, at: &StreamPartition) -> Offset {
        self.shared.state().ends.get(at).copied().unwrap_or(0)
    }

    fn partitions(&self, stream: &StreamName) -> Vec<Partition> {
        let state = self.shared.state();
        let mut partitions: Vec<_> =
            state.ends.keys().filter(|at| at.stream == *stream).map(|at| at.partition).collect();
        partitions.sort_unstable();
        partitions
    }

    fn advanced(&self, writer: &str, source: &StreamPartition) -> Offset {
        self.shared.state().marks.get(&(writer.to_owned(), source.clone())).copied().unwrap_or(0)
    }

    fn recorded_until(&self) -> i64 {
        self.shared.state().recorded_at
    }

    fn growth(&self, streams: &[StreamName]) -> Growth {
        self.shared.followers.follow(streams)
    }

    fn poisoned(&self) -> watch::Receiver<Option<String>> {
        self.shared.poisoned.subscribe()
    }
}

impl Shared {
    fn closed(&self) -> AppendError {
        match self.poisoned.borrow().clone() {
            Some(reason) => AppendError::Poisoned(reason),
            None => AppendError::Closed,
        }
    }
}
