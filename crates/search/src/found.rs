//! What a question finds: how many rows, where they stand, and the rows.

use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use highwater_event::{Offset, Partition};
use tantivy::collector::{Collector, Count, SegmentCollector};
use tantivy::columnar::Column;
use tantivy::query::Query;
use tantivy::{DocId, Score, Searcher, SegmentOrdinal, SegmentReader};

use crate::SearchError;
use crate::fields::{OFFSET, PARTITION, TIME};

/// Where a found row stands.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Event time, microseconds UTC.
    pub time: i64,
    /// Partition of its stream.
    pub partition: i32,
    /// Offset in it.
    pub offset: i64,
    /// Where the index keeps it.
    pub document: u64,
}

impl Place {
    fn standing(&self) -> (i64, i32, i64) {
        (self.time, self.partition, self.offset)
    }
}

/// The offsets before which rows are found, by partition; rows of others are not.
pub(crate) type Until = Arc<BTreeMap<Partition, Offset>>;

/// How many rows fit before some offsets; everything that the index holds without them.
pub(crate) fn count(
    searcher: &Searcher,
    query: &dyn Query,
    until: Option<&Until>,
) -> Result<u64, SearchError> {
    Ok(match until {
        None => searcher.search(query, &Count)? as u64,
        Some(until) => searcher.search(query, &Counting(until.clone()))?,
    })
}

/// Which places are wanted.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// The oldest rows first instead of the newest.
    pub oldest_first: bool,
    /// Only what stands behind this time, partition and offset.
    pub behind: Option<(i64, i32, i64)>,
    /// At most so many.
    pub limit: usize,
}

/// Rows that fit.
#[derive(Debug)]
pub struct Found {
    /// How many there are, wherever they stand.
    pub total: u64,
    /// Where those that were wanted stand, in their order.
    pub places: Vec<Place>,
}

/// Where the rows that fit stand.
pub(crate) fn places(
    searcher: &Searcher,
    query: &dyn Query,
    until: Option<&Until>,
    wanted: Wanted,
) -> Result<Found, SearchError> {
    Ok(searcher.search(query, &Places { until: until.cloned(), wanted })?)
}

/// Columns that say where a document's row stands.
struct Standing {
    partition: Column<i64>,
    offset: Column<i64>,
}

impl Standing {
    fn of(segment: &SegmentReader) -> tantivy::Result<Self> {
        let fast = segment.fast_fields();
        Ok(Self { partition: fast.i64(PARTITION)?, offset: fast.i64(OFFSET)? })
    }

    fn get(&self, document: DocId) -> (i64, i64) {
        (self.partition.first(document).unwrap_or(-1), self.offset.first(document).unwrap_or(-1))
    }
}

fn is_before(until: &BTreeMap<Partition, Offset>, (partition, offset): (i64, i64)) -> bool {
    let end = Partition::try_from(partition).ok().and_then(|partition| until.get(&partition));
    end.is_some_and(|end| offset >= 0 && (offset as Offset) < *end)
}

struct Counting(Until);

struct CountingSegment {
    standing: Standing,
    until: Until,
    count: u64,
}

impl Collector for Counting {
    type Fruit = u64;
    type Child = CountingSegment;

    fn for_segment(&self, _: SegmentOrdinal, segment: &SegmentReader) -> tantivy::Result<CountingSegment> {
        Ok(CountingSegment { standing: Standing::of(segment)?, until: self.0.clone(), count: 0 })
    }

    fn requires_scoring(&self) -> bool {
        false
    }

    fn merge_fruits(&self, fruits: Vec<u64>) -> tantivy::Result<u64> {
        Ok(fruits.into_iter().sum())
    }
}

impl SegmentCollector for CountingSegment {
    type Fruit = u64;

    fn collect(&mut self, document: DocId, _: Score) {
        self.count += u64::from(is_before(&self.until, self.standing.get(document)));
    }

    fn harvest(self) -> u64 {
        self.count
    }
}

