//! Users, and what they may do.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::{Extension, Json};
use highwater_auth::credential::{digest, new_token};
use highwater_auth::directory::{Applied, User, check_permission};
use highwater_auth::policy::{ACTIONS, APPLICATION_PERMISSIONS};
use highwater_auth::{Asked, Command, Credentials};
use highwater_event::StreamName;
use highwater_event::identity::HOME;
use highwater_event::name::nearest;
use highwater_event::time;
use highwater_sql::dialect::Rule;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::call::Call;
use super::problem::{Answer, Problem};
use super::sign_in::hashed;
use crate::node::{Node, is_shared};

/// A permission of a user.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
pub struct PermissionOf {
    /// The user.
    username: String,
    /// The permission, everywhere or as `read@stream:orders`.
    permission: String,
}

/// Refuses a permission that nothing asks for.
pub fn known_permission(node: &Node, permission: &str) -> Result<(), Problem> {
    check_permission(permission)
        .map_err(|error| Problem::bad_request("unknown_permission", error.to_string()))?;
    let bare = permission.split('@').next().unwrap_or(permission);
    let catalog = node.catalog();
    let declared = catalog.endpoints.values().map(|endpoint| endpoint.permission.as_str());
    let revealing = catalog.rules.values().filter_map(|entry| match &entry.rule {
        Rule::ColumnMask { unless, .. } => unless.as_deref(),
        Rule::RowFilter { .. } | Rule::Policy { .. } => None,
    });
    let taken = catalog.intakes.values().map(|intake| intake.requires());
    let known = ACTIONS.iter().chain(&APPLICATION_PERMISSIONS).copied();
    let known: Vec<&str> = known.chain(declared).chain(taken).chain(revealing).collect();
    if known.contains(&bare) {
        return Ok(());
    }
    let problem = Problem::bad_request("unknown_permission", format!("there is no permission \"{bare}\""));
    Err(match nearest(bare, known) {
        Some(near) => problem.hint(format!("did you mean {near}?")),
        None => problem,
    })
}

/// Whom a caller may look after: people of their own tenant, or of all.
fn may_manage(node: &Node, call: &Call, user: &str) -> Result<(), Problem> {
    let missing = || Problem::not_found("user_not_found", format!("there is no user \"{user}\""));
    let directory = node.people.directory();
    let known = directory.user(user).ok_or_else(missing)?;
    if !call.principal().is_of(&known.tenant) {
        return Err(missing());
    }
    // Whoever may set an administrator's password is one.
    highest(call, known.roles.keys())
}

/// Roles that only administrators of the node may give, and look after.
const HIGHEST: [&str; 2] = ["admin", "superuser"];

fn highest<'a>(call: &Call, mut roles: impl Iterator<Item = &'a String>) -> Result<(), Problem> {
    let high = roles.any(|role| HIGHEST.contains(&role.as_str()));
    if !high || call.principal().everywhere {
        return Ok(());
    }
    let detail = "only administrators of the node give the roles admin and superuser, and look after those who have them";
    Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", detail).with("permission", "manage_users".into()))
}

/// Gives a permission.
#[utoipa::path(post, path = "/api/admin/permissions/", tag = "people", request_body = PermissionOf,
    responses((status = 201, description = "{status}"), (status = 200, description = "held already"), (status = 400, description = "no such permission"),
        (status = 404, description = "no such user")))]
pub async fn grant(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    body: Result<Json<PermissionOf>, JsonRejection>,
) -> Answer {
    let Json(PermissionOf { username, permission }) = body?;
    call.about(format!("user:{username}"));
    known_permission(&node, &permission)?;
    may_manage(&node, &call, &username)?;
    let command = Command::GrantPermission { user: username.clone(), permission: permission.clone() };
    let (status, said) = match node.change(command.into(), call.leaf(&node, StatusCode::CREATED)).await? {
        Applied::Changed => (StatusCode::CREATED, format!("Permission '{permission}' added to {username}")),
        Applied::Unchanged => (StatusCode::OK, format!("{username} holds permission '{permission}' already")),
    };
    Ok((status, Json(json!({"status": said}))).into_response())
}

