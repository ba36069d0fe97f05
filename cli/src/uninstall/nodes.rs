//! Cleaning nodes: the agents go, then a job on each node removes programs, tables and the CNI plugin, with
//! the image and the folders of the agent that ran there (decision 45).

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::Done;
use crate::{
    cluster::{
        Cluster,
        kinds::{collection, path},
        pod::{condition, text, trouble},
        rollout::PERIOD,
    },
    exit::Failure,
    manifest::{AGENT, PART_OF, resolve, values::Values},
};

/// Jobs that are created before somebody looks again.
const AT_ONCE: usize = 50;
/// Label of the jobs.
const JOB: &str = "culvert.dev/cleanup";
/// Arguments of the agent that its cleaning has too.
const KEPT: [&str; 6] =
    ["--proc=", "--cgroup=", "--bpffs=", "--state-dir=", "--cni-bin-dir=", "--cni-conf-dir="];

/// The agents' DaemonSet as it is, or as this version would make it.
async fn agents(cluster: &Cluster, namespace: &str, values: &Values) -> Result<Value, Failure> {
    if let Some(set) = cluster.get(&path("apps/v1", "DaemonSet", namespace, AGENT)).await? {
        return Ok(set);
    }
    let objects = resolve::objects(values);
    let set = objects.into_iter().find(|object| object.kind() == "DaemonSet");
    set.map(|object| object.body)
        .ok_or_else(|| Failure::new("the manifests have no DaemonSet", "report this"))
}

/// What is going to be cleaned.
pub(super) struct Chosen {
    /// The agents' DaemonSet.
    set: Value,
    /// Nodes, and whether each is ready.
    nodes: BTreeMap<String, bool>,
    /// Whether these are all nodes with agents, so that the agents go first.
    all: bool,
}

impl Chosen {
    /// Names of the nodes.
    pub(super) fn names(&self) -> Vec<String> {
        self.nodes.keys().cloned().collect()
    }
}

/// Every node that may have an agent; or those that are named, which must have none any more.
pub(super) async fn choose(
    cluster: &Cluster,
    namespace: &str,
    values: &Values,
    named: &[String],
) -> Result<Chosen, Failure> {
    let set = agents(cluster, namespace, values).await?;
    let nodes = cluster.list(&collection("v1", "Node", ""), "").await?;
    let nodes = if named.is_empty() { candidates(&nodes, &set) } else { left(&nodes, &set, named)? };
    Ok(Chosen { set, nodes, all: named.is_empty() })
}

/// Nodes that may have an agent, and whether each is ready.
fn candidates(nodes: &[Value], set: &Value) -> BTreeMap<String, bool> {
    let selector = set.pointer("/spec/template/spec/nodeSelector").cloned().unwrap_or_default();
    let fits = |node: &&Value| {
        let labels = &node["metadata"]["labels"];
        selector.as_object().into_iter().flatten().all(|(key, value)| &labels[key] == value)
    };
    let of = |node: &Value| (text(node, "/metadata/name").to_owned(), condition(node, "Ready"));
    nodes.iter().filter(fits).map(of).collect()
}

/// The named nodes, when the agents' selector has none of them: else an agent would come back to a node
/// that was just cleaned.
fn left(nodes: &[Value], set: &Value, named: &[String]) -> Result<BTreeMap<String, bool>, Failure> {
    let with_agents = candidates(nodes, set);
    let mut chosen = BTreeMap::new();
    for name in named {
        let Some(node) = nodes.iter().find(|node| text(node, "/metadata/name") == name) else {
            return Err(Failure::new(format!("there is no node {name}"), "kubectl get nodes"));
        };
        if with_agents.contains_key(name) {
            return Err(Failure::new(
                format!("the agents' selector has node {name}"),
                "take its label away, or change agent.nodeSelector with culvert upgrade --set; then again",
            ));
        }
        chosen.insert(name.clone(), condition(node, "Ready"));
    }
    Ok(chosen)
}

