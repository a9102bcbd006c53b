//! Tables in the lake: a snapshot of each table that changed, from time to time.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use arrow::array::RecordBatch;
use datafusion::prelude::SessionContext;
use highwater_event::StreamName;
use highwater_lake::LakeTable;
use highwater_log::fold::Program;
use highwater_sql::adhoc::Lens;
use highwater_sql::stream::TableRows;
use highwater_sql::stream::table::Extent;

use super::{Node, rest};

/// What is known of the tables in the lake.
#[derive(Default)]
pub struct Snapshots {
    /// By the name of the table with its version: a statement that takes the place of another begins anew, over the same snapshots.
    lakes: BTreeMap<StreamName, LakeTable>,
    /// Until when windows were closed in the newest snapshot.
    closed: BTreeMap<StreamName, i64>,
}

impl Snapshots {
    /// Forgets what is known of a table.
    fn forget(&mut self, name: &StreamName) {
        self.lakes.retain(|known, _| known.public() != name.public());
        self.closed.retain(|known, _| known.public() != name.public());
    }
}

/// Writes snapshots until the node is gone.
pub async fn keep(node: Weak<Node>) {
    while let Some(node) = rest(&node, |options| options.snapshot_every).await {
        let names: Vec<StreamName> = node.catalog().tables.keys().cloned().collect();
        for name in names {
            let mut known = node.snapshots.lock().await;
            if let Err(error) = snapshot(&node, &name, &mut known).await {
                tracing::warn!(table = %name, error = format!("{error:#}"), "no snapshot in the lake this time");
            }
        }
    }
}

async fn snapshot(node: &Arc<Node>, name: &StreamName, known: &mut Snapshots) -> anyhow::Result<()> {
    let Some(rows) = node.table(name) else { return Ok(()) };
    let table = rows.program().table().clone();
    if !known.lakes.contains_key(&table) {
        known.forget(&table);
        let root = node.options.data.join("lake");
        let lake = LakeTable::open(&root, table.clone(), rows.program().schema()).await?;
        known.lakes.insert(table.clone(), lake);
    }
    let Some(lake) = known.lakes.get_mut(&table) else { return Ok(()) };
    // The mark is read first: the snapshot may hold a little more than it says, never less.
    let view = node.driver.status(rows.program().name());
    let mark: u64 = view.map_or(0, |status| status.marks.values().sum());
    // Windows that are shown when they close also close while no row comes.
    let shown = rows.shown_until();
    if mark as i64 <= lake.mark() && (shown.is_none() || known.closed.get(&table) == shown.as_ref()) {
        return Ok(());
    }
    let mut batches = rows.read(Extent::All).await?;
    if !rows.program().sensitive().is_empty() {
        // The lake's tables are for other engines, which get what every reader gets.
        batches = masked(node, &rows, batches).await?;
    }
    lake.replace(batches, rows.program().schema(), mark as i64).await?;
    if let Some(shown) = shown {
        known.closed.insert(table, shown);
    }
    Ok(())
}

impl Node {
    /// Removes all snapshots of a table from the lake, with their history, and writes one of now.
    pub async fn renew_snapshots(self: &Arc<Self>, name: &StreamName) -> anyhow::Result<()> {
        let mut known = self.snapshots.lock().await;
        let folder = LakeTable::folder(&self.options.data.join("lake"), name);
        if !folder.exists() {
            return Ok(());
        }
        known.forget(name);
        let remove = move || std::fs::remove_dir_all(folder);
        self.machine.scheduler.work(remove).await??;
        snapshot(self, name, &mut known).await
    }
}

/// The rows of a table with masks in the place of what is SENSITIVE.
async fn masked(
    node: &Arc<Node>,
    rows: &TableRows,
    batches: Vec<RecordBatch>,
) -> anyhow::Result<Vec<RecordBatch>> {
    let schema = rows.program().schema().clone();
    let relation = node.rows_as_seen(rows.program(), batches, &Lens::default())?;
    let context = SessionContext::new_with_state(node.engine.state());
    let masked = context.read_table(relation)?.collect().await?;
    let same = |rows: RecordBatch| {
        let columns = rows
            .columns()
            .iter()
            .zip(schema.fields())
            .map(|(column, field)| arrow::compute::cast(column, field.data_type()));
        Ok(RecordBatch::try_new(schema.clone(), columns.collect::<Result<_, _>>()?)?)
    };
    masked.into_iter().map(same).collect()
}
