//! Statements that are almost right: parsing and planning them never panics, and every error points into
//! the text. `HIGHWATER_FUZZ` sets how many, `HIGHWATER_SEED` the first.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod parsing;

use highwater_event::SeededRandomness;
use highwater_sim::{mutate, setting};
use parsing::{PACKS, Parsing};

const MORE: &str = "ALTER STREAM s ADD COLUMN c MAP<TEXT, INT>, ADD d DECIMAL(10,2) SENSITIVE; ALTER STREAM s SET (retention = '9 days');
DROP STREAM IF EXISTS s; PAUSE s; RESUME s; CREATE OR REPLACE TABLE t AS SELECT k, topk(n, 3) FROM s WINDOW SESSION (5 MINUTES, RETENTION 9 DAYS, GRACE PERIOD 1 HOUR) GROUP BY k HAVING count(*) > 1 EMIT FINAL;
CREATE STREAM j AS SELECT a.x FROM a ASOF JOIN b MATCH_CONDITION (a.t >= b.t) ON a.k = b.k; SELECT a, b FROM s WHERE x > 1 EMIT CHANGES";

/// Statements of a script, so that most mutations leave the rest of one alone.
fn statements() -> Vec<String> {
    let scripts = PACKS.iter().copied().chain([MORE]);
    scripts
        .flat_map(|script| script.split(';'))
        .map(str::to_owned)
        .filter(|text| !text.trim().is_empty())
        .collect()
}

#[test]
fn statements_never_panic_and_errors_point_into_the_text() {
    let (seed, count) = (setting("HIGHWATER_SEED", 1), setting("HIGHWATER_FUZZ", 6_000));
    println!("seed {seed}, {count} statements");
    let chance = SeededRandomness::new(seed);
    let statements = statements();
    // Deep nesting needs a deep stack, as the server gives to its threads.
    let worker = std::thread::Builder::new().stack_size(16 << 20).spawn(move || {
        let parsing = Parsing::new();
        let (mut parsed, mut planned) = (0, 0);
        for number in 0..count {
            let mut bytes = statements[chance.below(statements.len() as u64) as usize].clone().into_bytes();
            mutate(&mut bytes, &chance);
            // Planning takes longer, so some of them are enough.
            let (is_script, statements) = parsing.check(&String::from_utf8_lossy(&bytes), number % 3 == 0);
            parsed += usize::from(is_script);
            planned += statements;
        }
        println!("{parsed} texts parsed, {planned} statements planned");
        assert!(parsed > 0 && planned > 0);
    });
    worker.unwrap().join().unwrap();
}
