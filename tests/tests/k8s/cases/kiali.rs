//! The labels that Kiali's graph reads; a series that lacks one is skipped silently.

use anyhow::{Context, Result, ensure};

use crate::{
    shop::{CLIENT, SHOP, URL},
    stage::{SYSTEM, Stage},
};

const COMMON: [&str; 12] = [
    "reporter",
    "source_workload",
    "source_workload_namespace",
    "source_canonical_service",
    "source_canonical_revision",
    "destination_workload",
    "destination_workload_namespace",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "destination_canonical_service",
    "destination_canonical_revision",
];
const REQUESTS: [&str; 3] = ["request_protocol", "response_code", "response_flags"];

/// Every series of the waypoint's requests and of the agents' bytes has every label, none empty.
pub fn metrics_of_waypoint_and_agents_keep_the_contract_with_kiali(stage: &mut Stage) -> Result<()> {
    stage.shop()?;
    stage.ask(SHOP, CLIENT, URL, 20)?;
    let waypoint = metrics(stage, SHOP, "gateway.networking.k8s.io/gateway-name=waypoint")?;
    let wanted: Vec<&str> = COMMON.iter().chain(&REQUESTS).copied().collect();
    whole(&waypoint, "istio_requests_total", &wanted)?;
    let agents = metrics(stage, SYSTEM, "app.kubernetes.io/name=culvert-agent")?;
    whole(&agents, "istio_tcp_sent_bytes_total", &COMMON)?;
    whole(&agents, "istio_tcp_connections_opened_total", &COMMON)
}

/// What all pods of a selection show.
fn metrics(stage: &Stage, namespace: &str, selector: &str) -> Result<String> {
    let pods = stage.cluster.get(&["-n", namespace, "pods", "-l", selector])?;
    let mut text = String::new();
    for pod in pods["items"].as_array().context("a list of pods")? {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}:15020/proxy/metrics");
        text.push_str(&stage.cluster.kubectl(&["get", "--raw", &path])?);
    }
    Ok(text)
}

fn whole(text: &str, metric: &str, labels: &[&str]) -> Result<()> {
    let start = format!("{metric}{{");
    let series: Vec<&str> = text.lines().filter(|line| line.starts_with(&start)).collect();
    ensure!(!series.is_empty(), "no series of {metric}");
    for line in series {
        for label in labels {
            let value = line.split(&format!("{label}=\"")).nth(1).and_then(|rest| rest.split('"').next());
            ensure!(value.is_some_and(|value| !value.is_empty()), "{label} is missing or empty in {line}");
        }
    }
    Ok(())
}
