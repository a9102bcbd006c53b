//! The log with the lake behind it: rows that the journal has let go are read from the lake.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use highwater_audit::Tree;
use highwater_event::{Offset, Partition, StreamName, StreamPartition};
use highwater_lake::LakeStream;
use highwater_log::audit::AUDIT;
use highwater_log::{AppendError, Commit, Growth, Journal, Log, LogBatch, ReadError, Receipt};
use tokio::sync::watch;

/// The lakes of a node by the name that the log knows.
pub type Lakes = Arc<RwLock<HashMap<StreamName, Arc<LakeStream>>>>;

/// A journal and its cold tier.
pub struct Tiered {
    journal: Arc<Journal>,
    lakes: Lakes,
    /// Knows which entries of the audit trail are past their retention.
    tree: Arc<Tree>,
    /// Where the lake is read.
    runtime: tokio::runtime::Handle,
}

impl Tiered {
    /// Puts lakes behind a journal.
    pub fn new(
        journal: Arc<Journal>,
        lakes: Lakes,
        tree: Arc<Tree>,
        runtime: tokio::runtime::Handle,
    ) -> Self {
        Self { journal, lakes, tree, runtime }
    }

    /// Before it nothing is handed out, though segments and files may still hold some of it.
    fn floor(&self, at: &StreamPartition) -> Offset {
        if at.stream.as_str() == AUDIT { self.tree.pruned() } else { 0 }
    }

    fn cold(
        &self,
        at: &StreamPartition,
        from: Offset,
        max_rows: usize,
        start: Offset,
    ) -> Result<Vec<LogBatch>, ReadError> {
        let lake = self.lakes.read().unwrap_or_else(PoisonError::into_inner).get(&at.stream).cloned();
        let Some(lake) = lake else { return Err(ReadError::Retired { at: at.clone(), start }) };
        let partition = at.partition;
        let (answer, answered) = std::sync::mpsc::channel();
        self.runtime.spawn(async move {
            let read = lake.read_back(partition, from, max_rows.min(65_536)).await;
            // Whoever asked may have gone.
            drop(answer.send(read));
        });
        let wait = || answered.recv().map_err(|error| ReadError::Io(error.to_string()));
        // Reads are asked for by views, which run on a runtime of their own, and by plain threads.
        let on_runtime = tokio::runtime::Handle::try_current()
            .is_ok_and(|handle| handle.runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread);
        let read = if on_runtime { tokio::task::block_in_place(wait) } else { wait() };
        let batches = read?.map_err(|error| ReadError::Io(error.to_string()))?;
        match batches.first() {
            Some(first) if first.base <= from => Ok(batches),
            // Its retention is over: it is nowhere any more.
            Some(first) => Err(ReadError::Retired { at: at.clone(), start: first.base }),
            None => Err(ReadError::Retired { at: at.clone(), start }),
        }
    }
}

#[async_trait]
impl Log for Tiered {
    async fn append(&self, commit: Commit) -> Result<Receipt, AppendError> {
        self.journal.append(commit).await
    }

    fn read(&self, at: &StreamPartition, from: Offset, max_rows: usize) -> Result<Vec<LogBatch>, ReadError> {
        let floor = self.floor(at);
        if from < floor {
            return Err(ReadError::Retired { at: at.clone(), start: floor });
        }
        match self.journal.read(at, from, max_rows) {
            Err(ReadError::Retired { start, .. }) => self.cold(at, from, max_rows, start),
            outcome => outcome,
        }
    }

    fn start(&self, at: &StreamPartition) -> Offset {
        self.journal.start(at).max(self.floor(at))
    }

    fn end(&self, at: &StreamPartition) -> Offset {
        self.journal.end(at)
    }

    fn partitions(&self, stream: &StreamName) -> Vec<Partition> {
        self.journal.partitions(stream)
    }

    fn advanced(&self, writer: &str, source: &StreamPartition) -> Offset {
        self.journal.advanced(writer, source)
    }

    fn recorded_until(&self) -> i64 {
        self.journal.recorded_until()
    }

    fn growth(&self, streams: &[StreamName]) -> Growth {
        self.journal.growth(streams)
    }

    fn poisoned(&self) -> watch::Receiver<Option<String>> {
        self.journal.poisoned()
    }
}
