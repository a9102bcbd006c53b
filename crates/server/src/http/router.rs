//! Every route with what it needs, and the layers around them.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::DefaultBodyLimit;
use axum::handler::Handler;
use axum::http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use axum::middleware;
use highwater_log::dead_letter::DEAD_LETTERS;
use tower::ServiceBuilder;
use tower_http::compression::CompressionLayer;
use tower_http::cors::CorsLayer;

use super::edge::{self, Around};
use super::problem::Problem;
use super::routes::{Need, Needs, Routes};
use super::unpack::unpacked;
use super::{
    CallOptions, audit, claim, datalake, dead_letters, encryption, endpoints, erasures, events, health, jobs,
    keys, live, metrics, models, oidc, openapi, operate, pages, people, replay, search, sign_in, socket, sql,
    statements, streams, views,
};
use crate::node::{EVENTS, Node};

/// The largest body of a call that brings events.
pub const MAX_BODY: usize = 32 << 20;

/// Calls that bring events.
fn ingest() -> Routes {
    Routes::default()
        .post("/api/v1/streams/{stream}/events", Need::Stream("ingest", "stream"), events::stream_events)
        .get("/api/v1/streams/{stream}/events", Need::Stream("read", "stream"), streams::tail)
        .get("/api/v1/streams/{stream}/search", Need::Stream("read", "stream"), search::search)
        .post("/api/v1/events/ingest", Need::Named("ingest", EVENTS), events::ingest)
        .post("/api/v1/events/batch", Need::Named("ingest", EVENTS), events::batch)
}

/// Calls that ask, declare and look after things.
fn guarded() -> Routes {
    Routes::default()
        .get("/api/v1/streams/{stream}/socket", Need::Stream("ingest", "stream"), socket::stream_socket)
        .post("/api/v1/streams/{stream}/replay", Need::Stream("replay", "stream"), replay::replay)
        .post("/api/v1/sql", Need::Node("query"), sql::query)
        .get("/api/v1/subscribe", Need::Node("query"), live::subscribe)
        .get("/api/v1/dead-letters", Need::Named("read", DEAD_LETTERS), dead_letters::list)
        .post("/api/v1/dead-letters/retry", Need::Named("replay", DEAD_LETTERS), dead_letters::retry_all)
        .get("/api/v1/dead-letters/{id}", Need::Named("read", DEAD_LETTERS), dead_letters::show)
        .post("/api/v1/dead-letters/{id}/retry", Need::Named("replay", DEAD_LETTERS), dead_letters::retry)
        .post(
            "/api/v1/dead-letters/{id}/drop",
            Need::Named("replay", DEAD_LETTERS),
            dead_letters::drop_letter,
        )
        .post("/api/v1/statements", Need::Node("declare"), statements::declare)
        .get("/api/v1/statements", Need::Node("describe"), statements::list)
        .get("/api/v1/streams", Need::Node("describe"), streams::list)
        .get("/api/v1/streams/{stream}", Need::Stream("describe", "stream"), streams::show)
        .get("/api/v1/tables", Need::Node("describe"), statements::tables)
        .get("/api/v1/tables/{table}", Need::Node("describe"), statements::table)
        .get("/api/v1/endpoints", Need::Node("describe"), statements::endpoints)
        .get("/api/v1/views", Need::Node("describe"), views::list)
        .get("/api/v1/views/{view}", Need::Node("describe"), views::show)
        .get("/api/v1/analytics/queue-status", Need::Node("view_own"), views::queue)
        .post("/api/v1/views/{view}/rebuild", Need::Node("operate"), views::rebuild)
        .post("/api/v1/views/{view}/pause", Need::Node("operate"), views::pause)
        .post("/api/v1/views/{view}/resume", Need::Node("operate"), views::resume)
        .get("/api/datalake/streams/{name}", Need::Stream("view_datalake", "name"), datalake::stream)
        .get("/api/datalake/resources", Need::Node("view_datalake"), datalake::resources)
        .get("/api/v1/lake/{stream}/versions", Need::Stream("describe", "stream"), operate::versions)
        .get("/api/v1/lake/{stream}/diff", Need::Stream("read", "stream"), operate::diff)
        .get("/api/v1/jobs", Need::Known("view_jobs"), jobs::list)
        .post("/api/v1/jobs", Need::Known("submit_job"), jobs::submit)
        .get("/api/v1/jobs/{id}", Need::Known("view_jobs"), jobs::show)
        .post("/api/v1/jobs/{id}/approve", Need::Known("approve_job"), jobs::approve)
        .post("/api/v1/jobs/{id}/cancel", Need::Known("cancel_job"), jobs::cancel)
        .get("/api/v1/schedules", Need::Node("describe"), jobs::schedules)
        .get("/api/v1/models", Need::Node("describe"), models::list)
        .get("/api/v1/models/{model}/drift", Need::Node("read"), models::moved)
        .post("/api/v1/maintenance", Need::Node("operate"), operate::maintain)
        .post("/api/v1/backup", Need::Node("back_up"), operate::backup)
        .get("/api/openapi.json", Need::Known("describe"), openapi::document)
        .get("/metrics", Need::Node("read_metrics"), metrics::render)
        .post("/api/admin/permissions", Need::Node("manage_permissions"), people::grant)
        .delete("/api/admin/permissions", Need::Node("manage_permissions"), people::revoke)
        .post("/admin/permissions", Need::Node("manage_permissions"), people::grant)
        .delete("/admin/permissions", Need::Node("manage_permissions"), people::revoke)
        .get("/api/v1/users", Need::Node("manage_users"), people::list)
        .post("/api/v1/users", Need::Node("manage_users"), people::create)
        .get("/api/v1/users/{user}", Need::Node("manage_users"), people::show)
        .patch("/api/v1/users/{user}", Need::Node("manage_users"), people::change)
        .post("/api/v1/users/{user}/tokens", Need::Node("manage_users"), people::issue)
        .post("/api/v1/policy/explain", Need::Known("explain"), people::explain)
        .post("/api/v1/keys", Need::Node("manage_keys"), keys::create)
        .get("/api/v1/keys", Need::Node("manage_keys"), keys::list)
        .delete("/api/v1/keys/{id}", Need::Node("manage_keys"), keys::remove)
        .post("/api/v1/keys/{id}/toggle", Need::Node("manage_keys"), keys::toggle)
        .post("/api/v1/keys/{id}/rotate", Need::Node("manage_keys"), keys::rotate)
        .get("/api/v1/keys/encryption", Need::Node("manage_keys"), encryption::show)
        .post("/api/v1/keys/encryption/rotate", Need::Node("rotate_keys"), encryption::rotate)
        .get("/api/audit-logs", Need::Node("read_audit"), audit::pages)
        .post("/api/v1/erasures", Need::Node("erase"), erasures::erase)
        .get("/api/v1/audit/logs", Need::Known("read_own_audit"), audit::logs)
        .get("/api/v1/audit/entries/{id}", Need::Known("read_own_audit"), audit::entry)
        .get("/api/v1/audit/entries/{id}/proof", Need::Known("read_own_audit"), audit::proof)
        .get("/api/v1/audit/export", Need::Node("read_audit"), audit::export)
        .post("/api/v1/audit/keys/rotate", Need::Node("rotate_keys"), audit::rotate_key)
        .get("/getuserdetails", Need::Known("self"), sign_in::details)
        .post("/auth/password", Need::Node("self"), sign_in::password)
        .post("/auth/logout", Need::Node("self"), sign_in::logout)
}

