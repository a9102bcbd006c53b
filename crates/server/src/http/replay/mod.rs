//! Replay: old events are appended again, each with a link to its original.
//!
//! Which events it is about is a question like any other, over rows as readers see them: no condition can
//! tell what a mask hides. The events themselves go from the log, or its cold tier, to the door as they
//! were, without being shown; so what is SENSITIVE in one stream must be it in the other, too.
//!
//! What makes it safe to repeat is their ids: in a stream of its own an event keeps its id; in the stream
//! that it came from it gets the replay's name behind it. So a replay that was cut short is begun again
//! under its name, and what had arrived is a duplicate.

mod again;
mod job;
mod rows;

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Int32Type, Int64Type};
use axum::body::{Body, Bytes};
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use datafusion::common::ScalarValue;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::Token;
use futures::StreamExt;
use highwater_auth::Asked;
use highwater_event::{Column, Offset, Partition, Principal, StreamPartition, StreamSchema, columns, time};
use highwater_ingest::{Format, Outcome, Submission};
use highwater_log::{LogBatch, ReadError};
use highwater_sql::SqlError;
use highwater_sql::adhoc::{self, QueryResult};
use highwater_sql::dialect::quoted;
use serde::Deserialize;
use serde_json::{Value, json};

use self::rows::Rows;
use super::call::Call;
use super::problem::{Answer, Problem};
use super::{bulk, events, jobs, streams};
use crate::node::jobs::Alone;
use crate::node::{Node, NodeRelations, QUERY_LIMITS, Reader, is_shared, unreadable};

pub use self::again::{AgainJob, answer as answer_declared};
pub use self::job::ReplayJob;

/// Offsets that are read at a time, at first; more where few events pass the condition.
const SPAN: u64 = 20_000;
const WIDEST_SPAN: u64 = 20_000_000;
/// Errors of a question that asks for too much at a time.
const TOO_MUCH: [&str; 3] = ["query_timeout", "query_memory", "result_too_large"];
/// Rows of the log that are read at a time.
const READ_ROWS: usize = 8192;
/// The member that links an event to its original.
const ORIGINAL: &str = "_replay_of";
/// About how many bytes are handed to the door at a time.
const PART: usize = 2 << 20;

/// Which events are appended again, and where.
#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReplayRequest {
    /// A stream that takes events; without it the stream itself.
    into: Option<String>,
    /// Goes behind the id of each event; the same name again appends nothing twice. Without it events keep
    /// their ids in another stream, and get a name of now in the stream itself.
    name: Option<String>,
    /// A condition on columns of the stream, in SQL.
    #[serde(rename = "where")]
    condition: Option<String>,
    /// First event time (RFC 3339, a date, or epoch).
    from: Option<String>,
    /// End of event time; an event at it is left out.
    until: Option<String>,
    /// One partition only.
    partition: Option<u32>,
    /// First offset.
    from_offset: Option<u64>,
    /// End of offsets; the event at it is left out.
    until_offset: Option<u64>,
    /// Events happen now instead of when they did.
    now: bool,
    /// Only count.
    dry_run: bool,
    /// For jobs: what was recorded later is not meant, microseconds UTC.
    #[serde(skip)]
    recorded_until: Option<i64>,
}

/// Appends old events again, linked to their originals.
///
/// Events come from lake and log, whatever their age. Each gets a member `_replay_of` {stream, partition,
/// offset}, which is found in `_extra`. The answer comes while it goes on: a line for each part with what was
/// done so far, and a last line with `finished`, or with `error`. A caller that goes away ends it.
#[utoipa::path(post, path = "/api/v1/streams/{stream}/replay", tag = "ingest",
    params(("stream" = String, Path, description = "name of a stream")), request_body = ReplayRequest,
    responses((status = 200, description = "application/x-ndjson of {events, of, accepted, duplicates, conflicts, rejected}; the last line has finished: true, name and into"),
        (status = 400, description = "the condition, a time or the name is wrong"), (status = 404, description = "no such stream"), (status = 409, description = "the stream is derived: name another with `into`; that one would show what is SENSITIVE; or a policy wants somebody else to approve it, as a job")))]
