//! One certificate per identity per program: issued on first use, renewed at half-life, kept until it
//! expires when the CA is away, forgotten when nobody holds it any more.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use mesh_core::identity::Identity;
use rand::Rng;
use tokio::sync::{Semaphore, watch};

use super::{Issued, SignError, Signer};

/// Limits of the manager.
#[derive(Debug, Clone)]
pub struct ManagerConfig {
    /// Requests under way at once.
    pub concurrent: usize,
    /// First wait after a failure; doubled up to `last_backoff`.
    pub first_backoff: Duration,
    /// Longest wait after a failure.
    pub last_backoff: Duration,
    /// Time over which certificates that are all to be renewed are asked for.
    pub spread: Duration,
}

impl Default for ManagerConfig {
    fn default() -> Self {
        Self {
            concurrent: 8,
            first_backoff: Duration::from_millis(200),
            last_backoff: Duration::from_secs(150),
            spread: Duration::from_secs(5),
        }
    }
}

/// What is known about an identity's certificate.
#[derive(Debug, Clone)]
pub enum CertState {
    /// The first request is under way.
    Pending,
    /// Usable.
    Ready(Arc<Issued>),
    /// None, or expired; another try follows by itself.
    Unavailable(SignError),
}

/// Keeps certificates. Dropping the last receiver of an identity ends its renewal.
pub struct CertificateManager<S> {
    signer: Arc<S>,
    config: ManagerConfig,
    requests: Arc<Semaphore>,
    identities: Arc<Identities>,
    again: watch::Sender<()>,
    renew: watch::Sender<()>,
}

/// Has every certificate renewed before its time; see [`CertificateManager::renewer`].
#[derive(Debug, Clone)]
pub struct Renewer(watch::Sender<()>);

impl Renewer {
    /// Asks for every certificate anew, spread over a few seconds. What there is stays in use meanwhile.
    pub fn renew(&self) {
        self.0.send_replace(());
    }
}

type Identities = Mutex<HashMap<Identity, watch::Sender<CertState>>>;

impl<S: Signer> CertificateManager<S> {
    /// Starts with nothing.
    pub fn new(signer: S, config: ManagerConfig) -> Self {
        let requests = Arc::new(Semaphore::new(config.concurrent));
        let (again, renew) = (watch::Sender::new(()), watch::Sender::new(()));
        Self { signer: Arc::new(signer), config, requests, identities: Arc::default(), again, renew }
    }

    /// For who learns that certificates should be renewed: the accepted roots are others.
    pub fn renewer(&self) -> Renewer {
        Renewer(self.renew.clone())
    }

    /// Asks again at once for what could not be had: to be called when the authority is known to be back.
    pub fn hurry(&self) {
        self.again.send_replace(());
    }

    /// Follows the certificate of an identity. Must be called on a tokio runtime, which runs the renewal.
    pub fn subscribe(&self, identity: &Identity) -> watch::Receiver<CertState> {
        let mut identities = self.identities.lock().unwrap_or_else(PoisonError::into_inner);
        identities.retain(|_, sender| !sender.is_closed());
        if let Some(sender) = identities.get(identity) {
            return sender.subscribe();
        }
        let sender = watch::Sender::new(CertState::Pending);
        let receiver = sender.subscribe();
        identities.insert(identity.clone(), sender.clone());
        let keep = Renewal {
            identity: identity.clone(),
            signer: self.signer.clone(),
            requests: self.requests.clone(),
            config: self.config.clone(),
            state: sender,
            identities: self.identities.clone(),
            again: self.again.subscribe(),
            renew: self.renew.subscribe(),
        };
        tokio::spawn(keep.run());
        receiver
    }

    /// State of every identity, for `/debug`.
    pub fn states(&self) -> Vec<(Identity, CertState)> {
        let identities = self.identities.lock().unwrap_or_else(PoisonError::into_inner);
        identities.iter().map(|(identity, sender)| (identity.clone(), sender.borrow().clone())).collect()
    }
}

struct Renewal<S> {
    identity: Identity,
    signer: Arc<S>,
    requests: Arc<Semaphore>,
    config: ManagerConfig,
    state: watch::Sender<CertState>,
    identities: Arc<Identities>,
    again: watch::Receiver<()>,
    renew: watch::Receiver<()>,
}

impl<S: Signer> Renewal<S> {
    async fn run(mut self) {
        let mut backoff = self.config.first_backoff;
        loop {
            self.again.mark_unchanged();
            self.renew.mark_unchanged();
            let answer = self.issue().await;
            let failed = answer.is_err();
            let wait = match answer {
                Ok(issued) => {
                    backoff = self.config.first_backoff;
                    let wait = until_half_life(&issued, SystemTime::now());
                    self.state.send_replace(CertState::Ready(Arc::new(issued)));
                    wait
                }
                Err(error) => {
                    tracing::warn!(identity = %self.identity, %error, "certificate request failed");
                    let wait = backoff.mul_f64(rand::rng().random_range(0.8..1.2));
                    backoff = (backoff * 2).min(self.config.last_backoff);
                    self.keep_or_give_up(error, wait)
                }
            };
            tokio::select! {
                () = self.state.closed() => {
                    if self.forgotten() {
                        return;
                    }
                }
                Ok(()) = self.again.changed(), if failed => backoff = self.config.first_backoff,
                Ok(()) = self.renew.changed() => {
                    let part = rand::rng().random();
                    tokio::time::sleep(self.config.spread.mul_f64(part)).await;
                }
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Leaves the table, unless somebody subscribed again meanwhile: decided under the table's lock,
    /// which new subscribers hold too.
    fn forgotten(&self) -> bool {
        let mut identities = self.identities.lock().unwrap_or_else(PoisonError::into_inner);
        let over = self.state.is_closed();
        if over && identities.get(&self.identity).is_some_and(|sender| sender.same_channel(&self.state)) {
            identities.remove(&self.identity);
        }
        over
    }

    async fn issue(&self) -> Result<Issued, SignError> {
        let _slot = self.requests.acquire().await;
        self.signer.sign(&self.identity).await
    }

    /// A certificate that is still valid stays in use; the next try is no later than its end.
    fn keep_or_give_up(&self, error: SignError, wait: Duration) -> Duration {
        let mut left = Duration::ZERO;
        self.state.send_if_modified(|state| {
            if let CertState::Ready(issued) = state {
                left = issued.not_after.duration_since(SystemTime::now()).unwrap_or_default();
            }
            let over = left.is_zero();
            if over {
                *state = CertState::Unavailable(error);
            }
            over
        });
        if left.is_zero() { wait } else { wait.min(left) }
    }
}

/// Half of the validity, a little earlier at random so that a fleet does not renew at once.
fn until_half_life(issued: &Issued, now: SystemTime) -> Duration {
    let life = issued.not_after.duration_since(issued.not_before).unwrap_or_default();
    let jitter = rand::rng().random_range(0.95..1.0);
    let renew_at = issued.not_before + life.mul_f64(0.5 * jitter);
    renew_at.duration_since(now).unwrap_or_default().max(Duration::from_millis(100))
}
