//! A table's snapshots in the lake: each version of the Delta table is the whole table at one mark.

use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use deltalake::DeltaTable;
use deltalake::kernel::Action;
use deltalake::protocol::SaveMode;
use futures::TryStreamExt;
use highwater_event::StreamName;

use crate::{LakeError, commit, open_or_create, write_files};

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

    /// Opens a table's snapshots under the lake's root.
    pub async fn open(root: &Path, name: StreamName, schema: &SchemaRef) -> Result<Self, LakeError> {
        let dir = Self::folder(root, &name);
        let table = open_or_create(&dir, name.as_str(), schema, &[]).await?;
        let id = application_id(&name);
        let mark =
            table.snapshot()?.transaction_version(table.log_store().as_ref(), &id).await?.unwrap_or(-1);
        Ok(Self { name, dir, table, mark })
    }

    /// The mark of the newest snapshot; negative when there is none.
    pub fn mark(&self) -> i64 {
        self.mark
    }

    /// Puts a snapshot in the place of the last one.
    pub async fn replace(&mut self, rows: Vec<RecordBatch>, mark: i64) -> Result<(), LakeError> {
        let mut table = self.table.clone();
        let adds = write_files(&table, move || Ok(rows)).await?;
        let log_store = table.log_store();
        let old: Vec<Action> = table
            .snapshot()?
            .snapshot()
            .file_views(&log_store, None)
            .map_ok(|file| Action::Remove(file.remove_action(true)))
            .try_collect()
            .await?;
        let id = application_id(&self.name);
        let outcome =
            commit(&mut table, &self.dir, adds, old, SaveMode::Overwrite, &[], Some((&id, mark))).await;
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
