//! The source against a watch that a test plays.

use futures_util::stream;
use kube::core::TypeMeta;
use mesh_core::eligibility::Eligibility;
use serde_json::Value;

use super::*;

fn node() -> NodeFacts {
    NodeFacts { node: "n1".into(), cluster: "Kubernetes".into(), network: "".into(), excluded: vec![] }
}

fn pod(name: &str, uid: &str, more: Value) -> DynamicObject {
    let mut value = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "uid": uid},
        "spec": {"nodeName": "n1", "serviceAccountName": "web", "containers": []},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.2"}]},
    });
    merge(&mut value, more);
    serde_json::from_value(value).unwrap()
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            from.into_iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
        }
        (into, from) => *into = from,
    }
}

fn namespace(name: &str, labels: &[(&str, &str)]) -> PartialObjectMeta<Namespace> {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    PartialObjectMeta {
        types: Some(TypeMeta::resource::<Namespace>()),
        metadata: kube::core::ObjectMeta {
            name: Some(name.into()),
            labels: Some(labels),
            ..Default::default()
        },
        ..Default::default()
    }
}

const AMBIENT: (&str, &str) = ("istio.io/dataplane-mode", "ambient");

fn listed(pods: Vec<DynamicObject>) -> Vec<Event<DynamicObject>> {
    let objects = pods.into_iter().map(Event::InitApply);
    [Event::Init].into_iter().chain(objects).chain([Event::InitDone]).collect()
}

fn cluster(events: Vec<Event<DynamicObject>>) -> Cluster {
    let mut cluster = Cluster::default();
    for event in [Event::Init, Event::InitApply(namespace("shop", &[AMBIENT])), Event::InitDone] {
        cluster.namespace(Ok(event));
    }
    for event in events {
        cluster.pod(Ok(event));
    }
    cluster
}

fn names(cluster: &Cluster) -> Vec<String> {
    cluster.pods(&node()).iter().map(|pod| pod.pod.name.to_string()).collect()
}

#[test]
fn a_new_list_replaces_the_old_one_at_once_and_only_when_it_is_whole() {
    let mut cluster = cluster(listed(vec![pod("a", "1", json!({})), pod("b", "2", json!({}))]));
    assert_eq!(names(&cluster), ["a", "b"]);
    // The API server has forgotten (410): while the list goes on, what was known holds.
    assert!(!cluster.pod(Ok(Event::Init)));
    assert!(!cluster.pod(Ok(Event::InitApply(pod("b", "2", json!({}))))));
    assert_eq!(names(&cluster), ["a", "b"]);
    // It fails in the middle and begins again.
    assert!(!cluster.pod(Err(watcher::Error::NoResourceVersion)));
    assert_eq!(names(&cluster), ["a", "b"]);
    for event in listed(vec![pod("b", "2", json!({})), pod("c", "3", json!({}))]) {
        cluster.pod(Ok(event));
    }
    assert_eq!(names(&cluster), ["b", "c"]);
    cluster.pod(Ok(Event::Delete(pod("b", "2", json!({})))));
    assert_eq!(names(&cluster), ["c"]);
}

#[test]
fn an_object_that_is_not_understood_keeps_what_was_known_and_leaves_the_others_alone() {
    let mut cluster = cluster(listed(vec![pod("a", "1", json!({})), pod("b", "2", json!({}))]));
    assert!(cluster.is_understood());
    let wrong = json!({"spec": {"hostNetwork": "perhaps"}});
    cluster.pod(Ok(Event::Apply(pod("a", "1", wrong.clone()))));
    assert!(names(&cluster) == ["a", "b"] && !cluster.is_understood());
    for event in listed(vec![pod("a", "1", wrong.clone()), pod("b", "2", json!({})), pod("new", "3", wrong)])
    {
        cluster.pod(Ok(event));
    }
    assert!(names(&cluster) == ["a", "b"] && !cluster.is_understood());
    cluster.pod(Ok(Event::Apply(pod("a", "1", json!({})))));
    cluster.pod(Ok(Event::Delete(pod("new", "3", json!({})))));
    assert!(names(&cluster) == ["a", "b"] && cluster.is_understood());
}

#[test]
fn what_a_pod_says_of_its_network_namespace_is_not_believed() {
    let claims = json!({"metadata": {"annotations": {"culvert.dev/netns": "/proc/1/ns/net"}}});
    let cluster = cluster(listed(vec![pod("a", "1", claims)]));
    let [info] = cluster.pods(&node()).try_into().unwrap();
    assert!(info.eligibility.is_eligible() && info.netns.is_none());
    let (_, wanted) = cluster.wanted(&node()).remove(0);
    assert!(wanted.containers.is_empty() && wanted.uids.len() == 1);
}

