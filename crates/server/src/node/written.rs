//! Writing rows of tables: a change is a row of the stream of the table's changes, in one commit with its entry of the
//! audit trail.
//!
//! Changes of one key wait for each other, and each reads the row as the change before it left it: the table is read when
//! its view has come to the end of the stream. So whoever says which version of a row they have seen never writes over
//! another, and whoever has an answer reads what they wrote.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{SchemaRef, TimestampMicrosecondType};
use arrow::error::ArrowError;
use datafusion::common::ScalarValue;
use highwater_auth::Identity;
use highwater_event::{Digest128, StreamName, StreamPartition, columns, hexadecimal};
use highwater_log::{Append, Commit};
use highwater_sql::SqlError;
use highwater_sql::adhoc::{self, Lens};
use highwater_sql::catalog::{CHANGE, CHANGED_BY, REQUEST, TableEntry, VERSION, Written};
use highwater_sql::dialect::{RowChange, quoted};
use highwater_sql::stream::TableRows;
use highwater_sql::stream::table::LAST_UPDATED_AT;

use super::relations::Fixed;
use super::{ChangeError, Leaf, Node, QUERY_LIMITS, lock};

/// Changes of keys that share one of these wait for each other.
const LOCKS: usize = 64;
/// How long a call waits for the table to be where the log is, and how often it looks.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(1);
/// How long the key of a request is known, microseconds.
const REQUESTS_KEPT: i64 = 24 * 3600 * 1_000_000;
/// Keys of requests that are known at a time.
const MOST_REQUESTS: usize = 100_000;

/// What somebody wants of a row.
pub struct Wanted<'a> {
    /// Who.
    pub identity: &'a Identity,
    /// What becomes of it.
    pub change: RowChange,
    /// Columns that are said, by name.
    pub values: BTreeMap<&'a str, ScalarValue>,
    /// The version that the row must have.
    pub version: Option<i64>,
    /// The name under which the caller sends the same request again.
    pub request: Option<&'a str>,
}

/// What became of a row.
pub struct Changed {
    /// Its key.
    pub key: ScalarValue,
    /// The row of the table after it; `None` when the table is not there yet.
    pub rows: Option<Vec<RecordBatch>>,
}

