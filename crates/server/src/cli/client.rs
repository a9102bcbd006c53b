//! Talking to a node.

use std::fmt;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Target;
use super::config::Settings;
use crate::http::certificate::OWN_CERTIFICATE;
use crate::outgoing::Outgoing;

/// A command failed; what to print and how to exit.
#[derive(Debug)]
pub struct Failure {
    /// Stable name.
    pub code: String,
    /// What went wrong.
    pub message: String,
    /// What would help.
    pub hint: Option<String>,
    /// Line of the declarations that is at fault, from 1.
    pub line: Option<u64>,
    /// The server's id of the call.
    pub request_id: Option<String>,
    /// Exit code of the process.
    pub exit_code: u8,
}

impl Failure {
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            hint: None,
            line: None,
            request_id: None,
            exit_code: 1,
        }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub fn exit(mut self, exit_code: u8) -> Self {
        self.exit_code = exit_code;
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = std::env::var_os("NO_COLOR").is_some() || !std::io::stderr().is_terminal();
        let (red, off) = if plain { ("", "") } else { ("\x1b[31m", "\x1b[0m") };
        write!(f, "{red}error[{}]{off}: {}", self.code, self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        if let Some(id) = &self.request_id {
            write!(f, "\nrequest: {id}")?;
        }
        Ok(())
    }
}

/// Whoever read the output has seen enough.
pub const OUTPUT_CLOSED: &str = "output_closed";

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new("failed", format!("{error:#}"))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        let code = if error.kind() == std::io::ErrorKind::BrokenPipe { OUTPUT_CLOSED } else { "io" };
        Self::new(code, error.to_string())
    }
}

/// A node and the credential for it.
pub struct Client {
    agent: ureq::Agent,
    url: String,
    token: String,
}

impl Client {
    pub fn new(target: &Target) -> Result<Self, Failure> {
        let folder = target.data.clone().or_else(default_folder);
        let url = match (&target.url, &folder) {
            (Some(url), _) => with_scheme(url),
            (None, Some(folder)) => listening(folder)?,
            (None, None) => {
                return Err(Failure::new(
                    "no_node",
                    "there is no data folder here (./highwater-demo or ./highwater-data)",
                )
                .hint("name it with --data, or start a node with `highwater demo` or `highwater serve`")
                .exit(2));
            }
        };
        let saved = saved_for(&url);
        let mut trusted: Vec<PathBuf> = target.certificate.iter().cloned().collect();
        trusted.extend(saved.as_ref().and_then(|saved| saved.certificate.clone()));
        let own = folder.as_ref().map(|folder| folder.join(OWN_CERTIFICATE)).filter(|file| file.exists());
        trusted.extend(own);
        let agent = agent(&url, trusted)?;
        // Whoever has signed in at this node acts as themselves.
        if target.token_file.is_none()
            && let Some(saved) = saved
        {
            return Ok(Self { agent, url, token: saved.token });
        }
        let of_folder = folder.map(|folder| folder.join("operator.token")).filter(|file| file.exists());
        let file = target.token_file.clone().or(of_folder);
        let Some(file) = file else {
            return Err(Failure::new("no_token", "there is no token to sign in with")
                .hint("name its file with --token-file, or run `highwater login`")
                .exit(4));
        };
        let token = std::fs::read_to_string(&file).map_err(|error| {
            Failure::new("no_token", format!("the token in {} can't be read: {error}", file.display()))
                .exit(4)
        })?;
        Ok(Self { agent, url, token: token.trim().to_owned() })
    }

    /// A client without a credential.
    pub fn anonymous(url: &str, trusted: Vec<PathBuf>) -> Result<Self, Failure> {
        let url = url.trim_end_matches('/').to_owned();
        Ok(Self { agent: agent(&url, trusted)?, url, token: String::new() })
    }

    pub fn get(&self, path: &str) -> Result<String, Failure> {
        let request = self
            .agent
            .get(format!("{}{path}", self.url))
            .header("authorization", format!("Bearer {}", self.token));
        self.answer(request.call())
    }

    pub fn post(&self, path: &str, content_type: &str, accept: &str, body: &[u8]) -> Result<String, Failure> {
        let request = self
            .agent
            .post(format!("{}{path}", self.url))
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", content_type)
            .header("accept", accept);
        self.answer(request.send(body))
    }

