//! The one owner of "check, then append".
//!
//! Requests queue up; one thread takes all that wait, checks each row against the dedupe index and
//! against the rows before it, appends what is new in one commit together with the dead letters, waits
//! until that is durable, notes the ids and answers. Because nothing else appends to a raw stream, no
//! two equal events can pass. Large bodies are decoded by their callers, in parallel; small ones by the
//! owner, many into one batch.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use arrow::array::{BooleanArray, RecordBatch, UInt32Array};
use arrow::compute::{filter_record_batch, take_record_batch};
use bytes::Bytes;
use highwater_event::{
    Clock, Digest128, Offset, Partition, Principal, Randomness, Reaction, StreamName, StreamPartition,
    planted,
};
use highwater_log::audit::{self, Entry, SEAL, Sealer};
use highwater_log::dead_letter::{self, DEAD_LETTERS, DeadLetter};
use highwater_log::keyed::StoreError;
use highwater_log::machine::Scheduler;
use highwater_log::{Append, AppendError, Commit, Log, Machine};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::decode::{BodyError, Decoder, Format, Row, RowBatch, RowError, check_json};
use crate::dedupe::{DedupeIndex, Hasher, Known};
use crate::identify::RowIdentity;

/// Limits of the door.
#[derive(Debug, Clone, Copy)]
pub struct DoorOptions {
    /// Bytes of bodies that may wait; beyond that the door is busy.
    pub waiting_bytes: usize,
    /// Events in one request.
    pub rows_per_request: usize,
    /// Bodies up to this size are decoded by the owner, many at a time.
    pub small_body: usize,
    /// How long a body waits for room before the door says that it is busy.
    pub patience: Duration,
}

impl Default for DoorOptions {
    fn default() -> Self {
        Self {
            waiting_bytes: 64 << 20,
            rows_per_request: 100_000,
            small_body: 16 << 10,
            patience: Duration::from_secs(1),
        }
    }
}

/// A request for the door.
#[derive(Debug, Clone)]
pub struct Submission {
    /// Where the events go.
    pub stream: StreamName,
    /// The body.
    pub body: Bytes,
    /// How it holds them.
    pub format: Format,
    /// Who sends them; ids are unique per principal.
    pub principal: Principal,
    /// What the audit trail will say of it. The door completes it, and appends it in the commit of the events;
    /// when the door answers an error, it has not.
    pub leaf: Option<Box<Entry>>,
    /// Rows of the node's own that go into the commit of the events, when one of these is in the stream by it or was
    /// before: what is remembered about them is as durable as they are.
    pub beside: Vec<Append>,
}

/// What became of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Its id, where the stream has ids and the event could be read.
    pub event_id: Option<String>,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is in the log, durably.
    Accepted {
        /// Partition of the stream.
        partition: Partition,
        /// Offset in it.
        offset: Offset,
    },
    /// It was there before; names the original.
    Duplicate {
        /// Partition of the original.
        partition: Partition,
        /// Offset of the original.
        offset: Offset,
    },
    /// The id was used before for something else.
    Conflict {
        /// Partition of the original.
        partition: Partition,
        /// Offset of the original.
        offset: Offset,
    },
    /// It is not what the stream declares; kept as a dead letter.
    Rejected(RowError),
}

/// The request as a whole was not taken; nothing of it is in the stream.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DoorError {
    /// No such raw stream.
    #[error("no stream \"{0}\" takes events")]
    UnknownStream(StreamName),
    /// The body is not what it says.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// Too much waits already.
    #[error("too many events are waiting to be written; send again in a moment")]
    Busy,
    /// The log refused.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The dedupe index could not be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A fault of the program.
    #[error("the events could not be put into columns: {0}")]
    Internal(String),
}

impl DoorError {
    /// What to do about it.
    pub fn reaction(&self) -> Reaction {
        match self {
            Self::UnknownStream(_) => Reaction::NotFound,
            Self::Body(_) => Reaction::FixRequest,
            Self::Busy => Reaction::Retry,
            Self::Append(error) => error.reaction(),
            Self::Store(error) => error.reaction(),
            Self::Internal(_) => Reaction::CallOperator,
        }
    }
}

impl From<arrow::error::ArrowError> for DoorError {
    fn from(error: arrow::error::ArrowError) -> Self {
        Self::Internal(error.to_string())
    }
}

