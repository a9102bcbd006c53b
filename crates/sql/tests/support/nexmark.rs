//! Nexmark events as rows of the pack's streams.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, Int64Builder, RecordBatch, StringBuilder, TimestampMicrosecondArray, new_null_array,
};
use highwater_event::{StreamSchema, columns};
use nexmark::config::NexmarkConfig;
use nexmark::event::Event;

/// The pack.
pub const PACK: &str = include_str!("../../../../packs/nexmark/nexmark.sql");

/// Columns of one stream that grow event by event.
#[derive(Default)]
struct Rows {
    ints: Vec<(&'static str, Int64Builder)>,
    texts: Vec<(&'static str, StringBuilder)>,
    times: Vec<(&'static str, Vec<i64>)>,
    count: usize,
}

impl Rows {
    fn int(&mut self, name: &'static str, value: usize) {
        match self.ints.iter_mut().find(|(known, _)| *known == name) {
            Some((_, builder)) => builder.append_value(value as i64),
            None => {
                self.ints.push((name, Int64Builder::new()));
                self.int(name, value);
            }
        }
    }

    fn text(&mut self, name: &'static str, value: &str) {
        match self.texts.iter_mut().find(|(known, _)| *known == name) {
            Some((_, builder)) => builder.append_value(value),
            None => {
                self.texts.push((name, StringBuilder::new()));
                self.text(name, value);
            }
        }
    }

    fn time(&mut self, name: &'static str, millis: u64) {
        match self.times.iter_mut().find(|(known, _)| *known == name) {
            Some((_, values)) => values.push(millis as i64 * 1000),
            None => self.times.push((name, vec![millis as i64 * 1000])),
        }
    }

    /// The rows in the stored schema of a stream; event time is `date_time`, or else the rows' `arrival`.
    fn batch(&mut self, schema: &StreamSchema, arrival: i64) -> RecordBatch {
        let rows = std::mem::take(&mut self.count);
        let mut columns: Vec<(&str, ArrayRef)> = Vec::new();
        for (name, builder) in &mut self.ints {
            columns.push((name, Arc::new(builder.finish())));
        }
        for (name, builder) in &mut self.texts {
            columns.push((name, Arc::new(builder.finish())));
        }
        let mut event_times = vec![arrival; rows];
        for (name, values) in std::mem::take(&mut self.times) {
            if schema.options.event_time.as_deref() == Some(name) {
                event_times.clone_from(&values);
            }
            let array = TimestampMicrosecondArray::from(values).with_data_type(columns::timestamp_type());
            columns.push((name, Arc::new(array)));
        }
        let times = TimestampMicrosecondArray::from(event_times).with_data_type(columns::timestamp_type());
        columns.push((columns::EVENT_TIME, Arc::new(times)));
        let stored = schema.stored_schema();
        let arrays = stored
            .fields()
            .iter()
            .map(|field| match columns.iter().find(|(name, _)| *name == field.name()) {
                Some((_, array)) => array.clone(),
                None => new_null_array(field.data_type(), rows),
            })
            .collect();
        RecordBatch::try_new(stored, arrays).unwrap_or_else(|error| panic!("{}: {error}", schema.name))
    }
}

/// The four streams.
pub struct Streams {
    pub person: Arc<StreamSchema>,
    pub auction: Arc<StreamSchema>,
    pub bid: Arc<StreamSchema>,
    pub bid_arrival: Arc<StreamSchema>,
}

/// Rows of the next `count` events for each stream that gets some.
pub fn next_rows(
    streams: &Streams,
    events: &mut dyn Iterator<Item = Event>,
    count: usize,
    arrival: i64,
) -> Vec<(Arc<StreamSchema>, RecordBatch)> {
    let (mut people, mut auctions, mut bids, mut arrivals) =
        (Rows::default(), Rows::default(), Rows::default(), Rows::default());
    for event in events.take(count) {
        match event {
            Event::Person(person) => {
                people.count += 1;
                people.int("id", person.id);
                people.text("name", &person.name);
                people.text("email_address", &person.email_address);
                people.text("credit_card", &person.credit_card);
                people.text("city", &person.city);
                people.text("state", &person.state);
                people.time("date_time", person.date_time);
                people.text("extra", &person.extra);
            }
            Event::Auction(auction) => {
                auctions.count += 1;
                auctions.int("id", auction.id);
                auctions.text("item_name", &auction.item_name);
                auctions.text("description", &auction.description);
                auctions.int("initial_bid", auction.initial_bid);
                auctions.int("reserve", auction.reserve);
                auctions.time("date_time", auction.date_time);
                auctions.time("expires", auction.expires);
                auctions.int("seller", auction.seller);
                auctions.int("category", auction.category);
                auctions.text("extra", &auction.extra);
            }
            Event::Bid(bid) => {
                for rows in [&mut bids, &mut arrivals] {
                    rows.count += 1;
                    rows.int("auction", bid.auction);
                    rows.int("bidder", bid.bidder);
                    rows.int("price", bid.price);
                }
                bids.text("channel", &bid.channel);
                bids.text("url", &bid.url);
                bids.time("date_time", bid.date_time);
                bids.text("extra", &bid.extra);
            }
        }
    }
    let parts = [
        (&streams.person, &mut people),
        (&streams.auction, &mut auctions),
        (&streams.bid, &mut bids),
        (&streams.bid_arrival, &mut arrivals),
    ];
    parts
        .into_iter()
        .filter(|(_, rows)| rows.count > 0)
        .map(|(schema, rows)| (schema.clone(), rows.batch(schema, arrival)))
        .collect()
}

/// Events as the benchmark defines them, `rate` of them a second of event time.
pub fn events(rate: usize) -> nexmark::EventGenerator {
    let config = NexmarkConfig {
        base_time: 1_767_225_600_000,
        first_rate: rate,
        next_rate: rate,
        ..NexmarkConfig::default()
    };
    nexmark::EventGenerator::new(config)
}
