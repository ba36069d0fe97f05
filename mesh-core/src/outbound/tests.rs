use super::*;
use crate::{
    balance::NoLoad,
    model::{Health, PortMapping, Vip},
    snapshot::Change,
};

struct First;

impl Entropy for First {
    fn below(&mut self, _: u64) -> u64 {
        0
    }
}

fn service_name() -> ServiceName {
    ServiceName::new("default", "web.default.svc.cluster.local")
}

fn pod(name: &str, ip: [u8; 4], tunnel: Tunnel) -> Workload {
    let mut workload = Workload::new(WorkloadUid::pod("Kubernetes", "default", name), "default", name);
    workload.addresses = vec![ip.into()];
    workload.tunnel = tunnel;
    workload.service_account = name.into();
    workload
}

fn endpoint(name: &str, ip: [u8; 4], tunnel: Tunnel) -> Workload {
    let mut workload = pod(name, ip, tunnel);
    let port = PortMapping { service_port: 80, target_port: 8080, app_protocol: Default::default() };
    workload.services.insert(service_name(), vec![port]);
    workload
}

fn service() -> Service {
    let mut service = Service::new(service_name(), "web");
    service.vips = vec![Vip { network: "".into(), range: "10.96.0.1/32".parse().unwrap() }];
    service.ports = vec![PortMapping { service_port: 80, target_port: 0, app_protocol: Default::default() }];
    service
}

fn world(workloads: Vec<Workload>, services: Vec<Service>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.apply(workloads.into_iter().map(|w| Change::Workload(Arc::new(w))));
    snapshot.apply(services.into_iter().map(|s| Change::Service(Arc::new(s))));
    snapshot
}

fn dial(world: &Snapshot, destination: &str) -> Result<OutboundPlan, Reason> {
    let uid = WorkloadUid::pod("Kubernetes", "default", "client");
    let facts = OutboundFacts {
        pod: &uid,
        client: "10.0.0.1:4000".parse().unwrap(),
        destination: destination.parse().unwrap(),
    };
    plan(world, &facts, &mut First, &NoLoad).map_err(|refusal| refusal.reason)
}

fn client() -> Workload {
    pod("client", [10, 0, 0, 1], Tunnel::Hbone)
}

#[test]
fn a_service_address_goes_to_an_endpoint_over_hbone_with_its_target_port() {
    let world = world(vec![client(), endpoint("web", [10, 0, 1, 2], Tunnel::Hbone)], vec![service()]);
    let plan = dial(&world, "10.96.0.1:80").unwrap();
    let expected = vec![Identity::new("cluster.local", "default", "web")];
    let (peer, authority) = ("10.0.1.2:15008".parse().unwrap(), "10.0.1.2:8080".parse().unwrap());
    assert_eq!(plan.transport, Transport::Hbone { peer, authority, expected });
    assert_eq!((plan.path, plan.service), (Path::Tunnel, Some(service_name())));
}

#[test]
fn an_endpoint_outside_the_mesh_gets_plain_tcp() {
    let world = world(vec![client(), endpoint("web", [10, 0, 1, 2], Tunnel::None)], vec![service()]);
    let plan = dial(&world, "10.96.0.1:80").unwrap();
    assert_eq!(plan.transport, Transport::Tcp { peer: "10.0.1.2:8080".parse().unwrap() });
}

#[test]
fn a_pod_address_keeps_its_port_and_an_unknown_one_passes_through() {
    let world = world(vec![client(), pod("web", [10, 0, 1, 2], Tunnel::Hbone)], vec![]);
    let plan = dial(&world, "10.0.1.2:9000").unwrap();
    assert!(matches!(plan.transport, Transport::Hbone { authority, .. } if authority.port() == 9000));
    let outside = dial(&world, "192.0.2.7:443").unwrap();
    assert_eq!(outside.path, Path::Passthrough);
    assert_eq!(outside.transport, Transport::Tcp { peer: "192.0.2.7:443".parse().unwrap() });
}

#[test]
fn refuses_a_service_without_a_healthy_endpoint_or_such_a_port() {
    let mut sick = endpoint("web", [10, 0, 1, 2], Tunnel::Hbone);
    sick.health = Health::Unhealthy;
    let unhealthy = world(vec![client(), sick.clone()], vec![service()]);
    assert_eq!(dial(&unhealthy, "10.96.0.1:80"), Err(Reason::NoHealthyEndpoint));
    let mut tolerant = service();
    tolerant.load_balancing.allow_unhealthy = true;
    assert!(dial(&world(vec![client(), sick], vec![tolerant]), "10.96.0.1:80").is_ok());
    let healthy = world(vec![client(), endpoint("web", [10, 0, 1, 2], Tunnel::Hbone)], vec![service()]);
    assert_eq!(dial(&healthy, "10.96.0.1:81"), Err(Reason::NoHealthyEndpoint));
}

