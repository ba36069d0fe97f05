//! Round trips, defaults and refusals of the L4 resources.

mod l7;

use mesh_core::{
    fixtures::{identity, policy, service_name},
    model::{
        AppProtocol, ApplicationTunnel, GatewayAddress, GatewayDestination, Health, IpFamilies, L4Clause,
        L4Match, L4Rule, LoadBalancing, LoadBalancingMode, Locality, NetworkAddress, Policy, PolicyAction,
        PolicyName, PolicyScope, PortMapping, Scope, Service, ServiceAccountMatch, ServiceName, StringMatch,
        Tunnel, Vip, Workload, WorkloadType, WorkloadUid,
    },
};
use proptest::prelude::*;

use super::{
    policy::{from_authorization, to_authorization},
    workload::{Address, from_address, service_address, to_workload, workload_address},
    *,
};
use crate::api::istio::{security, workload as pb};

fn gateway_by_name() -> GatewayAddress {
    GatewayAddress { destination: GatewayDestination::Hostname(service_name("waypoint")), hbone_port: 15008 }
}

fn gateway_by_address() -> GatewayAddress {
    let at = NetworkAddress { network: "far".into(), address: "fd00::9".parse().unwrap() };
    GatewayAddress { destination: GatewayDestination::Address(at), hbone_port: 15009 }
}

fn ports() -> Vec<PortMapping> {
    use AppProtocol::{Grpc, Http2, Http11, Tcp, Tls, Unknown};
    let port = |(n, app_protocol): (u16, AppProtocol)| PortMapping {
        service_port: 80 + n,
        target_port: 8080 + n,
        app_protocol,
    };
    (0..).zip([Unknown, Http11, Http2, Grpc, Tcp, Tls]).map(port).collect()
}

/// No field has its default.
fn full_workload() -> Workload {
    let mut w = Workload::new(WorkloadUid::new("west//Pod/shop/web-1"), "shop", "web-1");
    w.addresses = vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
    w.hostname = "web.example".into();
    w.network = "near".into();
    w.tunnel = Tunnel::Hbone;
    w.trust_domain = "mesh.example".into();
    w.service_account = "web".into();
    w.waypoint = Some(gateway_by_name());
    w.network_gateway = Some(gateway_by_address());
    w.node = "node-a".into();
    w.canonical_name = "web".into();
    w.canonical_revision = "v2".into();
    w.workload_type = WorkloadType::Job;
    w.workload_name = "web-batch".into();
    w.native_tunnel = true;
    w.policies = vec![PolicyName::new("shop", "a"), PolicyName::new("", "global")];
    w.health = Health::Unhealthy;
    w.cluster = "west".into();
    w.services = [(service_name("web"), ports()), (service_name("named"), vec![])].into_iter().collect();
    w.application_tunnel = Some(ApplicationTunnel { proxy_protocol: true, port: Some(15088) });
    w.locality = Locality { region: "r".into(), zone: "z".into(), subzone: "s".into() };
    w.host_network = true;
    w.capacity = 7;
    w
}

fn full_service() -> Service {
    use Scope::{Cluster, Network, Node, Region, Subzone, Zone};
    let mut s = Service::new(ServiceName::new("shop", "web.shop.svc.cluster.local"), "web");
    let vip = |network: &str, range: &str| Vip { network: network.into(), range: range.parse().unwrap() };
    s.vips = vec![vip("", "10.96.0.1/32"), vip("far", "fd00:96::1/128"), vip("", "240.0.0.0/4")];
    s.ports = ports();
    s.subject_alt_names = vec![identity("web")];
    s.waypoint = Some(gateway_by_address());
    s.weighted_waypoints = vec![(gateway_by_name(), 9), (gateway_by_address(), 1)];
    s.load_balancing = LoadBalancing {
        mode: LoadBalancingMode::Failover,
        preference: vec![Network, Region, Zone, Subzone, Node, Cluster],
        allow_unhealthy: true,
        sticky: true,
    };
    s.ip_families = IpFamilies::Dual;
    s.canonical = true;
    s.namespace_only = true;
    s
}