/// A stream that takes events.
struct Entrance {
    decoder: Decoder,
    index: Option<Arc<DedupeIndex>>,
}

impl Entrance {
    /// What is known of events that have these keys, each at its place.
    fn known(&self, keys: &[Option<Digest128>]) -> Result<Vec<Option<Known>>, DoorError> {
        match &self.index {
            Some(index) => Ok(index.find_all(keys)?),
            None => Ok(vec![None; keys.len()]),
        }
    }
}

/// The door.
pub struct Door {
    entrances: RwLock<HashMap<StreamName, Arc<Entrance>>>,
    queue: mpsc::Sender<Waiting>,
    room: Arc<Semaphore>,
    /// Large bodies are decoded one on each core: more at a time would only share it.
    decoding: Semaphore,
    options: DoorOptions,
    clock: Arc<dyn Clock>,
    scheduler: Arc<dyn Scheduler>,
}

/// Where the outcome of a request goes.
type Answer = oneshot::Sender<Result<Vec<Verdict>, DoorError>>;

/// A request on its way to the owner.
struct Waiting {
    entrance: Arc<Entrance>,
    principal: Principal,
    load: Load,
    leaf: Option<Box<Entry>>,
    beside: Vec<Append>,
    answer: Answer,
    room: Room,
}

/// Room at the door for one body; given back when it is dropped.
pub struct Room(#[allow(dead_code, reason = "held, never looked at")] OwnedSemaphorePermit);

/// What a body takes whose length its sender does not say.
const UNKNOWN_BODY: usize = 1 << 20;
/// A body never takes more: a few slow senders of long ones must not keep everybody else waiting.
const HEAVIEST_BODY: usize = 4 << 20;

enum Load {
    Small(Bytes, Format),
    Large(Decoded),
}

/// A body that its caller has decoded.
struct Decoded {
    rows: RecordBatch,
    identities: Vec<RowIdentity>,
    /// For each event of the body: its row, or its fault and bytes.
    items: Vec<Result<usize, (RowError, Vec<u8>)>>,
}

impl Door {
    /// Opens the door. The owner's thread ends when the door is dropped.
    pub fn open(
        log: Arc<dyn Log>,
        sealer: Arc<dyn Sealer>,
        machine: &Machine,
        options: DoorOptions,
    ) -> std::io::Result<Self> {
        let (queue, waiting) = mpsc::channel(4096);
        let Machine { clock, scheduler, randomness, .. } = machine.clone();
        let clock_of_owner = clock.clone();
        let row = Row::default();
        let owner = Owner { log, sealer, clock: clock_of_owner, randomness, options, sequence: 0, row };
        scheduler.start_owner("door", Box::pin(owner.run(waiting)))?;
        let room = Arc::new(Semaphore::new(options.waiting_bytes.min(Semaphore::MAX_PERMITS)));
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let decoding = Semaphore::new(cores);
        Ok(Self { entrances: RwLock::default(), queue, room, decoding, options, clock, scheduler })
    }

    /// True when its owner has come to an untimely end: nothing is taken any more.
    pub fn is_broken(&self) -> bool {
        self.queue.is_closed()
    }

    /// Lets events into a stream. `index` is its dedupe index, already at the head of the log.
    pub fn admit(&self, decoder: Decoder, index: Option<Arc<DedupeIndex>>) {
        let name = decoder.stream().name.clone();
        let mut entrances = self.entrances.write().unwrap_or_else(PoisonError::into_inner);
        entrances.insert(name, Arc::new(Entrance { decoder, index }));
    }

    /// Lets no more events into a stream.
    pub fn dismiss(&self, stream: &StreamName) {
        self.entrances.write().unwrap_or_else(PoisonError::into_inner).remove(stream);
    }

    /// The dedupe index of a stream that takes events.
    pub fn index(&self, stream: &StreamName) -> Option<Arc<DedupeIndex>> {
        self.entrances.read().unwrap_or_else(PoisonError::into_inner).get(stream)?.index.clone()
    }

    /// All dedupe indexes.
    pub fn indexes(&self) -> Vec<Arc<DedupeIndex>> {
        let entrances = self.entrances.read().unwrap_or_else(PoisonError::into_inner);
        entrances.values().filter_map(|entrance| entrance.index.clone()).collect()
    }

    /// Waits for room for a body of so many bytes, first come, first served. Callers that read bodies ask
    /// before they do, so that what has to wait is not in memory.
    pub async fn room(&self, bytes: Option<usize>) -> Result<Room, DoorError> {
        let weight = bytes.unwrap_or(UNKNOWN_BODY).clamp(1, HEAVIEST_BODY.min(self.options.waiting_bytes));
        let room = self.room.clone().acquire_many_owned(weight as u32);
        match self.scheduler.in_time(self.options.patience, room).await {
            Some(Ok(room)) => Ok(Room(room)),
            _ => Err(DoorError::Busy),
        }
    }

    /// What the first event of a body would be refused for, if it would be: nothing is taken, and nothing is written
    /// down. Whether its id was used before is not asked.
    pub fn refusal(
        &self,
        stream: &StreamName,
        body: &[u8],
        format: Format,
        principal: &Principal,
    ) -> Result<Option<RowError>, DoorError> {
        let entrances = self.entrances.read().unwrap_or_else(PoisonError::into_inner);
        let entrance = entrances.get(stream).cloned();
        drop(entrances);
        let entrance = entrance.ok_or_else(|| DoorError::UnknownStream(stream.clone()))?;
        let decoded = decode_large(&entrance.decoder, body, format, principal, 1, self.clock.now_micros())?;
        Ok(decoded.items.into_iter().find_map(|item| item.err().map(|(error, _)| error)))
    }

    /// Takes a request; answers when every accepted event of it is durable.
    pub async fn submit(&self, submission: Submission) -> Result<Vec<Verdict>, DoorError> {
        let room = self.room(Some(submission.body.len())).await?;
        self.submit_into(room, submission).await
    }

    /// The same with room that the caller has waited for.
    pub async fn submit_into(&self, room: Room, submission: Submission) -> Result<Vec<Verdict>, DoorError> {
        let entrance = self
            .entrances
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&submission.stream)
            .cloned()
            .ok_or_else(|| DoorError::UnknownStream(submission.stream.clone()))?;
        let load = if submission.body.len() <= self.options.small_body {
            Load::Small(submission.body, submission.format)
        } else {
            let _core = self.decoding.acquire().await.map_err(|_| DoorError::Busy)?;
            let (entrance, principal) = (entrance.clone(), submission.principal.clone());
            let (limit, now) = (self.options.rows_per_request, self.clock.now_micros());
            let decoded = self.scheduler.work(move || {
                decode_large(&entrance.decoder, &submission.body, submission.format, &principal, limit, now)
            });
            Load::Large(decoded.await.map_err(|error| DoorError::Internal(error.to_string()))??)
        };
        let (answer, answered) = oneshot::channel();
        let Submission { principal, leaf, beside, .. } = submission;
        let waiting = Waiting { entrance, principal, load, leaf, beside, answer, room };
        self.queue.send(waiting).await.map_err(|_| DoorError::Append(AppendError::Closed))?;
        answered.await.unwrap_or(Err(DoorError::Append(AppendError::Closed)))
    }
}

