//! The journal under everything that a disk and a power supply can do to it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use highwater_event::{ManualClock, SeededRandomness, StreamName, StreamPartition};
use highwater_log::disk::Disk;
use highwater_log::{
    Advance, Append, AppendError, Commit, Journal, JournalOptions, Log, Machine, OpenError, ReadError,
};
use highwater_sim::{Fault, SimDisk, machine, setting};

const DIR: &str = "/log";

fn stream(name: &str) -> StreamPartition {
    StreamPartition::new(StreamName::new(name).unwrap(), 0)
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("n", DataType::Int64, false),
        Field::new("text", DataType::Utf8, true),
    ]))
}

/// Rows that carry their numbers, so that a reader can tell which are there.
fn rows(from: i64, count: i64) -> RecordBatch {
    let texts: StringArray = (from..from + count)
        .map(|n| (n % 3 != 0).then(|| format!("row {n} {}", "x".repeat((n % 50) as usize))))
        .collect();
    RecordBatch::try_new(
        schema(),
        vec![Arc::new(Int64Array::from_iter_values(from..from + count)), Arc::new(texts)],
    )
    .unwrap()
}

fn options(segment_bytes: u64) -> JournalOptions {
    // No tail in memory: every read goes to the disk.
    JournalOptions { segment_bytes, reserve_bytes: 700, tail_bytes: 0, ..JournalOptions::at(DIR) }
}

fn open_with(disk: &SimDisk, segment_bytes: u64) -> Result<Journal, OpenError> {
    Journal::open(options(segment_bytes), &machine(disk, ManualClock::at(1_000)))
}

/// A journal whose file ends where its last commit does.
fn open_without_reserve(disk: &SimDisk) -> Journal {
    let options = JournalOptions { reserve_bytes: 0, ..options(1 << 20) };
    Journal::open(options, &machine(disk, ManualClock::at(1_000))).unwrap()
}

fn open(disk: &SimDisk) -> Journal {
    open_with(disk, 4096).unwrap()
}

fn wait<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn append(journal: &Journal, to: &str, from: i64, count: i64) -> Result<u64, AppendError> {
    wait(journal.append(Commit::of(stream(to), rows(from, count)))).map(|receipt| receipt.bases[0])
}

/// All rows of a stream, by their numbers.
fn read_all(journal: &Journal, of: &str) -> Result<Vec<i64>, ReadError> {
    let at = stream(of);
    let mut numbers = Vec::new();
    while (numbers.len() as u64) < journal.end(&at) {
        for batch in journal.read(&at, numbers.len() as u64, 100)? {
            let batch = batch.from_offset(numbers.len() as u64).unwrap();
            assert_eq!(batch.base, numbers.len() as u64);
            numbers.extend(batch.rows.column(0).as_primitive::<Int64Type>().values().iter());
        }
    }
    Ok(numbers)
}

fn segments(disk: &SimDisk) -> Vec<PathBuf> {
    let mut paths = disk.list(Path::new(DIR)).unwrap();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "hwlog"));
    paths
}

#[test]
fn what_is_appended_is_read_in_order_across_segments_and_restarts() {
    let disk = SimDisk::new();
    let mut next = 0;
    for _ in 0..4 {
        let journal = open(&disk);
        for _ in 0..20 {
            assert_eq!(append(&journal, "a", next, 7).unwrap(), next as u64);
            append(&journal, "b", next, 1).unwrap();
            next += 7;
        }
        assert_eq!(read_all(&journal, "a").unwrap(), (0..next).collect::<Vec<_>>());
        journal.close();
    }
    assert!(segments(&disk).len() > 5, "segments rolled");
    let journal = open(&disk);
    assert_eq!(read_all(&journal, "b").unwrap().len(), 80);
    assert_eq!(journal.read(&stream("a"), 10_000, 10).unwrap().len(), 0);
}

