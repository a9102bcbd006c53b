//! CREATE: what may be declared, and the options that it takes.

use std::collections::BTreeMap;

use arrow::datatypes::DataType;
use datafusion::sql::sqlparser::ast::{Expr, Value};
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};
use highwater_event::name::nearest;
use highwater_event::{Column, StreamOptions};

use super::clauses::{Emit, parse_duration};
use super::error::SqlError;
use super::parser::Words;
use super::statement::{Alteration, Kind, Method, Statement};
use super::types::{arrow_type, map_type};

/// Options of a stream that say how it is kept and shown, and may be changed later.
const CHANGEABLE: [&str; 5] = ["retention", "aliases", "hidden", "idle_timeout", "search"];

/// Columns that an inferred stream must have from the start: those with a role.
fn inferred_columns(options: &StreamOptions) -> Vec<Column> {
    let mut columns: Vec<Column> = Vec::new();
    let column = |name: &String, data_type: DataType| Column::new(name, data_type, true);
    let roles = options.event_id.iter().chain(&options.key).chain(&options.tenant).chain(&options.sender);
    for name in roles {
        if Some(name) != options.event_time.as_ref() && !columns.iter().any(|known| known.name == *name) {
            columns.push(column(name, DataType::Utf8));
        }
    }
    columns.extend(
        options.event_time.as_ref().map(|name| column(name, highwater_event::columns::timestamp_type())),
    );
    columns
}

impl Words {
    /// The name that ends the statement.
    pub(super) fn last_name(&mut self) -> Result<highwater_event::StreamName, SqlError> {
        for kind in ["STREAM", "TABLE", "VIEW"] {
            if self.take(kind) {
                break;
            }
        }
        let name = self.name()?;
        self.end()?;
        Ok(name)
    }

    /// `DROP kind [IF EXISTS] name`.
    pub(super) fn drop(&mut self) -> Result<Statement, SqlError> {
        let mut kind = if self.take("STREAM") {
            Kind::Stream
        } else if self.take("TABLE") {
            Kind::Table
        } else if self.take("ENDPOINT") {
            Kind::Endpoint
        } else if self.take("MODEL") {
            Kind::Model
        } else if self.take("SCHEDULE") {
            Kind::Schedule
        } else if self.take("REFERENCE") {
            self.expect("TABLE")?;
            Kind::ReferenceTable
        } else if self.take("ROW") {
            self.expect("FILTER")?;
            Kind::Rule
        } else if self.take("COLUMN") {
            self.expect("MASK")?;
            Kind::Rule
        } else if self.take("POLICY") {
            Kind::Rule
        } else {
            return Err(self.expected(
                "STREAM, TABLE, REFERENCE TABLE, ENDPOINT, MODEL, SCHEDULE, ROW FILTER, COLUMN MASK or POLICY",
            ));
        };
        let if_exists = self.take("IF");
        if if_exists {
            self.expect("EXISTS")?;
        }
        let name = if kind == Kind::Endpoint {
            kind = match self.method() {
                Method::Get => kind,
                method => Kind::Intake(method),
            };
            self.path()?
        } else {
            self.name()?.to_string()
        };
        self.end()?;
        Ok(Statement::Drop { kind, name, if_exists })
    }

    /// `ALTER STREAM name ADD COLUMN column type [, …]` or `ALTER STREAM name SET (option = value, …)`.
    pub(super) fn alter(&mut self) -> Result<Statement, SqlError> {
        self.expect("STREAM").map_err(|error| {
            error.hint(
                "a table is changed with CREATE OR REPLACE TABLE, which builds it anew beside the old one",
            )
        })?;
        let name = self.name()?;
        let mut changes = Vec::new();
        if self.take("SET") {
            let options = self.option_list(&CHANGEABLE)?;
            changes.push(Alteration::Set(options));
        } else {
            loop {
                self.expect("ADD").map_err(|error| {
                    error.hint("supported: ADD COLUMN name type, SET (retention = …, aliases = …, hidden = …, idle_timeout = …); columns are never renamed or removed")
                })?;
                self.take("COLUMN");
                self.refuse_if()?;
                let token = self.parser.peek_token();
                let column = self.column()?;
                if !column.nullable {
                    return Err(SqlError::unsupported(format!(
                        "column \"{}\" can't be NOT NULL: the events that are there have no value for it",
                        column.name
                    ))
                    .at(token.span));
                }
                changes.push(Alteration::Add(column));
                if !self.parser.consume_token(&Token::Comma) {
                    break;
                }
            }
        }
        self.end()?;
        Ok(Statement::AlterStream { name, changes })
    }

