//! The command line. Data goes to standard output, everything else to standard error.
//!
//! Exit codes: 0 ok · 1 failed · 2 usage · 3 partial · 4 sign in · 5 forbidden · 6 not found ·
//! 7 conflict · 8 integrity failure · 130 interrupted.

mod apply;
mod audit;
mod client;
mod config;
mod dead_letters;
mod encryption;
mod erase;
mod follow;
mod generate;
mod jobs;
mod operate;
mod output;
mod people;
mod read;
mod replay;
mod search;
mod send;
mod serve;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use client::Failure;

use crate::http::certificate::Mode;

/// Live analytics, governed data and a provable audit trail in one binary.
#[derive(Debug, Parser)]
#[command(name = "highwater", version, arg_required_else_help = true, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node on a data folder.
    Serve(ServeArgs),
    /// Run a node with the transaction pack, thirty days of history and live events.
    Demo(DemoArgs),
    /// Make events, one JSON object a line.
    #[command(subcommand)]
    Generate(GenerateCommand),
    /// Declare what the SQL files of a folder (or one file) say.
    Apply(ApplyArgs),
    /// Ask a question in SQL.
    Sql(SqlArgs),
    /// Follow a query: rows of a stream as they come, or the changes of any other answer.
    Subscribe(SubscribeArgs),
    /// Follow a stream as events come.
    Tail(TailArgs),
    /// Send events from files or standard input.
    Send(SendArgs),
    /// Append old events of a stream again, linked to their originals.
    Replay(ReplayArgs),
    /// Derive a view again from the log, and wait for it.
    Rebuild(RebuildArgs),
    /// The lake: what is in it, its versions, what changed between two.
    #[command(subcommand)]
    Lake(LakeCommand),
    /// Copy everything that can't be derived into a folder, while the node goes on.
    Backup(BackupArgs),
    /// The audit trail: list, export, verify, prove.
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Users.
    #[command(subcommand)]
    User(people::UserCommand),
    /// Roles of users.
    #[command(subcommand)]
    Role(people::RoleCommand),
    /// API keys of clients.
    #[command(subcommand)]
    Key(people::KeyCommand),
    /// What could not be taken: look at it, send it again, drop it.
    #[command(subcommand)]
    DeadLetter(dead_letters::DeadLetterCommand),
    /// What takes long: replays, housekeeping, verification. Begin, follow and cancel it; schedules.
    #[command(subcommand)]
    Job(jobs::JobCommand),
    /// The keys of SENSITIVE columns.
    #[command(subcommand)]
    Encryption(encryption::EncryptionCommand),
    /// Forget a person: destroy their keys, and make anew what was made of their values.
    Erase(erase::EraseArgs),
    /// Search a stream that has an index: words, columns, facets.
    Search(search::SearchArgs),
    /// What is allowed, and why.
    #[command(subcommand)]
    Policy(people::PolicyCommand),
    /// Sign in: keeps a token for the commands that follow.
    Login(people::LoginArgs),
    /// Look at settings, data folder, disk and node, and say what is wrong.
    Doctor(DoctorArgs),
    /// Settings and where they come from.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Streams.
    #[command(subcommand)]
    Stream(ListCommand),
    /// Tables.
    #[command(subcommand)]
    Table(ListCommand),
    /// Declared endpoints.
    #[command(subcommand)]
    Endpoint(ListCommand),
    /// Views: marks, lag, state.
    #[command(subcommand)]
    View(ViewCommand),
}

/// Which node to talk to.
#[derive(Debug, Clone, Args)]
struct Target {
    /// Address of the node; by default the one that runs on the data folder.
    #[arg(long, env = "HIGHWATER_URL")]
    url: Option<String>,
    /// Data folder of the node, for its address and the operator's token; by default ./highwater-demo or ./highwater-data.
    #[arg(long, env = "HIGHWATER_DATA")]
    data: Option<PathBuf>,
    /// File with the token, when the data folder is elsewhere.
    #[arg(long, env = "HIGHWATER_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// PEM file with the certificate of a node that has made its own, when the data folder is elsewhere.
    #[arg(long, env = "HIGHWATER_CERTIFICATE")]
    certificate: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Aligned columns; tab-separated in a pipe.
    Table,
    /// One JSON document.
    Json,
    /// One JSON object a line.
    Ndjson,
    /// Comma-separated values.
    Csv,
}

