//! The journal's writer: the one owner of the file that grows.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, PoisonError};

use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use highwater_event::{Clock, Offset, Sensitive, StreamName, StreamPartition, planted};
use highwater_privacy::{Positions, SealError};
use tokio::sync::{mpsc, oneshot};

use super::{JournalOptions, Shared, State, lock, open};
use crate::batch::{self, BatchEncoder};
use crate::commit::{Advance, Commit, LogBatch, Receipt};
use crate::disk::Disk;
use crate::error::AppendError;
use crate::format::{self, BatchPlace, CommitHead, Entry, SEGMENT_HEADER_LEN, SegmentSummary};
use crate::segment::Segment;

/// Where the outcome of an append goes.
pub(super) type Answer = oneshot::Sender<Result<Receipt, AppendError>>;

/// What the writer is asked for.
pub(super) enum Request {
    /// To make a commit durable.
    Append(Waiting),
    /// To close the segment that grows, and begin another.
    Roll(oneshot::Sender<Result<(), AppendError>>),
}

/// A commit that is to be made durable.
pub(super) struct Waiting {
    pub commit: Commit,
    pub answer: Answer,
}

/// Rows that one group may hold before it is written.
const GROUP_ROWS: usize = 256 * 1024;
/// The largest commit, in bytes, before which room is made: what a large one costs is writing its bytes, not letting the file grow.
const SMALL_COMMIT: usize = 64 * 1024;
/// Appends that one group may hold.
const GROUP_REQUESTS: usize = 4096;

pub(super) struct Writer {
    shared: Arc<Shared>,
    options: JournalOptions,
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    log_id: [u8; 16],
    /// Absent between a closed segment and the next one that could not be made yet.
    active: Option<(Arc<Segment>, u64)>,
    /// The length of its file: behind its last commit there are zeros.
    reserved: u64,
    state: State,
    /// Schemas of the active segment in the order of their numbers.
    schemas: Vec<SchemaRef>,
    encoder: BatchEncoder,
    poisoned: Option<String>,
}

/// A group of requests on its way to disk.
struct Group {
    /// Offsets after the group; becomes the state when it is durable.
    next: State,
    /// Rows by partition in the order of their offsets.
    rows: Vec<(StreamPartition, Offset, Vec<RecordBatch>)>,
    advances: Vec<Advance>,
    answers: Vec<(Answer, Vec<Offset>)>,
}

/// A group as bytes.
struct Encoded {
    bytes: Vec<u8>,
    schemas: Vec<(SchemaRef, Vec<u8>)>,
    /// Positions are relative to the commit's body until the head's length is known.
    places: Vec<(StreamPartition, BatchPlace)>,
    batches: Vec<(StreamPartition, LogBatch)>,
}

impl Writer {
    pub fn new(
        shared: Arc<Shared>,
        options: JournalOptions,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        active: Option<(Arc<Segment>, u64)>,
        log_id: [u8; 16],
    ) -> Self {
        let state = shared.state().clone();
        // A reopened segment keeps the schemas that its batches name.
        let schemas = active.as_ref().map(|(segment, _)| known_schemas(segment)).unwrap_or_default();
        Self {
            shared,
            options,
            disk,
            clock,
            log_id,
            reserved: active.as_ref().map_or(0, |(_, position)| *position),
            active,
            state,
            schemas,
            encoder: BatchEncoder::default(),
            poisoned: None,
        }
    }

