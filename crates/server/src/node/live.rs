//! Queries that never end: rows of a stream as they come, or the changes of any other answer.
//!
//! A query that takes rows of one stream one by one is put through one plan as the log grows. Each
//! update carries the mark up to which it has read the log; a reader that comes back with a mark goes on
//! exactly there. The log is the buffer, so a slow reader misses nothing and holds nobody up.
//!
//! Any other query is asked again when something has changed, at most four times a second, and the
//! difference to the last answer is sent. A reader that comes back gets the whole answer first.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use highwater_auth::{Asked, Identity};
use highwater_event::json::rows_as_json;
use highwater_event::{Offset, Partition, StreamName, StreamPartition};
use highwater_log::reader::RowReader;
use highwater_sql::adhoc::{self, Lens, Limits, LiveQuery, QueryResult};
use highwater_sql::dialect::{Emit, parse_live_query, sql_type};
use highwater_sql::{SqlError, StreamEntry};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{FORBIDDEN, Node, NodeRelations, Reader, is_shared, unreadable};

/// Rows of the log that are read for one update.
const ROWS: usize = 4096;
/// The shortest time between two answers of a query that is asked again.
const AGAIN: Duration = Duration::from_millis(250);
/// How long a change of what is in force may go unnoticed.
const LOOK: Duration = Duration::from_secs(1);
/// How often a reader hears of the mark when no row is for it.
const QUIET: Duration = Duration::from_secs(10);
/// Rows that an answer may hold which is compared with the one before.
const COMPARED: Limits = Limits { time: Duration::from_secs(30), rows: 20_000, bytes: 64 << 20 };

/// What a reader is told whose permissions are others by now.
const CHANGED: &str = "what you may see has changed: begin again";

/// Something that a reader is told.
#[derive(Debug, Clone)]
pub struct Update {
    /// "columns", "rows", "changes", "mark" or "error".
    pub kind: &'static str,
    /// Where to go on; absent when that makes no sense.
    pub mark: Option<String>,
    /// What is told.
    pub data: Value,
}

/// Where a reader begins.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Start {
    Newest,
    Earliest,
    Marks(u32, BTreeMap<Partition, Offset>),
}

fn parse_start(text: Option<&str>) -> Result<Start, SqlError> {
    let wrong = || {
        SqlError::new(
            "invalid_parameter",
            "from is \"earliest\", \"newest\", or the mark of an update, like 0:1234",
        )
    };
    let (version, text) = match text.and_then(|text| text.split_once('@')) {
        Some((version, marks)) => (version.trim().parse().map_err(|_| wrong())?, Some(marks)),
        None => (1, text),
    };
    match text.map(str::trim) {
        None | Some("" | "newest" | "latest") => Ok(Start::Newest),
        Some("earliest") => Ok(Start::Earliest),
        Some(marks) => marks
            .split(',')
            .map(|part| {
                let (partition, offset) = part.split_once(':').ok_or_else(wrong)?;
                Ok((partition.parse().map_err(|_| wrong())?, offset.parse().map_err(|_| wrong())?))
            })
            .collect::<Result<_, _>>()
            .map(|marks| Start::Marks(version, marks)),
    }
}

/// Marks as a reader gets them. Each version of a stream has offsets of its own, so that of a later one stands in front.
fn show_marks(stream: &StreamName, marks: &BTreeMap<Partition, Offset>) -> Option<String> {
    let parts: Vec<String> =
        marks.iter().map(|(partition, offset)| format!("{partition}:{offset}")).collect();
    let version = match stream.version() {
        1 => String::new(),
        later => format!("{later}@"),
    };
    (!parts.is_empty()).then(|| version + &parts.join(","))
}

/// Starts a query and answers where its updates come out. It ends when nobody listens any more.
pub async fn follow(
    node: &Arc<Node>,
    identity: &Arc<Identity>,
    sql: &str,
    from: Option<&str>,
) -> Result<mpsc::Receiver<Update>, SqlError> {
    let start = parse_start(from)?;
    let (query, emit) = parse_live_query(sql)?;
    if emit == Emit::Final {
        return Err(SqlError::new("unsupported_sql", "EMIT FINAL needs a table with a WINDOW")
            .hint("follow such a table, or end the query with EMIT CHANGES"));
    }
    let (updates, out) = mpsc::channel(4);
    let stream = adhoc::followed(&query).and_then(|name| node.catalog().streams.get(&name).cloned());
    let lens = match &stream {
        Some(entry) => {
            let name = entry.schema.name.at_version(1);
            let shared = is_shared(&node.catalog(), &name);
            node.authorize(identity, Asked::on("read", "stream", name.as_str()).shared(shared))?;
            node.lens(identity, "stream", &name)
        }
        None => Lens::default(),
    };
    if let Some(entry) = stream
        && let Some(live) =
            LiveQuery::plan(&node.engine, &entry.schema, query.clone(), &lens, node.may_look_up(identity))
                .await?
    {
        let marks = begin(node, &entry, start)?;
        node.queries.spawn(follow_stream(
            node.clone(),
            (identity.clone(), lens),
            entry,
            live,
            marks,
            updates,
        ));
        return Ok(out);
    }
    // Asked once before the answer begins, so that a wrong query is an error and not an update.
    let text = query.to_string();
    let first = ask(node, identity, &text).await?;
    node.queries.spawn(follow_answer(node.clone(), identity.clone(), text, first, updates));
    Ok(out)
}

