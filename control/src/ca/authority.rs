//! The CA in use: there may be none yet, and another can take its place without a restart.

use std::sync::Arc;

use tokio::sync::watch;

use super::Ca;

/// Where the CA in use is said.
pub type Installer = watch::Sender<Option<Arc<Ca>>>;

/// Follows which CA signs now.
#[derive(Clone)]
pub struct Authority(watch::Receiver<Option<Arc<Ca>>>);

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("there", &self.current().is_some()).finish_non_exhaustive()
    }
}

impl Authority {
    /// One that stays.
    pub fn fixed(ca: Ca) -> Self {
        // What was sent last is still there when the sender is gone.
        Self(watch::channel(Some(Arc::new(ca))).1)
    }

    /// One that is not there yet, and where it and its successors come from.
    pub fn awaited() -> (Installer, Self) {
        let (sender, receiver) = watch::channel(None);
        (sender, Self(receiver))
    }

    /// The CA that signs now.
    pub fn current(&self) -> Option<Arc<Ca>> {
        self.0.borrow().clone()
    }

    /// Waits until there is one; for ever when there never will be.
    pub async fn there(&mut self) -> Arc<Ca> {
        if let Ok(found) = self.0.wait_for(Option::is_some).await
            && let Some(ca) = &*found
        {
            return ca.clone();
        }
        std::future::pending().await
    }

    /// Waits for the next one; never ends when there will be none.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}