#[test]
fn a_commit_is_whole_across_streams_and_marks_move_by_compare_and_set() {
    let disk = SimDisk::new();
    let journal = open(&disk);
    let advance = |from, to| Advance { writer: "view".into(), source: stream("a"), from, to };
    let commit = |from, to| Commit {
        appends: vec![
            Append { to: stream("b"), rows: rows(0, 1) },
            Append { to: stream("c"), rows: rows(0, 2) },
        ],
        advances: vec![advance(from, to)],
        ..Commit::default()
    };
    wait(journal.append(commit(0, 5))).unwrap();
    let lost = wait(journal.append(commit(0, 6)));
    assert!(matches!(lost, Err(AppendError::Fenced { found: 5, .. })), "{lost:?}");
    assert_eq!(
        (journal.end(&stream("b")), journal.end(&stream("c"))),
        (1, 2),
        "a fenced commit leaves nothing"
    );
    wait(journal.append(Commit { advances: vec![advance(5, 9)], ..Commit::default() })).unwrap();
    journal.close();
    let journal = open(&disk);
    assert_eq!(journal.advanced("view", &stream("a")), 9);
    assert_eq!(journal.advanced("other", &stream("a")), 0);
}

#[test]
fn two_owners_are_kept_apart() {
    let disk = SimDisk::new();
    let first = open(&disk);
    assert!(matches!(open_with(&disk, 4096), Err(OpenError::Locked(_))));
    first.close();
    open(&disk);
}

#[test]
fn a_torn_tail_at_every_byte_of_the_last_64_kib_opens() {
    let disk = SimDisk::new();
    let journal = open_without_reserve(&disk);
    let mut ends = vec![(0, disk.bytes(&segments(&disk)[0]).unwrap().len())];
    let mut next = 0;
    while ends.last().unwrap().1 < 66 << 10 {
        append(&journal, "a", next, 40).unwrap();
        next += 40;
        ends.push((next, disk.bytes(&segments(&disk)[0]).unwrap().len()));
    }
    journal.close();
    let path = segments(&disk)[0].clone();
    let length = disk.bytes(&path).unwrap().len();
    for cut in (length - (64 << 10))..=length {
        let whole = ends.iter().map(|(_, end)| *end).find(|end| *end >= cut).unwrap_or(length);
        let lost = disk.bytes(&path).unwrap()[cut..whole].to_vec();
        // Cut clean, cut with garbage behind, and with the zeros of a reserve.
        for behind in ["nothing", "garbage", "zeros"] {
            // What is lost must not come back by chance.
            if behind == "zeros" && lost.iter().all(|byte| *byte == 0) {
                continue;
            }
            let torn = disk.copy();
            torn.damage(&path, |bytes| {
                bytes.truncate(cut);
                match behind {
                    "garbage" => {
                        bytes.push(!lost.first().copied().unwrap_or(0));
                        bytes.extend((0..100u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8));
                    }
                    "zeros" => bytes.resize(cut + 5000, 0),
                    _ => {}
                }
            });
            let journal = open_with(&torn, 1 << 20).unwrap();
            let expected = ends.iter().rev().find(|(_, end)| *end <= cut).unwrap().0;
            assert_eq!(journal.end(&stream("a")), expected as u64, "cut at {cut}");
            if cut % 997 == 0 {
                assert_eq!(read_all(&journal, "a").unwrap(), (0..expected).collect::<Vec<_>>());
                assert_eq!(append(&journal, "a", expected, 3).unwrap(), expected as u64);
                journal.close();
                assert_eq!(open_with(&torn, 1 << 20).unwrap().end(&stream("a")), expected as u64 + 3);
            }
        }
    }
}

#[test]
fn a_flipped_bit_never_gives_a_wrong_row() {
    let disk = SimDisk::new();
    let journal = open_with(&disk, 6000).unwrap();
    for number in 0..60 {
        append(&journal, "a", number * 10, 10).unwrap();
    }
    journal.close();
    let all = rows(0, 600);
    for path in segments(&disk) {
        // Every byte, one bit of it: which one depends on the place.
        for at in 0..disk.bytes(&path).unwrap().len() {
            read_with_flipped(&disk, &path, at, at % 8, &all);
        }
    }
}

