//! Mutual TLS 1.3 with SPIFFE identities: the peer's chain must end in the mesh's roots, and its
//! identity, not a host name, is what is checked.

use std::sync::Arc;

use mesh_core::identity::Identity;
use mesh_net::ca::Issued;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{VerifierBuilderError, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::TLS13,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// A certificate that cannot be used for TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Key, chain or roots do not fit.
    #[error("certificate cannot be used: {0}")]
    Rustls(#[from] Error),
    /// The roots cannot be used.
    #[error("roots cannot be used: {0}")]
    Roots(#[from] VerifierBuilderError),
}

/// The SPIFFE identity in a certificate: its only URI name.
pub fn identity_of(certificate: &CertificateDer<'_>) -> Option<Identity> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => uri.parse().ok(),
        _ => None,
    }
}

/// The server's side: any identity of the own trust domain is let in; what it may do is for policy.
///
/// # Errors
/// The certificate cannot be used.
pub fn server_config(own: &Issued) -> Result<ServerConfig, TlsError> {
    let verifier = Arc::new(ByIdentity {
        chain: chain_verifier(own)?,
        accept: Accept::TrustDomain(own.identity.trust_domain.clone()),
    });
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(own.chain.clone(), own.key.clone_key())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// The client's side: the peer must be exactly `expected`.
///
/// # Errors
/// The certificate cannot be used.
pub fn client_config(own: &Issued, expected: Identity) -> Result<ClientConfig, TlsError> {
    let verifier = Arc::new(ByIdentity { chain: chain_verifier(own)?, accept: Accept::Exactly(expected) });
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(own.chain.clone(), own.key.clone_key())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.enable_sni = false;
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn chain_verifier(own: &Issued) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    for root in &own.roots {
        roots.add(root.clone())?;
    }
    Ok(WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build()?)
}

#[derive(Debug)]
enum Accept {
    TrustDomain(Arc<str>),
    Exactly(Identity),
}

/// Chain and validity by webpki, then the identity.
#[derive(Debug)]
struct ByIdentity {
    chain: Arc<dyn ClientCertVerifier>,
    accept: Accept,
}

impl ByIdentity {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let identity =
            identity_of(certificate).ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let accepted = match &self.accept {
            Accept::TrustDomain(domain) => identity.trust_domain == *domain,
            Accept::Exactly(expected) => identity == *expected,
        };
        match accepted {
            true => Ok(()),
            false => Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)),
        }
    }
}

impl ServerCertVerifier for ByIdentity {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.chain.verify_client_cert(end_entity, intermediates, now)?;
        self.check(end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

impl ClientCertVerifier for ByIdentity {
    fn root_hint_subjects(&self) -> &[rustls::DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<rustls::server::danger::ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        self.check(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
