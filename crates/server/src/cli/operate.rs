//! Commands for whoever keeps a node running: rebuild, lake, backup, doctor, completions.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::CommandFactory;
use serde_json::{Map, Value, json};

use super::client::Client;
use super::config::Settings;
use super::read::{encode, objects, parse, print_json};
use super::send::{Progress, Unit};
use super::{Cli, DoctorArgs, Failure, Format, LakeCommand, RebuildArgs, Target, output};

/// `highwater rebuild`: derives a view again and waits until it has caught up.
pub fn rebuild(arguments: RebuildArgs) -> Result<ExitCode, Failure> {
    let client = Client::new(&arguments.target)?;
    let name = encode(&arguments.view);
    client.post(&format!("/api/v1/views/{name}/rebuild"), "application/json", "application/json", b"")?;
    if arguments.no_wait {
        eprintln!("started; `highwater view show {}` tells how far it is", arguments.view);
        return Ok(ExitCode::SUCCESS);
    }
    let mut progress: Option<(Progress, u64)> = None;
    loop {
        let view = parse(&client.get(&format!("/api/v1/views/{name}"))?)?;
        let lag = view["lag"].as_u64().unwrap_or(0);
        let taken = view["applied"]["taken"].as_u64().unwrap_or(0);
        let (bar, seen) = progress
            .get_or_insert_with(|| (Progress::new(Some(lag + taken), &arguments.view, Unit::Events), 0));
        bar.advance(taken.saturating_sub(*seen));
        *seen = (*seen).max(taken);
        if view["state"] == "failed" {
            let error = view["last_error"].as_str().unwrap_or("no reason is known");
            return Err(Failure::new("view_failed", format!("{} was set aside: {error}", arguments.view)));
        }
        if lag == 0 {
            bar.finish();
            println!("{}: {taken} rows", arguments.view);
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// `highwater lake`.
pub fn lake(command: LakeCommand) -> Result<ExitCode, Failure> {
    match command {
        LakeCommand::List { target, output } => {
            let answer = parse(&Client::new(&target)?.get("/api/v1/streams")?)?;
            let rows: Vec<Map<String, Value>> = objects(&answer["streams"])
                .into_iter()
                .filter(|stream| stream["lake"].is_object())
                .map(|stream| {
                    let lake = &stream["lake"];
                    json!({"stream": stream["name"], "files": lake["files"], "bytes": lake["bytes"], "version": lake["version"]})
                })
                .filter_map(|row| row.as_object().cloned())
                .collect();
            let columns = ["stream", "files", "bytes", "version"].map(str::to_owned);
            output::print(output.output, &columns, &rows)?;
        }
        LakeCommand::Versions { stream, limit, target, output } => {
            let path = format!("/api/v1/lake/{}/versions?limit={limit}", encode(&stream));
            let answer = parse(&Client::new(&target)?.get(&path)?)?;
            let columns = ["version", "committed_at", "operation"].map(str::to_owned);
            output::print(output.output, &columns, &objects(&answer["versions"]))?;
        }
        LakeCommand::Diff { stream, from, to, target, output } => {
            let to = to.map_or_else(String::new, |to| format!("&to={to}"));
            let path = format!("/api/v1/lake/{}/diff?from={from}{to}", encode(&stream));
            let answer = parse(&Client::new(&target)?.get(&path)?)?;
            let columns = ["change", "rows"].map(str::to_owned);
            output::print(output.output, &columns, &objects(&answer["changes"]))?;
        }
        LakeCommand::Compact { target } => {
            let answer = Client::new(&target)?.post(
                "/api/v1/maintenance",
                "application/json",
                "application/json",
                b"",
            )?;
            print_json(&parse(&answer)?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `highwater backup`.
pub fn backup(folder: &Path, target: &Target) -> Result<ExitCode, Failure> {
    let folder = std::path::absolute(folder)?;
    let request = json!({"to": folder}).to_string();
    let client = Client::new(target)?;
    let answer =
        parse(&client.post("/api/v1/backup", "application/json", "application/json", request.as_bytes())?)?;
    println!("{}: {} bytes of log, with the lake and the secrets", folder.display(), answer["log_bytes"]);
    eprintln!("to bring it up: highwater serve --data {}", folder.display());
    Ok(ExitCode::SUCCESS)
}

/// `highwater completions`.
pub fn completions(shell: clap_complete::Shell) -> ExitCode {
    clap_complete::generate(shell, &mut Cli::command(), "highwater", &mut std::io::stdout());
    ExitCode::SUCCESS
}

/// What the doctor looked at, and what came out.
struct Finding {
    what: &'static str,
    fine: bool,
    detail: String,
}

/// `highwater doctor`: settings and their sources, the data folder, the disk, and the node that runs on it.
pub fn doctor(arguments: DoctorArgs) -> Result<ExitCode, Failure> {
    let data = arguments.target.data.as_ref().map(|data| data.display().to_string());
    let settings = Settings::find(&[("data", data)])?;
    let columns = ["setting", "value", "source"].map(str::to_owned);
    output::print(arguments.output.output, &columns, &settings.rows())?;
    let mut findings = vec![match settings.node().and(settings.listen()) {
        Ok(_) => Finding { what: "settings", fine: true, detail: "can be read".into() },
        Err(failure) => Finding { what: "settings", fine: false, detail: failure.message },
    }];
    let folder = settings.data();
    findings.extend(folder_findings(&folder));
    findings.push(node_finding(&arguments.target, &folder));
    // What is to be read by a program is alone on its stream.
    let mut out: Box<dyn Write> = match arguments.output.output {
        Format::Table => Box::new(std::io::stdout().lock()),
        _ => Box::new(std::io::stderr().lock()),
    };
    writeln!(out)?;
    for Finding { what, fine, detail } in &findings {
        writeln!(out, "{} {what}: {detail}", if *fine { "✓" } else { "✗" })?;
    }
    Ok(if findings.iter().all(|finding| finding.fine) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn folder_findings(folder: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !folder.exists() {
        let detail = format!("{} is not there yet; the first start makes it", folder.display());
        return vec![Finding { what: "data folder", fine: true, detail }];
    }
    if let Some(mode) = mode_of(folder) {
        let fine = mode & 0o007 == 0;
        let detail = if fine {
            format!("others can't look into {}", folder.display())
        } else {
            format!(
                "every user of this machine can read the log and the lake; run chmod 700 {}",
                folder.display()
            )
        };
        findings.push(Finding { what: "data folder", fine, detail });
    }
    for name in ["operator.token", "token.key"] {
        if let Some(mode) = mode_of(&folder.join(name)) {
            let fine = mode & 0o077 == 0;
            let detail = if fine {
                format!("{name} is readable by its owner alone")
            } else {
                format!("{name} has mode {mode:o}; run chmod 600 {}", folder.join(name).display())
            };
            findings.push(Finding { what: "secret", fine, detail });
        }
    }
    findings.push(match fsync_time(folder) {
        Ok(time) => Finding {
            what: "disk",
            fine: time < Duration::from_millis(50),
            detail: format!(
                "an fsync of 4 KiB takes {:.2} ms; every ack waits for one",
                time.as_secs_f64() * 1e3
            ),
        },
        Err(error) => Finding {
            what: "disk",
            fine: false,
            detail: format!("{} can't be written: {error}", folder.display()),
        },
    });
    let aside: Vec<String> = ["", "lake/streams", "lake/tables"]
        .iter()
        .filter_map(|part| std::fs::read_dir(folder.join(part)).ok())
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.contains(".damaged-"))
        .collect();
    if !aside.is_empty() {
        let detail =
            format!("set aside because they could not be read: {}; they can be removed", aside.join(", "));
        findings.push(Finding { what: "damage", fine: false, detail });
    }
    findings
}

/// Who may do what with a file: its nine bits.
fn mode_of(path: &Path) -> Option<u32> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).ok().map(|found| found.permissions().mode() & 0o777)
}

/// The middle one of some small fsyncs.
fn fsync_time(folder: &Path) -> std::io::Result<Duration> {
    let path = folder.join(".doctor");
    let mut file = std::fs::File::create(&path)?;
    let mut times = Vec::new();
    for _ in 0..15 {
        let started = Instant::now();
        file.write_all(&[0; 4096])?;
        file.sync_data()?;
        times.push(started.elapsed());
    }
    std::fs::remove_file(&path)?;
    times.sort();
    Ok(times[times.len() / 2])
}

fn node_finding(target: &Target, folder: &Path) -> Finding {
    let target = Target { data: target.data.clone().or_else(|| Some(folder.to_owned())), ..target.clone() };
    let asked = Client::new(&target).and_then(|client| {
        let health = parse(&client.get("/healthz")?)?;
        let views = parse(&client.get("/api/v1/views")?)?;
        Ok((health, views))
    });
    let (health, views) = match asked {
        Ok(found) => found,
        Err(failure) if failure.code == "not_running" => {
            return Finding { what: "node", fine: true, detail: "none runs on this folder".into() };
        }
        Err(failure) => return Finding { what: "node", fine: false, detail: failure.message },
    };
    let troubled: Vec<String> = objects(&views["views"])
        .iter()
        .filter(|view| view["state"] == "failed" || view["state"] == "retrying")
        .map(|view| {
            format!(
                "{} ({})",
                view["name"].as_str().unwrap_or_default(),
                view["last_error"].as_str().unwrap_or_default()
            )
        })
        .collect();
    let lag: u64 = objects(&views["views"]).iter().filter_map(|view| view["lag"].as_u64()).sum();
    if troubled.is_empty() && health["status"] == "ok" {
        Finding {
            what: "node",
            fine: true,
            detail: format!("runs and gives acks; its views are {lag} rows behind"),
        }
    } else {
        Finding {
            what: "node",
            fine: false,
            detail: format!("status {}; in trouble: {}", health["status"], troubled.join(", ")),
        }
    }
}
