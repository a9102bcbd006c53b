//! Tooling that is not part of the product: figures of a running node.

mod bench_http;
mod node;
mod sender;
mod soak;
mod socket_sender;

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
    /// Sends for long, or more than the node can take, and shows how it holds.
    Soak(soak::Arguments),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::BenchHttp(arguments) => bench_http::run(&arguments),
        Command::Soak(arguments) => soak::run(arguments),
    }
}
