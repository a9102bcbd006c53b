//! Every route, and the layers around them.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::DefaultBodyLimit;
use axum::http::{Request, StatusCode, Uri};
use axum::middleware;
use axum::routing::{get, post};
use tower::ServiceBuilder;
use tower_http::compression::CompressionLayer;
use tower_http::decompression::RequestDecompressionLayer;

use super::edge::{self, Access};
use super::problem::Problem;
use super::{
    datalake, endpoints, events, health, live, metrics, openapi, operate, pages, replay, socket, sql,
    statements, streams, views,
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
    let around = |access: Access| {
        ServiceBuilder::new()
            .layer(middleware::from_fn_with_state((node.clone(), access), edge::answer))
            .layer(CompressionLayer::new())
    };
    let ingest = Router::new()
        .route("/api/v1/streams/{stream}/events", post(events::stream_events).get(streams::tail))
        .route("/api/v1/events/ingest", post(events::ingest))
        .route("/api/v1/events/batch", post(events::batch))
        .method_not_allowed_fallback(wrong_method)
        .layer(
            ServiceBuilder::new()
                .layer(around(Access::Operator))
                .layer(DefaultBodyLimit::max(MAX_BODY))
                // What we can't unpack is refused by the handler, with a reason.
                .layer(RequestDecompressionLayer::new().pass_through_unaccepted(true))
                .map_request(|request: Request<_>| request.map(Body::new)),
        );
    let guarded = Router::new()
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
        .layer(around(Access::Operator));
    let open = Router::new()
        .route("/", get(pages::overview))
        .route("/docs", get(pages::docs))
        .route("/redoc", get(pages::redoc))
        .route("/redoc/redoc.js", get(pages::redoc_script))
        .route("/swagger", get(pages::swagger))
        .route("/swagger/{file}", get(pages::swagger_file))
        .route("/assets/{file}", get(pages::asset))
        .route("/healthz", get(health::healthz))
        .method_not_allowed_fallback(wrong_method)
        .layer(around(Access::Anyone));
    ingest.merge(guarded).merge(open).with_state(node)
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
