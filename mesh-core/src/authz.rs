//! L4 authorization at the destination, as Istio defines it for ztunnel.
//!
//! Fail closed: a policy that the workload names and the snapshot does not hold is a denial
//! ([`Reason::PolicyUnknown`]); ztunnel skips it. See docs/decisions/0002-missing-policy-references.md.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{
    identity::Identity,
    model::{L4Clause, L4Match, L4Rule, Policy, PolicyAction, StringMatch, Workload},
    outcome::{Reason, Refusal},
    snapshot::Snapshot,
};

/// What a policy may look at.
#[derive(Debug, Clone)]
pub struct Attributes<'a> {
    /// The peer's identity; none for plaintext.
    pub peer: Option<&'a Identity>,
    /// Address of the TCP peer.
    pub source: IpAddr,
    /// The pod's own address.
    pub destination: IpAddr,
    /// Port that the application will be dialled on.
    pub port: u16,
}

/// Whether `workload` admits the connection; the refusal names the policy. Fails closed.
pub fn authorize(
    snapshot: &Snapshot,
    workload: &Workload,
    attributes: &Attributes<'_>,
) -> Result<(), Refusal> {
    let mut allow_policies = 0_usize;
    let mut allowed = false;
    for policy in applicable(snapshot, workload)? {
        if policy.dry_run {
            continue;
        }
        let matches = policy_matches(policy, attributes);
        match policy.action {
            PolicyAction::Deny if matches => return Err(denied_by(policy, attributes)),
            PolicyAction::Deny => {}
            PolicyAction::Allow => {
                allow_policies += 1;
                allowed |= matches;
            }
        }
    }
    if allow_policies == 0 || allowed {
        return Ok(());
    }
    Err(Refusal::new(Reason::NoAllowMatched, "allow policies exist, but none allowed"))
}

/// A denial by the converted PeerAuthentication says what it means instead of its generated name.
fn denied_by(policy: &Policy, attributes: &Attributes<'_>) -> Refusal {
    let requires_mtls =
        |m: &L4Match| attributes.peer.is_none() && m.not_principals.contains(&StringMatch::Presence);
    let converted =
        policy.rules.iter().any(|r| r.clauses.iter().any(|c| c.matches.iter().any(requires_mtls)));
    let reason = if converted { Reason::MtlsRequired } else { Reason::PolicyDenied };
    Refusal::new(reason, format!("explicitly denied by: {}", policy.key))
}

fn applicable<'a>(snapshot: &'a Snapshot, workload: &'a Workload) -> Result<Vec<&'a Policy>, Refusal> {
    let mut policies: Vec<&Policy> =
        snapshot.policies_of_namespace(&workload.namespace).map(AsRef::as_ref).collect();
    for name in &workload.policies {
        let policy = snapshot.policy(name).ok_or_else(|| {
            Refusal::new(
                Reason::PolicyUnknown,
                format!("policy {name} named by {} is not known", workload.uid),
            )
        })?;
        policies.push(policy);
    }
    Ok(policies)
}

/// Any rule (OR); an empty rule list never matches.
pub fn policy_matches(policy: &Policy, attributes: &Attributes<'_>) -> bool {
    policy.rules.iter().any(|rule| rule_matches(rule, attributes))
}

/// All clauses (AND); none is true.
fn rule_matches(rule: &L4Rule, attributes: &Attributes<'_>) -> bool {
    rule.clauses.iter().all(|clause| clause_matches(clause, attributes))
}

/// Any block (OR); none is true, but a block with nothing in it does not count as a match.
fn clause_matches(clause: &L4Clause, attributes: &Attributes<'_>) -> bool {
    clause.matches.is_empty()
        || clause.matches.iter().any(|m| *m != L4Match::default() && block_matches(m, attributes))
}

fn block_matches(m: &L4Match, a: &Attributes<'_>) -> bool {
    let namespace = a.peer.map_or("", |peer| &peer.namespace);
    let principal = a.peer.map(Identity::principal).unwrap_or_default();
    let text = |value: &str| {
        let value = value.to_string();
        move |want: &StringMatch| want.matches(&value)
    };
    let principals = |want: &StringMatch| a.peer.is_some() && want.matches(&principal);
    let account = |want: &crate::model::ServiceAccountMatch| {
        a.peer.is_some_and(|p| p.namespace == want.namespace && p.service_account == want.service_account)
    };
    holds(&m.namespaces, &m.not_namespaces, text(namespace))
        && holds(&m.principals, &m.not_principals, principals)
        && holds(&m.source_ips, &m.not_source_ips, |net: &IpNet| net.contains(&a.source))
        && holds(&m.destination_ips, &m.not_destination_ips, |net: &IpNet| net.contains(&a.destination))
        && holds(&m.destination_ports, &m.not_destination_ports, |port: &u16| *port == a.port)
        && holds(&m.service_accounts, &m.not_service_accounts, account)
}

fn holds<T>(any: &[T], none: &[T], matches: impl Fn(&T) -> bool) -> bool {
    (any.is_empty() || any.iter().any(&matches)) && !none.iter().any(&matches)
}

#[cfg(test)]
mod tests;
