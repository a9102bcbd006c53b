//! Whoever is to be forgotten is: in the log, the lake, the index, tables and dead letters, also after a kill and a restart,
//! while others stay as they were and the audit trail still verifies.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::bytes::holding;
use support::{Client, Node, empty_data};

/// Every place that something of a person can come to.
const PACK: &str = "
    CREATE STREAM visits (visit TEXT NOT NULL, at TIMESTAMP, who TEXT NOT NULL SENSITIVE, name TEXT SENSITIVE, born BIGINT SENSITIVE, home STRUCT<city TEXT, street TEXT>, page TEXT)
      WITH (event_id = 'visit', event_time = 'at', subject = 'who', sensitive = 'home.street', search = 'page', partitions = 2);
    CREATE STREAM loud AS SELECT visit, who AS person, upper(name) AS name, home['street'] AS street, page FROM visits;
    CREATE STREAM masked AS SELECT visit, mask(name) AS name, tokenize(who) AS token FROM visits;
    CREATE TABLE pages AS SELECT page, count(*) AS visits, latest_by_offset(name) AS last, collect_list(name) AS names, max(born) AS youngest FROM visits GROUP BY page;
    CREATE TABLE tokens AS SELECT token, count(*) AS visits FROM masked GROUP BY token;
";

const PEOPLE: u64 = 20;

fn person(number: u64) -> String {
    format!("WHO-{:04}-{}", number, ["quagga", "okapi", "kudu"][(number % 3) as usize])
}

fn name(number: u64) -> String {
    format!("Zebulon{number:03}Quark")
}

fn visit(number: u64) -> Value {
    let who = number % PEOPLE;
    json!({
        "visit": format!("v{number}"),
        "at": format!("2026-03-01T{:02}:{:02}:00Z", number / 60 % 24, number % 60),
        "who": person(who),
        "name": name(who),
        "born": 1_900_000_000_000 + who as i64,
        "home": {"city": "Graz", "street": format!("Gasse{who:03}Nord")},
        "page": format!("page-{}", number % 4),
        "undeclared": format!("said{who:03}aside"),
    })
}

/// What may be found nowhere any more.
fn secrets(who: u64) -> Vec<String> {
    vec![
        person(who),
        name(who),
        format!("Gasse{who:03}Nord"),
        format!("said{who:03}aside"),
        (1_900_000_000_000 + who as i64).to_string(),
    ]
}

fn send(client: &Client, events: &[Value]) -> Value {
    let (status, answer) = client.post("/api/v1/streams/visits/events", &json!(events));
    assert!(status == 202 || status == 207 || status == 422, "{status} {answer}");
    answer
}

/// Somebody who may see everything.
fn revealing(node: &Node) -> Client {
    node.user("grace", json!({"roles": ["admin"]}));
    let grant = json!({"username": "grace", "permission": "reveal"});
    let (status, answer) = node.client.post("/api/admin/permissions/", &grant);
    assert_eq!(status, 201, "{answer}");
    signed_in(node)
}

fn signed_in(node: &Node) -> Client {
    let asked = json!({"username": "grace", "password": "purple-mountain-42"});
    let (status, answer) = node.client.post("/api-token-auth/", &asked);
    assert_eq!(status, 200, "{answer}");
    Client::new(&node.client.url, answer["token"].as_str().unwrap())
}

fn rows(client: &Client, sql: &str) -> Value {
    let (status, answer) = client.post("/api/v1/sql", &json!({"query": sql}));
    assert_eq!(status, 200, "{sql}: {answer}");
    answer["rows"].clone()
}

/// All that can be read of everything.
fn everything(client: &Client) -> String {
    let relations = [
        "visits",
        "loud",
        "masked",
        "pages",
        "tokens",
        "_dead_letters",
        "_late_events",
        "_audit",
        "_jobs",
        "_system",
    ];
    relations.iter().map(|name| rows(client, &format!("SELECT * FROM {name}")).to_string()).collect()
}

fn found(text: &str, who: u64) -> Vec<String> {
    let text = text.to_lowercase();
    // Bodies of letters are shown as hexadecimal digits or as base64 by some clients: as they are, too.
    secrets(who).into_iter().filter(|secret| text.contains(&secret.to_lowercase())).collect()
}

