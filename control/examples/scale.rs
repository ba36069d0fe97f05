//! What one change costs in a large mesh: `cargo run --release -p control --example scale`.
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on fails")]

use std::time::{Duration, Instant};

use control::{
    all_findings,
    compile::{Options, compile},
    memory::Memory,
    publish::Published,
    source::{
        Store,
        api::Change,
        kinds::{KINDS, Kind},
    },
};
use serde_json::{Value, json};

const PODS: usize = 5000;
const SERVICES: usize = 500;
const NAMESPACES: usize = 50;

fn kind(known: &str) -> &'static Kind {
    KINDS.iter().find(|kind| kind.known == known).unwrap()
}

fn pod(n: usize, ready: bool) -> Value {
    let (service, namespace) = (n % SERVICES, n % NAMESPACES);
    json!({"metadata": {"name": format!("pod-{n}"), "namespace": format!("ns-{namespace}"), "uid": n.to_string(),
            "labels": {"app": format!("svc-{service}"), "version": "v1", "pod-template-hash": "abc"},
            "annotations": {"ambient.istio.io/redirection": "enabled"},
            "ownerReferences": [{"kind": "ReplicaSet", "name": format!("svc-{service}-abc")}]},
        "spec": {"nodeName": format!("node-{}", n % 100), "serviceAccountName": format!("svc-{service}"),
                 "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIP": format!("10.{}.{}.{}", n / 60_000, n / 250 % 250, n % 250 + 1),
                   "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}})
}

fn service(n: usize) -> Value {
    json!({"metadata": {"name": format!("svc-{n}"), "namespace": format!("ns-{}", n % NAMESPACES)},
        "spec": {"clusterIP": format!("10.96.{}.{}", n / 250, n % 250 + 1), "selector": {"app": format!("svc-{n}")},
                 "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}})
}

fn route(n: usize) -> Value {
    let host = format!("svc-{n}");
    json!({"metadata": {"name": host, "namespace": format!("ns-{}", n % NAMESPACES), "generation": 1},
        "spec": {"hosts": [host], "http": [{"route": [{"destination": {"host": host}}]}]}})
}

struct Mesh {
    store: Store,
    memory: Memory,
    published: Published,
}

impl Mesh {
    /// Compiles and publishes; how long each took.
    fn build(&mut self) -> (Duration, Duration) {
        let start = Instant::now();
        let compiled = compile(&self.store, &Options::default(), &mut self.memory);
        let compiling = start.elapsed();
        let findings = all_findings(&self.store, &compiled);
        self.published = Published::next(&self.published, &self.store, compiled, findings);
        (compiling, start.elapsed() - compiling)
    }
}

fn main() {
    let mut mesh = Mesh {
        store: Store::default().on_kubernetes(false),
        memory: Memory::new(control::SERVICE_CIDR, None),
        published: Published::default(),
    };
    let start = Instant::now();
    mesh.store.apply(Change::Present(KINDS.iter().collect()));
    for (known, objects) in [
        ("Service", (0..SERVICES).map(service).collect::<Vec<_>>()),
        ("Pod", (0..PODS).map(|n| pod(n, true)).collect()),
        ("VirtualService", (0..SERVICES / 5).map(route).collect()),
    ] {
        for object in objects {
            mesh.store.apply(Change::Applied(kind(known), object));
        }
    }
    println!("reading {PODS} pods and {SERVICES} services: {:?}", start.elapsed());
    mesh.store.read = true;
    println!("first compilation and encoding: {:?}", mesh.build());
    for n in 0..5 {
        let start = Instant::now();
        assert!(mesh.store.apply(Change::Applied(kind("Pod"), pod(n, false))));
        let reading = start.elapsed();
        let before = mesh.published.version;
        println!("one pod: reading {reading:?}, compilation and encoding {:?}", mesh.build());
        assert_eq!(mesh.published.version, before + 1);
    }
    let start = Instant::now();
    assert!(!mesh.store.apply(Change::Applied(kind("Pod"), pod(0, false))), "it says nothing new");
    println!("a heartbeat: {:?}", start.elapsed());
}
