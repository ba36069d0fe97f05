//! The connection to the API server, and watches that survive it.

use std::{fmt::Debug, path::Path, time::Duration};

use futures_util::Stream;
use kube::{
    Api, Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{
        WatchStreamExt,
        utils::{Backoff, ResetTimerBackoff},
        watcher::{self, Event},
    },
};
use serde::de::DeserializeOwned;

/// The API server ends a watch after this time, in seconds; it is opened again where it was.
const WATCH_SECONDS: u32 = 240;
/// Nothing read for so long means that the connection is dead. Longer than a watch lasts.
const SILENCE: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 15);
/// Time for connecting.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Wait after the first failure, doubled with each further one.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// Longest wait.
const LAST_WAIT: Duration = Duration::from_secs(5);
/// A watch that lasted so long was a good one: the next failure is the first again.
const GOOD: Duration = Duration::from_secs(30);
/// Objects of one page of a list.
const PAGE: u32 = 500;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The kubeconfig.
    #[error("--kubeconfig {path} cannot be used")]
    Kubeconfig {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: kube::config::KubeconfigError,
    },
    /// The pod's own configuration.
    #[error("--kubernetes works in a pod with a service account, or with --kubeconfig FILE")]
    InCluster(#[from] kube::config::InClusterError),
    /// The client.
    #[error("the API server's client cannot be made")]
    Client(#[from] kube::Error),
}

/// A client by a kubeconfig, or by the pod's service account. Asks the API server nothing yet.
///
/// # Errors
/// The configuration is missing or wrong.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client, ClientError> {
    let mut config = match kubeconfig {
        Some(path) => {
            let failed = |source| ClientError::Kubeconfig { path: path.into(), source };
            let read = Kubeconfig::read_from(path).map_err(failed)?;
            Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.map_err(failed)?
        }
        None => Config::incluster()?,
    };
    config.connect_timeout = Some(CONNECT_LIMIT);
    config.read_timeout = Some(SILENCE);
    Ok(Client::try_from(config)?)
}

/// How a kind is watched.
pub(super) fn watch() -> watcher::Config {
    watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE)
}

/// A watch for ever: it lists again when the API server has forgotten where it was (410), and comes back
/// after failures, which are logged once each time that it fails after it had worked.
pub(super) fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
) -> impl Stream<Item = Result<Event<K>, watcher::Error>>
where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    watcher::watcher(api, config).backoff(ResetTimerBackoff::new(Waits(FIRST_WAIT), GOOD))
}

/// Doubling waits with up to a quarter of chance in them, so that agents do not come all at once.
struct Waits(Duration);

impl Iterator for Waits {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = self.0;
        self.0 = (wait * 2).min(LAST_WAIT);
        Some(wait.mul_f64(rand::random_range(0.75..1.25)))
    }
}

impl Backoff for Waits {
    fn reset(&mut self) {
        self.0 = FIRST_WAIT;
    }
}
