//! Sends events over HTTP as fast as the node answers.

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::node::Node;

/// The stream that takes the events: deduplicated by id, no lake.
pub const STREAM: &str = "CREATE STREAM bench (id TEXT NOT NULL, at TIMESTAMP NOT NULL, user_id TEXT, product_id TEXT, \
    amount DECIMAL(15,2), currency TEXT, kind TEXT, status TEXT, place STRUCT<city TEXT, country TEXT>, quantity INT) \
    WITH (event_id = 'id', event_time = 'at', lake = false);";
/// Whose events are sent.
#[derive(Debug, Clone, Copy)]
pub struct Users {
    /// How many different users there are.
    pub number: u64,
    /// The share of the events, in percent, that belongs to one of them.
    pub on_one: u8,
}
/// When nothing else is asked for.
pub const USERS: Users = Users { number: 5_000_000, on_one: 0 };
/// An event; its id is replaced, its time of day, and the digits of its user.
pub const EVENT: &str = r#"{"id":"EVT-0000000000000000","at":"2026-01-15T10:30:00.123456Z","user_id":"USER-0001234","product_id":"PROD-1","amount":270.43,"currency":"GBP","kind":"purchase","status":"completed","place":{"city":"San Francisco","country":"USA"},"quantity":3,"note":"a member that the stream does not declare"}"#;
const ID_AT: usize = 11;
const TIME_AT: usize = 46;
const USER_AT: usize = 80;

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// 202 with nothing rejected.
    Taken,
    /// 429 or 503, and when to come again.
    Refused,
}

/// A connection with a request whose ids are rewritten in place.
pub struct Sender {
    stream: TcpStream,
    request: Vec<u8>,
    ids: Vec<usize>,
    users: Users,
    answer: Vec<u8>,
}

impl Sender {
    pub async fn connect(node: &Node, events: usize, users: Users) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(&node.address).await?;
        stream.set_nodelay(true)?;
        let body =
            if events == 1 { EVENT.to_owned() } else { format!("[{}]", vec![EVENT; events].join(",")) };
        let head = format!(
            "POST /api/v1/streams/bench/events HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            node.address,
            node.token,
            body.len()
        );
        let first = head.len() + usize::from(events > 1);
        let ids = (0..events).map(|event| first + event * (EVENT.len() + 1) + ID_AT).collect();
        Ok(Self {
            stream,
            request: [head.as_bytes(), body.as_bytes()].concat(),
            ids,
            users,
            answer: vec![0; 1 << 20],
        })
    }

    pub async fn send(&mut self, first: u64) -> anyhow::Result<Outcome> {
        for (event, at) in self.ids.iter().enumerate() {
            number_event(&mut self.request[at - ID_AT..], first + event as u64, self.users);
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
            return match text.get(9..12) {
                Some(b"202") => Ok(Outcome::Taken),
                Some(b"429" | b"503") if headers.contains("\r\nretry-after: ") => Ok(Outcome::Refused),
                _ => bail!("{}", String::from_utf8_lossy(&text[..filled.min(400)])),
            };
        }
    }
}

/// Makes [`EVENT`] the event of a number.
pub fn number_event(event: &mut [u8], number: u64, users: Users) {
    event[ID_AT..ID_AT + 16].copy_from_slice(format!("{number:016x}").as_bytes());
    event[USER_AT..USER_AT + 7].copy_from_slice(format!("{:07}", user(number, users)).as_bytes());
    event[TIME_AT..TIME_AT + 15].copy_from_slice(time_of_day(number).as_bytes());
}

/// Which of so many users it is.
fn user(number: u64, users: Users) -> u64 {
    let mixed = splitmix(number);
    if mixed >> 32 & 0xff < u64::from(users.on_one) * 256 / 100 { 0 } else { mixed % users.number }
}

/// Five milliseconds from one event to the next.
fn time_of_day(number: u64) -> String {
    let millis = number * 5 % 86_400_000;
    let (seconds, millis) = (millis / 1000, millis % 1000);
    format!("{:02}:{:02}:{:02}.{millis:03}000", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Numbers that look random, always the same ones.
pub fn splitmix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
