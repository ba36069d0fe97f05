//! Health, metrics and `/debug`, over TCP and over a Unix socket.

use std::{fmt::Write, net::SocketAddr, path::Path, sync::Arc};

use anyhow::Context;
use axum::{
    Json, Router,
    extract::{Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use mesh_core::explain;
use mesh_net::{
    store::SnapshotStore,
    task::{Drain, Ready},
    xds::XdsStatus,
};
use prometheus::{Registry as Metrics, TextEncoder};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
};

use crate::{
    bpf::{Bpf, BpfError},
    registry::Registry,
    worker,
};

/// Connections that `/debug/connections` shows of each worker.
const SHOWN: usize = 1000;

/// What the endpoints show.
#[derive(Clone)]
pub struct Admin {
    /// Name of the node.
    pub node: Arc<str>,
    /// Metrics.
    pub metrics: Metrics,
    /// What is awaited.
    pub ready: Ready,
    /// Asked to end when the agent drains.
    pub stop: Drain,
    /// Configuration.
    pub store: Arc<SnapshotStore>,
    /// Pods of the node.
    pub registry: Registry,
    /// Data threads.
    pub workers: Vec<worker::Handle>,
    /// The kernel side.
    pub bpf: Arc<Bpf>,
    /// The control plane's stream.
    pub xds: watch::Receiver<XdsStatus>,
}

/// Starts serving.
///
/// # Errors
/// The port or the socket cannot be bound.
pub async fn start(admin: Admin, address: SocketAddr, socket: Option<&Path>) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/healthz/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/stats/prometheus", get(metrics))
        .route("/debug/config", get(config))
        .route("/debug/snapshot", get(snapshot))
        .route("/debug/connections", get(connections))
        .route("/debug/explain", get(explained))
        .with_state(admin);
    let listener = TcpListener::bind(address).await.with_context(|| format!("admin port {address}"))?;
    tokio::spawn(serve(axum::serve(listener, router.clone()).into_future()));
    if let Some(path) = socket {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("admin socket {}", path.display()))?;
        }
        // Left by a process that was killed.
        let _ = std::fs::remove_file(path);
        let listener =
            UnixListener::bind(path).with_context(|| format!("admin socket {}", path.display()))?;
        tokio::spawn(serve(axum::serve(listener, router).into_future()));
    }
    Ok(())
}

async fn serve(server: impl Future<Output = std::io::Result<()>>) {
    if let Err(error) = server.await {
        tracing::error!(%error, "admin endpoint ended");
    }
}

