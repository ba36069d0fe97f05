use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    fixtures::{backing, pod, port, service, service_name, workloads},
    model::{Tunnel, Vip},
};

fn none() -> Arc<str> {
    "".into()
}

#[test]
fn a_clone_is_not_changed_by_later_batches() {
    let mut snapshot = Snapshot::of(workloads([pod("a", [10, 0, 0, 1])]));
    let before = snapshot.clone();
    snapshot.apply([Change::RemoveWorkload(pod("a", [10, 0, 0, 1]).uid)]);
    assert_eq!((before.workload_count(), snapshot.workload_count()), (1, 0));
    assert!(before.workload_at(&none(), [10, 0, 0, 1].into()).is_some());
    assert!(snapshot.version() > before.version());
}

#[test]
fn an_address_that_moves_is_found_at_the_new_place_only() {
    let mut snapshot = Snapshot::of(workloads([pod("a", [10, 0, 0, 1])]));
    snapshot.apply(workloads([pod("a", [10, 0, 0, 2])]));
    assert!(snapshot.workload_at(&none(), [10, 0, 0, 1].into()).is_none());
    assert!(snapshot.workload_at(&none(), [10, 0, 0, 2].into()).is_some());
}

#[test]
fn workloads_that_share_an_address_are_ordered_and_host_network_is_hidden() {
    let mut entry = Workload::new(
        WorkloadUid::new("Kubernetes/networking.istio.io/WorkloadEntry/default/e"),
        "default",
        "e",
    );
    entry.addresses = vec![[10, 0, 0, 1].into()];
    entry.tunnel = Tunnel::Hbone;
    let mut plain = pod("plain", [10, 0, 0, 1]);
    plain.tunnel = Tunnel::None;
    let mut host = pod("host", [10, 0, 0, 1]);
    host.host_network = true;
    let snapshot = Snapshot::of(workloads([entry, plain, pod("z", [10, 0, 0, 1]), host]));
    let names: Vec<_> =
        snapshot.workloads_at(&none(), [10, 0, 0, 1].into()).iter().map(|w| w.name.to_string()).collect();
    assert_eq!(names, ["z", "plain", "e"]);
}

#[test]
fn endpoints_may_come_before_their_service_and_survive_its_update() {
    let nginx = service("nginx", [10, 96, 0, 1], &[port(80, 80)]);
    let mut snapshot = Snapshot::of(workloads([backing(pod("a", [10, 0, 0, 1]), &nginx)]));
    assert_eq!(snapshot.endpoints(&nginx.key).len(), 1);
    snapshot.apply([Change::Service(Arc::new(nginx.clone()))]);
    assert_eq!(snapshot.endpoints(&nginx.key).len(), 1);
    snapshot.apply(workloads([pod("a", [10, 0, 0, 1])]));
    assert!(snapshot.endpoints(&nginx.key).is_empty());
}

#[test]
fn among_services_with_one_address_the_clients_namespace_wins_then_the_canonical() {
    let at = |ns: &str, canonical| {
        let mut s = service("s", [10, 96, 0, 1], &[]);
        s.key = ServiceName::new(ns, "s.example");
        s.canonical = canonical;
        Change::Service(Arc::new(s))
    };
    let snapshot = Snapshot::of([at("a", false), at("b", true), at("c", false)]);
    let seen =
        |ns: &str| snapshot.service_at(&none(), [10, 96, 0, 1].into(), ns).unwrap().key.namespace.to_string();
    assert_eq!((seen("c"), seen("x")), ("c".to_owned(), "b".to_owned()));
    assert_eq!(&*snapshot.service_by_host("s.example", "a").unwrap().key.namespace, "a");
}

#[test]
fn a_service_of_its_namespace_only_is_hidden_from_others() {
    let mut hidden = service("s", [10, 96, 0, 1], &[]);
    hidden.namespace_only = true;
    let snapshot = Snapshot::of([Change::Service(Arc::new(hidden))]);
    assert!(snapshot.service_at(&none(), [10, 96, 0, 1].into(), "default").is_some());
    assert!(snapshot.service_at(&none(), [10, 96, 0, 1].into(), "other").is_none());
}

#[test]
fn an_exact_address_beats_a_range_and_the_longest_range_wins() {
    let ranged = |name: &str, range: &str| {
        let mut s = service(name, [0, 0, 0, 0], &[]);
        s.vips = vec![Vip { network: none(), range: range.parse().unwrap() }];
        Change::Service(Arc::new(s))
    };
    let mut snapshot = Snapshot::of([
        ranged("wide", "10.0.0.0/8"),
        ranged("narrow", "10.1.0.0/16"),
        ranged("one", "10.1.0.1/32"),
    ]);
    let name = |s: &Snapshot, ip: [u8; 4]| s.service_at(&none(), ip.into(), "x").map(|s| s.name.to_string());
    assert_eq!(name(&snapshot, [10, 1, 0, 1]).as_deref(), Some("one"));
    assert_eq!(name(&snapshot, [10, 1, 0, 2]).as_deref(), Some("narrow"));
    assert_eq!(name(&snapshot, [10, 2, 0, 2]).as_deref(), Some("wide"));
    snapshot.apply([Change::RemoveService(service_name("wide"))]);
    assert_eq!(name(&snapshot, [10, 2, 0, 2]), None);
}

#[test]
fn only_a_full_sync_makes_it_complete_and_policy_changes_move_their_own_version() {
    let mut snapshot = Snapshot::new();
    snapshot.apply(workloads([pod("a", [10, 0, 0, 1])]));
    assert!(!snapshot.is_complete());
    let before = snapshot.policy_version();
    let mut selected = pod("a", [10, 0, 0, 1]);
    selected.policies = vec![PolicyName::new("default", "p")];
    snapshot.apply(workloads([selected]));
    assert!(snapshot.policy_version() > before, "a workload's list of policies counts");
    snapshot.apply([Change::Synced]);
    assert!(snapshot.is_complete());
}

proptest! {
    /// Whatever happened before, the indexes are those of a snapshot built from the end result.
    #[test]
    fn indexes_depend_only_on_the_objects(ops in vec((0u8..5, 0u8..4, any::<bool>(), any::<bool>()), 0..40)) {
        let nginx = service("nginx", [10, 96, 0, 1], &[port(80, 80)]);
        let mut snapshot = Snapshot::new();
        for (n, ip, backs, remove) in ops {
            let mut w = pod(&format!("p{n}"), [10, 0, 0, ip]);
            if backs { w = backing(w, &nginx); }
            snapshot.apply(if remove { vec![Change::RemoveWorkload(w.uid)] } else { workloads([w]) });
        }
        let again = Snapshot::of(snapshot.dump().into_changes());
        prop_assert_eq!(snapshot.endpoints(&nginx.key), again.endpoints(&nginx.key));
        for ip in 0u8..4 {
            let at = IpAddr::from([10, 0, 0, ip]);
            prop_assert_eq!(snapshot.workloads_at(&none(), at), again.workloads_at(&none(), at));
        }
    }
}
