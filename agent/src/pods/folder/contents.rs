//! What a folder says of pods and namespaces, read again and again (decision 0026). What cannot be read
//! or understood keeps what it said last; what is missing is gone when two reads agree: the first thing
//! that a pod loses when it is forgotten is its capture.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use serde_json::Value;
use tokio::time::Instant;

use super::{
    super::{
        PodInfo,
        object::{netns_annotation, pod_info},
    },
    NodeFacts,
    files::{self, FileError},
};

/// Kind, namespace and name.
type Key = (&'static str, String, String);

/// An object that the agent works with.
#[derive(Debug, Clone)]
enum Object {
    Pod(Box<Pod>),
    Namespace(BTreeMap<String, String>),
}

#[derive(Debug)]
struct Held {
    file: PathBuf,
    object: Object,
    /// First read in which it was not there.
    missing: Option<Instant>,
}

/// See the module's description.
#[derive(Debug, Default)]
pub struct Contents {
    held: BTreeMap<Key, Held>,
    problems: BTreeSet<String>,
}

/// What a read was worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Worth {
    /// Every folder and file could be read.
    pub read: bool,
    /// All of it was understood, and there was a file: a folder that says nothing is not mounted.
    pub understood: bool,
    /// Something that was there is missing: the next read decides.
    pub missing: bool,
}

/// One pass over the folder.
#[derive(Default)]
struct Pass {
    found: BTreeMap<Key, (PathBuf, Object)>,
    /// Objects that are there and not understood.
    refused: BTreeSet<Key>,
    /// Files and folders of which something is not known.
    unknown: Vec<PathBuf>,
    problems: BTreeSet<String>,
    unread: bool,
}

impl Contents {
    /// Reads the folder again. An object is missing for at least `settle` before it is gone.
    pub fn load(&mut self, root: &Path, settle: Duration) -> Worth {
        let (mut pass, now) = (Pass::default(), Instant::now());
        pass.folder(root);
        for (key, mut held) in std::mem::take(&mut self.held) {
            if pass.replaces(&key, &held) {
                continue;
            }
            let missing = (!pass.keeps(&key, &held.file)).then(|| held.missing.unwrap_or(now));
            if missing.is_none_or(|since| now - since < settle) {
                held.missing = missing;
                self.held.insert(key, held);
            }
        }
        let missing = self.held.values().any(|held| held.missing.is_some());
        let found = pass.found.into_iter();
        self.held.extend(found.map(|(key, (file, object))| (key, Held { file, object, missing: None })));
        let worth = Worth { read: !pass.unread, understood: pass.problems.is_empty(), missing };
        self.tell(pass.problems);
        worth
    }

    /// The pods of a node.
    pub fn pods(&self, node: &NodeFacts) -> Vec<PodInfo> {
        let mut namespaces = BTreeMap::new();
        for ((_, _, name), held) in &self.held {
            if let Object::Namespace(labels) = &held.object {
                namespaces.insert(name.clone(), labels.clone());
            }
        }
        let pods = self.held.values().filter_map(|held| match &held.object {
            Object::Pod(pod) => Some(pod),
            Object::Namespace(_) => None,
        });
        let info = |pod: &Pod| {
            let info = pod_info(pod, &namespaces, node)?;
            Some(PodInfo { netns: netns_annotation(pod), ..info })
        };
        pods.filter_map(|pod| info(pod)).collect()
    }

    /// Logs each problem once.
    fn tell(&mut self, problems: BTreeSet<String>) {
        for problem in problems.difference(&self.problems) {
            tracing::warn!(problem, "cluster folder is not known in full; what was known of it stays");
        }
        if problems.is_empty() && !self.problems.is_empty() {
            tracing::info!("cluster folder is known in full again");
        }
        self.problems = problems;
    }
}

