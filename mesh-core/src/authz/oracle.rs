//! A second evaluator, slow and literal, for comparison only.

use super::L4Facts;
use crate::{
    model::{L4Match, Policy, PolicyAction, PolicyScope, StringMatch, Workload},
    snapshot::Snapshot,
};

pub(super) fn allowed(world: &Snapshot, workload: &Workload, facts: &L4Facts) -> bool {
    let mut applying: Vec<&Policy> = Vec::new();
    for policy in world.policies() {
        let applies = match policy.scope {
            PolicyScope::Global => true,
            PolicyScope::Namespace => policy.key.namespace == workload.namespace,
            PolicyScope::Workload => false,
        };
        if applies || workload.policies.contains(&policy.key) {
            applying.push(policy);
        }
    }
    if workload.policies.iter().any(|name| !world.policies().any(|p| p.key == *name)) {
        return false;
    }
    let live = |action| applying.iter().filter(move |p| p.action == action && !p.dry_run);
    if live(PolicyAction::Deny).any(|p| policy(p, facts)) {
        return false;
    }
    live(PolicyAction::Allow).count() == 0 || live(PolicyAction::Allow).any(|p| policy(p, facts))
}

fn policy(policy: &Policy, facts: &L4Facts) -> bool {
    for rule in &policy.rules {
        let mut every = true;
        for clause in &rule.clauses {
            every &= clause.matches.is_empty() || clause.matches.iter().any(|m| block(m, facts));
        }
        if every {
            return true;
        }
    }
    false
}

fn text(want: &StringMatch, value: Option<&str>) -> bool {
    let Some(value) = value else { return false };
    match want {
        StringMatch::Exact(s) => **s == *value,
        StringMatch::Prefix(s) => value.starts_with(&**s),
        StringMatch::Suffix(s) => value.ends_with(&**s),
        StringMatch::Presence => !value.is_empty(),
    }
}

fn block(m: &L4Match, facts: &L4Facts) -> bool {
    let id = facts.identity.as_ref();
    let principal = id.map(|i| i.to_string().replace("spiffe://", ""));
    let namespace = id.map_or(String::new(), |i| i.namespace.to_string());
    let mut populated = false;
    let mut verdict = true;
    let mut field = |len: usize, negative: bool, hit: bool| {
        populated |= len > 0;
        verdict &= len == 0 || hit != negative;
    };
    let any = |list: &[StringMatch], v: Option<&str>| list.iter().any(|w| text(w, v));
    field(m.namespaces.len(), false, any(&m.namespaces, Some(&namespace)));
    field(m.not_namespaces.len(), true, any(&m.not_namespaces, Some(&namespace)));
    field(m.principals.len(), false, any(&m.principals, principal.as_deref()));
    field(m.not_principals.len(), true, any(&m.not_principals, principal.as_deref()));
    let inside = |list: &[ipnet::IpNet], ip| list.iter().any(|n| n.contains(&ip));
    field(m.source_ips.len(), false, inside(&m.source_ips, facts.source_ip));
    field(m.not_source_ips.len(), true, inside(&m.not_source_ips, facts.source_ip));
    field(m.destination_ips.len(), false, inside(&m.destination_ips, facts.destination_ip));
    field(m.not_destination_ips.len(), true, inside(&m.not_destination_ips, facts.destination_ip));
    let port = facts.destination_port;
    field(m.destination_ports.len(), false, m.destination_ports.contains(&port));
    field(m.not_destination_ports.len(), true, m.not_destination_ports.contains(&port));
    let account = |list: &[crate::model::ServiceAccountMatch]| {
        list.iter().any(|a| {
            id.is_some_and(|i| (&i.namespace, &i.service_account) == (&a.namespace, &a.service_account))
        })
    };
    field(m.service_accounts.len(), false, account(&m.service_accounts));
    field(m.not_service_accounts.len(), true, account(&m.not_service_accounts));
    populated && verdict
}
