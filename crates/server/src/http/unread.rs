//! Calls that are answered before their body is read, because their head already shows what is wrong.
//!
//! A caller that is still sending would find a closed socket instead of the answer. So what is left is
//! read and thrown away, within bounds; when it is too much, the answer says that the connection ends.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::{HeaderValue, Request, Version, header};
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt;
use http_body::{Frame, SizeHint};
use tokio::sync::oneshot;

/// Bytes that are thrown away for a caller to see its answer.
const MAX_BYTES: usize = 8 << 20;

/// Time that is spent on it.
const MAX_TIME: Duration = Duration::from_secs(1);

/// A call's body while its handler has it: what is left of it comes back.
pub struct Left(Option<oneshot::Receiver<Body>>);

/// Watches what a handler leaves of a call's body.
pub fn watch(request: Request<Body>) -> (Request<Body>, Left) {
    if request.version() > Version::HTTP_11 || request.body().is_end_stream() {
        return (request, Left(None));
    }
    let (give_back, left) = oneshot::channel();
    let request = request.map(|body| Body::new(Returned { body, give_back: Some(give_back) }));
    (request, Left(Some(left)))
}

impl Left {
    /// Throws away what the handler left, or announces `connection: close` in its answer.
    pub async fn discard(self, response: &mut Response) {
        if let Some(mut left) = self.0
            && let Ok(body) = left.try_recv()
            && !matches!(tokio::time::timeout(MAX_TIME, read_to_end(body)).await, Ok(true))
        {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }
}

/// Whether the end came within the bound.
async fn read_to_end(body: Body) -> bool {
    let mut bytes = 0;
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        match chunk {
            Ok(chunk) if bytes + chunk.len() <= MAX_BYTES => bytes += chunk.len(),
            _ => return false,
        }
    }
    true
}

/// A body that comes back when it is dropped before its end.
struct Returned {
    body: Body,
    give_back: Option<oneshot::Sender<Body>>,
}

impl Drop for Returned {
    fn drop(&mut self) {
        if !self.body.is_end_stream()
            && let Some(give_back) = self.give_back.take()
        {
            // Nobody waits for it when the answer went out before.
            give_back.send(std::mem::take(&mut self.body)).ok();
        }
    }
}

impl HttpBody for Returned {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if frame.is_none() {
            // An empty body knows that it is at its end, which not every finished one does.
            self.body = Body::empty();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
