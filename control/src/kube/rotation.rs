//! Another root with overlap (decision 0039): the next root is in everybody's bundle before it signs, and
//! the one before stays there until nothing that it signed is left. Written by the lease holder; every
//! replica follows the Secret.

use std::time::Duration;

use k8s_openapi::{api::core::v1::Secret, jiff::Timestamp};
use kube::{Api, Client, api::PostParams};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    lease::while_held,
    secret::{OWN, OwnRoot, Phase, bundle, certificates},
};
use crate::ca::{self, Material};

/// How long each phase lasts by default. The longest life of a certificate and an hour: whoever takes the
/// bundle only with its certificates has it by then, and nothing signed by the root before is valid.
pub const OVERLAP: Duration = Duration::from_secs(25 * 3600);
/// A root that ends within this time is replaced, seconds.
const LEFT: i64 = 365 * 24 * 3600;
/// Time between looks, for what no change of the Secret tells.
const LOOK: Duration = Duration::from_secs(60);
/// Pause after a write that failed.
const PAUSE: Duration = Duration::from_secs(2);
/// Longest request.
const REQUEST: Duration = Duration::from_secs(10);

/// What there is to do about a root.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    /// Begin with another root.
    Begin,
    /// Go on to the next phase.
    Go,
    /// The phase has no beginning yet.
    Mark,
    /// Nothing before this many seconds.
    In(i64),
}

/// What is due for a root that is valid until `end`.
fn due(own: &OwnRoot, end: i64, now: i64, overlap: i64) -> Due {
    if own.phase == Phase::Steady {
        let begin = own.asked.is_some() || end - now < LEFT;
        return if begin { Due::Begin } else { Due::In(end - LEFT - now) };
    }
    // A time in the future is a clock's mistake: the phase begins now.
    match own.since {
        since if since <= 0 || since > now => Due::Mark,
        since if now - since >= overlap => Due::Go,
        since => Due::In(since + overlap - now),
    }
}

/// The state after what is due; `next` is the root to begin with.
fn step(own: OwnRoot, next: impl FnOnce() -> Option<Material>, now: i64, due: &Due) -> Option<OwnRoot> {
    let roots = &own.material.roots;
    match (due, &own.phase) {
        (Due::In(_), _) => None,
        (Due::Begin, _) => {
            let next = next()?;
            let roots = bundle([roots.as_str(), &next.cert]);
            let material = Material { roots, ..own.material };
            Some(OwnRoot { material, phase: Phase::Adding(next), since: now, asked: None })
        }
        (Due::Mark, _) => Some(OwnRoot { since: now, ..own }),
        (Due::Go, Phase::Steady) => None,
        (Due::Go, Phase::Adding(next)) => {
            // Which root signs comes first, so that every phase has a bundle of its own: clients that see
            // another bundle renew their certificates.
            let roots = bundle([next.cert.as_str(), roots]);
            let previous = own.material.cert.clone();
            let material = Material { roots, ..next.clone() };
            Some(OwnRoot { material, phase: Phase::Removing(previous), since: now, ..own })
        }
        (Due::Go, Phase::Removing(previous)) => {
            let gone = certificates(previous);
            let kept: String = certificates(roots).into_iter().filter(|root| !gone.contains(root)).collect();
            let material = Material { roots: kept, ..own.material };
            Some(OwnRoot { material, phase: Phase::Steady, since: 0, ..own })
        }
    }
}

/// Rotates while the lease is held. `own` is our root while it is in use.
pub async fn rotate(
    client: Client,
    namespace: String,
    trust_domain: String,
    overlap: Duration,
    own: watch::Receiver<Option<Secret>>,
    mut held: watch::Receiver<bool>,
) {
    let secrets = Api::<Secret>::namespaced(client, &namespace);
    while_held(&mut held, || {
        let (secrets, mut own) = (secrets.clone(), own.clone());
        let trust_domain = trust_domain.clone();
        async move {
            let current = own.borrow_and_update().clone();
            let wait = match current {
                Some(secret) => advance(&secrets, secret, &trust_domain, overlap).await,
                None => LOOK,
            };
            // Without a sender there is no change to wait for.
            if let Ok(Err(_)) = timeout(wait, own.changed()).await {
                sleep(wait).await;
            }
        }
    })
    .await;
}

