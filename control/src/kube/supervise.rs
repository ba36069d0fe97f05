//! All watches: those of kinds that are always there, and those of kinds that are there as long as their
//! CustomResourceDefinition is.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures_util::{Stream, StreamExt};
use kube::runtime::watcher::{self, Event};
use serde_json::Value;
use tokio::{sync::mpsc, task::JoinHandle, time};

use super::{
    backoff::Backoff,
    health::Health,
    raw::Raw,
    watch::{Open, run},
};
use crate::source::{
    api::Change,
    kinds::{KINDS, Kind, of_definition},
};

/// Name of the kind that defines others.
const DEFINITIONS: &str = "CustomResourceDefinition";

/// Which kinds are defined, by the events of definitions.
#[derive(Debug, Default)]
struct Defined {
    now: BTreeMap<&'static Kind, &'static str>,
    /// Those of a list that is not complete yet.
    listing: Option<BTreeMap<&'static Kind, &'static str>>,
    /// A list was complete once: what is not in `now` is not there.
    known: bool,
}

impl Defined {
    /// Takes an event over; whether what is defined is known and may be different now.
    fn take(&mut self, event: Event<Raw>) -> bool {
        match event {
            Event::Init => {
                self.listing = Some(BTreeMap::new());
                return false;
            }
            Event::InitApply(raw) => {
                self.listing.get_or_insert_default().extend(served(&raw.value));
                return false;
            }
            Event::InitDone => {
                self.now = self.listing.take().unwrap_or_default();
                self.known = true;
            }
            Event::Apply(raw) => {
                // A version that is no longer served, or one that is not established for a moment, deletes
                // nothing: only a definition that is gone does.
                if let Some((kind, version)) = served(&raw.value) {
                    self.now.insert(kind, version);
                }
            }
            Event::Delete(raw) => {
                if let Some(kind) = named(&raw) {
                    self.now.remove(kind);
                }
            }
        }
        self.known
    }
}

fn named(raw: &Raw) -> Option<&'static Kind> {
    of_definition(raw.meta.name.as_deref()?)
}

/// The kind that a definition defines and the version that is read of it; none when it is none of ours, or
/// is not served yet.
fn served(definition: &Value) -> Option<(&'static Kind, &'static str)> {
    let kind = of_definition(definition["metadata"]["name"].as_str()?)?;
    let conditions = definition["status"]["conditions"].as_array()?;
    let established = |c: &Value| c["type"] == "Established" && c["status"] == "True";
    let versions = definition["spec"]["versions"].as_array()?;
    let names: Vec<String> = versions
        .iter()
        .filter(|version| version["served"] == true)
        .filter_map(|version| version["name"].as_str().map(String::from))
        .collect();
    let found = kind.version(&names);
    if found.is_none() && !names.is_empty() {
        tracing::warn!(kind = kind.known, served = names.join(", "), "no version of this kind is understood");
    }
    conditions.iter().any(established).then_some(())?;
    Some((kind, found?))
}

/// Watches in work.
struct Watches {
    open: Arc<Open>,
    out: mpsc::Sender<Change>,
    health: Health,
    running: BTreeMap<&'static Kind, (&'static str, JoinHandle<()>)>,
}

impl Watches {
    /// Brings what is watched to exactly these kinds.
    async fn ensure(&mut self, wanted: BTreeMap<&'static Kind, &'static str>) {
        let present = Change::Present(wanted.keys().copied().collect());
        if self.out.send(present).await.is_err() {
            return;
        }
        let ended: BTreeSet<&'static Kind> = self
            .running
            .iter()
            .filter(|(kind, (version, _))| wanted.get(*kind) != Some(version))
            .map(|(kind, _)| *kind)
            .collect();
        for kind in ended {
            self.stop(kind, wanted.contains_key(kind)).await;
        }
        for (kind, version) in wanted {
            if !self.running.contains_key(kind) {
                tracing::info!(kind = kind.known, version, "kind is watched");
                self.health.watched(kind, version);
                let (open, out, health) = (self.open.clone(), self.out.clone(), self.health.clone());
                let watch = tokio::spawn(async move { run(kind, version, &*open, out, health).await });
                self.running.insert(kind, (version, watch));
            }
        }
    }

    /// Ends a watch; unless another version follows at once, the objects go with the kind.
    async fn stop(&mut self, kind: &'static Kind, follows: bool) {
        if let Some((_, watch)) = self.running.remove(kind) {
            watch.abort();
            // Nothing of it comes after this.
            let _ = watch.await;
        }
        self.health.forget(kind.known);
        if !follows {
            tracing::info!(kind = kind.known, "kind is no longer defined in the API server");
            let _ = self.out.send(Change::Gone(kind)).await;
        }
    }
}

impl Drop for Watches {
    fn drop(&mut self) {
        self.running.values().for_each(|(_, watch)| watch.abort());
    }
}

/// Watches until nobody listens. `definitions` are the events of CustomResourceDefinitions: while they
/// fail, what was defined stays so.
pub async fn watch_all(
    mut definitions: impl Stream<Item = watcher::Result<Event<Raw>>> + Unpin,
    open: Arc<Open>,
    out: mpsc::Sender<Change>,
    health: Health,
) {
    let mut watches = Watches { open, out: out.clone(), health: health.clone(), running: BTreeMap::new() };
    let mut defined = Defined::default();
    let mut backoff = Backoff::new();
    loop {
        let event = tokio::select! {
            event = definitions.next() => event,
            () = out.closed() => return,
        };
        match event {
            None => return,
            Some(Err(error)) => {
                health.failed(DEFINITIONS, &error);
                time::sleep(backoff.next()).await;
            }
            Some(Ok(event)) => {
                let listed = matches!(event, Event::InitDone);
                if !matches!(event, Event::Init) {
                    health.told(DEFINITIONS, listed);
                    backoff.reset();
                }
                if defined.take(event) {
                    let always =
                        KINDS.iter().filter(|kind| !kind.custom).map(|kind| (kind, kind.versions[0]));
                    watches.ensure(always.chain(defined.now.clone()).collect()).await;
                }
            }
        }
    }
}
