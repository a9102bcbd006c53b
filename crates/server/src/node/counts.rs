//! Exact counts of a stream's rows.
//!
//! A file of the lake never changes, so what a condition finds in it is counted once. Another page of the
//! same question, or the same question a minute later, counts the files that were added since and the rows
//! of the log.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::{Int32Type, Int64Type};
use datafusion::common::ScalarValue;
use highwater_event::StreamSchema;
use highwater_lake::FILE_COLUMN;
use highwater_sql::SqlError;
use highwater_sql::adhoc::{self, Day, Lens, StreamRows, stream_relation};

use super::{Fixed, Node, QUERY_LIMITS, StreamSnapshot};

/// Bytes that remembered counts may take.
const MOST_BYTES: u64 = 32 << 20;
/// About what one remembered count takes: its file's number and itself.
const BYTES_PER_FILE: u64 = 24;

/// Which question: a hash of everything that its answer depends on besides the rows.
type Question = [u8; 32];
/// Rows found, by a hash of the file's name, which is never used twice.
type Found = Arc<HashMap<u64, u64>>;

/// Counts of files by question.
pub struct Counts {
    remembered: quick_cache::sync::Cache<Question, Found, Weigher>,
    names: std::hash::RandomState,
}

#[derive(Clone)]
struct Weigher;

impl quick_cache::Weighter<Question, Found> for Weigher {
    fn weight(&self, _: &Question, found: &Found) -> u64 {
        64 + found.len() as u64 * BYTES_PER_FILE
    }
}

impl Default for Counts {
    fn default() -> Self {
        let remembered = quick_cache::sync::Cache::with_weighter(1024, MOST_BYTES, Weigher);
        Self { remembered, names: std::hash::RandomState::new() }
    }
}

/// A condition over a stream's columns: SQL that begins with WHERE or is empty, and its parameters.
pub struct Condition<'a> {
    /// The clause.
    pub sql: &'a str,
    /// Values of its `$name`s.
    pub values: &'a [(String, ScalarValue)],
    /// The UTC day that is asked about.
    pub day: Option<&'a Day>,
    /// What is seen of the rows.
    pub lens: &'a Lens,
}

impl Condition<'_> {
    fn question(&self, schema: &StreamSchema, oldest: Option<i64>) -> Question {
        let mut hasher = blake3::Hasher::new();
        // Columns and their masks are part of it: a masked column is compared as readers see it.
        let seen = (self.day, self.lens, oldest);
        let of_stream = format!("{:?}", (&schema.name, &schema.columns, &schema.options.sensitive, seen));
        let mut say = |text: &str| {
            // With its length, so that no two texts can run into each other.
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        };
        say(&of_stream);
        say(self.sql);
        for (name, value) in self.values {
            say(name);
            say(&format!("{:?}", value.data_type()));
            say(&value.to_string());
        }
        *hasher.finalize().as_bytes()
    }
}

impl Node {
    /// How many rows of a snapshot satisfy a condition.
    pub async fn count(
        self: &Arc<Self>,
        schema: &StreamSchema,
        snapshot: &StreamSnapshot,
        condition: &Condition<'_>,
    ) -> Result<u64, SqlError> {
        let lens = snapshot.lens(condition.lens.clone());
        let condition = &Condition { lens: &lens, ..*condition };
        let all = condition.sql.is_empty()
            && condition.day.is_none()
            && condition.lens.filters.is_empty()
            && snapshot.oldest.is_none();
        let Some(files) = &snapshot.files else {
            let counted = self.count_files(schema, None, snapshot, condition).await?;
            return Ok(counted.values().sum());
        };
        if all && let Some(rows) = files.rows() {
            return Ok(rows + snapshot.hot.iter().map(|batch| batch.num_rows() as u64).sum::<u64>());
        }
        let question = condition.question(schema, snapshot.oldest);
        let known = self.counts.remembered.get(&question).unwrap_or_default();
        let key = |name: &str| std::hash::BuildHasher::hash_one(&self.counts.names, name);
        let unknown = Arc::new(files.only(|name| !known.contains_key(&key(name))));
        let counted = self.count_files(schema, Some(&unknown), snapshot, condition).await?;
        let fresh = unknown.names().map(|(number, name)| {
            let rows = counted.get(&Some(number)).copied().unwrap_or(0);
            (key(name), rows)
        });
        let fresh: HashMap<u64, u64> = fresh.collect();
        let hot = counted.get(&None).copied().unwrap_or(0);
        // Files that are gone are forgotten.
        let live = files.names().filter_map(|(_, name)| {
            let key = key(name);
            fresh.get(&key).or_else(|| known.get(&key)).map(|rows| (key, *rows))
        });
        let live: HashMap<u64, u64> = live.collect();
        let total = live.values().sum::<u64>() + hot;
        if !fresh.is_empty() {
            self.counts.remembered.insert(question, Arc::new(live));
        }
        Ok(total)
    }

    /// Rows by the number of their file; those of the log have none.
    async fn count_files(
        self: &Arc<Self>,
        schema: &StreamSchema,
        files: Option<&Arc<highwater_lake::LakeFiles>>,
        snapshot: &StreamSnapshot,
        condition: &Condition<'_>,
    ) -> Result<HashMap<Option<i32>, u64>, SqlError> {
        let rows = StreamRows {
            lake: files.map(|files| files.relation()),
            index: None,
            oldest: snapshot.oldest,
            hot: snapshot.hot.clone(),
            day: condition.day,
            beside: Some(FILE_COLUMN),
            lens: condition.lens.clone(),
        };
        let relation = stream_relation(&self.engine, schema, rows)?;
        let sql = format!("SELECT {FILE_COLUMN}, count(*) FROM rows{} GROUP BY 1", condition.sql);
        let (node, values) = (self.clone(), condition.values.to_vec());
        let fixed = Arc::new(Fixed::new("rows", relation));
        let result = self
            .ask(async move { adhoc::query(&node.engine, fixed, &sql, values, QUERY_LIMITS).await })
            .await?;
        let mut counted = HashMap::new();
        for batch in &result.batches {
            let numbers = batch.column(0).as_primitive::<Int32Type>();
            let counts = batch.column(1).as_primitive::<Int64Type>();
            counted.extend(numbers.iter().zip(counts.values()).map(|(number, rows)| (number, *rows as u64)));
        }
        if result.truncated {
            return Err(SqlError::new("internal", "the lake has too many files to be counted"));
        }
        Ok(counted)
    }
}