#[derive(Debug, Clone, Args)]
struct Output {
    /// How to print.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Data folder; made when it is not there [default: ./highwater-data].
    #[arg(long)]
    data: Option<PathBuf>,
    /// Address and port to listen on [default: 127.0.0.1:7700].
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// When calls are encrypted [default: auto: unless only this machine can call].
    #[arg(long, value_enum)]
    tls: Option<Mode>,
    /// PEM file with the certificate chain [default: one that the node makes itself].
    #[arg(long, requires = "tls_key")]
    tls_certificate: Option<PathBuf>,
    /// PEM file with the key of the certificate.
    #[arg(long, requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
    /// Folder of SQL files to declare at the start; may be given several times.
    #[arg(long)]
    pack: Vec<PathBuf>,
    /// Seconds that rows may wait before they are written to the lake [default: 5].
    #[arg(long)]
    lake_wait: Option<f64>,
    /// Seconds between two snapshots of changed tables in the lake [default: 60].
    #[arg(long)]
    snapshot_every: Option<f64>,
}

#[derive(Debug, Args)]
struct DemoArgs {
    /// Data folder; delete it to start again.
    #[arg(long, default_value = "./highwater-demo")]
    data: PathBuf,
    /// Address and port to listen on.
    #[arg(long, default_value = "127.0.0.1:7700")]
    listen: SocketAddr,
    /// Seed of the events.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Live events per second; 0 makes history only.
    #[arg(long, default_value_t = 120.0)]
    rate: f64,
    /// Days of history.
    #[arg(long, default_value_t = 30)]
    days: u32,
    /// Events of history per day.
    #[arg(long, default_value_t = 14_400)]
    per_day: u64,
}

#[derive(Debug, Subcommand)]
enum GenerateCommand {
    /// Transactions of the transaction-analytics pack.
    Transactions(GenerateArgs),
    /// People, auctions and bids of the Nexmark pack.
    Nexmark(NexmarkArgs),
}

#[derive(Debug, Args)]
struct GenerateArgs {
    /// How many events.
    #[arg(long, default_value_t = 1000)]
    count: u64,
    /// Seed: the same seed gives the same events.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Time of the first event (RFC 3339, date or epoch); by default now minus the span.
    #[arg(long)]
    start: Option<String>,
    /// Hours over which the events are spread.
    #[arg(long, default_value_t = 24.0)]
    hours: f64,
    /// Share of bad events.
    #[arg(long, default_value_t = 0.01)]
    bad: f64,
    /// Share of repeated events.
    #[arg(long, default_value_t = 0.005)]
    duplicate: f64,
    /// Share of late events.
    #[arg(long, default_value_t = 0.005)]
    late: f64,
    /// Events per second; 0 prints as fast as it can.
    #[arg(long, default_value_t = 0.0)]
    rate: f64,
    /// Send to the stream transaction_log instead of printing.
    #[arg(long)]
    send: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum NexmarkKind {
    /// Of every 50 events one is a person.
    Person,
    /// Three are auctions.
    Auction,
    /// The rest are bids.
    Bid,
}

#[derive(Debug, Args)]
struct NexmarkArgs {
    /// How many events of the benchmark's sequence.
    #[arg(long, default_value_t = 1000)]
    count: u64,
    /// Events per second of event time.
    #[arg(long, default_value_t = 10_000)]
    event_rate: usize,
    /// Print events of one kind only; needed to print, as each kind has a stream of its own.
    #[arg(long, value_enum)]
    kind: Option<NexmarkKind>,
    /// Send to the streams person, auction, bid and bid_arrival instead of printing.
    #[arg(long)]
    send: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Args)]
