//! The oracle: what a table or derived stream keeps up, row by row, must equal what DataFusion answers
//! in one go over all rows, whatever the data, however it was cut into batches, and wherever it was
//! killed. `HIGHWATER_SEED` and `HIGHWATER_SEEDS` choose the data.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::type_complexity,
    reason = "a test fails by panicking"
)]

mod lookups;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Decimal128Array, Float64Array, Int32Array, Int64Array, ListBuilder,
    RecordBatch, StringArray, StringBuilder, TimestampMicrosecondArray, UInt32Array,
};
use arrow::datatypes::{DataType, Field, Schema, TimestampMicrosecondType};
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use highwater_event::json::rows_as_json;
use highwater_event::{SeededRandomness, StreamPartition, StreamSchema, columns};
use highwater_log::LogBatch;
use highwater_log::idle::{self, Idle};
use highwater_log::reader::RowReader;
use highwater_sim::setting;
use highwater_sql::Engine;
use highwater_sql::catalog::Derivation;
use highwater_sql::dialect::{Window, WindowKind};
use highwater_sql::stream::table::Extent;
use highwater_sql::stream::{JoinProgram, TableProgram, TableRows};
use support::{Cold, Life, declare, stream, table};

const SOURCE: &str = "CREATE STREAM s (k TEXT, n INT, big BIGINT, f DOUBLE, d DECIMAL(15,2), at TIMESTAMP, tags ARRAY<TEXT>) \
    WITH (event_time = 'at', lake = false);";

const MINUTE: i64 = 60_000_000;

/// Random rows: nulls, repeats, disorder, extremes.
fn data(source: &StreamSchema, chance: &SeededRandomness, rows: usize) -> Vec<LogBatch> {
    let maybe = |value: u64| (!chance.chance(0.15)).then_some(value);
    let mut time = 1_000 * MINUTE;
    let mut times = Vec::new();
    let mut fields: (
        Vec<Option<String>>,
        Vec<Option<i32>>,
        Vec<Option<i64>>,
        Vec<Option<f64>>,
        Vec<Option<i128>>,
    ) = Default::default();
    for _ in 0..rows {
        time += chance.below(40_000_000) as i64;
        let late = if chance.chance(0.1) {
            chance.below(200) as i64 * MINUTE
        } else {
            chance.below(3) as i64 * MINUTE
        };
        times.push(time - late);
        fields.0.push(maybe(chance.below(6)).map(|n| if n == 0 { String::new() } else { format!("k{n}") }));
        fields.1.push(maybe(chance.next()).map(|n| if chance.chance(0.05) { i32::MIN } else { n as i32 }));
        fields.2.push(maybe(chance.below(1000)).map(|n| n as i64 - 500));
        fields.3.push(maybe(chance.next()).map(|n| (n as f64 / 1e15) - 5000.0));
        fields.4.push(maybe(chance.next()).map(|n| i128::from(n % 99_999_999_999) - 50_000_000_000));
    }
    let mut tags = ListBuilder::new(StringBuilder::new()).with_field(Arc::new(Field::new(
        "element",
        DataType::Utf8,
        true,
    )));
    for _ in 0..rows {
        if chance.chance(0.2) {
            tags.append_null();
            continue;
        }
        for _ in 0..chance.below(4) {
            tags.values().append_option(maybe(chance.below(5)).map(|n| format!("t{n}")));
        }
        tags.append(true);
    }
    let stored = source.stored_schema();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(fields.0)),
        Arc::new(Int32Array::from(fields.1)),
        Arc::new(Int64Array::from(fields.2)),
        Arc::new(Float64Array::from(fields.3)),
        Arc::new(Decimal128Array::from(fields.4).with_precision_and_scale(15, 2).unwrap()),
        Arc::new(TimestampMicrosecondArray::from(times.clone()).with_data_type(columns::timestamp_type())),
        Arc::new(tags.finish()),
        Arc::new(StringArray::from(vec![None::<&str>; rows])),
        Arc::new(TimestampMicrosecondArray::from(times).with_data_type(columns::timestamp_type())),
        arrow::array::new_null_array(&DataType::FixedSizeBinary(16), rows),
        Arc::new(Int64Array::from(vec![0; rows])),
    ];
    let all = RecordBatch::try_new(stored, columns).unwrap();
    // The log's own batches, each recorded at a time of its own.
    let mut batches = Vec::new();
    let mut from = 0;
    while from < rows {
        let length = (1 + chance.below(40) as usize).min(rows - from);
        batches.push(LogBatch {
            base: from as u64,
            recorded_at: 5_000_000 + 10 * from as i64 + chance.below(7) as i64,
            rows: all.slice(from, length),
        });
        from += length;
    }
    batches
}

