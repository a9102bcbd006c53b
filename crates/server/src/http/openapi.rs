//! The OpenAPI document: built-in calls from the code, declared endpoints from the catalog.

use std::sync::Arc;

use arrow::datatypes::DataType;
use axum::Json;
use axum::extract::State;
use highwater_sql::Endpoint;
use highwater_sql::catalog::{Intake, Parameter, Replays, RowWrites, Taking};
use highwater_sql::dialect::{Answers, Method, RowChange, path_parameters};
use utoipa::OpenApi;
use utoipa::openapi::content::ContentBuilder;
use utoipa::openapi::path::{HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn};
use utoipa::openapi::request_body::{RequestBody, RequestBodyBuilder};
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::schema::{ArrayBuilder, KnownFormat, ObjectBuilder, SchemaFormat, SchemaType, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{PathItem, Ref, RefOr, Required, Schema};

use super::endpoints::{FORMATS, NEWEST_FIRST, OLDEST_FIRST};
use super::{
    audit, claim, datalake, dead_letters, encryption, erasures, events, health, jobs, keys, live, metrics,
    models, oidc, operate, people, replay, search, sign_in, socket, sql, statements, streams, views,
};
use crate::node::Node;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Highwater",
        description = "Live analytics, governed data and a provable audit trail in one binary.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    paths(
        sign_in::token,
        sign_in::login,
        sign_in::refresh,
        oidc::providers,
        oidc::begin,
        oidc::begin_google,
        oidc::finish,
        sign_in::logout,
        sign_in::sign_up,
        sign_in::password,
        sign_in::details,
        people::grant,
        people::revoke,
        people::list,
        people::show,
        people::create,
        people::change,
        people::issue,
        people::explain,
        keys::create,
        keys::list,
        encryption::show,
        encryption::rotate,
        keys::remove,
        keys::toggle,
        keys::rotate,
        claim::claim,
        audit::pages,
        audit::logs,
        audit::entry,
        audit::proof,
        audit::export,
        audit::checkpoint,
        audit::keys,
        audit::statements,
        audit::witnessed,
        audit::rotate_key,
        audit::tile,
        events::stream_events,
        socket::stream_socket,
        replay::replay,
        events::ingest,
        dead_letters::list,
        dead_letters::show,
        dead_letters::retry,
        dead_letters::drop_letter,
        dead_letters::retry_all,
        events::batch,
        sql::query,
        live::subscribe,
        statements::declare,
        statements::list,
        statements::tables,
        statements::table,
        statements::endpoints,
        streams::list,
        streams::show,
        streams::tail,
        search::search,
        views::list,
        views::show,
        views::queue,
        views::rebuild,
        views::pause,
        views::resume,
        datalake::stream,
        datalake::resources,
        operate::versions,
        operate::diff,
        jobs::list,
        jobs::submit,
        jobs::show,
        jobs::approve,
        jobs::cancel,
        jobs::schedules,
        erasures::erase,
        models::list,
        models::moved,
        operate::maintain,
        operate::backup,
        health::healthz,
        health::health,
        metrics::render
    )
)]
struct BuiltIn;

/// The document without declared endpoints.
pub fn built_in() -> utoipa::openapi::OpenApi {
    BuiltIn::openapi()
}

/// The document as of now.
pub async fn document(State(node): State<Arc<Node>>) -> Json<utoipa::openapi::OpenApi> {
    let mut document = built_in();
    for endpoint in node.catalog().endpoints.values() {
        document.paths.add_path_operation(
            format!("{}/", endpoint.path),
            vec![if endpoint.posted { HttpMethod::Post } else { HttpMethod::Get }],
            operation(endpoint),
        );
    }
    for intake in node.catalog().intakes.values() {
        let method = match intake.method {
            Method::Get => HttpMethod::Get,
            Method::Post => HttpMethod::Post,
            Method::Put => HttpMethod::Put,
            Method::Patch => HttpMethod::Patch,
            Method::Delete => HttpMethod::Delete,
        };
        document.paths.add_path_operation(format!("{}/", intake.path), vec![method], taking(intake));
    }
    complete(&mut document);
    let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    document.components.get_or_insert_with(Default::default).add_security_scheme("credential", scheme);
    document.security = Some(vec![SecurityRequirement::new::<&str, [&str; 0], &str>("credential", [])]);
    Json(document)
}

