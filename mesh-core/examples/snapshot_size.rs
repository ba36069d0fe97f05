//! Memory and time of a snapshot: `cargo run --release -p mesh-core --example snapshot_size [WORKLOADS]`.
//!
//! Prints resident memory per workload, the time to load, to change one workload, to look one up
//! and to plan a connection. Figures are kept in `docs/decisions`.

use std::{fs, hint::black_box, net::Ipv4Addr, sync::Arc, time::Instant};

use mesh_core::{
    balance::NoLoad,
    delta::Change,
    entropy::SplitMix64,
    fixtures::{backing, pod, pod_ref, port, service},
    model::Service,
    outbound::{OutboundFacts, plan},
    snapshot::Snapshot,
};

/// Resident memory in KiB; 0 where the system does not say.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn services() -> Vec<Service> {
    (0..1000u32)
        .map(|n| service(&format!("svc-{n}"), Ipv4Addr::from(0x0a60_0000 + n), &[port(80, 8080)]))
        .collect()
}

fn workload(n: u32, services: &[Service]) -> Change {
    let mut w = pod(&format!("deployment-{}-7d9c5b8f6-{n:05}", n % 1000), Ipv4Addr::from(0x0a00_0000 + n));
    w.service_account = format!("sa-{}", n % 1000).into();
    w.node = format!("node-{}", n % 500).into();
    w.workload_name = format!("deployment-{}", n % 1000).into();
    w.canonical_name = w.workload_name.clone();
    let backed = usize::try_from(n).unwrap_or(0) % services.len();
    Change::Workload(Arc::new(backing(w, &services[backed])))
}

fn main() {
    let count: u32 = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(100_000);
    let services = services();
    let before = resident();
    let started = Instant::now();
    let mut snapshot = Snapshot::new();
    snapshot.apply(services.iter().cloned().map(|s| Change::Service(Arc::new(s))));
    for first in (0..count).step_by(1000) {
        snapshot.apply((first..count.min(first + 1000)).map(|n| workload(n, &services)));
    }
    let loaded = started.elapsed();
    let used = resident() - before;
    println!(
        "workloads {count}: {} MiB, {} bytes each, loaded in {loaded:?}",
        used / 1024,
        used * 1024 / u64::from(count)
    );

    let started = Instant::now();
    for n in 0..1000 {
        let published = snapshot.clone();
        snapshot.apply([workload(n, &services)]);
        black_box(published);
    }
    println!("one change with a reader holding the old version: {:?}", started.elapsed() / 1000);

    let Some(source) = snapshot.workload_at(&"".into(), Ipv4Addr::from(0x0a00_0001).into()) else { return };
    let facts = OutboundFacts {
        pod: pod_ref(source),
        source: "10.0.0.1:40000".parse().expect("invariant: a literal address"),
        destination: "10.96.0.5:80".parse().expect("invariant: a literal address"),
    };
    let mut entropy = SplitMix64::new(1);
    let started = Instant::now();
    for _ in 0..100_000 {
        black_box(plan(&snapshot, &facts, &mut entropy, &NoLoad).is_ok());
    }
    println!("one plan (service of {} endpoints): {:?}", count / 1000, started.elapsed() / 100_000);
}
