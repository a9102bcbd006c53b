//! What happens around every call, whatever it asks for: it gets an id, its caller is checked, a panic
//! becomes an answer, a body that nobody read is thrown away, its time is taken, errors are completed.
//!
//! All of it is one layer. A layer of a router is a box around every route, copied with all that it holds
//! for every call; six of them took more time than the rest of a small call.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use highwater_event::{Randomness, SystemRandomness};
use serde_json::Value;
use tokio::time::Instant;

use super::problem::{Problem, ProblemBody};
use super::{auth, metrics, unread};
use crate::node::Node;

/// Whom a route lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody: what it answers holds no data.
    Anyone,
    /// The holder of the operator's token.
    Operator,
}

/// Answers a call.
pub async fn answer(
    State((node, access)): State<(Arc<Node>, Access)>,
    request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let id = request_id(request.headers());
    let trace = request.headers().get("traceparent").cloned();
    let (mut request, left) = unread::watch(request);
    let mut response = match admit(&node, access, &mut request) {
        Ok(()) => {
            let answered = AssertUnwindSafe(next.run(request)).catch_unwind().await;
            answered.unwrap_or_else(|_panic| panicked().into_response())
        }
        Err(problem) => {
            drop(request);
            problem.into_response()
        }
    };
    left.discard(&mut response).await;
    metrics::observe(&method, route.as_ref(), response.status(), started.elapsed());
    if let Some(ProblemBody(mut body)) = response.extensions_mut().remove::<ProblemBody>() {
        body.insert("request_id".into(), id.to_str().unwrap_or_default().into());
        body.insert("instance".into(), uri.path().into());
        *response.body_mut() = Body::from(Value::Object(body).to_string());
        response.headers_mut().remove(header::CONTENT_LENGTH);
        response.headers_mut().remove(header::CONTENT_ENCODING);
    }
    response.headers_mut().insert("x-request-id", id);
    if let Some(trace) = trace {
        response.headers_mut().insert("traceparent", trace);
    }
    response
}

fn admit(node: &Node, access: Access, request: &mut Request) -> Result<(), Problem> {
    if access == Access::Operator {
        let principal = auth::operator(node, request.headers())?;
        request.extensions_mut().insert(principal);
    }
    Ok(())
}

/// The id that the caller gave, or a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    // Only once from the system: ids need to differ, not to be hard to guess.
    static NEXT: LazyLock<AtomicU64> =
        LazyLock::new(|| AtomicU64::new(SystemRandomness.next_u64().unwrap_or_default()));
    /// An odd number near 2⁶⁴ divided by the golden ratio, so that neighbours look different.
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let fit = |id: &&HeaderValue| {
        !id.is_empty() && id.len() <= 128 && id.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    headers.get("x-request-id").filter(fit).cloned().unwrap_or_else(|| {
        let number = NEXT.fetch_add(STEP, Ordering::Relaxed);
        HeaderValue::from_str(&format!("{number:016x}")).unwrap_or(HeaderValue::from_static("unknown"))
    })
}

fn panicked() -> Problem {
    Problem::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "internal",
        "the call failed inside the engine; the log of the server says more",
    )
}
