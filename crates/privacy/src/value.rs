//! Values of columns as bytes.
//!
//! Texts and bytes are themselves, numbers and times their little-endian bytes. A value with parts (struct, list,
//! map) is written column by column: a byte for each element that says whether it is there, then the elements.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayData, ArrayRef, AsArray, BinaryArray, BooleanArray, FixedSizeBinaryArray, ListArray,
    MapArray, StringArray, StructArray, make_array, new_null_array,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer};
use arrow::compute::concat;
use arrow::datatypes::{DataType, FieldRef};
use arrow::error::ArrowError;

fn unfit(data_type: &DataType) -> ArrowError {
    ArrowError::NotYetImplemented(format!("values of type {data_type} can't be encrypted"))
}

fn short() -> ArrowError {
    ArrowError::ParseError("an encrypted value holds another type".into())
}

/// Appends the bytes of one value that is not null.
pub fn write(array: &dyn Array, row: usize, out: &mut Vec<u8>) -> Result<(), ArrowError> {
    match array.data_type() {
        DataType::Utf8 => out.extend_from_slice(array.as_string::<i32>().value(row).as_bytes()),
        DataType::Binary => out.extend_from_slice(array.as_binary::<i32>().value(row)),
        _ => write_plain(array, row, 1, out)?,
    }
    Ok(())
}

/// Appends elements of a column, as many bytes each as their type has; parts of others.
fn write_plain(array: &dyn Array, from: usize, count: usize, out: &mut Vec<u8>) -> Result<(), ArrowError> {
    match array.data_type() {
        DataType::Boolean => {
            let values = array.as_boolean();
            out.extend((from..from + count).map(|row| u8::from(values.value(row))));
        }
        DataType::FixedSizeBinary(_) => {
            let values = array.as_fixed_size_binary();
            (from..from + count).for_each(|row| out.extend_from_slice(values.value(row)));
        }
        other => match other.primitive_width() {
            Some(width) => {
                let data = array.to_data();
                let start = (data.offset() + from) * width;
                let values = data.buffers().first().ok_or_else(|| unfit(other))?;
                out.extend_from_slice(&values.as_slice()[start..start + count * width]);
            }
            None => write_parts(array.slice(from, count).as_ref(), out)?,
        },
    }
    Ok(())
}

/// Appends all elements of a column, those that are null, too.
fn write_parts(array: &dyn Array, out: &mut Vec<u8>) -> Result<(), ArrowError> {
    out.extend((0..array.len()).map(|row| u8::from(array.is_valid(row))));
    let length = |length: usize, out: &mut Vec<u8>| out.extend_from_slice(&(length as u32).to_le_bytes());
    match array.data_type() {
        DataType::Utf8 | DataType::Binary => {
            let value = |row| match array.data_type() {
                DataType::Utf8 => array.as_string::<i32>().value(row).as_bytes(),
                _ => array.as_binary::<i32>().value(row),
            };
            (0..array.len()).for_each(|row| length(value(row).len(), out));
            (0..array.len()).for_each(|row| out.extend_from_slice(value(row)));
        }
        DataType::Struct(_) => {
            for member in array.as_struct().columns() {
                write_parts(member, out)?;
            }
        }
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            write_list(list.value_offsets(), list.values().as_ref(), out)?;
        }
        DataType::Map(..) => {
            let map = array.as_map();
            write_list(map.value_offsets(), map.entries(), out)?;
        }
        DataType::Null => {}
        _ => write_plain(array, 0, array.len(), out)?,
    }
    Ok(())
}

fn write_list(offsets: &[i32], elements: &dyn Array, out: &mut Vec<u8>) -> Result<(), ArrowError> {
    for pair in offsets.windows(2) {
        out.extend_from_slice(&((pair[1] - pair[0]) as u32).to_le_bytes());
    }
    let (first, last) = (offsets.first().copied().unwrap_or(0), offsets.last().copied().unwrap_or(0));
    write_parts(elements.slice(first as usize, (last - first) as usize).as_ref(), out)
}

