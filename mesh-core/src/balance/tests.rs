use std::{cell::RefCell, collections::HashMap};

use super::*;
use crate::{
    entropy::SplitMix64,
    fixtures::{backing, pod, port, service, workloads},
    model::{ApplicationTunnel, Locality},
};

fn nginx() -> Service {
    service("nginx", [10, 96, 0, 1], &[port(80, 8080)])
}

fn in_zone(mut w: Workload, zone: &str) -> Workload {
    w.locality = Locality { region: "r".into(), zone: zone.into(), subzone: "".into() };
    w
}

fn endpoint(n: u8) -> Workload {
    backing(pod(&format!("web-{n}"), [10, 0, 1, n]), &nginx())
}

/// How often each endpoint is chosen in 2,000 picks.
fn shares(
    service: &Service,
    source: &Workload,
    pods: Vec<Workload>,
    load: &impl LoadView,
) -> HashMap<String, u32> {
    let snapshot = Snapshot::of(workloads(pods));
    let mut entropy = SplitMix64::new(42);
    let mut counts = HashMap::new();
    for _ in 0..2000 {
        let wanted = Wanted { source, service, port: 80, purpose: Purpose::Destination };
        if let Some(endpoint) = pick(&snapshot, wanted, &mut entropy, load) {
            *counts.entry(endpoint.workload.name.to_string()).or_default() += 1;
        }
    }
    counts
}

#[test]
fn equal_endpoints_share_equally_in_small_and_large_services() {
    for n in [4u8, 20] {
        let counts = shares(&nginx(), &pod("c", [10, 0, 0, 1]), (1..=n).map(endpoint).collect(), &NoLoad);
        assert_eq!(counts.len(), usize::from(n));
        let fair = 2000 / u32::from(n);
        assert!(counts.values().all(|c| (fair / 2..fair * 2).contains(c)), "{counts:?}");
    }
}

#[test]
fn capacity_weighs_and_zero_is_never_chosen() {
    let mut heavy = endpoint(1);
    heavy.capacity = 9;
    let mut zero = endpoint(3);
    zero.capacity = 0;
    let counts = shares(&nginx(), &pod("c", [10, 0, 0, 1]), vec![heavy, endpoint(2), zero], &NoLoad);
    assert!((1700..1900).contains(&counts["web-1"]), "{counts:?}");
    assert!(!counts.contains_key("web-3"));
}

struct Busy;

impl LoadView for Busy {
    fn open_flows(&self, workload: &WorkloadUid) -> Option<u32> {
        Some(if workload.0.ends_with("web-1") { 50 } else { 0 })
    }
}

#[test]
fn of_two_choices_the_less_loaded_wins() {
    let counts = shares(&nginx(), &pod("c", [10, 0, 0, 1]), vec![endpoint(1), endpoint(2)], &Busy);
    // chosen only when both draws are the busy one
    assert!((400..600).contains(&counts["web-1"]), "{counts:?}");
}

/// Flows that stay open, as an agent counts them.
#[derive(Default)]
struct Open(RefCell<HashMap<WorkloadUid, u32>>);

impl LoadView for Open {
    fn open_flows(&self, workload: &WorkloadUid) -> Option<u32> {
        Some(self.0.borrow().get(workload).copied().unwrap_or(0))
    }
}

fn weighing(mut w: Workload, capacity: u32) -> Workload {
    w.capacity = capacity;
    w
}

#[test]
fn idle_endpoints_are_chosen_by_weight_also_when_somebody_counts() {
    for (left, right, share) in [(1, 1, 1000), (9, 1, 1800), (3, 1, 1500), (1000, 1, 1998)] {
        let pods = vec![weighing(endpoint(1), left), weighing(endpoint(2), right)];
        let counts = shares(&nginx(), &pod("c", [10, 0, 0, 1]), pods, &Open::default());
        let near = share - 100..share + 100;
        assert!(near.contains(&counts["web-1"]), "{left}:{right}: {counts:?}");
    }
}

#[test]
fn flows_that_stay_open_end_up_in_the_proportion_of_the_weights() {
    let snapshot = Snapshot::of(workloads([weighing(endpoint(1), 9), weighing(endpoint(2), 1)]));
    let (service, source, load) = (nginx(), pod("c", [10, 0, 0, 1]), Open::default());
    let mut entropy = SplitMix64::new(7);
    for _ in 0..1000 {
        let wanted = Wanted { source: &source, service: &service, port: 80, purpose: Purpose::Destination };
        let chosen = pick(&snapshot, wanted, &mut entropy, &load).unwrap();
        *load.0.borrow_mut().entry(chosen.workload.uid.clone()).or_default() += 1;
    }
    let heavy = load.open_flows(&endpoint(1).uid).unwrap();
    assert!((880..920).contains(&heavy), "{heavy} of 1000");
}

