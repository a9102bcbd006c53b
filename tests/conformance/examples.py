#!/usr/bin/env python3
"""Adds to a node's OpenAPI document what makes its calls answer: names and bodies of what exists.

The document says what a call may look like; it can't say which streams, users or keys a node has. A checker
that makes calls from the document alone invents them, and is told 400 or 404. Here parameters that name
something get examples, and so do bodies; a checker takes those, and what it invents, too. Some of what they
name is made by run.sh before.

  examples.py http://127.0.0.1:7700 highwater-data/operator.token openapi.json

TOKEN is a file; as - it is taken from the variable HIGHWATER_TOKEN. It should be one that sees everything.
"""

import argparse
import json
import os
import sys
import urllib.request
from pathlib import Path

PASSWORD = "Correct-horse-7-battery"
SERVICE = "service-one"
PERSON = "person@example.com"
EVENT = {"event_id": "event-3", "event_type": "click", "timestamp": "2026-01-01T00:00:00Z", "payload": {"a": 1}}
AUDIT_EVENT = {
    "id": "audit-3",
    "actor": "ada",
    "action": "login",
    "resource": "door",
    "timestamp": "2026-01-01T00:00:00Z",
    "details": {"a": 1},
}
CLOUD_EVENT = {
    "specversion": "1.0",
    "id": "audit-5",
    "source": "/door",
    "type": "login",
    "time": "2026-01-01T00:00:00Z",
    "data": {"actor": "ada", "action": "login", "resource": "door"},
}


