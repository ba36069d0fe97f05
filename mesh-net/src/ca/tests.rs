use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rcgen::{BasicConstraints, CertifiedIssuer, IsCa};
use tokio::sync::watch;

use super::*;

/// An in-memory CA that can be made to fail.
#[derive(Clone)]
struct FakeCa {
    root: Arc<CertifiedIssuer<'static, KeyPair>>,
    life: Duration,
    asked: Arc<AtomicUsize>,
    failure: Arc<Mutex<Option<SignError>>>,
}

fn ca(life: Duration) -> FakeCa {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    FakeCa { root: Arc::new(root), life, asked: Arc::default(), failure: Arc::default() }
}

impl FakeCa {
    fn pems(&self, identity: &Identity, key: &KeyPair) -> Vec<String> {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(identity.to_string()).unwrap())];
        params.not_before = SystemTime::now().into();
        params.not_after = (SystemTime::now() + self.life).into();
        vec![params.signed_by(key, &self.root).unwrap().pem(), self.root.pem()]
    }
}

impl Signer for FakeCa {
    fn sign<'a>(
        &'a self,
        identity: &'a Identity,
    ) -> Pin<Box<dyn Future<Output = Result<Issued, SignError>> + Send + 'a>> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::Relaxed);
            if let Some(error) = self.failure.lock().unwrap().clone() {
                return Err(error);
            }
            let (key, _) = csr(identity).unwrap();
            Ok(issued(identity, &self.pems(identity, &key), &key).unwrap())
        })
    }
}

fn client() -> Identity {
    Identity::new("cluster.local", "default", "client")
}

