//! A node: one data folder with everything that runs over it.
//!
//! ```text
//! <data>/log/            the journal, the truth
//! <data>/warehouse/      tables, dedupe index and marks (derived)
//! <data>/lake/           Delta tables (derived)
//! <data>/search/         search indexes of streams (derived)
//! <data>/operator.token  the operator's token, mode 0600
//! <data>/token.key       the secret behind TOKENIZE, mode 0600
//! <data>/audit.key       signs checkpoints of the audit tree, mode 0600
//! <data>/access.key      signs access tokens, mode 0600
//! <data>/audit.checkpoint  the newest checkpoint that was signed
//! <data>/audit.witnessed   the newest one that witnesses have signed, too
//! <data>/keys/           data keys of tenants and the master key that wraps them, mode 0600
//! <data>/tls/            a certificate of the node's own and its key, unless it was given one
//! <data>/server.json     where the running node listens
//! ```

mod compare;
mod counts;
mod declare;
mod idle;
mod information;
pub mod jobs;
mod keep;
mod keys;
mod letters;
mod live;
pub mod models;
pub mod offline;
mod people;
mod publish;
pub mod redaction;
mod relations;
mod remembered;
mod search;
mod secrets;
#[cfg(test)]
mod simulation;
mod snapshots;
mod statement;
mod system;
mod tiered;
mod trail;
mod turns;
mod views;
pub mod written;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use highwater_audit::{EventSealer, Tree};
use highwater_auth::{AccessTokens, Limiter, Policies};
use highwater_event::{StreamName, planted};
use highwater_ingest::{Door, DoorOptions};
use highwater_lake::LakeStream;
use highwater_log::fold::Program;
use highwater_log::idle::IdleTimes;
use highwater_log::keyed::{KeyedStore, StoreError, WriteBack};
use highwater_log::machine::{Running, Task, Threads};
use highwater_log::view::Driver;
use highwater_log::{Journal, JournalOptions, Log, Machine};
use highwater_privacy::Vault;
use highwater_search::SearchIndex;
use highwater_sql::adhoc::Limits;
use highwater_sql::stream::{TableProgram, TableRows};
use highwater_sql::{Catalog, Engine, SqlError};
use highwater_warehouse::FjallStore;

pub use counts::Condition;
pub use declare::{DeclareError, Script};
pub use information::as_question;
pub use letters::{RESOLUTIONS, Resolution, Resolved};
pub use live::{Update, follow};
pub use people::{
    ChangeError, FIRST_ADMINISTRATOR, FORBIDDEN, Known, People, ProviderOptions, needs, network,
};
pub use publish::{Destination, PublishOptions};
pub use relations::{Fixed, NodeRelations, Reader, StreamSnapshot, is_shared, unreadable};
pub use remembered::Remembered;
pub use secrets::{replace, replace_secret};
pub use system::{EVENTS, SYSTEM};
pub use trail::{Leaf, Trail};
pub use turns::{Turn, Turns};

/// How a node is run.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// Its data folder.
    pub data: PathBuf,
    /// Whether streams and tables are written to a lake.
    pub lake: bool,
    /// How long rows may wait before they are.
    pub lake_wait: Duration,
    /// How often changed tables are written to the lake as snapshots.
    pub snapshot_every: Duration,
    /// How often tables and the dedupe index are written back.
    pub write_back_every: Duration,
    /// How often small files of the lake are written together and old segments let go.
    pub keep_every: Duration,
    /// How long the log keeps events that the lake has too.
    pub log_retention: Duration,
    /// Bytes that all ad-hoc queries together may hold.
    pub query_memory: usize,
    /// Bytes of clean states that one table keeps in memory.
    pub table_memory: usize,
    /// Bytes of a segment of the log.
    pub segment_bytes: u64,
    /// How often the audit tree is signed when it has grown.
    pub checkpoint_every: Duration,
    /// How often others are told of the newest checkpoint.
    pub publish_every: Duration,
    /// Who they are.
    pub publish: PublishOptions,
    /// How long entries of the audit trail are kept; their hashes stay. For ever when nothing is said.
    pub audit_retention: Option<Duration>,
    /// An answer is kept back when its entry of the audit trail can't be written.
    pub audit_required: bool,
    /// Whoever finds the page may sign up, as a client or developer who sees nothing but what is theirs.
    pub sign_up: bool,
    /// How long somebody stays signed in without a refresh.
    pub session: Duration,
    /// Where people sign in beside here.
    pub provider: Option<ProviderOptions>,
    /// Calls that one address may make in a minute; any number when nothing is said.
    pub address_limit: Option<u32>,
    /// Proxies whose word about a caller's address is believed.
    pub trusted_proxies: Vec<std::net::IpAddr>,
    /// The file of the master key, when it does not lie in the data folder.
    pub master_key: Option<PathBuf>,
}

