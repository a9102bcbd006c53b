//! Endpoints that answer pages: some rows at a time, how many there are, and a cursor that leads to the next ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use highwater_event::{Digest128, hexadecimal, planted};
use highwater_sql::adhoc::{Page, Position};
use tokio::time::Instant;

use super::{Asked, Question, shown};
use crate::http::call::hash_of;
use crate::http::problem::{Answer, Problem};
use crate::http::sql::{rows, typed};
use crate::node::Remembered;

/// Rows of a page when nothing is said.
const USUAL: usize = 50;
/// Rows of a page at most.
const MOST: usize = 1000;
/// Words for the usual order.
pub const NEWEST_FIRST: [&str; 3] = ["desc", "newest", "-timestamp"];
/// Words for the other one.
pub const OLDEST_FIRST: [&str; 3] = ["asc", "oldest", "timestamp"];
/// The part of its time, in hundredths, after which a page that is asked for is made again.
const RENEWED_AFTER: u32 = 75;
/// Bytes of what stands behind a question in its cursor: a cursor of one question is none of another.
const MARK_BYTES: usize = 6;

/// Answers a page, or the one that was made a moment ago for the same caller.
pub async fn answer(question: &Question, asked: &Asked, member: &str, cached: Option<i64>) -> Answer {
    let started = Instant::now();
    let (node, call) = (&question.node, &question.call);
    let own = mark(&question.endpoint.text, &asked.given);
    let given = |name: &str| asked.beside.get(name).map(String::as_str);
    let page = page_of(given, &own, (USUAL, MOST))?;
    let wanted = key(question, &own, page);
    // Before anything is read: what is remembered is never older than it says.
    let now = node.machine.scheduler.elapsed();
    let longest = Duration::from_micros(cached.unwrap_or_default().unsigned_abs());
    let age = |it: &Remembered| now.saturating_sub(it.at);
    let young = |it: &Arc<Remembered>| age(it) < longest || planted::bug("remembers_for_ever");
    let known = cached.and_then(|_| node.remembered.get(&wanted)).filter(young);
    let made = match known {
        Some(known) => {
            call.saw("remembered", true);
            if age(&known) > longest * RENEWED_AFTER / 100 && known.is_first_to_renew() {
                renew(question.clone(), member.to_owned(), page, own, wanted);
            }
            if let Some(lens) = &known.lens {
                call.saw("lens", lens.clone());
            }
            known
        }
        None => {
            let made = Arc::new(make(question, member, page, &own, now).await?);
            if cached.is_some() {
                node.remembered.insert(wanted, made.clone());
            }
            made
        }
    };
    call.saw_answer(made.mark, made.rows, made.hash.as_str());
    let took = started.elapsed().as_secs_f64() * 1000.0;
    Ok(typed("application/json", format!("{},\"took_ms\":{took:.3}}}", made.body)))
}

/// Makes a page again while the old one may still be given, so that nobody has to wait for one that is asked for all the time.
fn renew(question: Question, member: String, page: Page, mark: Vec<u8>, wanted: String) {
    let scheduler = question.node.machine.scheduler.clone();
    drop(scheduler.spawn(async move {
        let now = question.node.machine.scheduler.elapsed();
        match make(&question, &member, page, &mark, now).await {
            Ok(made) => question.node.remembered.insert(wanted, Arc::new(made)),
            // Whoever asks when the old one is too old is told.
            Err(problem) => tracing::debug!(?problem, "a page could not be made again"),
        }
    }));
}

/// Asks for a page; its text lacks how long it took, and the brace at its end.
async fn make(
    question: &Question,
    member: &str,
    page: Page,
    mark: &[u8],
    at: Duration,
) -> Result<Remembered, Problem> {
    let mark_of_log = question.node.log().recorded_until();
    let found = question.page(page).await?;
    let result = shown(found.rows)?;
    let names = result.names();
    let next = match found.next {
        Some(position) => format!("\"{}\"", cursor(position, page.oldest_first, mark)),
        None => "null".to_owned(),
    };
    let member = serde_json::Value::from(member);
    let rows_text = rows(&result, &names, ",");
    let body = format!("{{{member}:[{rows_text}],\"total\":{},\"next_cursor\":{next}", found.total);
    let lens = question.call.noted("lens");
    let hash = hash_of(body.as_bytes());
    let (mark, rows) = (mark_of_log, result.row_count());
    Ok(Remembered { at, mark, rows, lens, body, hash, renewing: AtomicBool::default() })
}

