//! A node that shows something: the transaction pack, history, and live events.

mod transactions;

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use highwater_event::{Principal, StreamName, StreamPartition};
use highwater_ingest::{Format, Outcome, Submission};
use tokio::time::Instant;

use crate::node::{Node, Script};

pub use transactions::{Shares, Transactions};

const PACK: &str = include_str!("../../../../packs/transactions/pack.sql");
const RATES: &str = include_str!("../../../../packs/transactions/reference/currency_rates.csv");
const PLACES: &str = include_str!("../../../../packs/transactions/reference/blacklisted_places.csv");
const STREAM: &str = "transaction_log";
/// Events of history in one submission, and submissions under way at once.
const BATCH: u64 = 2000;
const IN_FLIGHT: usize = 8;

/// What to show.
pub struct Plan {
    pub data: PathBuf,
    pub url: String,
    pub seed: u64,
    pub rate: f64,
    pub days: u32,
    pub per_day: u64,
}

#[derive(Default)]
struct Counts {
    sent: u64,
    accepted: u64,
    duplicates: u64,
    rejected: u64,
}

impl Counts {
    fn take(&mut self, verdicts: &[highwater_ingest::Verdict]) {
        self.sent += verdicts.len() as u64;
        for verdict in verdicts {
            match verdict.outcome {
                Outcome::Accepted { .. } => self.accepted += 1,
                Outcome::Duplicate { .. } => self.duplicates += 1,
                Outcome::Conflict { .. } | Outcome::Rejected(_) => self.rejected += 1,
            }
        }
    }
}

/// The pack as it is built into the binary.
pub fn pack() -> Script {
    Script {
        text: PACK.to_owned(),
        files: [("reference/currency_rates.csv", RATES), ("reference/blacklisted_places.csv", PLACES)]
            .map(|(name, text)| (name.to_owned(), text.to_owned()))
            .into(),
    }
}

/// Fills the node, prints the banner and goes on with live events.
pub async fn run(node: Arc<Node>, plan: Plan) -> anyhow::Result<()> {
    eprintln!(
        "highwater {} demo      data {}  (delete it to start again)",
        env!("CARGO_PKG_VERSION"),
        plan.data.display()
    );
    let leaf = node.leaf(&Principal::operator(), "declare", "node");
    node.declare(&pack(), &leaf, false).await?;
    let catalog = node.catalog();
    eprintln!("  ✓ log         1 pack, {} streams", catalog.streams.len());
    let views = node.driver.statuses().len();
    eprintln!(
        "  ✓ views       {} tables, {} endpoints, lake; {views} in all",
        catalog.tables.len(),
        catalog.endpoints.len()
    );
    let shares = Shares { bad: 0.01, duplicate: 0.005, late: 0.005 };
    let mut events = Transactions::new(plan.seed, shares);
    history(&node, &plan, &mut events).await?;
    let percent = |share: f64| share * 100.0;
    eprintln!(
        "  ✓ generator   {} events/s, seed {}; {} % bad, {} % duplicate, {} % late",
        plan.rate,
        plan.seed,
        percent(shares.bad),
        percent(shares.duplicate),
        percent(shares.late)
    );
    let program = std::env::args().next().unwrap_or_else(|| "highwater".into());
    match node.offer_claim()? {
        Some(claim) => eprintln!("\n  Open   {}/#claim={claim}    (signs you in once, 15 min)", plan.url),
        None => eprintln!("\n  Open   {}/#token={}", plan.url, node.operator_token),
    }
    eprintln!("  API    {url}/docs          Metrics  {url}/metrics", url = plan.url);
    eprintln!(
        "  Try    {program} sql \"SELECT location_country, sum(amount_usd) FROM transactions_processed GROUP BY 1\""
    );
    eprintln!("         {program} tail transactions_processed");
    if plan.rate > 0.0 {
        live(&node, plan.rate, &mut events).await?;
    }
    Ok(())
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

async fn history(node: &Arc<Node>, plan: &Plan, events: &mut Transactions) -> anyhow::Result<()> {
    let at = StreamPartition::new(StreamName::new(STREAM)?, 0);
    let known = node.log().end(&at);
    if known > 0 {
        eprintln!("  ✓ history     {} events from earlier runs", thousands(known));
        return Ok(());
    }
    let total = u64::from(plan.days) * plan.per_day;
    let span = i64::from(plan.days) * 86_400_000_000;
    let start = node.machine.clock.now_micros() - span;
    let started = Instant::now();
    let mut counts = Counts::default();
    let mut under_way = tokio::task::JoinSet::new();
    let mut number = 0;
    while number < total || !under_way.is_empty() {
        if number < total && under_way.len() < IN_FLIGHT {
            let mut body = String::new();
            for _ in 0..BATCH.min(total - number) {
                let time = start + (i128::from(span) * i128::from(number) / i128::from(total)) as i64;
                writeln!(body, "{}", events.next(time))?;
                number += 1;
            }
            let node = node.clone();
            under_way.spawn(async move {
                node.door.submit(submission(&node, body)?).await.map_err(anyhow::Error::from)
            });
        } else if let Some(done) = under_way.join_next().await {
            counts.take(&done??);
        }
    }
    eprintln!(
        "  ✓ history     {} days back-filled, {} events{:>22.1} s",
        plan.days,
        thousands(counts.accepted),
        started.elapsed().as_secs_f64()
    );
    let behind =
        || node.driver.statuses().iter().filter(|view| view.kind != "lake").map(|view| view.lag).sum::<u64>();
    while behind() > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    eprintln!(
        "                tables and derived streams are up to date{:>13.1} s",
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

fn submission(node: &Node, body: String) -> anyhow::Result<Submission> {
    let entry = node.entry(&Principal::operator(), "ingest", format!("stream:{STREAM}"));
    Ok(Submission {
        leaf: Some(Box::new(entry)),
        beside: Vec::new(),
        stream: StreamName::new(STREAM)?,
        body: Bytes::from(body),
        format: Format::NdJson,
        principal: Principal::operator(),
    })
}

async fn live(node: &Arc<Node>, rate: f64, events: &mut Transactions) -> anyhow::Result<()> {
    let terminal = std::io::stderr().is_terminal();
    let mut counts = Counts::default();
    let mut latencies: Vec<f64> = Vec::new();
    let started = Instant::now();
    let mut shown = Instant::now();
    let mut made = 0u64;
    eprintln!();
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let due = (started.elapsed().as_secs_f64() * rate) as u64;
        let mut body = String::new();
        while made < due {
            writeln!(body, "{}", events.next(node.machine.clock.now_micros()))?;
            made += 1;
        }
        if !body.is_empty() {
            let sent = Instant::now();
            counts.take(&node.door.submit(submission(node, body)?).await?);
            latencies.push(sent.elapsed().as_secs_f64() * 1000.0);
        }
        let every = Duration::from_secs(if terminal { 1 } else { 10 });
        if shown.elapsed() >= every && !latencies.is_empty() {
            latencies.sort_unstable_by(f64::total_cmp);
            let p95 = latencies[(latencies.len() * 95 / 100).min(latencies.len() - 1)];
            let line = format!(
                "  live   {rate:.0} ev/s  in {}  stored {}  duplicate {}  dead {}  p95 {p95:.1} ms    Ctrl-C stops",
                thousands(counts.sent),
                thousands(counts.accepted),
                thousands(counts.duplicates),
                thousands(counts.rejected)
            );
            if terminal {
                eprint!("\r{line}\x1b[K")
            } else {
                eprintln!("{line}")
            }
            std::io::stderr().flush()?;
            latencies.clear();
            shown = Instant::now();
        }
    }
}
