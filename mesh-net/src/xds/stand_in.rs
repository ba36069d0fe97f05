//! What takes the place of a policy that was refused and of which no good version is held.
//!
//! Fails closed (decision 0012): to leave the policy out would leave open what its author wanted closed.

use mesh_core::{
    delta::Change,
    model::{
        L4Rule, Policy, PolicyAction, PolicyName, PolicyScope,
        l7::{L7Policy, L7Rule, L7Target},
    },
};
use prost::Message;

use crate::{
    api::{culvert::l7::v1 as l7, envoy::service::discovery::v3::Resource, istio::security as l4},
    wire,
};

/// The version under which a stand-in is held: no server sends it, so the next stream asks for the
/// resource again and hears of its removal.
pub(super) const VERSION: &str = "stand-in";

/// The stand-in for a refused resource; none for what is no policy, and for a name that no policy can have.
pub(super) fn stand_in(type_url: &str, resource: &Resource) -> Option<Change> {
    let key: PolicyName = resource.name.parse().ok()?;
    let body = resource.resource.as_ref().map_or(&[][..], |any| any.value.as_slice());
    match type_url {
        wire::AUTHORIZATION_TYPE => Some(Change::Policy(l4_policy(key, body).into())),
        wire::L7_POLICY_TYPE => Some(Change::L7Policy(l7_policy(key, body).into())),
        _ => None,
    }
}

/// ALLOW that allows nothing where the policy was to allow, else DENY of everything, for what the policy
/// reaches; for its namespace where that cannot be read.
fn l4_policy(key: PolicyName, body: &[u8]) -> Policy {
    let read = l4::Authorization::decode(body).ok().filter(|_| !body.is_empty());
    let scope = match read.as_ref().map(|p| l4::Scope::try_from(p.scope)) {
        Some(Ok(l4::Scope::Global)) => PolicyScope::Global,
        Some(Ok(l4::Scope::WorkloadSelector)) => PolicyScope::Workload,
        Some(Ok(l4::Scope::Namespace) | Err(_)) | None => PolicyScope::Namespace,
    };
    let allows = read.as_ref().is_some_and(|p| p.action == i32::from(l4::Action::Allow));
    let (action, rules) = match allows {
        true => (PolicyAction::Allow, Vec::new()),
        false => (PolicyAction::Deny, vec![L4Rule::default()]),
    };
    Policy { key, scope, action, rules, dry_run: read.is_some_and(|p| p.dry_run) }
}

/// The same for a waypoint's policy; it reaches every waypoint where its targets cannot be read.
fn l7_policy(key: PolicyName, body: &[u8]) -> L7Policy {
    let read = l7::Policy::decode(body).ok().filter(|_| !body.is_empty());
    let targets = read.as_ref().and_then(|p| wire::l7::from_targets(p.targets.clone()).ok());
    let allows = read.as_ref().is_some_and(|p| p.action == i32::from(l7::policy::Action::Allow));
    let (action, rules) = match allows {
        true => (PolicyAction::Allow, Vec::new()),
        false => (PolicyAction::Deny, vec![L7Rule::default()]),
    };
    L7Policy {
        key,
        targets: targets.unwrap_or_else(|| vec![L7Target::AllWaypoints]),
        action,
        rules,
        dry_run: read.is_some_and(|p| p.dry_run),
    }
}
