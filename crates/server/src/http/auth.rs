//! Which credential a call shows, and what to say when it is not enough.

use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use highwater_auth::directory::Refused;

use super::problem::Problem;

/// The cookie of the page's session. Its name keeps other hosts and unencrypted pages from setting it.
pub const COOKIE: &str = "__Host-highwater";

/// A credential as a call shows it.
pub enum Shown<'a> {
    /// `Authorization: Bearer T`, `Authorization: Token T` or `X-API-Key: T`.
    Header(&'a str),
    /// The cookie of a session.
    Cookie(&'a str),
    /// Something that is none of these.
    Malformed,
    /// None.
    Nothing,
}

/// The credential of a call.
pub fn shown(headers: &HeaderMap) -> Shown<'_> {
    if let Some(key) = headers.get("x-api-key") {
        return key.to_str().map_or(Shown::Malformed, |key| Shown::Header(key.trim()));
    }
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let parts = value.to_str().ok().and_then(|value| value.split_once(' '));
        return match parts {
            Some((scheme, token))
                if scheme.eq_ignore_ascii_case("bearer") || scheme.eq_ignore_ascii_case("token") =>
            {
                Shown::Header(token.trim())
            }
            _ => Shown::Malformed,
        };
    }
    cookie_of(headers, COOKIE).map_or(Shown::Nothing, Shown::Cookie)
}

/// The value of a cookie.
pub fn cookie_of<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let cookies = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(known, _)| *known == name).map(|(_, value)| value)
}

/// Refuses a call with a cookie that another site may have made.
pub fn check_origin(method: &Method, headers: &HeaderMap) -> Result<(), Problem> {
    let is_upgrade = headers.contains_key(header::UPGRADE);
    if (method == Method::GET || method == Method::HEAD) && !is_upgrade {
        return Ok(());
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let origin = headers.get(header::ORIGIN).and_then(|origin| origin.to_str().ok());
    let same = origin.and_then(|origin| origin.split_once("://")).map(|(_, origin)| Some(origin) == host);
    if same == Some(true) {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::FORBIDDEN,
        "foreign_origin",
        "a call with a session's cookie must come from this site",
    ))
}

/// The answer to a call without a credential.
pub fn missing() -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "credentials_missing", "this call needs a credential")
        .hint("send `Authorization: Bearer` with a token, or `X-API-Key` with a key")
}

/// The answer to a call whose credential lets nobody in.
pub fn refused(reason: Refused) -> Problem {
    let code = match reason {
        Refused::Unknown => "credentials_invalid",
        Refused::Expired => "credentials_expired",
        Refused::Disabled => "credentials_disabled",
    };
    Problem::new(StatusCode::UNAUTHORIZED, code, reason.to_string())
}

/// The header that sets or, without a value, removes the cookie of a session.
pub fn cookie(value: Option<(&str, i64)>) -> HeaderValue {
    let (value, seconds) = value.unwrap_or(("", 0));
    let text = format!("{COOKIE}={value}; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age={seconds}");
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_found_wherever_they_are_shown() {
        let with = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_str(value).unwrap());
            headers
        };
        for headers in
            [with("authorization", "Token t"), with("authorization", "bearer  t"), with("x-api-key", " t ")]
        {
            assert!(matches!(shown(&headers), Shown::Header("t")));
        }
        assert!(matches!(shown(&with("cookie", "a=b; __Host-highwater=t; c=d")), Shown::Cookie("t")));
        assert!(matches!(shown(&with("cookie", "highwater=t")), Shown::Nothing));
        assert!(matches!(shown(&with("authorization", "Basic t")), Shown::Malformed));
        assert!(matches!(shown(&HeaderMap::new()), Shown::Nothing));
    }

    #[test]
    fn cookies_count_only_from_this_site() {
        let from = |origin: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static("node:7700"));
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
            }
            headers
        };
        assert!(check_origin(&Method::POST, &from(Some("http://node:7700"))).is_ok());
        assert!(check_origin(&Method::GET, &from(None)).is_ok());
        for origin in [None, Some("http://evil"), Some("null"), Some("http://node:7700.evil")] {
            assert!(check_origin(&Method::POST, &from(origin)).is_err(), "{origin:?}");
        }
    }
}
