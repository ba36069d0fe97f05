//! VirtualService (v1alpha3, v1beta1, v1).

use std::{sync::Arc, time::Duration};

use mesh_core::model::{
    ServiceName,
    l7::{
        AbortStatus, DirectResponse, Fault, HeaderOps, HttpMatch, HttpRoute, Redirect, RetryPolicy, Rewrite,
        RouteAction, RouteMatch, TcpRoute, WeightedDestination,
    },
};
use mesh_net::wire::l7::retry_condition;

use super::resolve_host;
use crate::reader::Reader;

/// A virtual service.
#[derive(Debug, Clone)]
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
    spec.known(&["hosts", "gateways", "http", "tcp"]);
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

fn action(r: &Reader<'_>, namespace: &str) -> RouteAction {
    if let Some(redirect) = r.opt("redirect", |d| redirect(&d)) {
        return RouteAction::Redirect(redirect);
    }
    if let Some(direct) = r.opt("directResponse", |d| direct(&d)) {
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

fn headers(r: &Reader<'_>) -> (HeaderOps, HeaderOps) {
    r.opt("headers", |h| {
        h.known(&["request", "response"]);
        (h.at("request", |o| ops(&o)), h.at("response", |o| ops(&o)))
    })
    .unwrap_or_default()
}

fn ops(o: &Reader<'_>) -> HeaderOps {
    if o.present() {
        o.known(&["set", "add", "remove"]);
    }
    HeaderOps {
        set: o.map("set").into_iter().collect(),
        add: o.map("add").into_iter().collect(),
        remove: o.strings("remove"),
    }
}

const MATCH_FIELDS: [&str; 12] = [
    "name",
    "uri",
    "ignoreUriCase",
    "scheme",
    "method",
    "authority",
    "headers",
    "withoutHeaders",
    "queryParams",
    "port",
    "sourceLabels",
    "sourceNamespace",
];

fn http_match(m: &Reader<'_>) -> HttpMatch {
    m.known(&MATCH_FIELDS);
    let lower = |list: Vec<(Arc<str>, RouteMatch)>| {
        list.into_iter().map(|(name, value)| (name.to_ascii_lowercase().into(), value)).collect()
    };
    HttpMatch {
        name: m.string("name").unwrap_or_default(),
        uri: m.opt("uri", |s| string_match(&s)).flatten(),
        ignore_uri_case: m.flag("ignoreUriCase"),
        scheme: m.opt("scheme", |s| string_match(&s)).flatten(),
        method: m.opt("method", |s| string_match(&s)).flatten(),
        authority: m.opt("authority", |s| string_match(&s)).flatten(),
        headers: lower(match_map(m, "headers")),
        without_headers: lower(match_map(m, "withoutHeaders")),
        query: match_map(m, "queryParams"),
        port: m.port("port"),
        source_labels: m.map("sourceLabels"),
        source_namespace: m.string("sourceNamespace"),
    }
}

fn match_map(m: &Reader<'_>, name: &str) -> Vec<(Arc<str>, RouteMatch)> {
    m.at(name, |field| {
        let keys = field.raw().as_object().into_iter().flatten().map(|(key, _)| key);
        keys.map(|key| {
            let found = field.at(key, |s| string_match(&s)).unwrap_or(RouteMatch::Presence);
            (Arc::from(key.as_str()), found)
        })
        .collect()
    })
}

fn string_match(s: &Reader<'_>) -> Option<RouteMatch> {
    if !s.present() {
        return None;
    }
    if !s.raw().is_object() {
        s.error("bad-match", "must be exact, prefix or regex", "write it like {exact: x}");
        return None;
    }
    s.known(&["exact", "prefix", "regex"]);
    if let Some(text) = s.string("exact") {
        return Some(RouteMatch::Exact(text));
    }
    if let Some(text) = s.string("prefix") {
        return Some(RouteMatch::Prefix(text));
    }
    let text = s.string("regex")?;
    if let Err(error) = regex::Regex::new(&text) {
        let reason = error.to_string().lines().last().unwrap_or_default().to_string();
        s.at("regex", |f| f.error("bad-regex", reason, "correct the expression (RE2 syntax)"));
    }
    Some(RouteMatch::Regex(text))
}

fn rewrite(w: &Reader<'_>) -> Rewrite {
    w.known(&["uri", "uriRegexRewrite", "authority"]);
    Rewrite {
        uri: w.string("uri"),
        uri_regex: w.opt("uriRegexRewrite", |x| {
            x.known(&["match", "rewrite"]);
            (x.required("match"), x.required("rewrite"))
        }),
        authority: w.string("authority"),
    }
}

fn redirect(d: &Reader<'_>) -> Redirect {
    d.known(&["uri", "authority", "scheme", "port", "redirectCode"]);
    let code = d.number("redirectCode", 599).and_then(|c| u16::try_from(c).ok()).unwrap_or(301);
    if ![301, 302, 303, 307, 308].contains(&code) {
        d.at("redirectCode", |f| {
            f.error("bad-value", format!("{code} is no redirect"), "use 301, 302, 303, 307 or 308")
        });
    }
    Redirect {
        code,
        uri: d.string("uri"),
        authority: d.string("authority"),
        scheme: d.string("scheme"),
        port: d.port("port"),
    }
}

fn direct(d: &Reader<'_>) -> DirectResponse {
    d.known(&["status", "body"]);
    let body = d.at("body", |b| b.string("string")).unwrap_or_default();
    let status = d.number("status", 599).and_then(|s| u16::try_from(s).ok()).filter(|s| *s >= 200);
    if status.is_none() {
        d.at("status", |f| f.error("bad-value", "status must be 200 to 599", "correct the status"));
    }
    DirectResponse { status: status.unwrap_or(500), body }
}

fn retries(p: &Reader<'_>) -> RetryPolicy {
    p.known(&["attempts", "perTryTimeout", "retryOn", "backoff"]);
    let mut policy = RetryPolicy::default();
    policy.attempts =
        p.number("attempts", 1000).and_then(|n| u32::try_from(n).ok()).unwrap_or(policy.attempts);
    policy.per_try_timeout = p.duration("perTryTimeout").filter(|t| !t.is_zero());
    policy.backoff = p.duration("backoff").unwrap_or(Duration::from_millis(25));
    if let Some(text) = p.string("retryOn").filter(|t| !t.is_empty()) {
        policy.retry_on.clear();
        for name in text.split(',').map(str::trim).filter(|n| !n.is_empty()) {
            match retry_condition(name) {
                Some(condition) => policy.retry_on.push(condition),
                None => p.at("retryOn", |f| {
                    f.warn("unsupported-field", format!("retryOn {name:?} is not supported"), "remove it");
                }),
            }
        }
    }
    policy
}

fn fault(f: &Reader<'_>) -> Fault {
    f.known(&["delay", "abort"]);
    Fault {
        delay: f
            .opt("delay", |d| {
                d.known(&["fixedDelay", "percentage", "percent"]);
                d.duration("fixedDelay").map(|delay| (delay, share(&d)))
            })
            .flatten(),
        abort: f
            .opt("abort", |a| {
                a.known(&["httpStatus", "grpcStatus", "percentage", "percent"]);
                let http = a.number("httpStatus", 599).and_then(|s| u16::try_from(s).ok());
                let grpc = a.number("grpcStatus", 16).and_then(|s| u32::try_from(s).ok());
                let status = http.map(AbortStatus::Http).or(grpc.map(AbortStatus::Grpc));
                if status.is_none() {
                    a.error("missing-field", "abort has no usable httpStatus or grpcStatus", "add one");
                }
                status.map(|status| (status, share(&a)))
            })
            .flatten(),
    }
}

/// Parts per million; 100 % when nothing is said.
fn share(r: &Reader<'_>) -> u32 {
    let percent = match r.opt("percentage", |p| p.at("value", |v| v.raw().as_f64().unwrap_or(0.0))) {
        Some(value) => value,
        None => r.at("percent", |p| p.raw().as_f64()).unwrap_or(100.0),
    };
    if !(0.0..=100.0).contains(&percent) {
        r.error("bad-number", format!("{percent} is no percentage"), "use 0 to 100");
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=1e6")]
    {
        (percent.clamp(0.0, 100.0) * 10_000.0).round() as u32
    }
}