/// Why a row is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    /// There is none of that key, or not for the caller.
    #[error("there is no row with that key")]
    Missing,
    /// There is one of that key.
    #[error("there is a row with that key already")]
    Exists,
    /// Somebody has changed it.
    #[error("the row is at version {0} by now")]
    Stale(i64),
    /// The caller would not see it.
    #[error("the row would be one that you may not see")]
    Foreign,
    /// A key of a request was used for another request.
    #[error("this Idempotency-Key came with another request before")]
    Reused,
    /// A column that must say something says nothing.
    #[error("\"{0}\" can't be null")]
    Null(String),
    /// The table is not where the log is.
    #[error("the table is not up to date; nothing was written")]
    Behind,
    /// A question could not be answered.
    #[error("{}", .0.message)]
    Sql(#[from] SqlError),
    /// The log refused.
    #[error(transparent)]
    Change(#[from] ChangeError),
}

impl From<ArrowError> for RowError {
    fn from(error: ArrowError) -> Self {
        Self::Change(ChangeError::Internal(error.to_string()))
    }
}

impl From<datafusion::error::DataFusionError> for RowError {
    fn from(error: datafusion::error::DataFusionError) -> Self {
        Self::Sql(error.into())
    }
}

/// What is remembered of tables that are written, by the names that the log has for their changes.
#[derive(Default)]
pub struct Writers(Mutex<BTreeMap<StreamName, Arc<Writer>>>);

impl Writers {
    fn of(&self, written: &Written) -> Arc<Writer> {
        lock(&self.0).entry(written.changes.schema.name.clone()).or_default().clone()
    }
}

/// What is remembered of one table.
struct Writer {
    keys: [tokio::sync::Mutex<()>; LOCKS],
    requests: [tokio::sync::Mutex<()>; LOCKS],
    /// Read from the changes when it is needed first.
    given: tokio::sync::Mutex<Option<Given>>,
}

impl Default for Writer {
    fn default() -> Self {
        let locks = || std::array::from_fn(|_| tokio::sync::Mutex::default());
        Self { keys: locks(), requests: locks(), given: tokio::sync::Mutex::default() }
    }
}

/// What was given out.
#[derive(Default)]
struct Given {
    /// The next key of a new row.
    next: i64,
    /// Requests by their key: a hash of each, the key of its row, and when, microseconds UTC.
    requests: BTreeMap<String, (String, ScalarValue, i64)>,
}

impl Given {
    fn remember(&mut self, request: &str, key: ScalarValue, at: i64) {
        let Some((hash, name)) = request.split_once(':') else { return };
        self.requests.insert(name.to_owned(), (hash.to_owned(), key, at));
        if self.requests.len() > MOST_REQUESTS {
            self.requests.retain(|_, (_, _, seen)| *seen > at - REQUESTS_KEPT);
        }
        while self.requests.len() > MOST_REQUESTS {
            let oldest = self.requests.iter().min_by_key(|(_, (_, _, seen))| *seen);
            let Some(oldest) = oldest.map(|(name, _)| name.clone()) else { return };
            self.requests.remove(&oldest);
        }
    }
}

fn lock_of(value: &impl Hash) -> usize {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    (hasher.finish() % LOCKS as u64) as usize
}

/// A request as the changes remember it: a hash of what it says, and the key that it came with.
fn said(wanted: &Wanted<'_>) -> Option<String> {
    let values = wanted.values.iter().map(|(name, value)| format!("{name}={value:?};"));
    let said: Vec<String> =
        [wanted.identity.principal.name.to_string(), ";".into()].into_iter().chain(values).collect();
    let digest = Digest128::of_parts(said.iter().map(String::as_bytes));
    wanted.request.map(|request| format!("{}:{request}", hexadecimal::show(&digest.0)))
}

/// The value of a column in the first of some rows.
fn value_in(rows: &[RecordBatch], column: &str) -> Option<ScalarValue> {
    let batch = rows.iter().find(|batch| batch.num_rows() > 0)?;
    ScalarValue::try_from_array(batch.column_by_name(column)?, 0).ok()
}

/// The same of a column of whole numbers.
pub fn whole_number_in(rows: &[RecordBatch], column: &str) -> Option<i64> {
    match value_in(rows, column) {
        Some(ScalarValue::Int64(value)) => value,
        _ => None,
    }
}

/// A row of the table as it will be.
fn as_it_will_be(
    schema: &SchemaRef,
    values: &BTreeMap<&str, ScalarValue>,
    version: i64,
    now: i64,
) -> Result<RecordBatch, RowError> {
    let arrays = schema.fields().iter().map(|field| {
        let value = match field.name().as_str() {
            VERSION => ScalarValue::Int64(Some(version)),
            LAST_UPDATED_AT => ScalarValue::TimestampMicrosecond(Some(now), Some("UTC".into())),
            name => match values.get(name) {
                Some(value) => value.clone(),
                None => ScalarValue::try_from(field.data_type())?,
            },
        };
        value.to_array_of_size(1)
    });
    Ok(RecordBatch::try_new(schema.clone(), arrays.collect::<Result<_, _>>()?)?)
}

/// A row of the stream of changes.
fn append(
    written: &Written,
    wanted: &Wanted<'_>,
    values: &BTreeMap<&str, ScalarValue>,
    now: i64,
) -> Result<Append, RowError> {
    let schema = &written.changes.schema;
    let text = |value: &str| ScalarValue::Utf8(Some(value.to_owned()));
    let mut arrays = Vec::new();
    for column in &schema.columns {
        let value = match column.name.as_str() {
            CHANGE => text(wanted.change.text()),
            CHANGED_BY => text(&wanted.identity.principal.name),
            REQUEST => ScalarValue::Utf8(said(wanted)),
            name => match values.get(name) {
                Some(value) => value.clone(),
                None => ScalarValue::try_from(&column.data_type)?,
            },
        };
        arrays.push(value.to_array_of_size(1)?);
    }
    let time = TimestampMicrosecondArray::from(vec![now]).with_data_type(columns::timestamp_type());
    arrays.push(Arc::new(time));
    let rows = RecordBatch::try_new(schema.stored_schema(), arrays)?;
    Ok(Append { to: partition(written), rows })
}

fn partition(written: &Written) -> StreamPartition {
    StreamPartition::new(written.changes.schema.name.clone(), 0)
}

impl Node {
    /// Changes a row of a table that is written. `leaf` makes the entry for a key.
    pub async fn change_row(
        self: &Arc<Self>,
        entry: &TableEntry,
        written: &Written,
        wanted: Wanted<'_>,
        leaf: &(dyn Fn(&ScalarValue) -> Leaf + Sync),
    ) -> Result<Changed, RowError> {
        let writer = self.writers.of(written);
        let _one_at_a_time = match &wanted.request {
            Some(request) => Some(writer.requests[lock_of(request)].lock().await),
            None => None,
        };
        if let Some(key) = self.known_request(written, &writer, &wanted).await? {
            let rows = self.rows_of(&entry.program).ok_or(RowError::Behind)?;
            self.wait_for(&rows, self.log.end(&partition(written))).await?;
            let rows = rows.read_groups(&[key.to_array_of_size(1)?]).await?;
            return Ok(Changed { key, rows: Some(rows) });
        }
        let key = match wanted.values.get(written.key.name.as_str()) {
            Some(key) => key.clone(),
            None => self.new_key(written, &writer).await?,
        };
        let _alone = writer.keys[lock_of(&key)].lock().await;
        let rows = self.rows_of(&entry.program).ok_or(RowError::Behind)?;
        self.wait_for(&rows, self.log.end(&partition(written))).await?;
        let before = rows.read_groups(&[key.to_array_of_size(1)?]).await?;
        let now = self.machine.clock.now_micros();
        let values = self.next_values(entry, written, &wanted, &key, &before, now).await?;
        let row = append(written, &wanted, &values, now)?;
        let leaf = leaf(&key);
        let entry_of_trail = leaf.append().map_err(ChangeError::Append)?;
        let commit = Commit { appends: vec![row, entry_of_trail], ..Commit::default() };
        self.log.append(commit).await.map_err(ChangeError::Append)?;
        leaf.settle();
        if let Some(request) = said(&wanted)
            && let Some(given) = writer.given.lock().await.as_mut()
        {
            given.remember(&request, key.clone(), now);
        }
        // It is durable: whoever asks is told so, also when the table is slow to show it.
        let shown = self.wait_for(&rows, self.log.end(&partition(written))).await.is_ok();
        let rows = if shown { Some(rows.read_groups(&[key.to_array_of_size(1)?]).await?) } else { None };
        Ok(Changed { key, rows })
    }

    /// What the row will say, when it may be changed so.
    async fn next_values<'a>(
        self: &Arc<Self>,
        entry: &TableEntry,
        written: &'a Written,
        wanted: &Wanted<'a>,
        key: &ScalarValue,
        before: &[RecordBatch],
        now: i64,
    ) -> Result<BTreeMap<&'a str, ScalarValue>, RowError> {
        let name = entry.program.table().at_version(1);
        let lens = self.lens(wanted.identity, "table", &name);
        let there = before.iter().any(|batch| batch.num_rows() > 0);
        let insert = wanted.change == RowChange::Insert;
        if insert && there {
            return Err(RowError::Exists);
        }
        if !(insert || there && self.is_visible(entry, before.to_vec(), &lens).await?) {
            return Err(RowError::Missing);
        }
        let version = whole_number_in(before, VERSION).unwrap_or(0);
        if wanted.version.is_some_and(|expected| expected != version) {
            return Err(RowError::Stale(version));
        }
        let mut values = BTreeMap::from([(written.key.name.as_str(), key.clone())]);
        if wanted.change == RowChange::Delete {
            return Ok(values);
        }
        for column in written.columns.iter().filter(|column| **column != written.key) {
            let name = column.name.as_str();
            let value = match wanted.values.get(name) {
                Some(value) => Some(value.clone()),
                None => value_in(before, name),
            };
            let value = value.filter(|value| !value.is_null());
            match value {
                Some(value) => values.insert(name, value),
                None if column.nullable => continue,
                None => return Err(RowError::Null(name.to_owned())),
            };
        }
        let row = as_it_will_be(entry.program.schema(), &values, version + 1, now)?;
        if !self.is_visible(entry, vec![row], &lens).await? {
            return Err(RowError::Foreign);
        }
        Ok(values)
    }

    /// Whether somebody sees a row at all.
    async fn is_visible(
        self: &Arc<Self>,
        entry: &TableEntry,
        rows: Vec<RecordBatch>,
        lens: &Lens,
    ) -> Result<bool, RowError> {
        if lens.filters.is_empty() {
            return Ok(true);
        }
        let name = entry.program.table().public().to_owned();
        let relation = self.rows_as_seen(&entry.program, rows, lens)?;
        let sql = format!("SELECT 1 FROM {}", quoted(&name));
        let (node, relations) = (self.clone(), Arc::new(Fixed::new(name, relation)));
        let question =
            async move { adhoc::query(&node.engine, relations, &sql, Vec::new(), QUERY_LIMITS).await };
        Ok(self.ask(question).await?.row_count() > 0)
    }

    async fn wait_for(&self, rows: &TableRows, end: u64) -> Result<(), RowError> {
        let mut waited = Duration::ZERO;
        while rows.mark(0) < end {
            if waited >= PATIENCE {
                return Err(RowError::Behind);
            }
            self.machine.scheduler.sleep(LOOK).await;
            waited += LOOK;
        }
        Ok(())
    }

    /// The row that was made when the same request came before.
    async fn known_request(
        self: &Arc<Self>,
        written: &Written,
        writer: &Writer,
        wanted: &Wanted<'_>,
    ) -> Result<Option<ScalarValue>, RowError> {
        let (Some(request), Some(said)) = (wanted.request, said(wanted)) else { return Ok(None) };
        let mut given = writer.given.lock().await;
        let now = self.machine.clock.now_micros();
        let given = self.given(written, &mut given).await?;
        match given.requests.get(request) {
            Some((_, _, at)) if *at <= now - REQUESTS_KEPT => Ok(None),
            Some((hash, key, _)) if said.starts_with(hash.as_str()) => Ok(Some(key.clone())),
            Some(_) => Err(RowError::Reused),
            None => Ok(None),
        }
    }

    async fn new_key(self: &Arc<Self>, written: &Written, writer: &Writer) -> Result<ScalarValue, RowError> {
        let mut given = writer.given.lock().await;
        let given = self.given(written, &mut given).await?;
        let key = given.next;
        given.next += 1;
        Ok(ScalarValue::Int64(Some(key)))
    }

    /// What was given out, read from the changes when nothing is known yet.
    async fn given<'a>(
        self: &Arc<Self>,
        written: &Written,
        given: &'a mut Option<Given>,
    ) -> Result<&'a mut Given, RowError> {
        if given.is_none() {
            *given = Some(self.read_given(written).await?);
        }
        given.as_mut().ok_or(RowError::Behind)
    }

    async fn read_given(self: &Arc<Self>, written: &Written) -> Result<Given, RowError> {
        let (key, changes) = (quoted(&written.key.name), quoted(written.changes.schema.name.public()));
        let mut given = Given::default();
        if written.generated {
            let sql = format!("SELECT max({key}) AS newest FROM {changes}");
            let newest = self.ask_engine(sql, Vec::new()).await?;
            given.next = whole_number_in(&newest.batches, "newest").map_or(1, |newest| newest + 1);
        }
        let oldest = self.machine.clock.now_micros() - REQUESTS_KEPT;
        let sql = format!(
            "SELECT {REQUEST}, {key} AS row_key, _event_time FROM {changes} WHERE {REQUEST} IS NOT NULL AND _event_time > to_timestamp_micros({oldest}) ORDER BY _offset DESC LIMIT {MOST_REQUESTS}"
        );
        for batch in self.ask_engine(sql, Vec::new()).await?.batches {
            let requests = batch.column(0).as_string_opt::<i32>();
            let times = batch.column(2).as_primitive_opt::<TimestampMicrosecondType>();
            let (Some(requests), Some(times)) = (requests, times) else { return Err(RowError::Behind) };
            for row in 0..batch.num_rows() {
                let key = ScalarValue::try_from_array(batch.column(1), row)?;
                given.remember(requests.value(row), key, times.value(row));
            }
        }
        Ok(given)
    }
}
