//! Privacy: what is SENSITIVE is encrypted before it is on any disk, and read by whoever has the key.
//!
//! * [`ring`] holds the keys: data keys of tenants, each wrapped by a master key. It does no I/O: [`KeyFile`] does.
//! * [`aead`] is the form of one encrypted value: AES-256-GCM under a key that is derived for one batch.
//! * [`value`] turns values of columns into bytes and back; [`batch`] does so for the columns of a batch that
//!   its schema calls SENSITIVE.
//! * [`name`] finds a person's name in texts, however it is written there, and takes it out.
//! * [`Vault`] is what the other rooms get: it encrypts and decrypts, and renews keys.
//!
//! A value is bound to the place that it stands in (stream, column, partition, offset, tenant): one that is moved
//! elsewhere, or changed by a bit, can't be read any more. Non-goals: hiding that a value is null, and how long it is.

pub mod aead;
pub mod batch;
pub mod name;
pub mod ring;
pub mod value;
mod vault;

pub use batch::Positions;
pub use name::Name;
pub use ring::{KeyFile, RingError, Tag};
pub use vault::{Described, SealError, Vault};
