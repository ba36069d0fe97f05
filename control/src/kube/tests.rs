//! Watches against streams that are told what to do: no network.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
};

use futures_util::{StreamExt, stream, stream::BoxStream};
use kube::{
    core::Status,
    runtime::watcher::{self, Event},
};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{Raw, health::Health, supervise::watch_all};
use crate::{
    metrics::Metrics,
    object::Key,
    source::{Store, kinds::KINDS},
};

type Script = Vec<watcher::Result<Event<Raw>>>;

/// An API server: each time that a kind is watched anew, the next of its scripts is played; after the last
/// one nothing happens.
#[derive(Default)]
struct Server {
    scripts: Mutex<BTreeMap<&'static str, VecDeque<Script>>>,
}

impl Server {
    fn script(self, kind: &'static str, script: Script) -> Self {
        self.scripts.lock().unwrap().entry(kind).or_default().push_back(script);
        self
    }

    fn open(&self, kind: &'static str) -> BoxStream<'static, watcher::Result<Event<Raw>>> {
        let script = self.scripts.lock().unwrap().get_mut(kind).and_then(VecDeque::pop_front);
        let script = script.unwrap_or_else(|| vec![Ok(Event::Init), Ok(Event::InitDone)]);
        stream::iter(script).chain(stream::pending()).boxed()
    }
}

/// A store that follows a server.
struct Following {
    store: Store,
    changes: mpsc::Receiver<crate::source::api::Change>,
    health: Health,
}

impl Following {
    fn start(server: Server) -> Self {
        let definitions = server.open("CustomResourceDefinition");
        let server = Arc::new(server);
        let health = Health::new(Metrics::new().unwrap());
        let (out, changes) = mpsc::channel(4);
        let open = move |kind: &'static crate::source::kinds::Kind, _: &'static str| server.open(kind.known);
        tokio::spawn(watch_all(definitions, Arc::new(open), out, health.clone()));
        Self { store: Store::default().on_kubernetes(false), changes, health }
    }

    /// Applies what comes until nothing more comes; time stands still but for waiting watches.
    async fn settle(&mut self) {
        let quiet = std::time::Duration::from_secs(60);
        while let Ok(Some(change)) = tokio::time::timeout(quiet, self.changes.recv()).await {
            self.store.apply(change);
        }
    }

    fn has(&self, kind: &str, namespace: &str, name: &str) -> bool {
        let key = Key { kind: kind.into(), namespace: namespace.into(), name: name.into() };
        self.store.objects.contains_key(&key)
    }

    fn codes(&self) -> Vec<&'static str> {
        self.store.all_findings().map(|finding| finding.code).collect()
    }
}

fn raw(value: Value) -> Raw {
    Raw::from(value)
}

fn pod(name: &str) -> Raw {
    raw(json!({"metadata": {"name": name, "namespace": "default", "resourceVersion": "1"},
               "spec": {"nodeName": "n"}, "status": {"podIP": "10.0.0.1"}}))
}

fn route(name: &str, weight: Value) -> Raw {
    raw(json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": name, "namespace": "default", "resourceVersion": "1"},
        "spec": {"hosts": ["a"], "http": [{"route": [{"destination": {"host": "a"}, "weight": weight}]}]}}))
}

fn definition(name: &str, established: &str) -> Raw {
    raw(json!({"metadata": {"name": name, "resourceVersion": "1"},
        "spec": {"versions": [{"name": "v1", "served": true}]},
        "status": {"conditions": [{"type": "Established", "status": established}]}}))
}

const ROUTES: &str = "virtualservices.networking.istio.io";

fn failure(code: u16) -> Box<Status> {
    Box::new(Status::failure("told to fail", "Test").with_code(code))
}

fn listed(objects: Vec<Raw>) -> Script {
    let all = objects.into_iter().map(|raw| Ok(Event::InitApply(raw)));
    std::iter::once(Ok(Event::Init)).chain(all).chain([Ok(Event::InitDone)]).collect()
}

fn then(mut script: Script, more: Script) -> Script {
    script.extend(more);
    script
}

#[tokio::test(start_paused = true)]
async fn nothing_is_read_before_every_kind_that_is_there_was_listed_once() {
    let half = vec![Ok(Event::Init), Ok(Event::InitApply(pod("a")))];
    let mut following = Following::start(Server::default().script("Pod", half));
    following.settle().await;
    assert!(!following.store.read);
    assert_eq!(following.store.api().unwrap().missing(), ["Pod"]);
    let mut whole = Following::start(Server::default().script("Pod", listed(vec![pod("a")])));
    whole.settle().await;
    assert!(whole.store.read && whole.has("Pod", "default", "a"));
}