/// Another way to cut the same rows.
fn cut(batches: &[LogBatch], chance: &SeededRandomness) -> Vec<Vec<LogBatch>> {
    let mut ticks = vec![Vec::new()];
    for batch in batches {
        let mut rest = Some(batch.clone());
        while let Some(part) = rest.take() {
            let rows = part.rows.num_rows();
            let take = 1 + chance.below(rows as u64) as usize;
            let head = LogBatch { rows: part.rows.slice(0, take), ..part.clone() };
            rest = part.clone().from_offset(part.base + take as u64).filter(|rest| rest.base > head.base);
            ticks.last_mut().unwrap().push(head);
            if chance.chance(0.4) {
                ticks.push(Vec::new());
            }
        }
    }
    ticks.retain(|tick| !tick.is_empty());
    ticks
}

/// Keeps a table up over some ticks, killed here and there.
async fn keep_up(
    program: &Arc<TableProgram>,
    ticks: &[Vec<LogBatch>],
    chance: &SeededRandomness,
) -> (Arc<Cold>, u64) {
    let at = StreamPartition::new(program.source().name.clone(), 0);
    let runs: Vec<_> = ticks.iter().map(|tick| (at.clone(), tick.clone())).collect();
    let mut life = Life::new(program.clone());
    life.run(&runs, chance).await;
    assert!(life.dead.is_empty(), "{:?}", life.dead);
    (life.cold.clone(), life.late.len() as u64)
}

/// Rows as sorted lines, so that two results compare as multisets.
fn multiset(batches: &[RecordBatch]) -> Vec<String> {
    let mut lines = lines(batches);
    lines.sort();
    lines
}

fn lines(batches: &[RecordBatch]) -> Vec<String> {
    let mut lines = Vec::new();
    for batch in batches {
        let names: Vec<String> = (0..batch.num_columns()).map(|at| at.to_string()).collect();
        let mut out = String::new();
        rows_as_json(batch, &names, true, "\n", &mut out);
        lines.extend(out.lines().map(str::to_owned));
    }
    lines
}

async fn batch_answer(engine: &Engine, rows: RecordBatch, sql: &str) -> Vec<RecordBatch> {
    let table = MemTable::try_new(rows.schema(), vec![vec![rows]]).unwrap();
    let state = engine.state_with([("s".to_owned(), Arc::new(table) as _)]).unwrap();
    SessionContext::new_with_state(state).sql(sql).await.unwrap().collect().await.unwrap()
}

