//! Every route, and the layers around them.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderValue, Request, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use highwater_event::{Randomness, SystemRandomness};
use serde_json::Value;
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::decompression::RequestDecompressionLayer;

use super::problem::{Problem, ProblemBody};
use super::{
    auth, datalake, endpoints, events, health, live, metrics, openapi, operate, pages, replay, socket, sql,
    statements, streams, unread, views,
};
use crate::node::Node;

/// The largest body of a call that brings events.
pub const MAX_BODY: usize = 32 << 20;

/// Paths without parameters that no declared endpoint may take.
pub const BUILT_IN_PATHS: &[&str] = &[
    "/",
    "/healthz",
    "/metrics",
    "/docs",
    "/swagger",
    "/redoc",
    "/api/openapi.json",
    "/api/v1/sql",
    "/api/v1/subscribe",
    "/api/v1/statements",
    "/api/v1/streams",
    "/api/v1/tables",
    "/api/v1/endpoints",
    "/api/v1/views",
    "/api/v1/maintenance",
    "/api/v1/backup",
    "/api/v1/events/ingest",
    "/api/v1/events/batch",
    "/api/datalake/resources",
];

/// The application. Declared endpoints are found by the fallback.
pub fn app(node: Arc<Node>) -> Router {
    let guarded = Router::new()
        .route("/api/v1/streams/{stream}/events", post(events::stream_events).get(streams::tail))
        .route("/api/v1/events/ingest", post(events::ingest))
        .route("/api/v1/events/batch", post(events::batch))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(
            ServiceBuilder::new()
                // What we can't unpack is refused by the handler, with a reason.
                .layer(RequestDecompressionLayer::new().pass_through_unaccepted(true))
                .map_request(|request: Request<_>| request.map(Body::new)),
        )
        .route("/api/v1/streams/{stream}/socket", get(socket::stream_socket))
        .route("/api/v1/streams/{stream}/replay", post(replay::replay))
        .route("/api/v1/sql", post(sql::query))
        .route("/api/v1/subscribe", get(live::subscribe))
        .route("/api/v1/statements", post(statements::declare).get(statements::list))
        .route("/api/v1/streams", get(streams::list))
        .route("/api/v1/streams/{stream}", get(streams::show))
        .route("/api/v1/tables", get(statements::tables))
        .route("/api/v1/tables/{table}", get(statements::table))
        .route("/api/v1/endpoints", get(statements::endpoints))
        .route("/api/v1/views", get(views::list))
        .route("/api/v1/views/{view}", get(views::show))
        .route("/api/v1/views/{view}/rebuild", post(views::rebuild))
        .route("/api/v1/views/{view}/pause", post(views::pause))
        .route("/api/v1/views/{view}/resume", post(views::resume))
        .route("/api/datalake/streams/{name}", get(datalake::stream))
        .route("/api/datalake/resources", get(datalake::resources))
        .route("/api/v1/lake/{stream}/versions", get(operate::versions))
        .route("/api/v1/lake/{stream}/diff", get(operate::diff))
        .route("/api/v1/maintenance", post(operate::maintain))
        .route("/api/v1/backup", post(operate::backup))
        .route("/api/openapi.json", get(openapi::document))
        .route("/metrics", get(metrics::render))
        .fallback(endpoints::declared)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(node.clone(), auth::require_operator))
        .layer(middleware::from_fn(metrics::observe));
    Router::new()
        .route("/", get(pages::overview))
        .route("/docs", get(pages::docs))
        .route("/redoc", get(pages::redoc))
        .route("/redoc/redoc.js", get(pages::redoc_script))
        .route("/swagger", get(pages::swagger))
        .route("/swagger/{file}", get(pages::swagger_file))
        .route("/assets/{file}", get(pages::asset))
        .route("/healthz", get(health::healthz))
        .fallback_service(guarded.with_state(node.clone()))
        .layer(CatchPanicLayer::custom(on_panic))
        .layer(CompressionLayer::new())
        .layer(middleware::from_fn(unread::discard))
        .layer(middleware::from_fn(request_id))
        .with_state(node)
}

/// Paths work with and without the slash at their end.
pub fn trim_slash(mut request: Request<Body>) -> Request<Body> {
    let path = request.uri().path();
    if path.len() > 1 && path.ends_with('/') {
        let trimmed = path.trim_end_matches('/');
        let trimmed = if trimmed.is_empty() { "/" } else { trimmed };
        let target = match request.uri().query() {
            Some(query) => format!("{trimmed}?{query}"),
            None => trimmed.to_owned(),
        };
        if let Ok(uri) = target.parse::<Uri>() {
            *request.uri_mut() = uri;
        }
    }
    request
}

async fn wrong_method(request: Request<Body>) -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        format!("{} is not a method of this path", request.method()),
    )
}

fn on_panic(_panic: Box<dyn std::any::Any + Send + 'static>) -> Response {
    Problem::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "internal",
        "the call failed inside the engine; the log of the server says more",
    )
    .into_response()
}

/// Gives every call an id, takes over the caller's, and writes it into errors.
async fn request_id(request: Request<Body>, next: Next) -> Response {
    let given = request.headers().get("x-request-id").and_then(|id| id.to_str().ok());
    let id = given
        .filter(|id| !id.is_empty() && id.len() <= 128 && id.bytes().all(|b| b.is_ascii_graphic()))
        .map(str::to_owned)
        .unwrap_or_else(|| format!("{:016x}", SystemRandomness.next_u64().unwrap_or(0)));
    let path = request.uri().path().to_owned();
    let trace = request.headers().get("traceparent").cloned();
    let mut response = next.run(request).await;
    if let Some(ProblemBody(mut body)) = response.extensions_mut().remove::<ProblemBody>() {
        body.insert("request_id".into(), id.clone().into());
        body.insert("instance".into(), path.into());
        let mut rewritten = (response.status(), Value::Object(body).to_string()).into_response();
        std::mem::swap(rewritten.headers_mut(), response.headers_mut());
        rewritten.headers_mut().remove(header::CONTENT_LENGTH);
        rewritten.headers_mut().remove(header::CONTENT_ENCODING);
        response = rewritten;
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", id);
    }
    if let Some(trace) = trace {
        response.headers_mut().insert("traceparent", trace);
    }
    response
}
