//! Who calls. Until accounts exist there is one credential, the operator's token.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use highwater_event::Principal;

use super::problem::Problem;
use crate::node::Node;

/// Lets the operator in and nobody else. The token comes as `Authorization: Bearer T`,
/// `Authorization: Token T` or `X-API-Key: T`.
pub async fn require_operator(State(node): State<Arc<Node>>, mut request: Request, next: Next) -> Response {
    let Some(given) = credential(request.headers()) else {
        return Problem::new(StatusCode::UNAUTHORIZED, "credentials_missing", "this call needs a credential")
            .hint("send `Authorization: Bearer` with the token in the file operator.token of the data folder")
            .into_response();
    };
    if !same(given.as_bytes(), node.operator_token.as_bytes()) {
        return Problem::new(StatusCode::UNAUTHORIZED, "credentials_invalid", "the credential is not valid")
            .into_response();
    }
    request.extensions_mut().insert(Principal::operator());
    next.run(request).await
}

fn credential(headers: &HeaderMap) -> Option<String> {
    if let Some(key) = headers.get("x-api-key") {
        return key.to_str().ok().map(|key| key.trim().to_owned());
    }
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") || scheme.eq_ignore_ascii_case("token"))
        .then(|| token.trim().to_owned())
}

/// Compares without telling by its time where two texts differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len()
        && std::hint::black_box(a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b))) == 0
}