/// Takes a permission.
#[utoipa::path(delete, path = "/api/admin/permissions/", tag = "people", request_body = PermissionOf,
    responses((status = 204, description = "taken"), (status = 404, description = "no such user, or not held")))]
pub async fn revoke(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    body: Result<Json<PermissionOf>, JsonRejection>,
) -> Answer {
    let Json(PermissionOf { username, permission }) = body?;
    call.about(format!("user:{username}"));
    may_manage(&node, &call, &username)?;
    let command = Command::RevokePermission { user: username, permission };
    node.change(command.into(), call.leaf(&node, StatusCode::NO_CONTENT)).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn user_json(user: &User) -> Value {
    let grants =
        |grants: &std::collections::BTreeMap<String, highwater_auth::directory::Grant>| -> Vec<Value> {
            let shown = |(name, grant): (&String, &highwater_auth::directory::Grant)| json!({"name": name, "granted_by": grant.by.as_ref(), "granted_at": time::show_micros(grant.at)});
            grants.iter().map(shown).collect()
        };
    json!({
        "username": user.name.as_ref(),
        "email": user.email,
        "tenant": user.tenant.as_ref(),
        "active": user.active,
        "service": user.service,
        "roles": grants(&user.roles),
        "permissions": grants(&user.permissions),
        "sources": user.sources,
        "created_by": user.created.by.as_ref(),
        "created_at": time::show_micros(user.created.at),
    })
}

/// The users, with their roles and permissions and who gave them.
#[utoipa::path(get, path = "/api/v1/users", tag = "people", responses((status = 200, description = "{users: […]}")))]
pub async fn list(State(node): State<Arc<Node>>, Extension(call): Extension<Arc<Call>>) -> Json<Value> {
    let principal = call.principal();
    let directory = node.people.directory();
    let users = directory.users().filter(|user| principal.is_of(&user.tenant));
    Json(json!({"users": users.map(user_json).collect::<Vec<_>>()}))
}

/// One user.
#[utoipa::path(get, path = "/api/v1/users/{user}", tag = "people", params(("user" = String, Path, description = "name")),
    responses((status = 200, description = "the user"), (status = 404, description = "no such user")))]
pub async fn show(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    Path(user): Path<String>,
) -> Answer {
    may_manage(&node, &call, &user)?;
    let directory = node.people.directory();
    let known = directory.user(&user).map(user_json);
    Ok(Json(known).into_response())
}

/// A new user.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewUser {
    /// Name.
    username: String,
    /// Password; none of a service account.
    #[serde(default)]
    password: Option<String>,
    /// A program, not a person: it has tokens only.
    #[serde(default)]
    service: bool,
    /// E-mail address.
    #[serde(default)]
    email: Option<String>,
    /// Tenant; by default that of whoever creates it.
    #[serde(default)]
    tenant: Option<String>,
    /// Roles.
    #[serde(default)]
    roles: Vec<String>,
    /// Sources that a client is about.
    #[serde(default)]
    sources: Vec<String>,
}

/// Makes a user.
#[utoipa::path(post, path = "/api/v1/users", tag = "people", request_body = NewUser,
    responses((status = 201, description = "the user"), (status = 400, description = "a member is wrong; the detail names it"), (status = 409, description = "the name is taken")))]