/// Removes the agents, where all nodes are chosen, and cleans every chosen node. A node that is not ready,
/// or not clean at the deadline, is noted and not waited for.
pub(super) async fn clean(
    cluster: &Cluster,
    namespace: &str,
    chosen: Chosen,
    deadline: Instant,
    done: &mut Done,
) -> Result<(), Failure> {
    if cluster.get(&path("v1", "Namespace", "", namespace)).await?.is_none() {
        return Ok(());
    }
    eprintln!("  agents: stopping");
    if chosen.all && cluster.delete(&path("apps/v1", "DaemonSet", namespace, AGENT)).await? {
        done.removed.push(format!("DaemonSet {namespace}/{AGENT}"));
    }
    agents_gone(cluster, namespace, &chosen, deadline).await?;
    let set = &chosen.set;
    let (ready, away): (Vec<_>, Vec<_>) = chosen.nodes.into_iter().partition(|(_, ready)| *ready);
    done.stuck.extend(away.into_iter().map(|(node, _)| (node, "the node is not ready".to_owned())));
    let ready: Vec<_> = ready.into_iter().map(|(node, _)| node).collect();
    for batch in ready.chunks(AT_ONCE) {
        for node in batch {
            start(cluster, namespace, set, node).await?;
        }
        finish(cluster, namespace, batch, deadline, done).await?;
    }
    Ok(())
}

async fn agents_gone(
    cluster: &Cluster,
    namespace: &str,
    chosen: &Chosen,
    deadline: Instant,
) -> Result<(), Failure> {
    let query = format!("labelSelector=app.kubernetes.io%2Fname%3D{AGENT}");
    loop {
        let mut pods = cluster.list(&collection("v1", "Pod", namespace), &query).await?;
        pods.retain(|pod| chosen.all || chosen.nodes.contains_key(text(pod, "/spec/nodeName")));
        let Some(pod) = pods.first() else { return Ok(()) };
        if Instant::now() >= deadline {
            let reason =
                format!("{} agents did not stop in time, first {}", pods.len(), text(pod, "/metadata/name"));
            return Err(Failure::new(
                reason,
                format!(
                    "kubectl -n {namespace} get pods -o wide; a node that is gone: kubectl delete node, then again"
                ),
            ));
        }
        sleep(PERIOD).await;
    }
}

fn job_name(node: &str) -> String {
    let mut hasher = DefaultHasher::new();
    node.hash(&mut hasher);
    format!("culvert-cleanup-{:016x}", hasher.finish())
}

async fn start(cluster: &Cluster, namespace: &str, set: &Value, node: &str) -> Result<(), Failure> {
    let jobs = collection("batch/v1", "Job", namespace);
    match cluster.create(&jobs, &job(namespace, set, node)).await {
        // From an attempt before: it goes on, or has failed for good and is made anew.
        Err(error) if error.status == 409 => {
            let there = path("batch/v1", "Job", namespace, &job_name(node));
            let failed = cluster.get(&there).await?.is_some_and(|job| condition(&job, "Failed"));
            if failed {
                cluster.delete(&there).await?;
                let reason = format!("the cleaning of node {node} had failed and is made anew");
                return Err(Failure::new(reason, "run culvert uninstall again"));
            }
            Ok(())
        }
        Err(error) => Err(error.into()),
        Ok(_) => Ok(()),
    }
}

/// The job that cleans a node, made of the agent's own pod.
fn job(namespace: &str, set: &Value, node: &str) -> Value {
    let mut pod = set.pointer("/spec/template/spec").cloned().unwrap_or_default();
    let container = &mut pod["containers"][0];
    let mut args = vec![json!("--uninstall")];
    let old = container["args"].as_array().cloned().unwrap_or_default();
    args.extend(
        old.into_iter()
            .filter(|arg| KEPT.iter().any(|kept| arg.as_str().is_some_and(|arg| arg.starts_with(kept)))),
    );
    container["args"] = Value::from(args);
    container["name"] = json!("cleanup");
    if let Some(container) = container.as_object_mut() {
        container.remove("readinessProbe");
        container.remove("livenessProbe");
        container.remove("resources");
    }
    // Neither token nor roots: nobody is asked, and the roots may be gone.
    let outside = |entry: &Value| !["token", "roots"].contains(&entry["name"].as_str().unwrap_or_default());
    for list in ["/volumes", "/containers/0/volumeMounts"] {
        if let Some(Value::Array(entries)) = pod.pointer_mut(list) {
            entries.retain(outside);
        }
    }
    if let Some(pod) = pod.as_object_mut() {
        // A node that has left the agents' selector would refuse the pod.
        pod.remove("nodeSelector");
        pod.remove("affinity");
    }
    pod["nodeName"] = json!(node);
    pod["restartPolicy"] = json!("OnFailure");
    pod["automountServiceAccountToken"] = json!(false);
    let labels = json!({PART_OF.0: PART_OF.1, JOB: "true"});
    json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": job_name(node), "namespace": namespace, "labels": labels, "annotations": {"culvert.dev/node": node}},
        "spec": {
            "backoffLimit": 4,
            "ttlSecondsAfterFinished": 600,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    })
}

