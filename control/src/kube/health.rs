//! How the watches fare: for metrics, readiness and `/debug/kubernetes`.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use kube::runtime::watcher;
use mesh_core::error::chain;
use serde_json::{Value, json};

use crate::{
    metrics::Metrics,
    source::{api::Change, kinds::Kind},
};

/// State of all watches; clones share it.
#[derive(Debug, Clone)]
pub struct Health {
    watches: Arc<Mutex<BTreeMap<&'static str, Watch>>>,
    metrics: Metrics,
}

/// State of one watch.
#[derive(Debug, Default)]
struct Watch {
    /// Lists that were read to their end.
    lists: u64,
    errors: u64,
    version: Option<&'static str>,
    heard: Option<Instant>,
    /// What failed last, and when; none since something was heard.
    trouble: Option<(Instant, String)>,
}

/// A watch that fails says so at least this often. One that was taken up again without a word does not
/// say that it is well: after this time without a failure it is.
const STILL: Duration = Duration::from_secs(30);

impl Watch {
    fn trouble(&self) -> Option<&str> {
        self.trouble.as_ref().filter(|(at, _)| at.elapsed() < STILL).map(|(_, text)| text.as_str())
    }
}

impl Health {
    /// Nothing is watched yet.
    pub fn new(metrics: Metrics) -> Self {
        Self { watches: Arc::default(), metrics }
    }

    fn with<T>(&self, kind: &'static str, change: impl FnOnce(&mut Watch) -> T) -> T {
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        change(watches.entry(kind).or_default())
    }

    /// Notes an event.
    pub(super) fn heard(&self, kind: &'static Kind, change: &Change) {
        // The beginning of a list is our own doing: it says nothing about the API server.
        if matches!(change, Change::Begin(_)) {
            return;
        }
        let listed = matches!(change, Change::End(_));
        self.told(kind.known, listed);
    }

    /// Notes an event of a kind by name; `listed` when a list was read to its end.
    pub(super) fn told(&self, kind: &'static str, listed: bool) {
        self.with(kind, |watch| {
            watch.lists += u64::from(listed);
            (watch.heard, watch.trouble) = (Some(Instant::now()), None);
        });
        if listed {
            self.metrics.watch.lists.with_label_values(&[kind]).inc();
        }
    }

    /// Notes a failure of a watch.
    pub(super) fn failed(&self, kind: &'static str, error: &watcher::Error) {
        self.trouble(kind, watch_code(error), chain(error));
    }

    /// Notes a failure of a request.
    pub(super) fn failed_to(&self, kind: &'static str, error: &kube::Error) {
        self.trouble(kind, request_code(error), chain(error));
    }

    /// Notes a request without an answer.
    pub(super) fn slow(&self, kind: &'static str, patience: Duration) {
        self.trouble(kind, "unreachable", format!("no answer within {} s", patience.as_secs()));
    }

    fn trouble(&self, kind: &'static str, code: &'static str, text: String) {
        let first = self.with(kind, |watch| {
            watch.errors += 1;
            let first = watch.trouble().is_none();
            watch.trouble = Some((Instant::now(), text.clone()));
            first
        });
        self.metrics.watch.errors.with_label_values(&[kind, code]).inc();
        // Each failure of a long one would be the same line again.
        if first {
            tracing::warn!(kind, error = %text, "the API server does not answer as wanted; it is tried again");
        }
    }

    /// Notes in which version a kind is watched.
    pub(super) fn watched(&self, kind: &'static Kind, version: &'static str) {
        self.with(kind.known, |watch| watch.version = Some(version));
    }

    /// The version in which a kind is watched.
    pub(super) fn version(&self, kind: &'static Kind) -> &'static str {
        self.with(kind.known, |watch| watch.version).unwrap_or(kind.versions[0])
    }

    /// Forgets a kind that is no longer there.
    pub(super) fn forget(&self, kind: &'static str) {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner).remove(kind);
    }

    /// What fails now, by kind.
    pub fn troubles(&self) -> Vec<(&'static str, String)> {
        let watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        watches.iter().filter_map(|(kind, watch)| Some((*kind, watch.trouble()?.to_string()))).collect()
    }

    /// Sets the gauges of silence; called when metrics are read.
    pub fn measure(&self) {
        let watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        self.metrics.watch.silence.reset();
        for (kind, watch) in watches.iter() {
            if let Some(heard) = watch.heard {
                let seconds = i64::try_from(heard.elapsed().as_secs()).unwrap_or(i64::MAX);
                self.metrics.watch.silence.with_label_values(&[kind]).set(seconds);
            }
        }
    }

    /// For people: each watch with what it heard and what fails.
    pub fn shown(&self) -> Value {
        let watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        let one = |(kind, watch): (&&str, &Watch)| {
            json!({"kind": kind, "lists": watch.lists, "errors": watch.errors, "trouble": watch.trouble(),
                   "silent_seconds": watch.heard.map(|at| at.elapsed().as_secs())})
        };
        watches.iter().map(one).collect()
    }
}

/// A closed set of what can go wrong, for metrics.
fn watch_code(error: &watcher::Error) -> &'static str {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => request_code(error),
        watcher::Error::WatchError(status) => status_code(status.code),
        watcher::Error::NoResourceVersion => "other",
    }
}

fn request_code(error: &kube::Error) -> &'static str {
    match error {
        kube::Error::Api(status) => status_code(status.code),
        _ => "unreachable",
    }
}

fn status_code(code: u16) -> &'static str {
    match code {
        401 | 403 => "denied",
        404 => "not-found",
        409 => "conflict",
        410 => "expired",
        429 => "throttled",
        500.. => "server",
        _ => "other",
    }
}

/// Says that something beside the sources cannot be watched now. History that the API server dropped is
/// nothing to worry about: it is listed anew.
pub(super) fn unwatched(what: &str, error: &watcher::Error) {
    match watch_code(error) {
        "expired" => tracing::debug!(what, error = chain(error), "listed anew"),
        _ => tracing::warn!(what, error = chain(error), "cannot be watched; it is tried again"),
    }
}