impl NodeOptions {
    /// Sensible values for a folder.
    pub fn at(data: impl Into<PathBuf>) -> Self {
        Self {
            data: data.into(),
            lake: true,
            lake_wait: Duration::from_secs(5),
            snapshot_every: Duration::from_secs(60),
            write_back_every: planted::interval(Duration::from_secs(1)),
            keep_every: Duration::from_secs(60),
            log_retention: Duration::from_secs(7 * 24 * 3600),
            query_memory: 1 << 30,
            table_memory: 64 << 20,
            segment_bytes: 64 << 20,
            checkpoint_every: Duration::from_secs(1),
            publish_every: Duration::from_secs(60),
            publish: PublishOptions::default(),
            audit_retention: None,
            audit_required: true,
            sign_up: true,
            session: Duration::from_secs(3600),
            provider: None,
            address_limit: None,
            trusted_proxies: Vec::new(),
            master_key: None,
        }
    }
}

/// Limits of one ad-hoc query or endpoint.
pub const QUERY_LIMITS: Limits = Limits { time: Duration::from_secs(30), rows: 100_000, bytes: 256 << 20 };

/// A running node.
pub struct Node {
    pub options: NodeOptions,
    pub machine: Machine,
    pub journal: Arc<Journal>,
    /// Encrypts what is SENSITIVE.
    pub vault: Arc<Vault>,
    pub door: Door,
    pub engine: Engine,
    pub driver: Driver,
    pub operator_token: String,
    pub write_back: Arc<WriteBack>,
    /// Users, keys and policies.
    pub people: People,
    /// What callers did during the last minute.
    pub limiter: Limiter,
    /// Sign-ins that failed, and calls without a credential.
    pub sign_ins: Limiter,
    /// Takes entries of the audit trail.
    pub trail: Trail,
    /// The tree over them.
    pub tree: Arc<Tree>,
    /// Finds the way from an event to its seal.
    pub sealer: Arc<EventSealer>,
    /// Answers that may be given again for a moment.
    pub remembered: remembered::Answers,
    /// Counts what was put in force, so that no answer from before is given after it.
    pub generation: AtomicU64,
    /// Files that are streamed.
    pub files: Turns,
    /// Proofs of events, each of which reads all events of a commit.
    pub proofs: Turns,
    /// Why the node must stop, when its keyed store has.
    pub failed: tokio::sync::watch::Sender<Option<String>>,
    queries: tokio::runtime::Handle,
    log: Arc<dyn Log>,
    /// How long partitions have been waiting for rows.
    idle: Arc<IdleTimes>,
    catalog: RwLock<Arc<Catalog>>,
    /// Housekeeping or a backup: one at a time.
    keeping: tokio::sync::Mutex<()>,
    /// Tables in the lake.
    snapshots: tokio::sync::Mutex<snapshots::Snapshots>,
    /// One declaration at a time.
    declaring: tokio::sync::Mutex<()>,
    /// One dead letter at a time: each is resolved once.
    pub resolved: tokio::sync::Mutex<Resolved>,
    /// What takes long, and how far it is.
    pub jobs: jobs::Jobs,
    /// Trained models.
    pub models: models::Versions,
    /// What is remembered of tables that are written.
    writers: written::Writers,
    lakes: tiered::Lakes,
    /// Search indexes by the name that the log knows.
    indexes: RwLock<BTreeMap<StreamName, Arc<SearchIndex>>>,
    counts: counts::Counts,
    /// Tables and joins by the name of their view.
    keyed: RwLock<BTreeMap<String, Arc<views::Keyed>>>,
    started: i64,
    background: Mutex<Vec<Running>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Node {
    /// Opens a data folder, replays its declarations and starts its views on `views`.
    /// Queries run on `queries`, so that a heavy one does not hold up other calls.
    pub async fn open(
        options: NodeOptions,
        views: tokio::runtime::Handle,
        queries: tokio::runtime::Handle,
    ) -> anyhow::Result<Arc<Self>> {
        secrets::make_folder(&options.data)?;
        let machine = Machine::real();
        let for_views = Machine { scheduler: Arc::new(Threads::new(Some(views))), ..machine.clone() };
        let store = FjallStore::open(&options.data.join("warehouse"), 256 << 20).map_err(|error| {
            if error.to_string().contains("Locked") {
                return anyhow::anyhow!("another node runs on {}", options.data.display());
            }
            anyhow::Error::from(error)
        })?;
        let store = Arc::new(store);
        let node = Self::open_on(machine, for_views, store, queries, options).await?;
        node.publish_checkpoints()?;
        Ok(node)
    }

    /// The same, on any machine and any store.
    async fn open_on(
        machine: Machine,
        for_views: Machine,
        store: Arc<dyn KeyedStore>,
        queries: tokio::runtime::Handle,
        options: NodeOptions,
    ) -> anyhow::Result<Arc<Self>> {
        let vault = keys::open_vault(&options.data, options.master_key.as_deref(), &machine)?;
        let log = JournalOptions {
            segment_bytes: options.segment_bytes,
            vault: Some(vault.clone()),
            ..JournalOptions::at(options.data.join("log"))
        };
        let journal = Journal::open(log, &machine)?;
        for damage in journal.damage() {
            tracing::error!(?damage, "the log is damaged: this range is refused, the rest is served");
        }
        let journal = Arc::new(journal);
        let lakes = tiered::Lakes::default();
        let audit_keys = secrets::audit_keys(&options.data, machine.randomness.as_ref())?;
        let tree = Arc::new(trail::tree(store.clone(), journal.id(), &audit_keys)?);
        let log: Arc<dyn Log> =
            Arc::new(tiered::Tiered::new(journal.clone(), lakes.clone(), tree.clone(), queries.clone()));
        let operator_token = secrets::operator_token(&options.data, machine.randomness.as_ref())?;
        let token_key = secrets::token_key(&options.data, machine.randomness.as_ref())?;
        let engine = Engine::new(token_key, options.query_memory)?.with_vault(vault.clone());
        let sealer = Arc::new(EventSealer::new(&token_key));
        let (trail, gather) = Trail::new(log.clone());
        drop(machine.scheduler.spawn(gather));
        let access_key = secrets::access_key(&options.data, machine.randomness.as_ref())?;
        let access = AccessTokens::new(tree.origin(), &access_key)?;
        let people = People::new(Policies::new(&[])?, access, options.provider.as_ref())?;
        let node = Arc::new(Self {
            people,
            trail,
            tree,
            limiter: Limiter::default(),
            sign_ins: Limiter::default(),
            door: Door::open(log.clone(), sealer.clone(), &machine, DoorOptions::default())?,
            sealer,
            remembered: remembered::none(),
            generation: AtomicU64::new(0),
            files: Turns::new(16, 4),
            proofs: Turns::new(2, 2),
            driver: Driver::new(log.clone(), for_views),
            write_back: Arc::new(WriteBack::new(store)),
            failed: tokio::sync::watch::Sender::new(None),
            queries,
            engine,
            operator_token,
            catalog: RwLock::default(),
            keeping: tokio::sync::Mutex::new(()),
            snapshots: tokio::sync::Mutex::default(),
            declaring: tokio::sync::Mutex::new(()),
            resolved: tokio::sync::Mutex::default(),
            jobs: jobs::Jobs::default(),
            models: models::Versions::default(),
            writers: written::Writers::default(),
            lakes,
            indexes: RwLock::default(),
            counts: counts::Counts::default(),
            keyed: RwLock::default(),
            started: machine.clock.now_micros(),
            background: Mutex::default(),
            options,
            machine,
            journal,
            vault,
            idle: Arc::new(IdleTimes::new(log.clone())),
            log,
        });
        node.declare_builtin().await?;
        // Old rows of `_idle` may have to be read from the lake, which queries can't wait for.
        let idle = node.idle.clone();
        node.machine.scheduler.work(move || idle.load()).await??;
        // Statements may ask them.
        let models = node.clone();
        node.machine.scheduler.work(move || models.load_models()).await??;
        node.replay_declarations().await?;
        let limits = node.clone();
        node.machine.scheduler.work(move || limits.refill_limits()).await??;
        let jobs = node.clone();
        node.machine.scheduler.work(move || jobs.load_jobs()).await??;
        node.start_background();
        Ok(node)
    }

    /// Runs a query where it does not hold up other calls; it ends when nobody waits for it any more.
    pub async fn ask<T: Send + 'static>(
        &self,
        question: impl Future<Output = Result<T, SqlError>> + Send + 'static,
    ) -> Result<T, SqlError> {
        let mut asked = tokio::task::JoinSet::new();
        asked.spawn_on(question, &self.queries);
        let Some(answered) = asked.join_next().await else {
            return Err(SqlError::new("internal", "the question was lost"));
        };
        answered.unwrap_or_else(|error| Err(SqlError::new("internal", error.to_string())))
    }