/// Does what is due and says when to look again.
async fn advance(secrets: &Api<Secret>, secret: Secret, trust_domain: &str, overlap: Duration) -> Duration {
    // One that cannot be read is told by who follows it.
    let Ok(own) = OwnRoot::read(&secret) else { return LOOK };
    let now = Timestamp::now().as_second();
    let overlap = i64::try_from(overlap.as_secs()).unwrap_or(i64::MAX);
    let due = due(&own, end(&own.material.cert).unwrap_or(i64::MAX), now, overlap);
    if let Due::In(seconds) = due {
        return u64::try_from(seconds)
            .map_or(PAUSE, Duration::from_secs)
            .clamp(Duration::from_millis(500), LOOK);
    }
    let next =
        || ca::root(trust_domain).inspect_err(|error| tracing::error!(%error, "no root can be made")).ok();
    let Some(after) = step(own, next, now, &due) else { return LOOK };
    // The version that was read goes along: two writers cannot both take a step.
    let request = after.write(Some(secret));
    match timeout(REQUEST, secrets.replace(OWN, &PostParams::default(), &request)).await {
        Ok(Ok(_)) => {
            let phase = match after.phase {
                Phase::Steady => "one root again",
                Phase::Adding(_) => "the next root is in the bundle",
                Phase::Removing(_) => "the next root signs",
            };
            tracing::info!(phase, "root rotation");
        }
        Ok(Err(error)) => tracing::warn!(%error, "Secret {OWN} cannot be written; the rotation waits"),
        Err(_) => tracing::warn!("Secret {OWN} was not written in time; the rotation waits"),
    }
    PAUSE
}

/// When a certificate ends, seconds since 1970.
fn end(pem: &str) -> Option<i64> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, parsed) = X509Certificate::from_der(&der).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::ca::{Ca, root};

    const OVERLAP: i64 = 100;
    const FAR: i64 = i64::MAX / 2;

    fn go(own: OwnRoot, now: i64) -> Option<OwnRoot> {
        let due = due(&own, FAR, now, OVERLAP);
        step(own, || Some(root("next").unwrap()), now, &due)
    }

    #[test]
    fn the_next_root_is_accepted_before_it_signs_and_the_last_one_after_it_signed() {
        let first = OwnRoot::new(root("first").unwrap());
        assert_eq!(go(first.clone(), 1000), None, "nobody asked");
        let adding = go(OwnRoot { asked: Some("x".into()), ..first.clone() }, 1000).unwrap();
        assert_eq!(adding.material.cert, first.material.cert, "the old one signs");
        assert_eq!(adding.asked, None);
        let Phase::Adding(next) = adding.phase.clone() else { panic!("{:?}", adding.phase) };
        assert_eq!(adding.material.roots, bundle([first.material.cert.as_str(), &next.cert]));
        assert_eq!(go(adding.clone(), 1099), None, "not before the overlap is over");
        let removing = go(adding.clone(), 1100).unwrap();
        assert_eq!((&removing.material.cert, &removing.material.key), (&next.cert, &next.key));
        assert_eq!(certificates(&removing.material.roots).len(), 2);
        assert_ne!(removing.material.roots, adding.material.roots, "a bundle of its own");
        assert_eq!(go(removing.clone(), 1199), None);
        let steady = go(removing.clone(), 1200).unwrap();
        assert_eq!(steady.material.roots, bundle([next.cert.as_str()]));
        assert_eq!(go(steady.clone(), 1300), None, "and that is all");
        for state in [first, adding, removing, steady] {
            Ca::from_material(&state.material, "cluster.local").unwrap();
        }
    }

    #[test]
    fn roots_that_others_put_into_the_bundle_stay_there() {
        let foreign = root("istio").unwrap().cert;
        let mut own = OwnRoot::new(root("first").unwrap());
        own.material.roots = bundle([own.material.cert.as_str(), &foreign]);
        own.asked = Some("x".into());
        let mut now = 1000;
        for _ in 0..3 {
            own = go(own, now).unwrap();
            assert!(own.material.roots.contains(&certificates(&foreign)[0]));
            now += OVERLAP;
        }
        assert_eq!(certificates(&own.material.roots).len(), 2);
    }

    #[test]
    fn a_root_near_its_end_is_replaced_and_a_phase_without_a_time_or_from_the_future_begins_now() {
        let own = OwnRoot::new(root("a").unwrap());
        assert_eq!(due(&own, 1000 + LEFT - 1, 1000, OVERLAP), Due::Begin);
        assert_eq!(due(&own, 1005 + LEFT, 1000, OVERLAP), Due::In(5));
        assert!(end(&own.material.cert).unwrap() > Timestamp::now().as_second() + LEFT);
        for since in [0, -5, 2000] {
            let adding = OwnRoot { phase: Phase::Adding(root("b").unwrap()), since, ..own.clone() };
            assert_eq!(due(&adding, FAR, 1000, OVERLAP), Due::Mark);
            assert_eq!(go(adding, 1000).unwrap().since, 1000);
        }
    }
}
