//! The cluster folder's objects: what the node runner writes and reads.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use mesh_net::folder::list;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::world::Pod;

/// Writes a YAML file in one step, so that no watcher ever reads half of it.
pub fn write(path: &Path, value: &Value) -> Result<()> {
    let folder = path.parent().context("a file has a folder")?;
    fs::create_dir_all(folder)?;
    let hidden = folder.join(format!(
        ".{}.tmp",
        path.file_name().and_then(|name| name.to_str()).context("file name is UTF-8")?
    ));
    fs::write(&hidden, serde_norway::to_string(value)?)?;
    fs::rename(&hidden, path).with_context(|| format!("cannot write {}", path.display()))
}

/// The `Pod` object of a running pod, as a kubelet would report it.
pub fn pod(pod: &Pod, owner: Option<&str>, container: &Value, ready: bool) -> Value {
    let owners: Vec<Value> = owner
        .map(|name| {
            json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": name,
                   "uid": format!("rs-{name}"), "controller": true})
        })
        .into_iter()
        .collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": pod.name, "namespace": pod.namespace, "uid": pod.uid, "labels": pod.labels,
            "annotations": {"culvert.dev/netns": format!("/run/netns/{}", pod.netns)},
            "ownerReferences": owners,
        },
        "spec": {
            "nodeName": pod.node_name(), "serviceAccountName": pod.service_account,
            "containers": [container],
        },
        "status": {
            "phase": "Running", "podIP": pod.ip, "hostIP": pod.host_ip,
            "podIPs": [{"ip": pod.ip}, {"ip": pod.ip6}],
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
        },
    })
}

/// A namespace object with labels.
pub fn namespace(name: &str, labels: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

/// A node object.
pub fn node(name: &str, address: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {
               "topology.kubernetes.io/region": "local", "topology.kubernetes.io/zone": name}},
           "status": {"addresses": [{"type": "InternalIP", "address": address}]}})
}

/// Every object of a kind in the folder; files that do not parse are left to `control` to report.
pub fn objects(cluster: &Path, kind: &str) -> Vec<Value> {
    let mut found = Vec::new();
    for file in list(cluster).files {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        for document in serde_norway::Deserializer::from_str(&text) {
            match Value::deserialize(document) {
                Ok(value) if value["kind"] == kind => found.push(value),
                Ok(_) => {}
                Err(_) => break,
            }
        }
    }
    found
}

/// Every object of the folder; none when a part of it cannot be read just now.
pub fn all(cluster: &Path) -> Option<Vec<Value>> {
    let mut found = Vec::new();
    let listing = list(cluster);
    if !listing.unreadable.is_empty() {
        return None;
    }
    for file in listing.files {
        let text = fs::read_to_string(&file).ok()?;
        for document in serde_norway::Deserializer::from_str(&text) {
            let value = Value::deserialize(document).ok()?;
            if value["kind"].is_string() {
                found.push(value);
            }
        }
    }
    Some(found)
}

/// Whether every file of the folder is YAML.
pub fn is_readable(cluster: &Path) -> bool {
    list(cluster).files.iter().all(|file| {
        fs::read_to_string(file).is_ok_and(|text| {
            serde_norway::Deserializer::from_str(&text).all(|document| Value::deserialize(document).is_ok())
        })
    })
}
