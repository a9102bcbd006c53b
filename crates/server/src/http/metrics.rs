//! Prometheus metrics.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::{MatchedPath, State};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use super::sql::typed;
use crate::node::Node;

static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();

/// Sets up the recorder, once in a process.
pub fn install() -> anyhow::Result<()> {
    let buckets = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &buckets)?
        .install_recorder()?;
    metrics::describe_counter!("highwater_events_total", "Events at the door by outcome");
    metrics::describe_histogram!("highwater_http_request_seconds", "Time to answer, by route and status");
    metrics::describe_gauge!("highwater_view_lag", "Rows of the source that a view has not applied");
    metrics::describe_gauge!("highwater_view_rows_total", "Rows that a view took, by what became of them");
    metrics::describe_gauge!("highwater_log_offset", "Offset after the last durable row of a stream");
    metrics::describe_gauge!("highwater_log_bytes", "Bytes of the journal on disk");
    metrics::describe_gauge!("highwater_warehouse_bytes", "Bytes of the keyed store on disk");
    metrics::describe_gauge!("highwater_warehouse_dirty_keys", "Changed keys that are not written back yet");
    metrics::describe_gauge!("highwater_uptime_seconds", "Seconds since the node was opened");
    // A second node in one process keeps the first one's recorder.
    let handle = HANDLE.get_or_init(|| handle).clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_secs(5)).await;
            handle.run_upkeep();
        }
    });
    Ok(())
}

/// Notes how long a call took. Paths that no route names are declared endpoints.
pub fn observe(method: &Method, route: Option<&MatchedPath>, status: StatusCode, took: Duration) {
    let route = route.map_or("declared", MatchedPath::as_str).to_owned();
    // Anybody may send any word as a method; each would be kept for ever.
    let method = match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    };
    let status = status.as_str().to_owned();
    metrics::histogram!("highwater_http_request_seconds", "method" => method, "route" => route, "status" => status)
        .record(took);
}

/// All metrics in the text format.
#[utoipa::path(get, path = "/metrics", tag = "operate", responses((status = 200, description = "Prometheus text format")))]
pub async fn render(State(node): State<Arc<Node>>) -> Response {
    for (at, end) in node.journal.ends() {
        metrics::gauge!("highwater_log_offset", "stream" => at.stream.to_string(), "partition" => at.partition.to_string())
            .set(end as f64);
    }
    for view in node.driver.statuses() {
        metrics::gauge!("highwater_view_lag", "view" => view.name.clone()).set(view.lag as f64);
        let applied = view.applied;
        let outcomes = [
            ("out", applied.out),
            ("filtered", applied.filtered),
            ("late", applied.late),
            ("dead", applied.dead),
        ];
        for (outcome, rows) in outcomes {
            metrics::gauge!("highwater_view_rows_total", "view" => view.name.clone(), "outcome" => outcome)
                .set(rows as f64);
        }
    }
    metrics::gauge!("highwater_log_bytes").set(node.journal.bytes_on_disk() as f64);
    metrics::gauge!("highwater_warehouse_bytes").set(node.write_back.store().bytes_on_disk() as f64);
    metrics::gauge!("highwater_warehouse_dirty_keys").set(node.write_back.dirty_keys() as f64);
    metrics::gauge!("highwater_uptime_seconds").set(node.uptime() as f64 / 1e6);
    typed("text/plain; version=0.0.4", HANDLE.get().map(PrometheusHandle::render).unwrap_or_default())
}
