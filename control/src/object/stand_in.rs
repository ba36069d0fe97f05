//! What takes the place of a refused policy that has no earlier version: the strictest thing that its
//! author can have meant (decision 0012). Fails closed.

use mesh_core::model::{PolicyAction, l7::L7Rule};

use super::{Authorization, Body, Mode, Object, PeerAuth};
use crate::finding::{Problem, Severity};

/// The stand-in for a policy with these problems; none for kinds that restrict nobody, and when even
/// the namespace cannot be read (nothing can be selected then).
pub fn stand_in(object: &Object, problems: &[Problem]) -> Option<Object> {
    let wrong =
        |prefix: &str| problems.iter().any(|p| p.severity == Severity::Error && is_below(&p.field, prefix));
    if wrong("metadata.namespace") {
        return None;
    }
    let body = match &object.body {
        Body::Authorization(policy) => {
            let reach_is_clear =
                !["spec", "spec.selector", "spec.targetRefs", "spec.targetRef"].map(wrong).contains(&true);
            Body::Authorization(authorization(policy, reach_is_clear, wrong("spec.action")))
        }
        Body::PeerAuth(peer) => Body::PeerAuth(PeerAuth {
            selector: peer.selector.clone().filter(|_| !wrong("spec") && !wrong("spec.selector")),
            mode: Mode::Strict,
            ports: Vec::new(),
        }),
        _ => return None,
    };
    Some(Object { meta: object.meta.clone(), body })
}

/// Whether a field is `prefix` or inside it. `spec` is meant alone: a problem of its other fields says
/// nothing about whom the policy selects.
fn is_below(field: &str, prefix: &str) -> bool {
    let inside = |rest: &str| rest.is_empty() || (prefix != "spec" && rest.starts_with(['.', '[']));
    field.strip_prefix(prefix).is_some_and(inside)
}

/// A refused ALLOW allows nothing of its own; what other ALLOW policies allow stays allowed. A refused
/// DENY, or an action that cannot be read, denies everything: which part it meant cannot be known.
fn authorization(policy: &Authorization, reach_is_clear: bool, action_is_wrong: bool) -> Authorization {
    let allows = policy.action == PolicyAction::Allow && !action_is_wrong;
    Authorization {
        selector: policy.selector.clone().filter(|_| reach_is_clear),
        targets: if reach_is_clear { policy.targets.clone() } else { Vec::new() },
        action: if allows { PolicyAction::Allow } else { PolicyAction::Deny },
        rules: if allows { Vec::new() } else { vec![L7Rule::default()] },
    }
}

/// What a stand-in does, for people.
pub fn effect(object: &Object) -> Option<&'static str> {
    match &object.body {
        Body::PeerAuth(_) => Some("until it is corrected, what it selects takes only mutual TLS"),
        Body::Authorization(p) if p.action == PolicyAction::Allow => {
            Some("until it is corrected, it allows nothing to reach what it selects")
        }
        Body::Authorization(_) => Some("until it is corrected, it denies everything to what it selects"),
        _ => None,
    }
}
