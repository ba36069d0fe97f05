//! Supervisor and enrolment with a kernel that only remembers, in network namespaces of their own.

mod kubernetes;

use std::{
    fs::File,
    path::PathBuf,
    process::Command,
    sync::mpsc as blocking,
    time::{Duration, SystemTime},
};

use mesh_core::{eligibility::Eligibility, enrol::State, snapshot::PodRef};
use mesh_net::ca::{Issued, SignError};
use nix::sched::{CloneFlags, unshare};
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::sync::Mutex;

use super::*;
use crate::{
    bpf::PodState,
    flow::Families,
    netns,
    pods::{AnnounceError, Later},
    redirect::{Redirector, fake::Fake},
    serve::Shared,
};

/// How long something may take that is to happen.
const LIMIT: Duration = Duration::from_secs(20);

#[allow(clippy::disallowed_methods, reason = "whether this test may be skipped")]
fn root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    let required = std::env::var("CULVERT_REQUIRE").unwrap_or_default().contains("root");
    assert!(root || !required, "{test} must run: CULVERT_REQUIRE lists root");
    if !root {
        println!("SKIP {test}: needs root");
    }
    root
}

/// A network namespace that lasts as long as the thread that made it.
struct Namespace {
    path: PathBuf,
    _end: blocking::Sender<()>,
}

impl Namespace {
    fn new() -> Self {
        let (send, path) = blocking::channel();
        let (end, ended) = blocking::channel::<()>();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
            let (process, thread) = (std::process::id(), nix::unistd::gettid());
            send.send(PathBuf::from(format!("/proc/{process}/task/{thread}/ns/net"))).unwrap();
            // Ends when the sender is dropped.
            let _ = ended.recv();
        });
        Self { path: path.recv().unwrap(), _end: end }
    }

    /// Whether anybody holds the port of what the pod opens.
    fn listens(&self) -> bool {
        let namespace = File::open(&self.path).unwrap();
        netns::within(&namespace, || std::net::TcpListener::bind(("::", 15001))).is_err()
    }

    fn cookie(&self) -> u64 {
        netns::cookie(&File::open(&self.path).unwrap()).unwrap()
    }
}

/// Says what a test says.
struct Script {
    events: Mutex<mpsc::Receiver<PodEvent>>,
    announced: watch::Sender<Vec<bool>>,
}

impl PodSource for Script {
    fn watch(&self, events: mpsc::Sender<PodEvent>) -> Later<'_, ()> {
        Box::pin(async move {
            let mut said = self.events.lock().await;
            while let Some(event) = said.recv().await {
                if events.send(event).await.is_err() {
                    return;
                }
            }
            events.closed().await;
        })
    }

    fn announce<'a>(&'a self, _pod: &'a PodInfo, enrolled: bool) -> Later<'a, Result<(), AnnounceError>> {
        self.announced.send_modify(|all| all.push(enrolled));
        Box::pin(async { Ok(()) })
    }
}

struct Node {
    namespace: Namespace,
    kernel: Arc<Fake>,
    certificate: watch::Sender<CertState>,
    says: mpsc::Sender<PodEvent>,
    announced: watch::Receiver<Vec<bool>>,
    registry: Registry,
    ready: Ready,
    stop: Drain,
}

impl Node {
    /// A node whose kernel holds `captured` pods of an earlier agent.
    fn with(captured: &[Pod]) -> Self {
        let (kernel, registry, ready, stop) =
            (Arc::new(Fake::default()), Registry::default(), Ready::new(), Drain::new());
        captured.iter().for_each(|pod| kernel.remember(pod.clone()));
        let (certificate, issued) = watch::channel(CertState::Pending);
        let (says, events) = mpsc::channel(16);
        let (announce, announced) = watch::channel(Vec::new());
        let shared = Shared {
            redirector: kernel.clone(),
            snapshots: watch::channel(Arc::default()).1,
            families: Families::register(&prometheus::Registry::new()).unwrap(),
            max_flows: 10,
            max_tunnels: 10,
            stop: stop.clone(),
        };
        let means = Means {
            source: Arc::new(Script { events: Mutex::new(events), announced: announce }),
            redirector: kernel.clone(),
            workers: serve::start(1, &shared).unwrap(),
            certificates: Arc::new(move |_| issued.clone()),
            registry: registry.clone(),
            trust_domain: "cluster.local".into(),
            stop: stop.clone(),
        };
        tokio::spawn(run(Arc::new(means), ready.clone()));
        Self { namespace: Namespace::new(), kernel, certificate, says, announced, registry, ready, stop }
    }

    fn new() -> Self {
        Self::with(&[])
    }