/// Calls that need no credential, whoever asks.
const OPEN: [&str; 2] = ["/healthz", "/api/v1/health"];

/// What any call may answer that needs a credential.
const ANY: [(&str, &str); 5] = [
    ("400", "what is wrong with the call; the detail names it"),
    ("401", "a credential is missing or not valid"),
    ("403", "the caller may not do this; the member permission says what it takes"),
    ("429", "over a limit; Retry-After says when to come again"),
    ("503", "the node can't answer now; Retry-After says when to come again"),
];

/// Says of every operation what is the same for all: how it is called, what it may answer beside what it says itself, and
/// what an error is.
fn complete(document: &mut utoipa::openapi::OpenApi) {
    let problem = ["type", "title", "code", "detail", "hint", "instance", "request_id"].iter().fold(
        ObjectBuilder::new().property("status", whole_number()).required("code").required("detail"),
        |problem, member| problem.property(*member, text()),
    );
    let components = document.components.get_or_insert_with(Default::default);
    components.schemas.values_mut().for_each(unsigned);
    components.schemas.insert("Problem".into(), RefOr::T(problem.into()));
    let as_problem = || {
        let schema = RefOr::Ref(Ref::from_schema_name("Problem"));
        ContentBuilder::new().schema(Some(schema)).build()
    };
    for (path, item) in &mut document.paths.paths {
        let PathItem { get, put, post, delete, patch, .. } = item;
        let operations = [("get", get), ("put", put), ("post", post), ("delete", delete), ("patch", patch)];
        for (method, operation) in operations {
            let Some(operation) = operation else { continue };
            for parameter in operation.parameters.iter_mut().flatten() {
                if let RefOr::T(parameter) = parameter {
                    parameter.schema.iter_mut().for_each(unsigned);
                }
            }
            operation.operation_id = Some(operation_id(method, path.trim_end_matches('/')));
            let answers = &mut operation.responses.responses;
            if OPEN.contains(&path.as_str()) {
                operation.security = Some(vec![SecurityRequirement::default()]);
            } else {
                for (status, description) in ANY {
                    let answer = || ResponseBuilder::new().description(description).build();
                    answers.entry(status.into()).or_insert_with(|| RefOr::T(answer()));
                }
            }
            // What is wrong with each of several events is no problem of the call.
            let takes_events = answers.contains_key("207");
            if operation.request_body.is_some() {
                let other = || ResponseBuilder::new().description("another media type is needed").build();
                answers.entry("415".into()).or_insert_with(|| RefOr::T(other()));
            }
            for (status, answer) in answers {
                if let RefOr::T(answer) = answer
                    && status.starts_with(['4', '5'])
                    && answer.content.is_empty()
                    && !OPEN.contains(&path.as_str())
                {
                    answer.content.insert("application/problem+json".into(), RefOr::T(as_problem()));
                    if takes_events && matches!(status.as_str(), "409" | "422") {
                        let verdicts = ContentBuilder::new().schema(Some(ObjectBuilder::new())).build();
                        answer.content.insert("application/json".into(), RefOr::T(verdicts));
                    }
                }
            }
        }
    }
}

