//! The CA in use: another can take its place without a restart.

use std::sync::Arc;

use tokio::sync::watch;

use super::Ca;

/// Follows which CA signs now.
#[derive(Clone)]
pub struct Authority(watch::Receiver<Arc<Ca>>);

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// One that stays.
    pub fn fixed(ca: Ca) -> Self {
        // What was sent last is still there when the sender is gone.
        Self(watch::channel(Arc::new(ca)).1)
    }

    /// One that starts with a CA, and where its successors come from.
    pub fn changing(first: Ca) -> (watch::Sender<Arc<Ca>>, Self) {
        let (sender, receiver) = watch::channel(Arc::new(first));
        (sender, Self(receiver))
    }

    /// The CA that signs now.
    pub fn current(&self) -> Arc<Ca> {
        self.0.borrow().clone()
    }

    /// Waits for the next one; never ends when there will be none.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }
}