    fn pod(&self, address: &str, eligibility: Eligibility) -> PodInfo {
        PodInfo {
            uid: "u1".into(),
            pod: Arc::new(PodRef {
                cluster: "c".into(),
                namespace: "shop".into(),
                name: "web".into(),
                service_account: "web".into(),
                network: "".into(),
            }),
            addresses: vec![address.parse().unwrap()],
            netns: Some(netns::Place::Path(self.namespace.path.clone())),
            lack: None,
            eligibility,
        }
    }

    async fn say(&self, event: PodEvent) {
        self.says.send(event).await.unwrap();
    }

    async fn meshed(&self) {
        self.say(PodEvent::Pod(Arc::new(self.pod("10.0.0.2", Eligibility::PodLabel)))).await;
    }

    async fn plain(&self) {
        self.say(PodEvent::Pod(Arc::new(self.pod("10.0.0.2", Eligibility::NotSelected)))).await;
    }

    fn certify(&self) {
        let identity = Identity::new("cluster.local", "shop", "web");
        let (now, key) = (SystemTime::now(), PrivatePkcs8KeyDer::from(Vec::new()).into());
        let not_after = now + Duration::from_secs(3600);
        let issued =
            Issued { identity, chain: Vec::new(), roots: Vec::new(), key, not_before: now, not_after };
        self.certificate.send_replace(CertState::Ready(Arc::new(issued)));
    }

    /// State and reason as people see them.
    fn shown(&self) -> (Option<State>, String) {
        let status = self.registry.all().remove("u1");
        status.map_or((None, "unknown".into()), |s| (s.state, s.reason.unwrap_or_default()))
    }

    fn captured(&self) -> Option<PodState> {
        self.kernel.state(self.namespace.cookie())
    }
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let seen = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, seen).await.unwrap_or_else(|_| panic!("never came: {what}"));
}

#[tokio::test]
async fn a_step_that_fails_is_shown_repeated_and_does_not_keep_the_node_unready() {
    if !root("a_step_that_fails_is_shown_repeated_and_does_not_keep_the_node_unready") {
        return;
    }
    let node = Node::new();
    node.kernel.fail(u32::MAX);
    node.certify();
    node.meshed().await;
    until("a failure", || node.shown().1.contains("the fake kernel refuses")).await;
    node.say(PodEvent::Synced).await;
    until("readiness", || node.ready.pending().is_empty()).await;
    assert_eq!((node.shown().0, node.captured()), (Some(State::Capturing), None));
    assert!(node.announced.borrow().is_empty(), "nobody is announced before it is captured");
    node.kernel.fail(0);
    until("capture", || node.shown() == (Some(State::Active), String::new())).await;
    assert_eq!(node.captured(), Some(PodState::Active));
    assert_eq!(*node.announced.borrow(), [true]);
}

#[tokio::test]
async fn a_pod_that_starts_is_blocked_while_its_certificate_is_awaited_and_leaves_nothing_when_deleted() {
    let name =
        "a_pod_that_starts_is_blocked_while_its_certificate_is_awaited_and_leaves_nothing_when_deleted";
    if !root(name) {
        return;
    }
    let node = Node::new();
    node.say(PodEvent::Synced).await;
    node.meshed().await;
    until("the certificate to be awaited", || node.shown().1 == "awaits certificate").await;
    assert_eq!(node.captured(), Some(PodState::Blocked));
    assert!(node.namespace.listens(), "the listeners are there before capture");
    node.say(PodEvent::Gone("u1".into())).await;
    until("the kernel to forget it", || node.captured().is_none()).await;
    until("the listeners to be gone", || !node.namespace.listens()).await;
    assert!(node.registry.all().is_empty());
}

#[tokio::test]
async fn a_certificate_that_is_refused_is_shown_and_the_node_is_ready_but_not_while_nobody_can_be_asked() {
    let name =
        "a_certificate_that_is_refused_is_shown_and_the_node_is_ready_but_not_while_nobody_can_be_asked";
    if !root(name) {
        return;
    }
    let node = Node::new();
    node.meshed().await;
    node.say(PodEvent::Synced).await;
    node.certificate.send_replace(CertState::Unavailable(SignError::Unreachable("no route".into())));
    until("the reason", || node.shown().1.ends_with("cannot be reached: no route")).await;
    assert_eq!(node.ready.pending(), ["enrolment of running pods"]);
    let identity = Identity::new("cluster.local", "shop", "web");
    let refused = SignError::Refused { identity, reason: "no such pod".into() };
    node.certificate.send_replace(CertState::Unavailable(refused));
    until("the refusal", || node.shown().1.ends_with("no such pod")).await;
    until("readiness", || node.ready.pending().is_empty()).await;
    assert_eq!((node.shown().0, node.captured()), (Some(State::Listening), None));
    node.certify();
    until("capture", || node.shown() == (Some(State::Active), String::new())).await;
    // It is shown too when it ends, and changes nothing else.
    node.certificate.send_replace(CertState::Unavailable(SignError::Unreachable("no route".into())));
    until("the reason", || node.shown().1.ends_with("cannot be reached: no route")).await;
    assert_eq!((node.shown().0, node.captured()), (Some(State::Active), Some(PodState::Active)));
}

