//! A keyed view that derives a stream, under kills, power cuts, a failing store and zombie owners: its
//! states and its stream come out as if nothing had happened. `HIGHWATER_SEED` and `HIGHWATER_SEEDS`
//! choose the runs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use async_trait::async_trait;
use highwater_event::{ManualClock, SeededRandomness, StreamName, StreamPartition};
use highwater_log::fold::{Derived, Folded, Lane, LaneMarks, Program, Refused, StateReader, States, Stored};
use highwater_log::idle::{self, Idle, IdleTimes};
use highwater_log::keyed::{KeyedStore, StoreError, WriteBack};
use highwater_log::view::{View, ViewError};
use highwater_log::{Append, Commit, Journal, JournalOptions, Log, LogBatch};
use highwater_sim::{Fault, SimDisk, SimStore, machine, setting, vault};
use highwater_warehouse::{Table, TableView};

/// Sum and count of a key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sum(i64, i64);

impl Stored for Sum {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0.to_le_bytes());
        out.extend_from_slice(&self.1.to_le_bytes());
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (a, b) = bytes.split_first_chunk()?;
        Some(Self(i64::from_le_bytes(*a), i64::from_le_bytes(b.try_into().ok()?)))
    }
    fn weight(&self) -> usize {
        16
    }
}

/// Sums numbers by their last digit, and derives a stream of (number, sum so far, event time so far), where
/// a number is its own event time. Every 97th number is late.
struct Sums {
    name: Arc<str>,
    sources: Vec<StreamName>,
    output: StreamName,
}

fn pairs() -> SchemaRef {
    let field = |name| Field::new(name, DataType::Int64, false);
    Arc::new(Schema::new(vec![field("n"), field("sum"), field("high")]))
}

fn numbers(batch: &LogBatch) -> Vec<i64> {
    batch.rows.column(0).as_primitive::<Int64Type>().values().to_vec()
}

#[async_trait]
impl Program for Sums {
    type State = Sum;
    type Prepared = Vec<(u64, i64)>;
    type Pending = Vec<(u64, [i64; 3])>;
    fn name(&self) -> &Arc<str> {
        &self.name
    }
    fn kind(&self) -> &'static str {
        "test"
    }
    fn sources(&self) -> &[StreamName] {
        &self.sources
    }
    fn output(&self) -> Option<(&StreamName, u32)> {
        Some((&self.output, 1))
    }
    fn follows_time(&self) -> bool {
        true
    }
    async fn prepare(
        &self,
        _at: &StreamPartition,
        batches: &[LogBatch],
    ) -> Result<Self::Prepared, ViewError> {
        let with_offset = |batch: &LogBatch| (batch.base..).zip(numbers(batch)).collect::<Vec<_>>();
        Ok(batches.iter().flat_map(with_offset).collect())
    }
    fn fold(
        &self,
        rows: Self::Prepared,
        lane: Lane,
        marks: &mut LaneMarks,
        states: &mut dyn States<Sum>,
    ) -> Result<Folded<Self::Pending>, StoreError> {
        let mut folded = Folded::default();
        let mut pending = Vec::new();
        let high = &mut marks.entry(lane).or_default().event_time_high;
        for (offset, number) in rows {
            *high = number.max(*high);
            if number % 97 == 0 {
                folded.late.push(Refused {
                    offset,
                    code: "late",
                    detail: String::new(),
                    row: number.to_string(),
                    sealed: false,
                    sender: None,
                    tenant: None,
                });
                continue;
            }
            let state = states.state(&[(number % 10) as u8], &Sum::default)?;
            state.0 += number;
            state.1 += 1;
            pending.push((offset, [number, state.0, *high]));
            folded.folded += 1;
        }
        folded.pending = (!pending.is_empty()).then_some(pending);
        Ok(folded)
    }
    async fn finish(&self, pending: Self::Pending) -> Result<Derived, ViewError> {
        let column =
            |at: usize| Arc::new(Int64Array::from_iter_values(pending.iter().map(|(_, row)| row[at]))) as _;
        let rows = RecordBatch::try_new(pairs(), vec![column(0), column(1), column(2)]).unwrap();
        Ok(Derived { rows: Some(rows), offsets: pending.iter().map(|row| row.0).collect(), dead: Vec::new() })
    }
    fn expired(&self, _marks: &LaneMarks) -> Option<Vec<u8>> {
        None
    }
}

