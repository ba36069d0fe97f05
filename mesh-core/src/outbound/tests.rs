use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::{
    balance::NoLoad,
    delta::Change,
    entropy::SplitMix64,
    fixtures::{backing, identity, pod, pod_ref, port, service, waypoint, workloads},
    model::{Health, LoadBalancingMode, Tunnel},
    outcome::Reason,
};

fn snapshot(pods: Vec<Workload>, services: Vec<Service>) -> Snapshot {
    let services = services.into_iter().map(|s| Change::Service(Arc::new(s)));
    Snapshot::of(workloads(pods).into_iter().chain(services))
}

fn client() -> Workload {
    pod("client", [10, 0, 0, 1])
}

fn dial(snapshot: &Snapshot, to: &str) -> Result<OutboundPlan, Refusal> {
    let source = client();
    let facts = OutboundFacts {
        pod: pod_ref(&source),
        source: "10.0.0.1:40000".parse().unwrap(),
        destination: to.parse().unwrap(),
    };
    plan(snapshot, &facts, &mut SplitMix64::new(7), &NoLoad)
}

fn reason(snapshot: &Snapshot, to: &str) -> Reason {
    dial(snapshot, to).unwrap_err().reason
}

fn tunnel(plan: &OutboundPlan) -> &TunnelPlan {
    match &plan.transport {
        Transport::Tunnel(tunnel) => tunnel,
        Transport::Plain(hop) => panic!("plain to {hop:?}"),
    }
}

fn nginx() -> Service {
    service("nginx", [10, 96, 0, 1], &[port(8000, 80)])
}

fn web() -> Workload {
    backing(pod("web", [10, 0, 0, 2]), &nginx())
}

#[test]
fn a_service_goes_to_its_endpoint_with_the_port_translated() {
    let plan = dial(&snapshot(vec![client(), web()], vec![nginx()]), "10.96.0.1:8000").unwrap();
    let tunnel = tunnel(&plan);
    assert_eq!(tunnel.hop, Hop::Address("10.0.0.2:15008".parse().unwrap()));
    assert_eq!(tunnel.authority.to_string(), "10.0.0.2:80");
    assert_eq!(tunnel.expected, [identity("web")]);
    assert_eq!(tunnel.peer, web().uid);
    assert_eq!((plan.path, plan.service_host()), (Path::Tunnel, Some("nginx.default.svc.cluster.local")));
}

#[test]
fn an_endpoint_outside_the_mesh_is_reached_in_plaintext() {
    let mut plain = web();
    plain.tunnel = Tunnel::None;
    let plan = dial(&snapshot(vec![client(), plain], vec![nginx()]), "10.96.0.1:8000").unwrap();
    assert_eq!(plan.transport, Transport::Plain(Hop::Address("10.0.0.2:80".parse().unwrap())));
}

#[test]
fn a_pod_address_is_tunnelled_to_that_pod_and_keeps_its_port() {
    let plan = dial(&snapshot(vec![client(), web()], vec![]), "10.0.0.2:8080").unwrap();
    assert_eq!(tunnel(&plan).authority.to_string(), "10.0.0.2:8080");
}

#[test]
fn an_unknown_address_passes_through() {
    let plan = dial(&snapshot(vec![client()], vec![]), "192.0.2.1:443").unwrap();
    assert_eq!(plan.path, Path::Passthrough);
    assert_eq!(plan.transport, Transport::Plain(Hop::Address("192.0.2.1:443".parse().unwrap())));
}

#[test]
fn a_v4_mapped_destination_is_the_v4_one() {
    let plan = dial(&snapshot(vec![client(), web()], vec![nginx()]), "[::ffff:10.96.0.1]:8000").unwrap();
    assert_eq!(tunnel(&plan).authority.to_string(), "10.0.0.2:80");
}

