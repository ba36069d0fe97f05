//! EndpointSlices of services without a selector → endpoints. With a selector the pods themselves are
//! the truth and slices are left alone.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use mesh_core::model::{Health, PortMapping, ServiceName, Workload, WorkloadUid};

use super::{
    Context,
    services::{Named, mapping},
    workloads::{add, base},
};
use crate::object::{Body, Key, Labels, Slice, SliceEndpoint};

pub(super) fn compile(cx: &mut Context<'_>) {
    let pods = pods_by_address(cx);
    for (key, object) in cx.each("EndpointSlice") {
        let Body::Slice(slice) = &object.body else { continue };
        let Some((service, ports)) = target(cx, key, slice) else { continue };
        for endpoint in &slice.endpoints {
            match pod_of(cx, &pods, key, endpoint) {
                Some(uid) => {
                    let workload = cx.out.workloads.get_mut(&uid);
                    workload
                        .into_iter()
                        .for_each(|w| drop(w.services.insert(service.clone(), ports.clone())));
                }
                None => outside(cx, key, endpoint, &service, &ports),
            }
        }
    }
}

/// The service of a slice and its ports there; none when pods are selected, or there is no such service.
fn target(cx: &mut Context<'_>, key: &Key, slice: &Slice) -> Option<(ServiceName, Vec<PortMapping>)> {
    let Some(name) = &slice.service else {
        let reason = "no label kubernetes.io/service-name: the slice belongs to no service".into();
        cx.note(key, "metadata.labels", "unknown-service", reason, "add the label");
        return None;
    };
    let service = Context::host(&key.namespace, name);
    let Some((_, object)) = cx.sources.get(&service) else {
        let reason = format!("there is no service {name}");
        cx.note(key, "metadata.labels", "unknown-service", reason, "create it or correct the label");
        return None;
    };
    let Body::Service(spec) = &object.body else { return None };
    if !spec.selector.is_empty() {
        return None;
    }
    let ports = spec.ports.iter().filter(|p| slice.ports.contains_key(&p.name));
    Some((service, ports.map(|p| mapping(p, Named::Slice(&slice.ports))).collect()))
}

fn pods_by_address(cx: &Context<'_>) -> BTreeMap<IpAddr, WorkloadUid> {
    let visible = cx.out.workloads.values().filter(|w| !w.host_network);
    visible.flat_map(|w| w.addresses.iter().map(|ip| (*ip, w.uid.clone()))).collect()
}

/// The workload that an endpoint is already: the pod it names, or the one with its address.
fn pod_of(
    cx: &Context<'_>,
    pods: &BTreeMap<IpAddr, WorkloadUid>,
    key: &Key,
    endpoint: &SliceEndpoint,
) -> Option<WorkloadUid> {
    let named = endpoint.pod.as_ref().map(|(namespace, name)| {
        let namespace: &Arc<str> = if namespace.is_empty() { &key.namespace } else { namespace };
        WorkloadUid::pod(&cx.options.cluster, namespace, name)
    });
    let known = named.filter(|uid| cx.out.workloads.contains_key(uid));
    known.or_else(|| endpoint.ips.iter().find_map(|ip| pods.get(ip).cloned()))
}

fn outside(
    cx: &mut Context<'_>,
    key: &Key,
    endpoint: &SliceEndpoint,
    service: &ServiceName,
    ports: &[PortMapping],
) {
    let Some(first) = endpoint.ips.first() else { return };
    let kind = "discovery.k8s.io/EndpointSlice";
    let mut workload: Workload = base(cx, key, &Labels::new());
    let uid = format!("{}/{kind}/{}/{}/{first}", cx.options.cluster, key.namespace, key.name);
    workload.uid = WorkloadUid::new(uid);
    workload.addresses = endpoint.ips.clone();
    workload.health = if endpoint.ready { Health::Healthy } else { Health::Unhealthy };
    workload.node = endpoint.node.clone();
    workload.locality.zone = endpoint.zone.clone();
    workload.workload_name = key.name.clone();
    workload.services = [(service.clone(), ports.to_vec())].into_iter().collect();
    add(cx, workload, &Labels::new());
}
