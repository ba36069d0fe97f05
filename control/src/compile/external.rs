//! ServiceEntry and WorkloadEntry → services and workloads, as istiod says them.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use mesh_core::model::{
    Health, LoadBalancing, LoadBalancingMode, Service, ServiceName, Tunnel, Vip, Workload, WorkloadUid,
};

use super::{
    Context,
    services::{Backend, Named, ingress, mapping},
    workloads::{add, backed, base},
};
use crate::{
    finding::Severity,
    object::{Body, Entry, Key, Labels, Object, Place, Resolution, ServiceEntry},
    vips::Vips,
};

/// Services of service entries: one per host. An entry that dials elsewhere than its client did gets
/// virtual addresses where it gives none.
pub(super) fn services(cx: &mut Context<'_>, vips: &mut Vips) {
    let given = cx.each("ServiceEntry").filter_map(|(_, object)| match &object.body {
        Body::ServiceEntry(entry) => Some(entry.addresses.iter().map(IpNet::addr).collect::<Vec<_>>()),
        _ => None,
    });
    vips.reserve(given.flatten());
    for (key, object) in cx.each("ServiceEntry") {
        let Body::ServiceEntry(entry) = &object.body else { continue };
        let mut names = Vec::new();
        for (index, host) in entry.hosts.iter().enumerate() {
            let name = ServiceName::new(key.namespace.clone(), host.clone());
            if cx.out.services.contains_key(&name) {
                let reason = format!("{host} is already a service of this namespace, which is used");
                cx.note(key, &format!("spec.hosts[{index}]"), "conflict", reason, "rename one of them");
                continue;
            }
            let service = service(cx, (key, object), entry, &name, vips);
            cx.sources.insert(name.clone(), (key, object));
            cx.out.services.insert(name.clone(), service);
            names.push(name);
        }
        if entry.resolution != Resolution::None {
            let (selector, ports) = (&entry.selector, &entry.ports[..]);
            cx.add_backend(&key.namespace, Backend { selector, services: names, ports });
        }
    }
}

fn service(
    cx: &mut Context<'_>,
    (key, object): (&Key, &Object),
    entry: &ServiceEntry,
    name: &ServiceName,
    vips: &mut Vips,
) -> Service {
    let mut service = Service::new(name.clone(), key.name.clone());
    let mut ranges = entry.addresses.clone();
    if ranges.is_empty() {
        ranges.extend(unaddressed(cx, key, entry, name, vips).map(IpNet::from));
    }
    service.vips = ranges.into_iter().map(|range| Vip { network: "".into(), range }).collect();
    service.ports = entry.ports.iter().map(|p| mapping(p, Named::Nobody)).collect();
    service.subject_alt_names = entry.identities.clone();
    service.namespace_only = entry.namespace_only;
    service.ingress_use_waypoint = ingress(cx, &key.namespace, object);
    if entry.resolution == Resolution::None {
        let mode = LoadBalancingMode::Passthrough;
        service.load_balancing = LoadBalancing { mode, allow_unhealthy: true, ..LoadBalancing::default() };
    }
    service
}

/// The virtual address of a host that has none; nothing can be dialled instead of a wildcard or of what
/// the client dials itself.
fn unaddressed(
    cx: &mut Context<'_>,
    key: &Key,
    entry: &ServiceEntry,
    name: &ServiceName,
    vips: &mut Vips,
) -> Option<IpAddr> {
    let host = &name.hostname;
    if entry.resolution == Resolution::None || host.starts_with('*') {
        let reason = format!("{host} has no address, so that no connection is recognised as going there");
        cx.note(key, "spec.addresses", "no-address", reason, "add addresses or CIDRs");
        return None;
    }
    let ip = vips.get(&name.to_string())?;
    let reason =
        format!("{host} was given {ip}; names are not answered by the mesh, so clients must dial that");
    cx.problem(
        key,
        Severity::Info,
        "spec.addresses",
        "given-address",
        reason,
        "add addresses that its name has",
    );
    Some(ip)
}

