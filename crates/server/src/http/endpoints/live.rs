//! Endpoints that answer again and again: the first row of the query, every so often, over a WebSocket or as
//! server-sent events.
//!
//! What is told are figures as they stand, so that whoever comes back has missed nothing but the figures in between;
//! each message says up to which mark of the log it counts, and how many ticks its reader was too slow for. Readers
//! who ask the same with the same permissions share an answer.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts, Request};
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::StreamExt;
use highwater_event::time::show_micros;
use highwater_sql::catalog::Endpoint;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use super::{Question, first_row};
use crate::http::call::hash_of;
use crate::http::call::{Call, Session};
use crate::http::problem::{Answer, Problem};
use crate::node::{Node, Remembered};

/// How long a WebSocket waits for its first message.
const PATIENCE: Duration = Duration::from_secs(10);
/// Members of a first message that are not parameters.
const OWN: [&str; 2] = ["type", "from"];

/// Somebody who wants to be told.
pub struct Subscription {
    pub node: Arc<Node>,
    pub call: Arc<Call>,
    pub endpoint: Arc<Endpoint>,
    pub every: Duration,
    /// Parameters in the path, as they were sent.
    pub path: BTreeMap<String, String>,
}

impl Subscription {
    /// Begins; a WebSocket says what it wants in its first message, or in its query as everybody else.
    pub async fn answer(self, mut given: BTreeMap<String, String>, request: Request) -> Answer {
        let (mut parts, _) = request.into_parts();
        // Where a reader has come to; the figures are as they stand, so there is nothing to go back for.
        given.remove("from");
        let session = self.call.session(&self.node);
        match WebSocketUpgrade::from_request_parts(&mut parts, &()).await {
            Ok(upgrade) => {
                let upgrade = upgrade.max_message_size(64 << 10);
                Ok(upgrade.on_upgrade(move |socket| self.serve_socket(socket, given, session)))
            }
            Err(_) => {
                let question = self.question(given).await?;
                let ticks = tell(question, self.every);
                let events = futures::stream::unfold((ticks, session), |(mut ticks, session)| async {
                    let told: Value = ticks.recv().await?;
                    session.count(1);
                    let id = told["offset"].to_string();
                    let kind = told["type"].as_str().unwrap_or_default().to_owned();
                    let event = Event::default().event(kind).id(id).data(told.to_string());
                    Some((Ok::<_, Infallible>(event), (ticks, session)))
                });
                let keep_alive = KeepAlive::new().interval(Duration::from_secs(15));
                let mut response = Sse::new(events.fuse()).keep_alive(keep_alive).into_response();
                let headers = response.headers_mut();
                headers.insert("x-accel-buffering", axum::http::HeaderValue::from_static("no"));
                Ok(response)
            }
        }
    }

    async fn question(&self, given: BTreeMap<String, String>) -> Result<Question, Problem> {
        let path = self.path.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let (question, _) = Question::of(&self.node, &self.call, &self.endpoint, given, path).await?;
        Ok(question)
    }

    async fn serve_socket(self, mut socket: WebSocket, given: BTreeMap<String, String>, session: Session) {
        let first = tokio::time::timeout(PATIENCE, first_message(&mut socket)).await;
        let wanted = match first {
            Ok(Some(Ok(more))) => given.into_iter().chain(more).collect(),
            Ok(Some(Err(problem))) => return refuse(socket, &problem).await,
            Ok(None) => return,
            Err(_) => {
                let detail = "send {\"type\": \"subscribe\", …} first";
                return refuse(socket, &Problem::bad_request("subscribe_expected", detail)).await;
            }
        };
        let question = match self.question(wanted).await {
            Ok(question) => question,
            Err(problem) => return refuse(socket, &problem).await,
        };
        let mut ticks = tell(question, self.every);
        loop {
            tokio::select! {
                told = ticks.recv() => {
                    let Some(told) = told else { break };
                    session.count(1);
                    if socket.send(Message::Text(told.to_string().into())).await.is_err() {
                        return;
                    }
                }
                received = socket.recv() => match received {
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                    Some(Ok(_)) => {}
                },
            }
        }
        drop(socket.send(Message::Close(None)).await);
    }
}

