//! The SENSITIVE columns of a batch, encrypted and back.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryBuilder, Int32Array, Int64Array, RecordBatch, StringArray, StructArray,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, SchemaRef};
use arrow::error::ArrowError;
use highwater_event::{Offset, Partition, Sensitive, columns};

use crate::aead::{AeadError, Opener, Sealer};
use crate::ring::Owner;
use crate::value;
use crate::vault::{SealError, Vault};

/// Where the rows of a batch stand in their stream.
#[derive(Debug, Clone, Copy)]
pub enum Positions<'a> {
    /// One after the other.
    Run {
        /// Their partition.
        partition: Partition,
        /// Offset of the first.
        first: Offset,
    },
    /// Anywhere.
    Rows {
        /// The partition of each.
        partitions: &'a Int32Array,
        /// The offset of each.
        offsets: &'a Int64Array,
    },
}

impl<'a> Positions<'a> {
    /// Where the rows of a batch stand, told by their own columns.
    pub fn told_by(rows: &'a RecordBatch) -> Result<Self, ArrowError> {
        let column = |name: &str| Ok::<_, ArrowError>(rows.column(rows.schema_ref().index_of(name)?));
        Ok(Self::Rows {
            partitions: column(columns::PARTITION)?.as_primitive(),
            offsets: column(columns::OFFSET)?.as_primitive(),
        })
    }
}

impl Positions<'_> {
    fn of(&self, row: usize) -> (u32, u64) {
        match self {
            Self::Run { partition, first } => (*partition, first + row as Offset),
            Self::Rows { partitions, offsets } => (partitions.value(row) as u32, offsets.value(row) as u64),
        }
    }
}

/// What a value is bound to, as bytes.
struct Place(Vec<u8>);

impl Place {
    fn at(&mut self, stream: &str, path: &[&str], tenant: &str, (partition, offset): (u32, u64)) -> &[u8] {
        self.0.clear();
        // Names hold no such bytes.
        self.0.extend_from_slice(b"column\0");
        for part in [stream].iter().chain(path).chain([&tenant]) {
            self.0.extend_from_slice(part.as_bytes());
            self.0.push(0);
        }
        self.0.extend_from_slice(&partition.to_be_bytes());
        self.0.extend_from_slice(&offset.to_be_bytes());
        &self.0
    }
}

/// A run of work over one batch.
struct Work<'a> {
    vault: &'a Vault,
    stream: &'a str,
    positions: Positions<'a>,
    place: Place,
}

impl Vault {
    /// Encrypts what is SENSITIVE in a batch of a stream: the rows in [`Sensitive::stored`].
    pub fn encrypt(
        &self,
        stream: &str,
        positions: Positions<'_>,
        sensitive: &Sensitive,
        rows: &RecordBatch,
    ) -> Result<RecordBatch, SealError> {
        let mut sealing = Sealing {
            work: Work { vault: self, stream, positions, place: Place(Vec::new()) },
            owners: self.owners(sensitive, rows)?,
            buffer: Vec::new(),
            sealed: Vec::new(),
        };
        let columns = rows
            .schema_ref()
            .fields()
            .iter()
            .zip(rows.columns())
            .map(|(field, column)| sealing.column(field, column, sensitive));
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        Ok(RecordBatch::try_new(Arc::new(sensitive.stored(rows.schema_ref())), columns)?)
    }

    /// Who the values of each row belong to, and what encrypts them.
    fn owners(&self, sensitive: &Sensitive, rows: &RecordBatch) -> Result<Owners, SealError> {
        let texts = |column: &Option<String>| -> Result<Option<StringArray>, ArrowError> {
            let column = column.as_ref().and_then(|column| rows.column_by_name(column));
            Ok(match column {
                Some(column) => Some(cast(column, &DataType::Utf8)?.as_string::<i32>().clone()),
                None => None,
            })
        };
        let (tenants, subjects) = (texts(&sensitive.tenant)?, texts(&sensitive.subject)?);
        let said = |texts: &'_ Option<StringArray>, row: usize| {
            texts.as_ref().filter(|texts| texts.is_valid(row)).map(|texts| texts.value(row).to_owned())
        };
        let mut known: HashMap<(String, Option<String>), usize> = HashMap::new();
        let mut found: Vec<Owner> = Vec::new();
        let mut owners = Vec::with_capacity(rows.num_rows());
        for row in 0..rows.num_rows() {
            let who = (said(&tenants, row).unwrap_or_default(), said(&subjects, row));
            let at = match known.get(&who) {
                Some(at) => *at,
                None => {
                    let (tenant, subject) = &who;
                    let subject = subject.as_ref().map(|subject| self.tag(subject)).transpose()?;
                    found.push(Owner { tenant: tenant.as_str().into(), subject });
                    known.insert(who, found.len() - 1);
                    found.len() - 1
                }
            };
            owners.push(at);
        }
        self.prepare(&found)?;
        let salt = self.salt()?;
        let sealers = found.into_iter().map(|owner| {
            let sealer = self.sealer_of(&owner, &salt)?;
            Ok((owner, sealer))
        });
        Ok(Owners { of_rows: owners, sealers: sealers.collect::<Result<_, SealError>>()? })
    }

    /// Decrypts what [`Vault::encrypt`] encrypted: the rows in `schema`, whose other columns they have already.
    pub fn decrypt(
        &self,
        stream: &str,
        positions: Positions<'_>,
        sensitive: &Sensitive,
        schema: &SchemaRef,
        rows: &RecordBatch,
    ) -> Result<RecordBatch, SealError> {
        let columns = schema.fields().iter().zip(rows.columns());
        let columns =
            columns.map(|(field, column)| self.decrypt_column(stream, positions, sensitive, field, column));
        Ok(RecordBatch::try_new(schema.clone(), columns.collect::<Result<Vec<_>, _>>()?)?)
    }

    /// Decrypts one column, which is returned as it is when nothing in it is SENSITIVE.
    pub fn decrypt_column(
        &self,
        stream: &str,
        positions: Positions<'_>,
        sensitive: &Sensitive,
        field: &Field,
        column: &ArrayRef,
    ) -> Result<ArrayRef, SealError> {
        let mut opening = Opening {
            work: Work { vault: self, stream, positions, place: Place(Vec::new()) },
            opener: Opener::default(),
        };
        if sensitive.holds(field.name()) {
            return opening.array(&[field.name()], column, field.data_type());
        }
        let DataType::Struct(members) = field.data_type() else { return Ok(column.clone()) };
        if !members.iter().any(|member| sensitive.holds_member(field.name(), member.name())) {
            return Ok(column.clone());
        }
        let structs = column.as_struct_opt().ok_or(AeadError::Malformed)?;
        let columns = members.iter().zip(structs.columns()).map(|(member, column)| {
            if sensitive.holds_member(field.name(), member.name()) {
                opening.array(&[field.name(), member.name()], column, member.data_type())
            } else {
                Ok(column.clone())
            }
        });
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        let nulls = structs.nulls().cloned();
        Ok(Arc::new(StructArray::try_new_with_length(members.clone(), columns, nulls, structs.len())?))
    }
}

