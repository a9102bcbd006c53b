//! What every log has to do, whatever it is made of. The journal runs it on the simulated disk and on
//! the machine's; another implementation adds itself to `logs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;

use arrow::array::{AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use highwater_event::{ManualClock, StreamName, StreamPartition};
use highwater_log::disk::{Disk, RealDisk};
use highwater_log::{Advance, Append, AppendError, Commit, Journal, JournalOptions, Log, Machine, ReadError};
use highwater_sim::SimDisk;

/// A log that can be closed and opened again.
struct Stand {
    name: &'static str,
    open: Box<dyn Fn() -> Journal>,
    _folder: Option<tempfile::TempDir>,
}

fn journal(disk: Arc<dyn Disk>, dir: std::path::PathBuf) -> Box<dyn Fn() -> Journal> {
    Box::new(move || {
        let options = JournalOptions { segment_bytes: 4096, tail_bytes: 0, ..JournalOptions::at(&dir) };
        let clock = Arc::new(ManualClock::at(500));
        Journal::open(options, &Machine { disk: disk.clone(), clock, ..Machine::real() }).unwrap()
    })
}

fn logs() -> Vec<Stand> {
    let folder = tempfile::tempdir().unwrap();
    vec![
        Stand {
            name: "simulated disk",
            open: journal(Arc::new(SimDisk::new()), "/log".into()),
            _folder: None,
        },
        Stand {
            name: "machine's disk",
            open: journal(Arc::new(RealDisk), folder.path().join("log")),
            _folder: Some(folder),
        },
    ]
}

fn at(stream: &str, partition: u32) -> StreamPartition {
    StreamPartition::new(StreamName::new(stream).unwrap(), partition)
}

fn rows(from: i64, count: i64) -> RecordBatch {
    let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
    RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from_iter_values(from..from + count))]).unwrap()
}

fn wait<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn append(log: &dyn Log, to: &StreamPartition, from: i64, count: i64) -> u64 {
    wait(log.append(Commit::of(to.clone(), rows(from, count)))).unwrap().bases[0]
}

fn numbers(log: &dyn Log, at: &StreamPartition, from: u64) -> Vec<i64> {
    let mut found = Vec::new();
    let mut next = from;
    while next < log.end(at) {
        for batch in log.read(at, next, 7).unwrap() {
            let Some(batch) = batch.from_offset(next) else { continue };
            assert_eq!(batch.base, next);
            next = batch.end();
            found.extend(batch.rows.column(0).as_primitive::<Int64Type>().values());
        }
    }
    found
}

#[test]
fn offsets_have_no_gaps_and_commits_are_whole() {
    for stand in logs() {
        let log = (stand.open)();
        assert_eq!((log.end(&at("a", 0)), log.start(&at("a", 0))), (0, 0), "{}", stand.name);
        assert_eq!(append(&log, &at("a", 0), 0, 5), 0);
        let both = Commit {
            appends: vec![
                Append { to: at("a", 0), rows: rows(5, 2) },
                Append { to: at("b", 3), rows: rows(0, 1) },
                Append { to: at("a", 0), rows: rows(7, 1) },
            ],
            ..Commit::default()
        };
        assert_eq!(wait(log.append(both)).unwrap().bases, [5, 0, 7]);
        assert_eq!(numbers(&log, &at("a", 0), 0), (0..8).collect::<Vec<_>>());
        assert_eq!(numbers(&log, &at("a", 0), 6), [6, 7]);
        assert_eq!(log.partitions(&StreamName::new("b").unwrap()), [3]);
        assert!(log.read(&at("a", 0), 8, 10).unwrap().is_empty(), "there is nothing at the end");
        assert!(log.read(&at("nowhere", 0), 0, 10).unwrap().is_empty());
    }
}

#[test]
fn time_of_commits_rises_strictly_across_restarts() {
    for stand in logs() {
        let mut last = i64::MIN;
        for _ in 0..3 {
            // The clock stands still, and is what it was before.
            let log = (stand.open)();
            for number in 0..40 {
                append(&log, &at("a", 0), number, 1);
                assert!(log.recorded_until() > last, "{}", stand.name);
                last = log.recorded_until();
            }
            log.close();
        }
        let log = (stand.open)();
        let times: Vec<i64> =
            log.read(&at("a", 0), 0, 1000).unwrap().iter().map(|batch| batch.recorded_at).collect();
        assert!(times.windows(2).all(|pair| pair[0] < pair[1]));
    }
}

