//! What queries can read by name, as it stands now.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::catalog::{MemTable, TableProvider};
use datafusion::common::ScalarValue;
use highwater_auth::{Asked, Identity};
use highwater_event::identity::HOME;
use highwater_event::{
    Offset, Partition, Reaction, StreamName, StreamPartition, StreamSchema, columns, planted, time,
};
use highwater_lake::{LakeFiles, Moment};
use highwater_log::ReadError;
use highwater_log::audit::AUDIT;
use highwater_log::dead_letter::{DEAD_LETTERS, LATE_EVENTS};
use highwater_log::reader::RowReader;
use highwater_sql::adhoc::{
    self, Day, Lens, QueryResult, Relations, RowIndex, Searchable, StreamRows, rows_relation,
    stream_relation, table_relation,
};
use highwater_sql::dialect::{Asker, Kind, Rule, Statement, of_tenant, parse_script};
use highwater_sql::stream::TableProgram;
use highwater_sql::stream::table::Extent;
use highwater_sql::{Catalog, Engine, SqlError};

use serde_json::Value;

use super::{FORBIDDEN, Node, QUERY_LIMITS, needs};

/// For whom relations are read.
#[derive(Debug, Clone)]
pub enum Reader {
    /// The engine's own questions.
    Engine,
    /// Somebody who may read what their permissions say, relation by relation.
    Caller(Arc<Identity>),
    /// Somebody who was let in to a declared endpoint: it says itself what it reads.
    Endpoint(Arc<Identity>),
}

/// All relations of a node, as somebody may read them.
pub struct NodeRelations {
    node: Arc<Node>,
    reader: Reader,
    /// Filters and masks of what was read, in words, by relation.
    applied: Mutex<BTreeMap<String, String>>,
}

impl fmt::Debug for NodeRelations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeRelations").field("reader", &self.reader).finish_non_exhaustive()
    }
}

impl NodeRelations {
    /// Relations for a reader.
    pub fn new(node: Arc<Node>, reader: Reader) -> Self {
        Self { node, reader, applied: Mutex::default() }
    }

    /// Filters and masks that stood before what was read, for the audit trail; nothing when there were none.
    pub fn applied(&self) -> Option<Value> {
        let applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        (!applied.is_empty()).then(|| applied.clone().into_iter().collect())
    }

    /// Relations for the engine's own questions.
    pub fn for_engine(node: Arc<Node>) -> Self {
        Self::new(node, Reader::Engine)
    }

    /// Lets a reader in to a relation, and answers what it sees of it.
    fn lens(&self, kind: &str, name: &StreamName) -> Result<Lens, SqlError> {
        let catalog = self.node.catalog();
        let asked = Asked::on("read", kind, name.as_str()).shared(is_shared(&catalog, name));
        match &self.reader {
            Reader::Engine => return Ok(Lens::default()),
            Reader::Caller(identity) => self.node.authorize(identity, asked)?,
            // The endpoint was allowed; what belongs to no tenant is still its owner's.
            Reader::Endpoint(identity) if identity.principal.tenant.as_ref() != HOME && !asked.shared => {
                return Err(SqlError::new(FORBIDDEN, needs(asked)));
            }
            Reader::Endpoint(_) => {}
        }
        let (Reader::Caller(identity) | Reader::Endpoint(identity)) = &self.reader else {
            return Ok(Lens::default());
        };
        let mut lens = self.node.lens(identity, kind, name);
        // Whoever was let in to an endpoint was not let in to what others did wrong.
        let through = matches!(self.reader, Reader::Endpoint(_)) && !identity.principal.everywhere;
        if through && [DEAD_LETTERS, LATE_EVENTS].contains(&name.as_str()) {
            let own = identity.principal.name.replace('\'', "''");
            lens.filters.push(format!("principal = '{own}'"));
        }
        if let Some(said) = lens.describe() {
            let mut applied = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
            applied.insert(name.to_string(), said);
        }
        Ok(lens)
    }
}

