//! Writes statuses and events, while this replica holds the lease and only where something else is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{Raw, backoff::Backoff, health::Health, resource};
use crate::{
    finding::{Finding, Severity},
    object::Key,
    publish::Published,
    source::{
        api::{About, ORIGIN},
        kinds::{KINDS, Kind},
    },
    status::{Told, patch, told},
};

/// In messages and metrics.
const NAME: &str = "status";
/// A request that takes longer failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// Events that are written at once, and how long each of them is paid for: at most one in this time in the
/// long run, so that a folder full of mistakes does not fill the API server.
const BURST: u32 = 25;
const EVENT_EVERY: Duration = Duration::from_secs(2);
/// Longest note of an event, a limit of the API.
const NOTE: usize = 1000;

/// Tells objects about themselves.
pub struct Writer {
    client: Client,
    health: Health,
    events: Recorder,
    /// What was written last, so that somebody else's status is not fought over.
    written: BTreeMap<Key, (String, i64, Told)>,
    /// Refusals that an event was written for: object, generation, field and code.
    reported: BTreeSet<(String, i64, String, &'static str)>,
    credit: Credit,
}

impl Writer {
    /// For a pod of the control plane.
    pub fn new(client: Client, pod: &str, health: Health) -> Self {
        let reporter = Reporter { controller: "culvert.dev/control".into(), instance: Some(pod.into()) };
        Self {
            events: Recorder::new(client.clone(), reporter),
            client,
            health,
            written: BTreeMap::new(),
            reported: BTreeSet::new(),
            credit: Credit::new(),
        }
    }

