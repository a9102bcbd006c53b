//! CREATE ENDPOINT: queries that are published as REST resources, and paths that events come in at.

use std::collections::BTreeMap;

use arrow::datatypes::DataType;
use datafusion::sql::sqlparser::ast::{Query, SetExpr};
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use highwater_event::StreamName;

use super::clauses::Emit;
use super::error::SqlError;
use super::parser::Words;
use super::schedule::constant;
use super::statement::{Again, Answers, EndpointParameter, Method, RowChange, Statement, Takes, Writes};
use super::types::arrow_type;

/// Parameters that every page has.
pub(super) const PAGE_PARAMETERS: [&str; 3] = ["limit", "cursor", "sort"];
/// Parameters that every page with a number has.
pub(super) const NUMBERED_PARAMETERS: [&str; 1] = ["page"];
/// Parameters that every file has.
pub(super) const FILE_PARAMETERS: [&str; 1] = ["format"];

/// Members of what a search answers, beside its parameters.
const HITS_MEMBERS: [&str; 4] = ["recommendation", "results_found", "files", "hits"];

/// The stream of trained models.
pub const MODELS: &str = "_models";

/// The shortest time between two answers of a live endpoint, microseconds.
const SHORTEST_TICK: i64 = 250_000;

/// The most rows of a page with a number.
const LARGEST_PAGE: u64 = 1_000;

impl Words {
    /// A method, or nothing, which is GET.
    pub(super) fn method(&mut self) -> Method {
        Method::ALL.into_iter().find(|method| self.take(method.text())).unwrap_or(Method::Get)
    }

    /// A path in quotes.
    pub(super) fn path(&mut self) -> Result<String, SqlError> {
        let token = self.parser.peek_token();
        let path = self.inner(|parser| parser.parse_literal_string())?;
        endpoint_path(&path).map_err(|message| SqlError::new("invalid_path", message).at(token.span))
    }

    pub(super) fn create_endpoint(&mut self, tokens: &[TokenWithSpan]) -> Result<Statement, SqlError> {
        let method = self.method();
        let posted = method == Method::Post;
        let token = self.parser.peek_token();
        let path = self.path()?;
        let next = self.parser.peek_token();
        if posted && Self::is(&next.token, "INTO") {
            return self.create_intake(path, &token);
        }
        if posted && !matches!(next.token, Token::LParen) && !Self::is(&next.token, "REQUIRES") {
            return Err(self.expected(
                "INTO stream, or REQUIRES … REPLAYS stream, REQUIRES … INSERTS INTO table, or REQUIRES … AS SELECT …",
            ));
        }
        let parameters = self.endpoint_parameters()?;
        let permission = self.permission()?;
        if let Some(change) = self.row_change(method)? {
            return self.create_writes(method, (path, &token), parameters, permission, change);
        }
        if posted && parameters.is_empty() && self.take("TRAINS") {
            self.expect("MODELS")?;
            self.end()?;
            without_parameters(&path, &token)?;
            let into = StreamName::system(MODELS);
            return Ok(Statement::CreateIntake { method, path, into, takes: Takes::Training { permission } });
        }
        if posted && self.take("REPLAYS") {
            return self.create_replay(path, &token, parameters, permission);
        }
        let answers = if self.take("RETURNS") { self.answers()? } else { Answers::Rows };
        self.expect("AS")?;
        let clauses = self.query(tokens)?;
        if let Some((_, token)) = clauses.window {
            return Err(SqlError::unsupported(
                "an endpoint reads tables and streams; WINDOW belongs to CREATE TABLE",
            )
            .at(token.span));
        }
        if clauses.emit != Emit::Unsaid || clauses.within.is_some() {
            return Err(SqlError::unsupported(
                "an endpoint answers once: EMIT and WITHIN have no meaning in it",
            ));
        }
        let query = clauses.query;
        if posted && !matches!(answers, Answers::Rows | Answers::Object | Answers::Hits) {
            return Err(SqlError::unsupported(
                "what is asked with POST answers rows, RETURNS OBJECT or RETURNS HITS",
            )
            .at(token.span));
        }
        if matches!(answers, Answers::Page { .. } | Answers::Hits)
            && (query.order_by.is_some() || query.limit_clause.is_some() || query.fetch.is_some())
        {
            return Err(SqlError::unsupported("a page is put in order and cut by the engine")
                .hint("leave ORDER BY and LIMIT out: callers say sort, limit and cursor"));
        }
        if matches!(answers, Answers::Numbered { .. }) {
            check_numbered(&query).map_err(|error| error.at(token.span))?;
        }
        declared_in_path(&path, &parameters, &token)?;
        let shown: &[&str] = if answers == Answers::Hits { &HITS_MEMBERS } else { &[] };
        let own = [answers.parameters(), shown].concat();
        if let Some(taken) = parameters.iter().find(|parameter| own.contains(&parameter.name.as_str())) {
            let message = format!("\"{}\" is a parameter that every such endpoint has", taken.name);
            return Err(SqlError::new("reserved_name", message).at(token.span).hint("choose another name"));
        }
        Ok(Statement::CreateEndpoint { path, parameters, permission, answers, posted, query })
    }

