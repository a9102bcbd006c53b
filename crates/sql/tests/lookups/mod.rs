//! A question that names groups or windows of a table reads these alone, and answers what it would over all rows.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch, TimestampMicrosecondArray};
use async_trait::async_trait;
use datafusion::catalog::TableProvider;
use highwater_event::{SeededRandomness, columns};
use highwater_log::LogBatch;
use highwater_sql::adhoc::{self, Lens, Limits, Relations, rows_relation, table_relation};
use highwater_sql::stream::table::Extent;
use highwater_sql::stream::{TableProgram, TableRows};
use highwater_sql::{Engine, SqlError};

use super::support::{Cold, declare, stream, table};
use super::{MINUTE, SOURCE, cut, data, keep_up, multiset, seeds, wait};

#[derive(Debug)]
struct One(Arc<dyn TableProvider>);

#[async_trait]
impl Relations for One {
    fn names(&self) -> Vec<String> {
        vec!["t".into()]
    }

    async fn relation(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, SqlError> {
        Ok((name == "t").then(|| self.0.clone()))
    }
}

async fn ask(engine: &Engine, relation: Arc<dyn TableProvider>, question: &str) -> Vec<String> {
    let limits = Limits { time: Duration::from_secs(60), rows: 100_000, bytes: 1 << 30 };
    let answer = adhoc::query(engine, Arc::new(One(relation)), question, Vec::new(), limits).await;
    multiset(&answer.unwrap_or_else(|error| panic!("{question}: {error:?}")).batches)
}

/// What a question answers, and how many states are read for it.
async fn looked_up(
    engine: &Engine,
    program: &Arc<TableProgram>,
    cold: &Arc<Cold>,
    question: &str,
) -> (Vec<String>, usize) {
    let rows = Arc::new(TableRows::new(program.clone(), cold.clone()));
    let before = cold.states_read();
    let relation = table_relation(engine, rows, Extent::All, &Lens::default()).unwrap();
    let answer = ask(engine, relation, question).await;
    (answer, cold.states_read() - before)
}

async fn over_all_rows(
    engine: &Engine,
    program: &Arc<TableProgram>,
    rows: &[RecordBatch],
    question: &str,
) -> Vec<String> {
    let schema = program.schema().clone();
    ask(engine, rows_relation(engine, schema, rows.to_vec(), &[], &Lens::default()).unwrap(), question).await
}

/// What a table groups by and the end of its statement, conditions, and how many states each reads of those that there are: no
/// more than a number, or all.
type Asked = (&'static str, &'static str, &'static [(&'static str, Option<usize>)]);

const ASKED: [Asked; 6] = [
    (
        "k",
        "GROUP BY k",
        &[
            ("k = 'k1'", Some(1)),
            ("'k1' = k AND c > 1", Some(1)),
            ("k = 'nosuch'", Some(0)),
            ("k = repeat('x', 70000)", Some(0)),
            ("k = ''", Some(1)),
            ("k IN ('k1', 'k2', 'k1')", Some(2)),
            ("k = 'k1' OR k = 'k3'", Some(2)),
            ("k IN ('k1', 'k2', 'k3', 'k4', 'nosuch')", Some(4)),
            ("k = 'k1' AND k = 'k2'", Some(1)),
            ("k IS NULL", None),
            ("k <> 'k1'", None),
            ("k = 'k1' OR c > 3", None),
            ("lower(k) = 'k1'", None),
            ("c = 3", None),
            ("k LIKE 'k%'", None),
            ("k = (SELECT max(k) FROM t)", None),
        ],
    ),
    (
        "k AS key, big % 3 AS m",
        "GROUP BY k, big % 3 HAVING count(*) > 1",
        &[
            ("key = 'k1' AND m = 0", Some(1)),
            ("key IN ('k1', 'k2') AND m IN (0, 1, 2)", Some(6)),
            ("m = 1 AND key = 'k2' AND c > 2", Some(1)),
            ("m = 9223372036854775807 AND key = 'k2'", Some(0)),
            ("key = 'k1'", None),
            ("m = 1", None),
        ],
    ),
    (
        "n",
        "WHERE n IS NOT NULL GROUP BY n",
        &[("n = -2147483648", Some(1)), ("n = 4000000000", None), ("n > 0", None)],
    ),
    ("window_start, k", "WINDOW TUMBLING (SIZE 10 MINUTES, GRACE PERIOD 1 HOUR) GROUP BY k", WINDOWS),
    (
        "k, window_start, window_end",
        "WINDOW HOPPING (SIZE 5 MINUTES, ADVANCE BY 1 MINUTE, GRACE PERIOD 1 HOUR) GROUP BY k",
        WINDOWS,
    ),
    ("count(*) AS all_of_them", "", &[("c > 0", Some(1)), ("c < 0", Some(1))]),
];