    pub async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut next = requests.recv().await;
        while let Some(request) = next {
            let behind = match request {
                Request::Append(first) => {
                    let (group, behind) = gather(first, &mut requests);
                    self.commit(group);
                    behind
                }
                Request::Roll(answer) => {
                    if answer.send(self.roll(0)).is_err() {
                        tracing::debug!("a segment was closed after its caller had gone");
                    }
                    None
                }
            };
            next = match behind {
                Some(request) => Some(request),
                None => requests.recv().await,
            };
        }
        // What was reserved is of no use to anybody; a crash leaves it, and the next start cuts it off.
        if let Some((segment, position)) = self.active.filter(|(_, position)| *position < self.reserved)
            && let Err(error) = segment.file.truncate(position)
        {
            tracing::debug!(%error, "the room behind the end of the log stays");
        }
    }

    fn commit(&mut self, requests: Vec<Waiting>) {
        if let Some(reason) = &self.poisoned {
            let error = AppendError::Poisoned(reason.clone());
            return refuse(requests.into_iter().map(|request| request.answer), &error);
        }
        let recorded_at = self.clock.now_micros().max(self.state.recorded_at.saturating_add(1));
        let group = self.assemble(requests, recorded_at);
        if group.answers.is_empty() {
            return;
        }
        let outcome = self.encode(&group, recorded_at).and_then(|encoded| {
            self.write(&encoded.bytes)?;
            Ok(encoded)
        });
        match outcome {
            Ok(encoded) => self.publish(group, encoded, recorded_at),
            Err(error) => refuse(group.answers.into_iter().map(|(answer, _)| answer), &error),
        }
    }

    /// Gives every row its offset and checks every mark; requests that lose are answered here.
    fn assemble(&self, requests: Vec<Waiting>, recorded_at: i64) -> Group {
        let mut group =
            Group { next: self.state.clone(), rows: Vec::new(), advances: Vec::new(), answers: Vec::new() };
        let mut slots: HashMap<StreamPartition, usize> = HashMap::new();
        for Waiting { commit, answer } in requests {
            if let Err(error) = check_marks(&group.next, &commit.advances)
                .and_then(|()| check_ends(&group.next, &commit.ends))
            {
                refuse(std::iter::once(answer), &error);
                continue;
            }
            for advance in commit.advances {
                group.next.marks.insert((advance.writer.clone(), advance.source.clone()), advance.to);
                group.advances.push(advance);
            }
            let mut bases = Vec::with_capacity(commit.appends.len());
            for append in commit.appends {
                let end = group.next.ends.entry(append.to.clone()).or_insert(0);
                let base = *end;
                *end += append.rows.num_rows() as Offset;
                bases.push(base);
                if append.rows.num_rows() == 0 {
                    continue;
                }
                let slot = slots
                    .get(&append.to)
                    .copied()
                    .filter(|slot| same_schema(&group.rows[*slot].2, &append.rows));
                match slot {
                    Some(slot) => group.rows[slot].2.push(append.rows),
                    None => {
                        slots.insert(append.to.clone(), group.rows.len());
                        group.rows.push((append.to, base, vec![append.rows]));
                    }
                }
            }
            group.answers.push((answer, bases));
        }
        group.next.next_commit += 1;
        group.next.recorded_at = recorded_at;
        group
    }

    fn encode(&mut self, group: &Group, recorded_at: i64) -> Result<Encoded, AppendError> {
        self.roll(self.options.segment_bytes)?;
        let position = self.active.as_ref().map_or(0, |(_, position)| *position);
        let encode = |error: arrow::error::ArrowError| AppendError::Encode(error.to_string());
        let mut body = Vec::new();
        let mut encoded =
            Encoded { bytes: Vec::new(), schemas: Vec::new(), places: Vec::new(), batches: Vec::new() };
        let mut entries = Vec::new();
        for (to, base, batches) in &group.rows {
            let rows = match batches.as_slice() {
                [only] => only.clone(),
                several => concat_batches(several[0].schema_ref(), several).map_err(encode)?,
            };
            let schema = match self.schema_number(rows.schema_ref(), &encoded.schemas) {
                Some(number) => number,
                None => {
                    let bytes = batch::encode_schema(rows.schema_ref()).map_err(encode)?;
                    let id = (self.schemas.len() + encoded.schemas.len()) as u32;
                    entries.push(Entry::Schema { id, len: bytes.len() as u32, crc: crc32c::crc32c(&bytes) });
                    body.extend_from_slice(&bytes);
                    encoded.schemas.push((rows.schema(), bytes));
                    id
                }
            };
            let stored = match Sensitive::of(rows.schema_ref()) {
                Some(sensitive) => self.encoder.encode(&self.encrypt(to, *base, &sensitive, &rows)?),
                None => self.encoder.encode(&rows),
            };
            let stored = stored.map_err(encode)?;
            let place = BatchPlace {
                base: *base,
                rows: rows.num_rows() as u32,
                recorded_at,
                position: body.len() as u64,
                len: stored.bytes.len() as u32,
                raw_len: stored.raw_len as u32,
                crc: crc32c::crc32c(&stored.bytes),
                schema,
                codec: stored.codec as u8,
            };
            body.extend_from_slice(&stored.bytes);
            entries.push(Entry::Rows {
                to: to.clone(),
                base: place.base,
                rows: place.rows,
                schema,
                codec: place.codec,
                len: place.len,
                raw_len: place.raw_len,
                crc: place.crc,
            });
            encoded.places.push((to.clone(), place));
            encoded.batches.push((to.clone(), LogBatch { base: *base, recorded_at, rows }));
        }
        if body.len() as u64 > format::MAX_PART_LEN {
            return Err(AppendError::Encode(format!("a commit of {} bytes is too large", body.len())));
        }
        let head = CommitHead {
            number: self.state.next_commit,
            recorded_at,
            entries,
            advances: group.advances.clone(),
        };
        format::encode_commit(&head, &body, &mut encoded.bytes)
            .map_err(|error| AppendError::Encode(error.to_string()))?;
        let body_position = position + (encoded.bytes.len() - body.len()) as u64;
        for (_, place) in &mut encoded.places {
            place.position += body_position;
        }
        Ok(encoded)
    }

    fn encrypt(
        &self,
        to: &StreamPartition,
        base: Offset,
        sensitive: &Sensitive,
        rows: &RecordBatch,
    ) -> Result<RecordBatch, AppendError> {
        let vault = self.options.vault.as_ref().ok_or_else(|| {
            AppendError::Encode(format!("{} has SENSITIVE columns, and there are no keys", to.stream))
        })?;
        let positions = Positions::Run { partition: to.partition, first: base };
        vault.encrypt(to.stream.as_str(), positions, sensitive, rows).map_err(|error| match error {
            // The disk that the keys are on may be full.
            SealError::Ring(error) => AppendError::Write(error.to_string()),
            error => AppendError::Encode(error.to_string()),
        })
    }

    fn schema_number(&self, schema: &SchemaRef, fresh: &[(SchemaRef, Vec<u8>)]) -> Option<u32> {
        let same = |known: &SchemaRef| Arc::ptr_eq(known, schema) || known == schema;
        self.schemas
            .iter()
            .chain(fresh.iter().map(|(schema, _)| schema))
            .position(same)
            .map(|number| number as u32)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), AppendError> {
        let Some((segment, position)) = self.active.clone() else { return Err(AppendError::Closed) };
        self.reserve(&segment, position, bytes.len());
        if let Err(error) = segment.file.write_at(bytes, position) {
            return Err(self.undo(&segment, position, &error));
        }
        planted::stop("log:written");
        if planted::bug("ack_before_fsync") {
            self.active = Some((segment, position + bytes.len() as u64));
            return Ok(());
        }
        if let Err(error) = segment.file.sync_data()
            && !(planted::bug("retry_after_failed_fsync") && segment.file.sync_data().is_ok())
        {
            return Err(self.poison(format!("fsync of {} failed: {error}", segment.file_name())));
        }
        planted::stop("log:durable");
        self.active = Some((segment, position + bytes.len() as u64));
        Ok(())
    }

    /// Writes zeros behind the end of a small commit that reaches beyond what was reserved; the fsync of the commit is theirs, too.
    fn reserve(&mut self, segment: &Segment, position: u64, commit: usize) {
        let end = position + commit as u64;
        if end <= self.reserved {
            return;
        }
        self.reserved = end;
        if commit > SMALL_COMMIT || self.options.reserve_bytes == 0 {
            return;
        }
        match segment.file.write_at(&vec![0; self.options.reserve_bytes as usize], end) {
            Ok(()) => self.reserved = end + self.options.reserve_bytes,
            // The commit itself may fit, when they don't take its room. Whatever is left of them, a recovery cuts it off.
            Err(error) => {
                tracing::debug!(%error, "no room could be made behind the end of the log");
                if let Err(error) = segment.file.truncate(position) {
                    tracing::debug!(%error, "nor could what was made of it be taken back");
                }
            }
        }
    }

    /// Takes back a write that failed half-way, so that no part of it can be found by a recovery.
    fn undo(&mut self, segment: &Segment, position: u64, error: &io::Error) -> AppendError {
        if let Err(second) = segment.file.truncate(position) {
            return self.poison(format!("a failed write ({error}) could not be undone: {second}"));
        }
        self.reserved = position;
        write_error(error)
    }

    fn poison(&mut self, reason: String) -> AppendError {
        tracing::error!(reason, "the journal is poisoned: no append is accepted any more");
        self.poisoned = Some(reason.clone());
        self.shared.poisoned.send_replace(Some(reason.clone()));
        AppendError::Poisoned(reason)
    }

    /// Makes the group visible and answers. Only called after its bytes are durable.
    fn publish(&mut self, group: Group, encoded: Encoded, recorded_at: i64) {
        if let Some((segment, _)) = &self.active {
            let (schemas, bytes): (Vec<_>, Vec<_>) = encoded.schemas.into_iter().unzip();
            segment.record(bytes, encoded.places);
            self.schemas.extend(schemas);
        }
        let grown: BTreeSet<StreamName> = encoded.batches.iter().map(|(at, _)| at.stream.clone()).collect();
        {
            let mut tail = lock(&self.shared.tail);
            for (at, batch) in encoded.batches {
                tail.push(&at, batch);
            }
        }
        self.state = group.next;
        *self.shared.state.write().unwrap_or_else(PoisonError::into_inner) = self.state.clone();
        // Somebody waits for each answer; who follows the log comes next.
        for (answer, bases) in group.answers {
            if answer.send(Ok(Receipt { bases, recorded_at })).is_err() {
                tracing::debug!("an append became durable after its caller had gone");
            }
        }
        self.shared.followers.wake(&grown);
    }

    /// Closes the segment that grows when it has grown beyond so many bytes and holds anything; there is one after it.
    fn roll(&mut self, beyond: u64) -> Result<(), AppendError> {
        if let Some(reason) = &self.poisoned {
            return Err(AppendError::Poisoned(reason.clone()));
        }
        if let Some((segment, position)) = self.active.clone()
            && position > beyond.max(SEGMENT_HEADER_LEN as u64)
        {
            self.close_segment(&segment, position)?;
            self.active = None;
            self.schemas.clear();
        }
        if self.active.is_none() {
            self.next_segment()?;
        }
        Ok(())
    }

    fn close_segment(&mut self, segment: &Segment, position: u64) -> Result<(), AppendError> {
        let summary = SegmentSummary {
            next_commit: self.state.next_commit,
            ranges: segment.ranges(),
            ends: self.state.ends.iter().map(|(at, end)| (at.clone(), *end)).collect(),
            marks: self
                .state
                .marks
                .iter()
                .map(|((writer, at), mark)| (writer.clone(), at.clone(), *mark))
                .collect(),
        };
        let footer = format::encode_footer(&segment.index_snapshot(), &summary, position)
            .map_err(|error| AppendError::Encode(error.to_string()))?;
        // Its end is where the file ends.
        let end = position + footer.len() as u64;
        if let Err(error) = segment.file.write_at(&footer, position).and_then(|()| segment.file.truncate(end))
        {
            return Err(self.undo(segment, position, &error));
        }
        if let Err(error) = segment.file.sync_data() {
            return Err(self.poison(format!("fsync of {} failed: {error}", segment.file_name())));
        }
        Ok(())
    }

    fn next_segment(&mut self) -> Result<(), AppendError> {
        let first_commit = self.state.next_commit;
        let made = open::create_segment(
            self.disk.as_ref(),
            &self.options.dir,
            self.log_id,
            first_commit,
            self.clock.now_micros(),
        );
        match made {
            Ok(segment) => {
                self.shared.segments.write().unwrap_or_else(PoisonError::into_inner).push(segment.clone());
                self.active = Some((segment, SEGMENT_HEADER_LEN as u64));
                self.reserved = SEGMENT_HEADER_LEN as u64;
                Ok(())
            }
            Err(error) => {
                // A half-made file is in the way of the next attempt. When an fsync failed, the file is
                // thrown away with it: nothing in it was ever answered for.
                let path = self.options.dir.join(format!("{first_commit:020}.{}", format::EXTENSION));
                match self.disk.remove(&path) {
                    Ok(()) => Err(write_error(&error)),
                    Err(gone) if gone.kind() == io::ErrorKind::NotFound => Err(write_error(&error)),
                    Err(second) => {
                        Err(self
                            .poison(format!("a segment could not be made ({error}) nor removed: {second}")))
                    }
                }
            }
        }
    }
}

