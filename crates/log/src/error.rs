//! What can go wrong in the log, sorted by what to do about it.

use highwater_event::{Offset, Reaction, StreamPartition};

/// An append did not happen. Nothing of the commit is visible, now or after a restart, unless the
/// error is [`AppendError::Poisoned`]: then only a restart tells.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// The disk is full; appends succeed again when there is room.
    #[error("the disk that holds the log is full; free space and send again")]
    DiskFull,
    /// A write failed and was undone.
    #[error("the log could not be written: {0}")]
    Write(String),
    /// An fsync failed once. No later append is accepted: the process must be restarted.
    #[error(
        "the log stopped because the disk did not confirm a write ({0}); restart after checking the disk"
    )]
    Poisoned(String),
    /// Another owner of this view has moved the mark.
    #[error(
        "view {writer} believed to be at {expected} of {source_partition} but stands at {found}: another owner has moved it"
    )]
    Fenced {
        /// The view.
        writer: String,
        /// What it reads.
        source_partition: StreamPartition,
        /// The mark it believed in.
        expected: Offset,
        /// The mark that holds.
        found: Offset,
    },
    /// A partition that had to end where the commit says has grown.
    #[error("{at} ends at {found} and no longer at {expected}: rows came in between")]
    Outrun {
        /// The partition.
        at: StreamPartition,
        /// Where it had to end.
        expected: Offset,
        /// Where it ends.
        found: Offset,
    },
    /// The rows do not fit the format.
    #[error("the rows can't be stored: {0}")]
    Encode(String),
    /// The log is being closed.
    #[error("the log is closing")]
    Closed,
}

impl AppendError {
    /// What to do about it.
    pub fn reaction(&self) -> Reaction {
        match self {
            Self::DiskFull | Self::Write(_) | Self::Closed => Reaction::Retry,
            Self::Fenced { .. } | Self::Outrun { .. } => Reaction::Conflict,
            Self::Poisoned(_) | Self::Encode(_) => Reaction::CallOperator,
        }
    }
}

/// A read did not happen.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// Stored bytes are not what was written. The offsets in the range are refused; others are served.
    #[error(
        "offsets {from} to {to} of {at} are damaged on disk ({detail}); restore them from a backup or read from {to} on"
    )]
    Damaged {
        /// The partition.
        at: StreamPartition,
        /// First offset that can't be read.
        from: Offset,
        /// First offset after the damage.
        to: Offset,
        /// What was found.
        detail: String,
    },
    /// The rows were taken out of the log when their time here was over; the cold tier may have them.
    #[error("offsets of {at} before {start} are no longer in the log")]
    Retired {
        /// The partition.
        at: StreamPartition,
        /// First offset that is there.
        start: Offset,
    },
    /// The disk did not answer.
    #[error("the log could not be read: {0}")]
    Io(String),
}

impl ReadError {
    /// What to do about it.
    pub fn reaction(&self) -> Reaction {
        match self {
            Self::Damaged { .. } => Reaction::Integrity,
            Self::Retired { .. } => Reaction::NotFound,
            Self::Io(_) => Reaction::Retry,
        }
    }
}

/// The log can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("the data folder is in use by another highwater process (lock file {0})")]
    Locked(String),
    /// The disk did not answer.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// The disk's answer.
        source: std::io::Error,
    },
    /// A file of a newer version.
    #[error("{file} has format version {found}, this program reads up to {known}; use a newer highwater")]
    Version {
        /// File name.
        file: String,
        /// Its version.
        found: u16,
        /// Ours.
        known: u16,
    },
    /// A segment is missing or its head is unreadable.
    #[error("{file} is damaged: {detail}; restore it from a backup")]
    Damaged {
        /// File name.
        file: String,
        /// What was found.
        detail: String,
    },
}

impl OpenError {
    pub(crate) fn io(context: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let context = context.into();
        move |source| Self::Io { context, source }
    }
}
