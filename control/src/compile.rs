//! Objects → what agents and waypoints are told (pure).

mod external;
mod l4;
mod l7;
mod services;
mod slices;
mod snapshot;
mod targets;
mod waypoints;
mod workloads;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_core::model::{
    GatewayAddress, GatewayDestination, Policy, PolicyName, Service, ServiceName, Workload, WorkloadUid,
    l7::{L7Policy, ServiceRoutes, WorkloadLabels},
};
use serde::Serialize;

use crate::{
    finding::{Problem, Severity},
    memory::Memory,
    object::{Body, Key, Labels, Meta, Object, WAYPOINT_CLASSES, stand_in},
    provision::{Owner, Place, Wanted, Waypoint},
    source::Store,
};

/// Settings of compilation.
#[derive(Debug, Clone)]
pub struct Options {
    /// Cluster id.
    pub cluster: Arc<str>,
    /// Trust domain.
    pub trust_domain: Arc<str>,
    /// Namespace of mesh-wide policies.
    pub root_namespace: Arc<str>,
    /// Gateways of class `istio-waypoint` make our waypoints too: for clusters without istiod.
    pub istio_waypoints: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cluster: "Kubernetes".into(),
            trust_domain: "cluster.local".into(),
            root_namespace: "istio-system".into(),
            istio_waypoints: false,
        }
    }
}

/// Everything that is pushed.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Compiled {
    /// Workloads.
    #[serde(serialize_with = "values")]
    pub workloads: BTreeMap<WorkloadUid, Workload>,
    /// Services.
    #[serde(serialize_with = "values")]
    pub services: BTreeMap<ServiceName, Service>,
    /// L4 policies.
    #[serde(serialize_with = "values")]
    pub policies: BTreeMap<PolicyName, Policy>,
    /// Routes.
    #[serde(serialize_with = "values")]
    pub routes: BTreeMap<ServiceName, ServiceRoutes>,
    /// L7 policies.
    #[serde(serialize_with = "values")]
    pub l7_policies: BTreeMap<PolicyName, L7Policy>,
    /// Labels.
    #[serde(serialize_with = "values")]
    pub labels: BTreeMap<WorkloadUid, WorkloadLabels>,
    /// Namespaces that need a waypoint of ours, and why.
    pub waypoints: BTreeMap<Arc<str>, String>,
    /// Waypoints that Gateways ask for.
    #[serde(skip)]
    pub gateways: Wanted,
    /// The waypoint that each service is meant for, also while it is still reached directly: that waypoint
    /// has the service's routes before the first connection comes.
    pub waypoint_of: BTreeMap<ServiceName, GatewayAddress>,
    /// What compilation has to say about objects.
    #[serde(skip)]
    pub notes: Vec<(Key, Problem)>,
}

impl Compiled {
    /// Every waypoint that there should be: those of Gateways, and ours where routes need one.
    pub fn wanted(&self) -> Wanted {
        let own = self.waypoints.iter().map(|(namespace, why)| {
            ((namespace.clone(), waypoints::OWN.into()), Waypoint { why: why.clone(), gateway: None })
        });
        own.chain(self.gateways.clone()).collect()
    }

    /// Notes that a waypoint cannot be made: at its Gateway, or at the namespace whose routes need it.
    pub fn not_made(&mut self, place: Place, reason: String) {
        let key = match self.gateways.contains_key(&place) {
            true => Key { kind: "Gateway".into(), namespace: place.0, name: place.1 },
            false => Key { kind: "Namespace".into(), namespace: "".into(), name: place.0 },
        };
        let remedy = "correct it; it is tried again by itself".into();
        let reason = format!("its waypoint cannot be made: {reason}");
        let problem =
            Problem { severity: Severity::Warning, field: String::new(), code: "not-made", reason, remedy };
        self.notes.push((key, problem));
    }
}

fn values<K, V: Serialize, S: serde::Serializer>(map: &BTreeMap<K, V>, s: S) -> Result<S::Ok, S::Error> {
    s.collect_seq(map.values())
}

/// Label that names the waypoint of a service, workload or namespace.
pub const USE_WAYPOINT: &str = "istio.io/use-waypoint";
/// Label that names the Gateway that a pod or service belongs to.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

