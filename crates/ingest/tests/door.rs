//! The door under power cuts: what was acked is there, and everything is there once, however often it
//! is sent. `HIGHWATER_SEED` and `HIGHWATER_SEEDS` choose the runs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Int64Type};
use arrow::error::ArrowError;
use highwater_event::{
    Column, ManualClock, Principal, SeededRandomness, StreamName, StreamOptions, StreamPartition,
    StreamSchema,
};
use highwater_ingest::decode::Decoder;
use highwater_ingest::{DedupeIndex, Door, DoorError, DoorOptions, Format, Outcome, Submission};
use highwater_log::audit::{self, Entry, SEAL, Sealer, sealed};
use highwater_log::keyed::KeyedStore;
use highwater_log::{Append, AppendError, Journal, JournalOptions, Log};
use highwater_sim::{Fault, SimDisk, SimStore, machine, setting, vault};

fn schema() -> Arc<StreamSchema> {
    let column = |name: &str, data_type: DataType| Column::new(name, data_type, true);
    let options = StreamOptions { event_id: vec!["id".into()], partitions: 1, ..StreamOptions::default() };
    let columns = vec![column("id", DataType::Utf8), column("n", DataType::Int64)];
    Arc::new(StreamSchema::new(StreamName::new("s").unwrap(), columns, options, true).unwrap())
}

/// The numbers of events in their order, in the place of a hash: eight of them at most.
struct Numbers;

impl Sealer for Numbers {
    fn root(&self, _salt: &[u8; 16], rows: &[RecordBatch]) -> Result<[u8; 32], ArrowError> {
        let mut root = [0; 32];
        let numbers = rows
            .iter()
            .flat_map(|rows| rows.column_by_name("n").unwrap().as_primitive::<Int64Type>().values().to_vec());
        for (place, n) in root.chunks_exact_mut(4).zip(numbers) {
            place.copy_from_slice(&(n as u32).to_be_bytes());
        }
        Ok(root)
    }
}

struct Stand {
    log: Arc<dyn Log>,
    door: Door,
    index: Arc<DedupeIndex>,
}

fn open(disk: &SimDisk, store: &SimStore, small_body: usize) -> Option<Stand> {
    let machine = machine(disk, ManualClock::at(1_000_000));
    let options = JournalOptions {
        segment_bytes: 3000,
        tail_bytes: 0,
        vault: Some(vault()),
        ..JournalOptions::at("/log")
    };
    let log: Arc<dyn Log> = Arc::new(Journal::open(options, &machine).ok()?);
    // Small runs, so that a few events make generations.
    let index = DedupeIndex::open_with_runs_of(6, &schema().name, Arc::new(store.clone()), log.as_ref());
    let index = Arc::new(index.unwrap());
    let door = Door::open(
        log.clone(),
        Arc::new(Numbers),
        &machine,
        DoorOptions { small_body, ..DoorOptions::default() },
    )
    .unwrap();
    door.admit(Decoder::new(schema()).unwrap(), Some(index.clone()));
    Some(Stand { log, door, index })
}