#[test]
fn whoever_is_forgotten_is_nowhere_any_more() {
    let (_folder, data) = empty_data();
    let mut node = Node::start(&data);
    let (status, answer) = node.client.post("/api/v1/statements", &json!({"sql": PACK}));
    assert_eq!(status, 200, "{answer}");
    let grace = revealing(&node);
    // Some in the lake, some only in the log; and letters of two people.
    send(&grace, &(0..200).map(visit).collect::<Vec<_>>());
    for who in [7, 8] {
        let mut wrong = visit(1000 + who);
        wrong["born"] = json!(format!("not a number, says {}", name(who)));
        wrong["who"] = json!(person(who));
        assert_eq!(send(&grace, &[wrong])["rejected"], 1);
    }
    node.client.settle();
    send(&grace, &(200..240).map(visit).collect::<Vec<_>>());
    node.client.settle();
    let before = everything(&grace);
    assert_eq!(found(&before, 7).len(), 5, "{:?}", found(&before, 7));
    assert_eq!(found(&before, 8).len(), 5);
    let tokens = rows(&grace, "SELECT count(*) AS n FROM tokens");

    // Nobody forgets others without being given it.
    let nobody = node.user("nobody", json!({"roles": ["DataEngineer"]}));
    let (status, answer) = nobody.post("/api/v1/erasures", &json!({"subject": person(7)}));
    assert_eq!((status, &answer["permission"]), (403, &json!("erase")), "{answer}");
    for named in [person(7), person(7).to_lowercase()] {
        let asked = json!({"subject": person(7), "why": format!("{named} asked")});
        let (status, answer) = grace.post("/api/v1/erasures", &asked);
        assert_eq!((status, &answer["code"]), (400, &json!("invalid_parameter")), "{answer}");
    }

    // Others have named them: in questions, in paths, and in what they told a job. Some of it is in the lake already, some only
    // in the log, and something is derived from it.
    let (status, answer) = node.client.post(
        "/api/v1/statements",
        &json!({"sql": "CREATE STREAM asked AS SELECT actor, path, seen FROM _audit WHERE action = 'query' OR action = 'read';
                        CREATE TABLE asked_of AS SELECT path, count(*) AS calls, latest_by_offset(seen) AS last FROM _audit GROUP BY path"}),
    );
    assert_eq!(status, 200, "{answer}");
    let ask = |who: &str| rows(&grace, &format!("SELECT count(*) AS n FROM visits WHERE who = '{who}'"));
    let name_others = |round: u32| {
        for who in [7, 8] {
            ask(&person(who));
            ask(&person(who).to_lowercase());
            let path = format!("/api/v1/streams/{}/events?round={round}", person(who).replace('-', "%2D"));
            grace.get(&path);
            let told =
                json!({"stream": "visits", "dry_run": true, "where": format!("who = '{}'", person(who))});
            let (status, job) = grace.post("/api/v1/jobs", &json!({"kind": "replay", "input": told}));
            assert_eq!(status, 202, "{job}");
            grace.end_of(job["id"].as_str().unwrap());
        }
    };
    name_others(0);
    node.client.settle();
    std::thread::sleep(Duration::from_secs(6));
    name_others(1);
    let (status, answer) =
        grace.post("/api/v1/erasures", &json!({"subject": person(7), "why": "asked by letter"}));
    assert_eq!(status, 202, "{answer}");
    // The node dies while it goes on, and goes on when it is back.
    node.kill();
    node = Node::start(&data);
    let grace = signed_in(&node);
    let job = grace.end_of(answer["job_id"].as_str().unwrap());
    assert_eq!(job["state"], "finished", "{job}");
    assert_eq!(job["said"]["rebuilt"], json!(["table:asked_of", "table:pages"]), "{job}");
    // Some of it may have been taken out before the kill.
    assert!(job["said"]["taken_out"]["_audit"].as_u64().is_some(), "{job}");
    assert_eq!(job["said"]["subject"], answer["subject"]);
    assert_eq!(job["said"]["still_naming"], json!({}));
    node.client.settle();

    let check = |grace: &Client, data: &std::path::Path| {
        let after = everything(grace);
        assert_eq!(found(&after, 7), Vec::<String>::new());
        // Others are as they were.
        for who in [0, 6, 8, 19] {
            assert_eq!(found(&after, who), secrets(who), "{who}");
        }
        let named = [person(7).to_lowercase(), person(7).replace('-', "%2D")];
        let sought: Vec<Vec<u8>> = secrets(7).into_iter().chain(named).map(String::into_bytes).collect();
        assert_eq!(holding(data, &sought), Vec::<String>::new());
    };
    check(&grace, &data);
    // Its events are still counted, without what they said of the person.
    assert_eq!(rows(&grace, "SELECT count(*) AS n FROM visits"), json!([{"n": 240}]));
    assert_eq!(
        rows(&grace, "SELECT who, name, born, home['city'] AS city, page FROM visits WHERE visit = 'v7'"),
        json!([{"who": null, "name": null, "born": null, "city": "Graz", "page": "page-3"}])
    );
    assert_eq!(rows(&grace, "SELECT count(*) AS n FROM visits WHERE who IS NULL"), json!([{"n": 12}]));
    assert_eq!(rows(&grace, "SELECT count(*) AS n FROM tokens"), tokens, "tokens tell nobody, and stay");

    // In every life that follows, too; and housekeeping writes nothing of it anew.
    node.kill();
    let node = Node::start(&data);
    let grace = signed_in(&node);
    let (status, answer) = grace.post("/api/v1/jobs", &json!({"kind": "maintenance"}));
    assert_eq!(status, 202, "{answer}");
    assert_eq!(grace.end_of(answer["id"].as_str().unwrap())["state"], "finished");
    check(&grace, &data);

    // The trail is whole, and has the act, without the name.
    let (_, answer) = grace.post("/api/v1/jobs", &json!({"kind": "verify"}));
    let verified = grace.end_of(answer["id"].as_str().unwrap());
    assert_eq!(verified["said"]["whole"], true, "{verified}");
    assert!(node.run(&["audit", "verify"]).contains("verified"), "the tree and its checkpoint");
    let copy = data.join("copy-of-the-trail");
    node.run(&["audit", "export", copy.to_str().unwrap()]);
    let verified = node.run(&["audit", "verify", "--export", copy.to_str().unwrap()]);
    assert!(verified.contains("\"verified\":true") && !verified.contains("\"erased\":0"), "{verified}");
    // Without the statement the same copy is a forged one.
    std::fs::write(copy.join("statements"), "").unwrap();
    assert!(
        node.fails(&["audit", "verify", "--export", copy.to_str().unwrap()])
            .contains("no statement of the log says why")
    );
    std::fs::remove_dir_all(&copy).unwrap();
    // What others have asked is still to be seen, without whom they asked about; about others it is as it was.
    let asked = rows(&grace, "SELECT path, body, salt, body_hash FROM _audit WHERE salt LIKE 'erased:%'");
    let has = |text: &str| asked.as_array().unwrap().iter().any(|entry| entry.to_string().contains(text));
    assert!(has("WHERE who = '[erased]'") && has("/api/v1/streams/[erased]/events"), "{asked}");
    assert!(asked.as_array().unwrap().iter().all(|entry| entry["body_hash"].is_null()), "{asked}");

    // Earlier versions of its lake are gone, and said to be.
    let (status, answer) = grace.get("/api/v1/lake/_audit/diff?from=0");
    assert_eq!((status, &answer["code"]), (404, &json!("no_such_version")), "{answer}");
    let (status, answer) = grace.get("/api/datalake/streams/_AUDIT/?as_of=2026-01-01");
    assert_eq!((status, &answer["code"]), (404, &json!("no_such_version")), "{answer}");
    let (status, answer) = grace.get("/api/datalake/streams/_AUDIT/?as_of=2126-01-01");
    assert_eq!(status, 200, "{answer}");
    let (status, answer) = grace.get("/api/v1/lake/_audit/versions");
    assert_eq!(status, 200, "{answer}");

    // A second time there is nothing left; and whoever comes back is known again.
    let (_, answer) = grace.post("/api/v1/erasures", &json!({"subject": person(7)}));
    assert_eq!(grace.end_of(answer["job_id"].as_str().unwrap())["said"]["keys_destroyed"], 0);
    send(&grace, &[visit(5007)]);
    assert_eq!(
        rows(&grace, "SELECT name FROM visits WHERE who IS NOT NULL AND visit = 'v5007'"),
        json!([{"name": name(7)}])
    );
    let said = node.run(&["erase", "--subject", &person(8), "--reason", "by the command line"]);
    assert!(said.contains("\"state\":\"finished\""), "{said}");
    assert!(said.contains("\"still_naming\":{}"), "{said}");
    assert!(node.run(&["audit", "verify"]).contains("verified"), "the tree and its checkpoint");
    let data = ["visits", "loud", "masked", "pages", "tokens", "_dead_letters"];
    let after: String =
        data.iter().map(|name| rows(&grace, &format!("SELECT * FROM {name}")).to_string()).collect();
    assert_eq!(found(&after, 8), Vec::<String>::new());
    assert_eq!(found(&after, 9), secrets(9));
}

#[test]
fn entries_past_their_retention_keep_no_name() {
    let (_folder, data) = empty_data();
    let node = Node::start_with(&data, &[("HIGHWATER__AUDIT__RETENTION", "3 seconds")]).unwrap();
    let (status, answer) = node.client.post("/api/v1/statements", &json!({"sql": PACK}));
    assert_eq!(status, 200, "{answer}");
    // The segment and the file that have these entries have later ones, too.
    for _ in 0..300 {
        node.client.get(&format!("/api/v1/streams/{}", person(7)));
    }
    std::thread::sleep(Duration::from_secs(4));
    let (status, done) = node.client.post("/api/v1/maintenance", &json!({}));
    assert_eq!(status, 200, "{done}");
    assert!(node.client.number("SELECT min(_offset) FROM _audit") >= 256, "{done}");
    node.client.settle();
    let names = [person(7).into_bytes()];
    assert_ne!(
        holding(&data, &names),
        Vec::<String>::new(),
        "what is past its retention is still on the disk"
    );

    let said = node.run(&["erase", "--subject", &person(7)]);
    assert!(said.contains("\"state\":\"finished\""), "{said}");
    assert_eq!(holding(&data, &names), Vec::<String>::new());
    assert!(node.run(&["audit", "verify"]).contains("verified"), "the tree and its checkpoint");
}

#[test]
fn what_could_not_be_forgotten_is_refused() {
    let (_folder, data) = empty_data();
    let node = Node::start(&data);
    let (status, answer) = node.client.post("/api/v1/statements", &json!({"sql": PACK}));
    assert_eq!(status, 200, "{answer}");
    let refused = [
        ("CREATE STREAM a (who TEXT, name TEXT SENSITIVE) WITH (subject = 'who')", "invalid_schema"),
        ("CREATE STREAM a (who TEXT SENSITIVE) WITH (subject = 'whom')", "invalid_schema"),
        ("CREATE STREAM a AS SELECT visit, name FROM visits", "unsupported_sql"),
        (
            "CREATE STREAM a AS SELECT l.visit, l.name FROM loud l JOIN masked m WITHIN 1 HOUR ON l.visit = m.visit",
            "unsupported_sql",
        ),
    ];
    for (sql, code) in refused {
        let (status, answer) = node.client.post("/api/v1/statements", &json!({"sql": sql}));
        assert_eq!((status, &answer["code"]), (400, &json!(code)), "{sql}: {answer}");
    }
    // Nor does a replay take it where it would outlive the person.
    let other = "CREATE STREAM other (visit TEXT NOT NULL, who TEXT SENSITIVE, name TEXT SENSITIVE, born BIGINT SENSITIVE, home STRUCT<city TEXT, street TEXT>) WITH (event_id = 'visit', sensitive = 'home.street')";
    let (status, answer) = node.client.post("/api/v1/statements", &json!({"sql": other}));
    assert_eq!(status, 200, "{answer}");
    let (status, answer) = node.client.post("/api/v1/streams/visits/replay", &json!({"into": "other"}));
    assert_eq!((status, &answer["code"]), (409, &json!("would_outlive")), "{answer}");
    let (status, answer) =
        node.client.post("/api/v1/jobs", &json!({"kind": "erase", "input": {"subject": "a name"}}));
    assert_eq!((status, &answer["code"]), (400, &json!("invalid_parameter")), "{answer}");
}
