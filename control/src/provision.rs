//! Waypoints that come by themselves: what a namespace needs is written as objects, and removed again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::PathBuf,
    sync::Arc,
};

use serde_json::{Value, json};

use crate::object::WAYPOINT_CLASSES;

/// Namespace and name of a waypoint.
pub type Place = (Arc<str>, Arc<str>);

/// The waypoints that there should be.
pub type Wanted = BTreeMap<Place, Waypoint>;

/// Waypoints that cannot be made, and why.
pub type Problems = BTreeMap<Place, String>;

/// A waypoint that there should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waypoint {
    /// What asks for it.
    pub why: String,
    /// The Gateway that it belongs to; none when it comes by itself.
    pub gateway: Option<Owner>,
}

/// A Gateway object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Its class.
    pub class: Arc<str>,
    /// Its uid; empty when it comes from a folder.
    pub uid: Arc<str>,
}

impl Waypoint {
    /// The class that its labels name.
    pub fn class(&self) -> &str {
        self.gateway.as_ref().map_or(WAYPOINT_CLASSES[0], |owner| &owner.class)
    }
}

/// Makes and removes waypoints; the folder and Kubernetes each implement it.
pub trait Provisioner: Send {
    /// Brings the waypoints of ours to exactly these.
    ///
    /// # Errors
    /// Objects cannot be written.
    fn ensure(&mut self, wanted: &Wanted) -> io::Result<()>;

    /// What could not be made the last time; for who works in the background.
    fn problems(&self) -> Problems {
        Problems::new()
    }
}

/// Makes none: somebody else does.
#[derive(Debug)]
pub struct Nobody;

impl Provisioner for Nobody {
    fn ensure(&mut self, _: &Wanted) -> io::Result<()> {
        Ok(())
    }
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
    fn ensure(&mut self, wanted: &Wanted) -> io::Result<()> {
        let files: BTreeSet<String> = wanted.keys().map(file).collect();
        if self.folder.exists() {
            for entry in fs::read_dir(&self.folder)? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.starts_with(PREFIX) && name.ends_with(".yaml") && !files.contains(&name) {
                    fs::remove_file(entry.path())?;
                    tracing::info!(file = %name, "waypoint no longer needed");
                }
            }
        }
        for (place @ (namespace, name), waypoint) in wanted {
            let file = file(place);
            let path = self.folder.join(&file);
            if !path.exists() {
                fs::create_dir_all(&self.folder)?;
                let hidden = self.folder.join(format!(".{file}.tmp"));
                fs::write(&hidden, manifest(place, waypoint)?)?;
                fs::rename(&hidden, &path)?;
                tracing::info!(%namespace, %name, reason = %waypoint.why, "waypoint created");
            }
        }
        Ok(())
    }
}

/// A namespace has no dot, so that no two waypoints share a file.
fn file((namespace, name): &Place) -> String {
    match &**name {
        "waypoint" => format!("{PREFIX}{namespace}.yaml"),
        name => format!("{PREFIX}{namespace}.{name}.yaml"),
    }
}

/// Labels of every object of a waypoint.
pub fn labels(name: &str, waypoint: &Waypoint) -> Value {
    json!({
        "gateway.networking.k8s.io/gateway-class-name": waypoint.class(),
        "gateway.networking.k8s.io/gateway-name": name,
    })
}

fn manifest((namespace, name): &Place, waypoint: &Waypoint) -> io::Result<String> {
    let labels = labels(name, waypoint);
    let mut pod_labels = labels.clone();
    pod_labels["istio.io/dataplane-mode"] = json!("none");
    pod_labels["networking.istio.io/tunnel"] = json!("http");
    let meta = json!({
        "name": name, "namespace": namespace, "labels": labels,
        "annotations": {"culvert.dev/reason": waypoint.why},
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn needs(namespaces: &[&str]) -> Wanted {
        let waypoint = |ns| Waypoint { why: format!("routes of {ns}"), gateway: None };
        namespaces.iter().map(|ns| ((Arc::from(*ns), Arc::from("waypoint")), waypoint(ns))).collect()
    }

    fn files(folder: &std::path::Path) -> Vec<String> {
        let all = fs::read_dir(folder.join("generated")).into_iter().flatten();
        let mut names: Vec<_> = all.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_waypoint_is_written_once_and_removed_when_nobody_needs_it() {
        let folder = tempfile::tempdir().unwrap();
        let mut provisioner = FolderProvisioner::new(folder.path());
        provisioner.ensure(&needs(&[])).unwrap();
        assert!(!folder.path().join("generated").exists(), "nothing is written for nothing");
        provisioner.ensure(&needs(&["a", "b"])).unwrap();
        assert_eq!(files(folder.path()), ["waypoint-a.yaml", "waypoint-b.yaml"]);
        for (name, text) in
            [("mine.yaml", "kind: X"), ("waypoint-notes.txt", "keep"), ("waypoint-a.yaml", "# edited")]
        {
            fs::write(folder.path().join("generated").join(name), text).unwrap();
        }
        provisioner.ensure(&needs(&["a"])).unwrap();
        assert_eq!(files(folder.path()), ["mine.yaml", "waypoint-a.yaml", "waypoint-notes.txt"]);
        let kept = fs::read_to_string(folder.path().join("generated/waypoint-a.yaml")).unwrap();
        assert_eq!(kept, "# edited", "what is there is not written again");
        provisioner.ensure(&needs(&[])).unwrap();
        assert_eq!(files(folder.path()), ["mine.yaml", "waypoint-notes.txt"], "what is not ours stays");
    }

    #[test]
    fn what_is_written_is_a_waypoint_that_compiles_without_a_finding() {
        let folder = tempfile::tempdir().unwrap();
        FolderProvisioner::new(folder.path()).ensure(&needs(&["shop"])).unwrap();
        let (compiled, report) = crate::compile_folder(folder.path());
        assert!(report.findings.is_empty(), "{:?}", report.findings);
        let service = compiled.services.values().next().unwrap();
        assert_eq!(service.key.to_string(), "shop/waypoint.shop.svc.cluster.local");
        assert_eq!(service.ports[0].service_port, 15008);
        let text = fs::read_to_string(folder.path().join("generated/waypoint-shop.yaml")).unwrap();
        for part in
            ["kind: ServiceAccount", "kind: Deployment", "serviceAccountName: waypoint", "routes of shop"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("generated"), "a file").unwrap();
        assert!(FolderProvisioner::new(folder.path()).ensure(&needs(&["a"])).is_err());
    }
}
