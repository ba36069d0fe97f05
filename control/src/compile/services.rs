//! Service → services.

use std::{collections::BTreeMap, sync::Arc};

use ipnet::IpNet;
use mesh_core::model::{LoadBalancing, LoadBalancingMode, PortMapping, Scope, Service, ServiceName, Vip};

use super::Context;
use crate::{
    finding::Severity,
    object::{self, Body, Key, Labels, Object, TargetPort},
    vips::Vips,
};

pub(super) fn compile(cx: &mut Context<'_>, vips: &mut Vips) {
    let given = cx.each("Service").filter_map(|(_, o)| match &o.body {
        Body::Service(s) => Some(s.ips.clone()),
        _ => None,
    });
    vips.reserve(given.flatten());
    for (key, object) in cx.each("Service") {
        let Body::Service(spec) = &object.body else { continue };
        if spec.external_name {
            let reason =
                "a service of type ExternalName is an alias in DNS; the mesh does not know it".into();
            let remedy = "use a ServiceEntry if the mesh must know it";
            cx.problem(key, Severity::Info, "spec.type", "external-name", reason, remedy);
            continue;
        }
        let name = Context::host(&key.namespace, &key.name);
        let mut service = Service::new(name.clone(), key.name.clone());
        let mut ips = spec.ips.clone();
        if ips.is_empty() && !spec.headless {
            ips.extend(vips.get(&name.to_string()));
        }
        service.vips = ips.into_iter().map(|ip| Vip { network: "".into(), range: IpNet::from(ip) }).collect();
        service.ports = spec.ports.iter().map(|p| mapping(p, Named::Nobody)).collect();
        service.load_balancing = load_balancing(cx, key, object, spec);
        service.canonical = true;
        service.ip_families = spec.families;
        service.namespace_only = exported_to(cx, key, object);
        service.ingress_use_waypoint = ingress(cx, &key.namespace, object);
        let (selector, services) = (&spec.selector, vec![name.clone()]);
        cx.add_backend(&key.namespace, Backend { selector, services, ports: &spec.ports });
        cx.sources.insert(name.clone(), (key, object));
        cx.out.services.insert(name, service);
    }
}

/// What knows an endpoint's own port numbers.
#[derive(Clone, Copy)]
pub(super) enum Named<'a> {
    /// Nothing: named ports stay open until an endpoint is chosen.
    Nobody,
    /// A pod's containers, by the name of the target.
    Pod(&'a object::Pod),
    /// An entry's ports, by the name of the service's port or of the target.
    Entry(&'a BTreeMap<Arc<str>, u16>),
    /// A slice's ports, by the name of the service's port; they replace the target.
    Slice(&'a BTreeMap<Arc<str>, u16>),
}

/// Selected endpoints of services in one namespace.
#[derive(Debug)]
pub(super) struct Backend<'a> {
    /// Labels of endpoints.
    pub(super) selector: &'a Labels,
    /// The services that they back.
    pub(super) services: Vec<ServiceName>,
    /// Their ports.
    pub(super) ports: &'a [object::ServicePort],
}

/// One port as an endpoint serves it; target 0 when it does not.
pub(super) fn mapping(p: &object::ServicePort, named: Named<'_>) -> PortMapping {
    let own = match named {
        Named::Entry(ports) | Named::Slice(ports) => ports.get(&p.name).copied(),
        Named::Nobody | Named::Pod(_) => None,
    };
    let target_port = own.unwrap_or_else(|| match (&p.target, named) {
        (TargetPort::Number(port), _) => *port,
        (TargetPort::Named(name), Named::Pod(pod)) => {
            pod.ports.iter().find(|(n, _)| n == name).map_or(0, |(_, port)| *port)
        }
        (TargetPort::Named(name), Named::Entry(ports)) => ports.get(name).copied().unwrap_or(0),
        (TargetPort::Named(_), Named::Nobody | Named::Slice(_)) => 0,
    });
    PortMapping { service_port: p.port, target_port, app_protocol: p.protocol }
}

/// Annotation that says who sees a service, as `exportTo` of a ServiceEntry.
const EXPORT_TO: &str = "networking.istio.io/exportTo";
/// Annotation of a service or namespace for services without `trafficDistribution`.
const DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";
/// Label of a service or namespace: ingress gateways use the waypoint too.
const INGRESS: &str = "istio.io/ingress-use-waypoint";

/// Whether a service is hidden from other namespaces.
fn exported_to(cx: &mut Context<'_>, key: &Key, object: &Object) -> bool {
    match object.meta.annotations.get(EXPORT_TO).map(|text| text.trim()) {
        None | Some("*") => false,
        Some(".") => true,
        Some(other) => {
            let reason =
                format!("{EXPORT_TO}: {other:?} is not supported; the service stays in its own namespace");
            cx.note(key, "metadata.annotations", "unsupported-field", reason, "use \"*\" or \".\"");
            true
        }
    }
}

pub(super) fn ingress(cx: &Context<'_>, namespace: &str, object: &Object) -> bool {
    let of_namespace = || cx.namespace_labels(namespace)?.get(INGRESS);
    object.meta.labels.get(INGRESS).or_else(of_namespace).is_some_and(|value| &**value == "true")
}

fn load_balancing(cx: &mut Context<'_>, key: &Key, object: &Object, spec: &object::Service) -> LoadBalancing {
    let (allow_unhealthy, sticky) = (spec.publish_not_ready, spec.sticky);
    let mut lb = LoadBalancing { allow_unhealthy, sticky, ..LoadBalancing::default() };
    if spec.local_only {
        (lb.mode, lb.preference) = (LoadBalancingMode::Strict, vec![Scope::Node]);
        return lb;
    }
    let zone = vec![Scope::Network, Scope::Region, Scope::Zone];
    let of_namespace = || cx.namespace(&key.namespace)?.annotations.get(DISTRIBUTION);
    let annotated = || object.meta.annotations.get(DISTRIBUTION).or_else(of_namespace);
    match spec.distribution.as_ref().or_else(annotated).map(|text| &**text) {
        Some("PreferClose" | "PreferSameZone") => {
            (lb.mode, lb.preference) = (LoadBalancingMode::Failover, zone);
        }
        Some("PreferSameNode") => {
            lb.mode = LoadBalancingMode::Failover;
            lb.preference = [zone, vec![Scope::Subzone, Scope::Node]].concat();
        }
        Some(other) if spec.distribution.is_none() => {
            let reason = format!("{DISTRIBUTION}: {other:?} is not supported: all endpoints are the same");
            let remedy = "use PreferSameZone, PreferSameNode or PreferClose";
            cx.note(key, "metadata.annotations", "unsupported-field", reason, remedy);
        }
        _ => {}
    }
    lb
}
