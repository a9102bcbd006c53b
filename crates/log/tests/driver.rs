//! The driver: a view of several sources gets every row once, in the order of the commits, however the
//! log grows while it reads.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::{Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use async_trait::async_trait;
use highwater_event::{ManualClock, SeededRandomness, StreamName, StreamPartition};
use highwater_log::machine::Threads;
use highwater_log::view::{Applied, Driver, Gather, View, ViewError};
use highwater_log::{Append, Commit, Journal, JournalOptions, Log, LogBatch, Machine};
use highwater_sim::SimDisk;

/// What a view was given: when it was recorded, which source, partition, offset.
type Seen = Arc<Mutex<Vec<(i64, usize, u32, u64)>>>;

struct Recorder {
    sources: Vec<StreamName>,
    seen: Seen,
    marks: BTreeMap<StreamPartition, u64>,
    /// Fails now and then, before anything has changed.
    chance: SeededRandomness,
}

#[async_trait]
impl View for Recorder {
    fn name(&self) -> &str {
        "recorder"
    }
    fn kind(&self) -> &'static str {
        "test"
    }
    fn sources(&self) -> Vec<StreamName> {
        self.sources.clone()
    }
    fn gather(&self) -> Gather {
        Gather { rows: 50, wait: Duration::from_millis(1) }
    }
    async fn mark(&mut self, at: &StreamPartition) -> Result<u64, ViewError> {
        Ok(self.marks.get(at).copied().unwrap_or(0))
    }
    async fn apply(&mut self, at: &StreamPartition, batches: Vec<LogBatch>) -> Result<Applied, ViewError> {
        if self.chance.chance(0.02) {
            return Err(ViewError::Retry("a planned failure".into()));
        }
        let order = self.sources.iter().position(|source| *source == at.stream).unwrap();
        let mut seen = self.seen.lock().unwrap();
        for batch in &batches {
            assert_eq!(batch.base, self.marks.get(at).copied().unwrap_or(0), "{at}: rows without a gap");
            for row in 0..batch.rows.num_rows() as u64 {
                seen.push((batch.recorded_at, order, at.partition, batch.base + row));
            }
            self.marks.insert(at.clone(), batch.end());
        }
        Ok(Applied::default())
    }
    async fn skip(&mut self, at: &StreamPartition, to: u64) -> Result<(), ViewError> {
        self.marks.insert(at.clone(), to);
        Ok(())
    }
    async fn reset(&mut self) -> Result<(), ViewError> {
        Ok(())
    }
}

fn rows(count: u64) -> RecordBatch {
    let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
    RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from_iter_values(0..count as i64))]).unwrap()
}

#[test]
fn several_sources_come_in_the_order_of_their_commits() {
    for seed in 1..6 {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let machine = Machine {
            scheduler: Arc::new(Threads::new(Some(runtime.handle().clone()))),
            ..highwater_sim::machine(&SimDisk::new(), ManualClock::at(1_000))
        };
        // A small tail, so that some reads come from segments.
        let options =
            JournalOptions { segment_bytes: 8_000, tail_bytes: 20_000, ..JournalOptions::at("/log") };
        let log: Arc<dyn Log> = Arc::new(Journal::open(options, &machine).unwrap());
        let sources = vec![StreamName::new("right").unwrap(), StreamName::new("left").unwrap()];
        let seen = Seen::default();
        let driver = Driver::new(log.clone(), machine);
        let chance = SeededRandomness::new(seed);
        let recorder =
            Recorder { sources: sources.clone(), seen: seen.clone(), marks: BTreeMap::new(), chance };
        let chance = Arc::new(SeededRandomness::new(seed + 100));
        let mut total = 0;
        let mut started = false;
        let mut recorder = Some(recorder);
        for commit in 0..600 {
            if !started && commit == 200 {
                // It begins with a backlog and goes on with what comes.
                driver.start(Box::new(recorder.take().unwrap()));
                started = true;
            }
            let mut appends = Vec::new();
            for source in &sources {
                for partition in 0..2 {
                    if chance.chance(0.4) {
                        let count = 1 + chance.below(30);
                        total += count;
                        let to = StreamPartition::new(source.clone(), partition);
                        appends.push(Append { to, rows: rows(count) });
                    }
                }
            }
            runtime.block_on(log.append(Commit { appends, ..Commit::default() })).unwrap();
        }
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while seen.lock().unwrap().len() < total as usize {
            assert!(std::time::Instant::now() < deadline, "seed {seed}: rows are missing");
            std::thread::sleep(Duration::from_millis(5));
        }
        let seen = seen.lock().unwrap();
        assert_eq!(seen.len(), total as usize, "seed {seed}: every row once");
        assert!(seen.is_sorted(), "seed {seed}: out of order");
        runtime.block_on(driver.stop());
    }
}