/// Each row once per window that it belongs to, late rows left out: the plainest reading of the rules.
/// Groups of a session window are by `k`.
fn expand(rows: &RecordBatch, window: Window) -> RecordBatch {
    let times = rows.column_by_name(columns::EVENT_TIME).unwrap().as_primitive::<TimestampMicrosecondType>();
    let (mut picks, mut starts, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    let mut newest = i64::MIN;
    let mut in_time = Vec::new();
    for (row, time) in times.values().iter().enumerate() {
        let ends = match window.kind {
            WindowKind::Hopping { advance, .. } => time.div_euclid(advance) * advance + advance,
            WindowKind::Session { gap } => time + gap,
        };
        if ends + window.grace > newest {
            newest = newest.max(*time);
            in_time.push((row, *time));
        }
    }
    match window.kind {
        WindowKind::Hopping { size, advance } => {
            for (row, time) in in_time {
                let mut start = time.div_euclid(advance) * advance;
                while start + size > time {
                    picks.push(row as u32);
                    starts.push(start);
                    ends.push(start + size);
                    start -= advance;
                }
            }
        }
        WindowKind::Session { gap } => {
            let keys = rows.column_by_name("k").unwrap().as_string::<i32>();
            let key = |row: usize| keys.is_valid(row).then(|| keys.value(row).to_owned());
            let mut sorted = in_time.clone();
            sorted.sort_by_key(|(row, time)| (key(*row), *time));
            // Neighbours in time with one key and no gap between them are one session.
            let mut sessions: Vec<Vec<(usize, i64)>> = Vec::new();
            for (row, time) in sorted {
                match sessions.last_mut() {
                    Some(session)
                        if key(session[0].0) == key(row) && time - session.last().unwrap().1 <= gap =>
                    {
                        session.push((row, time))
                    }
                    _ => sessions.push(vec![(row, time)]),
                }
            }
            let mut bounds: Vec<(usize, i64, i64)> = Vec::new();
            for session in sessions {
                let (start, end) = (session[0].1, session.last().unwrap().1 + gap);
                bounds.extend(session.iter().map(|(row, _)| (*row, start, end)));
            }
            // In the order of the log again.
            bounds.sort_unstable();
            for (row, start, end) in bounds {
                picks.push(row as u32);
                starts.push(start);
                ends.push(end);
            }
        }
    }
    let picked = arrow::compute::take_record_batch(rows, &UInt32Array::from(picks)).unwrap();
    let mut fields: Vec<_> = picked.schema().fields().iter().cloned().collect();
    let mut arrays = picked.columns().to_vec();
    for (name, values) in [("window_start", starts), ("window_end", ends)] {
        fields.push(Arc::new(Field::new(name, columns::timestamp_type(), false)));
        arrays.push(Arc::new(
            TimestampMicrosecondArray::from(values).with_data_type(columns::timestamp_type()),
        ));
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap()
}

/// Aggregates whose result is the same in whatever order rows come.
const AGGREGATES: &str = "count(*) AS c, count(n) AS cn, sum(n) AS sn, sum(big) AS sb, sum(d) AS sd, min(n) AS mn, \
    max(k) AS mk, min(d) AS md, max(f) AS mf, avg(d) AS ad, avg(n) AS an, latest_by_offset(n) AS ln, latest_by_offset(n, false) AS lnn, \
    earliest_by_offset(big) AS eb, collect_list(big) AS lb, count(*) FILTER (WHERE big > 0) AS cp, min(at) AS ma, \
    count(DISTINCT big) AS cdb, count(DISTINCT k) FILTER (WHERE n > 0) AS cdk, collect_set(k) AS sk, topk(big, 3) AS tb, \
    topkdistinct(d, 2) AS td, approx_count_distinct(n) AS acn, bool_and(n > 0) AS ba, bool_or(big > 490) AS bo";
/// Those that add floats up, which depends on the order.
const FLOATS: &str =
    "sum(f) AS sf, avg(f) AS af, stddev(f) AS df, stddev_pop(n) AS dn, var(big) AS vb, var_pop(f) AS vf";

fn seeds(count: u64) -> std::ops::Range<u64> {
    let (first, count) = (setting("HIGHWATER_SEED", 1), setting("HIGHWATER_SEEDS", count));
    println!("seeds {first} to {}", first + count - 1);
    first..first + count
}

fn wait<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

struct Case {
    /// The SELECT without GROUP BY.
    select: String,
    /// WHERE.
    filter: &'static str,
    /// GROUP BY without the window.
    group: &'static str,
    having: &'static str,
    window: &'static str,
}

fn cases() -> Vec<Case> {
    let case = |select: String, filter, group, having, window| Case { select, filter, group, having, window };
    const HOPPING: &str = "WINDOW HOPPING (SIZE 5 MINUTES, ADVANCE BY 1 MINUTE, GRACE PERIOD 1 HOUR)";
    const TUMBLING: &str = "WINDOW TUMBLING (SIZE 10 MINUTES, GRACE PERIOD 5 MINUTES)";
    const SESSION: &str = "WINDOW SESSION (2 MINUTES, GRACE PERIOD 30 MINUTES)";
    vec![
        case(format!("SELECT k, {FLOATS}, {AGGREGATES}"), "", "k", "", ""),
        case(format!("SELECT k, big % 3 AS m, {AGGREGATES}"), "n > 0", "k, big % 3", "", ""),
        case(
            format!("SELECT {AGGREGATES}, sum(big) + 1 AS more"),
            "",
            "k",
            "count(*) > 5 AND max(big) > 100",
            "",
        ),
        case("SELECT count(*) AS c, max(f) AS mf".into(), "", "", "", ""),
        // Float sums are left out of the windows: panes add them in another order than one pass does.
        case(format!("SELECT k, window_start, window_end, {AGGREGATES}"), "", "k", "", HOPPING),
        case(format!("SELECT k, window_start, {AGGREGATES}"), "", "k", "count(*) > 1", HOPPING),
        case(
            format!("SELECT upper(k) AS u, window_start, {AGGREGATES}"),
            "big < 400",
            "upper(k)",
            "",
            TUMBLING,
        ),
        case(format!("SELECT k, window_start, window_end, {AGGREGATES}"), "", "k", "", SESSION),
        case(format!("SELECT k, window_end, {AGGREGATES}"), "", "k", "count(*) > 2", SESSION),
    ]
}

fn clause(word: &str, text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" {word} {text}") }
}

