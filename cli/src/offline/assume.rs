//! What a running mesh adds to a folder: pods of Deployments, addresses, enrolment, waypoints. Every
//! assumption is said; none of them opens what policy closes.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use control::{
    compile::{Compiled, GATEWAY_NAME},
    finding::{Severity, Sink},
    object::{Body, Key, Labels, Place, parse},
    source::{Origin, Store, Stored},
};
use mesh_core::{
    eligibility::{self, Candidate, REDIRECTION_ANNOTATION},
    model::{Health, ServiceName, Workload},
};
use serde_json::{Value, json};

/// Namespaces that agents leave alone by default.
const EXCLUDED: &str = "kube-system";

/// Pods as they would run: those of Deployments that have none, addresses, enrolment.
pub(super) fn pods(store: &mut Store) -> Vec<String> {
    let mut said = deployments(store);
    let mut addresses = Addresses::new(store);
    let mut enrolled = 0_usize;
    let namespaces = namespaces(store);
    let mut placed = Vec::new();
    for (key, stored) in store.objects.iter_mut() {
        let Body::Pod(pod) = &mut stored.object.body else { continue };
        if pod.ips.is_empty() && !pod.finished {
            pod.ips.extend(addresses.next());
            pod.ready = true;
            placed.push(format!("{}/{}", key.namespace, key.name));
        }
        let meta = &mut stored.object.meta;
        let host_network = pod.host_network;
        let labels = namespaces.get(&key.namespace);
        if !meta.annotations.contains_key(REDIRECTION_ANNOTATION)
            && eligible(key, &meta.labels, &meta.annotations, host_network, labels)
        {
            meta.annotations.insert(REDIRECTION_ANNOTATION.into(), "enabled".into());
            enrolled += 1;
        }
    }
    if !placed.is_empty() {
        said.push(format!("has no address yet, taken as ready with a made-up one: {}", placed.join(", ")));
    }
    if enrolled > 0 {
        said.push(format!("taken as enrolled, because labels ask for it: {}", count(enrolled, "pod")));
    }
    said
}

fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

fn namespaces(store: &Store) -> BTreeMap<Arc<str>, Labels> {
    let all = store.objects.iter().filter(|(key, _)| &*key.kind == "Namespace");
    all.map(|(key, stored)| (key.name.clone(), stored.object.meta.labels.clone())).collect()
}

fn eligible(
    key: &Key,
    labels: &Labels,
    annotations: &Labels,
    host_network: bool,
    namespace: Option<&Labels>,
) -> bool {
    let owned = |map: &Labels| -> BTreeMap<String, String> {
        map.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    };
    let decided = eligibility::decide(&Candidate {
        namespace: &key.namespace,
        namespace_labels: &namespace.map(owned).unwrap_or_default(),
        labels: &owned(labels),
        annotations: &owned(annotations),
        host_network,
        // Which runtime a cluster's node has is not in a folder.
        sandboxed: false,
        excluded_namespaces: &[EXCLUDED.to_owned()],
    });
    decided.is_eligible()
}

/// Addresses of the benchmark range (RFC 2544) that no object has: they mean nothing elsewhere.
struct Addresses {
    taken: Vec<IpAddr>,
    next: u32,
}

impl Addresses {
    const FIRST: u32 = u32::from_be_bytes([198, 18, 0, 1]);
    const LAST: u32 = u32::from_be_bytes([198, 19, 255, 254]);

    fn new(store: &Store) -> Self {
        let of = |stored: &Stored| match &stored.object.body {
            Body::Pod(pod) => pod.ips.clone(),
            Body::Service(service) => service.ips.clone(),
            Body::Entry(entry) => match entry.place {
                Place::Ip(ip) => vec![ip],
                _ => Vec::new(),
            },
            _ => Vec::new(),
        };
        Self { taken: store.objects.values().flat_map(of).collect(), next: Self::FIRST }
    }

    /// None when the range is used up: the pod then stays without an address.
    fn next(&mut self) -> Option<IpAddr> {
        let free = (self.next..=Self::LAST)
            .find(|candidate| !self.taken.contains(&IpAddr::V4(Ipv4Addr::from(*candidate))))?;
        self.next = free + 1;
        Some(IpAddr::V4(Ipv4Addr::from(free)))
    }
}