#[tokio::test(start_paused = true)]
async fn kinds_that_may_not_be_listed_keep_everything_waiting_if_they_decide_something() {
    let denied =
        || vec![Ok(Event::Init), Err(watcher::Error::InitialListFailed(kube::Error::Api(failure(403))))];
    let mut following = Following::start(Server::default().script("Service", denied()));
    following.settle().await;
    assert!(!following.store.read);
    let (kind, trouble) = following.health.troubles().remove(0);
    assert_eq!(kind, "Service");
    assert!(trouble.contains("told to fail"), "{trouble}");
    let only_reported = Server::default()
        .script("CustomResourceDefinition", listed(vec![definition("sidecars.networking.istio.io", "True")]))
        .script("Sidecar", denied());
    let mut reported = Following::start(only_reported);
    reported.settle().await;
    assert!(reported.store.read);
}

#[tokio::test(start_paused = true)]
async fn a_relist_removes_what_is_gone_and_one_that_fails_halfway_removes_nothing() {
    let failing = vec![
        Ok(Event::Init),
        Ok(Event::InitApply(pod("b"))),
        Err(watcher::Error::InitialListFailed(kube::Error::Api(failure(500)))),
    ];
    let script = then(listed(vec![pod("a"), pod("b")]), failing);
    let mut following = Following::start(Server::default().script("Pod", script));
    following.settle().await;
    assert!(following.has("Pod", "default", "a") && following.has("Pod", "default", "b"));
    let script = then(listed(vec![pod("a"), pod("b")]), listed(vec![pod("b")]));
    let mut following = Following::start(Server::default().script("Pod", script));
    following.settle().await;
    assert!(!following.has("Pod", "default", "a") && following.has("Pod", "default", "b"));
}

#[tokio::test(start_paused = true)]
async fn a_watch_whose_history_is_gone_is_listed_anew() {
    let expired = Err(watcher::Error::WatchStartFailed(kube::Error::Api(failure(410))));
    let server = Server::default()
        .script("Pod", then(listed(vec![pod("a")]), vec![expired]))
        .script("Pod", listed(vec![pod("b")]));
    let mut following = Following::start(server);
    following.settle().await;
    assert!(!following.has("Pod", "default", "a") && following.has("Pod", "default", "b"));
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_refused_keeps_its_last_good_version_and_stops_nothing() {
    let bad = route("bad", json!(100));
    let bad = Raw::from({
        let mut value = bad.value;
        value["spec"]["http"][0]["timeout"] = json!("never");
        value
    });
    let broken = Raw::from({
        let mut value = route("good", json!(1)).value;
        value["spec"]["http"] = json!("text");
        value
    });
    let more = vec![
        Ok(Event::Apply(bad)),
        Ok(Event::Apply(raw(json!({"metadata": {"name": "x", "namespace": 7}, "spec": []})))),
        Ok(Event::Apply(broken)),
        Ok(Event::Apply(route("last", json!(100)))),
    ];
    let server = Server::default()
        .script("CustomResourceDefinition", listed(vec![definition(ROUTES, "True")]))
        .script("VirtualService", then(listed(vec![route("good", json!(100))]), more));
    let mut following = Following::start(server);
    following.settle().await;
    assert!(following.store.read && following.store.doubtful);
    assert!(following.has("VirtualService", "default", "good"), "the version before stays");
    assert!(!following.has("VirtualService", "default", "bad"));
    assert!(following.has("VirtualService", "default", "last"), "the watch goes on");
    assert!(following.codes().contains(&"last-good"), "{:?}", following.codes());
    let places: Vec<String> = following.store.all_findings().map(|f| f.to_string()).collect();
    assert!(places.iter().all(|text| text.starts_with("kubernetes: ")), "{places:?}");
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_is_defined_later_is_watched_and_one_that_is_removed_goes_with_its_objects() {
    let appears = then(
        listed(vec![]),
        vec![
            Ok(Event::Apply(definition(ROUTES, "False"))),
            Ok(Event::Apply(definition("virtualservices.example.com", "True"))),
            Ok(Event::Apply(definition(ROUTES, "True"))),
        ],
    );
    let server = || Server::default().script("VirtualService", listed(vec![route("a", json!(100))]));
    let mut following =
        Following::start(server().script("CustomResourceDefinition", appears.into_iter().collect()));
    following.settle().await;
    assert!(following.has("VirtualService", "default", "a"));
    let goes =
        then(listed(vec![definition(ROUTES, "True")]), vec![Ok(Event::Delete(definition(ROUTES, "True")))]);
    let mut following = Following::start(server().script("CustomResourceDefinition", goes));
    following.settle().await;
    assert!(!following.has("VirtualService", "default", "a"));
    assert!(following.store.read);
}

#[tokio::test(start_paused = true)]
async fn what_our_own_status_changes_is_no_difference() {
    let mut store = Store::default().on_kubernetes(false);
    let kind = KINDS.iter().find(|kind| kind.known == "VirtualService").unwrap();
    let mut value = route("a", json!(100)).value;
    assert!(store.apply(crate::source::api::Change::Applied(kind, value.clone())));
    value["status"] = json!({"conditions": [{"type": "Accepted", "status": "True"}]});
    value["metadata"]["resourceVersion"] = json!("2");
    assert!(!store.apply(crate::source::api::Change::Applied(kind, value.clone())));
    value["metadata"]["generation"] = json!(2);
    assert!(store.apply(crate::source::api::Change::Applied(kind, value)));
}

#[test]
fn of_an_object_in_both_sources_the_api_servers_counts_until_it_goes() {
    use crate::source::{Origin, api::Change};
    let folder = tempfile::tempdir().unwrap();
    let service = |port: u16| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
               "spec": {"ports": [{"port": port}]}})
    };
    std::fs::write(folder.path().join("web.json"), service(80).to_string()).unwrap();
    let mut store = Store::default().on_kubernetes(true);
    let kind = KINDS.iter().find(|kind| kind.known == "Service").unwrap();
    let key = Key { kind: "Service".into(), namespace: "default".into(), name: "web".into() };
    let codes = |store: &Store| store.all_findings().map(|f| f.code).collect::<Vec<_>>();
    // Whichever comes first.
    store.load(folder.path());
    assert!(!store.read, "the API server was not listed");
    assert!(store.apply(Change::Applied(kind, service(90))));
    assert_eq!((store.objects[&key].origin, codes(&store)), (Origin::Kubernetes, vec!["duplicate"]));
    store.load(folder.path());
    assert_eq!((store.objects[&key].origin, codes(&store)), (Origin::Kubernetes, vec!["duplicate"]));
    assert!(store.apply(Change::Deleted(kind, Some("default".into()), "web".into())));
    assert_eq!((store.objects[&key].origin, codes(&store)), (Origin::Folder, vec![]));
}