#[test]
fn tables_equal_the_batch_answer() {
    wait(async {
        let engine = Engine::new([7; 32], 1 << 30).unwrap();
        for (number, case) in cases().iter().enumerate() {
            let Case { select, filter, group, having, window } = case;
            let (filter, having) = (clause("WHERE", filter), clause("HAVING", having));
            let script = format!(
                "{SOURCE} CREATE TABLE t AS {select} FROM s {window}{filter}{}{having};",
                clause("GROUP BY", group)
            );
            let catalog = declare(&engine, &script).await;
            let (program, source) = (table(&catalog, "t"), stream(&catalog, "s"));
            for seed in seeds(20) {
                let chance = SeededRandomness::new(seed * 100 + number as u64);
                let batches = data(&source, &chance, 1 + chance.below(400) as usize);
                let all = RowReader::new(&source).read_all(0, &batches).unwrap();
                let (cold, late) = keep_up(&program, &cut(&batches, &chance), &chance).await;
                let (other, other_late) = keep_up(&program, &cut(&batches, &chance), &chance).await;
                assert_eq!(cold.bytes(), other.bytes(), "seed {seed}: two cuts of {select} differ");
                assert_eq!(late, other_late);

                let kept = TableRows::new(program.clone(), cold).read(Extent::All).await.unwrap();
                let kept: Vec<RecordBatch> = kept
                    .into_iter()
                    .map(|batch| batch.project(&(0..batch.num_columns() - 1).collect::<Vec<_>>()).unwrap())
                    .collect();
                let expected = match program.window() {
                    None => {
                        let sql = format!("{select} FROM s{filter}{}{having}", clause("GROUP BY", group));
                        batch_answer(&engine, all.clone(), &sql).await
                    }
                    Some(window) => {
                        // Late is decided among the rows that pass the condition.
                        let passing = format!("SELECT * FROM s{filter} ORDER BY _offset");
                        let rows = batch_answer(&engine, all.clone(), &passing).await;
                        let rows = arrow::compute::concat_batches(&all.schema(), &rows).unwrap();
                        let sql =
                            format!("{select} FROM s GROUP BY {group}, window_start, window_end{having}");
                        batch_answer(&engine, expand(&rows, window), &sql).await
                    }
                };
                assert_eq!(multiset(&kept), multiset(&expected), "seed {seed}: {select} {window}");
            }
        }
    });
}

/// RETENTION takes windows away and EMIT FINAL holds open ones back; neither changes what is shown.
#[test]
fn retention_and_emit_final_show_a_part_of_the_same_windows() {
    wait(async {
        let engine = Engine::new([7; 32], 1 << 30).unwrap();
        const MINUTES: i64 = 60_000_000;
        let select = format!("SELECT k, window_start, window_end, {AGGREGATES} FROM s");
        let kinds = [
            ("TUMBLING (SIZE 10 MINUTES", 10, 0),
            ("HOPPING (SIZE 10 MINUTES, ADVANCE BY 5 MINUTES", 10, 0),
            ("SESSION (5 MINUTES", 0, 5),
        ];
        for (kind, _, gap) in kinds {
            let script = format!(
                "{SOURCE} CREATE TABLE plain AS {select} WINDOW {kind}, GRACE PERIOD 20 MINUTES) GROUP BY k;
                 CREATE TABLE kept AS {select} WINDOW {kind}, RETENTION 1 HOURS, GRACE PERIOD 20 MINUTES) GROUP BY k;
                 CREATE TABLE final AS {select} WINDOW {kind}, GRACE PERIOD 20 MINUTES) GROUP BY k EMIT FINAL;"
            );
            let catalog = declare(&engine, &script).await;
            let source = stream(&catalog, "s");
            for seed in seeds(8) {
                let chance = SeededRandomness::new(seed);
                let batches = data(&source, &chance, 300);
                let mut rows = std::collections::BTreeMap::new();
                let mut stored = std::collections::BTreeMap::new();
                let mut high = i64::MIN;
                for name in ["plain", "kept", "final"] {
                    let program = table(&catalog, name);
                    let (cold, _) = keep_up(&program, &cut(&batches, &chance), &chance).await;
                    high = cold.marks_now().values().map(|mark| mark.event_time_high).min().unwrap();
                    stored.insert(name, cold.bytes().len());
                    rows.insert(
                        name,
                        multiset(&TableRows::new(program, cold).read(Extent::All).await.unwrap()),
                    );
                }
                let end = |line: &String| {
                    let row: serde_json::Value = serde_json::from_str(line).unwrap();
                    highwater_event::time::parse_micros(row["2"].as_str().unwrap()).unwrap()
                };
                let expected: Vec<String> =
                    rows["plain"].iter().filter(|line| end(line) + 60 * MINUTES > high).cloned().collect();
                assert_eq!(rows["kept"], expected, "seed {seed}: {kind}");
                assert!(stored["kept"] < stored["plain"], "seed {seed}: {kind}: states were purged");
                let expected: Vec<String> = rows["plain"]
                    .iter()
                    .filter(|line| end(line) + (gap + 20) * MINUTES <= high)
                    .cloned()
                    .collect();
                assert_eq!(rows["final"], expected, "seed {seed}: {kind}");
                assert!(expected.len() < rows["plain"].len() && !expected.is_empty());
            }
        }
    });
}

