//! What the agent's admin endpoint shows beside health and metrics: `/debug`, and the kernel's figures.

use std::{collections::BTreeMap, fmt::Write, sync::Arc};

use mesh_core::{explain, snapshot::Snapshot};
use mesh_net::{
    admin::{Admin, Answer},
    store::SnapshotStore,
    task::{Drain, Ready},
    xds::XdsStatus,
};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    bpf::{Bpf, BpfError, MapFill, ProgramStats},
    registry::Registry,
    serve,
};

/// Connections that `/debug/connections` shows of each worker.
const SHOWN: usize = 1000;

/// What is shown.
#[derive(Clone)]
pub struct View {
    /// Name of the node.
    pub node: Arc<str>,
    /// What is awaited.
    pub ready: Ready,
    /// Asked to end when the agent drains.
    pub stop: Drain,
    /// Configuration.
    pub store: Arc<SnapshotStore>,
    /// Pods of the node.
    pub registry: Registry,
    /// Data threads.
    pub workers: Vec<serve::Handle>,
    /// The kernel side.
    pub bpf: Arc<Bpf>,
    /// The control plane's stream.
    pub xds: watch::Receiver<XdsStatus>,
}

impl View {
    /// Adds it to an endpoint.
    pub fn onto(self, admin: Admin) -> Admin {
        let figures = self.clone();
        let answers = Arc::new(self);
        admin.with_figures(move |out| figures.figures(out)).with_handler(move |path, query| {
            let view = answers.clone();
            async move { view.answer(&path, query.as_deref()).await }
        })
    }

    async fn answer(&self, path: &str, query: Option<&str>) -> Option<Answer> {
        Some(match path {
            "/debug/config" => Answer::json(&self.config()),
            "/debug/snapshot" => Answer::json(&self.store.current().dump()),
            "/debug/connections" => Answer::json(&self.connections().await),
            "/debug/explain" => self.explained(query.unwrap_or_default()),
            _ => return None,
        })
    }

    /// Figures that the kernel keeps itself: read when somebody asks.
    fn figures(&self, out: &mut String) {
        let mut family = |name: &str, kind: &str, help: &str, lines: Vec<(String, f64)>| {
            let _ = writeln!(out, "# HELP culvert_{name} {help}\n# TYPE culvert_{name} {kind}");
            for (labels, value) in lines {
                let _ = writeln!(out, "culvert_{name}{{{labels}}} {value}");
            }
        };
        if let Ok(programs) = self.bpf.program_stats() {
            let lines = |value: &dyn Fn(&ProgramStats) -> f64| {
                programs.iter().map(|p| (format!("program=\"{}\"", p.name), value(p))).collect::<Vec<_>>()
            };
            let runs = lines(&|p| p.runs as f64);
            family("bpf_program_runs_total", "counter", "Runs of an eBPF program", runs);
            let time = lines(&|p| p.time.as_secs_f64());
            family("bpf_program_seconds_total", "counter", "Time spent in an eBPF program", time);
            let size = lines(&|p| p.memory_bytes as f64);
            family("bpf_program_memory_bytes", "gauge", "Kernel memory of an eBPF program", size);
        }
        if let Ok(fill) = self.bpf.maps.fill() {
            let lines = |value: &dyn Fn(&MapFill) -> f64| {
                fill.iter().map(|m| (format!("map=\"{}\"", m.map), value(m))).collect::<Vec<_>>()
            };
            family("bpf_map_entries", "gauge", "Entries of a kernel table", lines(&|m| m.entries as f64));
            let capacity = lines(&|m| f64::from(m.capacity));
            family("bpf_map_capacity", "gauge", "Entries that a kernel table can hold", capacity);
        }
        if let Ok(sites) = self.bpf.maps.counters() {
            let lines = sites.iter().map(|(site, n)| (format!("site=\"{site}\""), *n as f64)).collect();
            family("bpf_events_total", "counter", "What the eBPF programs did and refused, by site", lines);
        }
        let mut states = BTreeMap::<String, u32>::new();
        for status in self.registry.all().into_values() {
            let state = status.label();
            *states.entry(state.as_str().unwrap_or_default().to_owned()).or_default() += 1;
        }
        let pods = states.iter().map(|(state, n)| (format!("state=\"{state}\""), f64::from(*n))).collect();
        family("pods", "gauge", "Pods of this node by enrolment", pods);
        let xds = self.xds.borrow();
        let connected = vec![(String::new(), f64::from(u8::from(xds.connected)))];
        family("xds_connected", "gauge", "Whether the control plane's stream is open", connected);
        let refused = vec![(String::new(), xds.refused.len() as f64)];
        family(
            "xds_refused_resources",
            "gauge",
            "Resources that were refused and not replaced since",
            refused,
        );
    }

