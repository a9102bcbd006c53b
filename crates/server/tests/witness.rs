//! The audit trail before others: a witness (an implementation of somebody else, run by the test) signs its
//! checkpoints, copies of them go elsewhere, keys change, and old entries go.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::json;
use support::{Node, empty_data, free_port};

/// Ended when it is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A witness with its key, in a folder.
struct Witness {
    _processes: [Process; 2],
    programs: PathBuf,
    database: PathBuf,
    url: String,
    key: String,
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn run(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str], folder: &Path) -> String {
    let output = Command::new(program).args(arguments).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn can_run() -> bool {
    for program in ["go", "ssh-agent", "ssh-add", "ssh-keygen"] {
        // Some of them know no --version, and end at once when they are asked something.
        let there = Command::new(program).arg("version").stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        match there {
            Ok(mut child) => drop((child.kill(), child.wait())),
            Err(_) => {
                println!("NOT RUN a witness: no {program} (apt install golang-go openssh-client)");
                return false;
            }
        }
    }
    true
}

impl Witness {
    fn start(folder: &Path) -> Self {
        let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/independent/witness");
        let programs = folder.join("programs");
        std::fs::create_dir_all(&programs).unwrap();
        let into = format!("{}/", programs.display());
        run("go", &["build", "-o", &into, ".", "filippo.io/torchwood/cmd/litewitness"], &module);
        run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", "key"], folder);
        let agent = Command::new("ssh-agent")
            .args(["-D", "-a", "agent.sock"])
            .current_dir(folder)
            .stdout(Stdio::null())
            .spawn();
        let agent = Process(agent.unwrap());
        wait_for("ssh-agent", || folder.join("agent.sock").exists().then_some(()));
        let added = Command::new("ssh-add")
            .args(["-q", "key"])
            .env("SSH_AUTH_SOCK", "agent.sock")
            .current_dir(folder)
            .status();
        assert!(added.unwrap().success());
        let fingerprint = run("ssh-keygen", &["-lf", "key.pub"], folder);
        let fingerprint = fingerprint.split(' ').nth(1).unwrap();
        let listen = format!("127.0.0.1:{}", free_port());
        let mut witness = Command::new(programs.join("litewitness"))
            .args(["-name", "witness.example/w", "-key", fingerprint, "-ssh-agent", "agent.sock"])
            .args(["-db", "witness.db", "-listen", &listen])
            .current_dir(folder)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(witness.stderr.take().unwrap()).lines();
        let key = lines.find_map(|line| Some(line.unwrap().split_once("vkey=")?.1.to_owned())).unwrap();
        // Somebody has to read what it writes.
        std::thread::spawn(move || lines.count());
        wait_for("the witness", || std::net::TcpStream::connect(&listen).ok());
        Self {
            _processes: [Process(witness), agent],
            programs,
            database: folder.join("witness.db"),
            url: format!("http://{listen}"),
            key,
        }
    }

    /// Tells it of a log.
    fn know(&self, origin: &str, key: &str) {
        let database = self.database.to_str().unwrap();
        run(self.programs.join("witness"), &[database, origin, key], &self.programs);
    }
}

fn highwater(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_highwater")).args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn text(node: &Node, path: &str) -> String {
    let (status, answer) = node.client.get(path);
    assert_eq!(status, 200, "{path}: {answer}");
    answer.as_str().unwrap().to_owned()
}

/// Entries in a checkpoint.
fn size(note: &str) -> u64 {
    note.lines().nth(1).unwrap().parse().unwrap()
}

/// A receiver of checkpoints: the bodies that were posted to it.
fn receiver() -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/kept", listener.local_addr().unwrap());
    let (send, received) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut length = 0;
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap() == 0 || line == "\r\n" {
                    break;
                }
                if let Some(number) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = number.trim().parse().unwrap();
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").unwrap();
            if send.send(String::from_utf8(body).unwrap()).is_err() {
                return;
            }
        }
    });
    (url, received)
}

