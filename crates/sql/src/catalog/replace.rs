//! Replacing: a new version of a statement, and of everything that is derived from it, beside the old one.

use std::collections::BTreeSet;

use highwater_event::StreamName;

use super::{Building, Catalog, Planned, names_read};
use crate::adhoc;
use crate::dialect::{Declared, SqlError, Statement, parse_script};
use crate::session::Engine;

impl Catalog {
    /// A statement must not meet what is being replaced at the moment: it would be left with the old version.
    pub(super) fn check_not_building(&self, statement: &Statement) -> Result<(), SqlError> {
        let own = StreamName::new(statement.name()).ok();
        let mut touched: BTreeSet<StreamName> = own.iter().cloned().collect();
        match statement {
            Statement::CreateStreamAs { query, .. } | Statement::CreateTableAs { query, .. } => {
                touched.extend(names_read(query));
            }
            // Endpoints read by name whatever has it.
            Statement::CreateEndpoint { .. }
            | Statement::CreateIntake { .. }
            | Statement::CreateModel { .. }
            | Statement::CreateSchedule { .. } => return Ok(()),
            _ => {}
        }
        for building in self.building.values().filter(|building| own.as_ref() != Some(&building.root)) {
            let reads = building.members.iter().flat_map(|member| match member {
                Planned::Stream(entry) => entry.reads.iter().cloned().collect(),
                Planned::Table(entry) => entry.reads.iter().cloned().collect(),
                _ => Vec::new(),
            });
            let names: BTreeSet<StreamName> = building.names().into_iter().collect();
            let ends = matches!(statement, Statement::Drop { .. });
            let met = touched
                .iter()
                .find(|name| names.contains(*name))
                .cloned()
                .or_else(|| reads.into_iter().find(|name| ends && touched.contains(name)));
            if let Some(name) = met {
                return Err(SqlError::new(
                    "being_replaced",
                    format!("a new version of \"{}\" is being built, and \"{name}\" is part of it", building.root),
                )
                .hint("wait until it has taken its place (GET /api/v1/statements shows how far it is), or declare the old text again with OR REPLACE to give it up"));
            }
        }
        Ok(())
    }

    /// Plans a new version of a statement and of everything that is derived from it.
    pub(super) async fn plan_replacement(
        &self,
        engine: &Engine,
        declared: Declared,
    ) -> Result<Building, SqlError> {
        let root = StreamName::new(declared.statement.name())
            .map_err(|error| SqlError::new("invalid_name", error.to_string()))?;
        let mut next = self.clone();
        next.drop_building(&root);
        let planned = next.plan_creation(engine, declared, None).await?;
        next.take(engine, &planned);
        let mut members = vec![planned];
        for name in self.derived_from(&root) {
            let text = match (self.streams.get(&name), self.tables.get(&name)) {
                (Some(entry), _) => &entry.text,
                (None, Some(entry)) => &entry.text,
                (None, None) => continue,
            };
            let mut parts = parse_script(text)?.into_iter();
            let Some(created) = parts.next() else { continue };
            let mut planned = next.plan_creation(engine, created, None).await.map_err(|error| SqlError {
                message: format!(
                    "\"{name}\", which is derived from \"{root}\", would not work any more: {}",
                    error.message
                ),
                at: None,
                ..error
            })?;
            next.take(engine, &planned);
            // What was altered since is altered again.
            for part in parts {
                if let Statement::AlterStream { name, changes } = &part.statement
                    && let Planned::Altered(entry) = next.plan_alter(name, changes, &part.text)?
                {
                    planned = Planned::Stream(entry);
                    next.take(engine, &planned);
                }
            }
            members.push(planned);
        }
        let names: BTreeSet<StreamName> = members.iter().filter_map(Planned::name).collect();
        for endpoint in self.endpoints.values().filter(|endpoint| !endpoint.reads.is_disjoint(&names)) {
            let broken = |error: SqlError| SqlError {
                message: format!("the endpoint {} would not work any more: {}", endpoint.path, error.message),
                at: None,
                ..error
            };
            let (parameters, query) = (&endpoint.parameters, &endpoint.query);
            let columns = adhoc::check_endpoint(engine, &next, parameters, query).await.map_err(broken)?;
            next.check_answers(&endpoint.answers, query, &columns).map_err(broken)?;
        }
        Ok(Building { root, members })
    }

    /// Everything that is derived from a name, each after what it reads.
    pub fn derived_from(&self, root: &StreamName) -> Vec<StreamName> {
        let mut found: Vec<StreamName> = Vec::new();
        let reads = |name: &StreamName| {
            let stream = self.streams.get(name).map(|entry| &entry.reads);
            stream.or_else(|| self.tables.get(name).map(|entry| &entry.reads))
        };
        let names: Vec<&StreamName> = self.streams.keys().chain(self.tables.keys()).collect();
        let mut affected: BTreeSet<StreamName> = BTreeSet::from([root.clone()]);
        loop {
            let more: Vec<StreamName> = names
                .iter()
                .filter(|name| {
                    !affected.contains(**name)
                        && reads(name).is_some_and(|reads| !reads.is_disjoint(&affected))
                })
                .map(|name| (*name).clone())
                .collect();
            if more.is_empty() {
                break;
            }
            affected.extend(more);
        }
        affected.remove(root);
        while !affected.is_empty() {
            let ready: Vec<StreamName> = affected
                .iter()
                .filter(|name| reads(name).is_none_or(|reads| reads.is_disjoint(&affected)))
                .cloned()
                .collect();
            if ready.is_empty() {
                break;
            }
            for name in ready {
                affected.remove(&name);
                found.push(name);
            }
        }
        found
    }

    /// The new version of a name takes its place.
    pub fn plan_swap(&self, root: &StreamName) -> Option<Planned> {
        self.building.get(root).cloned().map(Planned::Swapped)
    }
}
