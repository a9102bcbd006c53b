//! Events over a WebSocket: a message is an event, and each gets an answer of its own, in order, when the
//! event is durable. Senders don't wait for one answer before the next message; messages that have come
//! in meanwhile go through the door together.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use futures::{FutureExt, SinkExt, StreamExt};
use highwater_event::StreamName;
use highwater_ingest::Format;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::call::{self, Call};
use super::events::{self, Tally};
use super::problem::{Answer, Problem};
use crate::node::Node;

/// The longest message; longer events can be sent over HTTP.
const LONGEST: usize = 1 << 20;
const TOO_LONG: &str = "a message may have 1 MiB; send longer events over HTTP";
/// Most messages, and about how many bytes, that go through the door together.
const TOGETHER: usize = 1000;
const TOGETHER_BYTES: usize = 512 << 10;
/// How long a sender may leave its answers unread.
const PATIENCE: Duration = Duration::from_secs(30);
/// Most bytes of answers that wait for a sender.
const UNSENT: usize = 4 << 20;
/// Connections at one time: each may hold a message and answers.
static ROOM: Semaphore = Semaphore::const_new(1024);

/// Takes events for a stream over a WebSocket.
///
/// Each message is one event as a JSON object of at most 1 MiB. Each answer is a JSON object
/// `{index, event_id, status, offset}` in the order of the messages; `index` counts them from 0. The status is
/// `accepted` or `duplicate` when the event is durable, `conflict` or `rejected` when it is not what the
/// stream takes, and `failed` when it should be sent again. Events of one connection stand in the stream in the order
/// of their messages. Read all answers before you close: none is sent after that. A message that is too long ends
/// the connection with 1009.
#[utoipa::path(get, path = "/api/v1/streams/{stream}/socket", tag = "ingest",
    params(("stream" = String, Path, description = "name of a declared stream")),
    responses((status = 101, description = "a WebSocket; one answer a message"), (status = 404, description = "no such stream"),
        (status = 426, description = "the call does not ask for a WebSocket"), (status = 503, description = "as many are open as there may be")))]
pub async fn stream_socket(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    Path(stream): Path<String>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Answer {
    let stream = events::find(&node, &stream)?;
    let upgrade = upgrade.map_err(|rejection| {
        Problem::new(StatusCode::UPGRADE_REQUIRED, "websocket_expected", rejection.body_text())
            .hint("open a WebSocket here, or POST events to …/events")
    })?;
    let Ok(room) = ROOM.try_acquire() else {
        let detail = "as many WebSockets are open as there may be";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail));
    };
    let audited = call.session(&node);
    let session = Session { node, stream, call, audited, _room: room };
    let upgrade = upgrade.max_message_size(LONGEST).max_frame_size(LONGEST).max_write_buffer_size(UNSENT);
    Ok(upgrade.on_upgrade(move |socket| session.run(socket)))
}

struct Session {
    node: Arc<Node>,
    stream: StreamName,
    call: Arc<Call>,
    /// Its end is written down, too.
    audited: call::Session,
    _room: SemaphorePermit<'static>,
}

/// Messages that go through the door together, and the number of the first.
struct Group {
    first: usize,
    load: Load,
}

enum Load {
    /// One event a line.
    Lines { body: Vec<u8>, events: usize },
    /// One whose text has lines of its own.
    Alone(Bytes),
    /// It is no event.
    Refused(Problem),
}

impl Session {
    /// One group is answered before the next is read, so that events come into the stream in the order of
    /// their messages, and what has to wait stays with its sender.
    async fn run(self, mut socket: WebSocket) {
        let mut groups = Groups::default();
        while !groups.ended {
            for group in groups.read(&mut socket).await {
                let answers = self.take(group).await;
                if write(&mut socket, answers).await.is_none() {
                    return;
                }
            }
        }
        let frame = match groups.too_long {
            true => CloseFrame { code: close_code::SIZE, reason: Utf8Bytes::from_static(TOO_LONG) },
            false => CloseFrame { code: close_code::NORMAL, reason: Utf8Bytes::default() },
        };
        let closed = async {
            // A peer that closed first has its answer in the buffer.
            socket.send(Message::Close(Some(frame))).await.ok();
            socket.flush().await
        };
        if !matches!(tokio::time::timeout(PATIENCE, closed).await, Ok(Ok(()))) {
            tracing::debug!("a sender had gone");
        }
    }

