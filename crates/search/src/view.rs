//! The index as a view of its stream.

use std::sync::Arc;

use async_trait::async_trait;
use highwater_event::{Offset, StreamName, StreamPartition};
use highwater_log::LogBatch;
use highwater_log::view::{Applied, Gather, View, ViewError};

use crate::SearchError;
use crate::index::SearchIndex;

/// Keeps a stream's index up to date.
pub struct SearchView {
    name: String,
    index: Arc<SearchIndex>,
    gather: Gather,
}

impl SearchView {
    /// A view that takes rows in as `gather` says.
    pub fn new(index: Arc<SearchIndex>, gather: Gather) -> Self {
        Self { name: format!("search:{}", index.stream().name), index, gather }
    }

    /// Does something that takes its time where it holds up nobody.
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&SearchIndex) -> Result<T, SearchError> + Send + 'static,
    ) -> Result<T, ViewError> {
        let index = self.index.clone();
        let done = tokio::task::spawn_blocking(move || work(&index)).await;
        let done = done.map_err(|error| ViewError::Broken(error.to_string()))?;
        done.map_err(|error| ViewError::Retry(error.to_string()))
    }
}

#[async_trait]
impl View for SearchView {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "search"
    }

    fn sources(&self) -> Vec<StreamName> {
        vec![self.index.stream().name.clone()]
    }

    fn gather(&self) -> Gather {
        self.gather
    }

    async fn mark(&mut self, at: &StreamPartition) -> Result<Offset, ViewError> {
        Ok(self.index.marks().get(&at.partition).copied().unwrap_or(0))
    }

    async fn apply(&mut self, at: &StreamPartition, batches: Vec<LogBatch>) -> Result<Applied, ViewError> {
        let partition = at.partition;
        let rows = self.work(move |index| index.append(partition, &batches)).await?;
        Ok(Applied { taken: rows, out: rows, ..Applied::default() })
    }

    async fn skip(&mut self, at: &StreamPartition, to: Offset) -> Result<(), ViewError> {
        let partition = at.partition;
        self.work(move |index| index.skip(partition, to)).await
    }

    async fn reset(&mut self) -> Result<(), ViewError> {
        self.work(SearchIndex::clear).await
    }
}
