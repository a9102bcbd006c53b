//! `highwater apply`: declarations from files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Map, Value, json};

use super::client::Client;
use super::read::{objects, parse};
use super::send::{Progress, Unit};
use super::{ApplyArgs, Failure, Format, output};
use crate::node::Script;

/// A pack as it was read.
pub struct Pack {
    /// What to declare: all files, one after the other.
    pub script: Script,
    /// Each file, and the line of the script at which it begins.
    files: Vec<(PathBuf, u64)>,
}

impl Pack {
    /// Says which file a failure is about.
    pub fn locate(&self, mut failure: Failure) -> Failure {
        let file = failure.line.and_then(|line| {
            let (file, first) = self.files.iter().rev().find(|(_, first)| *first <= line)?;
            Some((file, line - first + 1))
        });
        if let Some((file, line)) = file {
            failure.message.push_str(&format!("\nin {}, line {line}", file.display()));
        }
        failure
    }
}

/// Reads a pack: the SQL files of a folder in order of their names, and the CSV files beside and below.
pub fn read_pack(path: &Path) -> anyhow::Result<Pack> {
    let mut script = Script::default();
    if path.is_file() {
        script.text =
            std::fs::read_to_string(path).with_context(|| format!("{} can't be read", path.display()))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        collect_csv(folder, "", 1, &mut script.files)?;
        return Ok(Pack { script, files: vec![(path.to_owned(), 1)] });
    }
    let mut files: Vec<PathBuf> = std::fs::read_dir(path)
        .with_context(|| format!("the folder {} can't be read", path.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<_>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "sql"));
    files.sort();
    anyhow::ensure!(!files.is_empty(), "the folder {} holds no .sql file", path.display());
    let mut begins = Vec::with_capacity(files.len());
    for file in files {
        let first = script.text.matches('\n').count() as u64 + 1;
        script.text.push_str(
            &std::fs::read_to_string(&file).with_context(|| format!("{} can't be read", file.display()))?,
        );
        script.text.push_str("\n;\n");
        begins.push((file, first));
    }
    collect_csv(path, "", 3, &mut script.files)?;
    Ok(Pack { script, files: begins })
}

fn collect_csv(
    folder: &Path,
    prefix: &str,
    depth: usize,
    files: &mut BTreeMap<String, String>,
) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let path = entry.path();
        if path.is_dir() && depth > 0 && !name.starts_with('.') {
            collect_csv(&path, &format!("{name}/"), depth - 1, files)?;
        } else if path.extension().is_some_and(|extension| extension == "csv") {
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("{} can't be read", path.display()))?;
            files.insert(name, text);
        }
    }
    Ok(())
}

