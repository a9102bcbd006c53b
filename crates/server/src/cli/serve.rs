//! `highwater serve` and `highwater demo`: running a node.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use axum::ServiceExt;
use axum::extract::Request;
use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use highwater_event::Principal;
use highwater_log::Log;
use tower::Layer;
use tower::util::MapRequestLayer;

use super::apply::{Pack, read_pack};
use super::client::LISTENING;
use super::config::Settings;
use super::{DemoArgs, Failure, ServeArgs};
use crate::demo;
use crate::http;
use crate::node::{DeclareError, Node, NodeOptions};

fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("HIGHWATER_LOG")
        // The Delta kernel calls a folder without a table an error; we ask because we do not know.
        .unwrap_or_else(|_| {
            tracing_subscriber::EnvFilter::new("warn,buoyant_kernel=off,highwater=info,highwater_log=info")
        });
    let started = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_writer(std::io::stderr)
        .try_init();
    if let Err(error) = started {
        eprintln!("no log: {error}");
    }
}

/// One runtime each for calls, views and queries, so that none can starve another.
struct Runtimes {
    // Ended in this order: what runs on the first ones may hold what the last ones wait for.
    queries: tokio::runtime::Runtime,
    views: tokio::runtime::Runtime,
    calls: tokio::runtime::Runtime,
}

impl Runtimes {
    fn new() -> anyhow::Result<Self> {
        let build = |name: &str| {
            // Plans are trees; deep ones need deep stacks.
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.enable_all().thread_name(name).thread_stack_size(8 << 20).build().context("no threads")
        };
        Ok(Self { calls: build("calls")?, views: build("views")?, queries: build("queries")? })
    }
}

pub fn serve(arguments: ServeArgs) -> Result<ExitCode, Failure> {
    start_logging();
    let runtimes = Runtimes::new()?;
    let settings = Settings::of_serve(&arguments)?;
    let (options, listen, data) = (settings.node()?, settings.listen()?, settings.data());
    let packs = settings.packs().iter().map(|pack| read_pack(pack)).collect::<anyhow::Result<Vec<_>>>()?;
    let handles = (runtimes.views.handle().clone(), runtimes.queries.handle().clone());
    runtimes.calls.block_on(async {
        let (node, url, listener) = open(options, handles, listen).await?;
        declare(&node, &packs).await?;
        let catalog = node.catalog();
        eprintln!("highwater {}     data {}", env!("CARGO_PKG_VERSION"), data.display());
        eprintln!(
            "  {} streams, {} tables, {} endpoints",
            catalog.streams.len(),
            catalog.tables.len(),
            catalog.endpoints.len()
        );
        eprintln!("\n  Open   {url}/    API {url}/docs    Metrics {url}/metrics");
        eprintln!("  Token  {}", data.join("operator.token").display());
        eprintln!(
            "  Try    curl -H \"Authorization: Bearer $(cat {}/operator.token)\" {url}/api/v1/streams",
            data.display()
        );
        run(node, listener, &data).await
    })
}

pub fn demo(arguments: DemoArgs) -> Result<ExitCode, Failure> {
    start_logging();
    let runtimes = Runtimes::new()?;
    let handles = (runtimes.views.handle().clone(), runtimes.queries.handle().clone());
    runtimes.calls.block_on(async {
        let (node, url, listener) = open(NodeOptions::at(&arguments.data), handles, arguments.listen).await?;
        let server = tokio::spawn(answer(node.clone(), listener));
        let plan = demo::Plan {
            data: arguments.data.clone(),
            url,
            seed: arguments.seed,
            rate: arguments.rate,
            days: arguments.days,
            per_day: arguments.per_day,
        };
        let shown = tokio::spawn(demo::run(node.clone(), plan));
        let code = tokio::select! {
            outcome = shown => match outcome {
                Ok(Ok(())) => wait(&node).await,
                Ok(Err(error)) => return Err(error.into()),
                Err(error) => return Err(Failure::new("internal", error.to_string())),
            },
            code = wait(&node) => code,
        };
        server.abort();
        shut(&node, &arguments.data).await;
        Ok(code)
    })
}