#[test]
fn derived_streams_equal_the_batch_answer_and_bad_rows_stand_alone() {
    wait(async {
        let engine = Engine::new([7; 32], 1 << 30).unwrap();
        let select = "SELECT k, mask(k) AS m, CASE WHEN n > 0 THEN 'plus' ELSE 'minus' END AS sign, 100 / big AS q FROM s WHERE f IS NOT NULL";
        let unnest = "SELECT k, unnest(tags) AS tag, n FROM s WHERE n > 0";
        let catalog =
            declare(&engine, &format!("{SOURCE} CREATE STREAM t AS {select}; CREATE STREAM u AS {unnest};"))
                .await;
        let source = stream(&catalog, "s");
        let transform = |name: &str| match &catalog.streams[&highwater_event::StreamName::new(name).unwrap()]
            .derivation
        {
            Some(Derivation::Transform(transform)) => transform.clone(),
            _ => unreachable!(),
        };
        let (rows_of_t, rows_of_u) = (transform("t"), transform("u"));
        for seed in seeds(40) {
            let chance = SeededRandomness::new(seed);
            let batches = data(&source, &chance, 300);
            let all = RowReader::new(&source).read_all(0, &batches).unwrap();
            let (mut kept, mut dead, mut unnested) = (Vec::new(), Vec::new(), Vec::new());
            for tick in cut(&batches, &chance) {
                let transformed = rows_of_t.transform(0, &tick).await.unwrap();
                dead.extend(transformed.dead.into_iter().map(|refused| refused.offset));
                kept.extend(transformed.rows.map(|rows| rows.project(&[0, 1, 2, 3]).unwrap()));
                let transformed = rows_of_u.transform(0, &tick).await.unwrap();
                unnested.extend(transformed.rows.map(|rows| rows.project(&[0, 1, 2]).unwrap()));
            }
            let good = format!("{select} AND (big IS NULL OR big <> 0)");
            assert_eq!(
                multiset(&kept),
                multiset(&batch_answer(&engine, all.clone(), &good).await),
                "seed {seed}"
            );
            assert_eq!(
                multiset(&unnested),
                multiset(&batch_answer(&engine, all.clone(), unnest).await),
                "seed {seed}"
            );
            // 100 / 0 is an error of that row, and of that row only.
            let zero =
                batch_answer(&engine, all, "SELECT _offset FROM s WHERE f IS NOT NULL AND big = 0").await;
            assert_eq!(dead.len(), zero.iter().map(RecordBatch::num_rows).sum::<usize>(), "seed {seed}");
        }
    });
}

const BOTH: &str = "CREATE STREAM l (k TEXT, n INT, big BIGINT, f DOUBLE, d DECIMAL(15,2), at TIMESTAMP, tags ARRAY<TEXT>) WITH (event_time = 'at', lake = false);
    CREATE STREAM r (k TEXT, n INT, big BIGINT, f DOUBLE, d DECIMAL(15,2), at TIMESTAMP, tags ARRAY<TEXT>) WITH (event_time = 'at', lake = false);";

type Run = (StreamPartition, Vec<LogBatch>);

fn first_partition(name: &str) -> StreamPartition {
    StreamPartition::new(highwater_event::StreamName::try_from(name.to_owned()).unwrap(), 0)
}

/// Rows of both sides in the order of their commits.
fn ordered(left: &[LogBatch], right: &[LogBatch]) -> Vec<(StreamPartition, LogBatch)> {
    let mut all: Vec<(i64, u8, &LogBatch)> = right
        .iter()
        .map(|batch| (batch.recorded_at, 0, batch))
        .chain(left.iter().map(|batch| (batch.recorded_at, 1, batch)))
        .collect();
    all.sort_by_key(|(recorded_at, side, batch)| (*recorded_at, *side, batch.base));
    all.into_iter()
        .map(|(_, side, batch)| (first_partition(if side == 0 { "r" } else { "l" }), batch.clone()))
        .collect()
}

/// The same rows, dealt out to some partitions of their streams; those of one batch stay one commit.
fn dealt_out(batches: Vec<(StreamPartition, LogBatch)>, partitions: u32) -> Vec<(StreamPartition, LogBatch)> {
    let mut ends: BTreeMap<StreamPartition, u64> = BTreeMap::new();
    let mut dealt = Vec::new();
    for (at, batch) in batches {
        for partition in 0..partitions {
            let to = StreamPartition::new(at.stream.clone(), partition);
            let end = ends.entry(to.clone()).or_default();
            let mine = |row: usize| (batch.base + row as u64) % u64::from(partitions) == u64::from(partition);
            let rows = rows_where(&batch.rows, mine);
            if rows.num_rows() > 0 {
                let base = *end;
                *end += rows.num_rows() as u64;
                dealt.push((to, LogBatch { base, rows, ..batch.clone() }));
            }
        }
    }
    dealt
}

/// Batches of one partition that follow each other are taken together or not, at random.
fn cut_runs(batches: &[(StreamPartition, LogBatch)], chance: &SeededRandomness) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (at, batch) in batches {
        match runs.last_mut() {
            Some((same, batches)) if same == at && chance.chance(0.7) => batches.push(batch.clone()),
            _ => runs.push((at.clone(), vec![batch.clone()])),
        }
    }
    runs
}

