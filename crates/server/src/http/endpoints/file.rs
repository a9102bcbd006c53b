//! Endpoints that answer files: all rows, streamed as they are read, so that a file of any length takes little memory.
//!
//! A file has two entries in the audit trail: that it was begun, before its first byte goes out, and what it held,
//! before its last one does. Whoever has a whole file has been written down with the number of its rows and its hash.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use aws_lc_rs::digest::{Context, SHA256};
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::IntoResponse;
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::basic::{Compression, ZstdLevel};
use datafusion::parquet::file::properties::WriterProperties;
use futures::StreamExt as _;
use futures::{FutureExt, Stream};
use highwater_event::hexadecimal;
use highwater_event::json::rows_as_json;
use highwater_log::audit::{Entry, Outcome};
use highwater_sql::adhoc::Rows;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{Asked, Question};
use crate::http::problem::{Answer, Problem};
use crate::http::sql::flat;
use crate::node::{Node, Turn};

/// Pieces that wait for a slow reader.
const WAITING: usize = 2;
/// How long a file may take; the files of the lake that it reads are kept for longer.
const LONGEST: Duration = Duration::from_secs(3600);
/// How long a reader may stand still.
const STALL: Duration = Duration::from_secs(120);
/// How long a reader waits for a turn.
const PATIENCE: Duration = Duration::from_secs(1);
/// Bytes that are gathered before a piece goes out, and of a row group of Parquet.
const PIECE: usize = 256 << 10;
const ROW_GROUP: usize = 16 << 20;
const ROW_GROUP_ROWS: usize = 128 << 10;

/// Words for the forms of a file, as [`FileFormat::read`] reads them.
pub const FORMATS: [&str; 4] = ["ndjson", "jsonl", "csv", "parquet"];

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileFormat {
    NdJson,
    Csv,
    Parquet,
}

impl FileFormat {
    fn read(text: Option<&str>) -> Result<Self, Problem> {
        match text {
            None | Some("ndjson" | "jsonl") => Ok(Self::NdJson),
            Some("csv") => Ok(Self::Csv),
            Some("parquet") => Ok(Self::Parquet),
            Some(other) => {
                Err(Problem::parameter("format", format!("\"{other}\" is not ndjson, csv or parquet")))
            }
        }
    }

    fn media_type(self) -> &'static str {
        match self {
            Self::NdJson => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8",
            Self::Parquet => "application/vnd.apache.parquet",
        }
    }

    fn extension(self) -> &'static str {
        match self {
            Self::NdJson => "ndjson",
            Self::Csv => "csv",
            Self::Parquet => "parquet",
        }
    }
}

/// A piece of a file on its way, or its end.
enum Piece {
    Part(Bytes),
    End,
}

/// Answers all rows as a file.
pub async fn answer(question: Question, asked: &Asked, head: bool) -> Answer {
    let format = FileFormat::read(asked.beside.get("format").map(String::as_str))?;
    let Question { node, call, endpoint, .. } = &question;
    let seen = json!({"format": format.extension(), "mark": node.log().recorded_until()});
    for name in ["format", "mark"] {
        call.saw(name, seen[name].clone());
    }
    let turn = node.files.take(&call.principal().name, PATIENCE).await.ok_or_else(|| {
        let detail = "too many files are being read at the moment; end one, or try again";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail)
    })?;
    let (sender, pieces) = mpsc::channel(WAITING);
    if head {
        // Closed at once, after its end.
        sender.send(Ok(Piece::End)).await.map_err(Problem::internal)?;
    } else {
        let rows = question.ask(|asking| async move { asking.posed().open().await }).await?;
        let writer = Writer::new(format, rows.schema.clone()).map_err(Problem::internal)?;
        let file = File { node: node.clone(), entry: call.entry(node), seen, _turn: turn };
        node.go_on(file.write(rows, writer, sender));
    }
    let mut response = Body::from_stream(until_its_end(pieces)).into_response();
    let name = endpoint.path.rsplit('/').find(|part| !part.starts_with('{')).unwrap_or("rows");
    let shown = format!("attachment; filename=\"{name}.{}\"", format.extension());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(format.media_type()));
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_str(&shown).map_err(Problem::internal)?);
    Ok(response)
}

type Sent = Result<Piece, std::io::Error>;