    /// Lets something go on where queries run, after its question was answered.
    pub fn go_on(&self, rest: impl Future<Output = ()> + Send + 'static) {
        drop(self.queries.spawn(rest));
    }

    /// What is declared now.
    pub fn catalog(&self) -> Arc<Catalog> {
        self.catalog.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The log.
    pub fn log(&self) -> &Arc<dyn Log> {
        &self.log
    }

    /// Microseconds since the node was opened.
    pub fn uptime(&self) -> i64 {
        self.machine.clock.now_micros() - self.started
    }

    /// Folder of the lake.
    pub fn lake_root(&self) -> PathBuf {
        self.options.data.join("lake")
    }

    /// The lake of a stream that has one, by the name that the log knows.
    pub fn lake(&self, name: &StreamName) -> Option<Arc<LakeStream>> {
        self.lakes.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// The rows of a table.
    pub fn table(&self, name: &StreamName) -> Option<Arc<TableRows>> {
        self.rows_of(&self.catalog().tables.get(name)?.program)
    }

    fn rows_of(&self, program: &TableProgram) -> Option<Arc<TableRows>> {
        let keyed = self.keyed.read().unwrap_or_else(PoisonError::into_inner);
        keyed.get(program.name().as_ref())?.rows.clone()
    }

    fn start_background(self: &Arc<Self>) {
        let spawn = |task: Task| self.machine.scheduler.spawn(task);
        let mut background = vec![
            spawn(Box::pin(write_back(Arc::downgrade(self)))),
            spawn(Box::pin(keep::keep(Arc::downgrade(self)))),
            spawn(Box::pin(idle::watch(Arc::downgrade(self)))),
        ];
        if self.options.lake {
            background.push(spawn(Box::pin(snapshots::keep(Arc::downgrade(self)))));
        }
        lock(&self.background).extend(background);
    }

    /// Stops the views, writes back what is in memory and closes the log.
    pub async fn close(&self) {
        for task in std::mem::take(&mut *lock(&self.background)) {
            task.abort();
        }
        self.driver.stop().await;
        for index in self.door.indexes() {
            if let Err(error) = index.spill(1).and_then(|()| index.rest()) {
                tracing::error!(%error, "event ids could not be written; they are read from the log at the next start");
            }
        }
        if let Err(error) = self.write_back.flush() {
            tracing::error!(%error, "tables could not be written back; they are read from the log at the next start");
        }
    }
}

/// Lets some time go by without holding the node; `None` when it is gone.
async fn rest(node: &Weak<Node>, time: impl Fn(&NodeOptions) -> Duration) -> Option<Arc<Node>> {
    let rest = node.upgrade().map(|node| node.machine.scheduler.sleep(time(&node.options)))?;
    rest.await;
    node.upgrade()
}

/// Writes tables and event ids back until the node is gone.
async fn write_back(node: Weak<Node>) {
    while let Some(node) = rest(&node, |options| options.write_back_every).await {
        if node.door.is_broken() {
            node.failed.send_replace(Some("the door's thread has ended in a panic".into()));
        }
        let (write_back, indexes) = (node.write_back.clone(), node.door.indexes());
        let now = node.machine.scheduler.elapsed();
        let written = node.machine.scheduler.work(move || {
            indexes.iter().try_for_each(|index| index.tick(now))?;
            write_back.flush()
        });
        match written.await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, "tables could not be written back; they stay in memory");
                if let StoreError::Stopped(_) = &error {
                    node.failed.send_replace(Some(error.to_string()));
                }
            }
            Err(error) => tracing::error!(%error, "a write-back ended in a panic"),
        }
    }
}