/// Says of numbers without a sign how large they may be: the formats that are derived for them are those of half their range.
fn unsigned(schema: &mut RefOr<Schema>) {
    let RefOr::T(schema) = schema else { return };
    match schema {
        Schema::Object(object) => {
            let range = match &object.format {
                Some(SchemaFormat::KnownFormat(KnownFormat::Int32)) => Some(("uint32", u64::from(u32::MAX))),
                Some(SchemaFormat::KnownFormat(KnownFormat::Int64)) => Some(("uint64", u64::MAX)),
                _ => None,
            };
            if let Some((format, largest)) = range.filter(|_| object.minimum.is_some()) {
                object.format = Some(SchemaFormat::Custom(format.into()));
                object.maximum = Some(utoipa::Number::UInt(largest as usize));
            }
            object.properties.values_mut().for_each(unsigned);
        }
        Schema::OneOf(several) => several.items.iter_mut().for_each(unsigned),
        Schema::AllOf(several) => several.items.iter_mut().for_each(unsigned),
        Schema::AnyOf(several) => several.items.iter_mut().for_each(unsigned),
        _ => {}
    }
}

/// What a row of an endpoint is.
fn row_of(endpoint: &Endpoint) -> ObjectBuilder {
    let paged = matches!(endpoint.answers, Answers::Page { .. } | Answers::Numbered { .. } | Answers::Hits);
    let tagged = endpoint.answers == Answers::Object;
    let hidden = |name: &str| (paged && name.starts_with('_')) || (tagged && name == "_version");
    let shown = endpoint.columns.iter().filter(|column| !hidden(&column.name));
    shown.fold(ObjectBuilder::new(), |row, column| match column.json {
        // Whatever the JSON says.
        true => row.property(&column.name, ObjectBuilder::new().schema_type(SchemaType::AnyValue)),
        false => row.property(&column.name, schema_of(&column.data_type)),
    })
}

fn operation(endpoint: &Endpoint) -> OperationBuilder {
    let answer = answer(&endpoint.answers, row_of(endpoint));
    let mut operation = OperationBuilder::new()
        .tag("declared")
        .summary(Some(format!("Needs the permission {}", endpoint.permission)))
        .description(Some(format!("```sql\n{}\n```", endpoint.text)))
        .response("200", answer)
        .response("400", ResponseBuilder::new().description("a parameter is wrong; the detail names it"));
    if matches!(endpoint.answers, Answers::Object | Answers::Numbered { .. } | Answers::Proof { .. }) {
        let nothing = ResponseBuilder::new().description("there is nothing of that name");
        operation = operation.response("404", nothing);
    }
    if endpoint.parameters.iter().any(|parameter| parameter.tenant) {
        let foreign = ResponseBuilder::new().description("the caller is not of the tenant that is named");
        operation = operation.response("403", foreign);
    }
    if matches!(endpoint.answers, Answers::Proof { .. }) {
        let masked = ResponseBuilder::new().description("the events are masked for the caller");
        operation = operation.response("403", masked);
    }
    for (name, about, schema) in parameters_of(&endpoint.answers) {
        operation = operation.parameter(
            ParameterBuilder::new()
                .name(name)
                .parameter_in(ParameterIn::Query)
                .required(Required::False)
                .description(Some(about))
                .schema(Some(schema)),
        );
    }
    if endpoint.posted {
        operation = operation.request_body(Some(body_of(&endpoint.parameters, false)));
    }
    for parameter in endpoint.parameters.iter().filter(|_| !endpoint.posted) {
        let in_path = path_parameters(&endpoint.path).any(|name| name == parameter.name);
        let required = if parameter.default.is_none() { Required::True } else { Required::False };
        operation = operation.parameter(
            ParameterBuilder::new()
                .name(&parameter.name)
                .parameter_in(if in_path { ParameterIn::Path } else { ParameterIn::Query })
                .required(required)
                .description(parameter.check.clone())
                .schema(Some(given(parameter, in_path || parameter.default.is_none()))),
        );
    }
    operation
}

/// What a parameter may be given in a path or behind it; one that is needed is never null.
fn given(parameter: &Parameter, needed: bool) -> RefOr<Schema> {
    given_as(parameter, vec![kind_of(&parameter.data_type)], needed)
}