pub async fn replay(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    Path(name): Path<String>,
    body: Result<Json<ReplayRequest>, JsonRejection>,
) -> Answer {
    let Json(request) = body.map_err(|rejection| {
        Problem::from(rejection).hint("send {} as application/json, or {\"where\": \"…\", \"into\": \"…\"}")
    })?;
    let dry_run = request.dry_run;
    if !dry_run {
        jobs::only_approved(&node, &call, &Alone::replay(name.as_str()))?;
    }
    let replay = Replay::plan(node, call, &name, request).await?;
    if dry_run {
        return Ok(lines(format!("{}\n", replay.summary())));
    }
    tracing::info!(stream = name, into = %replay.target.name, events = replay.of, "a replay begins");
    let steps = futures::stream::unfold(Some(replay), |replay| async {
        let mut replay = replay?;
        let (line, next) = match replay.step().await {
            Ok(true) => (replay.done(), Some(replay)),
            Ok(false) => {
                tracing::info!(into = %replay.target.name, events = replay.totals.events, "a replay has finished");
                (replay.summary(), None)
            }
            Err(problem) => (with(replay.done(), "error", problem.summary()), None),
        };
        Some((Ok::<_, Infallible>(Bytes::from(format!("{line}\n"))), next))
    });
    Ok(lines(Body::from_stream(steps.fuse())))
}

fn lines(body: impl Into<Body>) -> Response {
    let mut response = body.into().into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    // Proxies that buffer would hold lines back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

fn with(mut line: Value, name: &str, value: Value) -> Value {
    line[name] = value;
    line
}

/// Offsets of one partition that are still to be read.
#[derive(Clone, Copy)]
struct Part {
    partition: Partition,
    next: Offset,
    end: Offset,
}

fn offsets(result: &QueryResult) -> Vec<Offset> {
    let batches = result.batches.iter();
    batches
        .flat_map(|batch| {
            batch.column(0).as_primitive::<Int64Type>().values().iter().map(|offset| *offset as Offset)
        })
        .collect()
}

/// When events happen that are appended again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Times {
    /// When they did.
    Original,
    /// Now.
    Now,
    /// At a moment, or when they were recorded if that was later, microseconds UTC; what was recorded after `until` is
    /// not meant.
    From { first: i64, until: i64 },
}

/// The condition that rows were recorded by then.
fn recorded_by(until: i64) -> String {
    format!(" AND {} <= to_timestamp_micros({until})", columns::RECORDED_AT)
}

/// A replay on its way.
struct Replay {
    node: Arc<Node>,
    call: Arc<Call>,
    /// Who may see what it is about.
    reader: Reader,
    /// On whose behalf events are brought.
    sender: Principal,
    source: Arc<StreamSchema>,
    target: Arc<StreamSchema>,
    /// What goes behind the id, and the column that it stands in.
    name: Option<(String, String)>,
    times: Times,
    /// What is said of events beside what they say; then none that a replay has brought is meant.
    set: Option<BTreeMap<String, Value>>,
    condition: String,
    parameters: Vec<(String, ScalarValue)>,
    parts: VecDeque<Part>,
    span: u64,
    /// Offsets that are read at a time at most.
    widest: u64,
    /// Events in all.
    of: u64,
    totals: Totals,
}

/// What became of the events so far.
#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    events: u64,
    accepted: u64,
    duplicates: u64,
    conflicts: u64,
    rejected: u64,
    /// Not there any more: their retention ended, or their stream was dropped.
    gone: u64,
    /// Where the last one that was taken stands.
    last: Option<(Partition, Offset)>,
}

impl std::ops::AddAssign for Totals {
    fn add_assign(&mut self, more: Self) {
        self.events += more.events;
        self.accepted += more.accepted;
        self.duplicates += more.duplicates;
        self.conflicts += more.conflicts;
        self.rejected += more.rejected;
        self.gone += more.gone;
        self.last = more.last.or(self.last);
    }
}

