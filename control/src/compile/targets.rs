//! AuthorizationPolicies attached to services, service entries and gateways → policies of waypoints.

use std::sync::Arc;

use mesh_core::model::{
    PolicyName, ServiceName,
    l7::{L7Policy, L7Target},
};

use super::{
    Context,
    waypoints::{Cause, need},
};
use crate::{
    memory::Routed,
    object::{Authorization, Body, Key, Object},
};

pub(super) fn compile(cx: &mut Context<'_>, routed: &Routed) {
    for (key, object) in cx.each("AuthorizationPolicy") {
        let Body::Authorization(policy) = &object.body else { continue };
        if !policy.targets.is_empty() {
            attached(cx, routed, key, object, policy);
        }
    }
}

fn attached(cx: &mut Context<'_>, routed: &Routed, key: &Key, object: &Object, policy: &Authorization) {
    let mut targets = Vec::new();
    for (index, (kind, name)) in policy.targets.iter().enumerate() {
        targets.extend(target(cx, key, &format!("spec.targetRefs[{index}]"), kind, name));
    }
    for target in &targets {
        if let L7Target::Service(service) = target {
            need(cx, routed, key, service, Cause::Policy);
        }
    }
    let name = PolicyName::new(key.namespace.clone(), key.name.clone());
    let dry_run = object.meta.annotations.get("istio.io/dry-run").is_some_and(|v| &**v == "true");
    let (action, rules) = (policy.action, policy.rules.clone());
    cx.out.l7_policies.insert(name.clone(), L7Policy { key: name, targets, action, rules, dry_run });
}

/// What one reference means. A service that is not there yet is kept by name: the policy holds from the
/// moment it comes.
fn target(cx: &mut Context<'_>, key: &Key, field: &str, kind: &str, name: &Arc<str>) -> Vec<L7Target> {
    match kind {
        "Gateway" => vec![L7Target::Gateway { namespace: key.namespace.clone(), name: name.clone() }],
        "GatewayClass" if key.namespace == cx.options.root_namespace => vec![L7Target::AllWaypoints],
        "GatewayClass" => {
            let root = &cx.options.root_namespace;
            let reason = format!("only a policy of the root namespace {root} reaches all waypoints");
            cx.note(key, field, "not-allowed", reason, "move it there, or name a Gateway of this namespace");
            Vec::new()
        }
        "ServiceEntry" => {
            let hosts = hosts_of(cx, key, name);
            if hosts.is_empty() {
                unknown(cx, key, field, kind, name);
            }
            hosts.into_iter().map(L7Target::Service).collect()
        }
        _ => {
            let service = Context::host(&key.namespace, name);
            if !cx.sources.contains_key(&service) {
                unknown(cx, key, field, kind, name);
            }
            vec![L7Target::Service(service)]
        }
    }
}

fn hosts_of(cx: &Context<'_>, key: &Key, name: &Arc<str>) -> Vec<ServiceName> {
    let entry = Key { kind: "ServiceEntry".into(), namespace: key.namespace.clone(), name: name.clone() };
    cx.sources.iter().filter(|(_, (source, _))| **source == entry).map(|(host, _)| host.clone()).collect()
}

fn unknown(cx: &mut Context<'_>, key: &Key, field: &str, kind: &str, name: &str) {
    let reason = format!("there is no {kind} {}/{name}; nothing is protected until there is", key.namespace);
    cx.note(key, field, "unknown-target", reason, "create it or correct the name");
}
