//! The HTTP door. `router` lists every route; `edge` is what happens around each call; `problem` turns every
//! error into RFC 9457; each other file holds the calls of one subject.
//!
//! Every route says what it needs (`routes`). Open are only sign-in, `/healthz`, for load balancers, the audit
//! tree, whose leaves say nothing, and pages and scripts that hold no data: they ask for a credential themselves.

mod access_log;
mod audit;
mod auth;
mod bulk;
mod call;
pub mod certificate;
mod claim;
mod datalake;
mod dead_letters;
mod edge;
mod encryption;
mod endpoints;
mod erasures;
mod events;
mod health;
mod jobs;
mod keys;
pub mod listen;
mod live;
mod metrics;
mod models;
mod oidc;
mod openapi;
mod operate;
mod pages;
mod people;
mod problem;
mod replay;
mod router;
mod routes;
mod search;
mod sign_in;
mod socket;
mod sql;
mod statements;
mod streams;
mod unpack;
mod unread;
mod views;

pub use access_log::AccessLog;
pub use jobs::kinds as job_kinds;
pub use metrics::install as install_metrics;
pub use router::is_built_in;

use router::{app, trim_slash};

use std::net::SocketAddr;
use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue};

use crate::node::Node;

/// What is done around calls.
#[derive(Debug, Clone, Default)]
pub struct CallOptions {
    /// Where a line is written for each.
    pub access_log: Option<Arc<AccessLog>>,
    /// Other sites whose pages may call, as browsers name them.
    pub cors: Vec<HeaderValue>,
}

/// The other end of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// Where it calls from.
    pub address: SocketAddr,
    /// Nobody on the way can read along.
    pub encrypted: bool,
}

impl Peer {
    /// The caller's address: that of the connection, or what a proxy that is trusted says of it.
    fn caller(self, headers: &HeaderMap, node: &Node) -> String {
        let trusted = |address: &std::net::IpAddr| node.options.trusted_proxies.contains(address);
        let peer = self.address.ip();
        if !trusted(&peer) {
            return peer.to_string();
        }
        let said = headers.get_all("x-forwarded-for").into_iter().filter_map(|value| value.to_str().ok());
        let said: Vec<&str> = said.flat_map(|value| value.split(',')).map(str::trim).collect();
        // From the nearest on: what a caller says itself stands further left.
        let hops = said.iter().rev().map_while(|hop| hop.parse().ok());
        hops.into_iter().find(|hop| !trusted(hop)).unwrap_or(peer).to_string()
    }
}
