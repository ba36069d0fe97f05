//! Certificate authority: a self-signed root kept in the state folder, or a given intermediate.

mod authority;
mod material;
mod proof;

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use mesh_core::identity::Identity;
use mesh_net::api::istio::v1::auth::{
    IstioCertificateRequest, IstioCertificateResponse,
    istio_certificate_service_server::IstioCertificateService,
};
use prometheus::IntCounterVec;
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, ExtendedKeyUsagePurpose, Issuer,
    KeyPair, KeyUsagePurpose, SanType, string::Ia5String,
};
use time::{Duration, OffsetDateTime};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

pub use self::{
    authority::{Authority, Installer},
    material::{Material, root},
};
use crate::{
    auth::{Caller, Callers},
    publish::Published,
};

/// Why there is no CA.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file cannot be read or written.
    #[error("{path} cannot be used")]
    File {
        /// Path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A key or certificate cannot be used or made.
    #[error("key or certificate cannot be used")]
    Certificate(#[from] rcgen::Error),
    /// What it issues is not accepted by who has its roots.
    #[error("a certificate made with this key, certificate and root bundle is not accepted")]
    NotAccepted(#[source] rustls::Error),
}

/// Issues certificates.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    chain: Vec<String>,
    roots: String,
    /// Longest life of a certificate, seconds.
    pub longest: i64,
}

/// Files of a given intermediate.
#[derive(Debug, Clone)]
pub struct Given {
    /// Certificate of the intermediate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Certificates between it and the root, if any.
    pub chain: Option<PathBuf>,
    /// Root bundle.
    pub root: PathBuf,
}

fn read(path: &Path) -> Result<String, CaError> {
    fs::read_to_string(path).map_err(|source| CaError::File { path: path.into(), source })
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), CaError> {
    let hidden = path.with_extension("tmp");
    let failed = |source| CaError::File { path: path.into(), source };
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&hidden)
        .map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&hidden, path).map_err(failed)
}

impl Ca {
    /// Opens the CA of a state folder, making its root at the first time, or uses a given intermediate.
    /// Writes `root-cert.pem` for clients.
    ///
    /// # Errors
    /// See [`CaError`].
    pub fn open(state: &Path, given: Option<&Given>, trust_domain: &str) -> Result<Self, CaError> {
        fs::create_dir_all(state).map_err(|source| CaError::File { path: state.into(), source })?;
        let ca = match given {
            Some(given) => Self::intermediate(given)?,
            None => Self::own(state, trust_domain)?,
        };
        proof::prove(&ca, trust_domain)?;
        write(&state.join("root-cert.pem"), &ca.roots, 0o644)?;
        Ok(ca)
    }

    fn own(state: &Path, trust_domain: &str) -> Result<Self, CaError> {
        let (key_file, cert_file) = (state.join("ca-key.pem"), state.join("ca-cert.pem"));
        if !key_file.exists() || !cert_file.exists() {
            let made = root(trust_domain)?;
            write(&key_file, &made.key, 0o600)?;
            write(&cert_file, &made.cert, 0o644)?;
        }
        Self::of(&Material::root(read(&cert_file)?, read(&key_file)?))
    }

    fn intermediate(given: &Given) -> Result<Self, CaError> {
        Self::of(&Material {
            cert: read(&given.cert)?,
            key: read(&given.key)?,
            chain: given.chain.as_deref().map(read).transpose()?,
            roots: read(&given.root)?,
            own: false,
        })
    }

    fn of(from: &Material) -> Result<Self, CaError> {
        let issuer = Issuer::from_ca_cert_pem(&from.cert, KeyPair::from_pem(&from.key)?)?;
        // Who has a root needs not to be told of it; an intermediate goes with every certificate.
        let cert = (!from.own).then(|| from.cert.clone());
        let chain = cert.into_iter().chain(from.chain.clone()).collect();
        Ok(Self { issuer, chain, roots: from.roots.clone(), longest: 24 * 3600 })
    }

    /// A CA from PEM texts, if what it issues is accepted by who has its root bundle.
    ///
    /// # Errors
    /// See [`CaError`].
    pub fn from_material(from: &Material, trust_domain: &str) -> Result<Self, CaError> {
        let ca = Self::of(from)?;
        proof::prove(&ca, trust_domain)?;
        Ok(ca)
    }

    /// PEM bundle of the accepted roots.
    pub fn roots(&self) -> &str {
        &self.roots
    }