/// The column of values that [`write()`] wrote; `None` is null.
pub fn read(values: &[Option<Vec<u8>>], data_type: &DataType) -> Result<ArrayRef, ArrowError> {
    let nulls = || NullBuffer::from(values.iter().map(Option::is_some).collect::<Vec<_>>());
    match data_type {
        DataType::Utf8 => {
            let texts = values.iter().map(|value| match value {
                Some(bytes) => std::str::from_utf8(bytes).map(Some).map_err(|_| short()),
                None => Ok(None),
            });
            Ok(Arc::new(texts.collect::<Result<StringArray, _>>()?))
        }
        DataType::Binary => Ok(Arc::new(values.iter().map(Option::as_deref).collect::<BinaryArray>())),
        DataType::Boolean => {
            let flags = values.iter().map(|value| match value.as_deref() {
                Some([flag]) => Ok(Some(*flag != 0)),
                Some(_) => Err(short()),
                None => Ok(None),
            });
            Ok(Arc::new(flags.collect::<Result<BooleanArray, _>>()?))
        }
        flat if width_of(flat).is_some() => {
            let width = width_of(flat).unwrap_or(0);
            let mut bytes = Vec::with_capacity(values.len() * width);
            for value in values {
                match value {
                    Some(value) if value.len() == width => bytes.extend_from_slice(value),
                    Some(_) => return Err(short()),
                    None => bytes.resize(bytes.len() + width, 0),
                }
            }
            flat_array(flat, values.len(), bytes, Some(nulls()))
        }
        nested => {
            let parts = values.iter().map(|value| match value {
                Some(bytes) => Parts(bytes).whole(nested, 1),
                None => Ok(new_null_array(nested, 1)),
            });
            let parts = parts.collect::<Result<Vec<_>, _>>()?;
            if parts.is_empty() {
                return Ok(new_null_array(nested, 0));
            }
            concat(&parts.iter().map(AsRef::as_ref).collect::<Vec<_>>())
        }
    }
}

fn width_of(data_type: &DataType) -> Option<usize> {
    match data_type {
        DataType::FixedSizeBinary(width) => usize::try_from(*width).ok(),
        other => other.primitive_width(),
    }
}

fn flat_array(
    data_type: &DataType,
    rows: usize,
    bytes: Vec<u8>,
    nulls: Option<NullBuffer>,
) -> Result<ArrayRef, ArrowError> {
    if let DataType::FixedSizeBinary(width) = data_type {
        return Ok(Arc::new(FixedSizeBinaryArray::try_new(*width, Buffer::from_vec(bytes), nulls)?));
    }
    // A buffer of bytes may stand anywhere in memory; numbers may not.
    let mut aligned = arrow::buffer::MutableBuffer::with_capacity(bytes.len());
    aligned.extend_from_slice(&bytes);
    let data = ArrayData::builder(data_type.clone()).len(rows).add_buffer(aligned.into()).nulls(nulls);
    Ok(make_array(data.build()?))
}

