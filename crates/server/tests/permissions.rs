//! Every call with every kind of credential, against two files that people review: `permissions.tsv` says what
//! each call needs, `roles.tsv` who has it. Neither knows of the policies that the node decides by.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use support::{Client, Node, empty_data};

const PASSWORD: &str = "purple-mountain-42";

/// Who calls, by the name of a column of `roles.tsv`.
struct Caller {
    name: String,
    token: String,
    /// Its tokens may end when it signs out, so it can get another.
    again: Option<String>,
}

fn make_user(node: &Node, name: &str, body: Value) -> String {
    let (status, answer) = node.client.post("/api/v1/users", &body);
    assert_eq!(status, 201, "{answer}");
    sign_in(node, name)
}

fn sign_in(node: &Node, name: &str) -> String {
    let (status, answer) =
        node.client.post("/api-token-auth/", &json!({"username": name, "password": PASSWORD}));
    assert_eq!(status, 200, "{answer}");
    answer["token"].as_str().unwrap().to_owned()
}

fn table(file: &str) -> Vec<Vec<String>> {
    file.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

#[test]
fn every_call_with_every_credential() {
    let (folder, data) = empty_data();
    let node = Node::start(&data);
    let statements = "CREATE STREAM orders (id TEXT NOT NULL, n BIGINT) WITH (event_id = 'id');";
    assert_eq!(node.client.post("/api/v1/statements", &json!({"sql": statements})).0, 200);

    let roles = table(include_str!("roles.tsv"));
    let holds: BTreeMap<&str, &[String]> =
        roles[1..].iter().map(|row| (row[0].as_str(), &row[1..])).collect();
    let mut callers = Vec::new();
    for column in &roles[0][1..] {
        let caller = match column.as_str() {
            "key" => {
                let body = json!({"client_id": "acme", "name": "k", "rate_limit": 100_000, "scopes": ["ingest", "view_own"]});
                let (status, answer) = node.client.post("/api/v1/keys/", &body);
                assert_eq!(status, 201, "{answer}");
                Caller {
                    name: column.clone(),
                    token: answer["api_key"].as_str().unwrap().into(),
                    again: None,
                }
            }
            "admin of another tenant" => {
                let body =
                    json!({"username": "eve", "password": PASSWORD, "tenant": "acme", "roles": ["admin"]});
                Caller {
                    name: column.clone(),
                    token: make_user(&node, "eve", body),
                    again: Some("eve".into()),
                }
            }
            role => {
                let name = format!("u-{role}");
                let roles = if role == "nobody" { json!([]) } else { json!([role]) };
                let body = json!({"username": name, "password": PASSWORD, "roles": roles});
                Caller { name: column.clone(), token: make_user(&node, &name, body), again: Some(name) }
            }
        };
        callers.push(caller);
    }
    // Credentials that are none, or none any more.
    let gone =
        make_user(&node, "gone", json!({"username": "gone", "password": PASSWORD, "roles": ["admin"]}));
    assert_eq!(
        node.client.call("PATCH", "/api/v1/users/gone", &[json_type()], br#"{"active":false}"#).0,
        200
    );
    let soon =
        json!({"client_id": "acme", "name": "short", "expires_at": in_two_seconds(), "scopes": ["ingest"]});
    let short = node.client.post("/api/v1/keys/", &soon).1["api_key"].as_str().unwrap().to_owned();
    let rotated = node.client.post("/api/v1/keys/", &json!({"client_id": "acme", "name": "r"})).1;
    let id = rotated["id"].as_str().unwrap();
    assert_eq!(node.client.post(&format!("/api/v1/keys/{id}/rotate"), &json!({})).0, 200);
    std::thread::sleep(std::time::Duration::from_millis(2100));
    let invalid = [
        ("unknown", "0000000000000000000000000000000000000000".to_owned()),
        ("malformed", "%%%".to_owned()),
        ("revoked", gone),
        ("expired key", short),
        ("rotated key", rotated["api_key"].as_str().unwrap().to_owned()),
        ("key with another secret", format!("hwk_{id}_{}", "A".repeat(43))),
        ("token that nobody signed", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ1LWFkbWluIn0.".to_owned()),
    ];

    let (mut checked, mut wrong) = (0, Vec::new());
    for row in table(include_str!("permissions.tsv")) {
        let [path, method, need] = row.as_slice() else { panic!("{row:?}") };
        // It would look after itself only, which is tested elsewhere; here it would end what others test.
        if path == "/api/v1/maintenance" {
            continue;
        }
        for stream in ["orders", "missing"] {
            if stream == "missing" && !path.contains('{') {
                continue;
            }
            let path = path.replace("{stream}", stream).replace("{name}", stream).replace("{*path}", "0/000");
            let path: String =
                path.replace("{id}", "0").chars().filter(|c| !matches!(c, '{' | '}')).collect();
            let mut check = |who: &str, token: &str, expected: Option<u16>| {
                let status =
                    Client::new(&node.client.url, token).call(method, &path, &[json_type()], b"{}").0;
                checked += 1;
                let fits = match expected {
                    Some(expected) => status == expected,
                    None => status != 401 && status != 403 && status < 500,
                };
                if !fits {
                    wrong.push(format!("{method} {path} by {who}: {status}, not {expected:?}"));
                }
            };
            let open = need.starts_with("open");
            for (who, token) in &invalid {
                // Whoever signs in may still show an old credential.
                check(who, token, (!open).then_some(401));
            }
            for (column, caller) in callers.iter_mut().enumerate() {
                let expected = match need.split(' ').next().unwrap() {
                    "open" | "open," | "open:" | "any" => None,
                    permission => {
                        match holds.get(need.as_str()).unwrap_or_else(|| &holds[permission])[column].as_str()
                        {
                            "y" => None,
                            _ => Some(403),
                        }
                    }
                };
                // An export is whole or not at all: for those who read the trail of the node's owner.
                let whole = ["admin", "SecurityAuditor"].contains(&caller.name.as_str());
                let expected = if path.ends_with("/audit/export") && !whole { Some(403) } else { expected };
                check(&caller.name, &caller.token, expected);
                if path == "/auth/logout"
                    && let Some(name) = &caller.again
                {
                    caller.token = sign_in(&node, name);
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {checked} are wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(checked > 1000, "{checked}");
    println!("{checked} calls");
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for secret in ["operator.token", "token.key", "audit.key", "access.key"] {
        assert_eq!(mode(&data.join(secret)), 0o600, "{secret}");
    }
    let copy = folder.path().join("copy");
    node.run(&["backup", copy.to_str().unwrap()]);
    assert_eq!(mode(&copy), 0o700, "the log and the lake");
}

fn json_type() -> (String, String) {
    ("content-type".to_owned(), "application/json".to_owned())
}

fn in_two_seconds() -> String {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() + 2000;
    now.to_string()
}

/// Twenty tenants with a canary each: none sees another's, whatever it asks, and wherever an answer comes from.
#[test]
fn canaries_stay_in_their_tenants() {
    let (_folder, data) = empty_data();
    let node = Node::start(&data);
    let statements = "CREATE STREAM notes (id TEXT NOT NULL, tenant TEXT, text TEXT) WITH (event_id = 'id', tenant = 'tenant');
        CREATE STREAM copies WITH (tenant = 'tenant') AS SELECT id, tenant, text FROM notes;
        CREATE TABLE counts AS SELECT tenant, count(*) AS n, max(text) AS newest FROM copies GROUP BY tenant;
        CREATE ROW FILTER own_counts ON counts USING (tenant = session_tenant());
        CREATE ENDPOINT '/api/own-counts/' REQUIRES view_counts AS SELECT tenant, n, newest FROM counts ORDER BY tenant;
        CREATE STREAM secrets (id TEXT NOT NULL, text TEXT) WITH (event_id = 'id');";
    let (status, answer) = node.client.post("/api/v1/statements", &json!({"sql": statements}));
    assert_eq!(status, 200, "{answer}");
    node.client.post("/api/v1/streams/secrets/events", &json!({"id": "s", "text": "canary-of-the-owner"}));
    let tenants: Vec<(String, Client, Client)> = (0..20)
        .map(|number| {
            let tenant = format!("t{number}");
            let name = format!("user{number}");
            let body =
                json!({"username": name, "password": PASSWORD, "tenant": tenant, "roles": ["DataAnalyst"]});
            let token = make_user(&node, &name, body);
            let grant = json!({"username": name, "permission": "view_counts"});
            assert_eq!(node.client.post("/api/admin/permissions/", &grant).0, 201);
            let key = json!({"client_id": tenant, "name": "k", "tenant": tenant, "rate_limit": 1000});
            let key = node.client.post("/api/v1/keys/", &key).1["api_key"].as_str().unwrap().to_owned();
            let url = &node.client.url;
            (tenant.clone(), Client::new(url, &token), Client::new(url, &key))
        })
        .collect();
    for (tenant, _, key) in &tenants {
        // Whether it names its tenant or not.
        let notes = json!([{"id": "a", "text": format!("canary-{tenant}!")}, {"id": "b", "tenant": tenant, "text": format!("canary-{tenant}!")}]);
        let (status, answer) = key.post("/api/v1/streams/notes/events", &notes);
        assert_eq!(status, 202, "{answer}");
        let foreign = json!({"id": "c", "tenant": "t0x", "text": "canary-t0x!"});
        assert_eq!(key.post("/api/v1/streams/notes/events", &foreign).0, 422);
        assert_eq!(
            key.post("/api/v1/streams/secrets/events", &foreign).0,
            403,
            "what has no tenant is its owner's"
        );
    }
    let many: Vec<Value> = (0..30).map(|n| json!({"id": n.to_string(), "text": "canary-t0!"})).collect();
    assert_eq!(tenants[0].2.post("/api/v1/streams/notes/events", &Value::Array(many)).0, 202);
    node.client.settle();
    let questions = [
        "SELECT * FROM notes",
        "SELECT * FROM copies WHERE tenant = 't3' OR true",
        "SELECT * FROM counts",
        "SELECT max(text), min(text), count(*) FROM notes",
        "SELECT a.text FROM notes a JOIN copies b ON a.id = b.id",
        "WITH n AS (SELECT * FROM notes) SELECT text FROM n UNION ALL SELECT newest FROM counts",
        "SELECT text FROM notes WHERE text LIKE 'canary%' ORDER BY tenant DESC LIMIT 5",
        "SELECT CAST(text AS INT) FROM notes",
        // Half of the rows are one tenant's: a condition that fails must not be asked about the others.
        "SELECT id FROM notes WHERE CAST(text AS BIGINT) > 0",
        "SELECT id FROM copies WHERE length(text) > 1000 AND CAST(text AS BIGINT) > 0",
        "SELECT count(*) FROM notes WHERE 1 / (CASE WHEN text LIKE '%t0!' THEN 0 ELSE 1 END) = 1",
        "EXPLAIN ANALYZE SELECT * FROM notes",
        "DESCRIBE secret",
        "EXPLAIN secrets",
        "EXPLAIN CREATE STREAM x AS SELECT * FROM secrets",
        "SELECT lookup('currency_rates', 'rate', 'EUR')",
        "SELECT text FROM secrets",
        "SELECT seen FROM _audit",
        "SELECT text FROM _system",
        "SELECT * FROM _dead_letters",
        "SELECT name FROM _streams",
        "SELECT text FROM note",
    ];
    let paths = [
        "/api/datalake/streams/notes/",
        "/api/datalake/streams/COPIES/?text=canary-t3!",
        "/api/datalake/streams/secrets/",
        "/api/datalake/streams/%5Fdead_letters/",
        "/api/v1/streams/notes/events",
        "/api/v1/streams/secrets/events",
        "/api/v1/streams/notes",
        "/api/v1/lake/notes/diff?from=0",
        "/api/own-counts/",
        "/api/v1/audit/logs?limit=1000",
        "/api/v1/audit/export",
        "/api/audit-logs/",
        "/api/v1/users",
        "/api/v1/keys/",
        "/api/v1/streams",
        "/api/v1/dead-letters?state=all",
        "/api/v1/dead-letters?state=all&group_by=error",
        "/api/v1/dead-letters/0",
        "/api/v1/dead-letters/3",
        "/api/v1/analytics/queue-status",
        "/metrics",
    ];
    let (mut own, mut answers) = (0, 0);
    for (tenant, client, key) in &tenants {
        for caller in [client, key] {
            let mut texts: Vec<String> = Vec::new();
            for question in questions {
                texts.push(caller.post("/api/v1/sql", &json!({"query": question})).1.to_string());
            }
            texts.extend(paths.iter().map(|path| caller.get(path).1.to_string()));
            let replay = json!({"into": "notes", "name": "r", "dry_run": true});
            texts.push(caller.post("/api/v1/streams/notes/replay", &replay).1.to_string());
            for text in texts {
                answers += 1;
                for piece in text.split("canary-").skip(1) {
                    assert!(
                        piece.starts_with(&format!("{tenant}!")),
                        "{tenant} saw {piece:.60} in {text:.400}"
                    );
                    own += 1;
                }
            }
        }
        let counted = client.post("/api/v1/sql", &json!({"query": "SELECT count(*) AS n FROM notes"})).1;
        let notes = if tenant == "t0" { 32 } else { 2 };
        assert_eq!(counted["rows"][0]["n"], notes, "{counted}");
        let page = client.get("/api/datalake/streams/notes/").1;
        let rows = page["results"].as_array().map(Vec::len);
        assert_eq!((page["count"].as_i64(), rows), (Some(notes), Some(notes.min(10) as usize)), "{page}");
        let endpoint = client.get("/api/own-counts/").1;
        let (first, rows) = (&endpoint[0], endpoint.as_array().map(Vec::len));
        assert_eq!(
            (first["tenant"].as_str(), first["n"].as_i64(), rows),
            (Some(tenant.as_str()), Some(notes), Some(1))
        );
    }
    assert!(own >= 20 * 20, "{own} of {answers}");
    assert_eq!(node.client.number("SELECT count(*) FROM notes"), 70, "the owner sees all of them");
}

/// Masks and filters hold for everybody who was not given more, at every door.
#[test]
fn filters_and_masks_hold_at_every_door() {
    let (_folder, data) = empty_data();
    let node = Node::start(&data);
    let statements = "CREATE STREAM people (id TEXT NOT NULL, name TEXT, phone TEXT SENSITIVE, city TEXT) WITH (event_id = 'id');
        CREATE ROW FILTER no_paris ON people USING (city <> 'Paris' OR session_user() = 'grace');
        CREATE COLUMN MASK hide_name ON people (name) USING concat(left(name, 1), '***') UNLESS PERMITTED reveal_names;";
    let (status, answer) = node.client.post("/api/v1/statements", &json!({"sql": statements}));
    assert_eq!(status, 200, "{answer}");
    let people = json!([{"id": "1", "name": "Zoe", "phone": "555-0101", "city": "Rome"}, {"id": "2", "name": "Yves", "phone": "555-0202", "city": "Paris"}]);
    assert_eq!(node.client.post("/api/v1/streams/people/events", &people).0, 202);
    let user = |name: &str, grants: &[&str]| {
        let token =
            make_user(&node, name, json!({"username": name, "password": PASSWORD, "roles": ["DataAnalyst"]}));
        for grant in grants {
            let grant = json!({"username": name, "permission": grant});
            let known = node.client.post("/api/admin/permissions/", &grant);
            assert_eq!(known.0, 201, "{}", known.1);
        }
        Client::new(&node.client.url, &token)
    };
    let ada = user("ada", &[]);
    let rows =
        |client: &Client, sql: &str| client.post("/api/v1/sql", &json!({"query": sql})).1["rows"].clone();
    assert_eq!(
        rows(&ada, "SELECT id, name, phone FROM people"),
        json!([{"id": "1", "name": "Z***", "phone": "nnn-nnnn"}])
    );
    // Neither a condition nor an order tells what the mask hides.
    assert_eq!(rows(&ada, "SELECT id FROM people WHERE name = 'Zoe' OR phone = '555-0101'"), json!([]));
    assert_eq!(rows(&ada, "SELECT count(*) AS n FROM people"), json!([{"n": 1}]));
    let page = ada.get("/api/datalake/streams/people/?name=Zoe").1;
    assert_eq!(page["count"], 0, "{page}");
    let page = ada.get("/api/datalake/streams/people/").1;
    assert_eq!(
        (page["count"].as_i64(), page["results"][0]["NAME"].as_str()),
        (Some(1), Some("Z***")),
        "{page}"
    );
    let tail = ada.get("/api/v1/streams/people/events?from=0").1;
    assert_eq!((tail["events"].as_array().unwrap().len(), tail["next"].as_i64()), (1, Some(2)), "{tail}");
    let grace = user("grace", &["reveal_names", "reveal@stream:people"]);
    let all = rows(&grace, "SELECT name, phone FROM people ORDER BY id");
    assert_eq!(all, json!([{"name": "Zoe", "phone": "555-0101"}, {"name": "Yves", "phone": "555-0202"}]));
    // What was counted for one reader is not another's.
    assert_eq!(grace.get("/api/datalake/streams/people/").1["count"], 2);
    assert_eq!(ada.get("/api/datalake/streams/people/").1["count"], 1);
    // The operator sees every row, and no more of what is SENSITIVE than others.
    assert_eq!(
        rows(&node.client, "SELECT count(*) AS n, max(phone) AS p FROM people"),
        json!([{"n": 2, "p": "nnn-nnnn"}])
    );
    // What is masked for somebody comes out in the clear nowhere else.
    let engineer =
        make_user(&node, "eve", json!({"username": "eve", "password": PASSWORD, "roles": ["DataEngineer"]}));
    let engineer = Client::new(&node.client.url, &engineer);
    for sql in [
        "CREATE STREAM open_people AS SELECT id, name FROM people",
        "CREATE STREAM acts AS SELECT actor, seen FROM _audit",
        "CREATE ENDPOINT '/api/acts/' REQUIRES view_metrics AS SELECT text FROM _system",
    ] {
        let (status, answer) = engineer.post("/api/v1/statements", &json!({"sql": sql}));
        assert_eq!(status, 403, "{sql}: {answer}");
    }
    let scratch = "CREATE STREAM scratch (id TEXT NOT NULL, name TEXT, phone TEXT SENSITIVE, city TEXT) WITH (event_id = 'id')";
    assert_eq!(engineer.post("/api/v1/statements", &json!({"sql": scratch})).0, 200);
    let (status, answer) = engineer.post("/api/v1/streams/people/replay", &json!({"into": "scratch"}));
    assert_eq!(status, 409, "{answer}");
    // Rules are checked when they are declared, and hold on to what they are about.
    for (sql, wanted) in [
        ("CREATE ROW FILTER f ON people USING (towns = 'x')", "towns"),
        ("CREATE ROW FILTER f ON nobody USING (true)", "nobody"),
        ("CREATE COLUMN MASK m ON people (nam) USING 'x'", "did you mean"),
        ("CREATE ROW FILTER no_paris ON people USING (true)", "already"),
        ("DROP STREAM people", "rule"),
    ] {
        let (status, answer) = node.client.post("/api/v1/statements", &json!({"sql": sql}));
        assert!((400..410).contains(&status) && answer.to_string().contains(wanted), "{sql}: {answer}");
    }
    drop(node);
    let node = Node::start(&data);
    let ada = Client::new(&node.client.url, &sign_in(&node, "ada"));
    assert_eq!(
        rows(&ada, "SELECT id, name FROM people"),
        json!([{"id": "1", "name": "Z***"}]),
        "after a start, too"
    );
    assert_eq!(
        node.client
            .post(
                "/api/v1/statements",
                &json!({"sql": "DROP ROW FILTER no_paris; DROP COLUMN MASK hide_name"})
            )
            .0,
        200
    );
    assert_eq!(rows(&ada, "SELECT count(*) AS n, max(name) AS m FROM people"), json!([{"n": 2, "m": "Zoe"}]));
}

/// An administrator of a tenant sees its dead letters, and can't have one say that it is of another tenant.
#[test]
fn dead_letters_stay_in_their_tenants() {
    let (_folder, data) = empty_data();
    let node = Node::start(&data);
    let statements = "CREATE STREAM notes (id TEXT NOT NULL, tenant TEXT, text TEXT) WITH (event_id = 'id', tenant = 'tenant');
        CREATE STREAM numbers WITH (tenant = 'tenant') AS SELECT id, tenant, CAST(text AS BIGINT) AS n FROM notes;
        CREATE STREAM orders (id TEXT NOT NULL) WITH (event_id = 'id');";
    let (status, answer) = node.client.post("/api/v1/statements", &json!({"sql": statements}));
    assert_eq!(status, 200, "{answer}");
    let eve = json!({"username": "eve", "password": PASSWORD, "tenant": "acme", "roles": ["admin"]});
    let eve = Client::new(&node.client.url, &make_user(&node, "eve", eve));
    // One of the owner's, one of hers, one that the operator brought for her and that a view can't compute.
    assert_eq!(node.client.post("/api/v1/streams/orders/events", &json!({"id": 1})).0, 422);
    assert_eq!(eve.post("/api/v1/streams/notes/events", &json!({"id": "a", "text": 1})).0, 422);
    let brought = json!({"id": "b", "tenant": "acme", "text": "two"});
    assert_eq!(node.client.post("/api/v1/streams/notes/events", &brought).0, 202);
    node.client.settle();
    let ids = |client: &Client| {
        let (status, answer) = client.get("/api/v1/dead-letters");
        assert_eq!(status, 200, "{answer}");
        let letters = answer["dead_letters"].as_array().unwrap();
        letters.iter().map(|letter| letter["id"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(ids(&node.client), [2, 1, 0]);
    assert_eq!(ids(&eve), [2, 1]);
    assert_eq!(eve.get("/api/v1/dead-letters/0").0, 404);
    for path in ["/api/v1/dead-letters/0/retry", "/api/v1/dead-letters/0/drop"] {
        let (status, answer) = eve.post(path, &json!({"reason": "x"}));
        assert_eq!(
            (status, answer["code"].as_str()),
            (404, Some("dead_letter_not_found")),
            "{path}: {answer}"
        );
    }
    let foreign = json!({"event": {"id": "c", "tenant": "default", "text": "2"}});
    for letter in [1, 2] {
        let (status, answer) = eve.post(&format!("/api/v1/dead-letters/{letter}/retry"), &foreign);
        assert_eq!((status, answer["code"].as_str()), (422, Some("foreign_tenant")), "{answer}");
    }
    let own = json!({"event": {"id": "b", "text": "2"}});
    assert_eq!(eve.post("/api/v1/dead-letters/2/retry", &own).0, 202);
    node.client.settle();
    let numbers = node.client.sql("SELECT id, tenant, n FROM numbers");
    assert_eq!(numbers, [json!({"id": "b~retry-2", "tenant": "acme", "n": 2})]);
    // What was refused when it was sent again is the same letter still, and no other one.
    let (status, answer) = eve.post("/api/v1/dead-letters/retry?source=door&code=foreign_tenant", &json!({}));
    assert_eq!((status, answer["of"].as_u64()), (200, Some(0)), "{answer}");
    assert_eq!((ids(&node.client), ids(&eve)), (vec![1, 0], vec![1]));
}
