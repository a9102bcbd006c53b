//! The HTTP door. `router` lists every route; `edge` is what happens around each call; `problem` turns every
//! error into RFC 9457; each other file holds the calls of one subject.
//!
//! Every call needs the operator's token. Open are only `/healthz`, for load balancers, and pages and
//! scripts that hold no data (`/`, `/docs`, `/swagger`, `/redoc`): they ask for the token themselves.

mod auth;
mod bulk;
mod datalake;
mod edge;
mod endpoints;
mod events;
mod health;
mod live;
mod metrics;
mod openapi;
mod operate;
mod pages;
mod problem;
mod replay;
mod router;
mod socket;
mod sql;
mod statements;
mod streams;
mod unread;
mod views;

pub use metrics::install as install_metrics;
pub use router::{BUILT_IN_PATHS, app, trim_slash};
