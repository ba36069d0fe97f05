use std::{fs::File, time::Duration};

use mesh_core::{
    delta::Change,
    eligibility::Eligibility,
    fixtures::{identity, pod, pod_ref, strict},
    inbound::Arrival,
    model::{PolicyName, PolicyScope},
};
use mesh_net::{ca::CertState, task::Drain};
use prometheus::Registry;
use tokio::sync::watch;

use super::*;
use crate::{
    bpf::{Pod, PodState},
    pods::PodInfo,
    redirect::Target,
};

fn web() -> Workload {
    Workload { policies: vec![PolicyName::new("default", "strict")], ..pod("web", [10, 0, 0, 1]) }
}

fn member() -> Arc<Member> {
    let info = PodInfo {
        uid: "web".into(),
        pod: pod_ref(&web()),
        addresses: web().addresses,
        netns: None,
        lack: None,
        eligibility: Eligibility::PodLabel,
    };
    let target = Target {
        cookie: 1,
        netns: File::open("/dev/null").unwrap(),
        pod: Pod { netns: 1, v4: None, v6: None, state: PodState::Active, epoch: 0 },
    };
    Arc::new(Member {
        info: Arc::new(info),
        target: Arc::new(target),
        identity: identity("web"),
        certificate: watch::channel(CertState::Pending).1,
        drain: Drain::new(),
    })
}

/// Flows of a thread, with one plaintext flow that was admitted.
fn open_flow() -> (Rc<Flows>, FlowGuard) {
    let recorder = Recorder::new(Families::register(&Registry::new()).unwrap());
    let flows = Flows::new(recorder, 10, Drain::new());
    let client = "10.0.0.9:4000".parse().unwrap();
    let flow = flows.begin(Direction::Inbound, member(), client);
    flow.recheck_with(InboundFacts {
        pod: pod_ref(&web()),
        local: "10.0.0.1:80".parse().unwrap(),
        peer: client,
        arrival: Arrival::Plaintext,
    });
    (flows, flow)
}

fn closing(flow: &Flow) -> Option<String> {
    flow.closing.borrow().as_ref().map(ToString::to_string)
}

#[test]
fn an_open_flow_goes_on_for_a_second_without_a_policy_that_is_named_and_is_then_closed() {
    let (flows, flow) = open_flow();
    let (dangling, start) = (Snapshot::of([Change::Workload(web().into())]), Instant::now());
    let later = |ms| start + Duration::from_millis(ms);
    assert_eq!(flows.recheck(&dangling, start), Some(later(1000)));
    assert_eq!(flows.recheck(&dangling, later(400)), Some(later(1000)), "it is not held anew");
    assert_eq!(closing(&flow), None);
    assert_eq!(flows.recheck(&dangling, later(1000)), None);
    let why = closing(&flow).unwrap();
    assert!(why.starts_with("policy_changed: policy_unknown: ") && why.contains("strict"), "{why}");
}

#[test]
fn a_policy_that_arrives_in_time_leaves_the_flow_it_allows_and_ends_the_wait() {
    let (flows, flow) = open_flow();
    let (mut world, start) = (Snapshot::of([Change::Workload(web().into())]), Instant::now());
    let later = |ms| start + Duration::from_millis(ms);
    assert!(flows.recheck(&world, start).is_some());
    let mut allows = strict(PolicyScope::Workload);
    allows.rules.clear();
    world.apply([Change::Policy(allows.clone().into())]);
    assert_eq!(flows.recheck(&world, later(100)), None);
    world.apply([Change::RemovePolicy(allows.key)]);
    assert_eq!(flows.recheck(&world, later(5000)), Some(later(6000)), "another absence has its own time");
    assert_eq!(closing(&flow), None);
}

#[test]
fn a_policy_that_arrives_and_forbids_the_flow_closes_it_at_once() {
    let (flows, flow) = open_flow();
    let (mut world, start) = (Snapshot::of([Change::Workload(web().into())]), Instant::now());
    assert!(flows.recheck(&world, start).is_some());
    world.apply([Change::Policy(strict(PolicyScope::Workload).into())]);
    assert_eq!(flows.recheck(&world, start + Duration::from_millis(1)), None);
    assert!(closing(&flow).unwrap().starts_with("policy_changed: mtls_required: "));
}
