//! Pod and WorkloadEntry → workloads.

use std::{collections::BTreeMap, sync::Arc};

use mesh_core::{
    eligibility::REDIRECTION_ANNOTATION,
    model::{
        Health, Locality, PortMapping, ServiceName, ServicePorts, Tunnel, Workload, WorkloadType,
        WorkloadUid, l7::WorkloadLabels,
    },
};

use super::{Context, GATEWAY_NAME, selects, services::mapping};
use crate::object::{Body, Key, Labels, Object, Pod};

pub(super) fn compile(cx: &mut Context<'_>) {
    for (key, object) in cx.each("Pod") {
        let Body::Pod(pod) = &object.body else { continue };
        if pod.finished || pod.ips.is_empty() {
            continue;
        }
        let mut workload = base(cx, key, &object.meta.labels, Some(pod));
        fill_pod(cx, &mut workload, object, pod);
        add(cx, workload, &object.meta.labels);
    }
    for (key, object) in cx.each("WorkloadEntry") {
        let Body::Entry(entry) = &object.body else { continue };
        let labels: Labels =
            object.meta.labels.iter().chain(&entry.labels).map(|(k, v)| (k.clone(), v.clone())).collect();
        let mut workload = base(cx, key, &labels, None);
        let cluster = &cx.options.cluster;
        workload.uid = WorkloadUid::new(format!(
            "{cluster}/networking.istio.io/WorkloadEntry/{}/{}",
            key.namespace, key.name
        ));
        workload.addresses = entry.ip.into_iter().collect();
        workload.service_account = entry.service_account.clone();
        workload.capacity = entry.weight;
        workload.workload_name = key.name.clone();
        add(cx, workload, &labels);
    }
}

fn add(cx: &mut Context<'_>, workload: Workload, labels: &Labels) {
    let uid = workload.uid.clone();
    cx.out.labels.insert(uid.clone(), WorkloadLabels { uid: uid.clone(), labels: labels.clone() });
    cx.out.workloads.insert(uid, workload);
}

fn base(cx: &Context<'_>, key: &Key, labels: &Labels, pod: Option<&Pod>) -> Workload {
    let uid = WorkloadUid::pod(&cx.options.cluster, &key.namespace, &key.name);
    let mut workload = Workload::new(uid, key.namespace.clone(), key.name.clone());
    let label = |name: &str| labels.get(name).cloned();
    workload.cluster = cx.options.cluster.clone();
    workload.trust_domain = cx.options.trust_domain.clone();
    workload.canonical_name = label("service.istio.io/canonical-name")
        .or_else(|| label("app.kubernetes.io/name"))
        .or_else(|| label("app"))
        .unwrap_or_default();
    workload.canonical_revision = label("service.istio.io/canonical-revision")
        .or_else(|| label("app.kubernetes.io/version"))
        .or_else(|| label("version"))
        .unwrap_or_else(|| "latest".into());
    workload.services = backed(cx, key, labels, pod);
    if !labels.contains_key(GATEWAY_NAME) {
        workload.waypoint = labels
            .contains_key(super::USE_WAYPOINT)
            .then(|| cx.labelled_waypoint(&key.namespace, labels))
            .flatten();
    }
    workload
}

fn backed(cx: &Context<'_>, key: &Key, labels: &Labels, pod: Option<&Pod>) -> ServicePorts {
    let mut found: BTreeMap<ServiceName, Vec<PortMapping>> = BTreeMap::new();
    for (service, object) in cx.each("Service").filter(|(s, _)| s.namespace == key.namespace) {
        let Body::Service(spec) = &object.body else { continue };
        if spec.selector.is_empty() || !selects(&spec.selector, labels) {
            continue;
        }
        let ports = spec.ports.iter().map(|p| mapping(p, pod)).filter(|p| p.target_port != 0);
        found.insert(Context::host(&service.namespace, &service.name), ports.collect());
    }
    found.into()
}

fn fill_pod(cx: &Context<'_>, workload: &mut Workload, object: &Object, pod: &Pod) {
    let labels = &object.meta.labels;
    workload.addresses = pod.ips.iter().map(std::net::IpAddr::to_canonical).collect();
    workload.node = pod.node.clone();
    workload.service_account = pod.service_account.clone();
    workload.host_network = pod.host_network;
    workload.health = if pod.ready { Health::Healthy } else { Health::Unhealthy };
    let own_tunnel = labels.get("networking.istio.io/tunnel").is_some_and(|v| &**v == "http")
        || labels.contains_key(GATEWAY_NAME);
    let captured = object.meta.annotations.get(REDIRECTION_ANNOTATION).is_some_and(|v| &**v == "enabled");
    workload.native_tunnel = own_tunnel;
    if own_tunnel || captured {
        workload.tunnel = Tunnel::Hbone;
    }
    (workload.workload_type, workload.workload_name) = owner(pod, labels, &workload.name);
    if workload.canonical_name.is_empty() {
        workload.canonical_name = workload.workload_name.clone();
    }
    let node = Key { kind: "Node".into(), namespace: "".into(), name: pod.node.clone() };
    if let Some(stored) = cx.store.objects.get(&node) {
        let label = |name: &str| stored.object.meta.labels.get(name).cloned().unwrap_or_default();
        workload.locality = Locality {
            region: label("topology.kubernetes.io/region"),
            zone: label("topology.kubernetes.io/zone"),
            subzone: label("topology.istio.io/subzone"),
        };
    }
}

/// A ReplicaSet's name without its hash is the Deployment's.
fn owner(pod: &Pod, labels: &Labels, name: &Arc<str>) -> (WorkloadType, Arc<str>) {
    match &pod.owner {
        Some((kind, owner)) if &**kind == "ReplicaSet" => {
            let hash = labels.get("pod-template-hash").map(|h| format!("-{h}"));
            let short = hash.and_then(|h| owner.strip_suffix(h.as_str()).map(Arc::from));
            (WorkloadType::Deployment, short.unwrap_or_else(|| owner.clone()))
        }
        Some((kind, owner)) if &**kind == "Job" => (WorkloadType::Job, owner.clone()),
        Some((kind, owner)) if &**kind == "Deployment" => (WorkloadType::Deployment, owner.clone()),
        Some((_, owner)) => (WorkloadType::Pod, owner.clone()),
        None => (WorkloadType::Pod, name.clone()),
    }
}
