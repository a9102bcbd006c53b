//! What is SENSITIVE is on no disk as it is, is read back everywhere by whoever may, and its keys can be changed
//! under load.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use highwater_event::SeededRandomness;
use highwater_sim::setting;
use serde_json::{Value, json};
use support::bytes::holding;
use support::{Client, Node, empty_data};

const PASSWORD: &str = "purple-mountain-42";

/// Every way on which what is SENSITIVE can come to a disk.
const PACK: &str = "
    CREATE STREAM people (id TEXT NOT NULL, org TEXT, at TIMESTAMP, name TEXT SENSITIVE, born BIGINT SENSITIVE, tags ARRAY<TEXT> SENSITIVE, home STRUCT<city TEXT, street TEXT>)
      WITH (event_id = 'id', event_time = 'at', tenant = 'org', sensitive = 'home.street', partitions = 2);
    CREATE STREAM cards (card TEXT SENSITIVE, n BIGINT) WITH (event_id = 'card', key = 'card');
    CREATE STREAM shouting AS SELECT id, upper(name) AS name, born, home['street'] AS street FROM people;
    CREATE STREAM tag AS SELECT id, UNNEST(tags) AS tag FROM people;
    CREATE TABLE known AS SELECT home['city'] AS city, count(DISTINCT name) AS names, latest_by_offset(name) AS last, collect_list(born) AS years, max(name) AS greatest FROM people GROUP BY home['city'];
    CREATE TABLE tokens AS SELECT tokenize(name) AS token, count(*) AS n FROM people GROUP BY tokenize(name);
    CREATE STREAM seen (id TEXT NOT NULL, who TEXT, at TIMESTAMP) WITH (event_id = 'id', event_time = 'at');
    CREATE TABLE open AS SELECT at, latest_by_offset(who) AS who FROM seen GROUP BY at;
    CREATE STREAM met AS SELECT s.id, p.name, p.home FROM seen s JOIN people p WITHIN 1 HOUR ON s.who = p.id;
    CREATE STREAM latest AS SELECT s.id, k.last FROM seen s LEFT JOIN known k ON k.city = s.who;
";

/// A word that is nowhere else.
fn word(kind: &str, number: u64) -> String {
    let random = SeededRandomness::new(number * 31 + kind.len() as u64);
    let letters = (0..16).map(|_| char::from(b'A' + random.below(26) as u8));
    format!("{}{kind}", letters.collect::<String>())
}

fn year(number: u64) -> i64 {
    0x4C1F_2A93_0000_0000 | (number * 2_654_435_761 % 0xFFFF_FFFF) as i64
}

fn person(number: u64) -> Value {
    json!({
        "id": format!("open{}", word("id", number)),
        "org": (["north", "south", "default"][(number % 3) as usize]),
        "at": format!("2026-03-01T{:02}:{:02}:00Z", number / 60 % 24, number % 60),
        "name": word("name", number),
        "born": year(number),
        "tags": [word("tag", number)],
        "home": {"city": "Graz", "street": word("street", number)},
        "undeclared": word("undeclared", number),
    })
}

/// What of a word stays together, however files are compressed: what it begins and ends with is in others, too.
fn core(kind: &str, number: u64) -> Vec<u8> {
    word(kind, number).as_bytes()[2..14].to_vec()
}

fn secrets(number: u64) -> Vec<Vec<u8>> {
    let words = ["name", "tag", "street", "undeclared", "card", "wrong"];
    let mut secrets: Vec<Vec<u8>> = words.iter().map(|kind| core(kind, number)).collect();
    secrets.push(year(number).to_string().into_bytes());
    secrets.push(year(number).to_le_bytes().to_vec());
    secrets.push(year(number).to_be_bytes().to_vec());
    secrets
}

/// Somebody who may see everything.
fn revealing(node: &Node) -> Client {
    let made = json!({"username": "grace", "password": PASSWORD, "roles": ["admin"]});
    let (status, answer) = node.client.post("/api/v1/users", &made);
    assert_eq!(status, 201, "{answer}");
    let grant = json!({"username": "grace", "permission": "reveal"});
    let (status, answer) = node.client.post("/api/admin/permissions/", &grant);
    assert_eq!(status, 201, "{answer}");
    sign_in(node)
}