#[test]
fn a_service_without_ready_endpoint_or_port_is_refused_and_never_dialled() {
    let mut down = web();
    down.health = Health::Unhealthy;
    let world = snapshot(vec![client(), down.clone()], vec![nginx()]);
    assert_eq!(reason(&world, "10.96.0.1:8000"), Reason::NoHealthyEndpoint);
    let world = snapshot(vec![client(), web()], vec![nginx()]);
    assert_eq!(reason(&world, "10.96.0.1:9999"), Reason::NoHealthyEndpoint);
    let mut all = nginx();
    all.load_balancing.allow_unhealthy = true;
    assert!(dial(&snapshot(vec![client(), down], vec![all]), "10.96.0.1:8000").is_ok());
}

#[test]
fn a_passthrough_service_goes_to_the_original_destination() {
    let mut external = nginx();
    external.load_balancing.mode = LoadBalancingMode::Passthrough;
    let plan = dial(&snapshot(vec![client()], vec![external]), "10.96.0.1:443").unwrap();
    assert_eq!(plan.transport, Transport::Plain(Hop::Address("10.96.0.1:443".parse().unwrap())));
}

fn with_waypoint(instances: Vec<Workload>) -> Snapshot {
    let mut guarded = nginx();
    guarded.waypoint = Some(waypoint("waypoint"));
    let mut pods = vec![client(), web()];
    pods.extend(instances);
    snapshot(pods, vec![guarded, waypoint_service()])
}

fn waypoint_service() -> Service {
    service("waypoint", [10, 96, 0, 9], &[port(15008, 15008)])
}

fn waypoint_pod() -> Workload {
    let mut instance = backing(pod("waypoint-1", [10, 0, 0, 9]), &waypoint_service());
    instance.tunnel = Tunnel::None;
    instance
}

#[test]
fn a_service_waypoint_gets_the_untouched_destination() {
    let plan = dial(&with_waypoint(vec![waypoint_pod()]), "10.96.0.1:8000").unwrap();
    let tunnel = tunnel(&plan);
    assert_eq!(plan.path, Path::Waypoint);
    assert_eq!(tunnel.hop, Hop::Address("10.0.0.9:15008".parse().unwrap()));
    assert_eq!(tunnel.authority.to_string(), "10.96.0.1:8000");
    assert_eq!(tunnel.expected, [identity("waypoint-1")]);
}

#[test]
fn a_waypoint_that_is_missing_or_down_refuses_instead_of_going_around() {
    assert_eq!(reason(&with_waypoint(vec![]), "10.96.0.1:8000"), Reason::WaypointUnavailable);
    let mut guarded = nginx();
    guarded.waypoint = Some(waypoint("nowhere"));
    let world = snapshot(vec![client(), web()], vec![guarded]);
    assert_eq!(reason(&world, "10.96.0.1:8000"), Reason::WaypointUnavailable);
}

#[test]
fn a_workload_waypoint_is_for_pod_addresses_only() {
    let mut guarded = web();
    guarded.waypoint = Some(waypoint("waypoint"));
    let world = snapshot(vec![client(), guarded, waypoint_pod()], vec![nginx(), waypoint_service()]);
    assert_eq!(dial(&world, "10.0.0.2:80").unwrap().path, Path::Waypoint);
    assert_eq!(dial(&world, "10.96.0.1:8000").unwrap().path, Path::Tunnel);
}

#[test]
fn the_waypoint_itself_goes_straight_to_the_workload() {
    let mut guarded = web();
    guarded.waypoint = Some(waypoint("waypoint"));
    let source = backing(client(), &waypoint_service());
    let world = snapshot(vec![source, guarded], vec![waypoint_service()]);
    assert_eq!(dial(&world, "10.0.0.2:80").unwrap().path, Path::Tunnel);
}

#[test]
fn weighted_waypoints_share_the_traffic() {
    let mut guarded = nginx();
    guarded.weighted_waypoints = vec![(waypoint("waypoint"), 0), (waypoint("nowhere"), 1)];
    let world = snapshot(vec![client(), web(), waypoint_pod()], vec![guarded, waypoint_service()]);
    assert_eq!(reason(&world, "10.96.0.1:8000"), Reason::WaypointUnavailable);
}