    pub(super) fn create_stream(&mut self, tokens: &[TokenWithSpan]) -> Result<Statement, SqlError> {
        let name = self.name()?;
        if self.parser.peek_token().token == Token::LParen {
            let columns = self.columns()?;
            let options = self.stream_options(true)?;
            self.end()?;
            return Ok(Statement::CreateStream { name, columns, options });
        }
        // Without columns and without AS the stream learns its columns from its events.
        let before = self.parser.index();
        let derived = tokens[before.min(tokens.len())..].iter().any(|token| Self::is(&token.token, "AS"));
        let mut options = self.stream_options(!derived)?;
        if !derived {
            self.end().map_err(|error| {
                error.hint(
                    "columns in parentheses, or AS SELECT …, or nothing to infer the columns from events",
                )
            })?;
            options.inferred = true;
            return Ok(Statement::CreateStream { name, columns: inferred_columns(&options), options });
        }
        self.expect("AS")?;
        let clauses = self.query(tokens)?;
        if let Some((_, token)) = clauses.window {
            return Err(SqlError::unsupported(
                "a stream is derived row by row; WINDOW belongs to CREATE TABLE",
            )
            .at(token.span));
        }
        if clauses.emit == Emit::Final {
            return Err(SqlError::unsupported(
                "EMIT FINAL belongs to CREATE TABLE with a WINDOW: rows of a stream are final",
            ));
        }
        Ok(Statement::CreateStreamAs { name, options, query: clauses.query, within: clauses.within })
    }

    pub(super) fn create_table(&mut self, tokens: &[TokenWithSpan]) -> Result<Statement, SqlError> {
        let name = self.name()?;
        if self.parser.peek_token().token == Token::LParen {
            return self.create_written_table(name);
        }
        self.options(&[])?;
        self.expect("AS")?;
        let clauses = self.query(tokens)?;
        let window = clauses.window.map(|(window, _)| window);
        let emit_final = clauses.emit == Emit::Final;
        if emit_final && window.is_none() {
            return Err(SqlError::unsupported(
                "EMIT FINAL needs a WINDOW: without one a group is never final",
            ));
        }
        if clauses.within.is_some() {
            return Err(SqlError::unsupported("WITHIN belongs to a JOIN in CREATE STREAM … AS"));
        }
        Ok(Statement::CreateTableAs { name, window, query: clauses.query, emit_final })
    }

    /// `(columns) WITH (key = 'column')`, behind the name.
    fn create_written_table(&mut self, name: highwater_event::StreamName) -> Result<Statement, SqlError> {
        self.symbol(&Token::LParen)?;
        let mut columns = Vec::new();
        let mut given = Vec::new();
        loop {
            let column = self.column()?;
            if self.take("GENERATED") {
                for word in ["ALWAYS", "AS", "IDENTITY"] {
                    self.expect(word)?;
                }
                given.push(column.name.clone());
            }
            columns.push(column);
            if !self.parser.consume_token(&Token::Comma) {
                break;
            }
        }
        self.symbol(&Token::RParen)?;
        let options = self.options(&["key"])?;
        self.end().map_err(|error| {
            error.hint("a table has columns, which callers write, or AS SELECT …, which the engine keeps up")
        })?;
        let key = options.get("key").ok_or_else(|| {
            SqlError::new("missing_option", "a table that callers write needs WITH (key = 'column')")
        })?;
        let key = text_value("key", key)?.trim().to_ascii_lowercase();
        if let Some(other) = given.iter().find(|name| **name != key) {
            let detail = format!("\"{other}\" can't be GENERATED: the key can, and nothing else");
            return Err(SqlError::new("invalid_option", detail));
        }
        Ok(Statement::CreateTable { name, columns, key, generated: !given.is_empty() })
    }

    /// `name PREDICTS column AS SELECT …`, after CREATE MODEL.
    pub(super) fn create_model(&mut self, tokens: &[TokenWithSpan]) -> Result<Statement, SqlError> {
        let name = self.name()?;
        self.expect("PREDICTS")?;
        let label = self.inner(|parser| parser.parse_identifier())?.value.to_ascii_lowercase();
        self.expect("AS")?;
        let clauses = self.query(tokens)?;
        if clauses.window.is_some() || clauses.within.is_some() || clauses.emit != Emit::Unsaid {
            return Err(SqlError::unsupported(
                "a model learns from rows as they are: no WINDOW, WITHIN or EMIT",
            ));
        }
        Ok(Statement::CreateModel { name, label, query: clauses.query })
    }

