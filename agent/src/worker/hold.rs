//! Decisions that wait a moment for what the control plane has not told yet.

use std::sync::Arc;

use mesh_core::{outcome::Refusal, snapshot::Snapshot};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

/// Takes a decision; one that fails for a reason that may pass ([`mesh_core::outcome::Reason::hold`]) is
/// taken again with each new snapshot until the reason's time is over. Fails closed.
pub async fn decide<T>(
    snapshots: &watch::Receiver<Arc<Snapshot>>,
    decision: impl Fn(&Snapshot) -> Result<T, Refusal>,
) -> Result<T, Refusal> {
    let now = snapshots.borrow().clone();
    match decision(&now) {
        Err(refusal) if refusal.reason.hold().is_some() => {}
        result => return result,
    }
    let mut snapshots = snapshots.clone();
    let started = Instant::now();
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        let refusal = match decision(&snapshot) {
            Ok(decided) => return Ok(decided),
            Err(refusal) => refusal,
        };
        let Some(hold) = refusal.reason.hold() else { return Err(refusal) };
        match timeout_at(started + hold, snapshots.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return Err(refusal),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mesh_core::{
        delta::Change,
        fixtures::{pod, pod_ref, strict},
        inbound::{self, Admission, Arrival, InboundFacts},
        model::{PolicyName, PolicyScope, Workload},
        outcome::Reason,
    };
    use mesh_net::store::SnapshotStore;

    use super::*;

    fn web() -> Workload {
        Workload { policies: vec![PolicyName::new("default", "strict")], ..pod("web", [10, 0, 0, 1]) }
    }

    /// Somebody in plaintext asks for `web` at a world that knows `changes`.
    async fn ask(store: &SnapshotStore) -> (Result<Admission, Refusal>, Duration) {
        let facts = InboundFacts {
            pod: pod_ref(&web()),
            local: "10.0.0.1:80".parse().unwrap(),
            peer: "10.0.0.9:4000".parse().unwrap(),
            arrival: Arrival::Plaintext,
        };
        let started = Instant::now();
        let decided = decide(&store.subscribe(), |snapshot| inbound::admit(snapshot, &facts)).await;
        (decided, started.elapsed())
    }

    async fn ask_while(store: &SnapshotStore, then: Vec<Change>) -> (Result<Admission, Refusal>, Duration) {
        let later = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            store.apply(then);
        };
        tokio::join!(ask(store), later).0
    }

    fn reason(decided: Result<Admission, Refusal>) -> Option<Reason> {
        decided.err().map(|refusal| refusal.reason)
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_waits_for_a_policy_that_is_named_and_not_here_yet() {
        let store = SnapshotStore::new(Snapshot::of([Change::Workload(web().into())]));
        let mut policy = strict(PolicyScope::Workload);
        policy.rules.clear();
        let (decided, took) = ask_while(&store, vec![Change::Policy(policy.into())]).await;
        assert_eq!((reason(decided), took), (None, Duration::from_millis(100)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_policy_that_arrives_while_a_connection_waits_is_obeyed_at_once() {
        let store = SnapshotStore::new(Snapshot::of([Change::Workload(web().into())]));
        let policy = Change::Policy(strict(PolicyScope::Workload).into());
        let (decided, took) = ask_while(&store, vec![policy]).await;
        assert_eq!((reason(decided), took), (Some(Reason::MtlsRequired), Duration::from_millis(100)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_policy_that_never_arrives_refuses_after_a_second_whatever_else_changes() {
        let store = SnapshotStore::new(Snapshot::of([Change::Workload(web().into())]));
        let other = Change::Workload(pod("other", [10, 0, 0, 2]).into());
        let (decided, took) = ask_while(&store, vec![other]).await;
        assert_eq!((reason(decided), took), (Some(Reason::PolicyUnknown), Duration::from_secs(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_workload_that_arrives_with_a_policy_that_does_not_is_refused_by_the_policys_limit() {
        let store = SnapshotStore::default();
        let (decided, took) = ask_while(&store, vec![Change::Workload(web().into())]).await;
        assert_eq!((reason(decided), took), (Some(Reason::PolicyUnknown), Duration::from_secs(1)));
        let (decided, took) = ask(&SnapshotStore::default()).await;
        assert_eq!((reason(decided), took), (Some(Reason::WorkloadUnknown), Duration::from_secs(5)));
    }
}
