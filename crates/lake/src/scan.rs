//! The files of one version of a stream's table as a relation.
//!
//! Delta's own provider reads the same rows, but its plans don't know what is known about the files: how
//! many rows each has, within which times they lie, and that each is in order, newest first. With that a
//! page of the newest events opens the newest files only, and a count without conditions opens none.

use std::path::Path;
use std::sync::{Arc, Weak};

use arrow::compute::SortOptions;
use arrow::compute::kernels::cast_utils::Parser;
use arrow::datatypes::{DataType, Date32Type, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, DataFusionError, ScalarValue, Statistics, project_schema};
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::object_store::ObjectStoreUrl;
use datafusion::datasource::physical_plan::{
    FileGroup, FileScanConfig, FileScanConfigBuilder, ParquetSource,
};
use datafusion::datasource::table_schema::TableSchema;
use datafusion::logical_expr::{Expr, TableType};
use datafusion::object_store::ObjectMeta;
use datafusion::object_store::path::Path as ObjectPath;
use datafusion::physical_expr::expressions::col;
use datafusion::physical_expr::{LexOrdering, PhysicalSortExpr};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use deltalake::DeltaTable;
use deltalake::kernel::LogicalFileView;
use deltalake::kernel::engine::arrow_conversion::TryIntoArrow;
use highwater_event::{columns, time};

use crate::{DAY_COLUMNS, LakeError};

/// Files that overlap in time are read side by side to keep their rows in order; with more than so many
/// at once the rows are sorted instead.
const MOST_SIDE_BY_SIDE: usize = 64;

/// Scans of up to so many columns read all rows; conditions are asked afterwards.
const FEW_COLUMNS: usize = 8;

/// A column of [`LakeFiles::relation`]: the number of the file that a row is in.
pub const FILE_COLUMN: &str = "_file";

/// Held by those who read files of a table.
#[derive(Debug, Clone, Default)]
pub(crate) struct Readers(Arc<()>);

impl Readers {
    /// Tells how many hold it, and is none of them.
    pub fn watch(&self) -> Weak<()> {
        Arc::downgrade(&self.0)
    }
}

/// The live files of a version of a stream's table, newest first. A file never changes.
#[derive(Debug, Clone)]
pub struct LakeFiles {
    table: TableSchema,
    /// Each of them, and so every plan that reads it, holds the readers.
    files: Vec<PartitionedFile>,
    /// What is known about all of their rows together; joins are ordered by it.
    known: Statistics,
}

impl LakeFiles {
    /// Takes the list from a table's log. No file is opened.
    pub(crate) fn of(table: &DeltaTable, dir: &Path, readers: Readers) -> Result<Self, LakeError> {
        let snapshot = table.snapshot()?;
        let schema: Schema = snapshot.schema().as_ref().try_into_arrow()?;
        let of_files: Vec<Field> = schema
            .fields()
            .iter()
            .filter(|field| !DAY_COLUMNS.contains(&field.name().as_str()))
            .map(|field| match field.data_type() {
                // Read as views into the pages, which saves copying them.
                DataType::Utf8 => field.as_ref().clone().with_data_type(DataType::Utf8View),
                _ => field.as_ref().clone(),
            })
            .collect();
        let of_files = Arc::new(Schema::new(of_files));
        let mut constants =
            DAY_COLUMNS.map(|column| Arc::new(Field::new(column, DataType::Utf8, true))).to_vec();
        constants.push(Arc::new(Field::new(FILE_COLUMN, DataType::Int32, false)));
        let table = TableSchema::builder(of_files.clone()).with_table_partition_cols(constants).build();
        let live = snapshot.log_data();
        let files = live.iter().zip(0..).map(|(file, number)| {
            let listed = listed(&file, number, dir, &of_files);
            listed.map(|file| file.with_extension(readers.clone()))
        });
        let mut files = files.collect::<Result<Vec<_>, _>>()?;
        let newest = |file: &PartitionedFile| -> Option<i64> {
            let at = of_files.index_of(columns::EVENT_TIME).ok()?;
            match file.statistics.as_ref()?.column_statistics.get(at)?.max_value.get_value()? {
                ScalarValue::TimestampMicrosecond(micros, _) => *micros,
                _ => None,
            }
        };
        files.sort_by_cached_key(|file| std::cmp::Reverse(newest(file)));
        Ok(Self::with_files(table, files))
    }

