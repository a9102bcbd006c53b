#!/usr/bin/env bash
# Starts a node on an empty folder, sends it 20,000 raw transactions, and lets check.py count them again.
# Usage: run.sh debug|release
set -euo pipefail
cd "$(dirname "$0")/../.."
program="${CARGO_TARGET_DIR:-target}/${1:-debug}/highwater"
[ -x "$program" ] || cargo build --workspace --locked ${1:+$([ "$1" = release ] && echo --release)}
folder=$(mktemp -d)
node=
stop() {
  [ -z "$node" ] || { kill "$node" 2>/dev/null && wait "$node" 2>/dev/null; } || true
  rm -rf "$folder"
}
trap stop EXIT

"$program" serve --data "$folder/data" --listen 127.0.0.1:0 --lake-wait 1 --pack packs/transactions 2>"$folder/node.log" &
node=$!
for _ in $(seq 200); do
  [ -f "$folder/data/server.json" ] && "$program" endpoint list --data "$folder/data" 2>/dev/null | grep -q last-5-min && break
  kill -0 "$node" 2>/dev/null || { cat "$folder/node.log"; exit 1; }
  sleep 0.2
done
url=$(sed 's/.*"url":"\([^"]*\)".*/\1/' "$folder/data/server.json")
"$program" generate transactions --count 20000 --seed 11 >"$folder/events.ndjson"
split -l 2000 "$folder/events.ndjson" "$folder/part-"
for part in "$folder"/part-*; do
  curl -sS -o /dev/null --fail-with-body -H "Authorization: Bearer $(cat "$folder/data/operator.token")" \
    -H 'Content-Type: application/x-ndjson' --data-binary "@$part" "$url/api/v1/streams/transaction_log/events"
done

python=python3
if ! $python -c 'import deltalake, pyarrow' 2>/dev/null; then
  if python3 -m venv "$folder/venv" 2>/dev/null && "$folder/venv/bin/pip" install -q deltalake pyarrow 2>/dev/null; then
    python="$folder/venv/bin/python"
  fi
fi
code=0
$python tests/independent/check.py --url "$url" --data "$folder/data" --events "$folder/events.ndjson" || code=$?
grep -q ' ERROR ' "$folder/node.log" && { echo "unexpected errors of the node:"; cat "$folder/node.log"; code=1; }
exit "$code"
