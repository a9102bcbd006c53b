//! From text to statements.

use datafusion::sql::sqlparser::ast::Query;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer};
use highwater_event::StreamName;

use super::clauses::{Emit, cut_emit};
use super::error::{Place, SqlError, placed};
use super::nesting;
use super::statement::{Declared, Statement};

/// Tokens of one statement. A longer chain of operators would be nested as deeply as it is long, beyond
/// what a stack holds.
const MAX_TOKENS: usize = 5_000;

/// Parses one query.
pub fn parse_query(text: &str) -> Result<Box<Query>, SqlError> {
    match parse_live_query(text)? {
        (query, Emit::Unsaid) => Ok(query),
        _ => Err(SqlError::unsupported("EMIT makes a query that never ends")
            .hint("send it to /api/v1/subscribe, or leave EMIT out to get an answer as of now")),
    }
}

/// Parses one query that may end in EMIT CHANGES or EMIT FINAL.
pub fn parse_live_query(text: &str) -> Result<(Box<Query>, Emit), SqlError> {
    let mut words = significant(&tokenize(text)?);
    check_size(&words)?;
    let end = words.last().map(|word| word.span);
    let emit = cut_emit(&mut words)?;
    let mut inner = Words { parser: parser(words) };
    let query = inner.inner(|parser| parser.parse_query()).and_then(|query| {
        while inner.parser.consume_token(&Token::SemiColon) {}
        inner.end().map(|()| query)
    });
    let query = query.map_err(|error| match end {
        Some(end) if error.at.is_none() => error.at(end),
        _ => error,
    })?;
    Ok((query, emit))
}

/// Refuses a text that is too long or nested too deeply to be parsed safely.
pub fn check_statement(text: &str) -> Result<(), SqlError> {
    check_size(&significant(&tokenize(text)?))
}

fn check_size(words: &[TokenWithSpan]) -> Result<(), SqlError> {
    match words.get(MAX_TOKENS) {
        Some(word) => {
            Err(SqlError::new("statement_too_long", format!("a statement may have {MAX_TOKENS} words"))
                .at(word.span))
        }
        None => nesting::check(words),
    }
}

fn significant(tokens: &[TokenWithSpan]) -> Vec<TokenWithSpan> {
    tokens.iter().filter(|token| !matches!(token.token, Token::Whitespace(_))).cloned().collect()
}

fn tokenize(text: &str) -> Result<Vec<TokenWithSpan>, SqlError> {
    Tokenizer::new(&GenericDialect {}, text).tokenize_with_location().map_err(|error| {
        let at = Place { line: error.location.line.max(1), column: error.location.column.max(1), length: 1 };
        SqlError { at: Some(at), ..SqlError::new("invalid_sql", error.message) }
    })
}

/// A name as an identifier in SQL, whatever is in it.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Parses a script: statements with semicolons between them.
pub fn parse_script(text: &str) -> Result<Vec<Declared>, SqlError> {
    let tokens = tokenize(text)?;
    let mut declared = Vec::new();
    for tokens in tokens.split(|token| token.token == Token::SemiColon) {
        let words = significant(tokens);
        check_size(&words)?;
        let (Some(first), Some(last)) = (words.first(), words.last()) else { continue };
        let source = slice(text, first.span.start, last.span.end);
        let (first_line, end) = (first.span.start.line, last.span);
        // An error at the end of the statement points at its last word.
        let (statement, replace) =
            statement(words).map_err(|error| if error.at.is_none() { error.at(end) } else { error })?;
        declared.push(Declared { statement, replace, text: source, first_line });
    }
    Ok(declared)
}

fn slice(text: &str, start: Location, end: Location) -> String {
    let position = |location: Location| {
        let line: usize = text.split_inclusive('\n').take(location.line as usize - 1).map(str::len).sum();
        let column: usize = text[line..].chars().take(location.column as usize - 1).map(char::len_utf8).sum();
        line + column
    };
    text[position(start)..position(end).min(text.len())].to_owned()
}

/// The words of a statement that are still to be read.
pub(super) struct Words {
    pub(super) parser: Parser<'static>,
}

static DIALECT: GenericDialect = GenericDialect {};

pub(super) fn parser(tokens: Vec<TokenWithSpan>) -> Parser<'static> {
    Parser::new(&DIALECT).with_tokens_with_locations(tokens)
}

