//! `highwater send`: events from files or standard input.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::client::Client;
use super::{EventFormat, Failure, SendArgs};

pub fn send(arguments: SendArgs) -> Result<ExitCode, Failure> {
    let client = Client::new(&arguments.target)?;
    let files = if arguments.files.is_empty() { vec![PathBuf::from("-")] } else { arguments.files.clone() };
    let mut totals = [0u64; 3];
    for file in &files {
        let format = arguments.format.or_else(|| by_name(file)).unwrap_or(EventFormat::Ndjson);
        let media = match format {
            EventFormat::Json => "application/json",
            EventFormat::Ndjson => "application/x-ndjson",
            EventFormat::Csv => "text/csv",
            EventFormat::Cloudevents => "application/cloudevents-batch+json",
        };
        let (reader, length): (Box<dyn Read>, Option<u64>) = if file == Path::new("-") {
            (Box::new(std::io::stdin()), None)
        } else {
            let opened = std::fs::File::open(file)
                .map_err(|error| Failure::new("io", format!("{} can't be read: {error}", file.display())))?;
            let found = opened.metadata()?;
            if found.is_dir() {
                let detail = format!("{} is a folder; name the files in it", file.display());
                return Err(Failure::new("io", detail));
            }
            (Box::new(opened), Some(found.len()))
        };
        let progress = Progress::new(length, &file.display().to_string(), Unit::Bytes);
        let mut watched = Watched { reader, progress: &progress };
        let path = format!("/api/v1/streams/{}/events", super::read::encode(&arguments.stream));
        let encoding =
            file.extension().and_then(|extension| extension.to_str()).and_then(|extension| match extension {
                "gz" => Some("gzip"),
                "zst" => Some("zstd"),
                _ => None,
            });
        let answer = client.stream(&path, media, encoding, &mut watched)?;
        progress.finish();
        let answer: Value = serde_json::from_str(&answer).unwrap_or_default();
        for (total, name) in totals.iter_mut().zip(["accepted", "duplicates", "rejected"]) {
            *total += answer[name].as_u64().unwrap_or(0);
        }
        for result in answer["results"].as_array().into_iter().flatten() {
            if let Some(error) = result.get("error") {
                eprintln!(
                    "{} event {}: {} {}: {}",
                    file.display(),
                    result["index"],
                    error["code"].as_str().unwrap_or_default(),
                    error["path"].as_str().unwrap_or_default(),
                    error["detail"].as_str().unwrap_or_default()
                );
            }
        }
    }
    println!("accepted {}  duplicates {}  rejected {}", totals[0], totals[1], totals[2]);
    Ok(if totals[2] > 0 { ExitCode::from(3) } else { ExitCode::SUCCESS })
}

fn by_name(file: &Path) -> Option<EventFormat> {
    let name = file.file_name()?.to_str()?.to_ascii_lowercase();
    let name = name.trim_end_matches(".gz").trim_end_matches(".zst");
    match name.rsplit('.').next()? {
        "csv" => Some(EventFormat::Csv),
        "ndjson" | "jsonl" => Some(EventFormat::Ndjson),
        "json" => Some(EventFormat::Json),
        _ => None,
    }
}

/// What long work is counted in.
#[derive(Clone, Copy)]
pub enum Unit {
    /// Bytes of a body.
    Bytes,
    /// Events or rows.
    Events,
}

/// Shows how far long work has come: a bar on a terminal, else a line every ten seconds.
pub struct Progress {
    bar: Option<ProgressBar>,
    name: String,
    total: Option<u64>,
    state: std::cell::RefCell<(u64, Instant, Instant)>,
}

impl Progress {
    /// For work of `total` bytes or events, when that is known.
    pub fn new(total: Option<u64>, name: &str, unit: Unit) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
            let template = match unit {
                Unit::Bytes => "{msg} {bar:30} {percent:>3} %  {binary_bytes_per_sec}  {eta} left",
                Unit::Events => "{msg} {bar:30} {percent:>3} %  {per_sec}  {eta} left",
            };
            if total.is_some()
                && let Ok(style) = ProgressStyle::with_template(template)
            {
                bar.set_style(style);
            }
            bar.set_message(name.to_owned());
            bar
        });
        let now = Instant::now();
        Self { bar, name: name.to_owned(), total, state: std::cell::RefCell::new((0, now, now)) }
    }

    /// So much more is done.
    pub fn advance(&self, more: u64) {
        let mut state = self.state.borrow_mut();
        state.0 += more;
        match &self.bar {
            Some(bar) => bar.inc(more),
            None if state.2.elapsed() >= Duration::from_secs(10) => {
                state.2 = Instant::now();
                let rate = state.0 as f64 / state.1.elapsed().as_secs_f64();
                let left = self.total.map(|total| {
                    format!(", {:.0} s left", total.saturating_sub(state.0) as f64 / rate.max(1.0))
                });
                eprintln!("{}: {} done, {rate:.0}/s{}", self.name, state.0, left.unwrap_or_default());
            }
            None => {}
        }
    }

    /// All is done.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

struct Watched<'a> {
    reader: Box<dyn Read>,
    progress: &'a Progress,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.progress.advance(read as u64);
        Ok(read)
    }
}
