//! Replicas of the control plane beside a real API server, and clients that ask them.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use harness::{
    cluster::{Cluster, crds::Crds},
    mesh,
    process::Process,
    wait,
};
use mesh_core::identity::Identity;
use mesh_net::{
    ca::{IstioCa, SignError, Signer},
    xds::ControlEndpoint,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};

/// Namespace of the control plane.
pub const SYSTEM: &str = "culvert-system";
/// Account of agents.
pub const AGENT: &str = "culvert-agent";
/// Longest wait for something to be seen.
pub const WAIT: Duration = Duration::from_secs(60);

/// What a request for a certificate got.
#[derive(Debug)]
pub enum Asked {
    Issued(Issued),
    Refused(String),
    Away(String),
}

/// A certificate's roots.
#[derive(Debug)]
pub struct Issued {
    pub roots: Vec<CertificateDer<'static>>,
}

/// See the module's description.
pub struct Replicas {
    pub cluster: Cluster,
    pub flags: Vec<String>,
    running: BTreeMap<u16, Process>,
}

impl Replicas {
    pub fn new(crds: &[Crds]) -> Self {
        let cluster = Cluster::api_server(crds).unwrap();
        for namespace in [SYSTEM, "shop"] {
            cluster.kubectl(&["create", "namespace", namespace]).unwrap();
        }
        for (namespace, account) in [(SYSTEM, AGENT), ("shop", "web"), ("shop", "db")] {
            cluster.kubectl(&["-n", namespace, "create", "serviceaccount", account]).unwrap();
        }
        Self { cluster, flags: Vec::new(), running: BTreeMap::new() }
    }

    /// Starts a replica; its ports are its own inside the cluster's network.
    pub fn start(&mut self, replica: u16) {
        let program = mesh::programs().unwrap().join("culvert-control");
        let name = format!("control-{replica}");
        let mut command = self.cluster.place_of(&name).command(&program.to_string_lossy()).unwrap();
        command.args(["--kubernetes", "--kubeconfig"]).arg(self.cluster.kubeconfig());
        command.arg("--state-dir").arg(self.cluster.root.join(&name));
        command.arg(format!("--listen=127.0.0.1:{}", port(replica)));
        command.arg(format!("--admin=127.0.0.1:{}", port(replica) + 100));
        command.args(&self.flags).env("POD_NAME", &name).env("POD_NAMESPACE", SYSTEM);
        let process = Process::spawn(&mut command, &self.cluster.log_file(&name)).unwrap();
        self.running.insert(replica, process);
    }

    /// Ends one as Kubernetes does.
    pub fn stop(&mut self, replica: u16) {
        self.running.remove(&replica).unwrap().terminate(WAIT);
    }

    pub fn kill(&mut self, replica: u16) {
        drop(self.running.remove(&replica).unwrap());
    }

    /// Waits until it serves.
    pub fn ready(&self, replica: u16) {
        let url = format!("http://127.0.0.1:{}/readyz", port(replica) + 100);
        wait::until(WAIT, "a replica to be ready", || {
            let mut curl = self.cluster.place().command("curl").ok()?;
            harness::shell::output(curl.args(["-sf", "--max-time", "2", &url])).ok()
        })
        .unwrap_or_else(|error| panic!("{error}\n{}", self.cluster.tail(&format!("control-{replica}"))));
        self.write_roots();
    }