struct Places {
    until: Option<Until>,
    wanted: Wanted,
}

/// A place that stands in the order of what is wanted: the first is the least.
struct Ranked {
    oldest_first: bool,
    place: Place,
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let order = self.place.standing().cmp(&other.place.standing());
        if self.oldest_first { order } else { order.reverse() }
    }
}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Ranked {}

/// The first places of what was seen, and how many were seen.
struct First {
    wanted: Wanted,
    total: u64,
    /// The last of them on top.
    places: BinaryHeap<Ranked>,
}

impl First {
    fn of(wanted: Wanted) -> Self {
        Self { wanted, total: 0, places: BinaryHeap::new() }
    }

    /// Whether a row of this time stands behind all places that are wanted.
    fn is_behind(&self, time: i64) -> bool {
        self.places.len() >= self.wanted.limit
            && self.places.peek().is_none_or(|last| match self.wanted.oldest_first {
                true => time > last.place.time,
                false => time < last.place.time,
            })
    }

    fn take(&mut self, place: Place) {
        let Wanted { oldest_first, behind, limit } = self.wanted;
        if behind.is_some_and(|behind| match oldest_first {
            true => place.standing() <= behind,
            false => place.standing() >= behind,
        }) {
            return;
        }
        let ranked = Ranked { oldest_first, place };
        if self.places.len() < limit {
            self.places.push(ranked);
        } else if let Some(mut last) = self.places.peek_mut()
            && ranked < *last
        {
            *last = ranked;
        }
    }
}

struct PlacesSegment {
    segment: SegmentOrdinal,
    time: Column<i64>,
    /// Times of a block of documents.
    times: Vec<Option<i64>>,
    standing: Standing,
    until: Option<Until>,
    first: First,
}

impl Collector for Places {
    type Fruit = Found;
    type Child = PlacesSegment;

    fn for_segment(&self, number: SegmentOrdinal, segment: &SegmentReader) -> tantivy::Result<PlacesSegment> {
        Ok(PlacesSegment {
            segment: number,
            time: segment.fast_fields().i64(TIME)?,
            times: Vec::new(),
            standing: Standing::of(segment)?,
            until: self.until.clone(),
            first: First::of(self.wanted),
        })
    }

    fn requires_scoring(&self) -> bool {
        false
    }

    fn merge_fruits(&self, fruits: Vec<First>) -> tantivy::Result<Found> {
        let mut first = First::of(self.wanted);
        for fruit in fruits {
            first.total += fruit.total;
            fruit.places.into_iter().for_each(|ranked| first.take(ranked.place));
        }
        let places = first.places.into_sorted_vec().into_iter().map(|ranked| ranked.place).collect();
        Ok(Found { total: first.total, places })
    }
}

impl PlacesSegment {
    fn take(&mut self, document: DocId, time: i64) {
        // Most rows stand behind those that are wanted, which their time tells.
        if self.until.is_none() && self.first.is_behind(time) {
            self.first.total += 1;
            return;
        }
        let (partition, offset) = self.standing.get(document);
        if self.until.as_ref().is_some_and(|until| !is_before(until, (partition, offset))) {
            return;
        }
        self.first.total += 1;
        let document = u64::from(self.segment) << 32 | u64::from(document);
        self.first.take(Place { time, partition: partition as i32, offset, document });
    }
}

impl SegmentCollector for PlacesSegment {
    type Fruit = First;

    fn collect(&mut self, document: DocId, _: Score) {
        let time = self.time.first(document);
        self.take(document, time.unwrap_or_default());
    }

    fn collect_block(&mut self, documents: &[DocId]) {
        let mut times = std::mem::take(&mut self.times);
        times.clear();
        times.resize(documents.len(), None);
        self.time.first_vals(documents, &mut times);
        for (document, time) in documents.iter().zip(&times) {
            self.take(*document, time.unwrap_or_default());
        }
        self.times = times;
    }

    fn harvest(self) -> First {
        self.first
    }
}