#[test]
fn a_witness_signs_and_copies_are_kept_elsewhere() {
    if !can_run() {
        return;
    }
    let (folder, data) = empty_data();
    let witness = Witness::start(folder.path());
    let kept = folder.path().join("kept");
    let (webhook, received) = receiver();
    let witnesses = format!("{} {}", witness.url, witness.key);
    let publish = format!("{},{webhook}", kept.display());
    let environment = [
        ("HIGHWATER__AUDIT__WITNESSES", witnesses.as_str()),
        ("HIGHWATER__AUDIT__PUBLISH", &publish),
        ("HIGHWATER__AUDIT__PUBLISH_EVERY", "0.2 seconds"),
    ];
    let mut node = Node::start_with(&data, &environment).unwrap();
    // A witness signs no log that it was not told of, and the node says what is missing.
    wait_for("the witness refuses", || node.log().contains("it does not know this log").then_some(()));
    assert_eq!(node.client.get("/audit/witnessed").0, 404);
    let keys = text(&node, "/audit/keys");
    let origin = keys.split('+').next().unwrap().to_owned();
    witness.know(&origin, keys.trim());
    let signed = wait_for("the witness signs", || {
        let (status, note) = node.client.get("/audit/witnessed");
        (status == 200).then(|| note.as_str().unwrap().to_owned())
    });
    assert!(signed.contains("\u{2014} witness.example/w "), "{signed}");
    assert!(received.iter().any(|note| note.contains("\u{2014} witness.example/w ")));
    let files = || std::fs::read_dir(&kept).unwrap().count();
    assert!(files() > 0);

    // A proof leads to a checkpoint that the witness has signed.
    let proof = text(&node, "/api/v1/audit/entries/0/proof");
    assert!(proof.contains("\u{2014} witness.example/w "), "{proof}");

    // Another key: the witness, told of it, goes on; without being told it still knows the old one.
    let changed = highwater(&["audit", "rotate-key", "--data", data.to_str().unwrap()]);
    assert!(changed.status.success(), "{}", said(&changed));
    let before = size(&text(&node, "/audit/checkpoint"));
    // Reading checkpoints leaves no entry: without another act the tree stays as it is.
    assert_eq!(node.client.get("/api/v1/streams").0, 200);
    wait_for("both keys sign", || {
        let note = text(&node, "/audit/witnessed");
        (size(&note) > before && note.matches(&format!("\u{2014} {origin} ")).count() == 2).then_some(())
    });

    // After a kill it goes on from what the witness knows.
    node.kill();
    let node = Node::start_with(&data, &environment).unwrap();
    let before = size(&text(&node, "/audit/checkpoint"));
    assert_eq!(node.client.get("/api/v1/streams").0, 200);
    wait_for("the witness signs again", || (size(&text(&node, "/audit/witnessed")) > before).then_some(()));

    // Every checkpoint that was kept is continued by the trail, for whoever knows the first key alone.
    let copy = folder.path().join("copy");
    let copied = highwater(&["audit", "export", copy.to_str().unwrap(), "--data", data.to_str().unwrap()]);
    assert!(copied.status.success(), "{}", said(&copied));
    let mut arguments = vec!["audit", "verify", "--key", keys.trim(), "--export", copy.to_str().unwrap()];
    let paths: Vec<String> = std::fs::read_dir(&kept)
        .unwrap()
        .map(|file| file.unwrap().path().display().to_string())
        .filter(|path| size(&std::fs::read_to_string(path).unwrap()) <= before)
        .collect();
    paths.iter().for_each(|path| arguments.extend(["--checkpoint", path]));
    assert!(paths.len() > 2, "{paths:?}");
    let verified = highwater(&arguments);
    assert!(verified.status.success(), "{}", said(&verified));

    // The folder of a node that lost entries: neither the witness nor the folder takes what it signs.
    drop(node);
    std::fs::remove_dir_all(data.join("log")).unwrap();
    std::fs::remove_dir_all(data.join("warehouse")).unwrap();
    std::fs::remove_dir_all(data.join("lake")).unwrap();
    assert!(Node::start_with(&data, &environment).is_none(), "another log continues no checkpoint");
}

