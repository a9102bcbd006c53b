//! One segment file: where its batches lie and how to read them.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use highwater_event::{Offset, Sensitive, StreamPartition};
use highwater_privacy::{Positions, Vault};

use crate::batch::{self, Codec};
use crate::disk::DiskFile;
use crate::error::ReadError;
use crate::format::{BatchPlace, SEGMENT_HEADER_LEN, SegmentIndex, SegmentSummary, TRAILER_LEN, Trailer};
use crate::recovery;

/// A read stops after about this many decoded bytes, however few rows they are.
pub(crate) const MAX_READ_BYTES: usize = 64 << 20;

pub(crate) struct Segment {
    pub path: PathBuf,
    pub first_commit: u64,
    pub file: Box<dyn DiskFile>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ranges: BTreeMap<StreamPartition, (Offset, Offset)>,
    /// Absent for a closed segment that nobody has read yet.
    index: Option<SegmentIndex>,
    schemas: HashMap<u32, SchemaRef>,
}

impl Segment {
    pub fn new(path: PathBuf, first_commit: u64, file: Box<dyn DiskFile>) -> Self {
        let state = State { index: Some(SegmentIndex::default()), ..State::default() };
        Self { path, first_commit, file, state: Mutex::new(state) }
    }

    /// A segment whose index stays on disk until it is asked for.
    pub fn closed(
        path: PathBuf,
        first_commit: u64,
        file: Box<dyn DiskFile>,
        summary: &SegmentSummary,
    ) -> Self {
        let ranges = summary.ranges.iter().map(|(at, first, end)| (at.clone(), (*first, *end))).collect();
        Self { path, first_commit, file, state: Mutex::new(State { ranges, ..State::default() }) }
    }

    /// A segment that was scanned.
    pub fn scanned(path: PathBuf, first_commit: u64, file: Box<dyn DiskFile>, scan: recovery::Scan) -> Self {
        let state = State { ranges: scan.ranges, index: Some(scan.index), schemas: HashMap::new() };
        Self { path, first_commit, file, state: Mutex::new(state) }
    }