async fn finish(
    cluster: &Cluster,
    namespace: &str,
    batch: &[String],
    deadline: Instant,
    done: &mut Done,
) -> Result<(), Failure> {
    let mut open: Vec<String> = batch.to_vec();
    let query = format!("labelSelector={}%3Dtrue", JOB.replace('/', "%2F"));
    loop {
        let jobs = cluster.list(&collection("batch/v1", "Job", namespace), &query).await?;
        let mut left = Vec::new();
        for node in open {
            let job = jobs.iter().find(|job| text(job, "/metadata/name") == job_name(&node));
            match job {
                Some(job) if condition(job, "Complete") => {
                    cluster.delete(&path("batch/v1", "Job", namespace, &job_name(&node))).await?;
                    eprintln!("  {node}: clean");
                    done.nodes.push(node);
                }
                Some(job) if condition(job, "Failed") => {
                    let why = why(cluster, namespace, &node).await?;
                    done.stuck.push((node, why));
                }
                _ => left.push(node),
            }
        }
        open = left;
        if open.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            for node in open {
                let why = why(cluster, namespace, &node).await?;
                done.stuck.push((node, why));
            }
            return Ok(());
        }
        sleep(PERIOD).await;
    }
}

/// Why the cleaning of a node is not done.
async fn why(cluster: &Cluster, namespace: &str, node: &str) -> Result<String, Failure> {
    let job = job_name(node);
    let query = format!("labelSelector=job-name%3D{job}");
    let pods = cluster.list(&collection("v1", "Pod", namespace), &query).await?;
    let trouble = pods.iter().find_map(trouble);
    let logs = format!("kubectl -n {namespace} logs job/{job}");
    Ok(trouble.map_or_else(
        || format!("its job did not start in time; {logs}"),
        |t| format!("{}; {logs}", t.reason),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_node_is_cleaned_only_when_the_agents_selector_has_it_no_more() {
        let set = json!({"spec": {"template": {"spec": {"nodeSelector": {"mesh": "ours"}}}}});
        let node = |name: &str, mesh: &str| {
            json!({"metadata": {"name": name, "labels": {"mesh": mesh}},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]}})
        };
        let nodes = [node("a", "ours"), node("b", "other")];
        assert_eq!(candidates(&nodes, &set), BTreeMap::from([("a".to_owned(), true)]));
        assert_eq!(left(&nodes, &set, &["b".into()]).unwrap(), BTreeMap::from([("b".to_owned(), true)]));
        let refused = left(&nodes, &set, &["b".into(), "a".into()]).unwrap_err();
        assert_eq!(refused.reason, "the agents' selector has node a");
        assert!(left(&nodes, &set, &["c".into()]).unwrap_err().reason.contains("no node c"));
    }

    #[test]
    fn the_job_of_a_node_is_the_agents_pod_with_its_cleaning_arguments() {
        let set =
            resolve::objects(&Values::defaults("n")).into_iter().find(|o| o.kind() == "DaemonSet").unwrap();
        let job = job("n", &set.body, "node-1");
        let pod = &job["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        assert_eq!(container["args"][0], "--uninstall");
        let args = container["args"].to_string();
        assert!(
            args.contains("--cni-conf-dir=") && args.contains("--cgroup=") && !args.contains("--kubernetes"),
            "{args}"
        );
        assert_eq!((&pod["nodeName"], &pod["hostNetwork"]), (&json!("node-1"), &json!(true)));
        assert!(pod["nodeSelector"].is_null(), "the node may have left it");
        assert_eq!(
            container["securityContext"],
            set.body["spec"]["template"]["spec"]["containers"][0]["securityContext"]
        );
        let text = pod.to_string();
        assert!(
            !text.contains("culvert-ca-root-cert")
                && !text.contains("serviceAccountToken")
                && !text.contains("readinessProbe"),
            "{text}"
        );
        let names: Vec<_> = pod["volumes"].as_array().unwrap().iter().map(|v| v["name"].clone()).collect();
        for mount in container["volumeMounts"].as_array().unwrap() {
            assert!(names.contains(&mount["name"]), "{mount}");
        }
        assert!(job_name(&"long".repeat(60)).len() < 63);
        assert_ne!(job_name("a"), job_name("b"));
    }
}
