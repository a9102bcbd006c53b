//! Declared endpoints: queries published as REST resources.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Query, Request, State};
use axum::http::{Method, StatusCode};
use highwater_event::json::rows_as_json;
use highwater_event::name::nearest;
use highwater_sql::adhoc::{QueryResult, endpoint_values, run_endpoint};
use highwater_sql::dialect::Asker;
use percent_encoding::percent_decode_str;

use super::call::Call;
use super::problem::{Answer, Problem};
use super::sql::{rows, typed};
use crate::node::{Node, NodeRelations, QUERY_LIMITS, Reader};

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

/// Answers a declared endpoint, or says that there is no such path.
pub async fn declared(
    State(node): State<Arc<Node>>,
    Extension(call): Extension<Arc<Call>>,
    Query(given): Query<Vec<(String, String)>>,
    request: Request,
) -> Answer {
    let path = request.uri().path();
    let catalog = node.catalog();
    let Some((endpoint, in_path)) = catalog.endpoint(path) else {
        return Err(Problem::not_found("path_not_found", format!("there is nothing at {path}"))
            .hint("GET /docs lists the calls"));
    };
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return Err(Problem::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "this endpoint is read with GET",
        ));
    }
    let mut given: HashMap<String, String> = once(given)?.into_iter().collect();
    let endpoint = endpoint.clone();
    let known: Vec<&str> = endpoint
        .parameters
        .iter()
        .map(|parameter| parameter.name.as_str())
        .filter(|name| in_path.iter().all(|(known, _)| known != name))
        .collect();
    if let Some(name) = given.keys().find(|name| !known.contains(&name.as_str())) {
        let problem = Problem::bad_request("unknown_parameter", format!("there is no parameter \"{name}\""));
        return Err(match nearest(name, known.iter().copied()) {
            Some(near) => problem.hint(format!("did you mean {near}?")),
            None => problem,
        });
    }
    for (name, value) in in_path {
        let value = percent_decode_str(value).decode_utf8().map_err(|_| {
            Problem::bad_request("invalid_parameter", format!("{name} in the path is not UTF-8"))
        })?;
        given.insert(name.to_owned(), value.into_owned());
    }
    let object = endpoint.object;
    let values = endpoint_values(&node.engine, &endpoint, &given).await?;
    let relations = Arc::new(NodeRelations::new(node.clone(), Reader::Endpoint(call.identity.clone())));
    let (asked, principal) = (node.clone(), call.principal().clone());
    let question = async move {
        let asker = Asker { user: &principal.name, tenant: &principal.tenant };
        run_endpoint(&asked.engine, relations, &endpoint, asker, values, QUERY_LIMITS).await
    };
    let result = node.ask(question).await?;
    let names: Vec<String> = result.schema.fields().iter().map(|field| field.name().clone()).collect();
    let body = if object { first_row(&result, &names) } else { format!("[{}]", rows(&result, &names, ",")) };
    if body.is_empty() {
        return Err(Problem::not_found("not_found", format!("there is nothing at {path}")));
    }
    call.saw_rows(&node, result.row_count(), body.as_bytes());
    Ok(typed("application/json", body))
}

/// The first row as a JSON object; nothing when there is none.
fn first_row(result: &QueryResult, names: &[String]) -> String {
    let mut out = String::new();
    if let Some(batch) = result.batches.iter().find(|batch| batch.num_rows() > 0) {
        rows_as_json(&batch.slice(0, 1), names, true, "", &mut out);
    }
    out
}