fn sign_in(node: &Node) -> Client {
    let asked = json!({"username": "grace", "password": PASSWORD});
    let (status, answer) = node.client.post("/api-token-auth/", &asked);
    assert_eq!(status, 200, "{answer}");
    Client::new(&node.client.url, answer["token"].as_str().unwrap())
}

fn declare(node: &Node, sql: &str) {
    let (status, answer) = node.client.post("/api/v1/statements", &json!({"sql": sql}));
    assert_eq!(status, 200, "{answer}");
}

fn send(node: &Node, stream: &str, events: &Value) {
    let (status, answer) = node.client.post(&format!("/api/v1/streams/{stream}/events"), events);
    assert_eq!(status, 202, "{answer}");
}

fn texts(client: &Client, sql: &str) -> Vec<String> {
    let rows = client.sql(sql);
    rows.iter().map(|row| row.as_object().unwrap().values().next().unwrap()).map(show).collect()
}

fn show(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Everything is there for whoever may see it.
fn check(client: &Client, people: u64) {
    let sorted = |of: &dyn Fn(u64) -> String| {
        let mut all: Vec<String> = (0..people).map(of).collect();
        all.sort();
        all
    };
    for (sql, wanted) in [
        ("SELECT name FROM people ORDER BY name", sorted(&|n| word("name", n))),
        ("SELECT home['street'] AS s FROM people ORDER BY s", sorted(&|n| word("street", n))),
        ("SELECT tag FROM tag ORDER BY tag", sorted(&|n| word("tag", n))),
        ("SELECT name FROM shouting ORDER BY name", sorted(&|n| word("name", n).to_uppercase())),
        ("SELECT street FROM shouting ORDER BY street", sorted(&|n| word("street", n))),
        ("SELECT name FROM met ORDER BY name", sorted(&|n| word("name", n))),
        ("SELECT card FROM cards ORDER BY card", sorted(&|n| word("card", n))),
        ("SELECT names FROM known", vec![people.to_string()]),
        ("SELECT greatest FROM known", sorted(&|n| word("name", n)).split_off(people as usize - 1)),
        ("SELECT sum(n) AS n FROM tokens", vec![people.to_string()]),
    ] {
        assert_eq!(texts(client, sql), wanted, "{sql}");
    }
    let born = texts(client, "SELECT born FROM people ORDER BY born");
    let mut years: Vec<i64> = (0..people).map(year).collect();
    years.sort_unstable();
    assert_eq!(born, years.iter().map(i64::to_string).collect::<Vec<_>>());
    let undeclared = texts(client, "SELECT _extra FROM people ORDER BY name LIMIT 1");
    assert!(undeclared[0].contains("undeclared"), "{undeclared:?}");
}

/// Moves everything out of memory: the node starts again with a log whose files are at their ends.
fn settle_on_disk(node: &mut Node, data: &Path, environment: &[(&str, &str)]) -> Client {
    node.client.settle();
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(node.client.post("/api/v1/maintenance", &json!({})).0, 200);
    node.kill();
    *node = Node::start_with(data, environment).unwrap();
    node.client.settle();
    sign_in(node)
}

#[test]
fn no_byte_of_what_is_sensitive_is_on_disk() {
    const PEOPLE: u64 = 60;
    let (folder, data) = empty_data();
    let mut node = Node::start(&data);
    declare(&node, PACK);
    send(&node, "people", &(0..PEOPLE).map(person).collect());
    send(&node, "cards", &(0..PEOPLE).map(|n| json!({"card": word("card", n), "n": n})).collect());
    let seen = |n| {
        let person = person(n);
        json!({"id": format!("s{n}"), "who": person["id"], "at": person["at"]})
    };
    send(&node, "seen", &(0..PEOPLE).map(seen).collect());
    // What becomes a dead letter.
    let (_, answer) = node.client.post(
        "/api/v1/streams/people/events",
        &json!([{"id": "bad", "at": "2026-03-01", "name": word("wrong", 0), "born": word("wrong", 1)}]),
    );
    assert_eq!(answer["rejected"], 1, "{answer}");
    // An event that comes again, and one that says something else under a known name.
    send(&node, "cards", &json!([{"card": word("card", 0), "n": 0}]));
    let (status, _) =
        node.client.post("/api/v1/streams/cards/events", &json!({"card": word("card", 0), "n": 9}));
    assert_eq!(status, 409);

    let reveal = revealing(&node);
    node.client.settle();
    check(&reveal, PEOPLE);
    let again = settle_on_disk(&mut node, &data, &[]);
    check(&again, PEOPLE);
    let copy = folder.path().join("copy");
    let (status, answer) = node.client.post("/api/v1/backup", &json!({"to": copy}));
    assert_eq!(status, 200, "{answer}");
    // The node's own words are in the file beside.
    let everywhere = folder.path();
    let open: Vec<Vec<u8>> = (0..PEOPLE).map(|n| core("id", n)).collect();
    let found = holding(everywhere, &open);
    println!(
        "{} of {PEOPLE} open words are found in the log",
        found.iter().filter(|found| found.contains("data/log/")).count()
    );
    for part in ["data/log/", "data/lake/streams/PEOPLE", "data/warehouse/", "copy/log/", "copy/lake/"] {
        assert!(found.iter().any(|found| found.contains(part)), "what is open is found in {part}: {found:?}");
    }
    let sought: Vec<Vec<u8>> = (0..PEOPLE).flat_map(secrets).collect();
    assert_eq!(holding(everywhere, &sought), Vec::<String>::new());
    node.kill();

    // A copy is a data folder, and whoever holds its keys may go on with it.
    let node = Node::start(&copy);
    node.client.settle();
    check(&sign_in(&node), PEOPLE);
}

fn rotate(client: &Client, master: bool) -> Option<(u16, Value)> {
    let body = json!({"master": master}).to_string();
    client.try_post("/api/v1/keys/encryption/rotate", "application/json", &body)
}

#[test]
fn keys_change_under_load_and_kills() {
    const WRITERS: u64 = 4;
    let cycles = setting("HIGHWATER_CYCLES", 8);
    let (_folder, data) = empty_data();
    let mut node = Node::start(&data);
    declare(&node, PACK);
    let current: Arc<Mutex<Client>> = Arc::new(Mutex::new(node.client.clone()));
    let stop = Arc::new(AtomicBool::new(false));
    let numbers = Arc::new(AtomicU64::new(0));
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| {
            let (current, stop, numbers) = (current.clone(), stop.clone(), numbers.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let first = numbers.fetch_add(5, Ordering::Relaxed);
                    let body = Value::from((first..first + 5).map(person).collect::<Vec<_>>()).to_string();
                    loop {
                        let client = current.lock().unwrap().clone();
                        let path = "/api/v1/streams/people/events";
                        match client.try_post(path, "application/json", &body) {
                            Some((202, _)) => break,
                            // The node was killed.
                            None => std::thread::sleep(Duration::from_millis(20)),
                            Some((status, answer)) => panic!("{status}: {answer}"),
                        }
                    }
                }
            })
        })
        .collect();
    let chance = SeededRandomness::new(5);
    let mut rotated = 0;
    for cycle in 0..cycles {
        // Changes, one of which is cut off.
        for _ in 0..3 {
            let (status, answer) = rotate(&node.client, cycle % 2 == 1).unwrap();
            assert_eq!(status, 200, "{answer}");
            rotated += 1;
            std::thread::sleep(Duration::from_millis(chance.below(100)));
        }
        let client = node.client.clone();
        let cut_off = std::thread::spawn(move || rotate(&client, cycle % 2 == 1));
        std::thread::sleep(Duration::from_micros(chance.below(6000)));
        node.kill();
        cut_off.join().unwrap();
        node = Node::start(&data);
        *current.lock().unwrap() = node.client.clone();
    }
    stop.store(true, Ordering::Relaxed);
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    let people = numbers.load(Ordering::Relaxed);
    let (_, keys) = node.client.get("/api/v1/keys/encryption");
    let keys = keys["keys"].as_array().unwrap().clone();
    let newest = keys.iter().filter(|key| key["encrypts"] == true).count();
    assert!(keys.len() > rotated / 2 && newest < keys.len(), "{keys:?}");
    let grace = revealing(&node);
    node.client.settle();
    let reads_all = |client: &Client| {
        let mut found = texts(client, "SELECT name FROM people ORDER BY name");
        let mut wanted: Vec<String> = (0..people).map(|n| word("name", n)).collect();
        found.sort();
        wanted.sort();
        assert!(found == wanted, "{} of {people} people are there", found.len());
        assert_eq!(texts(client, "SELECT names FROM known"), [people.to_string()]);
        assert_eq!(texts(client, "SELECT count(DISTINCT name) AS n FROM shouting"), [people.to_string()]);
    };
    reads_all(&grace);
    let grace = settle_on_disk(&mut node, &data, &[]);
    reads_all(&grace);
    println!("{cycles} kills, {rotated} changes of keys, {people} events");
}

