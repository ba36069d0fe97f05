//! Choosing a route and one of its weighted destinations.

use std::{collections::BTreeMap, sync::Arc};

use regex::Regex;

use super::{
    RequestFacts,
    pattern::{Pattern, PatternError, anywhere},
    uri::query_value,
};
use crate::{
    entropy::Entropy,
    model::{
        ServiceName,
        l7::{
            DirectResponse, Fault, HeaderOps, HttpMatch, HttpRoute, Redirect, RetryCondition, RetryPolicy,
            RouteAction, RouteMatch, ServiceRoutes, TcpRoute, TrafficPolicy, WeightedDestination,
        },
    },
};

/// The routes of one service with every expression compiled.
#[derive(Debug)]
pub struct CompiledRoutes {
    /// What they were compiled from.
    pub source: Arc<ServiceRoutes>,
    http: Vec<CompiledRoute>,
}

/// One route, ready to be evaluated.
#[derive(Debug)]
pub struct CompiledRoute {
    /// The route as configured.
    pub route: HttpRoute,
    pub(super) uri_regex: Option<(Regex, String)>,
    matches: Vec<CompiledMatch>,
}

#[derive(Debug)]
struct CompiledMatch {
    uri: Option<Pattern>,
    ignore_uri_case: bool,
    scheme: Option<Pattern>,
    method: Option<Pattern>,
    authority: Option<Pattern>,
    headers: Vec<(Arc<str>, Pattern)>,
    without_headers: Vec<(Arc<str>, Pattern)>,
    query: Vec<(Arc<str>, Pattern)>,
    port: Option<u16>,
    source_labels: BTreeMap<Arc<str>, Arc<str>>,
    source_namespace: Option<Arc<str>>,
}

/// What part of the path matched, which is what a prefix rewrite replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Matched<'a> {
    /// A prefix.
    Prefix(&'a str),
    /// Anything else that names the path: a rewrite replaces all of it.
    Whole,
    /// The route does not look at the path.
    Nothing,
}

/// What to do with a request.
#[derive(Debug, Clone, Copy)]
pub enum RouteDecision<'a> {
    /// Send it to the destination.
    Forward(&'a CompiledRoute, &'a WeightedDestination, Matched<'a>),
    /// Answer with a redirect.
    Redirect(&'a CompiledRoute, &'a Redirect),
    /// Answer directly.
    Direct(&'a CompiledRoute, &'a DirectResponse),
    /// No route matches: 404.
    NoRoute,
}

impl CompiledRoutes {
    /// Compiles the routes of a service. Without HTTP routes there is one that sends everything to
    /// the service itself, with Istio's retries for it (before the request was sent, twice).
    ///
    /// # Errors
    /// The first expression that does not compile, by object, route and field.
    pub fn compile(source: Arc<ServiceRoutes>) -> Result<Self, PatternError> {
        let origin = source.origin.clone();
        let mut http = Vec::with_capacity(source.http.len().max(1));
        for route in &source.http {
            http.push(CompiledRoute::compile(&origin, route)?);
        }
        if http.is_empty() {
            http.push(CompiledRoute {
                route: default_route(&source.service),
                uri_regex: None,
                matches: Vec::new(),
            });
        }
        Ok(Self { source, http })
    }

    /// The routes of a service for which nothing is configured.
    pub fn default_for(service: ServiceName) -> Self {
        let http =
            vec![CompiledRoute { route: default_route(&service), uri_regex: None, matches: Vec::new() }];
        let source = Arc::new(ServiceRoutes {
            service,
            protocols: BTreeMap::new(),
            origin: Arc::from(""),
            http: Vec::new(),
            tcp: Vec::new(),
            traffic_policy: TrafficPolicy::default(),
            subsets: Vec::new(),
        });
        Self { source, http }
    }

    /// The routes in order of evaluation.
    pub fn http(&self) -> &[CompiledRoute] {
        &self.http
    }
}

fn default_route(service: &ServiceName) -> HttpRoute {
    HttpRoute {
        name: Arc::from("default"),
        matches: Vec::new(),
        action: RouteAction::Forward(vec![WeightedDestination {
            service: service.clone(),
            subset: None,
            port: None,
            weight: 1,
            request_headers: HeaderOps::default(),
            response_headers: HeaderOps::default(),
        }]),
        rewrite: None,
        request_headers: HeaderOps::default(),
        response_headers: HeaderOps::default(),
        timeout: None,
        retries: RetryPolicy {
            retry_on: vec![
                RetryCondition::ConnectFailure,
                RetryCondition::RefusedStream,
                RetryCondition::ResetBeforeRequest,
            ],
            ..RetryPolicy::default()
        },
        fault: Fault::default(),
    }
}

impl CompiledRoute {
    fn compile(origin: &str, route: &HttpRoute) -> Result<Self, PatternError> {
        let fail = |field| {
            move |(pattern, cause): (String, String)| PatternError {
                object: origin.to_owned(),
                route: route.name.to_string(),
                field,
                pattern,
                cause,
            }
        };
        let uri_regex = match route.rewrite.as_ref().and_then(|r| r.uri_regex.as_ref()) {
            Some((pattern, by)) => {
                Some((anywhere(pattern).map_err(fail("rewrite.uriRegexRewrite"))?, substitution(by)))
            }
            None => None,
        };
        let matches =
            route.matches.iter().map(|m| CompiledMatch::compile(m, &fail)).collect::<Result<_, _>>()?;
        Ok(Self { route: route.clone(), uri_regex, matches })
    }

