//! What the index finds is what a look at every row finds, whatever rows and questions are, and whenever it is ended.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Int64Type};
use highwater_event::search::{Search, Words};
use highwater_event::{Column, Condition, StreamName, StreamOptions, StreamPartition, StreamSchema, columns};
use highwater_log::LogBatch;
use highwater_log::view::{Gather, View};
use highwater_search::{SearchIndex, SearchView, Wanted};
use highwater_sim::{setting, vault};

/// A generator whose numbers a seed decides.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len() as u64) as usize]
    }
}

const HOUR: i64 = 3_600_000_000;
const NAMES: [&str; 9] = ["ada", "ad", "Ada", "bob", "b*b", "", "straße", "a\u{10ffff}b", "a\u{10ffff}"];
const WORDS: [&str; 8] = ["Card", "declined", "over", "limit", "42nd", "Über", "façade", "decline"];

#[derive(Clone)]
struct Row {
    actor: Option<String>,
    details: Option<String>,
    note: Option<String>,
    amount: Option<i64>,
    time: i64,
}

fn row(chance: &mut Chance) -> Row {
    let words = |chance: &mut Chance| {
        let count = chance.below(6);
        (0..count).map(|_| chance.pick(&WORDS)).collect::<Vec<_>>().join(chance.pick(&[" ", ", ", "-"]))
    };
    let some = |chance: &mut Chance, text: String| (chance.below(8) > 0).then_some(text);
    let mut actor = chance.pick(&NAMES).to_owned();
    if chance.below(20) == 0 {
        // Longer than what is indexed as it is.
        actor = format!("{}{}", "é".repeat(600), chance.below(3));
    }
    let mut note = words(chance);
    if chance.below(20) == 0 {
        note = format!("{note} {}{}", "w".repeat(300), chance.below(3));
    }
    let details =
        format!(r#"{{"reason":"{}","n":{},"esc":"stra\u00dfe\nnext"}}"#, words(chance), chance.below(50));
    Row {
        actor: some(chance, actor),
        details: some(chance, details),
        note: some(chance, note),
        amount: (chance.below(8) > 0).then(|| chance.below(20) as i64 - 10),
        time: chance.below(1000) as i64 * HOUR / 7 - 50 * HOUR,
    }
}

fn schema() -> Arc<StreamSchema> {
    let column = |name: &str, data_type| Column::new(name, data_type, true);
    let columns = vec![
        column("actor", DataType::Utf8),
        Column { json: true, ..column("details", DataType::Utf8) },
        column("note", DataType::Utf8),
        column("amount", DataType::Int64),
    ];
    let names = ["actor", "details", "note", "amount"].map(str::to_owned).to_vec();
    let options = StreamOptions { lake: true, partitions: 2, search: names, ..StreamOptions::default() };
    Arc::new(StreamSchema::new(StreamName::new("events").unwrap(), columns, options, false).unwrap())
}

fn batch(rows: &[Row], base: u64) -> LogBatch {
    let texts = |of: fn(&Row) -> Option<String>| -> ArrayRef {
        Arc::new(rows.iter().map(of).collect::<StringArray>())
    };
    let amounts: Int64Array = rows.iter().map(|row| row.amount).collect();
    let times = TimestampMicrosecondArray::from_iter_values(rows.iter().map(|row| row.time));
    let columns: Vec<ArrayRef> = vec![
        texts(|row| row.actor.clone()),
        texts(|row| row.details.clone()),
        texts(|row| row.note.clone()),
        Arc::new(amounts),
        Arc::new(times.with_data_type(columns::timestamp_type())),
    ];
    let rows = RecordBatch::try_new(schema().stored_schema(), columns).unwrap();
    LogBatch { base, recorded_at: base as i64, rows }
}

fn question(chance: &mut Chance, depth: u32) -> Condition {
    let bound = |chance: &mut Chance| match chance.below(3) {
        0 => Bound::Unbounded,
        1 => Bound::Included(chance.below(20) as i64 - 10),
        _ => Bound::Excluded(chance.below(20) as i64 - 10),
    };
    match chance.below(if depth == 0 { 5 } else { 7 }) {
        0 => Condition::Text { column: "actor".into(), text: chance.pick(&NAMES).into() },
        1 => {
            let long = format!("{}1", "é".repeat(600));
            let texts = ["", "a", "ad", "stra", "a\u{10ffff}", "é", long.as_str(), "\u{10ffff}"];
            let text = chance.pick(&texts).to_owned();
            match chance.below(2) {
                0 if text.len() <= 1024 => Condition::Begins { column: "actor".into(), text },
                _ => Condition::Text { column: "actor".into(), text },
            }
        }
        2 => {
            let from = bound(chance);
            let to = if from == Bound::Unbounded { Bound::Excluded(3) } else { bound(chance) };
            if chance.below(2) == 0 {
                return Condition::Number { column: "amount".into(), from, to };
            }
            let hours = |bound: Bound<i64>| bound.map(|number| number * HOUR / 2);
            let column = || columns::EVENT_TIME.to_owned();
            Condition::All(vec![
                Condition::Number { column: column(), from: hours(from), to: hours(to) },
                Condition::Number { column: column(), from: Bound::Unbounded, to: Bound::Included(3 * HOUR) },
            ])
        }
        3 | 4 => {
            let (first, second) = (chance.pick(&WORDS), chance.pick(&WORDS));
            let search = match chance.below(9) {
                0 => first.to_owned(),
                1 => format!("{first} {second}"),
                2 => format!("\"{first} {second}\""),
                3 => format!("{}*", &first[..first.len().min(2)]),
                4 => format!("\"{first} d\"*"),
                5 => format!("{first} -{second}"),
                6 => format!("-{first}"),
                7 => format!("{}*", "w".repeat(200)),
                _ => "straße".to_owned(),
            };
            let json = chance.below(2) == 0;
            let column = if json { "details" } else { "note" };
            Condition::Words { column: column.into(), json, search: Search::read(&search).unwrap() }
        }
        kind => {
            let parts = (0..chance.below(4)).map(|_| question(chance, depth - 1)).collect();
            if kind == 5 { Condition::All(parts) } else { Condition::Any(parts) }
        }
    }
}

/// The conditions that one is made of, itself if it is simple.
fn simple(condition: &Condition) -> Vec<&Condition> {
    match condition {
        Condition::All(parts) | Condition::Any(parts) => parts.iter().flat_map(simple).collect(),
        simple => vec![simple],
    }
}

/// How many rows an index holds.
fn held(index: &Arc<SearchIndex>) -> u64 {
    let everything = BTreeMap::from([(0, u64::MAX), (1, u64::MAX)]);
    index.snapshot(&everything).count(&Condition::All(Vec::new())).unwrap()
}

/// Whether a row fits, by looking at it.
fn fits(condition: &Condition, row: &Row) -> bool {
    let text = |column: &str| match column {
        "actor" => &row.actor,
        "note" => &row.note,
        _ => &row.details,
    };
    match condition {
        Condition::All(parts) => parts.iter().all(|part| fits(part, row)),
        Condition::Any(parts) => parts.iter().any(|part| fits(part, row)),
        Condition::Text { column, text: wanted } => text(column).as_ref() == Some(wanted),
        Condition::Begins { column, text: wanted } => {
            text(column).as_ref().is_some_and(|text| text.starts_with(wanted))
        }
        Condition::Number { column, from, to } if column == columns::EVENT_TIME => {
            std::ops::RangeBounds::contains(&(*from, *to), &row.time)
        }
        Condition::Number { from, to, .. } => {
            row.amount.is_some_and(|amount| std::ops::RangeBounds::contains(&(*from, *to), &amount))
        }
        Condition::Words { column, json, search } => {
            let mut words = Words::default();
            let text = text(column).clone().unwrap_or_default();
            if *json {
                words.read_json(&text)
            } else {
                words.read(&text)
            }
            search.finds(&words)
        }
    }
}

type Rows = BTreeMap<(i64, i32, i64), Row>;

/// Asks everything that can be asked about a condition, and compares it with a look at every row.
fn compare(index: &Arc<SearchIndex>, rows: &Rows, condition: &Condition, chance: &mut Chance) {
    let until = BTreeMap::from([(0, chance.below(400)), (1, chance.below(400))]);
    let everything = BTreeMap::from([(0, u64::MAX), (1, u64::MAX)]);
    let until = if chance.below(2) == 0 { until } else { everything };
    let snapshot = index.snapshot(&until);
    // The beginning of a word at the end of a phrase is all that is left to whoever reads rows.
    let beyond = |part: &&Condition| matches!(part, Condition::Words { search, .. } if search.terms().iter().any(|term| term.prefix && term.words.len() > 1));
    let known = simple(condition).iter().copied().find(beyond).is_none();
    assert_eq!(snapshot.knows(condition), known, "{condition:?}");
    if !known {
        return;
    }
    let seen = |(_, partition, offset): &(i64, i32, i64)| (*offset as u64) < until[&(*partition as u32)];
    let expected: Vec<_> = rows
        .iter()
        .filter(|(place, row)| seen(place) && fits(condition, row))
        .map(|(place, _)| *place)
        .collect();
    assert_eq!(snapshot.count(condition).unwrap(), expected.len() as u64, "{condition:?}");

    let oldest_first = chance.below(2) == 0;
    let limit = [usize::MAX, 1 + chance.below(20) as usize][chance.below(2) as usize];
    let behind = (chance.below(2) == 0).then(|| {
        (chance.below(1000) as i64 * HOUR / 7 - 50 * HOUR, chance.below(2) as i32, chance.below(400) as i64)
    });
    let found = snapshot.places(condition, Wanted { oldest_first, behind, limit }).unwrap();
    let mut page: Vec<_> = expected
        .iter()
        .filter(|place| {
            behind.is_none_or(|behind| if oldest_first { **place > behind } else { **place < behind })
        })
        .copied()
        .collect();
    if !oldest_first {
        page.reverse();
    }
    page.truncate(limit);
    let places: Vec<_> =
        found.places.iter().map(|place| (place.time, place.partition, place.offset)).collect();
    assert_eq!((found.total, places), (expected.len() as u64, page), "{condition:?}");

    let documents: Vec<u64> = found.places.iter().map(|place| place.document).collect();
    let kept = snapshot.rows(&documents, usize::MAX).unwrap().unwrap();
    let kept = RecordBatch::try_new(snapshot.schema().clone(), kept).unwrap();
    let of = |name: &str| kept.column_by_name(name).unwrap().clone();
    let (offsets, partitions) = (of(columns::OFFSET), of(columns::PARTITION));
    let by_place: BTreeMap<_, _> =
        rows.iter().map(|((_, partition, offset), row)| ((*partition, *offset), row)).collect();
    assert_eq!(kept.num_rows(), documents.len());
    for at in 0..kept.num_rows() {
        let partition = partitions.as_primitive::<arrow::datatypes::Int32Type>().value(at);
        let row = by_place[&(partition, offsets.as_primitive::<Int64Type>().value(at))];
        let text = |name: &str| {
            let column = of(name);
            column.is_valid(at).then(|| column.as_string_view().value(at).to_owned())
        };
        assert_eq!(text("actor"), row.actor);
        assert_eq!(text("details"), row.details);
        assert_eq!(text("note"), row.note);
    }
}

fn open(folder: &Path) -> Arc<SearchIndex> {
    Arc::new(SearchIndex::open(folder, schema(), vault()).unwrap())
}

fn view(index: &Arc<SearchIndex>) -> SearchView {
    SearchView::new(index.clone(), Gather { rows: 100, wait: std::time::Duration::ZERO })
}

#[tokio::test]
async fn the_index_finds_what_a_look_at_every_row_finds() {
    for seed in 0..setting("HIGHWATER_SEEDS", 6) {
        let mut chance = Chance(seed);
        let folder = tempfile::tempdir().unwrap();
        let mut index = open(folder.path());
        let mut rows = Rows::new();
        let mut next = [0u64; 2];
        for _ in 0..12 {
            let partition = chance.below(2) as u32;
            let at = StreamPartition::new(schema().name.clone(), partition);
            let new: Vec<Row> = (0..1 + chance.below(60)).map(|_| row(&mut chance)).collect();
            let base = next[partition as usize];
            view(&index).apply(&at, vec![batch(&new, base)]).await.unwrap();
            next[partition as usize] += new.len() as u64;
            rows.extend(
                new.into_iter()
                    .zip(base..)
                    .map(|(row, offset)| ((row.time, partition as i32, offset as i64), row)),
            );
            if chance.below(4) == 0 {
                // Ended and opened again, it goes on from its mark.
                drop(index);
                index = open(folder.path());
            }
            assert_eq!(view(&index).mark(&at).await.unwrap(), next[partition as usize]);
            for _ in 0..20 {
                let condition = question(&mut chance, 2);
                compare(&index, &rows, &condition, &mut chance);
            }
        }
        let before = chance.below(200) as i64;
        let removed = rows.len();
        // Rows are recorded when their batch was: at the offset of its first.
        let recorded = index.retire(before).unwrap();
        let left = held(&index);
        assert_eq!(recorded + left, removed as u64, "seed {seed}");
        view(&index).reset().await.unwrap();
        let at = StreamPartition::new(schema().name.clone(), 0);
        assert_eq!(view(&index).mark(&at).await.unwrap(), 0);
        assert_eq!(held(&index), 0);
    }
}

#[tokio::test]
async fn a_damaged_index_and_one_of_other_columns_are_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let at = StreamPartition::new(schema().name.clone(), 0);
    let rows: Vec<Row> = (0..10).map(|seed| row(&mut Chance(seed))).collect();
    let fill = async |index: &Arc<SearchIndex>| {
        view(index).apply(&at, vec![batch(&rows, 0)]).await.unwrap();
        assert_eq!(index.marks().get(&0), Some(&10));
    };
    fill(&open(folder.path())).await;
    std::fs::write(folder.path().join("events/meta.json"), "{").unwrap();
    let index = open(folder.path());
    assert!(index.marks().is_empty());
    fill(&index).await;
    drop(index);
    let mut other = schema().as_ref().clone();
    other.options.search.pop();
    let other = Arc::new(other);
    let index = SearchIndex::open(folder.path(), other, vault()).unwrap();
    assert!(index.marks().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_go_and_come_at_the_same_time() {
    let folder = tempfile::tempdir().unwrap();
    let index = open(folder.path());
    let ended = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let going = {
        let (index, ended) = (index.clone(), ended.clone());
        std::thread::spawn(move || {
            while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                index.retire(50).unwrap();
            }
        })
    };
    let at = StreamPartition::new(schema().name.clone(), 0);
    for base in (0..200).step_by(10) {
        let rows: Vec<Row> = (0..10).map(|seed| row(&mut Chance(seed))).collect();
        view(&index).apply(&at, vec![batch(&rows, base)]).await.unwrap();
    }
    ended.store(true, std::sync::atomic::Ordering::Relaxed);
    going.join().unwrap();
    index.retire(50).unwrap();
    assert_eq!(index.marks().get(&0), Some(&200));
    assert_eq!(held(&index), 150);
    // Rows that do not follow are refused, and leave nothing behind.
    let rows: Vec<Row> = (0..10).map(|seed| row(&mut Chance(seed))).collect();
    assert!(view(&index).apply(&at, vec![batch(&rows, 190)]).await.is_err());
    view(&index).apply(&at, vec![batch(&rows, 200)]).await.unwrap();
    assert_eq!((index.marks().get(&0), held(&index)), (Some(&210), 160));
}
