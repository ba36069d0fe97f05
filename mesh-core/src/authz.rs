//! L4 authorization of a connection at its destination, as ztunnel evaluates it.
//!
//! Fails closed, and in one place more strictly than ztunnel: a workload that names a policy which
//! is not in the snapshot is denied (`PolicyUnknown`) instead of the policy being skipped. Callers
//! may hold a connection for a moment until the policy arrives ([`Reason::hold`]); what a known policy
//! denies is denied first, so that nobody waits for that. See the decision record on missing policy
//! references.

#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;

use std::{net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    identity::Identity,
    model::{
        L4Clause, L4Match, L4Rule, Policy, PolicyAction, PolicyName, ServiceAccountMatch, StringMatch,
        Workload,
    },
    outcome::{Reason, Refusal},
    snapshot::Snapshot,
    trace::{Silent, Step, StepKind, Trace},
};

/// What is authorised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct L4Facts {
    /// Identity of the TLS peer; none in plaintext.
    pub identity: Option<Identity>,
    /// Address of the TCP peer (a waypoint's when one is in the path).
    pub source_ip: IpAddr,
    /// Address of the destination pod.
    pub destination_ip: IpAddr,
    /// Port that the application is dialled on.
    pub destination_port: u16,
}

/// Why a connection was allowed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Allowed {
    /// No allow policy applies to the workload and no deny policy matched.
    ByDefault,
    /// This policy allows it.
    ByPolicy(PolicyName),
}

/// Decides whether a connection to `destination` is allowed.
///
/// Order: any DENY that matches → deny; unknown policy → deny; no ALLOW applies → allow; any ALLOW
/// that matches → allow; deny. Dry-run policies never decide. Fails closed.
///
/// # Errors
/// A refusal that names the policy: `PolicyUnknown`, `MtlsRequired` (a deny of unauthenticated
/// peers), `PolicyDenied` or `NoAllowMatched`.
pub fn check(snapshot: &Snapshot, destination: &Workload, facts: &L4Facts) -> Result<Allowed, Refusal> {
    check_traced(snapshot, destination, facts, &mut Silent)
}

/// [`check`], telling `trace` about every policy that applies, dry-run ones too.
///
/// # Errors
/// As [`check`].
pub fn check_traced(
    snapshot: &Snapshot,
    destination: &Workload,
    facts: &L4Facts,
    trace: &mut impl Trace,
) -> Result<Allowed, Refusal> {
    let mut named = Vec::with_capacity(destination.policies.len());
    let mut missing = None;
    for name in &destination.policies {
        match snapshot.policy(name) {
            Some(policy) => named.push(policy),
            None => missing = missing.or(Some(name)),
        }
    }
    let candidates = || snapshot.scoped_policies(&destination.namespace).chain(named.iter().copied());
    let peer = Peer::new(facts);
    for policy in candidates().filter(|p| p.action == PolicyAction::Deny) {
        let hit = peer.matches(policy);
        trace.step(|| policy_step(policy, hit));
        if hit && !policy.dry_run {
            return Err(denied(policy, facts));
        }
    }
    if let Some(name) = missing {
        return Err(unknown(destination, name));
    }
    let mut any_allow = None;
    for policy in candidates().filter(|p| p.action == PolicyAction::Allow) {
        let hit = peer.matches(policy);
        trace.step(|| policy_step(policy, hit));
        if policy.dry_run {
            continue;
        }
        if hit {
            return Ok(Allowed::ByPolicy(policy.key.clone()));
        }
        any_allow = any_allow.or(Some(policy));
    }
    match any_allow {
        None => Ok(Allowed::ByDefault),
        Some(first) => Err(none_allowed(first, facts)),
    }
}

/// The dry-run policies that would have decided otherwise, for the log.
pub fn dry_run_matches<'a>(
    snapshot: &'a Snapshot,
    destination: &'a Workload,
    facts: &L4Facts,
) -> Vec<&'a Arc<Policy>> {
    let named = destination.policies.iter().filter_map(|name| snapshot.policy(name));
    let peer = Peer::new(facts);
    snapshot
        .scoped_policies(&destination.namespace)
        .chain(named)
        .filter(|p| p.dry_run && peer.matches(p))
        .collect()
}

/// Whether one policy matches a connection, whatever its action and scope.
pub fn matches(policy: &Policy, facts: &L4Facts) -> bool {
    Peer::new(facts).matches(policy)
}

