//! What DataFusion costs per micro-batch: ten statements with cached plans over batches of 100 rows.
//!
//! `cargo bench -p highwater-sql --bench micro_batch`

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a program that measures")]

use std::sync::Arc;
use std::time::Instant;

use arrow::array::{
    ArrayRef, Decimal128Array, Int32Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::DataType;
use highwater_event::{Column, StreamName, StreamOptions, StreamSchema, columns};
use highwater_log::LogBatch;
use highwater_sql::dialect::Statement;
use highwater_sql::plan::plan_transform;
use highwater_sql::{Engine, parse_script};

fn source() -> Arc<StreamSchema> {
    let column = |name: &str, data_type: DataType| Column::new(name, data_type, true);
    let columns = vec![
        column("user_id", DataType::Utf8),
        column("status", DataType::Utf8),
        column("amount", DataType::Decimal128(15, 2)),
        column("quantity", DataType::Int32),
    ];
    Arc::new(
        StreamSchema::new(
            StreamName::new("s").unwrap_or_else(|_| unreachable!()),
            columns,
            StreamOptions::default(),
            false,
        )
        .unwrap_or_else(|_| unreachable!()),
    )
}

fn batch(rows: usize) -> LogBatch {
    let arrays: Vec<ArrayRef> = vec![
        Arc::new((0..rows).map(|n| Some(format!("USER-{:04}", n % 5000))).collect::<StringArray>()),
        Arc::new((0..rows).map(|n| Some(["completed", "pending", "failed"][n % 3])).collect::<StringArray>()),
        Arc::new(
            Decimal128Array::from_iter_values((0..rows).map(|n| 1000 + n as i128))
                .with_data_type(DataType::Decimal128(15, 2)),
        ),
        Arc::new(Int32Array::from_iter_values((0..rows).map(|n| (n % 10) as i32))),
        Arc::new(
            TimestampMicrosecondArray::from_iter_values(0..rows as i64)
                .with_data_type(columns::timestamp_type()),
        ),
    ];
    let rows =
        RecordBatch::try_new(source().stored_schema(), arrays).unwrap_or_else(|error| panic!("{error}"));
    LogBatch { base: 0, recorded_at: 0, rows }
}

fn main() {
    let statements = [
        "SELECT user_id, status, amount, quantity FROM s",
        "SELECT user_id, amount FROM s WHERE status = 'completed'",
        "SELECT mask(user_id) AS user_id, amount FROM s",
        "SELECT tokenize(user_id) AS token, amount FROM s",
        "SELECT user_id, amount * quantity AS total FROM s WHERE quantity > 2",
        "SELECT CASE WHEN quantity > 5 THEN 'many' ELSE 'few' END AS size, amount FROM s",
        "SELECT CAST(amount AS DOUBLE) AS amount FROM s WHERE amount > 500",
        "SELECT upper(status) AS status, user_id FROM s WHERE status <> 'failed'",
        "SELECT concat(user_id, '-', status) AS k, quantity FROM s",
        "SELECT user_id, amount, quantity FROM s WHERE status = 'pending' AND quantity < 5",
    ];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let engine = Engine::new([7; 32], 1 << 30).unwrap();
        let started = Instant::now();
        let mut transforms = Vec::new();
        for sql in statements {
            let text = format!("CREATE STREAM t AS {sql}");
            let Statement::CreateStreamAs { name, options, query, .. } =
                parse_script(&text).unwrap().remove(0).statement
            else {
                return;
            };
            transforms.push(plan_transform(&engine, source(), name, options, query).await.unwrap());
        }
        println!(
            "planning, once per statement            {:>10.0} µs",
            started.elapsed().as_secs_f64() * 1e6 / statements.len() as f64
        );
        println!(
            "{:>8} {:>22} {:>22} {:>20}",
            "rows", "µs per statement", "µs per batch of 10", "rows/s/statement"
        );
        for rows in [1, 100, 1000, 10_000] {
            let batch = vec![batch(rows)];
            let rounds = (200_000 / rows.max(100)).max(20);
            let started = Instant::now();
            for _ in 0..rounds {
                for transform in &transforms {
                    transform.transform(0, &batch).await.unwrap();
                }
            }
            let per_statement = started.elapsed().as_secs_f64() * 1e6 / (rounds * transforms.len()) as f64;
            println!(
                "{rows:>8} {per_statement:>22.1} {:>22.1} {:>20.0}",
                per_statement * 10.0,
                rows as f64 / per_statement * 1e6
            );
        }
    });
}