/// Puts rows of `_idle` between batches, and at the end so much idleness that nothing waits any more.
fn with_idleness(
    batches: Vec<(StreamPartition, LogBatch)>,
    chance: &SeededRandomness,
) -> Vec<(StreamPartition, LogBatch)> {
    let mut ends: BTreeMap<StreamPartition, u64> = BTreeMap::new();
    let mut waited: BTreeMap<StreamPartition, i64> = BTreeMap::new();
    let sides: BTreeSet<StreamPartition> = batches.iter().map(|(at, _)| at.clone()).collect();
    let mut said = 0;
    let mut all = Vec::new();
    let mut say = |all: &mut Vec<_>, at: &StreamPartition, offset: u64, micros: i64, recorded_at: i64| {
        let waiting = Idle { at: at.clone(), offset, micros };
        let commit = idle::commit(&[waiting], recorded_at).unwrap();
        let rows = commit.appends.into_iter().next().unwrap().rows;
        all.push((first_partition(idle::IDLE), LogBatch { base: said, recorded_at, rows }));
        said += 1;
    };
    for (at, batch) in batches {
        let recorded_at = batch.recorded_at;
        ends.insert(at.clone(), batch.end());
        waited.remove(&at);
        all.push((at, batch));
        for side in &sides {
            while chance.chance(0.1) {
                let micros = waited.entry(side.clone()).or_default();
                *micros += chance.below(8 * MINUTE as u64) as i64;
                say(&mut all, side, ends.get(side).copied().unwrap_or(0), *micros, recorded_at);
            }
        }
    }
    for side in &sides {
        say(&mut all, side, ends.get(side).copied().unwrap_or(0), 100_000 * MINUTE, i64::MAX / 2);
    }
    all
}

fn join_of(catalog: &highwater_sql::Catalog, name: &str) -> Arc<JoinProgram> {
    match &catalog.streams[&highwater_event::StreamName::new(name).unwrap()].derivation {
        Some(Derivation::Join(join)) => join.clone(),
        _ => unreachable!(),
    }
}

async fn both_answer(engine: &Engine, left: RecordBatch, right: RecordBatch, sql: &str) -> Vec<String> {
    let of = |rows: RecordBatch| Arc::new(MemTable::try_new(rows.schema(), vec![vec![rows]]).unwrap()) as _;
    let state = engine.state_with([("l".to_owned(), of(left)), ("r".to_owned(), of(right))]).unwrap();
    multiset(&SessionContext::new_with_state(state).sql(sql).await.unwrap().collect().await.unwrap())
}

/// The rows of the joined stream; neither their order nor the states may depend on how its sources were cut.
async fn joined(
    program: Arc<JoinProgram>,
    batches: &[(StreamPartition, LogBatch)],
    columns: usize,
    chance: &SeededRandomness,
) -> Vec<String> {
    let mut cuts = Vec::new();
    for _ in 0..2 {
        let mut life = Life::new(program.clone());
        life.run(&cut_runs(batches, chance), chance).await;
        let rows: Vec<RecordBatch> =
            life.out.iter().map(|rows| rows.project(&(0..columns).collect::<Vec<_>>()).unwrap()).collect();
        cuts.push((lines(&rows), life.cold.bytes()));
    }
    assert!(cuts[0] == cuts[1], "two cuts differ");
    let (mut found, _) = cuts.swap_remove(0);
    found.sort();
    found
}

fn recorded(rows: &RecordBatch) -> Vec<i64> {
    rows.column_by_name(columns::RECORDED_AT)
        .unwrap()
        .as_primitive::<TimestampMicrosecondType>()
        .values()
        .to_vec()
}

fn rows_where(rows: &RecordBatch, keep: impl Fn(usize) -> bool) -> RecordBatch {
    let keep: arrow::array::BooleanArray = (0..rows.num_rows()).map(|row| Some(keep(row))).collect();
    arrow::compute::filter_record_batch(rows, &keep).unwrap()
}

