//! Pod → workloads.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use mesh_core::{
    eligibility::REDIRECTION_ANNOTATION,
    model::{
        Health, Locality, PortMapping, ServiceName, ServicePorts, Tunnel, Workload, WorkloadType,
        WorkloadUid, l7::WorkloadLabels,
    },
};

use super::{
    Context, GATEWAY_NAME, selects,
    services::{Named, mapping},
};
use crate::object::{Body, Key, Labels, Object, Pod};

pub(super) fn compile(cx: &mut Context<'_>) {
    let owners = owners(cx);
    for (key, object) in cx.each("Pod") {
        let Body::Pod(pod) = &object.body else { continue };
        if pod.finished || pod.ips.is_empty() {
            continue;
        }
        let mut workload = base(cx, key, &object.meta.labels);
        workload.services = backed(cx, &key.namespace, &object.meta.labels, Named::Pod(pod));
        fill_pod(cx, &mut workload, object, pod);
        if !pod.host_network {
            let lost = workload
                .addresses
                .extract_if(.., |ip| owners.get(ip).is_some_and(|(.., owner)| *owner != key));
            let lost: Vec<IpAddr> = lost.collect();
            for ip in lost.iter().filter(|_| !pod.terminating) {
                let owner = owners.get(ip).map(|(.., owner)| owner.to_string()).unwrap_or_default();
                let reason = format!("{ip} is the address of {owner} now; no connection goes to this pod");
                cx.note(key, "status.podIPs", "address-lost", reason, "nothing to do if this pod is gone");
            }
        }
        add(cx, workload, &object.meta.labels);
    }
}

/// Which pod has an address: a node gives one to a new pod while the API server still shows the old one, or
/// the other way round. It belongs to the pod that is not being deleted, else to the newest; the other one
/// has lost it: it stays known, but nobody is sent to it.
fn owners<'a>(cx: &Context<'a>) -> BTreeMap<IpAddr, (bool, Arc<str>, &'a Key)> {
    let mut owners = BTreeMap::new();
    for (key, object) in cx.each("Pod") {
        let Body::Pod(pod) = &object.body else { continue };
        if pod.finished || pod.host_network {
            continue;
        }
        let claim = (!pod.terminating, object.meta.created.clone(), key);
        for ip in &pod.ips {
            let owner = owners.entry(ip.to_canonical()).or_insert_with(|| claim.clone());
            if *owner < claim {
                *owner = claim.clone();
            }
        }
    }
    owners
}

pub(super) fn add(cx: &mut Context<'_>, workload: Workload, labels: &Labels) {
    let uid = workload.uid.clone();
    cx.out.labels.insert(uid.clone(), WorkloadLabels { uid: uid.clone(), labels: labels.clone() });
    cx.out.workloads.insert(uid, workload);
}

pub(super) fn base(cx: &Context<'_>, key: &Key, labels: &Labels) -> Workload {
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
    if !labels.contains_key(GATEWAY_NAME) {
        workload.waypoint = labels
            .contains_key(super::USE_WAYPOINT)
            .then(|| cx.labelled_waypoint(&key.namespace, labels))
            .flatten();
    }
    workload
}

/// The services of a namespace that select these labels, with the endpoint's own ports.
pub(super) fn backed(
    cx: &Context<'_>,
    namespace: &Arc<str>,
    labels: &Labels,
    named: Named<'_>,
) -> ServicePorts {
    let mut found: BTreeMap<ServiceName, Vec<PortMapping>> = BTreeMap::new();
    let first = |(label, value): (&Arc<str>, &Arc<str>)| {
        cx.backends.get(namespace).and_then(|all| all.get(&(label.clone(), value.clone())))
    };
    let candidates = labels.iter().filter_map(first).flatten();
    for backend in candidates.filter(|backend| selects(backend.selector, labels)) {
        let ports = backend.ports.iter().map(|p| mapping(p, named)).filter(|p| p.target_port != 0);
        let ports: Vec<_> = ports.collect();
        found.extend(backend.services.iter().map(|name| (name.clone(), ports.clone())));
    }
    found.into()
}

fn fill_pod(cx: &Context<'_>, workload: &mut Workload, object: &Object, pod: &Pod) {
    let labels = &object.meta.labels;
    workload.addresses = pod.ips.iter().map(IpAddr::to_canonical).collect();
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

/// The CronJob that made a Job: the Job's name ends in its time, in 8 to 10 digits.
fn scheduled(job: &str) -> Option<&str> {
    let (of, time) = job.rsplit_once('-')?;
    ((8..=10).contains(&time.len()) && time.bytes().all(|b| b.is_ascii_digit())).then_some(of)
}

/// A ReplicaSet's name without its hash is the Deployment's.
fn owner(pod: &Pod, labels: &Labels, name: &Arc<str>) -> (WorkloadType, Arc<str>) {
    match &pod.owner {
        Some((kind, owner)) if &**kind == "ReplicaSet" => {
            let hash = labels.get("pod-template-hash").map(|h| format!("-{h}"));
            let short = hash.and_then(|h| owner.strip_suffix(h.as_str()).map(Arc::from));
            (WorkloadType::Deployment, short.unwrap_or_else(|| owner.clone()))
        }
        Some((kind, owner)) if &**kind == "Job" => match scheduled(owner) {
            Some(of) => (WorkloadType::Cronjob, of.into()),
            None => (WorkloadType::Job, owner.clone()),
        },
        Some((kind, owner)) if &**kind == "Deployment" => (WorkloadType::Deployment, owner.clone()),
        Some((_, owner)) => (WorkloadType::Pod, owner.clone()),
        None => (WorkloadType::Pod, name.clone()),
    }
}
