//! Queries that are asked once: ad-hoc SQL and endpoints.
//!
//! They read streams (lake below its mark, log above it, so every event once), tables, reference tables
//! and system streams. They are read-only and limited in time, rows and memory. What is SENSITIVE is
//! masked inside the plan, so no projection, filter or sort can tell what a mask hides.

mod behind;
mod branches;
mod budget;
mod decrypt;
mod endpoint;
mod file_order;
mod held;
mod index;
mod indexed;
mod keyed;
mod late_materialization;
mod lens;
mod live;
mod page;
mod quick;
mod relation;
mod repeated;
mod shared;
mod window;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::ArrayRef;
use arrow::compute::cast;
use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, MemoryCatalogProvider, SchemaProvider, TableProvider};
use datafusion::common::{DataFusionError, ScalarValue};
use datafusion::execution::{SendableRecordBatchStream, SessionState, SessionStateBuilder};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::{SQLOptions, SessionContext};
use datafusion::sql::parser::Statement as DFStatement;
use futures::StreamExt;

use self::branches::SortBranches;
use self::file_order::KeepFileOrder;
use self::late_materialization::PickFewRows;
use self::window::AccountForWindows;
use crate::dialect::{SqlError, check_statement, parse_query, parse_script};
use crate::functions::{EARLIEST_BY_OFFSET, LATEST_BY_OFFSET, LOOKING_UP, SCORE, weight};
use crate::plan::as_statement;
use crate::session::Engine;

pub use endpoint::{Posed, check_endpoint, endpoint_values};
pub use index::{Found, RowIndex};
pub use lens::Lens;
pub use live::{LiveQuery, followed};
pub use page::{Page, PageResult, Position};
pub use quick::Searchable;
pub use relation::{Day, StreamRows, check_rule, rows_relation, stream_relation, table_relation};

/// What can be read by name.
#[async_trait]
pub trait Relations: Send + Sync + fmt::Debug {
    /// The names, for messages.
    fn names(&self) -> Vec<String>;
    /// Whether LOOKUP, IN_REFERENCE and SCORE may be asked: they look into every reference table and model.
    fn may_look_up(&self) -> bool {
        true
    }
    /// A relation as of now; `None` when there is none of that name.
    async fn relation(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, SqlError>;
    /// A stream that an index knows, as of now; `None` when there is none, or it is not all that is needed.
    async fn searchable(&self, _name: &str) -> Result<Option<Searchable>, SqlError> {
        Ok(None)
    }
}

/// What a query may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Wall-clock time.
    pub time: Duration,
    /// Rows of the result; what is beyond is cut and the answer says so.
    pub rows: usize,
    /// Bytes of the result in memory; beyond it is an error.
    pub bytes: usize,
}

/// The answer to a query.
#[derive(Debug)]
pub struct QueryResult {
    /// Its columns.
    pub schema: SchemaRef,
    /// Its rows.
    pub batches: Vec<RecordBatch>,
    /// There were more rows than the limit.
    pub truncated: bool,
}

impl QueryResult {
    /// The names of its columns.
    pub fn names(&self) -> Vec<String> {
        self.schema.fields().iter().map(|field| field.name().clone()).collect()
    }

    /// Number of rows.
    pub fn row_count(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }
}

/// Asks a question in SQL. Parameters are `$name`.
pub async fn query(
    engine: &Engine,
    relations: Arc<dyn Relations>,
    sql: &str,
    parameters: Vec<(String, ScalarValue)>,
    limits: Limits,
) -> Result<QueryResult, SqlError> {
    let (names, may_look_up) = (relations.names(), relations.may_look_up());
    let context = context(engine, relations)?;
    withhold(&context, may_look_up);
    // Rows of a question come in no order that these could go by.
    for name in [EARLIEST_BY_OFFSET, LATEST_BY_OFFSET] {
        context.deregister_udaf(name);
    }
    // EXPLAIN and DESCRIBE are DataFusion's; questions are parsed here, so that errors point at the word.
    let first = sql.split_whitespace().next().unwrap_or_default();
    if first.is_empty() {
        return Err(SqlError::new("invalid_sql", "the query is empty"));
    }
    let statement =
        if ["explain", "describe", "desc", "show"].iter().any(|word| first.eq_ignore_ascii_case(word)) {
            check_statement(sql)?;
            context.state().sql_to_statement(sql, &datafusion::config::Dialect::Generic)?
        } else if ["select", "with", "values", "(", "from"]
            .iter()
            .any(|word| first.to_ascii_lowercase().starts_with(word))
        {
            as_statement(parse_query(sql)?)
        } else {
            check_statement(sql)?;
            // What is no statement at all, of ours or of SQL, is said to be that.
            if parse_script(sql).is_err() {
                context.state().sql_to_statement(sql, &datafusion::config::Dialect::Generic)?;
            }
            return Err(read_only());
        };
    run(&context, statement, parameters, limits).await.map_err(|error| with_nearest(error, &names))
}

