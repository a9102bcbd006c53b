//! Encrypted calls: on by default for whoever calls from elsewhere, under the operator's certificate or the node's
//! own, which can be replaced while calls go on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use support::{Client, Node, empty_data};

const ON: (&str, &str) = ("HIGHWATER__TLS__MODE", "on");

fn highwater(arguments: &[&str], folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_highwater"))
        .args(arguments)
        .current_dir(folder)
        .env("XDG_CONFIG_HOME", folder)
        .output()
        .unwrap()
}

/// The first certificate that the node at an address shows to whoever trusts `roots`.
fn handshake(
    address: &str,
    roots: &Path,
) -> Result<rustls::StreamOwned<rustls::ClientConnection, TcpStream>, String> {
    let mut store = rustls::RootCertStore::empty();
    store.add(CertificateDer::from_pem_file(roots).unwrap()).unwrap();
    let config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(store)
            .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = rustls::StreamOwned::new(connection, TcpStream::connect(address).unwrap());
    stream.conn.complete_io(&mut stream.sock).map_err(|error| error.to_string())?;
    Ok(stream)
}

fn address(node: &Node) -> String {
    node.client.url.strip_prefix("https://").unwrap().to_owned()
}

#[test]
fn calls_from_elsewhere_are_encrypted_without_being_asked_for() {
    let (folder, data) = empty_data();
    let node = Node::start_with(&data, &[("HIGHWATER_LISTEN", "0.0.0.0:0")]).unwrap();
    assert!(node.client.url.starts_with("https://127.0.0.1:"), "{}", node.client.url);
    assert_eq!(node.client.number("SELECT count(*) FROM transaction_log"), 0);
    let key = std::fs::metadata(data.join("tls/key.pem")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&key.permissions()) & 0o777, 0o600);
    // Commands on the data folder find the certificate there, others by its name.
    let url = node.client.url.clone();
    let token = data.join("operator.token").display().to_string();
    let asked = highwater(&["sql", "SELECT 1 AS one", "--data", data.to_str().unwrap()], folder.path());
    assert!(asked.status.success(), "{asked:?}");
    let elsewhere = ["sql", "SELECT 1 AS one", "--url", &url, "--token-file", &token];
    let doubted = highwater(&elsewhere, folder.path());
    let said = String::from_utf8_lossy(&doubted.stderr).into_owned();
    assert!(doubted.status.code() == Some(1) && said.contains("--certificate"), "{said}");
    let certificate = data.join("tls/certificate.pem").display().to_string();
    let believed = highwater(&[&elsewhere[..], &["--certificate", &certificate]].concat(), folder.path());
    assert!(believed.status.success(), "{believed:?}");
}

#[test]
fn whoever_speaks_plainly_is_told_and_browsers_stay_encrypted() {
    let (_folder, data) = empty_data();
    let node = Node::start_with(&data, &[ON]).unwrap();
    let plain = Client::new(&node.client.url.replace("https", "http"), "");
    let (status, answer) = plain.get("/healthz");
    assert_eq!((status, answer["code"].as_str()), (400, Some("encrypted_only")), "{answer}");
    let mut stream = handshake(&address(&node), &data.join("tls/certificate.pem")).unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("strict-transport-security: max-age="), "{answer}");
}

#[test]
fn live_queries_and_sockets_are_encrypted_too() {
    let (_folder, data) = empty_data();
    let node = Node::start_with(&data, &[ON]).unwrap();
    let stream = handshake(&address(&node), &data.join("tls/certificate.pem")).unwrap();
    let request = tungstenite::http::Request::builder()
        .uri(format!("wss://{}/api/v1/streams/transaction_log/socket", address(&node)))
        .header("host", address(&node))
        .header("upgrade", "websocket")
        .header("connection", "upgrade")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", tungstenite::handshake::client::generate_key())
        .header("authorization", format!("Bearer {}", node.client.token))
        .body(())
        .unwrap();
    let (mut socket, _) = tungstenite::client(request, stream).unwrap();
    let event = r#"{"transaction_id":"t1","user_id":"u","amount":5,"timestamp":"2026-01-01T00:00:00Z"}"#;
    socket.send(tungstenite::Message::text(event)).unwrap();
    let answer = socket.read().unwrap();
    assert!(answer.to_text().unwrap().contains("\"status\""), "{answer}");
}

#[test]
fn peers_that_stall_hold_up_nobody() {
    let (_folder, data) = empty_data();
    let node = Node::start_with(&data, &[ON]).unwrap();
    let stalled: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(address(&node)).unwrap()).collect();
    let began = Instant::now();
    assert_eq!(node.client.get("/healthz").0, 200);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    drop(stalled);
}

#[test]
fn a_certificate_is_replaced_while_calls_go_on() {
    // Two nodes that make certificates, whose files stand for those of an authority.
    let (folder, data) = empty_data();
    let files: Vec<_> = ["one", "two"].iter().map(|name| folder.path().join(name)).collect();
    for data in &files {
        std::fs::create_dir(data).unwrap();
        Node::start_with(data, &[ON]).unwrap();
    }
    let (chain, key) = (folder.path().join("chain.pem"), folder.path().join("key.pem"));
    let install = |from: &Path| {
        std::fs::copy(from.join("tls/key.pem"), &key).unwrap();
        std::fs::copy(from.join("tls/certificate.pem"), &chain).unwrap();
    };
    install(&files[0]);
    // The support trusts what a data folder holds.
    std::fs::create_dir(data.join("tls")).unwrap();
    std::fs::copy(&chain, data.join("tls/certificate.pem")).unwrap();
    let environment = [
        ("HIGHWATER__TLS__CERTIFICATE", chain.to_str().unwrap()),
        ("HIGHWATER__TLS__KEY", key.to_str().unwrap()),
    ];
    let node = Node::start_with(&data, &environment).unwrap();
    let mut kept = handshake(&address(&node), &files[0].join("tls/certificate.pem")).unwrap();
    std::fs::write(&chain, "half a file").unwrap();
    std::thread::sleep(Duration::from_secs(6));
    assert!(
        handshake(&address(&node), &files[0].join("tls/certificate.pem")).is_ok(),
        "the old one is in use"
    );
    install(&files[1]);
    let deadline = Instant::now() + Duration::from_secs(20);
    while let Err(error) = handshake(&address(&node), &files[1].join("tls/certificate.pem")) {
        assert!(Instant::now() < deadline, "{error}");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(handshake(&address(&node), &files[0].join("tls/certificate.pem")).is_err());
    kept.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    kept.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "a connection goes on under the old one: {answer}");
    assert!(node.log().contains("stays in use"), "a file that can't be used is in the log: {}", node.log());
}

#[test]
fn what_can_t_be_served_safely_is_not_served() {
    let (folder, data) = empty_data();
    let missing = folder.path().join("none.pem");
    let environment = [
        ("HIGHWATER__TLS__CERTIFICATE", missing.to_str().unwrap()),
        ("HIGHWATER__TLS__KEY", missing.to_str().unwrap()),
    ];
    assert!(Node::start_with(&data, &environment).is_none());
    let half = [("HIGHWATER__TLS__CERTIFICATE", "a.pem")];
    assert!(Node::start_with(&data, &half).is_none());
    assert!(Node::start_with(&data, &[("HIGHWATER__TLS__MODE", "sometimes")]).is_none());
    let said = std::fs::read_to_string(data.with_extension("log")).unwrap();
    for wanted in ["can't be read", "tls.key", "auto, on or off"] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
}
