//! Declared endpoints: queries published as REST resources, and paths that events come in at or rows are written at.
//!
//! Here an endpoint is found and its parameters are read; `page`, `numbered`, `file`, `proof` and `live` hold what becomes
//! of the rows of those that answer more than an array or an object, and `write` makes, changes and deletes rows.

mod file;
mod hits;
mod live;
mod numbered;
mod page;
mod proof;
mod write;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Bytes, to_bytes};
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use datafusion::common::ScalarValue;
use highwater_event::json::rows_as_json;
use highwater_event::name::nearest;
use highwater_sql::SqlError;
use highwater_sql::adhoc::{Page, PageResult, Posed, QueryResult, endpoint_values};
use highwater_sql::catalog::{Endpoint, InPath, Intake, Parameter, Taking};
use highwater_sql::dialect::{Answers, Asker};
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

use super::call::Call;
use super::jobs::plain_members;
use super::problem::{Answer, Problem};
use super::sql::{rows, typed};
use super::{events, models, replay};
use crate::node::written::whole_number_in;
use crate::node::{Node, NodeRelations, QUERY_LIMITS, Reader};

pub use file::FORMATS;
pub use hits::resource;
pub use page::{NEWEST_FIRST, OLDEST_FIRST, cursor as next_cursor, mark, page_of};

/// Characters of a parameter that the audit trail keeps.
const LONGEST_SAID: usize = 256;

/// Parameters that are given once each; a repeated one would be read as one of its values at random.
pub fn once(given: Vec<(String, String)>) -> Result<BTreeMap<String, String>, Problem> {
    let mut parameters = BTreeMap::new();
    for (name, value) in given {
        if parameters.insert(name.clone(), value).is_some() {
            return Err(Problem::bad_request(
                "repeated_parameter",
                format!("parameter {name} is given twice"),
            ));
        }
    }
    Ok(parameters)
}

/// What was found at a path when the policy decided: nothing else is answered, whatever is declared meanwhile.
#[derive(Debug, Clone)]
pub enum Found {
    /// Neither of these.
    Nothing,
    /// A query.
    Endpoint(Arc<Endpoint>),
    /// A way in for events.
    Intake(Arc<Intake>),
}

/// Answers a declared endpoint, or says that there is no such path.
pub async fn declared(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    Extension(found): Extension<Found>,
    Query(given): Query<Vec<(String, String)>>,
    headers: HeaderMap,
    request: Request,
) -> Answer {
    let path = request.uri().path();
    if let Found::Intake(intake) = &found {
        let stream = || events::find(&node, intake.into.as_str());
        return match &intake.taking {
            Taking::One => events::take_one(&node, &call, stream()?, &headers, request).await,
            Taking::Several => events::take_several(&node, &call, stream()?, &headers, request).await,
            Taking::Training { .. } => {
                let body = body_of(request).await?;
                models::answer_declared(&node, &call, intake, &body).await
            }
            Taking::Row(writes) => {
                let path = path.to_owned();
                let body = body_of(request).await?;
                write::answer(&node, &call, (intake, writes), (&path, &headers), &body).await
            }
            Taking::Again(_) => {
                let body = body_of(request).await?;
                replay::answer_declared(&node, &call, intake, &body).await
            }
        };
    }
    let reads = request.method() == Method::GET || request.method() == Method::HEAD;
    let endpoint = if let Found::Endpoint(endpoint) = found { Some(endpoint) } else { None };
    let posted_to = endpoint.as_ref().filter(|endpoint| endpoint.posted && request.method() == Method::POST);
    if let Some(endpoint) = posted_to {
        return posted(node, call, endpoint.clone(), request).await;
    }
    let Some(endpoint) = endpoint.as_ref().filter(|endpoint| reads && !endpoint.posted).cloned() else {
        return Err(wrong_method(&node, endpoint.as_deref(), path));
    };
    let in_path = endpoint.in_path(path).unwrap_or_default();
    if let Answers::Live { every } = &endpoint.answers {
        let every = Duration::from_micros(every.unsigned_abs());
        let path = in_path.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let subscription = live::Subscription { node, call, every, path, endpoint: endpoint.clone() };
        return subscription.answer(once(given)?, request).await;
    }
    let (question, asked) = Question::of(&node, &call, &endpoint, once(given)?, in_path).await?;
    match &question.endpoint.answers {
        Answers::Rows | Answers::Object => plain(&question, path).await,
        Answers::Hits => hits::answer(&question, &asked).await,
        Answers::Page { member, cached } => page::answer(&question, &asked, member, *cached).await,
        Answers::Numbered { size } => numbered::answer(&question, &asked, *size).await,
        Answers::File => file::answer(question, &asked, request.method() == Method::HEAD).await,
        Answers::Proof { stream } => proof::answer(&question, stream, path).await,
        Answers::Live { .. } => Err(Problem::internal("a live endpoint was answered before")),
    }
}

