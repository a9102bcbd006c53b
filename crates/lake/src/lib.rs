//! The lake: streams and tables as Delta tables that any engine can read.
//!
//! ```text
//! <root>/streams/NAME/_delta_log/…                              one Delta table a stream
//! <root>/streams/NAME/year=2026/month=01/day=31/part-….parquet  by the UTC day of event time
//! <root>/tables/NAME/…                                          the newest snapshot of a table
//! ```
//! A stream's lake is a view: rows and the position up to which they were taken are one Delta commit
//! (the `txn` action, one application id per partition), so it holds every event exactly once. Raw
//! columns, offset and append time are kept, so that the lake is also the log's cold tier: a reader
//! takes rows below the lake's mark from here and the rest from the log.
//!
//! Files are fsynced before the commit that names them and the commit after; Delta's own writer does
//! neither. The format stays behind this room's types.

mod maintain;
mod scan;
mod stream;
mod table;

use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use arrow::datatypes::DataType;
use deltalake::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake::kernel::transaction::{CommitBuilder, CommitProperties};
use deltalake::kernel::{Action, Add, StructType, Transaction};
use deltalake::parquet::basic::{Compression, ZstdLevel};
use deltalake::parquet::file::properties::WriterProperties;
use deltalake::parquet::schema::types::ColumnPath;
use deltalake::protocol::{DeltaOperation, SaveMode};
use deltalake::writer::{DeltaWriter, RecordBatchWriter};
use deltalake::{DeltaTable, DeltaTableError, TableProperty, ensure_table_uri};

use highwater_event::{columns, planted};
use highwater_log::machine::give_way;
use highwater_privacy::SealError;
pub use maintain::{Compacted, Edit, Past, Version};
pub use scan::{FILE_COLUMN, LakeFiles};
pub use stream::{Folder, LakeSnapshot, LakeStream, LakeView, Moment};
pub use table::LakeTable;

