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
use serde_json::json;
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
/// An object that others write to all the time is left alone after so many attempts.
const TRIES: usize = 5;
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
            if patch(&next.2, about, &now()).is_some() {
                // Losing the lease stops writing at once; a newer configuration makes this one pointless.
                if !*held.borrow() || current.has_changed().unwrap_or(true) {
                    return Ok(false);
                }
                match self.tell(&key, about, &next.2).await {
                    Ok(()) => self.health.told(NAME, false),
                    // Says something else now, or is gone: that brings it here again.
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

    /// Tells one object. Somebody else's write of a status or of a label, or our own of a moment ago, makes a
    /// new version of the object and is no news that would bring it here again: such an object is looked at
    /// and told once more.
    async fn tell(&self, key: &Key, about: &About, told: &Told) -> Result<(), kube::Error> {
        let Some(kind) = kind_of(key) else { return Ok(()) };
        let resource = resource(kind, self.health.version(kind));
        let api: Api<Raw> = match kind.namespaced {
            true => Api::namespaced_with(self.client.clone(), &key.namespace, &resource),
            false => Api::all_with(self.client.clone(), &resource),
        };
        let settings = PatchParams { field_manager: Some("culvert-status".into()), ..PatchParams::default() };
        let (mut about, mut tries) = (about.clone(), TRIES);
        while let Some(mut value) = patch(told, &about, &now()) {
            value["metadata"] = json!({"resourceVersion": about.version});
            let conflict = match in_time(api.patch_status(&key.name, &settings, &Patch::Merge(value))).await {
                Err(kube::Error::Api(status)) if status.code == 409 => status,
                answer => return answer.map(drop),
            };
            let there = About::of(kind, &in_time(api.get(&key.name)).await?.value, about.refused);
            tries -= 1;
            if tries == 0 || (&there.uid, there.generation) != (&about.uid, about.generation) {
                return Err(kube::Error::Api(conflict));
            }
            about = there;
        }
        Ok(())
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

/// What the API server answers.
async fn in_time<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    let late = || Err(kube::Error::Service("no answer to a write of a status in time".into()));
    timeout(PATIENCE, request).await.unwrap_or_else(|_| late())
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
    use std::sync::Mutex;

    use axum::{Json, Router, http::StatusCode, routing};
    use serde_json::Value;

    use super::*;
    use crate::{metrics::Metrics, status::Condition};

    /// An API server with one object, which takes a status only for the version that is there.
    async fn server(object: Value) -> (Client, Arc<Mutex<Value>>) {
        let there = Arc::new(Mutex::new(object));
        let state = there.clone();
        let put = move |Json(change): Json<Value>| {
            let mut object = state.lock().unwrap();
            let answer = match change["metadata"]["resourceVersion"] == object["metadata"]["resourceVersion"]
            {
                true => {
                    object["status"] = change["status"].clone();
                    object["metadata"]["resourceVersion"] = json!("3");
                    (StatusCode::OK, Json(object.clone()))
                }
                false => {
                    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 409,
                        "reason": "Conflict", "message": "the object has been modified", "metadata": {}});
                    (StatusCode::CONFLICT, Json(status))
                }
            };
            std::future::ready(answer)
        };
        let state = there.clone();
        let get = move || std::future::ready(Json(state.lock().unwrap().clone()));
        let path = "/apis/networking.istio.io/v1/namespaces/shop/virtualservices/web";
        let router = Router::new().route(path, routing::get(get));
        let router = router.route(&format!("{path}/status"), routing::patch(put));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap(), there)
    }

    fn object(version: &str, generation: i64) -> Value {
        json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": {"name": "web",
            "namespace": "shop", "uid": "u", "resourceVersion": version, "generation": generation},
            "status": {"conditions": [{"type": "Theirs", "status": "True"}]}})
    }

    /// Tells an object that was version 1 when it was looked at last.
    async fn tell(there: Value) -> (Result<(), kube::Error>, Value) {
        let (client, there) = server(there).await;
        let writer = Writer::new(client, "control-0", Health::new(Metrics::new().unwrap()));
        let key = Key { kind: "VirtualService".into(), namespace: "shop".into(), name: "web".into() };
        let mut before = object("1", 7);
        before["status"] = Value::Null;
        let about = About::of(kind_of(&key).unwrap(), &before, false);
        let accepted =
            Condition { name: "Accepted", holds: true, reason: "Accepted", message: "in effect".into() };
        let told = Told { conditions: vec![accepted], ..Told::default() };
        let done = writer.tell(&key, &about, &told).await;
        (done, there.lock().unwrap().clone())
    }

    #[tokio::test]
    async fn an_object_whose_status_another_wrote_meanwhile_is_told_and_keeps_what_the_other_said() {
        let (done, there) = tell(object("2", 7)).await;
        done.unwrap();
        let names: Vec<&Value> =
            there["status"]["conditions"].as_array().unwrap().iter().map(|c| &c["type"]).collect();
        assert_eq!(names, ["Theirs", "Accepted"]);
    }

    #[tokio::test]
    async fn an_object_that_says_something_else_by_now_is_not_told_of_what_it_said_before() {
        let (done, there) = tell(object("2", 8)).await;
        assert!(matches!(done, Err(kube::Error::Api(status)) if status.code == 409));
        assert_eq!(there, object("2", 8));
    }

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
