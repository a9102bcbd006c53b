//! What is declared: streams, tables, reference tables and endpoints, each with its plan.
//!
//! A statement that replaces another is planned together with all that is derived from it, under the
//! next version of their names, and built beside them; a later command swaps the names. The catalog is a
//! deterministic view of the statements in the log: applying the same statements in the same order gives the
//! same catalog. It checks and plans; it starts nothing.

mod change;
mod endpoint;
mod model;
mod replace;
mod written;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use datafusion::sql::sqlparser::ast::{
    Expr, FunctionArg, FunctionArgExpr, FunctionArguments, ObjectName, Query, Spanned, Value, Visit, Visitor,
};
use datafusion::sql::sqlparser::tokenizer::Span;
use highwater_event::name::nearest;
use highwater_event::{StreamName, StreamSchema};

use self::endpoint::{fitted, parameter, same_places};
use crate::adhoc;
use crate::dialect::{Declared, Kind, Method, RuleEntry, Schedule, SqlError, Statement, Takes, parse_script};
use crate::functions::LOOKING_UP;
use crate::plan::{JoinTarget, Reads, plan_join, plan_table, plan_transform, reads_of};
use crate::reference::ReferenceTable;
use crate::session::Engine;
use crate::stream::{JoinProgram, Step, TableProgram, Transform};

pub use self::endpoint::{Answered, Endpoint, InPath, Intake, Parameter, Replays, Taking};
pub use self::model::ModelEntry;
pub use self::written::{CHANGE, CHANGED_BY, KEY, REQUEST, RowWrites, VERSION, Written};

/// A declared or built-in stream.
#[derive(Debug)]
pub struct StreamEntry {
    /// Its columns and options; its name there carries the version that the log knows.
    pub schema: Arc<StreamSchema>,
    /// How it is derived; `None` when events come in through the door or the engine writes it.
    pub derivation: Option<Derivation>,
    /// Names that the statement reads.
    pub reads: BTreeSet<StreamName>,
    /// The statement.
    pub text: String,
}

/// A schedule as it was declared.
#[derive(Debug)]
pub struct ScheduleEntry {
    /// Its name.
    pub name: StreamName,
    /// When, and what.
    pub schedule: Schedule,
    /// The statement.
    pub text: String,
}

/// How a stream is derived.
#[derive(Debug, Clone)]
pub enum Derivation {
    /// Row by row from one stream.
    Transform(Arc<Transform>),
    /// From two sides.
    Join(Arc<JoinProgram>),
}

impl Derivation {
    /// What it reads, in words.
    pub fn origin(&self) -> String {
        match self {
            Self::Transform(transform) => transform.source.name.public().to_owned(),
            Self::Join(join) => format!("{}, {}", join.left().name.public(), join.right().public()),
        }
    }

    /// How it is kept up.
    pub fn explain(&self) -> Vec<Step> {
        match self {
            Self::Transform(transform) => transform.explain(),
            Self::Join(join) => join.explain(),
        }
    }
}

/// A declared table.
#[derive(Debug)]
pub struct TableEntry {
    /// Its plan.
    pub program: Arc<TableProgram>,
    /// Names that the statement reads.
    pub reads: BTreeSet<StreamName>,
    /// The statement.
    pub text: String,
    /// How callers write it; `None` when its statement says what it is made of.
    pub written: Option<Arc<Written>>,
}

/// A declared reference table.
#[derive(Debug)]
pub struct ReferenceEntry {
    /// Its current version.
    pub table: Arc<ReferenceTable>,
    /// The statement.
    pub text: String,
    /// The file's content.
    pub csv: String,
}

/// A statement that has been checked and planned.
#[derive(Debug, Clone)]
pub enum Planned {
    /// The same thing is declared already, or gone already.
    Unchanged,
    /// A stream.
    Stream(Arc<StreamEntry>),
    /// A table.
    Table(Arc<TableEntry>),
    /// A new version of a reference table, or a new one.
    Reference(Arc<ReferenceEntry>),
    /// An endpoint, new or in the place of the one with its path.
    Endpoint(Arc<Endpoint>),
    /// A path that events come in at, new or in the place of the one with its path.
    Intake(Arc<Intake>),
    /// A model, new or in the place of the one with its name.
    Model(Arc<ModelEntry>),
    /// A schedule, new or in the place of the one with its name.
    Schedule(Arc<ScheduleEntry>),
    /// A row filter or column mask.
    Rule(Arc<RuleEntry>),
    /// A stream with more columns or other options.
    Altered(Arc<StreamEntry>),
    /// A new version of a statement, and of all that is derived from it, to be built beside the old.
    Building(Arc<Building>),
    /// The new version takes the names.
    Swapped(Arc<Building>),
    /// Something is gone.
    Dropped(Kind, String),
    /// A derived stream or table stands still.
    Paused(StreamName),
    /// It goes on.
    Resumed(StreamName),
    /// A new version that was being built is given up.
    Abandoned(StreamName),
}

