//! Bodies of any length: lines are taken in parts as they arrive, so that memory stays bounded.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use futures::StreamExt;
use highwater_event::StreamName;
use highwater_ingest::{DoorError, Format, Quotes, Submission};

use super::call::Call;
use super::events::{self, Tally};
use super::problem::{Answer, Problem};
use crate::node::Node;

/// About how many bytes are taken at a time.
const PART: usize = 2 << 20;
/// The longest line.
const MAX_LINE: usize = 16 << 20;
/// How long a part waits for a busy door before the call is refused.
const PATIENCE: Duration = Duration::from_secs(10);

/// Takes a body of lines. What was accepted before a fault stays accepted, and the answer says how much.
pub async fn take(node: &Arc<Node>, stream: StreamName, call: &Call, format: Format, body: Body) -> Answer {
    let mut parts = Parts { format, header: None, buffer: Vec::new() };
    let mut chunks = body.into_data_stream();
    let mut tally = Tally::default();
    loop {
        let last = match chunks.next().await {
            Some(Ok(chunk)) => {
                parts.buffer.extend_from_slice(&chunk);
                false
            }
            Some(Err(error)) => {
                return Err(so_far(Problem::bad_request("body_unreadable", error.to_string()), &tally));
            }
            None => true,
        };
        while let Some(part) = parts.next(last) {
            let part = part.map_err(|problem| so_far(problem, &tally))?;
            let submission = events::submission(node, call, stream.clone(), part, format);
            let submission = submission.map_err(|problem| so_far(problem, &tally))?;
            let verdicts = submit(node, submission).await.map_err(|problem| so_far(problem, &tally))?;
            tally.take(&verdicts);
        }
        if last {
            break;
        }
    }
    if tally.events() == 0 {
        return Err(Problem::bad_request("empty_body", "the body holds no event"));
    }
    // Each part has an entry of its own, in the commit of its events.
    call.settle();
    Ok(tally.answer())
}

fn so_far(problem: Problem, tally: &Tally) -> Problem {
    if tally.events() == 0 { problem } else { problem.with("events_taken", tally.events().into()) }
}

/// Hands a part of what a sender says to the door. A sender that has begun waits for a busy door instead
/// of being refused at once.
pub async fn submit(
    node: &Arc<Node>,
    submission: Submission,
) -> Result<Vec<highwater_ingest::Verdict>, Problem> {
    node.learn(&submission).await?;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match node.door.submit(submission.clone()).await {
            Err(DoorError::Busy) if tokio::time::Instant::now() < deadline => {}
            outcome => return Ok(outcome?),
        }
    }
}

/// Cuts a body at the ends of lines.
struct Parts {
    format: Format,
    /// The first line of CSV, which every part needs.
    header: Option<Vec<u8>>,
    buffer: Vec<u8>,
}

impl Parts {
    /// The next part; `None` when more bytes are needed.
    fn next(&mut self, last: bool) -> Option<Result<Bytes, Problem>> {
        if self.buffer.len() < PART && !last {
            return None;
        }
        if self.buffer.is_empty() {
            return None;
        }
        let Some(end) = self.line_end(last) else {
            if self.buffer.len() > MAX_LINE {
                return Some(Err(Problem::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    "line_too_long",
                    format!("a line may hold {} MiB", MAX_LINE >> 20),
                )
                .hint(match self.format {
                    Format::Csv => "is a quote not closed? A quote that belongs to a text is doubled",
                    _ => "end each event with a line break",
                })));
            }
            return None;
        };
        let rest = self.buffer.split_off(end);
        let mut part = std::mem::replace(&mut self.buffer, rest);
        if self.format == Format::Csv {
            match &self.header {
                Some(header) => part.splice(..0, header.iter().copied()).for_each(drop),
                None => {
                    self.header = Some(first_record(&part).to_vec());
                }
            }
        }
        if part.iter().all(u8::is_ascii_whitespace) {
            return self.next(last);
        }
        Some(Ok(part.into()))
    }

    /// Where the last whole line of the buffer ends; a line break inside quotes is none.
    fn line_end(&self, last: bool) -> Option<usize> {
        if last && self.buffer.len() <= 2 * PART {
            return Some(self.buffer.len());
        }
        if self.format != Format::Csv {
            let window = self.buffer.len().min(2 * PART);
            let end = self.buffer[..window].iter().rposition(|byte| *byte == b'\n');
            // A line that is longer than what is looked at first.
            let beyond =
                || self.buffer[window..].iter().position(|byte| *byte == b'\n').map(|at| window + at);
            return end.or_else(beyond).map(|at| at + 1).or_else(|| last.then_some(self.buffer.len()));
        }
        let (mut end, mut quotes) = (None, Quotes::default());
        for (at, byte) in self.buffer.iter().enumerate() {
            if at >= 2 * PART && end.is_some() {
                break;
            }
            quotes = quotes.after(*byte);
            if *byte == b'\n' && quotes != Quotes::Open {
                end = Some(at + 1);
            }
        }
        end.or_else(|| last.then_some(self.buffer.len()))
    }
}

