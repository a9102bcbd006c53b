//! Errors are sorted by what the one who sees them can do next.

/// What to do about an error. Rooms say it, `server` maps it to a status and the command line to an exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaction {
    /// Try again later, unchanged: the program is busy or a disk is full.
    Retry,
    /// Change the request: it can never succeed as it is.
    FixRequest,
    /// What is named does not exist.
    NotFound,
    /// It clashes with what exists.
    Conflict,
    /// Only the operator can help: configuration, disk, a bug.
    CallOperator,
    /// Stored bytes are not what was written.
    Integrity,
}
