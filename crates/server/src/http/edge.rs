//! What happens around every call, whatever it asks for: it gets an id, its caller is identified, the policy
//! decides, its entry goes into the audit trail before its answer goes out, a panic becomes an answer, a body
//! that nobody read is thrown away, its time is taken, errors are completed.
//!
//! All of it is one layer. A layer of a router is a box around every route, copied with all that it holds
//! for every call; six of them took more time than the rest of a small call.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::connect_info::ConnectInfo;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use highwater_auth::{Asked, Identity, Window};
use highwater_event::identity::{ANONYMOUS, HOME};
use highwater_event::{Randomness, StreamName, SystemRandomness};
use highwater_sql::catalog::Taking;
use percent_encoding::percent_decode_str;
use serde_json::Value;
use tokio::time::Instant;

use super::access_log::AccessLog;
use super::auth::{self, Shown};
use super::call::{Arrival, Call, too_many};
use super::endpoints::Found;
use super::problem::{Problem, ProblemBody};
use super::routes::{self, Need, Needs};
use super::{Peer, metrics, unread};
use crate::node::{Known, Node, is_shared, needs, network};

/// The longest body of a call that does not bring events.
const MAX_BODY: usize = 2 << 20;

/// Calls without a credential that one address makes.
const STRANGERS: Window = Window { limit: 15_000, length: Duration::from_secs(300) };
/// How long the body of a call that brings no events may take.
const ARRIVAL: Duration = Duration::from_secs(30);

/// What the layer holds.
#[derive(Clone)]
pub struct Around {
    pub node: Arc<Node>,
    pub needs: Arc<Needs>,
    pub access_log: Option<Arc<AccessLog>>,
}

/// A call that is let in, or the answer that it gets instead; the call is there for its entry either way.
struct Admitted {
    need: Need,
    found: Found,
    call: Arc<Call>,
    refused: Option<Problem>,
}

/// Answers a call.
pub async fn answer(State(around): State<Around>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let Around { node, needs, access_log } = &around;
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let id = request_id(request.headers());
    let trace = request.headers().get("traceparent").cloned();
    let peer = request.extensions().get::<ConnectInfo<Peer>>();
    let encrypted = peer.is_some_and(|ConnectInfo(peer)| peer.encrypted);
    let (mut request, left) = unread::watch(request);
    let Admitted { need, found, call, mut refused } = admit(node, needs, route.as_ref(), &id, &request);
    let flood = is_flood(node, need, &call);
    if flood {
        let detail = "too many calls without a credential come from this address";
        let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail);
        refused = Some(problem.header(header::RETRY_AFTER, "60"));
    } else if refused.is_none() && need != Need::Nothing {
        refused = of_address(node, &call).err();
    }
    let mut response = match refused {
        Some(problem) => {
            drop(request);
            problem.into_response()
        }
        None => match bring(&call, need, request).await {
            Ok(brought) => {
                request = brought;
                request.extensions_mut().insert(call.clone());
                request.extensions_mut().insert(found);
                let announced = announce(node, &call, need, &method).await;
                let answered = match announced {
                    Ok(()) => AssertUnwindSafe(next.run(request)).catch_unwind().await,
                    Err(problem) => Ok(problem.into_response()),
                };
                answered.unwrap_or_else(|_panic| panicked().into_response())
            }
            Err(problem) => problem.into_response(),
        },
    };
    left.discard(&mut response).await;
    response = as_problem(response).await;
    if flood {
        // Said to whoever asks, and not written down: strangers must not be able to fill the disk.
        tracing::debug!(address = call.address, "a stranger calls too often");
    } else if need != Need::Nothing && !call.is_settled() {
        let entry = call.answered(node, response.status());
        if let Err(error) = node.trail.write(entry).await
            && node.options.audit_required
        {
            response = Problem::from(error).into_response();
        }
    }
    metrics::observe(&method, route.as_ref(), response.status(), started.elapsed());
    if let Some(log) = access_log {
        let at = node.machine.clock.now_micros();
        log.answered(&call, at, &method, uri.path(), response.status(), started.elapsed());
    }
    call.show_limit(node, &mut response);
    if let Some(ProblemBody(mut body)) = response.extensions_mut().remove::<ProblemBody>() {
        body.insert("request_id".into(), id.to_str().unwrap_or_default().into());
        body.insert("instance".into(), uri.path().into());
        *response.body_mut() = Body::from(Value::Object(body).to_string());
        response.headers_mut().remove(header::CONTENT_LENGTH);
        response.headers_mut().remove(header::CONTENT_ENCODING);
    }
    let headers = response.headers_mut();
    headers.insert("x-request-id", id);
    if let Some(trace) = trace {
        headers.insert("traceparent", trace);
    }
    protect(headers, need, encrypted);
    response
}

