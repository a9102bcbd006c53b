//! Signing in and out, and what somebody can see and change of themselves.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use highwater_auth::credential::{check_password, digest, hash_password, new_id, new_token, verify_password};
use highwater_auth::policy::allowed_permissions;
use highwater_auth::{Command, Window};
use highwater_event::identity::HOME;
use highwater_event::{Principal, time};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::auth;
use super::call::{Call, too_many};
use super::problem::{Answer, Problem};
use crate::node::{ChangeError, Node, network};

/// How long an opaque token lets its owner in.
const TOKEN_LIFE: i64 = 90 * 86_400 * 1_000_000;
/// How long a session can be refreshed.
const SESSION_LIFE: i64 = 30 * 86_400 * 1_000_000;
/// Sign-ins that may fail with one name, and from one address.
const BY_NAME: Window = Window { limit: 10, length: Duration::from_secs(300) };
const BY_ADDRESS: Window = Window { limit: 50, length: Duration::from_secs(300) };
/// Sources that a client may sign up for.
const SOURCES: [&str; 4] = ["MarketingAPI", "User Activity", "PlatformMonitor", "AWS"];

/// Passwords that are hashed at one time: each takes 19 MiB and a core.
static HASHING: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new(std::thread::available_parallelism().map_or(1, std::num::NonZero::get)));

/// Name and password.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
pub struct NameAndPassword {
    /// Name, or e-mail address.
    username: String,
    /// Password.
    password: String,
}

/// E-mail address and password.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
pub struct Login {
    /// E-mail address, or name.
    #[serde(alias = "username")]
    email: String,
    /// Password.
    password: String,
}

/// One sign-in of those that may fail.
pub struct Taken {
    window: String,
    limit: Window,
    at: Duration,
}

impl Taken {
    /// It has not failed.
    pub fn give_back(&self, node: &Node) {
        node.sign_ins.give_back(&self.window, self.limit, 1, self.at);
    }
}

fn take(node: &Node, window: String, limit: Window) -> Result<Taken, Problem> {
    let at = node.limit_clock();
    let verdict = node.sign_ins.admit(&window, limit, 1, at);
    if !verdict.allowed {
        return Err(too_many(verdict, "too many sign-ins have failed; wait before the next one"));
    }
    Ok(Taken { window, limit, at })
}

/// Takes one of the sign-ins that may fail from an address.
pub fn limit_address(node: &Node, call: &Call) -> Result<Taken, Problem> {
    take(node, format!("sign-in-from:{}", network(&call.address)), BY_ADDRESS)
}

/// Whether name and password fit: the user's name, or none. It takes as long either way, and guessing is slow.
async fn verify(
    node: &Arc<Node>,
    call: &Call,
    name: &str,
    password: String,
) -> Result<Option<Principal>, Problem> {
    call.about(format!("user:{}", name.chars().take(128).collect::<String>()));
    // The address first: one that has tried too often must not keep others from their accounts.
    let taken = [
        limit_address(node, call)?,
        take(node, format!("sign-in:{}", digest(&name.to_lowercase())), BY_NAME)?,
    ];
    let known = {
        let directory = node.people.directory();
        let user = directory.user(name).or_else(|| directory.user_of_email(name));
        user.map(|user| {
            (Principal::new(user.name.clone(), user.tenant.clone()), user.active, user.password.clone())
        })
    };
    let hash = known.as_ref().and_then(|(_, _, hash)| hash.clone());
    let _turn = HASHING.acquire().await.map_err(Problem::internal)?;
    let verified = node.machine.scheduler.work(move || verify_password(&password, hash.as_deref())).await;
    let fits = verified.map_err(Problem::internal)?;
    let Some((principal, true, _)) = known.filter(|_| fits) else { return Ok(None) };
    taken.iter().for_each(|taken| taken.give_back(node));
    call.signed_in_as(principal.clone());
    Ok(Some(principal))
}

/// The hash of a password that may be taken.
pub async fn hashed(node: &Arc<Node>, password: String, about: &[&str]) -> Result<String, Problem> {
    check_password(&password, about)
        .map_err(|weak| Problem::bad_request("weak_password", weak.to_string()))?;
    let _turn = HASHING.acquire().await.map_err(Problem::internal)?;
    let randomness = node.machine.randomness.clone();
    let hashed = node.machine.scheduler.work(move || hash_password(&password, randomness.as_ref())).await;
    hashed.map_err(Problem::internal)?.map_err(Problem::internal)
}

/// Answers an opaque token for name and password.
#[utoipa::path(post, path = "/api-token-auth/", tag = "sign in", request_body = NameAndPassword, security(()),
    responses((status = 200, description = "{token}: 40 hexadecimal digits"), (status = 400, description = "name and password don't fit"),
        (status = 429, description = "too many have failed")))]
