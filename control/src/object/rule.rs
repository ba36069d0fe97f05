//! DestinationRule.

use std::{collections::BTreeSet, sync::Arc};

use mesh_core::model::l7::{LbAlgorithm, TrafficPolicy};

use super::{Labels, exported, resolve_host};
use crate::reader::Reader;

/// A destination rule.
#[derive(Debug, Clone, PartialEq)]
pub struct DestinationRule {
    /// Full host name.
    pub host: Arc<str>,
    /// Policy of the host.
    pub policy: TrafficPolicy,
    /// Name, labels and policy of each subset.
    pub subsets: Vec<(Arc<str>, Labels, TrafficPolicy)>,
}

/// Parses a destination rule of a namespace.
pub fn parse(spec: &Reader<'_>, namespace: &str) -> DestinationRule {
    spec.known(&["host", "trafficPolicy", "subsets", "exportTo"]);
    exported(spec);
    let host = resolve_host(&spec.required("host"), namespace).1;
    let policy = spec.opt("trafficPolicy", |p| traffic(&p, &TrafficPolicy::default())).unwrap_or_default();
    let mut names = BTreeSet::new();
    let subsets = spec.each("subsets", |s| {
        s.known(&["name", "labels", "trafficPolicy"]);
        let name = s.required("name");
        if !names.insert(name.clone()) {
            s.at("name", |f| {
                f.error("duplicate-subset", format!("subset {name} is there twice"), "rename one")
            });
        }
        let own = s.opt("trafficPolicy", |p| traffic(&p, &policy)).unwrap_or_else(|| policy.clone());
        (name, s.map("labels"), own)
    });
    DestinationRule { host, policy, subsets }
}

fn traffic(p: &Reader<'_>, base: &TrafficPolicy) -> TrafficPolicy {
    p.known(&["loadBalancer", "connectionPool"]);
    let mut policy = base.clone();
    p.opt("loadBalancer", |lb| {
        lb.known(&["simple"]);
        if let Some(name) = lb.string("simple") {
            policy.lb = match &*name {
                "ROUND_ROBIN" => LbAlgorithm::RoundRobin,
                "RANDOM" => LbAlgorithm::Random,
                "LEAST_REQUEST" | "LEAST_CONN" | "UNSPECIFIED" => LbAlgorithm::LeastRequest,
                other => {
                    let remedy = "use ROUND_ROBIN, RANDOM or LEAST_REQUEST";
                    lb.at("simple", |f| f.error("bad-value", format!("{other} is not supported"), remedy));
                    LbAlgorithm::LeastRequest
                }
            };
        }
    });
    // 0 is not set, as in Istio: a limit of nothing at all is never meant.
    let number = |r: &Reader<'_>, name: &str| {
        r.number(name, u64::from(u32::MAX)).and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0)
    };
    p.opt("connectionPool", |pool| {
        pool.known(&["tcp", "http"]);
        pool.opt("tcp", |tcp| {
            tcp.known(&["maxConnections", "connectTimeout"]);
            policy.max_connections = number(&tcp, "maxConnections").or(policy.max_connections);
            policy.connect_timeout = tcp.duration("connectTimeout").or(policy.connect_timeout);
            if policy.connect_timeout.is_some_and(|t| t.is_zero()) {
                let reason = "no connection is made in no time";
                tcp.at("connectTimeout", |f| f.error("bad-duration", reason, "use 1ms or more"));
            }
        });
        pool.opt("http", |http| {
            http.known(&[
                "http1MaxPendingRequests",
                "http2MaxRequests",
                "maxRetries",
                "maxRequestsPerConnection",
            ]);
            policy.max_pending_requests =
                number(&http, "http1MaxPendingRequests").or(policy.max_pending_requests);
            policy.max_requests = number(&http, "http2MaxRequests").or(policy.max_requests);
            policy.max_retries = number(&http, "maxRetries").or(policy.max_retries);
            policy.max_requests_per_connection =
                number(&http, "maxRequestsPerConnection").or(policy.max_requests_per_connection);
        });
    });
    policy
}