/// What the first message wants; nothing when the other side has gone.
async fn first_message(socket: &mut WebSocket) -> Option<Result<BTreeMap<String, String>, Problem>> {
    loop {
        let text = match socket.recv().await? {
            Ok(Message::Text(text)) => text,
            Ok(Message::Close(_)) | Err(_) => return None,
            Ok(_) => continue,
        };
        let read: Result<Map<String, Value>, _> = serde_json::from_str(&text);
        let wrong = |detail: String| Problem::bad_request("subscribe_expected", detail);
        let message = match read {
            Ok(message) if message.get("type").and_then(Value::as_str) == Some("subscribe") => message,
            Ok(_) => return Some(Err(wrong("the first message has the type \"subscribe\"".into()))),
            Err(error) => return Some(Err(wrong(format!("the first message is a JSON object: {error}")))),
        };
        let wanted =
            message.into_iter().filter(|(name, value)| !OWN.contains(&name.as_str()) && !value.is_null());
        let text = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        return Some(Ok(wanted.map(|(name, value)| (name, text(value))).collect()));
    }
}

async fn refuse(mut socket: WebSocket, problem: &Problem) {
    let mut told = json!({"type": "error"});
    told["error"] = problem.summary();
    drop(socket.send(Message::Text(told.to_string().into())).await);
    drop(socket.send(Message::Close(None)).await);
}

/// Asks every so often until nobody listens; a reader that is too slow is told how many ticks it has missed.
fn tell(question: Question, every: Duration) -> mpsc::Receiver<Value> {
    let (sender, told) = mpsc::channel(1);
    let node = question.node.clone();
    node.go_on(async move {
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut before: Option<(Value, Duration)> = None;
        let mut missed = 0u64;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = sender.closed() => return,
            }
            if !question.node.is_current(&question.call.identity) {
                let error = json!({"code": "credentials_changed", "detail": "what you may see has changed: begin again"});
                drop(sender.send(json!({"type": "error", "error": error})).await);
                return;
            }
            if sender.capacity() == 0 {
                missed += 1;
                continue;
            }
            let answered = match shared(&question, every).await {
                Ok(answered) => answered,
                Err(problem) => {
                    drop(sender.send(json!({"type": "error", "error": problem.summary()})).await);
                    return;
                }
            };
            let Ok(figures) = serde_json::from_str::<Value>(&answered.body) else { return };
            let rates = before.as_ref().map(|(then, at)| rates(then, &figures, answered.at.saturating_sub(*at)));
            let now = question.node.machine.clock.now_micros();
            let message = json!({"type": "metrics", "at": show_micros(now), "offset": answered.mark, "missed": missed,
                "data": figures, "rates": rates});
            missed = 0;
            // The same answer as before has no rates.
            if before.as_ref().is_none_or(|(_, at)| *at != answered.at) {
                before = Some((figures, answered.at));
            }
            if sender.send(message).await.is_err() {
                return;
            }
        }
    });
    told
}

/// By how much whole numbers grow in a second.
fn rates(before: &Value, now: &Value, between: Duration) -> Value {
    let seconds = between.as_secs_f64();
    let members = now.as_object().into_iter().flatten();
    let rates = members.filter_map(|(name, value)| {
        let grown = value.as_i64()? - before[name].as_i64()?;
        (seconds > 0.0).then(|| (name.clone(), json!((grown as f64 / seconds * 1000.0).round() / 1000.0)))
    });
    Value::Object(rates.collect())
}

/// The first row as it is by now, or as it was for somebody else a moment ago.
async fn shared(question: &Question, every: Duration) -> Result<Arc<Remembered>, Problem> {
    let Question { node, call, endpoint, values } = question;
    let now = node.machine.scheduler.elapsed();
    let tick = now.as_micros() / every.as_micros().max(1);
    let in_force = node.generation.load(Ordering::SeqCst);
    let key = format!("live {}\n{:?}\n{in_force}\n{tick}\n{values:?}", endpoint.path, call.identity);
    let asked = node.remembered.get_or_insert_async(&key, async {
        let mark = node.log().recorded_until();
        let result = question.rows().await?;
        let body = first_row(&result);
        let body = if body.is_empty() { "{}".to_owned() } else { body };
        let (rows, hash) = (result.row_count(), hash_of(body.as_bytes()));
        let renewing = AtomicBool::default();
        Ok::<_, Problem>(Arc::new(Remembered { at: now, mark, rows, lens: None, body, hash, renewing }))
    });
    asked.await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_have_rates() {
        let (then, now) =
            (json!({"n": 10, "p50": 1.5, "who": "a"}), json!({"n": 25, "p50": 2.5, "who": "a", "new": 1}));
        assert_eq!(rates(&then, &now, Duration::from_secs(2)), json!({"n": 7.5}));
        assert_eq!(rates(&then, &now, Duration::ZERO), json!({}));
    }
}