pub fn apply(arguments: ApplyArgs) -> Result<ExitCode, Failure> {
    let pack = read_pack(&arguments.file)?;
    let script = &pack.script;
    let request =
        json!({"sql": script.text, "files": script.files, "dry_run": arguments.dry_run}).to_string();
    let client = Client::new(&arguments.target)?;
    let last = ask(&client, "SELECT max(_offset) AS last FROM _system")?;
    let last = last.first().and_then(|row| row["last"].as_i64()).unwrap_or(-1);
    let body = client
        .post("/api/v1/statements", "application/json", "application/json", request.as_bytes())
        .map_err(|failure| pack.locate(failure))?;
    let answer: Value = serde_json::from_str(&body).unwrap_or_default();
    let rows: Vec<_> = answer["statements"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|row| row.as_object().cloned())
        .collect();
    let format = arguments.output.output;
    let columns = ["kind", "name", "outcome"].map(str::to_owned).to_vec();
    let building = rows.iter().filter(|row| row["outcome"] == "building");
    let building: BTreeSet<String> =
        building.filter_map(|row| row["name"].as_str().map(str::to_owned)).collect();
    let waits = !arguments.dry_run && !building.is_empty() && !arguments.no_wait;
    // What programs read is one document; people see at once what was declared.
    if format == Format::Table || !waits {
        output::print(format, &columns, &rows)?;
    }
    if arguments.dry_run {
        eprintln!("checked only, nothing was declared");
    } else if !building.is_empty() && arguments.no_wait {
        eprintln!("built beside what is there; `highwater view list` tells how far they are");
    }
    if !waits {
        return Ok(ExitCode::SUCCESS);
    }
    let outcome = wait(&client, &building).and_then(|()| compared(&client, last, &building));
    if format == Format::Table {
        let compared = outcome?;
        output::print(format, &compared_columns(&compared), &compared)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut document = rows.clone();
    let mut all_columns = columns;
    if let Ok(compared) = &outcome {
        all_columns.extend(compared_columns(compared).into_iter().filter(|column| column != "name"));
        document.extend(compared.iter().cloned().map(|mut row| {
            row.insert("kind".into(), "version".into());
            row.insert("outcome".into(), "swapped".into());
            row
        }));
    }
    output::print(format, &all_columns, &document)?;
    outcome.map(|_| ExitCode::SUCCESS)
}

/// What there is to say about rows of a comparison.
fn compared_columns(compared: &[Map<String, Value>]) -> Vec<String> {
    let columns = ["name", "rows_before", "rows_after", "rows_only_before", "rows_only_after"];
    let mut columns = columns.map(str::to_owned).to_vec();
    for more in ["columns_added", "columns_removed", "not_compared"] {
        let says = |row: &Map<String, Value>| row.get(more).is_some_and(|value| *value != json!([]));
        if compared.iter().any(says) {
            columns.push(more.to_owned());
        }
    }
    columns
}

/// Rows of a question.
fn ask(client: &Client, sql: &str) -> Result<Vec<Map<String, Value>>, Failure> {
    let question = json!({"query": sql}).to_string();
    let answer = client.post("/api/v1/sql", "application/json", "application/json", question.as_bytes())?;
    Ok(objects(&parse(&answer)?["rows"]))
}

/// Waits until new versions have taken the places of the old ones.
fn wait(client: &Client, building: &BTreeSet<String>) -> Result<(), Failure> {
    let mut progress: Option<(Progress, u64)> = None;
    let mut reported = BTreeSet::new();
    loop {
        let answer = parse(&client.get("/api/v1/statements")?)?;
        let under_way: Vec<Map<String, Value>> = objects(&answer["building"])
            .into_iter()
            .filter(|version| version["name"].as_str().is_some_and(|name| building.contains(name)))
            .collect();
        let views: Vec<Map<String, Value>> =
            under_way.iter().flat_map(|version| objects(&version["views"])).collect();
        for view in &views {
            let name = view["name"].as_str().unwrap_or_default();
            let error = view["last_error"].as_str().unwrap_or("no reason is known");
            let message = match view["state"].as_str() {
                Some("failed") => format!("{name} was set aside: {error}; what was there before stays"),
                Some("paused") => {
                    format!("{name} is paused; what was there before stays until it is resumed")
                }
                Some("retrying") if reported.insert(name.to_owned()) => {
                    eprintln!("{name} is tried again: {error}");
                    continue;
                }
                _ => continue,
            };
            return Err(Failure::new("view_failed", message));
        }
        let behind: u64 = views.iter().filter_map(|view| view["lag"].as_u64()).sum();
        let names = building.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let (bar, most) =
            progress.get_or_insert_with(|| (Progress::new(Some(behind), &names, Unit::Events), behind));
        bar.advance(most.saturating_sub(behind));
        *most = (*most).min(behind);
        if under_way.is_empty() {
            bar.finish();
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// By how much the new versions differ from the old ones: what was written into `_system` with the swaps
/// after an offset.
fn compared(
    client: &Client,
    after: i64,
    building: &BTreeSet<String>,
) -> Result<Vec<Map<String, Value>>, Failure> {
    let sql = format!(
        "SELECT text, comparison FROM _system WHERE command = 'swap' AND _offset > {after} ORDER BY _offset"
    );
    let mut compared = Vec::new();
    let mut given_up = building.clone();
    for swap in ask(client, &sql)? {
        if let (Some(name), Some(comparison)) = (swap["text"].as_str(), swap["comparison"].as_str())
            && building.contains(name)
        {
            given_up.remove(name);
            compared.extend(objects(&parse(comparison)?));
        }
    }
    match given_up.first() {
        Some(name) => {
            let message =
                format!("the new version of {name} was given up by another declaration; the old one stays");
            Err(Failure::new("given_up", message))
        }
        None => Ok(compared),
    }
}
