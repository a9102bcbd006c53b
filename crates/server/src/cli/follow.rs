//! `highwater subscribe`: the updates of a query, one JSON object a line.

use std::io::{BufRead, BufReader, Write};
use std::process::ExitCode;

use serde_json::{Value, json};

use super::client::Client;
use super::read::encode;
use super::{Failure, SubscribeArgs};

pub fn subscribe(arguments: SubscribeArgs) -> Result<ExitCode, Failure> {
    let client = Client::new(&arguments.target)?;
    let from = arguments.from.as_ref().map_or_else(String::new, |from| format!("&from={}", encode(from)));
    let body = client.open(&format!("/api/v1/subscribe?query={}{from}", encode(&arguments.query)))?;
    let mut left = arguments.updates.unwrap_or(u64::MAX);
    let (mut kind, mut mark, mut data) = (String::new(), Value::Null, Value::Null);
    for line in BufReader::new(body).lines() {
        let line = line?;
        if let Some(name) = line.strip_prefix("event:") {
            kind = name.trim().to_owned();
        } else if let Some(id) = line.strip_prefix("id:") {
            mark = id.trim().into();
        } else if let Some(text) = line.strip_prefix("data:") {
            data = serde_json::from_str(text.trim()).unwrap_or_default();
        } else if line.is_empty() && !kind.is_empty() {
            // The end of an update, with all of its parts.
            let kind = std::mem::take(&mut kind);
            if kind == "error" {
                let text = |name: &str| data[name].as_str().unwrap_or_default().to_owned();
                return Err(Failure::new(&text("code"), text("detail")));
            }
            // Marks without rows are for programs that come back.
            if kind == "rows" || kind == "changes" {
                writeln!(std::io::stdout().lock(), "{}", json!({"type": kind, "mark": mark, "data": data}))?;
                left -= 1;
                if left == 0 {
                    break;
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
