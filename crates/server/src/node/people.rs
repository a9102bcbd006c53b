//! Who calls, and what they may: the directory of the node, kept by commands in `_system`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use arrow::array::{Array, AsArray};
use arrow::datatypes::Int64Type;
use highwater_auth::access::is_access_token;
use highwater_auth::credential::{KEY_PREFIX, digest, new_token, same};
use highwater_auth::directory::{Applied, Refused};
use highwater_auth::oidc::{Provider, SignInError};
use highwater_auth::{AccessTokens, Asked, Credentials, Directory, Identity, Policies, Rejected, Window};
use highwater_event::identity::HOME;
use highwater_log::{AppendError, Commit, LogBatch};
use highwater_sql::SqlError;

use super::system::{self, Command, CommandKind};
use super::trail::Leaf;
use super::{Node, lock};

/// A provider at which people sign in.
#[derive(Debug, Clone)]
pub struct ProviderOptions {
    /// Which, and how it knows this node.
    pub settings: highwater_auth::oidc::Settings,
    /// The role of those who have no account yet; without one they get none.
    pub role: Option<String>,
    /// Domains of e-mail addresses that new accounts may have; all when there are none.
    pub domains: Vec<String>,
    /// PEM files with certificates that the provider may have beside those that this machine believes.
    pub trusted: Vec<PathBuf>,
}

/// Users, keys and policies of a node.
pub struct People {
    directory: std::sync::RwLock<Directory>,
    /// What is allowed.
    policies: std::sync::RwLock<Arc<Policies>>,
    /// Signs and reads access tokens.
    pub access: AccessTokens,
    /// Where people sign in beside here.
    pub provider: Option<(Provider, ProviderOptions)>,
    /// When each key was last used: for lists, gone with the process.
    used: Mutex<HashMap<Arc<str>, i64>>,
    /// The hash of what lets somebody in once, and until when: microseconds UTC.
    claim: Mutex<Option<(String, i64)>>,
}

/// The administrator that a claim signs in.
pub const FIRST_ADMINISTRATOR: &str = "admin";
/// How long a claim counts, microseconds.
const CLAIM_LIFE: i64 = 15 * 60 * 1_000_000;

/// Microseconds of the window of a limit.
const MINUTE: i64 = 60_000_000;

/// Code of what may not be done.
pub const FORBIDDEN: &str = "forbidden";

/// Whom an address belongs to: of IPv6 somebody has at least the last 64 bits.
pub fn network(address: &str) -> String {
    match address.parse() {
        Ok(std::net::IpAddr::V6(address)) => {
            let [a, b, c, d, ..] = address.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}")
        }
        _ => address.to_owned(),
    }
}

/// What is missing, in words.
pub fn needs(asked: Asked<'_>) -> String {
    match asked.name {
        "" => format!("this needs the permission {}", asked.permission),
        name => format!("this needs the permission {} on {} \"{name}\"", asked.permission, asked.kind),
    }
}

/// Why the directory did not change.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// It does not fit what is known.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// The log refused.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// A fault of the program.
    #[error("{0}")]
    Internal(String),
}

/// Whom a credential stands for, and what is written down of it.
#[derive(Debug, Clone)]
pub struct Known {
    /// Who.
    pub identity: Identity,
    /// Such as `key:ID`.
    pub credential: Arc<str>,
}

impl People {
    pub(super) fn new(
        policies: Policies,
        access: AccessTokens,
        provider: Option<&ProviderOptions>,
    ) -> Result<Self, SignInError> {
        let provider = match provider {
            Some(options) => Some((Provider::new(options.settings.clone())?, options.clone())),
            None => None,
        };
        Ok(Self {
            directory: std::sync::RwLock::default(),
            policies: std::sync::RwLock::new(Arc::new(policies)),
            access,
            provider,
            used: Mutex::default(),
            claim: Mutex::default(),
        })
    }

    /// The policies in force.
    pub fn policies(&self) -> Arc<Policies> {
        self.policies.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts others in force; nothing that was decided before is remembered.
    pub(super) fn govern(&self, policies: Policies) {
        *self.policies.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policies);
    }

    /// The directory as it stands.
    pub fn directory(&self) -> RwLockReadGuard<'_, Directory> {
        self.directory.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn directory_mut(&self) -> RwLockWriteGuard<'_, Directory> {
        self.directory.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// When a key was last used since the node was started, microseconds UTC.
    pub fn last_used(&self, key: &str) -> Option<i64> {
        lock(&self.used).get(key).copied()
    }