struct ApplyArgs {
    /// Folder or file.
    #[arg(short, long)]
    file: PathBuf,
    /// Check only.
    #[arg(long)]
    dry_run: bool,
    /// Don't wait for new versions that are built beside old ones.
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
struct SqlArgs {
    /// The question; `-` reads it from standard input.
    query: String,
    /// Value of a parameter, `name=value`.
    #[arg(short, long = "param")]
    params: Vec<String>,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
struct TailArgs {
    /// The stream.
    stream: String,
    /// Offset to start at; by default the newest events.
    #[arg(long)]
    from: Option<u64>,
    /// Stop after so many events.
    #[arg(short = 'n', long)]
    lines: Option<u64>,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Args)]
struct SubscribeArgs {
    /// The query.
    query: String,
    /// "newest", "earliest", or the mark of an update.
    #[arg(long)]
    from: Option<String>,
    /// Stop after so many updates.
    #[arg(short = 'n', long)]
    updates: Option<u64>,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum EventFormat {
    /// A JSON object or an array of them.
    Json,
    /// One JSON object a line.
    Ndjson,
    /// A line of names, then one event a line.
    Csv,
    /// An array of CloudEvents.
    Cloudevents,
}

#[derive(Debug, Args)]
struct SendArgs {
    /// The stream.
    stream: String,
    /// Files, plain or .gz or .zst; standard input when there are none.
    files: Vec<PathBuf>,
    /// What they hold; by default by their names, else NDJSON.
    #[arg(long, value_enum)]
    format: Option<EventFormat>,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Args)]
struct ReplayArgs {
    /// The stream whose events are read.
    stream: String,
    /// A stream that takes events; by default the stream itself.
    #[arg(long)]
    into: Option<String>,
    /// Goes behind the id of each event; the same name again appends nothing twice.
    #[arg(long)]
    name: Option<String>,
    /// A condition in SQL, such as "status = 'failed'".
    #[arg(long = "where", value_name = "CONDITION")]
    condition: Option<String>,
    /// First event time (RFC 3339, a date, or epoch).
    #[arg(long)]
    from: Option<String>,
    /// End of event time; an event at it is left out.
    #[arg(long)]
    until: Option<String>,
    /// One partition only.
    #[arg(long)]
    partition: Option<u32>,
    /// First offset.
    #[arg(long)]
    from_offset: Option<u64>,
    /// End of offsets; the event at it is left out.
    #[arg(long)]
    until_offset: Option<u64>,
    /// Let the events happen now instead of when they did.
    #[arg(long)]
    now: bool,
    /// Only count them.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Args)]
struct RebuildArgs {
    /// The view, such as table:total_by_type.
    view: String,
    /// Return at once.
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Subcommand)]
enum LakeCommand {
    /// Streams with files, bytes and version.
    List {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
    /// The newest versions of a stream.
    Versions {
        /// The stream.
        stream: String,
        /// At most so many.
        #[arg(long, default_value_t = 20)]
        limit: usize,
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
    /// How many events came and went between two versions.
    Diff {
        /// The stream.
        stream: String,
        /// The earlier version.
        from: u64,
        /// The later version; without it the newest.
        to: Option<u64>,
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
    /// Write small files together, and let go what is past its retention, now.
    Compact {
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Args)]
struct BackupArgs {
    /// An empty folder on the node's machine.
    folder: PathBuf,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, Args)]
struct DoctorArgs {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Every setting with its value and where it comes from.
    Show {
        #[command(flatten)]
        output: Output,
    },
    /// Read every setting and say what is wrong.
    Check,
}

#[derive(Debug, Subcommand)]
enum ListCommand {
    /// All of them.
    List {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
    /// One of them.
    Show {
        /// Its name or path.
        name: String,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Debug, Subcommand)]
enum ViewCommand {
    /// All of them.
    List {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
    /// One of them.
    Show {
        /// Its name, such as table:total_by_type.
        name: String,
        #[command(flatten)]
        target: Target,
    },
    /// Drop the view's output and derive it again from the log.
    Rebuild {
        /// Its name.
        name: String,
        #[command(flatten)]
        target: Target,
    },
    /// Stop the view until it is resumed.
    Pause {
        /// Its name.
        name: String,
        #[command(flatten)]
        target: Target,
    },
    /// Let a paused or failed view go on.
    Resume {
        /// Its name.
        name: String,
        #[command(flatten)]
        target: Target,
    },
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Serve(arguments) => serve::serve(arguments),
        Command::Demo(arguments) => serve::demo(arguments),
        Command::Generate(GenerateCommand::Transactions(arguments)) => generate::transactions(arguments),
        Command::Generate(GenerateCommand::Nexmark(arguments)) => generate::nexmark(arguments),
        Command::Apply(arguments) => apply::apply(arguments),
        Command::Sql(arguments) => read::sql(arguments),
        Command::Tail(arguments) => read::tail(arguments),
        Command::Subscribe(arguments) => follow::subscribe(arguments),
        Command::Send(arguments) => send::send(arguments),
        Command::Replay(arguments) => replay::replay(arguments),
        Command::Rebuild(arguments) => operate::rebuild(arguments),
        Command::Lake(command) => operate::lake(command),
        Command::Backup(arguments) => operate::backup(&arguments.folder, &arguments.target),
        Command::Audit(command) => audit::audit(command),
        Command::User(command) => people::user(command),
        Command::Role(command) => people::role(command),
        Command::Key(command) => people::key(command),
        Command::DeadLetter(command) => dead_letters::dead_letter(command),
        Command::Job(command) => jobs::job(command),
        Command::Encryption(command) => encryption::encryption(command),
        Command::Erase(arguments) => erase::erase(arguments),
        Command::Search(arguments) => search::search(arguments),
        Command::Policy(command) => people::policy(command),
        Command::Login(arguments) => people::login(arguments),
        Command::Doctor(arguments) => operate::doctor(arguments),
        Command::Config(command) => config::config(command),
        Command::Completions { shell } => Ok(operate::completions(shell)),
        Command::Stream(command) => read::list("streams", &["name", "origin", "events", "lag"], command),
        Command::Table(command) => read::list("tables", &["name", "source", "state", "lag"], command),
        Command::Endpoint(command) => read::list("endpoints", &["path", "requires"], command),
        Command::View(command) => read::view(command),
    };
    match outcome {
        Ok(code) => code,
        Err(failure) if failure.code == client::OUTPUT_CLOSED => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(failure.exit_code)
        }
    }
}
