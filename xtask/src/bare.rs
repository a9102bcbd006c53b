//! A server that reads a body and answers, nothing else: what the machine, the load generator and the HTTP
//! libraries leave room for. It takes the place of the node: `bench-http --program target/release/xtask --sockets 0`.

use std::path::PathBuf;

use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::post;
use clap::Args;

use crate::node::{ADDRESS, TOKEN};

#[derive(Args)]
pub struct Arguments {
    /// Folder for the files that tell a client where the server is.
    #[arg(long)]
    data: PathBuf,
    /// Where to listen.
    #[arg(long)]
    listen: String,
    /// Taken and not read.
    #[arg(long)]
    pack: Option<PathBuf>,
}

async fn answer(_body: Bytes) -> impl IntoResponse {
    let body = r#"{"accepted":1,"duplicates":0,"rejected":0,"results":[{"index":0,"event_id":"EVT-0000000000000000","status":"accepted","offset":1000000}]}"#;
    (StatusCode::ACCEPTED, [(CONTENT_TYPE, "application/json")], body)
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(&arguments.listen).await?;
        let url = format!("http://{}", listener.local_addr()?);
        std::fs::write(arguments.data.join(TOKEN), "none")?;
        std::fs::write(arguments.data.join(ADDRESS), serde_json::json!({"url": url}).to_string())?;
        let app = Router::new()
            .route("/api/v1/streams/{stream}/events", post(answer))
            .layer(axum::extract::DefaultBodyLimit::max(32 << 20));
        Ok(axum::serve(listener, app).await?)
    })
}
