//! What an agent on a Kubernetes node has besides: the API server, the CNI plugin, the node's taint.

use std::{
    fs::File,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use k8s_openapi::api::core::v1::{Node, Taint};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use mesh_net::task::Ready;
use serde_json::json;
use tokio::{
    sync::watch,
    time::{Duration, sleep},
};
use tokio_util::sync::CancellationToken;

use super::node_facts;
use crate::{
    cni::{
        KNOWN, PLUGIN, RECORDS,
        conflist::Entry,
        install::Installer,
        known::Known,
        server::{self, Server},
    },
    config::Config,
    pods::{
        PodSource,
        kubernetes::{Cluster, Kubernetes, connect},
    },
    redirect::AnyRedirector,
    sandbox::{Records, Sandboxes},
};

/// Taint that keeps pods off a node until its agent is ready.
const TAINT: &str = "culvert.dev/not-ready";
/// File of the pods as they were last known, below the agent's state folder.
const CLUSTER: &str = "cluster.json";
/// Changes of what is kept on disk are written together.
const SETTLE: Duration = Duration::from_millis(100);
/// Whether the agent is ready, for the taint, is looked at this often.
const RETRY: Duration = Duration::from_secs(2);

/// Pods by the API server, and around it what serves and installs the CNI plugin.
pub(super) async fn source(
    config: &Config,
    redirector: AnyRedirector,
    ready: &Ready,
    cancel: &CancellationToken,
) -> anyhow::Result<Arc<dyn PodSource>> {
    let client = connect(config.kubeconfig.as_deref()).await?;
    let sandboxes = Arc::new(Sandboxes::new(config.proc.clone(), &config.host_netns));
    let known = config.state_dir.join(KNOWN);
    let source = Arc::new(Kubernetes::new(client.clone(), node_facts(config), sandboxes.clone()));
    let server = Server {
        decide: source.clone(),
        sandboxes: sandboxes.clone(),
        redirector,
        known: known.clone(),
        excluded: config.exclude_namespaces.clone(),
    };
    let listener = server::listen(&config.cni_socket)
        .with_context(|| format!("--cni-socket {}", config.cni_socket.display()))?;
    tokio::spawn(server::serve(listener, Arc::new(server), cancel.clone()));
    // Only now: what the plugin noted before is read here, and what comes from now on is told.
    sandboxes.recall(&Records::new(config.state_dir.join(RECORDS)));
    if let Some(before) =
        std::fs::read(config.state_dir.join(CLUSTER)).ok().and_then(|text| Cluster::restore(&text))
    {
        source.remember(before);
    }
    tokio::spawn(keep_known(source.cluster(), known, config.state_dir.join(CLUSTER)));
    if let Some(installer) = installer(config) {
        tokio::spawn(installer.keep(cancel.clone()));
    }
    if config.ready_taint {
        tokio::spawn(remove_taint(client, config.node.clone(), ready.clone()));
    }
    Ok(source)
}

/// Takes the plugin off the node (uninstall), if the agent is told where it is.
pub(super) fn remove_plugin(config: &Config) -> anyhow::Result<()> {
    let Some(installer) = installer(config) else { return Ok(()) };
    installer.remove().context("the CNI plugin stays")?;
    for path in [KNOWN, RECORDS, CLUSTER].map(|name| config.state_dir.join(name)) {
        let removed =
            if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("{} stays", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

fn installer(config: &Config) -> Option<Installer> {
    let program = std::env::current_exe().ok()?.with_file_name(PLUGIN);
    Some(Installer {
        program,
        bin_dir: config.cni_bin_dir.clone()?,
        conf_dir: config.cni_conf_dir.clone()?,
        entry: Entry {
            node: config.node.clone(),
            socket: config.cni_socket.display().to_string(),
            state_dir: config.state_dir.display().to_string(),
            bpffs: config.bpffs.display().to_string(),
            cgroup: config.cgroup.as_ref().map(|path| path.display().to_string()),
            excluded: config.exclude_namespaces.clone(),
        },
    })
}

/// Keeps on disk what the plugin decides by when the agent is away, and what the next agent begins with when
/// the API server is.
async fn keep_known(mut cluster: watch::Receiver<Cluster>, path: PathBuf, pods: PathBuf) {
    let mut last = Known::load(&path);
    let mut written = false;
    while cluster.changed().await.is_ok() {
        sleep(SETTLE).await;
        let (now, text) = {
            let cluster = cluster.borrow_and_update();
            if !cluster.is_listed() {
                continue;
            }
            (cluster.known(&last), cluster.save())
        };
        let plugins = (now != last || !written).then(|| (path.clone(), now.clone()));
        let to = pods.clone();
        let save = move || {
            if let Some((path, known)) = plugins {
                known.save(&path)?;
            }
            replace(&to, &text?)?;
            anyhow::Ok(())
        };
        match tokio::task::spawn_blocking(save).await.map_err(anyhow::Error::from).flatten() {
            Ok(()) => (last, written) = (now, true),
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "what is known of the cluster was not written")
            }
        }
    }
}

/// Writes a file in one step; only root may read it.
fn replace(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let hidden = path.with_extension("tmp");
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&hidden)?;
    file.write_all(text)?;
    std::fs::rename(&hidden, path)
}

/// Pods may come once the agent can enrol them.
async fn remove_taint(client: Client, node: String, ready: Ready) {
    let nodes: Api<Node> = Api::all(client);
    loop {
        // First of all, what there is to await has to be named.
        sleep(RETRY).await;
        if ready.pending().is_empty() {
            match untaint(&nodes, &node).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(node, %error, "taint {TAINT} is not removed; the agent needs `get` and `patch` on nodes")
                }
            }
        }
    }
}

async fn untaint(nodes: &Api<Node>, name: &str) -> kube::Result<()> {
    let node = nodes.get(name).await?;
    let taints = node.spec.unwrap_or_default().taints.unwrap_or_default();
    let Some(rest) = without_ours(taints) else { return Ok(()) };
    // With the version that was read: whoever taints meanwhile wins, and this is done again.
    let version = node.metadata.resource_version;
    let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"taints": rest}});
    nodes.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    tracing::info!(node = name, "taint {TAINT} is removed");
    Ok(())
}

/// The others' taints; none when ours is not among them.
fn without_ours(taints: Vec<Taint>) -> Option<Vec<Taint>> {
    let ours = |taint: &Taint| taint.key == TAINT;
    taints.iter().any(ours).then(|| taints.into_iter().filter(|taint| !ours(taint)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_agents_own_taint_goes_whatever_its_effect_is() {
        let taint =
            |key: &str, effect: &str| Taint { key: key.into(), effect: effect.into(), ..Taint::default() };
        let others = vec![taint("node.kubernetes.io/unreachable", "NoExecute"), taint("gpu", "NoSchedule")];
        assert_eq!(without_ours(others.clone()), None);
        let mut all = others.clone();
        all.insert(1, taint(TAINT, "NoSchedule"));
        all.push(taint(TAINT, "NoExecute"));
        assert_eq!(without_ours(all), Some(others));
    }
}
