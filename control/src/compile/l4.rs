//! PeerAuthentication and AuthorizationPolicy → L4 policies, as istiod converts them.

use std::{collections::BTreeMap, sync::Arc};

use mesh_core::model::{
    GatewayDestination, L4Clause, L4Match, L4Rule, Policy, PolicyAction, PolicyName, PolicyScope,
    ServiceName, StringMatch, WorkloadUid,
    l7::{ConditionKey, L7Condition, L7Operation, L7Rule, L7Source, L7Target},
};

use super::{Context, selects};
use crate::object::{Authorization, Body, Key, Labels, Mode, PeerAuth, cidr as authz_cidr};

const STRICT: &str = "istio_converted_static_strict";

pub(super) fn compile(cx: &mut Context<'_>) {
    for (key, object) in cx.each("AuthorizationPolicy") {
        let Body::Authorization(policy) = &object.body else { continue };
        if policy.targets.is_empty() {
            let dry_run = object.meta.annotations.get("istio.io/dry-run").is_some_and(|v| &**v == "true");
            authorization(cx, key, policy, dry_run);
        }
    }
    peer_authentication(cx);
}

fn attach(cx: &mut Context<'_>, namespace: Option<&str>, selector: Option<&Labels>, name: &PolicyName) {
    let labels = &cx.out.labels;
    for (uid, workload) in &mut cx.out.workloads {
        let here = namespace.is_none_or(|ns| &*workload.namespace == ns);
        let wanted = selector.is_none_or(|s| labels.get(uid).is_some_and(|l| selects(s, &l.labels)));
        if here && wanted {
            workload.policies.push(name.clone());
        }
    }
}

fn authorization(cx: &mut Context<'_>, key: &Key, policy: &Authorization, dry_run: bool) {
    let root = key.namespace == cx.options.root_namespace;
    let name = PolicyName::new(key.namespace.clone(), key.name.clone());
    let mut rules = Vec::new();
    for (index, rule) in policy.rules.iter().enumerate() {
        let l7 = has_l7(rule);
        if l7 {
            let (reason, code) = match policy.action {
                PolicyAction::Allow => {
                    ("the rule needs a waypoint and allows nothing here", "l7-in-l4-policy")
                }
                PolicyAction::Deny => {
                    ("without a waypoint the rule denies whatever its L4 part says", "l7-in-l4-policy")
                }
            };
            let remedy = "use targetRefs to attach the policy to a Service";
            cx.note(key, &format!("spec.rules[{index}]"), code, reason.into(), remedy);
        }
        if !(l7 && policy.action == PolicyAction::Allow) {
            rules.push(l4_rule(rule));
        }
    }
    let scope = match (&policy.selector, root) {
        (Some(_), _) => PolicyScope::Workload,
        (None, true) => PolicyScope::Global,
        (None, false) => PolicyScope::Namespace,
    };
    if let Some(selector) = &policy.selector {
        attach(cx, (!root).then_some(&*key.namespace), Some(selector), &name);
    }
    let compiled = Policy { key: name.clone(), scope, action: policy.action, rules, dry_run };
    cx.out.policies.insert(name, compiled);
}

fn has_l7(rule: &L7Rule) -> bool {
    let operation = |o: &L7Operation| {
        [&o.hosts, &o.not_hosts, &o.methods, &o.not_methods, &o.paths, &o.not_paths]
            .iter()
            .any(|l| !l.is_empty())
    };
    let source = |s: &L7Source| !s.remote_ip_blocks.is_empty() || !s.not_remote_ip_blocks.is_empty();
    let key = |w: &L7Condition| matches!(w.key, ConditionKey::Header(_) | ConditionKey::RemoteIp);
    rule.to.iter().any(operation) || rule.from.iter().any(source) || rule.when.iter().any(key)
}

/// One clause for all operations, one for all sources, one per condition. A clause in which some
/// alternative has no L4 part is left out: it holds for everything.
fn l4_rule(rule: &L7Rule) -> L4Rule {
    let mut clauses = vec![
        L4Clause { matches: rule.to.iter().map(ports).collect() },
        L4Clause { matches: rule.from.iter().map(source).collect() },
    ];
    clauses.extend(rule.when.iter().map(|w| L4Clause { matches: vec![condition(w)] }));
    clauses.retain(|clause| !clause.matches.is_empty() && !clause.matches.contains(&L4Match::default()));
    L4Rule { clauses }
}