    /// A pod as its kubelet would have made it, as far as tokens and certificates care.
    pub fn pod(&self, namespace: &str, name: &str, node: &str, account: &str) {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace},
            "spec": {"nodeName": node, "serviceAccountName": account, "containers": [{"name": "c", "image": "c"}]}});
        self.cluster.apply_object(&pod).unwrap();
    }

    /// A pod that its agent enrolled, with an address.
    pub fn meshed_pod(&self, namespace: &str, name: &str, node: &str, account: &str) {
        self.pod(namespace, name, node, account);
        self.cluster.kubectl(&["-n", namespace, "label", "pod", name, &format!("app={account}")]).unwrap();
        let status = json!({"metadata": {"annotations": {"ambient.istio.io/redirection": "enabled"}},
            "status": {"podIP": "10.244.0.7", "podIPs": [{"ip": "10.244.0.7"}], "phase": "Running",
                       "conditions": [{"type": "Ready", "status": "True"}]}});
        let words = ["-n", namespace, "patch", "pod", name, "--subresource=status", "--type=merge", "-p"];
        self.cluster.kubectl(&[&words[..], &[&status.to_string()]].concat()).unwrap();
    }

    pub fn bound_token(&self, namespace: &str, account: &str, audience: &str, pod: Option<&str>) -> String {
        let audience = format!("--audience={audience}");
        let mut words = vec!["-n", namespace, "create", "token", account, &audience];
        words.extend(pod.into_iter().flat_map(|pod| ["--bound-object-kind=Pod", "--bound-object-name", pod]));
        self.cluster.kubectl(&words).unwrap().trim().to_string()
    }

    /// The bundle of a namespace, once it is there.
    pub fn bundle(&self, namespace: &str) -> String {
        let words = ["-n", namespace, "configmap", "culvert-ca-root-cert"];
        let text = |map: &Value| map["data"]["root-cert.pem"].as_str().map(String::from);
        self.cluster.wait_for(WAIT, "the bundle", &words, text).unwrap()
    }

    /// Who holds the lease.
    pub fn holder(&self) -> String {
        let lease = self.cluster.get(&["-n", SYSTEM, "lease", "culvert-control"]).unwrap();
        lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_string()
    }

    fn roots_file(&self) -> PathBuf {
        self.cluster.root.join("root-cert.pem")
    }

    /// What a kubelet does: the bundle as a file.
    pub fn write_roots(&self) {
        fs::write(self.roots_file(), self.bundle(SYSTEM)).unwrap();
    }

    /// Asks a replica for a certificate: for an account as agents do, or for the caller itself.
    pub fn ask(&self, replica: u16, token: &str, for_: Option<(&str, &str)>) -> Asked {
        if !self.roots_file().exists() {
            self.write_roots();
        }
        let token_file = tempfile::NamedTempFile::new_in(&self.cluster.root).unwrap();
        fs::write(token_file.path(), token).unwrap();
        let endpoint = ControlEndpoint {
            url: format!("https://127.0.0.1:{}", port(replica)),
            roots: Some(self.roots_file()),
            server_name: Some(format!("culvert-control.{SYSTEM}.svc")),
            token: Some(token_file.path().into()),
            cluster: "Kubernetes".into(),
        };
        let ca = IstioCa { endpoint, validity_seconds: 3600, impersonate: for_.is_some() };
        let (namespace, account) = for_.unwrap_or(("shop", "web"));
        let identity = Identity::new("cluster.local", namespace, account);
        let answer = self.cluster.inside(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(ca.sign(&identity))
        });
        match answer.unwrap() {
            Ok(issued) => Asked::Issued(Issued { roots: issued.roots }),
            Err(SignError::Refused { reason, .. }) => Asked::Refused(reason),
            Err(error) => Asked::Away(error.to_string()),
        }
    }

    /// Waits until a certificate for an account is given: control has to see its pod first.
    pub fn until_issued(&self, token: &str, namespace: &str, account: &str) {
        let mut last = None;
        let issued = wait::until(WAIT, "a certificate", || {
            let asked = self.ask(0, token, Some((namespace, account)));
            let issued = matches!(asked, Asked::Issued(_));
            last = Some(asked);
            issued.then_some(())
        });
        issued.unwrap_or_else(|error| panic!("{error}: {last:?}\n{}", self.cluster.tail("control-0")));
    }

    /// Waits until a replica's log has a text.
    pub fn log_says(&self, replica: u16, text: &str) {
        let file = self.cluster.log_file(&format!("control-{replica}"));
        wait::until(WAIT, text, || fs::read_to_string(&file).ok()?.contains(text).then_some(())).unwrap();
    }

    pub fn until_gone(&self, namespace: &str, kind: &str, name: &str) {
        let words = ["-n", namespace, "get", kind, name, "--ignore-not-found", "-o", "name"];
        let what = format!("{kind} {namespace}/{name} to be gone");
        wait::until(WAIT, &what, || self.cluster.kubectl(&words).ok()?.trim().is_empty().then_some(()))
            .unwrap();
    }
}

fn port(replica: u16) -> u16 {
    15012 + replica
}

pub fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect()
}

/// A root of its own: certificate and key.
pub fn cert_of(name: &str) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// A Secret with Istio's keys.
pub fn pem_secret(name: &str, cert: &str, key: &str, root: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": SYSTEM},
        "stringData": {"ca-cert.pem": cert, "ca-key.pem": key, "cert-chain.pem": cert, "root-cert.pem": root}})
}
