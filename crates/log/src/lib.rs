//! The log: the one place where events become true, and the frame in which views follow it.
//!
//! * [`journal`] is the embedded log: commits that are atomic across streams, checksummed, fsynced in
//!   groups, kept in segments. Its byte format is described in [`format`](mod@format).
//! * [`Log`] is the trait that the rest of the program sees. It is shaped so that Kafka fits behind it:
//!   partitions, offsets, appends that carry a reader's position in the same transaction.
//! * [`view`] holds the `View` trait and the driver that resumes, applies, retries, sets aside and
//!   rebuilds views; [`fold`] and [`keyed`] are what keyed views are made of.
//! * [`audit`] and [`dead_letter`] say what entries of the streams `_audit`, `_dead_letters` and `_late_events` are.
//! * [`growth`] wakes who follows a stream; [`idle`] lets event time go on in partitions that nothing comes in.
//! * [`machine`] is what all this runs on, [`disk`] its file system: traits, so that a simulator can own them.
//!
//! The log never interprets the columns that it stores, never repairs damage silently, and never
//! shows an event that is not fsynced.

pub mod audit;
pub mod batch;
pub mod commit;
pub mod dead_letter;
pub mod disk;
pub mod error;
pub mod fold;
pub mod format;
pub mod growth;
pub mod idle;
pub mod journal;
pub mod keyed;
pub mod machine;
pub mod reader;
mod recovery;
mod segment;
mod tail;
pub mod view;

use async_trait::async_trait;
use highwater_event::{Offset, Partition, StreamName, StreamPartition};
use tokio::sync::watch;

pub use commit::{Advance, Append, Commit, LogBatch, Receipt};
pub use error::{AppendError, OpenError, ReadError};
pub use growth::Growth;
pub use journal::{EditError, Edited, Extent, Journal, JournalOptions, Retired};
pub use machine::Machine;

/// An append-only sequence of commits over partitioned streams.
#[async_trait]
pub trait Log: Send + Sync {
    /// Appends a commit; answers when it is durable. Either all of it happens or nothing.
    async fn append(&self, commit: Commit) -> Result<Receipt, AppendError>;

    /// Reads durable rows of one partition from `from` on, in order, at least one batch when there is
    /// one and about `max_rows` rows. The first batch may start before `from`: callers slice.
    fn read(&self, at: &StreamPartition, from: Offset, max_rows: usize) -> Result<Vec<LogBatch>, ReadError>;

    /// The first offset of the partition that can still be read; [`Log::end`] when there is none.
    fn start(&self, at: &StreamPartition) -> Offset;

    /// The offset that the next durable row of the partition will get. 0 when there is none yet.
    fn end(&self, at: &StreamPartition) -> Offset;

    /// The partitions of a stream that hold rows.
    fn partitions(&self, stream: &StreamName) -> Vec<Partition>;

    /// How far `writer` has consumed `source`, as its last durable commit said. 0 when never.
    fn advanced(&self, writer: &str, source: &StreamPartition) -> Offset;

    /// When the newest durable commit was taken, microseconds UTC. Commits have strictly increasing
    /// times: whatever becomes durable later is recorded later than this.
    fn recorded_until(&self) -> i64;

    /// Tells when rows of these streams became durable; of any stream, when none is named.
    fn growth(&self, streams: &[StreamName]) -> Growth;

    /// The reason why no append can succeed any more; `None` while the log is well.
    fn poisoned(&self) -> watch::Receiver<Option<String>>;
}
