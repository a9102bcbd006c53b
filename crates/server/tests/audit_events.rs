//! The audit-event service on a real node: pages against an oracle, one policy at every door, answers that are
//! remembered for a second and no longer, files that are written down, and proofs that hold without the node.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use datafusion::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use highwater_event::SeededRandomness;
use highwater_sim::setting;
use serde_json::{Value, json};
use support::{Client, Node, empty_data};

fn start(data: &Path) -> Node {
    let node = Node::start(data);
    let folder = format!("{}/../../packs/audit-events", env!("CARGO_MANIFEST_DIR"));
    node.run(&["apply", "-f", &folder]);
    node
}

/// Somebody of a tenant who sees what is theirs and brings events.
fn user(node: &Node, name: &str, tenant: &str) -> Client {
    node.user(name, json!({"tenant": tenant, "roles": ["DataEngineer"]}))
}

fn get(client: &Client, path: &str) -> Value {
    let (status, answer) = client.get(path);
    assert_eq!(status, 200, "{path}: {answer}");
    answer
}

/// Ids of a page.
fn ids(page: &Value) -> Vec<String> {
    page["events"].as_array().unwrap().iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect()
}

const ACTORS: [&str; 5] = ["ada", "adam", "bob", "a*", "eve"];
const ACTIONS: [&str; 4] = ["user.login", "user.logout", "order.ship", "order"];
const WORDS: [&str; 6] = ["red", "green", "blue", "Reddish", "über", "null"];
const DAY: i64 = 1_777_593_600;

fn below(chance: &SeededRandomness, most: usize) -> usize {
    chance.below(most as u64) as usize
}

/// An event with members that meet often, and times of which many are the same.
fn event(chance: &SeededRandomness, id: usize, tenant: &str) -> Value {
    let words: Vec<&str> = (0..below(chance, 4)).map(|_| WORDS[below(chance, WORDS.len())]).collect();
    let mut event = json!({
        "id": format!("e{id}"),
        "tenant_id": tenant,
        "actor": ACTORS[below(chance, ACTORS.len())],
        "action": ACTIONS[below(chance, ACTIONS.len())],
        "resource": format!("order/{}", below(chance, 3)),
        "timestamp": DAY + below(chance, 40) as i64,
    });
    if chance.below(3) > 0 {
        event["outcome"] = json!(["success", "denied"][below(chance, 2)]);
    }
    if chance.below(4) > 0 {
        event["details"] = json!({"said": words.join(" ")});
    }
    event
}

type Condition = Box<dyn Fn(&Value) -> bool>;

/// Filters by chance: as a query, and as a question about an event.
fn filters(chance: &SeededRandomness) -> (String, impl Fn(&Value) -> bool + use<>) {
    let mut query = String::new();
    let mut conditions: Vec<Condition> = Vec::new();
    for (member, known) in [("actor", &ACTORS[..]), ("action", &ACTIONS[..])] {
        let wanted = known[below(chance, known.len())].to_owned();
        match chance.below(3) {
            0 => {
                query.push_str(&format!("&{member}={wanted}"));
                // What ends in a star is a beginning, and the text itself.
                conditions.push(Box::new(move |event| {
                    let found = event[member].as_str().unwrap();
                    found == wanted || wanted.strip_suffix('*').is_some_and(|start| found.starts_with(start))
                }));
            }
            1 => {
                let start: String =
                    wanted.chars().take(1 + below(chance, 3)).filter(|it| *it != '*').collect();
                query.push_str(&format!("&{member}={start}*"));
                conditions.push(Box::new(move |event| event[member].as_str().unwrap().starts_with(&start)));
            }
            _ => {}
        }
    }
    if chance.below(4) == 0 {
        query.push_str("&outcome=denied");
        conditions.push(Box::new(|event| event["outcome"] == "denied"));
    }
    if chance.below(3) == 0 {
        let (from, to) = (DAY + below(chance, 30) as i64, DAY + 10 + below(chance, 40) as i64);
        query.push_str(&format!("&time_from={from}&time_to={to}"));
        conditions.push(Box::new(move |event| (from..to).contains(&event["timestamp"].as_i64().unwrap())));
    }
    if chance.below(3) == 0 {
        let word = WORDS[below(chance, WORDS.len())];
        query.push_str(&format!(
            "&q={}",
            word.replace('ü', "%C3%BC").to_uppercase().replace("%C3%BC", "%C3%9C")
        ));
        conditions.push(Box::new(move |event| {
            let said = event["details"]["said"].as_str().map(str::to_lowercase);
            said.is_some_and(|said| said.split(' ').any(|it| it == word.to_lowercase()))
        }));
    }
    (query, move |event: &Value| conditions.iter().all(|holds| holds(event)))
}

