//! A real node in a process of its own, and a client for it.

#![allow(dead_code, reason = "each test file uses its own part")]

pub mod bytes;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

/// A running node. Killed (SIGKILL) when dropped.
pub struct Node {
    child: Child,
    pub data: PathBuf,
    pub client: Client,
}

/// Talks to a node.
#[derive(Clone)]
pub struct Client {
    agent: ureq::Agent,
    pub url: String,
    pub token: String,
}

fn pack() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packs/transactions")
}

/// A port that nobody listens on.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// An empty data folder, and what removes it when it is dropped.
pub fn empty_data() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    (folder, data)
}

impl Node {
    /// Starts a node with the transaction pack on a folder and waits until it gives acks.
    pub fn start(data: &Path) -> Self {
        Self::start_with(data, &[]).unwrap_or_else(|| {
            panic!("the node ended: {}", std::fs::read_to_string(data.with_extension("log")).unwrap())
        })
    }

    /// Runs the program against it; panics when that does not end well.
    pub fn run(&self, arguments: &[&str]) -> String {
        let (success, said) = self.outcome(arguments);
        assert!(success, "{arguments:?}: {said}");
        said
    }

    /// Runs the program against it; panics when that ends well.
    pub fn fails(&self, arguments: &[&str]) -> String {
        let (success, said) = self.outcome(arguments);
        assert!(!success, "{arguments:?}: {said}");
        said
    }

