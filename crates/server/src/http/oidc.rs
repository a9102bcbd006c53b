//! Signing in at an OpenID Connect provider: off to it, and back.
//!
//! Whom the provider means is known by its own id for them. Somebody who comes for the first time gets the account
//! with the e-mail address that the provider has verified, or a new one where that is allowed. An address that it
//! has not verified opens nothing.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use highwater_auth::Command;
use highwater_auth::oidc::{Attempt, GOOGLE, HttpError, Person, Provider, SignInError};
use highwater_event::Principal;
use highwater_event::identity::HOME;
use serde::Deserialize;
use serde_json::json;

use super::auth;
use super::call::Call;
use super::problem::{Answer, Problem};
use super::sign_in::{self, limit_address};
use crate::node::{Node, ProviderOptions};
use crate::outgoing::Outgoing;

/// Cookie of a sign-in that has begun. It comes back with the answer of another site, so it is not `Strict`.
const COOKIE: &str = "__Host-highwater-sign-in";
/// Longest answer of a provider.
const ANSWER: u64 = 1 << 20;
/// Longest time for one call to it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes the calls to the provider.
fn caller(
    settings: &ProviderOptions,
) -> impl Fn(axum::http::Request<Vec<u8>>) -> Result<axum::http::Response<Vec<u8>>, HttpError> + use<> {
    let outgoing = Outgoing { trusted: settings.trusted.clone(), timeout: Some(PATIENCE), redirects: 0 };
    move |request| {
        let failed = |error: &dyn std::fmt::Display| HttpError(error.to_string());
        let agent = outgoing.agent(&request.uri().to_string()).map_err(|error| failed(&error))?;
        let answer = agent.run(request).map_err(|error| failed(&error))?;
        let (head, mut body) = answer.into_parts();
        let bytes = body.with_config().limit(ANSWER).read_to_vec().map_err(|error| failed(&error))?;
        Ok(axum::http::Response::from_parts(head, bytes))
    }
}

fn missing() -> Problem {
    let detail = "no provider is set up to sign in at";
    Problem::new(StatusCode::NOT_FOUND, "no_provider", detail)
        .hint("set oidc.issuer, oidc.client_id and http.url")
}

/// Does something with the provider where it may block.
async fn with_provider<T: Send + 'static>(
    node: &Arc<Node>,
    act: impl FnOnce(&Node, &Provider, &ProviderOptions) -> Result<T, SignInError> + Send + 'static,
) -> Result<T, Problem> {
    if node.people.provider.is_none() {
        return Err(missing());
    }
    let on = node.clone();
    let acted = node
        .machine
        .scheduler
        .work(move || on.people.provider.as_ref().map(|(provider, settings)| act(&on, provider, settings)));
    match acted.await.map_err(Problem::internal)?.ok_or_else(missing)? {
        Ok(outcome) => Ok(outcome),
        Err(SignInError::Strange) => {
            Err(Problem::bad_request("sign_in_unknown", SignInError::Strange.to_string()))
        }
        Err(error @ SignInError::Invalid(_)) => {
            tracing::warn!(%error, "a sign-in at the provider has failed");
            Err(Problem::new(
                StatusCode::UNAUTHORIZED,
                "credentials_invalid",
                "the provider's answer does not hold",
            ))
        }
        Err(error) => {
            tracing::error!(%error, "nobody can sign in at the provider");
            Err(Problem::new(
                StatusCode::BAD_GATEWAY,
                "provider_unreachable",
                "the provider can't be asked now",
            ))
        }
    }
}

/// Where somebody can sign in beside here.
#[utoipa::path(get, path = "/auth/providers", tag = "sign in", security(()),
    responses((status = 200, description = "{providers: [{name, issuer, begin}]}")))]
pub async fn providers(State(node): State<Arc<Node>>) -> Response {
    let providers = node.people.provider.iter().map(|(provider, _)| {
        let issuer = provider.issuer();
        let host = issuer.split('/').nth(2).unwrap_or(issuer);
        json!({"name": if issuer == GOOGLE { "Google" } else { host }, "issuer": issuer, "begin": "/auth/oidc"})
    });
    Json(json!({"providers": providers.collect::<Vec<_>>()})).into_response()
}

/// Sends the browser to the provider.
#[utoipa::path(get, path = "/auth/oidc", tag = "sign in", security(()),
    responses((status = 303, description = "to the provider"), (status = 404, description = "there is none"),
        (status = 502, description = "it can't be asked")))]
pub async fn begin(State(node): State<Arc<Node>>) -> Answer {
    let begun = with_provider(&node, |node, provider, settings| {
        provider.begin(node.machine.randomness.as_ref(), node.machine.clock.now_micros(), &caller(settings))
    });
    let (url, attempt) = begun.await?;
    let location = HeaderValue::from_str(&url).map_err(Problem::internal)?;
    let mut response = StatusCode::SEE_OTHER.into_response();
    response.headers_mut().insert(header::LOCATION, location);
    response.headers_mut().insert(header::SET_COOKIE, cookie(&attempt.text(), 600));
    Ok(response)
}

/// The same for those who look for it by its name.
#[utoipa::path(get, path = "/auth/google", tag = "sign in", security(()),
    responses((status = 303, description = "to Google"), (status = 404, description = "Google is not the provider")))]
