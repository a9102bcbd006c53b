//! The oracle: what a table or derived stream keeps up, row by row, must equal what DataFusion answers
//! in one go over all rows, whatever the data and however it was cut into batches.
//! `HIGHWATER_SEED` and `HIGHWATER_SEEDS` choose the data.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::type_complexity,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use arrow::array::{
    ArrayRef, Decimal128Array, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use highwater_event::{Column, SeededRandomness, StreamName, StreamOptions, StreamSchema, columns};
use highwater_log::LogBatch;
use highwater_log::fold::{Program, StateReader, States, Stored};
use highwater_log::keyed::{Mark, StoreError};
use highwater_log::reader::RowReader;
use highwater_sql::adhoc::rows_as_json;
use highwater_sql::dialect::{Statement, Window};
use highwater_sql::plan::{plan_table, plan_transform};
use highwater_sql::stream::state::GroupState;
use highwater_sql::stream::table::Extent;
use highwater_sql::stream::{TableProgram, TableRows};
use highwater_sql::{Engine, parse_script};

/// States in memory that are encoded and decoded at every touch, as if they were always cold.
#[derive(Default)]
struct Cold(Mutex<BTreeMap<Vec<u8>, Vec<u8>>>);

struct Warm<'a> {
    cold: &'a Cold,
    states: BTreeMap<Vec<u8>, GroupState>,
}

impl States<GroupState> for Warm<'_> {
    fn state(&mut self, key: &[u8], new: &dyn Fn() -> GroupState) -> Result<&mut GroupState, StoreError> {
        let cold = self.cold.0.lock().unwrap();
        Ok(self
            .states
            .entry(key.to_vec())
            .or_insert_with(|| cold.get(key).map_or_else(new, |bytes| GroupState::decode(bytes).unwrap())))
    }
}

impl StateReader<GroupState> for Cold {
    fn read(&self, from: &[u8], visit: &mut dyn FnMut(&[u8], &GroupState) -> bool) -> Result<(), StoreError> {
        for (key, bytes) in self.0.lock().unwrap().range(from.to_vec()..) {
            if !visit(key, &GroupState::decode(bytes).unwrap()) {
                break;
            }
        }
        Ok(())
    }

    fn last_key(&self) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0.lock().unwrap().keys().next_back().cloned())
    }
}

fn source() -> Arc<StreamSchema> {
    let column = |name: &str, data_type: DataType| Column {
        name: name.into(),
        data_type,
        nullable: true,
        sensitive: false,
        json: false,
    };
    let columns = vec![
        column("k", DataType::Utf8),
        column("n", DataType::Int32),
        column("big", DataType::Int64),
        column("f", DataType::Float64),
        column("d", DataType::Decimal128(15, 2)),
        column("at", columns::timestamp_type()),
    ];
    let options = StreamOptions { event_time: Some("at".into()), partitions: 1, ..StreamOptions::default() };
    Arc::new(StreamSchema::new(StreamName::new("s").unwrap(), columns, options, true).unwrap())
}

const MINUTE: i64 = 60_000_000;

/// Random rows: nulls, repeats, disorder, extremes.
fn data(chance: &SeededRandomness, rows: usize) -> Vec<LogBatch> {
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
    let stored = source().stored_schema();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(fields.0)),
        Arc::new(Int32Array::from(fields.1)),
        Arc::new(Int64Array::from(fields.2)),
        Arc::new(Float64Array::from(fields.3)),
        Arc::new(Decimal128Array::from(fields.4).with_precision_and_scale(15, 2).unwrap()),
        Arc::new(TimestampMicrosecondArray::from(times.clone()).with_data_type(columns::timestamp_type())),
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
            recorded_at: 5_000_000 + from as i64,
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