/// The facts with the principal's text made once.
struct Peer<'a> {
    facts: &'a L4Facts,
    principal: Option<String>,
}

impl<'a> Peer<'a> {
    fn new(facts: &'a L4Facts) -> Self {
        Self { facts, principal: facts.identity.as_ref().map(Identity::principal) }
    }

    fn matches(&self, policy: &Policy) -> bool {
        policy.rules.iter().any(|rule| self.rule(rule))
    }

    fn rule(&self, rule: &L4Rule) -> bool {
        rule.clauses.iter().all(|clause| self.clause(clause))
    }

    fn clause(&self, clause: &L4Clause) -> bool {
        clause.matches.is_empty() || clause.matches.iter().any(|block| self.block(block))
    }

    fn block(&self, m: &L4Match) -> bool {
        let facts = self.facts;
        let namespace = facts.identity.as_ref().map_or("", |id| &id.namespace);
        let in_namespace = |want: &StringMatch| want.matches(namespace);
        let is_principal = |want: &StringMatch| self.principal.as_deref().is_some_and(|p| want.matches(p));
        let is_account = |want: &ServiceAccountMatch| self.account(want);
        *m != L4Match::default()
            && holds(&m.namespaces, &m.not_namespaces, in_namespace)
            && holds(&m.principals, &m.not_principals, is_principal)
            && holds(&m.source_ips, &m.not_source_ips, |net| net.contains(&facts.source_ip))
            && holds(&m.destination_ips, &m.not_destination_ips, |net| net.contains(&facts.destination_ip))
            && holds(&m.destination_ports, &m.not_destination_ports, |port| *port == facts.destination_port)
            && holds(&m.service_accounts, &m.not_service_accounts, is_account)
    }

    fn account(&self, want: &ServiceAccountMatch) -> bool {
        self.facts
            .identity
            .as_ref()
            .is_some_and(|id| id.namespace == want.namespace && id.service_account == want.service_account)
    }
}

/// Any value of a non-empty positive list, and no value of the negative one.
fn holds<T>(positive: &[T], negative: &[T], is: impl Fn(&T) -> bool) -> bool {
    (positive.is_empty() || positive.iter().any(&is)) && !negative.iter().any(&is)
}

fn who(facts: &L4Facts) -> String {
    match &facts.identity {
        Some(identity) => format!("{identity} at {}", facts.source_ip),
        None => format!("{} without identity", facts.source_ip),
    }
}

fn unknown(destination: &Workload, name: &PolicyName) -> Refusal {
    Refusal::new(
        Reason::PolicyUnknown,
        format!("workload {} names AuthorizationPolicy {name}, which is not known", destination.uid),
    )
}

/// A deny whose only condition on the peer is "has no identity" is how STRICT mutual TLS arrives.
fn demands_identity(policy: &Policy) -> bool {
    let asks = |m: &L4Match| m.not_principals.contains(&StringMatch::Presence);
    policy.rules.iter().flat_map(|r| &r.clauses).flat_map(|c| &c.matches).any(asks)
}

fn denied(policy: &Policy, facts: &L4Facts) -> Refusal {
    if facts.identity.is_none() && demands_identity(policy) {
        let detail = format!("{} requires mutual TLS; {} is refused", policy.key, who(facts));
        return Refusal::new(Reason::MtlsRequired, detail);
    }
    let port = facts.destination_port;
    let detail = format!("AuthorizationPolicy {} denies {} on port {port}", policy.key, who(facts));
    Refusal::new(Reason::PolicyDenied, detail)
}

fn none_allowed(first: &Policy, facts: &L4Facts) -> Refusal {
    let port = facts.destination_port;
    let detail = format!("no ALLOW policy (first: {}) matches {} on port {port}", first.key, who(facts));
    Refusal::new(Reason::NoAllowMatched, detail)
}

fn policy_step(policy: &Policy, hit: bool) -> Step {
    let action = match policy.action {
        PolicyAction::Allow => "ALLOW",
        PolicyAction::Deny => "DENY",
    };
    let mode = if policy.dry_run { " (dry run, never decides)" } else { "" };
    let verb = if hit { "matches" } else { "does not match" };
    Step::new(
        StepKind::Policy,
        format!("AuthorizationPolicy {}", policy.key),
        format!("{action} {verb}{mode}"),
    )
}
