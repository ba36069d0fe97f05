//! Pods from a folder of YAML that is watched: the laptop's stand-in for an API server.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use mesh_core::eligibility::REDIRECTION_ANNOTATION;
use notify::{RecursiveMode, Watcher};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{Mutex, Notify, mpsc};

pub use super::object::NodeFacts;
use super::{AnnounceError, Later, PodEvent, PodInfo, PodSource, object::pod_info};

/// Changes that come within this time are read together.
const SETTLE: Duration = Duration::from_millis(50);
/// The folder is read again after this time even when nobody told of a change.
const RESCAN: Duration = Duration::from_secs(30);

/// See the module's description.
pub struct Folder {
    root: PathBuf,
    node: NodeFacts,
    /// One writer at a time, so that two announcements in one file do not lose each other.
    writing: Mutex<()>,
}

/// The good documents of each file.
type Files = BTreeMap<PathBuf, Vec<Value>>;

impl Folder {
    /// A folder as one node sees it.
    pub fn new(root: PathBuf, node: NodeFacts) -> Self {
        Self { root, node, writing: Mutex::new(()) }
    }

    async fn follow(&self, events: mpsc::Sender<PodEvent>) {
        let changed = Arc::new(Notify::new());
        let waker = changed.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading is no change; everything else, errors included, is a reason to look.
            if !event.is_ok_and(|event| event.kind.is_access()) {
                waker.notify_one();
            }
        });
        let watching = watcher
            .and_then(|mut watcher| watcher.watch(&self.root, RecursiveMode::Recursive).map(|()| watcher));
        if let Err(error) = &watching {
            tracing::warn!(folder = %self.root.display(), %error, "folder cannot be watched; it is read every {RESCAN:?}");
        }
        let (mut files, mut known, mut synced) = (Files::new(), HashMap::new(), false);
        loop {
            read_files(&self.root, &mut files);
            for event in difference(&mut known, pods(&files, &self.node)) {
                if events.send(event).await.is_err() {
                    return;
                }
            }
            if !synced && events.send(PodEvent::Synced).await.is_err() {
                return;
            }
            synced = true;
            let quiet = tokio::time::timeout(RESCAN, changed.notified());
            tokio::select! {
                () = events.closed() => return,
                _ = quiet => tokio::time::sleep(SETTLE).await,
            }
        }
    }

    fn mark(&self, pod: &PodInfo, enrolled: bool) -> Result<(), AnnounceError> {
        let gone = || AnnounceError::NoObject(pod.name());
        let (path, mut documents) = find(&self.root, pod).ok_or_else(gone)?;
        let object = documents.iter_mut().find(|document| is(document, pod)).ok_or_else(gone)?;
        let annotations = &mut object["metadata"]["annotations"];
        if annotations.is_null() {
            *annotations = Value::Object(serde_json::Map::new());
        }
        let Some(annotations) = annotations.as_object_mut() else { return Err(gone()) };
        match enrolled {
            true => drop(annotations.insert(REDIRECTION_ANNOTATION.into(), "enabled".into())),
            false => drop(annotations.remove(REDIRECTION_ANNOTATION)),
        }
        let failed = |source| AnnounceError::Object { pod: pod.name(), path: path.clone(), source };
        write(&path, &documents).map_err(failed)
    }
}

impl PodSource for Folder {
    fn watch(&self, events: mpsc::Sender<PodEvent>) -> Later<'_, ()> {
        Box::pin(self.follow(events))
    }

    fn announce<'a>(&'a self, pod: &'a PodInfo, enrolled: bool) -> Later<'a, Result<(), AnnounceError>> {
        Box::pin(async move {
            let _one = self.writing.lock().await;
            self.mark(pod, enrolled)
        })
    }
}

/// Reads every YAML file; one that does not parse keeps what it said last.
fn read_files(root: &Path, files: &mut Files) {
    let paths = yaml_files(root);
    files.retain(|path, _| paths.contains(path));
    for path in paths {
        match fs::read_to_string(&path).map_err(|e| e.to_string()).and_then(|text| documents(&text)) {
            Ok(documents) => drop(files.insert(path, documents)),
            Err(error) => {
                tracing::debug!(file = %path.display(), error, "file is not read; its last good content stays")
            }
        }
    }
}

fn documents(text: &str) -> Result<Vec<Value>, String> {
    serde_norway::Deserializer::from_str(text)
        .map(|document| Value::deserialize(document).map_err(|error| error.to_string()))
        .collect()
}

fn yaml_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() {
            found.extend(yaml_files(&path));
        } else if !name.starts_with('.') && (name.ends_with(".yaml") || name.ends_with(".yml")) {
            found.push(path);
        }
    }
    found
}

fn of_kind<T: serde::de::DeserializeOwned>(files: &Files, kind: &str) -> Vec<T> {
    let documents = files.values().flatten().filter(|document| document["kind"] == kind);
    documents.filter_map(|document| serde_json::from_value(document.clone()).ok()).collect()
}