    fn with_files(table: TableSchema, files: Vec<PartitionedFile>) -> Self {
        let schema = table.table_schema();
        let of_files: Option<Vec<&Statistics>> =
            files.iter().map(|file| file.statistics.as_deref()).collect();
        let merged = of_files.and_then(|of_files| Statistics::try_merge_iter(of_files, schema).ok());
        let mut known = merged.unwrap_or_else(|| Statistics::new_unknown(schema));
        // Bounds guide plans; no answer is made of them.
        known.column_statistics =
            known.column_statistics.into_iter().map(ColumnStatistics::to_inexact).collect();
        known.column_statistics.resize_with(schema.fields().len(), ColumnStatistics::new_unknown);
        known.total_byte_size = Precision::Absent;
        if files.is_empty() {
            known.num_rows = Precision::Exact(0);
        }
        Self { table, files, known }
    }

    /// The numbers and names of the files. Names are never used twice.
    pub fn names(&self) -> impl Iterator<Item = (i32, &str)> {
        self.files.iter().filter_map(|file| match file.partition_values.last() {
            Some(ScalarValue::Int32(Some(number))) => Some((*number, file.path().as_ref())),
            _ => None,
        })
    }

    /// Whether one of the files was removed, as a vacuum does with those of old versions.
    pub(crate) fn any_is_gone(&self) -> bool {
        let place = |file: &PartitionedFile| Path::new("/").join(file.path().as_ref());
        self.files.iter().any(|file| !place(file).exists())
    }

    /// Rows in all files; `None` when a file does not say.
    pub fn rows(&self) -> Option<u64> {
        match self.known.num_rows {
            Precision::Exact(rows) => Some(rows as u64),
            _ => None,
        }
    }

    /// The names of files that may hold a row, by what is known about them: its event time in microseconds UTC, its
    /// partition and its offset lie within their bounds.
    pub fn holding(&self, time: i64, partition: i32, offset: i64) -> impl Iterator<Item = &str> {
        let schema = self.table.file_schema();
        let at =
            [columns::EVENT_TIME, columns::PARTITION, columns::OFFSET].map(|name| schema.index_of(name).ok());
        let values = [
            ScalarValue::TimestampMicrosecond(Some(time), Some("UTC".into())),
            ScalarValue::Int32(Some(partition)),
            ScalarValue::Int64(Some(offset)),
        ];
        let holds = move |file: &&PartitionedFile| {
            let Some(known) = &file.statistics else { return true };
            at.iter().zip(&values).all(|(at, value)| {
                let Some(bounds) = at.and_then(|at| known.column_statistics.get(at)) else { return true };
                bounds.min_value.get_value().is_none_or(|low| low <= value)
                    && bounds.max_value.get_value().is_none_or(|high| high >= value)
            })
        };
        self.files.iter().filter(holds).filter_map(|file| file.path().filename())
    }

    /// Some of the files.
    pub fn only(&self, wanted: impl Fn(&str) -> bool) -> Self {
        let files = self.files.iter().filter(|file| wanted(file.path().as_ref())).cloned().collect();
        Self::with_files(self.table.clone(), files)
    }

    /// The rows: columns of [`StreamSchema::reader_schema`](highwater_event::StreamSchema::reader_schema) with
    /// texts as [`DataType::Utf8View`], then year, month, day and [`FILE_COLUMN`].
    pub fn relation(self: &Arc<Self>) -> Arc<dyn TableProvider> {
        Arc::new(LakeRelation(self.clone()))
    }

    /// The order that each file has.
    fn order(&self) -> Result<Option<LexOrdering>, DataFusionError> {
        // Neither is ever null; so it is said as SQL says it when nothing is said about nulls.
        let options = SortOptions { descending: true, nulls_first: true };
        let keys = [columns::EVENT_TIME, columns::OFFSET].map(|column| {
            Ok::<_, DataFusionError>(PhysicalSortExpr::new(col(column, self.table.table_schema())?, options))
        });
        Ok(LexOrdering::new(keys.into_iter().collect::<Result<Vec<_>, _>>()?))
    }

    /// The files for so many readers, and the order that each reader then sees; none when too many of
    /// them overlap.
    fn groups(&self, readers: usize) -> Result<(Vec<FileGroup>, Option<LexOrdering>), DataFusionError> {
        let all = [FileGroup::new(self.files.clone())];
        if let Some(order) = self.order()? {
            let split = FileScanConfig::split_groups_by_statistics_with_target_partitions(
                self.table.table_schema(),
                &all,
                &order,
                readers,
            );
            // A file without bounds can't be put in order.
            if let Ok(groups) = split
                && groups.len() <= MOST_SIDE_BY_SIDE.max(readers)
            {
                return Ok((groups, Some(order)));
            }
        }
        let mut groups = vec![Vec::new(); readers.clamp(1, self.files.len().max(1))];
        let count = groups.len();
        for (number, file) in self.files.iter().enumerate() {
            groups[number % count].push(file.clone());
        }
        Ok((groups.into_iter().map(FileGroup::new).collect(), None))
    }
}

