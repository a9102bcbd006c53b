//! Changing and ending what is declared, as far as nothing that reads it is left behind.

use std::sync::Arc;

use highwater_event::name::nearest;
use highwater_event::{Column, StreamName, StreamSchema};

use super::{Catalog, Planned, StreamEntry};
use crate::dialect::{Alteration, Kind, SqlError, column_type};

impl Catalog {
    /// Who reads a name: streams, tables and endpoints, in words.
    pub fn readers(&self, name: &StreamName) -> Vec<String> {
        let streams = self
            .streams
            .iter()
            .filter(|(_, entry)| entry.reads.contains(name))
            .map(|(name, _)| format!("stream \"{name}\""));
        let tables = self
            .tables
            .iter()
            .filter(|(_, entry)| entry.reads.contains(name))
            .map(|(name, _)| format!("table \"{name}\""));
        let endpoints = self
            .endpoints
            .values()
            .filter(|endpoint| endpoint.reads.contains(name))
            .map(|endpoint| format!("endpoint '{}/'", endpoint.path));
        let intakes = self
            .intakes
            .values()
            .filter(|intake| intake.into == *name)
            .map(|intake| format!("endpoint {} '{}/'", intake.method.text(), intake.path));
        let models = self.models.values().filter(|entry| entry.reads.contains(name));
        let models = models.map(|entry| format!("model \"{}\"", entry.name));
        let rules = self.rules_of(name).map(|entry| format!("rule \"{}\"", entry.name));
        streams.chain(tables).chain(endpoints).chain(intakes).chain(models).chain(rules).collect()
    }

    pub(super) fn plan_drop(&self, kind: Kind, name: &str, if_exists: bool) -> Result<Planned, SqlError> {
        let known = StreamName::new(name).ok();
        let exists = match (kind, &known) {
            (Kind::Endpoint, _) => self.endpoints.contains_key(name),
            (Kind::Intake(method), _) => self.intakes.contains_key(&(method, name.to_owned())),
            (_, None) => false,
            (Kind::Stream, Some(name)) => self.streams.contains_key(name),
            (Kind::Table, Some(name)) => self.tables.contains_key(name),
            (Kind::ReferenceTable, Some(name)) => self.references.contains_key(name),
            (Kind::Model, Some(name)) => self.models.contains_key(name),
            (Kind::Schedule, Some(name)) => self.schedules.contains_key(name),
            (Kind::Rule, Some(name)) => self.rules.contains_key(name),
        };
        if !exists && if_exists {
            return Ok(Planned::Unchanged);
        }
        if !exists {
            let names: Vec<&str> = match kind {
                Kind::Endpoint => self.endpoints.keys().map(String::as_str).collect(),
                Kind::Intake(_) => self.intakes.keys().map(|(_, path)| path.as_str()).collect(),
                Kind::Stream => self.streams.keys().map(StreamName::as_str).collect(),
                Kind::Table => self.tables.keys().map(StreamName::as_str).collect(),
                Kind::ReferenceTable => self.references.keys().map(StreamName::as_str).collect(),
                Kind::Model => self.models.keys().map(StreamName::as_str).collect(),
                Kind::Schedule => self.schedules.keys().map(StreamName::as_str).collect(),
                Kind::Rule => self.rules.keys().map(StreamName::as_str).collect(),
            };
            let error = SqlError::new("not_found", format!("no {} \"{name}\"", kind.text()));
            return Err(match nearest(name, names) {
                Some(near) => error.hint(format!("did you mean \"{near}\"?")),
                None => error,
            });
        }
        if let Some(known) =
            known.as_ref().filter(|_| !matches!(kind, Kind::Rule | Kind::Schedule | Kind::Model))
        {
            if self.streams.get(known).is_some_and(|entry| entry.text.is_empty()) {
                return Err(SqlError::new(
                    "reserved_name",
                    format!("\"{name}\" belongs to the engine and can't be dropped"),
                ));
            }
            if kind == Kind::Stream
                && let Some(table) = self.written_by(known)
            {
                return Err(SqlError::new(
                    "in_use",
                    format!("\"{name}\" has the changes of the table \"{table}\""),
                )
                .hint(format!("DROP TABLE {table} ends both")));
            }
            let mut readers = self.readers(known);
            let written = self.tables.get(known).filter(|_| kind == Kind::Table);
            if let Some(written) = written.and_then(|entry| entry.written.as_ref()) {
                let own = format!("table \"{known}\"");
                let changes = written.changes.schema.name.at_version(1);
                readers.extend(self.readers(&changes).into_iter().filter(|reader| *reader != own));
            }
            if kind != Kind::Endpoint && !readers.is_empty() {
                return Err(SqlError::new(
                    "in_use",
                    format!("the {} \"{name}\" is read by {}", kind.text(), readers.join(", ")),
                )
                .hint("drop those first"));
            }
        }
        Ok(Planned::Dropped(kind, name.to_owned()))
    }

