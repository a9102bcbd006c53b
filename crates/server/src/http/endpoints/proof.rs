//! Endpoints that prove an event: what the stream holds, and since when, verified without this node.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{DataType, Int32Type, Int64Type, TimestampMicrosecondType};
use axum::http::StatusCode;
use datafusion::common::ScalarValue;
use highwater_audit::leaf::{self, Record};
use highwater_audit::proof::Proof;
use highwater_audit::{AuditError, EventProof};
use highwater_event::{StreamName, columns};
use highwater_lake::Moment;
use highwater_log::audit::{AUDIT, SEAL};
use highwater_sql::adhoc::{self, Lens, Limits, QueryResult};

use super::{Question, nothing_at};
use crate::http::problem::{Answer, Problem};
use crate::http::{sql::typed, streams};
use crate::node::{FORBIDDEN, Fixed, Node, QUERY_LIMITS};

/// The events of one commit are read together.
const SEALED: Limits = Limits { rows: 1 << 20, bytes: 1 << 30, ..QUERY_LIMITS };
/// How long somebody waits for a turn.
const WAIT: Duration = Duration::from_secs(10);
/// How often the tree is asked for an entry that it is about to hold.
const PATIENCE: (usize, Duration) = (40, Duration::from_millis(50));

/// Answers the proof of the event that the first row names.
pub async fn answer(question: &Question, stream: &StreamName, path: &str) -> Answer {
    let Question { node, call, .. } = question;
    let named = question.rows().await?;
    let (partition, offset) = place(&named).ok_or_else(|| nothing_at(path))?;
    // A proof shows the event as it was written: whoever sees a mask in it, or not this row at all, gets none.
    let lens = node.lens(&call.identity, "stream", stream);
    if !lens.masks.is_empty() {
        let detail =
            format!("the events of \"{}\" are masked for you, and a proof would show them", stream.public());
        return Err(Problem::new(StatusCode::FORBIDDEN, FORBIDDEN, detail));
    }
    let here = format!("{} = {partition} AND {} = {offset}", columns::PARTITION, columns::OFFSET);
    let event = rows(node, stream, &here, Vec::new(), lens).await?;
    let recorded_at = number(&event, columns::RECORDED_AT).ok_or_else(|| nothing_at(path))?;
    call.saw("partition", partition);
    call.saw("offset", offset);

    let turn = node.proofs.take(&call.principal().name, WAIT).await.ok_or_else(|| {
        let detail = "too many proofs are being put together at the moment; try again";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail)
    })?;
    let at =
        vec![("at".to_owned(), ScalarValue::TimestampMicrosecond(Some(recorded_at), Some("UTC".into())))];
    let of_commit = format!("{} = $at", columns::RECORDED_AT);
    let sealed = rows(node, stream, &of_commit, at.clone(), Lens::default()).await?;
    let mut failed = not_sealed();
    for (entry, seal) in seals(node, stream, &of_commit, at).await? {
        if is_past_retention(node, stream, recorded_at) && seal_says_more(&seal, sealed.row_count()) {
            let detail = "events that were sealed with this one are past their retention, and a proof needs all of them";
            return Err(Problem::not_found("not_proven", detail));
        }
        let proof = included(node, entry).await?;
        let (sealer, batches) = (node.sealer.clone(), sealed.batches.clone());
        let text = node.machine.scheduler.work(move || {
            let way = sealer.sealed(seal.whole()?, &batches, before(&batches, partition, offset))?;
            EventProof::new(way, &seal, proof)?.text()
        });
        match text.await.map_err(Problem::internal)? {
            Ok(text) => {
                call.saw_rows(node, 1, text.as_bytes());
                drop(turn);
                return Ok(typed("text/plain; charset=utf-8", text));
            }
            Err(error) => failed = error.into(),
        }
    }
    Err(failed)
}

fn not_sealed() -> Problem {
    let detail = "the entry of the audit trail that seals this event is past its retention";
    Problem::not_found("not_proven", detail)
}

/// Whether some events of a commit may be gone, because their files were old enough, while others are still there.
fn is_past_retention(node: &Node, stream: &StreamName, recorded_at: i64) -> bool {
    let catalog = node.catalog();
    let retention = catalog.streams.get(stream).and_then(|entry| entry.schema.options.retention);
    retention.is_some_and(|retention| recorded_at <= node.machine.clock.now_micros() - retention)
}

