//! Sign-in at an OpenID Connect provider: authorization code with PKCE, state and nonce. The library checks the
//! token; here stand what is asked for and what is believed.

use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, Utc};
use highwater_event::Randomness;
use highwater_event::random::RandomnessError;
use openidconnect::core::{
    CoreAuthenticationFlow, CoreClient, CoreIdToken, CoreIdTokenClaims, CoreIdTokenVerifier,
    CoreJwsSigningAlgorithm, CoreProviderMetadata, CoreUserInfoClaims,
};
use openidconnect::{
    AccessToken, AccessTokenHash, AuthorizationCode, ClientId, ClientSecret, CsrfToken, HttpRequest,
    HttpResponse, IssuerUrl, Nonce, OAuth2TokenResponse, PkceCodeChallenge, PkceCodeVerifier, RedirectUrl,
    Scope, TokenResponse,
};

use crate::credential::{new_token, same};

/// The issuer behind the preset `google`.
pub const GOOGLE: &str = "https://accounts.google.com";
/// How long what the provider says of itself is believed, microseconds.
const METADATA_LIFE: i64 = 3_600_000_000;
/// The least time between two questions for it, microseconds: a token under an unknown key asks anew.
const METADATA_PAUSE: i64 = 60_000_000;
/// How long a sign-in may take, microseconds.
const ATTEMPT_LIFE: i64 = 600_000_000;

/// Makes one call, and follows nothing that the answer points at.
pub type Http<'a> = &'a (dyn Fn(HttpRequest) -> Result<HttpResponse, HttpError> + Sync);

/// The provider can't be reached.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct HttpError(pub String);

/// How this node is known to the provider.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// The provider: its issuer URL.
    pub issuer: String,
    /// What it calls this node.
    pub client_id: String,
    /// What it knows it by.
    pub client_secret: Option<String>,
    /// Where it sends people back to.
    pub callback: String,
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings")
            .field("issuer", &self.issuer)
            .field("client_id", &self.client_id)
            .finish_non_exhaustive()
    }
}

/// A sign-in that has begun: what the browser keeps until it comes back. It proves nothing by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    state: String,
    nonce: String,
    verifier: String,
    /// Microseconds UTC.
    began: i64,
}

impl Attempt {
    fn new(randomness: &dyn Randomness, now: i64) -> Result<Self, RandomnessError> {
        // A verifier has at least 43 characters (RFC 7636).
        let verifier = new_token(randomness)? + &new_token(randomness)?;
        Ok(Self { state: new_token(randomness)?, nonce: new_token(randomness)?, verifier, began: now })
    }

    /// As a cookie's value.
    pub fn text(&self) -> String {
        format!("{}.{}.{}.{}", self.state, self.nonce, self.verifier, self.began)
    }

    /// From a cookie's value.
    pub fn read(text: &str) -> Option<Self> {
        let mut parts = text.split('.').map(str::to_owned);
        let attempt = Self {
            state: parts.next()?,
            nonce: parts.next()?,
            verifier: parts.next()?,
            began: parts.next()?.parse().ok()?,
        };
        (parts.next().is_none() && attempt.state.len() == 40 && attempt.verifier.len() == 80)
            .then_some(attempt)
    }
}

/// What a provider says of somebody who has signed in there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// The provider.
    pub issuer: String,
    /// Whom it means, for ever.
    pub subject: String,
    /// An e-mail address that it has verified.
    pub verified_email: Option<String>,
}

