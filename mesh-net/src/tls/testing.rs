//! A certificate authority in memory.

use std::time::{Duration, SystemTime};

use mesh_core::identity::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
    string::Ia5String,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::ca::Issued;

pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), root }
    }

    pub(crate) fn issue(&self, identity: &Identity) -> Issued {
        self.issue_until(identity, SystemTime::now() + Duration::from_secs(3600))
    }

    pub(crate) fn issue_until(&self, identity: &Identity, end: SystemTime) -> Issued {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(identity.to_string()).unwrap())];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let start = end - Duration::from_secs(7200);
        params.not_before = start.into();
        params.not_after = end.into();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        Issued {
            identity: identity.clone(),
            chain: vec![leaf.der().clone()],
            roots: vec![self.root.clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            not_before: start,
            not_after: end,
        }
    }
}

pub(crate) fn id(name: &str) -> Identity {
    Identity::new("cluster.local", "default", name)
}
