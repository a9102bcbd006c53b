//! Access tokens: JWTs (RFC 7519) signed with Ed25519. They name a session, so that ending the session ends
//! them at once; no other algorithm than EdDSA is ever accepted.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::{Deserialize, Serialize};

use crate::directory::Refused;

/// What stands before a seed in PKCS #8 (RFC 8410).
const PKCS8: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// For whom tokens are.
const AUDIENCE: &str = "highwater";

/// What a token says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// User.
    pub sub: String,
    /// Session.
    pub sid: String,
    /// When it was issued, seconds since the epoch.
    pub iat: i64,
    /// When it ends, seconds since the epoch.
    pub exp: i64,
    /// For whom it is.
    pub aud: String,
    /// Who issued it.
    pub iss: String,
}

/// Issues and reads tokens of one node.
pub struct AccessTokens {
    issuer: String,
    signing: EncodingKey,
    verifying: DecodingKey,
    validation: Validation,
}

/// The key can't be used.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the key of access tokens can't be used: {0}")]
pub struct UnusableKey(String);

impl AccessTokens {
    /// From the seed of a key.
    pub fn new(issuer: &str, seed: &[u8; 32]) -> Result<Self, UnusableKey> {
        let pair =
            Ed25519KeyPair::from_seed_unchecked(seed).map_err(|error| UnusableKey(error.to_string()))?;
        let public = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_audience(&[AUDIENCE]);
        validation.set_issuer(&[issuer]);
        validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
        // Against the clock that is handed in, not the library's own.
        validation.validate_exp = false;
        Ok(Self {
            issuer: issuer.to_owned(),
            signing: EncodingKey::from_ed_der(&[&PKCS8[..], seed].concat()),
            verifying: DecodingKey::from_ed_components(&public)
                .map_err(|error| UnusableKey(error.to_string()))?,
            validation,
        })
    }

    /// A token for a session, from `now` for so many seconds.
    pub fn issue(&self, user: &str, session: &str, now: i64, seconds: i64) -> Result<String, UnusableKey> {
        let iat = now.div_euclid(1_000_000);
        let claims = Claims {
            sub: user.to_owned(),
            sid: session.to_owned(),
            iat,
            exp: iat + seconds,
            aud: AUDIENCE.into(),
            iss: self.issuer.clone(),
        };
        encode(&Header::new(Algorithm::EdDSA), &claims, &self.signing)
            .map_err(|error| UnusableKey(error.to_string()))
    }

    /// What a token says, when it is one of ours and not over. Whether its session is still open is for the
    /// directory to say.
    pub fn read(&self, token: &str, now: i64) -> Result<Claims, Refused> {
        let claims = decode::<Claims>(token, &self.verifying, &self.validation);
        let claims = claims.map_err(|_| Refused::Unknown)?.claims;
        if claims.exp <= now.div_euclid(1_000_000) { Err(Refused::Expired) } else { Ok(claims) }
    }
}

/// Whether a text has the form of a token.
pub fn is_access_token(text: &str) -> bool {
    text.starts_with("eyJ") && text.bytes().filter(|byte| *byte == b'.').count() == 2
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000_000_000;

    #[test]
    fn tokens_come_back_until_they_end() {
        let tokens = AccessTokens::new("node", &[1; 32]).unwrap();
        let token = tokens.issue("ada", "s1", NOW, 60).unwrap();
        assert!(is_access_token(&token));
        let claims = tokens.read(&token, NOW + 59_000_000).unwrap();
        assert_eq!((claims.sub.as_str(), claims.sid.as_str()), ("ada", "s1"));
        assert_eq!(tokens.read(&token, NOW + 60_000_000), Err(Refused::Expired));
        for other in
            [AccessTokens::new("node", &[2; 32]).unwrap(), AccessTokens::new("other", &[1; 32]).unwrap()]
        {
            assert_eq!(other.read(&token, NOW), Err(Refused::Unknown));
        }
    }

    #[test]
    fn no_other_algorithm_and_no_changed_bit_passes() {
        let tokens = AccessTokens::new("node", &[1; 32]).unwrap();
        let token = tokens.issue("ada", "s1", NOW, 60).unwrap();
        let mut parts = token.split('.');
        let (head, claims, signature) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
        let none = URL_SAFE_NO_PAD.encode(r#"{"typ":"JWT","alg":"none"}"#);
        let hmac = URL_SAFE_NO_PAD.encode(r#"{"typ":"JWT","alg":"HS256"}"#);
        let admin = URL_SAFE_NO_PAD.encode(
            String::from_utf8(URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap().replace("ada", "eve"),
        );
        for bad in [
            format!("{none}.{claims}."),
            format!("{none}.{claims}.{signature}"),
            format!("{hmac}.{claims}.{signature}"),
            format!("{head}.{admin}.{signature}"),
            format!("{head}.{claims}."),
            format!("{head}.{claims}"),
            String::new(),
        ] {
            assert!(tokens.read(&bad, NOW).is_err(), "{bad}");
        }
        for at in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[at] ^= 1;
            let Ok(flipped) = String::from_utf8(bytes) else { continue };
            assert!(tokens.read(&flipped, NOW).is_err(), "{at}");
        }
    }
}
