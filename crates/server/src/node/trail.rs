//! The audit trail: how entries come into the log, and the tree over them.
//!
//! What an act changes is appended together with its entry. Acts that change nothing, reads above all, have
//! entries of their own: those that wait are gathered into one commit, and whoever waits for one goes on when
//! it is durable.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use highwater_audit::{AuditError, AuditTree, Tree};
use highwater_event::{Principal, hexadecimal};
use highwater_log::audit::{self, Entry, Outcome};
use highwater_log::{Append, AppendError, Commit, Log};
use tokio::sync::{mpsc, oneshot};

use super::{Node, statement};

/// Entries that are appended together.
const TOGETHER: usize = 1024;
/// Entries that may wait.
const WAITING: usize = 8192;

/// An act whose entry goes into the commit of its effect.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// What will be said of it.
    pub entry: Entry,
    /// It is in the log.
    written: Arc<AtomicBool>,
}

impl Leaf {
    /// An entry that is not in the log yet.
    pub fn new(entry: Entry, written: Arc<AtomicBool>) -> Self {
        Self { entry, written }
    }

    /// The rows for the commit.
    pub fn append(&self) -> Result<Append, AppendError> {
        audit::append(std::slice::from_ref(&self.entry))
            .map_err(|error| AppendError::Encode(error.to_string()))
    }

    /// Notes that the commit is durable.
    pub fn settle(&self) {
        self.written.store(true, Ordering::Release);
    }
}

type Waiting = (Entry, oneshot::Sender<Result<(), AppendError>>);

/// Takes entries of acts that change nothing.
#[derive(Clone)]
pub struct Trail(mpsc::Sender<Waiting>);

impl Trail {
    /// A trail into a log, and the task that gathers its entries.
    pub(super) fn new(log: Arc<dyn Log>) -> (Self, impl Future<Output = ()> + Send) {
        let (queue, waiting) = mpsc::channel(WAITING);
        (Self(queue), gather(log, waiting))
    }

    /// Appends an entry; answers when it is durable.
    pub async fn write(&self, entry: Entry) -> Result<(), AppendError> {
        let (answer, answered) = oneshot::channel();
        self.0.send((entry, answer)).await.map_err(|_| AppendError::Closed)?;
        answered.await.unwrap_or(Err(AppendError::Closed))
    }
}

async fn gather(log: Arc<dyn Log>, mut waiting: mpsc::Receiver<Waiting>) {
    let mut group = Vec::new();
    while waiting.recv_many(&mut group, TOGETHER).await > 0 {
        let (entries, answers): (Vec<Entry>, Vec<_>) = group.drain(..).unzip();
        let append = audit::append(&entries).map_err(|error| AppendError::Encode(error.to_string()));
        let outcome = match append {
            Ok(append) => log.append(Commit { appends: vec![append], ..Commit::default() }).await.map(|_| ()),
            Err(error) => Err(error),
        };
        for answer in answers {
            if answer.send(outcome.clone()).is_err() {
                tracing::debug!("an entry was written after its caller had gone");
            }
        }
    }
}

impl Node {
    /// The beginning of an entry: who does what to what, and when.
    pub fn entry(&self, principal: &Principal, action: &str, resource: impl Into<String>) -> Entry {
        let mut entry = Entry {
            at: self.machine.clock.now_micros(),
            actor: principal.name.clone(),
            tenant: principal.tenant.clone(),
            action: action.into(),
            resource: resource.into(),
            outcome: Outcome::Allowed,
            ..Entry::default()
        };
        if let Err(error) = self.machine.randomness.fill(&mut entry.salt) {
            // Its entry can be guessed from its leaf then; better than no entry.
            tracing::error!(%error, "an entry of the audit trail has no salt");
        }
        entry
    }

    /// Appends the entry of something that ends after its call was answered. Where entries are required it has not ended
    /// before the entry is durable.
    pub async fn write_end(&self, entry: Entry) -> Result<(), AppendError> {
        match self.trail.write(entry).await {
            Err(error) if !self.options.audit_required => {
                tracing::error!(%error, "the end of a call is not in the audit trail");
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// An act of the engine's own or of whoever runs the program.
    pub fn leaf(&self, principal: &Principal, action: &str, resource: impl Into<String>) -> Leaf {
        Leaf::new(self.entry(principal, action, resource), Arc::default())
    }

    /// Starts the view that keeps the tree up.
    pub(super) fn start_tree(&self) {
        self.driver.start(Box::new(AuditTree::new(self.write_back.store().clone(), self.log.clone())));
    }
}

/// The tree in a node's store.
pub(super) fn tree(
    store: Arc<dyn highwater_log::keyed::KeyedStore>,
    log_id: &[u8; 16],
    seeds: &[[u8; 32]],
) -> Result<Tree, AuditError> {
    let origin = format!("highwater/{}", hexadecimal::show(log_id));
    Ok(Tree::new(store, &origin, statement::signers(&origin, seeds)?))
}