    /// `OBJECT`, `HITS`, `PAGE OF member [CACHED FOR n SECONDS]`, `NUMBERED PAGES OF n`, `FILE`, `PROOF OF stream` or `LIVE EVERY n SECONDS`, after
    /// RETURNS.
    fn answers(&mut self) -> Result<Answers, SqlError> {
        if self.take("OBJECT") {
            return Ok(Answers::Object);
        }
        if self.take("HITS") {
            return Ok(Answers::Hits);
        }
        if self.take("FILE") {
            return Ok(Answers::File);
        }
        if self.take("LIVE") {
            self.expect("EVERY")?;
            let token = self.parser.peek_token();
            let every = self.some_time()?;
            if every < SHORTEST_TICK {
                return Err(SqlError::new("invalid_option", "EVERY is a quarter of a second or longer")
                    .at(token.span));
            }
            return Ok(Answers::Live { every });
        }
        if self.take("PROOF") {
            self.expect("OF")?;
            return Ok(Answers::Proof { stream: self.name()? });
        }
        if self.take("NUMBERED") {
            self.expect("PAGES")?;
            self.expect("OF")?;
            let token = self.parser.peek_token();
            let size = self.inner(|parser| parser.parse_literal_uint())?;
            if !(1..=LARGEST_PAGE).contains(&size) {
                let detail = format!("a page has from 1 to {LARGEST_PAGE} rows");
                return Err(SqlError::new("invalid_option", detail).at(token.span));
            }
            return Ok(Answers::Numbered { size: size as usize });
        }
        if !self.take("PAGE") {
            return Err(self
                .expected("OBJECT, HITS, PAGE OF …, NUMBERED PAGES OF …, FILE, PROOF OF … or LIVE EVERY …"));
        }
        self.expect("OF")?;
        let member = self.inner(|parser| parser.parse_identifier())?.value;
        let cached = if self.take("CACHED") {
            self.expect("FOR")?;
            Some(self.some_time()?)
        } else {
            None
        };
        Ok(Answers::Page { member, cached })
    }

    /// `(name type, …)`, if it comes next.
    fn endpoint_parameters(&mut self) -> Result<Vec<EndpointParameter>, SqlError> {
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
        Ok(parameters)
    }

    /// `REQUIRES permission`.
    fn permission(&mut self) -> Result<String, SqlError> {
        self.expect("REQUIRES")
            .map_err(|error| error.hint("every endpoint names the permission that its callers need"))?;
        Ok(self.inner(|parser| parser.parse_identifier())?.value.to_ascii_lowercase())
    }

