//! Nexmark: how fast each query of the pack is kept up from a journal on disk, alone and to the end.
//! `HIGHWATER_EVENTS` sets how many events, `HIGHWATER_QUERIES` which queries (with commas between them).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a benchmark"
)]

#[path = "../tests/support/nexmark.rs"]
mod generator;
#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use highwater_event::{StreamName, StreamPartition};
use highwater_log::fold::Program;
use highwater_log::idle::IdleTimes;
use highwater_log::keyed::{KeyedStore, WriteBack};
use highwater_log::machine::Threads;
use highwater_log::view::{Driver, View};
use highwater_log::{Append, Commit, Journal, JournalOptions, Log, Machine};
use highwater_sim::{setting, vault};
use highwater_sql::catalog::Derivation;
use highwater_sql::stream::DerivedStream;
use highwater_sql::stream::state::GroupState;
use highwater_sql::{Catalog, Engine};
use highwater_warehouse::{FjallStore, Table, TableView};
use support::{declare, stream};

const QUERIES: [&str; 19] = [
    "q0",
    "q1",
    "q2",
    "q14",
    "q21",
    "q22",
    "q3",
    "q20",
    "q5_counts",
    "q7_max",
    "q8_people",
    "q8_sellers",
    "q11",
    "q12",
    "q15",
    "q16",
    "q17",
    "q18",
    "q19",
];
/// Events in one commit of the journal.
const COMMIT: usize = 10_000;

fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // Fields 14 and 15 of proc(5), in hundredths of a second.
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

fn written() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap();
    io.lines().find_map(|line| line.strip_prefix("wchar: ")?.parse().ok()).unwrap()
}

struct Stand {
    log: Arc<dyn Log>,
    machine: Machine,
    store: Arc<dyn KeyedStore>,
    write_back: Arc<WriteBack>,
}

impl Stand {
    fn keyed<P: Program<State = GroupState>>(&self, program: Arc<P>) -> Box<dyn View> {
        let table =
            Arc::new(Table::open(program.name().clone(), self.store.clone(), 64 << 20, None).unwrap());
        self.write_back.register(table.clone());
        Box::new(TableView::new(
            program,
            table,
            self.write_back.clone(),
            self.log.clone(),
            Arc::new(IdleTimes::new(self.log.clone())),
            self.machine.clone(),
            100_000,
        ))
    }

    fn view(&self, catalog: &Catalog, query: &str) -> Box<dyn View> {
        let name = StreamName::new(query).unwrap();
        if let Some(entry) = catalog.tables.get(&name) {
            return self.keyed(entry.program.clone());
        }
        match catalog.streams[&name].derivation.clone().unwrap() {
            Derivation::Join(join) => self.keyed(join),
            Derivation::Transform(transform) => {
                Box::new(DerivedStream::new(transform, self.log.clone(), self.machine.clock.clone()))
            }
        }
    }
}

fn main() {
    let count = setting("HIGHWATER_EVENTS", 2_000_000) as usize;
    let chosen = std::env::var("HIGHWATER_QUERIES").unwrap_or_default();
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let engine = Engine::new([7; 32], 4 << 30).unwrap();
    let catalog = runtime.block_on(declare(&engine, generator::PACK));
    let scheduler = Arc::new(Threads::new(Some(runtime.handle().clone())));
    let machine = Machine { scheduler, ..Machine::real() };
    let options = JournalOptions { vault: Some(vault()), ..JournalOptions::at(folder.path().join("log")) };
    let log: Arc<dyn Log> = Arc::new(Journal::open(options, &machine).unwrap());
    let [person, auction, bid, bid_arrival] =
        ["person", "auction", "bid", "bid_arrival"].map(|name| stream(&catalog, name));
    let streams = generator::Streams { person, auction, bid, bid_arrival };
    let mut events = generator::events(10_000);
    let started = Instant::now();
    for part in 0..count.div_ceil(COMMIT) {
        let take = COMMIT.min(count - part * COMMIT);
        let rows = generator::next_rows(&streams, &mut events, take, machine.clock.now_micros());
        let appends = rows
            .into_iter()
            .map(|(schema, rows)| Append { to: StreamPartition::new(schema.name.clone(), 0), rows });
        runtime.block_on(log.append(Commit { appends: appends.collect(), ..Commit::default() })).unwrap();
    }
    println!(
        "{count} events appended in {:.1} s; each query is kept up alone, from the start to the end",
        started.elapsed().as_secs_f64()
    );
    println!("{:>12} {:>12} {:>12} {:>14} {:>12}", "query", "rows read", "rows/s", "rows/CPU s", "bytes/row");
    for query in
        QUERIES.into_iter().filter(|query| chosen.is_empty() || chosen.split(',').any(|one| one == *query))
    {
        let store: Arc<dyn KeyedStore> =
            Arc::new(FjallStore::open(&folder.path().join(query), 256 << 20).unwrap());
        let write_back = Arc::new(WriteBack::new(store.clone()));
        let stand =
            Stand { log: log.clone(), machine: machine.clone(), store, write_back: write_back.clone() };
        let driver = Driver::new(log.clone(), machine.clone());
        let (cpu_before, written_before, started) = (cpu(), written(), Instant::now());
        let view = stand.view(&catalog, query);
        let name = view.name().to_owned();
        driver.start(view);
        let mut flushed = Instant::now();
        let taken = loop {
            std::thread::sleep(Duration::from_millis(5));
            if flushed.elapsed() > Duration::from_secs(1) {
                write_back.flush().unwrap();
                flushed = Instant::now();
            }
            let status = driver.status(&name).unwrap();
            assert!(status.last_error.is_none(), "{query}: {:?}", status.last_error);
            if status.lag == 0 && status.applied.taken > 0 {
                break status.applied.taken;
            }
        };
        write_back.flush().unwrap();
        let (seconds, cpu, bytes) =
            (started.elapsed().as_secs_f64(), cpu() - cpu_before, written() - written_before);
        println!(
            "{query:>12} {taken:>12} {:>12.0} {:>14.0} {:>12.1}",
            taken as f64 / seconds,
            taken as f64 / cpu,
            bytes as f64 / taken as f64
        );
        runtime.block_on(driver.stop());
    }
}
