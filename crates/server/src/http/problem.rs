//! Errors as `application/problem+json` (RFC 9457).
//!
//! Members: type, title, status, detail, instance, code (stable, see docs/ERRORS.md), request_id, and
//! `error` with the same text as detail. Rooms sort their errors by what the caller can do; the mapping
//! to a status is here and nowhere else.

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use highwater_auth::Rejected;
use highwater_event::Reaction;
use highwater_ingest::decode::BodyError;
use highwater_ingest::{DoorError, RowError};
use highwater_log::AppendError;
use highwater_log::view::ControlError;
use highwater_sql::SqlError;
use serde_json::{Map, Value, json};

use crate::node::{ChangeError, DeclareError, FORBIDDEN};

/// An error on its way to the caller.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    code: String,
    detail: String,
    more: Box<Map<String, Value>>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

/// What handlers answer.
pub type Answer = Result<Response, Problem>;

impl Problem {
    pub fn new(status: StatusCode, code: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { status, code: code.into(), detail: detail.into(), more: Box::default(), headers: Vec::new() }
    }

    pub fn bad_request(code: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// A parameter that is not what it should be; the detail names it.
    pub fn parameter(name: &str, detail: impl std::fmt::Display) -> Self {
        Self::bad_request("invalid_parameter", format!("parameter {name}: {detail}"))
    }

    /// A fault of the program.
    pub fn internal(error: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error.to_string())
    }

    pub fn not_found(code: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, detail)
    }

    /// With a header in its answer.
    pub fn header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.push((name, value));
        }
        self
    }

    pub fn hint(self, hint: impl Into<String>) -> Self {
        self.with("hint", Value::String(hint.into()))
    }

    pub fn with(mut self, name: &str, value: Value) -> Self {
        self.more.insert(name.into(), value);
        self
    }

    /// A row that was refused, for calls that take one event.
    pub fn row(error: RowError) -> Self {
        let detail = if error.path.is_empty() {
            error.detail.clone()
        } else {
            format!("{}: {}", error.path, error.detail)
        };
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, error.code, detail).with("path", error.path.into())
    }

    /// Sending the same again would lead to the same.
    pub fn is_lasting(&self) -> bool {
        self.status.is_client_error()
    }

    /// What was asked about is not there.
    pub fn is_not_found(&self) -> bool {
        self.status == StatusCode::NOT_FOUND
    }

    /// Code, detail and what else there is to say, for answers that hold several outcomes.
    pub fn summary(&self) -> Value {
        let mut summary = self.more.as_ref().clone();
        summary.insert("code".into(), self.code.clone().into());
        summary.insert("detail".into(), self.detail.clone().into());
        Value::Object(summary)
    }

    fn of(reaction: Reaction, code: &str, detail: String) -> Self {
        let status = match reaction {
            Reaction::Retry => StatusCode::SERVICE_UNAVAILABLE,
            Reaction::FixRequest => StatusCode::BAD_REQUEST,
            Reaction::NotFound => StatusCode::NOT_FOUND,
            Reaction::Conflict => StatusCode::CONFLICT,
            Reaction::CallOperator | Reaction::Integrity => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, code, detail)
    }
}

/// Marks a response whose body the request-id layer still has to complete.
#[derive(Clone)]
pub struct ProblemBody(pub Map<String, Value>);

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or("Error");
        if self.status.is_server_error() && self.status != StatusCode::SERVICE_UNAVAILABLE {
            tracing::error!(code = self.code, detail = self.detail, "a call failed");
        }
        let mut body = *self.more;
        body.insert("type".into(), "about:blank".into());
        body.insert("title".into(), title.into());
        body.insert("status".into(), json!(self.status.as_u16()));
        body.insert("code".into(), self.code.into());
        body.insert("detail".into(), self.detail.clone().into());
        body.insert("error".into(), self.detail.into());
        let mut response = (self.status, Value::Object(body.clone()).to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        for (name, value) in self.headers {
            headers.insert(name, value);
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"highwater\""));
        }
        response.extensions_mut().insert(ProblemBody(body));
        response
    }
}