class Node:
    def __init__(self, url, token):
        self.url, self.token = url.rstrip("/"), token

    def call(self, path, body=None):
        request = urllib.request.Request(
            self.url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def each(self, path, members, member):
        """A member of all that a list has, at least one."""
        values = [one[member] for one in self.call(path)[members]]
        if not values:
            sys.exit(f"{path}: nothing is there")
        return values


def parameters(node):
    """Values by the operation and the parameter's name; by the name alone when any operation's is meant."""
    users = node.each("/api/v1/users", "users", "username")
    keys = node.each("/api/v1/keys/", "keys", "id")
    views = [name for name in node.each("/api/v1/views", "views", "name") if not name.startswith("audit:")]
    tables = node.each("/api/v1/tables", "tables", "name")
    letters = node.each("/api/v1/dead-letters", "dead_letters", "id")
    ended = node.each("/api/v1/jobs?state=finished", "jobs", "id")
    running = node.each("/api/v1/jobs?state=running", "jobs", "id")
    unapproved = node.each("/api/v1/jobs?state=unapproved", "jobs", "id")
    products = node.each("/api/products/", "results", "id")
    events, audit_events = ["event-1", "event-3"], ["audit-1", "audit-3"]
    # The last is one that the caller brings about: many may see their own alone.
    entries = [0, node.each("/api/v1/audit/logs?limit=1", "logs", "id")[0] + 50]
    quiet = ["table:transaction_lifecycle", "stream:transactions_completed"]
    days = ["2026-01-01", "2020-01-01T00:00:00Z"]
    return {
        "stream": ["transaction_log", "transactions_processed", "events", "audit_events", "_audit", "_dead_letters"],
        "name": ["transaction_log", "EVENTS", "TRANSACTIONS_PROCESSED"],
        "table": tables,
        "view": views[::4],
        # Nobody trains it meanwhile.
        "model": ["steady"],
        "user": users,
        "event_id": events,
        "GET /api/v1/streams/{stream}/search stream": ["transactions_processed"],
        "GET /api/v1/streams/{stream}/search q": ["electronics", "purchase -refund"],
        # What the engine writes goes elsewhere when it is replayed: there is no more to replay the next time.
        "POST /api/v1/streams/{stream}/replay stream": ["originals_derived"],
        "POST /api/v1/streams/{stream}/events stream": ["audit_events"],
        # Callers wait for a table that they write, so it is not paused.
        "POST /api/v1/views/{view}/pause view": quiet,
        "POST /api/v1/views/{view}/resume view": quiet,
        "POST /api/v1/views/{view}/rebuild view": quiet,
        "GET /api/products/{id}/ id": products,
        "PUT /api/products/{id}/ id": products,
        "DELETE /api/products/{id}/ id": products[-1:],
        "GET /api/v1/audit/entries/{id} id": entries,
        "GET /api/v1/audit/entries/{id}/proof id": entries,
        "GET /api/v1/dead-letters/{id} id": letters,
        "POST /api/v1/dead-letters/{id}/drop id": letters[:3],
        "POST /api/v1/dead-letters/{id}/retry id": letters[3:],
        "GET /api/v1/jobs/{id} id": ended + running + unapproved,
        "POST /api/v1/jobs/{id}/approve id": unapproved,
        "POST /api/v1/jobs/{id}/cancel id": running + ended[:1],
        "DELETE /api/v1/keys/{id} id": keys[:1],
        "POST /api/v1/keys/{id}/rotate id": keys[1:],
        "POST /api/v1/keys/{id}/toggle id": keys[1:],
        "GET /audit/tile/{path} path": ["0/000.p/4", "entries/000.p/4"],
        "GET /events/{id}/ id": audit_events,
        "GET /events/{id}/proof/ id": audit_events,
        "GET /api/audit-logs/ page": [1, 2],
        "GET /api/datalake/streams/{name}/ page": [1, 2],
        "GET /api/products/ page": [1],
        "GET /api/v1/analytics/events-by-type/ from": days,
        "GET /api/v1/analytics/events-by-type/ group_by": ["type", "client,hour"],
        "GET /api/v1/analytics/processing-metrics/ days": [1, 30],
        "GET /api/v1/audit/logs from": days,
        "GET /api/v1/dead-letters state": ["open", "retried", "dropped"],
        "GET /api/v1/dead-letters group_by": ["error"],
        "GET /api/v1/jobs state": ["finished", "waiting"],
        "GET /api/v1/lake/{stream}/diff from": [0],
        "GET /events/ time_from": days,
        "GET /events/ q": ["login"],
        "GET /events/export/ time_from": days,
    }


def bodies(node):
    """Bodies by the operation; with a media type for that one alone."""
    sent = [
        {name: value for name, value in row.items() if not name.startswith("_")}
        for row in node.call("/api/v1/streams/transaction_log/events?from=0&limit=3")["events"]
    ]
    sign_in = {"email": PERSON, "password": PASSWORD}
    sign_up = {"password": PASSWORD, "confirm_password": PASSWORD}
    # Each is good once.
    refresh = [node.call("/login", sign_in)["refresh_token"] for _ in range(3)]
    another = {**EVENT, "event_id": "event-4"}
    wrong = {"no": "event"}
    # Whichever comes first of two events with an id, the other is refused.
    other, changed = {**EVENT, "payload": {"a": 2}}, {**AUDIT_EVENT, "resource": "window"}
    some = [{**AUDIT_EVENT, "id": "audit-7"}, wrong]
    return {
        "POST /api-token-auth/": [{"username": PERSON, "password": PASSWORD}],
        "POST /api/admin/permissions/": [
            {"username": SERVICE, "permission": "read_metrics"},
            {"username": SERVICE, "permission": "read@stream:events"},
        ],
        "DELETE /api/admin/permissions/": [{"username": SERVICE, "permission": "read_metrics"}],
        "POST /api/data/repush-all/": [{}, {"dry_run": True}],
        "POST /api/data/repush-transaction/": [{"transaction_id": event["transaction_id"]} for event in sent],
        "POST /api/products/": [
            {"name": "Chair", "price": 7.5},
            {"name": "Table", "price": "12", "description": "of wood"},
        ],
        "PUT /api/products/{id}/": [{"name": "Chair", "price": 8}],
        "POST /api/rpc/train-model/": [{"model_type": "fraud_detection"}],
        "POST /api/search/": [
            {"search_term": "EUR", "start_date": "2020-01-01"},
            {"search_term": "electronics", "start_date": "2020-01-01T00:00:00Z"},
        ],
        "POST /api/v1/dead-letters/{id}/drop": [{"reason": "of no use"}],
        "POST /api/v1/dead-letters/{id}/retry": [
            {"event": {**sent[0], "transaction_id": f"edited-{number}"}, "reason": "was wrong"} for number in range(2)
        ],
        "POST /api/v1/erasures": [{"subject": "USER-0001", "why": "asked"}],
        "POST /api/v1/events/batch": [
            {"events": [EVENT]},
            {"events": [other]},
            {"events": [another, {**EVENT, "event_id": "event-5"}]},
            {"events": [{**EVENT, "event_id": "event-6"}, wrong]},
        ],
        "POST /api/v1/events/ingest": [EVENT, another, other],
        "POST /api/v1/jobs": [
            {"kind": "verify"},
            {"kind": "retention", "input": {"stream": "events"}},
            {"kind": "train", "input": {"model": "fraud_detection"}},
            {"kind": "replay", "input": {"stream": "transaction_log", "dry_run": True}},
        ],
        "POST /api/v1/keys/": [
            {"client_id": SERVICE, "name": "more"},
            {
                "client_id": SERVICE,
                "name": "most",
                "expires_at": "2100-01-01T00:00:00Z",
                "rate_limit": 5,
                "sources": [],
                "scopes": ["ingest"],
            },
        ],
        "POST /api/v1/policy/explain": [
            {"permission": "read", "on": "stream:events", "username": SERVICE},
            {"permission": "read"},
        ],
        "POST /api/v1/sql": [
            {"query": "SELECT * FROM transaction_lifecycle LIMIT 2"},
            {"query": "SELECT $a + 1 AS b", "params": {"a": 1}},
            {"query": "SELECT * FROM products"},
            {"query": "SELECT now(), ARRAY[1, 2], INTERVAL '1' DAY, NULL, CAST(1 AS DECIMAL(10,2))"},
        ],
        "POST /api/v1/statements": [
            {"sql": "CREATE STREAM seen (a TEXT)", "dry_run": True},
            {"sql": "CREATE STREAM seen (a TEXT)"},
            {"sql": "CREATE STREAM seen (b TEXT)"},
        ],
        "POST /api/v1/streams/{stream}/events": [AUDIT_EVENT, some, changed],
        "POST /api/v1/streams/{stream}/replay": [
            {"into": "copies", "dry_run": True},
            {"into": "copies"},
            {"into": "copies", "name": "again", "from_offset": 0, "until_offset": 2, "now": True, "where": "id <> '1'"},
        ],
        "POST /api/v1/users": [
            {"username": "another", "service": True, "roles": ["Client"]},
            {"username": "somebody", "password": PASSWORD, "email": "somebody@example.com", "roles": ["DataAnalyst"]},
        ],
        "PATCH /api/v1/users/{user}": [
            {"active": False},
            {"active": True},
            {"grant_role": "Developer"},
            {"revoke_role": "Developer"},
        ],
        "POST /api/v1/users/{user}/tokens": [{}, {"days": 3}, {"days": 3, "replace": True}],
        "POST /auth/refresh": [{"refresh_token": token} for token in refresh],
        "POST /events/": [AUDIT_EVENT, {**AUDIT_EVENT, "id": "audit-4", "tenant_id": None}, changed],
        "POST /events/batch/": [{"events": [AUDIT_EVENT]}, {"events": some}, {"events": [changed]}],
        "POST /events/ application/cloudevents+json": [CLOUD_EVENT],
        "POST /events/batch/ application/cloudevents+json": [{**CLOUD_EVENT, "id": "audit-6"}],
        "POST /login": [sign_in],
        "POST /signup": [
            {**sign_up, "email": "client@example.com", "role": "Client", "source": "User Activity"},
            {**sign_up, "email": "developer@example.com", "role": "Developer", "source": None},
        ],
    }


def named(values):
    return {str(number): {"value": value} for number, value in enumerate(values)}


def add(document, values, contents):
    """Adds examples to a document. What no operation has any more is an error."""
    unused = set(values) | set(contents)
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            called = f"{method.upper()} {path}"
            for parameter in operation.get("parameters", []):
                key = f"{called} {parameter['name']}"
                if key not in values and parameter["in"] == "path":
                    key = parameter["name"]
                if key in values:
                    unused.discard(key)
                    parameter["examples"] = named(values[key])
            for kind, content in operation.get("requestBody", {}).get("content", {}).items():
                key = f"{called} {kind}"
                if key not in contents and kind == "application/json":
                    key = called
                if key in contents:
                    unused.discard(key)
                    content["examples"] = named(contents[key])
    if unused:
        sys.exit(f"the document does not have: {', '.join(sorted(unused))}")


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    arguments.add_argument("url")
    arguments.add_argument("token", help="a file, or - for the variable HIGHWATER_TOKEN")
    arguments.add_argument("output", type=Path)
    given = arguments.parse_args()
    token = os.environ["HIGHWATER_TOKEN"] if given.token == "-" else Path(given.token).read_text()
    node = Node(given.url, token.strip())
    document = node.call("/api/openapi.json")
    add(document, parameters(node), bodies(node))
    given.output.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
