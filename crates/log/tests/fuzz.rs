//! Segments on disk that are almost right: opening and reading them never panics and never gives a row
//! that was not written. `HIGHWATER_FUZZ` sets how many, `HIGHWATER_SEED` the first.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use highwater_event::{ManualClock, SeededRandomness, StreamName, StreamPartition};
use highwater_log::disk::Disk;
use highwater_log::{Commit, Journal, JournalOptions, Log, OpenError, ReadError};
use highwater_sim::{SimDisk, machine, mutate, setting};

fn open(disk: &SimDisk) -> Result<Journal, OpenError> {
    let options = JournalOptions { segment_bytes: 1500, tail_bytes: 0, ..JournalOptions::at("/log") };
    Journal::open(options, &machine(disk, ManualClock::at(1)))
}

#[test]
fn damaged_segments_never_panic_and_never_lie() {
    let (seed, count) = (setting("HIGHWATER_SEED", 1), setting("HIGHWATER_FUZZ", 3_000));
    println!("seed {seed}, {count} logs");
    let chance = SeededRandomness::new(seed);
    let at = StreamPartition::new(StreamName::new("a").unwrap(), 0);
    let clean = SimDisk::new();
    let journal = open(&clean).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for number in 0..12i64 {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
        let rows = RecordBatch::try_new(
            schema,
            vec![Arc::new(Int64Array::from_iter_values(number * 9..number * 9 + 9))],
        )
        .unwrap();
        runtime.block_on(journal.append(Commit::of(at.clone(), rows))).unwrap();
    }
    journal.close();
    let mut segments: Vec<PathBuf> = clean.list(std::path::Path::new("/log")).unwrap();
    segments.retain(|path| path.extension().is_some_and(|extension| extension == "hwlog"));
    let (mut refused, mut read) = (0, 0);
    for _ in 0..count {
        let disk = clean.copy();
        let path = &segments[chance.below(segments.len() as u64) as usize];
        disk.damage(path, |bytes| mutate(bytes, &chance));
        let Ok(journal) = open(&disk) else {
            refused += 1;
            continue;
        };
        let mut next = 0;
        while next < journal.end(&at) {
            match journal.read(&at, next, 50) {
                Ok(batches) => {
                    assert!(!batches.is_empty(), "a read before the end answers something");
                    for batch in batches {
                        let Some(batch) = batch.from_offset(next) else { continue };
                        let numbers = batch.rows.column(0).as_primitive::<Int64Type>().values();
                        let expected: Vec<i64> = (batch.base as i64..batch.end() as i64).collect();
                        assert_eq!(numbers.to_vec(), expected, "a row that was never written");
                        read += numbers.len();
                        next = batch.end();
                    }
                }
                Err(ReadError::Damaged { to, .. }) => {
                    assert!(to > next, "damage ends somewhere");
                    next = to;
                }
                Err(error) => panic!("{error}"),
            }
        }
        journal.close();
    }
    println!("{refused} logs refused, {read} rows read from the others");
    assert!(refused > 0 && read > 0);
}
