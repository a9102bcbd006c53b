//! What holds of whatever a caller shows as a credential: reading it never panics, and nothing is believed that was not issued. For the mutated
//! inputs of `fuzz.rs` and the coverage-guided ones of the folder `fuzz`.

use highwater_auth::access::{AccessTokens, Claims, is_access_token};
use highwater_auth::command::Command;
use highwater_auth::credential::key_id;
use highwater_auth::oidc::Attempt;

const NOW: i64 = 1_767_268_800_000_000;

/// What a text is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credential {
    AccessToken,
    Key,
    Attempt,
    Command,
}

/// All of them.
pub const CREDENTIALS: [Credential; 4] =
    [Credential::AccessToken, Credential::Key, Credential::Attempt, Credential::Command];

/// A node that has issued one token.
pub struct Issuer {
    tokens: AccessTokens,
    issued: String,
    claims: Claims,
}

impl Issuer {
    pub fn new() -> Self {
        let tokens = AccessTokens::new("node", &[1; 32]).unwrap();
        let issued = tokens.issue("ada", "s1", NOW, 60).unwrap();
        Self { claims: tokens.read(&issued, NOW).unwrap(), issued, tokens }
    }

    /// A text that is right.
    pub fn sample(&self, credential: Credential) -> String {
        match credential {
            Credential::AccessToken => self.issued.clone(),
            Credential::Key => "hwk_00112233445566ff_AbCd-_ef".into(),
            Credential::Attempt => {
                format!("{}.{}.{}.{NOW}", "a".repeat(40), "b".repeat(40), "c".repeat(80))
            }
            Credential::Command => {
                let command = Command::GrantRole { user: "ada".into(), role: "Analyst".into() };
                serde_json::to_string(&command).unwrap()
            }
        }
    }

    /// Reads a text, and looks whether what is promised holds; true when it could be read.
    pub fn check(&self, credential: Credential, text: &str) -> bool {
        match credential {
            Credential::AccessToken => self.tokens.read(text, NOW).is_ok_and(|claims| {
                assert!(is_access_token(text));
                assert_eq!((&claims, text), (&self.claims, self.issued.as_str()), "nobody has issued this");
                true
            }),
            Credential::Key => key_id(text).is_some_and(|id| {
                assert!(text.contains(id));
                true
            }),
            Credential::Attempt => Attempt::read(text).is_some_and(|attempt| {
                assert_eq!(Attempt::read(&attempt.text()), Some(attempt));
                true
            }),
            Credential::Command => serde_json::from_str::<Command>(text).is_ok_and(|command| {
                let again = serde_json::to_string(&command).unwrap();
                assert_eq!(serde_json::from_str::<Command>(&again).unwrap(), command);
                true
            }),
        }
    }
}