/// Calls that anybody may make: they sign in, or show no data.
fn open() -> Routes {
    Routes::default()
        .post("/api-token-auth", Need::Open("sign_in"), sign_in::token)
        .post("/login", Need::Open("sign_in"), sign_in::login)
        .post("/auth/refresh", Need::Open("sign_in"), sign_in::refresh)
        .post("/auth/claim", Need::Open("sign_in"), claim::claim)
        .get("/auth/providers", Need::Nothing, oidc::providers)
        .get("/auth/oidc", Need::Open("sign_in"), oidc::begin)
        .get("/auth/google", Need::Open("sign_in"), oidc::begin_google)
        .get("/auth/callback", Need::Open("sign_in"), oidc::finish)
        .post("/signup", Need::Open("sign_up"), sign_in::sign_up)
        .get("/audit/checkpoint", Need::Nothing, audit::checkpoint)
        .get("/audit/keys", Need::Nothing, audit::keys)
        .get("/audit/statements", Need::Nothing, audit::statements)
        .get("/audit/witnessed", Need::Nothing, audit::witnessed)
        .get("/audit/tile/{*path}", Need::Nothing, audit::tile)
        .get("/", Need::Nothing, pages::overview)
        .get("/docs", Need::Nothing, pages::docs)
        .get("/redoc", Need::Nothing, pages::redoc)
        .get("/redoc/redoc.js", Need::Nothing, pages::redoc_script)
        .get("/swagger", Need::Nothing, pages::swagger)
        .get("/swagger/{file}", Need::Nothing, pages::swagger_file)
        .get("/assets/{file}", Need::Nothing, pages::asset)
        .get("/healthz", Need::Nothing, health::healthz)
        .get("/readyz", Need::Nothing, health::healthz)
        .get("/health", Need::Nothing, health::health)
        .get("/api/v1/health", Need::Nothing, health::health)
}