/// Why nobody has signed in.
#[derive(Debug, thiserror::Error)]
pub enum SignInError {
    /// Nothing can be done about it here.
    #[error("the provider can't be asked: {0}")]
    Unreachable(String),
    /// What came back does not belong to a sign-in that this browser has begun.
    #[error("this sign-in was not begun here, or too long ago; begin again")]
    Strange,
    /// What the provider answered does not hold.
    #[error("what the provider answered does not hold: {0}")]
    Invalid(String),
    /// The settings can't be used.
    #[error("the settings of the provider can't be used: {0}")]
    Settings(String),
    /// No chance is to be had.
    #[error("no randomness: {0}")]
    Randomness(#[from] RandomnessError),
}

/// A provider.
#[derive(Debug)]
pub struct Provider {
    settings: Settings,
    issuer: IssuerUrl,
    callback: RedirectUrl,
    known: Mutex<Option<(CoreProviderMetadata, i64)>>,
}

fn invalid(error: impl std::error::Error) -> SignInError {
    SignInError::Invalid(described(&error))
}

/// An error with those behind it.
fn described(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

impl Provider {
    /// Checks the settings. The provider is asked when the first one signs in.
    pub fn new(settings: Settings) -> Result<Self, SignInError> {
        let wrong = |error: &dyn std::fmt::Display| SignInError::Settings(error.to_string());
        let issuer = IssuerUrl::new(settings.issuer.clone()).map_err(|error| wrong(&error))?;
        let callback = RedirectUrl::new(settings.callback.clone()).map_err(|error| wrong(&error))?;
        let here = |url: &openidconnect::url::Url| {
            url.host_str().is_some_and(|host| ["localhost", "127.0.0.1", "[::1]"].contains(&host))
        };
        if issuer.url().scheme() != "https" && !here(issuer.url()) {
            return Err(SignInError::Settings(format!("{} is not encrypted", settings.issuer)));
        }
        Ok(Self { settings, issuer, callback, known: Mutex::default() })
    }

    /// Whose it is.
    pub fn issuer(&self) -> &str {
        &self.settings.issuer
    }

    /// Where to send a browser, and what it keeps until it comes back.
    pub fn begin(
        &self,
        randomness: &dyn Randomness,
        now: i64,
        http: Http<'_>,
    ) -> Result<(String, Attempt), SignInError> {
        let attempt = Attempt::new(randomness, now)?;
        let client = self.client(self.metadata(now, false, http)?);
        let verifier = PkceCodeVerifier::new(attempt.verifier.clone());
        let (state, nonce) = (attempt.state.clone(), attempt.nonce.clone());
        let (url, ..) = client
            .authorize_url(
                CoreAuthenticationFlow::AuthorizationCode,
                || CsrfToken::new(state),
                || Nonce::new(nonce),
            )
            .add_scope(Scope::new("email".into()))
            .set_pkce_challenge(PkceCodeChallenge::from_code_verifier_sha256(&verifier))
            .url();
        Ok((url.into(), attempt))
    }

    /// Who has signed in, when a browser comes back with a code and what it kept.
    pub fn finish(
        &self,
        attempt: &Attempt,
        (code, state, issuer): (&str, &str, Option<&str>),
        now: i64,
        http: Http<'_>,
    ) -> Result<Person, SignInError> {
        let age = now - attempt.began;
        let begun_here = same(state.as_bytes(), attempt.state.as_bytes()) && (0..ATTEMPT_LIFE).contains(&age);
        // RFC 9207: an answer that names another provider was begun at another one.
        if !begun_here || issuer.is_some_and(|issuer| issuer != self.settings.issuer) {
            return Err(SignInError::Strange);
        }
        let client = self.client(self.metadata(now, false, http)?);
        let answer = client
            .exchange_code(AuthorizationCode::new(code.to_owned()))
            .map_err(|error| SignInError::Settings(error.to_string()))?
            .set_pkce_verifier(PkceCodeVerifier::new(attempt.verifier.clone()))
            .request(&|request| http(request))
            .map_err(|error| SignInError::Invalid(described(&error)))?;
        let token = answer.id_token().ok_or_else(|| SignInError::Invalid("there is no ID token".into()))?;
        let nonce = Nonce::new(attempt.nonce.clone());
        let claims = match self.read(token, &nonce, answer.access_token(), now, false, http) {
            // Keys are changed now and then; what the provider says of itself may be from before.
            Err(SignInError::Invalid(_)) => {
                self.read(token, &nonce, answer.access_token(), now, true, http)?
            }
            other => other?,
        };
        let mut email = claims.email().map(|email| (email.to_lowercase(), claims.email_verified()));
        // Some providers tell more than an id only when they are asked.
        if email.is_none()
            && let Ok(question) =
                client.user_info(answer.access_token().clone(), Some(claims.subject().clone()))
        {
            let told: CoreUserInfoClaims = question.request(&|request| http(request)).map_err(invalid)?;
            email = told.email().map(|email| (email.to_lowercase(), told.email_verified()));
        }
        let verified = email.filter(|(_, verified)| *verified == Some(true));
        Ok(Person {
            issuer: self.settings.issuer.clone(),
            subject: claims.subject().to_string(),
            verified_email: verified.map(|(email, _)| email),
        })
    }

    /// The claims of a token, when they hold.
    fn read(
        &self,
        token: &CoreIdToken,
        nonce: &Nonce,
        access: &AccessToken,
        now: i64,
        anew: bool,
        http: Http<'_>,
    ) -> Result<CoreIdTokenClaims, SignInError> {
        let metadata = self.metadata(now, anew, http)?;
        let verifier = CoreIdTokenVerifier::new_public_client(
            ClientId::new(self.settings.client_id.clone()),
            self.issuer.clone(),
            metadata.jwks().clone(),
        );
        // Only keys of two halves: a secret that is shared with the provider could sign as the provider.
        let verifier = verifier
            .set_allowed_algs([
                CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
                CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha384,
                CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha512,
                CoreJwsSigningAlgorithm::RsaSsaPssSha256,
                CoreJwsSigningAlgorithm::RsaSsaPssSha384,
                CoreJwsSigningAlgorithm::RsaSsaPssSha512,
                CoreJwsSigningAlgorithm::EcdsaP256Sha256,
                CoreJwsSigningAlgorithm::EcdsaP384Sha384,
                CoreJwsSigningAlgorithm::EdDsa,
            ])
            .set_time_fn(move || DateTime::<Utc>::from_timestamp_micros(now).unwrap_or_default());
        let claims = token.claims(&verifier, nonce).map_err(invalid)?;
        if let Some(expected) = claims.access_token_hash() {
            let algorithm = token.signing_alg().map_err(invalid)?;
            let key = token.signing_key(&verifier).map_err(invalid)?;
            let found = AccessTokenHash::from_token(access, algorithm, key).map_err(invalid)?;
            if found != *expected {
                return Err(SignInError::Invalid("the access token belongs to another ID token".into()));
            }
        }
        Ok(claims.clone())
    }

    /// What the provider says of itself: endpoints and keys.
    fn metadata(&self, now: i64, anew: bool, http: Http<'_>) -> Result<CoreProviderMetadata, SignInError> {
        let life = if anew { METADATA_PAUSE } else { METADATA_LIFE };
        if let Some((known, at)) = self.known.lock().unwrap_or_else(PoisonError::into_inner).as_ref()
            && (0..life).contains(&(now - at))
        {
            return Ok(known.clone());
        }
        let found = CoreProviderMetadata::discover(&self.issuer, &|request| http(request))
            .map_err(|error| SignInError::Unreachable(described(&error)))?;
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some((found.clone(), now));
        Ok(found)
    }

    fn client(&self, metadata: CoreProviderMetadata) -> KnownClient {
        let secret = self.settings.client_secret.clone().map(ClientSecret::new);
        CoreClient::from_provider_metadata(metadata, ClientId::new(self.settings.client_id.clone()), secret)
            .set_redirect_uri(self.callback.clone())
    }
}

/// A client that knows where to send people.
type KnownClient = CoreClient<
    openidconnect::EndpointSet,
    openidconnect::EndpointNotSet,
    openidconnect::EndpointNotSet,
    openidconnect::EndpointNotSet,
    openidconnect::EndpointMaybeSet,
    openidconnect::EndpointMaybeSet,
>;

#[cfg(test)]
mod tests {
    use super::*;
    use highwater_event::SeededRandomness;

    fn settings(issuer: &str) -> Settings {
        Settings {
            issuer: issuer.into(),
            client_id: "highwater".into(),
            client_secret: Some("secret".into()),
            callback: "https://node.example/auth/callback".into(),
        }
    }

    #[test]
    fn attempts_are_read_as_they_were_written_and_nothing_else_is() {
        let attempt = Attempt::new(&SeededRandomness::new(1), 5).unwrap();
        let text = attempt.text();
        assert_eq!(Attempt::read(&text), Some(attempt));
        for bad in ["", "a.b.c.1", &text[1..], &format!("{text}.x"), &text.replace(".5", ".y")] {
            assert_eq!(Attempt::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_was_not_begun_here_is_refused_before_anybody_is_asked() {
        let provider = Provider::new(settings("https://id.example")).unwrap();
        let attempt = Attempt::new(&SeededRandomness::new(1), 0).unwrap();
        let never = |_: HttpRequest| -> Result<HttpResponse, HttpError> { panic!("nobody is asked") };
        let state = attempt.state.as_str();
        for (answer, now) in [
            (("code", "another", None), 1),
            (("code", state, None), ATTEMPT_LIFE),
            (("code", state, None), -1),
            (("code", state, Some("https://other.example")), 1),
        ] {
            let refused = provider.finish(&attempt, answer, now, &never);
            assert!(matches!(refused, Err(SignInError::Strange)), "{answer:?}");
        }
    }

    #[test]
    fn providers_are_asked_over_encrypted_connections_only() {
        assert!(Provider::new(settings("http://id.example")).is_err());
        assert!(Provider::new(settings("http://127.0.0.1:9000")).is_ok());
        assert!(Provider::new(settings("no url")).is_err());
    }
}
