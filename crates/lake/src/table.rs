//! A table's snapshots in the lake: each version of the Delta table is the whole table at one mark.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use deltalake::kernel::engine::arrow_conversion::{TryFromArrow, TryIntoArrow};
use deltalake::kernel::{Action, DataType, MetadataExt, StructType};
use deltalake::protocol::SaveMode;
use deltalake::writer::RecordBatchWriter;
use deltalake::{DeltaTable, DeltaTableError, TableProperty};
use futures::TryStreamExt;
use highwater_event::StreamName;

use crate::{LakeError, commit, open_or_create, stats_columns, write_files_by, written};

/// Writes snapshots of one table.
pub struct LakeTable {
    name: StreamName,
    dir: PathBuf,
    table: DeltaTable,
    mark: i64,
}

impl LakeTable {
    /// Where the snapshots of a table lie.
    pub fn folder(root: &Path, name: &StreamName) -> PathBuf {
        root.join("tables").join(name.public().to_ascii_uppercase())
    }

    /// Opens a table's snapshots under the lake's root; each version of the table has a mark of its own.
    pub async fn open(root: &Path, name: StreamName, schema: &SchemaRef) -> Result<Self, LakeError> {
        let dir = Self::folder(root, &name);
        let table = open_or_create(&dir, name.at_version(1).as_str(), schema, &[]).await?;
        let id = application_id(&name);
        let mark =
            table.snapshot()?.transaction_version(table.log_store().as_ref(), &id).await?.unwrap_or(-1);
        Ok(Self { name, dir, table, mark })
    }

    /// The mark of the newest snapshot; negative when there is none.
    pub fn mark(&self) -> i64 {
        self.mark
    }

    /// Whether the newest snapshot has just these columns.
    fn has_columns(&self, schema: &SchemaRef) -> Result<bool, LakeError> {
        let (known, wanted) = (self.table.snapshot()?.schema(), StructType::try_from_arrow(schema.as_ref())?);
        let names = |columns: &StructType| -> Vec<(String, DataType)> {
            columns.fields().map(|field| (field.name().clone(), field.data_type().clone())).collect()
        };
        Ok(names(&known) == names(&wanted))
    }

    /// Puts a snapshot in the place of the last one. Its columns may be others: they change with the rows, in one version.
    pub async fn replace(
        &mut self,
        rows: Vec<RecordBatch>,
        schema: &SchemaRef,
        mark: i64,
    ) -> Result<(), LakeError> {
        let mut table = self.table.clone();
        let mut changes = Vec::new();
        let is_same = self.has_columns(schema)?;
        let writer = if is_same {
            RecordBatchWriter::for_table(&table)?
        } else {
            let columns = StructType::try_from_arrow(schema.as_ref())?;
            let statistics = TableProperty::DataSkippingStatsColumns.as_ref().to_owned();
            let metadata = table.snapshot()?.metadata().clone().with_schema(&columns);
            let metadata =
                metadata.and_then(|metadata| metadata.add_config_key(statistics, stats_columns(schema)));
            changes.push(Action::Metadata(metadata.map_err(DeltaTableError::from)?));
            // As it will be read back.
            let columns = Arc::new((&columns).try_into_arrow()?);
            RecordBatchWriter::try_new(table.log_store().root_url(), columns, None, None)?
        };
        let mut adds = write_files_by(writer, move || Ok(rows)).await?;
        if !is_same {
            // This writer does not know of which columns statistics are exact.
            adds.iter_mut().for_each(|file| file.stats = None);
        }
        let log_store = table.log_store();
        let old: Vec<Action> = table
            .snapshot()?
            .snapshot()
            .file_views(&log_store, None)
            .map_ok(|file| Action::Remove(file.remove_action(true)))
            .try_collect()
            .await?;
        changes.extend(old);
        let id = application_id(&self.name);
        let anew = written(SaveMode::Overwrite, &[]);
        let outcome = commit(&mut table, &self.dir, adds, changes, anew, Some((&id, mark))).await;
        if outcome.is_err() {
            self.table.update_state().await?;
            return outcome;
        }
        self.table = table;
        self.mark = mark;
        Ok(())
    }
}

fn application_id(name: &StreamName) -> String {
    format!("highwater/table/{name}")
}
