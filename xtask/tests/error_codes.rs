//! Every code that an error can have stands in docs/ERRORS.md: whoever gets one can look it up.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What makes errors with a code; its first short text is that code.
const MAKERS: [&str; 12] = [
    "SqlError::new(",
    "RowError::new(",
    "Problem::new(",
    "Problem::bad_request(",
    "Problem::not_found(",
    "Self::new(",
    "Self::bad_request(",
    "Self::not_found(",
    "Self::of(",
    "Setback::lasting(",
    "Setback::passing(",
    ".refuse(",
];
/// How far behind the name of a maker the code may stand: behind a status, at most.
const NEAR: usize = 90;

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The first text behind a place, when it has the form of a code.
fn code(text: &str) -> Option<&str> {
    let near = &text[..text.char_indices().nth(NEAR).map_or(text.len(), |(at, _)| at)];
    let (_, behind) = near.split_once('"')?;
    let (code, _) = behind.split_once('"')?;
    let letters = code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    (letters && code.len() > 2).then_some(code)
}

#[test]
fn every_code_of_an_error_is_documented() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let documented = std::fs::read_to_string(root.join("docs/ERRORS.md")).unwrap();
    let documented: Vec<&str> = documented.split(|c: char| !c.is_ascii_lowercase() && c != '_').collect();
    let mut files = Vec::new();
    for room in ["ingest", "log", "sql", "server"] {
        sources(&root.join("crates").join(room).join("src"), &mut files);
    }
    // The command line's own errors are told by their exit code.
    files.retain(|file| !file.components().any(|part| part.as_os_str() == "cli"));
    let mut missing: BTreeMap<String, String> = BTreeMap::new();
    let mut seen = 0;
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
        for maker in MAKERS {
            for (at, _) in text.match_indices(maker) {
                let Some(code) = code(&text[at + maker.len()..]) else { continue };
                seen += 1;
                if !documented.contains(&code) {
                    missing.insert(code.to_owned(), file.display().to_string());
                }
            }
        }
    }
    assert!(seen > 200, "only {seen} errors were found: has a maker another name?");
    assert!(missing.is_empty(), "not in docs/ERRORS.md: {missing:#?}");
}