    /// `INTO stream [AS BATCH]`, behind the path.
    fn create_intake(&mut self, path: String, at: &TokenWithSpan) -> Result<Statement, SqlError> {
        without_parameters(&path, at)?;
        self.expect("INTO")?;
        let stream = self.name()?;
        let batch = self.take("AS");
        if batch {
            self.expect("BATCH")?;
        }
        self.end()?;
        let takes = if batch { Takes::Several } else { Takes::One };
        Ok(Statement::CreateIntake { method: Method::Post, path, into: stream, takes })
    }

    /// `INSERTS INTO` behind POST, `UPDATES` behind PUT and PATCH, `DELETES FROM` behind DELETE.
    fn row_change(&mut self, method: Method) -> Result<Option<RowChange>, SqlError> {
        let (word, second, change) = match method {
            Method::Get => return Ok(None),
            Method::Post => ("INSERTS", Some("INTO"), RowChange::Insert),
            Method::Put | Method::Patch => ("UPDATES", None, RowChange::Update),
            Method::Delete => ("DELETES", Some("FROM"), RowChange::Delete),
        };
        if !self.take(word) {
            // POST does other things, too.
            return if method == Method::Post { Ok(None) } else { Err(self.expected(word)) };
        }
        second.map_or(Ok(()), |second| self.expect(second))?;
        Ok(Some(change))
    }

    /// `table [RETURNING …]`, behind what becomes of its rows.
    fn create_writes(
        &mut self,
        method: Method,
        (path, at): (String, &TokenWithSpan),
        parameters: Vec<EndpointParameter>,
        permission: String,
        change: RowChange,
    ) -> Result<Statement, SqlError> {
        let into = self.name()?;
        let returning = match change {
            RowChange::Delete => None,
            RowChange::Insert | RowChange::Update if self.take("RETURNING") => {
                let items = self.inner(|parser| parser.parse_projection())?;
                let items: Vec<String> = items.iter().map(ToString::to_string).collect();
                Some(items.join(", "))
            }
            RowChange::Insert | RowChange::Update => None,
        };
        self.end()?;
        declared_in_path(&path, &parameters, at)?;
        let takes = Takes::Row(Box::new(Writes { parameters, permission, change, returning }));
        Ok(Statement::CreateIntake { method, path, into, takes })
    }

    /// `stream [WHERE …] [SET (…)] [AS JOB]`, behind REPLAYS.
    fn create_replay(
        &mut self,
        path: String,
        at: &TokenWithSpan,
        parameters: Vec<EndpointParameter>,
        permission: String,
    ) -> Result<Statement, SqlError> {
        without_parameters(&path, at)?;
        let stream = self.name()?;
        let condition = if self.take("WHERE") { Some(self.inner(Parser::parse_expr)?) } else { None };
        let set = self.members_set()?;
        let job = self.take("AS");
        if job {
            self.expect("JOB")?;
        }
        self.end()?;
        let again = Again { parameters, permission, condition, set, job };
        let takes = Takes::Again(Box::new(again));
        Ok(Statement::CreateIntake { method: Method::Post, path, into: stream, takes })
    }

    /// `SET (name = constant, …)`, if it comes next.
    fn members_set(&mut self) -> Result<BTreeMap<String, serde_json::Value>, SqlError> {
        let mut set = BTreeMap::new();
        if !self.take("SET") {
            return Ok(set);
        }
        self.symbol(&Token::LParen)?;
        loop {
            let name = self.inner(|parser| parser.parse_identifier())?.value;
            self.symbol(&Token::Eq)?;
            let token = self.parser.peek_token();
            let value = self.inner(Parser::parse_expr)?;
            let value = constant(&value).ok_or_else(|| {
                SqlError::new("invalid_option", "a text, a number, true or false").at(token.span)
            })?;
            set.insert(name, value);
            if !self.parser.consume_token(&Token::Comma) {
                break;
            }
        }
        self.symbol(&Token::RParen)?;
        Ok(set)
    }

