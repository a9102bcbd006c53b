//! The access log: a line of JSON for each answer, for tools that read such files. It is no audit trail: when the
//! disk can't keep up lines are left out, and counted.
//!
//! A file that was moved away is begun anew, so that it can be rotated.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use axum::http::{Method, StatusCode};
use highwater_event::time;
use serde_json::json;

use super::call::Call;

/// Lines that may wait.
const WAITING: usize = 8192;
/// How often it is looked whether the file is still there.
const LOOK: Duration = Duration::from_secs(1);

/// Writes lines where somebody reads them.
#[derive(Debug, Clone)]
pub struct AccessLog(SyncSender<String>);

impl AccessLog {
    /// Begins to write into a file, or to standard error when it is `-`.
    pub fn open(path: &Path) -> io::Result<Arc<Self>> {
        let mut sink = Sink::open(path)?;
        let (send, lines) = sync_channel(WAITING);
        std::thread::Builder::new().name("access log".into()).spawn(move || sink.run(&lines))?;
        Ok(Arc::new(Self(send)))
    }

    /// Notes an answer.
    pub fn answered(
        &self,
        call: &Call,
        at: i64,
        method: &Method,
        path: &str,
        status: StatusCode,
        took: Duration,
    ) {
        let principal = call.principal();
        let line = json!({
            "time": time::show_micros(at),
            "request_id": call.request_id,
            "address": call.address,
            "actor": principal.name,
            "tenant": principal.tenant,
            "method": method.as_str(),
            // Without what stands behind the question mark, which may be a secret.
            "path": path,
            "status": status.as_u16(),
            "duration_us": took.as_micros() as u64,
        });
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) =
            self.0.try_send(format!("{line}\n"))
        {
            metrics::counter!("highwater_access_log_dropped_total").increment(1);
        }
    }
}

struct Sink {
    path: PathBuf,
    /// None for standard error.
    file: Option<BufWriter<File>>,
    looked: Instant,
}

fn append(path: &Path) -> io::Result<BufWriter<File>> {
    Ok(BufWriter::new(OpenOptions::new().create(true).append(true).open(path)?))
}

impl Sink {
    fn open(path: &Path) -> io::Result<Self> {
        let file = if path == Path::new("-") { None } else { Some(append(path)?) };
        Ok(Self { path: path.to_owned(), file, looked: Instant::now() })
    }

    fn run(&mut self, lines: &Receiver<String>) {
        let mut said = false;
        while let Ok(first) = lines.recv() {
            match self.write(&first, lines) {
                Ok(()) => said = false,
                Err(error) => {
                    metrics::counter!("highwater_access_log_dropped_total").increment(1);
                    if !said {
                        tracing::error!(%error, file = %self.path.display(), "the access log can't be written");
                    }
                    said = true;
                }
            }
        }
    }

    /// Writes a line and those that wait.
    fn write(&mut self, first: &str, lines: &Receiver<String>) -> io::Result<()> {
        let Some(file) = &mut self.file else {
            return io::stderr().lock().write_all(first.as_bytes());
        };
        if self.looked.elapsed() >= LOOK {
            self.looked = Instant::now();
            let there = std::fs::metadata(&self.path).map(|known| known.ino()).ok();
            if there != Some(file.get_ref().metadata()?.ino()) {
                *file = append(&self.path)?;
            }
        }
        file.write_all(first.as_bytes())?;
        for line in lines.try_iter().take(WAITING) {
            file.write_all(line.as_bytes())?;
        }
        file.flush()
    }
}
