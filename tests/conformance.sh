#!/usr/bin/env bash
# Does a node do what its OpenAPI document says? Schemathesis makes calls from the document, good ones and
# bad ones, as the operator and as each built-in role; every answer must be one that the document names, and
# none may be a 5xx. Each caller has a node of its own: whoever may drop things changes what others find.
# Usage: conformance.sh [PROGRAM [EXAMPLES]]   EXAMPLES: calls made up for each operation, half for roles
# HIGHWATER_SEED makes other calls. Logs stay in the target folder, under conformance.
set -euo pipefail
if [ -n "${1:-}" ]; then program=$(realpath "$1"); else program=; fi
cd "$(dirname "$0")/.."
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

is_there() { "$1" --version 2>/dev/null | grep -q ' 4\.'; }
checker=schemathesis
if ! is_there "$checker"; then
  checker=$folder/venv/bin/schemathesis
  { python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install -q 'schemathesis>=4,<5'; } >"$folder/pip.log" 2>&1 || true
  if ! is_there "$checker"; then
    echo "NOT RUN conformance: no schemathesis, and it can't be installed (pip install 'schemathesis>=4,<5')"
    exit 0
  fi
fi

logs=$(realpath -m "$target/conformance")
mkdir -p "$logs"
# Calls that take everything's time, never end, or end credentials. And what has the right form may still be
# refused for what it says: a query of no words, a password that doesn't fit.
left_out=(
  --exclude-path /api/v1/maintenance --exclude-path /api/v1/backup
  --exclude-path-regex '/(ws|live)/|/(subscribe|socket|logout|rotate)$'
  --exclude-checks positive_data_acceptance
)

# Starts a node on an empty folder and gives it events, dead letters and a row: url and token are set.
begin() {
  local data=$folder/$1
  url=
  "$program" serve --data "$data" --listen 127.0.0.1:0 --pack packs/transactions >"$logs/$1.node.log" 2>&1 &
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
  {
    "$program" apply -f packs/events --data "$data" &&
      "$program" apply -f packs/audit-events --data "$data" &&
      "$program" generate transactions --count 500 --seed 11 >"$data.ndjson" &&
      # Some of them are wrong on purpose.
      { "$program" send transaction_log --data "$data" <"$data.ndjson" || true; } &&
      post /api/products/ '{"name":"Lamp","price":"3"}'
  } >"$logs/$1.seed.log" 2>&1 || { tail -20 "$logs/$1.seed.log"; return 1; }
}

post() {
  curl -sS --fail-with-body -H "Authorization: Bearer $token" -H 'Content-Type: application/json' -d "$2" "$url$1"
}

# Is the node there, and does it know the caller?
answers() { [ "$(curl -s -o /dev/null -m 30 -w '%{http_code}' -H "Authorization: Bearer $token" "$url$1")" = 200 ]; }

failed=0
# Checks the node as a caller: a role, or the operator. Arguments: caller, examples.
check() {
  local log=$logs/$1.log wrong=() operations cases
  rm -f "$log"
  if ! begin "$1"; then
    echo "$1: the node can't be started"; tail -20 "$logs/$1.node.log"
    failed=1
    stop
    return
  fi
  if [ "$1" != operator ]; then
    post /api/v1/users "{\"username\":\"conformance\",\"service\":true,\"roles\":[\"$1\"]}" >/dev/null
    token=$(post /api/v1/users/conformance/tokens '{}' | sed 's/.*"token":"\([^"]*\)".*/\1/')
  fi
  # In the temporary folder: examples of earlier runs and settings of somebody else must not count.
  (cd "$folder" && exec timeout 3600 "$checker" run "$url/api/openapi.json" -H "Authorization: Bearer $token" \
    --max-examples "$2" --seed "$seed" --phases examples,coverage,fuzzing --workers 1 --request-timeout 60 \
    --generation-database none --warnings off --no-color "${left_out[@]}") >"$log" 2>&1 ||
    wrong+=("schemathesis ends with $?")
  operations=$(sed -n 's/^ *Tested: \([0-9]*\).*/\1/p' "$log" | tail -1)
  cases=$(sed -n 's/^ *\([0-9]*\) generated.*/\1/p' "$log" | tail -1)
  [ "${operations:-0}" -gt 0 ] && [ "${cases:-0}" -gt 0 ] || wrong+=("nothing was tested")
  kill -0 "$node" 2>/dev/null && answers /healthz || wrong+=("the node is gone")
  answers /api/openapi.json || wrong+=("the caller isn't known any more")
  ! grep -q panicked "$logs/$1.node.log" || wrong+=("the node panicked")
  stop
  rm -rf "${folder:?}/$1" "$folder/$1.ndjson"
  if [ ${#wrong[@]} -eq 0 ]; then
    printf '%-16s %3d operations %6d cases  passed\n' "$1" "$operations" "$cases"
    return
  fi
  failed=1
  echo "--- $1 (of $log)"
  tail -150 "$log"
  grep -A20 panicked "$logs/$1.node.log" || true
  printf "$1: %s\n" "${wrong[@]}"
}

echo "seed $seed, $examples examples, $program"
check operator "$examples"
for role in admin superuser DataEngineer DataAnalyst SecurityAuditor Client Developer; do
  check "$role" $(((examples + 1) / 2))
done
exit "$failed"