    /// A call with a method of its own and, for those that bring one, a JSON body.
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<String, Failure> {
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url))
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", "application/json");
        let wrong = |error: ureq::http::Error| Failure::new("failed", error.to_string());
        let agent = self.agent.clone();
        let body = body.map(Value::to_string).unwrap_or_default();
        // A body of a DELETE is unusual; the first application has one.
        let agent =
            agent.configure_request(request.body(body).map_err(wrong)?).allow_non_standard_methods(true);
        self.answer(self.agent.run(agent.build()))
    }

    /// Sends a body of unknown length.
    pub fn stream(
        &self,
        path: &str,
        content_type: &str,
        encoding: Option<&str>,
        body: &mut dyn std::io::Read,
    ) -> Result<String, Failure> {
        let mut request = self
            .agent
            .post(format!("{}{path}", self.url))
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", content_type);
        if let Some(encoding) = encoding {
            request = request.header("content-encoding", encoding);
        }
        self.answer(request.send(ureq::SendBody::from_reader(&mut BodyReader(body))))
    }

    /// Opens an answer that is read as it comes.
    pub fn open(&self, path: &str) -> Result<impl std::io::Read + 'static, Failure> {
        let request = self
            .agent
            .get(format!("{}{path}", self.url))
            .header("authorization", format!("Bearer {}", self.token));
        self.opened(request.call())
    }

    /// The same for a call that brings JSON.
    pub fn open_post(&self, path: &str, body: &Value) -> Result<impl std::io::Read + 'static, Failure> {
        let request = self
            .agent
            .post(format!("{}{path}", self.url))
            .header("authorization", format!("Bearer {}", self.token))
            .header("content-type", "application/json");
        self.opened(request.send(body.to_string()))
    }

    fn opened(
        &self,
        response: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<impl std::io::Read + 'static, Failure> {
        match response {
            Ok(response) if response.status().is_success() => Ok(response.into_body().into_reader()),
            other => Err(self.answer(other).err().unwrap_or_else(|| Failure::new("bad_answer", "no answer"))),
        }
    }

    fn answer(
        &self,
        response: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<String, Failure> {
        let unreachable = |error: ureq::Error| {
            let failure = Failure::new("unreachable", format!("no node answers at {}: {error}", self.url));
            match error {
                ureq::Error::Rustls(_) | ureq::Error::Io(_) if error.to_string().contains("certificate") => failure
                    .hint("name the certificate to believe with --certificate: a node that makes its own has it in its data folder as tls/certificate.pem"),
                _ => failure.hint("is it running? `highwater serve` or `highwater demo` starts one"),
            }
        };
        let mut response = response.map_err(unreachable)?;
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(1 << 30).read_to_string().map_err(unreachable)?;
        if status < 400 {
            return Ok(body);
        }
        let problem: Value = serde_json::from_str(&body).unwrap_or_default();
        let text = |name: &str| problem[name].as_str().map(str::to_owned);
        // Verdicts of single events, none of which was taken.
        if [409, 422].contains(&status) && problem.get("results").is_some() {
            return Ok(body);
        }
        let detail = text("rendered")
            .or_else(|| text("detail"))
            .unwrap_or_else(|| format!("the node answered {status}"));
        Err(Failure {
            code: text("code").unwrap_or_else(|| format!("http_{status}")),
            message: detail,
            hint: text("hint").filter(|_| problem.get("rendered").is_none()),
            line: problem["at"]["line"].as_u64(),
            request_id: text("request_id"),
            exit_code: match status {
                401 => 4,
                403 => 5,
                404 => 6,
                409 => 7,
                _ => 1,
            },
        })
    }
}

/// The data folder that a command is about when it names none.
pub fn default_folder() -> Option<PathBuf> {
    let mut folders = vec![PathBuf::from("highwater-demo")];
    // The folder that `highwater serve` would take.
    folders.push(
        Settings::find(&[]).map_or_else(|_| PathBuf::from("highwater-data"), |settings| settings.data()),
    );
    let running = folders.iter().find(|folder| folder.join(LISTENING).exists());
    running.or_else(|| folders.iter().find(|folder| folder.exists())).cloned()
}

fn agent(url: &str, trusted: Vec<PathBuf>) -> Result<ureq::Agent, Failure> {
    let agent = Outgoing { trusted, ..Outgoing::default() }.agent(url);
    agent.map_err(|error| Failure::new("certificate", format!("{error:#}")).exit(2))
}

/// An address as a URL.
pub fn with_scheme(url: &str) -> String {
    let url = url.trim_end_matches('/');
    if url.contains("://") { url.to_owned() } else { format!("http://{url}") }
}

/// What `highwater login` has kept.
pub struct Saved {
    /// For this node, and no other.
    pub url: String,
    /// The token.
    pub token: String,
    /// The certificate to believe.
    pub certificate: Option<PathBuf>,
}

impl Saved {
    /// As the file's text: a line each.
    pub fn text(&self) -> String {
        let certificate = self.certificate.as_ref().map(|file| format!("{}\n", file.display()));
        format!("{}\n{}\n{}", self.url, self.token, certificate.unwrap_or_default())
    }
}

fn saved_for(url: &str) -> Option<Saved> {
    let text = std::fs::read_to_string(saved_token()?).ok()?;
    let mut lines = text.lines();
    let (node, token) = (lines.next()?.to_owned(), lines.next()?.to_owned());
    (node == url).then(|| Saved { url: node, token, certificate: lines.next().map(PathBuf::from) })
}

/// Where `highwater login` keeps its token.
pub fn saved_token() -> Option<PathBuf> {
    let home = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".config")))?;
    Some(home.join("highwater/token"))
}

/// File that says where the node of a data folder listens.
pub const LISTENING: &str = "server.json";

/// Where the node of a data folder listens.
pub fn listening(folder: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(folder.join(LISTENING)).map_err(|_| {
        Failure::new("not_running", format!("no node runs on {}", folder.display()))
            .hint(format!("start one with `highwater serve --data {}`", folder.display()))
    })?;
    let file: Value = serde_json::from_str(&text).unwrap_or_default();
    file["url"].as_str().map(str::to_owned).ok_or_else(|| {
        Failure::new(
            "not_running",
            format!("{}/{LISTENING} does not say where the node listens", folder.display()),
        )
    })
}

/// A reader whose type is not known.
struct BodyReader<'a>(&'a mut dyn std::io::Read);

impl std::io::Read for BodyReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}