#[test]
fn windowed_joins_equal_the_batch_answer() {
    wait(async {
        let engine = Engine::new([7; 32], 1 << 30).unwrap();
        let select = "SELECT l.k AS lk, l.n AS ln, r.big AS rb, l.d + r.d AS dd FROM l JOIN r";
        let on = "ON l.k = r.k AND l.n < r.n";
        let script = format!(
            "{BOTH} CREATE STREAM j AS {select} WITHIN (3 MINUTES, 1 MINUTE) GRACE PERIOD 10 MINUTES {on} WHERE l.big > -400;"
        );
        let catalog = declare(&engine, &script).await;
        let program = join_of(&catalog, "j");
        let source = stream(&catalog, "l");
        let mut matches = 0;
        for seed in seeds(20) {
            let chance = SeededRandomness::new(seed);
            let (left, right) = (data(&source, &chance, 150), data(&stream(&catalog, "r"), &chance, 150));
            let found = joined(program.clone(), &ordered(&left, &right), 4, &chance).await;
            // Late rows are left out, and rows without a key match nothing.
            let in_time = |batches: &[LogBatch]| {
                let rows = RowReader::new(&source).read_all(0, batches).unwrap();
                let times = rows
                    .column_by_name(columns::EVENT_TIME)
                    .unwrap()
                    .as_primitive::<TimestampMicrosecondType>()
                    .clone();
                let keys = rows.column_by_name("k").unwrap().clone();
                let mut newest = i64::MIN;
                let keep: Vec<bool> = (0..rows.num_rows())
                    .map(|row| {
                        let time = times.value(row);
                        let kept = keys.is_valid(row) && time + 13 * MINUTE > newest;
                        newest = newest.max(time);
                        kept
                    })
                    .collect();
                rows_where(&rows, |row| keep[row])
            };
            let sql = format!(
                "{select} {on} AND r._event_time >= l._event_time - INTERVAL '3 minutes' AND r._event_time <= l._event_time + INTERVAL '1 minute' WHERE l.big > -400"
            );
            let expected = both_answer(&engine, in_time(&left), in_time(&right), &sql).await;
            assert_eq!(found, expected, "seed {seed}");
            matches += found.len();
        }
        assert!(matches > 100, "the data brings {matches} matches");
    });
}

/// The rows of a stream that are not late, by the times at which each row and each idleness was known.
fn in_time(
    source: &StreamSchema,
    batches: &[(StreamPartition, LogBatch)],
    keep_null_keys: bool,
) -> RecordBatch {
    // Per partition: the newest event, carried on; the offset that it waits for, and how long already.
    let mut known: BTreeMap<StreamPartition, (i64, u64, i64)> = BTreeMap::new();
    let mut kept = vec![RowReader::new(source).read_all(0, &[]).unwrap()];
    for (of, batch) in batches {
        if of.stream.as_str() == idle::IDLE {
            for (_, idle) in idle::waiting(batch) {
                if let Some((high, offset, waited)) = known.get_mut(&idle.at) {
                    let before = if *offset == idle.offset { *waited } else { 0 };
                    *high += (idle.micros - before).max(0);
                    (*offset, *waited) = (idle.offset, idle.micros.max(before));
                }
            }
        }
        if of.stream != source.name {
            continue;
        }
        let (high, ..) = known.entry(of.clone()).or_insert((i64::MIN, u64::MAX, 0));
        let rows = RowReader::new(source).read_all(0, std::slice::from_ref(batch)).unwrap();
        let times = rows.column_by_name(columns::EVENT_TIME).unwrap();
        let times = times.as_primitive::<TimestampMicrosecondType>();
        let keys = rows.column_by_name("k").unwrap();
        let keep: Vec<bool> = (0..rows.num_rows())
            .map(|row| {
                let late = times.value(row) + 13 * MINUTE <= *high;
                *high = (*high).max(times.value(row));
                if keys.is_null(row) { keep_null_keys } else { !late }
            })
            .collect();
        kept.push(rows_where(&rows, |row| keep[row]));
    }
    arrow::compute::concat_batches(&kept[0].schema(), &kept).unwrap()
}

#[test]
fn windowed_left_joins_equal_the_batch_answer() {
    wait(async {
        let engine = Engine::new([7; 32], 1 << 30).unwrap();
        let select =
            "SELECT l.k AS lk, l.n AS ln, r.big AS rb, coalesce(r.d, 0) + l.d AS dd FROM l LEFT JOIN r";
        let (mut rows, mut without) = (0, 0);
        for seed in seeds(40) {
            let chance = SeededRandomness::new(seed);
            let partitions = 1 + (seed % 3) as u32;
            let both = BOTH.replace("lake = false", &format!("lake = false, partitions = {partitions}"));
            let script = format!(
                "{both} CREATE STREAM j AS {select} WITHIN (3 MINUTES, 1 MINUTE) GRACE PERIOD 10 MINUTES ON l.k = r.k WHERE l.big > -400;"
            );
            let catalog = declare(&engine, &script).await;
            let program = join_of(&catalog, "j");
            let (of_left, of_right) = (stream(&catalog, "l"), stream(&catalog, "r"));
            let (left, right) = (data(&of_left, &chance, 150), data(&of_right, &chance, 120));
            let batches = with_idleness(dealt_out(ordered(&left, &right), partitions), &chance);
            let found = joined(program.clone(), &batches, 4, &chance).await;
            let sql = format!(
                "{select} ON l.k = r.k AND r._event_time >= l._event_time - INTERVAL '3 minutes' AND r._event_time <= l._event_time + INTERVAL '1 minute' WHERE l.big > -400"
            );
            let (left, right) = (in_time(&of_left, &batches, true), in_time(&of_right, &batches, false));
            let expected = both_answer(&engine, left, right, &sql).await;
            assert_eq!(found, expected, "seed {seed}");
            rows += found.len();
            without += found.iter().filter(|row| row.contains("null")).count();
        }
        assert!(rows > 2000 && without > 500, "the data brings {rows} rows, {without} of them with nulls");
    });
}

