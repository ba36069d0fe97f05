//! A given intermediate CA: chain, and what is refused at start.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{error::Error as _, path::Path};

use control::ca::{Ca, CaError, Given};
use mesh_core::identity::Identity;
use mesh_net::ca::{IstioCa, Signer};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::{
    RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, UnixTime, pem::PemObject},
    server::WebPkiClientVerifier,
};
use support::{POD, Running, names};

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Files of a root and two intermediates below it: `upper`, and `lower` below that.
fn files(folder: &Path) -> Given {
    let key = || KeyPair::generate().unwrap();
    let (root_key, upper_key, lower_key) = (key(), key(), key());
    let root = authority("root").self_signed(&root_key).unwrap();
    let root_issuer = Issuer::new(authority("root"), root_key);
    let upper = authority("upper").signed_by(&upper_key, &root_issuer).unwrap();
    let upper_issuer = Issuer::new(authority("upper"), upper_key);
    let lower = authority("lower").signed_by(&lower_key, &upper_issuer).unwrap();
    let write = |name: &str, text: String| {
        std::fs::write(folder.join(name), text).unwrap();
        folder.join(name)
    };
    Given {
        cert: write("lower.pem", lower.pem()),
        key: write("lower.key", lower_key.serialize_pem()),
        chain: Some(write("upper.pem", upper.pem())),
        root: write("root.pem", root.pem()),
    }
}

fn ders(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect()
}

/// Whether who has only these roots accepts a chain.
fn accepted(roots: &str, chain: &[CertificateDer<'_>]) -> bool {
    let mut store = RootCertStore::empty();
    ders(roots).into_iter().for_each(|root| store.add(root).unwrap());
    let provider = std::sync::Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(store.into(), provider).build().unwrap();
    verifier.verify_client_cert(&chain[0], &chain[1..], UnixTime::now()).is_ok()
}

#[test]
fn a_chain_of_a_given_intermediate_is_leaf_intermediates_and_root_and_the_root_alone_verifies_it() {
    let folder = tempfile::tempdir().unwrap();
    let given = files(folder.path());
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    let ca = Ca::open(&folder.path().join("state"), Some(&given), "cluster.local").unwrap();
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::new(Vec::<String>::new()).unwrap().serialize_request(&key).unwrap();
    let id = Identity::new("cluster.local", "default", "web");
    let chain = ca.sign(&id, &csr.pem().unwrap(), 3600).unwrap();
    let (lower, upper, root) = (read(&given.cert), read(given.chain.as_ref().unwrap()), read(&given.root));
    assert_eq!(chain[1..], [lower, upper, root.clone()]);
    assert_eq!(read(&folder.path().join("state/root-cert.pem")), root);
    let sent = ders(&chain[..3].concat());
    assert_eq!(mesh_net::tls::identities(&sent[0]), [id]);
    assert!(accepted(&root, &sent));
    assert!(!accepted(&root, &sent[..2]), "without the upper one it is not");
    let other = authority("other").self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
    assert!(!accepted(&other, &sent), "and with another root neither");
}

#[test]
fn a_key_of_another_certificate_a_missing_link_or_a_wrong_root_is_refused_at_start() {
    let folder = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let (good, foreign) = (files(folder.path()), files(other.path()));
    let open = |given: &Given| Ca::open(&folder.path().join("state"), Some(given), "cluster.local").map(drop);
    for bad in [
        Given { key: foreign.key.clone(), ..good.clone() },
        Given { cert: foreign.cert.clone(), ..good.clone() },
        Given { chain: None, ..good.clone() },
        Given { root: foreign.root.clone(), ..good.clone() },
    ] {
        let error = open(&bad).unwrap_err();
        assert!(matches!(error, CaError::NotAccepted(_)), "{error}");
        assert!(error.source().is_some() && error.to_string().contains("is not accepted"));
    }
    assert!(!folder.path().join("state/root-cert.pem").exists(), "clients are not given its root");
    std::fs::write(folder.path().join("empty.pem"), "").unwrap();
    assert!(open(&Given { root: folder.path().join("empty.pem"), ..good.clone() }).is_err());
    assert!(matches!(open(&Given { root: "/nowhere".into(), ..good.clone() }), Err(CaError::File { .. })));
    open(&good).unwrap();
}

#[test]
fn a_state_folder_with_the_key_of_another_root_is_refused_at_start() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for state in [&one, &two] {
        Ca::open(state.path(), None, "cluster.local").unwrap();
    }
    Ca::open(one.path(), None, "cluster.local").unwrap();
    std::fs::copy(two.path().join("ca-key.pem"), one.path().join("ca-key.pem")).unwrap();
    assert!(matches!(Ca::open(one.path(), None, "cluster.local"), Err(CaError::NotAccepted(_))));
}

#[tokio::test]
async fn a_client_with_the_root_of_a_given_intermediate_connects_and_gets_certificates() {
    let folder = tempfile::tempdir().unwrap();
    let given = files(folder.path());
    let root = std::fs::read_to_string(&given.root).unwrap();
    let running = Running::start_with(&[("pod.yaml", POD)], Some(given)).await;
    let mut talk = running.stream("one").await;
    let first = talk.open(mesh_net::wire::ADDRESS_TYPE, &[]).await;
    assert_eq!(names(&first).len(), 1);
    let ca = IstioCa { endpoint: running.endpoint("one"), validity_seconds: 3600, impersonate: true };
    let issued = ca.sign(&Identity::new("cluster.local", "default", "client")).await.unwrap();
    assert_eq!((issued.chain.len(), &issued.roots), (3, &ders(&root)));
    assert!(accepted(&root, &issued.chain));
}
