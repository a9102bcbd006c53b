//! What an index keeps of a stream's rows: what they are found by, where they stand, and the rows themselves.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Field as ArrowField, Int32Type, Int64Type, Schema as ArrowSchema,
    SchemaRef, TimestampMicrosecondType,
};
use arrow::error::ArrowError;
use arrow::row::{RowConverter, SortField};
use highwater_event::search::Kind;
use highwater_event::{StreamSchema, columns};
use tantivy::TantivyDocument;
use tantivy::schema::{
    BytesOptions, Field, IndexRecordOption, NumericOptions, Schema, TextFieldIndexing, TextOptions,
};

use crate::SearchError;
use crate::tokens::exact;

/// Changes whenever an index of an older program can't be read by this one.
const FORMAT: u32 = 1;
/// Microseconds of an hour.
const HOUR: i64 = 3_600_000_000;
/// Names of tokenizers.
pub(crate) const WORDS: &str = "words";
pub(crate) const JSON_WORDS: &str = "json_words";

/// What a column is found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// All of it or its beginning, and its words.
    Text { exact: Field, words: Field },
    /// The words of JSON.
    Json { words: Field },
    /// A whole number.
    Number(Field),
}

/// The fields of an index.
pub(crate) struct Fields {
    pub schema: Schema,
    pub row: Field,
    /// The hour of event time, to find some hours without looking at every time.
    pub hour: Field,
    /// Columns by name, those of the engine among them.
    by: Vec<(String, By)>,
    /// The columns that rows are kept with: as the lake has them, texts as views.
    pub stored: SchemaRef,
    converter: RowConverter,
    /// Tells an index of other columns from this one.
    pub shape: String,
}

/// Names of fast fields.
pub(crate) const TIME: &str = "time";
pub(crate) const PARTITION: &str = "partition";
pub(crate) const OFFSET: &str = "offset";

impl Fields {
    pub fn of(stream: &StreamSchema) -> Result<Self, SearchError> {
        let mut schema = Schema::builder();
        let number = || NumericOptions::default().set_fast().set_indexed();
        let fast = || NumericOptions::default().set_fast();
        let mut by = vec![
            (columns::EVENT_TIME.to_owned(), By::Number(schema.add_i64_field(TIME, fast()))),
            (columns::RECORDED_AT.to_owned(), By::Number(schema.add_i64_field("recorded", fast()))),
            (columns::PARTITION.to_owned(), By::Number(schema.add_i64_field(PARTITION, fast()))),
            (columns::OFFSET.to_owned(), By::Number(schema.add_i64_field(OFFSET, fast()))),
        ];
        let indexed = |tokenizer: &str, option| {
            let indexing = TextFieldIndexing::default().set_tokenizer(tokenizer).set_index_option(option);
            TextOptions::default().set_indexing_options(indexing.set_fieldnorms(false))
        };
        for (column, kind) in stream.searched() {
            let name = &column.name;
            let found = match kind {
                Kind::Text => By::Text {
                    exact: schema
                        .add_text_field(&format!("is.{name}"), indexed("raw", IndexRecordOption::Basic)),
                    words: schema.add_text_field(
                        &format!("has.{name}"),
                        indexed(WORDS, IndexRecordOption::WithFreqsAndPositions),
                    ),
                },
                Kind::Json => By::Json {
                    words: schema.add_text_field(
                        &format!("has.{name}"),
                        indexed(JSON_WORDS, IndexRecordOption::WithFreqsAndPositions),
                    ),
                },
                Kind::Number => By::Number(schema.add_i64_field(&format!("is.{name}"), number())),
            };
            by.push((name.clone(), found));
        }
        let hour = schema.add_i64_field("hour", NumericOptions::default().set_indexed());
        let row = schema.add_bytes_field("row", BytesOptions::default().set_stored());
        let mut stored = stream.reader_schema().as_ref().clone();
        if let Some(sensitive) = stream.sensitive() {
            stored = sensitive.stored(&stored);
        }
        let views = stored.fields().iter().map(|field| match field.data_type() {
            DataType::Utf8 => field.as_ref().clone().with_data_type(DataType::Utf8View),
            _ => field.as_ref().clone(),
        });
        let stored: SchemaRef = Arc::new(ArrowSchema::new(views.collect::<Vec<ArrowField>>()));
        let converter = converter(&stored)?;
        let columns = stored.fields().iter().map(|field| format!("{}:{}", field.name(), field.data_type()));
        let shape = format!("{FORMAT}|{}|{by:?}", columns.collect::<Vec<_>>().join(","));
        let shape = blake3::hash(shape.as_bytes()).to_hex().to_string();
        Ok(Self { schema: schema.build(), row, hour, by, stored, converter, shape })
    }

    /// What a column is found by; `None` when it is not indexed.
    pub fn by(&self, column: &str) -> Option<By> {
        self.by.iter().find(|(name, _)| name == column).map(|(_, by)| *by)
    }