    /// Hands a group to the door and says what became of each message.
    async fn take(&self, group: Group) -> Vec<Utf8Bytes> {
        let (format, body, events) = match group.load {
            Load::Lines { body, events } => (Format::NdJson, Bytes::from(body), events),
            Load::Alone(body) => (Format::Json, body, 1),
            Load::Refused(problem) => return vec![refused(group.first, &problem)],
        };
        self.audited.count(events as u64);
        let submission = if self.node.is_current(&self.call.identity) {
            events::submission(&self.node, &self.call, self.stream.clone(), body, format)
        } else {
            Err(super::auth::refused(highwater_auth::directory::Refused::Expired))
        };
        let outcome = match submission {
            Ok(submission) => super::bulk::submit(&self.node, submission).await,
            Err(problem) => Err(problem),
        };
        let problem = match outcome {
            Ok(verdicts) if verdicts.len() == events => {
                let mut tally = Tally::default();
                let answers = verdicts.iter().zip(group.first..).map(|(verdict, index)| {
                    tally.count(verdict);
                    let mut answer = String::with_capacity(96);
                    // Writing to a String can't fail.
                    events::write_result(&mut answer, index, verdict).ok();
                    answer.into()
                });
                let answers = answers.collect();
                tally.publish();
                return answers;
            }
            Ok(_) => Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "the answers could not be told apart; send the events again",
            ),
            Err(problem) => problem,
        };
        (group.first..group.first + events).map(|index| refused(index, &problem)).collect()
    }
}

/// The answer to a message that did not come through the door.
fn refused(index: usize, problem: &Problem) -> Utf8Bytes {
    let mut answer = String::new();
    let (status, error) = (if problem.is_lasting() { "rejected" } else { "failed" }, problem.summary());
    // Writing to a String can't fail.
    write!(answer, "{{\"index\":{index},\"event_id\":null,\"status\":\"{status}\",\"error\":{error}}}").ok();
    answer.into()
}

/// Sends answers; `None` when nobody reads them.
async fn write(socket: &mut WebSocket, answers: Vec<Utf8Bytes>) -> Option<()> {
    let written = async {
        for answer in answers {
            socket.feed(Message::Text(answer)).await?;
        }
        socket.flush().await
    };
    match tokio::time::timeout(PATIENCE, written).await {
        Ok(Ok(())) => Some(()),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a sender has gone");
            None
        }
        Err(_) => {
            tracing::warn!("a sender leaves its answers unread; its connection is closed");
            None
        }
    }
}

/// Cuts what a sender says into groups.
#[derive(Default)]
struct Groups {
    /// Messages so far.
    count: usize,
    /// It will say no more.
    ended: bool,
    /// It has said more at once than is taken.
    too_long: bool,
}

impl Groups {
    /// Waits for a message and takes those that are there already. A sender that says nothing is asked
    /// whether it is still there.
    async fn read(&mut self, socket: &mut WebSocket) -> Vec<Group> {
        let mut groups = Vec::new();
        let mut bytes = 0;
        let mut asked = false;
        let mut next = loop {
            match tokio::time::timeout(PATIENCE, socket.next()).await {
                Ok(next) => break next,
                Err(_) if asked => break None,
                Err(_) => {
                    let ping = socket.send(Message::Ping(Bytes::new()));
                    asked = matches!(tokio::time::timeout(PATIENCE, ping).await, Ok(Ok(())));
                    if !asked {
                        break None;
                    }
                }
            }
        };
        loop {
            match next {
                Some(Ok(Message::Text(text))) => {
                    bytes += text.len();
                    self.put(&mut groups, Bytes::from(text));
                }
                Some(Ok(Message::Binary(body))) => {
                    bytes += body.len();
                    self.put(&mut groups, body);
                }
                // Pings are answered by the protocol.
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Err(error)) => {
                    // The protocol's own type is not at hand; this is how it says that a limit is exceeded.
                    self.too_long = error.to_string().contains("too long");
                    self.ended = true;
                    return groups;
                }
                Some(Ok(Message::Close(_))) | None => {
                    self.ended = true;
                    return groups;
                }
            }
            if groups.len() > 1 || bytes >= TOGETHER_BYTES || self.is_full(&groups) {
                return groups;
            }
            match socket.next().now_or_never() {
                Some(more) => next = more,
                None => return groups,
            }
        }
    }

    fn is_full(&self, groups: &[Group]) -> bool {
        groups.last().is_some_and(|group| self.count - group.first >= TOGETHER)
    }

    fn put(&mut self, groups: &mut Vec<Group>, body: Bytes) {
        let first = self.count;
        self.count += 1;
        let load = match body.trim_ascii_start().first() {
            None => Load::Refused(Problem::bad_request("empty_body", "the message holds no event")),
            Some(b'[') => Load::Refused(Problem::bad_request(
                "not_an_object",
                "a message is one event; send each in a message of its own",
            )),
            // It would be taken for several.
            Some(_) if body.iter().any(|byte| matches!(byte, b'\n' | b'\r')) => Load::Alone(body),
            Some(_) => {
                if let Some(Group { load: Load::Lines { body: lines, events }, .. }) = groups.last_mut() {
                    lines.push(b'\n');
                    lines.extend_from_slice(&body);
                    *events += 1;
                    return;
                }
                Load::Lines { body: body.to_vec(), events: 1 }
            }
        };
        groups.push(Group { first, load });
    }
}
