//! Reads what stands encrypted in the lake, inside the plan: only the columns that a question needs are decrypted.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Int32Type, Int64Type};
use datafusion::common::{DataFusionError, Result, internal_err};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility, ident,
};
use highwater_event::{Sensitive, StreamName, StreamSchema, columns};
use highwater_privacy::{Positions, Vault};

use crate::dialect::SqlError;
use crate::session::Engine;

/// How the encrypted columns of one stream are read.
pub(super) struct Decrypt {
    vault: Arc<Vault>,
    stream: StreamName,
    sensitive: Sensitive,
}

impl Decrypt {
    /// For a stream; `None` when nothing in it is SENSITIVE.
    pub fn of(engine: &Engine, stream: &StreamSchema) -> std::result::Result<Option<Self>, SqlError> {
        let Some(sensitive) = stream.sensitive() else { return Ok(None) };
        let vault = engine.vault().cloned();
        let vault =
            vault.ok_or_else(|| SqlError::new("internal", "there are no keys for SENSITIVE columns"))?;
        Ok(Some(Self { vault, stream: stream.name.clone(), sensitive }))
    }

    /// A column of the lake as it was before, in type `shown`.
    pub fn column(&self, field: &FieldRef, shown: DataType) -> Expr {
        if !self.sensitive.touches(field.name()) {
            return ident(field.name());
        }
        let function = DecryptColumn {
            vault: self.vault.clone(),
            stream: self.stream.clone(),
            sensitive: self.sensitive.clone(),
            field: field.clone(),
            shown,
            signature: Signature::any(3, Volatility::Immutable),
        };
        let arguments = [field.name(), columns::PARTITION, columns::OFFSET].map(ident);
        ScalarUDF::from(function).call(arguments.into()).alias(field.name())
    }
}

/// `decrypt(column, _partition, _offset)`. No question can name it: it stands in plans only.
struct DecryptColumn {
    vault: Arc<Vault>,
    stream: StreamName,
    sensitive: Sensitive,
    field: FieldRef,
    shown: DataType,
    signature: Signature,
}

impl PartialEq for DecryptColumn {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.vault, &other.vault)
            && (&self.stream, &self.sensitive, &self.field, &self.shown)
                == (&other.stream, &other.sensitive, &other.field, &other.shown)
    }
}

impl Eq for DecryptColumn {}

impl Hash for DecryptColumn {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.stream, &self.sensitive, &self.field, &self.shown).hash(state);
    }
}

impl std::fmt::Debug for DecryptColumn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "decrypt of {}.{}", self.stream, self.field.name())
    }
}

impl ScalarUDFImpl for DecryptColumn {
    fn name(&self) -> &str {
        "decrypt"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(self.shown.clone())
    }

    fn return_field_from_args(&self, _arguments: ReturnFieldArgs) -> Result<FieldRef> {
        Ok(Arc::new(Field::new(self.field.name(), self.shown.clone(), self.field.is_nullable())))
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = arguments.number_rows;
        let arrays = arguments.args.iter().map(|argument| argument.to_array(rows));
        let arrays = arrays.collect::<Result<Vec<_>>>()?;
        let [column, partitions, offsets] = arrays.as_slice() else {
            return internal_err!("decrypt takes a column and where it stands");
        };
        let positions = Positions::Rows {
            partitions: partitions.as_primitive::<Int32Type>(),
            offsets: offsets.as_primitive::<Int64Type>(),
        };
        let read = self
            .vault
            .decrypt_column(self.stream.as_str(), positions, &self.sensitive, &self.field, column)
            .map_err(|error| DataFusionError::External(Box::new(error)))?;
        Ok(ColumnarValue::Array(cast(&read, &self.shown)?))
    }
}
