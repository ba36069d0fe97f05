use super::*;
use crate::snapshot::Change;

fn world() -> Snapshot {
    let mut workload = Workload::new(WorkloadUid::pod("Kubernetes", "prod", "web"), "prod", "web");
    workload.addresses = vec![[10, 0, 1, 2].into()];
    let mut snapshot = Snapshot::default();
    snapshot.apply([Change::Workload(Arc::new(workload))]);
    snapshot
}

fn facts(authority: &str) -> InboundFacts {
    InboundFacts {
        pod: WorkloadUid::pod("Kubernetes", "prod", "web"),
        local: [10, 0, 1, 2].into(),
        client: "10.0.0.1:4000".parse().unwrap(),
        peer: Some(Identity::new("cluster.local", "shop", "client")),
        authority: Authority::parse(authority).unwrap(),
        forwarded_host: None,
    }
}

#[test]
fn admits_what_is_addressed_to_the_pod() {
    let admission = admit(&world(), &facts("10.0.1.2:8080")).unwrap();
    assert_eq!(admission.dial, "10.0.1.2:8080".parse().unwrap());
}

#[test]
fn refuses_another_pods_address_and_the_mesh_ports() {
    let reason = |authority| admit(&world(), &facts(authority)).unwrap_err().reason;
    assert_eq!(reason("10.0.1.3:8080"), Reason::WrongDestination);
    for port in [15001, 15006, 15008] {
        assert_eq!(reason(&format!("10.0.1.2:{port}")), Reason::IllegalPort);
    }
    assert_eq!(reason("nowhere.example:80"), Reason::UnknownDestination);
}

#[test]
fn refuses_a_pod_that_the_control_plane_does_not_know() {
    assert_eq!(
        admit(&Snapshot::default(), &facts("10.0.1.2:80")).unwrap_err().reason,
        Reason::WorkloadUnknown
    );
}

#[test]
fn an_authority_needs_a_host_and_a_port() {
    for bad in ["", "10.0.0.1", "host", ":80", "host:", "host:99999", "ho st:80", "a/b:80", "[::1:80"] {
        assert_eq!(Authority::parse(bad), None, "{bad}");
    }
    assert_eq!(
        Authority::parse("[::ffff:10.0.0.1]:80"),
        Some(Authority::Address("10.0.0.1:80".parse().unwrap()))
    );
    assert_eq!(Authority::parse("web.prod:80"), Some(Authority::Host("web.prod".into(), 80)));
}

#[test]
fn denials_answer_401_and_missing_hops_503() {
    assert_eq!(status_of(Reason::PolicyDenied), 401);
    assert_eq!(status_of(Reason::WrongDestination), 400);
    assert_eq!(status_of(Reason::ConnectFailed), 503);
}
