//! Whether what a CA issues is accepted by who has its root bundle: asked once at start, so that a key of
//! another certificate, a missing link or a wrong root is told there and not by every pod.

use std::sync::Arc;

use mesh_core::identity::Identity;
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    CertificateError, Error, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, UnixTime, pem::PemObject},
    server::WebPkiClientVerifier,
};

use super::{Ca, CaError};

/// Issues a certificate and verifies it as a client would that has only the root bundle.
///
/// # Errors
/// It is not accepted.
pub(super) fn prove(ca: &Ca, trust_domain: &str) -> Result<(), CaError> {
    let key = KeyPair::generate()?;
    let csr = CertificateParams::new(Vec::<String>::new())?.serialize_request(&key)?.pem()?;
    let chain = ca.sign(&Identity::new(trust_domain, "culvert", "proof"), &csr, 60)?;
    verify(&chain).map_err(CaError::NotAccepted)
}

/// Verifies leaf, intermediates and, last, the root bundle.
fn verify(chain: &[String]) -> Result<(), Error> {
    let unreadable = || Error::InvalidCertificate(CertificateError::BadEncoding);
    let parse = |pem: &str| -> Result<Vec<CertificateDer<'static>>, Error> {
        CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(|_| unreadable())
    };
    let (roots, rest) = chain.split_last().ok_or_else(unreadable)?;
    let mut store = RootCertStore::empty();
    for root in parse(roots)? {
        store.add(root)?;
    }
    let certificates = parse(&rest.concat())?;
    let (leaf, intermediates) = certificates.split_first().ok_or_else(unreadable)?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider)
        .build()
        .map_err(|_| Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
    verifier.verify_client_cert(leaf, intermediates, UnixTime::now()).map(drop)
}
