//! Whole nodes on a simulated machine. Clients send, repeat and contradict themselves; clocks jump, disks and
//! stores fail, the power goes or the process is killed, and all of it in an order that one seed decides.
//! Afterwards what was acked is there, once; and everything derived equals what is derived anew, in one go,
//! from the log. `HIGHWATER_SEED` and `HIGHWATER_SEEDS` choose the runs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::{AsArray, Int64Array};
use arrow::datatypes::Int64Type;
use highwater_audit::leaf::records;
use highwater_audit::tree::{Frontier, leaf_hash};
use highwater_audit::view::TREE;
use highwater_audit::{AuditError, Checkpoint, Hash};
use highwater_event::{Clock, Offset, Partition, Principal, SeededRandomness, StreamName, StreamPartition};
use highwater_ingest::{Format, Outcome, Submission};
use highwater_log::view::ViewState;
use highwater_log::{Log, Machine, audit};
use highwater_sim::{Fault, SimClock, SimDisk, SimScheduler, SimStore, setting};
use highwater_sql::SqlError;

use super::{DeclareError, Node, NodeOptions, Script, lock};

const STREAMS: &str = "
CREATE STREAM readings (id TEXT, k TEXT, n INT, at TIMESTAMP) WITH (event_id = 'id', event_time = 'at', partitions = 2, idle_timeout = '3s');
CREATE STREAM answers (id TEXT, k TEXT, n INT, at TIMESTAMP) WITH (event_id = 'id', event_time = 'at', idle_timeout = '2s');
";

/// What is derived, by name; with `{}` in place of a suffix, so that it can be derived twice.
const DERIVED: [(&str, &str); 8] = [
    ("large", "CREATE STREAM large{} AS SELECT id, k, n * 2 AS twice, at FROM readings WHERE n % 3 = 0;"),
    ("most", "CREATE TABLE most{} AS SELECT k, max(twice) AS most, count(*) AS c FROM large{} GROUP BY k;"),
    (
        "totals",
        "CREATE TABLE totals{} AS SELECT k, count(*) AS c, sum(n) AS s, count(DISTINCT n) AS d FROM readings GROUP BY k;",
    ),
    (
        "closed",
        "CREATE TABLE closed{} AS SELECT k, count(*) AS c FROM readings WINDOW TUMBLING (SIZE 5 SECONDS, GRACE PERIOD 2 SECONDS) GROUP BY k EMIT FINAL;",
    ),
    (
        "stays",
        "CREATE TABLE stays{} AS SELECT k, count(*) AS c FROM answers WINDOW SESSION (2 SECONDS, GRACE PERIOD 1 SECOND) GROUP BY k EMIT FINAL;",
    ),
    (
        "known",
        "CREATE STREAM known{} AS SELECT r.id, r.n, t.c FROM answers r LEFT JOIN totals{} t ON r.k = t.k;",
    ),
    (
        "pairs",
        "CREATE STREAM pairs{} AS SELECT r.id, r.n, a.n AS answer FROM readings r JOIN answers a WITHIN 3 SECONDS GRACE PERIOD 1 SECOND ON r.k = a.k;",
    ),
    (
        "waited",
        "CREATE STREAM waited{} AS SELECT r.id, r.n, a.n AS answer FROM readings r LEFT JOIN answers a WITHIN 2 SECONDS GRACE PERIOD 1 SECOND ON r.k = a.k;",
    ),
];

/// What is derived once more, for operators to act upon.
const ACTED_UPON: [&str; 3] = ["large", "totals", "pairs"];

/// What they do in between. At the end these are put back to what [`DERIVED`] says.
const ACTS: [&str; 7] = [
    "CREATE OR REPLACE TABLE totals_acted AS SELECT k, count(*) AS c, sum(n) AS s, count(DISTINCT n) AS d, max(n) AS m FROM readings GROUP BY k;",
    "CREATE OR REPLACE TABLE totals_acted AS SELECT k, count(*) AS c, sum(n) AS s, count(DISTINCT n) AS d FROM readings GROUP BY k;",
    "CREATE OR REPLACE STREAM large_acted AS SELECT id, k, n * 2 AS twice, at FROM readings WHERE n % 5 = 0;",
    "PAUSE totals_acted;",
    "PAUSE pairs_acted; RESUME totals_acted;",
    "RESUME pairs_acted;",
    "ALTER STREAM readings ADD COLUMN more TEXT;",
];

