//! The state that commands lead to. Applying the same commands in the same order always leads to the same
//! state and the same refusals, so that a node that starts again knows exactly whom it knew.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};

use highwater_event::Principal;
use highwater_event::identity::{ANONYMOUS, HOME};

use crate::command::{Command, Credentials};
use crate::credential::{digest, key_id, key_prefix, same};
use crate::policy::ROLES;

/// Opaque tokens, and sessions, that a user has at most; older ones end.
const TOKENS: usize = 32;
/// Names that nobody may take.
const TAKEN: [&str; 4] = ["operator", "engine", ANONYMOUS, "system"];

/// Who gave something, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The name of whoever gave it.
    pub by: Arc<str>,
    /// Microseconds UTC.
    pub at: i64,
}

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Name.
    pub name: Arc<str>,
    /// E-mail address.
    pub email: Option<String>,
    /// Tenant.
    pub tenant: Arc<str>,
    /// Argon2id of the password; none for those who sign in elsewhere.
    pub password: Option<String>,
    /// Lets it in.
    pub active: bool,
    /// Roles.
    pub roles: BTreeMap<String, Grant>,
    /// Permissions beyond what the roles allow.
    pub permissions: BTreeMap<String, Grant>,
    /// Sources that it is about.
    pub sources: BTreeSet<String>,
    /// Nobody has checked whose e-mail address it names.
    pub unchecked: bool,
    /// A program: it has tokens, and neither a password nor a provider.
    pub service: bool,
    /// Providers at which it signs in.
    pub providers: BTreeMap<String, Grant>,
    /// When it was created, and by whom.
    pub created: Grant,
    /// Goes up with every change: what was opened under an earlier one ends.
    pub version: u64,
    /// Digests of its opaque tokens, oldest first.
    tokens: Vec<String>,
}

/// An API key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Id.
    pub id: Arc<str>,
    /// Whose events it brings.
    pub client: Arc<str>,
    /// Name.
    pub name: String,
    /// Tenant.
    pub tenant: Arc<str>,
    /// What it may do.
    pub scopes: BTreeSet<String>,
    /// Sources that it may name; all when there are none.
    pub sources: BTreeSet<String>,
    /// Events a minute.
    pub rate_limit: u32,
    /// When it ends.
    pub expires_at: Option<i64>,
    /// Lets it in.
    pub active: bool,
    /// When it was created, and by whom.
    pub created: Grant,
    /// As of a user.
    pub version: u64,
    digest: String,
}

impl Key {
    /// What lists show of it.
    pub fn prefix(&self) -> String {
        key_prefix(&self.id)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Token {
    user: Arc<str>,
    expires_at: i64,
}

/// A signed-in user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Whose.
    pub user: Arc<str>,
    /// When it ends.
    pub expires_at: i64,
    /// Digest of its refresh token.
    refresh: Option<String>,
    /// Digest of the one before.
    spent: Option<String>,
}

/// Whom a credential stands for, with everything that a decision needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Who.
    pub principal: Principal,
    /// Through a key: its id and events a minute.
    pub key: Option<(Arc<str>, u32)>,
    /// Roles.
    pub roles: Arc<BTreeSet<String>>,
    /// Permissions, or scopes of a key.
    pub grants: Arc<BTreeSet<String>>,
    /// Sources that it is about.
    pub sources: Arc<BTreeSet<String>>,
    /// Of what it was read from.
    pub version: u64,
}

impl Identity {
    /// The holder of the operator's token.
    pub fn operator() -> Self {
        // Made once: it is asked for with every call of the operator.
        static OPERATOR: LazyLock<Identity> = LazyLock::new(|| Identity {
            principal: Principal::operator(),
            ..Identity::nobody().with_role("admin")
        });
        OPERATOR.clone()
    }

