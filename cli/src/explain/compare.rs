//! Whether the agent decides as the control plane does.

use mesh_core::explain::Explanation;
use serde::Serialize;

/// Two verdicts that differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Disagreement {
    /// Verdict of the control plane.
    pub control: String,
    /// Snapshot that it comes from; the two programs count separately.
    pub control_snapshot: u64,
    /// Verdict of the agent.
    pub agent: String,
    /// Snapshot that it comes from.
    pub agent_snapshot: u64,
}

/// The difference between two verdicts: carried or not, and the reason of a refusal. The sentence
/// beside the reason is no part of it. What the waypoint refuses, an agent rightly carries to it.
pub fn compare(control: &Explanation, agent: &Explanation) -> Option<Disagreement> {
    if control.by_waypoint && agent.carried {
        return None;
    }
    let key = |e: &Explanation| (e.carried, e.refusal.as_ref().map(|r| r.reason));
    (key(control) != key(agent)).then(|| Disagreement {
        control: verdict(control),
        control_snapshot: control.snapshot,
        agent: verdict(agent),
        agent_snapshot: agent.snapshot,
    })
}

fn verdict(explanation: &Explanation) -> String {
    match &explanation.refusal {
        Some(refusal) => format!("refused, {refusal}"),
        None if explanation.carried => "carried".to_owned(),
        None => "refused".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::outcome::{Reason, Refusal};

    use super::*;

    fn explanation(snapshot: u64, reason: Option<Reason>) -> Explanation {
        let refusal = reason.map(|reason| Refusal::new(reason, "AuthorizationPolicy default/no-client"));
        Explanation { snapshot, steps: Vec::new(), carried: refusal.is_none(), refusal, by_waypoint: false }
    }

    #[test]
    fn the_same_verdict_on_another_snapshot_is_no_disagreement() {
        assert_eq!(compare(&explanation(4, None), &explanation(90, None)), None);
        let [denied, unmatched] =
            [Reason::PolicyDenied, Reason::NoAllowMatched].map(|r| explanation(4, Some(r)));
        assert_eq!(compare(&denied, &denied), None);
        assert!(compare(&denied, &unmatched).is_some());
    }

    #[test]
    fn what_the_waypoint_refuses_the_agent_carries_without_disagreeing() {
        let told = |by_waypoint| Explanation { by_waypoint, ..explanation(4, Some(Reason::PolicyDenied)) };
        assert_eq!(compare(&told(true), &explanation(90, None)), None);
        assert!(compare(&told(false), &explanation(90, None)).is_some());
        let other = explanation(90, Some(Reason::MtlsRequired));
        assert!(compare(&told(true), &other).is_some(), "an agent that refuses it first does disagree");
    }

    #[test]
    fn a_disagreement_names_both_verdicts_and_snapshots() {
        let told = compare(&explanation(4, Some(Reason::PolicyDenied)), &explanation(90, None)).unwrap();
        assert_eq!((told.control_snapshot, told.agent_snapshot), (4, 90));
        assert_eq!(told.agent, "carried");
        assert!(told.control.starts_with("refused, policy_denied: AuthorizationPolicy default/no-client"));
    }
}
