//! L7 decisions of the waypoint: which route, whether allowed, when to retry, which endpoint.
//!
//! Nothing here knows sockets or the `http` crate: a request is [`RequestFacts`], and decisions come
//! back as values that the waypoint executes. Semantics follow Istio's VirtualService,
//! DestinationRule and AuthorizationPolicy as a waypoint programs them.

mod authz;
mod endpoint;
mod explain;
mod fault;
mod flags;
mod pattern;
mod policy;
mod retry;
mod rewrite;
mod route;
#[cfg(test)]
mod tests;
mod uri;

use std::{borrow::Cow, net::IpAddr};

use crate::model::l7::WorkloadLabels;

pub use self::{
    authz::{Applies, Verdict, applies, authorise},
    endpoint::{Picker, SubsetError, endpoints},
    explain::explain_routes,
    fault::{FaultDecision, fault},
    flags::ResponseFlag,
    pattern::{PatternError, match_error, substitution_error},
    retry::{Failure, Retry, RetryStep},
    rewrite::{Rewritten, location, rewrite},
    route::{CompiledRoute, CompiledRoutes, Matched, RouteDecision, choose, route, tcp_route},
    uri::{normalise, query_value},
};

/// Read access to the headers of a request.
pub trait HeaderView {
    /// All values of a header (lower-case name) joined with commas, or none when it is absent.
    fn get(&self, name: &str) -> Option<Cow<'_, str>>;
}

/// No headers at all: TCP connections and tests.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHeaders;

impl HeaderView for NoHeaders {
    fn get(&self, _name: &str) -> Option<Cow<'_, str>> {
        None
    }
}

impl HeaderView for std::collections::BTreeMap<String, String> {
    fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        std::collections::BTreeMap::get(self, name).map(|v| Cow::Borrowed(v.as_str()))
    }
}

/// The client of a request, as proven by its certificate and the control plane.
#[derive(Debug, Clone, Copy)]
pub struct Client<'a> {
    /// Address of the client.
    pub ip: IpAddr,
    /// `td/ns/<ns>/sa/<sa>` of its certificate.
    pub principal: Option<&'a str>,
    /// Namespace of its certificate.
    pub namespace: Option<&'a str>,
    /// Service account of its certificate.
    pub service_account: Option<&'a str>,
    /// Labels of its workload, when known.
    pub labels: Option<&'a WorkloadLabels>,
}

/// One request, or one connection when `method` is empty.
#[derive(Clone, Copy)]
pub struct RequestFacts<'a> {
    /// Who asks.
    pub client: Client<'a>,
    /// Method; empty for plain TCP: what a policy asks of HTTP then denies, and never allows.
    pub method: &'a str,
    /// `http` or `https`.
    pub scheme: &'a str,
    /// Host header or `:authority`.
    pub authority: &'a str,
    /// Normalised path without query.
    pub path: &'a str,
    /// Query without the question mark; empty when there is none.
    pub query: &'a str,
    /// Headers.
    pub headers: &'a dyn HeaderView,
    /// Address that the client dialled: the service's virtual address or the workload's own.
    pub destination_ip: Option<IpAddr>,
    /// Port that the client dialled.
    pub port: u16,
}
