//! Tooling that is not part of the product: `cargo xtask bench-http`.

mod bench_http;

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
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::BenchHttp(arguments) => bench_http::run(&arguments),
    }
}