/// `session_user` is a word of SQL's own that takes no parentheses; people write it like session_tenant().
fn without_empty_parentheses(mut tokens: Vec<TokenWithSpan>) -> Vec<TokenWithSpan> {
    let mut at = 0;
    while at + 2 < tokens.len() {
        let [word, open, close] = [0, 1, 2].map(|next| &tokens[at + next].token);
        if Words::is(word, "SESSION_USER") && (open, close) == (&Token::LParen, &Token::RParen) {
            tokens.drain(at + 1..at + 3);
        }
        at += 1;
    }
    tokens
}

fn statement(tokens: Vec<TokenWithSpan>) -> Result<(Statement, bool), SqlError> {
    let tokens = without_empty_parentheses(tokens);
    let mut words = Words { parser: parser(tokens.clone()) };
    if words.take("DROP") {
        return Ok((words.drop()?, false));
    }
    if words.take("ALTER") {
        return Ok((words.alter()?, false));
    }
    if words.take("PAUSE") {
        return Ok((Statement::Pause { name: words.last_name()? }, false));
    }
    if words.take("RESUME") {
        return Ok((Statement::Resume { name: words.last_name()? }, false));
    }
    words.expect("CREATE").map_err(|error| {
        error.hint(
            "a declaration starts with CREATE, ALTER, DROP, PAUSE or RESUME; to read data use `highwater sql` or POST /api/v1/sql",
        )
    })?;
    let replace = words.take("OR");
    if replace {
        words.expect("REPLACE")?;
    }
    let statement = if words.take("STREAM") {
        words.refuse_if()?;
        words.create_stream(&tokens)
    } else if words.take("TABLE") {
        words.refuse_if()?;
        words.create_table(&tokens)
    } else if words.take("REFERENCE") {
        words.expect("TABLE")?;
        words.create_reference_table()
    } else if words.take("ENDPOINT") {
        words.create_endpoint(&tokens)
    } else if words.take("MODEL") {
        words.create_model(&tokens)
    } else if words.take("SCHEDULE") {
        words.create_schedule()
    } else if words.take("ROW") {
        words.create_row_filter()
    } else if words.take("COLUMN") {
        words.create_column_mask()
    } else if words.take("POLICY") {
        words.create_policy()
    } else {
        let token = words.parser.peek_token();
        Err(SqlError::unsupported(format!("CREATE {token} is not supported"))
            .at(token.span)
            .hint("supported: CREATE [OR REPLACE] STREAM, TABLE, REFERENCE TABLE, ENDPOINT, MODEL, SCHEDULE, ROW FILTER, COLUMN MASK, POLICY"))
    };
    Ok((statement?, replace))
}

impl Words {
    pub(super) fn is(token: &Token, word: &str) -> bool {
        matches!(token, Token::Word(found) if found.quote_style.is_none() && found.value.eq_ignore_ascii_case(word))
    }

    pub(super) fn take(&mut self, word: &str) -> bool {
        let found = Self::is(&self.parser.peek_token().token, word);
        if found {
            self.parser.next_token();
        }
        found
    }

    /// IF NOT EXISTS, which people know from elsewhere.
    pub(super) fn refuse_if(&mut self) -> Result<(), SqlError> {
        let [first, second] = self.parser.peek_tokens_with_location();
        if Self::is(&first.token, "IF") && Self::is(&second.token, "NOT") {
            return Err(SqlError::unsupported("IF NOT EXISTS is not needed")
                .at(first.span)
                .hint("leave it out: a statement that stands already, word for word, is left as it is"));
        }
        Ok(())
    }

    pub(super) fn expect(&mut self, word: &str) -> Result<(), SqlError> {
        if self.take(word) { Ok(()) } else { Err(self.expected(word)) }
    }

    pub(super) fn expected(&self, wanted: &str) -> SqlError {
        let token = self.parser.peek_token();
        SqlError::new("invalid_sql", format!("expected {wanted}, found {}", shown(&token.token)))
            .at(token.span)
    }

    pub(super) fn symbol(&mut self, token: &Token) -> Result<(), SqlError> {
        if self.parser.consume_token(token) { Ok(()) } else { Err(self.expected(&format!("\"{token}\""))) }
    }

