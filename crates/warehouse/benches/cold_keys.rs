//! Read-merge-write of cold keys through the overlay and fjall: 5 M groups, uniform and Zipf.
//!
//! `cargo bench -p highwater-warehouse --bench cold_keys` (`HIGHWATER_GROUPS`, `HIGHWATER_UPDATES`)

#![allow(missing_docs, clippy::unwrap_used, reason = "a program that measures")]

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use highwater_event::{ManualClock, SeededRandomness, StreamName, StreamPartition};
use highwater_log::fold::{Derived, Folded, Lane, LaneMarks, Program, States, Stored};
use highwater_log::idle::IdleTimes;
use highwater_log::keyed::{KeyedStore, StoreError, WriteBack};
use highwater_log::view::{View, ViewError};
use highwater_log::{Journal, JournalOptions, Log, LogBatch, Machine};
use highwater_sim::setting;
use highwater_warehouse::{FjallStore, Table, TableView};

/// A sum and a count, 40 bytes when stored: what a small aggregate keeps.
#[derive(Clone)]
struct Sum(i128, i64, i64);

impl Stored for Sum {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0.to_le_bytes());
        out.extend_from_slice(&self.1.to_le_bytes());
        out.extend_from_slice(&self.2.to_le_bytes());
        out.extend_from_slice(&[0; 8]);
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        Some(Self(
            i128::from_le_bytes(bytes.get(..16)?.try_into().ok()?),
            i64::from_le_bytes(bytes.get(16..24)?.try_into().ok()?),
            i64::from_le_bytes(bytes.get(24..32)?.try_into().ok()?),
        ))
    }
    fn weight(&self) -> usize {
        96
    }
}

/// Keys drawn by chance instead of read from rows, so that only keys and states are measured.
struct Draw {
    name: Arc<str>,
    source: StreamName,
    chance: SeededRandomness,
    groups: u64,
    zipf: bool,
    per_tick: usize,
}

impl Draw {
    fn key(&self) -> u64 {
        let uniform = self.chance.below(self.groups);
        if !self.zipf {
            return uniform;
        }
        // Zipf with exponent 1, by inverting its distribution function approximately.
        let u = (self.chance.next() >> 11) as f64 / (1u64 << 53) as f64;
        ((self.groups as f64).powf(u) as u64).min(self.groups - 1)
    }
}

#[async_trait]
impl Program for Draw {
    type State = Sum;
    type Prepared = ();
    type Pending = ();
    fn name(&self) -> &Arc<str> {
        &self.name
    }
    fn kind(&self) -> &'static str {
        "table"
    }
    fn sources(&self) -> &[StreamName] {
        std::slice::from_ref(&self.source)
    }
    fn output(&self) -> Option<(&StreamName, u32)> {
        None
    }
    fn follows_time(&self) -> bool {
        false
    }
    async fn prepare(&self, _at: &StreamPartition, _batches: &[LogBatch]) -> Result<(), ViewError> {
        Ok(())
    }
    async fn finish(&self, (): ()) -> Result<Derived, ViewError> {
        Ok(Derived::default())
    }
    fn expired(&self, _marks: &LaneMarks) -> Option<Vec<u8>> {
        None
    }
    fn fold(
        &self,
        (): (),
        _lane: Lane,
        _marks: &mut LaneMarks,
        states: &mut dyn States<Sum>,
    ) -> Result<Folded<()>, StoreError> {
        for _ in 0..self.per_tick {
            let number = self.key();
            // Spread over the key space as hashed or composite keys are.
            let key =
                [number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes(), number.to_be_bytes()].concat();
            let state = states.state(&key, &|| Sum(0, 0, 0))?;
            state.0 += i128::from(number);
            state.1 += 1;
        }
        Ok(Folded { folded: self.per_tick as u64, ..Folded::default() })
    }
}

fn bytes_written() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("write_bytes"));
    line.and_then(|line| line.split(' ').nth(1)?.parse().ok()).unwrap_or(0)
}

fn main() {
    let (groups, updates) =
        (setting("HIGHWATER_GROUPS", 5_000_000), setting("HIGHWATER_UPDATES", 10_000_000));
    println!("{groups} groups, {updates} updates, written back every 100,000 changed keys");
    println!("{:>10} {:>14} {:>16} {:>16} {:>14}", "keys", "updates/s", "bytes/update", "store MB", "RSS MB");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for zipf in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn KeyedStore> =
            Arc::new(FjallStore::open(&folder.path().join("store"), 256 << 20).unwrap());
        let write_back = Arc::new(WriteBack::new(store.clone()));
        let machine = Machine { clock: Arc::new(ManualClock::at(0)), ..Machine::real() };
        let journal = Journal::open(JournalOptions::at(folder.path().join("log")), &machine).unwrap();
        let per_tick = 10_000;
        let program = Arc::new(Draw {
            name: "table:bench".into(),
            source: StreamName::new("s").unwrap(),
            chance: SeededRandomness::new(1),
            groups,
            zipf,
            per_tick,
        });
        let table = Arc::new(Table::open("table:bench".into(), store.clone(), 64 << 20, None).unwrap());
        write_back.register(table.clone());
        let log: Arc<dyn Log> = Arc::new(journal);
        let idle = Arc::new(IdleTimes::new(log.clone()));
        let mut view = TableView::new(program, table, write_back.clone(), log, idle, machine, 100_000);
        let rows = {
            use arrow::array::{Int64Array, RecordBatch};
            use arrow::datatypes::{DataType, Field, Schema};
            let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
            RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from(vec![0; per_tick]))]).unwrap()
        };
        let at = StreamPartition::new(StreamName::new("s").unwrap(), 0);
        // The first half fills the store, the second half is measured.
        let ticks = updates / per_tick as u64;
        let mut started = Instant::now();
        let mut before = bytes_written();
        for tick in 0..ticks * 2 {
            if tick == ticks {
                runtime.block_on(async { write_back.flush() }).unwrap();
                started = Instant::now();
                before = bytes_written();
            }
            let batch = LogBatch { base: tick * per_tick as u64, recorded_at: 0, rows: rows.clone() };
            runtime.block_on(view.apply(&at, vec![batch])).unwrap();
        }
        write_back.flush().unwrap();
        let seconds = started.elapsed().as_secs_f64();
        let written = bytes_written() - before;
        let rss = std::fs::read_to_string("/proc/self/statm")
            .ok()
            .and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok())
            .unwrap_or(0)
            * 4096;
        println!(
            "{:>10} {:>14.0} {:>16.0} {:>16} {:>14}",
            if zipf { "Zipf(1)" } else { "uniform" },
            updates as f64 / seconds,
            written as f64 / updates as f64,
            store.bytes_on_disk() >> 20,
            rss >> 20
        );
    }
}