    pub(super) fn create_reference_table(&mut self) -> Result<Statement, SqlError> {
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

    fn column(&mut self) -> Result<Column, SqlError> {
        let name = self.inner(|parser| parser.parse_identifier())?.value.to_ascii_lowercase();
        let (data_type, json) = if self.take("MAP") { (self.map()?, false) } else { self.plain_type()? };
        let mut column = Column { json, ..Column::new(name, data_type, true) };
        loop {
            if self.take("SENSITIVE") {
                column.sensitive = true;
            } else if self.take("NOT") {
                self.expect("NULL")?;
                column.nullable = false;
            } else {
                return Ok(column);
            }
        }
    }

    fn plain_type(&mut self) -> Result<(DataType, bool), SqlError> {
        let token = self.parser.peek_token();
        let declared = self.inner(Parser::parse_data_type)?;
        arrow_type(&declared).map_err(|message| SqlError::unsupported(message).at(token.span))
    }

    /// `<TEXT, type>` behind MAP.
    fn map(&mut self) -> Result<DataType, SqlError> {
        self.symbol(&Token::Lt)?;
        let token = self.parser.peek_token();
        let (key, _) = self.plain_type()?;
        if key != DataType::Utf8 {
            return Err(SqlError::unsupported("the keys of a MAP are TEXT").at(token.span));
        }
        self.symbol(&Token::Comma)?;
        let (value, _) = self.plain_type()?;
        self.symbol(&Token::Gt)?;
        Ok(map_type(value))
    }

    fn columns(&mut self) -> Result<Vec<Column>, SqlError> {
        self.symbol(&Token::LParen)?;
        let mut columns = Vec::new();
        loop {
            columns.push(self.column()?);
            if !self.parser.consume_token(&Token::Comma) {
                break;
            }
        }
        self.symbol(&Token::RParen)?;
        Ok(columns)
    }

    /// `WITH (name = value, …)`, if it comes next. An unknown name is an error with the nearest known one.
    fn options(&mut self, known: &[&str]) -> Result<BTreeMap<String, Expr>, SqlError> {
        if self.take("WITH") { self.option_list(known) } else { Ok(BTreeMap::new()) }
    }

    /// `(name = value, …)`.
    fn option_list(&mut self, known: &[&str]) -> Result<BTreeMap<String, Expr>, SqlError> {
        let mut options = BTreeMap::new();
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
            &[
                "event_id",
                "event_time",
                "key",
                "partitions",
                "lake",
                "aliases",
                "hidden",
                "sensitive",
                "retention",
                "idle_timeout",
                "tenant",
                "sender",
                "proof",
                "search",
                "subject",
            ]
        } else {
            &["lake", "aliases", "hidden", "retention", "idle_timeout", "tenant", "search"]
        };
        let given = self.options(known)?;
        let mut options = StreamOptions { partitions: 1, lake: true, ..StreamOptions::default() };
        set_options(&mut options, given)?;
        Ok(options)
    }
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

fn set_options(options: &mut StreamOptions, given: BTreeMap<String, Expr>) -> Result<(), SqlError> {
    for (name, value) in given {
        match name.as_str() {
            "event_id" => options.event_id = list(&text_value(&name, &value)?),
            "event_time" => options.event_time = Some(text_value(&name, &value)?.to_ascii_lowercase()),
            "tenant" => options.tenant = Some(text_value(&name, &value)?.to_ascii_lowercase()),
            "sender" => options.sender = Some(text_value(&name, &value)?.to_ascii_lowercase()),
            "subject" => options.subject = Some(text_value(&name, &value)?.to_ascii_lowercase()),
            "key" => options.key = Some(text_value(&name, &value)?.to_ascii_lowercase()),
            "hidden" => options.hidden = list(&text_value(&name, &value)?),
            "sensitive" => options.sensitive = list(&text_value(&name, &value)?),
            "partitions" => options.partitions = number_value(&name, &value)?,
            "lake" => options.lake = bool_value(&name, &value)?,
            "proof" => options.proof = bool_value(&name, &value)?,
            "search" => options.search = list(&text_value(&name, &value)?),
            "retention" => options.retention = duration_or(&name, &value, "forever")?,
            "idle_timeout" => options.idle_timeout = duration_or(&name, &value, "never")?,
            _ => {
                options.aliases.clear();
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
    Ok(())
}

/// `'90 days'`, or the word for none.
fn duration_or(option: &str, value: &Expr, none: &str) -> Result<Option<i64>, SqlError> {
    let text = text_value(option, value)?;
    if text.trim().eq_ignore_ascii_case(none) {
        return Ok(None);
    }
    match parse_duration(&text) {
        Some(micros) => Ok(Some(micros)),
        None => Err(SqlError::new(
            "invalid_option",
            format!("{option} is a duration like '90 days', or '{none}', not '{text}'"),
        )),
    }
}

impl Alteration {
    /// The options after a change.
    pub fn apply(&self, options: &mut StreamOptions) -> Result<(), SqlError> {
        match self {
            Self::Add(_) => Ok(()),
            Self::Set(given) => set_options(options, given.clone()),
        }
    }
}