pub async fn create(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    body: Result<Json<NewUser>, JsonRejection>,
) -> Answer {
    let Json(new) = body?;
    call.about(format!("user:{}", new.username));
    let tenant = tenant(&call, new.tenant)?;
    highest(&call, new.roles.iter())?;
    let hash = match new.password {
        Some(password) if !new.service => Some(hashed(&node, password, &[&new.username]).await?),
        None if new.service => None,
        Some(_) => return Err(Problem::parameter("password", "a service account has none; make it a token")),
        None => return Err(Problem::parameter("password", "it is missing")),
    };
    let command = Command::CreateUser {
        user: new.username.clone(),
        email: new.email.map(|email| email.to_lowercase()),
        tenant,
        roles: new.roles,
        sources: new.sources,
        unchecked: false,
        service: new.service,
    };
    let given = Credentials { command, secret: hash };
    node.change(given, call.leaf(&node, StatusCode::CREATED)).await?;
    let directory = node.people.directory();
    let made = directory.user(&new.username).map(user_json);
    Ok((StatusCode::CREATED, Json(made)).into_response())
}

/// A token for a service account.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// How long it lets the account in, from 1 to 366.
    #[serde(default = "usual_days")]
    days: i64,
    /// Ends the tokens that it has.
    #[serde(default)]
    replace: bool,
}

fn usual_days() -> i64 {
    90
}

/// Makes a token for a service account; it is shown once. People make their own, by signing in.
#[utoipa::path(post, path = "/api/v1/users/{user}/tokens", tag = "people", params(("user" = String, Path, description = "name of a service account")), request_body = NewToken,
    responses((status = 201, description = "{token, expires_at}"), (status = 404, description = "no such user"), (status = 409, description = "it is a person")))]
pub async fn issue(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    Path(user): Path<String>,
    body: Result<Json<NewToken>, JsonRejection>,
) -> Answer {
    let Json(NewToken { days, replace }) = body?;
    call.about(format!("user:{user}"));
    may_manage(&node, &call, &user)?;
    if !(1..=366).contains(&days) {
        return Err(Problem::parameter("days", format!("{days} is not a number from 1 to 366")));
    }
    if !node.people.directory().user(&user).is_some_and(|user| user.service) {
        let detail = format!("\"{user}\" is a person, in whose name nobody else acts");
        return Err(Problem::new(StatusCode::CONFLICT, "not_a_service_account", detail)
            .hint("people get tokens from /api-token-auth/; `highwater user create NAME --service` makes an account for a program"));
    }
    if replace {
        let leaf = call.also(&node, "manage_users", format!("user:{user}"));
        node.change(Command::SignOut { user: user.clone() }.into(), leaf).await?;
    }
    let token = new_token(node.machine.randomness.as_ref()).map_err(Problem::internal)?;
    let expires_at = node.machine.clock.now_micros() + days * 86_400 * 1_000_000;
    let issue = Command::IssueToken { user, expires_at }.with(digest(&token));
    node.change(issue, call.leaf(&node, StatusCode::CREATED)).await?;
    let body = json!({"token": token, "expires_at": time::show_micros(expires_at)});
    Ok((StatusCode::CREATED, Json(body)).into_response())
}

/// The tenant that something is made for.
pub fn tenant(call: &Call, wanted: Option<String>) -> Result<String, Problem> {
    let principal = call.principal();
    match wanted {
        None => Ok(principal.tenant.to_string()),
        Some(tenant) if principal.is_of(&tenant) => Ok(tenant),
        Some(_) => Err(Problem::new(
            StatusCode::FORBIDDEN,
            "foreign_tenant",
            "this is for administrators of the node",
        )
        .with("permission", Value::from(format!("admin of {HOME}")))),
    }
}

/// What is to be another.
#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ChangedUser {
    /// Lets the user in, or not.
    active: Option<bool>,
    /// A new password.
    password: Option<String>,
    /// A role to give.
    grant_role: Option<String>,
    /// A role to take.
    revoke_role: Option<String>,
}

/// Changes a user: turns it off or on, gives or takes a role, sets its password.
#[utoipa::path(patch, path = "/api/v1/users/{user}", tag = "people", params(("user" = String, Path, description = "name")), request_body = ChangedUser,
    responses((status = 200, description = "the user"), (status = 404, description = "no such user"),
        (status = 409, description = "a service account has no password; or the last administrator would be gone")))]
