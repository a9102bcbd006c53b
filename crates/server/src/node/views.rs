//! Starting, swapping and ending what declarations ask for.

use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use highwater_event::{StreamName, StreamPartition, StreamSchema};
use highwater_ingest::DedupeIndex;
use highwater_ingest::decode::Decoder;
use highwater_lake::{Folder, LakeStream, LakeView, Moment};
use highwater_log::fold::{Program, StateReader};
use highwater_log::idle::Waiting;
use highwater_log::keyed::Dirty;
use highwater_log::view::{Gather, ViewState};
use highwater_sql::catalog::{Building, Catalog, Derivation, Planned, StreamEntry, TableEntry};
use highwater_sql::dialect::Kind;
use highwater_sql::stream::state::GroupState;
use highwater_sql::stream::{DerivedStream, TableRows};
use highwater_warehouse::{Table, TableView};

use super::search::search_view;
use super::{Node, rest};

/// Changed keys of one table that may wait before it is written back in the middle of a backlog.
const DIRTY_KEYS: usize = 100_000;
/// Rows that are written to the lake in one commit.
const LAKE_ROWS: usize = 256 * 1024;
/// Stored event ids that could not be read are tried again after this long.
const LEARN_AGAIN: Duration = Duration::from_secs(30);
/// A new version of something that rows keep coming in for is never quite up to date: it is swapped in when it has
/// been at most this many rows behind at so many looks.
const SWAP_LAG: u64 = 5_000;
const SWAP_LOOKS: u32 = 50;
/// How often it is looked at, and how long after a swap that failed it is tried again.
const LOOK: Duration = Duration::from_millis(100);
const SWAP_AGAIN: Duration = Duration::from_secs(5);

/// Where something stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Under its name.
    Current,
    /// Beside the version that has the name.
    Beside,
}

/// The start of something, on its way.
type Started = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// What a keyed view holds while it runs.
pub(super) struct Keyed {
    dirty: Arc<dyn Dirty>,
    /// Its table in the keyed store.
    table: Arc<str>,
    /// Its states and marks as they were folded.
    pub(super) states: Arc<dyn StateReader<GroupState>>,
    /// The rows that readers see, for tables.
    pub(super) rows: Option<Arc<TableRows>>,
}

impl Node {
    /// Makes a planned statement take effect. `before` is the catalog without it.
    pub(super) async fn start(self: &Arc<Self>, before: &Catalog, planned: &Planned) -> anyhow::Result<()> {
        match planned {
            Planned::Stream(entry) => self.start_stream(entry, Place::Current).await,
            Planned::Table(entry) => {
                if let Some(written) = &entry.written {
                    self.start_stream(&written.changes, Place::Current).await?;
                }
                self.start_table(entry)
            }
            Planned::Altered(entry) => self.alter(entry).await,
            Planned::Building(building) => {
                if let Some(given_up) = before.building.get(&building.root) {
                    self.end_members(&given_up.members).await;
                }
                self.start_building(building).await
            }
            Planned::Swapped(building) => self.finish_swap(before, building).await,
            Planned::Abandoned(name) => {
                if let Some(given_up) = before.building.get(name) {
                    self.end_members(&given_up.members).await;
                }
                Ok(())
            }
            Planned::Dropped(kind, name) => {
                self.end(before, *kind, name).await;
                let given_up = StreamName::new(name).ok().and_then(|name| before.building.get(&name));
                if let Some(given_up) = given_up {
                    self.end_members(&given_up.members).await;
                }
                Ok(())
            }
            Planned::Paused(name) => {
                self.pause(before, name, true).await;
                Ok(())
            }
            Planned::Resumed(name) => {
                self.pause(before, name, false).await;
                Ok(())
            }
            Planned::Reference(_)
            | Planned::Endpoint(_)
            | Planned::Intake(_)
            | Planned::Model(_)
            | Planned::Schedule(_)
            | Planned::Rule(_)
            | Planned::Unchanged => Ok(()),
        }
    }

    pub(super) async fn start_stream(
        self: &Arc<Self>,
        entry: &StreamEntry,
        place: Place,
    ) -> anyhow::Result<()> {
        let schema = &entry.schema;
        // First: the log may have to be read back from it.
        if schema.options.lake && self.lake(&schema.name).is_none() {
            self.start_lake(schema, place).await?;
        }
        if self.index(&schema.name).is_none() {
            self.start_search(schema).await?;
        }
        match &entry.derivation {
            Some(Derivation::Transform(transform)) => {
                let view =
                    DerivedStream::new(transform.clone(), self.log.clone(), self.machine.clock.clone());
                self.driver.start(Box::new(view));
            }
            Some(Derivation::Join(join)) => {
                self.start_keyed(join.clone(), join.has_sensitive(), |_| None)?;
            }
            None => {}
        }
        if schema.raw {
            let decoder = self.decoder(schema)?;
            let index = self.open_index(&schema.name, schema.options.event_id.is_empty()).await?;
            self.door.admit(decoder, index);
        }
        Ok(())
    }