/// Which page a call means, by what it gave as `limit`, `sort` and `cursor`; how many rows it has when nothing is said, and at most.
pub fn page_of<'a>(
    given: impl Fn(&str) -> Option<&'a str>,
    mark: &[u8],
    (usual, most): (usize, usize),
) -> Result<Page, Problem> {
    let limit = match given("limit") {
        None => usual,
        Some(text) => match text.parse() {
            Ok(limit) if (1..=most).contains(&limit) => limit,
            _ => {
                let detail = format!("\"{text}\" is not a number from 1 to {most}");
                return Err(Problem::parameter("limit", detail));
            }
        },
    };
    let oldest_first = match given("sort") {
        None => false,
        Some(order) if NEWEST_FIRST.contains(&order) => false,
        Some(order) if OLDEST_FIRST.contains(&order) => true,
        Some(other) => {
            let detail = format!("\"{other}\" is neither desc, the newest first, nor asc, the oldest first");
            return Err(Problem::parameter("sort", detail));
        }
    };
    let after = given("cursor").map(|text| {
        let (position, order) = read_cursor(text, mark).ok_or_else(|| {
            Problem::parameter("cursor", "this is no cursor of this question")
                .hint("give next_cursor back as it was answered, with the same filters")
        })?;
        if order == oldest_first {
            return Ok(position);
        }
        let detail = "the cursor is of the other order; begin anew without it";
        Err(Problem::parameter("cursor", detail))
    });
    Ok(Page { limit, oldest_first, after: after.transpose()? })
}

/// A cursor: where the last row stands, in which order, and of which question.
pub fn cursor(position: Position, oldest_first: bool, mark: &[u8]) -> String {
    let mut bytes = vec![u8::from(oldest_first)];
    bytes.extend_from_slice(mark);
    bytes.extend_from_slice(&position.time.to_be_bytes());
    bytes.extend_from_slice(&position.partition.to_be_bytes());
    bytes.extend_from_slice(&position.offset.to_be_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

fn read_cursor(text: &str, mark: &[u8]) -> Option<(Position, bool)> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let (order, rest) = bytes.split_first()?;
    let rest = rest.strip_prefix(mark)?;
    let (time, rest) = rest.split_first_chunk()?;
    let (partition, offset) = rest.split_first_chunk()?;
    let position = Position {
        time: i64::from_be_bytes(*time),
        partition: i32::from_be_bytes(*partition),
        offset: i64::from_be_bytes(offset.try_into().ok()?),
    };
    (*order <= 1).then_some((position, *order == 1))
}

/// What a question is: what is asked, and its own parameters.
pub fn mark<'a>(asked: &str, given: impl IntoIterator<Item = (&'a String, &'a String)>) -> Vec<u8> {
    let mut given: Vec<(&String, &String)> = given.into_iter().collect();
    given.sort_unstable();
    let said = given.into_iter().flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()]);
    let digest = Digest128::of_parts([asked.as_bytes()].into_iter().chain(said));
    digest.0[..MARK_BYTES].to_vec()
}

/// What an answer depends on beside the rows: the question and the page, who asks with which permissions, and what
/// is in force. Whatever changes what somebody may see is another key.
fn key(question: &Question, mark: &[u8], page: Page) -> String {
    let (node, identity) = (&question.node, &question.call.identity);
    let in_force = node.generation.load(Ordering::SeqCst);
    let values = &question.values;
    format!(
        "{}\n{identity:?}\n{in_force}\n{page:?}\n{}\n{values:?}",
        question.endpoint.path,
        hexadecimal::show(mark)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back_and_belongs_to_its_question() {
        let position = Position { time: -5, partition: 3, offset: 1 << 40 };
        let text = cursor(position, true, b"abcdef");
        assert_eq!(read_cursor(&text, b"abcdef"), Some((position, true)));
        assert_eq!(read_cursor(&text, b"abcdeg"), None);
        for bad in ["", "x", &text[1..], &format!("{text}AA"), "////"] {
            assert_eq!(read_cursor(bad, b"abcdef"), None, "{bad}");
        }
    }
}