/// The first record of CSV that is not empty, with its end of line.
fn first_record(part: &[u8]) -> &[u8] {
    let begin = part.iter().position(|byte| !byte.is_ascii_whitespace()).unwrap_or(0);
    let mut quotes = Quotes::default();
    let end = part[begin..].iter().position(|byte| {
        quotes = quotes.after(*byte);
        *byte == b'\n' && quotes != Quotes::Open
    });
    &part[begin..end.map_or(part.len(), |at| begin + at + 1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(format: Format, text: &str, chunk: usize) -> Vec<String> {
        let mut parts = Parts { format, header: None, buffer: Vec::new() };
        let mut found = Vec::new();
        for piece in text.as_bytes().chunks(chunk) {
            parts.buffer.extend_from_slice(piece);
            while let Some(part) = parts.next(false) {
                found.push(String::from_utf8(part.unwrap().to_vec()).unwrap());
            }
        }
        while let Some(part) = parts.next(true) {
            found.push(String::from_utf8(part.unwrap().to_vec()).unwrap());
        }
        found
    }

    #[test]
    fn a_long_line_is_taken_with_many_behind_it() {
        let long = format!("{{\"n\":\"{}\"}}\n", "x".repeat(5 << 20));
        let text = format!("{long}{}", "{\"n\":1}\n".repeat(2_500_000));
        let parts = cut(Format::NdJson, &text, 65_536);
        assert_eq!(parts.concat().len(), text.len());
        assert!(parts.iter().all(|part| part.ends_with('\n')) && parts[0].len() >= long.len());
        let rows = format!("\"{}\"\n{}", "y\n".repeat(3 << 20), "1\n".repeat(8_000_000));
        let parts = cut(Format::Csv, &format!("a\n{rows}"), 65_536);
        let bare: usize = parts.iter().map(|part| part.strip_prefix("a\n").unwrap().len()).sum();
        assert_eq!(bare, rows.len());
    }

    #[test]
    fn every_part_has_the_line_of_names() {
        for header in ["a,b\n", "\n\r\na,b\n", "\"a\nb\",c\n"] {
            let parts = cut(Format::Csv, &format!("{header}{}", "1,2\n".repeat(2_000_000)), 65_536);
            assert!(parts.len() > 1);
            assert!(parts[1..].iter().all(|part| part.starts_with(header.trim_start())), "{header:?}");
        }
    }

    #[test]
    fn a_quote_inside_of_a_field_opens_nothing() {
        let rows = "1,5\" pipe\n2,\"a \"\"b\"\" \n c\"\n".repeat(200_000);
        let parts = cut(Format::Csv, &format!("a,b\n{rows}"), 65_536);
        assert!(parts.len() > 1);
        for part in &parts {
            let text = part.strip_prefix("a,b\n").unwrap();
            assert!(text.starts_with("1,5") || text.starts_with("2,\"a"), "{}", &text[..20]);
        }
    }

    #[test]
    fn lines_are_never_cut_and_csv_keeps_its_header() {
        let line = format!("{{\"n\":\"{}\"}}\n", "x".repeat(1000));
        let text = line.repeat(10_000);
        for chunk in [700, 65_536] {
            let parts = cut(Format::NdJson, &text, chunk);
            assert!(parts.len() > 2);
            assert_eq!(parts.concat(), text);
            assert!(parts.iter().all(|part| part.ends_with('\n')));
        }
        let rows = format!("1,\"{}\n more\"\n", "y".repeat(1000)).repeat(10_000);
        let parts = cut(Format::Csv, &format!("a,b\n{rows}"), 10_000);
        assert!(parts.len() > 2);
        let bare: String = parts.iter().map(|part| part.strip_prefix("a,b\n").unwrap()).collect();
        assert_eq!(bare, rows);
    }
}