    fn config(&self) -> Value {
        let snapshot = self.store.current();
        let awaiting = self.ready.pending();
        let xds = self.xds.borrow().clone();
        json!({
            "node": self.node,
            "version": env!("CARGO_PKG_VERSION"),
            "ready": awaiting.is_empty() && !self.stop.is_asked(),
            "awaiting": awaiting,
            "snapshot": {
                "version": snapshot.version(),
                "complete": snapshot.is_complete(),
                "from_disk": self.store.is_from_disk(),
                "workloads": snapshot.workload_count(),
                "services": snapshot.services().count(),
                "policies": snapshot.policies().count(),
                // All of it can be hundreds of megabytes: who wants it asks for it.
                "objects": "/debug/snapshot",
            },
            "control": {
                "connected": xds.connected,
                "connections": xds.connections,
                "refused": xds.refused,
                "last_error": xds.last_error,
            },
            "pods": self.registry.show(),
            "kernel": kernel(&self.bpf).unwrap_or_else(|error| json!({"error": error.to_string()})),
        })
    }

    async fn connections(&self) -> Value {
        let (mut flows, mut open, mut tunnels) = (Vec::new(), 0, 0);
        for worker in &self.workers {
            let shown = worker.show(SHOWN).await;
            flows.extend(shown.flows);
            open += shown.open;
            tunnels += shown.tunnels;
        }
        json!({"open": open, "tunnels": tunnels, "connections": flows})
    }

    fn explained(&self, query: &str) -> Answer {
        match self.explain(query) {
            Ok(value) => Answer::json(&value),
            Err(error) => Answer { status: 404, ..Answer::json(&json!({"error": error})) },
        }
    }

    fn explain(&self, query: &str) -> Result<Value, String> {
        let asked = |name| parameter(query, name).ok_or_else(|| format!("the query needs {name}="));
        let (from, to) = (asked("source")?, asked("destination")?);
        let snapshot: Arc<Snapshot> = self.store.current();
        let source =
            explain::find_source(&snapshot, &from).ok_or_else(|| format!("no workload {from} is known"))?;
        let pods = self.registry.all();
        let status =
            pods.values()
                .find(|pod| source.addresses.iter().any(|ip| pod.addresses.contains(ip)))
                .ok_or_else(|| format!("pod {}/{} is not on this node", source.namespace, source.name))?;
        let destination = explain::find_destination(&snapshot, source, &to)
            .ok_or_else(|| format!("no destination {to} is known"))?;
        let explanation = explain::explain(&snapshot, source, destination, &explain::any_endpoint);
        let entries = self.bpf.maps.pods().map_err(|error| error.to_string())?;
        let entry = match entries.iter().find(|pod| Some(pod.netns) == status.cookie) {
            Some(pod) => json!({
                "table": "PODS",
                "entry": format!("netns cookie {}", pod.netns),
                "detail": format!("{:?}, addresses {:?}", pod.state, status.addresses).to_lowercase(),
            }),
            None => json!({"table": "PODS", "entry": "none", "detail": "the pod is not captured"}),
        };
        Ok(json!({"node": self.node, "explanation": explanation, "kernel": [entry]}))
    }
}

/// A value of a query, decoded.
fn parameter(query: &str, name: &str) -> Option<String> {
    let value = query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name)?.1;
    let spaced = value.replace('+', " ");
    Some(percent_encoding::percent_decode_str(&spaced).decode_utf8_lossy().into_owned())
}

fn kernel(bpf: &Bpf) -> Result<Value, BpfError> {
    let counters: serde_json::Map<_, _> =
        bpf.maps.counters()?.into_iter().map(|(site, count)| (site.to_owned(), json!(count))).collect();
    Ok(json!({
        "pods": bpf.maps.pods()?,
        "tables": bpf.maps.fill()?,
        "entries": bpf.maps.dump()?,
        "counters": counters,
        "programs": bpf.program_stats()?,
    }))
}
