//! `highwater serve` and `highwater demo`: running a node.

use std::io::IsTerminal;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use futures::FutureExt;
use highwater_event::Principal;
use highwater_log::Log;
use tokio::net::TcpListener;

use super::apply::{Pack, read_pack};
use super::client::LISTENING;
use super::config::Settings;
use super::{DemoArgs, Failure, ServeArgs};
use crate::demo;
use crate::http::certificate::{Certificate, Tls};
use crate::http::listen;
use crate::http::{self, CallOptions};
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
    let (options, data) = (settings.node()?, settings.data());
    let door = DoorPlan { listen: settings.listen()?, tls: settings.tls()?, calls: settings.calls()? };
    let packs = settings.packs().iter().map(|pack| read_pack(pack)).collect::<anyhow::Result<Vec<_>>>()?;
    let handles = (runtimes.views.handle().clone(), runtimes.queries.handle().clone());
    runtimes.calls.block_on(async {
        let (node, opened) = open(options, handles, door).await?;
        let url = &opened.url;
        declare(&node, &packs).await?;
        let catalog = node.catalog();
        eprintln!("highwater {}     data {}", env!("CARGO_PKG_VERSION"), data.display());
        eprintln!(
            "  {} streams, {} tables, {} endpoints",
            catalog.streams.len(),
            catalog.tables.len(),
            catalog.endpoints.len() + catalog.intakes.len()
        );
        let claim = node.offer_claim().context("no claim can be made")?;
        match &claim {
            Some(claim) => {
                eprintln!("\n  Open   {url}/#claim={claim}    (signs you in once, 15 min)");
                eprintln!("  API    {url}/docs    Metrics {url}/metrics");
            }
            None => eprintln!("\n  Open   {url}/    API {url}/docs    Metrics {url}/metrics"),
        }
        eprintln!("  Token  {}", data.join("operator.token").display());
        eprintln!(
            "  Try    curl -H \"Authorization: Bearer $(cat {}/operator.token)\" {url}/api/v1/streams",
            data.display()
        );
        if let Some(certificate) = &opened.certificate {
            say_certificate(certificate);
        }
        run(node, opened, &data).await
    })
}

pub fn demo(arguments: DemoArgs) -> Result<ExitCode, Failure> {
    start_logging();
    let runtimes = Runtimes::new()?;
    let handles = (runtimes.views.handle().clone(), runtimes.queries.handle().clone());
    runtimes.calls.block_on(async {
        let door = DoorPlan { listen: arguments.listen, tls: Tls::default(), calls: CallOptions::default() };
        let (node, opened) = open(NodeOptions::at(&arguments.data), handles, door).await?;
        let url = opened.url.clone();
        if let Some(certificate) = &opened.certificate {
            say_certificate(certificate);
        }
        let server = tokio::spawn(answer(node.clone(), opened));
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

/// Where a node is to be called.
struct DoorPlan {
    listen: SocketAddr,
    tls: Tls,
    calls: CallOptions,
}

/// Where it is.
struct OpenDoor {
    /// As this machine calls it.
    url: String,
    listener: TcpListener,
    certificate: Option<Arc<Certificate>>,
    calls: CallOptions,
}

async fn open(
    options: NodeOptions,
    (views, queries): (tokio::runtime::Handle, tokio::runtime::Handle),
    DoorPlan { listen, tls, calls }: DoorPlan,
) -> Result<(Arc<Node>, OpenDoor), Failure> {
    http::install_metrics()?;
    let listener = TcpListener::bind(listen).await.map_err(|error| {
        Failure::new("address_in_use", format!("can't listen on {listen}: {error}"))
            .hint("choose another with --listen 127.0.0.1:PORT")
    })?;
    let mut address = listener.local_addr()?;
    let data = options.data.clone();
    let node = Node::open(options, views, queries).await?;
    node.start_jobs(crate::http::job_kinds());
    let certificate = if tls.is_on(listen) {
        let opened = tls.open(&data, listen, node.machine.clock.clone());
        Some(opened.map_err(|error| {
            Failure::new("certificate", format!("{error:#}"))
                .hint("name both files with --tls-certificate and --tls-key, or leave encryption to a proxy with --tls off")
        })?)
    } else {
        None
    };
    // Nobody calls the address that stands for all of them.
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    let url = format!("{}://{address}", if certificate.is_some() { "https" } else { "http" });
    std::fs::write(data.join(LISTENING), serde_json::json!({"url": url}).to_string())?;
    Ok((node, OpenDoor { url, listener, certificate, calls }))
}

/// Says under which certificate callers find the node.
fn say_certificate(certificate: &Certificate) {
    if let Some(file) = certificate.own() {
        eprintln!(
            "  TLS    {} (of the node's own; callers elsewhere: --certificate FILE, or curl --cacert FILE)",
            file.display()
        );
    }
    eprintln!("         SHA-256 {}", certificate.fingerprint());
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

/// Answers calls. A node that can't is of no use to anybody: it is stopped.
async fn answer(node: Arc<Node>, door: OpenDoor) {
    let serving = listen::serve(node.clone(), door.listener, door.certificate, door.calls);
    let ended = match AssertUnwindSafe(serving).catch_unwind().await {
        Ok(Ok(())) => "the listener has ended".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(_panic) => "a fault of the program".to_owned(),
    };
    node.failed.send_replace(Some(format!("calls are answered no more: {ended}")));
}

async fn run(node: Arc<Node>, door: OpenDoor, data: &Path) -> Result<ExitCode, Failure> {
    let server = tokio::spawn(answer(node.clone(), door));
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
            eprintln!("error[node_stopped]: {reason}");
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
