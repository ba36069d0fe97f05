//! One kind's watch: events of the API server → changes, through every kind of failure (decision 0036).

use futures_util::{Stream, StreamExt, stream::BoxStream};
use kube::runtime::watcher::{self, Event};
use tokio::{sync::mpsc, time};

use super::{backoff::Backoff, health::Health, raw::Raw};
use crate::source::{api::Change, kinds::Kind};

/// Makes the stream of a kind in a version; a new one begins with a list.
pub type Open =
    dyn Fn(&'static Kind, &'static str) -> BoxStream<'static, watcher::Result<Event<Raw>>> + Send + Sync;

/// Why a stream of events is given up.
enum Ended {
    /// Nobody listens any more.
    Unheard,
    /// Only a new list helps.
    Stale,
}

/// Tells what happens to a kind until nobody listens. An error deletes nothing: only a list that was read
/// to its end says that objects are gone.
pub async fn run(
    kind: &'static Kind,
    version: &'static str,
    open: &Open,
    out: mpsc::Sender<Change>,
    health: Health,
) {
    let mut backoff = Backoff::new();
    while let Ended::Stale = follow(kind, open(kind, version), &out, &health, &mut backoff).await {
        time::sleep(backoff.next()).await;
    }
}

async fn follow(
    kind: &'static Kind,
    mut events: impl Stream<Item = watcher::Result<Event<Raw>>> + Unpin,
    out: &mpsc::Sender<Change>,
    health: &Health,
    backoff: &mut Backoff,
) -> Ended {
    loop {
        let change = match events.next().await {
            None => return Ended::Stale,
            Some(Err(error)) => {
                health.failed(kind.known, &error);
                if is_stale(&error) {
                    return Ended::Stale;
                }
                time::sleep(backoff.next()).await;
                continue;
            }
            Some(Ok(event)) => change(kind, event),
        };
        health.heard(kind, &change);
        if !matches!(change, Change::Begin(_)) {
            backoff.reset();
        }
        if out.send(change).await.is_err() {
            return Ended::Unheard;
        }
    }
}

fn change(kind: &'static Kind, event: Event<Raw>) -> Change {
    match event {
        Event::Init => Change::Begin(kind),
        Event::InitApply(raw) => Change::Listed(kind, raw.value),
        Event::InitDone => Change::End(kind),
        Event::Apply(raw) => Change::Applied(kind, raw.value),
        Event::Delete(raw) => Change::Deleted(kind, raw.meta.namespace, raw.meta.name.unwrap_or_default()),
    }
}

/// A watch that cannot be taken up again where it was: history is gone (410), or the kind was defined anew
/// (404). The watcher itself would try for ever.
fn is_stale(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => matches!(status.code, 404 | 410),
        _ => false,
    }
}