#[test]
fn joins_with_a_table_see_it_as_it_stood_at_the_commit() {
    wait(async {
        let engine = Engine::new([7; 32], 1 << 30).unwrap();
        let aggregate = "SELECT k, big % 2 AS m, count(*) AS c, max(d) AS md FROM r WHERE big IS NOT NULL GROUP BY k, big % 2";
        for kind in ["JOIN", "LEFT JOIN"] {
            let select = format!(
                "SELECT l.k, l.n, t.c, t.md, coalesce(t.c, 0) + 1 AS next FROM l {kind} t ON t.m = l.big % 2 AND l.k = t.k"
            );
            let catalog = declare(
                &engine,
                &format!("{BOTH} CREATE TABLE t AS {aggregate}; CREATE STREAM j AS {select};"),
            )
            .await;
            let program = join_of(&catalog, "j");
            let source = stream(&catalog, "l");
            for seed in seeds(10) {
                let chance = SeededRandomness::new(seed);
                let (left, right) = (data(&source, &chance, 60), data(&stream(&catalog, "r"), &chance, 60));
                let found = joined(program.clone(), &ordered(&left, &right), 5, &chance).await;
                let (left, right) = (
                    RowReader::new(&source).read_all(0, &left).unwrap(),
                    RowReader::new(&source).read_all(0, &right).unwrap(),
                );
                let (commits, known) = (recorded(&left), recorded(&right));
                let mut expected = Vec::new();
                let mut distinct = commits.clone();
                distinct.dedup();
                for commit in distinct {
                    let sql = select.replace(" t ON", &format!(" ({aggregate}) t ON"));
                    let (left, right) = (
                        rows_where(&left, |row| commits[row] == commit),
                        rows_where(&right, |row| known[row] <= commit),
                    );
                    expected.extend(both_answer(&engine, left, right, &sql).await);
                }
                expected.sort();
                assert_eq!(found, expected, "seed {seed}: {kind}");
            }
        }
    });
}

#[test]
fn as_of_joins_take_the_newest_version_that_was_known() {
    wait(async {
        let engine = Engine::new([7; 32], 1 << 30).unwrap();
        for (operator, inclusive) in [(">=", true), (">", false)] {
            let script = format!(
                "{BOTH} CREATE STREAM j AS SELECT l.k, l.n, r.big, r.at FROM l ASOF JOIN r MATCH_CONDITION (l.at {operator} r.at) ON l.k = r.k;"
            );
            let catalog = declare(&engine, &script).await;
            let program = join_of(&catalog, "j");
            let source = stream(&catalog, "l");
            for seed in seeds(20) {
                let chance = SeededRandomness::new(seed);
                let (left, right) = (data(&source, &chance, 150), data(&stream(&catalog, "r"), &chance, 150));
                let found = joined(program.clone(), &ordered(&left, &right), 4, &chance).await;
                let (left, right) = (
                    RowReader::new(&source).read_all(0, &left).unwrap(),
                    RowReader::new(&source).read_all(0, &right).unwrap(),
                );
                let (commits, known) = (recorded(&left), recorded(&right));
                let key = |rows: &RecordBatch, row: usize| {
                    let keys = rows.column(0).as_string::<i32>();
                    keys.is_valid(row).then(|| keys.value(row).to_owned())
                };
                let time = |rows: &RecordBatch, row: usize| {
                    rows.column(5).as_primitive::<TimestampMicrosecondType>().value(row)
                };
                let picks: UInt32Array = (0..left.num_rows())
                    .map(|row| {
                        let fits = |other: &usize| {
                            let (ours, theirs) = (time(&left, row), time(&right, *other));
                            key(&left, row).is_some()
                                && key(&left, row) == key(&right, *other)
                                && known[*other] <= commits[row]
                                && (theirs < ours || (inclusive && theirs == ours))
                        };
                        (0..right.num_rows())
                            .filter(fits)
                            .max_by_key(|other| (time(&right, *other), *other))
                            .map(|other| other as u32)
                    })
                    .collect();
                let take = |column: usize| arrow::compute::take(right.column(column), &picks, None).unwrap();
                let fields = ["0", "1", "2", "3"]
                    .into_iter()
                    .zip([left.column(0), left.column(1), &take(2), &take(5)])
                    .map(|(name, column)| Field::new(name, column.data_type().clone(), true))
                    .collect::<Vec<_>>();
                let expected = RecordBatch::try_new(
                    Arc::new(Schema::new(fields)),
                    vec![left.column(0).clone(), left.column(1).clone(), take(2), take(5)],
                )
                .unwrap();
                assert_eq!(found, multiset(&[expected]), "seed {seed}: {operator}");
            }
        }
    });
}