fn send(stand: &Stand, events: &[(u64, u64)]) -> Result<Vec<Outcome>, DoorError> {
    let lines: Vec<String> = events.iter().map(|(id, n)| format!("{{\"id\":\"e{id}\",\"n\":{n}}}")).collect();
    let submission = Submission {
        stream: schema().name.clone(),
        body: lines.join("\n").into(),
        format: Format::NdJson,
        principal: Principal::operator(),
        leaf: None,
        beside: Vec::new(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let verdicts = runtime.block_on(stand.door.submit(submission))?;
    Ok(verdicts.into_iter().map(|verdict| verdict.outcome).collect())
}

/// Rows of a stream of the node's own that one submission brings with it.
#[test]
fn what_is_remembered_about_events_is_in_their_commit_and_only_when_they_are() {
    let (disk, store) = (SimDisk::new(), SimStore::new());
    let stand = open(&disk, &store, 1 << 20).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let beside = StreamPartition::new(StreamName::system("_beside"), 0);
    let submit = |body: &'static str| {
        let about: ArrayRef = Arc::new(StringArray::from(vec![body]));
        let rows = RecordBatch::try_from_iter([("about", about)]).unwrap();
        let submission = Submission {
            stream: schema().name.clone(),
            body: body.into(),
            format: Format::Json,
            principal: Principal::operator(),
            leaf: None,
            beside: vec![Append { to: beside.clone(), rows }],
        };
        runtime.block_on(stand.door.submit(submission)).unwrap().pop().unwrap().outcome
    };
    let ends = || (stand.log.end(&StreamPartition::new(schema().name.clone(), 0)), stand.log.end(&beside));
    assert!(matches!(submit(r#"{"id":"a","n":1}"#), Outcome::Accepted { .. }));
    assert_eq!(ends(), (1, 1));
    let [event, row] = [&StreamPartition::new(schema().name.clone(), 0), &beside]
        .map(|at| stand.log.read(at, 0, 1).unwrap()[0].recorded_at);
    assert_eq!(event, row, "one commit");
    assert!(
        matches!(submit(r#"{"id":"a","n":1}"#), Outcome::Duplicate { .. }),
        "it is there, so it is remembered"
    );
    assert_eq!(ends(), (1, 2));
    assert!(matches!(submit(r#"{"id":"a","n":2}"#), Outcome::Conflict { .. }));
    assert!(matches!(submit(r#"{"id":"b","n":"x"}"#), Outcome::Rejected(_)));
    assert_eq!(ends(), (1, 2));
}

/// Events of a stream that is to be proven are sealed in their own commit, in the order of partition and offset,
/// whether they are decoded one by one or as a body.
#[test]
fn events_that_are_to_be_proven_are_sealed_in_their_commit() {
    for small_body in [1 << 20, 0] {
        let stand = open(&SimDisk::new(), &SimStore::new(), small_body).unwrap();
        let options = StreamOptions {
            key: Some("id".into()),
            event_id: vec!["id".into()],
            partitions: 3,
            proof: true,
            ..StreamOptions::default()
        };
        let name = StreamName::new("proven").unwrap();
        let proven = StreamSchema::new(name.clone(), schema().columns.clone(), options, true).unwrap();
        stand.door.admit(Decoder::new(Arc::new(proven)).unwrap(), None);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let submit = |stream: &StreamName, body: &str| {
            let submission = Submission {
                stream: stream.clone(),
                body: body.to_owned().into(),
                format: Format::Json,
                principal: Principal::operator(),
                leaf: Some(Box::new(Entry { action: "ingest".into(), ..Entry::default() })),
                beside: Vec::new(),
            };
            runtime.block_on(stand.door.submit(submission)).unwrap();
        };
        let events: Vec<String> = (1..=7).map(|n| format!("{{\"id\":\"e{n}\",\"n\":{n}}}")).collect();
        submit(&name, &format!("[{}]", events.join(",")));
        submit(&schema().name, &events[0]);
        submit(&name, "{\"id\":\"bad\",\"n\":\"x\"}");
        let mut written = Vec::new();
        let mut recorded = BTreeSet::new();
        for partition in 0..3 {
            for batch in stand.log.read(&StreamPartition::new(name.clone(), partition), 0, 100).unwrap() {
                written.extend_from_slice(batch.rows["n"].as_primitive::<Int64Type>().values());
                recorded.insert(batch.recorded_at);
            }
        }
        assert_eq!(written.len(), 7);
        assert_ne!(written, (1..=7).collect::<Vec<i64>>(), "several partitions");
        let mut root = [0; 32];
        root.chunks_exact_mut(4)
            .zip(&written)
            .for_each(|(place, n)| place.copy_from_slice(&(*n as u32).to_be_bytes()));
        let mut seals = Vec::new();
        for batch in stand.log.read(&audit::partition(), 0, 100).unwrap() {
            let text = |row: usize, name: &str| batch.rows[name].as_string::<i32>().value(row).to_owned();
            for row in (0..batch.rows.num_rows()).filter(|row| text(*row, "action") == SEAL) {
                let salt = text(row, "salt");
                assert!(salt.len() == 32 && salt != "0".repeat(32));
                seals.push((batch.recorded_at, text(row, "actor"), text(row, "resource"), text(row, "seen")));
            }
        }
        let seal = (*recorded.first().unwrap(), "engine".into(), "stream:proven".into(), sealed(7, &root));
        assert_eq!((recorded.len(), seals), (1, vec![seal]), "one commit, one seal: none without events");
    }
}

#[test]
fn who_waits_for_room_gets_it_in_turn_or_hears_that_the_door_is_busy() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let stand = open(&SimDisk::new(), &SimStore::new(), 16).unwrap();
    runtime.block_on(async {
        let mut held = Vec::new();
        while held.len() < 16 {
            // What counts is bounded, so that a few long bodies never fill the door.
            held.push(stand.door.room(Some(1 << 30)).await.unwrap());
        }
        assert!(matches!(stand.door.room(Some(1)).await, Err(DoorError::Busy)));
        let order = std::cell::RefCell::new(Vec::new());
        let wait = |name: &'static str, bytes| {
            let (stand, order) = (&stand, &order);
            async move {
                let room = stand.door.room(Some(bytes)).await;
                order.borrow_mut().push(name);
                drop(room.unwrap());
            }
        };
        let free = async {
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            held.clear();
        };
        // The small one does not overtake the large one that came first.
        tokio::join!(wait("large", 4 << 20), wait("small", 1), free);
        assert_eq!(*order.borrow(), ["large", "small"]);
    });
}

/// Every event in the log: how often, and what it says.
fn found(log: &dyn Log) -> BTreeMap<String, Vec<i64>> {
    let at = StreamPartition::new(schema().name.clone(), 0);
    let mut found: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    let mut next = 0;
    while next < log.end(&at) {
        for batch in log.read(&at, next, 1000).unwrap() {
            next = batch.end();
            let (ids, numbers) =
                (batch.rows.column(0).as_string::<i32>(), batch.rows.column(1).as_primitive::<Int64Type>());
            for row in 0..ids.len() {
                found.entry(ids.value(row).to_owned()).or_default().push(numbers.value(row));
            }
        }
    }
    found
}

#[test]
fn everything_that_was_acked_is_there_once_however_often_it_is_sent() {
    let (first, count) = (setting("HIGHWATER_SEED", 1), setting("HIGHWATER_SEEDS", 40));
    println!("seeds {first} to {}", first + count - 1);
    for seed in first..first + count {
        let chance = SeededRandomness::new(seed);
        let (mut disk, mut store) = (SimDisk::new(), SimStore::new());
        let mut acked: BTreeSet<u64> = BTreeSet::new();
        for life in 0..4 {
            if life < 3 {
                disk.fault_at(disk.operations() + chance.below(80), Fault::PowerCut);
            }
            // Bodies are decoded by the owner, or by the caller.
            let small = if chance.chance(0.5) { 16 << 10 } else { 0 };
            if let Some(stand) = open(&disk, &store, small) {
                for round in 0..30 {
                    if round == 3 {
                        DedupeIndex::learn_stored(&Arc::downgrade(&stand.index)).unwrap();
                    }
                    // The same events again and again, some with another payload.
                    let events: Vec<(u64, u64)> = (0..1 + chance.below(20))
                        .map(|_| {
                            // Some that were sent before, and in each life some that were not.
                            let id = chance.below(120 + 60 * life);
                            (id, if chance.chance(0.1) { 1000 + id } else { id })
                        })
                        .collect();
                    let Ok(outcomes) = send(&stand, &events) else { break };
                    for ((id, _), outcome) in events.iter().zip(outcomes) {
                        match outcome {
                            Outcome::Accepted { .. } => {
                                assert!(acked.insert(*id), "seed {seed}: e{id} was accepted twice")
                            }
                            Outcome::Duplicate { .. } | Outcome::Conflict { .. } => {
                                // It may have become durable in a commit whose ack was lost.
                                acked.insert(*id);
                            }
                            Outcome::Rejected(error) => panic!("seed {seed}: {error:?}"),
                        }
                    }
                    if chance.chance(0.2) {
                        store.fail(chance.chance(0.3));
                        // A store that fails is tried again later.
                        drop(stand.index.spill(1));
                        store.fail(false);
                    }
                    if chance.chance(0.1) {
                        // As at an orderly end, which the next life may follow, or more of this one.
                        drop(stand.index.spill(1).and_then(|()| stand.index.rest()));
                    }
                }
            }
            if life < 3 {
                disk = disk.after_power_cut(chance.next());
                store = store.after_crash(&chance);
            }
        }
        // A copy: the last life may still be closing its files.
        let stand = open(&disk.copy(), &store, 0).unwrap();
        let found = found(stand.log.as_ref());
        for (id, payloads) in &found {
            assert_eq!(payloads.len(), 1, "seed {seed}: {id} is there {} times", payloads.len());
        }
        for id in &acked {
            assert!(found.contains_key(&format!("e{id}")), "seed {seed}: e{id} was acked and is lost");
        }
        // The index knows every one of them, and what it said.
        for (id, payloads) in &found {
            let number = id[1..].parse().unwrap();
            let outcomes = send(&stand, &[(number, payloads[0] as u64), (number, 77_777)]).unwrap();
            assert!(
                matches!(outcomes[..], [Outcome::Duplicate { .. }, Outcome::Conflict { .. }]),
                "seed {seed}: {id}: {outcomes:?}"
            );
        }
    }
}

#[test]
fn ids_of_every_generation_are_known_and_go_with_the_stream() {
    let (disk, store) = (SimDisk::new(), SimStore::new());
    let all = |number: u64| (number * 10..number * 10 + 10).map(|id| (id, id)).collect::<Vec<_>>();
    let mut generations = 1;
    // Beside them there is a table of what the newest one knows at an orderly end.
    let count = |tables: Vec<Arc<str>>| tables.iter().filter(|table| !table.ends_with("/rest")).count();
    // The first piece of a generation's filter, behind all ids.
    let filter = |table: &str| store.get(table, &[&[0xff; 16][..], &[0; 4]].concat()).unwrap();
    for life in 0..4 {
        let stand = open(&disk.copy(), &store, 0).unwrap();
        let rest = stand.index.tables().into_iter().find(|table| table.ends_with("/rest")).unwrap();
        assert_eq!(filter(&rest).is_some(), life == 3);
        if life == 2 {
            // A filter that can't be read is made again, of the ids.
            let damaged = stand.index.tables().into_iter().find(|table| filter(table).is_some()).unwrap();
            let key = [&[0xff; 16][..], &[0; 4]].concat();
            store.load(&damaged, &mut [(&key[..], &b"damaged"[..])].into_iter()).unwrap();
        }
        DedupeIndex::learn_stored(&Arc::downgrade(&stand.index)).unwrap();
        assert!(count(stand.index.tables()) >= generations);
        for number in life * 20..life * 20 + 20 {
            let outcomes = send(&stand, &all(number)).unwrap();
            assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Accepted { .. })));
            stand.index.spill(1).unwrap();
        }
        // Asked of the filters and their tables alike: everything since the first life, and nothing else.
        for number in 0..life * 20 + 20 {
            let outcomes = send(&stand, &all(number)).unwrap();
            assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Duplicate { .. })));
        }
        generations = count(stand.index.tables());
        let stored = stand.index.tables().iter().filter(|table| filter(table).is_some()).count();
        assert_eq!(stored, generations - 1, "of every generation that is closed");
        assert!(stand.index.tables().iter().all(|table| filter(table).as_deref() != Some(b"damaged")));
        if life >= 2 {
            // What the newest one knows, too, until it is written to again.
            stand.index.rest().unwrap();
        }
        drop(stand);
    }
    assert!(generations > 4, "{generations}");

    // A stream of the same name on a new log knows none of them, wherever a crash cut the clearing short.
    let tables = open(&disk.copy(), &store, 0).unwrap().index.tables();
    for cleared in 1..=tables.len() {
        let store = store.after_crash(&SeededRandomness::new(1));
        for table in &tables[..cleared] {
            store.clear(table).unwrap();
        }
        let stand = open(&SimDisk::new(), &store, 0).unwrap();
        let outcomes = send(&stand, &all(0)).unwrap();
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Accepted { .. })), "{cleared}");
    }
}

#[test]
fn what_an_orderly_end_left_is_believed_until_the_next_run() {
    let (mut disk, mut store) = (SimDisk::new(), SimStore::new());
    let some = |life: u64| (life * 10..life * 10 + 10).map(|id| (id, id)).collect::<Vec<_>>();
    for life in 0..12 {
        let stand = open(&disk, &store, 0).unwrap();
        DedupeIndex::learn_stored(&Arc::downgrade(&stand.index)).unwrap();
        for before in 0..life {
            let outcomes = send(&stand, &some(before)).unwrap();
            let known = outcomes.iter().all(|outcome| matches!(outcome, Outcome::Duplicate { .. }));
            assert!(known, "of life {before} in life {life}: {outcomes:?}");
        }
        let outcomes = send(&stand, &some(life)).unwrap();
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Accepted { .. })));
        stand.index.spill(1).unwrap();
        if life % 3 == 0 {
            stand.index.rest().unwrap();
        }
        drop(stand);
        disk = disk.after_power_cut(life);
        if life % 4 == 3 {
            store = store.after_crash(&SeededRandomness::new(life));
        }
    }
}

#[test]
fn what_a_full_disk_refused_is_accepted_later() {
    let (disk, store) = (SimDisk::new(), SimStore::new());
    let stand = open(&disk, &store, 16 << 10).unwrap();
    for round in 0..50 {
        disk.fault_at(disk.operations(), Fault::Full);
        let refused = send(&stand, &[(round, round)]);
        assert!(matches!(refused, Err(DoorError::Append(AppendError::DiskFull))), "{refused:?}");
        disk.free();
        let outcomes = send(&stand, &[(round, round)]).unwrap();
        assert!(matches!(outcomes[..], [Outcome::Accepted { .. }]), "round {round}: {outcomes:?}");
    }
    assert_eq!(found(stand.log.as_ref()).len(), 50);
}
