//! The index of a stream: opened, written, asked.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use arrow::array::ArrayRef;
use arrow::datatypes::SchemaRef;
use highwater_event::{Condition, Offset, Partition, StreamSchema, columns};
use highwater_log::LogBatch;
use highwater_log::reader::RowReader;
use highwater_privacy::{Positions, Vault};
use serde::{Deserialize, Serialize};
use tantivy::directory::MmapDirectory;
use tantivy::query::{EmptyQuery, Query};
use tantivy::schema::Value;
use tantivy::tokenizer::{RawTokenizer, TextAnalyzer, TokenizerManager};
use tantivy::{
    DocAddress, Index, IndexReader, IndexSettings, IndexWriter, ReloadPolicy, Searcher, TantivyDocument,
};

use crate::SearchError;
use crate::fields::{Fields, JSON_WORDS, WORDS};
use crate::found::{self, Found, Until, Wanted};
use crate::question::query;
use crate::tokens::Cutter;

/// Bytes of documents that are gathered before they are written.
const WRITER_BYTES: usize = 48 << 20;

/// Bytes of rows that are packed together.
const BLOCK_BYTES: usize = 4 << 10;

/// What is written with each commit.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
struct Payload {
    /// Tells an index of other columns from this one.
    shape: String,
    /// Offsets up to which it has read.
    marks: BTreeMap<Partition, Offset>,
}

/// A stream's index, shared by the view that writes it and those who ask.
pub struct SearchIndex {
    stream: Arc<StreamSchema>,
    folder: PathBuf,
    fields: Fields,
    reader: IndexReader,
    /// None after a failed commit: then it is opened anew.
    writer: Mutex<Option<IndexWriter>>,
    index: Index,
    current: RwLock<Arc<Committed>>,
    vault: Arc<Vault>,
}

/// The index as of one commit.
struct Committed {
    searcher: Searcher,
    marks: Arc<BTreeMap<Partition, Offset>>,
}

impl SearchIndex {
    /// Opens a stream's index under a root folder. One that can't be read, or is of other columns, is removed: it is
    /// derived, and reads the log from its beginning.
    pub fn open(root: &Path, stream: Arc<StreamSchema>, vault: Arc<Vault>) -> Result<Self, SearchError> {
        let folder = root.join(stream.name.as_str());
        let fields = Fields::of(&stream)?;
        let found = open_folder(&folder, &fields);
        let (index, payload) = match found {
            Ok(Some(opened)) => opened,
            Ok(None) => create(&folder, &fields)?,
            Err(error) => {
                tracing::error!(stream = %stream.name, %error, "the search index of a stream can't be opened; it is made anew");
                create(&folder, &fields)?
            }
        };
        let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into()?;
        let committed = Committed { searcher: reader.searcher(), marks: Arc::new(payload.marks) };
        Ok(Self {
            stream,
            folder,
            fields,
            reader,
            writer: Mutex::new(None),
            index,
            current: RwLock::new(Arc::new(committed)),
            vault,
        })
    }

    /// The stream.
    pub fn stream(&self) -> &Arc<StreamSchema> {
        &self.stream
    }

    /// The offsets up to which it has read.
    pub fn marks(&self) -> Arc<BTreeMap<Partition, Offset>> {
        self.current().marks.clone()
    }

    fn current(&self) -> Arc<Committed> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The index as it is now, of rows before some offsets.
    pub fn snapshot(self: &Arc<Self>, until: &BTreeMap<Partition, Offset>) -> Snapshot {
        let committed = self.current();
        let beyond =
            committed.marks.iter().any(|(partition, mark)| until.get(partition).is_none_or(|end| mark > end));
        Snapshot { index: self.clone(), until: beyond.then(|| Arc::new(until.clone())), committed }
    }

