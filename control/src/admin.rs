//! Admin endpoint: health, metrics and `/debug`.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{publish::Published, push::Clients};

/// What the endpoint shows.
#[derive(Clone)]
pub struct Admin {
    /// What is current.
    pub current: watch::Receiver<Arc<Published>>,
    /// Who is connected.
    pub clients: Arc<Clients>,
    /// Certificates issued and refused.
    pub certificates: Arc<(AtomicU64, AtomicU64)>,
    /// Compilations, and microseconds of the last one.
    pub compilations: Arc<(AtomicU64, AtomicU64)>,
}

/// Routes of the endpoint.
pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/debug/config", get(config))
        .route("/debug/objects", get(objects))
        .route("/debug/clients", get(clients))
        .route("/debug/services", get(services))
        .with_state(admin)
}

async fn ready(State(admin): State<Admin>) -> (StatusCode, &'static str) {
    match admin.compilations.0.load(Ordering::Relaxed) {
        0 => (StatusCode::SERVICE_UNAVAILABLE, "awaits: first compilation of the folder\n"),
        _ => (StatusCode::OK, "ready\n"),
    }
}

async fn config(State(admin): State<Admin>) -> Json<Value> {
    Json(serde_json::to_value(&admin.current.borrow().compiled).unwrap_or_default())
}

async fn clients(State(admin): State<Admin>) -> Json<Value> {
    Json(json!(admin.clients.list()))
}

async fn objects(State(admin): State<Admin>) -> Json<Value> {
    let current = admin.current.borrow().clone();
    let listed: Vec<Value> = current
        .objects
        .iter()
        .map(|(key, file, line)| {
            let findings: Vec<_> = current.findings.iter().filter(|f| f.object == *key).collect();
            json!({"object": key, "file": file, "line": line, "findings": findings})
        })
        .collect();
    Json(json!({"objects": listed, "findings": current.findings, "waypoints": current.compiled.waypoints}))
}

async fn services(State(admin): State<Admin>) -> Json<Value> {
    let current = admin.current.borrow().clone();
    let listed = current.compiled.services.values().map(|s| {
        let vips: Vec<String> = s.vips.iter().map(|v| v.range.addr().to_string()).collect();
        let ports: Vec<u16> = s.ports.iter().map(|p| p.service_port).collect();
        json!({"name": s.name, "namespace": s.key.namespace, "hostname": s.key.hostname,
               "vip": vips.first(), "vips": vips, "ports": ports, "waypoint": s.waypoint})
    });
    Json(listed.collect())
}

async fn metrics(State(admin): State<Admin>) -> String {
    let current = admin.current.borrow().clone();
    let mut out = String::new();
    let mut line = |name: &str, labels: &str, value: u64| {
        let _ = writeln!(out, "culvert_control_{name}{labels} {value}");
    };
    let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
    for (key, _, _) in &current.objects {
        *kinds.entry(key.split(' ').next().unwrap_or_default()).or_default() += 1;
    }
    for (kind, count) in kinds {
        line("objects", &format!("{{kind=\"{kind}\"}}"), count);
    }
    let mut severities: BTreeMap<String, u64> =
        ["error", "warning", "info"].into_iter().map(|s| (s.to_string(), 0)).collect();
    for finding in &current.findings {
        *severities.entry(finding.severity.to_string()).or_default() += 1;
    }
    for (severity, count) in severities {
        line("findings", &format!("{{severity=\"{severity}\"}}"), count);
    }
    let list = admin.clients.list();
    line("clients", "", list.len() as u64);
    line("clients_refusing", "", list.iter().filter(|c| !c.refused.is_empty()).count() as u64);
    line("certificates_total", "{result=\"issued\"}", admin.certificates.0.load(Ordering::Relaxed));
    line("certificates_total", "{result=\"refused\"}", admin.certificates.1.load(Ordering::Relaxed));
    line("compilations_total", "", admin.compilations.0.load(Ordering::Relaxed));
    line("compilation_microseconds", "", admin.compilations.1.load(Ordering::Relaxed));
    out
}