/// Lives in which something goes wrong, before the last one.
const LIVES: u64 = 4;
const SECOND: i64 = 1_000_000;
/// By how much clocks are set wrong: a bit, for summer time, by a day, into the next century
/// and back, and not at all.
const JUMPS: [i64; 10] = [
    0,
    0,
    SECOND,
    -SECOND,
    30 * SECOND,
    3600 * SECOND,
    -3600 * SECOND,
    -86_400 * SECOND,
    75 * 365 * 86_400 * SECOND,
    -75 * 365 * 86_400 * SECOND,
];

fn derived(suffix: &str, which: impl Fn(&str) -> bool) -> String {
    let texts = DERIVED.iter().filter(|(name, _)| which(name)).map(|(_, text)| text.replace("{}", suffix));
    texts.collect::<Vec<_>>().join("\n")
}

fn everything() -> String {
    [STREAMS, &derived("", |_| true), &derived("_acted", |name| ACTED_UPON.contains(&name))].join("\n")
}

/// What survives a life, and what its clients remember.
struct World {
    chance: Arc<SeededRandomness>,
    disk: SimDisk,
    store: SimStore,
    now: i64,
    folder: PathBuf,
    memory: Arc<Mutex<Memory>>,
    traces: Vec<u64>,
}

/// What clients were told.
#[derive(Default)]
struct Memory {
    /// Payloads with which an id was ever sent.
    sent: BTreeMap<(String, String), BTreeSet<i64>>,
    /// Events that somebody was told to have sent first.
    accepted: BTreeSet<(String, String)>,
    /// Where events stand that are there.
    acked: BTreeMap<(String, String), (Partition, Offset, i64)>,
    duplicates: u64,
    conflicts: u64,
    refused: u64,
    /// Checkpoints of the audit tree that somebody has kept elsewhere.
    checkpoints: Vec<Checkpoint>,
    /// What operators were told is done.
    acts: u64,
    /// What is paused and what is not, as far as that is known.
    paused: BTreeMap<String, bool>,
    /// The column is there that somebody has added.
    altered: bool,
    /// Rows of everything derived, at the end.
    answers: Vec<Vec<String>>,
}

/// A simulated machine that is switched on.
#[derive(Clone)]
struct Powered {
    clock: Arc<SimClock>,
    machine: Machine,
}

impl World {
    fn new(seed: u64, folder: PathBuf) -> Self {
        Self {
            chance: Arc::new(SeededRandomness::new(seed)),
            disk: SimDisk::new(),
            store: SimStore::new(),
            now: 1_770_000_000 * SECOND,
            folder,
            memory: Arc::default(),
            traces: Vec::new(),
        }
    }

    /// Switches the machine on for as long as `life` takes.
    fn live<F: Future<Output = ()>>(&mut self, life: impl FnOnce(Powered) -> F) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let scheduler = SimScheduler::new(self.chance.next());
        let clock = Arc::new(SimClock::new(scheduler.clone(), self.now));
        let machine = Machine {
            clock: clock.clone(),
            randomness: Arc::new(SeededRandomness::new(self.chance.next())),
            disk: Arc::new(self.disk.clone()),
            scheduler: Arc::new(scheduler.clone()),
        };
        let powered = Powered { clock: clock.clone(), machine };
        runtime.block_on(scheduler.live(life(powered)));
        self.now = clock.now_micros();
        self.traces.push(scheduler.trace());
    }

    /// The power goes, or just the process.
    fn crash(&mut self) {
        if self.disk.is_off() || self.chance.chance(0.4) {
            self.disk = self.disk.after_power_cut(self.chance.next());
        } else {
            self.disk.repair();
        }
        self.store = self.store.after_crash(&self.chance);
        // It is off for a while, and on waking the clock may be wrong.
        self.now += JUMPS[self.chance.below(JUMPS.len() as u64) as usize];
    }
}

