//! What queries can read by name, as it stands now.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::catalog::{MemTable, TableProvider};
use highwater_event::{Offset, Partition, StreamName, StreamPartition, StreamSchema};
use highwater_lake::{LakeFiles, Moment};
use highwater_log::reader::RowReader;
use highwater_sql::adhoc::{Day, Relations, StreamRows, stream_relation, table_relation};
use highwater_sql::stream::table::Extent;
use highwater_sql::{Engine, SqlError};

use super::Node;

/// All relations of a node.
pub struct NodeRelations(pub Arc<Node>);

impl fmt::Debug for NodeRelations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeRelations")
    }
}

/// Ends the name of a windowed table to read its newest window only.
const NEWEST: &str = "$newest";
/// Bytes of the log that one query may hold.
const MAX_HOT_BYTES: usize = 1 << 30;
/// Rows that are read from the log at a time.
const READ_ROWS: usize = 64 * 1024;

#[async_trait]
impl Relations for NodeRelations {
    fn names(&self) -> Vec<String> {
        let catalog = self.0.catalog();
        catalog
            .streams
            .keys()
            .chain(catalog.tables.keys())
            .chain(catalog.references.keys())
            .map(ToString::to_string)
            .chain(super::information::NAMES.map(str::to_owned))
            .collect()
    }

    async fn relation(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, SqlError> {
        if let Some(information) = self.0.information(name)? {
            return Ok(Some(information));
        }
        let (bare, extent) = match name.strip_suffix(NEWEST) {
            Some(bare) => (bare, Extent::NewestWindow),
            None => (name, Extent::All),
        };
        let Ok(name) = StreamName::new(bare) else { return Ok(None) };
        let catalog = self.0.catalog();
        if let Some(entry) = catalog.streams.get(&name) {
            return self.0.stream_at(&entry.schema, Moment::Now).await.map(Some);
        }
        if let Some(entry) = catalog.references.get(&name) {
            let rows = entry.table.rows.clone();
            return Ok(Some(Arc::new(MemTable::try_new(rows.schema(), vec![vec![rows]])?)));
        }
        let Some(rows) = self.0.table(&name) else { return Ok(None) };
        let program = rows.program();
        let batches = rows.read(extent).await?;
        table_relation(&self.0.engine, program.schema().clone(), batches, program.sensitive()).map(Some)
    }
}

impl Node {
    /// A stream as a relation: lake and log at once, or the lake alone at an earlier moment.
    pub async fn stream_at(
        &self,
        schema: &StreamSchema,
        moment: Moment,
    ) -> Result<Arc<dyn TableProvider>, SqlError> {
        self.stream_snapshot(schema, moment).await?.relation(&self.engine, schema, None)
    }

    /// The rows of a stream at a moment: lake and log at once, or the lake alone at an earlier one.
    pub async fn stream_snapshot(
        &self,
        schema: &StreamSchema,
        moment: Moment,
    ) -> Result<StreamSnapshot, SqlError> {
        let failed = |error: highwater_lake::LakeError| match error {
            highwater_lake::LakeError::NoSuchVersion(message) => SqlError::new("no_such_version", message),
            other => SqlError::new("internal", other.to_string()),
        };
        let (files, marks) = match self.lake(&schema.name) {
            Some(lake) => {
                let snapshot = lake.snapshot(moment).await.map_err(failed)?;
                (Some(snapshot.files), snapshot.marks)
            }
            None => (None, BTreeMap::new()),
        };
        let hot = match moment {
            Moment::Now => self.hot_rows(schema, &marks, None)?,
            Moment::Version(_) | Moment::Time(_) => Vec::new(),
        };
        Ok(StreamSnapshot { files, hot })
    }

    /// Rows of the log from the given offsets on, at most about `limit`.
    pub fn hot_rows(
        &self,
        schema: &StreamSchema,
        from: &BTreeMap<Partition, Offset>,
        limit: Option<usize>,
    ) -> Result<Vec<RecordBatch>, SqlError> {
        let reader = RowReader::new(schema);
        let mut rows = Vec::new();
        let mut count = 0;
        let mut bytes = 0;
        for partition in self.log.partitions(&schema.name) {
            let at = StreamPartition::new(schema.name.clone(), partition);
            // What the lake does not have and the log no longer has is past its retention.
            let mut next = from.get(&partition).copied().unwrap_or(0).max(self.log.start(&at));
            let end = self.log.end(&at);
            while next < end && limit.is_none_or(|limit| count < limit) {
                let batches = self
                    .log
                    .read(&at, next, READ_ROWS)
                    .map_err(|error| SqlError::new("damaged_log", error.to_string()))?;
                if batches.is_empty() {
                    break;
                }
                for batch in batches {
                    let Some(batch) = batch.from_offset(next) else { continue };
                    next = batch.end();
                    count += batch.rows.num_rows();
                    bytes += batch.rows.get_array_memory_size();
                    if bytes > MAX_HOT_BYTES {
                        return Err(SqlError::new(
                            "query_memory",
                            format!(
                                "more than {} MiB of \"{}\" are not in the lake yet",
                                MAX_HOT_BYTES >> 20,
                                schema.name
                            ),
                        )
                        .hint("try again when the lake has caught up; `highwater view list` shows its lag"));
                    }
                    let read = reader.read(partition, &batch);
                    rows.push(read.map_err(|error| SqlError::new("internal", error.to_string()))?);
                }
            }
        }
        Ok(rows)
    }
}

/// The rows of a stream at one moment.
#[derive(Debug, Clone)]
pub struct StreamSnapshot {
    /// Files of the lake.
    pub files: Option<Arc<LakeFiles>>,
    /// Rows of the log that are not in them.
    pub hot: Vec<RecordBatch>,
}

impl StreamSnapshot {
    /// The rows of a day, or all, as readers see them.
    pub fn relation(
        self,
        engine: &Engine,
        schema: &StreamSchema,
        day: Option<&Day>,
    ) -> Result<Arc<dyn TableProvider>, SqlError> {
        let lake = self.files.map(|files| files.relation());
        stream_relation(engine, schema, StreamRows { lake, hot: self.hot, day, beside: None })
    }
}

/// Relations that stay as they are, for calls that ask several questions about the same rows.
pub struct Fixed(BTreeMap<String, Arc<dyn TableProvider>>);

impl Fixed {
    /// Fixes a relation.
    pub fn new(name: impl Into<String>, provider: Arc<dyn TableProvider>) -> Self {
        Self::several([(name.into(), provider)])
    }

    /// Fixes several.
    pub fn several(relations: impl IntoIterator<Item = (String, Arc<dyn TableProvider>)>) -> Self {
        Self(relations.into_iter().collect())
    }
}

impl fmt::Debug for Fixed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Fixed").field(&self.0.keys().collect::<Vec<_>>()).finish()
    }
}

#[async_trait]
impl Relations for Fixed {
    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    async fn relation(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, SqlError> {
        Ok(self.0.get(name).cloned())
    }
}
