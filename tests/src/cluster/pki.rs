//! Certificates and kubeconfigs of a cluster.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use super::API_PORT;
use crate::net;

/// First address of the range of services: the API server's own service.
pub const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// Who may do everything.
pub const ADMINS: &str = "system:masters";

/// The folder with the cluster's certificates, and the authority that signs them.
pub struct Pki {
    /// The folder.
    pub folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    /// Makes the authority, the key of service-account tokens, and what the control plane needs.
    pub fn make(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "cluster-ca");
        fs::write(folder.join("ca.crt"), params.self_signed(&key)?.pem())?;
        fs::write(folder.join("ca.key"), key.serialize_pem())?;
        let pki = Self { folder: folder.to_path_buf(), issuer: Issuer::new(params, key) };
        let tokens = KeyPair::generate()?;
        fs::write(pki.file("sa.key"), tokens.serialize_pem())?;
        fs::write(pki.file("sa.pub"), tokens.public_key_pem())?;
        let names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(str::to_string);
        let mut sans: Vec<SanType> = Vec::new();
        for name in names.into_iter().chain(["kubernetes.default.svc.cluster.local".into()]) {
            sans.push(SanType::DnsName(name.try_into()?));
        }
        sans.extend(
            [net::UNDERLAY, API_SERVICE, Ipv4Addr::LOCALHOST].map(|ip| SanType::IpAddress(ip.into())),
        );
        pki.issue("apiserver", "kube-apiserver", None, sans)?;
        pki.issue("apiserver-kubelet", "kube-apiserver-kubelet-client", Some(ADMINS), Vec::new())?;
        pki.user("admin", "admin", Some(ADMINS))?;
        for name in ["kube-controller-manager", "kube-scheduler", "kube-proxy"] {
            pki.user(name, &format!("system:{name}"), None)?;
        }
        Ok(pki)
    }

    /// Certificate, key and kubeconfig of a node, whose kubelet also serves.
    pub fn node(&self, name: &str, address: IpAddr) -> Result<()> {
        let sans = vec![SanType::DnsName(name.try_into()?), SanType::IpAddress(address)];
        self.issue(name, &format!("system:node:{name}"), Some("system:nodes"), sans)?;
        self.kubeconfig(name)
    }

    /// Certificate, key and kubeconfig of a client; returns the kubeconfig's path.
    pub fn user(&self, file: &str, name: &str, group: Option<&str>) -> Result<PathBuf> {
        self.issue(file, name, group, Vec::new())?;
        self.kubeconfig(file)?;
        Ok(self.file(&format!("{file}.kubeconfig")))
    }

    /// A file of the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn issue(&self, file: &str, name: &str, group: Option<&str>, sans: Vec<SanType>) -> Result<()> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.subject_alt_names = sans;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.distinguished_name.push(DnType::CommonName, name);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        let leaf = params.signed_by(&key, &self.issuer).with_context(|| format!("certificate of {name}"))?;
        fs::write(self.file(&format!("{file}.crt")), leaf.pem())?;
        Ok(fs::write(self.file(&format!("{file}.key")), key.serialize_pem())?)
    }

    fn kubeconfig(&self, file: &str) -> Result<()> {
        let path = |end: &str| self.file(&format!("{file}.{end}")).display().to_string();
        let text = serde_json::json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "k", "cluster": {"server": format!("https://{}:{API_PORT}", net::UNDERLAY),
                "certificate-authority": self.file("ca.crt")}}],
            "users": [{"name": "u", "user": {"client-certificate": path("crt"), "client-key": path("key")}}],
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}]});
        Ok(fs::write(path("kubeconfig"), serde_json::to_string_pretty(&text)?)?)
    }
}
