//! Sends events over WebSockets, one message an event, and reads the answer to each.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::{FutureExt, SinkExt, StreamExt};
use hdrhistogram::Histogram;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::node::Node;
use crate::sender::{EVENT, USERS, number_event};

/// Sends until a time, with at most so many messages unanswered; answers the microseconds from a message
/// to its answer, of those that were sent after `from`.
pub async fn send(
    node: &Node,
    ids: &AtomicU64,
    unanswered: usize,
    from: Instant,
    until: Instant,
) -> anyhow::Result<Histogram<u64>> {
    let stream = TcpStream::connect(&node.address).await?;
    stream.set_nodelay(true)?;
    let mut request = format!("ws://{}/api/v1/streams/bench/socket", node.address).into_client_request()?;
    request.headers_mut().insert("authorization", format!("Bearer {}", node.token).parse()?);
    let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await?;
    let mut latencies = Histogram::<u64>::new(3)?;
    let mut sent = VecDeque::with_capacity(unanswered);
    loop {
        let open = Instant::now() < until;
        while open && sent.len() < unanswered {
            let mut event = EVENT.as_bytes().to_vec();
            number_event(&mut event, ids.fetch_add(1, Ordering::Relaxed), USERS);
            sent.push_back(Instant::now());
            socket.feed(Message::text(String::from_utf8(event)?)).await?;
        }
        socket.flush().await?;
        if sent.is_empty() {
            break;
        }
        let mut answer = socket.next().await;
        loop {
            let text = answer.context("the node hung up")??.into_text()?;
            ensure!(text.contains("\"status\":\"accepted\""), "{text}");
            let started = sent.pop_front().context("an answer too many")?;
            if started >= from {
                latencies.record(started.elapsed().as_micros() as u64)?;
            }
            match socket.next().now_or_never() {
                Some(more) => answer = more,
                None => break,
            }
        }
    }
    tokio::time::timeout(Duration::from_secs(5), socket.close(None)).await??;
    Ok(latencies)
}