async fn keep_up(program: &Arc<TableProgram>, ticks: &[Vec<LogBatch>]) -> (Cold, u64) {
    let cold = Cold::default();
    let mut mark = Mark::default();
    let mut late = 0;
    for tick in ticks {
        let rows: u64 = tick.iter().map(|batch| batch.rows.num_rows() as u64).sum();
        let prepared = program.prepare(0, tick).await.unwrap();
        let mut warm = Warm { cold: &cold, states: BTreeMap::new() };
        let folded = program.fold(prepared, &mut mark, &mut warm).unwrap();
        assert_eq!(
            rows,
            folded.folded + folded.filtered + folded.late.len() as u64 + folded.dead.len() as u64,
            "in = out + filtered + late + dead"
        );
        assert!(folded.dead.is_empty(), "{:?}", folded.dead);
        late += folded.late.len() as u64;
        let Warm { states, .. } = warm;
        let mut store = cold.0.lock().unwrap();
        for (key, state) in states {
            let mut bytes = Vec::new();
            state.encode(&mut bytes);
            store.insert(key, bytes);
        }
    }
    (cold, late)
}

/// Rows as sorted lines, so that two results compare as multisets.
fn multiset(batches: &[RecordBatch]) -> Vec<String> {
    let mut lines = Vec::new();
    for batch in batches {
        let names: Vec<String> = (0..batch.num_columns()).map(|at| at.to_string()).collect();
        let mut out = String::new();
        rows_as_json(batch, &names, true, "\n", &mut out);
        lines.extend(out.lines().map(str::to_owned));
    }
    lines.sort();
    lines
}

async fn batch_answer(engine: &Engine, rows: RecordBatch, sql: &str) -> Vec<RecordBatch> {
    let table = MemTable::try_new(rows.schema(), vec![vec![rows]]).unwrap();
    let state = engine.state_with("s", Arc::new(table)).unwrap();
    SessionContext::new_with_state(state).sql(sql).await.unwrap().collect().await.unwrap()
}

/// Each row once per window that it belongs to, late rows left out: the plainest reading of the rules.
fn expand(rows: &RecordBatch, window: Window) -> RecordBatch {
    use arrow::array::AsArray;
    let times = rows
        .column_by_name(columns::EVENT_TIME)
        .unwrap()
        .as_primitive::<arrow::datatypes::TimestampMicrosecondType>();
    let (mut picks, mut starts, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    let mut newest = i64::MIN;
    for (row, time) in times.values().iter().enumerate() {
        let pane = time.div_euclid(window.advance) * window.advance;
        if pane + window.advance + window.grace <= newest {
            continue;
        }
        newest = newest.max(*time);
        let mut start = pane;
        while start + window.size > *time {
            picks.push(row as u32);
            starts.push(start);
            ends.push(start + window.size);
            start -= window.advance;
        }
    }
    let picked = arrow::compute::take_record_batch(rows, &arrow::array::UInt32Array::from(picks)).unwrap();
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

const AGGREGATES: &str = "count(*) AS c, count(n) AS cn, sum(n) AS sn, sum(big) AS sb, sum(d) AS sd, min(n) AS mn, \
    max(k) AS mk, min(d) AS md, max(f) AS mf, avg(d) AS ad, avg(n) AS an, latest_by_offset(n) AS ln, \
    collect_list(big) AS lb, count(*) FILTER (WHERE big > 0) AS cp, min(at) AS ma";

#[test]
fn tables_equal_the_batch_answer() {
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let (first, count) = (number("HIGHWATER_SEED", 1), number("HIGHWATER_SEEDS", 40));
    println!("seeds {first} to {}", first + count - 1);
    let hopping = Window { size: 5 * MINUTE, advance: MINUTE, grace: 60 * MINUTE };
    let tumbling = Window { size: 10 * MINUTE, advance: 10 * MINUTE, grace: 5 * MINUTE };
    let statements = [
        // Float sums are left out of the windows: panes add them in another order than one pass does.
        (format!("SELECT k, sum(f) AS sf, avg(f) AS af, {AGGREGATES} FROM s GROUP BY k"), None),
        (format!("SELECT k, big % 3 AS m, {AGGREGATES} FROM s WHERE n > 0 GROUP BY k, big % 3"), None),
        (format!("SELECT {AGGREGATES}, sum(big) + 1 AS more FROM s GROUP BY k"), None),
        (format!("SELECT k, window_start, window_end, {AGGREGATES} FROM s GROUP BY k"), Some(hopping)),
        (
            format!(
                "SELECT upper(k) AS u, window_start, {AGGREGATES} FROM s WHERE big < 400 GROUP BY upper(k)"
            ),
            Some(tumbling),
        ),
    ];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let engine = Engine::new([7; 32], 1 << 30).unwrap();
        for seed in first..first + count {
            let chance = SeededRandomness::new(seed);
            let rows = 1 + chance.below(400) as usize;
            let batches = data(&chance, rows);
            let all = RowReader::new(&source()).read_all(0, &batches).unwrap();
            for (sql, window) in &statements {
                let text = format!("CREATE TABLE t AS {sql}");
                let Statement::CreateTableAs { name, query, .. } =
                    parse_script(&text).unwrap().remove(0).statement
                else {
                    unreachable!()
                };
                let program = Arc::new(plan_table(&engine, source(), name, *window, query).await.unwrap());
                let (cold, late) = keep_up(&program, &cut(&batches, &chance)).await;
                let (other, other_late) = keep_up(&program, &cut(&batches, &chance)).await;
                assert_eq!(
                    *cold.0.lock().unwrap(),
                    *other.0.lock().unwrap(),
                    "seed {seed}: two cuts of {sql} differ"
                );
                assert_eq!(late, other_late);

                let kept = TableRows::new(program, Arc::new(cold)).read(Extent::All).await.unwrap();
                let kept: Vec<RecordBatch> = kept
                    .into_iter()
                    .map(|batch| batch.project(&(0..batch.num_columns() - 1).collect::<Vec<_>>()).unwrap())
                    .collect();
                let expected = match window {
                    None => batch_answer(&engine, all.clone(), sql).await,
                    Some(window) => {
                        let grouped = format!("{sql}, window_start, window_end");
                        let condition = sql.contains("big < 400");
                        // Late is decided among the rows that pass the condition.
                        let rows = if condition {
                            batch_answer(
                                &engine,
                                all.clone(),
                                "SELECT * FROM s WHERE big < 400 ORDER BY _offset",
                            )
                            .await
                        } else {
                            vec![all.clone()]
                        };
                        let rows = arrow::compute::concat_batches(&all.schema(), &rows).unwrap();
                        batch_answer(&engine, expand(&rows, *window), &grouped).await
                    }
                };
                assert_eq!(multiset(&kept), multiset(&expected), "seed {seed}: {sql}");
            }
        }
    });
}

