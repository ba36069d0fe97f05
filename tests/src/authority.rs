//! Certificate authorities in the test's hands: the mesh's own, and one that nobody trusts.

use std::{
    fs,
    time::{Duration, SystemTime},
};

use anyhow::Result;
use mesh_core::identity::Identity;
use mesh_net::ca::Issued;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
    string::Ia5String,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::world::World;

/// Signs what a test wants.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    trusted: CertificateDer<'static>,
}

impl Authority {
    /// The mesh's own authority: its key is in the control plane's state.
    pub fn of(world: &World) -> Result<Self> {
        let read = |name: &str| fs::read_to_string(world.root.join("state/control").join(name));
        let issuer =
            Issuer::from_ca_cert_pem(&read("ca-cert.pem")?, KeyPair::from_pem(&read("ca-key.pem")?)?)?;
        Ok(Self { issuer, trusted: root(world)? })
    }

    /// An authority of its own; who has its certificates trusts the mesh, but not the other way round.
    pub fn stranger(world: &World) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self { issuer: Issuer::new(params, key), trusted: root(world)? })
    }

    /// A certificate for an identity that is valid now.
    pub fn issue(&self, identity: &Identity) -> Result<Issued> {
        self.issue_until(identity, SystemTime::now() + Duration::from_secs(3600))
    }

    /// A certificate that ends at a time, two hours after it began.
    pub fn issue_until(&self, identity: &Identity, end: SystemTime) -> Result<Issued> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(identity.to_string())?)];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let start = end - Duration::from_secs(7200);
        (params.not_before, params.not_after) = (start.into(), end.into());
        let leaf = params.signed_by(&key, &self.issuer)?;
        Ok(Issued {
            identity: identity.clone(),
            chain: vec![leaf.der().clone()],
            roots: vec![self.trusted.clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            not_before: start,
            not_after: end,
        })
    }
}

fn root(world: &World) -> Result<CertificateDer<'static>> {
    let parsed = pem::parse(fs::read_to_string(world.ca_root())?)?;
    Ok(CertificateDer::from(parsed.into_contents()))
}