/// One pod for every Deployment without pods.
fn deployments(store: &mut Store) -> Vec<String> {
    let of_kind = store.objects.iter().filter(|(key, _)| &*key.kind == "Deployment");
    let lonely: Vec<(Key, Value)> = of_kind
        .filter_map(|(key, stored)| Some((key.clone(), template(key, stored)?)))
        .filter(|(key, template)| !has_pods(store, key, template))
        .collect();
    let mut added = Vec::new();
    for (key, template) in lonely {
        let document = json!({
            "kind": "Pod",
            "metadata": {
                "name": key.name, "namespace": key.namespace,
                "labels": template["metadata"]["labels"],
                "annotations": template["metadata"]["annotations"],
                "ownerReferences": [{"kind": "Deployment", "name": key.name}],
            },
            "spec": template["spec"],
        });
        if insert(store, &document) {
            added.push(format!("{}/{}", key.namespace, key.name));
        }
    }
    match added.is_empty() {
        true => Vec::new(),
        false => {
            vec![format!("Deployment without a pod in the folder, taken as one pod: {}", added.join(", "))]
        }
    }
}

/// The pod template; none when nothing would run. The text is a document of its own, or a list that
/// holds it.
fn template(key: &Key, stored: &Stored) -> Option<Value> {
    let document: Value = serde_norway::from_str(&stored.text).ok()?;
    let is_it = |v: &&Value| v["kind"] == *key.kind && v["metadata"]["name"] == *key.name;
    let found = match document["items"].as_array() {
        Some(items) => items.iter().find(is_it)?,
        None => &document,
    };
    let runs = found["spec"]["replicas"].as_u64() != Some(0);
    runs.then(|| found["spec"]["template"].clone()).filter(Value::is_object)
}

fn has_pods(store: &Store, deployment: &Key, template: &Value) -> bool {
    let wanted: Vec<(&String, &Value)> =
        template["metadata"]["labels"].as_object().into_iter().flatten().collect();
    store.objects.iter().any(|(key, stored)| {
        let labels = &stored.object.meta.labels;
        &*key.kind == "Pod"
            && key.namespace == deployment.namespace
            && wanted.iter().all(|(k, v)| labels.get(k.as_str()).map(|l| &**l) == v.as_str())
    })
}

/// Waypoints that the control plane would make, and that are not running in the folder.
pub(super) fn waypoints(store: &mut Store, compiled: &Compiled) -> Vec<String> {
    let runs = |namespace: &str| {
        let name = ServiceName::new(namespace, format!("waypoint.{namespace}.svc.cluster.local"));
        let serves = |w: &Workload| w.health == Health::Healthy && w.services.contains_key(&name);
        compiled.services.contains_key(&name) && compiled.workloads.values().any(serves)
    };
    let missing = compiled.waypoints.iter().filter(|(namespace, _)| !runs(namespace));
    let mut addresses = Addresses::new(store);
    let mut said = Vec::new();
    for (namespace, why) in missing {
        let ip = addresses.next().map(|ip| ip.to_string());
        let [service, pod] = waypoint(namespace, ip.as_deref());
        insert(store, &service);
        if insert(store, &pod) {
            said.push(format!(
                "waypoint {namespace}/waypoint taken as running at a made-up address, because {why}"
            ));
        }
    }
    said
}

fn waypoint(namespace: &str, ip: Option<&str>) -> [Value; 2] {
    let labels = json!({GATEWAY_NAME: "waypoint", eligibility::MODE_LABEL: "none"});
    let meta = json!({"name": "waypoint", "namespace": namespace, "labels": labels});
    let pod = json!({
        "kind": "Pod", "metadata": meta, "spec": {"serviceAccountName": "waypoint"},
        "status": {"podIP": ip, "conditions": [{"type": "Ready", "status": "True"}]},
    });
    let ports = json!([{"name": "tcp-hbone", "port": 15008}]);
    let spec = json!({"selector": {GATEWAY_NAME: "waypoint"}, "ports": ports});
    [json!({"kind": "Service", "metadata": meta, "spec": spec}), pod]
}

/// Adds what a document says, as if the folder had it; what is there already stays.
fn insert(store: &mut Store, document: &Value) -> bool {
    let sink = Sink::default();
    let (key, object) = parse(document, &sink);
    let refused = sink.into_problems().iter().any(|p| p.severity == Severity::Error);
    let Some(object) = object.filter(|_| !refused && !store.objects.contains_key(&key)) else { return false };
    let text = document.to_string();
    let (file, prefix) = ("(assumed)".into(), String::new());
    store
        .objects
        .insert(key, Stored { file, line: 1, text, prefix, object, stand_in: false, origin: Origin::Folder });
    true
}