const WINDOWS: &[(&str, Option<usize>)] = &[
    ("window_start >= '1970-01-01T18:30:00Z'", Some(usize::MAX)),
    ("window_start > '1970-01-01T18:33:20Z' AND k = 'k1'", Some(usize::MAX)),
    ("window_start = '1970-01-01T18:30:00Z'", Some(usize::MAX)),
    ("window_start BETWEEN '1970-01-01T17:00:00Z' AND '1970-01-01T19:00:00Z'", Some(usize::MAX)),
    ("window_start IN ('1970-01-01T18:00:00Z', '1970-01-01T18:30:00Z')", Some(usize::MAX)),
    ("window_start < '1970-01-01T18:30:00Z'", None),
    ("window_start >= '1970-01-01T18:30:00Z' OR k = 'k1'", None),
    ("k = 'k1'", None),
];

#[test]
fn named_groups_and_windows_are_read_alone_and_answer_the_same() {
    wait(async {
        let engine = Engine::new([7; 32], 1 << 30).unwrap();
        let mut found = 0;
        for (columns, rest, conditions) in ASKED {
            let script = format!(
                "{SOURCE} CREATE TABLE t AS SELECT {columns}, count(*) AS c, max(n) AS mn FROM s {rest};"
            );
            let catalog = declare(&engine, &script).await;
            let (program, source) = (table(&catalog, "t"), stream(&catalog, "s"));
            for seed in seeds(5) {
                let chance = SeededRandomness::new(seed);
                let batches = data(&source, &chance, 400);
                let (cold, _) = keep_up(&program, &cut(&batches, &chance), &chance).await;
                let all = cold.bytes().len();
                let rows = TableRows::new(program.clone(), cold.clone()).read(Extent::All).await.unwrap();
                for (condition, most) in conditions {
                    let question = format!("SELECT * FROM t WHERE {condition}");
                    let (answer, read) = looked_up(&engine, &program, &cold, &question).await;
                    let expected = over_all_rows(&engine, &program, &rows, &question).await;
                    assert_eq!(answer, expected, "seed {seed}: {rest}: {condition}");
                    found += answer.len();
                    match most {
                        Some(usize::MAX) => {
                            assert!(read < all, "seed {seed}: {condition} reads {read} of {all}")
                        }
                        Some(most) => assert!(read <= *most, "seed {seed}: {condition} reads {read}"),
                        None => assert_eq!(read % all, 0, "seed {seed}: {condition}"),
                    }
                }
            }
        }
        assert!(found > 1_000, "conditions find rows: {found}");
    });
}

/// A table of how many rows each `k` has.
async fn counted(engine: &Engine) -> (Arc<TableProgram>, Arc<Cold>) {
    let script = format!("{SOURCE} CREATE TABLE t AS SELECT k, count(*) AS c FROM s GROUP BY k;");
    let catalog = declare(engine, &script).await;
    let (program, source) = (table(&catalog, "t"), stream(&catalog, "s"));
    let chance = SeededRandomness::new(1);
    let (cold, _) = keep_up(&program, &cut(&data(&source, &chance, 400), &chance), &chance).await;
    (program, cold)
}

/// All that one question says of a table is of one moment.
#[test]
fn a_question_that_names_a_table_twice_reads_it_once() {
    wait(async {
        let engine = Engine::new([7; 32], 1 << 30).unwrap();
        let (program, cold) = counted(&engine).await;
        let all = cold.bytes().len();
        for question in [
            "SELECT c FROM t WHERE k = 'k1' UNION ALL SELECT c FROM t WHERE k = 'k2'",
            "SELECT a.c, b.c FROM t a, t b WHERE a.k = 'k1' AND b.k = 'k2'",
            "SELECT (SELECT c FROM t WHERE k = 'k1') + (SELECT max(c) FROM t) AS s",
            "WITH x AS (SELECT * FROM t) SELECT x.c FROM x JOIN x AS y ON x.k = y.k WHERE x.k = 'k3'",
        ] {
            let (answer, read) = looked_up(&engine, &program, &cold, question).await;
            assert_eq!(read, all, "{question}");
            assert!(!answer.is_empty(), "{question}");
        }
        // The same relation, asked again, shows what it has shown.
        let rows = Arc::new(TableRows::new(program, cold.clone()));
        let relation = table_relation(&engine, rows, Extent::All, &Lens::default()).unwrap();
        let before = cold.states_read();
        for _ in 0..3 {
            assert_eq!(ask(&engine, relation.clone(), "SELECT c FROM t WHERE k = 'k1'").await.len(), 1);
        }
        assert_eq!(cold.states_read() - before, 1);
    });
}

