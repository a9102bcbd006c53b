//! A stream in the lake.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};
use std::time::SystemTime;

use arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray, new_null_array};
use arrow::compute::{SortColumn, SortOptions, cast, concat, lexsort_to_indices, take_record_batch};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimestampMicrosecondType};
use arrow::error::ArrowError;
use async_trait::async_trait;
use datafusion::logical_expr::{ident, lit};
use deltalake::DeltaTable;
use deltalake::kernel::engine::arrow_conversion::TryIntoArrow;
use deltalake::protocol::SaveMode;
use highwater_event::{
    Offset, Partition, Sensitive, StreamName, StreamPartition, StreamSchema, columns, time,
};
use highwater_log::reader::RowReader;
use highwater_log::view::{Applied, Gather, View, ViewError};
use highwater_log::{Log, LogBatch};
use highwater_privacy::{Positions, Vault};

use crate::scan::{LakeFiles, Readers};
use crate::{DAY_COLUMNS, LakeError, commit, open_or_create, write_files, written};

/// A stream's Delta table, shared by the view that writes it and those who read it.
pub struct LakeStream {
    pub(crate) stream: Arc<StreamSchema>,
    root: PathBuf,
    folder: Folder,
    pub(crate) dir: PathBuf,
    pub(crate) schema: SchemaRef,
    /// What stands encrypted in it.
    sensitive: Option<Sensitive>,
    vault: Arc<Vault>,
    current: RwLock<Arc<State>>,
    /// Held, shared, from before files are written until they are committed or left.
    pub(crate) writing: tokio::sync::RwLock<()>,
    /// Held while a commit is made: appends and maintenance take turns.
    pub(crate) committing: tokio::sync::Mutex<()>,
}

pub(crate) struct State {
    pub(crate) table: DeltaTable,
    pub(crate) marks: BTreeMap<Partition, Offset>,
    /// Listed when they are first asked for.
    files: OnceLock<Arc<LakeFiles>>,
    /// Held by whoever reads its files, or those of an earlier version.
    readers: Readers,
}

impl State {
    /// The first version that is known.
    pub(crate) fn new(table: DeltaTable, marks: BTreeMap<Partition, Offset>) -> Self {
        Self { table, marks, files: OnceLock::new(), readers: Readers::default() }
    }

    /// A later version.
    pub(crate) fn then(&self, table: DeltaTable, marks: BTreeMap<Partition, Offset>) -> Self {
        Self { table, marks, files: OnceLock::new(), readers: self.readers.clone() }
    }

    /// Knows whether somebody still reads what this version, or one before it, has.
    pub(crate) fn read_by(&self) -> Weak<()> {
        self.readers.watch()
    }
}

/// Where a stream's table lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Folder {
    /// In the folder of the stream's public name, which other engines know.
    Own,
    /// Beside it, while an older version of the stream has that folder: `NAME@2`.
    Versioned,
}

/// The lake of a stream at one version.
pub struct LakeSnapshot {
    /// Its files, and through them its rows.
    pub files: Arc<LakeFiles>,
    /// The log offsets up to which it holds the stream.
    pub marks: BTreeMap<Partition, Offset>,
    /// Delta version.
    pub version: u64,
}

/// Which version of a lake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The newest.
    Now,
    /// A Delta version.
    Version(u64),
    /// The newest at a time, microseconds UTC.
    Time(i64),
}

/// The oldest version that a table's log tells of, and since when there is one: those before it may have been forgotten.
fn oldest_version(dir: &Path) -> std::io::Result<(u64, SystemTime)> {
    let mut oldest = None::<(u64, SystemTime)>;
    for entry in std::fs::read_dir(dir.join("_delta_log"))? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.split_once('.')?.0.parse::<u64>().ok());
        let Some(version) = number.filter(|version| oldest.is_none_or(|(oldest, _)| *version <= oldest))
        else {
            continue;
        };
        // A checkpoint is written after the commit that it is of.
        let since = entry.metadata()?.modified()?;
        let known = oldest.filter(|(oldest, _)| *oldest == version);
        oldest = Some((version, known.map_or(since, |(_, known)| known.min(since))));
    }
    Ok(oldest.unwrap_or((0, SystemTime::UNIX_EPOCH)))
}