/// A lake call failed.
#[derive(Debug, thiserror::Error)]
pub enum LakeError {
    /// Delta or the disk.
    #[error("the lake did not answer: {0}")]
    Delta(#[from] DeltaTableError),
    /// A file could not be made durable.
    #[error("a file of the lake could not be made durable: {0}")]
    Sync(#[from] std::io::Error),
    /// A batch does not fit.
    #[error("rows do not fit the lake's table: {0}")]
    Arrow(#[from] arrow::error::ArrowError),
    /// The table can't be read.
    #[error("the lake can't be read: {0}")]
    Read(#[from] datafusion::common::DataFusionError),
    /// A file's name can't be used.
    #[error("a file of the lake can't be named: {0}")]
    Path(#[from] datafusion::object_store::path::Error),
    /// Another program has written to it.
    #[error(
        "file {0} of the lake has a deletion vector: another program has deleted rows from a table that only Highwater may write; restore it from a back-up"
    )]
    Foreign(String),
    /// A value could not be encrypted or decrypted.
    #[error(transparent)]
    Sealed(#[from] SealError),
    /// A table that was written before its stream's columns were SENSITIVE.
    #[error("the lake's table holds column {0} as it is, though it is SENSITIVE; move its folder away")]
    Plain(String),
    /// A version or time that is not there.
    #[error("{0}")]
    NoSuchVersion(String),
}

/// Columns by which a stream's table is partitioned.
pub(crate) const DAY_COLUMNS: [&str; 3] = ["year", "month", "day"];

/// Rows of a row group.
const ROW_GROUP: usize = 128 * 1024;
/// Rows that are encoded before others may have the core.
const ENCODED_AT_ONCE: usize = 512;

fn writer_properties(schema: &arrow::datatypes::Schema) -> WriterProperties {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(ROW_GROUP));
    // Ids are looked up one at a time and are in no order, so that only a Bloom filter tells where one is not. What is
    // encrypted is Binary and has none: it would tell who knows a value whether it is there.
    let ids = schema.fields().iter().filter(|field| {
        matches!(field.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
            && (field.name() == "id" || field.name().ends_with("_id"))
    });
    let filtered = ids.fold(properties, |properties, field| {
        let column = ColumnPath::from(field.name().as_str());
        properties
            .set_column_bloom_filter_enabled(column.clone(), true)
            .set_column_bloom_filter_max_ndv(column.clone(), ROW_GROUP as u64)
            .set_column_bloom_filter_fpp(column, 0.01)
    });
    filtered.build()
}

/// Opens a table, making it when it is not there.
async fn open_or_create(
    dir: &Path,
    name: &str,
    schema: &arrow::datatypes::Schema,
    partition_columns: &[&str],
) -> Result<DeltaTable, LakeError> {
    let url = ensure_table_uri(dir.to_string_lossy())?;
    let mut table = DeltaTable::try_from_url(url.clone()).await?;
    if table.version().is_some() {
        let owner = table.snapshot()?.metadata().name().map(str::to_owned);
        if owner.as_deref() == Some(name) {
            return add_columns(table, dir, schema).await;
        }
        // What an earlier thing of that name has left.
        let aside = set_aside(dir, "dropped")?;
        tracing::info!(aside = %aside.display(), "the folder of something dropped was in the way");
        table = DeltaTable::try_from_url(url).await?;
    }
    let delta: StructType = schema.try_into_kernel()?;
    let table = table
        .create()
        .with_table_name(name)
        .with_columns(delta.fields().cloned())
        .with_partition_columns(partition_columns.iter().copied())
        .with_save_mode(SaveMode::Ignore)
        .with_configuration_property(TableProperty::DataSkippingStatsColumns, Some(stats_columns(schema)))
        .await?;
    sync_commit(dir.to_owned(), 0).await?;
    Ok(table)
}

/// Adds the columns that a table lacks; older files show nulls in them.
async fn add_columns(
    table: DeltaTable,
    dir: &Path,
    schema: &arrow::datatypes::Schema,
) -> Result<DeltaTable, LakeError> {
    let known: Vec<String> = table.snapshot()?.schema().fields().map(|field| field.name().clone()).collect();
    let missing: Vec<_> = schema
        .fields()
        .iter()
        .filter(|field| !known.contains(field.name()))
        .map(|field| field.as_ref().clone().with_nullable(true))
        .collect();
    if missing.is_empty() {
        return Ok(table);
    }
    let delta: StructType = (&arrow::datatypes::Schema::new(missing)).try_into_kernel()?;
    let table = table.add_columns().with_fields(delta.fields().cloned().collect::<Vec<_>>()).await?;
    sync_commit(dir.to_owned(), table.version().unwrap_or(0)).await?;
    Ok(table)
}

/// Columns whose minimum and maximum help to skip files. Delta keeps decimals as doubles there, which
/// would skip wrongly beyond 15 digits.
fn stats_columns(schema: &arrow::datatypes::Schema) -> String {
    use arrow::datatypes::DataType;
    // What retention and reading back look for comes before the columns of users.
    let first = [columns::RECORDED_AT, columns::OFFSET, columns::EVENT_TIME, columns::PARTITION];
    let known = first.iter().filter_map(|name| schema.field_with_name(name).ok());
    let others =
        schema.fields().iter().map(AsRef::as_ref).filter(|field| !first.contains(&field.name().as_str()));
    let plain: Vec<&str> = known
        .chain(others)
        .filter(|field| match field.data_type() {
            DataType::Decimal128(precision, _) => *precision <= 15,
            other => !other.is_nested() && !matches!(other, DataType::Binary),
        })
        .map(|field| field.name().as_str())
        .filter(|name| !DAY_COLUMNS.contains(name))
        .take(32)
        .collect();
    // Names that are not plain words stand in backticks there.
    let quoted = plain.into_iter().map(|name| {
        let word = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if word { name.to_owned() } else { format!("`{}`", name.replace('`', "``")) }
    });
    quoted.collect::<Vec<_>>().join(",")
}

/// Writes rows as files that no version of the table names yet. Making, sorting and encoding them take a core for as
/// long as it takes: not one that calls or views wait for.
async fn write_files(
    table: &DeltaTable,
    rows: impl FnOnce() -> Result<Vec<RecordBatch>, LakeError> + Send + 'static,
) -> Result<Vec<Add>, LakeError> {
    write_files_by(RecordBatchWriter::for_table(table)?, rows).await
}

/// The same by a writer that knows the columns.
async fn write_files_by(
    writer: RecordBatchWriter,
    rows: impl FnOnce() -> Result<Vec<RecordBatch>, LakeError> + Send + 'static,
) -> Result<Vec<Add>, LakeError> {
    let properties = writer_properties(&writer.arrow_schema());
    let mut writer = writer.with_writer_properties(properties);
    let runtime = tokio::runtime::Handle::current();
    let write = move || {
        runtime.block_on(async {
            for batch in rows()? {
                for first in (0..batch.num_rows()).step_by(ENCODED_AT_ONCE) {
                    let rows = ENCODED_AT_ONCE.min(batch.num_rows() - first);
                    writer.write(batch.slice(first, rows)).await?;
                    give_way();
                }
            }
            Ok(writer.flush().await?)
        })
    };
    tokio::task::spawn_blocking(write).await.map_err(std::io::Error::other)?
}

/// How a table's history calls the writing of rows.
fn written(mode: SaveMode, partition_columns: &[&str]) -> DeltaOperation {
    let columns = || partition_columns.iter().map(|column| (*column).to_owned()).collect();
    let partition_by = (!partition_columns.is_empty()).then(columns);
    DeltaOperation::Write { mode, partition_by, predicate: None }
}

/// Commits files that are written but not named yet, with the application's position when it moves.
async fn commit(
    table: &mut DeltaTable,
    dir: &Path,
    adds: Vec<Add>,
    mut actions: Vec<Action>,
    operation: DeltaOperation,
    position: Option<(&str, i64)>,
) -> Result<(), LakeError> {
    sync_files(dir.to_owned(), adds.iter().map(|add| add.path.clone()).collect()).await?;
    actions.extend(adds.into_iter().map(Action::Add));
    let mut properties = CommitProperties::default().with_cleanup_expired_logs(Some(false));
    if let Some((application, offset)) = position {
        properties = properties.with_application_transaction(Transaction::new(application, offset));
    }
    planted::stop("lake:before_commit");
    let done = CommitBuilder::from(properties)
        .with_actions(actions)
        .build(Some(table.snapshot()?), table.log_store(), operation)
        .await?;
    planted::stop("lake:committed");
    table.state = Some(done.snapshot());
    sync_commit(dir.to_owned(), done.version()).await
}

/// The name of the table in a folder; `None` when there is none that can be read.
async fn owner(dir: &Path) -> Option<String> {
    if !dir.exists() {
        return None;
    }
    let table = DeltaTable::try_from_url(ensure_table_uri(dir.to_string_lossy()).ok()?).await.ok()?;
    table.snapshot().ok()?.metadata().name().map(str::to_owned)
}

/// Renames a table's folder to `NAME.<why>-N` and answers the new path.
fn set_aside(dir: &Path, why: &str) -> std::io::Result<PathBuf> {
    for number in 1..10_000 {
        let aside = dir.with_extension(format!("{why}-{number}"));
        if !aside.exists() {
            std::fs::rename(dir, &aside)?;
            if let Some(parent) = dir.parent() {
                std::fs::File::open(parent)?.sync_all()?;
            }
            return Ok(aside);
        }
    }
    Err(std::io::Error::other("too many folders are set aside; remove them"))
}

/// Copies a folder; files are never changed once they are written, so a link is as good as a copy.
fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else if std::fs::hard_link(entry.path(), &target).is_err() {
            std::fs::copy(entry.path(), &target)?;
            std::fs::File::open(&target)?.sync_all()?;
        }
    }
    std::fs::File::open(to)?.sync_all()
}

async fn sync_files(dir: PathBuf, paths: Vec<String>) -> Result<(), LakeError> {
    let synced = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
        for path in paths {
            let file = dir.join(path);
            std::fs::File::open(&file)?.sync_all()?;
            let mut parent = file.parent();
            while let Some(folder) = parent.filter(|folder| folder.starts_with(&dir)) {
                std::fs::File::open(folder)?.sync_all()?;
                parent = folder.parent();
            }
        }
        Ok(())
    });
    Ok(synced.await.map_err(std::io::Error::other)??)
}

async fn sync_commit(dir: PathBuf, version: u64) -> Result<(), LakeError> {
    let synced = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
        let log = dir.join("_delta_log");
        let number = format!("{version:020}");
        // A checkpoint may have been written with the commit, by one who does not sync.
        for entry in std::fs::read_dir(&log)? {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(&number) || name == "_last_checkpoint" {
                std::fs::File::open(log.join(name.as_ref()))?.sync_all()?;
            }
        }
        std::fs::File::open(log)?.sync_all()
    });
    Ok(synced.await.map_err(std::io::Error::other)??)
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{Field, Schema};

    use super::*;

    #[test]
    fn ids_have_filters_and_what_is_encrypted_has_none() {
        let field = |name: &str, data_type: DataType| Field::new(name, data_type, true);
        let properties = writer_properties(&Schema::new(vec![
            field("event_id", DataType::Utf8),
            field("user_id", DataType::Binary),
            field("amount", DataType::Int64),
            field("id", DataType::Utf8),
        ]));
        let filtered = |name: &str| properties.bloom_filter_properties(&ColumnPath::from(name)).is_some();
        assert!(filtered("event_id") && filtered("id"));
        assert!(!filtered("user_id") && !filtered("amount"));
    }
}