async fn ready(receiver: &mut watch::Receiver<CertState>) -> Arc<Issued> {
    match &*receiver.wait_for(|state| matches!(state, CertState::Ready(_))).await.unwrap() {
        CertState::Ready(issued) => issued.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_answer_for_somebody_else_or_without_roots_is_refused() {
    let ca = ca(Duration::from_secs(60));
    let (key, request) = csr(&client()).unwrap();
    assert!(request.contains("CERTIFICATE REQUEST"));
    let good = ca.pems(&client(), &key);
    assert_eq!(issued(&client(), &good, &key).unwrap().chain.len(), 1);
    let other = Identity::new("cluster.local", "default", "other");
    assert_eq!(issued(&other, &good, &key).unwrap_err(), format!("it is for {}", client()));
    assert_eq!(issued(&client(), &good[..1], &key).unwrap_err(), "the root bundle is missing");
    assert_eq!(issued(&client(), &[], &key).unwrap_err(), "it is empty");
    assert!(issued(&client(), &["junk".into(), good[1].clone()], &key).is_err());
}

#[tokio::test]
async fn subscribers_of_one_identity_share_one_certificate() {
    let ca = ca(Duration::from_secs(3600));
    let manager = CertificateManager::new(ca.clone(), ManagerConfig::default());
    let (mut first, mut second) = (manager.subscribe(&client()), manager.subscribe(&client()));
    assert!(Arc::ptr_eq(&ready(&mut first).await, &ready(&mut second).await));
    assert_eq!((ca.asked.load(Ordering::Relaxed), manager.states().len()), (1, 1));
    drop((first, second));
    let mut other = manager.subscribe(&Identity::new("cluster.local", "default", "other"));
    ready(&mut other).await;
    assert_eq!(manager.states().len(), 1, "the identity that nobody follows is forgotten");
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_renewed_at_half_life_and_kept_when_the_ca_is_away() {
    let ca = ca(Duration::from_secs(3600));
    let manager = CertificateManager::new(ca.clone(), ManagerConfig::default());
    let mut certificate = manager.subscribe(&client());
    let first = ready(&mut certificate).await;
    let asked_at = tokio::time::Instant::now();
    *ca.failure.lock().unwrap() = Some(SignError::Unreachable("away".into()));
    while ca.asked.load(Ordering::Relaxed) < 3 {
        tokio::time::advance(Duration::from_secs(1)).await;
        tokio::task::yield_now().await;
    }
    let waited = asked_at.elapsed();
    assert!((1700..1815).contains(&waited.as_secs()), "half of an hour: {waited:?}");
    assert!(Arc::ptr_eq(&ready(&mut certificate).await, &first), "still the first one");
    *ca.failure.lock().unwrap() = None;
    certificate.mark_unchanged();
    certificate.changed().await.unwrap();
    assert!(!Arc::ptr_eq(&ready(&mut certificate).await, &first));
}

#[tokio::test(start_paused = true)]
async fn without_any_certificate_the_reason_is_told_and_the_next_try_helps() {
    let ca = ca(Duration::from_secs(3600));
    let refused = SignError::Refused { identity: client(), reason: "no such pod on this node".into() };
    *ca.failure.lock().unwrap() = Some(refused.clone());
    let manager = CertificateManager::new(ca.clone(), ManagerConfig::default());
    let mut certificate = manager.subscribe(&client());
    certificate
        .wait_for(|state| matches!(state, CertState::Unavailable(error) if *error == refused))
        .await
        .unwrap();
    *ca.failure.lock().unwrap() = None;
    ready(&mut certificate).await;
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_had_is_asked_for_at_once_when_the_authority_is_back_and_nothing_else_is() {
    let ca = ca(Duration::from_secs(3600));
    let manager = CertificateManager::new(ca.clone(), ManagerConfig::default());
    let other = Identity::new("cluster.local", "default", "other");
    let mut held = manager.subscribe(&other);
    ready(&mut held).await;
    *ca.failure.lock().unwrap() = Some(SignError::Unreachable("away".into()));
    let mut missing = manager.subscribe(&client());
    // By now the next try is minutes away.
    tokio::time::sleep(Duration::from_secs(400)).await;
    *ca.failure.lock().unwrap() = None;
    let (asked, back) = (ca.asked.load(Ordering::Relaxed), tokio::time::Instant::now());
    manager.hurry();
    ready(&mut missing).await;
    assert!(back.elapsed() < Duration::from_secs(1), "{:?}", back.elapsed());
    manager.hurry();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(ca.asked.load(Ordering::Relaxed), asked + 1, "who has a certificate does not ask");
}

#[tokio::test(start_paused = true)]
async fn other_roots_in_the_file_have_certificates_renewed_and_a_file_that_is_away_or_the_same_has_not() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("root-cert.pem");
    std::fs::write(&file, "one").unwrap();
    let ca = ca(Duration::from_secs(24 * 3600));
    let manager = CertificateManager::new(ca.clone(), ManagerConfig::default());
    let mut certificate = manager.subscribe(&client());
    let first = ready(&mut certificate).await;
    let cancel = tokio_util::sync::CancellationToken::new();
    let following = tokio::spawn(follow_roots(file.clone(), manager.renewer(), cancel.clone()));
    let minute = || tokio::time::sleep(Duration::from_secs(60));
    minute().await;
    std::fs::remove_file(&file).unwrap();
    minute().await;
    std::fs::write(&file, "").unwrap();
    minute().await;
    std::fs::write(&file, "one").unwrap();
    minute().await;
    assert_eq!(ca.asked.load(Ordering::Relaxed), 1);
    *ca.failure.lock().unwrap() = Some(SignError::Unreachable("away".into()));
    std::fs::write(&file, "one two").unwrap();
    minute().await;
    assert!(Arc::ptr_eq(&ready(&mut certificate).await, &first), "a renewal that fails takes nothing away");
    *ca.failure.lock().unwrap() = None;
    std::fs::write(&file, "two").unwrap();
    minute().await;
    assert!(!Arc::ptr_eq(&ready(&mut certificate).await, &first), "renewed");
    cancel.cancel();
    following.await.unwrap();
}
