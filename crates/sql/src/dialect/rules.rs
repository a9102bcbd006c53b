//! ROW FILTER and COLUMN MASK: what readers see of a relation. POLICY: who may do what.

use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{Expr, Value, VisitMut, VisitorMut};
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::Token;
use highwater_event::StreamName;

use super::error::SqlError;
use super::parser::Words;
use super::statement::{Rule, Statement};

impl Words {
    /// `ROW FILTER name ON relation USING (condition)`, after CREATE.
    pub(super) fn create_row_filter(&mut self) -> Result<Statement, SqlError> {
        self.expect("FILTER")?;
        let name = self.name()?;
        self.expect("ON")?;
        let relation = self.name()?;
        self.expect("USING")?;
        let using = Box::new(self.inner(Parser::parse_expr)?);
        self.end()?;
        Ok(Statement::CreateRule { name, relation: Some(relation), rule: Rule::RowFilter { using } })
    }

    /// `COLUMN MASK name ON relation (column) USING expression [UNLESS PERMITTED permission]`, after CREATE.
    pub(super) fn create_column_mask(&mut self) -> Result<Statement, SqlError> {
        self.expect("MASK")?;
        let name = self.name()?;
        self.expect("ON")?;
        let relation = self.name()?;
        self.symbol(&Token::LParen)?;
        let column = self.inner(|parser| parser.parse_identifier())?.value.to_ascii_lowercase();
        self.symbol(&Token::RParen)?;
        self.expect("USING")?;
        let using = Box::new(self.inner(Parser::parse_expr)?);
        let unless = if self.take("UNLESS") {
            self.expect("PERMITTED")?;
            Some(self.inner(|parser| parser.parse_identifier())?.value)
        } else {
            None
        };
        self.end()?;
        let rule = Rule::ColumnMask { column, using, unless };
        Ok(Statement::CreateRule { name, relation: Some(relation), rule })
    }

    /// `POLICY name AS $$ Cedar $$`, after CREATE.
    pub(super) fn create_policy(&mut self) -> Result<Statement, SqlError> {
        let name = self.name()?;
        self.expect("AS")?;
        let token = self.parser.next_token();
        let text = match token.token {
            Token::DollarQuotedString(quoted) => quoted.value,
            Token::SingleQuotedString(text) => text,
            other => {
                let detail = format!("a policy is a text, not {other}");
                return Err(SqlError::new("invalid_sql", detail)
                    .at(token.span)
                    .hint("write it between $$ and $$: AS $$ permit (principal in Role::\"DataAnalyst\", action, resource) … $$"));
            }
        };
        self.end()?;
        Ok(Statement::CreateRule { name, relation: None, rule: Rule::Policy { text } })
    }
}

/// Who asks, for the functions session_user() and session_tenant().
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// Name.
    pub user: &'a str,
    /// Tenant.
    pub tenant: &'a str,
}

impl Asker<'_> {
    /// An expression for somebody, as SQL: what it says of the session stands there as a value.
    pub fn of(&self, expression: &Expr) -> String {
        let mut expression = expression.clone();
        // A text is written with the quotes that stand in it, so they are doubled before.
        let [user, tenant] = [self.user, self.tenant].map(|name| name.replace('\'', "''"));
        Asker { user: &user, tenant: &tenant }.put(&mut expression);
        expression.to_string()
    }

    /// Puts values where an expression or query says something of the session.
    pub fn put(&self, said: &mut impl VisitMut) {
        struct Put<'a>(&'a Asker<'a>);
        impl VisitorMut for Put<'_> {
            type Break = ();
            fn post_visit_expr(&mut self, expression: &mut Expr) -> ControlFlow<()> {
                if let Expr::Function(function) = expression {
                    let value = match function.name.to_string().to_ascii_lowercase().as_str() {
                        "session_user" => self.0.user,
                        "session_tenant" => self.0.tenant,
                        _ => return ControlFlow::Continue(()),
                    };
                    *expression = Expr::Value(Value::SingleQuotedString(value.to_owned()).into());
                }
                ControlFlow::Continue(())
            }
        }
        let _done: ControlFlow<()> = said.visit(&mut Put(self));
    }
}

/// What a rule is kept under: rules have names of their own.
pub(super) fn kind(rule: &Rule) -> &'static str {
    match rule {
        Rule::RowFilter { .. } => "row filter",
        Rule::ColumnMask { .. } => "column mask",
        Rule::Policy { .. } => "policy",
    }
}

/// The condition that a stream with a tenant column has for somebody of one tenant.
pub fn of_tenant(column: &str, tenant: &str) -> String {
    format!("{} = '{}'", super::quoted(column), tenant.replace('\'', "''"))
}

/// A rule as it was declared.
#[derive(Debug)]
pub struct RuleEntry {
    /// Its name.
    pub name: StreamName,
    /// What it is about; none of a policy.
    pub relation: Option<StreamName>,
    /// What it does.
    pub rule: Rule,
    /// The statement.
    pub text: String,
}
