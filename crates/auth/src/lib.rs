//! Who is who, and who may do what.
//!
//! * [`directory`] is the state of users, clients, keys, tokens and grants: a deterministic view of
//!   [`command`]s, which stand in the log in the order in which they were given.
//! * [`credential`] makes and checks secrets; [`access`] are the signed tokens that need no look-up.
//! * [`oidc`] believes a provider who somebody is.
//! * [`policy`] decides, with Cedar, by the policies in `policies.cedar`: one page that says who may what.
//! * [`limit`] is the exact sliding window over what a key or an address does.
//!
//! Secrets never stand here as they are: passwords as Argon2id, everything else as SHA-256 of 160 random bits
//! or more. Nothing here does I/O, asks the time or makes chance: all three are handed in.

pub mod access;
pub mod command;
pub mod credential;
pub mod directory;
pub mod limit;
pub mod oidc;
pub mod policy;

pub use access::AccessTokens;
pub use command::{Command, Credentials};
pub use directory::{Directory, Identity, Rejected};
pub use limit::{Limiter, Window};
pub use policy::{Asked, Decision, Policies};
