//! A mesh as API objects: namespaces, fake nodes, services, pods, routes.

use std::{fmt, net::Ipv4Addr};

use anyhow::Result;
use mesh_core::model::WorkloadUid;
use serde_json::{Value, json};

use super::api::{Api, Write};

/// Services in a namespace.
const PER_NAMESPACE: u32 = 10;
/// Address of the first pod; others follow.
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 1);
/// Cluster id of the control plane.
pub const CLUSTER: &str = "Kubernetes";

/// How much there is of everything.
#[derive(Debug, Clone, Copy)]
pub struct Fleet {
    /// Pods.
    pub pods: u32,
    /// Services; a pod belongs to one of them.
    pub services: u32,
    /// Nodes.
    pub nodes: u32,
    /// VirtualServices.
    pub routes: u32,
}

impl fmt::Display for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pods, services, nodes, routes } = self;
        write!(f, "{pods} pods, {services} services, {nodes} nodes, {routes} routes")
    }
}

impl Fleet {
    fn namespaces(&self) -> u32 {
        self.services.div_ceil(PER_NAMESPACE)
    }

    /// Objects that are written.
    pub fn objects(&self) -> u32 {
        // A service has an account.
        self.namespaces() + self.nodes + 2 * self.services + self.pods + self.routes
    }

    /// The pods that there are at first.
    pub fn first_pods(&self) -> impl Iterator<Item = Pod> + use<> {
        let fleet = *self;
        (0..self.pods).map(move |serial| fleet.pod(serial))
    }

    /// A pod by its number, which no other pod ever has.
    pub fn pod(&self, serial: u32) -> Pod {
        Pod { serial, service: serial % self.services, node: serial % self.nodes, ready: true }
    }

    /// Writes everything.
    pub async fn create(&self, api: &Api) -> Result<()> {
        let namespace = |name: String| {
            let labels = json!({"istio.io/dataplane-mode": "ambient"});
            post("", "v1", "Namespace", "namespaces", json!({"name": name, "labels": labels}), json!({}))
        };
        let own = (0..self.namespaces()).map(|n| namespace(format!("ns-{n}")));
        api.write_all(own.chain([namespace(super::program::SYSTEM.into())]).map(|one| vec![one])).await?;
        let node = |n: u32| {
            let zone = format!("zone-{}", n % 3);
            let labels =
                json!({"topology.kubernetes.io/region": "here", "topology.kubernetes.io/zone": zone});
            let meta = json!({"name": format!("node-{n}"), "labels": labels});
            vec![post("", "v1", "Node", "nodes", meta, json!({}))]
        };
        api.write_all((0..self.nodes).map(node)).await?;
        api.write_all((0..self.services).map(service)).await?;
        api.write_all(self.first_pods().map(|pod| pod.create())).await?;
        api.write_all((0..self.routes).map(|n| vec![route(n)])).await
    }
}

/// A pod of the fleet.
#[derive(Debug, Clone)]
pub struct Pod {
    serial: u32,
    service: u32,
    node: u32,
    /// As the API server knows it.
    pub ready: bool,
}

impl Pod {
    fn name(&self) -> String {
        format!("svc-{}-5d9c7b8f6d-{}", self.service, self.serial)
    }

    fn path(&self) -> String {
        format!("/api/v1/namespaces/{}/pods/{}", namespace(self.service), self.name())
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(FIRST) + self.serial)
    }

    /// What clients call it.
    pub fn uid(&self) -> WorkloadUid {
        WorkloadUid::pod(CLUSTER, &namespace(self.service), &self.name())
    }

    /// Makes it, bound to its node, and gives it its address, as scheduler and kubelet do.
    pub fn create(&self) -> Vec<Write> {
        let name = format!("svc-{}", self.service);
        let hash = "5d9c7b8f6d";
        let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{name}-{hash}"),
            "uid": format!("00000000-0000-4000-8000-{:012x}", self.service), "controller": true});
        let labels = json!({"app": name, "version": "v1", "pod-template-hash": hash});
        let meta = json!({"name": self.name(), "labels": labels, "ownerReferences": [owner],
            "annotations": {"ambient.istio.io/redirection": "enabled"}});
        let container = json!({"name": "app", "image": "app",
            "ports": [{"name": "http", "containerPort": 8080}],
            "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}}});
        let spec = json!({"nodeName": format!("node-{}", self.node), "serviceAccountName": name,
            "containers": [container]});
        let made = post(&namespace(self.service), "v1", "Pod", "pods", meta, json!({"spec": spec}));
        vec![made, self.status()]
    }

    /// Writes its status.
    pub fn status(&self) -> Write {
        let ip = self.address().to_string();
        let is = if self.ready { "True" } else { "False" };
        let conditions = ["Initialized", "Ready", "ContainersReady"].map(|kind| {
            let status = if kind == "Initialized" { "True" } else { is };
            json!({"type": kind, "status": status})
        });
        let status =
            json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": conditions});
        Write::Patch(format!("{}/status", self.path()), json!({"status": status}))
    }

    /// Changes a label.
    pub fn label(&self, name: &str, value: &str) -> Write {
        Write::Patch(self.path(), json!({"metadata": {"labels": {name: value}}}))
    }

    /// Deletes it.
    pub fn delete(&self) -> Write {
        Write::Delete(self.path())
    }
}

fn namespace(service: u32) -> String {
    format!("ns-{}", service / PER_NAMESPACE)
}

/// A service, and the account of its pods.
fn service(n: u32) -> Vec<Write> {
    let meta = json!({"name": format!("svc-{n}")});
    let ports = json!([{"name": "http", "port": 80, "targetPort": "http"}]);
    let spec = json!({"spec": {"selector": {"app": format!("svc-{n}")}, "ports": ports}});
    vec![
        post(&namespace(n), "v1", "ServiceAccount", "serviceaccounts", meta.clone(), json!({})),
        post(&namespace(n), "v1", "Service", "services", meta, spec),
    ]
}

fn route(n: u32) -> Write {
    let host = format!("svc-{n}");
    let spec = json!({"spec": {"hosts": [host], "http": [{"route": [{"destination": {"host": host}}]}]}});
    let meta = json!({"name": host});
    post(&namespace(n), "networking.istio.io/v1", "VirtualService", "virtualservices", meta, spec)
}

fn post(namespace: &str, version: &str, kind: &str, plural: &str, meta: Value, rest: Value) -> Write {
    let group = if version.contains('/') { "apis" } else { "api" };
    let place = if namespace.is_empty() { String::new() } else { format!("namespaces/{namespace}/") };
    let mut object = rest;
    object["apiVersion"] = version.into();
    object["kind"] = kind.into();
    object["metadata"] = meta;
    Write::Post(format!("/{group}/{version}/{place}{plural}"), object)
}
