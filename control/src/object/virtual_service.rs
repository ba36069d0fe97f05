//! VirtualService (v1alpha3, v1beta1, v1).

mod effects;
mod headers;
mod matches;

use std::sync::Arc;

use mesh_core::model::{
    ServiceName,
    l7::{HttpRoute, RouteAction, TcpRoute, WeightedDestination},
};

use self::{
    effects::{answers_itself, direct, fault, redirect, retries, rewrite},
    headers::headers,
    matches::http_match,
};
use super::{exported, resolve_host};
use crate::reader::Reader;

/// A virtual service.
#[derive(Debug, Clone, PartialEq)]
pub struct VirtualService {
    /// Full host names.
    pub hosts: Vec<Arc<str>>,
    /// Whether it applies inside the mesh (`gateways` absent or with `mesh`).
    pub mesh: bool,
    /// HTTP routes.
    pub http: Vec<HttpRoute>,
    /// TCP routes.
    pub tcp: Vec<TcpRoute>,
}

/// Parses a virtual service of a namespace.
pub fn parse(spec: &Reader<'_>, namespace: &str) -> VirtualService {
    spec.known(&["hosts", "gateways", "exportTo", "http", "tcp"]);
    exported(spec);
    let hosts = spec.strings("hosts");
    if hosts.is_empty() {
        spec.at("hosts", |f| f.error("missing-field", "hosts is missing or empty", "name the service"));
    }
    let gateways = spec.strings("gateways");
    let mut index = 0;
    let http = spec.each("http", |r| {
        index += 1;
        route(&r, namespace, index - 1)
    });
    VirtualService {
        hosts: hosts.iter().map(|h| resolve_host(h, namespace).1).collect(),
        mesh: gateways.is_empty() || gateways.iter().any(|g| &**g == "mesh"),
        http,
        tcp: spec.each("tcp", |r| tcp_route(&r, namespace)).into_iter().flatten().collect(),
    }
}

fn tcp_route(r: &Reader<'_>, namespace: &str) -> Vec<TcpRoute> {
    r.known(&["match", "route"]);
    let destinations = destinations(r, namespace);
    let ports = r.each("match", |m| {
        m.known(&["port"]);
        m.port("port")
    });
    let ports = if ports.is_empty() { vec![None] } else { ports };
    ports.into_iter().map(|port| TcpRoute { port, destinations: destinations.clone() }).collect()
}

const ROUTE_FIELDS: [&str; 10] = [
    "name",
    "match",
    "route",
    "redirect",
    "directResponse",
    "rewrite",
    "headers",
    "timeout",
    "retries",
    "fault",
];

fn route(r: &Reader<'_>, namespace: &str, index: usize) -> HttpRoute {
    r.known(&ROUTE_FIELDS);
    let (request_headers, response_headers) = headers(r);
    HttpRoute {
        name: r.string("name").unwrap_or_else(|| index.to_string().into()),
        matches: r.each("match", |m| http_match(&m)),
        action: action(r, namespace),
        rewrite: r.opt("rewrite", |w| rewrite(&w)),
        request_headers,
        response_headers,
        timeout: r.duration("timeout").filter(|t| !t.is_zero()),
        retries: r.opt("retries", |p| retries(&p)).unwrap_or_default(),
        fault: r.opt("fault", |f| fault(&f)).unwrap_or_default(),
    }
}

const ACTIONS: [&str; 3] = ["redirect", "directResponse", "route"];

/// What is done with a request; a route can only do one thing.
fn action(r: &Reader<'_>, namespace: &str) -> RouteAction {
    let said: Vec<_> = ACTIONS.into_iter().filter(|name| r.at(name, |f| f.present())).collect();
    if let [first, second, ..] = said[..] {
        r.error("conflict", format!("{first} and {second} exclude each other"), "keep one of them");
    }
    if let Some(redirect) = r.opt("redirect", |d| redirect(&d)) {
        answers_itself(r, "redirect");
        return RouteAction::Redirect(redirect);
    }
    if let Some(direct) = r.opt("directResponse", |d| direct(&d)) {
        answers_itself(r, "directResponse");
        return RouteAction::Direct(direct);
    }
    let list = destinations(r, namespace);
    if list.is_empty() {
        r.error("missing-field", "there is neither route, redirect nor directResponse", "add a route");
    }
    RouteAction::Forward(list)
}

fn destinations(r: &Reader<'_>, namespace: &str) -> Vec<WeightedDestination> {
    let alone = r.at("route", |list| list.raw().as_array().is_none_or(|items| items.len() < 2));
    let list = r.each("route", |d| {
        d.known(&["destination", "weight", "headers"]);
        let (request_headers, response_headers) = headers(&d);
        let weight = d.number("weight", 1_000_000).and_then(|w| u32::try_from(w).ok());
        d.at("destination", |to| {
            to.known(&["host", "subset", "port"]);
            let (of, host) = resolve_host(&to.required("host"), namespace);
            WeightedDestination {
                service: ServiceName::new(of, host),
                subset: to.string("subset").filter(|s| !s.is_empty()),
                port: to.at("port", |p| p.port("number")),
                weight: weight.unwrap_or(u32::from(alone)),
                request_headers,
                response_headers,
            }
        })
    });
    if !alone && list.iter().all(|d| d.weight == 0) {
        r.at("route", |f| f.error("bad-weight", "no destination has a weight above zero", "set the weights"));
    }
    list
}
