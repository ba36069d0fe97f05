//! Pods from a folder of YAML that is watched: the laptop's stand-in for an API server.

mod contents;
mod files;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use mesh_core::eligibility::REDIRECTION_ANNOTATION;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use serde_json::Value;
use tokio::{
    sync::{Mutex, Notify, mpsc},
    time::{Instant, sleep, timeout},
};

use self::{
    contents::{Contents, Worth},
    files::FileError,
};
pub use super::object::NodeFacts;
use super::{AnnounceError, Later, PodEvent, PodInfo, PodSource, difference::difference};

/// Changes that come within this time are read together, and what is missing for so long is gone.
const SETTLE: Duration = Duration::from_millis(50);
/// The folder is read again after this time even when nobody told of a change.
const RESCAN: Duration = Duration::from_secs(30);
/// A folder that cannot be read is looked at this often.
const AWAY: Duration = Duration::from_millis(250);

/// See the module's description.
pub struct Folder {
    root: PathBuf,
    node: NodeFacts,
    /// One writer at a time, so that two announcements in one file do not lose each other.
    writing: Mutex<()>,
}

impl Folder {
    /// A folder as one node sees it.
    pub fn new(root: PathBuf, node: NodeFacts) -> Self {
        Self { root, node, writing: Mutex::new(()) }
    }

    async fn follow(&self, events: mpsc::Sender<PodEvent>) {
        let mut watched = Watched::default();
        let (mut contents, mut known) = (Contents::default(), HashMap::new());
        let mut start = Start::default();
        loop {
            watched.renew(&self.root);
            let worth = contents.load(&self.root, SETTLE);
            let mut news = difference(&mut known, contents.pods(&self.node));
            news.extend(start.after(worth));
            for event in news {
                if events.send(event).await.is_err() {
                    return;
                }
            }
            let patience = match worth.read {
                _ if worth.missing || start.is_under_way() => SETTLE,
                false => AWAY,
                true => RESCAN,
            };
            tokio::select! {
                () = events.closed() => return,
                // A burst of changes is read when it is over.
                _ = timeout(patience, watched.changed.notified()) => sleep(SETTLE).await,
            }
        }
    }

    fn mark(&self, pod: &PodInfo, enrolled: bool) -> Result<(), AnnounceError> {
        let (path, mut documents) = self.find(pod)?;
        let objects = documents.iter_mut().flat_map(files::objects_mut);
        let gone = || AnnounceError::NoObject(pod.name());
        let object = { objects }.find(|object| is(object, pod)).ok_or_else(gone)?;
        let annotations = &mut object["metadata"]["annotations"];
        if annotations.is_null() {
            *annotations = Value::Object(serde_json::Map::new());
        }
        let Some(annotations) = annotations.as_object_mut() else { return Err(gone()) };
        match enrolled {
            true => drop(annotations.insert(REDIRECTION_ANNOTATION.into(), "enabled".into())),
            false => drop(annotations.remove(REDIRECTION_ANNOTATION)),
        }
        let failed = |source| AnnounceError::Object { pod: pod.name(), path: path.clone(), source };
        files::write(&path, &documents).map_err(failed)
    }

    /// The file with a pod's object. That there is none is known only when all of the folder is.
    fn find(&self, pod: &PodInfo) -> Result<(PathBuf, Vec<Value>), AnnounceError> {
        let failed = |path: &Path, error: FileError| AnnounceError::Object {
            pod: pod.name(),
            path: path.into(),
            source: std::io::Error::other(error),
        };
        let listing = files::list(&self.root);
        let mut unknown =
            listing.unreadable.into_iter().map(|(path, error)| failed(&path, error.into())).next();
        for path in listing.files {
            match files::read(&path) {
                Ok(documents) if documents.iter().flat_map(files::objects).any(|object| is(object, pod)) => {
                    return Ok((path, documents));
                }
                Ok(_) => {}
                Err(error) => drop(unknown.get_or_insert(failed(&path, error))),
            }
        }
        Err(unknown.unwrap_or_else(|| AnnounceError::NoObject(pod.name())))
    }
}

impl PodSource for Folder {
    fn watch(&self, events: mpsc::Sender<PodEvent>) -> Later<'_, ()> {
        Box::pin(self.follow(events))
    }

    fn announce<'a>(&'a self, pod: &'a PodInfo, enrolled: bool) -> Later<'a, Result<(), AnnounceError>> {
        Box::pin(async move {
            let _one = self.writing.lock().await;
            self.mark(pod, enrolled)
        })
    }
}

/// What is said once, as soon as the folder is known well enough.
#[derive(Default)]
struct Start {
    synced: bool,
    complete: bool,
    whole: Option<Instant>,
}

impl Start {
    fn after(&mut self, worth: Worth) -> Vec<PodEvent> {
        let mut events = Vec::new();
        if worth.read && !std::mem::replace(&mut self.synced, true) {
            events.push(PodEvent::Synced);
        }
        let whole = worth.read && worth.understood && !worth.missing;
        self.whole = whole.then(|| self.whole.unwrap_or_else(Instant::now));
        // A file that was empty for a moment is not when it is read again.
        if !self.complete && self.whole.is_some_and(|since| since.elapsed() >= SETTLE) {
            self.complete = true;
            events.push(PodEvent::Complete);
        }
        events
    }

    fn is_under_way(&self) -> bool {
        !self.complete && self.whole.is_some()
    }
}

/// The watch on the folder; renewed when another folder is at its path.
#[derive(Default)]
struct Watched {
    changed: Arc<Notify>,
    current: Option<(RecommendedWatcher, (u64, u64))>,
}

impl Watched {
    fn renew(&mut self, folder: &Path) {
        let now = fs::metadata(folder).ok().map(|data| (data.dev(), data.ino()));
        if self.current.as_ref().map(|(_, id)| *id) == now {
            return;
        }
        self.current = now.and_then(|id| match self.watch(folder) {
            Ok(watcher) => Some((watcher, id)),
            Err(error) => {
                tracing::warn!(folder = %folder.display(), %error, "folder cannot be watched; it is read every {RESCAN:?}");
                None
            }
        });
    }

    fn watch(&self, folder: &Path) -> notify::Result<RecommendedWatcher> {
        let waker = self.changed.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading is no change; everything else, errors included, is a reason to look.
            if !event.is_ok_and(|event| event.kind.is_access()) {
                waker.notify_one();
            }
        })?;
        watcher.watch(folder, RecursiveMode::Recursive)?;
        Ok(watcher)
    }
}

fn is(object: &Value, pod: &PodInfo) -> bool {
    let meta = &object["metadata"];
    object["kind"] == "Pod"
        && meta["name"] == *pod.pod.name
        && meta["namespace"].as_str().unwrap_or("default") == &*pod.pod.namespace
        && meta["uid"].as_str().is_none_or(|uid| *uid == *pod.uid)
}