/// The pieces as a body. One that stops before its end was said breaks the connection: half a file is never taken for a
/// whole one, whatever became of whoever wrote it.
fn until_its_end(pieces: mpsc::Receiver<Sent>) -> impl Stream<Item = Result<Bytes, std::io::Error>> {
    futures::stream::unfold(Some(pieces), |pieces| async {
        let mut pieces = pieces?;
        match pieces.recv().await {
            Some(Ok(Piece::Part(part))) => Some((Ok(part), Some(pieces))),
            Some(Ok(Piece::End)) => None,
            Some(Err(error)) => Some((Err(error), None)),
            None => Some((Err(std::io::Error::other("the file was cut short")), None)),
        }
    })
    // What packs an answer asks once more behind its end.
    .fuse()
}

/// A file that is being written.
struct File {
    node: Arc<Node>,
    /// Who reads it.
    entry: Entry,
    seen: Value,
    _turn: Turn,
}

impl File {
    /// Writes the rows piece by piece; the last one waits for the entry of the trail that says what they all were.
    async fn write(mut self, rows: Rows, writer: Writer, sender: mpsc::Sender<Sent>) {
        let mut written = Written { writer, hash: Context::new(&SHA256), rows: 0, bytes: 0 };
        let all = AssertUnwindSafe(tokio::time::timeout(LONGEST, written.all(rows, &sender))).catch_unwind();
        let whole = match all.await {
            Ok(Ok(whole)) => whole,
            Ok(Err(_)) => Err(Cut::Failed(format!("it took longer than {} s", LONGEST.as_secs()))),
            Err(_panic) => Err(Cut::Failed("a fault of the program".into())),
        };
        let cut = whole.as_ref().err().map(ToString::to_string);
        let Written { hash, rows, bytes, .. } = written;
        self.seen["rows"] = rows.into();
        self.seen["sha256"] = hexadecimal::show(hash.finish().as_ref()).into();
        self.seen["file"] = json!({"ended": true, "whole": cut.is_none(), "bytes": bytes, "cut": cut});
        let now = self.node.machine.clock.now_micros();
        let end = Entry {
            at: now,
            latency: (now - self.entry.at).max(0),
            outcome: if whole.is_ok() { Outcome::Allowed } else { Outcome::Failed },
            cost: 0,
            seen: Some(self.seen.to_string()),
            ..self.entry.clone()
        };
        let last = match (whole, self.node.write_end(end).await) {
            (Ok(last), Ok(())) => Ok(last),
            (Ok(_), Err(error)) => Err(std::io::Error::other(error.to_string())),
            (Err(cut), _) => {
                tracing::warn!(request_id = self.entry.request_id, %cut, "a file was cut short");
                Err(std::io::Error::other(cut.to_string()))
            }
        };
        let ended = last.is_ok();
        drop(sender.send(last.map(Piece::Part)).await);
        if ended {
            drop(sender.send(Ok(Piece::End)).await);
        }
    }
}

/// Why a file ended early.
#[derive(Debug, thiserror::Error)]
enum Cut {
    #[error("its reader went away")]
    Reader,
    #[error("{0}")]
    Failed(String),
}

struct Written {
    writer: Writer,
    hash: Context,
    rows: usize,
    bytes: usize,
}

impl Written {
    /// Sends all but the last piece, and answers that one.
    async fn all(&mut self, mut rows: Rows, sender: &mpsc::Sender<Sent>) -> Result<Bytes, Cut> {
        let failed = |error: &dyn std::fmt::Display| Cut::Failed(error.to_string());
        loop {
            // Whoever went away is not searched for any longer, though nothing was found for them yet.
            let batch = tokio::select! {
                batch = rows.next() => batch,
                () = sender.closed() => return Err(Cut::Reader),
            };
            let Some(batch) = batch else { break };
            let batch = batch.map_err(|error| failed(&error.message))?;
            self.rows += batch.num_rows();
            self.writer.write(&batch).map_err(|error| failed(&error))?;
            if let Some(piece) = self.writer.piece() {
                let piece = self.account(piece);
                let sent = tokio::time::timeout(STALL, sender.send(Ok(Piece::Part(piece)))).await;
                let sent = sent.map_err(|_| failed(&"its reader stood still"))?;
                sent.map_err(|_| Cut::Reader)?;
            }
        }
        let rest = self.writer.finish().map_err(|error| failed(&error))?;
        Ok(self.account(rest))
    }

