//! Pages of the audit-event service: a million events of many tenants, asked for by many callers at a time.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::node::{Node, Target};
use crate::sender::splitmix;

#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    target: Target,
    /// Events in all.
    #[arg(long, default_value_t = 1_000_000)]
    events: u64,
    /// Tenants that they are of.
    #[arg(long, default_value_t = 20)]
    tenants: u64,
    /// Callers at a time.
    #[arg(long, default_value_t = 16)]
    callers: u64,
    /// Seconds per measurement.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Milliseconds that a caller waits before it asks again.
    #[arg(long, default_value_t = 0)]
    pause: u64,
    /// Random questions whose answers are compared with a look at every event.
    #[arg(long, default_value_t = 200)]
    checks: u64,
    /// The events are not sealed: what a seal costs.
    #[arg(long)]
    unsealed: bool,
}

const PACK: &str = include_str!("../../packs/audit-events/pack.sql");
const ACTIONS: [&str; 8] = [
    "user.login",
    "user.logout",
    "order.create",
    "order.ship",
    "order.cancel",
    "key.rotate",
    "file.read",
    "file.write",
];
/// The first event; the others follow over thirty days.
const FIRST: u64 = 1_767_225_600;
const SPAN: u64 = 30 * 86_400;
/// Events that hold one rare word.
const RARE: u64 = 1000;

fn event(number: u64, arguments: &Arguments) -> Value {
    let Facts { tenant, actor, action, resource, denied, millis, words } = Facts::of(number, arguments);
    let words: Vec<String> = words.iter().map(|word| format!("word{word}")).collect();
    json!({
        "id": format!("e{number}"), "tenant_id": format!("t{tenant}"), "actor": actor, "action": action, "resource": resource, "timestamp": millis,
        "outcome": if denied { "denied" } else { "success" }, "ip": format!("192.0.2.{}", splitmix(number) % 256),
        "details": {"note": words.join(" "), "case": format!("needle{}", number / RARE)}
    })
}

/// What an event says, by its number.
struct Facts {
    tenant: u64,
    actor: String,
    action: &'static str,
    resource: String,
    denied: bool,
    /// Milliseconds.
    millis: u64,
    words: [u64; 6],
}

impl Facts {
    fn of(number: u64, arguments: &Arguments) -> Self {
        let chance = splitmix(number);
        let micros = FIRST * 1_000_000 + number * SPAN * 1_000_000 / arguments.events;
        Self {
            tenant: chance % arguments.tenants,
            actor: format!("user-{}", chance / 64 % 50_000),
            action: ACTIONS[(chance / 7 % 8) as usize],
            resource: format!("order/{}", chance / 3 % 200_000),
            denied: chance.is_multiple_of(10),
            millis: micros / 1000,
            words: [0, 1, 2, 3, 4, 5].map(|at| splitmix(chance + at) % 2000),
        }
    }
}

/// Whether an event of a number fits.
type Fits = Box<dyn Fn(u64, &Facts) -> bool>;

/// A random question, and whether an event fits it.
fn question(mut chance: u64, arguments: &Arguments) -> (String, Fits) {
    let mut next = |below: u64| {
        chance = splitmix(chance);
        chance % below
    };
    match next(8) {
        0 => {
            let actor = format!("user-{}", next(50_000));
            (format!("actor={actor}"), Box::new(move |_, facts| facts.actor == actor))
        }
        1 => {
            let actor = format!("user-{}", next(500));
            let path = format!("actor={actor}*&outcome=denied");
            (path, Box::new(move |_, facts| facts.denied && facts.actor.starts_with(&actor)))
        }
        2 => {
            let resource = format!("order/{}", next(200_000));
            let path = format!("resource={resource}&action=order.*");
            (path, Box::new(move |_, facts| facts.resource == resource && facts.action.starts_with("order.")))
        }
        3 => {
            let from = FIRST + next(SPAN);
            let to = from + next(7200);
            let within = move |_, facts: &Facts| facts.millis >= from * 1000 && facts.millis < to * 1000;
            (format!("time_from={from}&time_to={to}"), Box::new(within))
        }
        4 => {
            let needle = next((arguments.events / RARE).max(1));
            (format!("q=needle{needle}"), Box::new(move |number, _| number / RARE == needle))
        }
        5 => {
            let (one, other) = (next(2000), next(2000));
            let path = format!("q=word{one}%20-word{other}");
            (path, Box::new(move |_, facts| facts.words.contains(&one) && !facts.words.contains(&other)))
        }
        6 => {
            let (one, other) = (next(2000), next(2000));
            let path = format!("q=%22word{one}%20word{other}%22");
            (path, Box::new(move |_, facts| facts.words.windows(2).any(|pair| pair == [one, other])))
        }
        _ => {
            let (beginning, action) = (format!("{}", next(200)), ACTIONS[next(8) as usize]);
            let path = format!("q=word{beginning}*&action={action}");
            let fits = move |_, facts: &Facts| {
                facts.action == action
                    && facts.words.iter().any(|word| word.to_string().starts_with(&beginning))
            };
            (path, Box::new(fits))
        }
    }
}