#[test]
#[ignore = "opens half a million logs: make nightly"]
fn no_flipped_bit_of_a_whole_segment_gives_a_wrong_row() {
    let disk = SimDisk::new();
    let journal = open_with(&disk, 64 << 10).unwrap();
    for number in 0..50 {
        append(&journal, "a", number * 100, 100).unwrap();
    }
    journal.close();
    let all = rows(0, 5000);
    let path = segments(&disk).remove(0);
    let length = disk.bytes(&path).unwrap().len();
    assert!(length >= 60 << 10, "{length} bytes");
    let (all, disk, path) = (&all, &disk, &path);
    std::thread::scope(|scope| {
        for half in 0..2 {
            scope.spawn(move || {
                for at in (half..length).step_by(2) {
                    (0..8).for_each(|bit| read_with_flipped(disk, path, at, bit, all));
                }
            });
        }
    });
    println!("{} bits of {length} bytes flipped", length * 8);
}

/// Opens and reads a log with one bit of a file flipped: what it gives was written, or it says what is damaged.
fn read_with_flipped(disk: &SimDisk, path: &Path, at: usize, bit: usize, all: &RecordBatch) {
    let flipped = disk.copy();
    flipped.damage(path, |bytes| bytes[at] ^= 1 << bit);
    let journal = match open_with(&flipped, 64 << 10) {
        Ok(journal) => journal,
        Err(OpenError::Damaged { .. } | OpenError::Version { .. }) => return,
        Err(other) => panic!("byte {at} of {}: {other}", path.display()),
    };
    let mut next = 0;
    let end = journal.end(&stream("a"));
    while next < end {
        match journal.read(&stream("a"), next, 1000) {
            Ok(batches) => {
                for batch in batches {
                    let written = all.slice(batch.base as usize, batch.rows.num_rows());
                    assert_eq!(batch.rows.columns(), written.columns(), "byte {at}, bit {bit}");
                    next = batch.end();
                }
            }
            Err(ReadError::Damaged { from, to, .. }) => {
                assert!(from <= next && to > next, "damage from {from} to {to}, asked {next}");
                next = to;
            }
            Err(other) => panic!("{other}"),
        }
    }
    // A journal has a thread, and half a million of them are too many.
    journal.close();
}

#[test]
fn damage_in_the_middle_is_refused_and_the_rest_is_served() {
    let disk = SimDisk::new();
    let journal = open_without_reserve(&disk);
    let path = segments(&disk)[0].clone();
    let mut places = Vec::new();
    for number in 0..10 {
        places.push(disk.bytes(&path).unwrap().len());
        append(&journal, "a", number * 10, 10).unwrap();
    }
    journal.close();
    disk.damage(&path, |bytes| bytes[places[4] + 30] ^= 0x55);
    let journal = open_with(&disk, 1 << 20).unwrap();
    assert_eq!(journal.damage().len(), 1, "it is reported");
    assert_eq!(journal.damage()[0].commits, (4, 5));
    assert_eq!(journal.end(&stream("a")), 100, "nothing after it is lost");
    let before: usize =
        journal.read(&stream("a"), 0, 1000).unwrap().iter().map(|batch| batch.rows.num_rows()).sum();
    assert_eq!(before, 40);
    assert!(matches!(journal.read(&stream("a"), 40, 1000), Err(ReadError::Damaged { from: 40, to: 50, .. })));
    assert_eq!(journal.read(&stream("a"), 50, 1000).unwrap().len(), 5);
}

#[test]
fn the_first_failed_fsync_poisons() {
    let disk = SimDisk::new();
    let journal = open(&disk);
    append(&journal, "a", 0, 1).unwrap();
    // The next append is a write and an fsync.
    disk.fault_at(disk.operations() + 1, Fault::Fails);
    assert!(matches!(append(&journal, "a", 1, 1), Err(AppendError::Poisoned(_))));
    let before = disk.operations();
    assert!(matches!(append(&journal, "a", 1, 1), Err(AppendError::Poisoned(_))), "and stays so");
    assert_eq!(disk.operations(), before, "the disk is not touched again: no fsync is retried");
    assert!(journal.poisoned().borrow().is_some());
    assert_eq!(read_all(&journal, "a").unwrap(), [0], "readers never see what was not confirmed");
}

