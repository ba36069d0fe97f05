//! The file of accepted roots, as a signal: when the authority accepts other roots, or signs with another
//! one, certificates and the roots that come with them are asked for anew, long before half their life.

use std::{path::PathBuf, time::Duration};

use tokio_util::sync::CancellationToken;

use super::Renewer;

/// The file is compared this often: a mounted ConfigMap is replaced as a whole folder, which file watches
/// miss, and the kubelet takes a minute anyway.
const LOOK: Duration = Duration::from_secs(5);
/// Largest file that is looked at, bytes.
const LARGEST: u64 = 4 << 20;

/// Renews every certificate when the file's text changes, until cancelled. What is in the file is not
/// trusted by itself: roots come with certificates. A file that is away or empty is no change.
pub async fn follow_roots(file: PathBuf, renewer: Renewer, cancel: CancellationToken) {
    let mut known = read(&file).await;
    while cancel.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
        let now = read(&file).await;
        if now.is_some() && known.is_some() && now != known {
            tracing::info!(file = %file.display(), "other roots are accepted: certificates are renewed");
            renewer.renew();
        }
        known = now.or(known);
    }
}

async fn read(file: &std::path::Path) -> Option<Vec<u8>> {
    let size = tokio::fs::metadata(file).await.ok()?.len();
    if size == 0 || size > LARGEST {
        return None;
    }
    tokio::fs::read(file).await.ok()
}