    fn endpoint_parameter(&mut self) -> Result<EndpointParameter, SqlError> {
        let name = self.inner(|parser| parser.parse_identifier())?.value.to_ascii_lowercase();
        let tenant = self.take("TENANT");
        let data_type = if tenant { DataType::Utf8 } else { self.parameter_type()? };
        let default = if self.take("DEFAULT") { Some(self.inner(Parser::parse_expr)?) } else { None };
        let check = if self.take("CHECK") {
            self.symbol(&Token::LParen)?;
            let check = self.inner(Parser::parse_expr)?;
            self.symbol(&Token::RParen)?;
            Some(check)
        } else {
            None
        };
        Ok(EndpointParameter { name, data_type, tenant, default, check })
    }

    fn parameter_type(&mut self) -> Result<DataType, SqlError> {
        let token = self.parser.peek_token();
        let declared = self.inner(Parser::parse_data_type)?;
        let (data_type, _) =
            arrow_type(&declared).map_err(|message| SqlError::unsupported(message).at(token.span))?;
        if matches!(data_type, DataType::Struct(_) | DataType::List(_)) {
            return Err(SqlError::unsupported("a parameter holds one plain value").at(token.span));
        }
        Ok(data_type)
    }
}

/// What stands in a path must be declared.
fn declared_in_path(
    path: &str,
    parameters: &[EndpointParameter],
    at: &TokenWithSpan,
) -> Result<(), SqlError> {
    for name in path_parameters(path) {
        let parameter = parameters.iter().find(|parameter| parameter.name == name);
        if parameter.is_none_or(|parameter| parameter.default.is_some()) {
            let message = format!("{{{name}}} in the path is a parameter that is always given");
            return Err(SqlError::new("invalid_path", message).at(at.span).hint(format!(
                "declare it in the parentheses after the path, without a default: ({name} TEXT)"
            )));
        }
    }
    Ok(())
}

/// Pages that have numbers are cut from rows in an order that is said.
fn check_numbered(query: &Query) -> Result<(), SqlError> {
    let unsupported = |what: &str| Err(SqlError::unsupported(what));
    let SetExpr::Select(select) = &*query.body else {
        return unsupported("pages with numbers are of one SELECT");
    };
    if select.distinct.is_some() {
        return unsupported(
            "pages with numbers count rows, so DISTINCT has to be inside: SELECT … FROM (SELECT DISTINCT …)",
        );
    }
    if query.limit_clause.is_some() || query.fetch.is_some() {
        return unsupported("pages with numbers are cut by the engine: leave LIMIT out");
    }
    if query.order_by.is_none() {
        return Err(SqlError::unsupported("pages with numbers need ORDER BY: without it no row has a page")
            .hint("end it with a column that is different in every row"));
    }
    Ok(())
}

fn without_parameters(path: &str, at: &TokenWithSpan) -> Result<(), SqlError> {
    match path_parameters(path).next() {
        None => Ok(()),
        Some(_) => {
            let message = "a path that events come in at has no parameters";
            Err(SqlError::new("invalid_path", message).at(at.span))
        }
    }
}

/// The parameters that stand in a path, as `{name}`.
pub fn path_parameters(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
}

fn endpoint_path(path: &str) -> Result<String, String> {
    let trimmed = path.trim_end_matches('/');
    let plain = |part: &str| part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    let good = trimmed.starts_with('/')
        && trimmed[1..].split('/').all(|part| {
            let name = path_parameters(part).next();
            let name_fits =
                |name: &str| name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            !part.is_empty()
                && name.map_or_else(|| plain(part), |name| !name.is_empty() && name_fits(name))
                && part != ".."
                && part != "."
        });
    let names: Vec<&str> = path_parameters(trimmed).collect();
    if let Some(twice) = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
        return Err(format!("{{{}}} stands in the path twice", twice.1));
    }
    if good {
        Ok(trimmed.to_owned())
    } else {
        Err(format!(
            "'{path}' is not a path: write it like '/api/metrics/top-products/' or '/api/orders/{{order_id}}'"
        ))
    }
}
