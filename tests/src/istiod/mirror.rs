//! Keeps an API server as a folder of YAML is.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Result;
use serde_json::{Value, json};

use crate::{cluster::Cluster, manifest, shell};

/// How often the folder is compared.
const INTERVAL: Duration = Duration::from_millis(50);
/// Kinds without a namespace.
const OF_CLUSTER: [&str; 2] = ["Namespace", "Node"];

/// Kind, namespace and name.
type Key = (String, String, String);

/// See the module's description; ends when dropped.
pub struct Mirror {
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Mirror {
    /// Brings the API server to what the folder says, and goes on with that.
    ///
    /// # Errors
    /// An object is refused.
    pub fn start(cluster: &Cluster, folder: PathBuf) -> Result<Self> {
        let kubectl = cluster.kubectl_words();
        let mut known = BTreeMap::new();
        sync(&kubectl, &folder, &mut known)?;
        let ended = Arc::new(AtomicBool::new(false));
        let over = ended.clone();
        let thread = thread::spawn(move || {
            let mut told = String::new();
            while !over.load(Ordering::Relaxed) {
                if let Err(error) = sync(&kubectl, &folder, &mut known) {
                    let text = format!("{error:#}");
                    if text != told {
                        eprintln!("mirror: {text}");
                    }
                    told = text;
                }
                thread::sleep(INTERVAL);
            }
        });
        Ok(Self { ended, thread: Some(thread) })
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has ended either way.
            let _ = thread.join();
        }
    }
}

/// Applies what differs from `known`, which is what was applied before.
fn sync(kubectl: &[String], folder: &Path, known: &mut BTreeMap<Key, Value>) -> Result<()> {
    // Half a folder is no reason to delete the other half.
    let Some(objects) = manifest::all(folder) else { return Ok(()) };
    let wanted: BTreeMap<Key, Value> = objects.into_iter().map(|object| (key(&object), object)).collect();
    let gone: Vec<&Key> = known.keys().filter(|key| !wanted.contains_key(*key)).collect();
    for (kind, namespace, name) in gone.iter().filter(|(kind, ..)| kind != "Namespace") {
        let words = ["delete", "--ignore-not-found", "--wait=false", "--grace-period=0", "--force", "-n"];
        let namespace = if namespace.is_empty() { "default" } else { namespace };
        run(kubectl, &[&words[..], &[namespace, &full(kind), name]].concat(), None)?;
    }
    let gone: BTreeSet<Key> = gone.into_iter().cloned().collect();
    known.retain(|key, _| !gone.contains(key));
    let new: Vec<&Value> =
        wanted.iter().filter(|(key, o)| known.get(*key) != Some(*o)).map(|(_, o)| o).collect();
    if new.is_empty() {
        return Ok(());
    }
    apply(kubectl, &["--field-manager=surroundings"], &surroundings(&new))?;
    let refused = apply(kubectl, &[], &new.iter().map(|object| plain(object)).collect::<Vec<_>>())?;
    let with_status = new.iter().filter(|o| o["status"].is_object() && !refused.contains(&key(o)));
    apply(kubectl, &["--subresource=status"], &with_status.map(|object| status(object)).collect::<Vec<_>>())?;
    *known = wanted;
    Ok(())
}

fn key(object: &Value) -> Key {
    let text = |value: &Value, other: &str| value.as_str().unwrap_or(other).to_string();
    let (kind, meta) = (text(&object["kind"], ""), &object["metadata"]);
    let of_cluster = OF_CLUSTER.contains(&kind.as_str());
    let namespace = if of_cluster { String::new() } else { text(&meta["namespace"], "default") };
    (kind, namespace, text(&meta["name"], ""))
}

/// Two API groups have a Gateway; the tests mean that of the Gateway API.
fn full(kind: &str) -> String {
    if kind == "Gateway" { "gateways.gateway.networking.k8s.io".into() } else { kind.to_lowercase() }
}

/// Namespaces and service accounts that objects presuppose, which nobody makes here.
fn surroundings(objects: &[&Value]) -> Vec<Value> {
    let mut needed = BTreeMap::new();
    for object in objects {
        let (kind, namespace, _) = key(object);
        if namespace.is_empty() {
            continue;
        }
        let home = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        needed.insert((0, namespace.clone(), String::new()), home);
        if kind == "Pod" {
            let account = object["spec"]["serviceAccountName"].as_str().unwrap_or("default");
            let meta = json!({"name": account, "namespace": namespace});
            let value = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta});
            needed.insert((1, namespace, account.to_string()), value);
        }
    }
    needed.into_values().collect()
}

/// The object as its owner writes it: the API server gives ids, and nobody here collects orphans.
fn plain(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    if let Some(meta) = object["metadata"].as_object_mut() {
        meta.remove("uid");
        meta.remove("ownerReferences");
    }
    object
}

fn status(object: &Value) -> Value {
    let (_, namespace, name) = key(object);
    let mut meta = json!({"name": name});
    if !namespace.is_empty() {
        meta["namespace"] = json!(namespace);
    }
    json!({"apiVersion": object["apiVersion"], "kind": object["kind"], "metadata": meta, "status": object["status"]})
}

/// Applies objects and returns those that the API server refuses: what it cannot have is not there, as in
/// a cluster where somebody tries the same.
fn apply(kubectl: &[String], more: &[&str], objects: &[Value]) -> Result<BTreeSet<Key>> {
    // What is only presupposed has another field manager: it takes no label from what the folder says.
    let words = [&["apply", "--server-side", "--force-conflicts", "-f", "-"], more].concat();
    let put = |objects: &[Value]| {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        run(kubectl, &words, Some(&list))
    };
    if objects.is_empty() {
        return Ok(BTreeSet::new());
    }
    let Err(error) = put(objects) else { return Ok(BTreeSet::new()) };
    if !is_refusal(&error) {
        return Err(error);
    }
    let mut refused = BTreeSet::new();
    for object in objects {
        match put(std::slice::from_ref(object)) {
            Ok(()) => {}
            Err(error) if is_refusal(&error) => {
                eprintln!("mirror: not in the API server: {error:#}");
                refused.insert(key(object));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(refused)
}

fn is_refusal(error: &anyhow::Error) -> bool {
    let text = format!("{error:#}");
    [" is invalid", "invalid resource name", " is forbidden"].iter().any(|words| text.contains(words))
}

fn run(kubectl: &[String], words: &[&str], input: Option<&str>) -> Result<()> {
    let mut command = Command::new(&kubectl[0]);
    command.args(&kubectl[1..]).args(words);
    match input {
        Some(text) => shell::fed(&mut command, text).map(drop),
        None => shell::output(&mut command).map(drop),
    }
}