/// A statement's new version on its way.
#[derive(Debug)]
pub struct Building {
    /// The statement that is replaced.
    pub root: StreamName,
    /// The root and what is derived from it, each after what it reads.
    pub members: Vec<Planned>,
}

impl Building {
    /// Names of the root and all that is derived from it.
    pub fn names(&self) -> Vec<StreamName> {
        self.members.iter().filter_map(Planned::name).collect()
    }
}

impl Planned {
    /// The public name of a stream or table.
    fn name(&self) -> Option<StreamName> {
        match self {
            Self::Stream(entry) | Self::Altered(entry) => Some(entry.schema.name.at_version(1)),
            Self::Table(entry) => Some(entry.program.table().at_version(1)),
            _ => None,
        }
    }
}

/// All declarations.
#[derive(Debug, Default, Clone)]
pub struct Catalog {
    /// Streams by public name.
    pub streams: BTreeMap<StreamName, Arc<StreamEntry>>,
    /// Tables by public name.
    pub tables: BTreeMap<StreamName, Arc<TableEntry>>,
    /// Reference tables by name.
    pub references: BTreeMap<StreamName, Arc<ReferenceEntry>>,
    /// Endpoints by path.
    pub endpoints: BTreeMap<String, Arc<Endpoint>>,
    /// Paths that events come in at, or rows are written at, by how they are called.
    pub intakes: BTreeMap<(Method, String), Arc<Intake>>,
    /// Models by name.
    pub models: BTreeMap<StreamName, Arc<ModelEntry>>,
    /// Schedules by name.
    pub schedules: BTreeMap<StreamName, Arc<ScheduleEntry>>,
    /// Row filters, column masks and policies by name.
    pub rules: BTreeMap<StreamName, Arc<RuleEntry>>,
    /// New versions that are being built, by the public name of their root.
    pub building: BTreeMap<StreamName, Arc<Building>>,
    /// Streams and tables that stand still.
    pub paused: BTreeSet<StreamName>,
    /// The newest version of every name that ever was, also of dropped ones.
    versions: BTreeMap<StreamName, u32>,
}

impl Catalog {
    /// Adds a stream that the engine declares itself.
    pub fn add_builtin(&mut self, schema: StreamSchema) {
        let entry = StreamEntry {
            schema: Arc::new(schema),
            derivation: None,
            reads: BTreeSet::new(),
            text: String::new(),
        };
        self.streams.insert(entry.schema.name.clone(), Arc::new(entry));
    }

    /// Checks a statement against what is declared and plans it. `csv` is the content of the file that a
    /// reference table names.
    pub async fn plan(
        &self,
        engine: &Engine,
        declared: Declared,
        csv: Option<String>,
    ) -> Result<Planned, SqlError> {
        if self.is_unchanged(&declared.statement, &declared.text, csv.as_deref()) {
            let name = StreamName::new(declared.statement.name()).ok();
            let given_up = name.filter(|name| declared.replace && self.building.contains_key(name));
            return Ok(given_up.map_or(Planned::Unchanged, Planned::Abandoned));
        }
        self.check_not_building(&declared.statement)?;
        match &declared.statement {
            Statement::Drop { kind, name, if_exists } => return self.plan_drop(*kind, name, *if_exists),
            Statement::AlterStream { name, changes } => {
                return self.plan_alter(name, changes, &declared.text);
            }
            Statement::Pause { name } => return self.plan_pause(name, true),
            Statement::Resume { name } => return self.plan_pause(name, false),
            _ => {}
        }
        if self.check_free(&declared)? {
            return self.plan_replacement(engine, declared).await.map(Arc::new).map(Planned::Building);
        }
        self.plan_creation(engine, declared, csv).await
    }