    /// A caller without a credential.
    pub fn nobody() -> Self {
        static NOBODY: LazyLock<Identity> = LazyLock::new(|| {
            let none = Arc::new(BTreeSet::new());
            Identity {
                principal: Principal::new(ANONYMOUS, HOME),
                key: None,
                roles: none.clone(),
                grants: none.clone(),
                sources: none,
                version: 0,
            }
        });
        NOBODY.clone()
    }

    /// With a role more.
    pub fn with_role(mut self, role: &str) -> Self {
        Arc::make_mut(&mut self.roles).insert(role.to_owned());
        self
    }
}

/// Why a credential lets nobody in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is none of ours.
    #[error("the credential is not valid")]
    Unknown,
    /// It was one.
    #[error("the credential has expired")]
    Expired,
    /// It is one, and its owner or an administrator has turned it off.
    #[error("the credential is turned off")]
    Disabled,
}

/// Why a command changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// There is no such user, key or session.
    #[error("there is no {kind} \"{name}\"")]
    Unknown {
        /// What is missed.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A name is in use.
    #[error("the {kind} \"{name}\" is there already")]
    Taken {
        /// What is taken.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// Nothing to take away.
    #[error("{user} does not hold {what}")]
    NotHeld {
        /// From whom.
        user: String,
        /// What.
        what: String,
    },
    /// It is for people.
    #[error("\"{0}\" is a service account, which has tokens only")]
    Service(String),
    /// A name or a number is not one.
    #[error("{0}")]
    Malformed(String),
}

/// What a command did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// Something is another now.
    Changed,
    /// It was so already.
    Unchanged,
}

/// Users, keys, tokens and sessions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Directory {
    users: BTreeMap<Arc<str>, User>,
    keys: BTreeMap<Arc<str>, Key>,
    /// By their digests.
    tokens: HashMap<String, Token>,
    sessions: HashMap<String, Session>,
    /// Users by provider and its id for them.
    identities: HashMap<(String, String), Arc<str>>,
    version: u64,
}

fn unknown(kind: &'static str, name: &str) -> Rejected {
    Rejected::Unknown { kind, name: name.to_owned() }
}

/// Checks a name that is shown, compared and written into paths.
fn check_name(kind: &str, name: &str) -> Result<(), Rejected> {
    let fits = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '@' | '+');
    if name.is_empty() || name.len() > 128 || !name.chars().all(fits) || TAKEN.contains(&name) {
        return Err(Rejected::Malformed(format!(
            "\"{}\" can't name a {kind}: use up to 128 letters, digits and . _ - @ +",
            name.chars().take(128).collect::<String>()
        )));
    }
    Ok(())
}

/// Checks a permission: `name` or `name@kind:name`.
pub fn check_permission(permission: &str) -> Result<(), Rejected> {
    let plain = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
    };
    let fits = match permission.split_once('@') {
        None => plain(permission),
        Some((name, on)) => {
            plain(name) && on.split_once(':').is_some_and(|(kind, object)| plain(kind) && !object.is_empty())
        }
    };
    if fits && permission.len() <= 256 {
        return Ok(());
    }
    let shown: String = permission.chars().take(256).collect();
    Err(Rejected::Malformed(format!(
        "\"{shown}\" is not a permission: write view_metrics, or read@stream:orders"
    )))
}

