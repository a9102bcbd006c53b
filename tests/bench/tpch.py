#!/usr/bin/env python3
"""Analytical questions over a lake, beside DuckDB on the same Parquet files: TPC-H, loaded as CSV through the door.

  pip install duckdb deltalake tpchgen-cli
  python3 tests/bench/tpch.py --program target/release/highwater --folder DIR     # --scale 1 --rounds 3

Every answer is compared with DuckDB's. Milliseconds, the better of the rounds for both: over HTTP with JSON here, in the process there; two threads each.
"""

import argparse
import http.client
import json
import math
import subprocess
import time
from datetime import date
from decimal import Decimal
from pathlib import Path

import duckdb
from deltalake import DeltaTable

PORT = 7719
TABLES = {
    "region": "r_regionkey INT, r_name TEXT, r_comment TEXT",
    "nation": "n_nationkey INT, n_name TEXT, n_regionkey INT, n_comment TEXT",
    "supplier": "s_suppkey BIGINT, s_name TEXT, s_address TEXT, s_nationkey INT, s_phone TEXT, s_acctbal DECIMAL(15,2), s_comment TEXT",
    "customer": "c_custkey BIGINT, c_name TEXT, c_address TEXT, c_nationkey INT, c_phone TEXT, c_acctbal DECIMAL(15,2), c_mktsegment TEXT, c_comment TEXT",
    "part": "p_partkey BIGINT, p_name TEXT, p_mfgr TEXT, p_brand TEXT, p_type TEXT, p_size INT, p_container TEXT, p_retailprice DECIMAL(15,2), p_comment TEXT",
    "partsupp": "ps_partkey BIGINT, ps_suppkey BIGINT, ps_availqty INT, ps_supplycost DECIMAL(15,2), ps_comment TEXT",
    "orders": "o_orderkey BIGINT, o_custkey BIGINT, o_orderstatus TEXT, o_totalprice DECIMAL(15,2), o_orderdate DATE, o_orderpriority TEXT, o_clerk TEXT, o_shippriority INT, o_comment TEXT",
    "lineitem": "l_orderkey BIGINT, l_partkey BIGINT, l_suppkey BIGINT, l_linenumber INT, l_quantity DECIMAL(15,2), l_extendedprice DECIMAL(15,2), l_discount DECIMAL(15,2), l_tax DECIMAL(15,2), l_returnflag TEXT, l_linestatus TEXT, l_shipdate DATE, l_commitdate DATE, l_receiptdate DATE, l_shipinstruct TEXT, l_shipmode TEXT, l_comment TEXT",
}


class Node:
    def __init__(self, program, data):
        command = [program, "serve", "--data", str(data), "--listen", f"127.0.0.1:{PORT}"]
        with open(data.with_suffix(".log"), "w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        token = data / "operator.token"
        for _ in range(600):
            try:
                http.client.HTTPConnection("127.0.0.1", PORT).request("GET", "/health")
                self.headers = {"Authorization": f"Bearer {token.read_text().strip()}"}
                return
            except OSError:
                time.sleep(0.1)
        raise SystemExit("the node does not start")

    def call(self, method, path, body=None, kind="application/json"):
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=600)
        connection.request(method, path, body, {**self.headers, "Content-Type": kind})
        response = connection.getresponse()
        text = response.read()
        if response.status >= 300:
            raise RuntimeError(f"{response.status}: {text[:400]}")
        return json.loads(text, parse_float=Decimal)

    def declare(self, sql):
        self.call("POST", "/api/v1/statements", json.dumps({"sql": sql}))

    def ask(self, sql):
        return [list(row.values()) for row in self.call("POST", "/api/v1/sql", json.dumps({"query": sql}))["rows"]]

    def settle(self):
        while any(view["lag"] for view in self.call("GET", "/api/v1/views")["views"] if view["source"] != "_audit"):
            time.sleep(0.2)


def queries():
    text = (Path(__file__).parent / "tpch.sql").read_text()
    for part in text.split("-- q")[1:]:
        number, sql = part.split("\n", 1)
        yield int(number), sql.strip().rstrip(";")


def same(ours, theirs):
    """Equal values; what both compute as a quotient or an average may differ behind the sixth digit."""
    if isinstance(theirs, date):
        return str(ours) == str(theirs)
    if isinstance(theirs, (int, float, Decimal)) and not isinstance(ours, str):
        return math.isclose(float(ours), float(theirs), rel_tol=1e-6, abs_tol=1e-6)
    return ours == theirs


def equal(ours, theirs):
    return len(ours) == len(theirs) and all(
        len(a) == len(b) and all(map(same, a, b)) for a, b in zip(ours, theirs)
    )


def best(ask, rounds):
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        answer = ask()
        times.append((time.perf_counter() - started) * 1000)
    return min(times), answer


def load(node, folder):
    for name, columns in TABLES.items():
        node.declare(f"CREATE STREAM {name} ({columns})")
        file = folder / f"{name}.csv"
        started = time.perf_counter()
        with open(file, "rb") as rows:
            answer = node.call("POST", f"/api/v1/streams/{name}/events", rows, "text/csv")
        took = time.perf_counter() - started
        assert answer["rejected"] == 0, answer
        print(f"{name}: {answer['accepted']} rows of CSV, durable after {took:.1f} s, {answer['accepted'] / took:,.0f} rows/s", flush=True)
    started = time.perf_counter()
    node.settle()
    print(f"in the lake {time.perf_counter() - started:.1f} s later", flush=True)
    node.call("POST", "/api/v1/maintenance")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", required=True)
    parser.add_argument("--folder", required=True, type=Path, help="for the files; the data of the node stays there, for another run")
    parser.add_argument("--scale", default="1")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    data = options.folder / "node"
    is_new = not data.exists()
    if is_new:
        subprocess.run(["tpchgen-cli", "csv", "-s", options.scale, "-o", str(options.folder)], check=True)
    node = Node(options.program, data)
    try:
        if is_new:
            load(node, options.folder)
        duck = duckdb.connect(config={"threads": 2})
        for name in TABLES:
            table = DeltaTable(str(data / "lake" / "streams" / name.upper()))
            files = [uri.removeprefix("file://") for uri in table.file_uris()]
            duck.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet({files!r}, hive_partitioning = false)")
        ratios, wrong = [], 0
        print("| query | ours ms | DuckDB ms | ratio |\n|---|---|---|---|")
        for number, sql in queries():
            theirs, expected = best(lambda: duck.execute(sql).fetchall(), options.rounds)
            try:
                ours, found = best(lambda: node.ask(sql), options.rounds)
            except RuntimeError as error:
                wrong += 1
                print(f"| q{number} | {error} | {theirs:.0f} | |", flush=True)
                continue
            if not equal(found, expected):
                wrong += 1
                print(f"| q{number} | **differs**: {found[:2]} | {expected[:2]} | |", flush=True)
                continue
            ratios.append(ours / theirs)
            print(f"| q{number} | {ours:.0f} | {theirs:.0f} | {ours / theirs:.2f} |", flush=True)
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        print(f"geometric mean of {len(ratios)} ratios: {mean:.2f}; {wrong} wrong or refused")
    finally:
        node.process.terminate()
        node.process.wait()
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
