//! The control plane's programs: etcd, API server, controller manager, scheduler.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context, Result};
use serde_json::json;

use super::{API_PORT, Cluster};
use crate::{net, process::Process, shell, wait};

/// How long a program may take to become ready, on a busy machine.
const READY: Duration = Duration::from_secs(90);
/// How long a program may take to end by itself.
const END: Duration = Duration::from_secs(10);
/// Addresses of services.
pub const SERVICES: &str = "10.96.0.0/16,fd00:96::/108";
/// Addresses of pods.
pub const PODS: &str = "10.244.0.0/16";
const ETCD: &str = "http://127.0.0.1:2379";
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// What runs; a program ends when its value is dropped.
#[derive(Default)]
pub struct ControlPlane {
    scheduler: Option<Process>,
    manager: Option<Process>,
    api: Option<Process>,
    etcd: Option<Process>,
}

impl Cluster {
    fn program(&self, name: &str) -> Result<Command> {
        self.place_of(&format!("control-plane/{name}")).command(&self.programs.path(name).to_string_lossy())
    }

    fn spawn(&self, name: &str, words: &[String]) -> Result<Process> {
        Process::spawn(self.program(name)?.args(words), &self.log_file(name))
    }

    pub(super) fn start_etcd(&mut self) -> Result<()> {
        let data = self.root.join("state/etcd").display().to_string();
        let urls = ["--listen-client-urls", ETCD, "--advertise-client-urls", ETCD];
        let peers = ["--listen-peer-urls", "http://127.0.0.1:2380"];
        // Nothing outlives the cluster, so nothing has to reach the disk.
        let rest = ["--data-dir", &data, "--unsafe-no-fsync", "--log-level", "warn"];
        let words: Vec<String> = [&urls[..], &peers, &rest].concat().into_iter().map(String::from).collect();
        self.plane.etcd = Some(self.spawn("etcd", &words)?);
        Ok(())
    }

    /// Starts the API server and waits until it is ready; also after [`Cluster::stop_api_server`].
    pub fn start_api_server(&mut self) -> Result<()> {
        self.write_audit_policy()?;
        let file = |name: &str| self.pki.file(name).display().to_string();
        let words = [
            format!("--etcd-servers={ETCD}"),
            format!("--advertise-address={}", net::UNDERLAY),
            format!("--secure-port={API_PORT}"),
            format!("--tls-cert-file={}", file("apiserver.crt")),
            format!("--tls-private-key-file={}", file("apiserver.key")),
            format!("--client-ca-file={}", file("ca.crt")),
            format!("--kubelet-client-certificate={}", file("apiserver-kubelet.crt")),
            format!("--kubelet-client-key={}", file("apiserver-kubelet.key")),
            format!("--kubelet-certificate-authority={}", file("ca.crt")),
            format!("--service-account-key-file={}", file("sa.pub")),
            format!("--service-account-signing-key-file={}", file("sa.key")),
            format!("--service-account-issuer={ISSUER}"),
            format!("--api-audiences={ISSUER},istio-ca"),
            "--authorization-mode=Node,RBAC".to_string(),
            "--enable-admission-plugins=NodeRestriction".to_string(),
            // No kube-proxy runs beside it: webhooks are asked at the addresses of their pods.
            "--enable-aggregator-routing=true".to_string(),
            format!("--service-cluster-ip-range={SERVICES}"),
            "--allow-privileged=true".to_string(),
            "--kubelet-preferred-address-types=InternalIP".to_string(),
            "--profiling=false".to_string(),
            format!("--audit-policy-file={}", self.root.join("audit-policy.json").display()),
            format!("--audit-log-path={}", self.audit_file().display()),
        ];
        self.plane.api = Some(self.spawn("kube-apiserver", &words)?);
        self.when_ready("kube-apiserver", "/readyz", API_PORT)
    }

    /// Ends the API server as a restart does: connections drain. etcd keeps what it knew.
    pub fn stop_api_server(&mut self) {
        if let Some(mut api) = self.plane.api.take() {
            api.terminate(END);
        }
    }

    /// SIGKILL to the API server: every watch and request breaks off.
    pub fn kill_api_server(&mut self) {
        self.plane.api = None;
    }

    /// Starts controller manager and scheduler and waits until they are ready.
    pub fn start_controllers(&mut self) -> Result<()> {
        let config = |name: &str| {
            let file = self.pki.file(&format!("{name}.kubeconfig")).display().to_string();
            ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"]
                .map(|flag| format!("--{flag}={file}"))
        };
        let file = |name: &str| self.pki.file(name).display().to_string();
        let alone = ["--leader-elect=false".to_string(), "--bind-address=127.0.0.1".to_string()];
        let manager = [
            format!("--root-ca-file={}", file("ca.crt")),
            format!("--service-account-private-key-file={}", file("sa.key")),
            "--use-service-account-credentials".to_string(),
            format!("--cluster-cidr={PODS}"),
            "--allocate-node-cidrs=false".to_string(),
            format!("--cluster-signing-cert-file={}", file("ca.crt")),
            format!("--cluster-signing-key-file={}", file("ca.key")),
            "--kube-api-qps=200".to_string(),
            "--kube-api-burst=400".to_string(),
        ];
        let words = [&config("kube-controller-manager")[..], &alone, &manager].concat();
        self.plane.manager = Some(self.spawn("kube-controller-manager", &words)?);
        let words = [&config("kube-scheduler")[..], &alone].concat();
        self.plane.scheduler = Some(self.spawn("kube-scheduler", &words)?);
        self.when_ready("kube-controller-manager", "/healthz", 10257)?;
        self.when_ready("kube-scheduler", "/readyz", 10259)
    }

    /// Ends controller manager and scheduler.
    pub fn stop_controllers(&mut self) {
        (self.plane.scheduler, self.plane.manager) = (None, None);
    }

    fn when_ready(&self, name: &str, path: &str, port: u16) -> Result<()> {
        let file = |name: &str| self.pki.file(name).display().to_string();
        let url = format!("https://127.0.0.1:{port}{path}");
        // The other programs' own certificates are of their making: not verified.
        wait::until(READY, &format!("{name} to be ready"), || {
            let mut curl = self.place().command("curl").ok()?;
            curl.args(["-skf", "--max-time", "2", "--cert", &file("admin.crt"), "--key", &file("admin.key")]);
            shell::output(curl.arg(&url)).ok().map(drop)
        })
        .with_context(|| format!("last lines of {name}:\n{}", self.tail(name)))
    }

    fn write_audit_policy(&self) -> Result<()> {
        let policy = json!({"apiVersion": "audit.k8s.io/v1", "kind": "Policy",
            "omitStages": ["RequestReceived"], "rules": [{"level": "Metadata"}]});
        Ok(fs::write(self.root.join("audit-policy.json"), policy.to_string())?)
    }
}
