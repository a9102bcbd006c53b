//! The MASK family, with ksqlDB's meaning: what a text looks like without what it says.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, StringArray, new_null_array};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use datafusion::common::{Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};

/// Which characters are replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Extent {
    All,
    Left,
    Right,
    KeepLeft,
    KeepRight,
}

impl Extent {
    fn name(self) -> &'static str {
        match self {
            Self::All => "mask",
            Self::Left => "mask_left",
            Self::Right => "mask_right",
            Self::KeepLeft => "mask_keep_left",
            Self::KeepRight => "mask_keep_right",
        }
    }

    fn covers(self, at: usize, length: usize, count: usize) -> bool {
        match self {
            Self::All => true,
            Self::Left => at < count,
            Self::Right => at + count >= length,
            Self::KeepLeft => at >= count,
            Self::KeepRight => at + count < length,
        }
    }
}

/// What replaces upper case, lower case, digits and the rest; `None` keeps the character.
type Marks = [Option<char>; 4];

const DEFAULT_MARKS: Marks = [Some('X'), Some('x'), Some('n'), Some('-')];

/// `MASK(text)`: upper case X, lower case x, digits n, anything else -.
pub fn mask_text(text: &str) -> String {
    replace(text, Extent::All, 0, DEFAULT_MARKS)
}

fn replace(text: &str, extent: Extent, count: usize, marks: Marks) -> String {
    let length = text.chars().count();
    text.chars()
        .enumerate()
        .map(|(at, character)| {
            if !extent.covers(at, length, count) {
                return character;
            }
            let class = if character.is_uppercase() {
                0
            } else if character.is_lowercase() {
                1
            } else if character.is_numeric() {
                2
            } else {
                3
            };
            marks[class].unwrap_or(character)
        })
        .collect()
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Mask {
    extent: Extent,
    signature: Signature,
}

pub(super) fn functions() -> Vec<Arc<ScalarUDF>> {
    [Extent::All, Extent::Left, Extent::Right, Extent::KeepLeft, Extent::KeepRight]
        .into_iter()
        .map(|extent| {
            let signature = Signature::variadic_any(Volatility::Immutable);
            Arc::new(ScalarUDF::from(Mask { extent, signature }))
        })
        .collect()
}

impl ScalarUDFImpl for Mask {
    fn name(&self) -> &str {
        self.extent.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        let first = if self.extent == Extent::All { 1 } else { 2 };
        if arguments.len() != first && arguments.len() != first + 4 {
            return plan_err!(
                "{} takes {} and, if wanted, four characters: for upper case, lower case, digits and the rest",
                self.name(),
                if first == 1 { "a text" } else { "a text, a number of characters" }
            );
        }
        masked_type(&arguments[0])
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let (count, marks_at) = match self.extent {
            Extent::All => (0, 1),
            _ => (count(self.name(), &arguments.args[1])?, 2),
        };
        let mut marks = DEFAULT_MARKS;
        for (mark, given) in marks.iter_mut().zip(&arguments.args[marks_at..]) {
            *mark = character(self.name(), given)?;
        }
        let values = arguments.args[0].to_array(arguments.number_rows)?;
        Ok(ColumnarValue::Array(mask_array(&values, &|text| replace(text, self.extent, count, marks))?))
    }
}

/// Structs and lists keep their shape, with every plain value within them as a masked text. Of a
/// map nothing is shown: its keys say as much as its values, and masked keys would collide.
fn masked_type(data_type: &DataType) -> Result<DataType> {
    Ok(match data_type {
        DataType::Struct(fields) => DataType::Struct(
            fields
                .iter()
                .map(|field| Ok(field.as_ref().clone().with_data_type(masked_type(field.data_type())?)))
                .collect::<Result<_>>()?,
        ),
        DataType::List(element) => DataType::List(Arc::new(
            element.as_ref().clone().with_data_type(masked_type(element.data_type())?),
        )),
        DataType::LargeList(_) | DataType::FixedSizeList(..) => {
            return plan_err!("mask takes a plain value, a struct, a list or a map, not {data_type}");
        }
        _ => DataType::Utf8,
    })
}

fn mask_array(values: &ArrayRef, mask: &dyn Fn(&str) -> String) -> Result<ArrayRef> {
    if let Some(group) = values.as_struct_opt() {
        let columns =
            group.columns().iter().map(|column| mask_array(column, mask)).collect::<Result<Vec<_>>>()?;
        let DataType::Struct(fields) = masked_type(group.data_type())? else {
            return exec_err!("a masked struct is a struct");
        };
        let masked = arrow::array::StructArray::try_new_with_length(
            fields,
            columns,
            group.nulls().cloned(),
            group.len(),
        )?;
        return Ok(Arc::new(masked));
    }
    if let Some(list) = values.as_list_opt::<i32>() {
        let DataType::List(element) = masked_type(list.data_type())? else {
            return exec_err!("a masked list is a list");
        };
        let elements = mask_array(list.values(), mask)?;
        let masked = ListArray::try_new(element, list.offsets().clone(), elements, list.nulls().cloned())?;
        return Ok(Arc::new(masked));
    }
    if let DataType::Map(..) = values.data_type() {
        return Ok(new_null_array(&DataType::Utf8, values.len()));
    }
    let texts = cast(values, &DataType::Utf8)?;
    Ok(Arc::new(texts.as_string::<i32>().iter().map(|text| text.map(mask)).collect::<StringArray>()))
}

fn count(name: &str, value: &ColumnarValue) -> Result<usize> {
    let number = match value {
        ColumnarValue::Scalar(ScalarValue::Int64(Some(number))) => Some(*number),
        ColumnarValue::Scalar(ScalarValue::Int32(Some(number))) => Some(i64::from(*number)),
        _ => None,
    };
    match number.and_then(|number| usize::try_from(number).ok()) {
        Some(count) => Ok(count),
        None => exec_err!("{name}: the number of characters is a whole number from 0"),
    }
}

fn character(name: &str, value: &ColumnarValue) -> Result<Option<char>> {
    match value {
        ColumnarValue::Scalar(value) if value.is_null() => Ok(None),
        ColumnarValue::Scalar(value) => {
            match value.try_as_str().flatten().map(|text| (text.chars().next(), text.chars().count())) {
                Some((Some(character), 1)) => Ok(Some(character)),
                _ => exec_err!("{name}: a replacement is one character, or NULL to keep what is there"),
            }
        }
        ColumnarValue::Array(_) => exec_err!("{name}: a replacement is a constant"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_have_ksqldbs_meaning() {
        assert_eq!(mask_text("USER-1234"), "XXXX-nnnn");
        assert_eq!(mask_text("Ada Lovelace, É7"), "Xxx-Xxxxxxxx--Xn");
        let with = |extent, count| replace("Ab12-cD", extent, count, DEFAULT_MARKS);
        assert_eq!(with(Extent::Left, 2), "Xx12-cD");
        assert_eq!(with(Extent::Right, 2), "Ab12-xX");
        assert_eq!(with(Extent::KeepLeft, 2), "Abnn-xX");
        assert_eq!(with(Extent::KeepRight, 2), "Xxnn-cD");
        assert_eq!(with(Extent::KeepRight, 99), "Ab12-cD");
        assert_eq!(replace("Ab1-", Extent::All, 0, [Some('U'), None, None, Some('_')]), "Ub1_");
    }
}