impl From<SqlError> for Problem {
    fn from(error: SqlError) -> Self {
        let mut problem = match error.code {
            "internal" => {
                tracing::error!(detail = error.message, "a query failed inside");
                Self::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "internal",
                    "the query failed inside the engine; the log of the server says more",
                )
            }
            "stream_not_found" | "relation_not_found" | "not_found" | "no_such_version" => {
                Self::not_found(error.code, error.message.clone())
            }
            FORBIDDEN => Self::new(StatusCode::FORBIDDEN, FORBIDDEN, error.message.clone()),
            code => Self::of(error.reaction(), code, error.message.clone()),
        };
        if let Some(hint) = error.hint {
            problem = problem.hint(hint);
        }
        if let Some(at) = error.at {
            problem = problem.with("at", json!({"line": at.line, "column": at.column, "length": at.length}));
        }
        problem
    }
}

impl From<DeclareError> for Problem {
    fn from(error: DeclareError) -> Self {
        match error {
            DeclareError::Sql { error, script } => {
                let rendered = error.render(&script);
                Self::from(error).with("rendered", rendered.into())
            }
            DeclareError::Append(error) => error.into(),
            DeclareError::Start(detail) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail),
        }
    }
}

impl From<AppendError> for Problem {
    fn from(error: AppendError) -> Self {
        match &error {
            AppendError::DiskFull => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "disk_full", error.to_string())
            }
            AppendError::Poisoned(_) => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "log_poisoned",
                "the log stopped because the disk did not confirm a write; the operator has to act",
            ),
            _ => Self::of(error.reaction(), "log_unavailable", error.to_string()),
        }
    }
}

impl From<ChangeError> for Problem {
    fn from(error: ChangeError) -> Self {
        let detail = error.to_string();
        match error {
            ChangeError::Append(error) => error.into(),
            ChangeError::Internal(_) => Self::internal(detail),
            ChangeError::Rejected(Rejected::Unknown { kind, .. }) => {
                Self::not_found(&format!("{}_not_found", kind.replace([' ', '-'], "_")), detail)
            }
            ChangeError::Rejected(Rejected::NotHeld { .. }) => Self::not_found("not_held", detail),
            ChangeError::Rejected(Rejected::Taken { .. }) => {
                Self::new(StatusCode::CONFLICT, "already_exists", detail)
            }
            ChangeError::Rejected(Rejected::Service(_)) => {
                Self::new(StatusCode::CONFLICT, "service_account", detail)
            }
            ChangeError::Rejected(Rejected::Malformed(_)) => Self::bad_request("invalid_parameter", detail),
        }
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        let detail = rejection.body_text();
        match rejection.status() {
            StatusCode::UNSUPPORTED_MEDIA_TYPE => {
                Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
                    .hint("send JSON, with content-type: application/json")
            }
            StatusCode::PAYLOAD_TOO_LARGE => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
            }
            _ => Self::bad_request("malformed_json", detail),
        }
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::bad_request("invalid_parameter", rejection.body_text())
    }
}

impl From<DoorError> for Problem {
    fn from(error: DoorError) -> Self {
        match error {
            DoorError::Append(error) => error.into(),
            DoorError::UnknownStream(name) => {
                Self::not_found("stream_not_found", format!("no stream \"{name}\" takes events"))
            }
            DoorError::Body(BodyError::TooManyRows { .. }) => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_many_rows", error.to_string())
            }
            DoorError::Body(BodyError::Header(_)) => Self::bad_request("malformed_csv", error.to_string()),
            DoorError::Body(BodyError::Empty) => Self::bad_request("empty_body", error.to_string()),
            DoorError::Body(_) => Self::bad_request("malformed_json", error.to_string()),
            DoorError::Busy => Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", error.to_string()),
            other => Self::of(other.reaction(), "ingest_failed", other.to_string()),
        }
    }
}

impl From<ControlError> for Problem {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Unknown(_) => Self::not_found("view_not_found", error.to_string()),
            ControlError::Refused(_) => Self::new(StatusCode::CONFLICT, "view_refused", error.to_string()),
            ControlError::Stopped => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", error.to_string())
            }
        }
    }
}
