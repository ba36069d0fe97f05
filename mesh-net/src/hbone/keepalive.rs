//! Watching a connection: whether the other side answers, and whether anybody uses it.

use std::time::Duration;

use h2::PingPong;
use tokio::time::{sleep, timeout};

const EVERY: Duration = Duration::from_secs(10);
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// Returns when the other side stops answering; asks it every ten seconds, after `tick`.
pub(super) async fn until_silent(ping: Option<PingPong>, mut tick: impl FnMut()) {
    // Nobody else takes it, so there always is one.
    let Some(mut ping) = ping else { return std::future::pending().await };
    loop {
        sleep(EVERY).await;
        tick();
        if !matches!(timeout(ANSWER_LIMIT, ping.ping(h2::Ping::opaque())).await, Ok(Ok(_))) {
            return;
        }
    }
}
