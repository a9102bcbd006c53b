//! Where connections come in: plain ones, and encrypted ones whose handshakes hold up nobody else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::ServiceExt;
use axum::extract::Request;
use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tower::Layer;
use tower::util::MapRequestLayer;

use super::certificate::{self, Certificate};
use super::{CallOptions, Peer, app, trim_slash};
use crate::node::Node;
use crate::outgoing;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at one time: a peer that stalls holds one until its time is over.
const HANDSHAKES: usize = 1024;
/// The first byte of every TLS connection.
const TLS_HANDSHAKE: u8 = 22;
/// What is read of a call that is not answered.
const UNREAD: u64 = 1 << 16;
/// What somebody gets who speaks plain HTTP to an encrypted port.
const SAY_HTTPS: &str = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\nconnection: close\r\n\r\n\
    {\"title\":\"Bad Request\",\"status\":400,\"code\":\"encrypted_only\",\"detail\":\"this port is encrypted: call it with https://\"}";

/// Answers calls until the listener fails or the task is ended.
pub async fn serve(
    node: Arc<Node>,
    listener: TcpListener,
    certificate: Option<Arc<Certificate>>,
    options: CallOptions,
) -> std::io::Result<()> {
    let app = MapRequestLayer::new(trim_slash).layer(app(node, options));
    let service = ServiceExt::<Request>::into_make_service_with_connect_info::<Peer>(app);
    match certificate {
        None => axum::serve(Plain(listener), service).await,
        Some(certificate) => axum::serve(Encrypted::new(listener, certificate)?, service).await,
    }
}

/// Takes a connection. Answers are small and somebody waits for each: they are sent at once.
async fn accept(listener: &mut TcpListener) -> (TcpStream, SocketAddr) {
    let (stream, address) = Listener::accept(listener).await;
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
    (stream, address)
}

struct Plain(TcpListener);

impl Listener for Plain {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        accept(&mut self.0).await
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

impl Connected<IncomingStream<'_, Plain>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Plain>) -> Self {
        Self { address: *stream.remote_addr(), encrypted: false }
    }
}

struct Encrypted {
    address: SocketAddr,
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    accepting: JoinHandle<()>,
    watching: JoinHandle<()>,
}

impl Encrypted {
    fn new(listener: TcpListener, certificate: Arc<Certificate>) -> std::io::Result<Self> {
        let address = listener.local_addr()?;
        let watching = tokio::spawn(certificate::watch(Arc::downgrade(&certificate)));
        let mut config = rustls::ServerConfig::builder_with_provider(outgoing::provider())
            .with_safe_default_protocol_versions()
            .map_err(std::io::Error::other)?
            .with_no_client_auth()
            .with_cert_resolver(certificate);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let (send, ready) = mpsc::channel(HANDSHAKES);
        let accepting = tokio::spawn(greet(listener, TlsAcceptor::from(Arc::new(config)), send));
        Ok(Self { address, ready, accepting, watching })
    }
}

impl Drop for Encrypted {
    fn drop(&mut self) {
        self.accepting.abort();
        self.watching.abort();
    }
}

impl Listener for Encrypted {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(connection) => connection,
            // The task that takes connections ends with this listener only.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        Ok(self.address)
    }
}

impl Connected<IncomingStream<'_, Encrypted>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Encrypted>) -> Self {
        Self { address: *stream.remote_addr(), encrypted: true }
    }
}

/// Takes connections, each handshake being a task of its own.
async fn greet(
    mut listener: TcpListener,
    acceptor: TlsAcceptor,
    ready: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    let turns = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let Ok(turn) = turns.clone().acquire_owned().await else { return };
        let (stream, address) = accept(&mut listener).await;
        let (acceptor, ready) = (acceptor.clone(), ready.clone());
        tokio::spawn(async move {
            match tokio::time::timeout(HANDSHAKE, shake(&acceptor, stream)).await {
                Ok(Ok(Some(stream))) => {
                    drop(turn);
                    // Nobody takes it when the node is being stopped.
                    drop(ready.send((stream, address)).await);
                }
                Ok(Ok(None)) => tracing::debug!(%address, "plain HTTP on an encrypted port"),
                Ok(Err(error)) => tracing::debug!(%address, %error, "no handshake"),
                Err(_) => tracing::debug!(%address, "the handshake took too long"),
            }
        });
    }
}

/// The handshake; `None` when the other end does not want one, which it was told.
async fn shake(
    acceptor: &TlsAcceptor,
    mut stream: TcpStream,
) -> std::io::Result<Option<TlsStream<TcpStream>>> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 1 && first[0] != TLS_HANDSHAKE {
        stream.write_all(SAY_HTTPS.as_bytes()).await?;
        stream.shutdown().await?;
        // What was not read when a connection is closed takes the answer with it.
        tokio::io::copy(&mut stream.take(UNREAD), &mut tokio::io::sink()).await?;
        return Ok(None);
    }
    acceptor.accept(stream).await.map(Some)
}
