#!/usr/bin/env bash
# Does a node do what its OpenAPI document says? Schemathesis makes calls from the document, good ones and
# bad ones, as the operator and as each built-in role; every answer must be one that the document names, and
# none may be a 5xx. Each caller has a node of its own: whoever may drop things changes what others find.
# It knows names and bodies of what exists from examples.py, and makes up others. What the examples say is
# good in itself, so it must not be refused as if it were wrong. How many operations have answered 2xx is told.
# Usage: run.sh [PROGRAM [EXAMPLES]]   EXAMPLES: calls made up for each operation, half for roles
# HIGHWATER_SEED makes other calls. Logs stay in the target folder, under conformance.
set -euo pipefail
if [ -n "${1:-}" ]; then program=$(realpath "$1"); else program=; fi
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}
program=${program:-$(realpath -m "$target/debug/highwater")}
examples=${2:-15}
seed=${HIGHWATER_SEED:-1}
[ -x "$program" ] || { echo "conformance: no program $program"; exit 1; }
case $examples in '' | 0* | *[!0-9]*) echo "conformance: not a number of examples: $examples"; exit 1 ;; esac

folder=$(mktemp -d)
node=
stop() {
  [ -z "$node" ] || { kill "$node" 2>/dev/null && wait "$node" 2>/dev/null; } || true
  node=
}
trap 'stop; rm -rf "$folder"' EXIT
trap 'exit 130' INT TERM

# Version 4 with reports of every call.
is_there() { "$1" --version 2>/dev/null | grep -q ' 4\.' && "$1" run --help 2>/dev/null | grep -q report-ndjson; }
checker=schemathesis
if ! is_there "$checker"; then
  checker=$folder/venv/bin/schemathesis
  { python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install -q 'schemathesis>=4,<5'; } \
    >"$folder/pip.log" 2>&1 || true
  if ! is_there "$checker"; then
    echo "NOT RUN conformance: no schemathesis, and it can't be installed (pip install 'schemathesis>=4,<5')"
    exit 0
  fi
fi

logs=$(realpath -m "$target/conformance")
mkdir -p "$logs"
# Calls that take everything's time, never end, or end credentials.
left_out=(
  --exclude-path /api/v1/maintenance --exclude-path /api/v1/backup
  --exclude-path-regex '/(ws|live)/|/(subscribe|socket|logout)$|/(audit/keys|keys/encryption)/rotate$'
)
# What has the right form may still be refused for what it says: a query of no words, a password that doesn't
# fit. The examples are more than form.
cat >"$folder/schemathesis.toml" <<'TOML'
[checks.positive_data_acceptance]
enabled = false
[phases.examples.checks.positive_data_acceptance]
enabled = true
TOML

# Starts a node on an empty folder and gives it something of everything that calls are about; document is then
# what it says of itself, with examples. url and token are set.
begin() {
  local data=$folder/$1
  url=
  "$program" serve --data "$data" --listen 127.0.0.1:0 --lake-wait 1 --pack packs/transactions \
    >"$logs/$1.node.log" 2>&1 &
  node=$!
  for _ in $(seq 300); do
    if [ -f "$data/server.json" ] && "$program" endpoint list --data "$data" 2>/dev/null | grep -q last-5-min; then
      url=$(sed 's/.*"url":"\([^"]*\)".*/\1/' "$data/server.json")
      break
    fi
    kill -0 "$node" 2>/dev/null || return 1
    sleep 0.2
  done
  [ -n "$url" ] || return 1
  token=$(cat "$data/operator.token")
  fill "$data" >"$logs/$1.seed.log" 2>&1 || { tail -20 "$logs/$1.seed.log"; return 1; }
  document=$data.openapi.json
  python3 tests/conformance/examples.py "$url" "$data/operator.token" "$document"
}

# Events, dead letters, rows, people, keys, a model with rows that came later; jobs that have ended, one that
# goes on and one that waits for a second person.
fill() {
  local name jobs
  "$program" apply -f packs/events --data "$1" && "$program" apply -f packs/audit-events --data "$1" || return 1
  send "$1" 500 --start 2026-01-01 --seed 11 || return 1
  for name in Lamp Pen Bag; do post /api/products/ "{\"name\":\"$name\",\"price\":\"3\"}" || return 1; done
  for name in one two three; do
    post /api/v1/users "{\"username\":\"service-$name\",\"service\":true,\"roles\":[\"DataEngineer\"]}" &&
      post /api/v1/keys/ "{\"client_id\":\"service-one\",\"name\":\"$name\"}" || return 1
  done
  post /api/v1/users \
    '{"username":"person","email":"person@example.com","password":"Correct-horse-7-battery","roles":["Client"]}' &&
    post /api/v1/events/ingest \
      '{"event_id":"event-1","event_type":"click","timestamp":"2026-01-01T00:00:00Z","payload":{}}' &&
    post /events/ '{"id":"audit-1","actor":"ada","action":"login","resource":"door","timestamp":"2026-01-01T00:00:00Z"}' &&
    declare_sql "$1" <<'SQL' || return 1
CREATE STREAM originals (id TEXT NOT NULL) WITH (event_id = 'id');
CREATE STREAM originals_derived AS SELECT id FROM originals;
CREATE STREAM copies (id TEXT NOT NULL) WITH (event_id = 'id');
CREATE MODEL steady PREDICTS failed AS
SELECT amount_usd, quantity, status = 'failed' AS failed, _event_time FROM transactions_processed;
CREATE POLICY two_for_copies AS $$
  @id("copies are replayed by two")
  forbid (principal, action == Action::"replay_alone", resource == Resource::"stream:copies");
$$;
SQL
  post /api/v1/streams/originals/events "[$(seq -s , -f '{"id":"%g"}' 100)]" &&
    post /api/v1/jobs '{"kind":"train","input":{"model":"steady"}}' &&
    post /api/v1/jobs '{"kind":"replay","input":{"stream":"originals","into":"copies","rate":1}}' &&
    (
      token=$(token_of service-two) || exit 1
      post /api/v1/jobs '{"kind":"replay","input":{"stream":"copies"}}'
    ) || return 1
  for _ in $(seq 100); do
    jobs=$(get /api/v1/jobs) || return 1
    case $jobs in *'"finished"'*'"running"'* | *'"running"'*'"finished"'*) break ;; esac
    sleep 0.2
  done
  send "$1" 300 --start 2026-01-02 --seed 12
}