    pub fn file_name(&self) -> String {
        self.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Offsets of a partition in this segment: first and end.
    pub fn range(&self, at: &StreamPartition) -> Option<(Offset, Offset)> {
        self.state().ranges.get(at).copied()
    }

    pub fn ranges(&self) -> Vec<(StreamPartition, Offset, Offset)> {
        self.state().ranges.iter().map(|(at, (first, end))| (at.clone(), *first, *end)).collect()
    }

    /// Takes note of schemas and batches that became durable.
    pub fn record(&self, schemas: Vec<Vec<u8>>, places: Vec<(StreamPartition, BatchPlace)>) {
        let mut state = self.state();
        let mut index = state.index.take().unwrap_or_default();
        index.schemas.extend(schemas);
        for (at, place) in places {
            let end = place.base + Offset::from(place.rows);
            state.ranges.entry(at.clone()).and_modify(|range| range.1 = end).or_insert((place.base, end));
            index.places.entry(at).or_default().push(place);
        }
        state.index = Some(index);
    }

    /// The index as it stands, for the footer.
    pub fn index_snapshot(&self) -> SegmentIndex {
        self.state().index.clone().unwrap_or_default()
    }

    /// Forgets the index of a closed segment; the next read loads it again.
    pub fn forget_index(&self) {
        let mut state = self.state();
        state.index = None;
        state.schemas.clear();
    }

    /// Batches of a partition from the one that holds `from` on, about `max_rows` rows of them.
    pub fn places(
        &self,
        at: &StreamPartition,
        from: Offset,
        max_rows: usize,
    ) -> Result<Vec<BatchPlace>, ReadError> {
        let mut state = self.state();
        if state.index.is_none() {
            state.index = Some(self.load_index()?);
        }
        let places =
            state.index.as_ref().and_then(|index| index.places.get(at)).map_or(&[][..], Vec::as_slice);
        let first = places.partition_point(|place| place.base + Offset::from(place.rows) <= from);
        let (mut rows, mut bytes) = (0usize, 0usize);
        let taken = places[first..]
            .iter()
            .take_while(|place| {
                let wanted = rows < max_rows && bytes < MAX_READ_BYTES;
                rows += place.rows as usize;
                bytes += place.raw_len as usize;
                wanted
            })
            .cloned()
            .collect();
        Ok(taken)
    }

    /// When the log took the newest rows of this segment; 0 when there are none.
    pub fn recorded_until(&self) -> Result<i64, ReadError> {
        let mut state = self.state();
        if state.index.is_none() {
            state.index = Some(self.load_index()?);
        }
        let places = state.index.iter().flat_map(|index| index.places.values()).flatten();
        Ok(places.map(|place| place.recorded_at).max().unwrap_or(0))
    }

    fn load_index(&self) -> Result<SegmentIndex, ReadError> {
        let io = |error: std::io::Error| ReadError::Io(error.to_string());
        let length = self.file.len().map_err(io)?;
        if let Some((trailer, _)) = read_footer(self.file.as_ref(), length).map_err(io)? {
            let mut bytes = vec![0; trailer.index_len as usize];
            self.file.read_at(&mut bytes, trailer.index_position).map_err(io)?;
            if crc32c::crc32c(&bytes) == trailer.index_crc
                && let Ok(index) = postcard::from_bytes(&bytes)
            {
                return Ok(index);
            }
        }
        tracing::error!(segment = %self.file_name(), "the footer of a segment is damaged; reading its commits instead");
        let mut bytes = vec![0; length as usize];
        self.file.read_at(&mut bytes, 0).map_err(io)?;
        Ok(recovery::scan(&self.file_name(), &bytes, self.first_commit).index)
    }

    /// Reads one batch and checks it against its checksum.
    pub fn fetch(
        &self,
        at: &StreamPartition,
        place: &BatchPlace,
        vault: Option<&Vault>,
    ) -> Result<RecordBatch, ReadError> {
        let damaged = |detail: String| ReadError::Damaged {
            at: at.clone(),
            from: place.base,
            to: place.base + Offset::from(place.rows),
            detail: format!("{} at byte {}: {detail}", self.file_name(), place.position),
        };
        let mut bytes = vec![0; place.len as usize];
        self.file.read_at(&mut bytes, place.position).map_err(|error| {
            if error.kind() == std::io::ErrorKind::UnexpectedEof {
                damaged(error.to_string())
            } else {
                ReadError::Io(error.to_string())
            }
        })?;
        if crc32c::crc32c(&bytes) != place.crc {
            return Err(damaged("checksum does not match".into()));
        }
        let schema = self.schema(place.schema).map_err(damaged)?;
        let codec =
            Codec::from_u8(place.codec).ok_or_else(|| damaged(format!("unknown codec {}", place.codec)))?;
        let sensitive = Sensitive::of(&schema);
        let stored = sensitive.as_ref().map_or_else(|| schema.clone(), |what| Arc::new(what.stored(&schema)));
        let rows = batch::decode_batch(&bytes, codec, place.raw_len as usize, stored)
            .map_err(|error| damaged(error.to_string()))?;
        if rows.num_rows() != place.rows as usize {
            return Err(damaged(format!("{} rows where {} were written", rows.num_rows(), place.rows)));
        }
        let Some(sensitive) = sensitive else { return Ok(rows) };
        let vault = vault.ok_or_else(|| damaged("it is encrypted, and there are no keys".into()))?;
        let positions = Positions::Run { partition: at.partition, first: place.base };
        vault
            .decrypt(at.stream.as_str(), positions, &sensitive, &schema, &rows)
            .map_err(|error| damaged(error.to_string()))
    }

    fn schema(&self, id: u32) -> Result<SchemaRef, String> {
        let mut state = self.state();
        if let Some(schema) = state.schemas.get(&id) {
            return Ok(schema.clone());
        }
        if state.index.is_none() {
            // Another reader's use of other segments may have pushed this index out.
            state.index = Some(self.load_index().map_err(|error| error.to_string())?);
        }
        let bytes = state
            .index
            .as_ref()
            .and_then(|index| index.schemas.get(id as usize))
            .ok_or_else(|| format!("schema {id} is missing"))?;
        let schema: SchemaRef = Arc::new(batch::decode_schema(bytes).map_err(|error| error.to_string())?);
        state.schemas.insert(id, schema.clone());
        Ok(schema)
    }
}

/// The trailer and summary of a closed segment; `None` when the file does not end in a sound footer.
pub(crate) fn read_footer(
    file: &dyn DiskFile,
    length: u64,
) -> std::io::Result<Option<(Trailer, SegmentSummary)>> {
    let Some(trailer_at) =
        length.checked_sub(TRAILER_LEN as u64).filter(|at| *at >= SEGMENT_HEADER_LEN as u64)
    else {
        return Ok(None);
    };
    let mut bytes = [0; TRAILER_LEN];
    file.read_at(&mut bytes, trailer_at)?;
    let Some(trailer) = Trailer::decode(&bytes) else { return Ok(None) };
    let summary_at = trailer.index_position.saturating_add(u64::from(trailer.index_len));
    if summary_at.checked_add(u64::from(trailer.summary_len)) != Some(trailer_at) {
        return Ok(None);
    }
    let mut bytes = vec![0; trailer.summary_len as usize];
    file.read_at(&mut bytes, summary_at)?;
    if crc32c::crc32c(&bytes) != trailer.summary_crc {
        return Ok(None);
    }
    Ok(postcard::from_bytes(&bytes).ok().map(|summary| (trailer, summary)))
}
