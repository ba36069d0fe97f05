//! When certificates that could not be had are asked for at once instead of in their turn.

use std::{collections::BTreeSet, sync::Arc};

use mesh_core::{identity::Identity, snapshot::Snapshot};
use mesh_net::{
    ca::{CertState, CertificateManager, IstioCa},
    store::SnapshotStore,
    xds::XdsStatus,
};
use tokio::sync::watch;

/// The control plane signs, too: when its stream is open again, certificates need not be waited for.
pub(super) async fn when_connected(
    manager: Arc<CertificateManager<IstioCa>>,
    mut status: watch::Receiver<XdsStatus>,
) {
    while status.wait_for(|status| status.connected).await.is_ok() {
        manager.hurry();
        if status.wait_for(|status| !status.connected).await.is_err() {
            return;
        }
    }
}

/// Istio's control plane signs for the pods that it knows, and an agent may know one earlier: when
/// configuration tells of such a pod, its certificate is to be had.
pub(super) async fn when_told(
    manager: Arc<CertificateManager<IstioCa>>,
    store: Arc<SnapshotStore>,
    node: Arc<str>,
) {
    let (mut snapshots, mut known) = (store.subscribe(), BTreeSet::new());
    while snapshots.changed().await.is_ok() {
        let waiting = manager.states().into_iter();
        let waiting = waiting.filter(|(_, state)| matches!(state, CertState::Unavailable(_)));
        let waiting: BTreeSet<Identity> = waiting.map(|(identity, _)| identity).collect();
        let snapshot = snapshots.borrow_and_update().clone();
        if is_news(&snapshot, &node, &waiting, &mut known) {
            manager.hurry();
        }
    }
}

/// Whether a pod of the node that waits for its certificate is in the configuration and was not before.
fn is_news(
    snapshot: &Snapshot,
    node: &str,
    waiting: &BTreeSet<Identity>,
    known: &mut BTreeSet<Identity>,
) -> bool {
    // A whole mesh is looked through only while somebody waits.
    if waiting.is_empty() {
        known.clear();
        return false;
    }
    let own = snapshot.workloads().filter(|workload| &*workload.node == node);
    let there: BTreeSet<Identity> =
        own.map(|workload| workload.identity()).filter(|identity| waiting.contains(identity)).collect();
    let news = !there.is_subset(known);
    *known = there;
    news
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use mesh_core::{fixtures, model::Workload};

    use super::*;

    fn on(node: &str, name: &str) -> Workload {
        Workload { node: node.into(), ..fixtures::pod(name, IpAddr::from([10, 0, 0, 1])) }
    }

    #[test]
    fn configuration_that_first_tells_of_an_own_pod_that_waits_is_news_and_no_other_is() {
        let (mine, other) = (on("a", "web"), on("b", "web"));
        let waiting = BTreeSet::from([mine.identity()]);
        let of = |workload: &Workload| Snapshot::of(fixtures::workloads([workload.clone()]));
        let mut known = BTreeSet::new();
        assert!(!is_news(&of(&other), "a", &waiting, &mut known), "on another node");
        assert!(!is_news(&of(&on("a", "api")), "a", &waiting, &mut known), "another account");
        assert!(!is_news(&of(&mine), "a", &BTreeSet::new(), &mut known), "nobody waits");
        assert!(is_news(&of(&mine), "a", &waiting, &mut known));
        assert!(!is_news(&of(&mine), "a", &waiting, &mut known), "it is known by now");
        assert!(!is_news(&of(&other), "a", &waiting, &mut known));
        assert!(is_news(&of(&mine), "a", &waiting, &mut known), "it went and came back");
    }
}
