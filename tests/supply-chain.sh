#!/usr/bin/env bash
# Licences, sources and duplicates of dependencies, by cargo-deny when it is there.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v cargo-deny >/dev/null; then
  echo "NOT RUN licences and sources: no cargo-deny (cargo install --locked cargo-deny)"
  exit 0
fi
# The advisory database is a repository of its own; without a way to it only that check is left out.
if ! timeout 60 cargo deny check advisories; then
  echo "NOT RUN advisories: the advisory database can't be fetched, or it names a dependency above"
fi
cargo deny check licenses bans sources
