//! The bookkeeping of a delta xDS client, without a network.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use mesh_core::{delta::Change, snapshot::Snapshot};

use super::{
    decode::{decode, is_known, removal},
    stand_in,
};
use crate::{
    api::{
        envoy::{
            config::core::v3::Node,
            service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource},
        },
        google::rpc,
    },
    store::Versions,
};

#[cfg(test)]
mod tests;

/// Refused resources that one NACK names; the rest are counted.
const NAMED: usize = 100;

/// What is held and what was received; lives across streams.
#[derive(Debug, Clone, Default)]
pub struct Session {
    versions: Arc<Versions>,
    received: BTreeSet<String>,
}

/// Which resources of one response were refused and which were accepted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// Name and reason.
    pub refused: Vec<(String, String)>,
    /// Names that are good now, or gone.
    pub good: Vec<String>,
}

impl Refused {
    /// Brings a table of refused resources up to date.
    pub fn update(self, table: &mut BTreeMap<String, String>) {
        for name in &self.good {
            table.remove(name);
        }
        table.extend(self.refused);
    }
}

impl Session {
    /// Starts with the versions of a snapshot that is held already.
    pub fn resume(versions: Versions) -> Self {
        Self { versions: Arc::new(versions), received: BTreeSet::new() }
    }

    /// The versions that are held, for the cache on disk.
    pub fn versions(&self) -> &Versions {
        &self.versions
    }

    /// The same, shared: an edit while somebody else holds it copies it first.
    pub(super) fn shared(&self) -> Arc<Versions> {
        self.versions.clone()
    }

    /// Whether every type had a response at least once of which nothing was refused.
    pub fn complete(&self, types: &[&str]) -> bool {
        types.iter().all(|type_url| self.received.contains(*type_url))
    }

    /// The first request of a type on a new stream: wildcard, with what is held.
    pub fn open(&self, type_url: &str, node: Node) -> DeltaDiscoveryRequest {
        let held = self.versions.get(type_url).into_iter().flatten();
        DeltaDiscoveryRequest {
            node: Some(node),
            type_url: type_url.into(),
            initial_resource_versions: held.map(|(name, version)| (name.clone(), version.clone())).collect(),
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// Takes a response: the changes to apply, resources before removals, and the answer, a NACK that
    /// names each refused resource or an ACK. What was good is applied in either case. A type that is
    /// not ours and a removed name that cannot be are logged and acknowledged: the server could not
    /// do better the next time.
    pub fn take(
        &mut self,
        response: DeltaDiscoveryResponse,
        snapshot: &Snapshot,
    ) -> (Vec<Change>, DeltaDiscoveryRequest, Refused) {
        let type_url = response.type_url;
        let mut outcome = Refused::default();
        let mut changes = Vec::with_capacity(response.resources.len() + response.removed_resources.len());
        if is_known(&type_url) {
            let held = Arc::make_mut(&mut self.versions).entry(type_url.clone()).or_default();
            add(&type_url, response.resources, held, &mut changes, &mut outcome);
            remove(&type_url, response.removed_resources, held, snapshot, &mut changes, &mut outcome);
            // As ztunnel: only what was acknowledged makes a program ready.
            if outcome.refused.is_empty() {
                self.received.insert(type_url.clone());
            }
        } else {
            tracing::warn!(type_url, "response of an unknown type");
        }
        let answer = DeltaDiscoveryRequest {
            type_url,
            response_nonce: response.nonce,
            error_detail: nack(&outcome.refused),
            ..DeltaDiscoveryRequest::default()
        };
        (changes, answer, outcome)
    }
}

type Held = BTreeMap<String, String>;

/// A refused resource keeps the version that is still applied, if there is one; a policy without one is
/// replaced by a stand-in that closes what it reaches.
fn add(
    type_url: &str,
    resources: Vec<Resource>,
    held: &mut Held,
    changes: &mut Vec<Change>,
    outcome: &mut Refused,
) {
    for resource in resources {
        match decode(type_url, &resource) {
            Ok(change) => {
                changes.push(change);
                held.insert(resource.name.clone(), resource.version);
                outcome.good.push(resource.name);
            }
            Err(reason) => {
                let good = held.get(&resource.name).is_some_and(|version| *version != stand_in::VERSION);
                if let (false, Some(change)) = (good, stand_in::stand_in(type_url, &resource)) {
                    changes.push(change);
                    held.insert(resource.name.clone(), stand_in::VERSION.into());
                }
                outcome.refused.push((resource.name, reason));
            }
        }
    }
}

fn remove(
    type_url: &str,
    names: Vec<String>,
    held: &mut Held,
    snapshot: &Snapshot,
    changes: &mut Vec<Change>,
    outcome: &mut Refused,
) {
    for name in names {
        held.remove(&name);
        match removal(type_url, &name, snapshot) {
            Ok(change) => changes.push(change),
            Err(reason) => tracing::warn!(type_url, name, reason, "removal of what cannot be"),
        }
        outcome.good.push(name);
    }
}

fn nack(refused: &[(String, String)]) -> Option<rpc::Status> {
    let items = refused.iter().take(NAMED).map(|(name, reason)| format!("{name}: {reason}"));
    let more = refused.len().saturating_sub(NAMED);
    let rest = (more > 0).then(|| format!("and {more} more"));
    let message = items.chain(rest).collect::<Vec<_>>().join("; ");
    (!refused.is_empty()).then(|| rpc::Status { message, ..rpc::Status::default() })
}