fn pods(files: &Files, node: &NodeFacts) -> Vec<PodInfo> {
    let namespaces: BTreeMap<_, _> = of_kind::<Namespace>(files, "Namespace")
        .into_iter()
        .filter_map(|ns| Some((ns.metadata.name?, ns.metadata.labels.unwrap_or_default())))
        .collect();
    of_kind::<Pod>(files, "Pod").iter().filter_map(|pod| pod_info(pod, &namespaces, node)).collect()
}

fn difference(known: &mut HashMap<Arc<str>, Arc<PodInfo>>, now: Vec<PodInfo>) -> Vec<PodEvent> {
    let mut events: Vec<PodEvent> = known
        .keys()
        .filter(|uid| !now.iter().any(|pod| pod.uid == **uid))
        .map(|uid| PodEvent::Gone(uid.clone()))
        .collect();
    known.retain(|uid, _| now.iter().any(|pod| pod.uid == *uid));
    for pod in now {
        if known.get(&pod.uid).is_none_or(|old| **old != pod) {
            let pod = Arc::new(pod);
            known.insert(pod.uid.clone(), pod.clone());
            events.push(PodEvent::Pod(pod));
        }
    }
    events
}

fn is(document: &Value, pod: &PodInfo) -> bool {
    let meta = &document["metadata"];
    document["kind"] == "Pod"
        && meta["name"] == *pod.pod.name
        && meta["namespace"].as_str().unwrap_or("default") == &*pod.pod.namespace
        && meta["uid"].as_str().is_none_or(|uid| *uid == *pod.uid)
}

fn find(root: &Path, pod: &PodInfo) -> Option<(PathBuf, Vec<Value>)> {
    yaml_files(root).into_iter().find_map(|path| {
        let documents = documents(&fs::read_to_string(&path).ok()?).ok()?;
        documents.iter().any(|document| is(document, pod)).then_some((path, documents))
    })
}

/// Replaces a file in one step, so that no watcher reads half of it.
fn write(path: &Path, documents: &[Value]) -> io::Result<()> {
    let mut text = String::new();
    for document in documents {
        text.push_str("---\n");
        text.push_str(&serde_norway::to_string(document).map_err(io::Error::other)?);
    }
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("pod");
    let hidden = path.with_file_name(format!(".{name}.agent"));
    fs::write(&hidden, text)?;
    fs::rename(&hidden, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMESPACE: &str = "{kind: Namespace, metadata: {name: shop}}";
    const POD: &str = "{kind: Pod, metadata: {name: web, namespace: shop, uid: u1}, \
        spec: {nodeName: n1, containers: []}, status: {podIP: 10.0.0.2}}";

    fn folder(dir: &Path) -> Folder {
        let node =
            NodeFacts { node: "n1".into(), cluster: "c".into(), network: "".into(), excluded: Vec::new() };
        Folder::new(dir.to_path_buf(), node)
    }

    #[tokio::test]
    async fn a_folder_tells_of_pods_of_labels_that_come_and_of_pods_that_go() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ns.yaml"), NAMESPACE).unwrap();
        fs::write(dir.path().join("pod.yaml"), POD).unwrap();
        let folder = Arc::new(folder(dir.path()));
        let (send, mut events) = mpsc::channel(8);
        let watching = folder.clone();
        tokio::spawn(async move { watching.watch(send).await });
        let PodEvent::Pod(pod) = events.recv().await.unwrap() else { panic!("a pod comes first") };
        assert!(!pod.eligibility.is_eligible());
        assert!(matches!(events.recv().await, Some(PodEvent::Synced)));

        folder.announce(&pod, true).await.unwrap();
        let text = fs::read_to_string(dir.path().join("pod.yaml")).unwrap();
        assert!(text.contains("ambient.istio.io/redirection: enabled"), "{text}");
        folder.announce(&pod, false).await.unwrap();
        assert!(!fs::read_to_string(dir.path().join("pod.yaml")).unwrap().contains("redirection"));

        // A file that does not parse changes nothing.
        fs::write(dir.path().join("pod.yaml"), "{kind: Pod, metadata: {").unwrap();
        let labelled =
            NAMESPACE.replace("name: shop", "name: shop, labels: {istio.io/dataplane-mode: ambient}");
        fs::write(dir.path().join("ns.yaml"), labelled).unwrap();
        let Some(PodEvent::Pod(pod)) = events.recv().await else { panic!("the label comes") };
        assert!(pod.eligibility.is_eligible());

        fs::remove_file(dir.path().join("pod.yaml")).unwrap();
        assert!(matches!(events.recv().await, Some(PodEvent::Gone(uid)) if *uid == *"u1"));
        assert!(matches!(folder.announce(&pod, true).await, Err(AnnounceError::NoObject(_))));
    }
}
