//! Arrow columns that grow cell by cell.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanBuilder, Date32Builder, Decimal128Builder, Float64Builder, Int16Builder, Int32Builder,
    Int64Builder, ListArray, MapArray, StringBuilder, StructArray, TimestampMicrosecondBuilder,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, FieldRef, Fields};
use arrow::error::ArrowError;

use crate::cell::Cell;

/// A column under construction.
pub enum ColumnBuilder {
    /// Text and JSON.
    Text(StringBuilder),
    /// BOOLEAN.
    Bool(BooleanBuilder),
    /// SMALLINT.
    Int16(Int16Builder),
    /// INT.
    Int32(Int32Builder),
    /// BIGINT.
    Int64(Int64Builder),
    /// DOUBLE.
    Float(Float64Builder),
    /// DECIMAL.
    Decimal(Decimal128Builder),
    /// TIMESTAMP.
    Timestamp(TimestampMicrosecondBuilder),
    /// DATE.
    Date(Date32Builder),
    /// STRUCT: fields, children and which rows are there.
    Struct(Fields, Vec<ColumnBuilder>, Vec<bool>),
    /// ARRAY: element, child, length of each list and which rows are there.
    List(FieldRef, Box<ColumnBuilder>, Vec<usize>, Vec<bool>),
    /// MAP: entries, keys, values, length of each map and which rows are there.
    Map(FieldRef, StringBuilder, Box<ColumnBuilder>, Vec<usize>, Vec<bool>),
}

impl ColumnBuilder {
    /// A builder for a type that [`crate::cell::kind_of`] knows.
    pub fn new(data_type: &DataType) -> Result<Self, ArrowError> {
        Ok(match data_type {
            DataType::Utf8 => Self::Text(StringBuilder::new()),
            DataType::Boolean => Self::Bool(BooleanBuilder::new()),
            DataType::Int16 => Self::Int16(Int16Builder::new()),
            DataType::Int32 => Self::Int32(Int32Builder::new()),
            DataType::Int64 => Self::Int64(Int64Builder::new()),
            DataType::Float64 => Self::Float(Float64Builder::new()),
            DataType::Decimal128(_, _) => {
                Self::Decimal(Decimal128Builder::new().with_data_type(data_type.clone()))
            }
            DataType::Timestamp(_, _) => {
                Self::Timestamp(TimestampMicrosecondBuilder::new().with_data_type(data_type.clone()))
            }
            DataType::Date32 => Self::Date(Date32Builder::new()),
            DataType::Struct(fields) => {
                let children =
                    fields.iter().map(|field| Self::new(field.data_type())).collect::<Result<_, _>>()?;
                Self::Struct(fields.clone(), children, Vec::new())
            }
            DataType::List(element) => {
                Self::List(element.clone(), Box::new(Self::new(element.data_type())?), Vec::new(), Vec::new())
            }
            DataType::Map(entries, _) => {
                let value = match entries.data_type() {
                    DataType::Struct(fields) if fields.len() == 2 => Self::new(fields[1].data_type())?,
                    other => return Err(ArrowError::SchemaError(format!("a map of {other}"))),
                };
                Self::Map(entries.clone(), StringBuilder::new(), Box::new(value), Vec::new(), Vec::new())
            }
            other => return Err(ArrowError::NotYetImplemented(format!("events can't bring {other}"))),
        })
    }

    /// Appends a cell; `text` is the buffer that text cells point into. A cell of another kind than the
    /// column's is appended as null: the decoder has checked kinds before.
    pub fn append(&mut self, cell: &Cell, text: &str) {
        let int = |cell: &Cell| if let Cell::Int(value) = cell { Some(*value) } else { None };
        match self {
            Self::Text(builder) => match cell {
                Cell::Text(start, end) => builder.append_value(&text[*start as usize..*end as usize]),
                _ => builder.append_null(),
            },
            Self::Bool(builder) => {
                builder.append_option(if let Cell::Bool(value) = cell { Some(*value) } else { None });
            }
            Self::Int16(builder) => builder.append_option(int(cell).map(|value| value as i16)),
            Self::Int32(builder) => builder.append_option(int(cell).map(|value| value as i32)),
            Self::Int64(builder) => builder.append_option(int(cell)),
            Self::Float(builder) => {
                builder.append_option(if let Cell::Float(value) = cell { Some(*value) } else { None });
            }
            Self::Decimal(builder) => {
                builder.append_option(if let Cell::Decimal(value) = cell { Some(*value) } else { None });
            }
            Self::Timestamp(builder) => builder.append_option(int(cell)),
            Self::Date(builder) => builder.append_option(int(cell).map(|value| value as i32)),
            Self::Struct(_, children, present) => match cell {
                Cell::Struct(members) => {
                    present.push(true);
                    for (child, member) in children.iter_mut().zip(members) {
                        child.append(member, text);
                    }
                }
                _ => {
                    present.push(false);
                    children.iter_mut().for_each(|child| child.append(&Cell::Null, text));
                }
            },
            Self::List(_, child, lengths, present) => match cell {
                Cell::List(elements) => {
                    present.push(true);
                    lengths.push(elements.len());
                    elements.iter().for_each(|element| child.append(element, text));
                }
                _ => {
                    present.push(false);
                    lengths.push(0);
                }
            },
            Self::Map(_, keys, values, lengths, present) => match cell {
                Cell::Map(entries) => {
                    present.push(true);
                    lengths.push(entries.len());
                    for ((start, end), value) in entries {
                        keys.append_value(&text[*start as usize..*end as usize]);
                        values.append(value, text);
                    }
                }
                _ => {
                    present.push(false);
                    lengths.push(0);
                }
            },
        }
    }

    /// The column so far; the builder starts again.
    pub fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        Ok(match self {
            Self::Text(builder) => Arc::new(builder.finish()),
            Self::Bool(builder) => Arc::new(builder.finish()),
            Self::Int16(builder) => Arc::new(builder.finish()),
            Self::Int32(builder) => Arc::new(builder.finish()),
            Self::Int64(builder) => Arc::new(builder.finish()),
            Self::Float(builder) => Arc::new(builder.finish()),
            Self::Decimal(builder) => Arc::new(builder.finish()),
            Self::Timestamp(builder) => Arc::new(builder.finish()),
            Self::Date(builder) => Arc::new(builder.finish()),
            Self::Struct(fields, children, present) => {
                let columns = children.iter_mut().map(Self::finish).collect::<Result<Vec<_>, _>>()?;
                let rows = present.len();
                let nulls = NullBuffer::from(std::mem::take(present));
                Arc::new(StructArray::try_new_with_length(fields.clone(), columns, Some(nulls), rows)?)
            }
            Self::List(element, child, lengths, present) => {
                let offsets = OffsetBuffer::from_lengths(std::mem::take(lengths));
                let nulls = NullBuffer::from(std::mem::take(present));
                Arc::new(ListArray::try_new(element.clone(), offsets, child.finish()?, Some(nulls))?)
            }
            Self::Map(entries, keys, values, lengths, present) => {
                let offsets = OffsetBuffer::from_lengths(std::mem::take(lengths));
                let nulls = NullBuffer::from(std::mem::take(present));
                let DataType::Struct(fields) = entries.data_type() else {
                    return Err(ArrowError::SchemaError("a map without entries".into()));
                };
                let columns: Vec<ArrayRef> = vec![Arc::new(keys.finish()), values.finish()?];
                let pairs = StructArray::try_new(fields.clone(), columns, None)?;
                Arc::new(MapArray::try_new(entries.clone(), offsets, pairs, Some(nulls), false)?)
            }
        })
    }
}
