use super::*;
use crate::{
    delta::Change,
    fixtures::{backing, identity, pod, pod_ref, port, service, strict, waypoint, workloads},
    hbone::status,
    model::{ApplicationTunnel, PolicyScope},
    outcome::Reason,
};

fn nginx() -> Service {
    service("nginx", [10, 96, 0, 1], &[port(8000, 80)])
}

fn web() -> Workload {
    backing(pod("web", [10, 0, 0, 2]), &nginx())
}

fn world(web: Workload) -> Snapshot {
    let mut changes = workloads([web, pod("client", [10, 0, 0, 1])]);
    changes.push(Change::Service(Arc::new(nginx())));
    Snapshot::of(changes)
}

fn hbone(authority: &str) -> InboundFacts {
    InboundFacts {
        pod: pod_ref(&web()),
        local: "10.0.0.2:15008".parse().unwrap(),
        peer: "10.0.0.1:40000".parse().unwrap(),
        arrival: Arrival::Hbone {
            identity: identity("client"),
            authority: authority.parse().unwrap(),
            forwarded_host: None,
            forwarded_network: None,
        },
    }
}

fn plaintext(local: &str) -> InboundFacts {
    InboundFacts { local: local.parse().unwrap(), arrival: Arrival::Plaintext, ..hbone("10.0.0.2:80") }
}

fn refused(snapshot: &Snapshot, facts: &InboundFacts) -> (Reason, u16) {
    let reason = admit(snapshot, facts).unwrap_err().reason;
    (reason, status(reason))
}

#[test]
fn a_request_for_the_pods_own_address_is_dialled_there() {
    let admission = admit(&world(web()), &hbone("10.0.0.2:80")).unwrap();
    assert_eq!(admission.dial, "10.0.0.2:80".parse().unwrap());
    assert_eq!(admission.source.unwrap().uid, pod("client", [10, 0, 0, 1]).uid);
    assert_eq!(admission.service.unwrap().key, nginx().key);
}

#[test]
fn another_pods_address_is_refused_with_400() {
    assert_eq!(refused(&world(web()), &hbone("10.0.0.1:80")), (Reason::WrongDestination, 400));
    assert_eq!(refused(&world(web()), &hbone("10.96.0.1:8000")), (Reason::WrongDestination, 400));
}

#[test]
fn a_host_name_is_resolved_to_this_pods_port() {
    let admission = admit(&world(web()), &hbone("nginx.default.svc.cluster.local:8000")).unwrap();
    assert_eq!(admission.dial.port(), 80);
    let unknown = hbone("nothing.example:8000");
    assert_eq!(refused(&world(web()), &unknown), (Reason::UnknownDestination, 503));
    let no_port = hbone("nginx.default.svc.cluster.local:9");
    assert_eq!(refused(&world(web()), &no_port), (Reason::UnknownDestination, 503));
}

#[test]
fn a_host_name_that_the_pod_does_not_back_is_refused() {
    let mut bare = web();
    bare.services.clear();
    let facts = hbone("nginx.default.svc.cluster.local:8000");
    assert_eq!(refused(&world(bare), &facts).0, Reason::UnknownDestination);
}

#[test]
fn the_meshs_own_ports_are_illegal_both_ways() {
    assert_eq!(refused(&world(web()), &hbone("10.0.0.2:15001")), (Reason::IllegalPort, 503));
    assert_eq!(refused(&world(web()), &plaintext("10.0.0.2:15006")).0, Reason::IllegalPort);
}

#[test]
fn strict_refuses_plaintext_and_admits_hbone() {
    let mut snapshot = world(web());
    assert!(admit(&snapshot, &plaintext("10.0.0.2:80")).is_ok());
    snapshot.apply([Change::Policy(Arc::new(strict(PolicyScope::Namespace)))]);
    assert_eq!(refused(&snapshot, &plaintext("10.0.0.2:80")), (Reason::MtlsRequired, 401));
    assert!(admit(&snapshot, &hbone("10.0.0.2:80")).is_ok());
}

#[test]
fn an_unknown_pod_is_refused_with_503() {
    assert_eq!(refused(&Snapshot::new(), &hbone("10.0.0.2:80")), (Reason::WorkloadUnknown, 503));
}

#[test]
fn an_application_tunnel_overrides_the_port_and_gets_a_proxy_header() {
    let mut tunnelled = web();
    tunnelled.application_tunnel = Some(ApplicationTunnel { proxy_protocol: true, port: Some(15088) });
    let admission = admit(&world(tunnelled), &hbone("10.96.0.1:8000")).unwrap();
    assert_eq!(admission.dial.port(), 15088);
    let header = admission.proxy_header.unwrap();
    assert_eq!(header.destination, "10.96.0.1:8000".parse().unwrap());
    assert_eq!(header.identity, Some(identity("client")));
}

#[test]
fn a_waypoint_behind_the_agent_takes_requests_for_what_it_guards() {
    let mut guarded = nginx();
    guarded.waypoint = Some(waypoint("waypoint"));
    let front = service("waypoint", [10, 96, 0, 9], &[port(15008, 15008)]);
    let mut snapshot = world(backing(web(), &front));
    snapshot.apply([Change::Service(Arc::new(guarded)), Change::Service(Arc::new(front))]);
    assert!(admit(&snapshot, &hbone("10.96.0.1:8000")).is_ok());
}

#[test]
fn behind_a_gateway_the_source_is_not_looked_up_by_address() {
    let mut facts = hbone("10.0.0.2:80");
    if let Arrival::Hbone { forwarded_network, .. } = &mut facts.arrival {
        *forwarded_network = Some("far".into());
    }
    assert!(admit(&world(web()), &facts).unwrap().source.is_none());
}