    pub(super) fn plan_alter(
        &self,
        name: &StreamName,
        changes: &[Alteration],
        text: &str,
    ) -> Result<Planned, SqlError> {
        let entry = self.streams.get(name).ok_or_else(|| self.no_stream(name))?;
        if entry.text.is_empty() {
            return Err(SqlError::new(
                "reserved_name",
                format!("\"{name}\" belongs to the engine and can't be altered"),
            ));
        }
        if let Some(table) = self.written_by(name) {
            return Err(SqlError::unsupported(format!(
                "\"{name}\" has the changes of the table \"{table}\", and keeps all of them"
            )));
        }
        let mut columns = entry.schema.columns.clone();
        let mut options = entry.schema.options.clone();
        for change in changes {
            match change {
                Alteration::Add(_) if !entry.schema.raw => {
                    return Err(SqlError::unsupported(format!(
                        "\"{name}\" is derived: its columns come from its SELECT"
                    ))
                    .hint("CREATE OR REPLACE STREAM builds a new version beside the old one"));
                }
                // Said before: a script may be applied again.
                Alteration::Add(column) if entry.schema.columns.contains(column) => {}
                Alteration::Add(column) => {
                    if let Some(known) = entry.schema.column(&column.name) {
                        return Err(has_column(name, known));
                    }
                    columns.push(column.clone());
                }
                Alteration::Set(_) => change.apply(&mut options)?,
            }
        }
        if columns == entry.schema.columns && options == entry.schema.options {
            return Ok(Planned::Unchanged);
        }
        let schema = StreamSchema::new(entry.schema.name.clone(), columns, options, entry.schema.raw)
            .map_err(|error| SqlError::new("invalid_schema", error.to_string()))?;
        // Its undeclared members are stored as they are, and its events known by what anybody can work out.
        if schema.has_sensitive() && !entry.schema.has_sensitive() {
            return Err(SqlError::unsupported(format!(
                "\"{name}\" was declared without SENSITIVE columns: what it stores already would stay as it is"
            ))
            .hint("declare a stream with the SENSITIVE column, and replay the events of this one into it"));
        }
        Ok(Planned::Altered(Arc::new(StreamEntry {
            schema: Arc::new(schema),
            derivation: entry.derivation.clone(),
            reads: entry.reads.clone(),
            text: format!("{};\n{text}", entry.text),
        })))
    }

    pub(super) fn plan_pause(&self, name: &StreamName, pause: bool) -> Result<Planned, SqlError> {
        let derived = self.streams.get(name).is_some_and(|entry| entry.derivation.is_some());
        if !derived && self.streams.contains_key(name) {
            return Err(SqlError::unsupported(format!(
                "\"{}\" takes events; only what is derived can be paused",
                name.public()
            ))
            .hint("pause what reads it, or let its senders wait"));
        }
        if !derived && !self.tables.contains_key(name) {
            let names = self.streams.keys().chain(self.tables.keys()).map(StreamName::as_str);
            let error = SqlError::new("not_found", format!("no derived stream or table \"{name}\""));
            return Err(match nearest(name.as_str(), names) {
                Some(near) => error.hint(format!("did you mean \"{near}\"?")),
                None => error,
            });
        }
        Ok(match (pause, self.paused.contains(name)) {
            (true, false) => Planned::Paused(name.clone()),
            (false, true) => Planned::Resumed(name.clone()),
            _ => Planned::Unchanged,
        })
    }
}

/// A column is added that is there in another way.
fn has_column(stream: &StreamName, known: &Column) -> SqlError {
    let declared = format!(
        "{}{}{}",
        column_type(known),
        if known.nullable { "" } else { " NOT NULL" },
        if known.sensitive { " SENSITIVE" } else { "" }
    );
    let message = format!("\"{stream}\" has a column \"{}\" already, declared {declared}", known.name);
    SqlError::new("already_exists", message)
        .hint("columns keep their type: add one of another name, and take it in a stream that is derived from this one")
}
