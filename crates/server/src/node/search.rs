//! Search indexes of streams: started beside their lakes, and asked in the place of their files.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use anyhow::Context;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::common::DataFusionError;
use datafusion::logical_expr::{Expr, ident, lit};
use datafusion::prelude::or;
use highwater_event::{Condition, Offset, Partition, StreamName, StreamPartition, StreamSchema, columns};
use highwater_log::view::Gather;
use highwater_search::{SearchError, SearchIndex, SearchView, Snapshot, Wanted};
use highwater_sql::SqlError;
use highwater_sql::adhoc::{Found, Page, Position, RowIndex};

use super::Node;

/// Rows that are taken in by one commit.
const INDEX_ROWS: usize = 64 * 1024;

/// Rows of the lake that an index has found.
#[derive(Debug)]
struct Indexed {
    snapshot: Snapshot,
    /// Where it is behind the lake: the partition, and the first offset that it does not have.
    behind: Vec<(Partition, Offset)>,
}

fn failed(error: SearchError) -> SqlError {
    SqlError::new("internal", error.to_string())
}

impl RowIndex for Indexed {
    fn schema(&self) -> SchemaRef {
        self.snapshot.schema().clone()
    }

    fn missing(&self) -> Option<Expr> {
        let from = |(partition, offset): &(Partition, Offset)| {
            let (partition, offset) = (lit(*partition as i32), lit(*offset as i64));
            ident(columns::PARTITION).eq(partition).and(ident(columns::OFFSET).gt_eq(offset))
        };
        self.behind.iter().map(from).reduce(or)
    }

    fn knows(&self, condition: &Condition) -> bool {
        self.snapshot.knows(condition)
    }

    fn count(&self, condition: &Condition) -> Result<u64, SqlError> {
        self.snapshot.count(condition).map_err(failed)
    }

    fn page(&self, condition: &Condition, page: &Page) -> Result<(u64, Vec<Found>), SqlError> {
        let behind = page.after.map(|after| (after.time, after.partition, after.offset));
        let wanted = Wanted { oldest_first: page.oldest_first, behind, limit: page.limit };
        let found = self.snapshot.places(condition, wanted).map_err(failed)?;
        let place = |place: &highwater_search::Place| Found {
            position: Position { time: place.time, partition: place.partition, offset: place.offset },
            document: place.document,
        };
        Ok((found.total, found.places.iter().map(place).collect()))
    }

    fn rows(&self, documents: &[u64], most: usize) -> Result<Option<RecordBatch>, SqlError> {
        let Some(columns) = self.snapshot.rows(documents, most).map_err(failed)? else { return Ok(None) };
        let rows = RecordBatch::try_new(self.schema(), columns);
        Ok(Some(rows.map_err(DataFusionError::from)?))
    }
}

impl Node {
    /// Starts the index of a stream that is declared to have one.
    pub(super) async fn start_search(&self, schema: &Arc<StreamSchema>) -> anyhow::Result<()> {
        if schema.options.search.is_empty() || !self.options.lake {
            return Ok(());
        }
        let before = self.indexes.write().unwrap_or_else(PoisonError::into_inner).remove(&schema.name);
        if let Some(before) = before {
            before.close();
        }
        let (root, stream, vault) = (self.search_root(), schema.clone(), self.vault.clone());
        let ends: BTreeMap<Partition, Offset> = self
            .log
            .partitions(&schema.name)
            .into_iter()
            .map(|partition| (partition, self.log.end(&StreamPartition::new(schema.name.clone(), partition))))
            .collect();
        let opened = self.machine.scheduler.work(move || {
            let index = SearchIndex::open(&root, stream.clone(), vault.clone())?;
            let ahead =
                |(partition, mark): (&Partition, &Offset)| ends.get(partition).is_none_or(|end| mark > end);
            if !index.marks().iter().any(ahead) {
                return Ok(index);
            }
            // It was made of rows that this log does not have.
            tracing::warn!(stream = %stream.name, "the search index is ahead of the log; it is made anew");
            index.delete()?;
            SearchIndex::open(&root, stream, vault)
        });
        let index =
            opened.await?.with_context(|| format!("the search index of {} can't be opened", schema.name))?;
        let index = Arc::new(index);
        self.indexes
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(schema.name.clone(), index.clone());
        // Before the lake has them, rows are found in memory.
        let gather = Gather { rows: INDEX_ROWS, wait: self.options.lake_wait / 2 };
        self.driver.start(Box::new(SearchView::new(index, gather)));
        Ok(())
    }

    /// Ends the index of a stream and removes it.
    pub(super) async fn end_search(&self, name: &StreamName) {
        self.driver.remove(&search_view(name)).await;
        let index = self.indexes.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        // One that a node without a lake has not opened goes, too.
        let left = self.search_root().join(name.as_str());
        let removed = match index {
            Some(index) => index.delete(),
            None if left.exists() => std::fs::remove_dir_all(left).map_err(SearchError::from),
            None => Ok(()),
        };
        if let Err(error) = removed {
            tracing::warn!(stream = %name, %error, "the search index of a dropped stream could not be removed");
        }
    }

    /// Lets rows that were recorded before a time leave the index of a stream that has one; readers see none of them meanwhile.
    pub(super) async fn retire_found(&self, name: &StreamName, before: i64) {
        let Some(index) = self.index(name) else { return };
        let retired = self.machine.scheduler.work(move || index.retire(before)).await;
        match retired.map_err(anyhow::Error::from).and_then(|retired| Ok(retired?)) {
            Ok(0) => {}
            Ok(rows) => {
                tracing::info!(stream = %name, rows, "rows past their retention left the search index")
            }
            Err(error) => tracing::warn!(stream = %name, %error, "old rows stay in the search index"),
        }
    }

    fn search_root(&self) -> std::path::PathBuf {
        self.options.data.join("search")
    }

    /// The index of a stream that has one.
    pub fn index(&self, name: &StreamName) -> Option<Arc<SearchIndex>> {
        self.indexes.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// The index over the rows of a lake below its marks.
    pub(super) fn index_below(
        &self,
        name: &StreamName,
        marks: &BTreeMap<Partition, Offset>,
    ) -> Option<Arc<dyn RowIndex>> {
        let snapshot = self.index(name)?.snapshot(marks);
        let behind = marks.iter().filter_map(|(partition, mark)| {
            let has = snapshot.marks().get(partition).copied().unwrap_or(0);
            (has < *mark).then_some((*partition, has))
        });
        let behind = behind.collect();
        Some(Arc::new(Indexed { snapshot, behind }))
    }
}

/// The name of a stream's index among views.
pub(super) fn search_view(name: &StreamName) -> String {
    format!("search:{name}")
}