/// Every page of every question holds what a scan of the events finds, in its order, whether they are in the log or in
/// the lake, and whatever comes in meanwhile.
#[test]
fn pages_are_what_a_scan_finds() {
    let (_folder, data) = empty_data();
    let node = start(&data);
    let seed = setting("HIGHWATER_SEED", 11);
    let chance = SeededRandomness::new(seed);
    let tenants = ["default", "north", "south"];
    let readers = [user(&node, "d", "default"), user(&node, "n", "north"), user(&node, "s", "south")];
    let mut sent: Vec<Value> = Vec::new();
    for round in 0..setting("HIGHWATER_CYCLES", 40) as usize {
        let more: Vec<Value> = (0..20)
            .map(|at| event(&chance, sent.len() + at, tenants[below(&chance, tenants.len())]))
            .collect();
        let (status, answer) = node.client.post("/events/batch", &json!({"events": more}));
        assert_eq!(status, 202, "{answer}");
        sent.extend(more);
        let (query, holds) = filters(&chance);
        let reader = below(&chance, readers.len() + 1);
        let oldest_first = chance.below(2) == 0;
        // One partition, so the place in it is the order that they were sent in.
        let mut wanted: Vec<(i64, usize)> = sent
            .iter()
            .enumerate()
            .filter(|(_, event)| reader == tenants.len() || event["tenant_id"] == tenants[reader])
            .filter(|(_, event)| holds(event))
            .map(|(place, event)| (event["timestamp"].as_i64().unwrap(), place))
            .collect();
        wanted.sort_unstable();
        if !oldest_first {
            wanted.reverse();
        }
        let wanted: Vec<String> = wanted.into_iter().map(|(_, place)| format!("e{place}")).collect();
        let client = readers.get(reader).unwrap_or(&node.client);
        let limit = 1 + below(&chance, 60);
        let order = if oldest_first { "asc" } else { "desc" };
        let mut found = Vec::new();
        let mut cursor = String::new();
        loop {
            let path = format!("/events?limit={limit}&sort={order}{query}{cursor}");
            let page = get(client, &path);
            let case = format!("seed {seed}, round {round}: {path}");
            assert_eq!(page["total"], wanted.len(), "{case}");
            let shown = ids(&page);
            assert!(shown.len() <= limit, "{case}");
            found.extend(shown);
            match page["next_cursor"].as_str() {
                None => break,
                Some(next) => cursor = format!("&cursor={next}"),
            }
        }
        assert_eq!(found, wanted, "seed {seed}, round {round}: {query}");
        if round % 13 == 12 {
            // Until they are in the lake.
            node.client.settle();
            std::thread::sleep(Duration::from_millis(600));
        }
    }
}

/// What comes in between two pages moves none of them.
#[test]
fn new_events_move_no_page() {
    let (_folder, data) = empty_data();
    let node = start(&data);
    let at = |n: usize| json!({"id": format!("e{n}"), "tenant_id": "default", "actor": "a", "action": "b", "resource": "c", "timestamp": DAY + n as i64});
    let send =
        |events: Vec<Value>| assert_eq!(node.client.post("/events/batch", &json!({"events": events})).0, 202);
    send((0..10).map(at).collect());
    let first = get(&node.client, "/events?limit=4");
    assert_eq!(ids(&first), ["e9", "e8", "e7", "e6"]);
    send((10..30).map(at).collect());
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = get(&node.client, &format!("/events?limit=4&cursor={cursor}"));
    assert_eq!(ids(&second), ["e5", "e4", "e3", "e2"]);
    assert_eq!(second["total"], 30, "how many there are now");
}

