//! A call on its way: who makes it, what it is about, and what the audit trail will say of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::http::{HeaderValue, Method, Response, StatusCode, header};
use highwater_audit::tree::sha256;
use highwater_auth::limit::Verdict;
use highwater_auth::{Identity, Window};
use highwater_event::{Principal, StreamSchema, hexadecimal};
use highwater_log::audit::{Entry, Outcome};
use serde_json::{Map, Value, json};

use super::problem::Problem;
use crate::node::jobs::Order;
use crate::node::{Known, Leaf, Node, Reader};

/// Members of bodies that the trail keeps; of all others it keeps the name only.
const KEPT: [&str; 33] = [
    "active",
    "client_id",
    "condition",
    "count",
    "dry_run",
    "expires_at",
    "from",
    "from_offset",
    "id",
    "into",
    "limit",
    "model_type",
    "name",
    "now",
    "partition",
    "permission",
    "permissions",
    "query",
    "rate_limit",
    "reason",
    "role",
    "roles",
    "scopes",
    "source",
    "sources",
    "sql",
    "start_date",
    "tenant",
    "to",
    "transaction_id",
    "until",
    "username",
    "where",
];
/// Bytes of a body that the trail keeps at most.
const KEPT_BYTES: usize = 16 << 10;
/// Bytes of a path that the trail keeps at most.
const PATH_BYTES: usize = 2048;

/// A call.
pub struct Call {
    /// Who makes it.
    pub identity: Arc<Identity>,
    credential: Arc<str>,
    pub request_id: String,
    method: Method,
    path: String,
    pub address: String,
    action: Arc<str>,
    resource: String,
    at: i64,
    written: Arc<AtomicBool>,
    said: Mutex<Said>,
}

#[derive(Default)]
struct Said {
    actor: Option<Principal>,
    resource: Option<String>,
    body: Option<String>,
    body_hash: Option<String>,
    seen: Map<String, Value>,
    cost: u32,
    verdict: Option<Verdict>,
}

/// What is known of a call before anybody has looked at it.
pub struct Arrival {
    pub request_id: String,
    pub method: Method,
    pub path: String,
    pub address: String,
    pub at: i64,
}

/// The hash of what was brought or shown, as entries have it.
pub fn hash_of(bytes: &[u8]) -> String {
    hexadecimal::show(&sha256([bytes]))
}

impl Call {
    pub fn new(arrival: Arrival, known: Known, action: &str, resource: String) -> Self {
        let Arrival { request_id, method, mut path, address, at } = arrival;
        let mut end = path.len().min(PATH_BYTES);
        while !path.is_char_boundary(end) {
            end -= 1;
        }
        path.truncate(end);
        Self {
            identity: Arc::new(known.identity),
            credential: known.credential,
            request_id,
            method,
            path,
            address,
            action: action.into(),
            resource,
            at,
            written: Arc::default(),
            said: Mutex::default(),
        }
    }