#[test]
fn derived_streams_equal_the_batch_answer_and_bad_rows_stand_alone() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let engine = Engine::new([7; 32], 1 << 30).unwrap();
        let select = "SELECT k, mask(k) AS m, CASE WHEN n > 0 THEN 'plus' ELSE 'minus' END AS sign, 100 / big AS q FROM s WHERE f IS NOT NULL";
        let text = format!("CREATE STREAM t AS {select}");
        let Statement::CreateStreamAs { name, options, query } = parse_script(&text).unwrap().remove(0).statement else { unreachable!() };
        let transform = plan_transform(&engine, source(), name, options, query).await.unwrap();
        for seed in 1..40 {
            let chance = SeededRandomness::new(seed);
            let batches = data(&chance, 300);
            let all = RowReader::new(&source()).read_all(0, &batches).unwrap();
            let (mut kept, mut dead) = (Vec::new(), Vec::new());
            for tick in cut(&batches, &chance) {
                let transformed = transform.transform(0, &tick).await.unwrap();
                dead.extend(transformed.dead.into_iter().map(|(offset, _, _)| offset));
                kept.extend(transformed.rows.map(|rows| rows.project(&[0, 1, 2, 3]).unwrap()));
            }
            let good = format!("{select} AND (big IS NULL OR big <> 0)");
            assert_eq!(multiset(&kept), multiset(&batch_answer(&engine, all.clone(), &good).await), "seed {seed}");
            // 100 / 0 is an error of that row, and of that row only.
            let zero = batch_answer(&engine, all, "SELECT _offset FROM s WHERE f IS NOT NULL AND big = 0").await;
            assert_eq!(dead.len(), zero.iter().map(RecordBatch::num_rows).sum::<usize>(), "seed {seed}");
        }
    });
}
