//! Service → services.

use ipnet::IpNet;
use mesh_core::model::{LoadBalancing, LoadBalancingMode, PortMapping, Scope, Service, Vip};

use super::Context;
use crate::{
    object::{self, Body, TargetPort},
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
        let name = Context::host(&key.namespace, &key.name);
        let mut service = Service::new(name.clone(), key.name.clone());
        let mut ips = spec.ips.clone();
        if ips.is_empty() && !spec.headless {
            ips.extend(vips.get(&name.to_string()));
        }
        service.vips = ips.into_iter().map(|ip| Vip { network: "".into(), range: IpNet::from(ip) }).collect();
        service.ports = spec.ports.iter().map(|p| mapping(p, None)).collect();
        service.load_balancing = load_balancing(spec);
        service.canonical = true;
        cx.sources.insert(name.clone(), (key, object));
        cx.out.services.insert(name, service);
    }
}

/// One port as an endpoint with these named container ports serves it.
pub(super) fn mapping(p: &object::ServicePort, pod: Option<&object::Pod>) -> PortMapping {
    let target_port = match &p.target {
        TargetPort::Number(port) => *port,
        TargetPort::Named(name) => {
            pod.and_then(|pod| pod.ports.iter().find(|(n, _)| n == name)).map_or(0, |(_, port)| *port)
        }
    };
    PortMapping { service_port: p.port, target_port, app_protocol: p.protocol }
}

fn load_balancing(spec: &object::Service) -> LoadBalancing {
    let mut lb = LoadBalancing { allow_unhealthy: spec.publish_not_ready, ..LoadBalancing::default() };
    if spec.local_only {
        (lb.mode, lb.preference) = (LoadBalancingMode::Strict, vec![Scope::Node]);
        return lb;
    }
    let zone = vec![Scope::Network, Scope::Region, Scope::Zone];
    match spec.distribution.as_deref() {
        Some("PreferClose" | "PreferSameZone") => {
            (lb.mode, lb.preference) = (LoadBalancingMode::Failover, zone);
        }
        Some("PreferSameNode") => {
            lb.mode = LoadBalancingMode::Failover;
            lb.preference = [zone, vec![Scope::Subzone, Scope::Node]].concat();
        }
        _ => {}
    }
    lb
}
