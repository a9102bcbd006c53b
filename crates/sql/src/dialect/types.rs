//! SQL types and the Arrow types behind them.

use arrow::datatypes::{DataType, Field, Fields};
use datafusion::sql::sqlparser::ast::{ArrayElemTypeDef, DataType as SqlType, ExactNumberInfo};
use highwater_event::{Column, columns};

/// The Arrow type of a declared type, and whether it is JSON text. `Err` says what is not supported.
pub fn arrow_type(declared: &SqlType) -> Result<(DataType, bool), String> {
    Ok((
        match declared {
            SqlType::JSON => return Ok((DataType::Utf8, true)),
            SqlType::Text | SqlType::Varchar(_) | SqlType::String(_) | SqlType::Char(_) | SqlType::Uuid => {
                DataType::Utf8
            }
            SqlType::Boolean | SqlType::Bool => DataType::Boolean,
            SqlType::SmallInt(_) => DataType::Int16,
            SqlType::Int(_) | SqlType::Integer(_) => DataType::Int32,
            SqlType::BigInt(_) => DataType::Int64,
            SqlType::Double(_) | SqlType::DoublePrecision | SqlType::Float(_) | SqlType::Real => {
                DataType::Float64
            }
            SqlType::Decimal(info) | SqlType::Numeric(info) | SqlType::Dec(info) => decimal(info)?,
            SqlType::Timestamp(..) => columns::timestamp_type(),
            SqlType::Date => DataType::Date32,
            SqlType::Struct(fields, _) => DataType::Struct(
                fields
                    .iter()
                    .map(|field| {
                        let name = field.field_name.as_ref().ok_or("a STRUCT member needs a name")?;
                        Ok(Field::new(
                            name.value.to_ascii_lowercase(),
                            arrow_type(&field.field_type)?.0,
                            true,
                        ))
                    })
                    .collect::<Result<Fields, String>>()?,
            ),
            SqlType::Array(
                ArrayElemTypeDef::AngleBracket(element) | ArrayElemTypeDef::SquareBracket(element, _),
            ) => DataType::List(Field::new("element", arrow_type(element)?.0, true).into()),
            other => {
                return Err(format!(
                    "type {other} is not supported; use TEXT, BOOLEAN, SMALLINT, INT, BIGINT, DOUBLE, DECIMAL(p,s), TIMESTAMP, DATE, JSON, STRUCT<…>, ARRAY<…> or MAP<TEXT, …>"
                ));
            }
        },
        false,
    ))
}

/// A map from texts to such values.
pub fn map_type(value: DataType) -> DataType {
    let entries = vec![Field::new("key", DataType::Utf8, false), Field::new("value", value, true)];
    DataType::Map(Field::new("entries", DataType::Struct(entries.into()), false).into(), false)
}

fn decimal(info: &ExactNumberInfo) -> Result<DataType, String> {
    let (precision, scale) = match info {
        ExactNumberInfo::None => (38, 9),
        ExactNumberInfo::Precision(precision) => (*precision, 0),
        ExactNumberInfo::PrecisionAndScale(precision, scale) => (*precision, *scale),
    };
    if !(1..=38).contains(&precision) || scale < 0 || scale as u64 > precision {
        return Err(format!(
            "DECIMAL({precision},{scale}) is not possible: the precision is 1 to 38 and the scale 0 to the precision"
        ));
    }
    Ok(DataType::Decimal128(precision as u8, scale as i8))
}

/// The type under which the result of an expression is stored in a stream: one of each family, so that
/// log, lake and readers agree. `None` when it can't be stored.
pub fn stored_type(data_type: &DataType) -> Option<DataType> {
    Some(match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => DataType::Utf8,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            DataType::Binary
        }
        DataType::Boolean => DataType::Boolean,
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => DataType::Int16,
        DataType::Int32 | DataType::UInt16 => DataType::Int32,
        DataType::Int64 | DataType::UInt32 | DataType::UInt64 => DataType::Int64,
        DataType::Float16 | DataType::Float32 | DataType::Float64 => DataType::Float64,
        DataType::Decimal128(precision, scale) if *scale >= 0 => DataType::Decimal128(*precision, *scale),
        DataType::Timestamp(..) => columns::timestamp_type(),
        DataType::Date32 | DataType::Date64 => DataType::Date32,
        DataType::Struct(fields) => DataType::Struct(
            fields
                .iter()
                .map(|field| Some(Field::new(field.name(), stored_type(field.data_type())?, true)))
                .collect::<Option<Fields>>()?,
        ),
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(fields) if fields.len() == 2 => map_type(stored_type(fields[1].data_type())?),
            _ => return None,
        },
        DataType::List(element) | DataType::LargeList(element) => {
            DataType::List(Field::new("element", stored_type(element.data_type())?, true).into())
        }
        _ => return None,
    })
}

/// The type of a column as SQL users write it.
pub fn column_type(column: &Column) -> String {
    if column.json { "JSON".to_owned() } else { sql_type(&column.data_type) }
}

/// A type as SQL users write it.
pub fn sql_type(data_type: &DataType) -> String {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "TEXT".into(),
        DataType::Boolean => "BOOLEAN".into(),
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => "SMALLINT".into(),
        DataType::Int32 | DataType::UInt16 => "INT".into(),
        DataType::Int64 | DataType::UInt32 | DataType::UInt64 => "BIGINT".into(),
        DataType::Float16 | DataType::Float32 | DataType::Float64 => "DOUBLE".into(),
        DataType::Decimal128(precision, scale) => format!("DECIMAL({precision},{scale})"),
        DataType::Timestamp(..) => "TIMESTAMP".into(),
        DataType::Date32 | DataType::Date64 => "DATE".into(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "BYTES".into(),
        DataType::Struct(fields) => {
            let members: Vec<String> = fields
                .iter()
                .map(|field| format!("{} {}", field.name(), sql_type(field.data_type())))
                .collect();
            format!("STRUCT<{}>", members.join(", "))
        }
        DataType::List(element) => format!("ARRAY<{}>", sql_type(element.data_type())),
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(fields) if fields.len() == 2 => {
                format!("MAP<TEXT, {}>", sql_type(fields[1].data_type()))
            }
            other => other.to_string(),
        },
        other => other.to_string(),
    }
}