fn decode_large(
    decoder: &Decoder,
    body: &[u8],
    format: Format,
    principal: &Principal,
    limit: usize,
    now: i64,
) -> Result<Decoded, DoorError> {
    let mut batch = RowBatch::new(decoder)?;
    let mut identities: Vec<RowIdentity> = Vec::new();
    let mut items = Vec::new();
    let mut failed = None;
    let mut row = Row::default();
    decoder.decode(body, format, limit, &mut row, &mut |bytes, outcome| {
        let identified = outcome.and_then(|row| {
            let identity = decoder.identify(row, principal, now, items.len() as u64)?;
            Ok((row, identity))
        });
        match identified {
            Ok((row, identity)) => {
                if let Err(error) = batch.push(row, &identity) {
                    failed.get_or_insert(error);
                }
                items.push(Ok(identities.len()));
                identities.push(identity);
            }
            Err(error) => items.push(Err((error, bytes.to_vec()))),
        }
    })?;
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(Decoded { rows: batch.finish()?, identities, items }),
    }
}

/// Bodies that the owner takes together.
const GROUP_REQUESTS: usize = 2048;
const GROUP_ROWS: usize = 64 * 1024;

struct Owner {
    log: Arc<dyn Log>,
    sealer: Arc<dyn Sealer>,
    clock: Arc<dyn Clock>,
    /// Salts of the entries of seals.
    randomness: Arc<dyn Randomness>,
    options: DoorOptions,
    /// Sets apart derived ids of one microsecond.
    sequence: u64,
    row: Row,
}

