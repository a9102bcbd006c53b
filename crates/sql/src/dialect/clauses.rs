//! Clauses that standard SQL does not have: WINDOW, WITHIN, EMIT. They are cut out of a query before
//! `sqlparser` sees it, with the places of all words kept.

use datafusion::sql::sqlparser::ast::Query;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use super::error::SqlError;
use super::parser::{Words, parser};
use super::statement::{Window, WindowKind, Within};

/// The grace period of a window that does not say one: ksqlDB's.
const DEFAULT_GRACE: i64 = 24 * 3_600_000_000;

/// Windows that one row may belong to.
const MAX_OVERLAP: i64 = 1_000;

/// When results are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emit {
    /// Nothing was said.
    Unsaid,
    /// As they change.
    Changes,
    /// When they can't change any more.
    Final,
}

/// A query and what was cut out of it.
pub(super) struct Clauses {
    pub query: Box<Query>,
    /// The WINDOW clause and the word that starts it.
    pub window: Option<(Window, TokenWithSpan)>,
    pub within: Option<Within>,
    pub emit: Emit,
}

/// `90 days`, `5 MINUTES`: microseconds above 0.
pub fn parse_duration(text: &str) -> Option<i64> {
    let text = text.trim();
    let at = text.find(|c: char| !c.is_ascii_digit())?;
    let count: i64 = text[..at].parse().ok()?;
    let micros = unit_micros(text[at..].trim())?;
    count.checked_mul(micros).filter(|micros| *micros > 0)
}

fn unit_micros(unit: &str) -> Option<i64> {
    Some(match unit.to_ascii_uppercase().as_str() {
        "MILLISECOND" | "MILLISECONDS" | "MS" => 1_000,
        "SECOND" | "SECONDS" | "SEC" | "S" => 1_000_000,
        "MINUTE" | "MINUTES" | "MIN" | "M" => 60_000_000,
        "HOUR" | "HOURS" | "H" => 3_600_000_000,
        "DAY" | "DAYS" | "D" => 86_400_000_000,
        "WEEK" | "WEEKS" | "W" => 7 * 86_400_000_000,
        "YEAR" | "YEARS" => 365 * 86_400_000_000,
        _ => return None,
    })
}

/// Cuts `EMIT CHANGES` or `EMIT FINAL` off the end of a query.
pub(super) fn cut_emit(tokens: &mut Vec<TokenWithSpan>) -> Result<Emit, SqlError> {
    while tokens.last().is_some_and(|token| matches!(token.token, Token::EOF | Token::SemiColon)) {
        tokens.pop();
    }
    let Some(at) = tokens.len().checked_sub(2).filter(|at| Words::is(&tokens[*at].token, "EMIT")) else {
        return Ok(Emit::Unsaid);
    };
    let emit = match &tokens[at + 1].token {
        word if Words::is(word, "CHANGES") => Emit::Changes,
        word if Words::is(word, "FINAL") => Emit::Final,
        other => {
            return Err(SqlError::new(
                "invalid_sql",
                format!("expected EMIT CHANGES or EMIT FINAL, found \"{other}\""),
            )
            .at(tokens[at + 1].span));
        }
    };
    tokens.truncate(at);
    Ok(emit)
}

impl Words {
    /// The query that makes up the rest of the statement, and the clauses that are ours.
    pub(super) fn query(&mut self, tokens: &[TokenWithSpan]) -> Result<Clauses, SqlError> {
        let mut rest = tokens[self.parser.index().min(tokens.len())..].to_vec();
        let emit = cut_emit(&mut rest)?;
        let mut window = None;
        let mut within = None;
        if let Some(at) = within_clause(&rest) {
            let mut clause = Words { parser: parser(rest[at + 1..].to_vec()) };
            within = Some(clause.within()?);
            let taken = clause.parser.index();
            rest.drain(at..at + 1 + taken);
        }
        if let Some(at) = window_clause(&rest) {
            let word = rest[at].clone();
            let mut clause = Words { parser: parser(rest[at + 1..].to_vec()) };
            let parsed = clause.window()?;
            let taken = clause.parser.index();
            rest.drain(at..at + 1 + taken);
            window = Some((parsed, word));
        }
        let mut inner = Words { parser: parser(rest) };
        let query = inner.inner(Parser::parse_query)?;
        inner.end()?;
        Ok(Clauses { query, window, within, emit })
    }

