use std::fs;

use tempfile::TempDir;

use super::*;

const NAMESPACE: &str = "{kind: Namespace, metadata: {name: shop}}";
const LABELLED: &str =
    "{kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}";
const POD: &str = "{kind: Pod, metadata: {name: web, namespace: shop, uid: u1, \
    annotations: {culvert.dev/netns: /run/netns/x}}, spec: {nodeName: n1, containers: []}, status: {podIP: 10.0.0.2}}";

fn node() -> NodeFacts {
    NodeFacts { node: "n1".into(), cluster: "c".into(), network: "".into(), excluded: Vec::new() }
}

/// A folder with files.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    files.iter().for_each(|(name, text)| fs::write(dir.path().join(name), text).unwrap());
    dir
}

fn followed(root: &Path) -> (Arc<Folder>, mpsc::Receiver<PodEvent>) {
    let folder = Arc::new(Folder::new(root.to_path_buf(), node()));
    let (send, events) = mpsc::channel(8);
    let watching = folder.clone();
    tokio::spawn(async move { watching.watch(send).await });
    (folder, events)
}

async fn next(events: &mut mpsc::Receiver<PodEvent>) -> PodEvent {
    timeout(Duration::from_secs(10), events.recv()).await.expect("an event comes").unwrap()
}

/// What a folder says of its pods: names of those that belong into the mesh, and of those that do not.
struct Reading(Contents);

impl Reading {
    fn of(&mut self, dir: &TempDir) -> (Vec<String>, Vec<String>) {
        self.0.load(dir.path(), SETTLE);
        let (inside, outside): (Vec<_>, Vec<_>) =
            self.0.pods(&node()).into_iter().partition(|pod| pod.eligibility.is_eligible());
        let names = |pods: Vec<PodInfo>| pods.iter().map(PodInfo::name).collect();
        (names(inside), names(outside))
    }
}

fn inside() -> (Vec<String>, Vec<String>) {
    (vec!["shop/web".into()], Vec::new())
}

fn nobody() -> (Vec<String>, Vec<String>) {
    (Vec::new(), Vec::new())
}

async fn settle() {
    tokio::time::advance(SETTLE).await;
}

#[tokio::test]
async fn a_folder_tells_of_pods_of_labels_that_come_and_of_pods_that_go() {
    let dir = folder(&[("ns.yaml", NAMESPACE), ("pod.yaml", POD)]);
    let (folder, mut events) = followed(dir.path());
    let PodEvent::Pod(pod) = next(&mut events).await else { panic!("a pod comes first") };
    assert!(!pod.eligibility.is_eligible());
    assert!(matches!(next(&mut events).await, PodEvent::Synced));
    assert!(matches!(next(&mut events).await, PodEvent::Complete));

    folder.announce(&pod, true).await.unwrap();
    let text = fs::read_to_string(dir.path().join("pod.yaml")).unwrap();
    assert!(text.contains("ambient.istio.io/redirection: enabled"), "{text}");
    folder.announce(&pod, false).await.unwrap();
    assert!(!fs::read_to_string(dir.path().join("pod.yaml")).unwrap().contains("redirection"));

    // A file that does not parse changes nothing, and nobody says that it holds no object.
    fs::write(dir.path().join("pod.yaml"), "{kind: Pod, metadata: {").unwrap();
    fs::write(dir.path().join("ns.yaml"), LABELLED).unwrap();
    let PodEvent::Pod(pod) = next(&mut events).await else { panic!("the label comes") };
    assert!(pod.eligibility.is_eligible());
    assert!(matches!(folder.announce(&pod, false).await, Err(AnnounceError::Object { .. })));

    fs::remove_file(dir.path().join("pod.yaml")).unwrap();
    assert!(matches!(next(&mut events).await, PodEvent::Gone(uid) if *uid == *"u1"));
    assert!(matches!(folder.announce(&pod, true).await, Err(AnnounceError::NoObject(_))));
}

#[tokio::test]
async fn a_folder_that_vanishes_takes_no_pod_with_it_and_is_followed_when_it_is_back() {
    let dir = folder(&[]);
    let (home, away) = (dir.path().join("cluster"), dir.path().join("elsewhere"));
    fs::create_dir(&home).unwrap();
    fs::write(home.join("ns.yaml"), LABELLED).unwrap();
    fs::write(home.join("pod.yaml"), POD).unwrap();
    let (folder, mut events) = followed(&home);
    let PodEvent::Pod(pod) = next(&mut events).await else { panic!("a pod comes first") };
    assert!(matches!(next(&mut events).await, PodEvent::Synced));
    assert!(matches!(next(&mut events).await, PodEvent::Complete));
    fs::rename(&home, &away).unwrap();
    assert!(matches!(folder.announce(&pod, false).await, Err(AnnounceError::Object { .. })));
    let silent = timeout(AWAY * 4, events.recv()).await;
    assert!(silent.is_err(), "{silent:?}");
    // Another folder at the same path is watched as the first one was.
    fs::create_dir(&home).unwrap();
    fs::write(home.join("ns.yaml"), LABELLED).unwrap();
    assert!(matches!(next(&mut events).await, PodEvent::Gone(uid) if *uid == *"u1"));
    fs::write(home.join("pod.yaml"), POD).unwrap();
    assert!(matches!(next(&mut events).await, PodEvent::Pod(_)));
}

