//! Builders for small worlds, used by tests here and in other crates.

use std::{net::IpAddr, sync::Arc};

use crate::{
    delta::Change,
    identity::Identity,
    model::{
        AppProtocol, GatewayAddress, GatewayDestination, L4Clause, L4Match, L4Rule, Policy, PolicyAction,
        PolicyName, PolicyScope, PortMapping, Service, ServiceName, StringMatch, Tunnel, Vip, Workload,
        WorkloadUid,
    },
    snapshot::PodRef,
};

/// An enrolled pod of namespace `default` whose service account has the pod's name.
pub fn pod(name: &str, ip: impl Into<IpAddr>) -> Workload {
    let mut workload = Workload::new(WorkloadUid::pod("Kubernetes", "default", name), "default", name);
    workload.addresses = vec![ip.into()];
    workload.tunnel = Tunnel::Hbone;
    workload.service_account = name.into();
    workload
}

/// How the node of a [`pod`] knows it.
pub fn pod_ref(workload: &Workload) -> Arc<PodRef> {
    PodRef::of(workload)
}

/// A mapping of a service port.
pub fn port(service_port: u16, target_port: u16) -> PortMapping {
    PortMapping { service_port, target_port, app_protocol: AppProtocol::Unknown }
}

/// The key of a service of namespace `default`.
pub fn service_name(name: &str) -> ServiceName {
    ServiceName::new("default", format!("{name}.default.svc.cluster.local"))
}

/// A service of namespace `default`.
pub fn service(name: &str, vip: impl Into<IpAddr>, ports: &[PortMapping]) -> Service {
    let mut service = Service::new(service_name(name), name);
    service.vips = vec![Vip { network: "".into(), range: vip.into().into() }];
    service.ports = ports.to_vec();
    service
}

/// The same workload, backing a service.
pub fn backing(mut workload: Workload, service: &Service) -> Workload {
    workload.services.insert(service.key.clone(), service.ports.clone());
    workload
}

/// A waypoint by host name, on 15008.
pub fn waypoint(name: &str) -> GatewayAddress {
    GatewayAddress { destination: GatewayDestination::Hostname(service_name(name)), hbone_port: 15008 }
}

/// A policy with one rule of one block.
pub fn policy(name: &str, scope: PolicyScope, action: PolicyAction, block: L4Match) -> Policy {
    let rules = vec![L4Rule { clauses: vec![L4Clause { matches: vec![block] }] }];
    Policy { key: PolicyName::new("default", name), scope, action, rules, dry_run: false }
}

/// The policy that STRICT mutual TLS becomes.
pub fn strict(scope: PolicyScope) -> Policy {
    let block = L4Match { not_principals: vec![StringMatch::Presence], ..L4Match::default() };
    policy("strict", scope, PolicyAction::Deny, block)
}

/// The identity of a [`pod`].
pub fn identity(name: &str) -> Identity {
    Identity::new("cluster.local", "default", name)
}

/// Upserts of these workloads.
pub fn workloads(list: impl IntoIterator<Item = Workload>) -> Vec<Change> {
    list.into_iter().map(|w| Change::Workload(Arc::new(w))).collect()
}