/// Takes the functions from a session that would tell a reader more than relations do.
fn withhold(context: &SessionContext, may_look_up: bool) {
    // A model has learnt from rows of all tenants.
    for name in LOOKING_UP.iter().chain([&SCORE]).filter(|_| !may_look_up) {
        context.deregister_udf(name);
    }
    // With it a reader could look tokens up by trying all values; declarations may use it.
    context.deregister_udf("tokenize");
}

fn read_only() -> SqlError {
    SqlError::new("read_only", "this call reads only: SELECT, WITH, VALUES, EXPLAIN, DESCRIBE")
        .hint("to declare something use `highwater apply` or POST /api/v1/statements")
}

/// Adds the nearest known name to an error about an unknown relation.
fn with_nearest(error: SqlError, names: &[String]) -> SqlError {
    let by_offset =
        |name: &&&str| error.message.to_ascii_lowercase().starts_with(&format!("invalid function '{name}'"));
    if let Some(name) = [EARLIEST_BY_OFFSET, LATEST_BY_OFFSET].iter().find(by_offset) {
        let message = format!(
            "{} is for declared tables: rows of a question come in no order",
            name.to_ascii_uppercase()
        );
        let order = if *name == EARLIEST_BY_OFFSET { "" } else { " DESC" };
        return SqlError {
            code: "unsupported_sql",
            message,
            hint: Some(format!("write first_value(x ORDER BY _offset{order})")),
            ..error
        };
    }
    let Some(missing) = error.message.strip_prefix("table '").and_then(|rest| rest.split('\'').next()) else {
        return error;
    };
    let bare = missing.rsplit('.').next().unwrap_or(missing).to_owned();
    let mut error =
        SqlError { code: "relation_not_found", message: format!("no stream or table \"{bare}\""), ..error };
    error.hint = highwater_event::name::nearest(&bare, names.iter().map(String::as_str))
        .map(|near| format!("did you mean \"{near}\"?"));
    error
}

/// A session whose relations are resolved when a query names them.
fn context(engine: &Engine, relations: Arc<dyn Relations>) -> Result<SessionContext, SqlError> {
    let state = engine.state();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let config = state
        .config()
        .clone()
        .with_target_partitions(cores)
        // Each plan is executed once, so what a run learns can stay in it.
        .set_bool("datafusion.optimizer.enable_dynamic_filter_pushdown", true);
    let state = SessionStateBuilder::new_from_existing(state)
        .with_config(config)
        .with_physical_optimizer_rules(physical_rules())
        .with_catalog_list(Arc::new(datafusion::catalog::MemoryCatalogProviderList::new()))
        .build();
    let context = SessionContext::new_with_state(state);
    let catalog = MemoryCatalogProvider::new();
    catalog.register_schema("public", Arc::new(Named(relations)))?;
    context.register_catalog("datafusion", Arc::new(catalog));
    Ok(context)
}

/// DataFusion's rules and our own: scans are told to pick rows before they are told which; branches are sorted after
/// sorts and limits have been chosen, before sorts tell the scans below them what they will not need; scans that are in
/// order are told to stay so, and windows are found, when all is chosen.
fn physical_rules() -> Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>> {
    let mut rules = PhysicalOptimizer::new().rules;
    let mut before = |name: &str, rule: Arc<dyn PhysicalOptimizerRule + Send + Sync>| {
        let at = rules.iter().rposition(|known| known.name() == name).unwrap_or(rules.len());
        rules.insert(at, rule);
    };
    before("FilterPushdown", Arc::new(PickFewRows));
    before("FilterPushdown(Post)", Arc::new(SortBranches));
    before("SanityCheckPlan", Arc::new(KeepFileOrder));
    before("SanityCheckPlan", Arc::new(AccountForWindows));
    rules
}

/// Plans a read-only statement.
async fn plan(
    context: &SessionContext,
    statement: DFStatement,
    parameters: Vec<(String, ScalarValue)>,
) -> Result<LogicalPlan, SqlError> {
    repeated::check(&statement)?;
    let plan = context.state().statement_to_plan(statement).await?;
    let options = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    options.verify_plan(&plan).map_err(|_| read_only())?;
    Ok(if parameters.is_empty() { plan } else { plan.with_param_values(parameters)? })
}