    /// Takes in the commands of a batch of `_system`.
    pub(super) fn replay(&self, batch: &LogBatch) {
        apply_commands(batch, |given, by, at| self.directory_mut().apply(given, by, at));
    }
}

/// Applies the commands about people in a batch of `_system`.
pub(super) fn apply_commands(
    batch: &LogBatch,
    mut apply: impl FnMut(&Credentials, &Arc<str>, i64) -> Result<Applied, Rejected>,
) {
    let (Some(kinds), Some(texts), Some(by)) = (
        batch.rows.column_by_name("command").and_then(|column| column.as_string_opt::<i32>()),
        batch.rows.column_by_name("text").and_then(|column| column.as_string_opt::<i32>()),
        batch.rows.column_by_name("principal").and_then(|column| column.as_string_opt::<i32>()),
    ) else {
        return;
    };
    let secrets = batch.rows.column_by_name("secret").and_then(|column| column.as_string_opt::<i32>());
    for row in 0..batch.rows.num_rows() {
        if kinds.value(row) != CommandKind::People.text() {
            continue;
        }
        let secret =
            secrets.filter(|secrets| secrets.is_valid(row)).map(|secrets| secrets.value(row).to_owned());
        match serde_json::from_str(texts.value(row)) {
            Ok(command) => {
                let given = Credentials { command, secret };
                // It fitted when it was taken, and everything before it is the same.
                if let Err(error) = apply(&given, &by.value(row).into(), batch.recorded_at) {
                    tracing::error!(%error, "a command about people is left out");
                }
            }
            Err(error) => tracing::error!(%error, "a command about people can't be read; it is left out"),
        }
    }
}

impl Node {
    /// Whom a credential stands for: the operator's token, an API key, an access token or an opaque token.
    pub fn identify(&self, credential: &str) -> Result<Known, Refused> {
        let now = self.machine.clock.now_micros();
        if same(credential.as_bytes(), self.operator_token.as_bytes()) {
            return Ok(Known { identity: Identity::operator(), credential: "operator".into() });
        }
        let directory = self.people.directory();
        if credential.starts_with(KEY_PREFIX) {
            let identity = directory.identify_key(credential, now)?;
            let label = match &identity.key {
                Some((id, _)) => {
                    lock(&self.people.used).insert(id.clone(), now);
                    format!("key:{id}").into()
                }
                None => "key".into(),
            };
            return Ok(Known { identity, credential: label });
        }
        if is_access_token(credential) {
            let claims = self.people.access.read(credential, now)?;
            let session = directory.session(&claims.sid, now).ok_or(Refused::Expired)?;
            let identity = directory.identify_user(&session.user)?;
            return Ok(Known { identity, credential: format!("session:{}", claims.sid).into() });
        }
        Ok(Known { identity: directory.identify_token(credential, now)?, credential: "token".into() })
    }

    /// What lets somebody in once as the first administrator; `None` when an administrator can sign in.
    pub fn offer_claim(&self) -> anyhow::Result<Option<String>> {
        let administered = self.people.directory().users().any(|user| {
            let signs_in = user.password.is_some() || user.name.as_ref() != FIRST_ADMINISTRATOR;
            user.roles.contains_key("admin") && signs_in
        });
        // Who was turned off, or lost the role, is not brought back by a start.
        let first = self
            .people
            .directory()
            .user(FIRST_ADMINISTRATOR)
            .map(|user| user.active && user.tenant.as_ref() == HOME && user.roles.contains_key("admin"));
        if administered || first == Some(false) {
            return Ok(None);
        }
        let claim = new_token(self.machine.randomness.as_ref())?;
        *lock(&self.people.claim) = Some((digest(&claim), self.machine.clock.now_micros() + CLAIM_LIFE));
        Ok(Some(claim))
    }

    /// Whether a claim counts; it does so once.
    pub fn take_claim(&self, claim: &str) -> bool {
        let mut offered = lock(&self.people.claim);
        let now = self.machine.clock.now_micros();
        let fits = offered
            .as_ref()
            .is_some_and(|(hash, until)| same(hash.as_bytes(), digest(claim).as_bytes()) && *until > now);
        if fits {
            *offered = None;
        }
        fits
    }

    /// Whether somebody is who they were when they were identified: signed in, active, with the same roles and
    /// permissions.
    pub fn is_current(&self, identity: &Identity) -> bool {
        let now = self.machine.clock.now_micros();
        let directory = self.people.directory();
        match &identity.key {
            Some((id, _)) => directory.key(id).is_some_and(|key| {
                key.active && key.version == identity.version && key.expires_at.is_none_or(|end| end > now)
            }),
            None => match directory.user(&identity.principal.name) {
                Some(user) => user.active && user.version == identity.version,
                // The operator, who is no user.
                None => identity.version == 0,
            },
        }
    }