    /// Chain for `identity` and the key of a CSR: leaf, intermediates, root bundle last. Only the key
    /// of the request is used; the rest is ours to say.
    ///
    /// # Errors
    /// The request cannot be used.
    pub fn sign(&self, identity: &Identity, csr: &str, seconds: i64) -> Result<Vec<String>, CaError> {
        let mut request = CertificateSigningRequestParams::from_pem(csr)?;
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(identity.to_string())?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = OffsetDateTime::now_utc() - Duration::minutes(2);
        let seconds = if seconds <= 0 { self.longest } else { seconds.min(self.longest) };
        params.not_after = OffsetDateTime::now_utc() + Duration::seconds(seconds);
        request.params = params;
        let leaf = request.signed_by(&self.issuer)?.pem();
        let chain = std::iter::once(leaf).chain(self.chain.iter().cloned());
        Ok(chain.chain([self.roots.clone()]).collect())
    }

    /// Certificate chain and key of our own server; as short-lived as any.
    ///
    /// # Errors
    /// A name cannot be in a certificate.
    pub fn server(&self, names: Vec<String>) -> Result<(String, String), CaError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names)?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.not_before = OffsetDateTime::now_utc() - Duration::minutes(5);
        params.not_after = OffsetDateTime::now_utc() + Duration::seconds(self.longest);
        let leaf = params.signed_by(&key, &self.issuer)?.pem();
        Ok((leaf + &self.chain.concat(), key.serialize_pem()))
    }
}

/// `IstioCertificateService`.
#[derive(Clone)]
pub struct CaService {
    /// The CA in use.
    pub ca: Authority,
    /// Who may call.
    pub callers: Callers,
    /// Which pods are where.
    pub current: watch::Receiver<Arc<Published>>,
    /// Our trust domain.
    pub trust_domain: Arc<str>,
    /// Certificates issued and requests refused.
    pub counts: IntCounterVec,
}

impl CaService {
    /// For whom a caller may have a certificate: a node for accounts of its pods, a waypoint for itself.
    ///
    /// # Errors
    /// `PermissionDenied` with the reason.
    #[allow(clippy::result_large_err, reason = "tonic's error type")]
    pub fn permit(&self, caller: &Caller, wanted: Option<&str>) -> Result<Identity, Status> {
        let denied = |reason: String| Status::permission_denied(reason);
        let wanted = wanted
            .map(|text| text.parse::<Identity>().map_err(|e| Status::invalid_argument(e.to_string())))
            .transpose()?;
        match caller {
            Caller::Waypoint(namespace, account) => {
                let own = Identity::new(self.trust_domain.clone(), namespace.clone(), account.clone());
                match wanted {
                    Some(other) if other != own => Err(denied(format!("{caller} may not ask for {other}"))),
                    _ => Ok(own),
                }
            }
            Caller::Node(node) => {
                let id = wanted.ok_or_else(|| denied(format!("{caller} names no identity")))?;
                if id.trust_domain != self.trust_domain {
                    return Err(denied(format!("trust domain {} is not ours", id.trust_domain)));
                }
                let entry = (node.clone(), id.namespace.clone(), id.service_account.clone());
                let current = self.current.borrow();
                if current.version == 0 {
                    return Err(Status::unavailable("nothing was read yet: nobody's pods are known"));
                }
                match current.accounts.contains(&entry) {
                    true => Ok(id),
                    false => Err(denied(format!("{caller} has no pod of {id}"))),
                }
            }
        }
    }
}

impl CaService {
    async fn issue(&self, request: &Request<IstioCertificateRequest>) -> Result<Vec<String>, Status> {
        let caller = self.callers.caller(request.metadata()).await?;
        let request = request.get_ref();
        let identity = self.permit(&caller, impersonated(request))?;
        let ca = self.ca.current().ok_or_else(|| Status::unavailable("there is no CA yet"))?;
        let signed = ca.sign(&identity, &request.csr, request.validity_duration);
        tracing::info!(%caller, %identity, "certificate issued");
        signed.map_err(|error| {
            Status::invalid_argument(format!("{error}: {:?}", std::error::Error::source(&error)))
        })
    }
}

fn impersonated(request: &IstioCertificateRequest) -> Option<&str> {
    match request.metadata.as_ref()?.fields.get("ImpersonatedIdentity")?.kind.as_ref()? {
        prost_types::value::Kind::StringValue(text) => Some(text),
        _ => None,
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CaService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        match self.issue(&request).await {
            Ok(cert_chain) => {
                self.counts.with_label_values(&["issued"]).inc();
                Ok(Response::new(IstioCertificateResponse { cert_chain }))
            }
            Err(status) => {
                self.counts.with_label_values(&["refused"]).inc();
                tracing::warn!(reason = %status.message(), "certificate refused");
                Err(status)
            }
        }
    }
}
