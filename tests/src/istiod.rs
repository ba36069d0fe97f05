//! A real istiod in the place of our control plane: for what the agent does under Istio's.
//!
//! The folder of a world stays what tests write. A mirror brings each object of it into a real API server,
//! from which istiod learns; the mark by which our agent announces a pod goes the same way.

mod mirror;

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use serde_json::json;

use crate::{
    cluster::{Cluster, crds::Crds},
    process::{Place, Process},
    shell, wait,
    world::{CONTROL_PORT, World},
};
use mirror::Mirror;

/// Istio's own namespace: root of mesh-wide policies, and home of the agents' account.
pub const NAMESPACE: &str = "istio-system";
/// Account that istiod lets ask for certificates of others.
const ACCOUNT: &str = "ztunnel";
/// Name in istiod's certificate.
pub const SERVER_NAME: &str = "istiod.istio-system.svc";
/// How long istiod may take to be ready, on a busy machine.
const READY: Duration = Duration::from_secs(60);

/// Whether the tests of the folder's control plane are to run with istiod instead.
#[allow(clippy::disallowed_methods, reason = "the tests' one reader of this variable")]
pub fn is_asked_for() -> bool {
    std::env::var("CULVERT_TEST_CONTROL").is_ok_and(|control| control == "istiod")
}

/// See the module's description.
pub struct Istiod {
    process: Option<Process>,
    mirror: Option<Mirror>,
    cluster: Cluster,
}

/// Name of the pod that an agent passes for.
pub fn agent_pod(node: &str) -> String {
    format!("{ACCOUNT}-{node}")
}

impl Istiod {
    /// An API server with Istio's kinds, and nothing in it yet. Those of the Gateway API take it as long again to
    /// start, and nothing of what agents do at L4 is said by them.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn new() -> Result<Self> {
        let cluster = Cluster::api_server(&[Crds::Istio])?;
        for account in [ACCOUNT, "istiod"] {
            cluster.apply_object(
                &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
            )?;
            cluster.apply_object(&json!({"apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {"name": account, "namespace": NAMESPACE}}))?;
        }
        Ok(Self { process: None, mirror: None, cluster })
    }

    /// The network that the world's nodes are joined to.
    pub fn underlay(&self) -> Place {
        self.cluster.place_of("istiod")
    }

    /// Starts istiod, again after [`Istiod::stop`], and waits until it is ready.
    ///
    /// # Errors
    /// It does not get ready, or the API server refuses an object.
    pub fn start(&mut self, world: &World) -> Result<()> {
        if self.mirror.is_none() {
            self.mirror = Some(Mirror::start(&self.cluster, world.cluster())?);
        }
        let folder = world.root.join("istiod");
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("networks.yaml"), "")?;
        let mesh = json!({"trustDomain": "cluster.local", "rootNamespace": NAMESPACE, "accessLogFile": ""});
        fs::write(folder.join("mesh.yaml"), mesh.to_string())?;
        let program = self.cluster.programs.path("pilot-discovery");
        let mut command = self.underlay().command(&program.to_string_lossy())?;
        command.current_dir(&folder).arg("discovery").arg("--kubeconfig").arg(self.cluster.kubeconfig());
        command.args(["--meshConfig", "mesh.yaml", "--networksConfig", "networks.yaml"]);
        command.args(["--domain", "cluster.local", "--httpAddr", ":8080", "--httpsAddr", ""]);
        command.args(["--monitoringAddr", ":15014", "--grpcAddr", ":15010", "--ctrlz_port", "0"]);
        command.args(["--secureGRPCAddr", &format!(":{CONTROL_PORT}")]);
        command.envs(settings());
        self.process = Some(Process::spawn(&mut command, &world.log_file("control"))?);
        wait::until(READY, "istiod to be ready", || {
            let mut curl = self.underlay().command("curl").ok()?;
            shell::output(curl.args(["-sf", "--max-time", "1", "http://127.0.0.1:8080/ready"])).ok()
        })
        .with_context(|| world.tail("control"))?;
        self.write_authority(world)?;
        (0..world.nodes).try_for_each(|node| self.write_token(world, node))
    }

    /// Ends istiod; what it has said stays in force.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Istiod's self-signed root, where tests look for that of our own control plane.
    fn write_authority(&self, world: &World) -> Result<()> {
        let state = world.root.join("state/control");
        fs::create_dir_all(&state)?;
        let words = ["-n", NAMESPACE, "secret", "istio-ca-secret"];
        let secret = self.cluster.wait_for(READY, "istiod's root", &words, |secret| {
            secret["data"]["ca-key.pem"].is_string().then(|| secret.clone())
        })?;
        let text = |key: &str| -> Result<String> {
            let coded = secret["data"][key].as_str().context("istio-ca-secret lacks a key")?;
            // A PEM file's own armour around it spares a decoder of base64.
            let bytes = pem::parse(format!("-----BEGIN X-----\n{coded}\n-----END X-----\n"))?;
            Ok(String::from_utf8(bytes.into_contents())?)
        };
        fs::write(state.join("ca-cert.pem"), text("ca-cert.pem")?)?;
        fs::write(state.join("root-cert.pem"), text("ca-cert.pem")?)?;
        Ok(fs::write(state.join("ca-key.pem"), text("ca-key.pem")?)?)
    }

    /// The token of an agent: bound to a pod on its node, as a kubelet asks for it.
    fn write_token(&self, world: &World, node: u8) -> Result<()> {
        let node = world.node_name(node);
        let pod = agent_pod(&node);
        self.cluster.apply_object(&json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": pod, "namespace": NAMESPACE, "labels": {"app": ACCOUNT}},
            "spec": {"nodeName": node, "serviceAccountName": ACCOUNT, "hostNetwork": true,
                     "containers": [{"name": "agent", "image": "agent"}]}}))?;
        let words = ["-n", NAMESPACE, "create", "token", ACCOUNT, "--audience", "istio-ca"];
        let bound = ["--bound-object-kind", "Pod", "--bound-object-name", &pod];
        let token = self.cluster.kubectl(&[&words[..], &bound].concat())?;
        Ok(fs::write(world.token_file(&node), token.trim())?)
    }
}

/// What istiod takes from its environment; as its own chart sets it for ambient, without webhooks and leases.
fn settings() -> [(&'static str, &'static str); 13] {
    [
        ("POD_NAME", "istiod-0"),
        ("POD_NAMESPACE", NAMESPACE),
        ("SERVICE_ACCOUNT", "istiod"),
        ("REVISION", "default"),
        ("CLUSTER_ID", "Kubernetes"),
        ("PILOT_ENABLE_AMBIENT", "true"),
        ("CA_TRUSTED_NODE_ACCOUNTS", "istio-system/ztunnel"),
        ("PILOT_CERT_PROVIDER", "istiod"),
        ("JWT_POLICY", "third-party-jwt"),
        ("INJECTION_WEBHOOK_CONFIG_NAME", ""),
        ("VALIDATION_WEBHOOK_CONFIG_NAME", ""),
        ("PILOT_ENABLE_GATEWAY_API_DEPLOYMENT_CONTROLLER", "false"),
        ("ENABLE_LEADER_ELECTION", "false"),
    ]
}

impl Drop for Istiod {
    fn drop(&mut self) {
        self.mirror = None;
        self.process = None;
    }
}
