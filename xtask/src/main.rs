//! Tooling that is not part of the product: figures of a running node.

mod bare;
mod bench_http;
mod bench_pages;
mod bench_replay;
mod bench_start;
mod bench_subscribers;
mod bench_visible;
mod node;
mod sender;
mod soak;
mod socket_sender;
mod storm;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "xtask", about = "Tooling around Highwater")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure durable ingest over HTTP against a node that this starts.
    BenchHttp(bench_http::Arguments),
    /// Measure pages of the audit-event service over a million events of many tenants.
    BenchPages(bench_pages::Arguments),
    /// Measure what those who bring events notice while all of a stream happen again.
    BenchReplay(bench_replay::Arguments),
    /// Measure how long a node takes to start on data that is there, and what it takes while idle.
    BenchStart(bench_start::Arguments),
    /// Measure what many subscribers at a time are told, how late, and what it takes.
    BenchSubscribers(bench_subscribers::Arguments),
    /// Measure the time from an ack until the event is in a table and in the lake, at half load with ten views.
    BenchVisible(bench_visible::Arguments),
    /// Be the bare server that a node's figures are compared with.
    #[command(hide = true)]
    Serve(bare::Arguments),
    /// Send every event several times in other orders to a node that is killed again and again, and count.
    Storm(storm::Arguments),
    /// Sends for long, or more than the node can take, and shows how it holds.
    Soak(soak::Arguments),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::BenchHttp(arguments) => bench_http::run(&arguments),
        Command::BenchPages(arguments) => bench_pages::run(&arguments),
        Command::BenchReplay(arguments) => bench_replay::run(&arguments),
        Command::BenchStart(arguments) => bench_start::run(&arguments),
        Command::BenchSubscribers(arguments) => bench_subscribers::run(&arguments),
        Command::BenchVisible(arguments) => bench_visible::run(&arguments),
        Command::Serve(arguments) => bare::run(&arguments),
        Command::Storm(arguments) => storm::run(&arguments),
        Command::Soak(arguments) => soak::run(arguments),
    }
}