/// Headers that keep browsers from doing more with an answer than it is meant for.
fn protect(headers: &mut HeaderMap, need: Need, encrypted: bool) {
    let mut set = |name: HeaderName, value: &'static str| {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    };
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::REFERRER_POLICY, "no-referrer");
    set(header::X_FRAME_OPTIONS, "DENY");
    if encrypted {
        set(header::STRICT_TRANSPORT_SECURITY, "max-age=31536000");
    }
    if need != Need::Nothing {
        set(header::CACHE_CONTROL, "no-store");
        set(header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'");
    }
}

/// Identifies the caller, asks the policy, and takes from the caller's limit.
fn admit(
    node: &Node,
    needs: &Needs,
    route: Option<&MatchedPath>,
    id: &HeaderValue,
    request: &Request,
) -> Admitted {
    let (method, path, headers) = (request.method(), request.uri().path(), request.headers());
    let template = route.map(MatchedPath::as_str);
    // What no route has is a declared endpoint, or is told to those only who are known.
    let mut need = routes::need(needs, template, method).unwrap_or(Need::Known("call"));
    let catalog = node.catalog();
    let intake = if template.is_none() { catalog.intake(method.as_str(), path) } else { None };
    if intake.is_some_and(|intake| matches!(intake.taking, Taking::One | Taking::Several)) {
        // Its events are read, and paid for, as those of every call that brings some.
        need = Need::Known("ingest");
    }
    let shown = auth::shown(headers);
    let identified = match (&need, &shown) {
        (Need::Nothing, _) | (_, Shown::Nothing) => Ok(None),
        (_, Shown::Malformed) => Err(auth::refused(highwater_auth::directory::Refused::Unknown)),
        (_, Shown::Header(credential) | Shown::Cookie(credential)) => {
            node.identify(credential).map(Some).map_err(auth::refused)
        }
    };
    let open = matches!(need, Need::Nothing | Need::Open(_));
    let (known, mut refused) = match identified {
        Ok(Some(known)) => (Some(known), None),
        Ok(None) => (None, (!open).then(auth::missing)),
        // An old credential must not keep anybody from signing in anew.
        Err(_) if open => (None, None),
        Err(problem) => (None, Some(problem)),
    };
    if refused.is_none() && known.is_some() && matches!(shown, Shown::Cookie(_)) && !open {
        refused = auth::check_origin(method, headers).err();
    }
    let known = known.unwrap_or_else(|| Known { identity: Identity::nobody(), credential: "".into() });
    let named = match (need, template) {
        (Need::Stream(_, parameter), Some(template)) => routes::parameter(template, path, parameter),
        _ => None,
    };
    // Names as the handlers will read them: decoded and folded.
    let named =
        named.map(|name| percent_decode_str(name).decode_utf8_lossy().into_owned()).unwrap_or_default();
    let named = StreamName::new(&named).map_or(named, |name| name.to_string());
    let mut asked = need.asked(&named);
    let mut decided = matches!(need, Need::Node(_) | Need::Stream(..) | Need::Named(..));
    let mut found = Found::Nothing;
    if let Some(intake) = intake {
        asked = match &intake.taking {
            Taking::One | Taking::Several => Asked::on("ingest", "stream", intake.into.as_str()),
            Taking::Again(_) | Taking::Row(_) | Taking::Training { .. } => {
                Asked::on(intake.requires(), "endpoint", &intake.path)
                    .shared(is_shared(&catalog, &intake.into))
            }
        };
        found = Found::Intake(intake.clone());
        decided = true;
    } else if template.is_none()
        && let Some((endpoint, _)) = catalog.endpoint(path)
    {
        found = Found::Endpoint(endpoint.clone());
        let shared = endpoint.reads.iter().all(|name| is_shared(&catalog, name));
        asked = Asked::on(&endpoint.permission, "endpoint", &endpoint.path).shared(shared);
        decided = true;
    }
    if asked.kind == "stream" && known.identity.principal.tenant.as_ref() != HOME {
        let shared = StreamName::new(asked.name).is_ok_and(|name| is_shared(&catalog, &name));
        asked = asked.shared(shared);
    }
    if refused.is_none() && decided && !node.allows(&known.identity, asked) {
        refused = Some(forbidden(asked));
    }
    let call = Arc::new(Call::new(arrival(node, id, request), known, asked.permission, asked.resource()));
    // Calls that bring events pay for each of them, when it is known how many they are.
    if refused.is_none() && need != Need::Nothing && need.action() != "ingest" {
        refused = call.charge(node, 1).err();
    }
    Admitted { need, found, call, refused }
}