#[tokio::test]
async fn labels_that_come_and_go_quickly_end_as_the_last_one_says() {
    if !root("labels_that_come_and_go_quickly_end_as_the_last_one_says") {
        return;
    }
    let node = Node::new();
    node.certify();
    node.say(PodEvent::Synced).await;
    for _ in 0..10 {
        node.meshed().await;
        node.plain().await;
    }
    until("the pod to be out", || node.captured().is_none() && node.shown().1.contains("left")).await;
    assert_eq!(node.announced.borrow().last(), Some(&false));
    for _ in 0..10 {
        node.plain().await;
        node.meshed().await;
    }
    until("the pod to be in", || node.shown() == (Some(State::Active), String::new())).await;
    assert_eq!(node.captured(), Some(PodState::Active));
    until("the announcement", || node.announced.borrow().last() == Some(&true)).await;
}

#[tokio::test]
async fn a_pod_that_left_and_comes_back_is_not_blocked_while_its_certificate_is_awaited() {
    if !root("a_pod_that_left_and_comes_back_is_not_blocked_while_its_certificate_is_awaited") {
        return;
    }
    let node = Node::new();
    node.meshed().await;
    node.plain().await;
    node.say(PodEvent::Synced).await;
    until("the pod to be out", || node.shown().1.contains("left")).await;
    node.meshed().await;
    until("the certificate to be awaited", || node.shown().1.contains("certificate")).await;
    assert_eq!(node.captured(), None, "it runs: nothing of it is refused meanwhile");
    node.certify();
    until("the pod to be in", || node.captured() == Some(PodState::Active)).await;
}

#[tokio::test]
async fn a_label_that_returns_while_a_step_outwards_fails_leaves_no_listeners_of_the_time_before() {
    let name = "a_label_that_returns_while_a_step_outwards_fails_leaves_no_listeners_of_the_time_before";
    if !root(name) {
        return;
    }
    let node = Node::new();
    node.certify();
    node.say(PodEvent::Synced).await;
    node.meshed().await;
    until("capture", || node.shown() == (Some(State::Active), String::new())).await;
    node.kernel.fail(u32::MAX);
    node.plain().await;
    until("capture not to end", || node.shown().1.contains("Release")).await;
    assert_eq!(node.captured(), Some(PodState::Active));
    node.meshed().await;
    node.kernel.fail(0);
    until("capture", || node.shown() == (Some(State::Active), String::new())).await;
    assert!(node.namespace.listens());
    node.say(PodEvent::Gone("u1".into())).await;
    until("the listeners of both times to be gone", || !node.namespace.listens()).await;
}

#[tokio::test]
async fn a_pod_with_another_address_is_enrolled_anew() {
    if !root("a_pod_with_another_address_is_enrolled_anew") {
        return;
    }
    let node = Node::new();
    node.certify();
    node.meshed().await;
    node.say(PodEvent::Synced).await;
    let cookie = node.namespace.cookie();
    until("capture", || node.captured() == Some(PodState::Active)).await;
    node.say(PodEvent::Pod(Arc::new(node.pod("10.0.0.9", Eligibility::PodLabel)))).await;
    until("capture of the new address", || {
        let pods = node.kernel.captured().unwrap();
        pods.iter().any(|pod| {
            pod.netns == cookie && pod.state == PodState::Active && pod.v4 == Some([10, 0, 0, 9].into())
        })
    })
    .await;
    assert_eq!(node.kernel.cookies(), [cookie]);
}

#[tokio::test]
async fn what_an_earlier_agent_captured_is_forgotten_only_when_all_that_is_there_is_known() {
    if !root("what_an_earlier_agent_captured_is_forgotten_only_when_all_that_is_there_is_known") {
        return;
    }
    let pod = |netns: u64, last: u8| Pod {
        netns,
        v4: Some([10, 0, 0, last].into()),
        v6: None,
        state: PodState::Active,
        epoch: 0,
    };
    let node = Node::with(&[pod(7, 7), pod(8, 2)]);
    node.certify();
    node.say(PodEvent::Synced).await;
    node.meshed().await;
    until("the pod that is there", || node.captured() == Some(PodState::Active)).await;
    assert_eq!(node.kernel.state(7), Some(PodState::Active), "nobody says that it is gone");
    node.say(PodEvent::Complete).await;
    // Entry 8 has the address of the new pod, and belonged to the one that had it before.
    until("those that are gone to be forgotten", || node.kernel.cookies() == [node.namespace.cookie()]).await;
    assert_eq!(node.captured(), Some(PodState::Active));
    node.stop.finish(Duration::ZERO).await;
}