/// Whether a seal speaks of more events than there are.
fn seal_says_more(seal: &Record, there: usize) -> bool {
    let says = serde_json::from_str::<serde_json::Value>(&seal.json).ok();
    let seen = says.and_then(|says| serde_json::from_str::<serde_json::Value>(says["seen"].as_str()?).ok());
    seen.and_then(|seen| seen["events"].as_u64()).is_some_and(|events| events > there as u64)
}

/// Rows of a stream, in the order of partition and offset.
async fn rows(
    node: &Arc<Node>,
    stream: &StreamName,
    condition: &str,
    values: Vec<(String, ScalarValue)>,
    lens: Lens,
) -> Result<QueryResult, Problem> {
    let schema = streams::find(node, stream.as_str())?.schema.clone();
    let snapshot = node.stream_snapshot(&schema, Moment::Now).await?;
    let relation = snapshot.relation(&node.engine, &schema, None, lens)?;
    let sql = format!(
        "SELECT * FROM events WHERE {condition} ORDER BY {}, {}",
        columns::PARTITION,
        columns::OFFSET
    );
    let (asked, fixed) = (node.clone(), Arc::new(Fixed::new("events", relation)));
    Ok(node.ask(async move { adhoc::query(&asked.engine, fixed, &sql, values, SEALED).await }).await?)
}

/// The entries of the trail that seal events of a stream in a commit, with their places: one, but for a stream that was
/// made anew under its name meanwhile.
async fn seals(
    node: &Arc<Node>,
    stream: &StreamName,
    of_commit: &str,
    mut values: Vec<(String, ScalarValue)>,
) -> Result<Vec<(u64, Record)>, Problem> {
    values.push(("resource".into(), ScalarValue::Utf8(Some(format!("stream:{}", stream.public())))));
    let condition = format!("{of_commit} AND action = '{SEAL}' AND resource = $resource");
    let found = rows(node, &StreamName::system(AUDIT), &condition, values, Lens::default()).await?;
    let mut seals = Vec::new();
    for batch in &found.batches {
        let entries = batch[columns::OFFSET].as_primitive::<Int64Type>().values();
        seals.extend(entries.iter().map(|entry| entry.unsigned_abs()).zip(leaf::records(batch)?));
    }
    Ok(seals)
}

/// The proof of an entry, which may take a moment to come into the tree.
async fn included(node: &Arc<Node>, entry: u64) -> Result<Proof, Problem> {
    let (mut attempts, pause) = PATIENCE;
    loop {
        let tree = node.tree.clone();
        match node.machine.scheduler.work(move || tree.proof(entry)).await.map_err(Problem::internal)? {
            Err(AuditError::Missing(_)) if attempts > 0 => attempts -= 1,
            Err(AuditError::Missing(_)) => {
                let detail =
                    "the tree has not come to the entry that seals this event; try again in a moment";
                return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not_in_the_tree", detail));
            }
            outcome => return Ok(outcome?),
        }
        node.machine.scheduler.sleep(pause).await;
    }
}

/// The first row's value of a column of whole numbers.
fn number(result: &QueryResult, name: &str) -> Option<i64> {
    let batch = result.batches.iter().find(|batch| batch.num_rows() > 0)?;
    let column = batch.column_by_name(name)?;
    if column.is_null(0) {
        return None;
    }
    match column.data_type() {
        DataType::Timestamp(..) => Some(column.as_primitive_opt::<TimestampMicrosecondType>()?.value(0)),
        DataType::Int32 => Some(column.as_primitive::<Int32Type>().value(0).into()),
        DataType::Int64 => Some(column.as_primitive::<Int64Type>().value(0)),
        _ => None,
    }
}

/// Where the first row says that its event stands.
fn place(named: &QueryResult) -> Option<(i64, i64)> {
    Some((number(named, columns::PARTITION)?, number(named, columns::OFFSET)?))
}

/// How many of the rows stand before a place.
fn before(batches: &[RecordBatch], partition: i64, offset: i64) -> usize {
    let rows = batches.iter().flat_map(|batch| {
        let partitions = batch[columns::PARTITION].as_primitive::<Int32Type>().values().iter();
        let offsets = batch[columns::OFFSET].as_primitive::<Int64Type>().values().iter();
        partitions.zip(offsets)
    });
    rows.take_while(|(at, place)| (i64::from(**at), **place) < (partition, offset)).count()
}