    fn decoder(&self, schema: &Arc<StreamSchema>) -> anyhow::Result<Decoder> {
        let decoder =
            Decoder::new(schema.clone()).map_err(|error| anyhow!("stream {}: {error}", schema.name))?;
        if schema.has_sensitive() {
            return Ok(decoder.with_fingerprint(self.vault.fingerprint_key()?));
        }
        Ok(decoder)
    }

    pub(super) async fn start_lake(
        self: &Arc<Self>,
        schema: &Arc<StreamSchema>,
        place: Place,
    ) -> anyhow::Result<()> {
        if !self.options.lake {
            return Ok(());
        }
        let folder = if place == Place::Current { Folder::Own } else { Folder::Versioned };
        let partitions = self.log.partitions(&schema.name).into_iter();
        let derivable = partitions
            .map(|partition| StreamPartition::new(schema.name.clone(), partition))
            .all(|at| self.log.start(&at) == 0);
        let lake = LakeStream::open(&self.lake_root(), schema.clone(), folder, derivable, self.vault.clone())
            .await
            .with_context(|| format!("the lake of {} can't be opened", schema.name))?;
        let snapshot = lake.snapshot(Moment::Now).await?;
        for (partition, mark) in snapshot.marks {
            let end = self.log.end(&StreamPartition::new(schema.name.clone(), partition));
            ensure!(
                mark <= end,
                "the log has lost rows: partition {partition} of {} ends at {end} in the log, and the lake has rows up to {mark}; restore the data folder from a backup. Without one, move the folder `lake` away: streams go on from what the log still has",
                schema.name
            );
        }
        let lake = Arc::new(lake);
        let mut lakes = self.lakes.write().unwrap_or_else(PoisonError::into_inner);
        lakes.insert(schema.name.clone(), lake.clone());
        drop(lakes);
        let gather = Gather { rows: LAKE_ROWS, wait: self.options.lake_wait };
        self.driver.start(Box::new(LakeView::new(lake, gather, self.log.clone())));
        Ok(())
    }

    /// Lets a stream go on with more columns or other options.
    async fn alter(self: &Arc<Self>, entry: &StreamEntry) -> anyhow::Result<()> {
        let schema = &entry.schema;
        // The lake has the columns before the first event that brings them.
        if schema.options.lake {
            self.driver.remove(&lake_view(&schema.name)).await;
            self.start_lake(schema, Place::Current).await?;
        }
        // Rows that are kept longer from now on may have left it already.
        let known = self.index(&schema.name);
        if known.is_some_and(|index| {
            schema.options.search.is_empty() || index.stream().options.retention != schema.options.retention
        }) {
            self.end_search(&schema.name).await;
        }
        self.driver.remove(&search_view(&schema.name)).await;
        self.start_search(schema).await?;
        if schema.raw {
            let decoder = self.decoder(schema)?;
            self.door.admit(decoder, self.door.index(&schema.name));
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
        let stream = name.clone();
        let scheduler = self.machine.scheduler.clone();
        let opened = scheduler
            .work(move || DedupeIndex::open(&stream, node.write_back.store().clone(), node.log.as_ref()));
        let index = Arc::new(opened.await??);
        let (stored, stream) = (Arc::downgrade(&index), name);
        let (learning, first_asked) = (scheduler.clone(), index.first_asked());
        // Nobody waits for it; it ends with the index or the process.
        scheduler.spawn(async move {
            if !first_asked.await {
                return;
            }
            loop {
                let stored = stored.clone();
                // Until it succeeds each id is looked up in the store, and no generation ends.
                match learning.work(move || DedupeIndex::learn_stored(&stored)).await {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => tracing::warn!(%stream, %error, "stored event ids could not be read ahead; they are tried again in half a minute"),
                    Err(error) => return tracing::error!(%stream, %error, "stored event ids could not be read ahead"),
                }
                learning.sleep(LEARN_AGAIN).await;
            }
        });
        Ok(Some(index))
    }

    pub(super) fn start_table(self: &Arc<Self>, entry: &TableEntry) -> anyhow::Result<()> {
        let program = entry.program.clone();
        self.start_keyed(program.clone(), program.source().has_sensitive(), |table| {
            let sources = program.sources().to_vec();
            let states = Arc::new(Waiting::new(table, sources, self.idle.clone()));
            Some(Arc::new(TableRows::new(program.clone(), states)))
        })
    }

    fn start_keyed<P: Program<State = GroupState>>(
        self: &Arc<Self>,
        program: Arc<P>,
        has_sensitive: bool,
        rows: impl FnOnce(Arc<Table<GroupState>>) -> Option<Arc<TableRows>>,
    ) -> anyhow::Result<()> {
        let name = program.name().clone();
        let store = self.write_back.store().clone();
        let vault = has_sensitive.then(|| self.vault.clone());
        let table = Arc::new(Table::open(name.clone(), store, self.options.table_memory, vault)?);
        self.write_back.register(table.clone());
        let keyed = Keyed {
            dirty: table.clone(),
            table: name.clone(),
            states: table.clone(),
            rows: rows(table.clone()),
        };
        self.keyed.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_string(), Arc::new(keyed));
        let view = TableView::new(
            program,
            table,
            self.write_back.clone(),
            self.log.clone(),
            self.idle.clone(),
            self.machine.clone(),
            DIRTY_KEYS,
        );
        self.driver.start(Box::new(view));
        Ok(())
    }