impl Pass {
    fn folder(&mut self, root: &Path) {
        let listing = files::list(root);
        if listing.unreadable.is_empty() && listing.files.is_empty() {
            self.unknown(root, "has no file in it");
        }
        for (path, error) in listing.unreadable {
            self.unread(&path, error);
        }
        for path in listing.files {
            match files::read(&path) {
                Ok(documents) => {
                    let objects = documents.iter().flat_map(files::objects);
                    objects.for_each(|object| self.object(&path, object));
                }
                // It went between listing and reading.
                Err(FileError::Unread(error)) if error.kind() == io::ErrorKind::NotFound => {}
                Err(FileError::Unread(error)) => self.unread(&path, error),
                Err(error) => self.unknown(&path, &error.to_string()),
            }
        }
    }

    fn unread(&mut self, path: &Path, error: io::Error) {
        self.unread = true;
        self.unknown(path, &FileError::Unread(error).to_string());
    }

    fn unknown(&mut self, path: &Path, problem: &str) {
        self.problems.insert(format!("{} {problem}", path.display()));
        self.unknown.push(path.into());
    }

    fn object(&mut self, path: &Path, value: &Value) {
        let kind = match value["kind"].as_str() {
            Some("Pod") => "Pod",
            Some("Namespace") => "Namespace",
            Some(_) => return,
            None => return self.unknown(path, "has a document without a kind"),
        };
        let meta = &value["metadata"];
        let Some(name) = meta["name"].as_str() else {
            return self.unknown(path, &format!("has a {kind} without a name"));
        };
        let namespace = match kind {
            "Pod" => meta["namespace"].as_str().unwrap_or("default"),
            _ => "",
        };
        let key = (kind, namespace.to_owned(), name.to_owned());
        match object(kind, value) {
            // As the control plane: of two objects of one name the first counts.
            Ok(object) => drop(self.found.entry(key).or_insert((path.into(), object))),
            Err(problem) => {
                self.problems.insert(format!("{}: {kind} {namespace}/{name}: {problem}", path.display()));
                self.refused.insert(key);
            }
        }
    }

    /// Whether an object was found and makes sense after what was held of it.
    fn replaces(&mut self, key: &Key, held: &Held) -> bool {
        let Some((file, object)) = self.found.get(key) else { return false };
        let Some(lost) = held.object.loses(object) else { return true };
        self.problems.insert(format!(
            "{}: {} {}/{} has lost its {lost}",
            file.display(),
            key.0,
            key.1,
            key.2
        ));
        self.found.remove(key);
        self.refused.insert(key.clone());
        false
    }

    /// Whether an object that was not found may be there all the same.
    fn keeps(&self, key: &Key, file: &Path) -> bool {
        self.refused.contains(key) || self.unknown.iter().any(|path| file.starts_with(path))
    }
}

impl Object {
    /// What a pod that runs never loses: without it, its file is half written or was edited by mistake.
    fn loses(&self, next: &Self) -> Option<&'static str> {
        let (Self::Pod(pod), Self::Pod(next)) = (self, next) else { return None };
        let phase = next.status.as_ref().and_then(|status| status.phase.as_deref());
        if pod.metadata.uid != next.metadata.uid || matches!(phase, Some("Succeeded" | "Failed")) {
            return None;
        }
        let node = |pod: &Pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        let address = |pod: &Pod| {
            pod.status
                .as_ref()
                .is_some_and(|s| s.pod_ip.is_some() || s.pod_ips.as_ref().is_some_and(|ips| !ips.is_empty()))
        };
        let network = |pod: &Pod| netns_annotation(pod).is_some();
        [
            ("node", node(pod) && !node(next)),
            ("addresses", address(pod) && !address(next)),
            ("network", network(pod) && !network(next)),
        ]
        .into_iter()
        .find_map(|(what, lost)| lost.then_some(what))
    }
}

fn object(kind: &str, value: &Value) -> Result<Object, String> {
    let failed = |error: serde_json::Error| error.to_string();
    if kind == "Namespace" {
        let namespace: Namespace = serde_json::from_value(value.clone()).map_err(failed)?;
        return Ok(Object::Namespace(namespace.metadata.labels.unwrap_or_default()));
    }
    let pod: Pod = serde_json::from_value(value.clone()).map_err(failed)?;
    match &pod.spec {
        Some(_) => Ok(Object::Pod(Box::new(pod))),
        None => Err("it has no spec".into()),
    }
}
