//! From text to statements.

use std::collections::BTreeMap;

use arrow::datatypes::DataType;
use datafusion::sql::sqlparser::ast::{Expr, Query, Value};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer};
use highwater_event::name::nearest;
use highwater_event::{Column, StreamName, StreamOptions};

use super::error::{Place, SqlError};
use super::statement::{Declared, EndpointParameter, Statement, Window};
use super::types::arrow_type;

/// Tokens of one statement. A longer chain of operators would be nested as deeply as it is long, beyond
/// what a stack holds.
const MAX_TOKENS: usize = 5_000;

/// Parses one query.
pub fn parse_query(text: &str) -> Result<Box<Query>, SqlError> {
    let words = significant(&tokenize(text)?);
    check_length(&words)?;
    let end = words.last().map(|word| word.span);
    let mut inner = Words { parser: parser(words) };
    let query = inner.inner(|parser| parser.parse_query()).and_then(|query| {
        while inner.parser.consume_token(&Token::SemiColon) {}
        inner.end().map(|()| query)
    });
    query.map_err(|error| match end {
        Some(end) if error.at.is_none() => error.at(end),
        _ => error,
    })
}

/// Refuses a text that is too long to be parsed safely.
pub fn check_statement(text: &str) -> Result<(), SqlError> {
    check_length(&significant(&tokenize(text)?))
}