/// The schemas of a segment in the order of their numbers. One that can't be read keeps its number and
/// is never equal to another.
fn known_schemas(segment: &Segment) -> Vec<SchemaRef> {
    let unreadable = || {
        let field = arrow::datatypes::Field::new("\0unreadable", arrow::datatypes::DataType::Null, true);
        Arc::new(arrow::datatypes::Schema::new(vec![field]))
    };
    let schemas = segment.index_snapshot().schemas;
    schemas.iter().map(|bytes| batch::decode_schema(bytes).map_or_else(|_| unreadable(), Arc::new)).collect()
}

/// The commits that wait, as many as one group may hold, and what else waits behind them.
fn gather(first: Waiting, requests: &mut mpsc::Receiver<Request>) -> (Vec<Waiting>, Option<Request>) {
    let mut rows = row_count(&first);
    let mut group = vec![first];
    while rows < GROUP_ROWS && group.len() < GROUP_REQUESTS {
        match requests.try_recv() {
            Ok(Request::Append(waiting)) => {
                rows += row_count(&waiting);
                group.push(waiting);
            }
            Ok(other) => return (group, Some(other)),
            Err(_) => break,
        }
    }
    (group, None)
}

fn row_count(waiting: &Waiting) -> usize {
    waiting.commit.appends.iter().map(|append| append.rows.num_rows()).sum()
}