/// A row of this group: which part of the commit, and where in it.
#[derive(Debug, Clone, Copy)]
struct Place {
    append: usize,
    row: usize,
    partition: Partition,
    payload: i64,
}

/// What is known of an event before the commit.
enum Draft {
    New(Place),
    Repeat(Place),
    RepeatConflict(Place),
    Known(Known),
    KnownConflict(Known),
    Rejected(RowError),
}

/// Each event of a request: its id, and what is known of it.
type Drafts = Vec<(Option<String>, Draft)>;

/// Where keys stand that no index knows yet.
type Fresh = HashMap<Digest128, Place, Hasher>;

/// Everything of one group of requests.
#[derive(Default)]
struct Group {
    appends: Vec<Append>,
    letters: Vec<DeadLetter>,
    /// What is remembered about the events.
    beside: Vec<Append>,
    /// Entries of the audit trail.
    leaves: Vec<Entry>,
    /// Streams of this group whose events are to be proven.
    proven: BTreeSet<StreamName>,
    /// Small rows by entrance and partition, turned into appends at the end. A stream that was altered a
    /// moment ago may have two entrances in one group, with columns of their own.
    small: BTreeMap<(usize, Partition), (usize, Arc<Entrance>, SmallRows)>,
    /// Keys that are new in this group, by the stream that they are new in.
    fresh: BTreeMap<StreamName, (Arc<DedupeIndex>, Fresh)>,
    answers: Vec<(Answer, Drafts, Room)>,
}

struct SmallRows(RowBatch);

impl Owner {
    async fn run(mut self, mut queue: mpsc::Receiver<Waiting>) {
        while let Some(first) = queue.recv().await {
            let mut rows = first.rows();
            let mut waiting = vec![first];
            while waiting.len() < GROUP_REQUESTS
                && rows < GROUP_ROWS
                && let Ok(next) = queue.try_recv()
            {
                rows += next.rows();
                waiting.push(next);
            }
            self.serve(waiting).await;
        }
    }

    async fn serve(&mut self, waiting: Vec<Waiting>) {
        let mut group = Group::default();
        for Waiting { entrance, principal, load, leaf, beside, answer, room } in waiting {
            let stream = entrance.decoder.stream();
            if stream.options.proof {
                group.proven.insert(stream.name.clone());
            }
            let drafts = match load {
                Load::Small(body, format) => {
                    self.draft_small(&mut group, &entrance, &principal, &body, format)
                }
                Load::Large(decoded) => {
                    let before = group.appends.len();
                    let drafts = self.draft_large(&mut group, &entrance, &principal, decoded);
                    if drafts.is_err() {
                        // Nothing of this body is appended, so nothing of it may be remembered.
                        for (_, keys) in group.fresh.values_mut() {
                            keys.retain(|_, place| place.append < before);
                        }
                    }
                    drafts
                }
            };
            match drafts {
                Ok(drafts) => {
                    let stream = &entrance.decoder.stream().name;
                    let leaf = leaf.map(|leaf| complete(*leaf, stream, &drafts, self.clock.now_micros()));
                    group.leaves.extend(leaf);
                    let there =
                        |draft: &Draft| matches!(draft, Draft::New(_) | Draft::Repeat(_) | Draft::Known(_));
                    if drafts.iter().any(|(_, draft)| there(draft)) {
                        group.beside.extend(beside);
                    }
                    group.answers.push((answer, drafts, room));
                }
                Err(error) => {
                    // Rows before the fault may be in the commit already: they are not without an entry.
                    let failed = leaf.map(|leaf| Entry {
                        outcome: audit::Outcome::Failed,
                        status: Some(503),
                        ..*leaf
                    });
                    group.leaves.extend(failed.filter(|_| !matches!(error, DoorError::Body(_))));
                    reply(answer, Err(error));
                }
            }
        }
        if planted::bug("dedupe_before_log") {
            let bases = vec![0; group.appends.len()];
            group.note(&bases);
        }
        let outcome = self.commit(&mut group).await;
        match outcome {
            Ok(bases) => {
                group.note(&bases);
                for (answer, drafts, _room) in group.answers {
                    reply(answer, Ok(drafts.into_iter().map(|draft| verdict(draft, &bases)).collect()));
                }
            }
            Err(error) => {
                for (answer, _, _room) in group.answers {
                    reply(answer, Err(error.clone()));
                }
            }
        }
    }

