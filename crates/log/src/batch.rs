//! Arrow record batches as bytes: the IPC message of one batch, without its schema, LZ4-compressed.

use std::collections::HashMap;

use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::convert::try_schema_from_flatbuffer_bytes;
use arrow::ipc::reader::read_record_batch;
use arrow::ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use arrow::ipc::{FieldNode, MetadataVersion, root_as_message};
use arrow::record_batch::RecordBatch;

/// How the bytes of a batch are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// As they are.
    Plain = 0,
    /// LZ4 block.
    Lz4 = 1,
}

impl Codec {
    /// The codec with that number.
    pub fn from_u8(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Plain),
            1 => Some(Self::Lz4),
            _ => None,
        }
    }
}

/// Turns batches into bytes; keeps its buffers between calls.
#[derive(Default)]
pub struct BatchEncoder {
    context: IpcWriteContext,
    raw: Vec<u8>,
}

/// Bytes of a batch.
pub struct EncodedBatch {
    /// The stored bytes.
    pub bytes: Vec<u8>,
    /// How they are stored.
    pub codec: Codec,
    /// Length before compression.
    pub raw_len: usize,
}

fn write_options() -> Result<IpcWriteOptions, ArrowError> {
    IpcWriteOptions::try_new(8, false, MetadataVersion::V5)
}

impl BatchEncoder {
    /// Encodes the rows of a batch.
    pub fn encode(&mut self, rows: &RecordBatch) -> Result<EncodedBatch, ArrowError> {
        let mut dictionaries = DictionaryTracker::new(true);
        let (tables, message) = IpcDataGenerator::default().encode(
            rows,
            &mut dictionaries,
            &write_options()?,
            &mut self.context,
        )?;
        if !tables.is_empty() {
            return Err(ArrowError::NotYetImplemented("dictionary columns are not stored in the log".into()));
        }
        self.raw.clear();
        self.raw.extend_from_slice(&(message.ipc_message.len() as u32).to_le_bytes());
        self.raw.extend_from_slice(&[0; 4]);
        self.raw.extend_from_slice(&message.ipc_message);
        self.raw.resize(self.raw.len().next_multiple_of(8), 0);
        self.raw.extend_from_slice(&message.arrow_data);
        let packed = lz4_flex::block::compress(&self.raw);
        Ok(if packed.len() < self.raw.len() {
            EncodedBatch { bytes: packed, codec: Codec::Lz4, raw_len: self.raw.len() }
        } else {
            EncodedBatch { bytes: self.raw.clone(), codec: Codec::Plain, raw_len: self.raw.len() }
        })
    }
}

/// Reads back what [`BatchEncoder::encode`] wrote. Every buffer is validated, so bytes that lie give
/// an error, never a wrong array.
pub fn decode_batch(
    bytes: &[u8],
    codec: Codec,
    raw_len: usize,
    schema: SchemaRef,
) -> Result<RecordBatch, ArrowError> {
    let raw = match codec {
        Codec::Plain => bytes.to_vec(),
        Codec::Lz4 => lz4_flex::block::decompress(bytes, raw_len)
            .map_err(|error| ArrowError::IpcError(format!("not an LZ4 block: {error}")))?,
    };
    let head = raw.get(..8).ok_or_else(|| bad("too short"))?;
    let message_len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let message_end = 8usize.checked_add(message_len).ok_or_else(|| bad("length overflow"))?;
    let body_start = message_end.next_multiple_of(8);
    if body_start > raw.len() {
        return Err(bad("message runs past the end"));
    }
    let raw = Buffer::from_vec(raw);
    let message = root_as_message(&raw[8..message_end]).map_err(|error| bad(&error.to_string()))?;
    let header = message.header_as_record_batch().ok_or_else(|| bad("not a record batch"))?;
    let body = raw.slice(body_start);
    check_header(&header, &schema, body.len())?;
    read_record_batch(&body, header, schema, &HashMap::new(), None, &message.version())
}

/// Arrow's reader takes a header at its word and panics where it lies; so its numbers are looked at first.
fn check_header(
    header: &arrow::ipc::RecordBatch<'_>,
    schema: &Schema,
    body_len: usize,
) -> Result<(), ArrowError> {
    for buffer in header.buffers().into_iter().flatten() {
        let end = buffer.offset().checked_add(buffer.length());
        let inside = end.and_then(|end| usize::try_from(end).ok()).is_some_and(|end| end <= body_len);
        if buffer.offset() < 0 || buffer.length() < 0 || !inside {
            return Err(bad("a buffer runs past the end"));
        }
    }
    if header.compression().is_some() {
        return Err(bad("compressed buffers are not stored in the log"));
    }
    if header.length() < 0 {
        return Err(bad("an impossible number of rows"));
    }
    let mut nodes = header.nodes().into_iter().flatten();
    let mut buffers = header.buffers().into_iter().flatten();
    schema.fields().iter().try_for_each(|field| check_column(field.data_type(), &mut nodes, &mut buffers))
}

fn check_column<'a>(
    data_type: &DataType,
    nodes: &mut dyn Iterator<Item = &'a FieldNode>,
    buffers: &mut dyn Iterator<Item = &'a arrow::ipc::Buffer>,
) -> Result<(), ArrowError> {
    let node = nodes.next().ok_or_else(|| bad("a column is missing"))?;
    if node.length() < 0 || !(0..=node.length()).contains(&node.null_count()) {
        return Err(bad("a column of an impossible length"));
    }
    let mut buffer =
        || buffers.next().map(arrow::ipc::Buffer::length).ok_or_else(|| bad("a buffer is missing"));
    if *data_type == DataType::Null {
        return Ok(());
    }
    let validity = buffer()?;
    if node.null_count() > 0 && validity.unsigned_abs() < node.length().unsigned_abs().div_ceil(8) {
        return Err(bad("fewer bits than rows"));
    }
    match data_type {
        DataType::Struct(fields) => {
            fields.iter().try_for_each(|field| check_column(field.data_type(), nodes, buffers))
        }
        DataType::List(child) | DataType::Map(child, _) => {
            check_offsets(buffer()?)?;
            check_column(child.data_type(), nodes, buffers)
        }
        DataType::Utf8 | DataType::Binary => {
            check_offsets(buffer()?)?;
            buffer().map(drop)
        }
        flat if flat.is_primitive() || matches!(flat, DataType::Boolean | DataType::FixedSizeBinary(_)) => {
            buffer().map(drop)
        }
        other => Err(bad(&format!("columns of type {other} are not stored in the log"))),
    }
}

fn check_offsets(length: i64) -> Result<(), ArrowError> {
    if length % size_of::<i32>() as i64 == 0 { Ok(()) } else { Err(bad("half an offset")) }
}

fn bad(detail: &str) -> ArrowError {
    ArrowError::IpcError(detail.to_owned())
}

/// A schema as bytes.
pub fn encode_schema(schema: &Schema) -> Result<Vec<u8>, ArrowError> {
    let mut dictionaries = DictionaryTracker::new(true);
    let message = IpcDataGenerator::default().schema_to_bytes_with_dictionary_tracker(
        schema,
        &mut dictionaries,
        &write_options()?,
    );
    Ok(message.ipc_message)
}

/// Reads back what [`encode_schema`] wrote.
pub fn decode_schema(bytes: &[u8]) -> Result<Schema, ArrowError> {
    try_schema_from_flatbuffer_bytes(bytes)
}