fn application_id(stream: &StreamName, partition: Partition) -> String {
    format!("highwater/{stream}/{partition}")
}

impl LakeStream {
    /// Opens a stream's table under the lake's root, making it when it is not there. A version that was
    /// built beside an older one and now has the name takes its folder.
    ///
    /// `derivable` says that the log still has every row: then a table that can't be read is set aside and
    /// written again. Otherwise it may hold the only copy, and is left as it is.
    pub async fn open(
        root: &Path,
        stream: Arc<StreamSchema>,
        folder: Folder,
        derivable: bool,
        vault: Arc<Vault>,
    ) -> Result<Self, LakeError> {
        // Files are named by their whole paths.
        let root = std::path::absolute(root)?;
        let streams = root.join("streams");
        let own = streams.join(stream.name.public().to_ascii_uppercase());
        let versioned = streams.join(stream.name.shown());
        let dir = match folder {
            Folder::Own => own,
            Folder::Versioned => versioned.clone(),
        };
        if dir != versioned && versioned.exists() {
            let owner = |dir: PathBuf| async move { crate::owner(&dir).await };
            let name = stream.name.as_str();
            if owner(dir.clone()).await.as_deref() == Some(name) {
                // It has moved already; what is there again is nobody's.
                crate::set_aside(&versioned, "dropped")?;
            } else if owner(versioned.clone()).await.as_deref() == Some(name) {
                if dir.exists() {
                    crate::set_aside(&dir, "dropped")?;
                }
                std::fs::rename(&versioned, &dir)?;
                std::fs::File::open(&streams)?.sync_all()?;
            }
        }
        let mut fields: Vec<Field> =
            stream.reader_schema().fields().iter().map(|field| field.as_ref().clone()).collect();
        if stream.raw && !stream.options.event_id.is_empty() {
            // What the dedupe index is rebuilt from, when the log does not reach back any more.
            fields.push(Field::new(columns::EVENT_KEY, DataType::Binary, true));
            fields.push(Field::new(columns::PAYLOAD_HASH, DataType::Int64, true));
        }
        fields.extend(DAY_COLUMNS.map(|column| Field::new(column, DataType::Utf8, true)));
        let sensitive = stream.sensitive();
        let mut schema = Schema::new(fields);
        if let Some(sensitive) = &sensitive {
            schema = sensitive.stored(&schema);
        }
        let schema = Arc::new(schema);
        let opened = open_or_create(&dir, stream.name.as_str(), &schema, &DAY_COLUMNS).await;
        let table = match opened.and_then(|table| encrypted(table, sensitive.as_ref())) {
            Ok(table) => table,
            Err(error) if !derivable => return Err(error),
            Err(error) => {
                // The lake is derived: what can't be read is set aside and written again from the log.
                let aside = crate::set_aside(&dir, "damaged")?;
                tracing::error!(stream = %stream.name, %error, aside = %aside.display(), "the lake of a stream can't be opened; it is written again");
                open_or_create(&dir, stream.name.as_str(), &schema, &DAY_COLUMNS).await?
            }
        };
        // A column that was added later stands where the table has it.
        let order: Vec<String> =
            table.snapshot()?.schema().fields().map(|field| field.name().clone()).collect();
        let fields: Vec<Field> =
            order.iter().map(|name| schema.field_with_name(name).cloned()).collect::<Result<_, _>>()?;
        let schema = Arc::new(Schema::new(fields));
        let lake = Self {
            current: RwLock::new(Arc::new(State::new(table.clone(), BTreeMap::new()))),
            writing: tokio::sync::RwLock::new(()),
            committing: tokio::sync::Mutex::new(()),
            stream,
            root,
            folder,
            dir,
            schema,
            sensitive,
            vault,
        };
        lake.refresh(table).await?;
        Ok(lake)
    }

