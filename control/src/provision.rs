//! Waypoints that come by themselves: what a namespace needs is written as objects, and removed again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::PathBuf,
    sync::Arc,
};

use serde_json::{Value, json};

/// Makes and removes waypoints; the folder and Kubernetes each implement it.
pub trait Provisioner: Send {
    /// Brings the waypoints of ours to exactly these namespaces (with the reason).
    ///
    /// # Errors
    /// Objects cannot be written.
    fn ensure(&mut self, namespaces: &BTreeMap<Arc<str>, String>) -> io::Result<()>;
}

/// Writes objects into `<cluster>/generated/`.
#[derive(Debug)]
pub struct FolderProvisioner {
    folder: PathBuf,
}

impl FolderProvisioner {
    /// For a cluster folder.
    pub fn new(cluster: &std::path::Path) -> Self {
        Self { folder: cluster.join("generated") }
    }
}

const PREFIX: &str = "waypoint-";

impl Provisioner for FolderProvisioner {
    fn ensure(&mut self, namespaces: &BTreeMap<Arc<str>, String>) -> io::Result<()> {
        let wanted: BTreeSet<String> = namespaces.keys().map(|ns| format!("{PREFIX}{ns}.yaml")).collect();
        if self.folder.exists() {
            for entry in fs::read_dir(&self.folder)? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.starts_with(PREFIX) && !wanted.contains(&name) {
                    fs::remove_file(entry.path())?;
                    tracing::info!(file = %name, "waypoint no longer needed");
                }
            }
        }
        for (namespace, why) in namespaces {
            let path = self.folder.join(format!("{PREFIX}{namespace}.yaml"));
            if !path.exists() {
                fs::create_dir_all(&self.folder)?;
                let hidden = self.folder.join(format!(".{PREFIX}{namespace}.tmp"));
                fs::write(&hidden, manifest(namespace, why)?)?;
                fs::rename(&hidden, &path)?;
                tracing::info!(%namespace, reason = %why, "waypoint created");
            }
        }
        Ok(())
    }
}

fn manifest(namespace: &str, why: &str) -> io::Result<String> {
    let name = "waypoint";
    let labels = json!({
        "gateway.networking.k8s.io/gateway-class-name": "culvert-waypoint",
        "gateway.networking.k8s.io/gateway-name": name,
    });
    let mut pod_labels = labels.clone();
    pod_labels["istio.io/dataplane-mode"] = json!("none");
    pod_labels["networking.istio.io/tunnel"] = json!("http");
    let meta = json!({
        "name": name, "namespace": namespace, "labels": labels,
        "annotations": {"culvert.dev/reason": why},
    });
    let selector = json!({"gateway.networking.k8s.io/gateway-name": name});
    let objects: [Value; 3] = [
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {
            "selector": selector,
            "ports": [{"name": "tcp-hbone", "port": 15008, "targetPort": 15008, "protocol": "TCP"}],
        }}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": {
            "replicas": 1, "selector": {"matchLabels": selector},
            "template": {"metadata": {"labels": pod_labels}, "spec": {
                "serviceAccountName": name,
                "containers": [{"name": "waypoint", "image": "culvert-waypoint",
                                "ports": [{"containerPort": 15008}]}],
            }},
        }}),
    ];
    let mut text = String::new();
    for object in &objects {
        text.push_str("---\n");
        text.push_str(&serde_norway::to_string(object).map_err(io::Error::other)?);
    }
    Ok(text)
}