#[test]
fn containers_of_every_kind_lead_to_a_pods_namespace() {
    let of = |id: &str| json!([{"name": "c", "image": "i", "imageID": "i", "ready": true, "restartCount": 0, "containerID": id}]);
    let status = json!({"status": {
        "containerStatuses": of("containerd://aa"), "initContainerStatuses": of("cri-o://bb"),
        "ephemeralContainerStatuses": of("docker://cc"),
    }});
    let cluster = cluster(listed(vec![pod("a", "1", status)]));
    let (_, wanted) = cluster.wanted(&node()).remove(0);
    assert_eq!(wanted.containers, ["aa", "bb", "cc"].map(str::to_owned).into());
}

#[test]
fn a_static_pod_is_found_by_the_kubelets_uid_under_its_own_name_only() {
    let mirror = json!({"metadata": {"annotations": {
        "kubernetes.io/config.hash": "static", "kubernetes.io/config.mirror": "static"}}});
    let liar = json!({"metadata": {"annotations": {"kubernetes.io/config.hash": "2"}}});
    let cluster = cluster(listed(vec![pod("a", "1", mirror), pod("b", "2", json!({})), pod("c", "3", liar)]));
    let found = |name, uid| cluster.find("shop", name, uid, &node()).is_some();
    assert!(found("a", "static") && found("a", "1") && found("b", "2") && found("c", "3"));
    assert!(!found("c", "2") && !found("b", "static") && !found("nobody", "1"));
}

#[test]
fn every_kind_of_pod_has_a_place() {
    let is = |more: Value| {
        cluster(listed(vec![pod("a", "1", more)])).pods(&node()).pop().map(|pod| pod.eligibility)
    };
    let ok = Some(Eligibility::NamespaceLabel);
    assert_eq!(is(json!({})), ok);
    assert_eq!(is(json!({"spec": {"hostUsers": false}})), ok);
    assert_eq!(is(json!({"spec": {"initContainers": [{"name": "first"}]}})), ok);
    assert_eq!(is(json!({"spec": {"containers": [{"name": "one"}, {"name": "two"}]}})), ok);
    assert_eq!(is(json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}})), ok);
    assert_eq!(is(json!({"spec": {"runtimeClassName": "nvidia"}})), ok);
    assert_eq!(is(json!({"spec": {"hostNetwork": true}})), Some(Eligibility::HostNetwork));
    let guest = Some(Eligibility::SandboxedRuntime);
    assert_eq!(is(json!({"spec": {"runtimeClassName": "gvisor"}})), guest);
    assert_eq!(is(json!({"spec": {"runtimeClassName": "vm", "overhead": {"memory": "100Mi"}}})), guest);
    for ended in ["Succeeded", "Failed"] {
        assert_eq!(is(json!({"status": {"phase": ended}})), None);
    }
}

#[test]
fn what_is_kept_for_the_next_agent_is_what_it_needs_and_nothing_of_the_containers() {
    let secret = json!({"spec": {"containers": [{"name": "c", "env": [{"name": "P", "value": "hush"}]}]}});
    let cluster = cluster(listed(vec![pod("a", "1", secret), pod("b", "2", json!({}))]));
    let text = cluster.save().unwrap();
    assert!(!String::from_utf8_lossy(&text).contains("hush"));
    let next = Cluster::restore(&text).unwrap();
    assert!(!next.is_listed() && !next.is_understood());
    assert_eq!(next.pods(&node()), cluster.pods(&node()));
    assert_eq!(next.wanted(&node()), cluster.wanted(&node()));
    assert!(Cluster::restore(b"{").is_none());
}

#[tokio::test(start_paused = true)]
async fn pods_that_were_known_before_count_when_the_api_server_does_not_answer_and_none_is_forgotten() {
    let source = source();
    let before = cluster(listed(vec![pod("a", "1", json!({}))])).save().unwrap();
    source.remember(Cluster::restore(&before).unwrap());
    let (send, mut events) = mpsc::channel(64);
    let followed = source.follow(stream::pending(), stream::pending(), send);
    let said = async {
        let first = events.recv().await;
        (first, timeout(ANSWER_LIMIT * 10, events.recv()).await.is_err())
    };
    tokio::select! {
        () = followed => panic!("it ended"),
        (first, silent) = said => {
            assert!(matches!(first, Some(PodEvent::Pod(pod)) if &*pod.uid == "1"));
            assert!(silent, "neither synced nor complete without the API server");
        }
    }
}

