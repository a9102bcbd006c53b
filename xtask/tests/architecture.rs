//! Imports point down and siblings stay apart.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use cargo_metadata::{DependencyKind, MetadataCommand};

/// The rooms and their levels; a room imports only rooms of lower levels. Tooling stands outside.
const LEVELS: [(&str, u8); 12] = [
    ("highwater-event", 0),
    ("highwater-model", 1),
    ("highwater-privacy", 1),
    ("highwater-log", 2),
    ("highwater-ingest", 3),
    ("highwater-sql", 3),
    ("highwater-lake", 3),
    ("highwater-search", 3),
    ("highwater-warehouse", 3),
    ("highwater-auth", 3),
    ("highwater-audit", 3),
    ("highwater-server", 4),
];
const TOOLING: [&str; 2] = ["highwater-sim", "xtask"];

#[test]
fn imports_point_down_and_siblings_stay_apart() {
    let metadata = MetadataCommand::new().no_deps().exec().unwrap();
    let levels: BTreeMap<&str, u8> = LEVELS.into();
    for package in metadata.workspace_packages() {
        let name = package.name.as_str();
        if TOOLING.contains(&name) {
            continue;
        }
        let level = levels.get(name).unwrap_or_else(|| panic!("{name} has no level: add it to LEVELS"));
        for dependency in
            package.dependencies.iter().filter(|dependency| dependency.kind != DependencyKind::Development)
        {
            let other = dependency.name.as_str();
            assert!(!TOOLING.contains(&other), "{name} imports {other}, which is for tests");
            if let Some(other_level) = levels.get(other) {
                assert!(other_level < level, "{name} (level {level}) imports {other} (level {other_level})");
            }
        }
    }
}

#[test]
fn the_folder_is_the_name() {
    let metadata = MetadataCommand::new().no_deps().exec().unwrap();
    for package in metadata.workspace_packages() {
        let folder = package.manifest_path.parent().unwrap().file_name().unwrap();
        assert_eq!(package.name.trim_start_matches("highwater-"), folder);
    }
}
