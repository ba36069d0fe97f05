//! The CA of a cluster: `cacerts` when it is there, else our own root, made once by whichever replica is
//! first. Both Secrets are followed; one that cannot be used is refused and the CA before it stays.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    api::PostParams,
    runtime::{WatchStreamExt, watcher::watch_object},
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    health::unwatched,
    secret::{GIVEN, OWN, OwnRoot, bundle, given},
};
use crate::ca::{self, Authority, Ca, Installer, Material};

/// What failed is tried again after this, also when no Secret changes.
const AGAIN: Duration = Duration::from_secs(5);
/// Longest request.
const REQUEST: Duration = Duration::from_secs(10);

/// The CA and what it is made from.
pub struct Root {
    /// The CA in use.
    pub authority: Authority,
    /// Our own root's Secret while it is the one in use.
    pub own: watch::Receiver<Option<Secret>>,
    /// Follows the Secrets while it is polled.
    pub following: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// Gets the CA, making the root if there is none, and follows it from then on.
pub fn start(client: Client, namespace: &str, trust_domain: &str) -> Root {
    let keeper = Keeper {
        secrets: Api::namespaced(client, namespace),
        trust_domain: trust_domain.into(),
        used: None,
        refused: String::new(),
    };
    let (out, authority) = Authority::awaited();
    let (own, receiver) = watch::channel(None);
    let following = Box::pin(keeper.follow(out, own));
    Root { authority, own: receiver, following }
}

/// What a look at both Secrets gives.
enum Choice {
    /// Use this.
    Use(Used),
    /// Neither is there.
    Nothing,
}

/// What a CA was made from.
#[derive(Clone, PartialEq, Eq)]
struct Used {
    material: Material,
    given: bool,
}

struct Keeper {
    secrets: Api<Secret>,
    trust_domain: String,
    used: Option<Used>,
    /// What was refused last, so that it is told once.
    refused: String,
}

impl Keeper {
    fn make(&self, used: &Used) -> Result<Ca, String> {
        let name = if used.given { GIVEN } else { OWN };
        Ca::from_material(&used.material, &self.trust_domain).map_err(|error| {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            format!("Secret {name} is refused: {error}{}", cause.unwrap_or_default())
        })
    }

    /// Creates our root's Secret, or reads the one that another replica created first. A root that was in
    /// use before comes back; beside a new one what was accepted before stays accepted.
    async fn create(&self) -> Result<Secret, String> {
        let root = match &self.used {
            Some(used) if !used.given => OwnRoot::new(used.material.clone()),
            before => {
                let mut made = ca::root(&self.trust_domain).map_err(|error| error.to_string())?;
                let accepted = before.as_ref().map_or("", |used| used.material.roots.as_str());
                made.roots = bundle([made.cert.as_str(), accepted]);
                OwnRoot::new(made)
            }
        };
        let request = root.write(None);
        let created = timeout(REQUEST, self.secrets.create(&PostParams::default(), &request)).await;
        match created.map_err(|_| format!("Secret {OWN}: no answer"))? {
            Ok(secret) => {
                tracing::info!("root certificate created in Secret {OWN}");
                Ok(secret)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                self.secrets.get(OWN).await.map_err(|error| format!("Secret {OWN} cannot be read: {error}"))
            }
            Err(error) => Err(format!("Secret {OWN} cannot be created: {error}")),
        }
    }

    /// Follows both Secrets until nobody wants the CA any more.
    async fn follow(mut self, out: Installer, own_out: watch::Sender<Option<Secret>>) {
        let watch = |name| Box::pin(watch_object(self.secrets.clone(), name).default_backoff());
        let (mut givens, mut owns) = (watch(GIVEN), watch(OWN));
        // Nothing is concluded before both were seen.
        let (mut given, mut own) = (None, None);
        let mut again = false;
        loop {
            let (name, failed) = tokio::select! {
                () = sleep(AGAIN), if again => (OWN, None),
                Some(seen) = givens.next() => (GIVEN, seen.map(|seen| given = Some(seen)).err()),
                Some(seen) = owns.next() => (OWN, seen.map(|seen| own = Some(seen)).err()),
                () = out.closed() => return,
            };
            if let Some(error) = failed {
                unwatched(&format!("Secret {name}"), &error);
                continue;
            }
            let (Some(given), Some(own)) = (&given, &own) else { continue };
            let looked = self.look(given.as_ref(), own.as_ref()).await;
            again = looked.is_err();
            match looked {
                Ok(Some(ca)) => drop(out.send_replace(Some(Arc::new(ca)))),
                Ok(None) => {}
                Err(reason) if reason == self.refused => {}
                Err(reason) => {
                    tracing::error!(reason, "the CA in use, if any, stays; correct or remove the Secret");
                    self.refused = reason;
                }
            }
            let in_use = own.clone().filter(|_| self.used.as_ref().is_some_and(|used| !used.given));
            own_out.send_if_modified(|before| {
                let differs = *before != in_use;
                *before = in_use;
                differs
            });
        }
    }

    /// Another CA, if the Secrets say so.
    async fn look(&mut self, given: Option<&Secret>, own: Option<&Secret>) -> Result<Option<Ca>, String> {
        let used = match choose(given, own)? {
            Choice::Use(used) => used,
            // What is created is seen as the next change.
            Choice::Nothing => return self.create().await.map(|_| None),
        };
        if self.used.as_ref() == Some(&used) {
            self.refused.clear();
            return Ok(None);
        }
        let ca = self.make(&used)?;
        let name = if used.given { GIVEN } else { OWN };
        tracing::info!(secret = name, "certificates are signed, and roots accepted, as this Secret says now");
        self.used = Some(used);
        self.refused.clear();
        Ok(Some(ca))
    }
}

/// `cacerts` wins; the roots that our own Secret accepts stay accepted beside it.
fn choose(given_secret: Option<&Secret>, own: Option<&Secret>) -> Result<Choice, String> {
    let own = own.map(OwnRoot::read);
    match (given_secret, own) {
        (Some(secret), own) => {
            let mut material = given(secret)?;
            let own = own.and_then(Result::ok).map(|own| own.material.roots);
            material.roots = bundle([material.roots.as_str(), own.as_deref().unwrap_or_default()]);
            Ok(Choice::Use(Used { material, given: true }))
        }
        (None, Some(own)) => Ok(Choice::Use(Used { material: own?.material, given: false })),
        (None, None) => Ok(Choice::Nothing),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::ca::root;

    #[test]
    fn cacerts_wins_and_both_bundles_are_accepted_then() {
        let own = OwnRoot::new(root("own").unwrap());
        let mut cacerts = OwnRoot::new(root("given").unwrap()).write(None);
        cacerts.metadata.name = Some(GIVEN.into());
        let secret = own.write(None);
        let Choice::Use(used) = choose(Some(&cacerts), Some(&secret)).unwrap() else { panic!() };
        assert!(used.given && used.material.own, "a root given as cacerts signs by itself");
        assert!(used.material.roots.contains(&bundle([own.material.cert.as_str()])));
        Ca::from_material(&used.material, "cluster.local").unwrap();
        let Choice::Use(used) = choose(None, Some(&secret)).unwrap() else { panic!() };
        assert_eq!((used.given, used.material), (false, own.material));
        assert!(matches!(choose(None, None).unwrap(), Choice::Nothing));
        cacerts.data.as_mut().unwrap().remove("root-cert.pem");
        assert!(choose(Some(&cacerts), Some(&secret)).is_err(), "a bad one is not passed over");
        let mut odd = secret;
        odd.data.as_mut().unwrap().clear();
        assert!(choose(None, Some(&odd)).is_err());
    }
}