#[test]
fn a_key_that_others_may_have_signs_no_more() {
    let (folder, data) = empty_data();
    let mut node = Node::start(&data);
    let first = text(&node, "/audit/keys");
    let kept = folder.path().join("kept.checkpoint");
    std::fs::write(&kept, text(&node, "/audit/checkpoint")).unwrap();
    let change = |arguments: &[&str]| {
        let changed = highwater(&[arguments, &["--data", data.to_str().unwrap()]].concat());
        assert!(changed.status.success(), "{}", said(&changed));
        String::from_utf8(changed.stdout).unwrap()
    };
    let second = change(&["audit", "rotate-key"]);
    let keys = text(&node, "/audit/keys");
    assert_eq!(keys, format!("{second}{first}"));
    let third = change(&["audit", "rotate-key", "--at-once"]);
    assert_eq!(text(&node, "/audit/keys"), third);
    // It is an act like any other.
    let entries = "SELECT count(*) FROM _audit WHERE path = '/api/v1/audit/keys/rotate' AND outcome = 'allowed' AND seen LIKE '%at_once%'";
    node.client.settle();
    assert_eq!(node.client.number(entries), 2);
    // A change that was stated and then cut off is ended at the next start; one that was not is forgotten.
    node.kill();
    let staged = data.join("audit.key.next");
    std::fs::copy(data.join("audit.key"), &staged).unwrap();
    let mut node = Node::start(&data);
    assert_eq!(text(&node, "/audit/keys"), third);
    assert!(!staged.exists());
    node.kill();
    std::fs::copy(data.join("audit.key"), &staged).unwrap();
    std::fs::write(&staged, "00".repeat(32)).unwrap();
    let node = Node::start(&data);
    assert_eq!(text(&node, "/audit/keys"), third);
    assert!(!staged.exists());

    let copy = folder.path().join("copy");
    let copied = highwater(&["audit", "export", copy.to_str().unwrap(), "--data", data.to_str().unwrap()]);
    assert!(copied.status.success(), "{}", said(&copied));
    for key in [&first, &second, &third] {
        let verified = highwater(&[
            "audit",
            "verify",
            "--export",
            copy.to_str().unwrap(),
            "--key",
            key.trim(),
            "--checkpoint",
            kept.to_str().unwrap(),
        ]);
        assert!(verified.status.success(), "{}", said(&verified));
    }
    // Without what the old keys have said about the new ones, who knows an old one believes nothing.
    std::fs::write(copy.join("statements"), "").unwrap();
    let verified = highwater(&["audit", "verify", "--export", copy.to_str().unwrap(), "--key", first.trim()]);
    assert_eq!(verified.status.code(), Some(8), "{}", said(&verified));
}

#[test]
fn old_entries_go_and_their_hashes_stay() {
    let (folder, data) = empty_data();
    let environment = [("HIGHWATER__AUDIT__RETENTION", "3 seconds")];
    let node = Node::start_with(&data, &environment).unwrap();
    for _ in 0..600 {
        node.client.get("/api/v1/streams");
    }
    let kept = folder.path().join("kept.checkpoint");
    std::fs::write(&kept, text(&node, "/audit/checkpoint")).unwrap();
    let keys = text(&node, "/audit/keys");
    std::thread::sleep(Duration::from_secs(4));
    let (status, done) = node.client.post("/api/v1/maintenance", &json!({}));
    assert_eq!(status, 200, "{done}");
    // A round that the node began by itself may have let some go before.
    let gone = node.client.number("SELECT min(_offset) FROM _audit") as u64;
    assert!(gone >= 512 && gone.is_multiple_of(256), "{gone}: {done}");
    let all = node.client.get("/api/audit-logs/").1["count"].as_u64().unwrap();
    assert!(all < 200, "{all} calls are counted, of which {gone} are gone");

    let verify = |node: &Node, name: &str| {
        let copy = folder.path().join(name);
        let (copy, data) = (copy.to_str().unwrap(), node.data.to_str().unwrap());
        let copied = highwater(&["audit", "export", copy, "--data", data]);
        assert!(copied.status.success(), "{}", said(&copied));
        let entries = std::fs::read_to_string(Path::new(copy).join("entries.ndjson")).unwrap();
        assert_eq!(entries.lines().filter(|line| line.starts_with("{\"commitment\"")).count() as u64, gone);
        let verified = highwater(&[
            "audit",
            "verify",
            "--export",
            copy,
            "--key",
            keys.trim(),
            "--checkpoint",
            kept.to_str().unwrap(),
        ]);
        assert!(verified.status.success(), "{}", said(&verified));
        assert!(said(&verified).contains(&format!("\"erased\":{gone}")), "{}", said(&verified));
    };
    verify(&node, "first");
    let (_, entry) = node.client.get("/api/v1/audit/entries/5");
    assert!(entry["commitment"].is_string(), "{entry}");
    assert!(text(&node, "/api/v1/audit/entries/5/proof").contains("index 5\n"));
    assert!(text(&node, "/audit/statements").contains(&format!("pruned {gone} ")));
    node.client.settle();
    let entries = "SELECT count(*) FROM _audit WHERE action = 'prune_audit'";
    assert!((1..=2).contains(&node.client.number(entries)), "{}", node.log());

    // The tree can be derived again from what is left, by a node that keeps entries for ever.
    drop(node);
    let node = Node::start(&data);
    assert_eq!(node.client.post("/api/v1/views/audit:tree/rebuild", &json!({})).0, 202);
    let before = size(&std::fs::read_to_string(&kept).unwrap());
    wait_for("the tree is built again", || {
        let (status, note) = node.client.get("/audit/checkpoint");
        (status == 200 && size(note.as_str().unwrap()) > before + 5).then_some(())
    });
    verify(&node, "second");
}
