//! Keeps the shelf in a ConfigMap: read before anything is compiled, followed, and written by whoever holds
//! the lease (decision 0037).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::StreamExt;
use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client,
    api::PostParams,
    runtime::watcher::{Config, Event, watcher},
};
use tokio::{
    sync::{mpsc, watch},
    time,
};

use super::{WATCH_SECONDS, backoff::Backoff, health::Health};
use crate::{shelf::Shelf, source::api::Change};

/// Name of the ConfigMap.
pub const NAME: &str = "culvert-state";
/// A request that takes longer failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// The ConfigMap of a namespace.
#[derive(Clone)]
pub struct State {
    maps: Api<ConfigMap>,
    shelf: Shelf,
    health: Health,
    /// The version that is on the shelf.
    seen: Arc<Mutex<Option<String>>>,
}

impl State {
    /// Nothing is read yet.
    pub fn new(client: Client, namespace: &str, shelf: Shelf, health: Health) -> Self {
        Self { maps: Api::namespaced(client, namespace), shelf, health, seen: Arc::default() }
    }

    /// Fills the shelf; tries until it is known what is kept, or that nothing is.
    pub async fn load(&self) {
        let mut backoff = Backoff::new();
        loop {
            match time::timeout(PATIENCE, self.maps.get_opt(NAME)).await {
                Ok(Ok(map)) => {
                    map.map(|map| self.receive(map));
                    return self.health.told(NAME, true);
                }
                Ok(Err(error)) => self.health.failed_to(NAME, &error),
                Err(_) => self.health.slow(NAME, PATIENCE),
            }
            time::sleep(backoff.next()).await;
        }
    }

    fn seen(&self) -> MutexGuard<'_, Option<String>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn receive(&self, map: ConfigMap) -> bool {
        let mut seen = self.seen();
        let again = *seen == map.metadata.resource_version;
        *seen = map.metadata.resource_version;
        !again && self.shelf.receive(map.data.unwrap_or_default())
    }

    /// Takes over what another replica writes and tells so, until nobody listens.
    pub async fn follow(self, out: mpsc::Sender<Change>) {
        let only = Config::default().fields(&format!("metadata.name={NAME}")).timeout(WATCH_SECONDS);
        let mut events = watcher(self.maps.clone(), only).boxed();
        let (mut backoff, mut listed) = (Backoff::new(), false);
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Apply(map) | Event::InitApply(map)) => {
                    listed = true;
                    self.health.told(NAME, false);
                    if self.receive(map) && out.send(Change::Shared).await.is_err() {
                        return;
                    }
                }
                Ok(Event::Init) => listed = false,
                Ok(Event::InitDone) if listed => backoff.reset(),
                // Somebody deleted it: what is known here is written again.
                Ok(Event::InitDone | Event::Delete(_)) => {
                    *self.seen() = None;
                    self.shelf.touch();
                }
                Err(error) => {
                    self.health.failed(NAME, &error);
                    time::sleep(backoff.next()).await;
                }
            }
        }
    }

    /// Writes what this replica adds to the shelf while it holds the lease, for ever.
    pub async fn keep(self, mut held: watch::Receiver<bool>) {
        let mut written = self.shelf.written();
        let mut backoff = Backoff::new();
        loop {
            if held.wait_for(|held| *held).await.is_err() {
                return;
            }
            written.mark_unchanged();
            match self.write().await {
                Ok(()) => {
                    backoff.reset();
                    let lost = held.clone();
                    tokio::select! {
                        changed = written.changed() => if changed.is_err() { return },
                        () = unheld(lost) => {}
                    }
                }
                Err(error) => {
                    self.health.failed_to(NAME, &error);
                    time::sleep(backoff.next()).await;
                }
            }
        }
    }

    /// One write, and only on the version that is on the shelf: another's comes by the watch, and what is
    /// missing in it is put on the shelf again.
    async fn write(&self) -> Result<(), kube::Error> {
        let data = self.shelf.all();
        let version = self.seen().clone();
        let settings = PostParams::default();
        let kept = match version {
            None if data.is_empty() => return Ok(()),
            None => self.maps.create(&settings, &map(data, None)).await?,
            version => self.maps.replace(NAME, &settings, &map(data, version)).await?,
        };
        *self.seen() = kept.metadata.resource_version;
        Ok(())
    }
}

/// Ends when the lease is lost.
async fn unheld(mut held: watch::Receiver<bool>) {
    if held.wait_for(|held| !*held).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn map(data: BTreeMap<String, String>, version: Option<String>) -> ConfigMap {
    let labels = [("app.kubernetes.io/part-of", "culvert"), ("culvert.dev/managed-by", "control")];
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(NAME.into()),
            labels: Some(labels.map(|(key, value)| (key.into(), value.into())).into()),
            resource_version: version,
            ..ObjectMeta::default()
        },
        data: Some(data),
        ..ConfigMap::default()
    }
}