    /// What a job does on behalf of whoever has begun it.
    pub fn of_job(node: &Node, order: &Order, action: &str, resource: String) -> Self {
        let arrival = Arrival {
            request_id: order.job.id.to_string(),
            method: Method::from_bytes(b"JOB").unwrap_or_default(),
            path: String::new(),
            address: String::new(),
            at: node.machine.clock.now_micros(),
        };
        let credential = format!("job:{}", order.job.id).into();
        let known = Known { identity: order.identity.as_ref().clone(), credential };
        Self::new(arrival, known, action, resource)
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn principal(&self) -> &Principal {
        &self.identity.principal
    }

    /// For whom the relations of a question are read.
    pub fn reader(&self) -> Reader {
        Reader::Caller(self.identity.clone())
    }

    /// Whoever signs in acts under a name that they did not have when they came.
    pub fn signed_in_as(&self, principal: Principal) {
        self.said().actor = Some(principal);
    }

    /// What it turned out to be about.
    pub fn about(&self, resource: impl Into<String>) {
        self.said().resource = Some(resource.into());
    }

    /// Notes the body: what may be kept of it, and its hash.
    pub fn brought(&self, body: &[u8]) {
        if body.is_empty() {
            return;
        }
        let value = serde_json::from_slice::<Value>(body).ok();
        let kept = value.as_ref().map(redacted);
        // The hash of a body that holds what may not be kept would let readers of the trail try out what it was.
        let whole = kept.is_some() && kept == value;
        let mut said = self.said();
        said.body = kept.map(|kept| kept.to_string()).filter(|kept| kept.len() <= KEPT_BYTES);
        said.body_hash = whole.then(|| hash_of(body));
    }

    /// Notes the hash of a body of events, unless what is SENSITIVE is in them, or may be.
    pub fn brought_events(&self, stream: &StreamSchema, body: &[u8]) {
        if stream.has_sensitive() {
            return;
        }
        self.said().body_hash = Some(hash_of(body));
    }

    /// Notes something that was seen or changed.
    pub fn saw(&self, what: &str, value: impl Into<Value>) {
        self.said().seen.insert(what.to_owned(), value.into());
    }

    /// Something that was noted.
    pub fn noted(&self, what: &str) -> Option<Value> {
        self.said().seen.get(what).cloned()
    }

    /// Notes an answer to a question: as of which mark, how many rows, and the hash of what was shown.
    pub fn saw_rows(&self, node: &Node, rows: usize, shown: &[u8]) {
        self.saw_answer(node.log().recorded_until(), rows, hash_of(shown));
    }

    /// The same, of an answer whose hash is known.
    pub fn saw_answer(&self, mark: i64, rows: usize, hash: impl Into<Value>) {
        self.saw("mark", mark);
        self.saw("rows", rows);
        self.saw("sha256", hash);
    }

    /// The entry as of now.
    pub fn entry(&self, node: &Node) -> Entry {
        let said = self.said();
        let principal = said.actor.as_ref().unwrap_or(self.principal());
        let resource = said.resource.clone().unwrap_or_else(|| self.resource.clone());
        let now = node.machine.clock.now_micros();
        Entry {
            at: self.at,
            credential: self.credential.clone(),
            method: self.method.to_string(),
            path: self.path.clone(),
            request_id: self.request_id.clone(),
            address: self.address.clone(),
            latency: (now - self.at).max(0),
            cost: i64::from(said.cost),
            body: said.body.clone(),
            body_hash: said.body_hash.clone(),
            seen: (!said.seen.is_empty()).then(|| Value::Object(said.seen.clone()).to_string()),
            ..node.entry(principal, &self.action, resource)
        }
    }

    /// The entry of a call that is answered with a status.
    pub fn answered(&self, node: &Node, status: StatusCode) -> Entry {
        let outcome = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS => {
                Outcome::Denied
            }
            status if status.is_client_error() || status.is_server_error() => Outcome::Failed,
            _ => Outcome::Allowed,
        };
        Entry { outcome, status: Some(status.as_u16()), ..self.entry(node) }
    }

    /// The entry for the commit of what the call changes, answered with a status when it succeeds.
    pub fn leaf(&self, node: &Node, status: StatusCode) -> Leaf {
        Leaf::new(self.answered(node, status), self.written.clone())
    }

    /// The entry for the commit of something that has to be done before what the call is about.
    pub fn also(&self, node: &Node, action: &str, resource: String) -> Leaf {
        let entry = Entry { action: action.into(), resource, ..self.entry(node) };
        Leaf::new(entry, Arc::default())
    }

    /// Notes that its entry is in the log, with its effect.
    pub fn settle(&self) {
        self.written.store(true, Ordering::Release);
    }

    /// Whether its entry is in the log.
    pub fn is_settled(&self) -> bool {
        self.written.load(Ordering::Acquire)
    }

