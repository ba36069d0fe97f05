//! Certificates from the control plane (`IstioCertificateService`), one per identity, renewed at half-life.

mod manager;
mod roots;

use std::{future::Future, pin::Pin, time::SystemTime};

use mesh_core::identity::Identity;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, SanType, string::Ia5String};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use tonic::{Code, Request};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

pub use manager::{CertState, CertificateManager, ManagerConfig, Renewer};
pub use roots::follow_roots;

use crate::{
    api::istio::v1::auth::{
        IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient,
    },
    xds::{ControlEndpoint, EndpointError},
};

/// How long a request may take; one that hangs must not hold its slot for ever.
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(10);

/// An issued certificate. The key exists only in memory and is never printed.
pub struct Issued {
    /// Whose it is.
    pub identity: Identity,
    /// Leaf first, then intermediates.
    pub chain: Vec<CertificateDer<'static>>,
    /// Roots that peers' certificates must chain to.
    pub roots: Vec<CertificateDer<'static>>,
    /// Private key of the leaf.
    pub key: PrivateKeyDer<'static>,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued")
            .field("identity", &self.identity)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// Why there is no certificate.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum SignError {
    /// The CA cannot be reached; worth another try.
    #[error("certificate authority cannot be reached: {0}")]
    Unreachable(String),
    /// The CA said no.
    #[error("certificate authority refused {identity}: {reason}")]
    Refused {
        /// For whom.
        identity: Identity,
        /// What it said.
        reason: String,
    },
    /// The answer cannot be used.
    #[error("certificate authority's answer for {identity} cannot be used: {problem}")]
    BadAnswer {
        /// For whom.
        identity: Identity,
        /// What is wrong.
        problem: String,
    },
}

/// Issues certificates.
pub trait Signer: Send + Sync + 'static {
    /// Issues a certificate for an identity with a fresh key.
    fn sign<'a>(
        &'a self,
        identity: &'a Identity,
    ) -> Pin<Box<dyn Future<Output = Result<Issued, SignError>> + Send + 'a>>;
}

/// The control plane's certificate service.
#[derive(Debug, Clone)]
pub struct IstioCa {
    /// Server.
    pub endpoint: ControlEndpoint,
    /// Validity to ask for, seconds.
    pub validity_seconds: i64,
    /// Ask on behalf of the pod (`ImpersonatedIdentity`): node agents do, waypoints ask for themselves.
    pub impersonate: bool,
}

impl Signer for IstioCa {
    fn sign<'a>(
        &'a self,
        identity: &'a Identity,
    ) -> Pin<Box<dyn Future<Output = Result<Issued, SignError>> + Send + 'a>> {
        Box::pin(self.request(identity))
    }
}

impl IstioCa {
    async fn request(&self, identity: &Identity) -> Result<Issued, SignError> {
        let bad = |problem: String| SignError::BadAnswer { identity: identity.clone(), problem };
        let (key, csr) = csr(identity).map_err(|error| bad(error.to_string()))?;
        let unreachable = |error: EndpointError| SignError::Unreachable(error.to_string());
        let channel = self.endpoint.connect().await.map_err(unreachable)?;
        let mut request = Request::new(IstioCertificateRequest {
            csr,
            validity_duration: self.validity_seconds,
            metadata: self.impersonate.then(|| impersonation(identity)),
        });
        self.endpoint.authorize(&mut request).map_err(unreachable)?;
        let mut client = IstioCertificateServiceClient::new(channel);
        let answer = tokio::time::timeout(DEADLINE, client.create_certificate(request))
            .await
            .map_err(|_| SignError::Unreachable(format!("no answer within {} s", DEADLINE.as_secs())))?;
        let answer = answer.map_err(|status| match status.code() {
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => {
                SignError::Unreachable(status.message().into())
            }
            code => SignError::Refused {
                identity: identity.clone(),
                reason: format!("{code:?}: {}", status.message()),
            },
        })?;
        issued(identity, &answer.into_inner().cert_chain, &key).map_err(bad)
    }
}

fn csr(identity: &Identity) -> Result<(KeyPair, String), rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(identity.to_string())?)];
    let csr = params.serialize_request(&key)?.pem()?;
    Ok((key, csr))
}

fn impersonation(identity: &Identity) -> prost_types::Struct {
    let kind = Some(prost_types::value::Kind::StringValue(identity.to_string()));
    let fields = [("ImpersonatedIdentity".to_string(), prost_types::Value { kind })].into_iter().collect();
    prost_types::Struct { fields }
}

/// Checks and parses the answer: leaf, intermediates, and the root bundle as the last element.
///
/// # Errors
/// What is wrong with it; the certificate is then not used.
pub fn issued(identity: &Identity, pems: &[String], key: &KeyPair) -> Result<Issued, String> {
    let [certificates @ .., roots] = pems else { return Err("it is empty".into()) };
    if certificates.is_empty() {
        return Err("the root bundle is missing".into());
    }
    let parse = |pem: &String| -> Result<Vec<CertificateDer<'static>>, String> {
        CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| format!("not PEM: {error}"))
    };
    let chain: Vec<_> = certificates.iter().map(parse).collect::<Result<Vec<_>, _>>()?.concat();
    let leaf = chain.first().ok_or("there is no certificate in it")?;
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|error| format!("leaf: {error}"))?;
    let uri = leaf.subject_alternative_name().ok().flatten().and_then(|san| {
        san.value.general_names.iter().find_map(|name| match name {
            GeneralName::URI(uri) => Some((*uri).to_string()),
            _ => None,
        })
    });
    if uri.as_deref() != Some(&*identity.to_string()) {
        return Err(format!("it is for {}", uri.unwrap_or_else(|| "nobody".into())));
    }
    let time = |t: x509_parser::time::ASN1Time| {
        SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(u64::try_from(t.timestamp()).unwrap_or(0))
    };
    let (not_before, not_after) = (time(leaf.validity().not_before), time(leaf.validity().not_after));
    let roots = parse(roots)?;
    if roots.is_empty() {
        return Err("the root bundle is empty".into());
    }
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok(Issued { identity: identity.clone(), chain, roots, key, not_before, not_after })
}

#[cfg(test)]
mod tests;