    /// Plans a CREATE under the next version of its name.
    async fn plan_creation(
        &self,
        engine: &Engine,
        declared: Declared,
        csv: Option<String>,
    ) -> Result<Planned, SqlError> {
        let Declared { statement, text, .. } = declared;
        Ok(match statement {
            Statement::CreateStream { name, columns, options } => {
                let schema = StreamSchema::new(self.next_version(&name), columns, options, true)
                    .map_err(|error| SqlError::new("invalid_schema", error.to_string()))?;
                let (schema, reads) = (Arc::new(schema), BTreeSet::new());
                Planned::Stream(Arc::new(StreamEntry { schema, derivation: None, reads, text }))
            }
            Statement::CreateStreamAs { name, options, mut query, within } => {
                let reads = names_read(&query);
                let name = self.next_version(&name);
                let Reads { source, join } = reads_of(&mut query)?;
                let from = from_span(&query);
                let source = self.source(&source, from)?;
                let (schema, derivation) = match join {
                    None if within.is_some() => {
                        return Err(SqlError::unsupported("WITHIN belongs to a JOIN"));
                    }
                    None => {
                        let transform = plan_transform(engine, source, name, options, query).await?;
                        (transform.schema.clone(), Derivation::Transform(Arc::new(transform)))
                    }
                    Some(shape) => {
                        let target = match self.tables.get(&shape.right) {
                            Some(table) => JoinTarget::Table(table.program.clone()),
                            None => JoinTarget::Stream(self.source(&shape.right, Some(shape.span))?),
                        };
                        let join =
                            plan_join(engine, source, (target, &shape), within, name, options, query).await?;
                        (join.schema().clone(), Derivation::Join(Arc::new(join)))
                    }
                };
                Planned::Stream(Arc::new(StreamEntry { schema, derivation: Some(derivation), reads, text }))
            }
            Statement::CreateTableAs { name, window, mut query, emit_final } => {
                let reads = names_read(&query);
                let Reads { source, join } = reads_of(&mut query)?;
                if let Some(join) = join {
                    return Err(SqlError::unsupported(
                        "a table aggregates one stream; JOIN belongs to CREATE STREAM",
                    )
                    .at(join.span)
                    .hint("derive a stream from the join, and the table from that stream"));
                }
                let source = self.source(&source, from_span(&query))?;
                let name = self.next_version(&name);
                let program = plan_table(engine, source, name, window, emit_final, query).await?;
                let program = Arc::new(program);
                Planned::Table(Arc::new(TableEntry { program, reads, text, written: None }))
            }
            Statement::CreateTable { name, columns, key, generated } => {
                let entry = self.plan_written(engine, &name, columns, (key, generated), text).await?;
                Planned::Table(Arc::new(entry))
            }
            Statement::CreateReferenceTable { name, columns, csv: file, key, valid_from } => {
                let csv = csv.ok_or_else(|| {
                    SqlError::new(
                        "missing_file",
                        format!("the content of '{file}' has to be sent with the statement"),
                    )
                    .hint("`highwater apply -f DIR` sends it")
                })?;
                let table = ReferenceTable::from_csv(name, &columns, key, valid_from, &csv)?;
                Planned::Reference(Arc::new(ReferenceEntry { table: Arc::new(table), text, csv }))
            }
            Statement::CreateEndpoint { path, parameters, permission, answers, posted, query } => {
                let like = self.endpoints.keys().find(|known| **known != path && same_places(known, &path));
                if let Some(like) = like {
                    return Err(SqlError::new(
                        "already_exists",
                        format!("an endpoint '{like}/' is found at the same paths as '{path}/'"),
                    )
                    .hint(format!("DROP ENDPOINT '{like}/' first")));
                }
                if posted && self.intakes.contains_key(&(Method::Post, path.clone())) {
                    let message = format!("something comes in at '{path}/' with POST");
                    return Err(SqlError::new("already_exists", message)
                        .hint(format!("DROP ENDPOINT POST '{path}/' first, or choose another path")));
                }
                let parameters = parameters.into_iter().map(parameter).collect::<Result<Vec<_>, _>>()?;
                let columns = adhoc::check_endpoint(engine, self, &parameters, &query).await?;
                self.check_answers(&answers, &query, &columns)?;
                let mut reads = names_read(&query);
                reads.extend(answers.stream().cloned());
                let endpoint =
                    Endpoint { path, parameters, permission, answers, posted, query, columns, reads, text };
                Planned::Endpoint(Arc::new(endpoint))
            }
            Statement::CreateIntake { method, path, into, takes } => {
                let asked = self.endpoints.get(&path).is_some_and(|endpoint| endpoint.posted);
                if asked && method == Method::Post {
                    let message = format!("an endpoint is asked at '{path}/' with POST");
                    return Err(SqlError::new("already_exists", message)
                        .hint(format!("DROP ENDPOINT '{path}/' first, or choose another path")));
                }
                let mut known = self.intakes.keys().filter(|(other, _)| *other == method);
                if let Some((_, like)) = known.find(|(_, known)| *known != path && same_places(known, &path))
                {
                    let (method, detail) = (method.text(), "is found at the same paths as");
                    return Err(SqlError::new(
                        "already_exists",
                        format!("an endpoint {method} '{like}/' {detail} '{path}/'"),
                    )
                    .hint(format!("DROP ENDPOINT {method} '{like}/' first")));
                }
                let place = (method, path, into);
                Planned::Intake(Arc::new(self.plan_intake(engine, place, takes, text).await?))
            }
            Statement::CreateModel { name, label, query } => {
                Planned::Model(Arc::new(self.plan_model(engine, (&name, label), query, text).await?))
            }
            Statement::CreateSchedule { name, schedule } => {
                Planned::Schedule(Arc::new(ScheduleEntry { name, schedule: *schedule, text }))
            }
            Statement::CreateRule { name, relation, rule } => {
                if let Some(relation) = &relation {
                    adhoc::check_rule(engine, self, relation, &rule)?;
                }
                Planned::Rule(Arc::new(RuleEntry { name, relation, rule, text }))
            }
            Statement::AlterStream { .. }
            | Statement::Drop { .. }
            | Statement::Pause { .. }
            | Statement::Resume { .. } => return Err(SqlError::new("internal", "not a CREATE")),
        })
    }