fn source() -> StreamPartition {
    StreamPartition::new(StreamName::new("numbers").unwrap(), 0)
}

fn at(name: &'static str) -> StreamPartition {
    StreamPartition::new(StreamName::try_from(name.to_owned()).unwrap(), 0)
}

fn journal(disk: &SimDisk) -> Option<Arc<Journal>> {
    let options = JournalOptions {
        segment_bytes: 4000,
        tail_bytes: 1000,
        vault: Some(vault()),
        ..JournalOptions::at("/log")
    };
    Journal::open(options, &machine(disk, ManualClock::at(1))).ok().map(Arc::new)
}

struct Owner {
    view: TableView<Sums>,
    table: Arc<Table<Sum>>,
    write_back: Arc<WriteBack>,
    store: SimStore,
}

fn owner(log: &Arc<Journal>, store: &SimStore) -> Owner {
    let sums = Sums { name: "table:sums".into(), sources: vec![source().stream], output: at("sums").stream };
    let keyed: Arc<dyn KeyedStore> = Arc::new(store.clone());
    // A small cache, so that states are evicted and loaded again.
    let table = Arc::new(Table::open("table:sums".into(), keyed.clone(), 60, None).unwrap());
    let write_back = Arc::new(WriteBack::new(keyed));
    write_back.register(table.clone());
    let machine = machine(&SimDisk::new(), ManualClock::at(1));
    let idle = Arc::new(IdleTimes::new(log.clone()));
    let view =
        TableView::new(Arc::new(sums), table.clone(), write_back.clone(), log.clone(), idle, machine, 4);
    Owner { view, table, write_back, store: store.clone() }
}

/// One step of an owner: reads on from where it believes to stand. False when there is nothing to read.
async fn step(owner: &mut Owner, log: &Journal, chance: &SeededRandomness) -> Result<bool, ViewError> {
    let mark = owner.view.mark(&source()).await?;
    let batches: Vec<LogBatch> = log
        .read(&source(), mark, 1 + chance.below(40) as usize)?
        .into_iter()
        .filter_map(|batch| batch.from_offset(mark))
        .collect();
    if batches.is_empty() {
        return Ok(false);
    }
    owner.view.apply(&source(), batches).await.map(|_| true)
}

fn read(log: &Journal, at: &StreamPartition) -> Vec<RecordBatch> {
    let mut found = Vec::new();
    let mut next = 0;
    while next < log.end(at) {
        for batch in log.read(at, next, 100).unwrap() {
            let Some(batch) = batch.from_offset(next) else { continue };
            next = batch.end();
            found.push(batch.rows);
        }
    }
    found
}

