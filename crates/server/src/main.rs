//! The `highwater` binary: it alone wires the rooms together.
//!
//! * [`node`] opens a data folder and keeps log, views, catalog and door running.
//! * [`http`] is every route; `http/router.rs` lists them all.
//! * [`cli`] is the command line; its commands but `serve` and `demo` talk to a node over HTTP.
//! * [`outgoing`] makes the calls that go out to others.
//! * [`demo`] fills a node with a stream of transactions.

mod cli;
mod demo;
mod http;
mod node;
mod outgoing;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    cli::main()
}
