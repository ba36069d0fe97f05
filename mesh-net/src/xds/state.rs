//! The bookkeeping of a delta xDS client, without a network.

use std::collections::{BTreeMap, BTreeSet};

use mesh_core::{delta::Change, snapshot::Snapshot};

use super::decode::{decode, removal};
use crate::{
    api::{
        envoy::{
            config::core::v3::Node,
            service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
        },
        google::rpc,
    },
    store::Versions,
};

/// What is held and what was received; lives across streams.
#[derive(Debug, Clone, Default)]
pub struct Session {
    versions: Versions,
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
        Self { versions, received: BTreeSet::new() }
    }

    /// The versions that are held, for the cache on disk.
    pub fn versions(&self) -> &Versions {
        &self.versions
    }

    /// Whether every type had a response at least once.
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
    /// names each refused resource or an ACK. What was good is applied in either case.
    pub fn take(
        &mut self,
        response: DeltaDiscoveryResponse,
        snapshot: &Snapshot,
    ) -> (Vec<Change>, DeltaDiscoveryRequest, Refused) {
        let type_url = response.type_url;
        let held = self.versions.entry(type_url.clone()).or_default();
        let mut changes = Vec::with_capacity(response.resources.len() + response.removed_resources.len());
        let mut outcome = Refused::default();
        for resource in response.resources {
            match decode(&type_url, &resource) {
                Ok(change) => {
                    changes.push(change);
                    held.insert(resource.name.clone(), resource.version);
                    outcome.good.push(resource.name);
                }
                Err(reason) => outcome.refused.push((resource.name, reason)),
            }
        }
        for name in response.removed_resources {
            held.remove(&name);
            match removal(&type_url, &name, snapshot) {
                Ok(change) => {
                    changes.push(change);
                    outcome.good.push(name);
                }
                Err(reason) => outcome.refused.push((name, reason)),
            }
        }
        self.received.insert(type_url.clone());
        let answer = DeltaDiscoveryRequest {
            type_url,
            response_nonce: response.nonce,
            error_detail: nack(&outcome.refused),
            ..DeltaDiscoveryRequest::default()
        };
        (changes, answer, outcome)
    }
}

fn nack(refused: &[(String, String)]) -> Option<rpc::Status> {
    let items: Vec<String> = refused.iter().map(|(name, reason)| format!("{name}: {reason}")).collect();
    (!items.is_empty()).then(|| rpc::Status { message: items.join("; "), ..rpc::Status::default() })
}