    fn next_version(&self, name: &StreamName) -> StreamName {
        name.at_version(self.versions.get(name).map_or(1, |version| version + 1))
    }

    /// The row filters and column masks of a relation.
    pub fn rules_of(&self, name: &StreamName) -> impl Iterator<Item = &Arc<RuleEntry>> {
        self.rules.values().filter(move |entry| entry.relation.as_ref() == Some(name))
    }

    /// The endpoint at a path, and what the path says of its parameters, as it was sent. One without parameters in its
    /// path goes first.
    pub fn endpoint<'a>(&'a self, path: &'a str) -> Option<(&'a Arc<Endpoint>, InPath<'a>)> {
        let exact = self.endpoints.get(path).map(|endpoint| (endpoint, Vec::new()));
        exact.or_else(|| {
            if self.is_literal(path) {
                return None;
            }
            self.endpoints.values().find_map(|endpoint| Some((endpoint, fitted(&endpoint.path, path)?)))
        })
    }

    /// The path that something comes in at, called so; one without parameters in its path goes first.
    pub fn intake(&self, method: &str, path: &str) -> Option<&Arc<Intake>> {
        let called = || self.intakes.values().filter(|intake| intake.method.text() == method);
        called().find(|intake| intake.path == path).or_else(|| {
            let fitting = called().find(|intake| intake.in_path(path).is_some());
            fitting.filter(|_| !self.is_literal(path))
        })
    }

    /// How a path may be called that something comes in at.
    pub fn methods(&self, path: &str) -> impl Iterator<Item = Method> {
        let literal = self.is_literal(path);
        let fits = move |intake: &&Arc<Intake>| match literal {
            true => intake.path == path,
            false => intake.in_path(path).is_some(),
        };
        self.intakes.values().filter(fits).map(|intake| intake.method)
    }

    /// Whether something is declared at just this path, whatever its method: then no parameter of another path stands for it.
    fn is_literal(&self, path: &str) -> bool {
        self.endpoints.contains_key(path) || self.intakes.keys().any(|(_, known)| known == path)
    }

    /// Takes a planned statement in.
    pub fn insert(&mut self, engine: &Engine, planned: Planned) {
        match &planned {
            Planned::Building(building) => {
                self.drop_building(&building.root);
                for name in building.members.iter().filter_map(stored_name) {
                    self.note_version(name);
                }
                self.building.insert(building.root.clone(), building.clone());
            }
            Planned::Swapped(building) => {
                self.building.remove(&building.root);
                building.members.iter().for_each(|member| self.take(engine, member));
            }
            other => self.take(engine, other),
        }
    }

    fn drop_building(&mut self, root: &StreamName) {
        if let Some(building) = self.building.remove(root) {
            // Versions are never used twice, so the names of what was begun stay taken.
            building.members.iter().filter_map(stored_name).for_each(|name| self.note_version(name));
        }
    }

    fn note_version(&mut self, name: &StreamName) {
        let newest = self.versions.entry(name.at_version(1)).or_insert(0);
        *newest = (*newest).max(name.version());
    }

    fn take(&mut self, engine: &Engine, planned: &Planned) {
        if let Some(name) = stored_name(planned) {
            self.note_version(name);
        }
        match planned {
            Planned::Unchanged | Planned::Building(_) | Planned::Swapped(_) => {}
            Planned::Abandoned(name) => self.drop_building(name),
            Planned::Stream(entry) | Planned::Altered(entry) => {
                self.streams.insert(entry.schema.name.at_version(1), entry.clone());
            }
            Planned::Table(entry) => {
                if let Some(written) = &entry.written {
                    let changes = &written.changes;
                    self.note_version(&changes.schema.name);
                    self.streams.insert(changes.schema.name.at_version(1), changes.clone());
                }
                self.tables.insert(entry.program.table().at_version(1), entry.clone());
            }
            Planned::Reference(entry) => {
                engine.references().put(entry.table.clone());
                self.references.insert(entry.table.name.clone(), entry.clone());
            }
            Planned::Endpoint(entry) => {
                self.endpoints.insert(entry.path.clone(), entry.clone());
            }
            Planned::Intake(entry) => {
                self.intakes.insert((entry.method, entry.path.clone()), entry.clone());
            }
            Planned::Model(entry) => {
                self.models.insert(entry.name.clone(), entry.clone());
            }
            Planned::Schedule(entry) => {
                self.schedules.insert(entry.name.clone(), entry.clone());
            }
            Planned::Rule(entry) => {
                self.rules.insert(entry.name.clone(), entry.clone());
            }
            Planned::Dropped(kind, name) => self.remove(*kind, name),
            Planned::Paused(name) => {
                self.paused.insert(name.clone());
            }
            Planned::Resumed(name) => {
                self.paused.remove(name);
            }
        }
    }

    fn remove(&mut self, kind: Kind, name: &str) {
        match kind {
            Kind::Endpoint => return drop(self.endpoints.remove(name)),
            Kind::Intake(method) => return drop(self.intakes.remove(&(method, name.to_owned()))),
            _ => {}
        }
        let Ok(name) = StreamName::new(name) else { return };
        match kind {
            Kind::Rule => return drop(self.rules.remove(&name)),
            Kind::Model => return drop(self.models.remove(&name)),
            Kind::Schedule => return drop(self.schedules.remove(&name)),
            _ => {}
        }
        match kind {
            Kind::Stream => drop(self.streams.remove(&name)),
            Kind::Table => {
                let written = self.tables.remove(&name).and_then(|entry| entry.written.clone());
                if let Some(written) = written {
                    self.streams.remove(&written.changes.schema.name.at_version(1));
                }
            }
            _ => drop(self.references.remove(&name)),
        }
        self.paused.remove(&name);
        self.drop_building(&name);
    }

    fn is_unchanged(&self, statement: &Statement, text: &str, csv: Option<&str>) -> bool {
        let name = statement.name();
        let known = StreamName::new(name).ok();
        let known = known.as_ref();
        let same = |known: &str| normalized(known) == normalized(text);
        match statement {
            Statement::CreateStream { .. } | Statement::CreateStreamAs { .. } => {
                // An altered stream is still the one that was created.
                known.and_then(|name| self.streams.get(name)).is_some_and(|entry| {
                    let created = parse_script(&entry.text).ok().and_then(|parts| parts.into_iter().next());
                    created.is_some_and(|created| same(&created.text))
                })
            }
            Statement::CreateTable { .. } | Statement::CreateTableAs { .. } => {
                known.and_then(|name| self.tables.get(name)).is_some_and(|entry| same(&entry.text))
            }
            Statement::CreateReferenceTable { .. } => known
                .and_then(|name| self.references.get(name))
                .is_some_and(|entry| same(&entry.text) && csv.is_none_or(|csv| csv == entry.csv)),
            Statement::CreateEndpoint { .. } => {
                self.endpoints.get(name).is_some_and(|entry| same(&entry.text))
            }
            Statement::CreateIntake { method, path, .. } => {
                self.intakes.get(&(*method, path.clone())).is_some_and(|entry| same(&entry.text))
            }
            Statement::CreateModel { .. } => {
                known.and_then(|name| self.models.get(name)).is_some_and(|entry| same(&entry.text))
            }
            Statement::CreateSchedule { .. } => {
                known.and_then(|name| self.schedules.get(name)).is_some_and(|entry| same(&entry.text))
            }
            Statement::CreateRule { .. } => {
                known.and_then(|name| self.rules.get(name)).is_some_and(|entry| same(&entry.text))
            }
            Statement::AlterStream { .. }
            | Statement::Drop { .. }
            | Statement::Pause { .. }
            | Statement::Resume { .. } => false,
        }
    }

    /// True when a statement replaces one that is there. Endpoints and reference tables may be declared
    /// anew at any time; streams and tables need OR REPLACE, and raw streams can't be replaced.
    fn check_free(&self, declared: &Declared) -> Result<bool, SqlError> {
        let Ok(name) = StreamName::new(declared.statement.name()) else { return Ok(false) };
        if matches!(declared.statement, Statement::CreateSchedule { .. } | Statement::CreateModel { .. }) {
            return Ok(false);
        }
        if matches!(declared.statement, Statement::CreateRule { .. }) {
            return match self.rules.get(&name) {
                Some(_) if !declared.replace => {
                    let detail = format!("a rule \"{name}\" is declared already, and differently");
                    Err(SqlError::new("already_exists", detail)
                        .hint("CREATE OR REPLACE puts it in the other's place"))
                }
                _ => Ok(false),
            };
        }
        let kind = declared.statement.kind();
        let known = if let Some(entry) = self.streams.get(&name) {
            if entry.derivation.is_none() && kind == "stream" {
                let error = SqlError::new(
                    "already_exists",
                    format!("the stream \"{name}\" is declared already, and differently"),
                );
                return Err(error.hint("ALTER STREAM adds columns and changes options; DROP STREAM ends it"));
            }
            "stream"
        } else if let Some(entry) = self.tables.get(&name) {
            let writes = matches!(declared.statement, Statement::CreateTable { .. });
            if kind == "table" && (writes || entry.written.is_some()) {
                let error = SqlError::new(
                    "already_exists",
                    format!("the table \"{name}\" is declared already, and differently"),
                );
                return Err(error.hint(
                    "its rows would be lost: declare another one, and write them there, or DROP TABLE first",
                ));
            }
            "table"
        } else if self.references.contains_key(&name) {
            "reference table"
        } else {
            return Ok(false);
        };
        let from_events = matches!(declared.statement, Statement::CreateStream { .. });
        if known == kind && known == "reference table" {
            return Ok(false);
        }
        if known == kind && declared.replace && !from_events {
            return Ok(true);
        }
        let error = SqlError::new(
            "already_exists",
            format!("a {known} \"{name}\" is declared already, and differently"),
        );
        Err(if known == kind && !from_events {
            error.hint("CREATE OR REPLACE builds the new version beside the old one and swaps them when it has caught up")
        } else {
            error.hint(format!("choose another name, or drop the {known} first"))
        })
    }

    fn no_stream(&self, name: &StreamName) -> SqlError {
        let error = SqlError::new("stream_not_found", format!("no stream \"{name}\""));
        match nearest(name.as_str(), self.streams.keys().map(StreamName::as_str)) {
            _ if self.tables.contains_key(name) => error.hint("there is a table of that name"),
            Some(near) => error.hint(format!("did you mean \"{near}\"?")),
            None => error,
        }
    }

    fn no_table(&self, name: &StreamName) -> SqlError {
        let error = SqlError::new("relation_not_found", format!("no table \"{name}\""));
        match nearest(name.as_str(), self.tables.keys().map(StreamName::as_str)) {
            _ if self.streams.contains_key(name) => error.hint("there is a stream of that name"),
            Some(near) => error.hint(format!("did you mean \"{near}\"?")),
            None => error,
        }
    }

    fn source(&self, name: &StreamName, span: Option<Span>) -> Result<Arc<StreamSchema>, SqlError> {
        if let Some(entry) = self.streams.get(name) {
            return Ok(entry.schema.clone());
        }
        let error = if self.tables.contains_key(name) || self.references.contains_key(name) {
            SqlError::unsupported(format!("\"{name}\" is a table; a continuous statement reads a stream"))
                .hint("a table may stand on the right of a JOIN; a reference table is read with lookup(…)")
        } else {
            self.no_stream(name)
        };
        Err(match span {
            Some(span) => error.at(span),
            None => error,
        })
    }

    /// How a stream or table is kept up, part by part; `None` when there is none of that name.
    pub fn explain(&self, name: &StreamName) -> Option<Vec<Step>> {
        if let Some(entry) = self.tables.get(name) {
            return Some(entry.program.explain());
        }
        let entry = self.streams.get(name)?;
        Some(match &entry.derivation {
            Some(derivation) => derivation.explain(),
            None => vec![Step::new(
                entry.schema.name.public(),
                "events come in through the door, are deduplicated and appended to the log",
                "one fsync a group of requests; one look-up an event in the index of event ids",
            )],
        })
    }
}