impl Directory {
    /// Goes up with every change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// A user.
    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name)
    }

    /// The user with an e-mail address.
    pub fn user_of_email(&self, email: &str) -> Option<&User> {
        self.users
            .values()
            .find(|user| user.email.as_deref().is_some_and(|known| known.eq_ignore_ascii_case(email)))
    }

    /// The user whom a sign-in provider means by an id of its own.
    pub fn user_of_identity(&self, issuer: &str, subject: &str) -> Option<&User> {
        self.users.get(self.identities.get(&(issuer.to_owned(), subject.to_owned()))?)
    }

    /// All users by name.
    pub fn users(&self) -> impl Iterator<Item = &User> {
        self.users.values()
    }

    /// A key.
    pub fn key(&self, id: &str) -> Option<&Key> {
        self.keys.get(id)
    }

    /// All keys by id.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.keys.values()
    }

    /// A session that has not ended.
    pub fn session(&self, id: &str, now: i64) -> Option<&Session> {
        self.sessions.get(id).filter(|session| session.expires_at > now)
    }

    /// The session that a refresh token belongs to.
    pub fn session_of_refresh(&self, token: &str, now: i64) -> Option<(&str, &Session)> {
        let digest = digest(token);
        let (id, session) =
            self.sessions.iter().find(|(_, session)| session.refresh.as_deref() == Some(&digest))?;
        (session.expires_at > now).then_some((id.as_str(), session))
    }

    /// The session whose refresh token this was before the present one: somebody has a copy.
    pub fn session_of_spent(&self, token: &str) -> Option<(&str, &Session)> {
        let digest = digest(token);
        let found = self.sessions.iter().find(|(_, session)| session.spent.as_deref() == Some(&digest));
        found.map(|(id, session)| (id.as_str(), session))
    }

    /// Whom a user's name stands for.
    pub fn identify_user(&self, name: &str) -> Result<Identity, Refused> {
        let user = self.users.get(name).ok_or(Refused::Unknown)?;
        if !user.active {
            return Err(Refused::Disabled);
        }
        let keys = |map: &BTreeMap<String, Grant>| Arc::new(map.keys().cloned().collect::<BTreeSet<_>>());
        let home = user.tenant.as_ref() == HOME;
        let roles = keys(&user.roles);
        // Whoever looks after the node looks after every tenant.
        let everywhere = home && roles.iter().any(|role| role == "admin");
        Ok(Identity {
            principal: Principal { name: user.name.clone(), tenant: user.tenant.clone(), everywhere },
            key: None,
            roles,
            grants: keys(&user.permissions),
            sources: Arc::new(user.sources.clone()),
            version: user.version,
        })
    }

    /// Whom an opaque token stands for.
    pub fn identify_token(&self, token: &str, now: i64) -> Result<Identity, Refused> {
        // Found by its hash, so that the time of the look-up tells nothing about it.
        let known = self.tokens.get(&digest(token)).ok_or(Refused::Unknown)?;
        if known.expires_at <= now {
            return Err(Refused::Expired);
        }
        self.identify_user(&known.user)
    }

    /// Whom an API key stands for.
    pub fn identify_key(&self, key: &str, now: i64) -> Result<Identity, Refused> {
        let known = key_id(key).and_then(|id| self.keys.get(id));
        let fits = same(digest(key).as_bytes(), known.map_or("", |known| &known.digest).as_bytes());
        let Some(known) = known.filter(|_| fits) else { return Err(Refused::Unknown) };
        if !known.active {
            return Err(Refused::Disabled);
        }
        if known.expires_at.is_some_and(|end| end <= now) {
            return Err(Refused::Expired);
        }
        Ok(Identity {
            // Events of a client stay its own, whichever of its keys brings them.
            principal: Principal::new(format!("client:{}", known.client), known.tenant.clone()),
            key: Some((known.id.clone(), known.rate_limit)),
            roles: Arc::default(),
            grants: Arc::new(known.scopes.clone()),
            sources: Arc::new(known.sources.clone()),
            version: known.version,
        })
    }

    /// Says what a command would lead to.
    pub fn check(&self, given: &Credentials) -> Result<Applied, Rejected> {
        let secret = |what: &str| {
            given.secret.as_ref().map(|_| ()).ok_or_else(|| Rejected::Malformed(format!("{what} is missing")))
        };
        let user = |name: &str| self.users.get(name).ok_or_else(|| unknown("user", name));
        let key = |id: &str| self.keys.get(id).ok_or_else(|| unknown("key", id));
        let person = |name: &str| match user(name)?.service {
            true => Err(Rejected::Service(name.to_owned())),
            false => Ok(()),
        };
        let unchanged = |same: bool| if same { Applied::Unchanged } else { Applied::Changed };
        match &given.command {
            Command::CreateUser { user: name, email, tenant, roles, .. } => {
                check_name("user", name)?;
                check_name("tenant", tenant)?;
                roles.iter().try_for_each(|role| check_role(role))?;
                if self.users.contains_key(name.as_str()) {
                    return Err(Rejected::Taken { kind: "user", name: name.clone() });
                }
                if let Some(email) = email.as_deref().filter(|email| self.user_of_email(email).is_some()) {
                    return Err(Rejected::Taken { kind: "e-mail address", name: email.to_owned() });
                }
                Ok(Applied::Changed)
            }
            Command::LinkIdentity { user: name, issuer, subject } => {
                person(name)?;
                match self.user_of_identity(issuer, subject) {
                    Some(known) if known.name.as_ref() == name => Ok(Applied::Unchanged),
                    Some(_) => Err(Rejected::Taken { kind: "identity", name: subject.clone() }),
                    None => Ok(Applied::Changed),
                }
            }
            Command::SetPassword { user: name } => {
                person(name)?;
                secret("the password")?;
                Ok(Applied::Changed)
            }
            Command::SetUserActive { user: name, active } => Ok(unchanged(user(name)?.active == *active)),
            Command::GrantRole { user: name, role } => {
                check_role(role)?;
                Ok(unchanged(user(name)?.roles.contains_key(role)))
            }
            Command::RevokeRole { user: name, role } => {
                let held = user(name)?.roles.contains_key(role);
                let not_held = || Rejected::NotHeld { user: name.clone(), what: format!("the role {role}") };
                held.then_some(Applied::Changed).ok_or_else(not_held)
            }
            Command::GrantPermission { user: name, permission } => {
                check_permission(permission)?;
                Ok(unchanged(user(name)?.permissions.contains_key(permission)))
            }
            Command::RevokePermission { user: name, permission } => {
                let held = user(name)?.permissions.contains_key(permission);
                let not_held =
                    || Rejected::NotHeld { user: name.clone(), what: format!("the permission {permission}") };
                held.then_some(Applied::Changed).ok_or_else(not_held)
            }
            Command::CreateKey { id, client, tenant, scopes, rate_limit, .. } => {
                check_name("client", client)?;
                check_name("tenant", tenant)?;
                scopes.iter().try_for_each(|scope| check_permission(scope))?;
                secret("the key")?;
                if self.keys.contains_key(id.as_str()) {
                    return Err(Rejected::Taken { kind: "key", name: id.clone() });
                }
                if *rate_limit == 0 {
                    return Err(Rejected::Malformed("rate_limit is at least 1 event a minute".into()));
                }
                Ok(Applied::Changed)
            }
            Command::RotateKey { id } => {
                key(id)?;
                secret("the key")?;
                Ok(Applied::Changed)
            }
            Command::SetKeyActive { id, active } => Ok(unchanged(key(id)?.active == *active)),
            Command::DeleteKey { id } => key(id).map(|_| Applied::Changed),
            Command::IssueToken { user: name, .. } => {
                user(name)?;
                secret("the token")?;
                Ok(Applied::Changed)
            }
            Command::OpenSession { id, user: name, .. } => {
                user(name)?;
                if self.sessions.contains_key(id) {
                    return Err(Rejected::Taken { kind: "session", name: id.clone() });
                }
                Ok(Applied::Changed)
            }
            Command::RefreshSession { id, spent } => {
                let session = self.sessions.get(id).ok_or_else(|| unknown("session", id))?;
                if spent.is_some() && *spent != session.refresh {
                    return Err(unknown("refresh token", "the one that was shown"));
                }
                secret("the token")?;
                Ok(Applied::Changed)
            }
            Command::CloseSession { id } => {
                self.sessions.get(id).map(|_| Applied::Changed).ok_or_else(|| unknown("session", id))
            }
            Command::SignOut { user: name } => user(name).map(|_| Applied::Changed),
        }
    }

    /// Does what a command says; refuses what does not fit the state.
    pub fn apply(&mut self, given: &Credentials, by: &Arc<str>, at: i64) -> Result<Applied, Rejected> {
        if self.check(given)? == Applied::Unchanged {
            return Ok(Applied::Unchanged);
        }
        self.version += 1;
        let version = self.version;
        let grant = || Grant { by: by.clone(), at };
        let secret = || given.secret.clone().unwrap_or_default();
        match given.command.clone() {
            Command::CreateUser { user, email, tenant, roles, sources, unchecked, service } => {
                let name: Arc<str> = user.into();
                let user = User {
                    name: name.clone(),
                    email,
                    tenant: tenant.into(),
                    password: given.secret.clone(),
                    active: true,
                    roles: roles.into_iter().map(|role| (role, grant())).collect(),
                    permissions: BTreeMap::new(),
                    sources: sources.into_iter().collect(),
                    unchecked,
                    service,
                    providers: BTreeMap::new(),
                    created: grant(),
                    version,
                    tokens: Vec::new(),
                };
                self.users.insert(name, user);
            }
            Command::LinkIdentity { user, issuer, subject } => {
                if self.users.get(user.as_str()).is_some_and(|user| user.unchecked) {
                    self.sign_out(&user);
                    self.change_user(&user, |user| (user.unchecked, user.password) = (false, None));
                }
                self.change_user(&user, |user| drop(user.providers.insert(issuer.clone(), grant())));
                self.identities.insert((issuer, subject), user.into());
            }
            Command::SetPassword { user } => {
                self.sign_out(&user);
                self.change_user(&user, |user| user.password = given.secret.clone());
            }
            Command::SetUserActive { user, active } => {
                self.sign_out(&user);
                self.change_user(&user, |user| user.active = active);
            }
            Command::GrantRole { user, role } => {
                self.change_user(&user, |user| drop(user.roles.insert(role, grant())));
            }
            Command::RevokeRole { user, role } => {
                self.change_user(&user, |user| drop(user.roles.remove(&role)));
            }
            Command::GrantPermission { user, permission } => {
                self.change_user(&user, |user| drop(user.permissions.insert(permission, grant())));
            }
            Command::RevokePermission { user, permission } => {
                self.change_user(&user, |user| drop(user.permissions.remove(&permission)));
            }
            Command::CreateKey { id, client, name, tenant, scopes, sources, rate_limit, expires_at } => {
                let key = Key {
                    id: id.as_str().into(),
                    client: client.into(),
                    name,
                    tenant: tenant.into(),
                    scopes: scopes.into_iter().collect(),
                    sources: sources.into_iter().collect(),
                    rate_limit,
                    expires_at,
                    active: true,
                    created: grant(),
                    version,
                    digest: secret(),
                };
                self.keys.insert(id.into(), key);
            }
            Command::RotateKey { id } => self.change_key(&id, |key| key.digest = secret()),
            Command::SetKeyActive { id, active } => self.change_key(&id, |key| key.active = active),
            Command::DeleteKey { id } => drop(self.keys.remove(id.as_str())),
            Command::IssueToken { user, expires_at } => {
                let Some(owner) = self.users.get_mut(user.as_str()) else {
                    return Err(unknown("user", &user));
                };
                let token = secret();
                owner.tokens.push(token.clone());
                let too_many = owner.tokens.len().saturating_sub(TOKENS);
                let ended: Vec<String> = owner.tokens.drain(..too_many).collect();
                ended.iter().for_each(|token| drop(self.tokens.remove(token)));
                self.tokens.insert(token, Token { user: user.into(), expires_at });
            }
            Command::OpenSession { id, user, expires_at } => {
                // Those that ended by themselves are forgotten when another one begins.
                self.sessions.retain(|_, session| session.expires_at > at);
                let mut own: Vec<(i64, String)> = (self.sessions.iter())
                    .filter(|(_, session)| session.user.as_ref() == user)
                    .map(|(id, session)| (session.expires_at, id.clone()))
                    .collect();
                own.sort();
                let too_many = (own.len() + 1).saturating_sub(TOKENS);
                own[..too_many].iter().for_each(|(_, id)| drop(self.sessions.remove(id)));
                let session =
                    Session { user: user.into(), expires_at, refresh: given.secret.clone(), spent: None };
                self.sessions.insert(id, session);
            }
            Command::RefreshSession { id, .. } => {
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.spent = std::mem::replace(&mut session.refresh, given.secret.clone());
                }
            }
            Command::CloseSession { id } => drop(self.sessions.remove(&id)),
            Command::SignOut { user } => self.sign_out(&user),
        }
        Ok(Applied::Changed)
    }

    fn sign_out(&mut self, user: &str) {
        if let Some(owner) = self.users.get_mut(user) {
            owner.tokens.drain(..).for_each(|token| drop(self.tokens.remove(&token)));
        }
        self.sessions.retain(|_, session| session.user.as_ref() != user);
        // Whoever follows a stream with what has ended now follows it no more.
        self.change_user(user, |_| {});
    }

    fn change_user(&mut self, name: &str, change: impl FnOnce(&mut User)) {
        if let Some(user) = self.users.get_mut(name) {
            change(user);
            user.version = self.version;
        }
    }

    fn change_key(&mut self, id: &str, change: impl FnOnce(&mut Key)) {
        if let Some(key) = self.keys.get_mut(id) {
            change(key);
            key.version = self.version;
        }
    }
}