type BackendsByLabel<'a> = BTreeMap<(Arc<str>, Arc<str>), Vec<services::Backend<'a>>>;

struct Context<'a> {
    store: &'a Store,
    options: &'a Options,
    /// The object behind each service.
    sources: BTreeMap<ServiceName, (&'a Key, &'a Object)>,
    /// Selectors by namespace and their first label, so that a pod is compared with few.
    backends: BTreeMap<Arc<str>, BackendsByLabel<'a>>,
    /// Endpoints of each service.
    endpoints: BTreeMap<ServiceName, Vec<WorkloadUid>>,
    /// Namespaces that have a service of a host name.
    namespaces: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// Services that need L7, and the object that says so.
    needs: BTreeMap<ServiceName, Key>,
    out: Compiled,
}

/// Compiles the objects of a folder.
pub fn compile(store: &Store, options: &Options, memory: &mut Memory) -> Compiled {
    let mut cx = Context {
        store,
        options,
        sources: BTreeMap::new(),
        backends: BTreeMap::new(),
        endpoints: BTreeMap::new(),
        namespaces: BTreeMap::new(),
        needs: BTreeMap::new(),
        out: Compiled::default(),
    };
    services::compile(&mut cx, &mut memory.vips);
    external::services(&mut cx, &mut memory.external);
    memory.vips.save();
    memory.external.save();
    workloads::compile(&mut cx);
    external::workloads(&mut cx);
    slices::compile(&mut cx);
    cx.index();
    l7::compile(&mut cx, &memory.routed);
    targets::compile(&mut cx, &memory.routed);
    l4::compile(&mut cx);
    waypoints::attach(&mut cx, &mut memory.routed);
    l4::require_waypoints(&mut cx);
    gateways(&mut cx);
    stand_ins(&mut cx);
    cx.out
}

/// Says what takes the place of refused policies (decision 0012).
fn stand_ins(cx: &mut Context<'_>) {
    for (key, stored) in cx.store.objects.iter().filter(|(_, stored)| stored.stand_in) {
        if let Some(effect) = stand_in::effect(&stored.object) {
            let reason = format!("is refused and has no earlier version: {effect}");
            cx.note(key, "", "closed", reason, "correct the errors of this object");
        }
    }
}

/// A Gateway of a waypoint class makes a waypoint of its name; one of another class is somebody else's.
fn gateways(cx: &mut Context<'_>) {
    for (key, object) in cx.each("Gateway") {
        let Body::Gateway(gateway) = &object.body else { continue };
        let ours = &*gateway.class == WAYPOINT_CLASSES[0]
            || (cx.options.istio_waypoints && &*gateway.class == WAYPOINT_CLASSES[1]);
        if ours {
            let owner = Owner { class: gateway.class.clone(), uid: object.meta.uid.clone() };
            let waypoint = Waypoint { why: format!("{key} asks for it"), gateway: Some(owner) };
            cx.out.gateways.insert((key.namespace.clone(), key.name.clone()), waypoint);
            continue;
        }
        let reason = format!("class {} is another controller's: nothing is made for it here", gateway.class);
        let remedy = match &*gateway.class {
            "istio-waypoint" => "start the control plane with --istio-waypoint-class if istiod is not there",
            _ => "nothing to do, unless a waypoint was meant: then its class is culvert-waypoint",
        };
        cx.problem(key, Severity::Info, "spec.gatewayClassName", "other-controller", reason, remedy);
    }
}