    fn matched(&self, facts: &RequestFacts<'_>) -> Option<Matched<'_>> {
        if self.matches.is_empty() {
            return Some(Matched::Nothing);
        }
        self.matches.iter().find(|m| m.is_match(facts)).map(|m| match &m.uri {
            Some(Pattern::Prefix(prefix)) => Matched::Prefix(prefix),
            Some(_) => Matched::Whole,
            None => Matched::Nothing,
        })
    }
}

/// RE2's `\1` groups as this regex library spells them.
fn substitution(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 4);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '$' => out.push_str("$$"),
            '\\' => match chars.next() {
                Some(digit) if digit.is_ascii_digit() => {
                    out.push_str("${");
                    out.push(digit);
                    out.push('}');
                }
                Some(other) => out.push(other),
                None => {}
            },
            other => out.push(other),
        }
    }
    out
}

impl CompiledMatch {
    fn compile<F, G>(source: &HttpMatch, fail: &F) -> Result<Self, PatternError>
    where
        F: Fn(&'static str) -> G,
        G: FnOnce((String, String)) -> PatternError,
    {
        let one = |pattern: &Option<RouteMatch>, field| {
            pattern.as_ref().map(Pattern::compile).transpose().map_err(fail(field))
        };
        let many = |list: &[(Arc<str>, RouteMatch)], field| {
            let compile = |(name, p): &(Arc<str>, RouteMatch)| Ok((name.clone(), Pattern::compile(p)?));
            list.iter().map(compile).collect::<Result<Vec<_>, _>>().map_err(fail(field))
        };
        Ok(Self {
            uri: one(&source.uri, "match.uri")?,
            ignore_uri_case: source.ignore_uri_case,
            scheme: one(&source.scheme, "match.scheme")?,
            method: one(&source.method, "match.method")?,
            authority: one(&source.authority, "match.authority")?,
            headers: many(&source.headers, "match.headers")?,
            without_headers: many(&source.without_headers, "match.withoutHeaders")?,
            query: many(&source.query, "match.queryParams")?,
            port: source.port,
            source_labels: source.source_labels.clone(),
            source_namespace: source.source_namespace.clone(),
        })
    }

    fn is_match(&self, facts: &RequestFacts<'_>) -> bool {
        let plain =
            |pattern: &Option<Pattern>, value| pattern.as_ref().is_none_or(|p| p.is_match(value, false));
        self.port.is_none_or(|port| port == facts.port)
            && self.uri.as_ref().is_none_or(|p| p.is_match(facts.path, self.ignore_uri_case))
            && plain(&self.method, facts.method)
            && plain(&self.scheme, facts.scheme)
            && self.authority.as_ref().is_none_or(|p| p.is_match(facts.authority, true))
            && self.headers.iter().all(|(name, p)| p.is_match_opt(facts.headers.get(name)))
            && !self.without_headers.iter().any(|(name, p)| unwanted(p, facts, name))
            && self
                .query
                .iter()
                .all(|(name, p)| p.is_match_opt(query_value(facts.query, name).map(Into::into)))
            && self.source_namespace.as_deref().is_none_or(|ns| facts.client.namespace == Some(ns))
            && self.labels_match(facts)
    }

    fn labels_match(&self, facts: &RequestFacts<'_>) -> bool {
        let has = |(key, want): (&Arc<str>, &Arc<str>)| {
            facts.client.labels.is_some_and(|have| have.labels.get(key) == Some(want))
        };
        self.source_labels.iter().all(has)
    }
}

/// For `withoutHeaders` an absent header counts as empty, except for the presence test.
fn unwanted(pattern: &Pattern, facts: &RequestFacts<'_>, name: &str) -> bool {
    match (pattern, facts.headers.get(name)) {
        (Pattern::Presence, value) => value.is_some(),
        (_, Some(value)) => pattern.is_match(&value, false),
        (_, None) => pattern.is_match("", false),
    }
}

/// The first route that matches, and for a forward one of its destinations by weight.
pub fn route<'a>(
    routes: &'a CompiledRoutes,
    facts: &RequestFacts<'_>,
    entropy: &mut impl Entropy,
) -> RouteDecision<'a> {
    for compiled in &routes.http {
        let Some(matched) = compiled.matched(facts) else { continue };
        return match &compiled.route.action {
            RouteAction::Redirect(redirect) => RouteDecision::Redirect(compiled, redirect),
            RouteAction::Direct(direct) => RouteDecision::Direct(compiled, direct),
            RouteAction::Forward(list) => match choose(list, entropy) {
                Some(destination) => RouteDecision::Forward(compiled, destination, matched),
                None => RouteDecision::NoRoute,
            },
        };
    }
    RouteDecision::NoRoute
}

/// One destination by relative weight. A single destination is used whatever its weight; of several,
/// those with weight 0 get nothing.
pub fn choose<'a>(
    list: &'a [WeightedDestination],
    entropy: &mut impl Entropy,
) -> Option<&'a WeightedDestination> {
    if let [only] = list {
        return Some(only);
    }
    let total: u64 = list.iter().map(|d| u64::from(d.weight)).sum();
    let mut at = entropy.below(total);
    list.iter().filter(|d| d.weight > 0).find(|d| {
        let weight = u64::from(d.weight);
        let hit = at < weight;
        at = at.saturating_sub(weight);
        hit
    })
}

/// The first TCP route for a port.
pub fn tcp_route(routes: &ServiceRoutes, port: u16) -> Option<&TcpRoute> {
    routes.tcp.iter().find(|route| route.port.is_none_or(|p| p == port))
}
