//! Durable ingest over HTTP: deduplicated, fsynced, load generator on the same machine.
//!
//! Each event is about 300 bytes of JSON with an id that is never repeated. An answer counts when it is
//! a 202 with nothing rejected.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[derive(Args)]
pub struct Arguments {
    /// The program to measure.
    #[arg(long, default_value = "target/release/highwater")]
    program: PathBuf,
    /// Seconds per measurement, after two seconds of warm-up.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Connections that send one event per request.
    #[arg(long, default_value_t = 256)]
    single_connections: usize,
    /// Connections that send batches.
    #[arg(long, default_value_t = 8)]
    batch_connections: usize,
    /// Events per batch.
    #[arg(long, default_value_t = 1000)]
    batch: usize,
    /// Folder for the node's data; removed afterwards.
    #[arg(long, default_value = "target/bench-data")]
    data: PathBuf,
}

const STREAM: &str = "CREATE STREAM bench (id TEXT NOT NULL, at TIMESTAMP NOT NULL, user_id TEXT, product_id TEXT, \
    amount DECIMAL(15,2), currency TEXT, kind TEXT, status TEXT, place STRUCT<city TEXT, country TEXT>, quantity INT) \
    WITH (event_id = 'id', event_time = 'at', lake = false)";
const EVENT: &str = r#"{"id":"EVT-0000000000000000","at":"2026-01-15T10:30:00.123456Z","user_id":"USER-1234","product_id":"PROD-123","amount":270.43,"currency":"GBP","kind":"purchase","status":"completed","place":{"city":"San Francisco","country":"USA"},"quantity":3,"note":"a member that the stream does not declare"}"#;
const ID_AT: usize = 11;

struct Node {
    child: Child,
    data: PathBuf,
    address: String,
    token: String,
}

impl Drop for Node {
    fn drop(&mut self) {
        let errors =
            [self.child.kill().err(), self.child.wait().err(), std::fs::remove_dir_all(&self.data).err()];
        for error in errors.into_iter().flatten() {
            eprintln!("{error}");
        }
    }
}

fn start(arguments: &Arguments) -> anyhow::Result<Node> {
    if arguments.data.exists() {
        std::fs::remove_dir_all(&arguments.data)?;
    }
    std::fs::create_dir_all(&arguments.data)?;
    let pack = arguments.data.join("bench.sql");
    std::fs::write(&pack, STREAM)?;
    let child = Command::new(&arguments.program)
        .args(["serve", "--listen", "127.0.0.1:0", "--data"])
        .arg(&arguments.data)
        .arg("--pack")
        .arg(&pack)
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| {
            format!("{} can't be started; `cargo build --release` first", arguments.program.display())
        })?;
    let mut node = Node { child, data: arguments.data.clone(), address: String::new(), token: String::new() };
    for _ in 0..200 {
        std::thread::sleep(Duration::from_millis(100));
        let Ok(text) = std::fs::read_to_string(arguments.data.join("server.json")) else { continue };
        let file: serde_json::Value = serde_json::from_str(&text)?;
        node.address = file["url"].as_str().context("no url")?.trim_start_matches("http://").to_owned();
        node.token = std::fs::read_to_string(arguments.data.join("operator.token"))?;
        std::thread::sleep(Duration::from_millis(1000));
        return Ok(node);
    }
    bail!("the node did not start")
}

/// A connection with a request whose ids are rewritten in place.
struct Sender {
    stream: TcpStream,
    request: Vec<u8>,
    ids: Vec<usize>,
    answer: Vec<u8>,
}

