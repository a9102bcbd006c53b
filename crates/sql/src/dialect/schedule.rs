//! CREATE SCHEDULE: which job is begun when.

use std::collections::BTreeMap;
use std::str::FromStr;

use chrono::{DateTime, TimeZone, Utc};
use chrono_tz::Tz;
use croner::Cron;
use croner::parser::CronParser;
use datafusion::sql::sqlparser::ast::{Expr, UnaryOperator, Value};
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::Token;
use highwater_event::name::nearest;

use super::error::SqlError;
use super::parser::Words;
use super::statement::Statement;

/// When something is due, again and again.
#[derive(Debug, Clone)]
pub struct Timetable {
    cron: Cron,
    zone: Tz,
}

impl Timetable {
    /// Reads a pattern of five fields (minute, hour, day, month, weekday), six with seconds before them, or a name such
    /// as `@daily`; a zone is one of the IANA database.
    pub fn parse(pattern: &str, zone: &str) -> Result<Self, SqlError> {
        let cron = CronParser::new().parse(pattern).map_err(|error| {
            SqlError::new("invalid_schedule", format!("'{pattern}' is not a time of cron: {error}")).hint(
                "write minute, hour, day, month and weekday, such as '0 2 * * *' for two in the morning; six fields begin with the second",
            )
        })?;
        let zone = Tz::from_str(zone).map_err(|_| {
            let error = SqlError::new("invalid_schedule", format!("there is no time zone '{zone}'"));
            match nearest(zone, chrono_tz::TZ_VARIANTS.iter().map(|known| known.name())) {
                Some(near) => error.hint(format!("did you mean '{near}'?")),
                None => error.hint("write one such as 'Europe/Paris' or 'UTC'"),
            }
        })?;
        let table = Self { cron, zone };
        match table.next(0) {
            Some(_) => Ok(table),
            None => Err(SqlError::new("invalid_schedule", format!("'{pattern}' never comes"))),
        }
    }

    fn at(&self, micros: i64) -> Option<DateTime<Tz>> {
        Some(Utc.timestamp_micros(micros).single()?.with_timezone(&self.zone))
    }

    /// When it is due first after a moment; microseconds UTC.
    pub fn next(&self, after: i64) -> Option<i64> {
        self.cron.find_next_occurrence(&self.at(after)?, false).ok().map(|due| due.timestamp_micros())
    }

    /// When it was due last, at a moment or before it; microseconds UTC.
    pub fn last(&self, until: i64) -> Option<i64> {
        self.cron.find_previous_occurrence(&self.at(until)?, true).ok().map(|due| due.timestamp_micros())
    }
}

/// What is begun when.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// The pattern, as it was written.
    pub pattern: String,
    /// The time zone that it is meant in.
    pub zone: String,
    /// When it is due.
    pub timetable: Timetable,
    /// What was missed while the node stood still is begun once, late.
    pub catch_up: bool,
    /// The kind of job.
    pub job: String,
    /// What it is told.
    pub input: BTreeMap<String, serde_json::Value>,
}

impl Words {
    /// `SCHEDULE name CRON 'pattern' [TIME ZONE 'zone'] [MISSED RUN | MISSED SKIP] RUN job [WITH (name = value, …)]`,
    /// after CREATE.
    pub(super) fn create_schedule(&mut self) -> Result<Statement, SqlError> {
        let name = self.name()?;
        self.expect("CRON")?;
        let token = self.parser.peek_token();
        let pattern = self.inner(|parser| parser.parse_literal_string())?;
        let zone = if self.take("TIME") {
            self.expect("ZONE")?;
            self.inner(|parser| parser.parse_literal_string())?
        } else {
            "UTC".to_owned()
        };
        let timetable = Timetable::parse(&pattern, &zone).map_err(|error| error.at(token.span))?;
        let mut catch_up = true;
        if self.take("MISSED") {
            catch_up = !self.take("SKIP");
            if catch_up {
                self.expect("RUN").map_err(|error| error.hint("MISSED RUN or MISSED SKIP"))?;
            }
        }
        self.expect("RUN")?;
        let job = self.inner(|parser| parser.parse_identifier())?.value.to_ascii_lowercase();
        let mut input = BTreeMap::new();
        if self.take("WITH") {
            self.symbol(&Token::LParen)?;
            loop {
                let name = self.inner(|parser| parser.parse_identifier())?.value;
                self.symbol(&Token::Eq)?;
                let token = self.parser.peek_token();
                let value = constant(&self.inner(Parser::parse_expr)?).ok_or_else(|| {
                    SqlError::new("invalid_option", "a text, a number, true or false").at(token.span)
                })?;
                input.insert(name, value);
                if !self.parser.consume_token(&Token::Comma) {
                    break;
                }
            }
            self.symbol(&Token::RParen)?;
        }
        self.end()?;
        Ok(Statement::CreateSchedule {
            name,
            schedule: Box::new(Schedule { pattern, zone, timetable, catch_up, job, input }),
        })
    }
}

