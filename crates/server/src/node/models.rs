//! Trained models: each version is a row of the stream `_models`, in one commit with its entry of the audit trail. What
//! functions ask is a view of it, made anew at every start.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use arrow::array::{Array, AsArray, Int32Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Int32Type, TimestampMicrosecondType};
use highwater_event::{Column, Principal, StreamName, StreamOptions, StreamPartition, StreamSchema, columns};
use highwater_log::reader::each_batch;
use highwater_log::{Append, Commit, LogBatch};
use highwater_model::{Model, Report};
use highwater_sql::dialect::MODELS;
use highwater_sql::models::version_name;
use serde::Serialize;

use super::{ChangeError, Leaf, Node, lock};

/// A version of a model.
#[derive(Debug, Clone, Serialize)]
pub struct Version {
    /// The model.
    pub model: Arc<str>,
    /// Its number, from 1.
    pub version: u32,
    /// The name by which `score` asks it.
    pub name: String,
    /// The job that made it.
    pub job: Arc<str>,
    /// What it says how likely it is.
    pub label: Arc<str>,
    /// What it was judged to be.
    pub report: Report,
    /// Who had it trained.
    pub principal: Arc<str>,
    /// When, microseconds UTC.
    #[serde(skip)]
    pub trained_at: i64,
}

/// All versions.
#[derive(Default)]
pub struct Versions {
    known: Mutex<BTreeMap<(Arc<str>, u32), Version>>,
    /// One at a time, so that each has a number of its own.
    publishing: tokio::sync::Mutex<()>,
}

impl Versions {
    /// Those of one model, the newest first.
    pub fn of(&self, model: &str) -> Vec<Version> {
        let known = lock(&self.known);
        known.values().rev().filter(|version| *version.model == *model).cloned().collect()
    }

    /// The one that a job has made.
    pub fn by_job(&self, job: &str) -> Option<Version> {
        lock(&self.known).values().find(|version| *version.job == *job).cloned()
    }

    /// The one of a name.
    pub fn named(&self, name: &str) -> Option<Version> {
        lock(&self.known).values().find(|version| version.name == name).cloned()
    }

    fn take(&self, version: Version) {
        lock(&self.known).insert((version.model.clone(), version.version), version);
    }
}

/// The schema of `_models`.
pub(super) fn schema() -> StreamSchema {
    let text = |name: &str| Column::new(name, DataType::Utf8, false);
    let json = |name: &str| Column { json: true, ..text(name) };
    StreamSchema {
        name: StreamName::system(MODELS),
        columns: vec![
            text("name"),
            text("model"),
            Column::new("version", DataType::Int32, false),
            text("job"),
            text("label"),
            json("report"),
            json("trees"),
            text("principal"),
            text("tenant"),
        ],
        options: StreamOptions::of_engine("tenant"),
        raw: false,
    }
}

fn partition() -> StreamPartition {
    StreamPartition::new(StreamName::system(MODELS), 0)
}

fn append(version: &Version, model: &Model, tenant: &str) -> anyhow::Result<Append> {
    let text = |value: &str| Arc::new(StringArray::from(vec![value]));
    let time = TimestampMicrosecondArray::from(vec![version.trained_at]);
    let rows = RecordBatch::try_new(
        schema().stored_schema(),
        vec![
            text(&version.name),
            text(&version.model),
            Arc::new(Int32Array::from(vec![i32::try_from(version.version)?])),
            text(&version.job),
            text(&version.label),
            text(&serde_json::to_string(&version.report)?),
            text(&model.show()?),
            text(&version.principal),
            text(tenant),
            Arc::new(time.with_data_type(columns::timestamp_type())),
        ],
    )?;
    Ok(Append { to: partition(), rows })
}

/// The versions in a batch of `_models`; those that can't be read are told of and left out.
fn read(batch: &LogBatch) -> Vec<(Version, Model)> {
    let text = |name: &str, row: usize| {
        let column = batch.rows.column_by_name(name)?.as_string_opt::<i32>()?;
        column.is_valid(row).then(|| Arc::<str>::from(column.value(row)))
    };
    let version = |row: usize| {
        let numbers = batch.rows.column_by_name("version")?.as_primitive_opt::<Int32Type>()?;
        let times =
            batch.rows.column_by_name(columns::EVENT_TIME)?.as_primitive_opt::<TimestampMicrosecondType>()?;
        let (model, number) = (text("model", row)?, numbers.value(row).unsigned_abs());
        let version = Version {
            name: version_name(&model, number),
            version: number,
            job: text("job", row)?,
            label: text("label", row)?,
            report: serde_json::from_str(&text("report", row)?).ok()?,
            principal: text("principal", row)?,
            trained_at: times.value(row),
            model,
        };
        match Model::parse(&text("trees", row)?) {
            Ok(model) => Some((version, model)),
            Err(error) => {
                tracing::error!(%error, model = version.name, "a model can't be asked");
                None
            }
        }
    };
    (0..batch.rows.num_rows()).filter_map(version).collect()
}

impl Node {
    /// Makes all versions known.
    pub(super) fn load_models(&self) -> anyhow::Result<()> {
        each_batch(self.log.as_ref(), &partition(), &mut 0, &mut |batch| {
            for (version, model) in read(batch) {
                self.engine.models().put(&version.model, version.version, Arc::new(model));
                self.models.take(version);
            }
        })?;
        Ok(())
    }

    /// Makes a trained model the newest version of its name. `leaf` makes the entry for the name.
    pub async fn publish_model(
        &self,
        principal: &Principal,
        (model, label, job): (&str, &str, &str),
        (trained, report): (Model, Report),
        leaf: impl FnOnce(&str) -> Leaf,
    ) -> Result<Version, ChangeError> {
        let internal = |error: anyhow::Error| ChangeError::Internal(format!("{error:#}"));
        let _alone = self.models.publishing.lock().await;
        let number = self.engine.models().newest(model) + 1;
        let version = Version {
            model: model.into(),
            version: number,
            name: version_name(model, number),
            job: job.into(),
            label: label.into(),
            report,
            principal: principal.name.clone(),
            trained_at: self.machine.clock.now_micros(),
        };
        let row = append(&version, &trained, &principal.tenant).map_err(internal)?;
        let leaf = leaf(&version.name);
        self.log.append(Commit { appends: vec![row, leaf.append()?], ..Commit::default() }).await?;
        leaf.settle();
        self.engine.models().put(model, number, Arc::new(trained));
        self.models.take(version.clone());
        Ok(version)
    }
}