#[test]
fn a_full_disk_refuses_and_recovers_by_itself() {
    let disk = SimDisk::new();
    let journal = open(&disk);
    let mut next = 0;
    for _ in 0..100 {
        append(&journal, "a", next, 5).unwrap();
        next += 5;
        disk.fault_at(disk.operations(), Fault::Full);
        for _ in 0..3 {
            assert!(matches!(append(&journal, "a", next, 5), Err(AppendError::DiskFull)));
        }
        assert_eq!(read_all(&journal, "a").unwrap().len() as i64, next, "reads work");
        disk.free();
    }
    journal.close();
    assert_eq!(read_all(&open(&disk), "a").unwrap(), (0..next).collect::<Vec<_>>());
}

/// A fault at every single operation of a run that rolls segments.
#[test]
fn a_fault_at_every_operation_leaves_a_sound_log() {
    let run = |disk: &SimDisk| -> Vec<i64> {
        let mut acked = Vec::new();
        let Ok(journal) = open_with(disk, 1500) else { return acked };
        for number in 0..30 {
            if append(&journal, "a", number, 1).is_ok() {
                acked.push(number);
            }
        }
        journal.close();
        acked
    };
    let clean = SimDisk::new();
    assert_eq!(run(&clean).len(), 30);
    for fault in [Fault::Fails, Fault::Tears, Fault::Full, Fault::PowerCut] {
        for operation in 0..clean.operations() {
            let disk = SimDisk::new();
            disk.fault_at(operation, fault);
            let acked = run(&disk);
            disk.free();
            for survivor in [disk.copy(), disk.after_power_cut(operation)] {
                if fault == Fault::PowerCut || survivor.list(Path::new(DIR)).is_ok() {
                    let journal = match open_with(&survivor, 1500) {
                        Ok(journal) => journal,
                        Err(error) => panic!("{fault:?} at {operation}: {error}"),
                    };
                    let found = read_all(&journal, "a").unwrap();
                    let mut rest = found.iter();
                    for number in &acked {
                        assert!(
                            rest.any(|n| n == number),
                            "{fault:?} at {operation}: {number} was acked; found {found:?}"
                        );
                    }
                    let mut unique = found.clone();
                    unique.dedup();
                    assert_eq!(unique, found, "{fault:?} at {operation}: twice");
                    append(&journal, "a", 99, 1).unwrap();
                }
            }
        }
    }
}

/// Power cuts at a random moment of a random load; `HIGHWATER_SEEDS` sets how many, `HIGHWATER_SEED` the first.
#[test]
fn power_cuts_lose_nothing_that_was_acked() {
    let (first, count) = (setting("HIGHWATER_SEED", 1), setting("HIGHWATER_SEEDS", 2000));
    println!("seeds {first} to {}", first + count - 1);
    for seed in first..first + count {
        let chance = SeededRandomness::new(seed);
        let mut disk = SimDisk::new();
        let mut acked: Vec<i64> = Vec::new();
        let mut attempted = 0;
        for _life in 0..3 {
            disk.fault_at(disk.operations() + chance.below(60), Fault::PowerCut);
            if let Ok(journal) = open_with(&disk, 800 + chance.below(3000)) {
                let found = read_all(&journal, "a").unwrap();
                check(seed, &acked, attempted, &found);
                acked = found;
                for _ in 0..chance.below(40) {
                    let size = 1 + chance.below(30) as i64;
                    if append(&journal, "a", attempted, size).is_ok() {
                        acked.extend(attempted..attempted + size);
                    }
                    attempted += size;
                }
                journal.close();
            }
            disk = disk.after_power_cut(chance.next());
        }
        let journal = open(&disk);
        check(seed, &acked, attempted, &read_all(&journal, "a").unwrap());
    }
}

