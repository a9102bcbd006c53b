//! Declared endpoints: queries published as REST resources.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Query, Request, State};
use axum::http::{Method, StatusCode};
use highwater_event::name::nearest;
use highwater_sql::adhoc::{endpoint_values, run_endpoint};

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
    let Some(endpoint) = node.catalog().endpoints.get(path).cloned() else {
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
    let given: HashMap<String, String> = once(given)?.into_iter().collect();
    let known: Vec<&str> = endpoint.parameters.iter().map(|parameter| parameter.name.as_str()).collect();
    if let Some(name) = given.keys().find(|name| !known.contains(&name.as_str())) {
        let problem = Problem::bad_request("unknown_parameter", format!("there is no parameter \"{name}\""));
        return Err(match nearest(name, known.iter().copied()) {
            Some(near) => problem.hint(format!("did you mean {near}?")),
            None => problem,
        });
    }
    let values = endpoint_values(&node.engine, &endpoint, &given).await?;
    let relations = Arc::new(NodeRelations::new(node.clone(), Reader::Endpoint(call.identity.clone())));
    let asked = node.clone();
    let question =
        async move { run_endpoint(&asked.engine, relations, &endpoint, values, QUERY_LIMITS).await };
    let result = node.ask(question).await?;
    let names: Vec<String> = result.schema.fields().iter().map(|field| field.name().clone()).collect();
    let body = format!("[{}]", rows(&result, &names, ","));
    call.saw_rows(&node, result.row_count(), body.as_bytes());
    Ok(typed("application/json", body))
}