async fn run(
    context: &SessionContext,
    statement: DFStatement,
    parameters: Vec<(String, ScalarValue)>,
    limits: Limits,
) -> Result<QueryResult, SqlError> {
    let answer = async {
        let Rows { schema, mut stream } = open(context, statement, parameters).await?;
        let mut batches = Vec::new();
        let (mut rows, mut bytes) = (0usize, 0usize);
        while let Some(batch) = stream.next().await {
            let batch = batch?;
            // Before views become texts: they may all be of the same long one.
            bytes += batch.columns().iter().map(|column| weight(column.as_ref())).sum::<usize>();
            if bytes > limits.bytes {
                return Err(SqlError::new(
                    "result_too_large",
                    format!("the result is larger than {} MiB", limits.bytes >> 20),
                )
                .hint("select fewer columns or rows"));
            }
            let batch = plain(batch, &schema)?;
            if rows + batch.num_rows() > limits.rows {
                batches.push(batch.slice(0, limits.rows - rows));
                return Ok(QueryResult { schema, batches, truncated: true });
            }
            rows += batch.num_rows();
            batches.push(batch);
        }
        Ok(QueryResult { schema, batches, truncated: false })
    };
    match tokio::time::timeout(limits.time, answer).await {
        Ok(result) => result,
        Err(_) => Err(SqlError::new(
            "query_timeout",
            format!("the query took longer than {} s and was stopped", limits.time.as_secs()),
        )
        .hint("read fewer rows, for example by a condition on _event_time")),
    }
}

/// The rows of a question as they come.
pub struct Rows {
    /// Their columns.
    pub schema: SchemaRef,
    stream: SendableRecordBatchStream,
}

impl Rows {
    /// The next ones.
    pub async fn next(&mut self) -> Option<Result<RecordBatch, SqlError>> {
        let batch = self.stream.next().await?;
        Some(batch.map_err(SqlError::from).and_then(|batch| plain(batch, &self.schema)))
    }
}

async fn open(
    context: &SessionContext,
    statement: DFStatement,
    parameters: Vec<(String, ScalarValue)>,
) -> Result<Rows, SqlError> {
    let plan = plan(context, statement, parameters).await?;
    let physical = physical(&context.state(), &plan).await?;
    let schema = plain_schema(&physical.schema());
    Ok(Rows { schema, stream: execute_stream(physical, context.task_ctx())? })
}

/// Plans what is executed, with what its functions make on an account.
async fn physical(state: &SessionState, plan: &LogicalPlan) -> Result<Arc<dyn ExecutionPlan>, SqlError> {
    let optimized = state.optimize(plan)?;
    keyed::hold_still(&optimized)?;
    let metered = budget::metered(optimized, &Arc::default())?;
    let shared = shared::shared(metered)?;
    Ok(state.query_planner().create_physical_plan(&shared, state).await?)
}

/// Columns of an answer: texts are [`DataType::Utf8`], whatever they are inside the plan.
fn plain_schema(schema: &SchemaRef) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| match field.data_type() {
        DataType::Utf8View => Arc::new(field.as_ref().clone().with_data_type(DataType::Utf8)),
        _ => field.clone(),
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

fn plain(batch: RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, SqlError> {
    let is_plain = |(column, field): (&ArrayRef, &FieldRef)| column.data_type() == field.data_type();
    if batch.columns().iter().zip(schema.fields()).all(is_plain) {
        return Ok(batch);
    }
    let columns = batch.columns().iter().zip(schema.fields()).map(|(column, field)| {
        if column.data_type() == field.data_type() {
            Ok(column.clone())
        } else {
            cast(column, field.data_type())
        }
    });
    let columns = columns.collect::<Result<Vec<_>, _>>().map_err(DataFusionError::from)?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let plain = RecordBatch::try_new_with_options(schema.clone(), columns, &options);
    Ok(plain.map_err(DataFusionError::from)?)
}

#[derive(Debug)]
struct Named(Arc<dyn Relations>);

#[async_trait]
impl SchemaProvider for Named {
    fn table_names(&self) -> Vec<String> {
        self.0.names()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        self.0.relation(name).await.map_err(|error| DataFusionError::External(Box::new(error)))
    }

    fn table_exist(&self, name: &str) -> bool {
        let bare = name.split('$').next().unwrap_or(name);
        self.0.names().iter().any(|known| known.eq_ignore_ascii_case(bare))
    }
}
