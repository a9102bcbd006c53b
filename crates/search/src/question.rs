//! Conditions as queries of the index. Each is exact: what the index finds is what fits, no more and no less.

use std::ops::Bound;

use highwater_event::search::{Search, Term as Wanted};
use highwater_event::{Condition, columns};
use tantivy::Term;
use tantivy::query::{
    AllQuery, BooleanQuery, EmptyQuery, InvertedIndexRangeQuery, Occur, PhraseQuery, Query, RangeQuery,
    TermQuery,
};
use tantivy::schema::{Field, IndexRecordOption};

use crate::fields::{By, Fields, hour_of};
use crate::tokens::{CUT, LONGEST_TEXT, LONGEST_WORD, exact};

/// Hours that are looked up one by one; with more of them the times of all rows are looked at.
const MOST_HOURS: i64 = 24 * 31;

/// The query of a condition; `None` when the index can't tell which rows fit.
pub(crate) fn query(fields: &Fields, condition: &Condition) -> Option<Box<dyn Query>> {
    let several = |parts: &[Condition], occur| {
        let parts = parts.iter().map(|part| Some((occur, query(fields, part)?)));
        parts.collect::<Option<Vec<_>>>()
    };
    Some(match condition {
        Condition::All(parts) if parts.is_empty() => Box::new(AllQuery),
        Condition::Any(parts) if parts.is_empty() => Box::new(EmptyQuery),
        Condition::All(parts) => {
            let mut all = several(parts, Occur::Must)?;
            all.extend(hours(fields, condition).map(|hours| (Occur::Must, hours)));
            both(all)
        }
        Condition::Any(parts) => both(several(parts, Occur::Should)?),
        Condition::Text { column, text } => {
            let By::Text { exact: field, .. } = fields.by(column)? else { return None };
            term(Term::from_field_text(field, &exact(text)))
        }
        Condition::Begins { column, text } => {
            let By::Text { exact: field, .. } = fields.by(column)? else { return None };
            if text.len() > LONGEST_TEXT || text.contains(CUT) {
                return None;
            }
            begins(field, text)
        }
        Condition::Number { column, from, to } => {
            let By::Number(field) = fields.by(column)? else { return None };
            let bound = |bound: &Bound<i64>| bound.map(|number| Term::from_field_i64(field, number));
            match (from, to) {
                (Bound::Unbounded, Bound::Unbounded) => return None,
                _ => Box::new(RangeQuery::new(bound(from), bound(to))),
            }
        }
        Condition::Words { column, json, search } => {
            let field = match fields.by(column)? {
                By::Text { words, .. } if !json => words,
                By::Json { words } if *json => words,
                _ => return None,
            };
            return words(field, search);
        }
    })
}

/// The hours that a condition is about, when they are few; every row that fits lies in one of them.
fn hours(fields: &Fields, condition: &Condition) -> Option<Box<dyn Query>> {
    let (mut first, mut last) = (None::<i64>, None::<i64>);
    within(condition, &mut |from, to| {
        if let Bound::Included(time) | Bound::Excluded(time) = from {
            first = Some(first.map_or(hour_of(*time), |first| first.max(hour_of(*time))));
        }
        if let Bound::Included(time) | Bound::Excluded(time) = to {
            last = Some(last.map_or(hour_of(*time), |last| last.min(hour_of(*time))));
        }
    });
    let (first, last) = (first?, last?);
    if last.saturating_sub(first) >= MOST_HOURS {
        return None;
    }
    let hours = (first..=last).map(|hour| (Occur::Should, term(Term::from_field_i64(fields.hour, hour))));
    Some(both(hours.collect()))
}

/// Visits the bounds of event time that must hold.
fn within(condition: &Condition, visit: &mut impl FnMut(&Bound<i64>, &Bound<i64>)) {
    match condition {
        Condition::All(parts) => parts.iter().for_each(|part| within(part, visit)),
        Condition::Number { column, from, to } if column == columns::EVENT_TIME => visit(from, to),
        _ => {}
    }
}

fn both(mut parts: Vec<(Occur, Box<dyn Query>)>) -> Box<dyn Query> {
    match parts.len() {
        1 => parts.remove(0).1,
        _ => Box::new(BooleanQuery::new(parts)),
    }
}

fn term(term: Term) -> Box<dyn Query> {
    Box::new(TermQuery::new(term, IndexRecordOption::Basic))
}

/// Terms that begin with a text.
fn begins(field: Field, text: &str) -> Box<dyn Query> {
    let from = Bound::Included(Term::from_field_text(field, text));
    // The first bytes that are behind all that begin with the text.
    let mut end = text.as_bytes().to_vec();
    while end.last() == Some(&u8::MAX) {
        end.pop();
    }
    let to = match end.last_mut() {
        Some(last) => {
            *last += 1;
            Bound::Excluded(Term::from_field_bytes(field, &end))
        }
        None => Bound::Unbounded,
    };
    Box::new(InvertedIndexRangeQuery::new(from, to))
}

fn words(field: Field, search: &Search) -> Option<Box<dyn Query>> {
    let mut parts: Vec<(Occur, Box<dyn Query>)> = Vec::new();
    for wanted in search.terms() {
        let occur = if wanted.without { Occur::MustNot } else { Occur::Must };
        parts.push((occur, phrase(field, wanted)?));
    }
    if parts.iter().all(|(occur, _)| *occur == Occur::MustNot) {
        parts.push((Occur::Must, Box::new(AllQuery)));
    }
    Some(both(parts))
}

fn phrase(field: Field, wanted: &Wanted) -> Option<Box<dyn Query>> {
    if wanted.words.iter().any(|word| word.len() > LONGEST_WORD) {
        return None;
    }
    let mut terms: Vec<Term> = wanted.words.iter().map(|word| Term::from_field_text(field, word)).collect();
    Some(match (terms.len(), wanted.prefix) {
        (0, _) => return None,
        (1, true) => begins(field, &wanted.words[0]),
        (1, false) => term(terms.remove(0)),
        // The index would look at some of the words only that begin so: whether it is all of them it does not say.
        (_, true) => return None,
        (_, false) => Box::new(PhraseQuery::new(terms)),
    })
}