#[test]
fn a_good_version_that_replicas_remember_outlives_a_restart() {
    use crate::{
        disk::Place,
        memory::{GOOD, Memory},
        shelf::Shelf,
        source::api::Change,
    };
    let (state, shelf) = (tempfile::tempdir().unwrap(), Shelf::new());
    let kind = KINDS.iter().find(|kind| kind.known == "VirtualService").unwrap();
    let bad = || {
        let mut value = route("a", json!(1)).value;
        value["spec"]["http"] = json!("text");
        value
    };
    let mut store = Store::default().on_kubernetes(false);
    store.apply(Change::Applied(kind, route("a", json!(100)).value));
    let mut memory = Memory::shared(crate::SERVICE_CIDR, state.path(), &shelf);
    memory.good.keep(&store);
    let kept = || Place::Shared(shelf.clone(), GOOD).load::<BTreeMap<String, String>>();
    assert!(kept().is_empty(), "the API server has what is not refused");
    store.apply(Change::Applied(kind, bad()));
    memory.good.keep(&store);
    let remembered: Vec<String> = kept().into_values().collect();
    let mut after = Store::default().on_kubernetes(false);
    for text in remembered {
        after.apply(Change::Remembered(text));
    }
    after.apply(Change::Begin(kind));
    after.apply(Change::Listed(kind, bad()));
    after.apply(Change::End(kind));
    let key = Key { kind: "VirtualService".into(), namespace: "default".into(), name: "a".into() };
    assert!(after.objects.contains_key(&key) && !after.doubtful);
    // What is remembered of an object that is gone is forgotten with the first list.
    after.apply(Change::Begin(kind));
    after.apply(Change::End(kind));
    assert!(!after.objects.contains_key(&key));
}

#[test]
fn slices_of_services_that_select_pods_cause_no_compilation() {
    use crate::source::api::Change;
    let mut store = Store::default().on_kubernetes(false);
    let kind = |known: &str| KINDS.iter().find(|kind| kind.known == known).unwrap();
    let service = |selector: Value| {
        json!({"metadata": {"name": "web", "namespace": "default", "uid": "1"},
               "spec": {"selector": selector, "ports": [{"port": 80}]}})
    };
    let slice = |ip: &str| {
        json!({"metadata": {"name": "web-x", "namespace": "default", "uid": "2",
                            "labels": {"kubernetes.io/service-name": "web"}},
               "addressType": "IPv4", "endpoints": [{"addresses": [ip]}], "ports": [{"port": 80}]})
    };
    store.apply(Change::Applied(kind("Service"), service(json!({"app": "web"}))));
    store.apply(Change::Applied(kind("EndpointSlice"), slice("10.0.0.1")));
    assert!(!store.apply(Change::Applied(kind("EndpointSlice"), slice("10.0.0.2"))));
    assert!(store.apply(Change::Applied(kind("Service"), service(json!({})))));
    assert!(store.apply(Change::Applied(kind("EndpointSlice"), slice("10.0.0.3"))));
}
