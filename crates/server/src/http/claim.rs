//! Claiming a node: the link that its start prints signs somebody in as its first administrator, once.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::{Extension, Json};
use highwater_auth::Command;
use highwater_event::Principal;
use highwater_event::identity::HOME;
use serde::Deserialize;

use super::call::Call;
use super::problem::{Answer, Problem};
use super::sign_in;
use crate::node::{FIRST_ADMINISTRATOR, Node};

/// What stands in the link.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClaimRequest {
    /// 40 hexadecimal digits.
    claim: String,
}

/// Opens a session of the first administrator, who is made when there is none.
#[utoipa::path(post, path = "/auth/claim", tag = "sign in", request_body = ClaimRequest, security(()),
    responses((status = 200, description = "as from /login"), (status = 401, description = "there is no such claim, or no more"),
        (status = 403, description = "a claim counts on the node's own machine only")))]
pub async fn claim(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    body: Result<Json<ClaimRequest>, JsonRejection>,
) -> Answer {
    let Json(ClaimRequest { claim }) = body?;
    call.about(format!("user:{FIRST_ADMINISTRATOR}"));
    if !call.address.parse().is_ok_and(|address: IpAddr| address.is_loopback()) {
        let detail = "a claim counts on the node's own machine only";
        return Err(Problem::new(StatusCode::FORBIDDEN, "claim_elsewhere", detail)
            .hint("make an account with `highwater user create NAME --admin`"));
    }
    let taken = sign_in::limit_address(&node, &call)?;
    if !node.take_claim(&claim) {
        let detail = "the claim is not one, was used, or is older than 15 minutes";
        return Err(Problem::new(StatusCode::UNAUTHORIZED, "claim_invalid", detail)
            .hint("start the node again for another, or sign in with the operator's token"));
    }
    taken.give_back(&node);
    let principal = Principal::new(FIRST_ADMINISTRATOR, HOME);
    call.signed_in_as(principal.clone());
    let create = Command::CreateUser {
        user: FIRST_ADMINISTRATOR.into(),
        email: None,
        tenant: HOME.into(),
        roles: vec!["admin".into()],
        sources: Vec::new(),
        unchecked: false,
        service: false,
    };
    let known = node.people.directory().user(FIRST_ADMINISTRATOR).is_some();
    if !known {
        let leaf = call.also(&node, "manage_users", format!("user:{FIRST_ADMINISTRATOR}"));
        node.change(create.into(), leaf).await?;
    }
    sign_in::open_session(&node, &call, &principal).await
}
