//! What is said about people, clients and grants. Commands stand in the log; the directory is what they lead to.

use serde::{Deserialize, Serialize};

/// One change of the directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// A new user. Its password's hash is the secret.
    CreateUser {
        /// Its name.
        user: String,
        /// Its e-mail address, when it has one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        email: Option<String>,
        /// Its tenant.
        tenant: String,
        /// Roles that it begins with.
        #[serde(default)]
        roles: Vec<String>,
        /// The sources that a role `Client` is about.
        #[serde(default)]
        sources: Vec<String>,
        /// Whoever has it has made it: nobody has checked whose e-mail address it names.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        unchecked: bool,
        /// A program, not a person: it has tokens, and neither a password nor a provider.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        service: bool,
    },
    /// A sign-in provider means a user by an id of its own. The password of an account whose address
    /// nobody has checked ends with it: whoever made it may not have been the one whom the provider knows.
    LinkIdentity {
        /// Whom.
        user: String,
        /// The provider.
        issuer: String,
        /// Its id for the user.
        subject: String,
    },
    /// Another password. Its hash is the secret. Ends sessions and tokens.
    SetPassword {
        /// Whose.
        user: String,
    },
    /// Lets a user in no more, or again. Ends sessions and tokens.
    SetUserActive {
        /// Whom.
        user: String,
        /// Whether.
        active: bool,
    },
    /// Gives a role.
    GrantRole {
        /// Whom.
        user: String,
        /// Which.
        role: String,
    },
    /// Takes a role.
    RevokeRole {
        /// From whom.
        user: String,
        /// Which.
        role: String,
    },
    /// Gives a permission, everywhere or `permission@kind:name`.
    GrantPermission {
        /// Whom.
        user: String,
        /// Which.
        permission: String,
    },
    /// Takes a permission.
    RevokePermission {
        /// From whom.
        user: String,
        /// Which.
        permission: String,
    },
    /// A new API key. Its hash is the secret.
    CreateKey {
        /// Its id.
        id: String,
        /// Whose events it brings.
        client: String,
        /// What its owner calls it.
        name: String,
        /// The tenant.
        tenant: String,
        /// What it may do; as permissions of users.
        scopes: Vec<String>,
        /// Sources that it may name; all when there are none.
        #[serde(default)]
        sources: Vec<String>,
        /// Events a minute.
        rate_limit: u32,
        /// When it ends, microseconds UTC.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expires_at: Option<i64>,
    },
    /// Another secret for a key. Its hash is the secret.
    RotateKey {
        /// Which.
        id: String,
    },
    /// Lets a key in no more, or again.
    SetKeyActive {
        /// Which.
        id: String,
        /// Whether.
        active: bool,
    },
    /// Ends a key for good.
    DeleteKey {
        /// Which.
        id: String,
    },
    /// An opaque token. Its hash is the secret.
    IssueToken {
        /// Whose.
        user: String,
        /// When it ends, microseconds UTC.
        expires_at: i64,
    },
    /// A session, which access tokens and cookies belong to. The hash of its refresh token is the secret.
    OpenSession {
        /// Its id.
        id: String,
        /// Whose.
        user: String,
        /// When it ends, microseconds UTC.
        expires_at: i64,
    },
    /// Another refresh token for a session. Its hash is the secret.
    RefreshSession {
        /// Which.
        id: String,
        /// The hash of the one that is spent: of two that spend it, the second is refused.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        spent: Option<String>,
    },
    /// Ends a session and what belongs to it.
    CloseSession {
        /// Which.
        id: String,
    },
    /// Ends every session and token of a user.
    SignOut {
        /// Whose.
        user: String,
    },
}

/// A command with what is kept of the secret that came with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// What is to be done.
    pub command: Command,
    /// Hash of a password, key or token; never the secret itself.
    pub secret: Option<String>,
}

impl From<Command> for Credentials {
    fn from(command: Command) -> Self {
        Self { command, secret: None }
    }
}

impl Command {
    /// With what is kept of its secret.
    pub fn with(self, secret: String) -> Credentials {
        Credentials { command: self, secret: Some(secret) }
    }
}