declare_sql() { cat >"$1.sql" && "$program" apply -f "$1.sql" --data "$1"; }

token_of() { post "/api/v1/users/$1/tokens" '{}' | sed 's/.*"token":"\([^"]*\)".*/\1/'; }

# Some of the events are wrong on purpose.
send() {
  local data=$1
  "$program" generate transactions --count "${@:2}" >"$data.ndjson" &&
    { "$program" send transaction_log --data "$data" <"$data.ndjson" || true; }
}

get() { curl -sS --fail-with-body -m 30 -H "Authorization: Bearer $token" "$url$1"; }

post() {
  curl -sS --fail-with-body -m 60 -H "Authorization: Bearer $token" -H 'Content-Type: application/json' -d "$2" \
    "$url$1" && echo
}

# Operations of a report that have answered 2xx, and how many there are.
accepted() {
  python3 - "$1" <<'PYTHON'
import json
import sys

seen, good = set(), set()
for line in open(sys.argv[1]):
    of = json.loads(line).get("ScenarioFinished", {}).get("recorder", {})
    for each in of.get("interactions", {}).values():
        seen.add(of["label"])
        if (each.get("response") or {}).get("status_code", 0) // 100 == 2:
            good.add(of["label"])
print(len(good))
print("No call was answered with 2xx:", *sorted(seen - good), sep="\n  ", file=sys.stderr)
PYTHON
}

failed=0
# Checks the node as a caller: a role, or the operator. Arguments: caller, examples.
check() {
  local log=$logs/$1.log report=$folder/$1.report wrong=() operations cases good
  rm -f "$log"
  if ! begin "$1"; then
    echo "$1: the node can't be started"; tail -20 "$logs/$1.node.log"
    failed=1
    stop
    return
  fi
  if [ "$1" != operator ]; then
    post /api/v1/users "{\"username\":\"conformance\",\"service\":true,\"roles\":[\"$1\"]}" >/dev/null
    token=$(token_of conformance)
  fi
  # In the temporary folder: examples of earlier runs and settings of somebody else must not count.
  (cd "$folder" && exec timeout 3600 "$checker" run "$document" --url "$url" -H "Authorization: Bearer $token" \
    --max-examples "$2" --seed "$seed" --phases examples,coverage,fuzzing --workers 1 --request-timeout 60 \
    --continue-on-failure --generation-database none --warnings off --no-color \
    --report ndjson --report-ndjson-path "$report" "${left_out[@]}") >"$log" 2>&1 ||
    wrong+=("schemathesis ends with $?")
  operations=$(sed -n 's/^ *Tested: \([0-9]*\).*/\1/p' "$log" | tail -1)
  cases=$(sed -n 's/^ *\([0-9]*\) generated.*/\1/p' "$log" | tail -1)
  good=$(accepted "$report" 2>"$logs/$1.not-2xx.log") || good=0
  [ "${operations:-0}" -gt 0 ] && [ "${cases:-0}" -gt 0 ] || wrong+=("nothing was tested")
  kill -0 "$node" 2>/dev/null && answers /healthz || wrong+=("the node is gone")
  answers /api/openapi.json || wrong+=("the caller isn't known any more")
  ! grep -q panicked "$logs/$1.node.log" || wrong+=("the node panicked")
  stop
  rm -rf "${folder:?}/$1" "$folder/$1".*
  printf '%-16s %3d operations  %3d answered 2xx  %6d cases' "$1" "${operations:-0}" "$good" "${cases:-0}"
  if [ ${#wrong[@]} -eq 0 ]; then
    echo '  passed'
    return
  fi
  failed=1
  echo '  FAILED'
  echo "--- $1 (of $log)"
  tail -150 "$log"
  grep -A20 panicked "$logs/$1.node.log" || true
  printf "$1: %s\n" "${wrong[@]}"
}

# Is the node there, and does it know the caller?
answers() { get "$1" >/dev/null 2>&1; }

echo "seed $seed, $examples examples, $program"
check operator "$examples"
for role in admin superuser DataEngineer DataAnalyst SecurityAuditor Client Developer; do
  check "$role" $(((examples + 1) / 2))
done
exit "$failed"