fn ports(o: &L7Operation) -> L4Match {
    L4Match {
        destination_ports: o.ports.clone(),
        not_destination_ports: o.not_ports.clone(),
        ..L4Match::default()
    }
}

fn source(s: &L7Source) -> L4Match {
    L4Match {
        namespaces: s.namespaces.clone(),
        not_namespaces: s.not_namespaces.clone(),
        principals: s.principals.clone(),
        not_principals: s.not_principals.clone(),
        source_ips: s.ip_blocks.clone(),
        not_source_ips: s.not_ip_blocks.clone(),
        service_accounts: s.service_accounts.clone(),
        not_service_accounts: s.not_service_accounts.clone(),
        ..L4Match::default()
    }
}

fn exact(list: &[StringMatch]) -> impl Iterator<Item = &str> {
    list.iter().filter_map(|m| match m {
        StringMatch::Exact(text) => Some(&**text),
        _ => None,
    })
}

fn condition(w: &L7Condition) -> L4Match {
    let nets = |list: &[StringMatch]| exact(list).filter_map(authz_cidr).collect();
    let ports = |list: &[StringMatch]| exact(list).filter_map(|t| t.parse().ok()).collect();
    let (yes, no) = (&w.values, &w.not_values);
    let mut m = L4Match::default();
    match &w.key {
        ConditionKey::Header(_) | ConditionKey::RemoteIp => {}
        ConditionKey::SourceIp => (m.source_ips, m.not_source_ips) = (nets(yes), nets(no)),
        ConditionKey::DestinationIp => (m.destination_ips, m.not_destination_ips) = (nets(yes), nets(no)),
        ConditionKey::SourceNamespace => (m.namespaces, m.not_namespaces) = (yes.clone(), no.clone()),
        ConditionKey::SourcePrincipal => (m.principals, m.not_principals) = (yes.clone(), no.clone()),
        ConditionKey::DestinationPort => {
            (m.destination_ports, m.not_destination_ports) = (ports(yes), ports(no));
        }
    }
    m
}

fn unauthenticated() -> L4Match {
    L4Match { not_principals: vec![StringMatch::Presence], ..L4Match::default() }
}

fn clause(one: L4Match) -> L4Clause {
    L4Clause { matches: vec![one] }
}

fn deny(name: &PolicyName, rules: Vec<L4Rule>) -> Policy {
    let (key, scope) = (name.clone(), PolicyScope::Workload);
    Policy { key, scope, action: PolicyAction::Deny, rules, dry_run: false }
}

fn peer_authentication(cx: &mut Context<'_>) {
    let mut all: Vec<(&Key, &PeerAuth, &str)> = cx
        .each("PeerAuthentication")
        .filter_map(|(key, o)| match &o.body {
            Body::PeerAuth(p) => Some((key, p, &*o.meta.created)),
            _ => None,
        })
        .collect();
    all.sort_by_key(|(key, _, created)| (*created, *key));
    younger_ones(cx, &all);
    let root = cx.options.root_namespace.clone();
    let plan: BTreeMap<WorkloadUid, PolicyName> = cx
        .out
        .workloads
        .values()
        .filter_map(|w| {
            let labels = &cx.out.labels.get(&w.uid)?.labels;
            let name = effective(&all, &w.namespace, labels, &root)?;
            Some((w.uid.clone(), name))
        })
        .collect();
    for (key, peer, _) in &all {
        let base = without_selector(&all, &key.namespace, &root);
        if let Some(policy) = converted(key, peer, base) {
            cx.out.policies.insert(policy.key.clone(), policy);
        }
    }
    let strict = PolicyName::new(root, STRICT);
    if plan.values().any(|name| *name == strict) {
        let rule = L4Rule { clauses: vec![clause(unauthenticated())] };
        cx.out.policies.insert(strict.clone(), deny(&strict, vec![rule]));
    }
    for (uid, name) in plan {
        if let Some(workload) = cx.out.workloads.get_mut(&uid) {
            workload.policies.push(name);
        }
    }
}

/// Of several for one whole namespace the oldest counts: the others are told.
fn younger_ones(cx: &mut Context<'_>, all: &Peers<'_>) {
    let mut first = BTreeMap::<&Arc<str>, &Key>::new();
    for (key, ..) in all.iter().filter(|(_, peer, _)| peer.selector.is_none()) {
        if let Some(older) = first.get(&key.namespace) {
            let reason = format!("its namespace already has {older}, which is used");
            cx.note(key, "spec", "conflict", reason, "merge the two, or add a selector");
        }
        first.entry(&key.namespace).or_insert(key);
    }
}