/// A tenant's events are seen by nobody else: on no page, by no id, in no proof, in no file, and not out of memory.
#[test]
fn one_policy_at_every_door() {
    let (_folder, data) = empty_data();
    let node = start(&data);
    let (north, south) = (user(&node, "n", "north"), user(&node, "s", "south"));
    let event = |id: &str| json!({"id": id, "actor": format!("canary-{id}"), "action": "b", "resource": "c", "timestamp": DAY, "details": {"word": "secret"}});
    assert_eq!(north.post("/events", &event("n1")).0, 202);
    assert_eq!(south.post("/events", &event("s1")).0, 202);
    for (client, own, other) in [(&north, "n1", "s1"), (&south, "s1", "n1")] {
        // The same question of both within a second.
        for path in ["/events", "/events?q=secret", "/events?actor=canary*", "/events?sort=asc&limit=1"] {
            let page = get(client, path);
            assert_eq!((ids(&page), &page["total"]), (vec![own.to_owned()], &json!(1)), "{path}");
        }
        assert_eq!(get(client, &format!("/events/{own}"))["actor"], format!("canary-{own}"));
        for path in [format!("/events/{other}"), format!("/events/{other}/proof")] {
            let (status, answer) = client.get(&path);
            assert_eq!(status, 404, "{path}: {answer}");
            assert!(!answer.to_string().contains("canary"), "{answer}");
        }
        let (status, answer) =
            client.get(&format!("/events?tenant_id={}", if own == "n1" { "south" } else { "north" }));
        assert_eq!((status, &answer["code"]), (403, &json!("foreign_tenant")));
        for format in ["ndjson", "csv", "parquet"] {
            let (status, file) = client.call("GET", &format!("/events/export?format={format}"), &[], &[]);
            let text = file.to_string();
            assert!(status == 200 && text.contains(&format!("canary-{own}")), "{format}: {text}");
            assert!(!text.contains(&format!("canary-{other}")), "{format}: {text}");
        }
        // A proof shows the events beside its own as hashes only.
        let proof = get(client, &format!("/events/{own}/proof"));
        assert!(!decoded(proof.as_str().unwrap()).contains(&format!("canary-{other}")));
    }
    let (status, _) = Client::new(&node.client.url, "").get("/events");
    assert_eq!(status, 401);
    // The trail says what was asked for, and what stood before it.
    let seen = node.client.sql(
        "SELECT seen FROM _audit WHERE actor = 'n' AND path = '/events' AND seen LIKE '%\"q\":\"secret\"%'",
    );
    let seen: Value = serde_json::from_str(seen[0]["seen"].as_str().unwrap()).unwrap();
    assert_eq!(seen["parameters"], json!({"q": "secret"}));
    assert!(seen["lens"]["audit_events"].as_str().unwrap().contains("\"tenant_id\" = 'north'"), "{seen}");
    // Another sender's id is not taken by one's own.
    assert_eq!(north.post("/events", &event("s1")).0, 202);
    assert_eq!(get(&node.client, "/events?actor=canary-s1")["total"], 2);
}

/// The data of the application in a proof.
fn decoded(proof: &str) -> String {
    use base64::Engine;
    let line = proof.lines().nth(1).unwrap().strip_prefix("extra ").unwrap();
    String::from_utf8(base64::engine::general_purpose::STANDARD.decode(line).unwrap()).unwrap()
}