/// A file as a table's log lists it, with the values of its constant columns.
fn listed(
    file: &LogicalFileView,
    number: i32,
    dir: &Path,
    schema: &SchemaRef,
) -> Result<PartitionedFile, LakeError> {
    if file.deletion_vector_descriptor().is_some() {
        return Err(LakeError::Foreign(file.path().into_owned()));
    }
    let values = file.partition_values_map();
    let day = DAY_COLUMNS.iter().map(|column| values.get(*column).cloned().flatten());
    let mut constants: Vec<ScalarValue> = day.map(ScalarValue::Utf8).collect();
    constants.push(ScalarValue::Int32(Some(number)));
    let known = file.stats().and_then(|stats| serde_json::from_str(&stats).ok()).unwrap_or_default();
    let meta = ObjectMeta {
        location: ObjectPath::from_absolute_path(dir.join(file.path().as_ref()))?,
        last_modified: file.modification_datetime()?,
        size: file.size().max(0) as u64,
        e_tag: None,
        version: None,
    };
    Ok(PartitionedFile::new_from_meta(meta)
        .with_partition_values(constants)
        .with_statistics(Arc::new(statistics(schema, &known))))
}

/// What a table's log says about a file, as the planner wants it. Only what all our writers keep in full:
/// texts are cut and decimals rounded there. Footers say the rest once a file is opened.
fn statistics(schema: &SchemaRef, known: &serde_json::Value) -> Statistics {
    let mut statistics = Statistics::new_unknown(schema);
    if let Some(rows) = known["numRecords"].as_u64() {
        statistics.num_rows = Precision::Exact(rows as usize);
    }
    for (field, column) in schema.fields().iter().zip(&mut statistics.column_statistics) {
        let bounds = |bound: &str| known[bound][field.name()].clone();
        if let Some((low, high)) = bounds_of(field, &bounds("minValues"), &bounds("maxValues")) {
            column.min_value = low;
            column.max_value = high;
            if let Some(nulls) = known["nullCount"][field.name()].as_u64() {
                column.null_count = Precision::Exact(nulls as usize);
            }
        }
    }
    statistics
}

/// Bounds of a column's values; none when the log has none that can be relied on.
fn bounds_of(
    field: &Field,
    low: &serde_json::Value,
    high: &serde_json::Value,
) -> Option<(Precision<ScalarValue>, Precision<ScalarValue>)> {
    match field.data_type() {
        DataType::Int64 => {
            let exact = |value: i64| Precision::Exact(ScalarValue::Int64(Some(value)));
            Some((exact(low.as_i64()?), exact(high.as_i64()?)))
        }
        DataType::Int32 => {
            let exact = |value: i32| Precision::Exact(ScalarValue::Int32(Some(value)));
            Some((exact(low.as_i64()?.try_into().ok()?), exact(high.as_i64()?.try_into().ok()?)))
        }
        DataType::Date32 => {
            let exact = |value| Precision::Exact(ScalarValue::Date32(Some(value)));
            Some((exact(Date32Type::parse(low.as_str()?)?), exact(Date32Type::parse(high.as_str()?)?)))
        }
        DataType::Timestamp(..) => {
            // The log cuts times to milliseconds, so these are bounds and not values.
            let zone: Option<Arc<str>> = Some("UTC".into());
            let bound =
                |micros| Precision::Inexact(ScalarValue::TimestampMicrosecond(Some(micros), zone.clone()));
            let (low, high) = (time::parse_micros(low.as_str()?)?, time::parse_micros(high.as_str()?)?);
            Some((bound(low), bound(high.saturating_add(999))))
        }
        _ => None,
    }
}

#[derive(Debug)]
struct LakeRelation(Arc<LakeFiles>);

#[async_trait]
impl TableProvider for LakeRelation {
    fn schema(&self) -> SchemaRef {
        self.0.table.table_schema().clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        let LakeFiles { table, files, known } = self.0.as_ref();
        let projected = project_schema(table.table_schema(), projection)?;
        if files.is_empty() {
            return Ok(Arc::new(EmptyExec::new(projected)));
        }
        let (groups, order) = self.0.groups(state.config().target_partitions())?;
        let source = Arc::new(ParquetSource::new(table.clone()));
        let scan = FileScanConfigBuilder::new(ObjectStoreUrl::local_filesystem(), source)
            .with_file_groups(groups)
            .with_statistics(known.clone())
            .with_output_ordering(order.into_iter().collect())
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .build();
        let mut options = state.table_options().parquet.clone();
        // Where much is read of a row it pays to look first whether it is wanted. Of few columns, the picking of rows costs more than
        // reading them all, unless it is known that few are wanted: the planner says so then.
        options.global.pushdown_filters = projected.fields().len() > FEW_COLUMNS;
        let format = ParquetFormat::default().with_options(options);
        format.create_physical_plan(state, scan).await
    }
}