async fn open(
    powered: &Powered,
    store: &SimStore,
    disk: &SimDisk,
    folder: &std::path::Path,
) -> Option<Arc<Node>> {
    let mut options = NodeOptions::at(folder);
    options.lake = false;
    // Small, so that states are evicted and read back, and often, so that crashes come in between.
    options.table_memory = 4096;
    options.write_back_every = Duration::from_millis(20);
    options.segment_bytes = 64 << 10;
    let machine = powered.machine.clone();
    let opened = Node::open_on(
        machine.clone(),
        machine,
        Arc::new(store.clone()),
        tokio::runtime::Handle::current(),
        options,
    );
    match opened.await {
        Ok(node) => Some(node),
        Err(error) => {
            assert!(disk.has_failed(), "a node does not start on a disk that works: {error:#}");
            None
        }
    }
}

/// Declares something; false when the log does not take it any more.
async fn declare(node: &Arc<Node>, text: &str) -> Result<bool, SqlError> {
    let script = Script { text: text.to_owned(), files: BTreeMap::new() };
    match node.declare(&script, &node.leaf(&Principal::operator(), "declare", "node"), false).await {
        Ok(_) => Ok(true),
        Err(DeclareError::Sql { error, .. }) => Err(error),
        Err(_) => Ok(false),
    }
}

async fn declared(node: &Arc<Node>, text: &str) -> bool {
    declare(node, text).await.unwrap_or_else(|error| panic!("{text}: {}", error.message))
}

/// Sends to one stream, now new events, now old ones again, now others under their ids.
async fn client(
    node: Arc<Node>,
    powered: Powered,
    chance: SeededRandomness,
    stream: &'static str,
    memory: Arc<Mutex<Memory>>,
) {
    loop {
        powered.machine.scheduler.sleep(Duration::from_micros(chance.below(400_000))).await;
        let mut sent = Vec::new();
        let mut body = String::new();
        for _ in 0..1 + chance.below(6) {
            if chance.chance(0.03) {
                body.push_str("{\"id\": 7, \"n\": \"many\"}\n");
                sent.push(None);
                continue;
            }
            let (id, n) = (format!("e{}", chance.below(900)), chance.below(40) as i64);
            let mut memory = lock(&memory);
            let known = memory.sent.entry((stream.to_owned(), id.clone())).or_default();
            let n = match known.first() {
                Some(first) if !chance.chance(0.1) => *first,
                _ => n,
            };
            known.insert(n);
            // What an event says follows from its id and number, be it sent again in another life.
            let number: i64 = id[1..].parse().unwrap_or(0);
            let at = 1_770_000_000 + number / 12 + (number * 7 + n) % 5;
            let at = highwater_event::time::show_micros(at * SECOND);
            // Some bodies are large enough to be decoded beside the door.
            let padding = " ".repeat(if chance.chance(0.02) { 20_000 } else { 0 });
            let k = number % 7;
            body.push_str(&format!(
                "{{\"id\":\"{id}\",\"k\":\"k{k}\",\"n\":{n},\"at\":\"{at}\"}}{padding}\n"
            ));
            sent.push(Some((id, n)));
        }
        let submission = Submission {
            stream: StreamName::new(stream).unwrap(),
            body: body.into(),
            format: Format::NdJson,
            principal: Principal::operator(),
            leaf: Some(Box::new(node.entry(&Principal::operator(), "ingest", format!("stream:{stream}")))),
            beside: Vec::new(),
        };
        let Ok(verdicts) = node.door.submit(submission).await else {
            lock(&memory).refused += 1;
            powered.machine.scheduler.sleep(Duration::from_millis(chance.below(500))).await;
            continue;
        };
        assert_eq!(verdicts.len(), sent.len());
        let mut memory = lock(&memory);
        for (verdict, sent) in verdicts.into_iter().zip(sent) {
            let Some((id, n)) = sent else {
                assert!(matches!(verdict.outcome, Outcome::Rejected(_)), "{verdict:?}");
                continue;
            };
            memory.hear(stream, id, n, verdict.outcome);
        }
    }
}