    /// Takes in rows of a partition, the first of which is at the mark; they and the mark behind them are one commit.
    pub(crate) fn append(&self, partition: Partition, batches: &[LogBatch]) -> Result<u64, SearchError> {
        let (Some(first), Some(last)) = (batches.first(), batches.last()) else { return Ok(0) };
        let rows = RowReader::new(&self.stream).read_all(partition, batches)?;
        let kept = match self.stream.sensitive() {
            Some(sensitive) => {
                let name = self.stream.name.as_str();
                self.vault.encrypt(name, Positions::told_by(&rows)?, &sensitive, &rows)?
            }
            None => rows.clone(),
        };
        let documents = self.fields.documents(&rows, &kept)?;
        self.commit(|writer, marks| {
            let mark = marks.insert(partition, last.end()).unwrap_or(0);
            if mark != first.base {
                return Err(SearchError::Moved { expected: first.base, mark });
            }
            Ok(documents.into_iter().try_for_each(|document| writer.add_document(document).map(drop))?)
        })?;
        Ok(rows.num_rows() as u64)
    }

    /// Moves the mark of a partition over rows that are nowhere any more.
    pub(crate) fn skip(&self, partition: Partition, to: Offset) -> Result<(), SearchError> {
        self.commit(|_, marks| {
            marks.insert(partition, to);
            Ok(())
        })
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) -> Result<(), SearchError> {
        self.commit(|writer, marks| {
            marks.clear();
            Ok(writer.delete_all_documents().map(drop)?)
        })
    }

    /// Lets rows go that were recorded before a time, microseconds UTC; answers how many.
    pub fn retire(&self, before: i64) -> Result<u64, SearchError> {
        let old = || {
            let bound = Condition::Number {
                column: columns::RECORDED_AT.to_owned(),
                from: Bound::Unbounded,
                to: Bound::Excluded(before),
            };
            query(&self.fields, &bound).unwrap_or_else(|| Box::new(EmptyQuery))
        };
        let count = found::count(&self.current().searcher, old().as_ref(), None)?;
        if count > 0 {
            self.commit(|writer, _| Ok(writer.delete_query(old()).map(drop)?))?;
        }
        Ok(count)
    }

    /// One commit: what `change` does, and the marks as it leaves them. One at a time; each begins with the marks of the last.
    fn commit(
        &self,
        change: impl FnOnce(&IndexWriter, &mut BTreeMap<Partition, Offset>) -> Result<(), SearchError>,
    ) -> Result<(), SearchError> {
        let mut held = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        // It is put back when all went well: after a failure nobody knows what it holds, nor whether the commit is there.
        let mut writer = match held.take() {
            Some(writer) => writer,
            None => {
                let writer = self.index.writer_with_num_threads(1, WRITER_BYTES)?;
                self.show(payload_of(&self.index)?.marks)?;
                writer
            }
        };
        let mut marks = self.marks().as_ref().clone();
        if let Err(error) = change(&writer, &mut marks) {
            writer.rollback()?;
            *held = Some(writer);
            return Err(error);
        }
        let payload = Payload { shape: self.fields.shape.clone(), marks };
        let text = serde_json::to_string(&payload).map_err(std::io::Error::from)?;
        let mut prepared = writer.prepare_commit()?;
        prepared.set_payload(&text);
        prepared.commit()?;
        self.show(payload.marks)?;
        *held = Some(writer);
        Ok(())
    }

    /// Lets readers see what is committed.
    fn show(&self, marks: BTreeMap<Partition, Offset>) -> Result<(), SearchError> {
        self.reader.reload()?;
        let committed = Committed { searcher: self.reader.searcher(), marks: Arc::new(marks) };
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(committed);
        Ok(())
    }