/// Every path and method with what it needs.
pub fn all_needs() -> Needs {
    let mut needs = ingest().needs;
    needs.extend(guarded().needs);
    needs.extend(open().needs);
    needs
}

/// Whether a path is one of the engine's own, which no declared endpoint may take: the endpoint would not be found.
pub fn is_built_in(path: &str) -> bool {
    static PATHS: LazyLock<Needs> = LazyLock::new(all_needs);
    PATHS.keys().any(|own| {
        let mut parts = path.split('/');
        let hides = own.split('/').all(|own| match own {
            rest if rest.starts_with("{*") => parts.by_ref().next().is_some(),
            _ => parts.next().is_some_and(|part| own == part || own.starts_with('{')),
        });
        hides && (parts.next().is_none() || own.contains("{*"))
    })
}

/// Bodies of events: longer ones than others, and compressed ones.
macro_rules! unpacked {
    () => {
        ServiceBuilder::new().layer(DefaultBodyLimit::max(MAX_BODY)).map_request(unpacked)
    };
}

/// The application. Declared endpoints are found by the fallback.
pub fn app(node: Arc<Node>, CallOptions { access_log, cors }: CallOptions) -> Router {
    let needs = Arc::new(all_needs());
    let around = || {
        let around = Around { node: node.clone(), needs: needs.clone(), access_log: access_log.clone() };
        ServiceBuilder::new()
            .layer(middleware::from_fn_with_state(around, edge::answer))
            .layer(CompressionLayer::new())
    };
    let ingest = ingest()
        .router
        .method_not_allowed_fallback(wrong_method)
        .layer(ServiceBuilder::new().layer(around()).layer(unpacked!()));
    let guarded = guarded()
        .router
        .fallback(endpoints::declared.layer(unpacked!()))
        .method_not_allowed_fallback(wrong_method)
        .layer(around());
    let open = open().router.method_not_allowed_fallback(wrong_method).layer(around());
    let app = ingest.merge(guarded).merge(open).with_state(node);
    // Whoever asks before a call whether it may be made is answered without one.
    if cors.is_empty() { app } else { app.layer(from_other_sites(cors)) }
}

/// Lets pages of some other sites call, with a token of theirs: never with the cookie of a session.
fn from_other_sites(origins: Vec<HeaderValue>) -> CorsLayer {
    let name = HeaderName::from_static;
    let sent = [header::ACCEPT, header::AUTHORIZATION, header::CONTENT_TYPE, header::CONTENT_ENCODING];
    let sent = sent.into_iter().chain([name("x-api-key"), name("x-request-id"), name("traceparent")]);
    let read = [
        "x-request-id",
        "ratelimit",
        "ratelimit-policy",
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
    ];
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST, Method::PATCH, Method::DELETE])
        .allow_headers(sent.collect::<Vec<_>>())
        .expose_headers(read.map(name).into_iter().chain([header::RETRY_AFTER]).collect::<Vec<_>>())
        .max_age(Duration::from_secs(600))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Which permission each call needs, as a file that a change of shows in a review.
    #[test]
    fn the_list_of_permissions_is_the_one_that_was_reviewed() {
        let mut lines: Vec<String> = all_needs()
            .into_iter()
            .flat_map(|(path, methods)| {
                methods
                    .into_iter()
                    .map(move |(method, need)| format!("{path}\t{method}\t{}\n", need.describe()))
            })
            .collect();
        lines.sort();
        let found = lines.concat();
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/permissions.tsv");
        if std::env::var_os("HIGHWATER_WRITE").is_some() {
            std::fs::write(file, &found).unwrap();
        }
        assert_eq!(found, std::fs::read_to_string(file).unwrap(), "HIGHWATER_WRITE=1 writes the file anew");
    }

    #[test]
    fn every_documented_call_has_a_need_and_every_other_one_is_documented() {
        let needs = all_needs();
        let documented = super::super::openapi::built_in();
        for path in documented.paths.paths.keys() {
            let route = path.trim_end_matches('/').replace("{path}", "{*path}");
            assert!(needs.contains_key(route.as_str()), "{path} is documented and has no route");
        }
        for (path, methods) in &needs {
            let page = methods.iter().all(|(_, need)| *need == Need::Nothing);
            let path = path.replace("{*path}", "{path}");
            let known = documented.paths.paths.keys().any(|known| known.trim_end_matches('/') == path);
            let other_name = ["/admin/permissions", "/api/openapi.json"].contains(&path.as_str());
            assert!(known || page || other_name, "{path} is not documented");
        }
    }
}