/// A page that is remembered is a second old at most, and never one of before a change of what its caller may see.
#[test]
fn what_is_remembered_is_a_second_old_at_most() {
    let (_folder, data) = empty_data();
    let node = start(&data);
    let reader = user(&node, "r", "default");
    let mut remembered = 0;
    for n in 0..20 {
        let before = get(&reader, "/events")["total"].as_u64().unwrap();
        let event =
            json!({"id": format!("e{n}"), "actor": "ada", "action": "b", "resource": "c", "timestamp": DAY});
        assert_eq!(reader.post("/events", &event).0, 202);
        let acked = Instant::now();
        loop {
            let asked = acked.elapsed();
            let total = get(&reader, "/events")["total"].as_u64().unwrap();
            if total == n + 1 {
                break;
            }
            assert!(
                total == before && asked < Duration::from_secs(1),
                "after {asked:?} the page of {total} is old"
            );
            remembered += 1;
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    assert!(remembered > 10, "nothing was remembered");
    // Also when nobody has asked meanwhile, so that nothing was made again.
    let event = json!({"id": "e20", "actor": "ada", "action": "b", "resource": "c", "timestamp": DAY});
    assert_eq!(reader.post("/events", &event).0, 202);
    std::thread::sleep(Duration::from_millis(1001));
    assert_eq!(get(&reader, "/events")["total"], 21, "a page is older than a second");
    let said =
        "SELECT count(*) AS n FROM _audit WHERE path = '/events' AND seen LIKE '%\"remembered\":true%'";
    assert!(node.client.number(said) > 10, "an answer out of memory has its entry, too");

    assert_eq!(get(&reader, "/events?limit=1")["events"][0]["actor"], "ada");
    let mask = "CREATE COLUMN MASK hidden ON audit_events (actor) USING '***'";
    assert_eq!(node.client.post("/api/v1/statements", &json!({"sql": mask})).0, 200);
    assert_eq!(get(&reader, "/events?limit=1")["events"][0]["actor"], "***", "at once");
    assert_eq!(get(&reader, "/events?actor=ada")["total"], 0, "a filter sees the mask");
    let (status, answer) = reader.get("/events/e1/proof");
    assert_eq!((status, &answer["code"]), (403, &json!("forbidden")), "a proof would show what is masked");
    let filter = "CREATE ROW FILTER none ON audit_events USING (false)";
    assert_eq!(node.client.post("/api/v1/statements", &json!({"sql": filter})).0, 200);
    assert_eq!(get(&reader, "/events?limit=1")["total"], 0, "at once");
    let off = json!({"active": false}).to_string();
    let content = ("content-type".to_owned(), "application/json".to_owned());
    assert_eq!(node.client.call("PATCH", "/api/v1/users/r", &[content], off.as_bytes()).0, 200);
    assert_eq!(reader.get("/events?limit=1").0, 401, "at once");
}

/// Whoever asks for a page all the time waits for it once: it is made again while the old one may still be given.
#[test]
fn a_page_that_is_asked_for_all_the_time_is_waited_for_once() {
    let (_folder, data) = empty_data();
    let node = start(&data);
    let reader = user(&node, "r", "default");
    let started = Instant::now();
    let mut asked = 0;
    while started.elapsed() < Duration::from_secs(6) {
        get(&reader, "/events");
        asked += 1;
        std::thread::sleep(Duration::from_millis(50));
    }
    let entries = "SELECT count(*) AS n FROM _audit WHERE path = '/events'";
    let entries = |also: &str| node.client.number(&format!("{entries}{also}"));
    assert_eq!(entries(""), asked, "each has its entry");
    let waited = asked - entries(" AND seen LIKE '%\"remembered\":true%'");
    // Five or six of them would have to wait; on a busy machine one may come before the new page is there.
    assert!((1..4).contains(&waited), "{waited} of {asked} waited");
}

/// The same rows in every format; each file is written down at its end, with the number of rows and its hash.
#[test]
fn files_hold_all_rows_and_are_written_down() {
    let (folder, data) = empty_data();
    let node = start(&data);
    let chance = SeededRandomness::new(4);
    for part in 0..5 {
        let events: Vec<Value> = (0..2_000).map(|at| event(&chance, part * 2_000 + at, "default")).collect();
        assert_eq!(node.client.post("/events/batch", &json!({"events": events})).0, 202);
        std::thread::sleep(Duration::from_millis(200));
    }
    let file = |format: &str| {
        let mut answer = node.client.open(&format!("/events/export?format={format}&actor=ada*"));
        assert_eq!(answer.status(), 200);
        let shown = answer.headers()["content-disposition"].to_str().unwrap().to_owned();
        assert_eq!(shown, format!("attachment; filename=\"export.{format}\""));
        answer.body_mut().with_config().limit(1 << 30).read_to_vec().unwrap()
    };
    let total = get(&node.client, "/events?actor=ada*&limit=1")["total"].as_u64().unwrap() as usize;
    assert!(total > 1_000);
    let lines = file("ndjson");
    let mut rows: BTreeMap<String, Value> = BTreeMap::new();
    for line in std::str::from_utf8(&lines).unwrap().lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        assert!(rows.insert(row["id"].as_str().unwrap().to_owned(), row).is_none(), "{line}");
    }
    assert_eq!(rows.len(), total);
    let table = String::from_utf8(file("csv")).unwrap();
    assert_eq!(table.lines().count(), total + 1);
    assert!(
        table.starts_with("id,tenant_id,actor,action,resource,timestamp,outcome,ip,details,recorded_at,")
    );
    let packed = Bytes::from(file("parquet"));
    let mut offsets = Vec::new();
    for batch in ParquetRecordBatchReaderBuilder::try_new(packed.clone()).unwrap().build().unwrap() {
        let batch = batch.unwrap();
        let names: Vec<String> = batch.schema().fields().iter().map(|field| field.name().clone()).collect();
        let mut text = String::new();
        highwater_event::json::rows_as_json(&batch, &names, true, "\n", &mut text);
        for row in text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
            let known = &rows[row["id"].as_str().unwrap()];
            for member in ["actor", "timestamp", "recorded_at", "offset", "outcome"] {
                assert_eq!(row[member], known[member]);
            }
            offsets.push(row["offset"].as_i64().unwrap());
        }
    }
    offsets.sort_unstable();
    offsets.dedup();
    assert_eq!(offsets.len(), total);

    let written = node.client.sql(
        "SELECT outcome, seen FROM _audit WHERE path = '/events/export' AND seen LIKE '%\"ended\":true%' ORDER BY _offset",
    );
    assert_eq!(written.len(), 3);
    for (entry, file) in written.iter().zip([&lines[..], table.as_bytes(), &packed]) {
        let seen: Value = serde_json::from_str(entry["seen"].as_str().unwrap()).unwrap();
        assert_eq!((&entry["outcome"], &seen["rows"]), (&json!("allowed"), &json!(total)));
        assert_eq!(seen["sha256"], sha256(folder.path(), file), "{seen}");
    }
    // A file that nobody reads has an end in the trail, too.
    drop(node.client.open("/events/export"));
    let ended =
        "SELECT count(*) AS n FROM _audit WHERE path = '/events/export' AND seen LIKE '%\"ended\":true%'";
    let deadline = Instant::now() + Duration::from_secs(10);
    while node.client.number(ended) < 4 {
        assert!(Instant::now() < deadline, "the end of a file that nobody read is not written down");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// By another program than ours.
fn sha256(folder: &Path, bytes: &[u8]) -> String {
    let path = folder.join("hashed");
    std::fs::write(&path, bytes).unwrap();
    let said = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(said.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

fn verify(file: &Path, keys: &str) -> Output {
    let mut arguments = vec!["audit", "verify", "--event", file.to_str().unwrap()];
    keys.lines().for_each(|key| arguments.extend(["--key", key]));
    Command::new(env!("CARGO_BIN_EXE_highwater")).args(arguments).output().unwrap()
}

/// Events that were acked while the node was killed again and again, one by one and in batches: each of them has a
/// proof, from the log and from the lake, and no changed proof is one. Go says the same.
#[test]
fn every_acked_event_has_a_proof_across_kills() {
    let (folder, data) = empty_data();
    let mut node = start(&data);
    let acked: Mutex<Vec<Value>> = Mutex::default();
    let chance = SeededRandomness::new(setting("HIGHWATER_SEED", 21));
    for cycle in 0..setting("HIGHWATER_CYCLES", 3) {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for sender in 0..4 {
                let (client, stop, acked) = (node.client.clone(), &stop, &acked);
                scope.spawn(move || {
                    let chance = SeededRandomness::new(cycle * 10 + sender);
                    for round in 0.. {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        let first = ((cycle * 4 + sender) * 1_000_000 + round * 100) as usize;
                        let many = if round % 5 == 0 { 100 } else { 1 };
                        let events: Vec<Value> =
                            (0..many).map(|at| event(&chance, first + at, "default")).collect();
                        let body = json!({"events": events}).to_string();
                        match client.try_post("/events/batch", "application/json", &body) {
                            Some((202, _)) => acked.lock().unwrap().extend(events),
                            _ => return,
                        }
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(400 + chance.below(600)));
            node.kill();
            stop.store(true, Ordering::Relaxed);
        });
        node = Node::start(&data);
    }
    node.client.settle();
    // As many events are sealed as there are.
    let sealed = node.client.number(
        "SELECT sum(CAST(regexp_replace(seen, '.*\"events\":([0-9]+).*', '\\1') AS BIGINT)) FROM _audit WHERE resource = 'stream:audit_events' AND action = 'seal'",
    );
    let there = node.client.number("SELECT count(*) FROM audit_events");
    assert!(there > 300 && sealed == there, "{sealed} of {there} events are sealed");
    let keys = node.client.try_get("/audit/keys").unwrap().1;
    let acked = acked.into_inner().unwrap();
    let file = folder.path().join("proof");
    let mut last = String::new();
    for _ in 0..setting("HIGHWATER_CYCLES", 3) * 12 {
        let event = &acked[below(&chance, acked.len())];
        let id = event["id"].as_str().unwrap();
        last = get(&node.client, &format!("/events/{id}/proof")).as_str().unwrap().to_owned();
        std::fs::write(&file, &last).unwrap();
        let verified = verify(&file, &keys);
        assert!(verified.status.success(), "{id}: {}", String::from_utf8_lossy(&verified.stderr));
        let said: Value = serde_json::from_slice(&verified.stdout).unwrap();
        for member in ["id", "actor", "action", "resource", "tenant_id", "outcome"] {
            assert_eq!(said["event"][member], event[member], "{id}");
        }
        assert_eq!(said["stream"], "audit_events");
    }
    for _ in 0..40 {
        let mut bad = last.clone().into_bytes();
        bad[below(&chance, last.len())] ^= 1 << chance.below(8);
        std::fs::write(&file, &bad).unwrap();
        assert_eq!(verify(&file, &keys).status.code(), Some(8), "{}", String::from_utf8_lossy(&bad));
    }
    std::fs::write(&file, &last).unwrap();
    // A proof from before a change of keys holds with the old key, one from after it with the new one.
    node.run(&["audit", "rotate-key"]);
    assert!(verify(&file, &keys).status.success());

    if Command::new("go").arg("version").output().is_err() {
        println!("NOT RUN Go: no go (apt install golang-go)");
        return;
    }
    std::fs::write(folder.path().join("keys"), &keys).unwrap();
    let go = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/independent/go");
    let run = |file: &Path| {
        let mut run = Command::new("go");
        run.args(["run", ".", "event"])
            .args([file, &folder.path().join("keys")])
            .current_dir(&go)
            .output()
            .unwrap()
    };
    let good = run(&file);
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    let other = last.replacen("index ", "index 1", 1);
    std::fs::write(&file, other).unwrap();
    assert!(!run(&file).status.success());
}