    /// Writes after every change while the lease is held, until the process ends.
    pub async fn run(
        mut self,
        mut held: watch::Receiver<bool>,
        mut current: watch::Receiver<Arc<Published>>,
    ) {
        let mut backoff = Backoff::new();
        loop {
            if !*held.borrow() {
                // Another one writes now: what it wrote is not what is remembered here.
                self.written.clear();
                if held.wait_for(|held| *held).await.is_err() {
                    return;
                }
            }
            let published = current.borrow_and_update().clone();
            let again = match self.round(&published, &held, &current).await {
                Ok(true) => {
                    backoff.reset();
                    None
                }
                Ok(false) => Some(Duration::ZERO),
                Err(error) => {
                    self.health.failed_to(NAME, &error);
                    Some(backoff.next())
                }
            };
            let wait = async {
                match again {
                    Some(wait) => sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = current.changed() => if changed.is_err() { return },
                changed = held.changed() => if changed.is_err() { return },
                () = wait => {}
            }
        }
    }

    /// One pass; false when it was left because something is new.
    async fn round(
        &mut self,
        published: &Published,
        held: &watch::Receiver<bool>,
        current: &watch::Receiver<Arc<Published>>,
    ) -> Result<bool, kube::Error> {
        let all = told(published);
        self.written.retain(|key, _| all.contains_key(key));
        for (key, told) in all {
            let Some(about) = published.about.get(&key) else { continue };
            let next = (about.uid.clone(), about.generation, told);
            if self.written.get(&key) == Some(&next) {
                continue;
            }
            if let Some(value) = patch(&next.2, about, &now()) {
                // Losing the lease stops writing at once; a newer configuration makes this one pointless.
                if !*held.borrow() || current.has_changed().unwrap_or(true) {
                    return Ok(false);
                }
                match self.write(&key, about, value).await {
                    Ok(()) => self.health.told(NAME, false),
                    // Changed or deleted meanwhile: its own change brings it here again.
                    Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => continue,
                    // One that the API server refuses must not keep the others from being told.
                    Err(error @ kube::Error::Api(_)) => self.health.failed_to(NAME, &error),
                    Err(error) => return Err(error),
                }
            }
            self.written.insert(key, next);
        }
        self.events(published).await;
        Ok(true)
    }

    async fn write(&self, key: &Key, about: &About, mut value: Value) -> Result<(), kube::Error> {
        let Some(kind) = kind_of(key) else { return Ok(()) };
        value["metadata"] = json!({"resourceVersion": about.version});
        let resource = resource(kind, self.health.version(kind));
        let api: Api<Raw> = match kind.namespaced {
            true => Api::namespaced_with(self.client.clone(), &key.namespace, &resource),
            false => Api::all_with(self.client.clone(), &resource),
        };
        let settings = PatchParams { field_manager: Some("culvert-status".into()), ..PatchParams::default() };
        let patch = Patch::Merge(value);
        match timeout(PATIENCE, api.patch_status(&key.name, &settings, &patch)).await {
            Ok(answer) => answer.map(drop),
            Err(_) => Err(kube::Error::Service("no answer to a write of a status in time".into())),
        }
    }

    /// Events for refusals that none was written for.
    async fn events(&mut self, published: &Published) {
        let keys: BTreeMap<String, (&Key, &Arc<About>)> =
            published.about.iter().map(|(key, about)| (key.to_string(), (key, about))).collect();
        let refusals =
            published.findings.iter().filter(|f| f.file == ORIGIN && f.severity == Severity::Error);
        let mut still = BTreeSet::new();
        for finding in refusals {
            let Some((key, about)) = keys.get(&finding.object) else { continue };
            let one = (about.uid.clone(), about.generation, finding.field.clone(), finding.code);
            let known = self.reported.contains(&one);
            if known || (self.credit.take() && self.event(key, about, finding).await) {
                still.insert(one);
            }
        }
        // Those of objects that are gone or better now are forgotten.
        self.reported = still;
    }

    async fn event(&self, key: &Key, about: &About, finding: &Finding) -> bool {
        let Some(kind) = kind_of(key) else { return true };
        let reference = ObjectReference {
            api_version: Some(kind.api_version(self.health.version(kind))),
            kind: Some(kind.kind.into()),
            namespace: kind.namespaced.then(|| key.namespace.to_string()),
            name: Some(key.name.to_string()),
            uid: Some(about.uid.clone()),
            resource_version: Some(about.version.clone()),
            ..ObjectReference::default()
        };
        let note = format!("{}: {} [{}]; {}", finding.field, finding.reason, finding.code, finding.remedy);
        let event = Event {
            type_: EventType::Warning,
            reason: "Refused".into(),
            note: Some(note.chars().take(NOTE / 4).collect()),
            action: "Compile".into(),
            secondary: None,
        };
        match timeout(PATIENCE, self.events.publish(&event, &reference)).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                self.health.failed_to("event", &error);
                false
            }
            Err(_) => {
                self.health.slow("event", PATIENCE);
                false
            }
        }
    }
}

fn kind_of(key: &Key) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| *kind.known == *key.kind)
}

fn now() -> String {
    OffsetDateTime::now_utc()
        .replace_nanosecond(0)
        .ok()
        .and_then(|now| now.format(&Rfc3339).ok())
        .unwrap_or_default()
}

/// Tokens that come back with time.
struct Credit {
    left: u32,
    since: Instant,
}

impl Credit {
    fn new() -> Self {
        Self { left: BURST, since: Instant::now() }
    }

    fn take(&mut self) -> bool {
        let earned = self.since.elapsed().as_secs() / EVENT_EVERY.as_secs();
        if earned > 0 {
            let earned = u32::try_from(earned).unwrap_or(BURST);
            self.left = self.left.saturating_add(earned).min(BURST);
            self.since = Instant::now();
        }
        let some = self.left > 0;
        self.left -= u32::from(some);
        some
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn events_come_in_a_burst_and_then_one_by_one() {
        let mut credit = Credit::new();
        let mut granted = || (0..100).filter(|_| credit.take()).count();
        assert_eq!(granted(), 25);
        tokio::time::advance(EVENT_EVERY).await;
        assert_eq!(granted(), 1);
        tokio::time::advance(EVENT_EVERY * 1000).await;
        assert_eq!(granted(), 25, "silence is not saved up");
    }
}