    /// Documents of rows. `readable` are the rows as readers see them, `kept` the same as they are kept.
    pub fn documents(
        &self,
        readable: &RecordBatch,
        kept: &RecordBatch,
    ) -> Result<Vec<TantivyDocument>, SearchError> {
        let mut documents = vec![TantivyDocument::default(); readable.num_rows()];
        for (name, by) in &self.by {
            let Some(column) = readable.column_by_name(name) else { continue };
            match by {
                By::Number(field) => {
                    let numbers = Numbers::of(column);
                    for (row, document) in documents.iter_mut().enumerate() {
                        if let Some(number) = numbers.get(row) {
                            document.add_i64(*field, number);
                        }
                    }
                }
                By::Json { words } => each_text(column, &mut documents, |document, text| {
                    document.add_text(*words, text);
                }),
                By::Text { exact: whole, words } => each_text(column, &mut documents, |document, text| {
                    document.add_text(*whole, exact(text));
                    document.add_text(*words, text);
                }),
            }
        }
        if let Some(times) = readable.column_by_name(columns::EVENT_TIME) {
            let times = Numbers::of(times);
            for (row, document) in documents.iter_mut().enumerate() {
                document.add_i64(self.hour, hour_of(times.get(row).unwrap_or_default()));
            }
        }
        let columns = self.stored.fields().iter().map(|field| {
            let at = kept.schema_ref().index_of(field.name())?;
            cast(kept.column(at), field.data_type())
        });
        let rows = self.converter.convert_columns(&columns.collect::<Result<Vec<_>, ArrowError>>()?)?;
        for (document, row) in documents.iter_mut().zip(rows.iter()) {
            document.add_bytes(self.row, row.as_ref());
        }
        Ok(documents)
    }

    /// The rows that were kept, by columns of `stored`.
    pub fn rows<'a>(&self, kept: impl Iterator<Item = &'a [u8]>) -> Result<Vec<ArrayRef>, ArrowError> {
        // One of its own: what it makes may outlive what is asked at the same time.
        let parser = self.converter.parser();
        let rows: Vec<_> = kept.map(|bytes| parser.parse(bytes)).collect();
        self.converter.convert_rows(rows)
    }
}

/// The hour that a time lies in.
pub(crate) fn hour_of(time: i64) -> i64 {
    time.div_euclid(HOUR)
}

/// Turns rows into bytes and back.
fn converter(stored: &SchemaRef) -> Result<RowConverter, SearchError> {
    let fields = stored.fields().iter();
    let types: Vec<_> = fields.map(|field| SortField::new(field.data_type().clone())).collect();
    if !RowConverter::supports_fields(&types) {
        let alone = |field: &&Arc<ArrowField>| {
            !RowConverter::supports_fields(&[SortField::new(field.data_type().clone())])
        };
        let field = stored.fields().iter().find(alone);
        return Err(SearchError::Column {
            column: field.map(|field| field.name().clone()).unwrap_or_default(),
            why: "rows with a column of its type are not kept in an index; declare the stream without search"
                .into(),
        });
    }
    Ok(RowConverter::new(types)?)
}

fn each_text(
    column: &ArrayRef,
    documents: &mut [TantivyDocument],
    mut add: impl FnMut(&mut TantivyDocument, &str),
) {
    let Some(texts) = column.as_string_opt::<i32>() else { return };
    for (text, document) in texts.iter().zip(documents) {
        if let Some(text) = text {
            add(document, text);
        }
    }
}

/// A column as whole numbers.
enum Numbers<'a> {
    Int64(&'a arrow::array::Int64Array),
    Int32(&'a arrow::array::Int32Array),
    Day(&'a arrow::array::Date32Array),
    Time(&'a arrow::array::TimestampMicrosecondArray),
    Truth(&'a arrow::array::BooleanArray),
    Decimal(&'a arrow::array::Decimal128Array),
    None,
}

impl<'a> Numbers<'a> {
    fn of(column: &'a ArrayRef) -> Self {
        match column.data_type() {
            DataType::Int64 => Self::Int64(column.as_primitive::<Int64Type>()),
            DataType::Int32 => Self::Int32(column.as_primitive::<Int32Type>()),
            DataType::Date32 => Self::Day(column.as_primitive::<Date32Type>()),
            DataType::Timestamp(..) => Self::Time(column.as_primitive::<TimestampMicrosecondType>()),
            DataType::Boolean => Self::Truth(column.as_boolean()),
            DataType::Decimal128(..) => Self::Decimal(column.as_primitive::<Decimal128Type>()),
            _ => Self::None,
        }
    }

    fn get(&self, row: usize) -> Option<i64> {
        match self {
            Self::Int64(column) => column.is_valid(row).then(|| column.value(row)),
            Self::Int32(column) => column.is_valid(row).then(|| column.value(row).into()),
            Self::Day(column) => column.is_valid(row).then(|| column.value(row).into()),
            Self::Time(column) => column.is_valid(row).then(|| column.value(row)),
            Self::Truth(column) => column.is_valid(row).then(|| column.value(row).into()),
            Self::Decimal(column) => {
                column.is_valid(row).then(|| column.value(row).try_into().ok()).flatten()
            }
            Self::None => None,
        }
    }
}
