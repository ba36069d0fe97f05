use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::{
    delta::Change,
    fixtures::{pod, service, workloads},
};

fn cluster() -> Vec<IpNet> {
    vec!["10.0.0.0/16".parse().unwrap(), "10.96.0.0/16".parse().unwrap()]
}

fn snapshot() -> Snapshot {
    let mut changes = workloads([pod("in", [10, 0, 0, 1]), pod("out", [192, 0, 2, 7])]);
    changes.push(Change::Service(Arc::new(service("far", [203, 0, 113, 9], &[]))));
    Snapshot::of(changes)
}

#[test]
fn what_the_snapshot_mentions_outside_the_ranges_is_added() {
    let ranges = mesh_ranges(&snapshot(), &cluster());
    assert_eq!(ranges.ranges.len(), 4);
    assert!(ranges.complete);
    assert!(ranges.contains([192, 0, 2, 7].into()) && ranges.contains([203, 0, 113, 9].into()));
}

#[test]
fn nothing_is_proven_outside_without_configured_ranges_or_a_complete_snapshot() {
    assert!(!mesh_ranges(&snapshot(), &[]).complete);
    assert!(!mesh_ranges(&Snapshot::new(), &cluster()).complete);
}

#[test]
fn a_connect_inside_the_pod_is_untouched_and_one_without_an_address_of_its_family_is_refused() {
    let own = [IpAddr::from([10, 0, 0, 1])];
    let ranges = mesh_ranges(&snapshot(), &cluster());
    let cases = [
        ("127.0.0.9", ConnectVerdict::Untouched),
        ("0.0.0.0", ConnectVerdict::Untouched),
        ("::", ConnectVerdict::Untouched),
        ("::1", ConnectVerdict::Untouched),
        ("::ffff:10.0.0.1", ConnectVerdict::Untouched),
        ("10.0.0.2", ConnectVerdict::Blocked),
        ("::ffff:8.8.8.8", ConnectVerdict::Blocked),
        ("2001:db8::1", ConnectVerdict::NoFamily),
    ];
    for (destination, blocked) in cases {
        let facts = |capture| ConnectFacts {
            capture,
            own: &own,
            by_agent: false,
            destination: destination.parse().unwrap(),
        };
        assert_eq!(connect(&facts(Capture::Blocked), &ranges), blocked, "{destination}");
        let active = match (blocked, destination) {
            (ConnectVerdict::Blocked, "10.0.0.2") => ConnectVerdict::ToAgent,
            (ConnectVerdict::Blocked, _) => ConnectVerdict::Bypass,
            (same, _) => same,
        };
        assert_eq!(connect(&facts(Capture::Active), &ranges), active, "{destination}");
    }
}

proptest! {
    /// Bypass never touches an address of the mesh, a blocked pod, or an incomplete view.
    #[test]
    fn bypass_only_what_is_proven_outside(ip: [u8; 4], active: bool, complete: bool, by_agent: bool) {
        let mut ranges = mesh_ranges(&snapshot(), &cluster());
        ranges.complete = complete;
        let destination = IpAddr::from(ip);
        let own = [IpAddr::from([10, 0, 0, 1])];
        let capture = if active { Capture::Active } else { Capture::Blocked };
        let verdict = connect(&ConnectFacts { capture, own: &own, by_agent, destination }, &ranges);
        if verdict == ConnectVerdict::Bypass {
            prop_assert!(active && complete && !ranges.contains(destination));
        }
        if by_agent {
            prop_assert_eq!(verdict, ConnectVerdict::Untouched);
        }
        let none = ConnectFacts { capture: Capture::None, own: &own, by_agent, destination };
        prop_assert_eq!(connect(&none, &ranges), ConnectVerdict::Untouched);
    }
}