pub async fn token(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    body: Result<Json<NameAndPassword>, JsonRejection>,
) -> Answer {
    let Json(NameAndPassword { username, password }) = body?;
    let Some(principal) = verify(&node, &call, &username, password).await? else {
        return Err(Problem::bad_request("credentials_invalid", "name and password don't fit"));
    };
    let token = new_token(node.machine.randomness.as_ref()).map_err(Problem::internal)?;
    let expires_at = node.machine.clock.now_micros() + TOKEN_LIFE;
    let issue = Command::IssueToken { user: principal.name.to_string(), expires_at };
    node.change(issue.with(digest(&token)), call.leaf(&node, StatusCode::OK)).await?;
    Ok(Json(json!({"token": token})).into_response())
}

/// Opens a session: an access token, a refresh token, and the cookie of the page.
#[utoipa::path(post, path = "/login", tag = "sign in", request_body = Login, security(()),
    responses((status = 200, description = "{access_token, token_type, expires_in, refresh_token}"), (status = 401, description = "they don't fit"),
        (status = 429, description = "too many have failed")))]
pub async fn login(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    body: Result<Json<Login>, JsonRejection>,
) -> Answer {
    let Json(Login { email, password }) = body?;
    let Some(principal) = verify(&node, &call, &email, password).await? else {
        let detail = "e-mail address and password don't fit";
        return Err(Problem::new(StatusCode::UNAUTHORIZED, "credentials_invalid", detail));
    };
    open_session(&node, &call, &principal).await
}

/// Opens a session for somebody who has signed in.
pub async fn open_session(node: &Arc<Node>, call: &Call, principal: &Principal) -> Answer {
    let random = node.machine.randomness.as_ref();
    let id = new_id(random).map_err(Problem::internal)?;
    let refresh = new_token(random).map_err(Problem::internal)?;
    let expires_at = node.machine.clock.now_micros() + SESSION_LIFE;
    let open = Command::OpenSession { id: id.clone(), user: principal.name.to_string(), expires_at };
    node.change(open.with(digest(&refresh)), call.leaf(node, StatusCode::OK)).await?;
    access(node, &principal.name, &id, &refresh)
}

/// What somebody who is signed in gets.
fn access(node: &Node, user: &str, session: &str, refresh: &str) -> Answer {
    let seconds = node.options.session.as_secs() as i64;
    let now = node.machine.clock.now_micros();
    let token = node.people.access.issue(user, session, now, seconds).map_err(Problem::internal)?;
    let body = json!({"access_token": token, "token_type": "bearer", "expires_in": seconds, "refresh_token": refresh});
    let mut response = Json(body).into_response();
    response.headers_mut().insert(header::SET_COOKIE, auth::cookie(Some((&token, seconds))));
    Ok(response)
}

/// A refresh token.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
pub struct Refresh {
    /// As the sign-in or the last refresh answered it.
    refresh_token: String,
}

/// Answers another access token, and another refresh token: each is good once.
#[utoipa::path(post, path = "/auth/refresh", tag = "sign in", request_body = Refresh, security(()),
    responses((status = 200, description = "as from /login"), (status = 401, description = "the session is over")))]
pub async fn refresh(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    body: Result<Json<Refresh>, JsonRejection>,
) -> Answer {
    let Json(Refresh { refresh_token }) = body?;
    let now = node.machine.clock.now_micros();
    let found = {
        let directory = node.people.directory();
        let session = directory.session_of_refresh(&refresh_token, now);
        session.map(|(id, session)| (id.to_owned(), directory.identify_user(&session.user)))
    };
    let Some((id, Ok(identity))) = found else {
        close_copied(&node, &call, &refresh_token).await?;
        return Err(auth::refused(highwater_auth::directory::Refused::Expired));
    };
    call.signed_in_as(identity.principal.clone());
    let fresh = new_token(node.machine.randomness.as_ref()).map_err(Problem::internal)?;
    let spent = Some(digest(&refresh_token));
    let command = Command::RefreshSession { id: id.clone(), spent }.with(digest(&fresh));
    match node.change(command, call.leaf(&node, StatusCode::OK)).await {
        // Another call has spent it in the meantime.
        Err(ChangeError::Rejected(_)) => {
            close_copied(&node, &call, &refresh_token).await?;
            Err(auth::refused(highwater_auth::directory::Refused::Expired))
        }
        changed => {
            changed?;
            access(&node, &identity.principal.name, &id, &fresh)
        }
    }
}

/// Ends the session of a refresh token that is shown a second time: one of the two who have it is a thief.
async fn close_copied(node: &Arc<Node>, call: &Call, token: &str) -> Result<(), Problem> {
    let copied = {
        let directory = node.people.directory();
        directory.session_of_spent(token).map(|(id, session)| (id.to_owned(), session.user.clone()))
    };
    if let Some((id, user)) = copied {
        let leaf = call.also(node, "close_session", format!("user:{user}"));
        node.change(Command::CloseSession { id }.into(), leaf).await?;
    }
    Ok(())
}

/// Ends every session and token of whoever calls.
#[utoipa::path(post, path = "/auth/logout", tag = "sign in", responses((status = 204, description = "signed out everywhere")))]
pub async fn logout(State(node): State<Arc<Node>>, Extension(call): Extension<Arc<Call>>) -> Answer {
    let user = call.principal().name.to_string();
    if node.people.directory().user(&user).is_some() {
        node.change(Command::SignOut { user }.into(), call.leaf(&node, StatusCode::NO_CONTENT)).await?;
    }
    let mut response = StatusCode::NO_CONTENT.into_response();
    response.headers_mut().insert(header::SET_COOKIE, auth::cookie(None));
    Ok(response)
}

