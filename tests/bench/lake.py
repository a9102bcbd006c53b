#!/usr/bin/env python3
"""Pages and questions over a lake, beside DuckDB on the same Parquet files.

  xtask soak --lake --keep --events 10000000 --users 100000 --data DIR
  highwater serve --data DIR --listen 127.0.0.1:7700
  python3 tests/bench/lake.py --url http://127.0.0.1:7700 --data DIR

Each question is asked --rounds times after one that warms both up; milliseconds, and the ratio of the
medians. DuckDB gets the list of live files from the table's log and nothing of ours but the files.
Needs the packages duckdb and deltalake.
"""

import argparse
import http.client
import json
import statistics
import time
import urllib.parse
from decimal import Decimal
from pathlib import Path

import duckdb
from deltalake import DeltaTable


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rounds", type=int, default=50)
    return parser.parse_args()


class Node:
    def __init__(self, url, data):
        self.connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=120)
        token = (Path(data) / "operator.token").read_text().strip()
        self.headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def call(self, method, path, body=None):
        self.connection.request(method, path, body and json.dumps(body), self.headers)
        response = self.connection.getresponse()
        text = response.read()
        assert response.status == 200, text
        return json.loads(text, parse_float=Decimal)

    def ask(self, sql):
        answer = self.call("POST", "/api/v1/sql", {"query": sql})
        return [tuple(row.values()) for row in answer["rows"]]

    def page(self, filters):
        return self.call("GET", "/api/datalake/streams/bench/?" + urllib.parse.urlencode(filters))


def timed(ask, rounds):
    ask()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        ask()
        times.append((time.perf_counter() - started) * 1000)
    times.sort()
    return statistics.median(times), times[min(len(times) - 1, int(len(times) * 0.99))]


def main():
    options = arguments()
    node = Node(options.url, options.data)
    table = DeltaTable(str(Path(options.data) / "lake" / "streams" / "BENCH"))
    files = [uri.removeprefix("file://") for uri in table.file_uris()]
    duck = duckdb.connect(config={"threads": 2})
    duck.execute(f"CREATE VIEW bench AS SELECT * FROM read_parquet({files!r}, hive_partitioning = false)")
    total = duck.execute("SELECT count(*) FROM bench").fetchone()[0]
    print(f"{total} events in {len(files)} files, {options.rounds} rounds")
    known = duck.execute("SELECT id, user_id FROM bench LIMIT 1 OFFSET 4321").fetchone()
    questions = [
        ("exact count with filters", "SELECT count(*) AS n FROM bench WHERE quantity = 3 AND amount > 100 AND user_id < 'USER-0050000'"),
        ("group by user", "SELECT user_id, count(*) AS n, sum(amount) AS total FROM bench GROUP BY user_id ORDER BY n DESC, user_id LIMIT 10"),
        ("point look-up", f"SELECT id, user_id FROM bench WHERE id = '{known[0]}'"),
        ("newest ten of a user", f"SELECT id FROM bench WHERE user_id = '{known[1]}' ORDER BY _event_time DESC, id LIMIT 10"),
    ]
    print(f"{'question':<28} {'ours p50':>9} {'p99':>8} {'DuckDB p50':>11} {'p99':>8} {'ratio':>6}")
    for name, sql in questions:
        mine, theirs = node.ask(sql), duck.execute(sql).fetchall()
        assert mine == theirs, (name, mine[:3], theirs[:3])
        ours = timed(lambda: node.ask(sql), options.rounds)
        duckdbs = timed(lambda: duck.execute(sql).fetchall(), options.rounds)
        print(f"{name:<28} {ours[0]:>9.1f} {ours[1]:>8.1f} {duckdbs[0]:>11.1f} {duckdbs[1]:>8.1f} {ours[0] / duckdbs[0]:>6.2f}")
    for name, filters, where in [
        ("first page", {}, "true"),
        ("first page of a user", {"user_id": known[1]}, f"user_id = '{known[1]}'"),
        ("first page, two filters", {"currency": "GBP", "quantity": 3}, "currency = 'GBP' AND quantity = 3"),
    ]:
        # A page is its ten rows and the exact number of pages.
        sql = (f"SELECT count(*) FROM bench WHERE {where}", f"SELECT * EXCLUDE (\"at\", _event_time, _recorded_at) FROM bench WHERE {where} ORDER BY _event_time DESC LIMIT 10")
        assert node.page(filters)["count"] == duck.execute(sql[0]).fetchone()[0]
        ours = timed(lambda: node.page(filters), options.rounds)
        duckdbs = timed(lambda: [duck.execute(part).fetchall() for part in sql], options.rounds)
        print(f"{name:<28} {ours[0]:>9.1f} {ours[1]:>8.1f} {duckdbs[0]:>11.1f} {duckdbs[1]:>8.1f} {ours[0] / duckdbs[0]:>6.2f}")


main()