pub async fn begin_google(State(node): State<Arc<Node>>) -> Answer {
    match &node.people.provider {
        Some((provider, _)) if provider.issuer() == GOOGLE => begin(State(node)).await,
        _ => Err(missing()),
    }
}

fn cookie(value: &str, seconds: u32) -> HeaderValue {
    let text = format!("{COOKIE}={value}; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age={seconds}");
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""))
}

/// What the provider sends the browser back with.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
pub struct Returned {
    /// What the provider gives a token for.
    code: Option<String>,
    /// As it was given along.
    state: Option<String>,
    /// The provider.
    iss: Option<String>,
    /// Why it has not signed anybody in.
    error: Option<String>,
}

/// Signs in whoever the provider says has come: as /login, or with the page for browsers.
#[utoipa::path(get, path = "/auth/callback", tag = "sign in", params(Returned), security(()),
    responses((status = 303, description = "signed in: to the page"), (status = 200, description = "as from /login, for whoever accepts JSON alone"),
        (status = 400, description = "the sign-in was not begun in this browser"), (status = 401, description = "the provider has signed nobody in"),
        (status = 403, description = "they have no account here"), (status = 429, description = "too many have failed")))]
pub async fn finish(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    Query(returned): Query<Returned>,
    headers: HeaderMap,
) -> Answer {
    let taken = limit_address(&node, &call)?;
    if let Some(error) = returned.error {
        let detail =
            format!("the provider has signed nobody in: {}", error.chars().take(64).collect::<String>());
        return Err(Problem::new(StatusCode::UNAUTHORIZED, "sign_in_refused", detail));
    }
    let strange = || Problem::bad_request("sign_in_unknown", SignInError::Strange.to_string());
    let attempt = auth::cookie_of(&headers, COOKIE).and_then(Attempt::read).ok_or_else(strange)?;
    let (Some(code), Some(state)) = (returned.code, returned.state) else { return Err(strange()) };
    let person = with_provider(&node, move |node, provider, settings| {
        let answer = (code.as_str(), state.as_str(), returned.iss.as_deref());
        provider.finish(&attempt, answer, node.machine.clock.now_micros(), &caller(settings))
    });
    let person = person.await?;
    let principal = account(&node, &call, &person).await?;
    call.signed_in_as(principal.clone());
    call.about(format!("user:{}", principal.name));
    taken.give_back(&node);
    let mut response = sign_in::open_session(&node, &call, &principal).await?;
    let wants_json = headers.get(header::ACCEPT).is_some_and(|accept| accept == "application/json");
    if !wants_json {
        let session = response.headers_mut().remove(header::SET_COOKIE);
        response = (StatusCode::SEE_OTHER, [(header::LOCATION, "/")]).into_response();
        response.headers_mut().extend(session.map(|session| (header::SET_COOKIE, session)));
    }
    response.headers_mut().append(header::SET_COOKIE, cookie("", 0));
    Ok(response)
}

/// The account of a person, which may be a new one.
async fn account(node: &Arc<Node>, call: &Call, person: &Person) -> Result<Principal, Problem> {
    let (linked, found) = {
        let directory = node.people.directory();
        let linked = directory.user_of_identity(&person.issuer, &person.subject);
        let by_address = || directory.user_of_email(person.verified_email.as_deref()?);
        let user = linked.or_else(by_address);
        let known = user.map(|user| (Principal::new(user.name.clone(), user.tenant.clone()), user.active));
        (linked.is_some(), known)
    };
    let principal = match found {
        Some((principal, true)) => principal,
        Some((principal, false)) => {
            call.about(format!("user:{}", principal.name));
            return Err(auth::refused(highwater_auth::directory::Refused::Disabled));
        }
        None => create(node, call, person).await?,
    };
    if !linked {
        let (issuer, subject) = (person.issuer.clone(), person.subject.clone());
        let link = Command::LinkIdentity { user: principal.name.to_string(), issuer, subject };
        node.change(link.into(), call.also(node, "link_identity", format!("user:{}", principal.name)))
            .await?;
    }
    Ok(principal)
}

async fn create(node: &Arc<Node>, call: &Call, person: &Person) -> Result<Principal, Problem> {
    let settings = node.people.provider.as_ref().map(|(_, settings)| settings);
    let role = settings.and_then(|settings| settings.role.clone());
    let refused = |detail: &str| Err(Problem::new(StatusCode::FORBIDDEN, "no_account", detail));
    let Some(address) = person.verified_email.clone() else {
        return refused("the provider has not verified an e-mail address of yours");
    };
    let domain = address.rsplit_once('@').map(|(_, domain)| domain).unwrap_or_default();
    let fits = settings.is_some_and(|settings| {
        settings.domains.is_empty() || settings.domains.iter().any(|known| known.eq_ignore_ascii_case(domain))
    });
    let Some(role) = role.filter(|_| fits) else {
        return refused("you have no account here; ask an administrator for one with your e-mail address");
    };
    let create = Command::CreateUser {
        user: address.clone(),
        email: Some(address.clone()),
        tenant: HOME.into(),
        roles: vec![role],
        sources: Vec::new(),
        unchecked: false,
        service: false,
    };
    node.change(create.into(), call.also(node, "create_user", format!("user:{address}"))).await?;
    Ok(Principal::new(address, HOME))
}