/// Acked rows are there in order; nothing is there twice; nothing is there that nobody sent.
fn check(seed: u64, acked: &[i64], attempted: i64, found: &[i64]) {
    assert!(found.windows(2).all(|pair| pair[0] < pair[1]), "seed {seed}: out of order or twice: {found:?}");
    assert!(found.iter().all(|n| *n < attempted), "seed {seed}: a phantom");
    let mut rest = found.iter();
    for number in acked {
        assert!(rest.any(|n| n == number), "seed {seed}: {number} was acked and is lost");
    }
}

#[test]
fn appends_of_many_callers_share_an_fsync() {
    let disk = SimDisk::new();
    let journal = Arc::new(open_with(&disk, 1 << 20).unwrap());
    let before = disk.operations();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().unwrap();
    runtime.block_on(async {
        let mut calls = tokio::task::JoinSet::new();
        for number in 0..500 {
            let journal = journal.clone();
            calls.spawn(async move {
                journal.append(Commit::of(stream("a"), rows(number, 1))).await.unwrap().bases[0]
            });
        }
        let mut bases = calls.join_all().await;
        bases.sort_unstable();
        assert_eq!(bases, (0..500).collect::<Vec<_>>());
    });
    assert!(disk.operations() - before < 1000, "500 appends took {} operations", disk.operations() - before);
}

/// The fixture of format version 1 must open for ever.
#[test]
fn version_1_opens() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/version-1");
    if !fixture.exists() {
        write_fixture(&fixture);
    }
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(&fixture).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    let options = JournalOptions { segment_bytes: 2000, tail_bytes: 0, ..JournalOptions::at(copy.path()) };
    let clock = Arc::new(ManualClock::at(0));
    let journal = Journal::open(options, &Machine { clock, ..Machine::real() }).unwrap();
    assert_eq!(read_all(&journal, "a").unwrap(), (0..120).collect::<Vec<_>>());
    assert_eq!(journal.advanced("view", &stream("a")), 120);
    assert!(journal.damage().is_empty());
    assert_eq!(append(&journal, "a", 120, 1).unwrap(), 120);
}

fn write_fixture(dir: &Path) {
    let options = JournalOptions { segment_bytes: 2000, tail_bytes: 0, ..JournalOptions::at(dir) };
    let randomness = Arc::new(SeededRandomness::new(1));
    let clock = Arc::new(ManualClock::at(1_700_000_000_000_000));
    let journal = Journal::open(options, &Machine { randomness, clock, ..Machine::real() }).unwrap();
    for number in 0..12 {
        append(&journal, "a", number * 10, 10).unwrap();
    }
    let advance = Advance { writer: "view".into(), source: stream("a"), from: 0, to: 120 };
    wait(journal.append(Commit { advances: vec![advance], ..Commit::default() })).unwrap();
    journal.close();
    std::fs::remove_file(dir.join("lock")).unwrap();
}

/// Takes all texts of every fifth row out.
fn redact(
    _at: &StreamPartition,
    _base: u64,
    rows: &RecordBatch,
) -> Result<Option<RecordBatch>, arrow::error::ArrowError> {
    let numbers = rows.column(0).as_primitive::<Int64Type>();
    let texts = rows.column(1).as_string::<i32>();
    let left: StringArray = (0..rows.num_rows())
        .map(|row| if numbers.value(row) % 5 == 0 { Some("gone") } else { texts.iter().nth(row)? })
        .collect();
    if left == *texts {
        return Ok(None);
    }
    RecordBatch::try_new(rows.schema(), vec![rows.column(0).clone(), Arc::new(left)]).map(Some)
}

/// The texts of all rows of a stream.
fn texts(journal: &Journal, of: &str) -> Vec<Option<String>> {
    let (at, mut texts) = (stream(of), Vec::new());
    while (texts.len() as u64) < journal.end(&at) {
        for batch in journal.read(&at, texts.len() as u64, 100).unwrap() {
            let batch = batch.from_offset(texts.len() as u64).unwrap();
            texts.extend(batch.rows.column(1).as_string::<i32>().iter().map(|text| text.map(str::to_owned)));
        }
    }
    texts
}

fn written(number: i64) -> Option<String> {
    rows(number, 1).column(1).as_string::<i32>().iter().next().unwrap().map(str::to_owned)
}