    fn outcome(&self, arguments: &[&str]) -> (bool, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_highwater"));
        let output = command.args(arguments).arg("--data").arg(&self.data).output().unwrap();
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.success(), said)
    }

    /// The same with some environment; `None` when it ends before it gives acks.
    pub fn start_with(data: &Path, environment: &[(&str, &str)]) -> Option<Self> {
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(data.with_extension("log")).unwrap();
        std::fs::remove_file(data.join("server.json")).ok();
        let mut child = Command::new(env!("CARGO_BIN_EXE_highwater"))
            .env("HIGHWATER_LISTEN", "127.0.0.1:0")
            .args(["serve", "--lake-wait", "0.3", "--snapshot-every", "2", "--data"])
            // By a relative path, as most users give it.
            .arg(data.file_name().unwrap())
            .current_dir(data.parent().unwrap())
            .arg("--pack")
            .arg(pack())
            .envs(environment.iter().copied())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if child.try_wait().unwrap().is_some() {
                return None;
            }
            if let (Ok(file), Ok(token)) = (
                std::fs::read_to_string(data.join("server.json")),
                std::fs::read_to_string(data.join("operator.token")),
            ) && let Ok(address) = serde_json::from_str::<Value>(&file)
            {
                let client = Client::of(data, address["url"].as_str().unwrap(), token.trim());
                // The pack is declared after the address is known.
                let ready = client.try_get("/api/v1/endpoints").is_some_and(|(_, body)| {
                    serde_json::from_str::<Value>(&body)
                        .is_ok_and(|body| body["endpoints"].as_array().is_some_and(|e| e.len() >= 3))
                });
                if ready {
                    return Some(Self { child, data: data.to_owned(), client });
                }
            }
            assert!(
                Instant::now() < deadline,
                "the node did not start: {}",
                std::fs::read_to_string(data.with_extension("log")).unwrap()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Somebody new who has signed in; `more` says tenant, roles and permissions.
    pub fn user(&self, name: &str, mut more: Value) -> Client {
        let password = "purple-mountain-42";
        more["username"] = name.into();
        more["password"] = password.into();
        let (status, answer) = self.client.post("/api/v1/users", &more);
        assert_eq!(status, 201, "{answer}");
        let credentials = serde_json::json!({"username": name, "password": password});
        let (status, answer) = self.client.post("/api-token-auth/", &credentials);
        assert_eq!(status, 200, "{answer}");
        Client::new(&self.client.url, answer["token"].as_str().unwrap())
    }

    /// True until the process has ended.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// What the node wrote to standard error, over all its lives.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.data.with_extension("log")).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Client {
    pub fn new(url: &str, token: &str) -> Self {
        Self::trusting(&[], url, token)
    }

    /// A client that believes the certificate that the node of a folder has made for itself.
    pub fn of(data: &Path, url: &str, token: &str) -> Self {
        let pem = std::fs::read(data.join("tls/certificate.pem"));
        let roots: Vec<_> = pem.iter().map(|pem| ureq::tls::Certificate::from_pem(pem).unwrap()).collect();
        Self::trusting(&roots, url, token)
    }

    fn trusting(roots: &[ureq::tls::Certificate<'static>], url: &str, token: &str) -> Self {
        let tls = ureq::tls::TlsConfig::builder()
            .root_certs(ureq::tls::RootCerts::new_with_certs(roots))
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(60)))
            .tls_config(tls.build())
            .proxy(None)
            .build()
            .into();
        Self { agent, url: url.into(), token: token.into() }
    }

    pub fn try_get(&self, path: &str) -> Option<(u16, String)> {
        let request = self
            .agent
            .get(format!("{}{path}", self.url))
            .header("authorization", format!("Bearer {}", self.token));
        let mut response = request.call().ok()?;
        Some((
            response.status().as_u16(),
            response.body_mut().with_config().limit(1 << 30).read_to_string().ok()?,
        ))
    }

    /// The answer to a read, with its body still to come.
    pub fn open(&self, path: &str) -> ureq::http::Response<ureq::Body> {
        let request = self
            .agent
            .get(format!("{}{path}", self.url))
            .header("authorization", format!("Bearer {}", self.token));
        request.call().unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// Any call.
    pub fn call(&self, method: &str, path: &str, headers: &[(String, String)], body: &[u8]) -> (u16, Value) {
        let (status, _, body) = self.call_whole(method, path, headers, body);
        (status, body)
    }

    /// Any call; answers the headers, too.
    pub fn call_whole(
        &self,
        method: &str,
        path: &str,
        headers: &[(String, String)],
        body: &[u8],
    ) -> (u16, ureq::http::HeaderMap, Value) {
        self.try_call(method, path, headers, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// The same, against a node that may be gone.
    pub fn try_call(
        &self,
        method: &str,
        path: &str,
        headers: &[(String, String)],
        body: &[u8],
    ) -> Result<(u16, ureq::http::HeaderMap, Value), ureq::Error> {
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.url));
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("authorization")) {
            request = request.header("authorization", format!("Bearer {}", self.token));
        }
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let outcome = if method == "GET" {
            self.agent.run(request.body(()).unwrap())
        } else {
            self.agent.run(request.body(body).unwrap())
        };
        let mut response = outcome?;
        let body = response.body_mut().with_config().limit(1 << 30).read_to_vec()?;
        let text = String::from_utf8_lossy(&body).into_owned();
        let headers = response.headers().clone();
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok((response.status().as_u16(), headers, body))
    }

    pub fn get(&self, path: &str) -> (u16, Value) {
        let (status, body) = self.try_get(path).unwrap_or_else(|| panic!("no answer to {path}"));
        (status, serde_json::from_str(&body).unwrap_or(Value::String(body)))
    }

    pub fn try_post(&self, path: &str, content_type: &str, body: &str) -> Option<(u16, Value)> {
        let request = self
            .agent
            .post(format!("{}{path}", self.url))
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", content_type);
        let mut response = request.send(body).ok()?;
        let text = response.body_mut().with_config().limit(1 << 30).read_to_string().ok()?;
        Some((response.status().as_u16(), serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }

    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.try_post(path, "application/json", &body.to_string())
            .unwrap_or_else(|| panic!("no answer to {path}"))
    }

    /// Waits for a job to end; answers it.
    pub fn end_of(&self, job: &str) -> Value {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let (status, job) = self.get(&format!("/api/v1/jobs/{job}"));
            assert_eq!(status, 200, "{job}");
            if ["finished", "failed", "cancelled"].contains(&job["state"].as_str().unwrap()) {
                return job;
            }
            assert!(Instant::now() < deadline, "{job}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn put(&self, path: &str) -> (u16, Value) {
        let request = self
            .agent
            .put(format!("{}{path}", self.url))
            .header("authorization", format!("Bearer {}", self.token));
        let mut response = request.send_empty().unwrap();
        let text = response.body_mut().read_to_string().unwrap();
        (response.status().as_u16(), serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Rows of a query.
    pub fn sql(&self, query: &str) -> Vec<Value> {
        let (status, answer) = self.post("/api/v1/sql", &serde_json::json!({"query": query}));
        assert_eq!(status, 200, "{query}: {answer}");
        answer["rows"].as_array().unwrap().clone()
    }

    /// The one number that a query answers.
    pub fn number(&self, query: &str) -> i64 {
        let rows = self.sql(query);
        let row = rows[0].as_object().unwrap();
        row.values().next().unwrap().as_i64().unwrap_or_else(|| panic!("{query}: {rows:?}"))
    }

    /// Waits until every view has applied everything, and fails when one is in trouble.
    pub fn settle(&self) {
        let deadline = Instant::now() + Duration::from_secs(120);
        let mut quiet = 0;
        while quiet < 3 {
            let (_, answer) = self.get("/api/v1/views");
            let views = answer["views"].as_array().unwrap().clone();
            // What follows the audit trail is behind by this very question.
            let others = views.iter().filter(|view| view["source"] != "_audit");
            let behind: Vec<&Value> =
                others.filter(|view| view["lag"] != 0 || view["state"] != "running").collect();
            quiet = if behind.is_empty() { quiet + 1 } else { 0 };
            assert!(Instant::now() < deadline, "views are behind: {behind:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
