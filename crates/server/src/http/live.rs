//! Queries that never end, as server-sent events or over a WebSocket.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::rejection::QueryRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;

use super::call::{Call, Session};
use super::problem::{Answer, Problem};
use crate::node::{Node, Update, follow};

/// What is followed, and from where.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct SubscribeQuery {
    /// A query; EMIT CHANGES at its end may be left out.
    query: String,
    /// "newest" (the default), "earliest", or the mark of an update to go on after it. The header
    /// Last-Event-ID does the same.
    from: Option<String>,
}

/// Follows a query: server-sent events, or a WebSocket when the call asks for one.
///
/// Rows of a stream come as `rows`, each update with the mark after it; any other query answers
/// `changes`, rows added and removed. Come back with the last mark to miss nothing and get nothing twice.
#[utoipa::path(get, path = "/api/v1/subscribe", tag = "query", params(SubscribeQuery),
    responses((status = 200, description = "text/event-stream of columns, rows, changes, mark, error; id is the mark"), (status = 101, description = "the same as WebSocket messages {type, mark, data}"),
        (status = 400, description = "the query is wrong")))]
pub async fn subscribe(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    given: Result<Query<SubscribeQuery>, QueryRejection>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Answer {
    let Query(given) = given?;
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
    let from = last.filter(|id| !id.is_empty()).or(given.from);
    call.saw("query", given.query.as_str());
    let updates = follow(&node, &call.identity, &given.query, from.as_deref()).await.map_err(|error| {
        let rendered = error.render(&given.query);
        Problem::from(error).with("rendered", rendered.into())
    })?;
    let session = call.session(&node);
    Ok(match upgrade {
        Ok(upgrade) => upgrade
            .max_message_size(64 << 10)
            .on_upgrade(move |socket| serve_socket(socket, updates, session)),
        Err(_) => serve_events(updates, session),
    })
}

fn serve_events(updates: mpsc::Receiver<Update>, session: Session) -> Response {
    let events = futures::stream::unfold((updates, session), |(mut updates, session)| async {
        let update = updates.recv().await?;
        session.count(1);
        let mut event = Event::default().event(update.kind).data(update.data.to_string());
        if let Some(mark) = update.mark {
            event = event.id(mark);
        }
        Some((Ok::<_, Infallible>(event), (updates, session)))
    });
    let mut response = Sse::new(events.fuse())
        .keep_alive(KeepAlive::new().interval(Duration::from_secs(15)))
        .into_response();
    // Proxies that buffer would hold updates back.
    response.headers_mut().insert("x-accel-buffering", axum::http::HeaderValue::from_static("no"));
    response
}

async fn serve_socket(mut socket: WebSocket, mut updates: mpsc::Receiver<Update>, session: Session) {
    loop {
        tokio::select! {
            update = updates.recv() => {
                let Some(update) = update else { break };
                session.count(1);
                let message = json!({"type": update.kind, "mark": update.mark, "data": update.data}).to_string();
                if socket.send(Message::Text(message.into())).await.is_err() {
                    return;
                }
            }
            received = socket.recv() => match received {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                // Pings are answered by the protocol; there is nothing to say to a query that runs.
                Some(Ok(_)) => {}
            },
        }
    }
    if let Err(error) = socket.send(Message::Close(None)).await {
        tracing::debug!(%error, "a reader had gone");
    }
}