fn source() -> Kubernetes {
    let service = tower_nowhere();
    let sandboxes = Arc::new(Sandboxes::new("/nonexistent".into(), "/proc/self/ns/net".as_ref()));
    Kubernetes::new(service, node(), sandboxes)
}

/// A client of an API server that is nowhere.
fn tower_nowhere() -> Client {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Client::try_from(kube::Config::new("https://127.0.0.1:1".parse().unwrap())).unwrap()
}

async fn said(
    pods: Vec<Result<Event<DynamicObject>, watcher::Error>>,
    namespaces: Vec<Event<PartialObjectMeta<Namespace>>>,
) -> Vec<String> {
    let (send, mut events) = mpsc::channel(64);
    let pods = stream::iter(pods).chain(stream::pending());
    let namespaces = stream::iter(namespaces.into_iter().map(Ok)).chain(stream::pending());
    let source = source();
    let mut said = Vec::new();
    let read = async {
        // A pod that lacks its namespace is looked for again and again, and nothing new is said of it.
        while let Ok(Some(event)) = timeout(Duration::from_millis(400), events.recv()).await {
            said.push(match event {
                PodEvent::Pod(pod) => format!("{} {}", pod.name(), pod.eligibility.is_eligible()),
                PodEvent::Gone(uid) => format!("gone {uid}"),
                PodEvent::Synced => "synced".into(),
                PodEvent::Complete => "complete".into(),
            });
        }
    };
    tokio::select! {
        () = source.follow(pods, namespaces, send) => {}
        () = read => {}
    }
    said
}

#[tokio::test(start_paused = true)]
async fn nothing_is_said_before_both_lists_are_known_and_then_all_of_it() {
    let pods = || listed(vec![pod("a", "1", json!({}))]).into_iter().map(Ok).collect::<Vec<_>>();
    assert!(said(pods(), vec![]).await.is_empty());
    let plain = vec![Event::Init, Event::InitApply(namespace("shop", &[])), Event::InitDone];
    assert_eq!(said(pods(), plain.clone()).await, ["shop/a false", "synced", "complete"]);
    let mut labelled = plain;
    labelled.push(Event::Apply(namespace("shop", &[AMBIENT])));
    let said = said(pods(), labelled).await;
    assert_eq!(said.last().map(String::as_str), Some("shop/a true"));
}

#[tokio::test(start_paused = true)]
async fn what_is_captured_is_not_forgotten_while_a_pod_is_not_understood_or_has_no_namespace_yet() {
    let plain = || vec![Event::Init, Event::InitApply(namespace("shop", &[])), Event::InitDone];
    let wrong = listed(vec![pod("a", "1", json!({"spec": {"hostNetwork": 3}}))]);
    assert_eq!(said(wrong.into_iter().map(Ok).collect(), plain()).await, ["synced"]);
    let ambient = vec![Event::Init, Event::InitApply(namespace("shop", &[AMBIENT])), Event::InitDone];
    let pods = listed(vec![pod("a", "1", json!({}))]);
    assert_eq!(said(pods.into_iter().map(Ok).collect(), ambient.clone()).await, ["shop/a true", "synced"]);
    // One that has no network yet was captured by nobody.
    let starting = listed(vec![pod("a", "1", json!({"status": {"podIPs": []}}))]);
    let said = said(starting.into_iter().map(Ok).collect(), ambient).await;
    assert_eq!(said, ["shop/a true", "synced", "complete"]);
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_the_same_name_is_another_one_and_one_that_ended_is_gone() {
    let mut pods: Vec<_> = listed(vec![pod("a", "1", json!({})), pod("job", "3", json!({}))]);
    pods.push(Event::Apply(pod("a", "2", json!({}))));
    pods.push(Event::Apply(pod("job", "3", json!({"status": {"phase": "Succeeded"}}))));
    let (first, later) = pods.split_at(4);
    let mut cluster = cluster(first.to_vec());
    let mut known = HashMap::new();
    assert_eq!(difference(&mut known, cluster.pods(&node())).len(), 2);
    for event in later {
        cluster.pod(Ok(event.clone()));
    }
    let news = difference(&mut known, cluster.pods(&node()));
    let gone = news.iter().filter(|event| matches!(event, PodEvent::Gone(_))).count();
    assert!(gone == 2 && matches!(news.last(), Some(PodEvent::Pod(pod)) if &*pod.uid == "2"));
}
