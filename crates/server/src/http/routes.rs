//! Routes and what each needs: there is no way to add one without saying so.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::handler::Handler;
use axum::http::Method;
use axum::routing::{MethodFilter, on};
use highwater_auth::Asked;

use crate::node::Node;

/// What a call needs to be let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing; and it shows no data, so that no entry of the trail is made of it.
    Nothing,
    /// Nothing; it is written down as this action.
    Open(&'static str),
    /// Any credential: what it shows depends on whose it is. Written down as this action.
    Known(&'static str),
    /// A permission on the node.
    Node(&'static str),
    /// A permission on the stream that the path names with this parameter.
    Stream(&'static str, &'static str),
    /// A permission on a stream that is always the same.
    Named(&'static str, &'static str),
}

impl Need {
    /// The action that is decided about and written down.
    pub fn action(&self) -> &'static str {
        match self {
            Self::Nothing => "none",
            Self::Open(action) | Self::Known(action) | Self::Node(action) => action,
            Self::Stream(action, _) | Self::Named(action, _) => action,
        }
    }

    /// What is asked about, `named` being the stream of the path.
    pub fn asked<'a>(&'a self, named: &'a str) -> Asked<'a> {
        match self {
            Self::Stream(action, _) => Asked::on(action, "stream", named),
            Self::Named(action, stream) => Asked::on(action, "stream", stream),
            other => Asked::node(other.action()),
        }
    }

    /// As it stands in the list of permissions.
    #[cfg(test)]
    pub fn describe(&self) -> String {
        match self {
            Self::Nothing => "open, no data".into(),
            Self::Open(action) => format!("open: {action}"),
            Self::Known(action) => format!("any credential: {action}"),
            Self::Node(action) => (*action).into(),
            Self::Stream(action, _) => format!("{action} on the stream"),
            Self::Named(action, stream) => format!("{action} on stream {stream}"),
        }
    }
}

/// What every call of the router needs, by path and method.
pub type Needs = HashMap<&'static str, Vec<(Method, Need)>>;

/// Routes in the making.
#[derive(Default)]
pub struct Routes {
    pub router: Router<Arc<Node>>,
    pub needs: Needs,
}

impl Routes {
    fn add<H, T>(
        mut self,
        filter: MethodFilter,
        method: Method,
        path: &'static str,
        need: Need,
        handler: H,
    ) -> Self
    where
        H: Handler<T, Arc<Node>>,
        T: 'static,
    {
        self.needs.entry(path).or_default().push((method, need));
        self.router = self.router.route(path, on(filter, handler));
        self
    }

    /// A call that reads.
    pub fn get<H: Handler<T, Arc<Node>>, T: 'static>(
        self,
        path: &'static str,
        need: Need,
        handler: H,
    ) -> Self {
        self.add(MethodFilter::GET, Method::GET, path, need, handler)
    }

    /// A call that does something.
    pub fn post<H: Handler<T, Arc<Node>>, T: 'static>(
        self,
        path: &'static str,
        need: Need,
        handler: H,
    ) -> Self {
        self.add(MethodFilter::POST, Method::POST, path, need, handler)
    }

    /// A call that changes something.
    pub fn patch<H: Handler<T, Arc<Node>>, T: 'static>(
        self,
        path: &'static str,
        need: Need,
        handler: H,
    ) -> Self {
        self.add(MethodFilter::PATCH, Method::PATCH, path, need, handler)
    }

    /// A call that takes something away.
    pub fn delete<H: Handler<T, Arc<Node>>, T: 'static>(
        self,
        path: &'static str,
        need: Need,
        handler: H,
    ) -> Self {
        self.add(MethodFilter::DELETE, Method::DELETE, path, need, handler)
    }
}

/// What a call needs; `None` when no such method of no such path is known.
pub fn need(needs: &Needs, path: Option<&str>, method: &Method) -> Option<Need> {
    let method = if method == Method::HEAD { &Method::GET } else { method };
    let methods = needs.get(path?)?;
    let known = methods.iter().find(|(known, _)| known == method).map(|(_, need)| *need);
    // A wrong method of a page is told to everybody.
    let open = || methods.iter().all(|(_, need)| matches!(need, Need::Nothing | Need::Open(_)));
    known.or_else(|| open().then_some(Need::Nothing))
}

/// The value of a parameter of a template in a path that fits it, as it was sent.
pub fn parameter<'a>(template: &str, path: &'a str, name: &str) -> Option<&'a str> {
    let mut parts = path.split('/');
    template.split('/').find_map(|part| {
        let value = parts.next()?;
        (part.strip_prefix('{')?.strip_suffix('}')? == name).then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found_in_paths() {
        let template = "/api/v1/streams/{stream}/events";
        assert_eq!(parameter(template, "/api/v1/streams/orders/events", "stream"), Some("orders"));
        assert_eq!(parameter(template, "/api/v1/streams/orders/events", "other"), None);
        assert_eq!(parameter("/a/{x}", "/a", "x"), None);
    }
}