impl Memory {
    /// Takes in what became of an act.
    fn hear_of(&mut self, act: &str, done: Result<bool, SqlError>) {
        // What does not fit changes nothing.
        let Ok(taken) = done else { return };
        self.acts += u64::from(taken);
        self.altered |= taken && act.starts_with("ALTER");
        for statement in act.split("; ") {
            let (verb, name) = statement.trim_end_matches(';').split_once(' ').unwrap();
            if !["PAUSE", "RESUME"].contains(&verb) {
                continue;
            }
            // Without an answer nobody knows.
            match taken {
                true => self.paused.insert(name.into(), verb == "PAUSE"),
                false => self.paused.remove(name),
            };
        }
    }

    /// What operators were told is done is so after the next start.
    fn acts_hold(&self, node: &Arc<Node>) {
        let catalog = node.catalog();
        for (name, paused) in &self.paused {
            let name = StreamName::new(name).unwrap();
            assert_eq!(catalog.paused.contains(&name), *paused, "{name}: is it paused?");
        }
        let readings = catalog.streams.get(&StreamName::new("readings").unwrap());
        let more = readings.is_some_and(|readings| readings.schema.column("more").is_some());
        assert!(more || !self.altered, "the column that was added is not there");
    }

    fn hear(&mut self, stream: &str, id: String, n: i64, outcome: Outcome) {
        let key = (stream.to_owned(), id);
        let known = self.acked.get(&key).copied();
        match outcome {
            Outcome::Accepted { partition, offset } => {
                let place = (partition, offset, n);
                // Another client may have heard before that it is there.
                assert_eq!(known.unwrap_or(place), place, "{key:?} is accepted anew");
                assert!(self.accepted.insert(key.clone()), "{key:?} is accepted twice");
                self.acked.insert(key, place);
            }
            Outcome::Duplicate { partition, offset } => {
                // That it is there is an ack, too.
                let place = (partition, offset, n);
                assert_eq!(known.unwrap_or(place), place, "{key:?} is a duplicate of something else");
                self.acked.insert(key, place);
                self.duplicates += 1;
            }
            Outcome::Conflict { partition, offset } => {
                assert!(self.sent[&key].len() > 1, "{key:?} contradicts nothing");
                if let Some((at, there, first)) = known {
                    assert_eq!((at, there), (partition, offset));
                    assert_ne!(first, n, "{key:?} contradicts itself");
                }
                self.conflicts += 1;
            }
            // The clock was set back.
            Outcome::Rejected(error) => assert_eq!(error.code, "time_in_future", "{key:?}: {error:?}"),
        }
    }
}

/// One life in which something goes wrong.
async fn suffer(
    powered: Powered,
    chance: SeededRandomness,
    (disk, store): (SimDisk, SimStore),
    memory: Arc<Mutex<Memory>>,
    folder: PathBuf,
) {
    // The power may go at any of its operations, be it while the node starts.
    let first = disk.operations() + chance.below(if chance.chance(0.2) { 30 } else { 5_000 });
    let faults = [Fault::PowerCut, Fault::PowerCut, Fault::Fails, Fault::Tears, Fault::Full];
    disk.fault_at(first, faults[chance.below(faults.len() as u64) as usize]);
    disk.fault_at(first + 1 + chance.below(200), Fault::PowerCut);
    let Some(node) = open(&powered, &store, &disk, &folder).await else { return };
    lock(&memory).acts_hold(&node);
    if node.catalog().tables.is_empty() && !declared(&node, &everything()).await {
        return;
    }
    for (number, stream) in ["readings", "readings", "readings", "answers", "answers"].into_iter().enumerate()
    {
        let chance = SeededRandomness::new(chance.next() ^ number as u64);
        let client = client(node.clone(), powered.clone(), chance, stream, memory.clone());
        powered.machine.scheduler.spawn(client);
    }
    for _ in 0..1 + chance.below(40) {
        powered.machine.scheduler.sleep(Duration::from_micros(chance.below(2_000_000))).await;
        if node.journal.poisoned().borrow().is_some() {
            // The process ends when nobody can say what its disk holds.
            return;
        }
        no_view_has_failed(&node);
        keep_checkpoint(&node, &memory);
        match chance.below(9) {
            0 => powered.clock.jump(JUMPS[chance.below(JUMPS.len() as u64) as usize]),
            1 => store.fail(true),
            2 | 3 => store.fail(false),
            4 => disk.free(),
            // Derived anew while entries come.
            6 => {
                let node = node.clone();
                powered.machine.scheduler.spawn(Box::pin(async move {
                    // Without an answer the life is over.
                    drop(node.driver.rebuild(TREE).await);
                }));
            }
            // One that does not fit, after the others before it, changes nothing.
            5 => {
                let act = ACTS[chance.below(ACTS.len() as u64) as usize];
                let done = declare(&node, act).await;
                lock(&memory).hear_of(act, done);
            }
            _ => {}
        }
    }
    store.fail(false);
    if chance.chance(0.2) {
        node.close().await;
    }
}