impl Planned {
    /// How what it declares is kept up.
    pub fn explain(&self) -> Vec<Step> {
        match self {
            Self::Stream(entry) | Self::Altered(entry) => {
                entry.derivation.as_ref().map(Derivation::explain).unwrap_or_default()
            }
            Self::Table(entry) => entry.program.explain(),
            Self::Building(building) | Self::Swapped(building) => {
                building.members.iter().flat_map(Self::explain).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// The versioned name of a stream or table.
fn stored_name(planned: &Planned) -> Option<&StreamName> {
    match planned {
        Planned::Stream(entry) | Planned::Altered(entry) => Some(&entry.schema.name),
        Planned::Table(entry) => Some(entry.program.table()),
        _ => None,
    }
}

/// The streams, tables and reference tables that a statement reads, or is a rule about.
pub fn read_by(statement: &Statement) -> BTreeSet<StreamName> {
    match statement {
        Statement::CreateStreamAs { query, .. }
        | Statement::CreateTableAs { query, .. }
        | Statement::CreateModel { query, .. } => names_read(query),
        Statement::CreateEndpoint { query, answers, .. } => {
            let mut names = names_read(query);
            names.extend(answers.stream().cloned());
            names
        }
        Statement::CreateRule { relation, .. } => relation.iter().cloned().collect(),
        Statement::CreateIntake { into, takes: Takes::Again(_) | Takes::Row(_), .. } => {
            BTreeSet::from([into.clone()])
        }
        _ => BTreeSet::new(),
    }
}

fn from_span(query: &Query) -> Option<Span> {
    query.body.as_select().and_then(|select| select.from.first()).map(Spanned::span)
}

/// Names that a query reads: relations, and reference tables that its functions name.
fn names_read(query: &Query) -> BTreeSet<StreamName> {
    struct Names(BTreeSet<StreamName>);
    impl Visitor for Names {
        type Break = ();

        fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
            let last = relation.0.last().and_then(|part| part.as_ident());
            let bare = last.map(|ident| ident.value.split('$').next().unwrap_or_default().to_owned());
            self.0.extend(bare.and_then(|name| StreamName::new(name).ok()));
            ControlFlow::Continue(())
        }

        fn pre_visit_expr(&mut self, expression: &Expr) -> ControlFlow<()> {
            if let Expr::Function(function) = expression
                && LOOKING_UP.contains(&function.name.to_string().to_ascii_lowercase().as_str())
                && let FunctionArguments::List(list) = &function.args
                && let Some(FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(value)))) =
                    list.args.first()
                && let Value::SingleQuotedString(name) = &value.value
            {
                self.0.extend(StreamName::new(name).ok());
            }
            ControlFlow::Continue(())
        }
    }
    let mut names = Names(BTreeSet::new());
    match query.visit(&mut names) {
        ControlFlow::Continue(()) | ControlFlow::Break(()) => names.0,
    }
}

/// A text for comparison: white space counts once, OR REPLACE not at all.
fn normalized(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let create = words.first().is_some_and(|word| word.eq_ignore_ascii_case("create"));
    let replace =
        words.len() > 3 && words[1].eq_ignore_ascii_case("or") && words[2].eq_ignore_ascii_case("replace");
    if create && replace { format!("CREATE {}", words[3..].join(" ")) } else { words.join(" ") }
}