async fn open(
    options: NodeOptions,
    (views, queries): (tokio::runtime::Handle, tokio::runtime::Handle),
    listen: SocketAddr,
) -> Result<(Arc<Node>, String, tokio::net::TcpListener), Failure> {
    http::install_metrics()?;
    let listener = tokio::net::TcpListener::bind(listen).await.map_err(|error| {
        Failure::new("address_in_use", format!("can't listen on {listen}: {error}"))
            .hint("choose another with --listen 127.0.0.1:PORT")
    })?;
    let address = listener.local_addr()?;
    let data = options.data.clone();
    let node = Node::open(options, views, queries).await?;
    let url = format!("http://{address}");
    std::fs::write(data.join(LISTENING), serde_json::json!({"url": url}).to_string())?;
    Ok((node, url, listener))
}

/// Declares packs, in their order.
pub async fn declare(node: &Arc<Node>, packs: &[Pack]) -> Result<(), Failure> {
    for pack in packs {
        let leaf = node.leaf(&Principal::operator(), "declare", "node");
        node.declare(&pack.script, &leaf, false).await.map_err(|error| match &error {
            DeclareError::Sql { error, script } => pack.locate(Failure {
                line: error.at.map(|at| at.line),
                ..Failure::new(error.code, error.render(script))
            }),
            other => Failure::new("declare_failed", other.to_string()),
        })?;
    }
    Ok(())
}

async fn answer(node: Arc<Node>, listener: tokio::net::TcpListener) -> std::io::Result<()> {
    let app = MapRequestLayer::new(http::trim_slash).layer(http::app(node));
    let service = ServiceExt::<Request>::into_make_service_with_connect_info::<http::Peer>(app);
    axum::serve(NoDelay(listener), service).await
}

/// Answers are small and somebody waits for each: they are sent at once.
struct NoDelay(tokio::net::TcpListener);

impl Connected<IncomingStream<'_, NoDelay>> for http::Peer {
    fn connect_info(stream: IncomingStream<'_, NoDelay>) -> Self {
        Self(*stream.remote_addr())
    }
}

impl axum::serve::Listener for NoDelay {
    type Io = tokio::net::TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (stream, address) = axum::serve::Listener::accept(&mut self.0).await;
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "no TCP_NODELAY");
        }
        (stream, address)
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

async fn run(node: Arc<Node>, listener: tokio::net::TcpListener, data: &Path) -> Result<ExitCode, Failure> {
    let server = tokio::spawn(answer(node.clone(), listener));
    let code = wait(&node).await;
    server.abort();
    shut(&node, data).await;
    Ok(code)
}

/// Until the operator stops the node, or the disk does.
async fn wait(node: &Node) -> ExitCode {
    let mut poisoned = node.journal.poisoned();
    let mut failed = node.failed.subscribe();
    let mut terminate = match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(terminate) => terminate,
        Err(error) => {
            eprintln!("no signals: {error}");
            return ExitCode::FAILURE;
        }
    };
    tokio::select! {
        reason = poisoned.wait_for(Option::is_some) => {
            let reason = reason.ok().and_then(|reason| reason.clone()).unwrap_or_default();
            eprintln!("error[log_poisoned]: {reason}");
            ExitCode::FAILURE
        }
        reason = failed.wait_for(Option::is_some) => {
            let reason = reason.ok().and_then(|reason| reason.clone()).unwrap_or_default();
            eprintln!("error[store_stopped]: {reason}");
            ExitCode::FAILURE
        }
        _ = tokio::signal::ctrl_c() => ExitCode::SUCCESS,
        _ = terminate.recv() => ExitCode::SUCCESS,
    }
}

async fn shut(node: &Node, data: &Path) {
    node.close().await;
    if let Err(error) = std::fs::remove_file(data.join(LISTENING)) {
        tracing::debug!(%error, "the address file was gone");
    }
}
