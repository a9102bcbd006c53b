//! Which columns of stored rows are SENSITIVE, said by their schema itself: whoever stores rows needs to know
//! nothing else to keep them encrypted.

use std::collections::HashMap;

use arrow::datatypes::{DataType, Field, Fields, Schema};

const PATHS: &str = "highwater.sensitive";
const TENANT: &str = "highwater.tenant";
const SUBJECT: &str = "highwater.subject";
/// Between paths; no name that a statement can declare holds it.
const BETWEEN: &str = "\u{1f}";

/// The columns of a batch that are stored encrypted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Sensitive {
    /// Columns, and members of struct columns as `column.member`.
    pub paths: Vec<String>,
    /// The column with the tenant whose key it is; without one it is the node's own.
    pub tenant: Option<String>,
    /// The column with the person whose key it is; without one, and where it says nothing, it is the tenant's.
    pub subject: Option<String>,
}

impl Sensitive {
    /// What a schema says; `None` when nothing in it is SENSITIVE.
    pub fn of(schema: &Schema) -> Option<Self> {
        let paths = schema.metadata().get(PATHS)?;
        Some(Self {
            paths: paths.split(BETWEEN).map(str::to_owned).collect(),
            tenant: schema.metadata().get(TENANT).cloned(),
            subject: schema.metadata().get(SUBJECT).cloned(),
        })
    }

    /// As metadata of a schema.
    pub(crate) fn metadata(&self) -> HashMap<String, String> {
        let mut metadata = HashMap::from([(PATHS.to_owned(), self.paths.join(BETWEEN))]);
        metadata.extend(self.tenant.iter().map(|tenant| (TENANT.to_owned(), tenant.clone())));
        metadata.extend(self.subject.iter().map(|subject| (SUBJECT.to_owned(), subject.clone())));
        metadata
    }

    /// True when the whole column is.
    pub fn holds(&self, column: &str) -> bool {
        self.paths.iter().any(|path| path == column)
    }

    /// True when a member of a struct column is, and not the whole of it.
    pub fn holds_member(&self, column: &str, member: &str) -> bool {
        self.paths.iter().any(|path| path.split_once('.') == Some((column, member)))
    }

    /// True when the whole column is, or a member of it. Its type does not tell: bytes are stored as bytes.
    pub fn touches(&self, column: &str) -> bool {
        self.paths.iter().any(|path| path.split('.').next() == Some(column))
    }

    /// A column as it is stored: encrypted values are bytes.
    pub fn stored_field(&self, field: &Field) -> Field {
        if self.holds(field.name()) {
            return field.clone().with_data_type(DataType::Binary);
        }
        match field.data_type() {
            DataType::Struct(members) => {
                let stored = members.iter().map(|member| {
                    if self.holds_member(field.name(), member.name()) {
                        Field::new(member.name(), DataType::Binary, member.is_nullable())
                    } else {
                        member.as_ref().clone()
                    }
                });
                field.clone().with_data_type(DataType::Struct(stored.collect::<Fields>()))
            }
            _ => field.clone(),
        }
    }

    /// A schema as it is stored.
    pub fn stored(&self, schema: &Schema) -> Schema {
        let fields: Vec<Field> = schema.fields().iter().map(|field| self.stored_field(field)).collect();
        Schema::new_with_metadata(fields, schema.metadata().clone())
    }
}
