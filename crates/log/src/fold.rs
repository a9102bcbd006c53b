//! What a keyed, incremental view is made of, told apart from where its states are kept: a
//! [`Program`] folds rows into states, something that implements [`States`] keeps them.

use std::sync::Arc;

use async_trait::async_trait;
use highwater_event::{Partition, StreamName};

use crate::commit::LogBatch;
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
}

/// Reads the states of one view as of one moment.
pub trait StateReader<S>: Send + Sync {
    /// Visits the states from key `from` on, in order of their keys; `false` ends it.
    fn read(&self, from: &[u8], visit: &mut dyn FnMut(&[u8], &S) -> bool) -> Result<(), StoreError>;
    /// The last key.
    fn last_key(&self) -> Result<Option<Vec<u8>>, StoreError>;
}

/// Something that folds rows into states.
#[async_trait]
pub trait Program: Send + Sync + 'static {
    /// What is kept under each key.
    type State: Stored;

    /// The view's name, which is its table's too.
    fn name(&self) -> &Arc<str>;

    /// The stream it reads.
    fn source(&self) -> &StreamName;

    /// What has been made of rows before they are folded.
    type Prepared: Send;

    /// Computes what the fold needs of some rows of one partition: filters, keys, arguments. Rows for
    /// which that fails are set apart in the result.
    async fn prepare(&self, partition: Partition, batches: &[LogBatch]) -> Result<Self::Prepared, ViewError>;

    /// Folds prepared rows in order and moves the mark's event time; the offset is the caller's.
    fn fold(
        &self,
        prepared: Self::Prepared,
        mark: &mut Mark,
        states: &mut dyn States<Self::State>,
    ) -> Result<Folded, StoreError>;
}

/// What became of the rows of one fold.
#[derive(Debug, Default)]
pub struct Folded {
    /// Rows that changed a state.
    pub folded: u64,
    /// Rows that a WHERE left out.
    pub filtered: u64,
    /// Rows that came too late.
    pub late: Vec<Refused>,
    /// Rows that could not be computed.
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
}