fn full_match() -> L4Match {
    let texts = |base: &str| {
        let of = |form: fn(std::sync::Arc<str>) -> StringMatch| form(base.into());
        let forms = [of(StringMatch::Exact), of(StringMatch::Prefix), of(StringMatch::Suffix)];
        forms.into_iter().chain([StringMatch::Presence]).collect::<Vec<_>>()
    };
    let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect();
    let account = |name: &str| ServiceAccountMatch { namespace: "shop".into(), service_account: name.into() };
    L4Match {
        namespaces: texts("a"),
        not_namespaces: texts("b"),
        principals: texts("c"),
        not_principals: texts("d"),
        source_ips: nets(&["10.0.0.0/8", "fd00::/16"]),
        not_source_ips: nets(&["10.1.0.0/16"]),
        destination_ips: nets(&["0.0.0.0/0", "::/0"]),
        not_destination_ips: nets(&["192.0.2.1/32"]),
        destination_ports: vec![0, 80, 65535],
        not_destination_ports: vec![443],
        service_accounts: vec![account("web"), account("api")],
        not_service_accounts: vec![account("mallory")],
    }
}

fn workload_again(w: &Workload) -> Result<Workload, WireError> {
    match from_address(workload_address(w))? {
        Address::Workload(again) => Ok(again),
        Address::Service(other) => panic!("{other:?}"),
    }
}

fn service_again(s: &Service) -> Service {
    match from_address(service_address(s)).unwrap() {
        Address::Service(again) => again,
        Address::Workload(other) => panic!("{other:?}"),
    }
}

#[test]
fn every_field_of_a_workload_survives_the_wire() {
    let mut w = full_workload();
    assert_eq!(workload_again(&w), Ok(w.clone()));
    for kind in [WorkloadType::Deployment, WorkloadType::Cronjob, WorkloadType::Pod, WorkloadType::Job] {
        w.workload_type = kind;
        assert_eq!(workload_again(&w).unwrap().workload_type, kind);
    }
    for tunnel in [(false, None), (false, Some(1)), (true, None)] {
        w.application_tunnel = Some(ApplicationTunnel { proxy_protocol: tunnel.0, port: tunnel.1 });
        assert_eq!(workload_again(&w).unwrap().application_tunnel, w.application_tunnel);
    }
    w.capacity = 0;
    assert_eq!(workload_again(&w).unwrap().capacity, 0, "nobody is to be sent there: not the default 1");
    let plain = Workload::new(WorkloadUid::new("u"), "shop", "bare");
    assert_eq!(workload_again(&plain), Ok(plain.clone()));
}

#[test]
fn every_field_of_a_service_survives_the_wire() {
    let mut s = full_service();
    assert_eq!(service_again(&s), s);
    use LoadBalancingMode::{Any, Failover, Passthrough, Strict};
    for mode in [Any, Strict, Failover, Passthrough] {
        s.load_balancing = LoadBalancing { mode, ..LoadBalancing::default() };
        assert_eq!(service_again(&s).load_balancing, s.load_balancing);
    }
    for families in [IpFamilies::Automatic, IpFamilies::V4, IpFamilies::V6, IpFamilies::Dual] {
        s.ip_families = families;
        assert_eq!(service_again(&s).ip_families, families);
    }
    let bare = Service::new(service_name("bare"), "bare");
    assert_eq!(service_again(&bare), bare);
}

#[test]
fn every_field_of_an_l4_policy_survives_the_wire() {
    for scope in [PolicyScope::Global, PolicyScope::Namespace, PolicyScope::Workload] {
        for action in [PolicyAction::Allow, PolicyAction::Deny] {
            let mut full = policy("full", scope, action, full_match());
            full.dry_run = true;
            let also = L4Clause { matches: vec![L4Match::default(), full_match()] };
            full.rules.push(L4Rule { clauses: vec![also, L4Clause::default()] });
            full.rules.push(L4Rule::default());
            assert_eq!(from_authorization(&full.key.to_string(), to_authorization(&full)), Ok(full));
        }
    }
}