    /// Starts a new version beside the old one, and swaps them when it has caught up.
    pub(super) fn start_building(self: &Arc<Self>, building: &Arc<Building>) -> Started {
        let (node, building) = (self.clone(), building.clone());
        // A boxed future: the swap that this leads to starts things itself.
        Box::pin(async move { node.build(building).await })
    }

    async fn build(self: &Arc<Self>, building: Arc<Building>) -> anyhow::Result<()> {
        for member in &building.members {
            match member {
                Planned::Stream(entry) => self.start_stream(entry, Place::Beside).await?,
                Planned::Table(entry) => self.start_table(entry)?,
                _ => {}
            }
        }
        let node = Arc::downgrade(self);
        self.machine.scheduler.spawn(async move {
            let mut near = 0;
            while let Some(node) = rest(&node, |_| LOOK).await {
                let current = node
                    .catalog()
                    .building
                    .get(&building.root)
                    .is_some_and(|now| Arc::ptr_eq(now, &building));
                if !current {
                    return;
                }
                match node.rows_behind(&building) {
                    Some(0) => {}
                    Some(behind) if behind <= SWAP_LAG && near >= SWAP_LOOKS => {}
                    behind => {
                        near = if behind.is_some_and(|behind| behind <= SWAP_LAG) { near + 1 } else { 0 };
                        continue;
                    }
                }
                let comparison = node.compare(&building).await;
                match node.swap(&building.root, &comparison).await {
                    Ok(()) => return,
                    Err(error) => {
                        tracing::error!(name = %building.root, error = format!("{error:#}"), "a new version could not take its place; it will be tried again");
                        node.machine.scheduler.sleep(SWAP_AGAIN).await;
                    }
                }
            }
        });
        Ok(())
    }

    /// The views of a new version that is being built.
    pub fn building_views(&self, building: &Building) -> Vec<highwater_log::view::ViewStatus> {
        building.members.iter().filter_map(view_of).filter_map(|view| self.driver.status(&view)).collect()
    }

    /// The view that a caller names: `table:orders` is the version that has the name now.
    pub fn view_named(&self, name: &str) -> String {
        let (kind, bare) = name.split_once(':').unwrap_or(("", name));
        let current = StreamName::new(bare).ok().and_then(|bare| {
            let catalog = self.catalog();
            match kind {
                "" => view_name(&catalog, &bare),
                "lake" => catalog.streams.get(&bare).map(|entry| lake_view(&entry.schema.name)),
                "search" => catalog.streams.get(&bare).map(|entry| search_view(&entry.schema.name)),
                _ => view_name(&catalog, &bare).filter(|view| view.starts_with(kind)),
            }
        });
        current.unwrap_or_else(|| name.to_owned())
    }

    /// How far the view of a building that is furthest behind has to go; `None` while one of them does not run.
    fn rows_behind(&self, building: &Building) -> Option<u64> {
        let lag = |view: String| {
            self.driver
                .status(&view)
                .filter(|status| status.state == ViewState::Running)
                .map(|status| status.lag)
        };
        building.members.iter().filter_map(view_of).try_fold(0, |most, view| Some(most.max(lag(view)?)))
    }

