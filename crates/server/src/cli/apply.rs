//! `highwater apply`: declarations from files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use serde_json::{Value, json};

use super::client::Client;
use super::{ApplyArgs, Failure, output};
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
    output::print(arguments.output.output, &["kind".into(), "name".into(), "outcome".into()], &rows)?;
    if arguments.dry_run {
        eprintln!("checked only, nothing was declared");
    }
    Ok(ExitCode::SUCCESS)
}