    /// Removes the table with all its files.
    pub async fn remove(&self) -> Result<(), LakeError> {
        let _alone = self.committing.lock().await;
        // Renamed first: a folder that is half removed would still look like a table.
        let dropped = crate::set_aside(&self.dir, "dropped")?;
        let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(dropped)).await;
        Ok(removed.map_err(std::io::Error::other)??)
    }

    pub(crate) fn current(&self) -> Arc<State> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn put(&self, state: State) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
    }

    /// Reads the newest version and its positions from disk.
    async fn refresh(&self, mut table: DeltaTable) -> Result<(), LakeError> {
        table.update_state().await?;
        let marks = self.marks_of(&table).await?;
        self.put(self.current().then(table, marks));
        Ok(())
    }

    async fn marks_of(&self, table: &DeltaTable) -> Result<BTreeMap<Partition, Offset>, LakeError> {
        let mut marks = BTreeMap::new();
        for partition in 0..self.stream.options.partitions.max(1) {
            let id = application_id(&self.stream.name, partition);
            let position = table.snapshot()?.transaction_version(table.log_store().as_ref(), &id).await?;
            marks.insert(partition, position.map_or(0, |position| position.max(0) as Offset));
        }
        Ok(marks)
    }

    /// The stream.
    pub fn stream(&self) -> &Arc<StreamSchema> {
        &self.stream
    }

    /// The lake at a moment.
    pub async fn snapshot(&self, moment: Moment) -> Result<LakeSnapshot, LakeError> {
        let state = self.current();
        let mut table = state.table.clone();
        match moment {
            Moment::Now => {
                let files = match state.files.get() {
                    Some(files) => files.clone(),
                    None => {
                        let files = Arc::new(LakeFiles::of(&table, &self.dir, state.readers.clone())?);
                        state.files.get_or_init(|| files).clone()
                    }
                };
                let version = table.version().unwrap_or(0);
                return Ok(LakeSnapshot { files, marks: state.marks.clone(), version });
            }
            Moment::Version(version) => {
                let newest = table.version().unwrap_or(0);
                if version > newest {
                    return Err(LakeError::NoSuchVersion(format!(
                        "there is no version {version}; the newest is {newest}"
                    )));
                }
                let (oldest, _) = oldest_version(&self.dir)?;
                if version < oldest {
                    return Err(LakeError::NoSuchVersion(format!(
                        "version {version} is not kept any more; the oldest is {oldest}"
                    )));
                }
                table.load_version(version).await?;
            }
            Moment::Time(micros) => {
                let moment = chrono::DateTime::from_timestamp_micros(micros)
                    .ok_or_else(|| LakeError::NoSuchVersion("the time is out of range".into()))?;
                let (oldest, since) = oldest_version(&self.dir)?;
                // Before the first version of all there was nothing to forget.
                if oldest > 0 && SystemTime::from(moment) < since {
                    return Err(LakeError::NoSuchVersion(format!(
                        "nothing is kept of that time any more; the oldest version is {oldest}"
                    )));
                }
                table.load_with_datetime(moment).await?;
            }
        }
        let files = Arc::new(LakeFiles::of(&table, &self.dir, state.readers.clone())?);
        if files.any_is_gone() {
            return Err(LakeError::NoSuchVersion(format!(
                "files of version {} are not kept any more",
                table.version().unwrap_or(0)
            )));
        }
        let marks = self.marks_of(&table).await?;
        Ok(LakeSnapshot { files, marks, version: table.version().unwrap_or(0) })
    }

    /// Rows of a partition from `from` on as the log had them, about `max_rows` of them: the lake is the
    /// log's cold tier. Empty when it holds none from there on.
    pub async fn read_back(
        &self,
        partition: Partition,
        from: Offset,
        max_rows: usize,
    ) -> Result<Vec<LogBatch>, LakeError> {
        let snapshot = self.snapshot(Moment::Now).await?;
        let context = datafusion::prelude::SessionContext::new();
        let to = from.saturating_add(max_rows as Offset);
        let int = |name: &str| ident(name);
        let rows = context
            .read_table(snapshot.files.relation())?
            .filter(int(columns::PARTITION).eq(lit(partition as i32)))?
            .filter(int(columns::OFFSET).gt_eq(lit(from as i64)))?
            .filter(int(columns::OFFSET).lt(lit(to as i64)))?
            .sort(vec![int(columns::OFFSET).sort(true, false)])?
            .collect()
            .await?;
        let stored = self.stream.stored_schema();
        let mut batches = Vec::new();
        for rows in rows.iter().filter(|rows| rows.num_rows() > 0) {
            self.as_batches(rows, &stored, &mut batches)?;
        }
        Ok(batches)
    }

    /// Cuts rows of the lake where their commit or the run of their offsets ends.
    fn as_batches(
        &self,
        rows: &RecordBatch,
        stored: &SchemaRef,
        batches: &mut Vec<LogBatch>,
    ) -> Result<(), LakeError> {
        let positions = Positions::told_by(rows)?;
        let arrays = stored
            .fields()
            .iter()
            .map(|field| match (rows.column_by_name(field.name()), &self.sensitive) {
                (Some(column), Some(sensitive)) => {
                    let name = self.stream.name.as_str();
                    let column = self.vault.decrypt_column(name, positions, sensitive, field, column)?;
                    Ok(cast(&column, field.data_type())?)
                }
                (Some(column), None) => Ok(cast(column, field.data_type())?),
                (None, _) => Ok(new_null_array(field.data_type(), rows.num_rows())),
            })
            .collect::<Result<Vec<_>, LakeError>>()?;
        let values = RecordBatch::try_new(stored.clone(), arrays)?;
        let of = |name: &str| -> Result<Vec<i64>, ArrowError> {
            let column = rows.column(rows.schema_ref().index_of(name)?);
            let plain = cast(column, &DataType::Int64)?;
            Ok(plain.as_primitive::<arrow::datatypes::Int64Type>().values().to_vec())
        };
        let (offsets, recorded) = (of(columns::OFFSET)?, of(columns::RECORDED_AT)?);
        let mut start = 0;
        for row in 1..=offsets.len() {
            let ends = row == offsets.len()
                || recorded[row] != recorded[start]
                || offsets[row] != offsets[row - 1] + 1;
            if ends {
                batches.push(LogBatch {
                    base: offsets[start] as Offset,
                    recorded_at: recorded[start],
                    rows: values.slice(start, row - start),
                });
                start = row;
            }
        }
        Ok(())
    }

    /// Copies the table into another lake, as one version of it.
    pub async fn copy_to(&self, root: &Path) -> Result<(), LakeError> {
        let _alone = self.committing.lock().await;
        let folder = self.dir.file_name().map(PathBuf::from).unwrap_or_default();
        let (from, to) = (self.dir.clone(), root.join("streams").join(folder));
        let copied = tokio::task::spawn_blocking(move || crate::copy_folder(&from, &to)).await;
        Ok(copied.map_err(std::io::Error::other)??)
    }

    /// Files and bytes of the newest version, and its number.
    pub fn size(&self) -> (usize, u64, u64) {
        let state = self.current();
        let Ok(snapshot) = state.table.snapshot() else { return (0, 0, 0) };
        let (files, bytes) = snapshot
            .log_data()
            .iter()
            .fold((0, 0), |(files, bytes), file| (files + 1, bytes + file.size() as u64));
        (files, bytes, state.table.version().unwrap_or(0))
    }

    /// True when the lake holds rows of that day; parts are zero-padded.
    pub fn has_day(&self, day: &(String, String, String)) -> bool {
        let state = self.current();
        let Ok(snapshot) = state.table.snapshot() else { return false };
        let wanted = [&day.0, &day.1, &day.2];
        snapshot.log_data().iter().any(|file| {
            let values = file.partition_values_map();
            DAY_COLUMNS
                .iter()
                .zip(wanted)
                .all(|(column, part)| values.get(*column) == Some(&Some(part.clone())))
        })
    }

    async fn append(self: &Arc<Self>, partition: Partition, batches: Vec<LogBatch>) -> Result<(), LakeError> {
        let Some(end) = batches.last().map(LogBatch::end) else { return Ok(()) };
        let _writing = self.writing.read().await;
        let lake = self.clone();
        let rows = move || Ok(vec![lake.lake_rows(partition, &batches)?]);
        let adds = write_files(&self.current().table, rows).await?;
        let id = application_id(&self.stream.name, partition);
        let _alone = self.committing.lock().await;
        let state = self.current();
        let mut table = state.table.clone();
        let position = Some((id.as_str(), end as i64));
        let appended = written(SaveMode::Append, &DAY_COLUMNS);
        commit(&mut table, &self.dir, adds, Vec::new(), appended, position).await?;
        let mut marks = state.marks.clone();
        marks.insert(partition, end);
        self.put(state.then(table, marks));
        Ok(())
    }

    /// Rows of the log as the lake keeps them, newest first.
    fn lake_rows(&self, partition: Partition, batches: &[LogBatch]) -> Result<RecordBatch, LakeError> {
        let reader = RowReader::new(&self.stream);
        let mut rows = reader.read_all(partition, batches)?;
        if let Some(sensitive) = &self.sensitive {
            rows = self.vault.encrypt(
                self.stream.name.as_str(),
                Positions::told_by(&rows)?,
                sensitive,
                &rows,
            )?;
        }
        let mut fields: Vec<_> = rows.schema_ref().fields().iter().cloned().collect();
        let mut arrays = rows.columns().to_vec();
        for name in [columns::EVENT_KEY, columns::PAYLOAD_HASH] {
            let Ok(field) = self.schema.field_with_name(name) else { continue };
            let parts = batches
                .iter()
                .map(|batch| match batch.rows.column_by_name(name) {
                    Some(column) => cast(column, field.data_type()),
                    None => Ok(new_null_array(field.data_type(), batch.rows.num_rows())),
                })
                .collect::<Result<Vec<_>, _>>()?;
            fields.push(Arc::new(field.clone()));
            arrays.push(concat(&parts.iter().map(AsRef::as_ref).collect::<Vec<_>>())?);
        }
        Ok(self.with_day(&newest_first(&RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)?)?)?)
    }

    /// Rows in the table's columns: with the day of their event time, and nulls where they lack one.
    pub(crate) fn with_day(&self, rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
        let times = rows
            .column(rows.schema_ref().index_of(columns::EVENT_TIME)?)
            .as_primitive::<TimestampMicrosecondType>();
        let mut parts: [Vec<String>; 3] = Default::default();
        let mut last: Option<(i64, (String, String, String))> = None;
        for time in times.values() {
            let number = time.div_euclid(86_400_000_000);
            let day = match &last {
                Some((same, day)) if *same == number => day.clone(),
                _ => {
                    let day = time::day_parts(*time);
                    last = Some((number, day.clone()));
                    day
                }
            };
            parts[0].push(day.0);
            parts[1].push(day.1);
            parts[2].push(day.2);
        }
        let days = parts.map(|part| Arc::new(StringArray::from(part)) as ArrayRef);
        let arrays = self
            .schema
            .fields()
            .iter()
            .map(|field| {
                if let Some(at) = DAY_COLUMNS.iter().position(|column| column == field.name()) {
                    return Ok(days[at].clone());
                }
                match rows.column_by_name(field.name()) {
                    Some(column) => cast(column, field.data_type()),
                    None => Ok(new_null_array(field.data_type(), rows.num_rows())),
                }
            })
            .collect::<Result<Vec<_>, ArrowError>>()?;
        RecordBatch::try_new(self.schema.clone(), arrays)
    }
}

