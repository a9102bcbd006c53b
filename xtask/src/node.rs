//! A node that is measured: started with one statement file, ended and removed with its data.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;

/// Where a node writes what it listens on.
pub const ADDRESS: &str = "server.json";
/// Where it keeps the operator's token.
pub const TOKEN: &str = "operator.token";

/// What is measured, and where its data goes.
#[derive(Args, Clone)]
pub struct Target {
    /// The program to measure.
    #[arg(long, default_value = "target/release/highwater")]
    program: PathBuf,
    /// Folder for the node's data; removed afterwards.
    #[arg(long, default_value = "target/bench-data")]
    data: PathBuf,
}

pub struct Node {
    child: Child,
    data: PathBuf,
    keep: AtomicBool,
    pub address: String,
    pub token: String,
}

impl Drop for Node {
    fn drop(&mut self) {
        let mut errors = vec![self.child.kill().err(), self.child.wait().err()];
        if !self.keep.load(Ordering::Relaxed) {
            errors.push(std::fs::remove_dir_all(&self.data).err());
        }
        for error in errors.into_iter().flatten() {
            eprintln!("{error}");
        }
    }
}

impl Target {
    /// Starts a node on an empty folder with these statements.
    pub fn start(&self, statements: &str) -> anyhow::Result<Node> {
        if self.data.exists() {
            std::fs::remove_dir_all(&self.data)?;
        }
        std::fs::create_dir_all(&self.data)?;
        let pack = self.data.join("bench.sql");
        std::fs::write(&pack, statements)?;
        let node = self.serve(&["--pack".as_ref(), pack.as_os_str()], false)?;
        // The statements are declared once it listens.
        std::thread::sleep(Duration::from_millis(1000));
        Ok(node)
    }

    /// Starts a node on the data that an earlier one left.
    pub fn start_again(&self) -> anyhow::Result<Node> {
        match std::fs::remove_file(self.data.join(ADDRESS)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        self.serve(&[], true)
    }

    /// `keep`: the data stays, be it that the node does not start.
    fn serve(&self, more: &[&OsStr], keep: bool) -> anyhow::Result<Node> {
        let child = Command::new(&self.program)
            .args(["serve", "--listen", "127.0.0.1:0", "--data"])
            .arg(&self.data)
            .args(more)
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| {
                format!("{} can't be started; `cargo build --release` first", self.program.display())
            })?;
        let mut node = Node {
            child,
            data: self.data.clone(),
            keep: AtomicBool::new(keep),
            address: String::new(),
            token: String::new(),
        };
        for _ in 0..4000 {
            std::thread::sleep(Duration::from_millis(5));
            let Ok(text) = std::fs::read_to_string(self.data.join(ADDRESS)) else { continue };
            let file: serde_json::Value = serde_json::from_str(&text)?;
            node.address = file["url"].as_str().context("no url")?.trim_start_matches("http://").to_owned();
            node.token = std::fs::read_to_string(self.data.join(TOKEN))?.trim().to_owned();
            return Ok(node);
        }
        bail!("the node did not start")
    }
}

impl Node {
    /// The data stays when the node has ended.
    pub fn keep(&self) {
        self.keep.store(true, Ordering::Relaxed);
    }

    /// CPU seconds that the process has used.
    pub fn cpu_seconds(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
        (ticks(11) + ticks(12)) / 100.0
    }

    /// Memory in MiB: `VmRSS` now, `VmHWM` at its highest.
    pub fn memory(&self, what: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with(what));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0) >> 10
    }

    /// Size of the data folder in MiB.
    pub fn disk(&self) -> u64 {
        fn size(folder: &Path) -> u64 {
            let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
            let one = |entry: std::fs::DirEntry| match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => size(&entry.path()),
                Ok(metadata) => metadata.len(),
                Err(_) => 0,
            };
            entries.flatten().map(one).sum()
        }
        size(&self.data) >> 20
    }

    /// Waits until every view has applied all that is in the log.
    pub fn settle(&self) -> anyhow::Result<()> {
        loop {
            let views = self.call("GET", "/api/v1/views", "")?;
            // What follows the audit trail is behind by this very question.
            let lag = |view: &serde_json::Value| view["lag"].as_u64().filter(|_| view["source"] != "_audit");
            if views["views"].as_array().is_none_or(|views| views.iter().filter_map(lag).all(|lag| lag == 0))
            {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The answer to a question in SQL, as JSON.
    pub fn ask(&self, sql: &str) -> anyhow::Result<serde_json::Value> {
        self.call("POST", "/api/v1/sql", &serde_json::json!({"query": sql}).to_string())
    }

    /// A call by itself.
    pub fn call(&self, method: &str, path: &str, body: &str) -> anyhow::Result<serde_json::Value> {
        call(&self.address, &self.token, method, path, body)
    }

    /// SIGKILL.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// The data goes when the node has ended.
    pub fn forget(&self) {
        self.keep.store(false, Ordering::Relaxed);
    }
}

/// A call by itself to a node at an address.
pub fn call(
    address: &str,
    token: &str,
    method: &str,
    path: &str,
    body: &str,
) -> anyhow::Result<serde_json::Value> {
    let mut stream = std::net::TcpStream::connect(address)?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 2"), "{method} {path}: {answer}");
    let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
    Ok(serde_json::from_str(body)?)
}