/// What a member of a body may be: values are read from their texts, whether they stand in quotes or not.
fn given_as_member(parameter: &Parameter, needed: bool) -> RefOr<Schema> {
    let kinds = match kind_of(&parameter.data_type) {
        Type::String => vec![Type::String, Type::Number, Type::Boolean],
        kind => vec![kind, Type::String],
    };
    given_as(parameter, kinds, needed)
}

fn given_as(parameter: &Parameter, mut kinds: Vec<Type>, needed: bool) -> RefOr<Schema> {
    let format = match parameter.data_type {
        DataType::Int32 => Some(SchemaFormat::KnownFormat(KnownFormat::Int32)),
        DataType::Int64 => Some(SchemaFormat::KnownFormat(KnownFormat::Int64)),
        _ => None,
    };
    kinds.extend((!needed).then_some(Type::Null));
    ObjectBuilder::new().schema_type(SchemaType::from_iter(kinds)).format(format).into()
}

/// One of some words.
fn one_of(words: &[&str]) -> RefOr<Schema> {
    let words = words.iter().map(|word| Some((*word).to_owned()));
    ObjectBuilder::new().schema_type(SchemaType::new(Type::String)).enum_values(Some(words)).into()
}

/// The body of a call that brings its parameters in it.
/// With `partial` none of them is needed.
fn body_of(parameters: &[Parameter], partial: bool) -> RequestBody {
    let object = parameters.iter().fold(ObjectBuilder::new(), |object, parameter| {
        let needed = parameter.default.is_none() && !partial;
        let object = object.property(&parameter.name, given_as_member(parameter, needed));
        if needed { object.required(&parameter.name) } else { object }
    });
    let content = ContentBuilder::new().schema(Some(RefOr::T(Schema::from(object)))).build();
    RequestBodyBuilder::new().content("application/json", content).required(Some(Required::True)).build()
}

fn operation_id(method: &str, path: &str) -> String {
    let path = path.trim_start_matches('/').replace(['/', '-', '.'], "_").replace(['{', '}'], "");
    format!("{method}__{path}")
}

fn text() -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(SchemaType::new(Type::String)).into()
}

fn whole_number() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(SchemaType::new(Type::Integer))
}

/// What an endpoint answers, given what one of its rows is.
fn answer(answers: &Answers, row: ObjectBuilder) -> ResponseBuilder {
    let json = |schema: RefOr<Schema>| ContentBuilder::new().schema(Some(schema)).build();
    let plain = || json(text());
    let response = ResponseBuilder::new();
    match answers {
        Answers::Rows => response
            .description("rows")
            .content("application/json", json(ArrayBuilder::new().items(row).into())),
        Answers::Object => response.description("an object").content("application/json", json(row.into())),
        Answers::Numbered { .. } => {
            let number = |page: ObjectBuilder, name: &&str| page.property(*name, whole_number());
            let page = ["count", "total_pages", "current_page"].iter().fold(ObjectBuilder::new(), number);
            let truth = || ObjectBuilder::new().schema_type(SchemaType::new(Type::Boolean));
            let page = page.property("has_next", truth()).property("has_previous", truth());
            let page = page.property("results", ArrayBuilder::new().items(row));
            response.description("a page").content("application/json", json(page.into()))
        }
        Answers::Page { member, .. } => {
            let cursor = ObjectBuilder::new().schema_type(SchemaType::from_iter([Type::String, Type::Null]));
            let page = ObjectBuilder::new()
                .property(member, ArrayBuilder::new().items(row))
                .property("total", whole_number())
                .property("next_cursor", cursor)
                .property("took_ms", ObjectBuilder::new().schema_type(SchemaType::new(Type::Number)));
            response.description("a page of rows").content("application/json", json(page.into()))
        }
        Answers::Hits => {
            // What is not in a file yet has a folder.
            let name = ObjectBuilder::new().schema_type(SchemaType::from_iter([Type::String, Type::Null]));
            let file = ObjectBuilder::new().property("resource", text()).property("file", name);
            let hits = ObjectBuilder::new()
                .property("recommendation", text())
                .property("results_found", whole_number())
                .property("files", ArrayBuilder::new().items(file))
                .property("hits", ArrayBuilder::new().items(row));
            response.description("what was found").content("application/json", json(hits.into()))
        }
        Answers::Live { .. } => response
            .description("server-sent events, each an object; or WebSocket messages")
            .content("text/event-stream", plain()),
        Answers::File => response
            .description("a file of rows")
            .content("application/x-ndjson", plain())
            .content("text/csv", plain())
            .content("application/vnd.apache.parquet", plain()),
        Answers::Proof { .. } => {
            response.description("a proof (c2sp.org/tlog-proof)").content("text/plain", plain())
        }
    }
}