    fn draft_small(
        &mut self,
        group: &mut Group,
        entrance: &Arc<Entrance>,
        principal: &Principal,
        body: &[u8],
        format: Format,
    ) -> Result<Drafts, DoorError> {
        if format.is_one_value() {
            check_json(body)?;
        }
        let now = self.clock.now_micros();
        let mut drafts = Vec::new();
        let mut failed: Option<DoorError> = None;
        let mut row = std::mem::take(&mut self.row);
        let sequence = &mut self.sequence;
        let outcome = entrance.decoder.decode(
            body,
            format,
            self.options.rows_per_request,
            &mut row,
            &mut |bytes, outcome| {
                let identified = outcome.and_then(|row| {
                    *sequence += 1;
                    entrance.decoder.identify(row, principal, now, *sequence).map(|identity| (row, identity))
                });
                match identified {
                    Ok((row, identity)) => match group.draft(entrance, &identity, Some(row)) {
                        Ok(draft) => drafts.push((identity.event_id, draft)),
                        Err(error) => {
                            failed.get_or_insert(error);
                        }
                    },
                    Err(error) => drafts.push((None, group.reject(entrance, principal, error, bytes))),
                }
            },
        );
        self.row = row;
        // A line that is too many leaves the lines before it accepted: their rows are in the group, and
        // an answer of "too many" would be untrue. JSON was checked and counted above.
        match (outcome, failed) {
            (_, Some(error)) => Err(error),
            (Err(error), None) if drafts.is_empty() => Err(error.into()),
            _ => Ok(drafts),
        }
    }

    fn draft_large(
        &mut self,
        group: &mut Group,
        entrance: &Arc<Entrance>,
        principal: &Principal,
        decoded: Decoded,
    ) -> Result<Drafts, DoorError> {
        let Decoded { rows, mut identities, items } = decoded;
        // One append per partition; the rows that are new are picked after all are judged.
        let mut picked: BTreeMap<Partition, (usize, Vec<u32>)> = BTreeMap::new();
        let mut drafts = Vec::with_capacity(items.len());
        let keys: Vec<_> = identities.iter().map(|identity| identity.key).collect();
        let known = entrance.known(&keys)?;
        for item in items {
            match item {
                Ok(number) => {
                    let identity = &mut identities[number];
                    let (append, picks) = picked.entry(identity.partition).or_insert_with(|| {
                        let to =
                            StreamPartition::new(entrance.decoder.stream().name.clone(), identity.partition);
                        group.appends.push(Append { to, rows: RecordBatch::new_empty(rows.schema()) });
                        (group.appends.len() - 1, Vec::new())
                    });
                    let place = Place {
                        append: *append,
                        row: picks.len(),
                        partition: identity.partition,
                        payload: identity.payload,
                    };
                    let draft = group.judge(entrance, identity, place, known[number]);
                    if matches!(draft, Draft::New(_)) {
                        picks.push(number as u32);
                    }
                    drafts.push((identity.event_id.take(), draft));
                }
                Err((error, bytes)) => drafts.push((None, group.reject(entrance, principal, error, &bytes))),
            }
        }
        for (append, picks) in picked.into_values() {
            group.appends[append].rows = pick(&rows, picks)?;
        }
        Ok(drafts)
    }

    async fn commit(&mut self, group: &mut Group) -> Result<Vec<Offset>, DoorError> {
        for (append, _, rows) in std::mem::take(&mut group.small).into_values() {
            let SmallRows(mut batch) = rows;
            group.appends[append].rows = batch.finish()?;
        }
        self.seal(group)?;
        // Behind the events, so that the places of these stay what they are.
        group.appends.append(&mut group.beside);
        if !group.letters.is_empty() {
            group.appends.push(dead_letter::append(DEAD_LETTERS, &group.letters, self.clock.now_micros())?);
        }
        // The last ones, so that the places of the others stay what they are.
        if !group.leaves.is_empty() && !planted::bug("effect_without_leaf") {
            group.appends.push(audit::append(&group.leaves)?);
        }
        if group.appends.iter().all(|append| append.rows.num_rows() == 0) {
            return Ok(vec![0; group.appends.len()]);
        }
        let commit = Commit { appends: std::mem::take(&mut group.appends), ..Commit::default() };
        planted::stop("door:before_append");
        let receipt = self.log.append(commit).await?;
        planted::stop("door:appended");
        Ok(receipt.bases)
    }

