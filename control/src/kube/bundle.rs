//! The accepted roots in every namespace: ConfigMap `culvert-ca-root-cert`, which agents and waypoints mount.
//! Written, and repaired when somebody changes or deletes it, by the lease holder.

use std::{collections::HashMap, pin::pin, time::Duration};

use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use serde_json::json;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{MANAGER, health::unwatched, lease::while_held, secret::bundle};
use crate::ca::Authority;

/// Name of the ConfigMap.
pub const NAME: &str = "culvert-ca-root-cert";
/// Its key.
pub const KEY: &str = "root-cert.pem";
/// Requests at one time.
const CONCURRENT: usize = 8;
/// Longest request.
const REQUEST: Duration = Duration::from_secs(10);
/// What failed is tried again after this.
const AGAIN: Duration = Duration::from_secs(2);

/// Writes while the lease is held.
pub async fn distribute(client: Client, authority: Authority, mut held: watch::Receiver<bool>) {
    while_held(&mut held, || {
        let (client, mut authority) = (client.clone(), authority.clone());
        async move {
            let roots = bundle([authority.there().await.roots()]);
            let mut writer = Writer { client, roots, namespaces: HashMap::new() };
            writer.run(authority).await;
            // A watch ended: from the beginning.
            sleep(AGAIN).await;
        }
    })
    .await;
}

/// What is known of a namespace.
#[derive(Debug, Default, Clone)]
struct Place {
    /// It is there and not going away.
    active: bool,
    /// The bundle in it.
    holds: Option<String>,
}

impl Place {
    fn lacks(&self, roots: &str) -> bool {
        self.active && self.holds.as_deref() != Some(roots)
    }
}

struct Writer {
    client: Client,
    roots: String,
    namespaces: HashMap<String, Place>,
}

impl Writer {
    async fn run(&mut self, mut authority: Authority) {
        let namespaces = Api::<Namespace>::all(self.client.clone());
        let maps = Api::<ConfigMap>::all(self.client.clone());
        let named = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
        let mut namespaces = pin!(watcher(namespaces, watcher::Config::default()).default_backoff());
        let mut maps = pin!(watcher(maps, named).default_backoff());
        let (mut listed, mut read) = (false, false);
        let mut failed = false;
        loop {
            tokio::select! {
                event = namespaces.next() => match event {
                    Some(Ok(event)) => listed |= self.namespace(event),
                    Some(Err(error)) => unwatched("namespaces", &error),
                    None => return,
                },
                event = maps.next() => match event {
                    Some(Ok(event)) => read |= self.map(event),
                    Some(Err(error)) => unwatched(NAME, &error),
                    None => return,
                },
                () = authority.changed() => self.roots = bundle([authority.there().await.roots()]),
                () = sleep(AGAIN), if failed => {}
            }
            // Before both lists are whole every namespace looks as if it had none.
            if listed && read {
                failed = !self.write().await;
            }
        }
    }

    /// Takes in an event; true at the end of a list.
    fn namespace(&mut self, event: Event<Namespace>) -> bool {
        match event {
            Event::Init => self.namespaces.values_mut().for_each(|place| place.active = false),
            Event::InitDone => return true,
            Event::Apply(namespace) | Event::InitApply(namespace) => {
                let going = namespace.metadata.deletion_timestamp.is_some();
                self.namespaces.entry(namespace.name_any()).or_default().active = !going;
            }
            Event::Delete(namespace) => drop(self.namespaces.remove(&namespace.name_any())),
        }
        false
    }

    fn map(&mut self, event: Event<ConfigMap>) -> bool {
        match event {
            Event::Init => self.namespaces.values_mut().for_each(|place| place.holds = None),
            Event::InitDone => return true,
            Event::Apply(map) | Event::InitApply(map) => {
                let namespace = map.namespace().unwrap_or_default();
                let holds = map.data.and_then(|mut data| data.remove(KEY));
                self.namespaces.entry(namespace).or_default().holds = holds;
            }
            Event::Delete(map) => {
                if let Some(place) = self.namespaces.get_mut(&map.namespace().unwrap_or_default()) {
                    place.holds = None;
                }
            }
        }
        false
    }

    /// Writes where it is missing or another; true when nothing is left to do.
    async fn write(&mut self) -> bool {
        let lacking = self.namespaces.iter().filter(|(_, place)| place.lacks(&self.roots));
        let lacking: Vec<String> = lacking.map(|(name, _)| name.clone()).collect();
        let writes = stream::iter(lacking).map(|namespace| async {
            let done = apply(&self.client, &namespace, &self.roots).await;
            (namespace, done)
        });
        let done: Vec<(String, Result<(), String>)> = writes.buffer_unordered(CONCURRENT).collect().await;
        let mut all = true;
        for (namespace, outcome) in done {
            match outcome {
                Ok(()) => {
                    let holds = Some(self.roots.clone());
                    if let Some(place) = self.namespaces.get_mut(&namespace) {
                        place.holds = holds;
                    }
                }
                Err(error) => {
                    all = false;
                    tracing::warn!(namespace, error, "ConfigMap {NAME} cannot be written; tried again");
                }
            }
        }
        all
    }
}

async fn apply(client: &Client, namespace: &str, roots: &str) -> Result<(), String> {
    let labels = json!({"app.kubernetes.io/part-of": "culvert", super::MANAGED_BY: super::CONTROL});
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": NAME, "namespace": namespace, "labels": labels},
        "data": {KEY: roots},
    });
    let maps = Api::<ConfigMap>::namespaced(client.clone(), namespace);
    let params = PatchParams::apply(MANAGER).force();
    let patch = Patch::Apply(&map);
    let answer = timeout(REQUEST, maps.patch(NAME, &params, &patch)).await;
    match answer.map_err(|_| format!("no answer within {} s", REQUEST.as_secs()))? {
        Ok(_) => Ok(()),
        // The namespace is going, or gone: its own event says so in a moment.
        Err(kube::Error::Api(status))
            if status.code == 404 || status.message.contains("being terminated") =>
        {
            Ok(())
        }
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_lacks_the_bundle_until_it_holds_just_this_one_and_not_when_it_goes_away() {
        let place = |active, holds: Option<&str>| Place { active, holds: holds.map(Into::into) };
        assert!(place(true, None).lacks("a"));
        assert!(place(true, Some("b")).lacks("a"));
        assert!(!place(true, Some("a")).lacks("a"));
        assert!(!place(false, None).lacks("a"));
    }
}
