//! What a keyed, incremental view is made of, told apart from where its states are kept: a
//! [`Program`] folds rows into states, something that implements [`States`] keeps them.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use highwater_event::{Offset, Principal, StreamName, StreamPartition};

use crate::commit::LogBatch;
use crate::dead_letter::DeadLetter;
use crate::keyed::{Mark, StoreError};
use crate::view::ViewError;

/// A value that can be stored under a key.
pub trait Stored: Sized + Clone + Send + Sync + 'static {
    /// Appends its bytes.
    fn encode(&self, out: &mut Vec<u8>);
    /// Reads them back; `None` when they are not such a value.
    fn decode(bytes: &[u8]) -> Option<Self>;
    /// About how many bytes it takes in memory.
    fn weight(&self) -> usize;
}

/// The states of one view, by key.
pub trait States<S> {
    /// The state of a key, loaded when it is cold and made by `new` when there is none. The caller
    /// changes it in place; it counts as changed.
    fn state(&mut self, key: &[u8], new: &dyn Fn() -> S) -> Result<&mut S, StoreError>;
    /// The state of a key as it is; `None` when there is none.
    fn peek(&mut self, key: &[u8]) -> Result<Option<&S>, StoreError>;
}

/// Reads the states of one view as of one moment.
pub trait StateReader<S>: Send + Sync {
    /// Visits the states from key `from` on, in order of their keys; `false` ends it.
    fn read(&self, from: &[u8], visit: &mut dyn FnMut(&[u8], &S) -> bool) -> Result<(), StoreError>;
    /// The states of some keys, all as of one moment.
    fn get(&self, keys: &[&[u8]]) -> Result<Vec<Option<S>>, StoreError>;
    /// The last key.
    fn last_key(&self) -> Result<Option<Vec<u8>>, StoreError>;
    /// How far the view has come.
    fn marks(&self) -> LaneMarks;
}

/// A partition among all that a view reads: the source's number in its list, and the partition.
pub type Lane = u32;

/// How far a view has come, by lane.
pub type LaneMarks = BTreeMap<Lane, Mark>;

/// The lane of a partition; `None` when it is no source of the view.
pub fn lane(sources: &[StreamName], at: &StreamPartition) -> Option<Lane> {
    let source = sources.iter().position(|source| *source == at.stream)?;
    Some((source as u32) << 16 | (at.partition & 0xffff))
}

/// The number of the source that a lane belongs to.
pub fn source_of(lane: Lane) -> usize {
    (lane >> 16) as usize
}

/// The partition that a lane stands for; `None` when it is none of these sources.
pub fn partition_of(sources: &[StreamName], lane: Lane) -> Option<StreamPartition> {
    let source = sources.get(source_of(lane))?;
    Some(StreamPartition::new(source.clone(), lane & 0xffff))
}

/// Something that folds rows into states and may derive rows of a stream from them.
#[async_trait]
pub trait Program: Send + Sync + 'static {
    /// What is kept under each key.
    type State: Stored;
    /// What has been made of rows before they are folded.
    type Prepared: Send;
    /// What a fold leaves to be finished outside of it.
    type Pending: Send;

    /// The view's name, which is its table's too.
    fn name(&self) -> &Arc<str>;

    /// "table", "join": for lists.
    fn kind(&self) -> &'static str;

    /// The streams it reads, as [`crate::view::View::sources`] has them.
    fn sources(&self) -> &[StreamName];

    /// The stream that it derives, and its number of partitions; `None` when its states are all it makes.
    fn output(&self) -> Option<(&StreamName, u32)>;

    /// Whether anything depends on how far event time has come.
    fn follows_time(&self) -> bool;

    /// About how many rows are folded at a time.
    fn rows_at_once(&self) -> usize {
        64 * 1024
    }

    /// Computes what the fold needs of some rows of one partition: filters, keys, arguments. Rows for
    /// which that fails are set apart in the result.
    async fn prepare(&self, at: &StreamPartition, batches: &[LogBatch]) -> Result<Self::Prepared, ViewError>;

    /// Folds prepared rows in order and moves the event time of their lane's mark; offsets are the
    /// caller's.
    fn fold(
        &self,
        prepared: Self::Prepared,
        lane: Lane,
        marks: &mut LaneMarks,
        states: &mut dyn States<Self::State>,
    ) -> Result<Folded<Self::Pending>, StoreError>;

    /// Makes rows of the output stream from what a fold has left.
    async fn finish(&self, pending: Self::Pending) -> Result<Derived, ViewError>;

    /// The key below which states are not needed any more at these marks; never falls when marks grow.
    fn expired(&self, marks: &LaneMarks) -> Option<Vec<u8>>;
}

/// What became of the rows of one fold.
#[derive(Debug)]
pub struct Folded<P> {
    /// Rows that changed a state or found their match.
    pub folded: u64,
    /// Rows that a WHERE left out.
    pub filtered: u64,
    /// Rows that came too late.
    pub late: Vec<Refused>,
    /// Rows that could not be computed.
    pub dead: Vec<Refused>,
    /// Matches that are not rows yet.
    pub pending: Option<P>,
}

impl<P> Default for Folded<P> {
    fn default() -> Self {
        Self { folded: 0, filtered: 0, late: Vec::new(), dead: Vec::new(), pending: None }
    }
}

/// Rows of an output stream.
#[derive(Debug, Default)]
pub struct Derived {
    /// In the stored schema of the output; `None` when there are none.
    pub rows: Option<RecordBatch>,
    /// For each row the source offset that brought it about, rising.
    pub offsets: Vec<Offset>,
    /// Matches that could not be computed.
    pub dead: Vec<Refused>,
}

/// A row that a view did not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Its offset in the source.
    pub offset: u64,
    /// Short stable name of the reason.
    pub code: &'static str,
    /// The reason in words.
    pub detail: String,
    /// The row as JSON.
    pub row: String,
    /// Reason and row may show SENSITIVE values.
    pub sealed: bool,
    /// Who brought it, where the source says so.
    pub sender: Option<String>,
    /// Its tenant, where the source says so.
    pub tenant: Option<String>,
}

impl Refused {
    /// As it is set apart: `view` did not take it from the partition `at`.
    pub fn into_letter(self, view: &str, at: &StreamPartition) -> DeadLetter {
        DeadLetter {
            source: view.to_owned(),
            stream: at.stream.clone(),
            position: Some((at.partition, self.offset)),
            code: self.code.into(),
            detail: self.detail,
            principal: self.sender.unwrap_or_else(|| Principal::engine().name.to_string()),
            tenant: self.tenant,
            body: self.row.into_bytes(),
            sealed: self.sealed,
        }
    }
}
