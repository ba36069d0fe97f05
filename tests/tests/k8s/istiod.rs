//! Istio's control plane as a Deployment of the cluster, with an intermediate of a root of ours as its
//! authority.

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};

use crate::{
    istio::{self, ISTIO},
    stage::{ROLLOUT, Stage},
};

impl Stage {
    /// A cluster as Istio ambient is on it: istiod with `cacerts`, istio-cni and ztunnel on every node.
    pub fn set_istio() -> Result<Self> {
        let stage = Self::with_images_of_istio()?;
        stage.istiod()?;
        stage.say("istiod is ready");
        stage.istio_agents(istio::ISTIOD, &json!({}))?;
        stage.say("istio-cni and ztunnel are ready");
        Ok(stage)
    }

    fn istiod(&self) -> Result<()> {
        let home = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ISTIO}});
        self.cluster.apply_object(&home)?;
        self.cluster.apply_object(&cacerts()?)?;
        self.cluster.apply_object(&json!({"apiVersion": "v1", "kind": "List", "items": objects()}))?;
        self.cluster.rolled_out(ISTIO, "deployment/istiod", ROLLOUT)
    }
}

/// What Istio's page on plugging in certificates has its reader make.
fn cacerts() -> Result<Value> {
    let authority = |name: &str| -> Result<CertificateParams> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        Ok(params)
    };
    let (root_key, key) = (KeyPair::generate()?, KeyPair::generate()?);
    let params = authority("Root CA")?;
    let root = params.self_signed(&root_key)?.pem();
    let cert = authority("Intermediate CA")?.signed_by(&key, &Issuer::new(params, root_key))?.pem();
    let chain = format!("{cert}{root}");
    Ok(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "cacerts", "namespace": ISTIO},
        "stringData": {"ca-cert.pem": cert, "ca-key.pem": key.serialize_pem(), "root-cert.pem": root,
            "cert-chain.pem": chain}}))
}

fn objects() -> Vec<Value> {
    let meta = json!({"name": "istiod", "namespace": ISTIO});
    let labels = json!({"app": "istiod", "istio": "pilot"});
    let mesh = "trustDomain: cluster.local\nrootNamespace: istio-system\n";
    let env = [
        ("REVISION", "default"),
        ("CLUSTER_ID", "Kubernetes"),
        ("PILOT_ENABLE_AMBIENT", "true"),
        ("CA_TRUSTED_NODE_ACCOUNTS", "istio-system/ztunnel"),
        ("PILOT_CERT_PROVIDER", "istiod"),
        ("JWT_POLICY", "third-party-jwt"),
        ("SERVICE_ACCOUNT", "istiod"),
        ("POD_NAMESPACE", ISTIO),
        // It is alone, has no image of a waypoint, and needs no webhook here.
        ("ENABLE_LEADER_ELECTION", "false"),
        ("PILOT_ENABLE_GATEWAY_API_DEPLOYMENT_CONTROLLER", "false"),
        ("INJECTION_WEBHOOK_CONFIG_NAME", ""),
        ("VALIDATION_WEBHOOK_CONFIG_NAME", ""),
    ];
    let mut env: Vec<Value> = env.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    env.push(json!({"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}));
    let pod = json!({"serviceAccountName": "istiod", "terminationGracePeriodSeconds": 5,
        "securityContext": {"fsGroup": 0},
        "containers": [{"name": "discovery", "image": "culvert.local/test-istiod:1", "env": env,
            "args": ["discovery", "--meshConfig=/etc/istio/config/mesh", "--networksConfig=/etc/istio/config/networks",
                "--domain=cluster.local", "--httpAddr=:8080", "--httpsAddr=", "--monitoringAddr=:15014",
                "--grpcAddr=", "--secureGRPCAddr=:15012", "--ctrlz_port=0"],
            "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 1},
            "volumeMounts": [{"name": "config", "mountPath": "/etc/istio/config"},
                {"name": "cacerts", "mountPath": "/etc/cacerts", "readOnly": true},
                {"name": "own", "mountPath": "/var/run/secrets/istio-dns"}]}],
        "volumes": [{"name": "config", "configMap": {"name": "istio"}}, {"name": "own", "emptyDir": {}},
            {"name": "cacerts", "secret": {"secretName": "cacerts"}}]});
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}),
        // Its own roles are Istio's affair.
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": "istiod"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": "istiod", "namespace": ISTIO}]}),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "istio", "namespace": ISTIO},
            "data": {"mesh": mesh, "networks": "networks: {}\n"}}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta,
            "spec": {"selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod}}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": meta,
            "spec": {"selector": labels, "ports": [{"name": "https-dns", "port": 15012}]}}),
    ]
}
