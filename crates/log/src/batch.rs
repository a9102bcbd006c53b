//! Arrow record batches as bytes: the IPC message of one batch, without its schema, LZ4-compressed.

use std::collections::HashMap;

use arrow::buffer::Buffer;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::convert::try_schema_from_flatbuffer_bytes;
use arrow::ipc::reader::read_record_batch;
use arrow::ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use arrow::ipc::{MetadataVersion, root_as_message};
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
    let bad = |detail: &str| ArrowError::IpcError(detail.to_owned());
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
    read_record_batch(&body, header, schema, &HashMap::new(), None, &message.version())
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
