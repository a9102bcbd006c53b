#!/usr/bin/env python3
"""Counts a file of raw transactions without the engine and compares every answer with it.

Nothing here is shared with the engine: the rules of the transaction application are written down
again, in another language, from the contract. With the `deltalake` package the lake is read by an
engine that is not ours and compared too.

  highwater generate transactions --count 20000 > events.ndjson
  curl --data-binary @events.ndjson -H 'Content-Type: application/x-ndjson' ...
  python3 check.py --url http://127.0.0.1:7700 --data ./highwater-data --events events.ndjson

Exit code 0: all equal. 1: a difference. 3: all equal, but the lake was not read by another engine.
"""

import argparse
import datetime as dt
import json
import sys
import time
import urllib.request
from collections import Counter, defaultdict
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

RATES = {"USD": "1", "EUR": "1.10", "GBP": "1.25", "CAD": "0.74", "JPY": "0.0067", "AUD": "0.65"}
BLACKLIST = {("Glasgow", "UK"), ("Berlin", "Germany"), ("Shenzhen", "China")}
STATUSES = ["completed", "pending", "failed", "processing", "cancelled"]
MINUTE = 60_000_000
failures = []
checks = 0


def same(what, found, expected):
    global checks
    checks += 1
    if found != expected:
        failures.append(f"{what}: found {str(found)[:300]}, expected {str(expected)[:300]}")


def micros(text):
    moment = dt.datetime.fromisoformat(text.replace("Z", "+00:00"))
    delta = moment - dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)
    return (delta.days * 86400 + delta.seconds) * 1_000_000 + delta.microseconds


def text_or_none(value):
    return value is None or isinstance(value, str)


def valid(line):
    """The event, or None when the door must refuse it."""
    try:
        event = json.loads(line, parse_float=Decimal)
        assert isinstance(event, dict)
        assert isinstance(event["transaction_id"], str) and isinstance(event["status"], str)
        event["at"] = micros(event["timestamp"])
        amount = event["amount"]
        assert isinstance(amount, (int, Decimal)) and not isinstance(amount, bool)
        for member in ("user_id", "user_name", "product_id", "currency", "transaction_type"):
            assert text_or_none(event.get(member))
        for member in ("location", "shipping_address", "device_info"):
            assert event.get(member) is None or isinstance(event[member], dict)
        return event
    except (ValueError, KeyError, AssertionError, TypeError, AttributeError):
        return None


def money(value):
    return str(value.quantize(Decimal("0.01"), rounding=ROUND_HALF_UP))


def count(lines):
    known, log, rejected, duplicates = set(), [], 0, 0
    for line in lines:
        event = valid(line)
        if event is None:
            rejected += 1
            continue
        identity = (event["transaction_id"], event["status"], event["at"])
        if identity in known:
            duplicates += 1
            continue
        known.add(identity)
        log.append(event)
    processed, dead = [], 0
    for event in log:
        place = event.get("location") or {}
        event["black"] = (place.get("city"), place.get("country")) in BLACKLIST
        if event["black"]:
            continue
        if event.get("currency") not in RATES:
            dead += 1
            continue
        event["usd"] = Decimal(event["amount"]) * Decimal(RATES[event["currency"]])
        processed.append(event)
    return log, processed, rejected, duplicates, dead


def windows(processed):
    """Sums of sliding windows, with lateness decided event by event in the order of arrival."""
    panes, newest, late = defaultdict(Decimal), None, 0
    for event in processed:
        pane = event["at"] // MINUTE * MINUTE
        if newest is not None and pane + MINUTE + 60 * MINUTE <= newest:
            late += 1
            continue
        newest = event["at"] if newest is None else max(newest, event["at"])
        panes[pane, event["transaction_type"]] += event["usd"]
    sums = defaultdict(Decimal)
    for (pane, kind), total in panes.items():
        for back in range(5):
            sums[pane - back * MINUTE, kind] += total
    return sums, max((pane for pane, _ in panes), default=None), late


