//! What a page of found rows costs, beside the bare index: the same questions asked of tantivy itself, which ranks by time and
//! hands out its documents.
//!
//! `cargo bench -p highwater-server -p highwater-search --bench find`

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a program that measures")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::DataType;
use highwater_event::search::Search;
use highwater_event::{Column, Condition, StreamName, StreamOptions, StreamPartition, StreamSchema, columns};
use highwater_log::LogBatch;
use highwater_log::view::{Gather, View};
use highwater_search::{SearchIndex, SearchView, Wanted};
use highwater_sim::{setting, vault};
use tantivy::collector::{Count, TopDocs};
use tantivy::query::{BooleanQuery, Occur, Query, TermQuery};
use tantivy::schema::{FAST, IndexRecordOption, STORED, STRING, Schema, TEXT};
use tantivy::{Index, Order, TantivyDocument, Term};

const PAGE: usize = 51;

fn chance(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn actor(number: u64) -> String {
    format!("user-{}", chance(number) % 50_000)
}

fn details(number: u64) -> String {
    let words: Vec<String> = (0..6).map(|at| format!("word{}", chance(number * 7 + at) % 2000)).collect();
    format!("{} needle{}", words.join(" "), number / 1000)
}

fn stream() -> Arc<StreamSchema> {
    let columns = ["tenant", "actor", "details"].map(|name| Column::new(name, DataType::Utf8, true)).to_vec();
    let search = ["tenant", "actor", "details"].map(str::to_owned).to_vec();
    let options = StreamOptions { lake: true, partitions: 1, search, ..StreamOptions::default() };
    Arc::new(StreamSchema::new(StreamName::new("events").unwrap(), columns, options, false).unwrap())
}

fn batch(first: u64, rows: u64) -> LogBatch {
    let texts = |of: &dyn Fn(u64) -> String| -> ArrayRef {
        Arc::new((first..first + rows).map(|number| Some(of(number))).collect::<StringArray>())
    };
    let times =
        TimestampMicrosecondArray::from_iter_values((first..first + rows).map(|number| number as i64));
    let columns: Vec<ArrayRef> = vec![
        texts(&|number| format!("t{}", chance(number) % 20)),
        texts(&actor),
        texts(&details),
        Arc::new(times.with_data_type(columns::timestamp_type())),
    ];
    let rows = RecordBatch::try_new(stream().stored_schema(), columns).unwrap();
    LogBatch { base: first, recorded_at: first as i64, rows }
}

fn show(name: &str, mut ask: impl FnMut(u64) -> usize) {
    let (started, mut micros, mut rows) = (Instant::now(), Vec::new(), 0);
    while started.elapsed() < Duration::from_secs(3) {
        let begun = Instant::now();
        rows += ask(chance(micros.len() as u64));
        micros.push(begun.elapsed().as_micros() as u64);
    }
    micros.sort_unstable();
    let at = |share: usize| micros[micros.len() * share / 100];
    println!("{name:<44} {:>8} {:>8} {:>10.1}", at(50), at(99), rows as f64 / micros.len() as f64);
}

fn main() {
    let events = setting("HIGHWATER_EVENTS", 1_000_000);
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap();
    let index = Arc::new(SearchIndex::open(folder.path(), stream(), vault()).unwrap());
    let at = StreamPartition::new(stream().name.clone(), 0);
    let mut view = SearchView::new(index.clone(), Gather { rows: 65_536, wait: Duration::ZERO });
    let started = Instant::now();
    for first in (0..events).step_by(65_536) {
        let rows = 65_536.min(events - first);
        runtime.block_on(view.apply(&at, vec![batch(first, rows)])).unwrap();
    }
    println!("{events} rows taken in: {:.0} rows/s", events as f64 / started.elapsed().as_secs_f64());

    let mut schema = Schema::builder();
    let tenant = schema.add_text_field("tenant", STRING | STORED);
    let whole = schema.add_text_field("actor", STRING | STORED);
    let words = schema.add_text_field("details", TEXT | STORED);
    let time = schema.add_i64_field("time", FAST | STORED);
    let bare =
        Index::create_in_dir(tempfile::tempdir_in(folder.path()).unwrap().keep(), schema.build()).unwrap();
    let mut writer = bare.writer_with_num_threads(1, 48 << 20).unwrap();
    let started = Instant::now();
    for first in (0..events).step_by(65_536) {
        for number in first..(first + 65_536).min(events) {
            let mut document = TantivyDocument::default();
            document.add_text(tenant, format!("t{}", chance(number) % 20));
            document.add_text(whole, actor(number));
            document.add_text(words, details(number));
            document.add_i64(time, number as i64);
            writer.add_document(document).unwrap();
        }
        writer.commit().unwrap();
    }
    println!("bare: {:.0} rows/s", events as f64 / started.elapsed().as_secs_f64());

    let everything = BTreeMap::from([(0, u64::MAX)]);
    let ours = |condition: Condition| {
        let snapshot = index.snapshot(&everything);
        let wanted = Wanted { oldest_first: false, behind: None, limit: PAGE };
        let found = snapshot.places(&condition, wanted).unwrap();
        let documents: Vec<u64> = found.places.iter().map(|place| place.document).collect();
        snapshot.rows(&documents, usize::MAX).unwrap().unwrap()[0].len()
    };
    let searcher = bare.reader().unwrap().searcher();
    let theirs = |terms: Vec<Term>| {
        let term = |term| -> (Occur, Box<dyn Query>) {
            (Occur::Must, Box::new(TermQuery::new(term, IndexRecordOption::Basic)))
        };
        let query = BooleanQuery::new(terms.into_iter().map(term).collect());
        let newest = TopDocs::with_limit(PAGE).order_by_fast_field::<i64>("time", Order::Desc);
        let (top, _total) = searcher.search(&query, &(newest, Count)).unwrap();
        let documents = top.iter().map(|(_, address)| searcher.doc::<TantivyDocument>(*address).unwrap());
        documents.collect::<Vec<_>>().len()
    };
    let text = |column: &str, text: String| Condition::Text { column: column.into(), text };
    println!("{:<44} {:>8} {:>8} {:>10}", "a page, microseconds", "p50", "p99", "rows");
    show("one actor", |chance| ours(text("actor", actor(chance % events))));
    show("bare", |chance| theirs(vec![Term::from_field_text(whole, &actor(chance % events))]));
    let needle = |chance: u64| format!("needle{}", chance % events / 1000);
    show("a rare word of a tenant", |chance| {
        let search = Search::read(&needle(chance)).unwrap();
        let has = Condition::Words { column: "details".into(), json: false, search };
        ours(Condition::All(vec![text("tenant", format!("t{}", chance % 20)), has]))
    });
    show("bare", |chance| {
        let word = Term::from_field_text(words, &needle(chance));
        theirs(vec![Term::from_field_text(tenant, &format!("t{}", chance % 20)), word])
    });
    show("the newest of a tenant", |chance| ours(text("tenant", format!("t{}", chance % 20))));
    show("bare", |chance| theirs(vec![Term::from_field_text(tenant, &format!("t{}", chance % 20))]));
}