impl<'a> Context<'a> {
    fn each(&self, kind: &str) -> impl Iterator<Item = (&'a Key, &'a Object)> + use<'a> {
        let kind: Arc<str> = kind.into();
        let empty: Arc<str> = Arc::from("");
        let first = Key { kind: kind.clone(), namespace: empty.clone(), name: empty };
        self.store
            .objects
            .range(first..)
            .take_while(move |(key, _)| key.kind == kind)
            .map(|(key, stored)| (key, &stored.object))
    }

    /// Notes a selector; an empty one selects nothing.
    fn add_backend(&mut self, namespace: &Arc<str>, backend: services::Backend<'a>) {
        if let Some((label, value)) = backend.selector.first_key_value() {
            let first = (label.clone(), value.clone());
            self.backends.entry(namespace.clone()).or_default().entry(first).or_default().push(backend);
        }
    }

    /// Notes who backs which service and who has which host name, once all of them are there.
    fn index(&mut self) {
        for name in self.out.services.keys() {
            self.namespaces.entry(name.hostname.clone()).or_default().insert(name.namespace.clone());
        }
        for workload in self.out.workloads.values() {
            for (service, _) in &workload.services {
                self.endpoints.entry(service.clone()).or_default().push(workload.uid.clone());
            }
        }
    }

    fn endpoints(&self, service: &ServiceName) -> impl Iterator<Item = &Workload> {
        let uids = self.endpoints.get(service).map_or(&[][..], Vec::as_slice);
        uids.iter().filter_map(|uid| self.out.workloads.get(uid))
    }

    fn namespace(&self, namespace: &str) -> Option<&'a Meta> {
        let key = Key { kind: "Namespace".into(), namespace: "".into(), name: namespace.into() };
        self.store.objects.get(&key).map(|stored| &stored.object.meta)
    }

    fn namespace_labels(&self, namespace: &str) -> Option<&'a Labels> {
        self.namespace(namespace).map(|meta| &meta.labels)
    }

    fn host(namespace: &str, name: &str) -> ServiceName {
        ServiceName::new(namespace, format!("{name}.{namespace}.svc.cluster.local"))
    }

    fn waypoint_address(namespace: &str, name: &str) -> GatewayAddress {
        GatewayAddress {
            destination: GatewayDestination::Hostname(Self::host(namespace, name)),
            hbone_port: 15008,
        }
    }

    /// The waypoint that labels ask for: the object's own before its namespace's.
    fn labelled_waypoint(&self, namespace: &str, labels: &Labels) -> Option<GatewayAddress> {
        let of_namespace = self.namespace_labels(namespace);
        let from = if labels.contains_key(USE_WAYPOINT) { Some(labels) } else { of_namespace }?;
        let name = from.get(USE_WAYPOINT).filter(|name| &***name != "none")?;
        let place = from.get("istio.io/use-waypoint-namespace").map_or(namespace, |ns| ns);
        Some(Self::waypoint_address(place, name))
    }

    fn opted_out(&self, namespace: &str, labels: &Labels) -> bool {
        let label = labels.get(USE_WAYPOINT).or_else(|| self.namespace_labels(namespace)?.get(USE_WAYPOINT));
        label.is_some_and(|value| &**value == "none")
    }

    /// The full name of a host that an object of a namespace mentions: of several the namespace's own, and
    /// none that its owner keeps from others (`exportTo`).
    fn service_of(&self, host: &ServiceName, from: &Arc<str>) -> Option<ServiceName> {
        if self.out.services.contains_key(host) {
            return Some(host.clone());
        }
        let own = ServiceName::new(from.clone(), host.hostname.clone());
        let all = self.namespaces.get(&host.hostname)?;
        let names = all.iter().map(|namespace| ServiceName::new(namespace.clone(), host.hostname.clone()));
        let open = |name: &ServiceName| self.out.services.get(name).is_some_and(|s| !s.namespace_only);
        if all.contains(from) { Some(own) } else { names.into_iter().find(open) }
    }

    fn note(&mut self, key: &Key, field: &str, code: &'static str, reason: String, remedy: &'static str) {
        self.problem(key, Severity::Warning, field, code, reason, remedy);
    }

    fn problem(
        &mut self,
        key: &Key,
        severity: Severity,
        field: &str,
        code: &'static str,
        reason: String,
        remedy: &str,
    ) {
        let problem = Problem { severity, field: field.into(), code, reason, remedy: remedy.into() };
        self.out.notes.push((key.clone(), problem));
    }
}

/// Whether labels satisfy a selector.
fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Service accounts with a pod per node: for whom a node may ask certificates.
pub fn accounts(store: &Store) -> BTreeSet<(Arc<str>, Arc<str>, Arc<str>)> {
    store
        .objects
        .iter()
        .filter_map(|(key, stored)| match &stored.object.body {
            Body::Pod(pod) if !pod.finished => {
                Some((pod.node.clone(), key.namespace.clone(), pod.service_account.clone()))
            }
            _ => None,
        })
        .collect()
}