pub async fn change(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    Path(user): Path<String>,
    body: Result<Json<ChangedUser>, JsonRejection>,
) -> Answer {
    let Json(change) = body?;
    call.about(format!("user:{user}"));
    may_manage(&node, &call, &user)?;
    highest(&call, change.grant_role.iter())?;
    let mut commands = Vec::new();
    if let Some(role) = change.revoke_role {
        commands.push(Command::RevokeRole { user: user.clone(), role }.into());
    }
    if let Some(role) = change.grant_role {
        commands.push(Command::GrantRole { user: user.clone(), role }.into());
    }
    if let Some(active) = change.active {
        commands.push(Command::SetUserActive { user: user.clone(), active }.into());
    }
    if let Some(password) = change.password {
        let hash = hashed(&node, password, &[&user]).await?;
        commands.push(Command::SetPassword { user: user.clone() }.with(hash));
    }
    if commands.is_empty() {
        return Err(Problem::bad_request(
            "invalid_parameter",
            "name what is to change: active, password, grant_role, revoke_role",
        ));
    }
    // One that does not fit keeps the others from being done.
    for command in &commands {
        node.people.directory().check(command).map_err(crate::node::ChangeError::from)?;
    }
    for command in commands {
        node.change(command, call.leaf(&node, StatusCode::OK)).await?;
    }
    let directory = node.people.directory();
    Ok(Json(directory.user(&user).map(user_json)).into_response())
}

/// Whether somebody may do something, and by which rules.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// A user; without it whoever calls.
    #[serde(default)]
    username: Option<String>,
    /// The permission.
    permission: String,
    /// `stream:orders`, `table:totals`, `endpoint:/api/top`; without it the node.
    #[serde(default)]
    on: Option<String>,
}

/// Kinds of things that decisions are about.
const THINGS: [&str; 4] = ["node", "stream", "table", "endpoint"];

/// Explains a decision.
#[utoipa::path(post, path = "/api/v1/policy/explain", tag = "people", request_body = Question,
    responses((status = 200, description = "{allowed, reasons}"), (status = 400, description = "there is no such permission, or kind of thing"), (status = 404, description = "no such user")))]
pub async fn explain(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    body: Result<Json<Question>, JsonRejection>,
) -> Answer {
    let Json(Question { username, permission, on }) = body?;
    let identity = match &username {
        None => call.identity.as_ref().clone(),
        Some(name) if **name == *call.principal().name => call.identity.as_ref().clone(),
        Some(name) => {
            node.authorize(&call.identity, Asked::node("manage_permissions"))?;
            may_manage(&node, &call, name)?;
            let known = node.people.directory().identify_user(name);
            known.map_err(|reason| Problem::bad_request("user_disabled", reason.to_string()))?
        }
    };
    let (kind, name) = match &on {
        None => ("node", ""),
        Some(on) => on.split_once(':').ok_or_else(|| {
            Problem::bad_request("invalid_parameter", "on is kind:name, such as stream:orders")
        })?,
    };
    known_permission(&node, &permission)?;
    if !THINGS.contains(&kind) {
        let detail = format!("there are no things of the kind \"{kind}\"");
        return Err(Problem::parameter("on", detail).hint(format!("there are {}", THINGS.join(", "))));
    }
    let shared = StreamName::new(name).is_ok_and(|name| is_shared(&node.catalog(), &name));
    let asked = Asked::on(&permission, kind, name).shared(shared);
    let decision = node.people.policies().decide(&identity, asked);
    let mut answer = Map::new();
    answer.insert("allowed".into(), decision.allowed.into());
    answer.insert("reasons".into(), json!(decision.reasons));
    if !decision.errors.is_empty() {
        answer.insert("errors".into(), json!(decision.errors));
    }
    Ok(Json(Value::Object(answer)).into_response())
}