#[test]
fn a_pod_that_is_not_announced_or_not_itself_is_refused() {
    assert_eq!(reason(&snapshot(vec![], vec![]), "192.0.2.1:443"), Reason::WorkloadUnknown);
    let thief = pod("thief", [10, 0, 0, 1]);
    assert_eq!(reason(&snapshot(vec![thief], vec![]), "192.0.2.1:443"), Reason::IdentityMismatch);
    let mut account = client();
    account.service_account = "other".into();
    assert_eq!(reason(&snapshot(vec![account], vec![]), "192.0.2.1:443"), Reason::IdentityMismatch);
    let mut elsewhere = client();
    elsewhere.addresses = vec![[10, 0, 0, 77].into()];
    assert_eq!(reason(&snapshot(vec![elsewhere], vec![]), "192.0.2.1:443"), Reason::IdentityMismatch);
}

#[test]
fn the_meshs_own_ports_are_refused_on_the_pod_itself() {
    let world = snapshot(vec![client()], vec![]);
    assert_eq!(reason(&world, "127.0.0.1:15001"), Reason::IllegalPort);
    assert_eq!(reason(&world, "10.0.0.1:15008"), Reason::IllegalPort);
}

#[test]
fn an_endpoint_in_another_network_is_refused_with_a_clear_reason() {
    let mut remote = web();
    remote.network = "far".into();
    let world = snapshot(vec![client(), remote], vec![nginx()]);
    assert_eq!(reason(&world, "10.96.0.1:8000"), Reason::GatewayUnavailable);
}

#[test]
fn an_endpoint_with_only_a_name_is_resolved_by_the_caller() {
    let mut named = web();
    named.addresses.clear();
    named.tunnel = Tunnel::None;
    named.hostname = "api.example".into();
    let plan = dial(&snapshot(vec![client(), named], vec![nginx()]), "10.96.0.1:8000").unwrap();
    let want = Hop::Name { host: "api.example".into(), port: 80, prefer_v4: true };
    assert_eq!(plan.transport, Transport::Plain(want));
}

#[test]
fn service_sans_are_accepted_beside_the_endpoints_identity() {
    let mut wide = nginx();
    wide.subject_alt_names = vec![identity("legacy")];
    let plan = dial(&snapshot(vec![client(), web()], vec![wide]), "10.96.0.1:8000").unwrap();
    assert_eq!(tunnel(&plan).expected, [identity("web"), identity("legacy")]);
}

proptest! {
    /// Whatever the world, a plan is total; a tunnel always has an expected identity; an enrolled
    /// destination is never reached in plaintext (I-1).
    #[test]
    fn no_enrolled_destination_is_dialled_in_plaintext(
        last in 1u8..8, dst_port in 1u16..200, enrolled: bool, healthy: bool, guarded: bool, present: bool, seed: u64,
    ) {
        let mut end = web();
        end.tunnel = if enrolled { Tunnel::Hbone } else { Tunnel::None };
        end.health = if healthy { Health::Healthy } else { Health::Unhealthy };
        let mut front = service("nginx", [10, 0, 0, 4], &[port(80, 80)]);
        front.waypoint = guarded.then(|| waypoint("waypoint"));
        let mut pods = vec![client(), end];
        pods.extend(present.then(waypoint_pod));
        let world = snapshot(pods, vec![front, waypoint_service()]);
        let facts = OutboundFacts {
            pod: pod_ref(&client()),
            source: "10.0.0.1:40000".parse().unwrap(),
            destination: SocketAddr::new(Ipv4Addr::new(10, 0, 0, last).into(), dst_port),
        };
        match plan(&world, &facts, &mut SplitMix64::new(seed), &NoLoad) {
            Ok(plan) => match &plan.transport {
                Transport::Tunnel(t) => prop_assert!(!t.expected.is_empty()),
                Transport::Plain(_) => {
                    prop_assert!(plan.destination.is_none_or(|w| w.tunnel == Tunnel::None));
                    prop_assert!(!(guarded && last == 4), "a waypoint was bypassed");
                }
            },
            Err(refusal) => prop_assert!(!refusal.detail.is_empty()),
        }
    }
}