/// The parameters that every endpoint of a kind has.
fn parameters_of(answers: &Answers) -> Vec<(&'static str, &'static str, RefOr<Schema>)> {
    match answers {
        Answers::Page { .. } => vec![
            ("limit", "rows of a page", whole_number().minimum(Some(1)).maximum(Some(1000)).into()),
            ("cursor", "next_cursor of the page before", text()),
            ("sort", "desc, the newest first, or asc", one_of(&[NEWEST_FIRST, OLDEST_FIRST].concat())),
        ],
        Answers::Numbered { .. } => vec![("page", "its number", whole_number().minimum(Some(1)).into())],
        Answers::File => vec![("format", "ndjson, csv or parquet", one_of(&FORMATS))],
        Answers::Rows | Answers::Object | Answers::Hits | Answers::Proof { .. } | Answers::Live { .. } => {
            Vec::new()
        }
    }
}

/// A path that lets old events happen again.
fn again(intake: &Intake, replays: &Replays) -> OperationBuilder {
    let mut body = body_of(&replays.parameters, false);
    // All of them are meant when nothing is said.
    body.required = replays.parameters.iter().any(|it| it.default.is_none()).then_some(Required::True);
    let answer = |description: &str| ResponseBuilder::new().description(description);
    let operation = OperationBuilder::new()
        .tag("declared")
        .summary(Some(format!("Needs the permission {}", replays.permission)))
        .description(Some(format!("```sql\n{}\n```", intake.text)))
        .request_body(Some(body))
        .response("422", answer("what is said beside is not what the stream declares"));
    match replays.job {
        true => operation.response("202", answer("a job has begun; job_id names it")),
        false => operation
            .response("200", answer("new_data is the event as it happens again"))
            .response("404", answer("no event fits")),
    }
}

/// A path that rows are written at.
fn writing(intake: &Intake, writes: &RowWrites) -> OperationBuilder {
    let answer = |description: &str| ResponseBuilder::new().description(description);
    let header = |name: &str, about: &str| {
        let header = ParameterBuilder::new().name(name).parameter_in(ParameterIn::Header);
        header.required(Required::False).description(Some(about)).schema(Some(text()))
    };
    let row = |description: &str| {
        let row = Schema::from(row_of(&writes.returning));
        let content = ContentBuilder::new().schema(Some(RefOr::T(row))).build();
        answer(description).content("application/json", content)
    };
    let mut operation = OperationBuilder::new()
        .tag("declared")
        .summary(Some(format!("Needs the permission {}", writes.permission)))
        .description(Some(format!("```sql\n{}\n```", intake.text)))
        .response("202", answer("it is done, and the table does not show it yet"))
        .response("403", answer("the row would be one that the caller may not see"));
    let (in_path, in_body): (Vec<_>, Vec<_>) = writes
        .parameters
        .iter()
        .cloned()
        .partition(|parameter| path_parameters(&intake.path).any(|name| name == parameter.name));
    for parameter in &in_path {
        operation = operation.parameter(
            ParameterBuilder::new()
                .name(&parameter.name)
                .parameter_in(ParameterIn::Path)
                .required(Required::True)
                .schema(Some(given(parameter, true))),
        );
    }
    if !in_body.is_empty() {
        operation = operation.request_body(Some(body_of(&in_body, writes.partial)));
    }
    match writes.change {
        RowChange::Insert => operation
            .parameter(header("Idempotency-Key", "the same request again makes no second row for a day"))
            .response("201", row("the row, with its version as ETag and its path as Location"))
            .response("409", answer("there is a row with that key"))
            .response("422", answer("the Idempotency-Key came with another request before")),
        change => {
            let operation = operation
                .parameter(header("If-Match", "the ETag of the row as it was read"))
                .response("404", answer("there is no such row"))
                .response("412", answer("somebody has changed the row since; ETag has its version"));
            match change {
                RowChange::Delete => operation.response("204", answer("it is gone")),
                _ => operation.response("200", row("the row, with its version as ETag")),
            }
        }
    }
}