    /// Takes so much of the caller's limit, if there is one.
    pub fn charge(&self, node: &Node, cost: usize) -> Result<(), Problem> {
        let Some((id, limit)) = &self.identity.key else {
            self.said().cost = cost as u32;
            return Ok(());
        };
        let cost = u32::try_from(cost).unwrap_or(u32::MAX);
        let window = Window::per_minute(*limit);
        let verdict = node.limiter.admit(&format!("key:{id}"), window, cost, node.limit_clock());
        let mut said = self.said();
        said.verdict = Some(verdict);
        if verdict.allowed {
            said.cost += cost;
            return Ok(());
        }
        Err(too_many(
            verdict,
            &format!("{limit} events a minute are let in with this key, and this call costs {cost}"),
        ))
    }

    /// Says in the answer what is left of the limit.
    pub fn show_limit<B>(&self, node: &Node, response: &mut Response<B>) {
        let Some((id, limit)) = &self.identity.key else { return };
        let known = self.said().verdict;
        let verdict = known.unwrap_or_else(|| {
            node.limiter.admit(&format!("key:{id}"), Window::per_minute(*limit), 0, node.limit_clock())
        });
        let reset = verdict.reset_after.as_secs_f64().ceil() as u64;
        let values = [
            ("ratelimit-policy", format!("\"key\";q={limit};w=60")),
            ("ratelimit", format!("\"key\";r={};t={reset}", verdict.remaining)),
            ("x-ratelimit-limit", limit.to_string()),
            ("x-ratelimit-remaining", verdict.remaining.to_string()),
            ("x-ratelimit-reset", reset.to_string()),
        ];
        for (name, value) in values {
            if let Ok(value) = HeaderValue::from_str(&value) {
                response.headers_mut().insert(name, value);
            }
        }
    }

    /// A session that goes on after the answer: its end has an entry, too.
    pub fn session(self: &Arc<Self>, node: &Arc<Node>) -> Session {
        Session { call: self.clone(), node: node.clone(), count: AtomicU64::new(0) }
    }
}

/// The answer to what is over a limit.
pub fn too_many(verdict: Verdict, detail: &str) -> Problem {
    let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail);
    match verdict.retry_after {
        Some(after) => {
            problem.header(header::RETRY_AFTER, &(after.as_secs_f64().ceil() as u64).max(1).to_string())
        }
        None => problem.hint("send fewer events in one call"),
    }
}

/// What goes on after its call was answered.
pub struct Session {
    call: Arc<Call>,
    node: Arc<Node>,
    count: AtomicU64,
}

impl Session {
    /// Counts what was sent or taken.
    pub fn count(&self, more: u64) {
        self.count.fetch_add(more, Ordering::Relaxed);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.call.saw("session", json!({"ended": true, "messages": self.count.load(Ordering::Relaxed)}));
        let (entry, trail) = (self.call.entry(&self.node), self.node.trail.clone());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = trail.write(entry).await {
                    tracing::error!(%error, "the end of a session is not in the audit trail");
                }
            });
        }
    }
}

/// A body with everything but what may be kept taken out.
fn redacted(body: &Value) -> Value {
    match body {
        Value::Object(members) => members
            .iter()
            .map(|(name, value)| {
                let kept = KEPT.contains(&name.to_ascii_lowercase().as_str());
                let kept = kept && !matches!(value, Value::Object(_));
                (name.clone(), if kept { value.clone() } else { Value::from("[redacted]") })
            })
            .collect::<Map<_, _>>()
            .into(),
        _ => Value::from("[redacted]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_taken_out_of_bodies() {
        let body = json!({"username": "ada", "password": "x", "Permission": "p", "new_password": "y", "query": {"a": "z"}});
        let kept = redacted(&body);
        assert_eq!(kept["username"], "ada");
        assert_eq!(kept["Permission"], "p");
        for name in ["password", "new_password", "query"] {
            assert_eq!(kept[name], "[redacted]");
        }
        assert_eq!(redacted(&json!(["x"])), "[redacted]");
        assert!(KEPT.is_sorted());
    }
}