/// Endpoints of service entries, and workload entries.
pub(super) fn workloads(cx: &mut Context<'_>) {
    for (key, object) in cx.each("WorkloadEntry") {
        let Body::Entry(entry) = &object.body else { continue };
        let labels = merged(&object.meta.labels, &entry.labels);
        let uid = format!(
            "{}/networking.istio.io/WorkloadEntry/{}/{}",
            cx.options.cluster, key.namespace, key.name
        );
        let mut workload = base(cx, key, &labels);
        workload.services = backed(cx, &key.namespace, &labels, Named::Entry(&entry.ports));
        fill(&mut workload, uid, entry, &labels);
        add(cx, workload, &labels);
    }
    for (key, object) in cx.each("ServiceEntry") {
        let Body::ServiceEntry(entry) = &object.body else { continue };
        match (entry.resolution, entry.endpoints.is_empty()) {
            (Resolution::None, _) => {}
            (Resolution::Dns, true) if entry.selector.is_empty() => hosts(cx, key, entry),
            _ => {
                let names = services_of(cx, key, entry);
                entry.endpoints.iter().for_each(|one| inline(cx, key, entry, one, &names));
            }
        }
    }
}

fn services_of(cx: &Context<'_>, key: &Key, entry: &ServiceEntry) -> Vec<ServiceName> {
    let name = |host: &Arc<str>| ServiceName::new(key.namespace.clone(), host.clone());
    let own = |name: &ServiceName| cx.sources.get(name).is_some_and(|(source, _)| *source == key);
    entry.hosts.iter().map(name).filter(own).collect()
}

/// Without endpoints each host is its own: agents resolve it for each connection.
fn hosts(cx: &mut Context<'_>, key: &Key, entry: &ServiceEntry) {
    for name in services_of(cx, key, entry) {
        let one = Entry {
            place: Place::Host(name.hostname.clone()),
            ports: Default::default(),
            labels: Labels::new(),
            network: "".into(),
            locality: Default::default(),
            service_account: "default".into(),
            weight: 1,
            unhealthy: false,
        };
        inline(cx, key, entry, &one, std::slice::from_ref(&name));
    }
}

fn inline(cx: &mut Context<'_>, key: &Key, entry: &ServiceEntry, one: &Entry, names: &[ServiceName]) {
    let at = match &one.place {
        Place::Ip(ip) => ip.to_string(),
        Place::Host(host) => host.to_string(),
        Place::Unknown => return,
    };
    let kind = "networking.istio.io/ServiceEntry";
    let uid = format!("{}/{kind}/{}/{}/{at}", cx.options.cluster, key.namespace, key.name);
    let mut workload = base(cx, key, &one.labels);
    let ports: Vec<_> = entry.ports.iter().map(|p| mapping(p, Named::Entry(&one.ports))).collect();
    workload.services = names.iter().map(|name| (name.clone(), ports.clone())).collect();
    fill(&mut workload, uid, one, &one.labels);
    add(cx, workload, &one.labels);
}

fn fill(workload: &mut Workload, uid: String, entry: &Entry, labels: &Labels) {
    workload.uid = WorkloadUid::new(uid);
    match &entry.place {
        Place::Ip(ip) => workload.addresses = vec![*ip],
        Place::Host(host) => workload.hostname = host.clone(),
        Place::Unknown => {}
    }
    workload.network = entry.network.clone();
    workload.locality = entry.locality.clone();
    workload.service_account = entry.service_account.clone();
    workload.capacity = entry.weight;
    workload.workload_name = workload.name.clone();
    if workload.canonical_name.is_empty() {
        workload.canonical_name = workload.name.clone();
    }
    workload.health = if entry.unhealthy { Health::Unhealthy } else { Health::Healthy };
    workload.native_tunnel = labels.get("networking.istio.io/tunnel").is_some_and(|v| &**v == "http");
    if workload.native_tunnel {
        workload.tunnel = Tunnel::Hbone;
    }
}

fn merged(a: &Labels, b: &Labels) -> Labels {
    a.iter().chain(b).map(|(key, value)| (key.clone(), value.clone())).collect()
}