/// What is left of the bytes of a value with parts.
struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], ArrowError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(short)?;
        self.0 = rest;
        Ok(taken)
    }

    /// All of them; an error when bytes are left over.
    fn whole(mut self, data_type: &DataType, count: usize) -> Result<ArrayRef, ArrowError> {
        let array = self.array(data_type, count)?;
        if self.0.is_empty() { Ok(array) } else { Err(short()) }
    }

    fn array(&mut self, data_type: &DataType, count: usize) -> Result<ArrayRef, ArrowError> {
        let nulls = NullBuffer::from(self.take(count)?.iter().map(|there| *there != 0).collect::<Vec<_>>());
        Ok(match data_type {
            DataType::Utf8 | DataType::Binary => {
                let (offsets, total) = self.lengths(count)?;
                let bytes = Buffer::from(self.take(total)?);
                match data_type {
                    DataType::Utf8 => {
                        Arc::new(StringArray::try_new(offsets, bytes, Some(nulls))?) as ArrayRef
                    }
                    _ => Arc::new(BinaryArray::try_new(offsets, bytes, Some(nulls))?),
                }
            }
            DataType::Boolean => {
                let flags: Vec<bool> = self.take(count)?.iter().map(|flag| *flag != 0).collect();
                Arc::new(BooleanArray::new(flags.into(), Some(nulls)))
            }
            DataType::Struct(members) => {
                let columns = members.iter().map(|member| self.array(member.data_type(), count));
                let columns = columns.collect::<Result<Vec<_>, _>>()?;
                Arc::new(StructArray::try_new_with_length(members.clone(), columns, Some(nulls), count)?)
            }
            DataType::List(element) => {
                let (offsets, elements) = self.list(element, count)?;
                Arc::new(ListArray::try_new(element.clone(), offsets, elements, Some(nulls))?)
            }
            DataType::Map(entry, sorted) => {
                let (offsets, entries) = self.list(entry, count)?;
                Arc::new(MapArray::try_new(
                    entry.clone(),
                    offsets,
                    entries.as_struct().clone(),
                    Some(nulls),
                    *sorted,
                )?)
            }
            DataType::Null => new_null_array(&DataType::Null, count),
            flat => {
                let width = width_of(flat).ok_or_else(|| unfit(flat))?;
                let bytes = self.take(count.checked_mul(width).ok_or_else(short)?)?;
                flat_array(flat, count, bytes.to_vec(), Some(nulls))?
            }
        })
    }

    fn lengths(&mut self, count: usize) -> Result<(OffsetBuffer<i32>, usize), ArrowError> {
        let lengths = self.take(count.checked_mul(4).ok_or_else(short)?)?;
        let mut end = 0i32;
        let mut offsets = vec![0i32];
        for length in lengths.chunks_exact(4) {
            let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]);
            end = i32::try_from(length).ok().and_then(|length| end.checked_add(length)).ok_or_else(short)?;
            offsets.push(end);
        }
        Ok((OffsetBuffer::new(offsets.into()), end as usize))
    }

    fn list(
        &mut self,
        element: &FieldRef,
        count: usize,
    ) -> Result<(OffsetBuffer<i32>, ArrayRef), ArrowError> {
        let (offsets, elements) = self.lengths(count)?;
        Ok((offsets, self.array(element.data_type(), elements)?))
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Decimal128Array, Int64Array, TimestampMicrosecondArray};
    use arrow::datatypes::{Field, Fields};

    use super::*;

    fn round_trip(array: &ArrayRef) {
        let values: Vec<Option<Vec<u8>>> = (0..array.len())
            .map(|row| {
                array.is_valid(row).then(|| {
                    let mut bytes = Vec::new();
                    write(array, row, &mut bytes).unwrap();
                    bytes
                })
            })
            .collect();
        let back = read(&values, array.data_type()).unwrap();
        assert_eq!(&back, array, "{}", array.data_type());
    }

    fn arrays() -> Vec<ArrayRef> {
        let texts: ArrayRef =
            Arc::new(StringArray::from(vec![Some("ä"), None, Some(""), Some("long \u{0} one")]));
        let numbers: ArrayRef =
            Arc::new(Int64Array::from(vec![Some(i64::MIN), Some(i64::MAX), None, Some(0)]));
        let decimals = Decimal128Array::from(vec![Some(i128::MAX / 10), None, Some(-1), Some(0)]);
        let times =
            TimestampMicrosecondArray::from(vec![Some(1), None, Some(-1), Some(0)]).with_timezone("UTC");
        let fields = Fields::from(vec![
            Field::new("text", DataType::Utf8, true),
            Field::new("number", DataType::Int64, true),
        ]);
        let structs = StructArray::new(
            fields,
            vec![texts.clone(), numbers.clone()],
            Some(NullBuffer::from(vec![true, true, false, true])),
        );
        let element = Arc::new(Field::new("item", structs.data_type().clone(), true));
        let offsets = OffsetBuffer::new(vec![0, 2, 2, 3, 4].into());
        let lists = ListArray::new(
            element,
            offsets,
            Arc::new(structs.clone()),
            Some(NullBuffer::from(vec![true, true, false, true])),
        );
        vec![
            texts.clone(),
            numbers,
            Arc::new(decimals.with_precision_and_scale(38, 2).unwrap()),
            Arc::new(times),
            Arc::new(BooleanArray::from(vec![Some(true), None, Some(false), Some(true)])),
            Arc::new(BinaryArray::from(vec![Some(&b"\x00\xff"[..]), None, Some(b""), Some(b"x")])),
            Arc::new(structs),
            Arc::new(lists),
        ]
    }

    #[test]
    fn every_type_comes_back() {
        for array in arrays() {
            round_trip(&array);
            round_trip(&array.slice(1, 3));
            round_trip(&array.slice(2, 0));
        }
    }

    #[test]
    fn bytes_of_another_type_are_an_error() {
        for array in arrays().iter().skip(1) {
            for bytes in [&b""[..], b"\x01", b"\x01\xff\xff\xff\xff", b"12345678901234567"] {
                if matches!(array.data_type(), DataType::Binary | DataType::Boolean) {
                    continue;
                }
                assert!(read(&[Some(bytes.to_vec())], array.data_type()).is_err(), "{}", array.data_type());
            }
        }
        assert!(read(&[Some(vec![0xff])], &DataType::Utf8).is_err());
        assert!(read(&[Some(vec![])], &DataType::Boolean).is_err());
    }
}
