//! What a CA is made from, as PEM texts.

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose};
use time::{Duration, OffsetDateTime};

use super::CaError;

/// Key, certificates and root bundle of a CA.
#[derive(Clone, PartialEq, Eq)]
pub struct Material {
    /// Certificate that signs.
    pub cert: String,
    /// Its key.
    pub key: String,
    /// Certificates between it and the root, if any.
    pub chain: Option<String>,
    /// Bundle of accepted roots.
    pub roots: String,
    /// The certificate that signs is a root itself.
    pub own: bool,
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Material").field("cert", &self.cert).field("own", &self.own).finish_non_exhaustive()
    }
}

impl Material {
    /// A root that signs by itself.
    pub fn root(cert: String, key: String) -> Self {
        Self { roots: cert.clone(), cert, key, chain: None, own: true }
    }
}

/// Makes a root for ten years with a new key.
///
/// # Errors
/// No key can be made.
pub fn root(trust_domain: &str) -> Result<Material, CaError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain);
    params.distinguished_name.push(DnType::CommonName, "culvert root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = OffsetDateTime::now_utc() - Duration::minutes(5);
    params.not_after = OffsetDateTime::now_utc() + Duration::days(3650);
    let cert = params.self_signed(&key)?;
    Ok(Material::root(cert.pem(), key.serialize_pem()))
}