/// Who the values of a batch belong to.
struct Owners {
    /// For each row, which of `sealers` is its own.
    of_rows: Vec<usize>,
    sealers: Vec<(Owner, Sealer)>,
}

struct Sealing<'a> {
    work: Work<'a>,
    owners: Owners,
    buffer: Vec<u8>,
    sealed: Vec<u8>,
}

impl Sealing<'_> {
    fn column(
        &mut self,
        field: &Field,
        column: &ArrayRef,
        sensitive: &Sensitive,
    ) -> Result<ArrayRef, SealError> {
        if sensitive.holds(field.name()) {
            return self.array(&[field.name()], column);
        }
        let DataType::Struct(members) = field.data_type() else { return Ok(column.clone()) };
        if !members.iter().any(|member| sensitive.holds_member(field.name(), member.name())) {
            return Ok(column.clone());
        }
        let structs = column.as_struct();
        let columns = members.iter().zip(structs.columns()).map(|(member, column)| {
            if sensitive.holds_member(field.name(), member.name()) {
                self.array(&[field.name(), member.name()], column)
            } else {
                Ok(column.clone())
            }
        });
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        let stored = sensitive.stored_field(field);
        let DataType::Struct(members) = stored.data_type().clone() else {
            return Err(AeadError::Malformed.into());
        };
        let nulls = structs.nulls().cloned();
        Ok(Arc::new(StructArray::try_new_with_length(members, columns, nulls, structs.len())?))
    }

    fn array(&mut self, path: &[&str], column: &ArrayRef) -> Result<ArrayRef, SealError> {
        let mut sealed = BinaryBuilder::with_capacity(column.len(), column.len() * 64);
        for row in 0..column.len() {
            if column.is_null(row) {
                sealed.append_null();
                continue;
            }
            let (owner, sealer) = &mut self.owners.sealers[self.owners.of_rows[row]];
            self.buffer.clear();
            self.sealed.clear();
            value::write(column, row, &mut self.buffer)?;
            let place =
                self.work.place.at(self.work.stream, path, &owner.tenant, self.work.positions.of(row));
            sealer.seal(place, &self.buffer, &mut self.sealed)?;
            sealed.append_value(&self.sealed);
        }
        Ok(Arc::new(sealed.finish()))
    }
}

struct Opening<'a> {
    work: Work<'a>,
    opener: Opener,
}

impl Opening<'_> {
    fn array(
        &mut self,
        path: &[&str],
        column: &ArrayRef,
        data_type: &DataType,
    ) -> Result<ArrayRef, SealError> {
        let sealed = column.as_binary_opt::<i32>().ok_or(AeadError::Malformed)?;
        let mut values = Vec::with_capacity(sealed.len());
        for (row, bytes) in sealed.iter().enumerate() {
            let Some(bytes) = bytes else {
                values.push(None);
                continue;
            };
            let position = self.work.positions.of(row);
            let said = |error: SealError| SealError::At {
                column: path.join("."),
                partition: position.0,
                offset: position.1,
                error: Box::new(error),
            };
            values.push(self.value(path, bytes, position).map_err(said)?);
        }
        Ok(value::read(&values, data_type)?)
    }

    /// A value; `None` when its key was destroyed.
    fn value(
        &mut self,
        path: &[&str],
        bytes: &[u8],
        position: (u32, u64),
    ) -> Result<Option<Vec<u8>>, SealError> {
        let Work { vault, stream, place, .. } = &mut self.work;
        vault.open_value(&mut self.opener, bytes, |tenant| place.at(stream, path, tenant, position))
    }
}