#[test]
fn what_istiod_leaves_out_has_ztunnels_defaults() {
    let sent = pb::Workload { uid: "u".into(), ..pb::Workload::default() };
    let address = |w| pb::Address { r#type: Some(pb::address::Type::Workload(w)) };
    let Ok(Address::Workload(w)) = from_address(address(sent)) else { panic!("refused") };
    assert_eq!(
        (&*w.trust_domain, &*w.service_account, &*w.cluster),
        ("cluster.local", "default", "Kubernetes")
    );
    assert_eq!((w.capacity, w.tunnel, w.health, w.host_network), (1, Tunnel::None, Health::Healthy, false));
    assert_eq!((&*w.canonical_name, &*w.canonical_revision, w.application_tunnel), ("", "", None));
    let mut gateway = to_workload(&full_workload());
    gateway.waypoint.as_mut().unwrap().hbone_mtls_port = 0;
    gateway.application_tunnel.as_mut().unwrap().port = 0;
    let Ok(Address::Workload(w)) = from_address(address(gateway)) else { panic!("refused") };
    assert_eq!(w.waypoint.unwrap().hbone_port, 15008);
    assert_eq!(w.application_tunnel.unwrap().port, None, "0: the port as it is");
    let mapped = pb::Workload {
        uid: "u".into(),
        addresses: vec!["::ffff:10.0.0.1".parse::<std::net::Ipv6Addr>().unwrap().octets().to_vec()],
        ..pb::Workload::default()
    };
    let Ok(Address::Workload(w)) = from_address(address(mapped)) else { panic!("refused") };
    assert_eq!(w.addresses, [IpAddr::from([10, 0, 0, 1])]);
    let service = pb::Service {
        hostname: "h".into(),
        namespace: "n".into(),
        visibility: 99,
        subject_alt_names: vec!["no identity".into(), identity("a").to_string()],
        ..pb::Service::default()
    };
    let wrapped = pb::Address { r#type: Some(pb::address::Type::Service(service)) };
    let Ok(Address::Service(s)) = from_address(wrapped) else { panic!("refused") };
    assert!(!s.namespace_only, "an unknown visibility is public");
    assert_eq!((s.load_balancing, s.subject_alt_names), (LoadBalancing::default(), vec![identity("a")]));
}

/// Changes a valid workload; the field that is refused.
fn refused_workload(change: impl FnOnce(&mut pb::Workload)) -> String {
    let mut w = to_workload(&full_workload());
    change(&mut w);
    from_address(pb::Address { r#type: Some(pb::address::Type::Workload(w)) }).unwrap_err().field
}

fn refused_service(change: impl FnOnce(&mut pb::Service)) -> String {
    let mut s = super::workload::to_service(&full_service());
    change(&mut s);
    from_address(pb::Address { r#type: Some(pb::address::Type::Service(s)) }).unwrap_err().field
}

#[test]
fn a_workload_that_cannot_be_valid_is_refused_with_the_field() {
    assert_eq!(refused_workload(|w| w.uid.clear()), "uid");
    let legacy = pb::TunnelProtocol::LegacyIstioMtls as i32;
    assert_eq!(refused_workload(|w| w.tunnel_protocol = legacy), "tunnel_protocol");
    assert_eq!(refused_workload(|w| w.tunnel_protocol = 77), "tunnel_protocol");
    assert_eq!(refused_workload(|w| w.workload_type = 77), "workload_type");
    assert_eq!(refused_workload(|w| w.status = 77), "status");
    assert_eq!(refused_workload(|w| w.network_mode = 77), "network_mode");
    for length in [0, 3, 5, 15, 17] {
        assert_eq!(refused_workload(|w| w.addresses.push(vec![1; length])), "addresses");
    }
    assert_eq!(
        refused_workload(|w| w.authorization_policies.push("no-slash".into())),
        "authorization_policies"
    );
    assert_eq!(
        refused_workload(|w| drop(w.services.insert("no-slash".into(), pb::PortList::default()))),
        "services"
    );
    let port = pb::Port { service_port: 65536, ..pb::Port::default() };
    let list = pb::PortList { ports: vec![port] };
    assert_eq!(refused_workload(|w| drop(w.services.insert("n/h".into(), list))), "services");
    assert_eq!(refused_workload(|w| w.waypoint = Some(pb::GatewayAddress::default())), "waypoint");
    assert_eq!(
        refused_workload(|w| w.network_gateway = Some(pb::GatewayAddress::default())),
        "network_gateway"
    );
    let far = |w: &mut pb::Workload| w.waypoint.as_mut().unwrap().hbone_mtls_port = 70000;
    assert_eq!(refused_workload(far), "waypoint.hbone_mtls_port");
    let protocol = |w: &mut pb::Workload| w.application_tunnel.as_mut().unwrap().protocol = 9;
    assert_eq!(refused_workload(protocol), "application_tunnel.protocol");
    assert_eq!(from_address(pb::Address::default()).unwrap_err().field, "type");
}

#[test]
fn a_service_that_cannot_be_valid_is_refused_with_the_field() {
    assert_eq!(refused_service(|s| s.hostname.clear()), "hostname");
    assert_eq!(refused_service(|s| s.ip_families = 9), "ip_families");
    assert_eq!(refused_service(|s| s.addresses[0].address.push(1)), "addresses");
    assert_eq!(refused_service(|s| s.addresses[0].length = Some(33)), "addresses");
    assert_eq!(refused_service(|s| s.addresses[1].length = Some(129)), "addresses");
    assert_eq!(refused_service(|s| s.addresses[0].length = Some(u32::MAX)), "addresses");
    assert_eq!(refused_service(|s| s.ports[0].target_port = 65536), "ports");
    assert_eq!(refused_service(|s| s.weighted_waypoints[0].destination = None), "weighted_waypoints");
    let balancing = |s: &mut pb::Service| s.load_balancing.as_mut().unwrap().mode = 9;
    assert_eq!(refused_service(balancing), "load_balancing.mode");
    let preference = |s: &mut pb::Service| s.load_balancing.as_mut().unwrap().routing_preference = vec![0];
    assert_eq!(refused_service(preference), "load_balancing.routing_preference");
    let health = |s: &mut pb::Service| s.load_balancing.as_mut().unwrap().health_policy = 9;
    assert_eq!(refused_service(health), "load_balancing.health_policy");
}

#[test]
fn an_l4_policy_that_cannot_be_valid_is_refused_with_the_field() {
    let refused = |change: &dyn Fn(&mut security::Authorization)| {
        let full = policy("full", PolicyScope::Namespace, PolicyAction::Deny, full_match());
        let mut wire = to_authorization(&full);
        change(&mut wire);
        from_authorization("default/full", wire).unwrap_err().field
    };
    fn block(p: &mut security::Authorization) -> &mut security::Match {
        &mut p.rules[0].clauses[0].matches[0]
    }
    assert_eq!(refused(&|p| p.scope = 9), "scope");
    assert_eq!(refused(&|p| p.action = 9), "action");
    assert_eq!(refused(&|p| block(p).principals.push(security::StringMatch::default())), "principals");
    assert_eq!(refused(&|p| block(p).source_ips[0].address.push(1)), "source_ips");
    assert_eq!(refused(&|p| block(p).not_source_ips[0].length = 33), "not_source_ips");
    assert_eq!(refused(&|p| block(p).destination_ips[1].length = 129), "destination_ips");
    assert_eq!(refused(&|p| block(p).destination_ports.push(65536)), "destination_ports");
    assert_eq!(refused(&|p| block(p).not_destination_ports.push(u32::MAX)), "not_destination_ports");
    let named = from_authorization("no-slash", security::Authorization::default());
    assert_eq!(named.unwrap_err().field, "name");
}

fn any_text() -> impl Strategy<Value = StringMatch> {
    prop_oneof![
        ".{0,8}".prop_map(|t| StringMatch::Exact(t.into())),
        ".{0,8}".prop_map(|t| StringMatch::Prefix(t.into())),
        ".{0,8}".prop_map(|t| StringMatch::Suffix(t.into())),
        Just(StringMatch::Presence),
    ]
}

fn any_ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<[u8; 16]>().prop_map(|octets| IpAddr::from(octets).to_canonical()),
    ]
}

fn any_net() -> impl Strategy<Value = ipnet::IpNet> {
    (any_ip(), 0..=128u8).prop_map(|(ip, length)| {
        ipnet::IpNet::new(ip, length.min(if ip.is_ipv4() { 32 } else { 128 })).unwrap()
    })
}

proptest! {
    #[test]
    fn any_valid_l4_policy_survives_the_wire(
        texts in prop::collection::vec(any_text(), 0..4),
        nets in prop::collection::vec(any_net(), 0..4),
        ports in prop::collection::vec(any::<u16>(), 0..4),
    ) {
        let block = L4Match {
            principals: texts.clone(), not_namespaces: texts, source_ips: nets.clone(),
            not_destination_ips: nets, destination_ports: ports, ..L4Match::default()
        };
        let sent = policy("p", PolicyScope::Global, PolicyAction::Deny, block);
        prop_assert_eq!(from_authorization("default/p", to_authorization(&sent)), Ok::<Policy, WireError>(sent));
    }

    #[test]
    fn any_addresses_ports_and_weights_of_a_workload_survive_the_wire(
        addresses in prop::collection::vec(any_ip(), 0..4),
        ports in prop::collection::vec(any::<(u16, u16)>(), 0..4),
        capacity in any::<u32>(),
    ) {
        let mut sent = Workload { addresses, capacity, ..full_workload() };
        let mapping = |(service_port, target_port)| PortMapping {
            service_port, target_port, app_protocol: AppProtocol::Tcp,
        };
        sent.services.insert(service_name("any"), ports.into_iter().map(mapping).collect());
        prop_assert_eq!(workload_again(&sent), Ok(sent.clone()));
    }
}