    /// Runs one of `sqlparser`'s own functions; an error points at the word where it stopped.
    pub(super) fn inner<T>(
        &mut self,
        parse: impl FnOnce(&mut Parser<'static>) -> Result<T, ParserError>,
    ) -> Result<T, SqlError> {
        parse(&mut self.parser).map_err(|error| syntax_error(&self.parser, error))
    }

    pub(super) fn name(&mut self) -> Result<StreamName, SqlError> {
        let token = self.parser.peek_token();
        let identifier = self.inner(|parser| parser.parse_identifier())?;
        let name = StreamName::new(&identifier.value)
            .map_err(|error| SqlError::new("invalid_name", error.to_string()).at(token.span))?;
        if name.is_system() {
            return Err(SqlError::new(
                "reserved_name",
                format!("\"{name}\": names that start with an underscore are kept for the engine"),
            )
            .at(token.span));
        }
        Ok(name)
    }

    pub(super) fn end(&mut self) -> Result<(), SqlError> {
        if self.parser.peek_token().token == Token::EOF {
            Ok(())
        } else {
            Err(self.expected("the end of the statement"))
        }
    }
}

fn syntax_error(parser: &Parser<'_>, error: ParserError) -> SqlError {
    let token = parser.peek_token();
    let message = match error {
        ParserError::ParserError(message) | ParserError::TokenizerError(message) => message,
        ParserError::RecursionLimitExceeded => "the statement is nested too deeply".into(),
    };
    let (message, place) = placed(&message);
    let message = message
        .replacen("Expected: ", "expected ", 1)
        .replace("found: EOF", "found the end of the statement");
    let error = SqlError::new("invalid_sql", message);
    match place {
        Some(_) => SqlError { at: place, ..error },
        None => error.at(token.span),
    }
}

fn shown(token: &Token) -> String {
    if *token == Token::EOF { "the end of the statement".into() } else { format!("\"{token}\"") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::{Window, WindowKind};

    fn fails(text: &str) -> String {
        match parse_script(text) {
            Ok(_) => panic!("was accepted: {text}"),
            Err(error) => error.render(text),
        }
    }

    #[test]
    fn parses_the_statements_of_the_language() {
        let script = "
            CREATE STREAM s (id TEXT NOT NULL, amount DECIMAL(15,2), place STRUCT<city TEXT, country TEXT> SENSITIVE)
              WITH (event_id = 'id', key = 'id');
            CREATE STREAM t WITH (hidden = 'id') AS SELECT id, amount FROM s WHERE amount > 0;
            CREATE TABLE w AS SELECT id, sum(amount) AS total, window_start FROM t
              WINDOW HOPPING (SIZE 5 MINUTES, ADVANCE BY 1 MINUTE, GRACE PERIOD 1 HOUR) GROUP BY id;
            CREATE ENDPOINT '/api/x/' (x INT DEFAULT 10 CHECK (x > 0)) REQUIRES view AS SELECT * FROM w LIMIT $x;";
        let declared = parse_script(script).unwrap();
        assert_eq!(
            declared.iter().map(|d| d.statement.name()).collect::<Vec<_>>(),
            ["s", "t", "w", "/api/x"]
        );
        assert!(declared[1].text.starts_with("CREATE STREAM t") && declared[1].text.ends_with("amount > 0"));
        let Statement::CreateTableAs { window, .. } = &declared[2].statement else { panic!() };
        let kind = WindowKind::Hopping { size: 300_000_000, advance: 60_000_000 };
        assert_eq!(*window, Some(Window { kind, grace: 3_600_000_000, retention: None }));
    }

    #[test]
    fn errors_point_at_the_word() {
        assert_eq!(
            fails("CREATE STREAM s (id TEXT) WITH (event_idd = 'id')"),
            "there is no option \"event_idd\" here\n  |\n1 | CREATE STREAM s (id TEXT) WITH (event_idd = 'id')\n  |                                 ^^^^^^^^^\nhint: did you mean event_id?"
        );
        assert!(
            fails("CREATE STREAM s (id BLOB)")
                .contains("1 | CREATE STREAM s (id BLOB)\n  |                     ^^^^")
        );
        assert!(
            fails("CREATE TABLE t AS SELECT a FROM s WINDOW SLIDING (5 MINUTES) GROUP BY a")
                .contains("^^^^^^^")
        );
        assert!(fails("SELECT 1").contains("expected CREATE"));
        assert!(fails("CREATE STREAM _s (id TEXT)").contains("kept for the engine"));
        assert!(fails("CREATE TABLE t AS SELECT FROM").contains("CREATE TABLE t AS SELECT FROM"));
        assert!(fails("CREATE TABLE t AS SELECT a FROM s WINDOW HOPPING (SIZE 5 MINUTES, ADVANCE BY 2 MINUTES) GROUP BY a").contains("multiple"));
    }
}
