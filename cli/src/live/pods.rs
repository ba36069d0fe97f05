//! The mesh of a Kubernetes cluster: its pods' admin endpoints.

use serde_json::Value;

use super::discover::{self, Targets};
use crate::{
    args::Mesh,
    cluster::{
        Cluster,
        connect::{Reach, connect},
        kinds::collection,
        pod::{condition, text},
    },
    endpoint::{Endpoint, PodPort},
    exit::Failure,
    manifest::{AGENT, CONTROL},
};

/// Port of an agent's admin endpoint.
const AGENT_PORT: u16 = 15020;
/// Port of the control plane's admin endpoint.
const CONTROL_PORT: u16 = 15014;

/// Whom to ask: a mesh on this machine, or that of a cluster if asked to or if nothing runs here.
///
/// # Errors
/// There is nobody to ask.
pub async fn targets(options: &Mesh) -> Result<Targets, Failure> {
    if options.kubernetes || options.reach != Reach::default() {
        return of_cluster(options, &connect(&options.reach).await?).await;
    }
    match discover::targets(options) {
        Err(nothing) if discover::is_empty(options) => match connect(&options.reach).await {
            Ok(cluster) => of_cluster(options, &cluster).await,
            Err(_) => Err(nothing),
        },
        found => found,
    }
}

async fn of_cluster(options: &Mesh, cluster: &Cluster) -> Result<Targets, Failure> {
    let namespace = &options.namespace;
    let query = "labelSelector=app.kubernetes.io%2Fpart-of%3Dculvert";
    let pods = cluster.list(&collection("v1", "Pod", namespace), query).await?;
    let targets = choose(&pods, options);
    if targets.control.is_none() && targets.agents.is_empty() {
        let reason = format!("no pod of Culvert runs in namespace {namespace} of {}", cluster.server);
        return Err(Failure::new(reason, "culvert check says why; or name its namespace with --namespace"));
    }
    Ok(targets)
}

/// Pods of a program that run.
fn running<'a>(pods: &'a [Value], name: &'static str) -> impl Iterator<Item = &'a Value> {
    pods.iter().filter(move |pod| {
        pod["metadata"]["labels"]["app.kubernetes.io/name"] == name
            && text(pod, "/status/phase") == "Running"
            && text(pod, "/metadata/deletionTimestamp").is_empty()
    })
}

fn endpoint(pod: &Value, options: &Mesh) -> Endpoint {
    let control = pod["metadata"]["labels"]["app.kubernetes.io/name"] == CONTROL;
    Endpoint::Pod(PodPort {
        namespace: text(pod, "/metadata/namespace").to_owned(),
        pod: text(pod, "/metadata/name").to_owned(),
        port: if control { CONTROL_PORT } else { AGENT_PORT },
        kubeconfig: options.reach.kubeconfig.clone(),
        context: options.reach.context.clone(),
    })
}

/// Admin endpoints of every pod of a program that runs.
pub fn endpoints(pods: &[Value], name: &'static str, options: &Mesh) -> Vec<Endpoint> {
    running(pods, name).map(|pod| endpoint(pod, options)).collect()
}

/// One replica of the control plane, a ready one if there is, and every agent that has started.
fn choose(pods: &[Value], options: &Mesh) -> Targets {
    let ready = running(pods, CONTROL).max_by_key(|pod| condition(pod, "Ready"));
    let agent = |pod: &Value| (Some(text(pod, "/spec/nodeName").to_owned()), endpoint(pod, options));
    let mut agents: Vec<_> = running(pods, AGENT).map(agent).collect();
    agents.sort();
    Targets { world: None, control: ready.map(|pod| endpoint(pod, options)), agents }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::args::RUN_DIR;

    #[test]
    fn a_ready_replica_and_every_agent_that_runs_are_asked() {
        let pod = |app: &str, name: &str, phase: &str, ready: &str| {
            json!({"metadata": {"name": name, "namespace": "n", "labels": {"app.kubernetes.io/name": app}},
                "spec": {"nodeName": format!("node-{name}")},
                "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]}})
        };
        let pods = [
            pod(CONTROL, "c1", "Running", "False"),
            pod(CONTROL, "c2", "Running", "True"),
            pod(CONTROL, "c3", "Running", "False"),
            pod(AGENT, "a2", "Running", "False"),
            pod(AGENT, "a1", "Running", "True"),
            pod(AGENT, "a3", "Pending", "False"),
        ];
        let options = Mesh {
            agent: Vec::new(),
            control: None,
            world: None,
            run_dir: RUN_DIR.into(),
            kubernetes: true,
            namespace: "n".to_owned(),
            reach: Reach::default(),
        };
        let targets = choose(&pods, &options);
        assert_eq!(targets.control.unwrap().to_string(), "pod:n/c2:15014");
        let nodes: Vec<_> = targets.agents.iter().filter_map(|(node, _)| node.as_deref()).collect();
        assert_eq!(nodes, ["node-a1", "node-a2"]);
    }
}
