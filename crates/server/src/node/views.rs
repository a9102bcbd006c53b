//! Starting what a declaration asks for.

use std::sync::{Arc, PoisonError};

use anyhow::{Context, anyhow};
use highwater_event::StreamName;
use highwater_ingest::DedupeIndex;
use highwater_ingest::decode::Decoder;
use highwater_lake::{LakeStream, LakeView};
use highwater_log::view::Gather;
use highwater_sql::StreamEntry;
use highwater_sql::catalog::{Planned, TableEntry};
use highwater_sql::stream::{DerivedStream, TableRows};
use highwater_warehouse::{Table, TableView};

use super::Node;

/// Changed keys of one table that may wait before it is written back in the middle of a backlog.
const DIRTY_KEYS: usize = 100_000;
/// Rows that are written to the lake in one commit.
const LAKE_ROWS: usize = 256 * 1024;

impl Node {
    pub(super) async fn start(self: &Arc<Self>, planned: &Planned) -> anyhow::Result<()> {
        match planned {
            Planned::Stream(entry) => self.start_stream(entry).await,
            Planned::Table(entry) => self.start_table(entry),
            Planned::Reference(_) | Planned::Endpoint(_) | Planned::Unchanged => Ok(()),
        }
    }

    pub(super) async fn start_stream(self: &Arc<Self>, entry: &StreamEntry) -> anyhow::Result<()> {
        let schema = &entry.schema;
        if let Some(transform) = &entry.transform {
            let view = DerivedStream::new(transform.clone(), self.log.clone(), self.clock.clone());
            self.driver.start(Box::new(view));
        }
        if schema.raw {
            let decoder =
                Decoder::new(schema.clone()).map_err(|error| anyhow!("stream {}: {error}", schema.name))?;
            let index = self.open_index(&schema.name, schema.options.event_id.is_empty()).await?;
            self.door.admit(decoder, index);
        }
        if schema.options.lake {
            let root = self.options.data.join("lake");
            let lake = LakeStream::open(&root, schema.clone())
                .await
                .with_context(|| format!("the lake of {} can't be opened", schema.name))?;
            let lake = Arc::new(lake);
            self.lakes
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(schema.name.clone(), lake.clone());
            let gather = Gather { rows: LAKE_ROWS, wait: self.options.lake_wait };
            self.driver.start(Box::new(LakeView::new(root, lake, gather)));
        }
        Ok(())
    }

    /// The dedupe index of a raw stream, read up to the head of the log.
    async fn open_index(
        self: &Arc<Self>,
        name: &StreamName,
        without_ids: bool,
    ) -> anyhow::Result<Option<Arc<DedupeIndex>>> {
        if without_ids {
            return Ok(None);
        }
        let (node, name) = (self.clone(), name.clone());
        let index = tokio::task::spawn_blocking(move || {
            DedupeIndex::open(&name, node.write_back.store().clone(), node.log.as_ref())
        })
        .await??;
        let index = Arc::new(index);
        self.write_back.register(index.clone());
        Ok(Some(index))
    }

    fn start_table(self: &Arc<Self>, entry: &TableEntry) -> anyhow::Result<()> {
        use highwater_log::fold::Program;
        let program = entry.program.clone();
        let store = self.write_back.store().clone();
        let table = Arc::new(Table::open(program.name().clone(), store, self.options.table_memory)?);
        self.write_back.register(table.clone());
        let rows = Arc::new(TableRows::new(program.clone(), table.clone()));
        self.tables.write().unwrap_or_else(PoisonError::into_inner).insert(program.table().clone(), rows);
        let view = TableView::new(
            program,
            table,
            self.write_back.clone(),
            self.log.clone(),
            self.clock.clone(),
            DIRTY_KEYS,
        );
        self.driver.start(Box::new(view));
        Ok(())
    }
}