/// Whoever is shown a part of the rows is shown them as of one moment, too.
#[test]
fn a_row_filter_hides_no_second_reading() {
    wait(async {
        let engine = Engine::new([7; 32], 1 << 30).unwrap();
        let (program, cold) = counted(&engine).await;
        let all = cold.bytes().len();
        let lens = Lens { filters: vec!["k <> 'k2'".into()], ..Lens::default() };
        for (question, read, answer) in [
            ("SELECT k FROM t WHERE k = 'k1'", 1, r#"{"0":"k1"}"#),
            ("SELECT count(*) FROM t WHERE k = 'k2'", 1, r#"{"0":0}"#),
            (
                "SELECT (SELECT max(k) FROM t WHERE k = 'k1') AS a, (SELECT min(k) FROM t WHERE k > 'k1') AS b",
                all,
                r#"{"0":"k1","1":"k3"}"#,
            ),
        ] {
            let rows = Arc::new(TableRows::new(program.clone(), cold.clone()));
            let relation = table_relation(&engine, rows, Extent::All, &lens).unwrap();
            let before = cold.states_read();
            assert_eq!(ask(&engine, relation, question).await, [answer], "{question}");
            assert!(cold.states_read() - before <= read, "{question} reads {}", cold.states_read() - before);
        }
    });
}

/// A window that lacks some of its panes is not even looked at: what is computed of it could fail.
#[test]
fn windows_before_the_time_that_is_asked_for_are_not_put_together() {
    wait(async {
        let engine = Engine::new([7; 32], 1 << 30).unwrap();
        let script = format!(
            "{SOURCE} CREATE TABLE t AS SELECT window_start AS start, 60 / (count(*) - 1) AS r FROM s \
             WINDOW HOPPING (SIZE 2 MINUTES, ADVANCE BY 1 MINUTE, GRACE PERIOD 1 HOUR);"
        );
        let catalog = declare(&engine, &script).await;
        let (program, source) = (table(&catalog, "t"), stream(&catalog, "s"));
        let chance = SeededRandomness::new(1);
        // Every window has two rows or three, and the second one a single row without its first pane.
        let rows = at_minutes(data(&source, &chance, 5), &[0, 0, 1, 2, 2]);
        let (cold, _) = keep_up(&program, &cut(&rows, &chance), &chance).await;
        let all = TableRows::new(program.clone(), cold.clone()).read(Extent::All).await;
        let question =
            "SELECT r FROM t WHERE start >= '1970-01-01T00:01:00Z' AND start < '1970-01-01T00:02:00Z'";
        let expected = over_all_rows(&engine, &program, &all.unwrap(), question).await;
        let (answer, _) = looked_up(&engine, &program, &cold, question).await;
        assert_eq!((answer.len(), &answer), (1, &expected));
    });
}

/// Rows with other event times.
fn at_minutes(mut batches: Vec<LogBatch>, minutes: &[i64]) -> Vec<LogBatch> {
    for batch in &mut batches {
        let first = batch.base as usize;
        let times = minutes[first..first + batch.rows.num_rows()].iter().map(|minute| minute * MINUTE);
        let times = TimestampMicrosecondArray::from_iter_values(times);
        let times: ArrayRef = Arc::new(times.with_data_type(columns::timestamp_type()));
        let fields = batch.rows.schema();
        let arrays = fields.fields().iter().zip(batch.rows.columns()).map(|(field, column)| {
            let changed = ["at", columns::EVENT_TIME].contains(&field.name().as_str());
            if changed { times.clone() } else { column.clone() }
        });
        batch.rows = RecordBatch::try_new(fields.clone(), arrays.collect()).unwrap();
    }
    batches
}
