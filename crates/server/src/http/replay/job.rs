//! A replay as a job: it goes on across starts, can be cancelled and slowed down.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

use super::{Replay, ReplayRequest};
use crate::http::call::Call;
use crate::http::jobs::Offered;
use crate::http::problem::Problem;
use crate::node::Node;
use crate::node::jobs::{Alone, Kind, Order, Progress, Setback, Step, Work};

/// Appends old events again.
pub struct ReplayJob;

/// What it is told: a stream, events a second at most, and which events as a call for a replay says it.
fn read(input: &Value) -> Result<(String, Option<u64>, ReplayRequest), Problem> {
    let members = input.as_object();
    let mut members =
        members.cloned().ok_or_else(|| Problem::parameter("input", "a JSON object is expected"))?;
    let Some(Value::String(stream)) = members.remove("stream") else {
        return Err(Problem::parameter("input", "stream is the name of the one to replay"));
    };
    let rate =
        match members.remove("rate") {
            None | Some(Value::Null) => None,
            Some(rate) => Some(rate.as_u64().filter(|rate| *rate > 0).ok_or_else(|| {
                Problem::parameter("input", "rate is a number of events a second, at least 1")
            })?),
        };
    let request = serde_json::from_value(Value::Object(members));
    Ok((stream, rate, request.map_err(|error| Problem::parameter("input", error))?))
}

#[async_trait]
impl Kind for ReplayJob {
    fn name(&self) -> &'static str {
        "replay"
    }

    fn alone(&self, _node: &Node, input: &Value) -> Option<Alone> {
        let (stream, _, request) = read(input).ok()?;
        (!request.dry_run).then(|| Alone::replay(stream))
    }

    async fn begin(&self, node: &Arc<Node>, order: &Order) -> Result<Box<dyn Work>, Setback> {
        let (stream, rate, mut request) = read(&order.job.input)?;
        let dry_run = request.dry_run;
        // Under a name of its own nothing is appended twice, however often it is begun; and what came in after it was
        // wanted is not meant.
        request.name.get_or_insert_with(|| order.job.id.to_string());
        request.recorded_until = Some(order.job.submitted_at);
        let call = Arc::new(Call::of_job(node, order, "replay", format!("stream:{stream}")));
        let replay = Replay::plan(node.clone(), call, &stream, request).await?;
        Ok(work(node, replay, rate, dry_run))
    }
}

#[async_trait]
impl Offered for ReplayJob {
    async fn check(&self, node: &Arc<Node>, call: &Arc<Call>, input: &Value) -> Result<(), Problem> {
        let (stream, _, mut request) = read(input)?;
        let on = highwater_auth::Asked::on("replay", "stream", &stream);
        let shared = highwater_event::StreamName::new(&stream)
            .is_ok_and(|name| crate::node::is_shared(&node.catalog(), &name));
        node.authorize(&call.identity, on.shared(shared))?;
        call.about(format!("stream:{stream}"));
        request.name.get_or_insert_with(|| "job".to_owned());
        Replay::plan(node.clone(), call.clone(), &stream, request).await.map(drop)
    }
}

/// A replay as work.
pub(super) fn work(node: &Arc<Node>, mut replay: Replay, rate: Option<u64>, dry_run: bool) -> Box<dyn Work> {
    if let Some(rate) = rate {
        // No more in one part than a second may bring.
        (replay.span, replay.widest) = (replay.span.min(rate), rate);
    }
    Box::new(Replaying { replay, rate, owed: Duration::ZERO, dry_run, node: node.clone() })
}

struct Replaying {
    replay: Replay,
    rate: Option<u64>,
    /// How long it has to wait, so as not to be faster than its rate, or to let others work.
    owed: Duration,
    dry_run: bool,
    node: Arc<Node>,
}

/// The longest that a part of the work waits: whoever cancels it should not.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

impl Replaying {
    fn progress(&self) -> Progress {
        let (done, of) = (self.replay.totals.events, Some(self.replay.of));
        Progress { done, of, said: self.replay.done() }
    }
}

#[async_trait]
impl Work for Replaying {
    async fn step(&mut self) -> Result<Step, Setback> {
        if !self.owed.is_zero() {
            let pause = self.owed.min(LONGEST_PAUSE);
            self.node.machine.scheduler.sleep(pause).await;
            self.owed -= pause;
            return Ok(Step::More(self.progress()));
        }
        let (before, began) = (self.replay.totals.events, self.node.machine.scheduler.elapsed());
        if self.dry_run || !self.replay.step().await? {
            return Ok(Step::Done(Progress { said: self.replay.summary(), ..self.progress() }));
        }
        let took = self.node.machine.scheduler.elapsed().saturating_sub(began);
        // Callers are served first: who gives no rate has a third of the time.
        self.owed = took * 2;
        if let Some(rate) = self.rate {
            let events = self.replay.totals.events - before;
            let wanted = Duration::from_micros(events.saturating_mul(1_000_000) / rate);
            self.owed = wanted.saturating_sub(took);
        }
        Ok(Step::More(self.progress()))
    }
}
