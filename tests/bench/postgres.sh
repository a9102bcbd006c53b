#!/usr/bin/env bash
# The door's peer: PostgreSQL that takes the same events, deduplicated by id and durable, on the same machine.
#
#   bash tests/bench/postgres.sh [BATCHES]     # 8 connections with so many batches of 1,000 each; 120 when not given
#
# Batches go with COPY into a temporary table and from there with ON CONFLICT DO NOTHING; single events are
# prepared INSERTs of 256 connections. Default settings but for room for the connections; fsync stays on.
set -euo pipefail
batches=${1:-120}
bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | tail -1) || true
if [ -z "$bin" ]; then
  apt-get update -qq && apt-get install -y -qq postgresql >/dev/null
  bin=$(ls -d /usr/lib/postgresql/*/bin | tail -1)
fi
folder=$(mktemp -d)
chmod 755 "$folder" && mkdir "$folder/data" "$folder/socket"
# PostgreSQL refuses to run as root.
run=()
if [ "$(id -u)" = 0 ]; then
  chown postgres "$folder/data" "$folder/socket"
  run=(runuser -u postgres --)
fi
stop() {
  "${run[@]}" "$bin/pg_ctl" -D "$folder/data" -m immediate stop >/dev/null 2>&1 || true
  rm -rf "$folder"
}
trap stop EXIT
"${run[@]}" "$bin/initdb" -D "$folder/data" -A trust >/dev/null
"${run[@]}" "$bin/pg_ctl" -D "$folder/data" -w -l "$folder/data/log" \
  -o "-c listen_addresses= -c unix_socket_directories=$folder/socket -c max_connections=300" start >/dev/null
export PGHOST=$folder/socket PGUSER=postgres PGDATABASE=postgres
[ "$(id -u)" != 0 ] && PGUSER=$(id -un)
psql -q -c "CREATE TABLE events (id text PRIMARY KEY, at timestamptz NOT NULL, user_id text, product_id text,
  amount numeric(15,2), currency text, kind text, status text, place jsonb, quantity int, note text)"

for connection in $(seq 8); do
  awk -v connection="$connection" -v batches="$batches" 'BEGIN {
    print "CREATE TEMP TABLE incoming (LIKE events);"
    for (batch = 0; batch < batches; batch++) {
      print "BEGIN;\nCOPY incoming FROM STDIN;"
      for (row = 0; row < 1000; row++)
        printf "EVT-%d-%012d\t2026-01-15T10:30:00.123456Z\tUSER-%07d\tPROD-1\t270.43\tGBP\tpurchase\tcompleted\t{\"city\":\"San Francisco\",\"country\":\"USA\"}\t3\ta member that the stream does not declare\n", connection, batch * 1000 + row, int(rand() * 5000000)
      print "\\.\nINSERT INTO events SELECT * FROM incoming ON CONFLICT (id) DO NOTHING;\nTRUNCATE incoming;\nCOMMIT;"
    }
  }' >"$folder/batches-$connection.sql"
done
began=$(date +%s.%N)
for connection in $(seq 8); do psql -q -f "$folder/batches-$connection.sql" & done
wait
ended=$(date +%s.%N)
rows=$(psql -tA -c "SELECT count(*) FROM events")
awk -v rows="$rows" -v began="$began" -v ended="$ended" 'BEGIN {
  printf "PostgreSQL, batches of 1,000, 8 connections: %d events, %d events/s\n", rows, rows / (ended - began) }'

cat >"$folder/single.sql" <<'SQL'
\set number random(1, 1000000000000)
INSERT INTO events VALUES ('one-' || :number, now(), 'USER-0001234', 'PROD-1', 270.43, 'GBP', 'purchase', 'completed', '{"city":"San Francisco","country":"USA"}', 3, 'a member that the stream does not declare') ON CONFLICT (id) DO NOTHING;
SQL
"$bin/pgbench" -n -M prepared -c 256 -j 2 -T 10 -f "$folder/single.sql" 2>/dev/null |
  awk '/tps/ { printf "PostgreSQL, single events, 256 connections: %d events/s\n", $3 }'