/// Ends the name of a windowed table to read its newest window only.
const NEWEST: &str = "$newest";
/// Bytes of the log that one query may hold.
const MAX_HOT_BYTES: usize = 1 << 30;
/// Rows that are read from the log at a time.
const READ_ROWS: usize = 64 * 1024;
/// Rows of the log can't be read.
pub fn unreadable(error: ReadError) -> SqlError {
    let code = match error.reaction() {
        Reaction::Integrity => "damaged_log",
        Reaction::Retry => "log_unavailable",
        _ => "internal",
    };
    SqlError::new(code, error.to_string())
}

/// What is past its retention is told by the minute.
pub(super) const MINUTE: i64 = 60_000_000;

#[async_trait]
impl Relations for NodeRelations {
    fn names(&self) -> Vec<String> {
        let catalog = self.node.catalog();
        let names = catalog.streams.keys().chain(catalog.tables.keys()).chain(catalog.references.keys());
        // No error may tell a tenant what others have.
        let told = |name: &&StreamName| match &self.reader {
            Reader::Caller(identity) | Reader::Endpoint(identity)
                if identity.principal.tenant.as_ref() != HOME =>
            {
                is_shared(&catalog, name)
            }
            _ => true,
        };
        let information = super::information::NAMES.map(str::to_owned);
        names.filter(told).map(ToString::to_string).chain(information).collect()
    }

    fn may_look_up(&self) -> bool {
        match &self.reader {
            Reader::Caller(identity) => self.node.may_look_up(identity),
            Reader::Engine | Reader::Endpoint(_) => true,
        }
    }