    /// Adds an entry for each stream whose events are to be proven: what these events are, in the commit that makes
    /// them durable. Their order is that of partition and, as the log gives appends of one partition their offsets
    /// in turn, of offset.
    fn seal(&mut self, group: &mut Group) -> Result<(), DoorError> {
        if group.proven.is_empty() || planted::bug("events_without_seal") {
            return Ok(());
        }
        let mut sealed: BTreeMap<&StreamPartition, Vec<RecordBatch>> = BTreeMap::new();
        for append in &group.appends {
            if append.rows.num_rows() > 0 && group.proven.contains(&append.to.stream) {
                sealed.entry(&append.to).or_default().push(append.rows.clone());
            }
        }
        let mut streams: BTreeMap<&StreamName, Vec<RecordBatch>> = BTreeMap::new();
        for (at, rows) in sealed {
            streams.entry(&at.stream).or_default().extend(rows);
        }
        let engine = Principal::engine();
        for (stream, rows) in streams {
            let mut salt = [0; audit::SALT_BYTES];
            self.randomness.fill(&mut salt).map_err(|error| DoorError::Internal(error.to_string()))?;
            let root = self.sealer.root(&salt, &rows)?;
            group.leaves.push(Entry {
                at: self.clock.now_micros(),
                actor: engine.name.clone(),
                tenant: engine.tenant.clone(),
                action: SEAL.into(),
                resource: format!("stream:{}", stream.public()),
                seen: Some(audit::sealed(rows.iter().map(RecordBatch::num_rows).sum(), &root)),
                salt,
                ..Entry::default()
            });
        }
        Ok(())
    }
}

impl Waiting {
    fn rows(&self) -> usize {
        match &self.load {
            Load::Small(..) => 1,
            Load::Large(decoded) => decoded.items.len(),
        }
    }
}

impl Group {
    /// Judges a small row and takes it into its stream's batch when it is new.
    fn draft(
        &mut self,
        entrance: &Arc<Entrance>,
        identity: &RowIdentity,
        row: Option<&mut Row>,
    ) -> Result<Draft, DoorError> {
        let name = entrance.decoder.stream().name.clone();
        let slot = (Arc::as_ptr(entrance) as usize, identity.partition);
        if !self.small.contains_key(&slot) {
            let batch = RowBatch::new(&entrance.decoder)?;
            let schema = entrance.decoder.stream().stored_schema();
            self.appends.push(Append {
                to: StreamPartition::new(name, identity.partition),
                rows: RecordBatch::new_empty(schema),
            });
            self.small.insert(slot, (self.appends.len() - 1, entrance.clone(), SmallRows(batch)));
        }
        let (append, next) =
            self.small.get(&slot).map_or((0, 0), |(append, _, rows)| (*append, rows.0.len()));
        let place = Place { append, row: next, partition: identity.partition, payload: identity.payload };
        let known = entrance.known(&[identity.key])?.pop().flatten();
        let draft = self.judge(entrance, identity, place, known);
        if let (Draft::New(_), Some(row), Some((_, _, rows))) = (&draft, row, self.small.get_mut(&slot)) {
            rows.0.push(row, identity)?;
        }
        Ok(draft)
    }

    /// Tells whether an event is new, by what the index knows of its id; a new one is noted as standing at `place`.
    fn judge(
        &mut self,
        entrance: &Entrance,
        identity: &RowIdentity,
        place: Place,
        known: Option<Known>,
    ) -> Draft {
        let (Some(index), Some(key)) = (&entrance.index, identity.key) else { return Draft::New(place) };
        let name = &entrance.decoder.stream().name;
        if !self.fresh.contains_key(name) {
            self.fresh.insert(name.clone(), (index.clone(), HashMap::default()));
        }
        let Some((_, fresh)) = self.fresh.get_mut(name) else { return Draft::New(place) };
        if let Some(first) = fresh.get(&key) {
            return match first.payload == identity.payload {
                true => Draft::Repeat(*first),
                false => Draft::RepeatConflict(*first),
            };
        }
        if let Some(known) = known {
            return match known.payload == identity.payload {
                true => Draft::Known(known),
                false => Draft::KnownConflict(known),
            };
        }
        fresh.insert(key, place);
        Draft::New(place)
    }

