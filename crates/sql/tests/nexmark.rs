//! Nexmark: every query of the pack, kept up row by row with kills and random cuts, answers what
//! DataFusion answers over the whole history in one go. `HIGHWATER_EVENTS` sets how many events.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/nexmark.rs"]
mod generator;
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::compute::concat_batches;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use highwater_event::json::rows_as_json;
use highwater_event::{SeededRandomness, StreamName, StreamPartition, StreamSchema};
use highwater_log::LogBatch;
use highwater_log::fold::Program;
use highwater_log::reader::RowReader;
use highwater_sim::setting;
use highwater_sql::adhoc::{Limits, Posed, Relations};
use highwater_sql::catalog::Derivation;
use highwater_sql::dialect::Asker;
use highwater_sql::stream::TableRows;
use highwater_sql::stream::state::GroupState;
use highwater_sql::stream::table::Extent;
use highwater_sql::{Catalog, Engine, SqlError};
use support::{Life, declare, stream, table};

type History = BTreeMap<StreamName, Vec<LogBatch>>;

#[derive(Debug)]
struct Rows(BTreeMap<String, RecordBatch>);

#[async_trait]
impl Relations for Rows {
    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    async fn relation(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, SqlError> {
        let of = |rows: &RecordBatch| {
            Arc::new(MemTable::try_new(rows.schema(), vec![vec![rows.clone()]]).unwrap())
                as Arc<dyn TableProvider>
        };
        Ok(self.0.get(name).map(of))
    }
}

fn history(streams: &generator::Streams, count: usize, chance: &SeededRandomness) -> History {
    let mut events = generator::events(1000);
    let mut history = History::new();
    let mut done = 0;
    let mut recorded_at = 1_767_225_700_000_000;
    while done < count {
        let take = (1 + chance.below(400) as usize).min(count - done);
        recorded_at += 1 + chance.below(900_000) as i64;
        for (schema, rows) in generator::next_rows(streams, &mut events, take, recorded_at) {
            let batches = history.entry(schema.name.clone()).or_default();
            let base = batches.last().map_or(0, LogBatch::end);
            batches.push(LogBatch { base, recorded_at, rows });
        }
        done += take;
    }
    history
}

fn read(schema: &StreamSchema, history: &History) -> RecordBatch {
    RowReader::new(schema).read_all(0, &history[&schema.name]).unwrap()
}

/// Runs of the sources of a program in the order of their commits.
fn runs(
    sources: &[StreamName],
    history: &History,
    chance: &SeededRandomness,
) -> Vec<(StreamPartition, Vec<LogBatch>)> {
    let mut all: Vec<(i64, usize, LogBatch)> = Vec::new();
    for (order, source) in sources.iter().enumerate() {
        all.extend(history[source].iter().map(|batch| (batch.recorded_at, order, batch.clone())));
    }
    all.sort_by_key(|(recorded_at, order, batch)| (*recorded_at, *order, batch.base));
    let mut runs: Vec<(StreamPartition, Vec<LogBatch>)> = Vec::new();
    for (_, order, batch) in all {
        let at = StreamPartition::new(sources[order].clone(), 0);
        match runs.last_mut() {
            Some((same, batches)) if *same == at && chance.chance(0.8) => batches.push(batch),
            _ => runs.push((at, vec![batch])),
        }
    }
    runs
}

async fn keep_up<P: Program<State = GroupState>>(
    program: Arc<P>,
    history: &History,
    chance: &SeededRandomness,
) -> Life<P> {
    let runs = runs(program.sources(), history, chance);
    let mut life = Life::new(program);
    life.run(&runs, chance).await;
    assert!(life.dead.is_empty() && life.late.is_empty());
    life
}

fn multiset(batches: &[RecordBatch], columns: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for batch in batches {
        let batch = batch.project(&(0..columns).collect::<Vec<_>>()).unwrap();
        let names: Vec<String> = (0..columns).map(|at| at.to_string()).collect();
        let mut out = String::new();
        rows_as_json(&batch, &names, true, "\n", &mut out);
        lines.extend(out.lines().map(str::to_owned));
    }
    lines.sort();
    lines
}

/// What a query of the pack answers, kept up.
async fn answer(
    engine: &Engine,
    catalog: &Catalog,
    query: &str,
    rows: &mut Rows,
    history: &History,
    chance: &SeededRandomness,
) -> Vec<RecordBatch> {
    if let Some(endpoint) = catalog.endpoints.get(&format!("/nexmark/{query}")) {
        for name in &endpoint.reads {
            if catalog.tables.contains_key(name) {
                let table = read_table(catalog, name.as_str(), history, chance).await;
                rows.0.insert(name.to_string(), table);
            }
        }
        let limits = Limits { time: Duration::from_secs(60), rows: usize::MAX, bytes: usize::MAX };
        let relations = Arc::new(Rows(rows.0.clone()));
        let asker = Asker { user: "", tenant: "" };
        let posed = Posed::new(engine, relations, &endpoint.query, asker, limits);
        return posed.rows().await.unwrap().batches;
    }
    let name = StreamName::new(query).unwrap();
    match catalog.streams.get(&name).and_then(|entry| entry.derivation.clone()) {
        Some(Derivation::Join(join)) => keep_up(join, history, chance).await.out,
        Some(Derivation::Transform(transform)) => {
            let mut out = Vec::new();
            for batches in history[&transform.source.name].chunks(1 + chance.below(20) as usize) {
                out.extend(transform.transform(0, batches).await.unwrap().rows);
            }
            out
        }
        None => vec![read_table(catalog, query, history, chance).await],
    }
}

async fn read_table(
    catalog: &Catalog,
    name: &str,
    history: &History,
    chance: &SeededRandomness,
) -> RecordBatch {
    let program = table(catalog, name);
    let life = keep_up(program.clone(), history, chance).await;
    let rows = TableRows::new(program.clone(), life.cold.clone()).read(Extent::All).await.unwrap();
    concat_batches(program.schema(), &rows).unwrap()
}

/// The queries as batch SQL over the whole history, written from the benchmark's definitions.
fn batch_queries() -> Vec<(&'static str, usize, String)> {
    let tumble = "date_bin(INTERVAL '10 seconds', date_time)";
    // A row belongs to the five windows that begin in the ten seconds up to it.
    let hop = "SELECT auction, date_bin(INTERVAL '2 seconds', date_time) - i AS window_start FROM bid CROSS JOIN (VALUES (INTERVAL '0 seconds'), (INTERVAL '2 seconds'), (INTERVAL '4 seconds'), (INTERVAL '6 seconds'), (INTERVAL '8 seconds')) AS t(i)";
    let select = |query: &str| {
        let pack = generator::PACK.replace('\n', " ");
        let start = pack.find(&format!(" {query} ")).unwrap();
        let start = start + pack[start..].find("SELECT").unwrap();
        let end = start + pack[start..].find(';').unwrap();
        pack[start..end].to_owned()
    };
    let mut queries = vec![
        ("q3", 4, "SELECT p.name, p.city, p.state, a.id FROM auction a JOIN person p ON a.seller = p.id WHERE a.category = 10 AND p.state IN ('or', 'id', 'ca')".into()),
        ("q20", 8, "SELECT b.auction, b.bidder, b.price, b.channel, b.url, a.item_name, a.initial_bid, a.seller FROM bid b JOIN auction a ON b.auction = a.id WHERE a.category = 10".into()),
        ("q5", 3, format!("WITH counts AS (SELECT auction, window_start, count(*) AS num FROM ({hop}) GROUP BY auction, window_start) SELECT auction, num, window_start FROM (SELECT *, rank() OVER (PARTITION BY window_start ORDER BY num DESC) AS place FROM counts) WHERE place = 1")),
        ("q7", 4, format!("SELECT auction, price, bidder, date_time FROM (SELECT *, max(price) OVER (PARTITION BY {tumble}) AS most FROM bid) WHERE price = most")),
        ("q8", 3, format!("SELECT DISTINCT p.id, p.name, p.w FROM (SELECT id, name, {tumble} AS w FROM person) p JOIN (SELECT seller, {tumble} AS w FROM auction) a ON p.id = a.seller AND p.w = a.w")),
        ("q11", 4, "WITH marked AS (SELECT bidder, date_time, CASE WHEN date_time - lag(date_time) OVER (PARTITION BY bidder ORDER BY date_time) <= INTERVAL '10 seconds' THEN 0 ELSE 1 END AS begins FROM bid), \
            numbered AS (SELECT bidder, date_time, sum(begins) OVER (PARTITION BY bidder ORDER BY date_time RANGE UNBOUNDED PRECEDING) AS session FROM marked) \
            SELECT bidder, count(*) AS bid_count, min(date_time), max(date_time) + INTERVAL '10 seconds' FROM numbered GROUP BY bidder, session".into()),
        ("q12", 3, "SELECT bidder, count(*), date_bin(INTERVAL '10 seconds', _event_time) FROM bid_arrival GROUP BY bidder, date_bin(INTERVAL '10 seconds', _event_time)".into()),
        ("q18", 6, "SELECT bidder, auction, price, channel, url, date_time FROM (SELECT *, row_number() OVER (PARTITION BY bidder, auction ORDER BY _offset DESC) AS place FROM bid) WHERE place = 1".into()),
        ("q19", 2, "SELECT auction, array_agg(price ORDER BY price DESC) FROM (SELECT auction, price, row_number() OVER (PARTITION BY auction ORDER BY price DESC) AS place FROM bid) WHERE place <= 10 GROUP BY auction".into()),
    ];
    for (query, columns) in [
        ("q0", 5),
        ("q1", 5),
        ("q2", 2),
        ("q14", 7),
        ("q15", 10),
        ("q16", 7),
        ("q17", 10),
        ("q21", 5),
        ("q22", 7),
    ] {
        queries.push((query, columns, select(query)));
    }
    queries
}

#[test]
fn every_query_equals_the_batch_answer() {
    let count = setting("HIGHWATER_EVENTS", 20_000) as usize;
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let engine = Engine::new([7; 32], 4 << 30).unwrap();
        let catalog = declare(&engine, generator::PACK).await;
        let [person, auction, bid, bid_arrival] =
            ["person", "auction", "bid", "bid_arrival"].map(|name| stream(&catalog, name));
        let streams = generator::Streams { person, auction, bid, bid_arrival };
        let chance = SeededRandomness::new(setting("HIGHWATER_SEED", 1));
        let history = history(&streams, count, &chance);
        let mut rows = Rows(BTreeMap::new());
        for schema in [&streams.person, &streams.auction, &streams.bid, &streams.bid_arrival] {
            rows.0.insert(schema.name.to_string(), read(schema, &history));
        }
        let context = SessionContext::new_with_state(
            engine
                .state_with(
                    rows.0
                        .iter()
                        .map(|(name, rows)| {
                            (
                                name.clone(),
                                Arc::new(MemTable::try_new(rows.schema(), vec![vec![rows.clone()]]).unwrap())
                                    as Arc<dyn TableProvider>,
                            )
                        })
                        .collect::<Vec<_>>(),
                )
                .unwrap(),
        );
        for (query, columns, sql) in batch_queries() {
            let kept = answer(&engine, &catalog, query, &mut rows, &history, &chance).await;
            let expected =
                context.sql(&sql).await.unwrap_or_else(|error| panic!("{query}: {error}")).collect().await;
            let expected = expected.unwrap_or_else(|error| panic!("{query}: {error}"));
            let (kept, expected) = (multiset(&kept, columns), multiset(&expected, columns));
            assert!(!expected.is_empty(), "{query} has no rows to compare");
            let at = kept.iter().zip(&expected).position(|(a, b)| a != b);
            assert!(
                kept == expected,
                "{query}: {} rows kept up, {} in one go; first difference:\n{:?}\n{:?}",
                kept.len(),
                expected.len(),
                at.map(|at| &kept[at]),
                at.map(|at| &expected[at])
            );
            println!("{query:>4}: {} rows equal", kept.len());
        }
    });
}