type Peers<'a> = [(&'a Key, &'a PeerAuth, &'a str)];

fn without_selector(all: &Peers<'_>, namespace: &str, root: &str) -> Mode {
    let level = |ns: &str| {
        let found = all.iter().find(|(key, p, _)| &*key.namespace == ns && p.selector.is_none());
        found.map(|(_, p, _)| p.mode).filter(|mode| *mode != Mode::Unset)
    };
    level(namespace).or_else(|| level(root)).unwrap_or(Mode::Permissive)
}

/// The policy that makes a workload's mode true, if it needs one.
fn effective(all: &Peers<'_>, namespace: &str, labels: &Labels, root: &Arc<str>) -> Option<PolicyName> {
    let base = without_selector(all, namespace, root);
    let own = all.iter().find(|(key, p, _)| {
        &*key.namespace == namespace && p.selector.as_ref().is_some_and(|s| selects(s, labels))
    });
    if let Some((key, peer, _)) = own {
        if let Some(policy) = converted(key, peer, base) {
            return Some(policy.key);
        }
        let mode = if peer.mode == Mode::Unset { base } else { peer.mode };
        return (mode == Mode::Strict).then(|| PolicyName::new(root.clone(), STRICT));
    }
    (base == Mode::Strict).then(|| PolicyName::new(root.clone(), STRICT))
}

/// The generated policy of a peer authentication whose ports differ from its mode.
fn converted(key: &Key, peer: &PeerAuth, base: Mode) -> Option<Policy> {
    peer.selector.as_ref()?;
    let top = if peer.mode == Mode::Unset { base } else { peer.mode };
    let differing: Vec<u16> =
        peer.ports.iter().filter(|(_, m)| *m != Mode::Unset && *m != top).map(|(port, _)| *port).collect();
    if differing.is_empty() {
        return None;
    }
    let rules = match top {
        Mode::Strict => {
            let exempt =
                |port: &u16| clause(L4Match { not_destination_ports: vec![*port], ..L4Match::default() });
            let clauses = std::iter::once(clause(unauthenticated())).chain(differing.iter().map(exempt));
            vec![L4Rule { clauses: clauses.collect() }]
        }
        _ => differing
            .iter()
            .map(|port| L4Rule {
                clauses: vec![clause(L4Match { destination_ports: vec![*port], ..unauthenticated() })],
            })
            .collect(),
    };
    let name = PolicyName::new(key.namespace.clone(), format!("converted_peer_authentication_{}", key.name));
    Some(deny(&name, rules))
}

/// A service with L7 policies must be reached through its waypoint: its workloads deny everybody else,
/// otherwise a client could go around the policy.
pub(super) fn require_waypoints(cx: &mut Context<'_>) {
    let targets: Vec<ServiceName> = cx
        .out
        .l7_policies
        .values()
        .filter(|p| !p.dry_run)
        .flat_map(|p| &p.targets)
        .filter_map(|t| match t {
            L7Target::Service(name) => Some(name.clone()),
            _ => None,
        })
        .collect();
    for service in targets {
        let gateway = cx.out.services.get(&service).and_then(|s| s.waypoint.clone());
        let through = match gateway.map(|g| g.destination) {
            Some(GatewayDestination::Hostname(name)) => name,
            _ => Context::host(&service.namespace, "waypoint"),
        };
        let mut identities: Vec<String> = cx.endpoints(&through).map(|w| w.identity().principal()).collect();
        let account = through.hostname.split('.').next().unwrap_or_default();
        identities.push(format!("{}/ns/{}/sa/{account}", cx.options.trust_domain, through.namespace));
        identities.sort();
        identities.dedup();
        let not_principals = identities.iter().map(|p| StringMatch::Exact(p.as_str().into())).collect();
        let rule = L4Rule { clauses: vec![clause(L4Match { not_principals, ..L4Match::default() })] };
        // The whole name: two hosts may begin alike, and one policy must not take the other's place.
        let own = format!("culvert_require_waypoint_{}", service.hostname);
        let name = PolicyName::new(service.namespace.clone(), own);
        cx.out.policies.insert(name.clone(), deny(&name, vec![rule]));
        for uid in cx.endpoints.get(&service).into_iter().flatten() {
            if let Some(workload) = cx.out.workloads.get_mut(uid).filter(|w| !w.policies.contains(&name)) {
                workload.policies.push(name.clone());
            }
        }
    }
}