fn left(number: i64) -> Option<String> {
    if number % 5 == 0 { Some("gone".into()) } else { written(number) }
}

#[test]
fn rows_are_edited_and_nothing_else() {
    let disk = SimDisk::new();
    let journal = open_with(&disk, 1500).unwrap();
    for number in 0..60 {
        append(&journal, "a", number, 1).unwrap();
        append(&journal, "b", number, 1).unwrap();
    }
    let advance = Advance { writer: "view".into(), source: stream("b"), from: 0, to: 60 };
    wait(journal.append(Commit { advances: vec![advance], ..Commit::default() })).unwrap();
    wait(journal.close_segment()).unwrap();
    // A reader that is in a segment reads on in it.
    let before = segments(&disk);
    let edited = journal.edit(&[stream("a").stream], &redact).unwrap();
    assert_eq!((edited.batches, edited.segments), (12, 12), "{edited:?}");
    assert_eq!(journal.edit(&[stream("a").stream], &redact).unwrap(), Default::default(), "once");
    append(&journal, "a", 60, 1).unwrap();
    let check = |journal: &Journal| {
        assert_eq!(texts(journal, "a"), (0..60).map(left).chain([written(60)]).collect::<Vec<_>>());
        assert_eq!(texts(journal, "b"), (0..60).map(written).collect::<Vec<_>>());
        assert_eq!(read_all(journal, "a").unwrap(), (0..=60).collect::<Vec<_>>());
        assert_eq!(journal.advanced("view", &stream("b")), 60);
        assert!(journal.damage().is_empty());
    };
    check(&journal);
    journal.close();
    let journal = open_with(&disk, 1500).unwrap();
    check(&journal);
    assert_eq!(segments(&disk), before, "no file is left");
    // A segment that is damaged is refused, and stays as it is.
    wait(journal.close_segment()).unwrap();
    disk.damage(&before[1], |bytes| bytes[100] ^= 1);
    let all = |_: &StreamPartition, _: u64, rows: &RecordBatch| Ok(Some(rows.clone()));
    let error = journal.edit(&[stream("a").stream], &all).unwrap_err().to_string();
    assert!(error.contains("is damaged at byte") && error.contains("backup"), "{error}");
}

/// Power cuts and faults at every operation of an edit: each row is as it was or as it is to be, and the edit can be ended.
#[test]
fn an_edit_that_is_cut_short_leaves_whole_rows() {
    let prepare = || {
        let disk = SimDisk::new();
        let journal = open_with(&disk, 900).unwrap();
        for number in 0..40 {
            append(&journal, "a", number, 1).unwrap();
        }
        (disk, journal)
    };
    let run = |journal: &Journal| {
        wait(journal.close_segment()).map_err(|error| error.to_string())?;
        journal.edit(&[stream("a").stream], &redact).map_err(|error| error.to_string())
    };
    let (disk, journal) = prepare();
    let before = disk.operations();
    assert!(run(&journal).unwrap().segments > 3);
    let operations = disk.operations() - before;
    for fault in [Fault::Fails, Fault::Tears, Fault::Full, Fault::PowerCut] {
        for operation in 0..operations {
            let (disk, journal) = prepare();
            disk.fault_at(disk.operations() + operation, fault);
            let outcome = run(&journal);
            journal.close();
            disk.free();
            for seed in 0..4 {
                let survivor = disk.after_power_cut(seed);
                let journal = open_with(&survivor, 900).unwrap();
                assert!(journal.damage().is_empty(), "{fault:?} at {operation}: {:?}", journal.damage());
                for (number, text) in (0..).zip(texts(&journal, "a")) {
                    let fits = text == left(number) || (outcome.is_err() && text == written(number));
                    assert!(fits, "{fault:?} at {operation}: row {number} is {text:?}; {outcome:?}");
                }
                run(&journal).unwrap();
                assert_eq!(
                    texts(&journal, "a"),
                    (0..40).map(left).collect::<Vec<_>>(),
                    "{fault:?} at {operation}"
                );
                append(&journal, "a", 40, 1).unwrap();
            }
        }
    }
}