    /// Lets its folder go, for another to be opened on it.
    pub fn close(&self) {
        drop(self.writer.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Removes the index with all its files.
    pub fn delete(&self) -> Result<(), SearchError> {
        self.close();
        Ok(std::fs::remove_dir_all(&self.folder)?)
    }
}

fn tokenizers() -> TokenizerManager {
    let tokenizers = TokenizerManager::new();
    // Looked up for fields that have none, too.
    tokenizers.register("default", TextAnalyzer::from(RawTokenizer::default()));
    tokenizers.register("raw", TextAnalyzer::from(RawTokenizer::default()));
    tokenizers.register(WORDS, TextAnalyzer::from(Cutter { json: false }));
    tokenizers.register(JSON_WORDS, TextAnalyzer::from(Cutter { json: true }));
    tokenizers
}

/// The index in a folder, with what its last commit says; `None` when there is none of these fields.
fn open_folder(folder: &Path, fields: &Fields) -> Result<Option<(Index, Payload)>, SearchError> {
    if !folder.join("meta.json").exists() {
        return Ok(None);
    }
    let mut index = Index::open_in_dir(folder)?;
    index.set_tokenizers(tokenizers());
    let payload = payload_of(&index)?;
    Ok((payload.shape == fields.shape).then_some((index, payload)))
}

/// What the last commit says.
fn payload_of(index: &Index) -> Result<Payload, SearchError> {
    Ok(match index.load_metas()?.payload {
        Some(text) => serde_json::from_str(&text).map_err(std::io::Error::from)?,
        None => Payload::default(),
    })
}

fn create(folder: &Path, fields: &Fields) -> Result<(Index, Payload), SearchError> {
    if folder.exists() {
        std::fs::remove_dir_all(folder)?;
    }
    std::fs::create_dir_all(folder)?;
    let directory = MmapDirectory::open(folder).map_err(tantivy::TantivyError::from)?;
    // Found rows lie far apart, and a block is unpacked for each.
    let settings = IndexSettings { docstore_blocksize: BLOCK_BYTES, ..IndexSettings::default() };
    let mut index = Index::create(directory, fields.schema.clone(), settings)?;
    index.set_tokenizers(tokenizers());
    Ok((index, Payload::default()))
}

/// An index as of one commit, of rows before some offsets: what is found in it does not change.
pub struct Snapshot {
    index: Arc<SearchIndex>,
    committed: Arc<Committed>,
    /// None when it holds no row behind them.
    until: Option<Until>,
}

impl Snapshot {
    /// The offsets up to which it has read.
    pub fn marks(&self) -> &BTreeMap<Partition, Offset> {
        &self.committed.marks
    }

    /// Whether the index can tell which rows fit.
    pub fn knows(&self, condition: &Condition) -> bool {
        query(&self.index.fields, condition).is_some()
    }

    fn query(&self, condition: &Condition) -> Result<Box<dyn Query>, SearchError> {
        query(&self.index.fields, condition)
            .ok_or_else(|| tantivy::TantivyError::InvalidArgument(format!("{condition:?}")).into())
    }

    /// How many rows fit.
    pub fn count(&self, condition: &Condition) -> Result<u64, SearchError> {
        found::count(&self.committed.searcher, self.query(condition)?.as_ref(), self.until.as_ref())
    }

    /// Where the rows that fit stand.
    pub fn places(&self, condition: &Condition, wanted: Wanted) -> Result<Found, SearchError> {
        found::places(&self.committed.searcher, self.query(condition)?.as_ref(), self.until.as_ref(), wanted)
    }

    /// The columns of [`rows`](Self::rows): those of the lake, texts as views.
    pub fn schema(&self) -> &SchemaRef {
        &self.index.fields.stored
    }

    /// Rows as they are kept, in the order in which the index keeps them; `None` when they are larger than so many bytes.
    pub fn rows(&self, documents: &[u64], most: usize) -> Result<Option<Vec<ArrayRef>>, SearchError> {
        let mut documents = documents.to_vec();
        // Neighbours are unpacked together.
        documents.sort_unstable();
        let field = self.index.fields.row;
        let missing = || std::io::Error::other("a document without its row");
        let mut kept = Vec::with_capacity(documents.len());
        let mut bytes = 0;
        for document in documents {
            let address = DocAddress::new((document >> 32) as u32, document as u32);
            let document: TantivyDocument = self.committed.searcher.doc(address)?;
            let row = document.get_first(field).and_then(|value| value.as_bytes().map(<[u8]>::to_vec));
            let row = row.ok_or_else(missing)?;
            bytes += row.len();
            if bytes > most {
                return Ok(None);
            }
            kept.push(row);
        }
        Ok(Some(self.index.fields.rows(kept.iter().map(Vec::as_slice))?))
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot").field("stream", &self.index.stream.name).finish_non_exhaustive()
    }
}