fn begin(node: &Node, entry: &StreamEntry, start: Start) -> Result<BTreeMap<Partition, Offset>, SqlError> {
    let name = &entry.schema.name;
    let partitions = 0..entry.schema.options.partitions.max(1);
    if let Start::Marks(version, marks) = &start {
        if *version != name.version() {
            return Err(replaced(name, "the mark is of another version of it"));
        }
        for (partition, offset) in marks {
            let end = node.log.end(&StreamPartition::new(name.clone(), *partition));
            if !partitions.contains(partition) || *offset > end {
                let detail = format!(
                    "{partition}:{offset} is no mark of \"{}\": it has none beyond {end}",
                    name.public()
                );
                return Err(SqlError::new("invalid_parameter", detail).hint(
                    "give the mark of an update of the same query, or begin with \"earliest\" or \"newest\"",
                ));
            }
        }
    }
    let marks = partitions.map(|partition| {
        let at = StreamPartition::new(name.clone(), partition);
        let offset = match &start {
            Start::Newest => node.log.end(&at),
            Start::Earliest if entry.schema.options.lake => 0,
            Start::Earliest => node.log.start(&at),
            Start::Marks(_, marks) => marks.get(&partition).copied().unwrap_or(0),
        };
        (partition, offset)
    });
    Ok(marks.collect())
}

/// The stream is not the one that was followed.
fn replaced(stream: &StreamName, why: &str) -> SqlError {
    SqlError::new("stream_changed", format!("\"{}\" was replaced or dropped: {why}", stream.public()))
        .hint("begin again with \"earliest\", or with \"newest\"")
}

fn columns(schema: &arrow::datatypes::Schema) -> Value {
    let columns = schema.fields().iter();
    columns.map(|field| json!({"name": field.name(), "type": sql_type(field.data_type())})).collect()
}