class Node:
    def __init__(self, url, token):
        self.url, self.token = url, token

    def call(self, path, body=None, accept="application/json"):
        request = urllib.request.Request(
            self.url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Token {self.token}", "Content-Type": "application/json", "Accept": accept},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read(), parse_float=Decimal)

    def sql(self, query):
        answer = self.call("/api/v1/sql", {"query": query})
        assert not answer["truncated"], query
        return answer["rows"]

    def settle(self):
        deadline = time.time() + 120
        # What follows the audit trail is behind by this very question.
        while any(view["lag"] for view in self.call("/api/v1/views")["views"] if view["source"] != "_audit"):
            assert time.time() < deadline, "the views do not catch up"
            time.sleep(0.2)


def compare(node, log, processed, rejected, dead):
    streams = {
        "TRANSACTION_LOG": len(log),
        "TRANSACTIONS_FLAT": len(log),
        "TRANSACTIONS_PROCESSED": len(processed),
        "TRANSACTIONS_BLACKLISTED": sum(event["black"] for event in log),
    }
    for status in STATUSES:
        streams[f"TRANSACTIONS_{status.upper()}"] = sum(event["status"] == status for event in processed)
    for name, expected in streams.items():
        page = node.call(f"/api/datalake/streams/{name}/")
        same(f"pages of {name}", page["count"], expected)
        same(f"rows of {name}", node.sql(f"SELECT count(*) AS n FROM {name}")[0]["n"], expected)
    letters = {row["source"]: row["n"] for row in node.sql("SELECT source, count(*) AS n FROM _dead_letters GROUP BY 1")}
    same("dead letters of the door", letters.get("door", 0), rejected)
    same("dead letters of the clean stream", letters.get("stream:transactions_processed", 0), dead)

    resources = node.call("/api/datalake/resources/")["available_resources"]
    same("streams of the lake", set(streams) <= set(resources["streams"]), True)
    same("tables of the lake", "TOTAL_PAR_TYPE_5MIN_SLIDING" in resources["tables"], True)

    totals = defaultdict(Decimal)
    for event in processed:
        totals[event["user_id"], event["transaction_type"]] += event["usd"]
    found = node.call("/api/metrics/total-by-user/")
    expected = Counter((kind, money(total)) for (_, kind), total in totals.items())
    same("total-by-user", Counter((row["transaction_type"], row["total_depense_usd"]) for row in found), expected)
    order = [(row["user_id"], -Decimal(row["total_depense_usd"])) for row in found]
    same("order of total-by-user", order, sorted(order))
    per_user = Counter(user for user, _ in totals)
    same("users kept apart", Counter(Counter(row["user_id"] for row in found).values()), Counter(per_user.values()))

    purchases = Counter(event["product_id"] for event in processed if event["transaction_type"] == "purchase")
    for x in (10, 3, 500):
        found = node.call(f"/api/metrics/top-products/?x={x}")
        expected = sorted(purchases.items(), key=lambda item: (-item[1], item[0]))[:x]
        same(f"top-products x={x}", [(row["product_id"], row["purchase_count"]) for row in found], expected)

    sums, newest, late = windows(processed)
    found = node.call("/api/metrics/last-5-min/")
    expected = sorted((kind, money(total)) for (start, kind), total in sums.items() if start == newest)
    same("last-5-min", sorted((row["transaction_type"], row["total_amount_5min"]) for row in found), expected)
    same("start of last-5-min", {micros(row["window_start_time"]) for row in found}, {newest} if expected else set())
    rows = node.sql("SELECT transaction_type, total_amount_5min AS total, window_start FROM total_par_type_5min_sliding")
    found = {(micros(row["window_start"]), row["transaction_type"]): Decimal(row["total"]) for row in rows}
    same("all sliding windows", found, dict(sums))
    counted = node.sql("SELECT count(*) AS n FROM _late_events WHERE source = 'table:total_par_type_5min_sliding'")
    same("late events", counted[0]["n"], late)

    history = defaultdict(list)
    for event in processed:
        history[event["transaction_id"]].append(event["status"])
    rows = node.sql("SELECT transaction_id, status_history, status FROM transaction_lifecycle")
    same("lifecycles", {row["transaction_id"]: row["status_history"] for row in rows}, dict(history))
    same("latest status", {row["transaction_id"]: row["status"] for row in rows}, {key: value[-1] for key, value in history.items()})

    filters = [
        ("payment_method=paypal", lambda e: e["payment_method"] == "paypal"),
        ("payement_method=paypal&status=completed", lambda e: e["payment_method"] == "paypal" and e["status"] == "completed"),
        ("country=France&product_category=books", lambda e: e["location"]["country"] == "France" and e["product_category"] == "books"),
        ("amount_gt=500&amount_lt=600.5", lambda e: 500 < e["usd"] < Decimal("600.5")),
        ("rating_gt=3", lambda e: e["customer_rating"] is not None and e["customer_rating"] > 3),
        ("rating_eq=5&quantity_lt=3", lambda e: e["customer_rating"] == 5 and e["quantity"] < 3),
    ]
    for query, keep in filters:
        page = node.call(f"/api/datalake/streams/transactions_processed/?{query}&fields=user_id,amount,status")
        same(f"filter {query}", page["count"], sum(map(keep, processed)))
        if page["results"]:
            same(f"keys of {query}", list(page["results"][0]), ["user_id", "amount", "status"])
    days = Counter(dt.datetime.fromtimestamp(e["at"] // 1_000_000, dt.timezone.utc).strftime("%Y-%m-%d") for e in processed)
    for day, expected in days.items():
        year, month, date = day.split("-")
        page = node.call(f"/api/datalake/streams/TRANSACTIONS_PROCESSED/?year={year}&month={int(month)}&day={date}")
        same(f"version of {day}", page["count"], expected)
    first = node.call("/api/datalake/streams/TRANSACTIONS_PROCESSED/")["results"][0]
    same("columns of the clean stream", len(first), 23)
    newest = max(processed, key=lambda event: event["at"])
    same("newest first", micros(first["TIMESTAMP"]), newest["at"])
    same("masked user", first["USER_ID"], "XXXX-nnnn")


def compare_lake(node, data):
    try:
        from deltalake import DeltaTable
    except ImportError:
        print("NOT RUN lake by another engine: no deltalake (pip install deltalake)")
        return False
    for stream in node.call("/api/datalake/resources/")["available_resources"]["streams"]:
        path = data / "lake" / "streams" / stream
        table = DeltaTable(path).to_pyarrow_table()
        rows = node.sql(f"SELECT count(*) AS n, sum(_offset) AS o FROM {stream}")[0]
        offsets = table.column("_offset").to_pylist()
        same(f"Delta rows of {stream}", table.num_rows, rows["n"])
        same(f"Delta offsets of {stream}", (len(set(offsets)), sum(offsets)), (rows["n"], rows["o"] or 0))
    path = data / "lake" / "streams" / "TRANSACTIONS_PROCESSED"
    table = DeltaTable(path).to_pyarrow_table().select(["_offset", "transaction_id", "amount_usd", "user_id", "status"])
    theirs = {row["_offset"]: (row["transaction_id"], row["amount_usd"], row["user_id"], row["status"]) for row in table.to_pylist()}
    ours = node.sql("SELECT _offset, transaction_id, amount_usd, user_id, status FROM transactions_processed")
    same("clean rows of the lake", theirs, {row["_offset"]: (row["transaction_id"], Decimal(row["amount_usd"]), row["user_id"], row["status"]) for row in ours})
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:7700")
    parser.add_argument("--data", type=Path, required=True, help="data folder of the node")
    parser.add_argument("--events", type=Path, required=True, help="the raw events, in the order in which they were sent")
    arguments = parser.parse_args()
    node = Node(arguments.url, (arguments.data / "operator.token").read_text().strip())
    lines = [line for line in arguments.events.read_text().splitlines() if line.strip()]
    log, processed, rejected, duplicates, dead = count(lines)
    print(f"{len(lines)} raw events: {len(log)} taken, {duplicates} duplicate, {rejected} refused; {len(processed)} clean, {dead} dead later")
    node.settle()
    compare(node, log, processed, rejected, dead)
    whole = compare_lake(node, arguments.data)
    for failure in failures:
        print("DIFFERENT", failure)
    print(f"{checks - len(failures)} passed, {len(failures)} failed")
    return 1 if failures else 0 if whole else 3


if __name__ == "__main__":
    sys.exit(main())