/// A new account.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
pub struct SignUp {
    /// E-mail address: the name of the account.
    email: String,
    /// At least 8 characters, and not one of those that are tried first.
    password: String,
    /// The same again.
    confirm_password: String,
    /// `Client` or `Developer`.
    role: String,
    /// What a client is about: MarketingAPI, User Activity or PlatformMonitor.
    #[serde(default)]
    source: Option<String>,
}

/// Makes an account that sees nothing but what is its own.
#[utoipa::path(post, path = "/signup", tag = "sign in", request_body = SignUp, security(()),
    responses((status = 201, description = "{email, role, source}"), (status = 400, description = "a member is wrong; the detail names it"),
        (status = 403, description = "signing up is turned off"), (status = 409, description = "there is such an account")))]
pub async fn sign_up(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    body: Result<Json<SignUp>, JsonRejection>,
) -> Answer {
    let Json(SignUp { email, password, confirm_password, role, source }) = body?;
    if !node.options.sign_up {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "sign_up_closed",
            "signing up is turned off here; ask an administrator",
        ));
    }
    let wrong = |detail: &str| Problem::bad_request("invalid_parameter", detail);
    let address = email.trim().to_lowercase();
    if !address.split_once('@').is_some_and(|(name, host)| !name.is_empty() && host.contains('.')) {
        return Err(wrong("email is not an e-mail address"));
    }
    if password != confirm_password {
        return Err(wrong("confirm_password is not the same as password"));
    }
    if !["Client", "Developer"].contains(&role.as_str()) {
        return Err(wrong("role is Client or Developer"));
    }
    let source = source.filter(|source| !source.is_empty());
    if let Some(source) = &source {
        if !SOURCES.contains(&source.as_str()) {
            return Err(wrong("source is MarketingAPI, User Activity, PlatformMonitor or AWS"));
        }
        if role == "Client" && source == "AWS" {
            return Err(wrong("a Client may not take the source AWS"));
        }
    } else if role == "Client" {
        return Err(wrong("source is missing: a Client is about one"));
    }
    let from = format!("sign-up-from:{}", network(&call.address));
    let verdict = node.sign_ins.admit(&from, BY_ADDRESS, 1, node.limit_clock());
    if !verdict.allowed {
        return Err(too_many(verdict, "too many accounts were asked for; wait before the next one"));
    }
    let hash = hashed(&node, password, &[&address]).await?;
    call.about(format!("user:{address}"));
    let create = Command::CreateUser {
        user: address.clone(),
        email: Some(address.clone()),
        tenant: HOME.into(),
        roles: vec![role.clone()],
        sources: source.iter().cloned().collect(),
        unchecked: true,
        service: false,
    };
    node.change(create.with(hash), call.leaf(&node, StatusCode::CREATED)).await?;
    Ok((StatusCode::CREATED, Json(json!({"email": address, "role": role, "source": source}))).into_response())
}

/// Another password.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPassword {
    /// The one until now.
    old_password: String,
    /// The one from now on.
    new_password: String,
}

/// Changes the caller's password, and signs them out everywhere.
#[utoipa::path(post, path = "/auth/password", tag = "sign in", request_body = NewPassword,
    responses((status = 204, description = "changed"), (status = 400, description = "the old one does not fit, or the new one is too easy to guess")))]
pub async fn password(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    body: Result<Json<NewPassword>, JsonRejection>,
) -> Answer {
    let Json(NewPassword { old_password, new_password }) = body?;
    let name = call.principal().name.to_string();
    if verify(&node, &call, &name, old_password).await?.is_none() {
        return Err(Problem::bad_request("credentials_invalid", "old_password does not fit"));
    }
    let hash = hashed(&node, new_password, &[&name]).await?;
    node.change(Command::SetPassword { user: name }.with(hash), call.leaf(&node, StatusCode::NO_CONTENT))
        .await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Who calls, and what they may do on this node as a whole.
#[utoipa::path(get, path = "/getuserdetails", tag = "sign in",
    responses((status = 200, description = "{name, email, role, roles, permissions, sources, tenant}")))]
pub async fn details(State(node): State<Arc<Node>>, Extension(call): Extension<Arc<Call>>) -> Response {
    let identity = &call.identity;
    let (email, created) = match node.people.directory().user(&identity.principal.name) {
        Some(user) => (user.email.clone(), Some(time::show_micros(user.created.at))),
        None => (None, None),
    };
    let permissions = allowed_permissions(&node.people.policies(), identity);
    let details: Value = json!({
        "name": identity.principal.name.as_ref(),
        "email": email,
        "tenant": identity.principal.tenant.as_ref(),
        "role": identity.roles.first(),
        "roles": identity.roles.as_ref(),
        "grants": identity.grants.as_ref(),
        "permissions": permissions,
        "sources": identity.sources.as_ref(),
        "created_at": created,
    });
    Json(details).into_response()
}