async fn follow_stream(
    node: Arc<Node>,
    (identity, lens): (Arc<Identity>, Lens),
    entry: Arc<StreamEntry>,
    live: LiveQuery,
    mut marks: BTreeMap<Partition, Offset>,
    updates: mpsc::Sender<Update>,
) {
    let reader = RowReader::new(&entry.schema);
    let schema = live.schema();
    let followed = &entry.schema.name;
    let head = Update { kind: "columns", mark: show_marks(followed, &marks), data: columns(&schema) };
    if updates.send(head).await.is_err() {
        return;
    }
    let growth = node.log.growth(std::slice::from_ref(followed));
    let mut told = std::time::Instant::now();
    let name = entry.schema.name.at_version(1);
    loop {
        if !node.is_current(&identity) || node.lens(&identity, "stream", &name) != lens {
            let data = json!({"code": FORBIDDEN, "detail": CHANGED});
            drop(updates.send(Update { kind: "error", mark: show_marks(followed, &marks), data }).await);
            return;
        }
        // Asked before the log is read: what was written while it was in force is told.
        let was_in_force = is_in_force(&node, followed);
        match read_once(&node, &entry, &reader, &live, &mut marks).await {
            Ok(Some(rows)) => {
                let update = Update { kind: "rows", mark: show_marks(followed, &marks), data: rows };
                if updates.send(update).await.is_err() {
                    return;
                }
                told = std::time::Instant::now();
                continue;
            }
            // Everything was told; nothing comes to a version that nobody writes any more.
            Ok(None) if !was_in_force => {
                let error = replaced(followed, "no row comes to this version of it any more");
                let data = json!({"code": error.code, "detail": error.message, "hint": error.hint});
                drop(updates.send(Update { kind: "error", mark: None, data }).await);
                return;
            }
            Ok(None) => {}
            Err(error) => {
                let data = json!({"code": error.code, "detail": error.message});
                // A reader that has gone needs no error.
                drop(updates.send(Update { kind: "error", mark: show_marks(followed, &marks), data }).await);
                return;
            }
        }
        tokio::select! {
            () = updates.closed() => return,
            () = growth.grown() => {}
            // Whether it is in force, and what the reader may see, is looked at although no row comes.
            () = tokio::time::sleep(LOOK) => {
                if told.elapsed() < QUIET {
                    continue;
                }
                told = std::time::Instant::now();
                let quiet = Update { kind: "mark", mark: show_marks(followed, &marks), data: Value::Null };
                if updates.send(quiet).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn is_in_force(node: &Node, stream: &StreamName) -> bool {
    let entry = node.catalog().streams.get(&stream.at_version(1)).cloned();
    entry.is_some_and(|entry| entry.schema.name == *stream)
}

/// Reads on until there are rows for the reader; `None` at the end of the log.
async fn read_once(
    node: &Node,
    entry: &StreamEntry,
    reader: &RowReader,
    live: &LiveQuery,
    marks: &mut BTreeMap<Partition, Offset>,
) -> Result<Option<Value>, SqlError> {
    let internal = |error: arrow::error::ArrowError| SqlError::new("internal", error.to_string());
    loop {
        let mut moved = false;
        for (partition, mark) in marks.iter_mut() {
            let at = StreamPartition::new(entry.schema.name.clone(), *partition);
            let batches = node.log.read(&at, *mark, ROWS).map_err(unreadable)?;
            let batches: Vec<_> = batches.into_iter().filter_map(|batch| batch.from_offset(*mark)).collect();
            let Some(end) = batches.last().map(highwater_log::LogBatch::end) else { continue };
            moved = true;
            let rows = live.run(reader.read_all(*partition, &batches).map_err(internal)?).await?;
            *mark = end;
            let values = as_values(&rows)?;
            if !values.is_empty() {
                return Ok(Some(Value::Array(values)));
            }
        }
        if !moved {
            return Ok(None);
        }
    }
}

fn as_values(batches: &[arrow::record_batch::RecordBatch]) -> Result<Vec<Value>, SqlError> {
    let mut values = Vec::new();
    for batch in batches {
        let names: Vec<String> = batch.schema().fields().iter().map(|field| field.name().clone()).collect();
        let mut text = String::from("[");
        rows_as_json(batch, &names, true, ",", &mut text);
        text.push(']');
        let rows: Vec<Value> =
            serde_json::from_str(&text).map_err(|error| SqlError::new("internal", error.to_string()))?;
        values.extend(rows);
    }
    Ok(values)
}

async fn ask(node: &Arc<Node>, identity: &Arc<Identity>, sql: &str) -> Result<QueryResult, SqlError> {
    let relations = Arc::new(NodeRelations::new(node.clone(), Reader::Caller(identity.clone())));
    let answer = adhoc::query(&node.engine, relations, sql, Vec::new(), COMPARED).await?;
    if answer.truncated {
        return Err(SqlError::new(
            "result_too_large",
            format!("a query whose changes are followed may answer {} rows", COMPARED.rows),
        )
        .hint("add LIMIT or a condition, or follow a stream row by row"));
    }
    Ok(answer)
}

/// Rows as texts with how often each is there.
fn counted(answer: &QueryResult) -> Result<HashMap<String, i64>, SqlError> {
    let mut counts = HashMap::new();
    for row in as_values(&answer.batches)? {
        *counts.entry(row.to_string()).or_insert(0) += 1;
    }
    Ok(counts)
}

async fn follow_answer(
    node: Arc<Node>,
    identity: Arc<Identity>,
    sql: String,
    first: QueryResult,
    updates: mpsc::Sender<Update>,
) {
    let growth = node.log.growth(&[]);
    let head = Update { kind: "columns", mark: None, data: columns(&first.schema) };
    if updates.send(head).await.is_err() {
        return;
    }
    let mut known: HashMap<String, i64> = HashMap::new();
    let mut answer = Ok(first);
    loop {
        let changes = answer.and_then(|answer| counted(&answer)).map(|now| {
            let changes = difference(&known, &now);
            known = now;
            changes
        });
        let update = match changes {
            Ok(Value::Null) => None,
            Ok(data) => Some(Update { kind: "changes", mark: None, data }),
            Err(error) => Some(Update {
                kind: "error",
                mark: None,
                data: json!({"code": error.code, "detail": error.message}),
            }),
        };
        if let Some(update) = update {
            let ends = update.kind == "error";
            if updates.send(update).await.is_err() || ends {
                return;
            }
        }
        tokio::select! {
            () = updates.closed() => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
        // Views trail the log by some milliseconds, so the last change is looked at a little later too.
        tokio::select! {
            () = updates.closed() => return,
            () = growth.grown() => {}
            () = tokio::time::sleep(4 * AGAIN) => {}
        }
        answer = if node.is_current(&identity) {
            ask(&node, &identity, &sql).await
        } else {
            Err(SqlError::new(FORBIDDEN, CHANGED))
        };
    }
}

/// Rows that came and rows that went; null when nothing changed.
fn difference(before: &HashMap<String, i64>, now: &HashMap<String, i64>) -> Value {
    let more = |a: &HashMap<String, i64>, b: &HashMap<String, i64>| -> Vec<Value> {
        let mut rows: Vec<&String> = Vec::new();
        for (row, count) in a {
            let extra = count - b.get(row).copied().unwrap_or(0);
            rows.extend(std::iter::repeat_n(row, extra.max(0) as usize));
        }
        rows.sort();
        rows.into_iter().filter_map(|row| serde_json::from_str(row).ok()).collect()
    };
    let (added, removed) = (more(now, before), more(before, now));
    if added.is_empty() && removed.is_empty() {
        Value::Null
    } else {
        json!({"added": added, "removed": removed})
    }
}
