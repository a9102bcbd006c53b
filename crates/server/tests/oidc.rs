//! Signing in at a real OpenID Connect provider (a certified implementation, run by the test), as a browser does.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::{Value, json};
use support::{Client, Node, empty_data, free_port};

const SECRET: &str = "known-to-both-of-them-and-to-no-other";

/// The provider's process.
struct Provider(
    Child,
    #[allow(dead_code, reason = "a process whose output nobody reads ends")] BufReader<ChildStdout>,
);

impl Drop for Provider {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/independent/oidc")
}

/// Whether the provider can be run here; installs it.
fn can_run() -> bool {
    static INSTALLED: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
        let version = Command::new("npm").arg("--version").stdout(Stdio::null()).status();
        if version.is_err() {
            println!("NOT RUN signing in at a provider: no npm (apt install nodejs npm)");
            return false;
        }
        if !folder().join("node_modules").exists() {
            let installed = Command::new("npm").arg("ci").current_dir(folder()).output().unwrap();
            assert!(installed.status.success(), "{installed:?}");
        }
        true
    });
    *INSTALLED
}

/// A provider and a node that sends people to it.
fn start(data: &Path, claims: &str, more: &[(&str, &str)]) -> (Provider, Node) {
    let (port, listen) = (free_port().to_string(), format!("127.0.0.1:{}", free_port()));
    let callback = format!("http://{listen}/auth/callback");
    let mut provider = Command::new("node")
        .args(["provider.mjs", &port, &callback, claims])
        .current_dir(folder())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut output = BufReader::new(provider.stdout.take().unwrap());
    output.read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "listening");
    let (issuer, url) = (format!("http://127.0.0.1:{port}"), format!("http://{listen}"));
    let mut environment = vec![
        ("HIGHWATER_LISTEN", listen.as_str()),
        ("HIGHWATER__HTTP__URL", &url),
        ("HIGHWATER__OIDC__ISSUER", &issuer),
        ("HIGHWATER__OIDC__CLIENT_ID", "highwater"),
        ("HIGHWATER__OIDC__CLIENT_SECRET", SECRET),
    ];
    environment.extend(more);
    (Provider(provider, output), Node::start_with(data, &environment).unwrap())
}

/// A browser: it keeps cookies and goes where it is sent.
struct Browser {
    agent: ureq::Agent,
    /// By host and name.
    cookies: BTreeMap<(String, String), String>,
}

struct Answer {
    status: u16,
    location: Option<String>,
    body: Value,
}

impl Browser {
    fn new() -> Self {
        let agent = ureq::Agent::config_builder().http_status_as_error(false).max_redirects(0);
        Self { agent: agent.proxy(None).build().into(), cookies: BTreeMap::new() }
    }

    fn go(&mut self, method: &str, url: &str, form: &str) -> Answer {
        let host = url.split('/').nth(2).unwrap().to_owned();
        let own = self.cookies.iter().filter(|((of, _), _)| *of == host);
        let cookies: Vec<String> = own.map(|((_, name), value)| format!("{name}={value}")).collect();
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(url)
            .header("cookie", cookies.join("; "))
            .header("accept", "application/json")
            .header("content-type", "application/x-www-form-urlencoded");
        let mut response = match method {
            "GET" => self.agent.run(request.body(()).unwrap()).unwrap(),
            _ => self.agent.run(request.body(form).unwrap()).unwrap(),
        };
        for cookie in response.headers().get_all("set-cookie") {
            let mut parts = cookie.to_str().unwrap().split(';');
            let (name, value) = parts.next().unwrap().split_once('=').unwrap();
            let key = (host.clone(), name.to_owned());
            if value.is_empty() {
                self.cookies.remove(&key);
            } else {
                self.cookies.insert(key, value.to_owned());
            }
        }
        let location = response.headers().get("location").map(|to| to.to_str().unwrap().to_owned());
        let location = location.map(|to| match to.strip_prefix('/') {
            Some(path) => format!("http://{host}/{path}"),
            None => to,
        });
        let text = response.body_mut().read_to_string().unwrap();
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Answer { status: response.status().as_u16(), location, body }
    }