/// Compares answers with a look at every event.
fn check(arguments: &Arguments, node: &Node, tokens: &[String]) -> anyhow::Result<()> {
    let all: Vec<Facts> = (0..arguments.events).map(|number| Facts::of(number, arguments)).collect();
    let mut found = 0;
    for asked in 0..arguments.checks {
        let tenant = asked % arguments.tenants;
        let (path, fits) = question(splitmix(asked), arguments);
        let events = all.iter().enumerate().rev();
        let expected = events.filter(|(number, facts)| facts.tenant == tenant && fits(*number as u64, facts));
        let expected: Vec<String> = expected.map(|(number, _)| format!("e{number}")).collect();
        let mut caller = Caller::connect(node, &tokens[tenant as usize])?;
        let page = caller.call("GET", &format!("/events?{path}"), "")?;
        let shown = page["events"].as_array().context("no events")?;
        let shown: Vec<&str> = shown.iter().filter_map(|event| event["id"].as_str()).collect();
        let first: Vec<&str> = expected.iter().take(50).map(String::as_str).collect();
        ensure!(
            page["total"] == expected.len() && shown == first,
            "{path} of tenant {tenant}: {} and {shown:?} instead of {} and {first:?}",
            page["total"],
            expected.len()
        );
        found += expected.len();
    }
    println!(
        "{} random questions answered as a look at every event does, {found} events found",
        arguments.checks
    );
    Ok(())
}

/// A connection that asks again and again.
pub struct Caller {
    stream: TcpStream,
    address: String,
    token: String,
    answer: Vec<u8>,
}

impl Caller {
    pub fn connect(node: &Node, token: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(&node.address)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, address: node.address.clone(), token: token.to_owned(), answer: Vec::new() })
    }

    pub fn call(&mut self, method: &str, path: &str, body: &str) -> anyhow::Result<Value> {
        Ok(serde_json::from_slice(self.fetch(method, path, body)?)?)
    }

    /// The body of an answer, as it came.
    fn fetch(&mut self, method: &str, path: &str, body: &str) -> anyhow::Result<&[u8]> {
        self.stream.write_all(request(&self.address, &self.token, method, path, body).as_bytes())?;
        self.answer.clear();
        let mut piece = [0; 1 << 16];
        loop {
            let read = self.stream.read(&mut piece)?;
            ensure!(read > 0, "the node hung up");
            self.answer.extend_from_slice(&piece[..read]);
            if let Some(body) = body_of(&self.answer, path)? {
                return Ok(&self.answer[body..]);
            }
        }
    }
}