#[test]
fn states_and_stream_come_out_as_if_nothing_had_happened() {
    let (first, count) = (setting("HIGHWATER_SEED", 1), setting("HIGHWATER_SEEDS", 200));
    println!("seeds {first} to {}", first + count - 1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let mut fenced = 0;
    for seed in first..first + count {
        fenced += runtime.block_on(live_through(seed));
    }
    assert!(fenced > 0 || count < 50, "no zombie was ever fenced");
}

async fn live_through(seed: u64) -> u32 {
    let chance = SeededRandomness::new(seed);
    let (mut disk, mut store) = (SimDisk::new(), SimStore::new());
    let mut fenced = 0;
    let log = journal(&disk).unwrap();
    let (mut sent, mut waits) = (0, BTreeMap::new());
    for _ in 0..30 {
        let count = 1 + chance.below(15) as i64;
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
        let rows = RecordBatch::try_new(
            schema,
            vec![Arc::new(Int64Array::from_iter_values(sent + 1..=sent + count))],
        )
        .unwrap();
        log.append(Commit { appends: vec![Append { to: source(), rows }], ..Commit::default() })
            .await
            .unwrap();
        sent += count;
        while chance.chance(0.3) {
            let micros = chance.below(20) as i64;
            let said = Idle { at: source(), offset: sent as u64, micros };
            log.append(idle::commit(&[said], 1).unwrap()).await.unwrap();
            let wait = waits.entry(sent).or_insert(0);
            *wait = micros.max(*wait);
        }
    }
    drop(log);
    disk = disk.after_power_cut(chance.next());
    for life in 0..5 {
        if life < 4 {
            disk.fault_at(disk.operations() + chance.below(50), Fault::PowerCut);
        }
        if let Some(log) = journal(&disk) {
            let mut owners = vec![owner(&log, &store)];
            for _ in 0..60 {
                if life < 4 && owners.len() == 1 && chance.chance(0.05) {
                    // A second owner, which believes to be the only one, with a store of its own.
                    owners.push(owner(&log, &store.after_crash(&chance)));
                }
                let chosen = chance.below(owners.len() as u64) as usize;
                let outcome = match owners.as_mut_slice() {
                    [one, other] if chance.chance(0.5) => {
                        // Both at once: what each believes was true when it looked.
                        let (first, second) =
                            tokio::join!(step(one, &log, &chance), step(other, &log, &chance));
                        if first.is_err() { first } else { second }
                    }
                    owners => step(&mut owners[chosen], &log, &chance).await,
                };
                match outcome {
                    Ok(true) => {}
                    Ok(false) if life == 4 => break,
                    Ok(false) => {}
                    Err(ViewError::Retry(reason)) => fenced += u32::from(reason.contains("another owner")),
                    // The journal is gone: this life is over.
                    Err(ViewError::Broken(_)) => break,
                }
                if chance.chance(0.3) {
                    let Owner { write_back, store, .. } = &owners[chosen];
                    store.fail(chance.chance(0.2));
                    // What could not be written stays dirty.
                    drop(write_back.flush());
                    store.fail(false);
                }
            }
            // The last one to live on is the one whose store goes on.
            let last = owners.swap_remove(0);
            if life == 4 {
                let mut last = last;
                while step(&mut last, &log, &chance).await.unwrap() {}
                last.write_back.flush().unwrap();
                check(seed, sent, &waits, &log, &last);
                return fenced;
            }
        }
        disk = disk.after_power_cut(chance.next());
        store = store.after_crash(&chance);
    }
    fenced
}

fn check(seed: u64, sent: i64, waits: &BTreeMap<i64, i64>, log: &Journal, owner: &Owner) {
    let mut states: BTreeMap<u8, Sum> = BTreeMap::new();
    let mut expected = Vec::new();
    let mut high = 0;
    for number in 1..=sent {
        // The number `n` stands at offset `n - 1`.
        high = number.max(high + waits.get(&(number - 1)).unwrap_or(&0));
        if number % 97 == 0 {
            continue;
        }
        let state = states.entry((number % 10) as u8).or_default();
        state.0 += number;
        state.1 += 1;
        expected.push((number, state.0, high));
    }
    let mut found = Vec::new();
    for rows in read(log, &at("sums")) {
        let column = |at: usize| rows.column(at).as_primitive::<Int64Type>().values().to_vec();
        let rows = column(0).into_iter().zip(column(1)).zip(column(2));
        found.extend(rows.map(|((number, sum), high)| (number, sum, high)));
    }
    assert_eq!(found, expected, "seed {seed}: the derived stream");
    let mut kept: BTreeMap<u8, Sum> = BTreeMap::new();
    owner.table.read(&[], &mut |key, state| kept.insert(key[0], *state).is_none()).unwrap();
    assert_eq!(kept, states, "seed {seed}: the states");
    let late: usize = read(log, &at("_late_events")).iter().map(RecordBatch::num_rows).sum();
    assert_eq!(late as i64, sent / 97, "seed {seed}: late rows are set apart once");
}