/// The JSON value of a constant.
pub(super) fn constant(value: &Expr) -> Option<serde_json::Value> {
    match value {
        Expr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) => Some(text.as_str().into()),
            Value::Number(text, _) => serde_json::from_str(text).ok(),
            Value::Boolean(value) => Some((*value).into()),
            Value::Null => Some(serde_json::Value::Null),
            _ => None,
        },
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => match &**expr {
            Expr::Value(value) => match &value.value {
                Value::Number(text, _) => serde_json::from_str(&format!("-{text}")).ok(),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use highwater_event::time::{parse_micros, show_micros};

    fn next(pattern: &str, zone: &str, after: &str) -> String {
        let due = Timetable::parse(pattern, zone).unwrap().next(parse_micros(after).unwrap()).unwrap();
        show_micros(due)[..16].to_owned()
    }

    #[test]
    fn it_is_due_by_the_clock_of_its_zone() {
        assert_eq!(next("0 2 * * *", "UTC", "2026-03-01T01:59:59Z"), "2026-03-01T02:00");
        assert_eq!(next("0 2 * * *", "UTC", "2026-03-01T02:00:00Z"), "2026-03-02T02:00");
        assert_eq!(next("0 2 * * *", "America/New_York", "2026-01-10T00:00:00Z"), "2026-01-10T07:00");
        assert_eq!(next("0 2 * * *", "America/New_York", "2026-07-10T00:00:00Z"), "2026-07-10T06:00");
        assert_eq!(next("*/15 9-17 * * MON-FRI", "UTC", "2026-05-01T17:45:00Z"), "2026-05-04T09:00");
        assert_eq!(next("@daily", "UTC", "2026-05-01T17:45:00Z"), "2026-05-02T00:00");
        // On the day that a clock goes forward there is no half past two: it is run when that hour is over.
        assert_eq!(next("30 2 * * *", "Europe/Paris", "2026-03-28T12:00:00Z"), "2026-03-29T01:00");
        // On the day that it goes back there are two: it is run once.
        let paris = Timetable::parse("30 2 * * *", "Europe/Paris").unwrap();
        let first = paris.next(parse_micros("2026-10-24T12:00:00Z").unwrap()).unwrap();
        assert_eq!(&show_micros(paris.next(first).unwrap())[..16], "2026-10-26T01:30");
    }

    #[test]
    fn what_was_missed_last_is_known() {
        let table = Timetable::parse("0 */6 * * *", "UTC").unwrap();
        let at = parse_micros("2026-05-01T11:00:00Z").unwrap();
        assert_eq!(&show_micros(table.last(at).unwrap())[..16], "2026-05-01T06:00");
        let due = parse_micros("2026-05-01T12:00:00Z").unwrap();
        assert_eq!(table.last(due), Some(due));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (pattern, zone, said) in [
            ("0 2 * *", "UTC", "is not a time of cron"),
            ("99 2 * * *", "UTC", "is not a time of cron"),
            ("0 2 30 2 *", "UTC", "never comes"),
            ("0 2 * * *", "Europe/Pariss", "no time zone"),
        ] {
            let error = Timetable::parse(pattern, zone).unwrap_err();
            assert!(error.message.contains(said), "{pattern}: {}", error.message);
        }
    }
}