/// A call, as bytes.
fn request(address: &str, token: &str, method: &str, path: &str, body: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Where the body of an answer begins, when all of it is there.
fn body_of(answer: &[u8], path: &str) -> anyhow::Result<Option<usize>> {
    let Some(head) = memchr::memmem::find(answer, b"\r\n\r\n") else { return Ok(None) };
    let headers = std::str::from_utf8(&answer[..head])?.to_ascii_lowercase();
    let length = headers.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.context("no content-length")?.trim().parse()?;
    if answer.len() < head + 4 + length {
        return Ok(None);
    }
    ensure!(headers.starts_with("http/1.1 2"), "{path}: {}", String::from_utf8_lossy(answer));
    Ok(Some(head + 4))
}

/// A kind of question: its name, and its path by a random number.
type Question = (&'static str, fn(u64, &Arguments) -> String);

const QUESTIONS: [Question; 6] = [
    ("one actor", |chance, _| format!("/events?actor=user-{}", chance % 50_000)),
    ("one resource, an action", |chance, _| {
        format!("/events?resource=order/{}&action=order.*", chance % 200_000)
    }),
    ("an hour", |chance, _| {
        let from = FIRST + chance % (SPAN - 3600);
        format!("/events?time_from={from}&time_to={}", from + 3600)
    }),
    ("a rare word", |chance, arguments| {
        format!("/events?q=needle{}", chance % (arguments.events / RARE).max(1))
    }),
    ("the newest of all", |chance, _| format!("/events?limit={}", 20 + chance % 60)),
    ("the same again", |_, _| "/events?outcome=denied".to_owned()),
];

/// A caller that asks again and again.
struct Asking<'a> {
    until: Instant,
    /// Between an answer and the next question.
    pause: Duration,
    node: &'a Node,
    token: &'a str,
}

impl Asking<'_> {
    /// Answers how long each answer took, in microseconds, and how many events were in all of them.
    async fn ask(self, number: u64, path: impl Fn(u64) -> String) -> anyhow::Result<(Histogram<u64>, usize)> {
        let Self { until, pause, node, token } = self;
        let mut stream = tokio::net::TcpStream::connect(&node.address).await?;
        stream.set_nodelay(true)?;
        let mut latencies = Histogram::<u64>::new(3)?;
        let (mut answer, mut chance, mut found) = (Vec::with_capacity(1 << 16), splitmix(number), 0);
        while Instant::now() < until {
            chance = splitmix(chance);
            let path = path(chance);
            let asked = request(&node.address, token, "GET", &path, "");
            let started = Instant::now();
            stream.write_all(asked.as_bytes()).await?;
            answer.clear();
            let body = loop {
                ensure!(stream.read_buf(&mut answer).await? > 0, "the node hung up");
                if let Some(body) = body_of(&answer, &path)? {
                    break body;
                }
            };
            latencies.record(started.elapsed().as_micros() as u64)?;
            // Every event names its actor, and nothing else does; answers are read and compared below.
            found += memchr::memmem::find_iter(&answer[body..], b"\"actor\":").count();
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
        Ok((latencies, found))
    }
}

fn measure(
    arguments: &Arguments,
    node: &Node,
    tokens: &[String],
    (name, path): Question,
) -> anyhow::Result<()> {
    let until = Instant::now() + Duration::from_secs(arguments.seconds);
    // All callers in one thread: as many of them as there are callers would take turns with the node's.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let measured = runtime.block_on(async {
        let callers = (0..arguments.callers).map(|number| {
            let token = &tokens[(number as usize) % tokens.len()];
            let asking = Asking { until, pause: Duration::from_millis(arguments.pause), node, token };
            asking.ask(number, move |chance| path(chance, arguments))
        });
        futures::future::try_join_all(callers).await
    })?;
    let mut all = Histogram::<u64>::new(3)?;
    let mut rows = 0;
    for (latencies, found) in measured {
        all.add(latencies)?;
        rows += found;
    }
    let quantile = |q| all.value_at_quantile(q) as f64 / 1000.0;
    println!(
        "{name:>26} {:>10.0} {:>9.2} {:>9.2} {:>9.2} {:>12.1}",
        all.len() as f64 / arguments.seconds as f64,
        quantile(0.5),
        quantile(0.99),
        quantile(0.999),
        rows as f64 / all.len().max(1) as f64
    );
    Ok(())
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let pack = if arguments.unsealed {
        // Without a seal nothing can be proven.
        let before = PACK.split("CREATE ENDPOINT '/events/{id}/proof'").next().unwrap_or(PACK);
        before.replace("proof = true", "proof = false")
    } else {
        PACK.to_owned()
    };
    let node = arguments.target.start(&pack)?;
    let started = Instant::now();
    let sent: anyhow::Result<Vec<()>> = std::thread::scope(|scope| {
        let senders: Vec<_> = (0..4)
            .map(|sender| {
                let node = &node;
                scope.spawn(move || {
                    let mut caller = Caller::connect(node, &node.token)?;
                    let mut first = sender * 1000;
                    while first < arguments.events {
                        let events: Vec<Value> = (first..(first + 1000).min(arguments.events))
                            .map(|number| event(number, arguments))
                            .collect();
                        caller.call("POST", "/events/batch", &json!({"events": events}).to_string())?;
                        first += 4000;
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        senders
            .into_iter()
            .map(|sender| sender.join().map_err(|_| anyhow::anyhow!("a sender panicked"))?)
            .collect()
    });
    sent?;
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{} events in {seconds:.1} s: {:.0} events/s, generator included",
        arguments.events,
        arguments.events as f64 / seconds
    );
    node.settle()?;
    // Small files are written together once, as a node does by itself within a minute.
    node.call("POST", "/api/v1/maintenance", "")?;
    let tokens = (0..arguments.tenants)
        .map(|tenant| {
            let name = format!("reader{tenant}");
            let user = json!({"username": name, "password": "purple-mountain-42", "tenant": format!("t{tenant}"), "roles": ["DataAnalyst"]});
            node.call("POST", "/api/v1/users", &user.to_string())?;
            let known = json!({"username": name, "password": "purple-mountain-42"});
            let answer = node.call("POST", "/api-token-auth/", &known.to_string())?;
            Ok(answer["token"].as_str().context("no token")?.to_owned())
        })
        .collect::<anyhow::Result<Vec<String>>>()?;
    println!("{} tenants, {} callers, {} s each", arguments.tenants, arguments.callers, arguments.seconds);
    println!(
        "{:>26} {:>10} {:>9} {:>9} {:>9} {:>12}",
        "question", "pages/s", "p50 ms", "p99 ms", "p99.9 ms", "rows a page"
    );
    for question in QUESTIONS {
        measure(arguments, &node, &tokens, question)?;
    }
    check(arguments, &node, &tokens)?;
    println!("peak MiB {}, data folder MiB {}", node.memory("VmHWM"), node.disk());
    Ok(())
}