/// Views wait until what fails works again; only a log that is gone sets them aside.
fn no_view_has_failed(node: &Arc<Node>) {
    let failed = node.driver.statuses().into_iter().find(|status| status.state == ViewState::Failed);
    // The log may have gone in between.
    if let Some(failed) = failed.filter(|_| node.journal.poisoned().borrow().is_none()) {
        panic!("{} has failed: {:?}", failed.name, failed.last_error);
    }
}

/// Somebody from outside takes the newest checkpoint and keeps it.
fn keep_checkpoint(node: &Node, memory: &Mutex<Memory>) {
    match node.tree.checkpoint() {
        Ok(note) => lock(memory).checkpoints.push(Checkpoint::parse(&note.text).unwrap()),
        // Its store fails, or it is built anew.
        Err(AuditError::Store(_) | AuditError::Missing(_)) => {}
        Err(error) => panic!("what was signed is not there any more: {error}"),
    }
}

/// The entries in the log are those of every checkpoint that was ever handed out, the tree is the one over them,
/// and nothing that clients did stands there without an entry.
fn trail_holds(node: &Node, memory: &Memory) {
    let audit = audit::partition();
    let kept: BTreeMap<u64, Vec<Hash>> =
        memory.checkpoints.iter().fold(BTreeMap::new(), |mut kept: BTreeMap<u64, Vec<Hash>>, checkpoint| {
            kept.entry(checkpoint.size).or_default().push(checkpoint.root);
            kept
        });
    let (mut frontier, mut next, mut commits) = (Frontier::default(), 0, BTreeSet::new());
    let mut compared = 0;
    while next < node.journal.end(&audit) {
        for batch in node.journal.read(&audit, next, 1000).unwrap() {
            commits.insert(batch.recorded_at);
            for record in records(&batch.rows).unwrap() {
                for root in kept.get(&frontier.size()).into_iter().flatten() {
                    assert_eq!(frontier.root(), *root, "a fork at {} entries", frontier.size());
                    compared += 1;
                }
                frontier.push(leaf_hash(&record.commitment()));
            }
            next = batch.end();
        }
    }
    for root in kept.get(&frontier.size()).into_iter().flatten() {
        assert_eq!(frontier.root(), *root, "a fork at the end");
        compared += 1;
    }
    assert_eq!(compared, memory.checkpoints.len(), "entries are gone that were in a checkpoint");
    let signed = Checkpoint::parse(&node.tree.checkpoint().unwrap().text).unwrap();
    assert_eq!(
        (signed.size, signed.root),
        (frontier.size(), frontier.root()),
        "the tree is over all entries"
    );
    for stream in ["readings", "answers"] {
        let name = StreamName::new(stream).unwrap();
        for partition in node.journal.partitions(&name) {
            let at = StreamPartition::new(name.clone(), partition);
            for batch in node.journal.read(&at, 0, usize::MAX).unwrap() {
                assert!(
                    commits.contains(&batch.recorded_at),
                    "{at}: an effect without an entry in its commit"
                );
            }
        }
    }
}

