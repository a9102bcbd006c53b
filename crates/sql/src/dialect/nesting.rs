//! How deeply a statement may be nested. Where `sqlparser` fails behind some words, it goes back and reads what follows in another way,
//! and so on at each level: forty `CAST(` in a row would be read 2^40 times before the error is known. Its own limit of
//! recursion is no help, because it bounds the depth and not the work; and whoever would count the work while it reads needs a
//! dialect that repeats the hundred answers of the generic one.

use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use super::error::SqlError;
use super::parser::Words;

/// Words that are read at most, all ways of reading them counted.
const MOST_READ: u64 = 1 << 20;

/// What is in brackets behind these words may be read twice.
const READ_TWICE: [&str; 37] = [
    "ARRAY",
    "BOX",
    "CASE",
    "CAST",
    "CEIL",
    "CIRCLE",
    "CONVERT",
    "EXISTS",
    "EXTRACT",
    "FLOOR",
    "FROM",
    "INTERVAL",
    "JOIN",
    "LAMBDA",
    "LATERAL",
    "LINE",
    "LSEG",
    "MAP",
    "MATCH",
    "NOT",
    "OVERLAY",
    "PATH",
    "POINT",
    "POLYGON",
    "POSITION",
    "PRIOR",
    "SAFE_CAST",
    "STRUCT",
    "SUBSTR",
    "SUBSTRING",
    "TABLE",
    "TRIM",
    "TRY_CAST",
    "TRY_CONVERT",
    "UNNEST",
    "USING",
    "VALUES",
];

/// Refuses a statement that could take long to be understood.
pub(super) fn check(words: &[TokenWithSpan]) -> Result<(), SqlError> {
    // How often each bracket that is open doubles the work.
    let mut open: Vec<u32> = Vec::new();
    let mut before = &Token::EOF;
    for word in words {
        match &word.token {
            Token::LParen | Token::LBracket | Token::LBrace => {
                let twice = READ_TWICE.iter().any(|twice| Words::is(before, twice));
                // What it is behind IN is tried, too.
                let again = Words::is(before, "POSITION");
                open.push(u32::from(twice) + u32::from(again));
                let doubled: u32 = open.iter().sum();
                let levels = open.iter().filter(|doubles| **doubles > 0).count();
                let read = 1u64.checked_shl(doubled).and_then(|times| times.checked_mul(words.len() as u64));
                if read.is_none_or(|read| read > MOST_READ) {
                    let detail = format!(
                        "the statement is nested too deeply: \"{before}\" is within {} others like it",
                        levels - 1
                    );
                    return Err(SqlError::new("invalid_sql", detail)
                        .hint("name the inner part in WITH, or make it a statement of its own")
                        .at(word.span));
                }
            }
            Token::RParen | Token::RBracket | Token::RBrace => {
                open.pop();
            }
            _ => {}
        }
        before = &word.token;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::dialect::{parse_query, parse_script};

    #[test]
    fn no_text_takes_long_to_be_refused() {
        // Deep nesting needs a deep stack, as the server gives to its threads.
        let worker = std::thread::Builder::new().stack_size(16 << 20).spawn(refuse_in_time);
        worker.unwrap().join().unwrap();
    }

    fn refuse_in_time() {
        let combined = [
            "(SELECT a FROM (",
            "CAST(f(",
            "CAST(g(ln(",
            "(SELECT CAST(",
            "(SELECT - a, CAST(c(CAST(d(ln(CAST(g(",
            "NOT (a AND EXISTS (",
            "CASE (",
            "CASE WHEN (",
            "ARRAY[",
            "a FROM b JOIN (",
            "a FROM b, (",
            "a IN (SELECT b FROM c WHERE ",
            "{a: ",
            "f(a => (",
            "(",
            "f(",
            "[",
            "x::STRUCT<a ",
            "(a, ",
            "INTERVAL (",
            "(x) -> (",
            "- (",
            "a BETWEEN (",
            "a FROM ((",
            "a FROM UNNEST(",
            "MAP {",
        ];
        let alone = READ_TWICE.map(|word| format!("{word}("));
        for opening in combined.map(str::to_owned).into_iter().chain(alone) {
            for levels in [6, 10, 14, 18, 24, 48] {
                for behind in [" x y z", " x)", ""] {
                    let text = format!("SELECT {}{behind}", opening.repeat(levels));
                    let started = Instant::now();
                    drop(parse_query(&text));
                    drop(parse_script(&format!("CREATE STREAM s AS {text}")));
                    let took = started.elapsed();
                    assert!(took < Duration::from_secs(5), "{opening} {levels} times took {took:?}");
                }
            }
        }
    }

    #[test]
    fn what_people_nest_is_read() {
        for (opening, within, closing) in [
            ("CAST(", "1", " AS BIGINT)"),
            ("coalesce(CAST(", "1", " AS BIGINT), 0)"),
            ("(SELECT n FROM ", "(SELECT 1 AS n)", ")"),
            ("NOT (", "true", ")"),
        ] {
            let deep = format!("{}{within}{}", opening.repeat(8), closing.repeat(8));
            let text = if opening.starts_with("(SELECT") {
                format!("SELECT n FROM {deep}")
            } else {
                format!("SELECT {deep}")
            };
            parse_query(&text).unwrap();
        }
        let error =
            parse_query(&format!("SELECT {}1{}", "CAST(".repeat(40), " AS INT)".repeat(40))).unwrap_err();
        assert!(error.message.contains("\"CAST\" is within"), "{}", error.message);
        assert!(error.at.is_some() && error.hint.is_some());
    }
}