impl Replay {
    async fn plan(
        node: Arc<Node>,
        call: Arc<Call>,
        stream: &str,
        request: ReplayRequest,
    ) -> Result<Self, Problem> {
        let source = streams::find(&node, stream)?.schema.clone();
        let into = request.into.as_deref().unwrap_or(stream);
        let target = events::find(&node, into).map_err(|problem| match request.into {
            Some(_) => problem,
            None => problem.hint("name a stream that takes events with `into`"),
        })?;
        let target = streams::find(&node, target.public())?.schema.clone();
        let lens = node.lens(&call.identity, "stream", &source.name.at_version(1));
        if source.name != target.name && !lens.masks.is_empty() {
            let detail = format!("columns of \"{stream}\" are masked for you; elsewhere they would not be");
            return Err(Problem::new(StatusCode::CONFLICT, "would_reveal", detail)
                .hint("replay it into itself, or ask for the permission that the mask names"));
        }
        let shared = is_shared(&node.catalog(), &target.name.at_version(1));
        let asked = Asked::on("ingest", "stream", target.name.public()).shared(shared);
        node.authorize(&call.identity, asked)?;
        stays_hidden(&source, &target)?;
        let name = id_suffix(&node, &source, &target, request.name)?;
        let (mut condition, parameters) = condition(
            &request.condition,
            (&request.from, &request.until),
            request.partition,
            (request.from_offset, request.until_offset),
        )?;
        condition.push_str(&request.recorded_until.map(recorded_by).unwrap_or_default());
        if let Some((name, id)) =
            name.as_ref().filter(|(_, id)| source.name == target.name && !source.is_sensitive(id))
        {
            // Not what it has brought itself; of ids that are masked that is seen row by row.
            let suffix = format!("~{name}");
            condition.push_str(&format!(" AND right({}, {}) <> '{suffix}'", quoted(id), suffix.len()));
        }
        let times = if request.now { Times::Now } else { Times::Original };
        let mut replay =
            Self { name, times, ..Self::new(node, call, (source, target), condition, parameters) };
        replay.find().await?;
        Ok(replay)
    }

    /// Nothing of it is done yet.
    fn new(
        node: Arc<Node>,
        call: Arc<Call>,
        (source, target): (Arc<StreamSchema>, Arc<StreamSchema>),
        condition: String,
        parameters: Vec<(String, ScalarValue)>,
    ) -> Self {
        Self {
            reader: call.reader(),
            sender: call.principal().clone(),
            node,
            call,
            source,
            target,
            name: None,
            times: Times::Original,
            set: None,
            condition,
            parameters,
            parts: VecDeque::new(),
            span: SPAN,
            widest: WIDEST_SPAN,
            of: 0,
            totals: Totals::default(),
        }
    }

    /// Finds out what it is about, and how much that is.
    async fn find(&mut self) -> Result<(), Problem> {
        // Where it ends is known before it begins: a stream that is replayed into itself grows.
        let found = self
            .ask(format!(
                "SELECT _partition, CAST(min(_offset) AS BIGINT), CAST(max(_offset) AS BIGINT), count(*) FROM {} WHERE {} GROUP BY _partition ORDER BY _partition",
                quoted(self.source.name.public()),
                self.condition
            ))
            .await?;
        for batch in &found.batches {
            let int = |at: usize| batch.column(at).as_primitive::<Int64Type>();
            for row in 0..batch.num_rows() {
                self.parts.push_back(Part {
                    partition: batch.column(0).as_primitive::<Int32Type>().value(row) as Partition,
                    next: int(1).value(row) as Offset,
                    end: int(2).value(row) as Offset + 1,
                });
                self.of += int(3).value(row) as u64;
            }
        }
        Ok(())
    }

