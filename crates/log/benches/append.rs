//! What an append costs until it is durable, by rows per commit and by writers at the same time; and what
//! the disk's own fsync costs.
//!
//! `cargo bench -p highwater-server -p highwater-log --bench append`

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a program that measures")]

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use highwater_event::{StreamName, StreamPartition};
use highwater_log::{Commit, Journal, JournalOptions, Log, Machine};

const SECONDS: u64 = 3;

fn rows(count: usize) -> RecordBatch {
    let schema =
        Schema::new(vec![Field::new("n", DataType::Int64, false), Field::new("text", DataType::Utf8, true)]);
    // About 300 bytes a row, which LZ4 makes smaller.
    let text = |n: usize| format!("{n:032x}").repeat(9);
    let texts: StringArray = (0..count).map(|n| Some(text(n * 0x9e37_79b9))).collect();
    let numbers = Int64Array::from_iter_values(0..count as i64);
    RecordBatch::try_new(Arc::new(schema), vec![Arc::new(numbers), Arc::new(texts)]).unwrap()
}

/// Microseconds of each act, sorted.
fn show(name: &str, mut micros: Vec<u64>, seconds: f64, rows: usize) {
    micros.sort_unstable();
    let at = |share: usize| micros[(micros.len() * share / 1000).min(micros.len() - 1)];
    println!(
        "{name:<36} {:>9.0} {:>11.0} {:>9} {:>9}",
        micros.len() as f64 / seconds,
        (micros.len() * rows) as f64 / seconds,
        at(500),
        at(990)
    );
}

fn fsync(dir: &Path, bytes: usize) {
    let mut file = std::fs::File::create(dir.join("bare")).unwrap();
    let content = vec![7u8; bytes];
    let (started, mut micros) = (Instant::now(), Vec::new());
    while started.elapsed() < Duration::from_secs(SECONDS) {
        let begun = Instant::now();
        file.write_all(&content).unwrap();
        file.sync_data().unwrap();
        micros.push(begun.elapsed().as_micros() as u64);
    }
    show(&format!("bare write and fsync, {} KiB", bytes >> 10), micros, started.elapsed().as_secs_f64(), 0);
}

async fn append(journal: Arc<Journal>, writers: usize, count: usize) {
    let started = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..writers {
        let (journal, rows) = (journal.clone(), rows(count));
        tasks.spawn(async move {
            let to = StreamPartition::new(StreamName::new("bench").unwrap(), 0);
            let mut micros = Vec::new();
            while started.elapsed() < Duration::from_secs(SECONDS) {
                let begun = Instant::now();
                journal.append(Commit::of(to.clone(), rows.clone())).await.unwrap();
                micros.push(begun.elapsed().as_micros() as u64);
            }
            micros
        });
    }
    let micros: Vec<u64> = tasks.join_all().await.into_iter().flatten().collect();
    show(
        &format!("{writers} writers, {count} rows a commit"),
        micros,
        started.elapsed().as_secs_f64(),
        count,
    );
}

fn main() {
    let folder = tempfile::tempdir_in(std::env::current_dir().unwrap()).unwrap();
    println!("{:<36} {:>9} {:>11} {:>9} {:>9}", "act", "acts/s", "rows/s", "p50 µs", "p99 µs");
    for bytes in [4 << 10, 64 << 10, 1 << 20] {
        fsync(folder.path(), bytes);
    }
    let options = JournalOptions::at(folder.path().join("log"));
    let journal = Journal::open(options, &Machine::real());
    let journal = Arc::new(journal.unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    for (writers, count) in [(1, 1), (64, 1), (256, 1), (1, 1000), (8, 1000), (8, 10_000)] {
        runtime.block_on(append(journal.clone(), writers, count));
    }
}