    async fn relation(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, SqlError> {
        if let Some(information) = self.node.information(name)? {
            if let Reader::Caller(identity) | Reader::Endpoint(identity) = &self.reader {
                self.node.authorize(identity, Asked::node("describe"))?;
            }
            return Ok(Some(information));
        }
        let (bare, extent) = match name.strip_suffix(NEWEST) {
            Some(bare) => (bare, Extent::NewestWindow),
            None => (name, Extent::All),
        };
        let Ok(name) = StreamName::new(bare) else { return Ok(None) };
        let catalog = self.node.catalog();
        if let Some(entry) = catalog.streams.get(&name) {
            let lens = self.lens("stream", &name)?;
            return self.node.stream_at(&entry.schema, Moment::Now, lens).await.map(Some);
        }
        if let Some(entry) = catalog.references.get(&name) {
            self.lens("table", &name)?;
            let rows = entry.table.rows.clone();
            return Ok(Some(Arc::new(MemTable::try_new(rows.schema(), vec![vec![rows]])?)));
        }
        let Some(rows) = self.node.table(&name) else { return Ok(None) };
        let lens = self.lens("table", &name)?;
        table_relation(&self.node.engine, rows, extent, &lens).map(Some)
    }

    async fn searchable(&self, name: &str) -> Result<Option<Searchable>, SqlError> {
        let Ok(name) = StreamName::new(name) else { return Ok(None) };
        let catalog = self.node.catalog();
        let Some(entry) = catalog.streams.get(&name) else { return Ok(None) };
        let schema = &entry.schema;
        if schema.options.search.is_empty() || schema.has_sensitive() {
            return Ok(None);
        }
        let lens = self.lens("stream", &name)?;
        if !lens.masks.is_empty() {
            return Ok(None);
        }
        let snapshot = self.node.stream_snapshot(schema, Moment::Now).await?;
        let mut filters = snapshot.lens(lens).filters;
        if let Some(oldest) = snapshot.oldest {
            filters.push(format!("{} >= '{}'", columns::RECORDED_AT, time::show_micros(oldest)));
        }
        let Some(index) = snapshot.index.filter(|index| index.missing().is_none()) else { return Ok(None) };
        let readable = schema.reader_schema();
        // A column that was just added is not in the index yet.
        let kept = index.schema();
        if !readable.fields().iter().all(|field| kept.field_with_name(field.name()).is_ok()) {
            return Ok(None);
        }
        Ok(Some(Searchable { schema: readable, hot: snapshot.hot, index, filters }))
    }
}

/// Whether the rows of a relation belong to tenants, each of which sees its own only.
pub fn is_shared(catalog: &Catalog, name: &StreamName) -> bool {
    let by_column = catalog.streams.get(name).is_some_and(|entry| entry.schema.options.tenant.is_some());
    let by_rule = |rule: &Rule| match rule {
        Rule::RowFilter { using } => using.to_string().to_ascii_lowercase().contains("session_tenant("),
        Rule::ColumnMask { .. } | Rule::Policy { .. } => false,
    };
    by_column || catalog.rules_of(name).any(|entry| by_rule(&entry.rule))
}

impl Node {
    /// Lets somebody declare only what reads what they may read, and see as it is: what is derived from it
    /// shows it to others.
    pub fn authorize_script(&self, identity: &Identity, text: &str) -> Result<(), SqlError> {
        let catalog = self.catalog();
        for declared in parse_script(text)? {
            let statement = &declared.statement;
            // Whoever could write policies could give themselves everything, and without a rule more is seen.
            // What a schedule begins is done by the engine.
            if matches!(
                statement,
                Statement::CreateSchedule { .. } | Statement::Drop { kind: Kind::Schedule, .. }
            ) {
                self.authorize(identity, Asked::node("operate"))?;
                if !identity.principal.everywhere {
                    let detail = "what a schedule begins is done by the engine, which sees every tenant; administrators of the node declare schedules";
                    return Err(SqlError::new(FORBIDDEN, detail));
                }
            }
            let governs = match statement {
                Statement::CreateRule { rule: Rule::Policy { .. }, .. }
                | Statement::Drop { kind: Kind::Rule, .. } => true,
                Statement::CreateRule { .. } => declared.replace,
                _ => false,
            };
            if governs {
                self.authorize(identity, Asked::node("manage_permissions"))?;
            }
            let derives = !matches!(
                statement,
                Statement::CreateRule { .. }
                    | Statement::CreateEndpoint { .. }
                    | Statement::CreateModel { .. }
                    | Statement::CreateIntake { .. }
            );
            for name in highwater_sql::catalog::read_by(statement) {
                let kind = if catalog.streams.contains_key(&name) { "stream" } else { "table" };
                let asked = Asked::on("read", kind, name.as_str()).shared(is_shared(&catalog, &name));
                self.authorize(identity, asked)?;
                let lens = self.lens(identity, kind, &name);
                let whole = lens.filters.is_empty() && lens.masks.is_empty();
                if derives && !identity.principal.everywhere && !whole {
                    let detail =
                        format!("\"{name}\" has filters or masks for you; what is derived from it would not");
                    return Err(SqlError::new(FORBIDDEN, detail));
                }
            }
        }
        Ok(())
    }

    /// Whether somebody may look into every reference table: only who may read everything.
    pub fn may_look_up(&self, identity: &Identity) -> bool {
        self.allows(identity, Asked::node("read"))
    }