#[tokio::test]
async fn nothing_is_said_to_be_known_before_the_folder_could_be_read_once() {
    let dir = folder(&[]);
    let home = dir.path().join("cluster");
    let (_folder, mut events) = followed(&home);
    let silent = timeout(AWAY * 3, events.recv()).await;
    assert!(silent.is_err(), "{silent:?}");
    fs::create_dir(&home).unwrap();
    // A folder without a file may be one that is not mounted yet: whom it does not name may exist.
    assert!(matches!(next(&mut events).await, PodEvent::Synced));
    let silent = timeout(AWAY * 3, events.recv()).await;
    assert!(silent.is_err(), "{silent:?}");
    fs::write(home.join("pod.yaml"), POD).unwrap();
    assert!(matches!(next(&mut events).await, PodEvent::Pod(_)));
    assert!(matches!(next(&mut events).await, PodEvent::Complete));
}

#[tokio::test(start_paused = true)]
async fn an_object_is_gone_when_two_reads_some_time_apart_do_not_find_it() {
    let dir = folder(&[("ns.yaml", LABELLED), ("pod.yaml", POD)]);
    let mut reading = Reading(Contents::default());
    assert_eq!(reading.of(&dir), inside());
    let pod = dir.path().join("pod.yaml");
    fs::write(&pod, "").unwrap();
    assert_eq!(reading.of(&dir), inside(), "once is not enough");
    assert_eq!(reading.of(&dir), inside(), "nor are two reads at the same time");
    fs::write(&pod, POD).unwrap();
    settle().await;
    assert_eq!(reading.of(&dir), inside(), "it is back");
    fs::write(&pod, "").unwrap();
    settle().await;
    assert_eq!(reading.of(&dir), inside(), "the time begins anew");
    settle().await;
    assert_eq!(reading.of(&dir), nobody());
}

#[tokio::test(start_paused = true)]
async fn what_is_not_understood_keeps_its_last_good_version_and_harms_no_other() {
    let other = POD.replace("web", "other").replace("u1", "u2");
    for (file, strange) in [
        ("pod.yaml", "{kind: Pod, metadata: {name: web, namespace: shop}, spec: {nodeName: [n1]}}"),
        ("pod.yaml", "{kind: Pod, metadata: {name: web, namespace: shop}}"),
        ("pod.yaml", "{kind: Pod, metadata: {namespace: shop}}"),
        ("pod.yaml", &POD.replace("podIP: 10.0.0.2", "")),
        ("pod.yaml", &POD.replace("nodeName: n1,", "")),
        ("pod.yaml", &POD.replace("annotations: {culvert.dev/netns: /run/netns/x}", "")),
        ("pod.yaml", "apiVersion: v1"),
        ("pod.yaml", "{kind: Pod, metadata: {"),
        ("ns.yaml", "{kind: Namespace, metadata: {name: shop, labels: [ambient]}}"),
        ("ns.yaml", "{kind: Namespace, metadata: {labels: {}}}"),
    ] {
        let dir = folder(&[("ns.yaml", LABELLED), ("pod.yaml", POD), ("other.yaml", &other)]);
        let mut reading = Reading(Contents::default());
        reading.of(&dir);
        fs::write(dir.path().join(file), strange).unwrap();
        fs::remove_file(dir.path().join("other.yaml")).unwrap();
        reading.of(&dir);
        settle().await;
        assert_eq!(reading.of(&dir), inside(), "{file}: {strange}");
        let worth = reading.0.load(dir.path(), SETTLE);
        assert_eq!(worth, Worth { read: true, understood: false, missing: false }, "{strange}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_has_ended_or_was_made_again_is_gone_at_once() {
    for next in
        [POD.replace("podIP: 10.0.0.2", "phase: Succeeded"), POD.replace("u1", "u2").replace("n1", "n2")]
    {
        let dir = folder(&[("ns.yaml", LABELLED), ("pod.yaml", POD)]);
        let mut reading = Reading(Contents::default());
        assert_eq!(reading.of(&dir), inside());
        fs::write(dir.path().join("pod.yaml"), next).unwrap();
        assert_eq!(reading.of(&dir), nobody());
    }
}

#[tokio::test(start_paused = true)]
async fn a_folder_without_a_single_file_is_taken_for_one_that_is_not_mounted() {
    let dir = folder(&[("ns.yaml", LABELLED), ("pod.yaml", POD)]);
    let mut reading = Reading(Contents::default());
    reading.of(&dir);
    fs::remove_file(dir.path().join("ns.yaml")).unwrap();
    fs::remove_file(dir.path().join("pod.yaml")).unwrap();
    reading.of(&dir);
    settle().await;
    assert_eq!(reading.of(&dir), inside());
}

#[tokio::test(start_paused = true)]
async fn lists_and_json_are_read_as_the_control_plane_reads_them() {
    let list = format!("{{kind: List, items: [{LABELLED}, {POD}]}}");
    let json = r#"{"kind": "Pod", "metadata": {"name": "j", "namespace": "shop"}, "spec": {"nodeName": "n1", "containers": []}}"#;
    let dir = folder(&[("all.yaml", &list), ("j.json", json), (".hidden.yaml", "{"), ("notes.txt", "{")]);
    let mut reading = Reading(Contents::default());
    assert_eq!(reading.of(&dir).0, ["shop/j", "shop/web"]);
    let source = Folder::new(dir.path().to_path_buf(), node());
    for pod in reading.0.pods(&node()) {
        source.announce(&pod, true).await.unwrap();
    }
    for (file, start) in [("all.yaml", "---"), ("j.json", "{")] {
        let text = fs::read_to_string(dir.path().join(file)).unwrap();
        assert!(text.contains("ambient.istio.io/redirection") && text.starts_with(start), "{text}");
    }
    assert_eq!(reading.of(&dir).0, ["shop/j", "shop/web"]);
}