    /// Whether somebody may do something.
    pub fn allows(&self, identity: &Identity, asked: Asked<'_>) -> bool {
        self.people.policies().allows(identity, asked)
    }

    /// Time as limits know it: it never goes back, and there is an hour of it before the start.
    pub fn limit_clock(&self) -> Duration {
        Duration::from_secs(3600) + self.machine.scheduler.elapsed()
    }

    /// Fills the windows of limits again with what keys did in the last minute before the start.
    pub(super) fn refill_limits(&self) -> Result<(), highwater_log::ReadError> {
        let at = highwater_log::audit::partition();
        let (newest, now) = (self.log.recorded_until(), self.limit_clock());
        let end = self.log.end(&at);
        // Back from the end until a row is older than a minute.
        let (mut from, mut step) = (end, 1024);
        while from > self.log.start(&at) {
            from = from.saturating_sub(step).max(self.log.start(&at));
            step *= 2;
            let first = self.log.read(&at, from, 1)?;
            if first.first().is_none_or(|batch| newest - batch.recorded_at > MINUTE) {
                break;
            }
        }
        while from < end {
            for batch in self.log.read(&at, from, 8192)? {
                let Some(batch) = batch.from_offset(from) else { continue };
                from = batch.end();
                let age = newest - batch.recorded_at;
                if age <= MINUTE {
                    self.remember(&batch, now.saturating_sub(Duration::from_micros(age.max(0) as u64)));
                }
            }
        }
        Ok(())
    }

    fn remember(&self, batch: &LogBatch, at: Duration) {
        let column = |name: &str| batch.rows.column_by_name(name);
        let (Some(credentials), Some(costs)) = (
            column("credential").and_then(|column| column.as_string_opt::<i32>()),
            column("cost").and_then(|column| column.as_primitive_opt::<Int64Type>()),
        ) else {
            return;
        };
        let addresses = column("address").and_then(|column| column.as_string_opt::<i32>());
        if let (Some(limit), Some(addresses)) = (self.options.address_limit, addresses) {
            for address in addresses.iter().flatten().filter(|address| !address.is_empty()) {
                let name = format!("address:{}", network(address));
                self.limiter.remember(&name, Window::per_minute(limit), 1, at);
            }
        }
        for row in 0..batch.rows.num_rows() {
            let (credential, cost) = (credentials.value(row), costs.value(row));
            if credential.starts_with("key:") && cost > 0 {
                let cost = u32::try_from(cost).unwrap_or(u32::MAX);
                self.limiter.remember(credential, Window::per_minute(cost), cost, at);
            }
        }
    }

    /// Refuses what somebody may not do, naming the permission that it needs.
    pub fn authorize(&self, identity: &Identity, asked: Asked<'_>) -> Result<(), SqlError> {
        if self.allows(identity, asked) {
            return Ok(());
        }
        Err(SqlError::new(FORBIDDEN, needs(asked)))
    }

    /// Changes the directory: command, entry of the trail and effect are one commit.
    pub async fn change(self: &Arc<Self>, given: Credentials, leaf: Leaf) -> Result<Applied, ChangeError> {
        let node = self.clone();
        let change = async move { node.change_now(given, leaf).await };
        let changed = self.machine.scheduler.complete(change).await;
        changed.unwrap_or_else(|error| Err(ChangeError::Internal(error.to_string())))
    }

    async fn change_now(&self, given: Credentials, leaf: Leaf) -> Result<Applied, ChangeError> {
        // Commands have one order, in the log and in the directory.
        let _one_at_a_time = self.declaring.lock().await;
        if self.people.directory().check(&given)? == Applied::Unchanged {
            return Ok(Applied::Unchanged);
        }
        let internal = |error: &dyn std::fmt::Display| ChangeError::Internal(error.to_string());
        let command = Command::people(&given).map_err(|error| internal(&error))?;
        let by = leaf.entry.actor.clone();
        let append = system::append(&[command], &by, self.machine.clock.now_micros())
            .map_err(|error| internal(&error))?;
        let commit = Commit { appends: vec![append, leaf.append()?], ..Commit::default() };
        let receipt = self.log.append(commit).await?;
        leaf.settle();
        Ok(self.people.directory_mut().apply(&given, &by, receipt.recorded_at)?)
    }
}