fn check_length(words: &[TokenWithSpan]) -> Result<(), SqlError> {
    match words.get(MAX_TOKENS) {
        Some(word) => {
            Err(SqlError::new("statement_too_long", format!("a statement may have {MAX_TOKENS} words"))
                .at(word.span))
        }
        None => Ok(()),
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

/// Parses a script: statements with semicolons between them.
pub fn parse_script(text: &str) -> Result<Vec<Declared>, SqlError> {
    let tokens = tokenize(text)?;
    let mut declared = Vec::new();
    for tokens in tokens.split(|token| token.token == Token::SemiColon) {
        let words = significant(tokens);
        check_length(&words)?;
        let (Some(first), Some(last)) = (words.first(), words.last()) else { continue };
        let source = slice(text, first.span.start, last.span.end);
        let (first_line, end) = (first.span.start.line, last.span);
        // An error at the end of the statement points at its last word.
        let statement =
            statement(words).map_err(|error| if error.at.is_none() { error.at(end) } else { error })?;
        declared.push(Declared { statement, text: source, first_line });
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

/// A query and its WINDOW clause, with the word that starts it.
type WindowedQuery = (Box<Query>, Option<(Window, TokenWithSpan)>);

struct Words {
    parser: Parser<'static>,
}

static DIALECT: GenericDialect = GenericDialect {};

fn parser(tokens: Vec<TokenWithSpan>) -> Parser<'static> {
    Parser::new(&DIALECT).with_tokens_with_locations(tokens)
}

fn statement(tokens: Vec<TokenWithSpan>) -> Result<Statement, SqlError> {
    let mut words = Words { parser: parser(tokens.clone()) };
    words.expect("CREATE").map_err(|error| {
        error.hint("a declaration starts with CREATE; to read data use `highwater sql` or POST /api/v1/sql")
    })?;
    if words.take("STREAM") {
        words.create_stream(&tokens)
    } else if words.take("TABLE") {
        words.create_table(&tokens)
    } else if words.take("REFERENCE") {
        words.expect("TABLE")?;
        words.create_reference_table()
    } else if words.take("ENDPOINT") {
        words.create_endpoint(&tokens)
    } else {
        let token = words.parser.peek_token();
        Err(SqlError::unsupported(format!("CREATE {token} is not supported"))
            .at(token.span)
            .hint("supported: CREATE STREAM, CREATE TABLE, CREATE REFERENCE TABLE, CREATE ENDPOINT"))
    }
}

impl Words {
    fn is(token: &Token, word: &str) -> bool {
        matches!(token, Token::Word(found) if found.quote_style.is_none() && found.value.eq_ignore_ascii_case(word))
    }

    fn take(&mut self, word: &str) -> bool {
        let found = Self::is(&self.parser.peek_token().token, word);
        if found {
            self.parser.next_token();
        }
        found
    }

    fn expect(&mut self, word: &str) -> Result<(), SqlError> {
        if self.take(word) { Ok(()) } else { Err(self.expected(word)) }
    }

    fn expected(&self, wanted: &str) -> SqlError {
        let token = self.parser.peek_token();
        SqlError::new("invalid_sql", format!("expected {wanted}, found {}", shown(&token.token)))
            .at(token.span)
    }

    fn symbol(&mut self, token: &Token) -> Result<(), SqlError> {
        if self.parser.consume_token(token) { Ok(()) } else { Err(self.expected(&format!("\"{token}\""))) }
    }

    /// Runs one of `sqlparser`'s own functions; an error points at the word where it stopped.
    fn inner<T>(
        &mut self,
        parse: impl FnOnce(&mut Parser<'static>) -> Result<T, ParserError>,
    ) -> Result<T, SqlError> {
        parse(&mut self.parser).map_err(|error| syntax_error(&self.parser, error))
    }

    fn name(&mut self) -> Result<StreamName, SqlError> {
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

    fn columns(&mut self) -> Result<Vec<Column>, SqlError> {
        self.symbol(&Token::LParen)?;
        let mut columns = Vec::new();
        loop {
            let name = self.inner(|parser| parser.parse_identifier())?.value.to_ascii_lowercase();
            let type_token = self.parser.peek_token();
            let declared = self.inner(Parser::parse_data_type)?;
            let (data_type, json) = arrow_type(&declared)
                .map_err(|message| SqlError::unsupported(message).at(type_token.span))?;
            let mut column = Column { name, data_type, nullable: true, sensitive: false, json };
            loop {
                if self.take("SENSITIVE") {
                    column.sensitive = true;
                } else if self.take("NOT") {
                    self.expect("NULL")?;
                    column.nullable = false;
                } else {
                    break;
                }
            }
            columns.push(column);
            if !self.parser.consume_token(&Token::Comma) {
                break;
            }
        }
        self.symbol(&Token::RParen)?;
        Ok(columns)
    }

    /// `WITH (name = value, …)`, if it comes next. An unknown name is an error with the nearest known one.
    fn options(&mut self, known: &[&str]) -> Result<BTreeMap<String, Expr>, SqlError> {
        let mut options = BTreeMap::new();
        if !self.take("WITH") {
            return Ok(options);
        }
        self.symbol(&Token::LParen)?;
        loop {
            let token = self.parser.peek_token();
            let name = self.inner(|parser| parser.parse_identifier())?.value.to_ascii_lowercase();
            if !known.contains(&name.as_str()) {
                let error = SqlError::new("unknown_option", format!("there is no option \"{name}\" here"))
                    .at(token.span);
                let hint = match nearest(&name, known.iter().copied()) {
                    Some(near) => format!("did you mean {near}?"),
                    None => format!("the options are {}", known.join(", ")),
                };
                return Err(error.hint(hint));
            }
            self.symbol(&Token::Eq)?;
            let value = self.inner(Parser::parse_expr)?;
            if options.insert(name.clone(), value).is_some() {
                return Err(
                    SqlError::new("invalid_sql", format!("option \"{name}\" is given twice")).at(token.span)
                );
            }
            if !self.parser.consume_token(&Token::Comma) {
                break;
            }
        }
        self.symbol(&Token::RParen)?;
        Ok(options)
    }

    fn stream_options(&mut self, raw: bool) -> Result<StreamOptions, SqlError> {
        let known: &[&str] = if raw {
            &["event_id", "event_time", "key", "partitions", "lake", "aliases", "hidden", "sensitive"]
        } else {
            &["lake", "aliases", "hidden"]
        };
        let given = self.options(known)?;
        let mut options = StreamOptions { partitions: 1, lake: true, ..StreamOptions::default() };
        for (name, value) in given {
            match name.as_str() {
                "event_id" => options.event_id = list(&text_value(&name, &value)?),
                "event_time" => options.event_time = Some(text_value(&name, &value)?.to_ascii_lowercase()),
                "key" => options.key = Some(text_value(&name, &value)?.to_ascii_lowercase()),
                "hidden" => options.hidden = list(&text_value(&name, &value)?),
                "sensitive" => options.sensitive = list(&text_value(&name, &value)?),
                "partitions" => options.partitions = number_value(&name, &value)?,
                "lake" => options.lake = bool_value(&name, &value)?,
                _ => {
                    for pair in list(&text_value(&name, &value)?) {
                        let (alias, column) = pair.split_once('=').ok_or_else(|| {
                            SqlError::new(
                                "invalid_option",
                                "aliases is a list like 'amount = amount_usd, country = location_country'",
                            )
                        })?;
                        options.aliases.insert(alias.trim().to_owned(), column.trim().to_owned());
                    }
                }
            }
        }
        Ok(options)
    }

    fn end(&mut self) -> Result<(), SqlError> {
        if self.parser.peek_token().token == Token::EOF {
            Ok(())
        } else {
            Err(self.expected("the end of the statement"))
        }
    }

    fn create_stream(&mut self, tokens: &[TokenWithSpan]) -> Result<Statement, SqlError> {
        let name = self.name()?;
        if self.parser.peek_token().token == Token::LParen {
            let columns = self.columns()?;
            let options = self.stream_options(true)?;
            self.end()?;
            return Ok(Statement::CreateStream { name, columns, options });
        }
        let options = self.stream_options(false)?;
        self.expect("AS")?;
        let (query, window) = self.query(tokens)?;
        if let Some((_, token)) = window {
            return Err(SqlError::unsupported(
                "a stream is derived row by row; WINDOW belongs to CREATE TABLE",
            )
            .at(token.span));
        }
        Ok(Statement::CreateStreamAs { name, options, query })
    }

    fn create_table(&mut self, tokens: &[TokenWithSpan]) -> Result<Statement, SqlError> {
        let name = self.name()?;
        if self.parser.peek_token().token == Token::LParen {
            return Err(self
                .expected("AS SELECT …")
                .hint("a table is derived from a stream; for rows from a file use CREATE REFERENCE TABLE, for events CREATE STREAM"));
        }
        self.options(&[])?;
        self.expect("AS")?;
        let (query, window) = self.query(tokens)?;
        Ok(Statement::CreateTableAs { name, window: window.map(|(window, _)| window), query })
    }

    fn create_reference_table(&mut self) -> Result<Statement, SqlError> {
        let name = self.name()?;
        let columns = self.columns()?;
        let options = self.options(&["csv", "key", "valid_from"])?;
        self.end()?;
        let required = |option: &str| {
            options
                .get(option)
                .ok_or_else(|| {
                    SqlError::new("missing_option", format!("a reference table needs WITH ({option} = …)"))
                })
                .and_then(|value| text_value(option, value))
        };
        let csv = required("csv")?;
        let key = list(&required("key")?);
        let valid_from =
            options.get("valid_from").map(|value| text_value("valid_from", value)).transpose()?;
        for column in key.iter().chain(&valid_from) {
            if !columns.iter().any(|known| known.name == *column) {
                return Err(SqlError::new("invalid_option", format!("column \"{column}\" is not declared")));
            }
        }
        Ok(Statement::CreateReferenceTable { name, columns, csv, key, valid_from })
    }

    fn create_endpoint(&mut self, tokens: &[TokenWithSpan]) -> Result<Statement, SqlError> {
        let token = self.parser.peek_token();
        let path = self.inner(|parser| parser.parse_literal_string())?;
        let path =
            endpoint_path(&path).map_err(|message| SqlError::new("invalid_path", message).at(token.span))?;
        let mut parameters = Vec::new();
        if self.parser.consume_token(&Token::LParen) && !self.parser.consume_token(&Token::RParen) {
            loop {
                parameters.push(self.endpoint_parameter()?);
                if !self.parser.consume_token(&Token::Comma) {
                    break;
                }
            }
            self.symbol(&Token::RParen)?;
        }
        self.expect("REQUIRES")
            .map_err(|error| error.hint("every endpoint names the permission that its callers need"))?;
        let permission = self.inner(|parser| parser.parse_identifier())?.value.to_ascii_lowercase();
        self.expect("AS")?;
        let (query, window) = self.query(tokens)?;
        if let Some((_, token)) = window {
            return Err(SqlError::unsupported(
                "an endpoint reads tables and streams; WINDOW belongs to CREATE TABLE",
            )
            .at(token.span));
        }
        Ok(Statement::CreateEndpoint { path, parameters, permission, query })
    }

    fn endpoint_parameter(&mut self) -> Result<EndpointParameter, SqlError> {
        let name = self.inner(|parser| parser.parse_identifier())?.value.to_ascii_lowercase();
        let token = self.parser.peek_token();
        let declared = self.inner(Parser::parse_data_type)?;
        let (data_type, _) =
            arrow_type(&declared).map_err(|message| SqlError::unsupported(message).at(token.span))?;
        if matches!(data_type, DataType::Struct(_) | DataType::List(_)) {
            return Err(SqlError::unsupported("a parameter holds one plain value").at(token.span));
        }
        let default = if self.take("DEFAULT") { Some(self.inner(Parser::parse_expr)?) } else { None };
        let check = if self.take("CHECK") {
            self.symbol(&Token::LParen)?;
            let check = self.inner(Parser::parse_expr)?;
            self.symbol(&Token::RParen)?;
            Some(check)
        } else {
            None
        };
        Ok(EndpointParameter { name, data_type, default, check })
    }

    /// The query that makes up the rest of the statement, with its WINDOW clause cut out.
    fn query(&mut self, tokens: &[TokenWithSpan]) -> Result<WindowedQuery, SqlError> {
        let mut rest = tokens[self.parser.index().min(tokens.len())..].to_vec();
        let mut window = None;
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
        Ok((query, window))
    }

    /// `HOPPING (SIZE n unit, ADVANCE BY n unit [, GRACE PERIOD n unit])` or `TUMBLING (SIZE …)`.
    fn window(&mut self) -> Result<Window, SqlError> {
        let token = self.parser.peek_token();
        let hopping = if self.take("HOPPING") {
            true
        } else if self.take("TUMBLING") {
            false
        } else {
            return Err(SqlError::unsupported(format!("WINDOW {token} is not supported"))
                .at(token.span)
                .hint(
                    "supported: TUMBLING (SIZE …), HOPPING (SIZE …, ADVANCE BY …), both with GRACE PERIOD …",
                ));
        };
        self.symbol(&Token::LParen)?;
        self.expect("SIZE")?;
        let size = self.duration()?;
        let mut advance = size;
        if hopping {
            self.symbol(&Token::Comma)?;
            self.expect("ADVANCE")?;
            self.expect("BY")?;
            let token = self.parser.peek_token();
            advance = self.duration()?;
            if advance > size || size % advance != 0 {
                return Err(SqlError::unsupported("the window's SIZE must be a multiple of ADVANCE BY")
                    .at(token.span));
            }
        }
        let mut grace = 24 * 3_600_000_000;
        if self.parser.consume_token(&Token::Comma) {
            self.expect("GRACE")?;
            self.expect("PERIOD")?;
            grace = self.duration()?;
        }
        self.symbol(&Token::RParen)?;
        Ok(Window { size, advance, grace })
    }

    fn duration(&mut self) -> Result<i64, SqlError> {
        let token = self.parser.peek_token();
        let count = self.inner(Parser::parse_literal_uint)?;
        let unit = self.parser.next_token();
        let micros = match &unit.token {
            Token::Word(word) => match word.value.to_ascii_uppercase().trim_end_matches('S') {
                "MILLISECOND" => 1_000,
                "SECOND" => 1_000_000,
                "MINUTE" => 60_000_000,
                "HOUR" => 3_600_000_000,
                "DAY" => 86_400_000_000,
                _ => 0,
            },
            _ => 0,
        };
        if micros == 0 {
            return Err(SqlError::new(
                "invalid_sql",
                "expected MILLISECONDS, SECONDS, MINUTES, HOURS or DAYS",
            )
            .at(unit.span));
        }
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

fn syntax_error(parser: &Parser<'_>, error: ParserError) -> SqlError {
    let token = parser.peek_token();
    let message = match error {
        ParserError::ParserError(message) | ParserError::TokenizerError(message) => message,
        ParserError::RecursionLimitExceeded => "the statement is nested too deeply".into(),
    };
    // sqlparser appends the place as text; we point at it instead.
    let (message, place) = match message.rsplit_once(" at Line: ") {
        Some((head, tail)) => {
            let place = tail
                .split_once(", Column: ")
                .and_then(|(line, column)| Some((line.parse().ok()?, column.parse().ok()?)));
            (head.to_owned(), place)
        }
        None => (message, None),
    };
    let message = message
        .replacen("Expected: ", "expected ", 1)
        .replace("found: EOF", "found the end of the statement");
    let error = SqlError::new("invalid_sql", message);
    match place {
        Some((line, column)) => SqlError { at: Some(Place { line, column, length: 1 }), ..error },
        None => error.at(token.span),
    }
}

fn shown(token: &Token) -> String {
    if *token == Token::EOF { "the end of the statement".into() } else { format!("\"{token}\"") }
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(|part| part.trim().to_ascii_lowercase()).filter(|part| !part.is_empty()).collect()
}

fn literal(value: &Expr) -> Option<&Value> {
    if let Expr::Value(value) = value { Some(&value.value) } else { None }
}

fn text_value(option: &str, value: &Expr) -> Result<String, SqlError> {
    match literal(value) {
        Some(Value::SingleQuotedString(text)) => Ok(text.clone()),
        _ => Err(SqlError::new("invalid_option", format!("{option} is a text in single quotes"))),
    }
}

fn number_value(option: &str, value: &Expr) -> Result<u32, SqlError> {
    match literal(value) {
        Some(Value::Number(text, _)) => text.parse().ok(),
        _ => None,
    }
    .ok_or_else(|| SqlError::new("invalid_option", format!("{option} is a whole number")))
}

fn bool_value(option: &str, value: &Expr) -> Result<bool, SqlError> {
    match literal(value) {
        Some(Value::Boolean(value)) => Ok(*value),
        _ => Err(SqlError::new("invalid_option", format!("{option} is true or false"))),
    }
}

fn endpoint_path(path: &str) -> Result<String, String> {
    let trimmed = path.trim_end_matches('/');
    let good = trimmed.starts_with('/')
        && trimmed[1..].split('/').all(|part| {
            !part.is_empty()
                && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
                && part != ".."
                && part != "."
        });
    if good {
        Ok(trimmed.to_owned())
    } else {
        Err(format!("'{path}' is not a path: write it like '/api/metrics/top-products/'"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(*window, Some(Window { size: 300_000_000, advance: 60_000_000, grace: 3_600_000_000 }));
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
            fails("CREATE TABLE t AS SELECT a FROM s WINDOW SESSION (5 MINUTES) GROUP BY a")
                .contains("^^^^^^^")
        );
        assert!(fails("DROP STREAM s").contains("expected CREATE"));
        assert!(fails("CREATE STREAM _s (id TEXT)").contains("kept for the engine"));
        assert!(fails("CREATE TABLE t AS SELECT FROM").contains("CREATE TABLE t AS SELECT FROM"));
        assert!(fails("CREATE TABLE t AS SELECT a FROM s WINDOW HOPPING (SIZE 5 MINUTES, ADVANCE BY 2 MINUTES) GROUP BY a").contains("multiple"));
    }
}
