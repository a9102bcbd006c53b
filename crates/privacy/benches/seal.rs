//! What it costs to encrypt and decrypt a column of a batch.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::DataType;
use highwater_event::{Column, Sensitive, StreamName, StreamOptions, StreamSchema};
use highwater_privacy::Positions;
use highwater_sim::vault;

fn main() {
    let vault = vault();
    let column = Column { sensitive: true, ..Column::new("phone", DataType::Utf8, true) };
    let stream =
        StreamSchema::new(StreamName::new("s").unwrap(), vec![column], StreamOptions::default(), false)
            .unwrap();
    let sensitive: Sensitive = stream.sensitive().unwrap();
    let values: StringArray = (0..8192).map(|number| Some(format!("+43 660 {number:07}"))).collect();
    let values: ArrayRef = Arc::new(values);
    let rows = RecordBatch::try_from_iter([("phone", values)]).unwrap();
    let at = Positions::Run { partition: 0, first: 0 };
    let rounds = 200;
    let started = Instant::now();
    let mut sealed = None;
    for _ in 0..rounds {
        sealed = Some(vault.encrypt("s", at, &sensitive, &rows).unwrap());
    }
    let seal = started.elapsed().as_secs_f64();
    let sealed = sealed.unwrap();
    let started = Instant::now();
    for _ in 0..rounds {
        vault.decrypt("s", at, &sensitive, &rows.schema(), &sealed).unwrap();
    }
    let open = started.elapsed().as_secs_f64();
    let values = f64::from(rounds) * 8192.0;
    println!("encrypt {:.0} ns a value, decrypt {:.0} ns a value", seal / values * 1e9, open / values * 1e9);
}
