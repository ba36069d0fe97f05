//! Kubernetes as a source and as a place to write to: the client and the watches; who may ask (`tokens`), the
//! CA (`root`, `rotation`, `bundle`), who writes (`lease`), waypoints.

pub mod authority;
mod backoff;
pub mod bundle;
pub mod client;
pub mod health;
pub mod lease;
pub mod provision;
mod raw;
pub mod root;
pub mod rotation;
pub mod secret;
pub mod state;
mod supervise;
#[cfg(test)]
mod tests;
pub mod tokens;
mod watch;
pub mod webhook;
pub mod write;

use std::{collections::BTreeMap, sync::Arc};

use futures_util::StreamExt;
use kube::{
    Api, Client,
    api::ApiResource,
    runtime::watcher::{Config, watcher},
};
use tokio::sync::mpsc;

use self::{health::Health, state::State};
use crate::{
    disk::Place,
    memory::GOOD,
    shelf::Shelf,
    source::{api::Change, kinds::Kind},
};

pub use self::raw::Raw;

/// Field manager of what we apply.
pub const MANAGER: &str = "culvert";
/// Label of what we made.
pub const MANAGED_BY: &str = "culvert.dev/managed-by";
/// Its value.
pub const CONTROL: &str = "control";

/// Seconds after which a watch is asked for anew, and a dead connection is noticed five seconds later at
/// the latest. Taking a watch up again costs one request.
const WATCH_SECONDS: u32 = 60;

/// Follows every kind of the cluster that is of use and tells `out` what changes; until nobody listens.
/// What is remembered comes before anything else.
pub async fn follow(client: Client, state: State, shelf: Shelf, out: mpsc::Sender<Change>, health: Health) {
    state.load().await;
    let good: BTreeMap<String, String> = Place::Shared(shelf, GOOD).load();
    for text in good.into_values() {
        if out.send(Change::Remembered(text)).await.is_err() {
            return;
        }
    }
    let settings = || Config::default().timeout(WATCH_SECONDS);
    let definition = ApiResource {
        group: "apiextensions.k8s.io".into(),
        version: "v1".into(),
        api_version: "apiextensions.k8s.io/v1".into(),
        kind: "CustomResourceDefinition".into(),
        plural: "customresourcedefinitions".into(),
    };
    let definitions = watcher(Api::<Raw>::all_with(client.clone(), &definition), settings());
    let open = move |kind: &'static Kind, version: &'static str| {
        watcher(Api::<Raw>::all_with(client.clone(), &resource(kind, version)), settings()).boxed()
    };
    supervise::watch_all(definitions.boxed(), Arc::new(open), out, health).await;
}

/// Where the API server has a kind.
pub fn resource(kind: &Kind, version: &str) -> ApiResource {
    ApiResource {
        group: kind.group.into(),
        version: version.into(),
        api_version: kind.api_version(version),
        kind: kind.kind.into(),
        plural: kind.plural.into(),
    }
}