#[test]
fn without_its_keys_a_node_does_not_start() {
    let (folder, data) = empty_data();
    let mut node = Node::start(&data);
    declare(&node, PACK);
    send(&node, "people", &person(1));
    node.kill();
    for name in ["data.keys", "master.key"] {
        let (file, aside) = (data.join("keys").join(name), folder.path().join(name));
        std::fs::rename(&file, &aside).unwrap();
        assert!(Node::start_with(&data, &[]).is_none(), "it started without {name}");
        let said = std::fs::read_to_string(data.with_extension("log")).unwrap();
        let last = said.lines().rev().find(|line| line.contains("error")).unwrap();
        assert!(last.contains(name) && last.contains("restore"), "{last}");
        assert!(!file.exists(), "no new {name} was made in the place of the lost one");
        std::fs::rename(&aside, &file).unwrap();
    }
    let node = Node::start(&data);
    assert_eq!(node.client.number("SELECT count(*) FROM people"), 1);
}

#[test]
fn a_master_key_may_lie_elsewhere_and_be_changed_there() {
    let (folder, data) = empty_data();
    let elsewhere = folder.path().join("highwater.key");
    let environment = [("HIGHWATER__ENCRYPTION__MASTER_KEY", elsewhere.to_str().unwrap())];
    assert!(Node::start_with(&data, &environment).is_none(), "there is no such file");
    let (old, new) = ("17".repeat(32), "2a".repeat(32));
    std::fs::write(&elsewhere, format!("{old}\n")).unwrap();
    assert!(Node::start_with(&data, &environment).is_none(), "others can read it");
    std::fs::set_permissions(&elsewhere, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut node = Node::start_with(&data, &environment).unwrap();
    declare(&node, PACK);
    send(&node, "people", &person(1));
    let (status, answer) = rotate(&node.client, true).unwrap();
    assert_eq!((status, answer["code"].as_str()), (409, Some("not_rotated")), "{answer}");
    let first = node.client.get("/api/v1/keys/encryption").1["master"].clone();
    assert!(!data.join("keys/master.key").exists());
    node.kill();
    assert!(Node::start_with(&data, &[]).is_none(), "the key lies elsewhere");
    // A new one, while the old one is still there, and then alone.
    for keys in [format!("{new}\n{old}\n"), format!("{new}\n")] {
        std::fs::write(&elsewhere, keys).unwrap();
        let mut node = Node::start_with(&data, &environment).unwrap();
        assert_ne!(node.client.get("/api/v1/keys/encryption").1["master"], first);
        assert_eq!(node.client.number("SELECT count(*) FROM people"), 1);
        node.kill();
    }
    for (keys, says) in [("", "64"), ("17", "64"), (old.as_str(), "master key")] {
        std::fs::write(&elsewhere, keys).unwrap();
        assert!(Node::start_with(&data, &environment).is_none(), "{keys:?}");
        let said = std::fs::read_to_string(data.with_extension("log")).unwrap();
        assert!(said.lines().last().unwrap_or_default().contains(says), "{says}: {said}");
    }
}
