//! Watching a connection: whether the other side answers, and whether anybody uses it.

use std::time::Duration;

use h2::PingPong;
use tokio::time::{sleep, timeout};

const EVERY: Duration = Duration::from_secs(10);
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// Returns when the other side stops answering. It is asked every ten seconds, until `ending`: then the
/// connection says that it ends, and must not be asked any more.
pub(super) async fn until_silent(ping: Option<PingPong>, mut ending: impl FnMut() -> bool) {
    // Nobody else takes it, so there always is one.
    let Some(mut ping) = ping else { return std::future::pending().await };
    loop {
        sleep(EVERY).await;
        if ending() {
            return std::future::pending().await;
        }
        if !matches!(timeout(ANSWER_LIMIT, ping.ping(h2::Ping::opaque())).await, Ok(Ok(_))) {
            return;
        }
    }
}