/// Calls of strangers from one address are let in, and written down, up to a limit.
fn is_flood(node: &Node, need: Need, call: &Call) -> bool {
    if need == Need::Nothing || *call.principal().name != *ANONYMOUS {
        return false;
    }
    let name = format!("stranger:{}", network(&call.address));
    !node.sign_ins.admit(&name, STRANGERS, 1, node.limit_clock()).allowed
}

/// Takes from what one address may do, whoever calls from it.
fn of_address(node: &Node, call: &Call) -> Result<(), Problem> {
    let Some(limit) = node.options.address_limit else { return Ok(()) };
    let name = format!("address:{}", network(&call.address));
    let verdict = node.limiter.admit(&name, Window::per_minute(limit), 1, node.limit_clock());
    if verdict.allowed {
        return Ok(());
    }
    Err(too_many(verdict, &format!("{limit} calls a minute are let in from one address")))
}

/// The answer to what the policy does not allow: it names the permission.
pub fn forbidden(asked: Asked<'_>) -> Problem {
    Problem::new(StatusCode::FORBIDDEN, "forbidden", needs(asked)).with("permission", asked.permission.into())
}

fn arrival(node: &Node, id: &HeaderValue, request: &Request) -> Arrival {
    let peer = request.extensions().get::<ConnectInfo<Peer>>();
    Arrival {
        request_id: id.to_str().unwrap_or_default().to_owned(),
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        address: peer.map(|ConnectInfo(peer)| peer.caller(request.headers(), node)).unwrap_or_default(),
        at: node.machine.clock.now_micros(),
    }
}

/// Reads the body of a call that does not bring events, so that its entry can say what it was.
async fn bring(call: &Call, need: Need, request: Request) -> Result<Request, Problem> {
    let brings_events = matches!(need.action(), "ingest");
    let has_body = !matches!(*request.method(), Method::GET | Method::HEAD);
    if need == Need::Nothing || brings_events || !has_body {
        return Ok(request);
    }
    let (head, body) = request.into_parts();
    let kind = head.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let is_json = kind.is_none_or(|kind| kind.contains("json"));
    let declared =
        head.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let too_large = || {
        let detail = format!("the body of this call may hold {} MiB", MAX_BODY >> 20);
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
    };
    if declared.is_some_and(|length: usize| length > MAX_BODY) {
        return Err(too_large());
    }
    let Ok(read) = tokio::time::timeout(ARRIVAL, to_bytes(body, MAX_BODY)).await else {
        let detail = format!("the body did not arrive within {} s", ARRIVAL.as_secs());
        return Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", detail));
    };
    let bytes = read.map_err(|error| {
        let limit =
            std::error::Error::source(&error).is_some_and(|source| source.to_string().contains("limit"));
        if limit { too_large() } else { Problem::bad_request("body_unreadable", error.to_string()) }
    })?;
    // A list could be read as an object whose members come in their order, which nobody means.
    let listed = bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    if listed && is_json {
        return Err(Problem::bad_request(
            "malformed_json",
            "the body of this call is a JSON object, not a list",
        ));
    }
    call.brought(&bytes);
    Ok(Request::from_parts(head, Body::from(bytes)))
}

/// What is done outside the log is written down before it is done, too: there is no commit that could hold both.
async fn announce(node: &Node, call: &Call, need: Need, method: &Method) -> Result<(), Problem> {
    if !matches!(need.action(), "operate" | "back_up") || method == Method::GET {
        return Ok(());
    }
    let entry = highwater_log::audit::Entry { status: None, ..call.entry(node) };
    Ok(node.trail.write(entry).await?)
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

/// Bytes of a refusal in plain words.
const MAX_WORDS: usize = 4 << 10;

/// What the framework refuses by itself, such as a part of a path that is not what the route takes, is told as every other
/// error.
async fn as_problem(response: Response) -> Response {
    let plain = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.to_str().is_ok_and(|kind| kind.starts_with("text/plain")));
    if !plain || !response.status().is_client_error() || response.extensions().get::<ProblemBody>().is_some()
    {
        return response;
    }
    let status = response.status();
    let words = to_bytes(response.into_body(), MAX_WORDS).await.unwrap_or_default();
    let detail = String::from_utf8_lossy(&words).into_owned();
    Problem::new(status, "malformed_call", detail).into_response()
}

fn panicked() -> Problem {
    Problem::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "internal",
        "the call failed inside the engine; the log of the server says more",
    )
}
