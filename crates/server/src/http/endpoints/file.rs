//! Endpoints that answer files: all rows, streamed as they are read, so that a file of any length takes little memory.
//!
//! A file has two entries in the audit trail: that it was begun, before its first byte goes out, and what it held,
//! before its last one does. Whoever has a whole file has been written down with the number of its rows and its hash.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use aws_lc_rs::digest::{Context, SHA256};
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::IntoResponse;
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::basic::{Compression, ZstdLevel};
use datafusion::parquet::file::properties::WriterProperties;
use highwater_event::hexadecimal;
use highwater_event::json::rows_as_json;
use highwater_log::audit::{Entry, Outcome};
use highwater_sql::adhoc::{Rows, open_endpoint};
use serde_json::json;
use tokio::sync::mpsc;

use super::{Asked, Question};
use crate::http::call::Call;
use crate::http::problem::{Answer, Problem};
use crate::http::sql::flat;
use crate::node::Node;

/// Pieces that wait for a slow reader.
const WAITING: usize = 2;
/// How long a file may take; the files of the lake that it reads are kept for longer.
const LONGEST: Duration = Duration::from_secs(3600);
/// Bytes that are gathered before a piece goes out, and of a row group of Parquet.
const PIECE: usize = 256 << 10;
const ROW_GROUP: usize = 16 << 20;
const ROW_GROUP_ROWS: usize = 128 << 10;

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

/// Answers all rows as a file.
pub async fn answer(question: Question, asked: &Asked, head: bool) -> Answer {
    let format = FileFormat::read(asked.beside.get("format").map(String::as_str))?;
    let Question { node, call, endpoint, .. } = &question;
    call.saw("format", format.extension());
    call.saw("mark", node.log().recorded_until());
    let (sender, mut pieces) = mpsc::channel(WAITING);
    if !head {
        let rows = question
            .ask(|asking| async move {
                let (asker, values) = (asking.asker(), asking.values.clone());
                let (engine, relations) = (&asking.node.engine, asking.relations.clone());
                open_endpoint(engine, relations, &asking.endpoint, asker, values).await
            })
            .await?;
        let writer = Writer::new(format, rows.schema.clone()).map_err(Problem::internal)?;
        node.go_on(write(node.clone(), call.clone(), rows, writer, sender));
    }
    let body = Body::from_stream(futures::stream::poll_fn(move |context| pieces.poll_recv(context)));
    let mut response = body.into_response();
    let name = endpoint.path.rsplit('/').find(|part| !part.starts_with('{')).unwrap_or("rows");
    let shown = format!("attachment; filename=\"{name}.{}\"", format.extension());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(format.media_type()));
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_str(&shown).map_err(Problem::internal)?);
    Ok(response)
}

type Piece = Result<Bytes, std::io::Error>;

/// Writes the rows piece by piece; the last one waits for the entry of the trail that says what they all were.
async fn write(node: Arc<Node>, call: Arc<Call>, rows: Rows, writer: Writer, sender: mpsc::Sender<Piece>) {
    let mut written = Written { writer, hash: Context::new(&SHA256), rows: 0, bytes: 0 };
    let whole = match tokio::time::timeout(LONGEST, written.all(rows, &sender)).await {
        Ok(whole) => whole,
        Err(_) => Err(Cut::Failed(format!("it took longer than {} s", LONGEST.as_secs()))),
    };
    let cut = whole.as_ref().err().map(ToString::to_string);
    let Written { hash, rows, bytes, .. } = written;
    let digest = hexadecimal::show(hash.finish().as_ref());
    call.saw("rows", rows);
    call.saw("file", json!({"ended": true, "whole": cut.is_none(), "bytes": bytes, "cut": cut}));
    call.saw("sha256", digest);
    let outcome = if whole.is_ok() { Outcome::Allowed } else { Outcome::Failed };
    let said = node.trail.write(Entry { outcome, cost: 0, ..call.entry(&node) }).await;
    let last = match (whole, said) {
        (Ok(last), Ok(())) => Ok(last),
        (Ok(last), Err(error)) if !node.options.audit_required => {
            tracing::error!(%error, "the end of a file is not in the audit trail");
            Ok(last)
        }
        (Ok(_), Err(error)) => Err(std::io::Error::other(error.to_string())),
        (Err(cut), _) => {
            tracing::warn!(request_id = call.request_id, %cut, "a file was cut short");
            Err(std::io::Error::other(cut.to_string()))
        }
    };
    // Whoever waits for a piece that never comes sees the connection break: half a file is not taken for a whole.
    drop(sender.send(last).await);
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
    async fn all(&mut self, mut rows: Rows, sender: &mpsc::Sender<Piece>) -> Result<Bytes, Cut> {
        let failed = |error: &dyn std::fmt::Display| Cut::Failed(error.to_string());
        while let Some(batch) = rows.next().await {
            let batch = batch.map_err(|error| failed(&error.message))?;
            self.rows += batch.num_rows();
            self.writer.write(&batch).map_err(|error| failed(&error))?;
            if let Some(piece) = self.writer.piece() {
                let piece = self.account(piece);
                sender.send(Ok(piece)).await.map_err(|_| Cut::Reader)?;
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