    /// What somebody sees of a relation: their tenant's rows, those that the filters let through, and masks
    /// where they have no permission to see more.
    pub fn lens(&self, identity: &Identity, kind: &str, name: &StreamName) -> Lens {
        let catalog = self.catalog();
        let principal = &identity.principal;
        let asker = Asker { user: &principal.name, tenant: &principal.tenant };
        let mut lens = Lens::default();
        let shared = is_shared(&catalog, name);
        if let Some(entry) = catalog.streams.get(name) {
            let tenant = entry.schema.options.tenant.as_ref().filter(|_| !principal.everywhere);
            let tenant = tenant.filter(|_| !planted::bug("no_tenant_predicate"));
            lens.filters.extend(tenant.map(|column| of_tenant(column, &principal.tenant)));
        }
        for entry in catalog.rules_of(name) {
            match &entry.rule {
                Rule::RowFilter { using } if !principal.everywhere => lens.filters.push(asker.of(using)),
                Rule::RowFilter { .. } | Rule::Policy { .. } => {}
                Rule::ColumnMask { column, using, unless } => {
                    let asked = |permission| Asked::on(permission, kind, name.as_str()).shared(shared);
                    if !unless.as_deref().is_some_and(|permission| self.allows(identity, asked(permission))) {
                        lens.masks.push((column.clone(), asker.of(using)));
                    }
                }
            }
        }
        lens.revealed = self.allows(identity, Asked::on("reveal", kind, name.as_str()).shared(shared));
        lens
    }

    /// Some rows of a table as somebody sees them.
    pub fn rows_as_seen(
        &self,
        program: &TableProgram,
        rows: Vec<RecordBatch>,
        lens: &Lens,
    ) -> Result<Arc<dyn TableProvider>, SqlError> {
        rows_relation(&self.engine, program.schema().clone(), rows, program.sensitive(), lens)
    }

    /// Asks a question of the engine's own.
    pub async fn ask_engine(
        self: &Arc<Self>,
        sql: String,
        values: Vec<(String, ScalarValue)>,
    ) -> Result<QueryResult, SqlError> {
        let (node, relations) = (self.clone(), Arc::new(NodeRelations::for_engine(self.clone())));
        self.ask(async move { adhoc::query(&node.engine, relations, &sql, values, QUERY_LIMITS).await }).await
    }

    /// A stream as a relation: lake and log at once, or the lake alone at an earlier moment.
    pub async fn stream_at(
        &self,
        schema: &StreamSchema,
        moment: Moment,
        lens: Lens,
    ) -> Result<Arc<dyn TableProvider>, SqlError> {
        self.stream_snapshot(schema, moment).await?.relation(&self.engine, schema, None, lens)
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
        let index = match (moment, &files) {
            (Moment::Now, Some(_)) => self.index_below(&schema.name, &marks),
            _ => None,
        };
        let now = self.machine.clock.now_micros();
        // Index and files let rows go at different times.
        let oldest = schema.options.retention.filter(|_| index.is_some());
        let oldest = oldest.map(|retention| (now - retention).div_euclid(MINUTE) * MINUTE);
        let trail = schema.name.as_str() == AUDIT;
        let start = if trail { self.tree.pruned() } else { 0 };
        Ok(StreamSnapshot { files, index, hot, start, oldest })
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
                let batches = self.log.read(&at, next, READ_ROWS).map_err(unreadable)?;
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
    /// An index over their rows.
    pub index: Option<Arc<dyn RowIndex>>,
    /// Rows of the log that are not in them.
    pub hot: Vec<RecordBatch>,
    /// Rows before it are past their retention, though a file may still hold some of them.
    pub start: Offset,
    /// Rows that were recorded before it are past their retention, microseconds UTC.
    pub oldest: Option<i64>,
}

impl StreamSnapshot {
    /// What is seen of the rows, without those past their retention.
    pub fn lens(&self, mut lens: Lens) -> Lens {
        if self.start > 0 {
            lens.filters.push(format!("{} >= {}", columns::OFFSET, self.start));
        }
        lens
    }

    /// The rows of a day, or all, as readers see them.
    pub fn relation(
        self,
        engine: &Engine,
        schema: &StreamSchema,
        day: Option<&Day>,
        lens: Lens,
    ) -> Result<Arc<dyn TableProvider>, SqlError> {
        let lens = self.lens(lens);
        let lake = self.files.map(|files| files.relation());
        stream_relation(
            engine,
            schema,
            StreamRows {
                lake,
                index: self.index,
                hot: self.hot,
                oldest: self.oldest,
                day,
                beside: None,
                lens,
            },
        )
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
