//! Whether the parts talk to each other: what agents and control plane say themselves.

use std::collections::BTreeSet;

use futures_util::{StreamExt, stream};
use serde_json::Value;

use super::finding::Finding;
use crate::{
    args::{self, RUN_DIR, lifecycle::Place},
    cluster::pod::{condition, text},
    contract::Client,
    endpoint::Endpoint,
    exit::Failure,
    live::{client::get_json, pods},
    manifest::{AGENT, CONTROL},
    status::{self, Mesh},
};

const AREA: &str = "mesh";
/// Replicas that are asked at the same time.
const AT_ONCE: usize = 8;
/// Problems that are named.
const NAMED: usize = 10;

/// Asks every program. `all` are the pods of Culvert's namespace.
///
/// # Errors
/// No program runs.
pub(super) async fn look(place: &Place, all: &[Value]) -> Result<Vec<Finding>, Failure> {
    let options = options(place);
    let mesh = status::ask(&options).await?;
    let replicas = pods::endpoints(all, CONTROL, &options);
    let clients: Vec<_> = stream::iter(replicas.iter().map(names)).buffered(AT_ONCE).collect().await;
    let connected: BTreeSet<String> = clients.into_iter().flatten().collect();
    let mut findings = judge(&mesh);
    findings.push(links(all, &connected));
    Ok(findings)
}

fn options(place: &Place) -> args::Mesh {
    args::Mesh {
        agent: Vec::new(),
        control: None,
        world: None,
        run_dir: RUN_DIR.into(),
        kubernetes: true,
        namespace: place.namespace.clone(),
        reach: place.reach.clone(),
    }
}

/// Who is connected to a replica; nobody when it does not answer, which [`judge`] says.
async fn names(endpoint: &Endpoint) -> Vec<String> {
    let clients = get_json::<Vec<Client>>(endpoint, "/debug/clients").await.unwrap_or_default();
    clients.into_iter().map(|client| client.name).collect()
}

fn judge(mesh: &Mesh) -> Vec<Finding> {
    if mesh.ready {
        let pods = mesh.agents.iter().flat_map(|agent| &agent.config).flat_map(|config| &config.pods);
        let active = pods.filter(|pod| pod.state == "active").count();
        return vec![Finding::fine(
            AREA,
            format!("agents and control plane are well, {active} pods are active"),
        )];
    }
    let next = "culvert status shows every part";
    mesh.next.iter().take(NAMED).map(|problem| Finding::error(AREA, problem.clone(), next)).collect()
}

/// Every ready agent is connected to some replica. Without one it works on with what it knows.
fn links(all: &[Value], connected: &BTreeSet<String>) -> Finding {
    let agents = all.iter().filter(|pod| pod["metadata"]["labels"]["app.kubernetes.io/name"] == AGENT);
    let nodes: Vec<_> =
        agents.filter(|pod| condition(pod, "Ready")).map(|pod| text(pod, "/spec/nodeName")).collect();
    let lost: Vec<_> =
        nodes.iter().filter(|node| !connected.contains(&format!("node {node}"))).copied().collect();
    if lost.is_empty() {
        return Finding::fine(AREA, format!("{} agents have a connection to the control plane", nodes.len()));
    }
    let what = format!("agents without a connection to the control plane: {}", lost.join(", "));
    Finding::error(
        AREA,
        what,
        "their logs say why; DNS and port 15012 of culvert-control have to be reachable from the node",
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::check::finding::State;

    #[test]
    fn an_agent_that_no_replica_serves_is_named() {
        let agent = |node: &str, ready: &str| {
            json!({"metadata": {"labels": {"app.kubernetes.io/name": AGENT}}, "spec": {"nodeName": node},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}})
        };
        let all = [agent("a", "True"), agent("b", "True"), agent("c", "False")];
        let connected = |names: &[&str]| names.iter().map(|name| format!("node {name}")).collect();
        assert_eq!(links(&all, &connected(&["a", "b"])).state, State::Fine);
        let lost = links(&all, &connected(&["a"]));
        assert!(lost.state == State::Error && lost.what.ends_with(": b"), "{lost:?}");
    }

    #[test]
    fn what_the_programs_say_is_passed_on() {
        let mut mesh = Mesh { world: None, control: None, agents: Vec::new(), ready: true, next: Vec::new() };
        assert_eq!(judge(&mesh)[0].state, State::Fine);
        (mesh.ready, mesh.next) = (false, vec!["the agent of a is not ready".to_owned()]);
        assert!(judge(&mesh)[0].what.contains("of a is not ready"));
    }
}