    /// The old versions end, and the lake of the new ones takes their folders.
    async fn finish_swap(self: &Arc<Self>, before: &Catalog, building: &Building) -> anyhow::Result<()> {
        for name in building.names().into_iter().rev() {
            let kind = if before.streams.contains_key(&name) { Kind::Stream } else { Kind::Table };
            self.end(before, kind, name.as_str()).await;
        }
        for member in &building.members {
            if let Planned::Stream(entry) = member
                && entry.schema.options.lake
            {
                self.driver.remove(&lake_view(&entry.schema.name)).await;
                self.start_lake(&entry.schema, Place::Current).await?;
            }
        }
        for name in building.names().iter().filter(|name| before.paused.contains(*name)) {
            self.pause(&self.catalog(), name, true).await;
        }
        tracing::info!(name = %building.root, statements = building.members.len(), "a new version has taken its place");
        Ok(())
    }

    async fn end_members(&self, members: &[Planned]) {
        for member in members.iter().rev() {
            match member {
                Planned::Stream(entry) => self.end_stream(entry).await,
                Planned::Table(entry) => self.end_keyed(entry.program.name()).await,
                _ => {}
            }
        }
    }

    /// Ends what a catalog knows under a name, with everything that is derived for it alone. The rows in
    /// the log go when their retention is over.
    async fn end(&self, before: &Catalog, kind: Kind, name: &str) {
        let Ok(name) = StreamName::new(name) else { return };
        match kind {
            Kind::Stream => {
                if let Some(entry) = before.streams.get(&name) {
                    self.end_stream(entry).await;
                }
            }
            Kind::Table => {
                if let Some(entry) = before.tables.get(&name) {
                    self.end_keyed(entry.program.name()).await;
                    if let Some(written) = &entry.written {
                        self.end_stream(&written.changes).await;
                    }
                }
            }
            Kind::ReferenceTable => self.engine.references().remove(name.as_str()),
            Kind::Endpoint | Kind::Intake(_) | Kind::Model | Kind::Schedule | Kind::Rule => {}
        }
    }

    async fn end_stream(&self, entry: &StreamEntry) {
        let name = &entry.schema.name;
        match &entry.derivation {
            Some(Derivation::Join(join)) => self.end_keyed(join.name()).await,
            Some(Derivation::Transform(_)) => {
                self.driver.remove(&format!("stream:{name}")).await;
            }
            None => {}
        }
        if let Some(index) = self.door.index(name) {
            self.door.dismiss(name);
            index.tables().iter().for_each(|table| self.clear(table));
        }
        self.door.dismiss(name);
        self.end_search(name).await;
        self.driver.remove(&lake_view(name)).await;
        let lake = self.lakes.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        if let Some(lake) = lake
            && let Err(error) = lake.remove().await
        {
            tracing::warn!(stream = %name, %error, "the lake of a dropped stream could not be removed");
        }
    }

    async fn end_keyed(&self, name: &str) {
        self.driver.remove(name).await;
        let keyed = self.keyed.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        if let Some(keyed) = keyed {
            self.write_back.release(&keyed.dirty);
            self.clear(&keyed.table);
        }
    }

    fn clear(&self, table: &str) {
        if let Err(error) = self.write_back.store().clear(table) {
            tracing::warn!(table, %error, "the states of something dropped could not be removed");
        }
    }

    pub(super) async fn pause(&self, catalog: &Catalog, name: &StreamName, pause: bool) {
        let Some(view) = view_name(catalog, name) else { return };
        let outcome = if pause { self.driver.pause(&view).await } else { self.driver.resume(&view).await };
        if let Err(error) = outcome {
            tracing::warn!(%error, view, "could not be paused or resumed");
        }
    }
}

fn lake_view(name: &StreamName) -> String {
    format!("lake:{name}")
}

/// The view that keeps a planned statement up.
fn view_of(planned: &Planned) -> Option<String> {
    match planned {
        Planned::Stream(entry) => entry.derivation.as_ref().map(|_| format!("stream:{}", entry.schema.name)),
        Planned::Table(entry) => Some(entry.program.name().to_string()),
        _ => None,
    }
}

/// The view that keeps a derived stream or table up.
fn view_name(catalog: &Catalog, name: &StreamName) -> Option<String> {
    if let Some(entry) = catalog.tables.get(name) {
        return Some(entry.program.name().to_string());
    }
    let entry = catalog.streams.get(name)?;
    entry.derivation.as_ref().map(|_| format!("stream:{}", entry.schema.name))
}