    fn reject(&mut self, entrance: &Entrance, principal: &Principal, error: RowError, bytes: &[u8]) -> Draft {
        let detail = if error.path.is_empty() {
            error.detail.clone()
        } else {
            format!("{}: {}", error.path, error.detail)
        };
        self.letters.push(DeadLetter {
            source: "door".into(),
            stream: entrance.decoder.stream().name.clone(),
            position: None,
            code: error.code.into(),
            detail,
            principal: principal.name.to_string(),
            tenant: Some(principal.tenant.to_string()),
            body: bytes.to_vec(),
            sealed: entrance.decoder.stream().has_sensitive(),
        });
        Draft::Rejected(error)
    }

    /// Tells the indexes what became durable.
    fn note(&mut self, bases: &[Offset]) {
        // All keys of an index go in together with its marks: a mark that is written before a key below
        // it would hide that key from the replay after a crash.
        for (index, keys) in std::mem::take(&mut self.fresh).into_values() {
            let mut marks: BTreeMap<Partition, Offset> = BTreeMap::new();
            let known = keys.into_iter().map(|(key, place)| {
                let offset = bases[place.append] + place.row as Offset;
                let mark = marks.entry(place.partition).or_insert(0);
                *mark = (*mark).max(offset + 1);
                (key, Known { partition: place.partition, offset, payload: place.payload })
            });
            let known: Vec<_> = known.collect();
            index.insert(known, &marks.into_iter().collect::<Vec<_>>());
        }
    }
}

fn pick(rows: &RecordBatch, picks: Vec<u32>) -> Result<RecordBatch, DoorError> {
    if picks.len() == rows.num_rows() {
        return Ok(rows.clone());
    }
    if picks.len() * 2 > rows.num_rows() {
        let mut keep = vec![false; rows.num_rows()];
        picks.iter().for_each(|row| keep[*row as usize] = true);
        return Ok(filter_record_batch(rows, &BooleanArray::from(keep))?);
    }
    Ok(take_record_batch(rows, &UInt32Array::from(picks))?)
}

/// What the audit trail says of a request when its events have been judged.
fn complete(mut leaf: Entry, stream: &StreamName, drafts: &Drafts, now: i64) -> Entry {
    let (mut accepted, mut duplicates, mut conflicts, mut rejected) = (0, 0, 0, 0);
    for (_, draft) in drafts {
        match draft {
            Draft::New(_) => accepted += 1,
            Draft::Repeat(_) | Draft::Known(_) => duplicates += 1,
            Draft::RepeatConflict(_) | Draft::KnownConflict(_) => conflicts += 1,
            Draft::Rejected(_) => rejected += 1,
        }
    }
    let refused = conflicts + rejected;
    leaf.cost = drafts.len().max(1) as i64;
    leaf.latency = (now - leaf.at).max(0);
    leaf.status = Some(match (refused, drafts.len()) {
        (0, _) => 202,
        (1, 1) if conflicts == 1 => 409,
        (refused, all) if refused == all => 422,
        _ => 207,
    });
    if refused == drafts.len() && refused > 0 {
        leaf.outcome = audit::Outcome::Failed;
    }
    leaf.seen = Some(format!(
        "{{\"stream\":\"{}\",\"accepted\":{accepted},\"duplicates\":{duplicates},\"conflicts\":{conflicts},\"rejected\":{rejected}}}",
        stream.public()
    ));
    leaf
}

fn verdict((event_id, draft): (Option<String>, Draft), bases: &[Offset]) -> Verdict {
    let offset = |place: &Place| bases[place.append] + place.row as Offset;
    let outcome = match draft {
        Draft::New(place) => Outcome::Accepted { partition: place.partition, offset: offset(&place) },
        Draft::Repeat(place) => Outcome::Duplicate { partition: place.partition, offset: offset(&place) },
        Draft::RepeatConflict(place) => {
            Outcome::Conflict { partition: place.partition, offset: offset(&place) }
        }
        Draft::Known(known) => Outcome::Duplicate { partition: known.partition, offset: known.offset },
        Draft::KnownConflict(known) => Outcome::Conflict { partition: known.partition, offset: known.offset },
        Draft::Rejected(error) => Outcome::Rejected(error),
    };
    Verdict { event_id, outcome }
}

fn reply(answer: Answer, outcome: Result<Vec<Verdict>, DoorError>) {
    if answer.send(outcome).is_err() {
        tracing::debug!("events became durable after their sender had gone");
    }
}