/// The table, when nothing SENSITIVE stands in it as it is.
fn encrypted(table: DeltaTable, sensitive: Option<&Sensitive>) -> Result<DeltaTable, LakeError> {
    if let Some(sensitive) = sensitive {
        let schema: Schema = table.snapshot()?.schema().as_ref().try_into_arrow()?;
        let plain = |field: &&FieldRef| sensitive.stored_field(field).data_type() != field.data_type();
        if let Some(field) = schema.fields().iter().find(plain) {
            return Err(LakeError::Plain(field.name().clone()));
        }
    }
    Ok(table)
}

/// Rows in the order in which pages show them, so that a reader of the newest can stop early.
pub(crate) fn newest_first(rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let newest = Some(SortOptions { descending: true, nulls_first: false });
    let key = |name: &str| -> Result<SortColumn, ArrowError> {
        Ok(SortColumn { values: rows.column(rows.schema_ref().index_of(name)?).clone(), options: newest })
    };
    let order = lexsort_to_indices(&[key(columns::EVENT_TIME)?, key(columns::OFFSET)?], None)?;
    take_record_batch(rows, &order)
}

/// A stream's lake as a view.
pub struct LakeView {
    name: String,
    lake: Arc<LakeStream>,
    gather: Gather,
    log: Arc<dyn Log>,
}