/// Rows that a question answers, one JSON object each.
async fn ask(node: &Arc<Node>, sql: String) -> Vec<String> {
    let answered = node.ask_engine(sql.clone(), Vec::new()).await;
    let answer = answered.unwrap_or_else(|error| panic!("{sql}: {}", error.message));
    assert!(!answer.truncated);
    let names = answer.names();
    let mut rows = String::new();
    for batch in &answer.batches {
        highwater_event::json::rows_as_json(batch, &names, rows.is_empty(), "\n", &mut rows);
    }
    let mut rows: Vec<serde_json::Map<String, serde_json::Value>> =
        rows.lines().map(|row| serde_json::from_str(row).unwrap()).collect();
    // When a row was derived is not the same when it is derived anew.
    for when in ["_recorded_at", "last_updated_at"] {
        rows.iter_mut().for_each(|row| drop(row.remove(when)));
    }
    rows.into_iter().map(|row| serde_json::Value::from(row).to_string()).collect()
}

/// Waits until every view has come to the end of the log, and nothing changes any more.
async fn settle(node: &Arc<Node>, powered: &Powered) {
    let mut quiet = 0;
    for _ in 0..2_000 {
        powered.machine.scheduler.sleep(Duration::from_millis(500)).await;
        no_view_has_failed(node);
        let statuses = node.driver.statuses();
        quiet = if statuses.iter().all(|status| status.lag == 0) { quiet + 1 } else { 0 };
        if quiet > 120 {
            return;
        }
    }
    panic!("the views do not come to rest: {:?}", node.driver.statuses());
}

/// The last life: nothing goes wrong any more, and all is compared.
async fn check(
    powered: Powered,
    store: SimStore,
    disk: SimDisk,
    memory: Arc<Mutex<Memory>>,
    folder: PathBuf,
) {
    let Some(node) = open(&powered, &store, &disk, &folder).await else { return };
    assert!(node.journal.damage().is_empty(), "{:?}", node.journal.damage());
    lock(&memory).acts_hold(&node);
    if node.catalog().tables.is_empty() {
        assert!(declared(&node, &everything()).await);
    }
    assert!(declared(&node, "RESUME totals_acted; RESUME pairs_acted;").await);
    let as_before =
        derived("_acted", |name| ACTED_UPON.contains(&name)).replace("CREATE", "CREATE OR REPLACE");
    for text in as_before.lines() {
        assert!(declared(&node, text).await);
        settle(&node, &powered).await;
        assert!(node.catalog().building.is_empty(), "{text}: is not swapped in");
    }
    acked_is_there(&node, &lock(&memory));
    assert!(declared(&node, &derived("_anew", |_| true)).await);
    settle(&node, &powered).await;
    let mut answers = Vec::new();
    for (name, text) in DERIVED {
        let is_stream = text.starts_with("CREATE STREAM");
        let order = if is_stream { " ORDER BY _partition, _offset" } else { "" };
        let mut of = async |suffix: &str| {
            let mut rows = ask(&node, format!("SELECT * FROM {name}{suffix}{order}")).await;
            if !is_stream {
                rows.sort();
            }
            answers.push(rows.clone());
            rows
        };
        let anew = of("_anew").await;
        same(name, &of("").await, &anew);
        if ACTED_UPON.contains(&name) {
            same(name, &of("_acted").await, &anew);
        }
    }
    lock(&memory).answers = answers;
    trail_holds(&node, &lock(&memory));
    let batch =
        "SELECT k, count(*) AS c, sum(n) AS s, count(DISTINCT n) AS d FROM readings GROUP BY k ORDER BY k";
    let kept = "SELECT k, c, s, d FROM totals ORDER BY k";
    same("totals, asked of the log", &ask(&node, kept.into()).await, &ask(&node, batch.into()).await);
    for status in node.driver.statuses().iter().filter(|status| status.name.ends_with("_anew")) {
        let applied = status.applied;
        let out = applied.out + applied.filtered + applied.late + applied.dead;
        assert_eq!(applied.taken, out, "{}: {applied:?}", status.name);
    }
}