/// Answers an endpoint whose parameters are members of a body.
async fn posted(node: Arc<Node>, call: Arc<Call>, endpoint: Arc<Endpoint>, request: Request) -> Answer {
    let path = request.uri().path().to_owned();
    let body = body_of(request).await?;
    let in_path = endpoint.in_path(&path).unwrap_or_default();
    let given = plain_members(&members_of(&body, "the parameters")?)?;
    let (question, asked) = Question::of(&node, &call, &endpoint, given, in_path).await?;
    match &question.endpoint.answers {
        Answers::Hits => hits::answer(&question, &asked).await,
        _ => plain(&question, &path).await,
    }
}

/// The members of a body, which are what `they_are` says.
fn members_of(body: &[u8], they_are: &str) -> Result<Map<String, Value>, Problem> {
    let malformed = |detail: String| Problem::bad_request("malformed_json", detail);
    match serde_json::from_slice(body) {
        Ok(Value::Object(members)) => Ok(members),
        Ok(_) => Err(malformed(format!("the body is a JSON object whose members are {they_are}"))),
        Err(error) => Err(malformed(format!("the body is not JSON: {error}"))),
    }
}

/// The body of a call, which was read and bounded before the call came here.
async fn body_of(request: Request) -> Result<Bytes, Problem> {
    let body = to_bytes(request.into_body(), usize::MAX).await;
    body.map_err(|error| Problem::bad_request("body_unreadable", error.to_string()))
}

/// Says how a path may be called, or that there is none.
fn wrong_method(node: &Node, endpoint: Option<&Endpoint>, path: &str) -> Problem {
    let asked: &[&str] = match endpoint {
        Some(endpoint) if endpoint.posted => &["POST"],
        Some(_) => &["GET", "HEAD"],
        None => &[],
    };
    let catalog = node.catalog();
    let taken = catalog.methods(path).map(|method| method.text());
    let mut methods: Vec<&str> = asked.iter().copied().chain(taken).collect();
    methods.dedup();
    if methods.is_empty() {
        return Problem::not_found("path_not_found", format!("there is nothing at {path}"))
            .hint("GET /docs lists the calls");
    }
    let allowed = methods.join(", ");
    let detail = format!("this path is called with {allowed}");
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail).header(header::ALLOW, &allowed)
}

/// Parameters as the audit trail has them; long texts are cut.
pub fn said_of<'a>(given: impl Iterator<Item = (&'a str, &'a String)>) -> Value {
    let cut = |value: &String| value.chars().take(LONGEST_SAID).collect::<String>();
    given.map(|(name, value)| (name.to_owned(), Value::from(cut(value)))).collect::<Map<_, _>>().into()
}

/// What a call gave: the endpoint's own parameters, and those that its kind of answer has.
struct Asked {
    given: HashMap<String, String>,
    beside: BTreeMap<&'static str, String>,
}

impl Asked {
    /// What was asked for, for the audit trail.
    fn said(&self) -> Value {
        let own = self.given.iter().map(|(name, value)| (name.as_str(), value));
        said_of(own.chain(self.beside.iter().map(|(name, value)| (*name, value))))
    }

    /// Reads what was given: `own` parameters, in the path or not, and those `of_kind`.
    fn of(
        (own, of_kind): (&[Parameter], &'static [&'static str]),
        given: BTreeMap<String, String>,
        in_path: InPath<'_>,
    ) -> Result<Self, Problem> {
        let own = own.iter().map(|parameter| parameter.name.as_str());
        let own: Vec<&str> = own.filter(|name| in_path.iter().all(|(known, _)| known != name)).collect();
        let mut asked = Self { given: HashMap::new(), beside: BTreeMap::new() };
        for (name, value) in given {
            if let Some(known) = of_kind.iter().find(|known| **known == name) {
                asked.beside.insert(known, value);
            } else if own.contains(&name.as_str()) {
                asked.given.insert(name, value);
            } else {
                let detail = format!("there is no parameter \"{name}\"");
                let problem = Problem::bad_request("unknown_parameter", detail);
                return Err(match nearest(&name, own.iter().chain(of_kind).copied()) {
                    Some(near) => problem.hint(format!("did you mean {near}?")),
                    None => problem,
                });
            }
        }
        for (name, value) in in_path {
            let value = percent_decode_str(value).decode_utf8().map_err(|_| {
                Problem::bad_request("invalid_parameter", format!("{name} in the path is not UTF-8"))
            })?;
            asked.given.insert(name.to_owned(), value.into_owned());
        }
        Ok(asked)
    }
}

/// A parameter that names a tenant can only narrow to one that the caller is of.
fn of_own_tenant(
    call: &Call,
    parameters: &[Parameter],
    values: &[(String, ScalarValue)],
) -> Result<(), Problem> {
    for parameter in parameters.iter().filter(|parameter| parameter.tenant) {
        let value = values.iter().find(|(name, _)| *name == parameter.name).map(|(_, value)| value);
        if let Some(ScalarValue::Utf8(Some(tenant))) = value
            && !call.principal().is_of(tenant)
        {
            let detail = format!("parameter {}: your credential is not of that tenant", parameter.name);
            return Err(Problem::new(StatusCode::FORBIDDEN, "foreign_tenant", detail));
        }
    }
    Ok(())
}

