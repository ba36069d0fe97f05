//! Mutual TLS between workloads: TLS 1.3, ALPN `h2`, SPIFFE identities instead of host names.

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod verify;

use std::{io, sync::Arc};

use mesh_core::{identity::Identity, outcome::Reason};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName},
    server::NoServerSessionStorage,
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::ca::Issued;

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Key, chain or roots are unusable.
    #[error("certificate of {identity} cannot be used: {source}")]
    Unusable {
        /// Whose certificate.
        identity: Identity,
        /// What rustls says.
        source: Error,
    },
    /// No usable root certificate came with it.
    #[error("certificate of {0} came without a root")]
    NoRoots(Identity),
}

/// The two sides of mutual TLS for one workload certificate. Rotation makes a new one: connections
/// that exist keep what they were made with.
#[derive(Clone)]
pub struct WorkloadTls {
    identity: Identity,
    provider: Arc<CryptoProvider>,
    key: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
    server: Arc<ServerConfig>,
}

impl std::fmt::Debug for WorkloadTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkloadTls").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl WorkloadTls {
    /// Prepares a certificate for use.
    ///
    /// # Errors
    /// The key does not fit or no root parses.
    pub fn new(issued: &Issued) -> Result<Self, TlsError> {
        let identity = issued.identity.clone();
        let unusable = |source| TlsError::Unusable { identity: identity.clone(), source };
        let provider = Arc::new(provider());
        let signing = provider.key_provider.load_private_key(issued.key.clone_key()).map_err(unusable)?;
        let key = CertifiedKey::new(issued.chain.clone(), signing);
        key.keys_match().map_err(unusable)?;
        let key = Arc::new(key);
        let mut roots = RootCertStore::empty();
        let (usable, _) = roots.add_parsable_certificates(issued.roots.iter().cloned());
        if usable == 0 {
            return Err(TlsError::NoRoots(identity));
        }
        let roots = Arc::new(roots);
        let clients = verify::Clients::new(&roots, &provider, &identity).map_err(unusable)?;
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(Arc::new(clients))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone())));
        server.alpn_protocols = vec![b"h2".to_vec()];
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Self { identity, provider, key, roots, server: Arc::new(server) })
    }

    /// Whose certificate it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The server side: asks for a client certificate of the same trust domain.
    pub fn acceptor(&self) -> TlsAcceptor {
        self.server.clone().into()
    }

    /// The client side: the server must present one of `expected`; names are not looked at, no SNI.
    ///
    /// # Errors
    /// The crypto provider lacks TLS 1.3.
    pub fn connector(&self, expected: &[Identity]) -> Result<TlsConnector, Error> {
        let servers = verify::Servers::new(&self.roots, &self.provider, expected);
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(servers))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(self.key.clone())));
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.enable_sni = false;
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config).into())
    }
}

/// AES-GCM only, as ztunnel; P-256 and P-384 stay offered besides the hybrid key exchange.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![
        aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
    ];
    provider
}

/// The name given to rustls, which is neither sent nor checked.
pub(crate) fn no_name() -> ServerName<'static> {
    ServerName::IpAddress(std::net::IpAddr::from([0, 0, 0, 0]).into())
}

/// The workload identities (URI SANs that parse) of a certificate.
pub fn identities(certificate: &CertificateDer<'_>) -> Vec<Identity> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some(san)) = parsed.subject_alternative_name() else { return Vec::new() };
    let uris = san.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => uri.parse().ok(),
        _ => None,
    });
    uris.collect()
}

/// The peer's identity: the first URI SAN of its leaf that parses.
pub fn peer_identity(session: &rustls::CommonState) -> Option<Identity> {
    identities(session.peer_certificates()?.first()?).into_iter().next()
}

/// The reason behind a failed handshake.
pub fn handshake_reason(error: &io::Error) -> Reason {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(_) | Error::NoCertificatesPresented) => Reason::PeerIdentityRejected,
        _ => Reason::TlsFailed,
    }
}