async fn ready(State(admin): State<Admin>) -> (StatusCode, String) {
    match admin.ready.pending() {
        _ if admin.stop.is_asked() => (StatusCode::SERVICE_UNAVAILABLE, "draining\n".into()),
        list if list.is_empty() => (StatusCode::OK, "ready\n".into()),
        list => (StatusCode::SERVICE_UNAVAILABLE, format!("awaiting {}\n", list.join(", "))),
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let encoded = TextEncoder::new().encode_to_string(&admin.metrics.gather());
    match encoded {
        Ok(mut text) => {
            kernel_metrics(&admin, &mut text);
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Figures that the kernel keeps itself: read when somebody asks.
fn kernel_metrics(admin: &Admin, out: &mut String) {
    let mut family = |name: &str, kind: &str, help: &str, lines: Vec<(String, f64)>| {
        let _ = writeln!(out, "# HELP culvert_{name} {help}\n# TYPE culvert_{name} {kind}");
        for (labels, value) in lines {
            let _ = writeln!(out, "culvert_{name}{{{labels}}} {value}");
        }
    };
    if let Ok(programs) = admin.bpf.program_stats() {
        let lines = |value: &dyn Fn(&crate::bpf::ProgramStats) -> f64| {
            programs.iter().map(|p| (format!("program=\"{}\"", p.name), value(p))).collect::<Vec<_>>()
        };
        let runs = lines(&|p| p.runs as f64);
        family("bpf_program_runs_total", "counter", "Runs of an eBPF program", runs);
        let time = lines(&|p| p.time.as_secs_f64());
        family("bpf_program_seconds_total", "counter", "Time spent in an eBPF program", time);
        let size = lines(&|p| p.memory_bytes as f64);
        family("bpf_program_memory_bytes", "gauge", "Kernel memory of an eBPF program", size);
    }
    if let Ok(fill) = admin.bpf.maps.fill() {
        let lines = |value: &dyn Fn(&crate::bpf::MapFill) -> f64| {
            fill.iter().map(|m| (format!("map=\"{}\"", m.map), value(m))).collect::<Vec<_>>()
        };
        family("bpf_map_entries", "gauge", "Entries of a kernel table", lines(&|m| m.entries as f64));
        let capacity = lines(&|m| f64::from(m.capacity));
        family("bpf_map_capacity", "gauge", "Entries that a kernel table can hold", capacity);
    }
    if let Ok(sites) = admin.bpf.maps.counters() {
        let lines = sites.iter().map(|(site, n)| (format!("site=\"{site}\""), *n as f64)).collect();
        family("bpf_events_total", "counter", "What the eBPF programs did and refused, by site", lines);
    }
    let mut states = std::collections::BTreeMap::<String, u32>::new();
    for status in admin.registry.all().into_values() {
        let state = status.state.map_or_else(|| json!("ignored"), |state| json!(state));
        *states.entry(state.as_str().unwrap_or_default().to_owned()).or_default() += 1;
    }
    let pods = states.iter().map(|(state, n)| (format!("state=\"{state}\""), f64::from(*n))).collect();
    family("pods", "gauge", "Pods of this node by enrolment", pods);
    let xds = admin.xds.borrow();
    let connected = vec![(String::new(), f64::from(u8::from(xds.connected)))];
    family("xds_connected", "gauge", "Whether the control plane's stream is open", connected);
    let refused = vec![(String::new(), xds.refused.len() as f64)];
    family("xds_refused_resources", "gauge", "Resources that were refused and not replaced since", refused);
}

async fn config(State(admin): State<Admin>) -> Json<Value> {
    let snapshot = admin.store.current();
    let awaiting = admin.ready.pending();
    let xds = admin.xds.borrow().clone();
    Json(json!({
        "node": admin.node,
        "version": env!("CARGO_PKG_VERSION"),
        "ready": awaiting.is_empty() && !admin.stop.is_asked(),
        "awaiting": awaiting,
        "snapshot": {
            "version": snapshot.version(),
            "complete": snapshot.is_complete(),
            "workloads": snapshot.workload_count(),
            "services": snapshot.services().count(),
            "policies": snapshot.policies().count(),
        },
        "control": {
            "connected": xds.connected,
            "connections": xds.connections,
            "refused": xds.refused,
            "last_error": xds.last_error,
        },
        "pods": admin.registry.show(),
        "kernel": kernel(&admin.bpf).unwrap_or_else(|error| json!({"error": error.to_string()})),
    }))
}

fn kernel(bpf: &Bpf) -> Result<Value, BpfError> {
    let counters: serde_json::Map<_, _> =
        bpf.maps.counters()?.into_iter().map(|(site, count)| (site.to_owned(), json!(count))).collect();
    Ok(json!({
        "pods": bpf.maps.pods()?,
        "tables": bpf.maps.fill()?,
        "counters": counters,
        "programs": bpf.program_stats()?,
    }))
}

async fn snapshot(State(admin): State<Admin>) -> Json<Value> {
    Json(serde_json::to_value(admin.store.current().dump()).unwrap_or_default())
}

async fn connections(State(admin): State<Admin>) -> Json<Value> {
    let (mut flows, mut open, mut tunnels) = (Vec::new(), 0, 0);
    for worker in &admin.workers {
        let shown = worker.show(SHOWN).await;
        flows.extend(shown.flows);
        open += shown.open;
        tunnels += shown.tunnels;
    }
    Json(json!({"open": open, "tunnels": tunnels, "connections": flows}))
}

/// What is to be explained.
#[derive(Deserialize)]
struct Question {
    source: String,
    destination: String,
}

async fn explained(State(admin): State<Admin>, Query(question): Query<Question>) -> Response {
    let snapshot = admin.store.current();
    let unknown = |error: String| (StatusCode::NOT_FOUND, Json(json!({"error": error}))).into_response();
    let Some(source) = explain::find_source(&snapshot, &question.source) else {
        return unknown(format!("no workload {} is known", question.source));
    };
    let pods = admin.registry.all();
    let Some(status) = pods.values().find(|s| source.addresses.iter().any(|ip| s.addresses.contains(ip)))
    else {
        return unknown(format!("pod {}/{} is not on this node", source.namespace, source.name));
    };
    let Some(destination) = explain::find_destination(&snapshot, source, &question.destination) else {
        return unknown(format!("no destination {} is known", question.destination));
    };
    let explanation = explain::explain(&snapshot, source, destination, &|_, _, _| Vec::new());
    let entries = match admin.bpf.maps.pods() {
        Ok(entries) => entries,
        Err(error) => return unknown(error.to_string()),
    };
    let entry = entries.iter().find(|pod| Some(pod.netns) == status.cookie);
    let kernel = match entry {
        Some(pod) => json!([{
            "table": "PODS",
            "entry": format!("netns cookie {}", pod.netns),
            "detail": format!("{:?}, addresses {:?}", pod.state, status.addresses).to_lowercase(),
        }]),
        None => json!([{"table": "PODS", "entry": "none", "detail": "the pod is not captured"}]),
    };
    Json(json!({"node": admin.node, "explanation": explanation, "kernel": kernel})).into_response()
}