/// A path that models are trained at.
fn training(intake: &Intake, permission: &str) -> OperationBuilder {
    let object = ObjectBuilder::new().property("model_type", text()).required("model_type");
    let content = ContentBuilder::new().schema(Some(RefOr::T(Schema::from(object)))).build();
    let body =
        RequestBodyBuilder::new().content("application/json", content).required(Some(Required::True)).build();
    OperationBuilder::new()
        .tag("declared")
        .summary(Some(format!("Needs the permission {permission}")))
        .description(Some(format!("```sql\n{}\n```", intake.text)))
        .request_body(Some(body))
        .response("202", ResponseBuilder::new().description("a job has begun; job_id names it"))
}

/// A path that something comes in at.
fn taking(intake: &Intake) -> OperationBuilder {
    let what = match &intake.taking {
        Taking::Again(replays) => return again(intake, replays),
        Taking::Row(writes) => return writing(intake, writes),
        Taking::Training { permission } => return training(intake, permission),
        Taking::One => "one event",
        Taking::Several => "several events: {events: […]} or NDJSON",
    };
    let answer = |description: &str| ResponseBuilder::new().description(description);
    let body = RequestBodyBuilder::new()
        .description(Some(what))
        .content("application/json", ContentBuilder::new().schema(Some(ObjectBuilder::new())).build())
        .content(
            "application/cloudevents+json",
            ContentBuilder::new().schema(Some(ObjectBuilder::new())).build(),
        );
    let body = match intake.taking {
        Taking::Several => {
            body.content("application/x-ndjson", ContentBuilder::new().schema(Some(text())).build())
        }
        _ => body,
    };
    OperationBuilder::new()
        .tag("declared")
        .summary(Some(format!("Takes {what} for the stream {}", intake.into.public())))
        .description(Some(format!("```sql\n{}\n```", intake.text)))
        .request_body(Some(body.build()))
        .response("202", answer("accepted, or known already"))
        .response("207", answer("some of several were refused"))
        .response("400", answer("the body is not what it says"))
        .response("409", answer("the id was used for something else"))
        .response("413", answer("the body is too long"))
        .response("415", answer("another media type is needed"))
        .response("422", answer("not what the stream declares"))
        .response("429", answer("over the limit of the key"))
        .response("503", answer("busy; Retry-After says when to send again"))
}

fn schema_of(data_type: &DataType) -> RefOr<Schema> {
    if let DataType::List(element) = data_type {
        return ArrayBuilder::new().items(schema_of(element.data_type())).into();
    }
    ObjectBuilder::new().schema_type(SchemaType::from_iter([kind_of(data_type), Type::Null])).into()
}

fn kind_of(data_type: &DataType) -> Type {
    match data_type {
        DataType::Boolean => Type::Boolean,
        DataType::Decimal128(..) | DataType::Float16 | DataType::Float32 | DataType::Float64 => Type::Number,
        DataType::List(_) => Type::Array,
        DataType::Struct(_) => Type::Object,
        other if other.is_integer() => Type::Integer,
        _ => Type::String,
    }
}