    /// `HOPPING (SIZE n unit, ADVANCE BY n unit)`, `TUMBLING (SIZE n unit)` or `SESSION (n unit)`, each
    /// with `RETENTION n unit` and `GRACE PERIOD n unit`.
    fn window(&mut self) -> Result<Window, SqlError> {
        let token = self.parser.peek_token();
        let kind = if self.take("HOPPING") {
            self.symbol(&Token::LParen)?;
            self.expect("SIZE")?;
            let size = self.some_time()?;
            self.symbol(&Token::Comma)?;
            self.expect("ADVANCE")?;
            self.expect("BY")?;
            let token = self.parser.peek_token();
            let advance = self.some_time()?;
            if size / advance > MAX_OVERLAP {
                return Err(SqlError::unsupported(format!(
                    "a row would belong to {} windows; at most {MAX_OVERLAP} may overlap",
                    size / advance
                ))
                .at(token.span)
                .hint("choose a larger ADVANCE BY"));
            }
            if advance > size || size % advance != 0 {
                return Err(SqlError::unsupported("the window's SIZE must be a multiple of ADVANCE BY")
                    .at(token.span));
            }
            WindowKind::Hopping { size, advance }
        } else if self.take("TUMBLING") {
            self.symbol(&Token::LParen)?;
            self.expect("SIZE")?;
            let size = self.some_time()?;
            WindowKind::Hopping { size, advance: size }
        } else if self.take("SESSION") {
            self.symbol(&Token::LParen)?;
            WindowKind::Session { gap: self.some_time()? }
        } else {
            return Err(SqlError::unsupported(format!("WINDOW {token} is not supported"))
                .at(token.span)
                .hint("supported: TUMBLING (SIZE …), HOPPING (SIZE …, ADVANCE BY …), SESSION (gap), each with RETENTION … and GRACE PERIOD …"));
        };
        let mut window = Window { kind, grace: DEFAULT_GRACE, retention: None };
        let mut retained_at = None;
        while self.parser.consume_token(&Token::Comma) {
            let token = self.parser.peek_token();
            if self.take("RETENTION") {
                window.retention = Some(self.duration()?);
                retained_at = Some(token);
            } else {
                self.expect("GRACE")?;
                self.expect("PERIOD")?;
                window.grace = self.duration()?;
            }
        }
        self.symbol(&Token::RParen)?;
        let needed = window.longest().saturating_add(window.grace);
        if let (Some(retention), Some(token)) = (window.retention, retained_at)
            && retention < needed
        {
            return Err(SqlError::new(
                "invalid_option",
                "RETENTION must not be shorter than the window and its GRACE PERIOD together, or rows that are in time would find their window gone",
            )
            .at(token.span));
        }
        Ok(window)
    }

    /// `n unit` or `(n unit, n unit)` for before and after, then perhaps `GRACE PERIOD n unit`.
    fn within(&mut self) -> Result<Within, SqlError> {
        let (before, after) = if self.parser.consume_token(&Token::LParen) {
            let before = self.duration()?;
            self.symbol(&Token::Comma)?;
            let after = self.duration()?;
            self.symbol(&Token::RParen)?;
            (before, after)
        } else {
            let both = self.duration()?;
            (both, both)
        };
        let mut grace = DEFAULT_GRACE;
        if self.take("GRACE") {
            self.expect("PERIOD")?;
            grace = self.duration()?;
        }
        Ok(Within { before, after, grace })
    }

    /// A duration that is not zero.
    pub(super) fn some_time(&mut self) -> Result<i64, SqlError> {
        let token = self.parser.peek_token();
        match self.duration()? {
            0 => Err(SqlError::new("invalid_sql", "the duration must be longer than zero").at(token.span)),
            micros => Ok(micros),
        }
    }

    fn duration(&mut self) -> Result<i64, SqlError> {
        let token = self.parser.peek_token();
        let count = self.inner(Parser::parse_literal_uint)?;
        let unit = self.parser.next_token();
        let micros = match &unit.token {
            Token::Word(word) => unit_micros(&word.value),
            _ => None,
        };
        let Some(micros) = micros else {
            return Err(SqlError::new(
                "invalid_sql",
                "expected MILLISECONDS, SECONDS, MINUTES, HOURS, DAYS, WEEKS or YEARS",
            )
            .at(unit.span));
        };
        let duration = i64::try_from(count).ok().and_then(|count| count.checked_mul(micros));
        duration
            .filter(|duration| *duration > 0 || token.token == Token::Number("0".into(), false))
            .ok_or_else(|| SqlError::new("invalid_sql", "the duration is out of range").at(token.span))
    }
}

/// Where a WINDOW clause of ours starts. `WINDOW name AS (…)` of standard SQL is left alone.
fn window_clause(tokens: &[TokenWithSpan]) -> Option<usize> {
    let mut depth = 0i32;
    for (at, token) in tokens.iter().enumerate() {
        match &token.token {
            Token::LParen => depth += 1,
            Token::RParen => depth -= 1,
            word if depth == 0 && Words::is(word, "WINDOW") => {
                let named = tokens.get(at + 2).is_some_and(|next| Words::is(&next.token, "AS"));
                if !named {
                    return Some(at);
                }
            }
            _ => {}
        }
    }
    None
}

/// Where a WITHIN clause starts: behind the right side of a JOIN.
fn within_clause(tokens: &[TokenWithSpan]) -> Option<usize> {
    let mut joined = false;
    for (at, token) in tokens.iter().enumerate() {
        joined |= Words::is(&token.token, "JOIN");
        let duration =
            matches!(tokens.get(at + 1).map(|next| &next.token), Some(Token::Number(..) | Token::LParen));
        if joined && duration && Words::is(&token.token, "WITHIN") {
            return Some(at);
        }
    }
    None
}