fn same_schema(batches: &[RecordBatch], rows: &RecordBatch) -> bool {
    batches.first().is_some_and(|first| {
        Arc::ptr_eq(first.schema_ref(), rows.schema_ref()) || first.schema_ref() == rows.schema_ref()
    })
}

fn check_marks(state: &State, advances: &[Advance]) -> Result<(), AppendError> {
    for advance in advances {
        let found = state.marks.get(&(advance.writer.clone(), advance.source.clone())).copied().unwrap_or(0);
        if found != advance.from {
            return Err(AppendError::Fenced {
                writer: advance.writer.clone(),
                source_partition: advance.source.clone(),
                expected: advance.from,
                found,
            });
        }
    }
    Ok(())
}

fn check_ends(state: &State, ends: &[(StreamPartition, Offset)]) -> Result<(), AppendError> {
    for (at, expected) in ends {
        let found = state.ends.get(at).copied().unwrap_or(0);
        if found != *expected {
            return Err(AppendError::Outrun { at: at.clone(), expected: *expected, found });
        }
    }
    Ok(())
}

fn write_error(error: &io::Error) -> AppendError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => AppendError::DiskFull,
        _ => AppendError::Write(error.to_string()),
    }
}

fn refuse(answers: impl Iterator<Item = Answer>, error: &AppendError) {
    for answer in answers {
        if answer.send(Err(error.clone())).is_err() {
            tracing::debug!("an append failed after its caller had gone");
        }
    }
}