fn check_role(role: &str) -> Result<(), Rejected> {
    if ROLES.contains(&role) {
        return Ok(());
    }
    let shown: String = role.chars().take(128).collect();
    Err(Rejected::Malformed(format!("there is no role \"{shown}\"; roles are {}", ROLES.join(", "))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credential::{new_id, new_key, new_token};
    use highwater_event::SeededRandomness;

    fn user(name: &str, roles: &[&str]) -> Credentials {
        let roles = roles.iter().map(|role| (*role).to_owned()).collect();
        Command::CreateUser {
            user: name.into(),
            email: None,
            tenant: HOME.into(),
            roles,
            sources: vec![],
            unchecked: false,
            service: false,
        }
        .into()
    }

    fn do_all(directory: &mut Directory, commands: impl IntoIterator<Item = Credentials>) {
        for (at, command) in commands.into_iter().enumerate() {
            directory.apply(&command, &"operator".into(), at as i64).unwrap();
        }
    }

    #[test]
    fn tokens_end_with_the_password_and_with_the_user() {
        let chance = SeededRandomness::new(1);
        let mut directory = Directory::default();
        let token = new_token(&chance).unwrap();
        let issue =
            |token: &str| Command::IssueToken { user: "ada".into(), expires_at: 100 }.with(digest(token));
        do_all(&mut directory, [user("ada", &["DataAnalyst"]), issue(&token)]);
        let known = directory.identify_token(&token, 99).unwrap();
        assert_eq!((known.principal.name.as_ref(), known.roles.len()), ("ada", 1));
        assert_eq!(directory.identify_token(&token, 100), Err(Refused::Expired));
        assert_eq!(directory.identify_token(&new_token(&chance).unwrap(), 0), Err(Refused::Unknown));
        do_all(&mut directory, [Command::SetPassword { user: "ada".into() }.with("x".into())]);
        assert_eq!(directory.identify_token(&token, 0), Err(Refused::Unknown));
        let mut bot = user("bot", &["DataEngineer"]);
        if let Command::CreateUser { service, .. } = &mut bot.command {
            *service = true;
        }
        let password = Command::SetPassword { user: "bot".into() }.with("x".into());
        let issue_bot = Command::IssueToken { user: "bot".into(), expires_at: 100 }.with(digest(&token));
        do_all(&mut directory, [bot, issue_bot]);
        assert!(matches!(directory.check(&password), Err(Rejected::Service(_))));
        assert_eq!(directory.identify_token(&token, 99).unwrap().principal.name.as_ref(), "bot");
        do_all(
            &mut directory,
            [issue(&token), Command::SetUserActive { user: "ada".into(), active: false }.into()],
        );
        assert!(
            directory.identify_token(&token, 0).is_err()
                && directory.identify_user("ada") == Err(Refused::Disabled)
        );
        let many: Vec<String> = (0..40).map(|_| new_token(&chance).unwrap()).collect();
        do_all(&mut directory, [Command::SetUserActive { user: "ada".into(), active: true }.into()]);
        do_all(&mut directory, many.iter().map(|token| issue(token)));
        assert!(
            directory.identify_token(&many[7], 0).is_err() && directory.identify_token(&many[8], 0).is_ok()
        );
    }

    #[test]
    fn a_refresh_token_is_spent_once() {
        let mut directory = Directory::default();
        let refresh = |spent: &str, fresh: &str| {
            Command::RefreshSession { id: "s".into(), spent: Some(digest(spent)) }.with(digest(fresh))
        };
        let open = Command::OpenSession { id: "s".into(), user: "ada".into(), expires_at: 100 };
        do_all(&mut directory, [user("ada", &[]), open.with(digest("one")), refresh("one", "two")]);
        assert!(directory.apply(&refresh("one", "three"), &"ada".into(), 5).is_err());
        assert!(directory.session_of_refresh("two", 5).is_some());
        assert_eq!(directory.session_of_spent("one").map(|(id, _)| id), Some("s"), "a copy is known");
        assert!(directory.session_of_spent("two").is_none());
    }

    #[test]
    fn an_identity_of_a_provider_is_one_user_s() {
        let mut directory = Directory::default();
        let link = |user: &str| -> Credentials {
            Command::LinkIdentity { user: user.into(), issuer: "https://id".into(), subject: "7".into() }
                .into()
        };
        let password = Command::SetPassword { user: "ada".into() }.with("hash".into());
        do_all(&mut directory, [user("ada", &[]), user("ben", &[]), password, link("ada")]);
        assert_eq!(directory.user_of_identity("https://id", "7").unwrap().name.as_ref(), "ada");
        assert!(directory.user_of_identity("https://other", "7").is_none());
        assert!(directory.user("ada").unwrap().password.is_some(), "an administrator has made the account");
        assert!(matches!(directory.apply(&link("ben"), &"x".into(), 9), Err(Rejected::Taken { .. })));
        assert_eq!(directory.apply(&link("ada"), &"x".into(), 9), Ok(Applied::Unchanged));
    }

    #[test]
    fn keys_are_rotated_turned_off_and_deleted() {
        let chance = SeededRandomness::new(2);
        let mut directory = Directory::default();
        let id = new_id(&chance).unwrap();
        let (first, second) = (new_key(&id, &chance).unwrap(), new_key(&id, &chance).unwrap());
        let create = Command::CreateKey {
            id: id.clone(),
            client: "acme".into(),
            name: "test".into(),
            tenant: "acme".into(),
            scopes: vec!["ingest".into()],
            sources: vec![],
            rate_limit: 60,
            expires_at: Some(1000),
        };
        do_all(&mut directory, [create.with(digest(&first))]);
        let known = directory.identify_key(&first, 0).unwrap();
        assert_eq!((known.principal.name.as_ref(), known.principal.tenant.as_ref()), ("client:acme", "acme"));
        assert_eq!(directory.identify_key(&second, 0), Err(Refused::Unknown));
        assert_eq!(directory.identify_key(&first, 1000), Err(Refused::Expired));
        do_all(&mut directory, [Command::RotateKey { id: id.clone() }.with(digest(&second))]);
        assert_eq!(directory.identify_key(&first, 0), Err(Refused::Unknown));
        assert!(directory.identify_key(&second, 0).unwrap().version > known.version);
        do_all(&mut directory, [Command::SetKeyActive { id: id.clone(), active: false }.into()]);
        assert_eq!(directory.identify_key(&second, 0), Err(Refused::Disabled));
        do_all(&mut directory, [Command::DeleteKey { id: id.clone() }.into()]);
        assert_eq!(directory.identify_key(&second, 0), Err(Refused::Unknown));
        assert!(directory.identify_key("hwk__", 0).is_err() && directory.identify_key("", 0).is_err());
    }

    #[test]
    fn what_does_not_fit_is_rejected_and_changes_nothing() {
        let mut directory = Directory::default();
        do_all(&mut directory, [user("ada", &[])]);
        let before = directory.clone();
        let grant =
            |permission: &str| Command::GrantPermission { user: "ada".into(), permission: permission.into() };
        let bad: Vec<(Credentials, &str)> = vec![
            (user("ada", &[]), "there already"),
            (user("operator", &[]), "can't name"),
            (user("a/b", &[]), "can't name"),
            (user("eve", &["king"]), "no role"),
            (Command::SetPassword { user: "eve".into() }.with("x".into()), "no user"),
            (Command::SetPassword { user: "ada".into() }.into(), "missing"),
            (grant("drop table").into(), "not a permission"),
            (grant("read@").into(), "not a permission"),
            (
                Command::RevokePermission { user: "ada".into(), permission: "read".into() }.into(),
                "does not hold",
            ),
            (Command::RevokeRole { user: "ada".into(), role: "admin".into() }.into(), "does not hold"),
            (Command::DeleteKey { id: "x".into() }.into(), "no key"),
        ];
        for (command, wanted) in bad {
            let error = directory.apply(&command, &"operator".into(), 1).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
        assert_eq!(directory, before);
        do_all(&mut directory, [grant("read@stream:orders").into()]);
        assert_eq!(
            directory.apply(&grant("read@stream:orders").into(), &"operator".into(), 1),
            Ok(Applied::Unchanged)
        );
        assert_eq!(directory.user("ada").unwrap().permissions["read@stream:orders"].by.as_ref(), "operator");
    }

    #[test]
    fn the_same_commands_lead_to_the_same_state() {
        let chance = SeededRandomness::new(3);
        let commands: Vec<Credentials> = (0..500)
            .map(|_| {
                let user_name = format!("u{}", chance.below(10));
                match chance.below(6) {
                    0 => user(&user_name, &["Client"]),
                    1 => Command::GrantPermission {
                        user: user_name,
                        permission: format!("p{}", chance.below(3)),
                    }
                    .into(),
                    2 => Command::RevokePermission {
                        user: user_name,
                        permission: format!("p{}", chance.below(3)),
                    }
                    .into(),
                    3 => Command::IssueToken { user: user_name, expires_at: 5 }
                        .with(format!("{}", chance.next())),
                    4 => Command::OpenSession {
                        id: format!("{}", chance.below(99)),
                        user: user_name,
                        expires_at: 400,
                    }
                    .into(),
                    _ => Command::SetUserActive { user: user_name, active: chance.chance(0.5) }.into(),
                }
            })
            .collect();
        let play = || {
            let mut directory = Directory::default();
            let outcomes: Vec<_> = commands
                .iter()
                .zip(0..)
                .map(|(command, at)| directory.apply(command, &"x".into(), at))
                .collect();
            (directory, outcomes)
        };
        let (one, two) = (play(), play());
        assert_eq!(one, two);
        assert!(one.1.iter().any(Result::is_err) && one.0.users().count() == 10);
    }
}
