//! L7 authorization: DENY policies first, then ALLOW.

use super::{RequestFacts, policy::rule_matches};
use crate::{
    model::{
        PolicyAction, PolicyName, ServiceName,
        l7::{L7Policy, L7Target},
    },
    outcome::{Reason, Refusal},
};

/// The waypoint and the service for which policies are looked up.
#[derive(Debug, Clone, Copy)]
pub struct Applies<'a> {
    /// Namespace of the waypoint.
    pub namespace: &'a str,
    /// Name of the waypoint.
    pub name: &'a str,
    /// The service asked for; none for traffic addressed to a workload.
    pub service: Option<&'a ServiceName>,
}

/// An admitted request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    /// The ALLOW policy that matched; none when no ALLOW policy applies.
    pub allowed_by: Option<PolicyName>,
    /// A dry-run policy that would have denied.
    pub would_deny: Option<PolicyName>,
}

/// Whether a policy reaches requests to this service through this waypoint.
pub fn applies(policy: &L7Policy, at: Applies<'_>) -> bool {
    policy.targets.iter().any(|target| match target {
        L7Target::AllWaypoints => true,
        L7Target::Gateway { namespace, name } => **namespace == *at.namespace && **name == *at.name,
        L7Target::Service(service) => at.service == Some(service),
    })
}

/// Evaluates the policies that apply. Any DENY that matches denies; once one ALLOW applies, what none
/// of them matches is denied. Dry-run policies only report.
///
/// # Errors
/// `PolicyDenied` naming the policy, `NoAllowMatched` naming those that were tried.
pub fn authorise<'p>(
    policies: impl Iterator<Item = &'p L7Policy> + Clone,
    facts: &RequestFacts<'_>,
) -> Result<Verdict, Refusal> {
    let matches = |p: &L7Policy| p.rules.iter().any(|rule| rule_matches(rule, p.action, facts));
    let mut verdict = Verdict::default();
    for policy in policies.clone().filter(|p| p.action == PolicyAction::Deny) {
        if matches(policy) {
            if !policy.dry_run {
                return Err(Refusal::new(Reason::PolicyDenied, format!("denied by policy {}", policy.key)));
            }
            verdict.would_deny.get_or_insert_with(|| policy.key.clone());
        }
    }
    let mut tried = false;
    let mut dry_tried = None;
    for policy in policies.clone().filter(|p| p.action == PolicyAction::Allow) {
        if policy.dry_run {
            let missed = !matches(policy);
            dry_tried = dry_tried.or(missed.then(|| policy.key.clone()));
            continue;
        }
        tried = true;
        if matches(policy) {
            verdict.allowed_by = Some(policy.key.clone());
            break;
        }
    }
    if tried && verdict.allowed_by.is_none() {
        return Err(Refusal::new(Reason::NoAllowMatched, unmatched(policies)));
    }
    verdict.would_deny = verdict.would_deny.or(dry_tried);
    Ok(verdict)
}

pub(super) fn unmatched<'p>(policies: impl Iterator<Item = &'p L7Policy>) -> String {
    let allows = policies.filter(|p| p.action == PolicyAction::Allow && !p.dry_run);
    let names: Vec<String> = allows.map(|p| p.key.to_string()).take(8).collect();
    format!("no ALLOW policy matches: {}", names.join(", "))
}