    fn account(&mut self, piece: Vec<u8>) -> Bytes {
        self.hash.update(&piece);
        self.bytes += piece.len();
        piece.into()
    }
}

/// Rows on their way into bytes.
enum Writer {
    NdJson { names: Vec<String>, out: String },
    Csv(Vec<u8>),
    Parquet(Box<ArrowWriter<Vec<u8>>>),
}

type WriteError = Box<dyn std::error::Error + Send + Sync>;

impl Writer {
    fn new(format: FileFormat, schema: SchemaRef) -> Result<Self, WriteError> {
        Ok(match format {
            FileFormat::NdJson => {
                let names = schema.fields().iter().map(|field| field.name().clone()).collect();
                Self::NdJson { names, out: String::new() }
            }
            FileFormat::Csv => {
                // A file without rows has its header, too.
                let mut out = Vec::new();
                let header = flat(&RecordBatch::new_empty(schema))?;
                arrow::csv::WriterBuilder::new().with_header(true).build(&mut out).write(&header)?;
                Self::Csv(out)
            }
            FileFormat::Parquet => {
                let properties = WriterProperties::builder()
                    .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
                    .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
                    .build();
                Self::Parquet(Box::new(ArrowWriter::try_new(Vec::new(), schema, Some(properties))?))
            }
        })
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<(), WriteError> {
        match self {
            Self::NdJson { names, out } => {
                if batch.num_rows() > 0 {
                    rows_as_json(batch, names, true, "\n", out);
                    out.push('\n');
                }
            }
            Self::Csv(out) => {
                arrow::csv::WriterBuilder::new().with_header(false).build(out).write(&flat(batch)?)?;
            }
            Self::Parquet(writer) => {
                writer.write(batch)?;
                if writer.in_progress_size() > ROW_GROUP {
                    writer.flush()?;
                }
            }
        }
        Ok(())
    }

    /// What is written so far, when it is worth sending.
    fn piece(&mut self) -> Option<Vec<u8>> {
        match self {
            Self::NdJson { out, .. } => (out.len() >= PIECE).then(|| std::mem::take(out).into_bytes()),
            Self::Csv(out) => (out.len() >= PIECE).then(|| std::mem::take(out)),
            Self::Parquet(writer) => {
                let out = writer.inner_mut();
                (out.len() >= PIECE).then(|| std::mem::take(out))
            }
        }
    }

    /// What is left.
    fn finish(&mut self) -> Result<Vec<u8>, WriteError> {
        Ok(match self {
            Self::NdJson { out, .. } => std::mem::take(out).into_bytes(),
            Self::Csv(out) => std::mem::take(out),
            Self::Parquet(writer) => {
                writer.finish()?;
                std::mem::take(writer.inner_mut())
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;

    #[tokio::test]
    async fn half_a_file_is_never_taken_for_a_whole_one() {
        let file = |pieces: Vec<Sent>| async {
            let (sender, receiver) = mpsc::channel(8);
            for piece in pieces {
                sender.send(piece).await.unwrap();
            }
            drop(sender);
            until_its_end(receiver).map(|part| part.is_ok()).collect::<Vec<bool>>().await
        };
        let part = || Ok(Piece::Part(Bytes::from_static(b"row")));
        assert_eq!(file(vec![part(), part(), Ok(Piece::End)]).await, [true, true]);
        // Whoever wrote it is gone: stopped, or fallen over.
        assert_eq!(file(vec![part()]).await, [true, false]);
        assert_eq!(file(vec![]).await, [false]);
        assert_eq!(file(vec![part(), Err(std::io::Error::other("no"))]).await, [true, false]);
    }

    #[test]
    fn every_format_writes_files_without_rows() {
        let schema = highwater_event::columns::position_fields().to_vec();
        let schema = Arc::new(arrow::datatypes::Schema::new(schema));
        let empty = |format| Writer::new(format, schema.clone()).unwrap().finish().unwrap();
        assert_eq!(empty(FileFormat::NdJson), b"");
        assert_eq!(empty(FileFormat::Csv), b"_event_time,_recorded_at,_partition,_offset\n");
        assert!(empty(FileFormat::Parquet).starts_with(b"PAR1"));
    }
}
