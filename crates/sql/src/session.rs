//! DataFusion sessions as the engine uses them.

use std::sync::Arc;

use datafusion::catalog::TableProvider;
use datafusion::common::TableReference;
use datafusion::execution::disk_manager::DiskManagerBuilder;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::{FunctionRegistry, SessionState, SessionStateBuilder};
use datafusion::prelude::SessionConfig;
use highwater_privacy::Vault;

use crate::dialect::SqlError;
use crate::functions;
use crate::models::Models;
use crate::reference::References;
use crate::spill::Spills;

/// How much more than they may hold in memory questions may put aside on disk.
const SPILL_FACTOR: u64 = 16;

/// Makes sessions that know the language's functions.
pub struct Engine {
    template: SessionState,
    references: Arc<References>,
    models: Arc<Models>,
    vault: Option<Arc<Vault>>,
}

impl Engine {
    /// `token_key` is the secret behind TOKENIZE; `query_memory` bounds what all ad-hoc queries together
    /// may hold, in bytes.
    pub fn new(token_key: [u8; 32], query_memory: usize) -> Result<Self, SqlError> {
        let references = Arc::new(References::default());
        let spills = Spills::new(query_memory as u64 * SPILL_FACTOR);
        let runtime = runtime(query_memory, Arc::new(spills))?;
        let models = Arc::new(Models::default());
        let template = session(runtime, (&references, &models), token_key)?;
        Ok(Self { template, references, models, vault: None })
    }

    /// Reads what stands encrypted in the lake.
    #[must_use]
    pub fn with_vault(self, vault: Arc<Vault>) -> Self {
        Self { vault: Some(vault), ..self }
    }

    /// The keys of what stands encrypted.
    pub fn vault(&self) -> Option<&Arc<Vault>> {
        self.vault.as_ref()
    }

    /// The reference tables that plans look into.
    pub fn references(&self) -> &Arc<References> {
        &self.references
    }

    /// The trained models that plans ask.
    pub fn models(&self) -> &Arc<Models> {
        &self.models
    }

    /// What sessions are made of.
    pub(crate) fn template(&self) -> &SessionState {
        &self.template
    }

    /// A session without relations.
    pub fn state(&self) -> SessionState {
        self.template.clone()
    }

    /// A session that knows some relations.
    pub fn state_with(
        &self,
        relations: impl IntoIterator<Item = (String, Arc<dyn TableProvider>)>,
    ) -> Result<SessionState, SqlError> {
        let state = SessionStateBuilder::new_from_existing(self.template.clone())
            .with_catalog_list(Arc::new(datafusion::catalog::MemoryCatalogProviderList::new()))
            .build();
        let context = datafusion::prelude::SessionContext::new_with_state(state);
        let catalog = Arc::new(datafusion::catalog::MemoryCatalogProvider::new());
        let schema = Arc::new(datafusion::catalog::MemorySchemaProvider::new());
        datafusion::catalog::CatalogProvider::register_schema(catalog.as_ref(), "public", schema)?;
        context.register_catalog("datafusion", catalog);
        for (name, provider) in relations {
            context.register_table(TableReference::bare(name), provider)?;
        }
        Ok(context.state())
    }
}

/// What all queries share: memory, and where they put aside what it does not hold.
pub(crate) fn runtime(memory: usize, spills: Arc<Spills>) -> Result<Arc<RuntimeEnv>, SqlError> {
    Ok(RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(FairSpillPool::new(memory)))
        .with_disk_manager_builder(DiskManagerBuilder::default().with_temp_file_factory(spills))
        .build_arc()?)
}

fn session(
    runtime: Arc<RuntimeEnv>,
    (references, models): (&Arc<References>, &Arc<Models>),
    token_key: [u8; 32],
) -> Result<SessionState, SqlError> {
    let mut config = SessionConfig::new()
        // One partition keeps rows in order and plans small; parallelism comes from many views.
        .with_target_partitions(1)
        .with_round_robin_repartition(false)
        .with_information_schema(false)
        .with_collect_statistics(false)
        // Plans are executed again and again; a filter that a past run left behind would be wrong.
        .set_bool("datafusion.optimizer.enable_dynamic_filter_pushdown", false)
        // This rule moves struct accesses below a union by position and mixes its branches up: columns
        // change places and masks are lost. The scenarios of `server` hold it off.
        .set_bool("datafusion.optimizer.enable_leaf_expression_pushdown", false);
    let options = config.options_mut();
    options.sql_parser.map_string_types_to_utf8view = false;
    options.sql_parser.collect_spans = true;
    options.sql_parser.parse_float_as_decimal = true;
    options.execution.parquet.schema_force_view_types = false;
    options.execution.time_zone = Some("UTC".into());
    let mut state = SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(runtime)
        .with_default_features()
        .build();
    for function in functions::scalar_functions(references, models, token_key) {
        state.register_udf(function)?;
    }
    let known = state.scalar_functions().clone();
    for function in functions::bounded(|name| known.get(name).cloned()) {
        state.register_udf(function)?;
    }
    // Their third argument is a number of entries that are allocated at once, whatever it is.
    for name in ["approx_percentile_cont", "approx_percentile_cont_with_weight"] {
        state.deregister_udaf(name)?;
    }
    let known = state.aggregate_functions().clone();
    for function in functions::aggregate_functions(|name| known.get(name).cloned()) {
        state.register_udaf(function)?;
    }
    state.register_function_rewrite(Arc::new(functions::CheckedArithmetic::default()))?;
    Ok(state)
}
