//! What must hold for any text that is taken for SQL: parsing and planning it never panics, and every
//! error points into the text. Shared by the mutation test and the coverage-guided one.

use highwater_sql::dialect::{parse_live_query, parse_query, parse_script};
use highwater_sql::{Catalog, Engine, SqlError};
use tokio::runtime::Runtime;

pub const PACKS: [&str; 2] = [
    include_str!("../../../../packs/nexmark/nexmark.sql"),
    include_str!("../../../../packs/transactions/pack.sql"),
];

/// A catalog in which the streams of Nexmark are declared.
pub struct Parsing {
    engine: Engine,
    catalog: Catalog,
    runtime: Runtime,
}

impl Parsing {
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let engine = Engine::new([7; 32], 64 << 20).unwrap();
        let mut catalog = Catalog::default();
        runtime.block_on(async {
            for declared in parse_script(PACKS[0]).unwrap() {
                let planned = catalog.plan(&engine, declared, None).await.unwrap();
                catalog.insert(&engine, planned);
            }
        });
        Self { engine, catalog, runtime }
    }

    /// Reads a text in every way; answers whether it is a script, and how many of its statements could be
    /// planned when that is asked for, too.
    pub fn check(&self, text: &str, plan: bool) -> (bool, usize) {
        let points = |error: &SqlError| {
            assert!(!error.message.is_empty(), "{text}");
            error.render(text);
        };
        parse_live_query(text).map_err(|error| points(&error)).ok();
        parse_query(text).map_err(|error| points(&error)).ok();
        let script = match parse_script(text) {
            Ok(script) => script,
            Err(error) => {
                points(&error);
                return (false, 0);
            }
        };
        let mut planned = 0;
        for declared in script.into_iter().filter(|_| plan) {
            match self.runtime.block_on(self.catalog.plan(&self.engine, declared, None)) {
                Ok(_) => planned += 1,
                Err(error) => {
                    assert_ne!(error.code, "internal", "{text}\n{}", error.message);
                    points(&error);
                }
            }
        }
        (true, planned)
    }
}