    /// Signs in at the provider and stops where it sends the browser back.
    fn return_address(&mut self, node: &Node, name: &str) -> String {
        let mut at = self.go("GET", &format!("{}/auth/oidc", node.client.url), "").location.unwrap();
        for _ in 0..12 {
            if at.starts_with(&node.client.url) {
                return at;
            }
            let answer = self.go("GET", &at, "");
            at = match answer.location {
                Some(to) => to,
                None => {
                    let page = answer.body.as_str().unwrap();
                    let prompt = if page.contains("name=\"login\"") { "login" } else { "consent" };
                    let form = format!("prompt={prompt}&login={name}&password=any");
                    self.go("POST", &at, &form).location.unwrap()
                }
            };
        }
        panic!("{name} goes round in circles at {at}");
    }

    fn sign_in(&mut self, node: &Node, name: &str) -> Answer {
        let back = self.return_address(node, name);
        self.go("GET", &back, "")
    }
}

fn details(node: &Node, answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.body);
    let (status, details) =
        Client::new(&node.client.url, answer.body["access_token"].as_str().unwrap()).get("/getuserdetails");
    assert_eq!(status, 200, "{details}");
    details
}

#[test]
fn people_sign_in_at_the_provider_and_find_their_account() {
    if !can_run() {
        return;
    }
    for claims in ["claims=id_token", "claims=userinfo"] {
        let (_folder, data) = empty_data();
        let roles = [("HIGHWATER__OIDC__ROLE", "Developer"), ("HIGHWATER__OIDC__DOMAINS", "example.org")];
        let (_provider, node) = start(&data, claims, &roles);
        let user = json!({"username": "ada", "email": "ada@example.org", "tenant": "acme", "roles": ["DataAnalyst"], "password": "four unusual words together"});
        let (status, created) = node.client.post("/api/v1/users", &user);
        assert_eq!(status, 201, "{created}");
        // The address of an account that an administrator has made.
        let found = details(&node, &Browser::new().sign_in(&node, "ada"));
        assert_eq!((&found["name"], &found["tenant"]), (&json!("ada"), &json!("acme")));
        // Somebody new, once and again.
        for _ in 0..2 {
            let new = details(&node, &Browser::new().sign_in(&node, "ben"));
            assert_eq!((&new["name"], &new["role"]), (&json!("ben@example.org"), &json!("Developer")));
        }
        let users = node.client.get("/api/v1/users").1;
        assert_eq!(users["users"].as_array().unwrap().len(), 2, "{users}");
        // An address that the provider has not verified is no way to the account that has it, a strange domain
        // none to a new one, and neither is no address.
        for stranger in ["ada2", "eve", "nobody"] {
            let answer = Browser::new().sign_in(&node, stranger);
            assert_eq!((answer.status, &answer.body["code"]), (403, &json!("no_account")), "{stranger}");
        }
        let json_type = [("content-type".to_owned(), "application/json".to_owned())];
        // Once known they are known by the provider's id for them, until they are let in no more.
        assert_eq!(node.client.call("PATCH", "/api/v1/users/ada", &json_type, br#"{"active":false}"#).0, 200);
        let answer = Browser::new().sign_in(&node, "ada");
        assert_eq!((answer.status, &answer.body["code"]), (401, &json!("credentials_disabled")));
        let query = "SELECT action, actor FROM _audit WHERE path = '/auth/callback' AND status = '200' ORDER BY actor";
        let entries = node.client.sql(query);
        let actors: Vec<&Value> = entries.iter().map(|entry| &entry["actor"]).collect();
        assert_eq!(actors, [&json!("ada"), &json!("ben@example.org"), &json!("ben@example.org")]);
        assert!(!node.log().contains(SECRET));
    }
}

#[test]
fn whoever_took_an_address_first_loses_it_to_whom_it_belongs() {
    if !can_run() {
        return;
    }
    let (_folder, data) = empty_data();
    let (_provider, node) = start(&data, "claims=id_token", &[]);
    let password = "four unusual words together";
    let sign_up = json!({"email": "ben@example.org", "password": password, "confirm_password": password, "role": "Developer"});
    assert_eq!(Client::new(&node.client.url, "").post("/signup", &sign_up).0, 201);
    let login = json!({"email": "ben@example.org", "password": password});
    let (status, session) = node.client.post("/login", &login);
    assert_eq!(status, 200, "{session}");
    let found = details(&node, &Browser::new().sign_in(&node, "ben"));
    assert_eq!(found["name"], "ben@example.org");
    assert_eq!(node.client.post("/login", &login).0, 401, "the password was somebody else's");
    let thief = Client::new(&node.client.url, session["access_token"].as_str().unwrap());
    assert_eq!(thief.get("/getuserdetails").0, 401, "and so was the session");
    // Without a role for them, others get no account.
    assert_eq!(Browser::new().sign_in(&node, "ada").status, 403);
}

#[test]
fn a_sign_in_counts_once_and_in_the_browser_that_began_it() {
    if !can_run() {
        return;
    }
    let (_folder, data) = empty_data();
    let (_provider, node) = start(&data, "claims=id_token", &[("HIGHWATER__OIDC__ROLE", "Developer")]);
    let mut browser = Browser::new();
    let back = browser.return_address(&node, "ada");
    let refused = |answer: Answer, code: &str| {
        assert!(matches!(answer.status, 400 | 401), "{}", answer.status);
        assert_eq!(answer.body["code"], code, "{}", answer.body);
    };
    refused(Browser::new().go("GET", &back, ""), "sign_in_unknown");
    let kept = browser.cookies.clone();
    let spoil = |part: usize| {
        let mut cookies = kept.clone();
        for ((_, name), value) in &mut cookies {
            if name == "__Host-highwater-sign-in" {
                let mut parts: Vec<String> = value.split('.').map(str::to_owned).collect();
                let first = if parts[part].starts_with('0') { "1" } else { "0" };
                parts[part].replace_range(..1, first);
                *value = parts.join(".");
            }
        }
        Browser { cookies, ..Browser::new() }
    };
    refused(spoil(0).go("GET", &back, ""), "sign_in_unknown");
    // The code of another's sign-in does not fit this browser's verifier: the provider refuses.
    refused(spoil(2).go("GET", &back, ""), "credentials_invalid");
    let mut browser = Browser::new();
    let back = browser.return_address(&node, "ada");
    let kept_now = browser.cookies.clone();
    let nonce = {
        let mut cookies = kept_now.clone();
        for ((_, name), value) in &mut cookies {
            if name == "__Host-highwater-sign-in" {
                let mut parts: Vec<String> = value.split('.').map(str::to_owned).collect();
                parts[1] = parts[1].chars().rev().collect();
                *value = parts.join(".");
            }
        }
        Browser { cookies, ..Browser::new() }.go("GET", &back, "")
    };
    refused(nonce, "credentials_invalid");
    let mut browser = Browser::new();
    let back = browser.return_address(&node, "ada");
    let kept = browser.cookies.clone();
    assert_eq!(browser.go("GET", &back, "").status, 200);
    refused(browser.go("GET", &back, ""), "sign_in_unknown");
    let mut again = Browser { cookies: kept, ..Browser::new() };
    refused(again.go("GET", &back, ""), "credentials_invalid");
    let denied = format!("{}/auth/callback?error=access_denied", node.client.url);
    refused(Browser::new().go("GET", &denied, ""), "sign_in_refused");
}

#[test]
fn without_a_provider_nobody_is_sent_anywhere() {
    let (_folder, data) = empty_data();
    let node = Node::start(&data);
    for path in ["/auth/oidc", "/auth/google"] {
        let answer = Browser::new().go("GET", &format!("{}{path}", node.client.url), "");
        assert_eq!((answer.status, &answer.body["code"]), (404, &json!("no_provider")));
    }
    drop(node);
    assert!(Node::start_with(&data, &[("HIGHWATER__OIDC__ISSUER", "https://id.example")]).is_none());
    let said = std::fs::read_to_string(data.with_extension("log")).unwrap();
    assert!(said.contains("http.url"), "{said}");
}
