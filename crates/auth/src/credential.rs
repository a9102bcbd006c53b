//! Secrets: how they are made, what is kept of them, and how they are compared.

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use highwater_event::random::RandomnessError;
use highwater_event::{Randomness, hexadecimal};

/// The first letters of an API key.
pub const KEY_PREFIX: &str = "hwk_";
/// Bytes of the longest password: more would be work for whoever sends it.
const LONGEST_PASSWORD: usize = 1024;
/// Fewest characters of a password.
const SHORTEST_PASSWORD: usize = 8;
/// What can be guessed in so many tries is on every list of passwords that were stolen somewhere.
const GUESSES: u64 = 10_000;

/// What is kept of a secret.
pub fn digest(secret: &str) -> String {
    hexadecimal::show(digest::digest(&digest::SHA256, secret.as_bytes()).as_ref())
}

/// Compares without telling by its time where two texts differ.
pub fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len()
        && std::hint::black_box(a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b))) == 0
}

/// An opaque token: 40 hexadecimal digits.
pub fn new_token(randomness: &dyn Randomness) -> Result<String, RandomnessError> {
    let mut bytes = [0; 20];
    randomness.fill(&mut bytes)?;
    Ok(hexadecimal::show(&bytes))
}

/// The name of something that is not secret: 16 hexadecimal digits.
pub fn new_id(randomness: &dyn Randomness) -> Result<String, RandomnessError> {
    let mut bytes = [0; 8];
    randomness.fill(&mut bytes)?;
    Ok(hexadecimal::show(&bytes))
}

/// An API key for an id: `hwk_<id>_<256 bits>`.
pub fn new_key(id: &str, randomness: &dyn Randomness) -> Result<String, RandomnessError> {
    let mut bytes = [0; 32];
    randomness.fill(&mut bytes)?;
    Ok(format!("{KEY_PREFIX}{id}_{}", URL_SAFE_NO_PAD.encode(bytes)))
}

/// The id of an API key; `None` when a text is none.
pub fn key_id(key: &str) -> Option<&str> {
    key.strip_prefix(KEY_PREFIX)?.split_once('_').map(|(id, _)| id)
}

/// What a key is shown as in lists.
pub fn key_prefix(id: &str) -> String {
    format!("{KEY_PREFIX}{id}")
}

/// Why a password is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Weak {
    /// Too short or too long.
    #[error("a password has at least {SHORTEST_PASSWORD} characters and at most {LONGEST_PASSWORD} bytes")]
    Length,
    /// On the lists that attackers try first.
    #[error(
        "this password is among those that are tried first; take a longer one, such as four unrelated words"
    )]
    Common,
}

/// Refuses passwords that are guessed at once. `about` are words that belong to its owner.
pub fn check_password(password: &str, about: &[&str]) -> Result<(), Weak> {
    if password.chars().count() < SHORTEST_PASSWORD || password.len() > LONGEST_PASSWORD {
        return Err(Weak::Length);
    }
    // Looked at in parts: its time grows with the square of the length.
    let head: String = password.chars().take(72).collect();
    if zxcvbn::zxcvbn(&head, about).guesses() < GUESSES { Err(Weak::Common) } else { Ok(()) }
}

/// The hash of a password: Argon2id with 19 MiB and two rounds, as a PHC string.
pub fn hash_password(password: &str, randomness: &dyn Randomness) -> Result<String, String> {
    let mut salt = [0; 16];
    randomness.fill(&mut salt).map_err(|error| error.to_string())?;
    let hash = Argon2::default().hash_password_with_salt(password.as_bytes(), &salt);
    hash.map(|hash: PasswordHash| hash.to_string()).map_err(|error| error.to_string())
}

/// Whether a password fits a hash. Without a hash it takes as long and does not.
pub fn verify_password(password: &str, hash: Option<&str>) -> bool {
    /// The hash of a password that nobody knows.
    const NOBODY: &str =
        "$argon2id$v=19$m=19456,t=2,p=1$aGlnaHdhdGVyLW5vYm9keQ$CWNAYKSDVDYlJKFzJcWsKyQ3T3xWJmJYKvJSmBmmrMA";
    if password.len() > LONGEST_PASSWORD {
        return false;
    }
    let Ok(parsed) = PasswordHash::new(hash.unwrap_or(NOBODY)) else { return false };
    Argon2::default().verify_password(password.as_bytes(), &parsed).is_ok() && hash.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use highwater_event::SeededRandomness;

    #[test]
    fn passwords_are_verified_and_equal_ones_have_other_hashes() {
        let chance = SeededRandomness::new(1);
        let (one, two) = (
            hash_password("purple mountain", &chance).unwrap(),
            hash_password("purple mountain", &chance).unwrap(),
        );
        assert_ne!(one, two);
        assert!(one.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{one}");
        assert!(
            verify_password("purple mountain", Some(&one)) && verify_password("purple mountain", Some(&two))
        );
        assert!(!verify_password("purple mountaim", Some(&one)) && !verify_password("", Some(&one)));
        assert!(
            !verify_password("purple mountain", None)
                && !verify_password("purple mountain", Some("nonsense"))
        );
    }

    #[test]
    fn nobody_has_a_hash_that_takes_as_long() {
        let started = std::time::Instant::now();
        verify_password("purple mountain", None);
        let nobody = started.elapsed();
        let hash = hash_password("x", &SeededRandomness::new(1)).unwrap();
        let started = std::time::Instant::now();
        verify_password("purple mountain", Some(&hash));
        let somebody = started.elapsed();
        assert!(nobody * 4 > somebody && somebody * 4 > nobody, "{nobody:?} and {somebody:?}");
    }

    #[test]
    fn common_passwords_are_refused() {
        for bad in ["password", "12345678", "password1", "qwertyuiop", "iloveyou1", "ada.lovelace"] {
            assert_eq!(check_password(bad, &["ada.lovelace"]), Err(Weak::Common), "{bad}");
        }
        assert_eq!(check_password("short", &[]), Err(Weak::Length));
        assert_eq!(check_password(&"x".repeat(2000), &[]), Err(Weak::Length));
        for good in ["purple-mountain-42", "Tr0ub4dor&3x", "correct horse battery"] {
            assert_eq!(check_password(good, &[]), Ok(()), "{good}");
        }
    }

    #[test]
    fn keys_name_their_id() {
        let chance = SeededRandomness::new(2);
        let id = new_id(&chance).unwrap();
        let key = new_key(&id, &chance).unwrap();
        assert_eq!((key_id(&key), key.len()), (Some(id.as_str()), 4 + 16 + 1 + 43));
        assert_eq!(key_id("hwk_"), None);
        assert!(same(b"ab", b"ab") && !same(b"ab", b"aB") && !same(b"ab", b"abc"));
    }
}