#[test]
fn refuses_an_unknown_source_and_a_borrowed_address() {
    assert_eq!(dial(&world(vec![], vec![]), "192.0.2.7:443"), Err(Reason::WorkloadUnknown));
    let elsewhere = pod("client", [10, 0, 0, 9], Tunnel::Hbone);
    assert_eq!(dial(&world(vec![elsewhere], vec![]), "192.0.2.7:443"), Err(Reason::IdentityMismatch));
}

fn waypoint_service() -> (Service, GatewayAddress) {
    let name = ServiceName::new("default", "waypoint.default.svc.cluster.local");
    let mut service = Service::new(name.clone(), "waypoint");
    service.ports =
        vec![PortMapping { service_port: 15008, target_port: 15008, app_protocol: Default::default() }];
    (service, GatewayAddress { destination: GatewayDestination::Hostname(name), hbone_port: 15008 })
}

#[test]
fn a_service_with_a_waypoint_goes_there_with_the_address_that_was_asked_for() {
    let (gateway, address) = waypoint_service();
    let mut waypoint = pod("waypoint", [10, 0, 2, 3], Tunnel::None);
    waypoint.services.insert(gateway.key.clone(), gateway.ports.clone());
    let mut routed = service();
    routed.waypoint = Some(address);
    let world =
        world(vec![client(), waypoint, endpoint("web", [10, 0, 1, 2], Tunnel::Hbone)], vec![routed, gateway]);
    let plan = dial(&world, "10.96.0.1:80").unwrap();
    let expected = vec![Identity::new("cluster.local", "default", "waypoint")];
    let (peer, authority) = ("10.0.2.3:15008".parse().unwrap(), "10.96.0.1:80".parse().unwrap());
    assert_eq!(plan.transport, Transport::Hbone { peer, authority, expected });
    assert_eq!(plan.path, Path::Waypoint);
}

#[test]
fn an_unresolvable_waypoint_is_never_bypassed() {
    let (_, address) = waypoint_service();
    let mut routed = service();
    routed.waypoint = Some(address);
    let world = world(vec![client(), endpoint("web", [10, 0, 1, 2], Tunnel::Hbone)], vec![routed]);
    assert_eq!(dial(&world, "10.96.0.1:80"), Err(Reason::WaypointUnavailable));
}

#[test]
fn failover_prefers_the_same_node_and_strict_refuses_another() {
    let mut near = endpoint("near", [10, 0, 1, 2], Tunnel::Hbone);
    let mut far = endpoint("far", [10, 0, 1, 3], Tunnel::Hbone);
    let mut here = client();
    (near.node, far.node, here.node) = ("a".into(), "b".into(), "a".into());
    let mut local = service();
    local.load_balancing.mode = LoadBalancingMode::Failover;
    local.load_balancing.preference = vec![crate::model::Scope::Node];
    let both = world(vec![here.clone(), near, far.clone()], vec![local.clone()]);
    assert_eq!(&*dial(&both, "10.96.0.1:80").unwrap().upstream.unwrap().name, "near");
    let remote = world(vec![here.clone(), far.clone()], vec![local.clone()]);
    assert_eq!(&*dial(&remote, "10.96.0.1:80").unwrap().upstream.unwrap().name, "far");
    local.load_balancing.mode = LoadBalancingMode::Strict;
    assert_eq!(dial(&world(vec![here, far], vec![local]), "10.96.0.1:80"), Err(Reason::NoHealthyEndpoint));
}

#[test]
fn a_removed_workload_is_forgotten_by_every_index() {
    let web = endpoint("web", [10, 0, 1, 2], Tunnel::Hbone);
    let mut world = world(vec![client(), web.clone()], vec![service()]);
    world.apply([Change::RemoveWorkload(web.uid.clone())]);
    assert_eq!(dial(&world, "10.96.0.1:80"), Err(Reason::NoHealthyEndpoint));
    assert_eq!(dial(&world, "10.0.1.2:9000").unwrap().path, Path::Passthrough);
}

#[test]
fn endpoints_that_precede_their_service_are_attached_when_it_comes() {
    let mut world = world(vec![client(), endpoint("web", [10, 0, 1, 2], Tunnel::Hbone)], vec![]);
    assert_eq!(dial(&world, "10.96.0.1:80").unwrap().path, Path::Passthrough);
    world.apply([Change::Service(Arc::new(service()))]);
    assert_eq!(dial(&world, "10.96.0.1:80").unwrap().path, Path::Tunnel);
}