    async fn ask(&self, sql: String) -> Result<QueryResult, SqlError> {
        let (node, parameters) = (self.node.clone(), self.parameters.clone());
        let relations = Arc::new(NodeRelations::new(self.node.clone(), self.reader.clone()));
        let question =
            async move { adhoc::query(&node.engine, relations, &sql, parameters, QUERY_LIMITS).await };
        self.node.ask(question).await
    }

    /// Appends the next events; false when there are none.
    async fn step(&mut self) -> Result<bool, Problem> {
        while let Some(Part { partition, next, end }) = self.parts.front().copied() {
            if next >= end {
                self.parts.pop_front();
                continue;
            }
            self.keep_up()?;
            let upto = next.saturating_add(self.span).min(end);
            let wanted = match self.ask(self.question(partition, next, upto)).await {
                Ok(result) if !result.truncated => offsets(&result),
                // Too much at a time.
                Ok(_) => {
                    self.span = (self.span / 2).max(1);
                    continue;
                }
                Err(error) if TOO_MUCH.contains(&error.code) && self.span > 1 => {
                    self.span /= 2;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let totals = self.append(partition, &wanted).await?;
            self.totals += totals;
            if let Some(part) = self.parts.front_mut() {
                part.next = upto;
            }
            if (wanted.len() as u64) < SPAN / 4 {
                self.span = (self.span * 2).min(self.widest);
            }
            if totals.events > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Goes on with the streams as they are by now: they may have got columns, but not become other ones.
    fn keep_up(&mut self) -> Result<(), Problem> {
        let now = |then: &StreamSchema| {
            let now = streams::find(&self.node, then.name.public())?.schema.clone();
            let same = now.name == then.name && now.options == then.options;
            if same && now.columns.starts_with(&then.columns) {
                return Ok(now);
            }
            let detail = format!("\"{}\" was changed meanwhile", then.name.public());
            Err(Problem::new(StatusCode::CONFLICT, "stream_changed", detail)
                .hint("begin again under the same name"))
        };
        let (source, target) = (now(&self.source)?, now(&self.target)?);
        stays_hidden(&source, &target)?;
        (self.source, self.target) = (source, target);
        Ok(())
    }

    fn question(&self, partition: Partition, from: Offset, upto: Offset) -> String {
        format!(
            "SELECT CAST(_offset AS BIGINT) AS wanted FROM {} WHERE _partition = {partition} AND _offset >= {from} AND _offset < {upto} AND {} ORDER BY wanted",
            quoted(self.source.name.public()),
            self.condition,
        )
    }

    /// Hands the events at some offsets to the door, and counts what became of them.
    async fn append(&self, partition: Partition, wanted: &[Offset]) -> Result<Totals, Problem> {
        let mut totals = Totals::default();
        let at = StreamPartition::new(self.source.name.clone(), partition);
        let mut left = wanted;
        while let Some(first) = left.first().copied() {
            let (log, from) = (self.node.log().clone(), at.clone());
            let read = tokio::task::spawn_blocking(move || log.read(&from, first, READ_ROWS)).await;
            let batches = match read.map_err(Problem::internal)? {
                Ok(batches) => batches,
                // Their retention ended while it went on.
                Err(ReadError::Retired { start, .. }) if start > first => {
                    let (gone, there) = left.split_at(left.partition_point(|offset| *offset < start));
                    totals.gone += gone.len() as u64;
                    left = there;
                    continue;
                }
                Err(error) => return Err(unreadable(error).into()),
            };
            let Some(end) = batches.last().map(LogBatch::end).filter(|end| *end > first) else {
                totals.gone += left.len() as u64;
                break;
            };
            let (here, beyond) = left.split_at(left.partition_point(|offset| *offset < end));
            left = beyond;
            for batch in &batches {
                let of_batch = &here[here.partition_point(|offset| *offset < batch.base)
                    ..here.partition_point(|offset| *offset < batch.end())];
                let rows = Rows::of(self, partition, batch).map_err(Problem::internal)?;
                totals += self.hand_over(&rows, of_batch).await?;
            }
        }
        Ok(totals)
    }

    async fn hand_over(&self, rows: &Rows<'_>, mut offsets: &[Offset]) -> Result<Totals, Problem> {
        let mut totals = Totals::default();
        while !offsets.is_empty() {
            let mut body = String::new();
            while let [offset, rest @ ..] = offsets
                && body.len() < PART
            {
                rows.write(*offset, &mut body);
                offsets = rest;
            }
            if body.is_empty() {
                break;
            }
            let submission = Submission {
                stream: self.target.name.clone(),
                body: body.into(),
                format: Format::NdJson,
                principal: self.sender.clone(),
                leaf: Some(Box::new(self.call.entry(&self.node))),
                beside: Vec::new(),
            };
            for verdict in bulk::submit(&self.node, submission).await? {
                totals.events += 1;
                if let Outcome::Accepted { partition, offset } = verdict.outcome {
                    totals.last = Some((partition, offset));
                }
                *match verdict.outcome {
                    Outcome::Accepted { .. } => &mut totals.accepted,
                    Outcome::Duplicate { .. } => &mut totals.duplicates,
                    // Under the same name it is the same event, at another now.
                    Outcome::Conflict { .. } if self.times == Times::Now && self.name.is_some() => {
                        &mut totals.duplicates
                    }
                    Outcome::Conflict { .. } => &mut totals.conflicts,
                    Outcome::Rejected(_) => &mut totals.rejected,
                } += 1;
            }
        }
        Ok(totals)
    }

    fn done(&self) -> Value {
        let Totals { events, accepted, duplicates, conflicts, rejected, gone, last: _ } = self.totals;
        json!({"events": events, "of": self.of, "accepted": accepted, "duplicates": duplicates, "conflicts": conflicts, "rejected": rejected, "gone": gone})
    }

    fn summary(&self) -> Value {
        let mut line = with(self.done(), "finished", true.into());
        line["into"] = self.target.name.public().into();
        line["repeatable"] = (!self.target.options.event_id.is_empty()).into();
        line["name"] = self.name.as_ref().map_or(Value::Null, |(name, _)| name.as_str().into());
        line
    }
}

/// Refuses a target that would show what the source hides.
fn stays_hidden(source: &StreamSchema, target: &StreamSchema) -> Result<(), Problem> {
    if !source.has_sensitive() || source.name == target.name {
        return Ok(());
    }
    let (from, to) = (source.name.public(), target.name.public());
    if let Some(subject) =
        source.options.subject.as_ref().filter(|it| target.options.subject.as_ref() != Some(it))
    {
        let detail = format!(
            "what is SENSITIVE in \"{from}\" can be erased by \"{subject}\"; in \"{to}\" it could not"
        );
        return Err(Problem::new(StatusCode::CONFLICT, "would_outlive", detail)
            .hint(format!("declare \"{to}\" WITH (subject = '{subject}')")));
    }
    let refuse = |detail: String, hint: &str| {
        Err(Problem::new(StatusCode::CONFLICT, "would_reveal", detail).hint(hint))
    };
    // Members that the source does not declare are hidden with the rest.
    let shows = |column: &&Column| source.raw && source.column(&column.name).is_none() && !column.sensitive;
    let shown = target.columns.iter().find(shows).map(|column| format!("\"{}\"", column.name));
    if let Some(what) = shown.or_else(|| target.options.inferred.then(|| "what it learns".to_owned())) {
        return refuse(
            format!("\"{from}\" hides members that it does not declare; in \"{to}\" {what} would show them"),
            "replay into a stream with the same columns",
        );
    }
    let whole = source.columns.iter().filter(|column| column.sensitive).map(|column| &column.name);
    let shown = whole.chain(&source.options.sensitive).find(|path| match path.split_once('.') {
        Some((column, member)) => !target.is_sensitive_member(column, member),
        None => !target.column(path).is_some_and(|column| column.sensitive),
    });
    match shown {
        Some(path) => refuse(
            format!("{path} of \"{from}\" is SENSITIVE; in \"{to}\" everybody would see it"),
            "declare it SENSITIVE there, too, or replay a derived stream that masks it",
        ),
        None => Ok(()),
    }
}

/// What goes behind ids, and the column of the target that it stands in.
fn id_suffix(
    node: &Node,
    source: &StreamSchema,
    target: &StreamSchema,
    name: Option<String>,
) -> Result<Option<(String, String)>, Problem> {
    let itself = source.name == target.name;
    let plain = |name: &String| {
        !name.is_empty()
            && name.len() <= 64
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    if name.as_ref().is_some_and(|name| !plain(name)) {
        return Err(Problem::bad_request(
            "invalid_name",
            "the name of a replay is up to 64 letters, digits, dots, dashes and underscores",
        ));
    }
    if name.is_none() && !itself {
        return Ok(None);
    }
    let into = target.name.public();
    let refuse = |detail: String| {
        Err(Problem::bad_request("no_text_id", detail).hint("replay into another stream, without a name"))
    };
    if target.options.event_id.is_empty() {
        return refuse(format!("events of \"{into}\" have no ids, so a replay could not be told from them"));
    }
    let is_text = |stream: &StreamSchema, id: &str| {
        stream.column(id).is_some_and(|column| column.data_type == DataType::Utf8)
    };
    let text = |id: &&String| is_text(source, id) && is_text(target, id);
    let Some(column) = target.options.event_id.iter().find(text) else {
        return refuse(format!(
            "no column of the event id of \"{into}\" is a TEXT in both streams, so a name can't go behind it"
        ));
    };
    let name = name.unwrap_or_else(|| {
        let now = time::show_micros(node.machine.clock.now_micros());
        let digits: String = now.chars().filter(char::is_ascii_digit).take(14).collect();
        format!("replay-{digits}")
    });
    Ok(Some((name, column.clone())))
}

/// The condition of all questions, and its parameters.
fn condition(
    given: &Option<String>,
    (from, until): (&Option<String>, &Option<String>),
    partition: Option<u32>,
    (first, end): (Option<u64>, Option<u64>),
) -> Result<(String, Vec<(String, ScalarValue)>), Problem> {
    let (mut conditions, mut parameters) = (Vec::new(), Vec::new());
    for (name, value, comparison) in [("replay_from", from, ">="), ("replay_until", until, "<")] {
        let Some(text) = value else { continue };
        let micros = time::parse_micros(text).ok_or_else(|| {
            Problem::bad_request("bad_time", format!("\"{text}\" is not a time"))
                .hint("write RFC 3339, a date, or epoch seconds or milliseconds")
        })?;
        conditions.push(format!("{} {comparison} ${name}", columns::EVENT_TIME));
        parameters
            .push((name.to_owned(), ScalarValue::TimestampMicrosecond(Some(micros), Some("UTC".into()))));
    }
    conditions.extend(partition.map(|partition| format!("_partition = {partition}")));
    conditions.extend(first.map(|offset| format!("_offset >= {offset}")));
    conditions.extend(end.map(|offset| format!("_offset < {offset}")));
    if let Some(given) = given {
        conditions.push(format!("({})", parsed(given)?));
    }
    if conditions.is_empty() {
        conditions.push("TRUE".into());
    }
    Ok((conditions.join(" AND "), parameters))
}

/// A condition that is one, and nothing behind it.
fn parsed(condition: &str) -> Result<String, Problem> {
    let wrong = |detail: String| {
        Problem::bad_request("invalid_sql", detail).hint("write a condition, such as status = 'failed'")
    };
    let parser = Parser::new(&GenericDialect {}).try_with_sql(condition);
    let mut parser = parser.map_err(|error| wrong(error.to_string()))?;
    let expression = parser.parse_expr().map_err(|error| wrong(error.to_string()))?;
    match parser.peek_token().token {
        Token::EOF => Ok(expression.to_string()),
        other => Err(wrong(format!("`where` goes on behind its condition, with {other}"))),
    }
}