impl LakeView {
    /// Writes when `rows` rows wait or the first of them has waited `wait`.
    pub fn new(lake: Arc<LakeStream>, gather: Gather, log: Arc<dyn Log>) -> Self {
        Self { name: format!("lake:{}", lake.stream.name), lake, gather, log }
    }
}

fn retry(error: LakeError) -> ViewError {
    ViewError::Retry(error.to_string())
}

#[async_trait]
impl View for LakeView {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> &'static str {
        "lake"
    }

    fn sources(&self) -> Vec<StreamName> {
        vec![self.lake.stream.name.clone()]
    }

    fn gather(&self) -> Gather {
        self.gather
    }

    async fn mark(&mut self, at: &StreamPartition) -> Result<Offset, ViewError> {
        // After a failed commit nobody knows whether it landed: the table is asked.
        let table = self.lake.current().table.clone();
        self.lake.refresh(table).await.map_err(retry)?;
        Ok(self.lake.current().marks.get(&at.partition).copied().unwrap_or(0))
    }

    async fn apply(&mut self, at: &StreamPartition, batches: Vec<LogBatch>) -> Result<Applied, ViewError> {
        let rows = batches.iter().map(|batch| batch.rows.num_rows() as u64).sum();
        self.lake.append(at.partition, batches).await.map_err(retry)?;
        Ok(Applied { taken: rows, out: rows, ..Applied::default() })
    }

    async fn skip(&mut self, at: &StreamPartition, to: Offset) -> Result<(), ViewError> {
        Err(ViewError::Broken(format!("rows of {at} before {to} are in neither log nor lake")))
    }

    async fn reset(&mut self) -> Result<(), ViewError> {
        let lake = &self.lake;
        for partition in self.log.partitions(&lake.stream.name) {
            let start = self.log.start(&StreamPartition::new(lake.stream.name.clone(), partition));
            if start > 0 {
                return Err(ViewError::Broken(format!(
                    "the log begins at offset {start}: the lake holds the only copy of what was before and can't be written again"
                )));
            }
        }
        lake.remove().await.map_err(retry)?;
        let fresh = LakeStream::open(&lake.root, lake.stream.clone(), lake.folder, true, lake.vault.clone())
            .await
            .map_err(retry)?;
        let state = fresh.current();
        self.lake.put(lake.current().then(state.table.clone(), state.marks.clone()));
        Ok(())
    }
}