/// What somebody asks of an endpoint.
#[derive(Clone)]
struct Question {
    node: Arc<Node>,
    call: Arc<Call>,
    endpoint: Arc<Endpoint>,
    values: Vec<(String, ScalarValue)>,
}

impl Question {
    /// Reads what somebody asks with, and notes it for the trail.
    async fn of(
        node: &Arc<Node>,
        call: &Arc<Call>,
        endpoint: &Arc<Endpoint>,
        given: BTreeMap<String, String>,
        in_path: InPath<'_>,
    ) -> Result<(Self, Asked), Problem> {
        let asked = Asked::of((&endpoint.parameters, endpoint.answers.parameters()), given, in_path)?;
        call.saw("parameters", asked.said());
        let values = endpoint_values(&node.engine, &endpoint.parameters, &asked.given).await?;
        of_own_tenant(call, &endpoint.parameters, &values)?;
        let (node, call, endpoint) = (node.clone(), call.clone(), endpoint.clone());
        Ok((Self { node, call, endpoint, values }, asked))
    }

    fn relations(&self) -> Arc<NodeRelations> {
        Arc::new(NodeRelations::new(self.node.clone(), Reader::Endpoint(self.call.identity.clone())))
    }

    /// Asks on a runtime of questions; `ask` is given all that it needs to outlive the call.
    async fn ask<T: Send + 'static, F>(&self, ask: impl FnOnce(Asking) -> F) -> Result<T, Problem>
    where
        F: Future<Output = Result<T, SqlError>> + Send + 'static,
    {
        let relations = self.relations();
        let asking = Asking {
            node: self.node.clone(),
            relations: relations.clone(),
            endpoint: self.endpoint.clone(),
            user: self.call.principal().name.clone(),
            tenant: self.call.principal().tenant.clone(),
            values: self.values.clone(),
        };
        let answered = self.node.ask(ask(asking)).await;
        if let Some(applied) = relations.applied() {
            self.call.saw("lens", applied);
        }
        Ok(answered?)
    }

    /// A page of them.
    async fn page(&self, page: Page) -> Result<PageResult, Problem> {
        self.ask(move |asking| async move { asking.posed().page(page).await }).await
    }

    /// A page by its number, and how many rows there are.
    async fn numbered(&self, size: usize, page: u64) -> Result<(QueryResult, u64), Problem> {
        self.ask(move |asking| async move { asking.posed().numbered(size, page).await }).await
    }

    /// All rows.
    async fn rows(&self) -> Result<QueryResult, Problem> {
        self.ask(|asking| async move { asking.posed().rows().await }).await
    }
}

/// A question on its way through the engine.
struct Asking {
    node: Arc<Node>,
    relations: Arc<NodeRelations>,
    endpoint: Arc<Endpoint>,
    user: Arc<str>,
    tenant: Arc<str>,
    values: Vec<(String, ScalarValue)>,
}

impl Asking {
    fn posed(&self) -> Posed<'_> {
        let asker = Asker { user: &self.user, tenant: &self.tenant };
        let (engine, relations) = (&self.node.engine, self.relations.clone());
        Posed::new(engine, relations, &self.endpoint.query, asker, QUERY_LIMITS).with(self.values.clone())
    }
}

fn nothing_at(path: &str) -> Problem {
    Problem::not_found("not_found", format!("there is nothing at {path}"))
}

/// The rows as an array, or the first of them.
async fn plain(question: &Question, path: &str) -> Answer {
    let mut result = question.rows().await?;
    let object = question.endpoint.answers == Answers::Object;
    // It is no member of an answer, but its tag.
    let version = whole_number_in(&result.batches, "_version").filter(|_| object);
    if version.is_some() {
        result = shown(result)?;
    }
    let body = if object { first_row(&result) } else { format!("[{}]", rows(&result, &result.names(), ",")) };
    if body.is_empty() {
        return Err(nothing_at(path));
    }
    question.call.saw_rows(&question.node, result.row_count(), body.as_bytes());
    let mut response = typed("application/json", body);
    if let Some(tag) = version.and_then(|version| HeaderValue::from_str(&write::tag(version)).ok()) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    Ok(response)
}

/// The first row as a JSON object; nothing when there is none.
pub fn first_row(result: &QueryResult) -> String {
    let mut out = String::new();
    if let Some(batch) = result.batches.iter().find(|batch| batch.num_rows() > 0) {
        rows_as_json(&batch.slice(0, 1), &result.names(), true, "", &mut out);
    }
    out
}

/// What stands in the place of columns that are not shown: those of the engine, which pages are made of.
pub fn shown(result: QueryResult) -> Result<QueryResult, Problem> {
    let fields = result.schema.fields().iter().enumerate();
    let kept: Vec<usize> =
        fields.filter(|(_, field)| !field.name().starts_with('_')).map(|(at, _)| at).collect();
    let project = |batch: &arrow::record_batch::RecordBatch| batch.project(&kept);
    let batches = result.batches.iter().map(project).collect::<Result<_, _>>().map_err(Problem::internal)?;
    let schema = Arc::new(result.schema.project(&kept).map_err(Problem::internal)?);
    Ok(QueryResult { schema, batches, truncated: result.truncated })
}
