//! Bytes of values, without what they share with others.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::DataType;

/// About the bytes that the values of an array would take in an array of their own.
pub fn weight(array: &dyn Array) -> usize {
    let rows = array.len();
    let part =
        |values: &ArrayRef, from: usize, to: usize| weight(&values.slice(from, to.saturating_sub(from)));
    match array.data_type() {
        // A view of up to twelve bytes has them inside.
        DataType::Utf8View => 16 * rows + long_views(array, array.as_string_view().views()),
        DataType::BinaryView => 16 * rows + long_views(array, array.as_binary_view().views()),
        DataType::Struct(_) => array.as_struct().columns().iter().map(weight_of).sum(),
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let offsets = list.value_offsets();
            4 * rows + part(list.values(), offsets[0] as usize, offsets[rows] as usize)
        }
        DataType::LargeList(_) => {
            let list = array.as_list::<i64>();
            let offsets = list.value_offsets();
            8 * rows + part(list.values(), offsets[0] as usize, offsets[rows] as usize)
        }
        DataType::Map(..) => {
            let map = array.as_map();
            let (first, last) = (map.value_offsets()[0] as usize, map.value_offsets()[rows] as usize);
            4 * rows + part(map.keys(), first, last) + part(map.values(), first, last)
        }
        // As much as the values that its keys stand for, as often as they do.
        DataType::Dictionary(..) if !array.as_any_dictionary().values().is_empty() => {
            let dictionary = array.as_any_dictionary();
            let values = dictionary.values();
            let mut times = vec![0usize; values.len()];
            let keys = dictionary.normalized_keys();
            keys.iter()
                .enumerate()
                .filter(|(row, _)| array.is_valid(*row))
                .for_each(|(_, key)| times[*key] += 1);
            let used = times.iter().enumerate().filter(|(_, times)| **times > 0);
            4 * rows + used.map(|(key, times)| times * weight(&values.slice(key, 1))).sum::<usize>()
        }
        _ => array.to_data().get_slice_memory_size().unwrap_or_else(|_| array.get_array_memory_size()),
    }
}

fn weight_of(array: &ArrayRef) -> usize {
    weight(array.as_ref())
}

fn long_views(array: &dyn Array, views: &[u128]) -> usize {
    let lengths = views.iter().map(|view| *view as u32 as usize).enumerate();
    // Behind a null may stand the view of any text.
    lengths.filter(|(row, length)| *length > 12 && array.is_valid(*row)).map(|(_, length)| length).sum()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        DictionaryArray, Int32Array, Int64Array, ListArray, StringArray, StringViewArray, StructArray,
    };
    use arrow::buffer::OffsetBuffer;
    use arrow::datatypes::Field;
    use arrow::datatypes::Int32Type;

    use super::*;

    #[test]
    fn a_part_weighs_as_much_as_its_values() {
        let long = "x".repeat(1000);
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["a", &long, "b"]));
        let views: ArrayRef = Arc::new(StringViewArray::from(vec!["a", &long, "b"]));
        for array in [&texts, &views] {
            assert!((1000..1100).contains(&weight(array)), "{}", weight(array));
            assert!(weight(&array.slice(2, 1)) < 50);
        }
        let nothing = arrow::compute::take(&views, &Int32Array::from(vec![None::<i32>; 9]), None).unwrap();
        assert!(weight(&nothing) < 200);
        let repeated = DictionaryArray::<Int32Type>::new(
            Int32Array::from(vec![Some(1), Some(1), None, Some(0)]),
            texts.clone(),
        );
        assert!((2000..2100).contains(&weight(&repeated)), "{}", weight(&repeated));
        let field = Arc::new(Field::new("element", DataType::Utf8, true));
        let offsets = OffsetBuffer::from_lengths([1, 1, 1]);
        let lists: ArrayRef = Arc::new(ListArray::try_new(field, offsets, texts.clone(), None).unwrap());
        assert!(weight(&lists) > 1000 && weight(&lists.slice(0, 1)) < 50);
        let fields = vec![Field::new("t", DataType::Utf8, true), Field::new("n", DataType::Int64, true)];
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
        let structs: ArrayRef =
            Arc::new(StructArray::try_new(fields.into(), vec![texts, numbers], None).unwrap());
        assert!(weight(&structs) > 1000 && weight(&structs.slice(2, 1)) < 50);
    }
}