impl Sender {
    async fn connect(node: &Node, events: usize) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(&node.address).await?;
        stream.set_nodelay(true)?;
        let body =
            if events == 1 { EVENT.to_owned() } else { format!("[{}]", vec![EVENT; events].join(",")) };
        let head = format!(
            "POST /api/v1/streams/bench/events HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            node.address,
            node.token.trim(),
            body.len()
        );
        let first = head.len() + usize::from(events > 1);
        let ids = (0..events).map(|event| first + event * (EVENT.len() + 1) + ID_AT).collect();
        Ok(Self {
            stream,
            request: [head.as_bytes(), body.as_bytes()].concat(),
            ids,
            answer: vec![0; 1 << 20],
        })
    }

    async fn send(&mut self, first: u64) -> anyhow::Result<()> {
        for (event, at) in self.ids.iter().enumerate() {
            let id = format!("{:016x}", first + event as u64);
            self.request[*at..*at + 16].copy_from_slice(id.as_bytes());
        }
        self.stream.write_all(&self.request).await?;
        let mut filled = 0;
        loop {
            let read = self.stream.read(&mut self.answer[filled..]).await?;
            ensure!(read > 0, "the node hung up");
            filled += read;
            let text = &self.answer[..filled];
            let Some(head) = text.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
            let headers = std::str::from_utf8(&text[..head])?.to_ascii_lowercase();
            let length: usize = headers
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .context("no content-length")?
                .trim()
                .parse()?;
            if filled < head + 4 + length {
                continue;
            }
            ensure!(
                text.starts_with(b"HTTP/1.1 202"),
                "{}",
                String::from_utf8_lossy(&text[..filled.min(400)])
            );
            return Ok(());
        }
    }
}

fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

fn memory(pid: u32, what: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(what));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0) >> 10
}

async fn measure(
    arguments: &Arguments,
    node: Arc<Node>,
    ids: Arc<AtomicU64>,
    connections: usize,
    events: usize,
) -> anyhow::Result<String> {
    let warm_up = Duration::from_secs(2);
    let until = Instant::now() + warm_up + Duration::from_secs(arguments.seconds);
    let from = Instant::now() + warm_up;
    let mut senders = tokio::task::JoinSet::new();
    for _ in 0..connections {
        let (node, ids) = (node.clone(), ids.clone());
        senders.spawn(async move {
            let mut sender = Sender::connect(&node, events).await?;
            let mut latencies = Histogram::<u64>::new(3)?;
            while Instant::now() < until {
                let started = Instant::now();
                sender.send(ids.fetch_add(events as u64, Ordering::Relaxed)).await?;
                if started >= from {
                    latencies.record(started.elapsed().as_micros() as u64)?;
                }
            }
            anyhow::Ok(latencies)
        });
    }
    tokio::time::sleep(warm_up).await;
    let pid = node.child.id();
    let (cpu, started) = (cpu_seconds(pid), Instant::now());
    let mut all = Histogram::<u64>::new(3)?;
    while let Some(sender) = senders.join_next().await {
        all.add(sender??)?;
    }
    let seconds = started.elapsed().as_secs_f64();
    let rate = all.len() as f64 * events as f64 / seconds;
    let quantile = |q| all.value_at_quantile(q) as f64 / 1000.0;
    Ok(format!(
        "{:>9} {connections:>12} {rate:>12.0} {:>9.2} {:>9.2} {:>9.2} {:>16.2} {:>12}",
        events,
        quantile(0.5),
        quantile(0.99),
        quantile(0.999),
        (cpu_seconds(pid) - cpu) / seconds,
        memory(pid, "VmHWM")
    ))
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let node = Arc::new(start(arguments)?);
    let ids = Arc::new(AtomicU64::new(0));
    println!("{} B per event; {} s each", EVENT.len(), arguments.seconds);
    println!(
        "   events  connections     events/s    p50 ms    p99 ms  p99.9 ms  node CPU seconds/s  peak MiB"
    );
    runtime.block_on(async {
        println!(
            "{}",
            measure(arguments, node.clone(), ids.clone(), arguments.batch_connections, arguments.batch)
                .await?
        );
        println!("{}", measure(arguments, node.clone(), ids.clone(), arguments.single_connections, 1).await?);
        Ok(())
    })
}
