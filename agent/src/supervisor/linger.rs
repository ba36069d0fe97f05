//! A pod that has no object any more and still runs: deleted by force, or its node was thought dead. What
//! is left of it stays closed until its network is gone (invariant I-1).

use std::{net::IpAddr, sync::Arc, time::Duration};

use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};

use crate::{
    netns::Held,
    redirect::{AnyRedirector, Target},
};

/// Whether the network is gone is looked at this often.
const LOOK: Duration = Duration::from_millis(500);
/// A network that is still there after this time is not waited for: while it is held it cannot end, and
/// runtimes kill a pod's processes long before.
const LONGEST: Duration = Duration::from_secs(600);

/// Closes the pod, and forgets it when its network has gone. Every look enters the namespace, so it blocks.
pub(super) async fn close_until_gone(redirector: AnyRedirector, target: Arc<Target>, netns: Arc<Held>) {
    let until = Instant::now() + LONGEST;
    while Instant::now() < until && is_there(&target, &netns).await {
        let (closing, of) = (redirector.clone(), target.clone());
        let closed = spawn_blocking(move || closing.block(&of)).await;
        if let Ok(Err(error)) = closed {
            tracing::warn!(netns = target.cookie, %error, "a pod without an object is not closed yet; it is tried again");
        }
        sleep(LOOK).await;
    }
    let forgotten = spawn_blocking(move || redirector.release(&target)).await;
    if let Ok(Err(error)) = forgotten {
        tracing::warn!(%error, "a pod that is gone stays in the kernel until the next agent");
    }
}

/// Whether the namespace still has one of the pod's addresses.
async fn is_there(target: &Target, netns: &Arc<Held>) -> bool {
    let of_pod = [target.pod.v4.map(IpAddr::from), target.pod.v6.map(IpAddr::from)];
    let netns = netns.clone();
    let own = spawn_blocking(move || netns.addresses()).await;
    own.is_ok_and(|own| own.is_ok_and(|own| own.iter().any(|ip| of_pod.contains(&Some(ip.to_canonical())))))
}