#[test]
fn failover_takes_the_nearest_and_only_falls_back_when_it_is_empty() {
    let mut near = nginx();
    near.load_balancing.mode = LoadBalancingMode::Failover;
    near.load_balancing.preference = vec![Scope::Network, Scope::Region, Scope::Zone];
    let source = in_zone(pod("c", [10, 0, 0, 1]), "a");
    let (here, there) = (in_zone(endpoint(1), "a"), in_zone(endpoint(2), "b"));
    let counts = shares(&near, &source, vec![here.clone(), there.clone()], &NoLoad);
    assert_eq!(counts["web-1"], 2000);
    let mut down = here;
    down.health = Health::Unhealthy;
    assert_eq!(shares(&near, &source, vec![down, there], &NoLoad)["web-2"], 2000);
}

#[test]
fn network_first_ranks_every_local_endpoint_above_every_remote_one() {
    let mut policy = LoadBalancing { mode: LoadBalancingMode::Failover, ..LoadBalancing::default() };
    policy.preference = vec![Scope::Network, Scope::Region, Scope::Zone];
    let source = in_zone(pod("c", [10, 0, 0, 1]), "a");
    let mut local_far = in_zone(endpoint(1), "b");
    local_far.locality.region = "elsewhere".into();
    let mut remote_near = in_zone(endpoint(2), "a");
    remote_near.network = "far".into();
    assert!(rank(&policy, &source, &local_far) > rank(&policy, &source, &remote_near));
    let mut remote_far = remote_near.clone();
    remote_far.locality.region = "elsewhere".into();
    assert!(rank(&policy, &source, &remote_near) > rank(&policy, &source, &remote_far));
}

#[test]
fn strict_needs_every_scope() {
    let mut local = nginx();
    local.load_balancing.mode = LoadBalancingMode::Strict;
    local.load_balancing.preference = vec![Scope::Node];
    let mut source = pod("c", [10, 0, 0, 1]);
    source.node = "n1".into();
    assert!(shares(&local, &source, vec![endpoint(1)], &NoLoad).is_empty());
    let mut same = endpoint(2);
    same.node = "n1".into();
    assert_eq!(shares(&local, &source, vec![endpoint(1), same], &NoLoad)["web-2"], 2000);
}

#[test]
fn the_endpoints_own_port_wins_and_a_named_port_needs_it() {
    let mut own = endpoint(1);
    own.services.insert(nginx().key, vec![port(80, 9090)]);
    assert_eq!(target_port(&nginx(), &own, 80, Purpose::Destination), Some(9090));
    assert_eq!(target_port(&nginx(), &own, 81, Purpose::Destination), None);
    let mut named = nginx();
    named.ports = vec![port(80, 0)];
    assert_eq!(target_port(&named, &own, 80, Purpose::Destination), Some(9090));
    own.services.clear();
    assert_eq!(target_port(&named, &own, 80, Purpose::Destination), None);
}

#[test]
fn a_waypoint_with_an_application_tunnel_needs_no_declared_port() {
    let mut w = endpoint(1);
    w.application_tunnel = Some(ApplicationTunnel { proxy_protocol: true, port: Some(15088) });
    assert_eq!(target_port(&nginx(), &w, 15008, Purpose::Waypoint), Some(15088));
    assert_eq!(target_port(&nginx(), &w, 15008, Purpose::Destination), None);
}

#[test]
fn a_client_of_a_sticky_service_keeps_to_one_endpoint_and_few_move_when_one_goes() {
    let mut service = nginx();
    service.load_balancing.sticky = true;
    let chosen = |endpoints: Vec<Workload>| -> Vec<String> {
        let of = |client: u8| {
            let source = pod(&format!("client-{client}"), [10, 0, 0, client]);
            let counts = shares(&service, &source, endpoints.clone(), &NoLoad);
            assert_eq!(counts.len(), 1, "{counts:?}");
            counts.into_keys().next().unwrap()
        };
        (1..=40).map(of).collect()
    };
    let before = chosen((1..=4).map(endpoint).collect());
    let after = chosen((1..=3).map(endpoint).collect());
    for (was, is) in before.iter().zip(&after) {
        assert!(was == is || was == "web-4", "{was} became {is} though it is still there");
    }
    for n in 1..=4 {
        let share = before.iter().filter(|name| **name == format!("web-{n}")).count();
        assert!((4..=20).contains(&share), "{before:?}");
    }
}
