//! Who calls. Until accounts exist there is one credential, the operator's token.

use axum::http::{HeaderMap, StatusCode, header};
use highwater_event::Principal;

use super::problem::Problem;
use crate::node::Node;

/// Lets the operator in and nobody else. The token comes as `Authorization: Bearer T`,
/// `Authorization: Token T` or `X-API-Key: T`.
pub fn operator(node: &Node, headers: &HeaderMap) -> Result<Principal, Problem> {
    let refused = |code: &str, detail: &str| Problem::new(StatusCode::UNAUTHORIZED, code, detail);
    let given = credential(headers).ok_or_else(|| {
        refused("credentials_missing", "this call needs a credential")
            .hint("send `Authorization: Bearer` with the token in the file operator.token of the data folder")
    })?;
    if !same(given.as_bytes(), node.operator_token.as_bytes()) {
        return Err(refused("credentials_invalid", "the credential is not valid"));
    }
    Ok(Principal::operator())
}

fn credential(headers: &HeaderMap) -> Option<&str> {
    if let Some(key) = headers.get("x-api-key") {
        return key.to_str().ok().map(str::trim);
    }
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") || scheme.eq_ignore_ascii_case("token")).then(|| token.trim())
}

/// Compares without telling by its time where two texts differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len()
        && std::hint::black_box(a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b))) == 0
}