#[test]
fn a_commit_that_speaks_of_an_end_is_refused_when_rows_came_in_between() {
    for stand in logs() {
        let log = (stand.open)();
        append(&log, &at("a", 0), 0, 3);
        let of = |end| Commit { ends: vec![(at("a", 0), end)], ..Commit::of(at("said", 0), rows(0, 1)) };
        wait(log.append(of(3))).unwrap();
        append(&log, &at("a", 0), 3, 1);
        let late = wait(log.append(of(3)));
        assert!(
            matches!(late, Err(AppendError::Outrun { expected: 3, found: 4, .. })),
            "{}: {late:?}",
            stand.name
        );
        assert_eq!(log.end(&at("said", 0)), 1, "nothing of a refused commit is there");
        // Rows of the same commit come after what it says.
        let mut both = of(4);
        both.appends.push(Append { to: at("a", 0), rows: rows(4, 1) });
        wait(log.append(both)).unwrap();
        assert_eq!((log.end(&at("said", 0)), log.end(&at("a", 0))), (2, 5));
        log.close();
    }
}

#[test]
fn marks_move_by_compare_and_set_and_last() {
    for stand in logs() {
        let log = (stand.open)();
        let advance = |from, to| Advance { writer: "v".into(), source: at("a", 0), from, to };
        let commit = |from, to| Commit {
            appends: vec![Append { to: at("out", 0), rows: rows(0, 1) }],
            advances: vec![advance(from, to)],
            ..Commit::default()
        };
        wait(log.append(commit(0, 10))).unwrap();
        assert!(
            matches!(wait(log.append(commit(0, 20))), Err(AppendError::Fenced { found: 10, .. })),
            "{}",
            stand.name
        );
        assert_eq!(log.end(&at("out", 0)), 1, "nothing of a fenced commit is there");
        log.close();
        let log = (stand.open)();
        assert_eq!(log.advanced("v", &at("a", 0)), 10);
        assert_eq!(log.advanced("v", &at("a", 1)), 0);
    }
}

#[test]
fn old_segments_go_and_the_rest_stays() {
    for stand in logs() {
        let log = (stand.open)();
        for number in 0..120 {
            append(&log, &at("a", 0), number * 20, 20);
            if number < 5 {
                append(&log, &at("early", 0), number, 1);
            }
        }
        let keep_from = 1500;
        let retired = log
            .retire(&|extent| {
                extent.ranges.iter().all(|(at, _, end)| at.stream.as_str() == "early" || *end <= keep_from)
            })
            .unwrap();
        assert!(retired.segments > 2 && retired.bytes > 0, "{}: {retired:?}", stand.name);
        let start = log.start(&at("a", 0));
        assert!(start > 0 && start <= keep_from);
        assert!(
            matches!(log.read(&at("a", 0), 0, 10), Err(ReadError::Retired { start: told, .. }) if told == start)
        );
        assert_eq!(numbers(&log, &at("a", 0), start), (start as i64..2400).collect::<Vec<_>>());
        assert_eq!(
            (log.start(&at("early", 0)), log.end(&at("early", 0))),
            (5, 5),
            "where it ends is not forgotten"
        );
        log.close();
        let log = (stand.open)();
        assert!(log.damage().is_empty(), "{:?}", log.damage());
        assert_eq!(numbers(&log, &at("a", 0), start), (start as i64..2400).collect::<Vec<_>>());
        assert_eq!(log.end(&at("early", 0)), 5);
        assert_eq!(append(&log, &at("early", 0), 9, 1), 5, "offsets go on");
        // Whatever is said, the newest segments stay.
        log.retire(&|_| true).unwrap();
        assert_eq!(log.end(&at("a", 0)), 2400);
    }
}

#[test]
fn a_copy_opens_as_a_log_of_its_own_while_the_first_goes_on() {
    let disk = SimDisk::new();
    let log = Arc::new(journal(Arc::new(disk), "/log".into())());
    for number in 0..50 {
        append(log.as_ref(), &at("a", 0), number * 10, 10);
    }
    let writer = {
        let log = log.clone();
        std::thread::spawn(move || {
            for number in 50..200 {
                append(log.as_ref(), &at("a", 0), number * 10, 10);
            }
        })
    };
    let copies = SimDisk::new();
    log.copy_to(&copies, std::path::Path::new("/copy")).unwrap();
    let durable_before = 500;
    writer.join().unwrap();
    let copy = journal(Arc::new(copies), "/copy".into())();
    let found = numbers(&copy, &at("a", 0), 0);
    assert!(found.len() >= durable_before, "{} rows", found.len());
    assert_eq!(found, (0..found.len() as i64).collect::<Vec<_>>());
    assert_eq!(append(&copy, &at("a", 0), 0, 1), found.len() as u64);
    assert_eq!(numbers(log.as_ref(), &at("a", 0), 0).len(), 2000, "the first is as it was");
}