fn same(what: &str, kept: &[String], anew: &[String]) {
    let differs = kept.iter().zip(anew).position(|(kept, anew)| kept != anew);
    let at = differs.unwrap_or(kept.len().min(anew.len()));
    let (kept, anew) = ((kept.len(), kept.get(at)), (anew.len(), anew.get(at)));
    assert_eq!(kept, anew, "{what}: rows, and the first that is not the same, kept and derived anew");
}

/// Everything that was acked is in the log where it was said to be, no id twice, and nothing that was not sent.
fn acked_is_there(node: &Arc<Node>, memory: &Memory) {
    for stream in ["readings", "answers"] {
        let name = StreamName::new(stream).unwrap();
        let mut found = BTreeMap::new();
        for partition in node.journal.partitions(&name) {
            let at = StreamPartition::new(name.clone(), partition);
            let (mut next, mut recorded) = (0, i64::MIN);
            while next < node.journal.end(&at) {
                for batch in node.journal.read(&at, next, 100).unwrap() {
                    assert!(batch.recorded_at > recorded, "{at}: time goes back in the log");
                    recorded = batch.recorded_at;
                    let ids = batch.rows.column_by_name("id").unwrap().as_string::<i32>().clone();
                    let n = arrow::compute::cast(
                        batch.rows.column_by_name("n").unwrap(),
                        &arrow::datatypes::DataType::Int64,
                    );
                    let n: Int64Array = n.unwrap().as_primitive::<Int64Type>().clone();
                    for row in 0..batch.rows.num_rows() {
                        let key = (stream.to_owned(), ids.value(row).to_owned());
                        assert!(memory.sent[&key].contains(&n.value(row)), "{key:?} was never sent so");
                        let place = (partition, batch.base + row as Offset, n.value(row));
                        assert_eq!(found.insert(key.clone(), place), None, "{key:?} is there twice");
                    }
                    next = batch.end();
                }
            }
        }
        for (key, place) in memory.acked.iter().filter(|((of, _), _)| of == stream) {
            assert_eq!(found.get(key), Some(place), "{key:?} was acked");
        }
    }
}

/// Which way it went, everything that is derived in the end, and what clients were told.
type Story = (Vec<u64>, Vec<Vec<String>>, [u64; 5]);

/// Lives through everything that a seed has in store.
fn live_through(seed: u64) -> Story {
    let folder = tempfile::tempdir().unwrap();
    let mut world = World::new(seed, folder.path().to_owned());
    for _ in 0..LIVES {
        let (disk, store, memory) = (world.disk.clone(), world.store.clone(), world.memory.clone());
        let (chance, folder) = (SeededRandomness::new(world.chance.next()), world.folder.clone());
        world.live(|powered| suffer(powered, chance, (disk, store), memory, folder));
        world.crash();
    }
    let (disk, store, memory) = (world.disk.clone(), world.store.clone(), world.memory.clone());
    let folder = world.folder.clone();
    world.live(|powered| check(powered, store, disk, memory, folder));
    let memory = lock(&world.memory);
    let told = [memory.acked.len() as u64, memory.duplicates, memory.conflicts, memory.refused, memory.acts];
    (world.traces.clone(), memory.answers.clone(), told)
}

#[test]
fn whole_nodes_live_through_everything() {
    let (first, count) = (setting("HIGHWATER_SEED", 1), setting("HIGHWATER_SEEDS", 10));
    println!("seeds {first} to {}", first + count - 1);
    let mut told = [0; 5];
    for seed in first..first + count {
        let outcome = std::panic::catch_unwind(|| live_through(seed));
        let Ok((_, _, of_seed)) = outcome else { panic!("seed {seed}: see above") };
        println!("seed {seed}: acked, duplicates, conflicts, refused calls, acts: {of_seed:?}");
        told.iter_mut().zip(of_seed).for_each(|(sum, of_seed)| *sum += of_seed);
    }
    assert!(told.iter().all(|told| *told > 0) || count < 10, "nothing of the kind ever happened: {told:?}");
}

#[test]
fn a_seed_decides_everything() {
    assert_eq!(live_through(7), live_through(7));
}
