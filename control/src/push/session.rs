//! What one stream holds and awaits, without a network.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::Instant,
};

use mesh_net::{
    api::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    wire::{ADDRESS_TYPE, AUTHORIZATION_TYPE, L7_POLICY_TYPE, LABELS_TYPE, ROUTES_TYPE},
};

use crate::publish::Resources;

/// Types that are served.
pub const TYPES: [&str; 5] = [ADDRESS_TYPE, AUTHORIZATION_TYPE, LABELS_TYPE, ROUTES_TYPE, L7_POLICY_TYPE];
/// Answers that are awaited at most; of older responses no latency is known.
const AWAITED: usize = 64;
/// Unknown types that are answered at most, per stream.
const UNKNOWN: usize = 16;

/// Whether a response says what is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removals {
    /// It does.
    Included,
    /// A later response will.
    Later,
}

/// The order of a push. Policies come before what they protect and go after it: no workload names a policy
/// that its agent does not know, and no service is bound to a waypoint that does not know its policies.
/// Of the others, what is referred to comes before what refers.
pub const ORDER: [(&str, Removals); 7] = [
    (AUTHORIZATION_TYPE, Removals::Later),
    (L7_POLICY_TYPE, Removals::Later),
    (ADDRESS_TYPE, Removals::Included),
    (LABELS_TYPE, Removals::Included),
    (ROUTES_TYPE, Removals::Included),
    (AUTHORIZATION_TYPE, Removals::Included),
    (L7_POLICY_TYPE, Removals::Included),
];

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// A type for the first time on this stream.
    Opened(&'static str),
    /// A type that is not served, for the first time: it gets an empty answer, once.
    Unknown,
    /// The answer to a response.
    Answered(Awaited),
    /// Nothing that needs an answer; why, when that is odd.
    Nothing(Option<&'static str>),
}

/// A response that was not answered yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Awaited {
    nonce: String,
    /// Type.
    pub type_url: &'static str,
    /// Version of the configuration.
    pub version: u64,
    /// When that was published, or the stream opened if later.
    pub since: Instant,
}

/// What one stream holds.
#[derive(Debug, Default)]
pub struct Session {
    types: BTreeMap<&'static str, HashMap<String, String>>,
    unknown: BTreeSet<String>,
    awaited: VecDeque<Awaited>,
    nonce: u64,
}

impl Session {
    /// Takes a request: opens its type or notes the answer.
    pub fn request(&mut self, request: &DeltaDiscoveryRequest) -> Asked {
        let Some(type_url) = TYPES.into_iter().find(|known| *known == request.type_url) else {
            return self.unknown(&request.type_url);
        };
        if !self.types.contains_key(type_url) {
            self.types.insert(type_url, request.initial_resource_versions.clone());
            return Asked::Opened(type_url);
        }
        if request.response_nonce.is_empty() {
            // Everything is sent anyway: a change of the subscription changes nothing.
            return Asked::Nothing(None);
        }
        let fits = |a: &Awaited| a.nonce == request.response_nonce && a.type_url == type_url;
        match self.awaited.iter().position(fits).and_then(|at| self.awaited.remove(at)) {
            Some(awaited) => Asked::Answered(awaited),
            None => Asked::Nothing(Some("unknown_nonce")),
        }
    }

    /// The answer to names that a client asks for by themselves: who waits for one waits until it is sent or
    /// said to be gone. Names may be aliases; a subscription to everything needs no answer of its own.
    pub fn demanded(request: &DeltaDiscoveryRequest, current: &Resources) -> Option<DeltaDiscoveryResponse> {
        let wanted: BTreeSet<&String> =
            request.resource_names_subscribe.iter().filter(|name| *name != "*").collect();
        if wanted.is_empty() || !TYPES.contains(&request.type_url.as_str()) {
            return None;
        }
        let mut found = BTreeMap::new();
        let mut known = BTreeSet::new();
        for resource in current.values() {
            for name in resource.aliases.iter().chain([&resource.name]).filter(|name| wanted.contains(name)) {
                known.insert(name);
                found.insert(&resource.name, resource);
            }
        }
        Some(DeltaDiscoveryResponse {
            resources: found.into_values().map(|resource| (**resource).clone()).collect(),
            type_url: request.type_url.clone(),
            removed_resources: wanted.into_iter().filter(|name| !known.contains(name)).cloned().collect(),
            ..DeltaDiscoveryResponse::default()
        })
    }

    fn unknown(&mut self, type_url: &str) -> Asked {
        if type_url.is_empty() {
            return Asked::Nothing(Some("no_type"));
        }
        match self.unknown.len() < UNKNOWN && self.unknown.insert(type_url.into()) {
            true => Asked::Unknown,
            false => Asked::Nothing(None),
        }
    }

    /// What a type's client lacks, and what it holds that is gone; none when there is nothing to say, or
    /// the client never asked for the type.
    pub fn response(
        &mut self,
        type_url: &'static str,
        current: &Resources,
        removals: Removals,
    ) -> Option<DeltaDiscoveryResponse> {
        let response = self.difference(type_url, current, removals)?;
        let empty = response.resources.is_empty() && response.removed_resources.is_empty();
        (!empty).then_some(response)
    }

    /// Like [`Session::response`], but the answer to a first request says something in any case.
    pub fn first(&mut self, type_url: &'static str, current: &Resources) -> Option<DeltaDiscoveryResponse> {
        self.difference(type_url, current, Removals::Included)
    }

    fn difference(
        &mut self,
        type_url: &'static str,
        current: &Resources,
        removals: Removals,
    ) -> Option<DeltaDiscoveryResponse> {
        let held = self.types.get_mut(type_url)?;
        let changed = current.values().filter(|r| held.get(&r.name) != Some(&r.version));
        let resources: Vec<_> = changed.map(|r| (**r).clone()).collect();
        let gone = held.keys().filter(|name| removals == Removals::Included && !current.contains_key(*name));
        let removed_resources: Vec<String> = gone.cloned().collect();
        for resource in &resources {
            held.insert(resource.name.clone(), resource.version.clone());
        }
        for name in &removed_resources {
            held.remove(name);
        }
        Some(DeltaDiscoveryResponse {
            resources,
            type_url: type_url.into(),
            removed_resources,
            ..DeltaDiscoveryResponse::default()
        })
    }

    /// Gives a response its nonce and awaits the answer.
    pub fn send(&mut self, response: &mut DeltaDiscoveryResponse, version: u64, since: Instant) {
        self.nonce += 1;
        response.nonce = self.nonce.to_string();
        response.system_version_info = version.to_string();
        let Some(type_url) = TYPES.into_iter().find(|known| *known == response.type_url) else { return };
        if self.awaited.len() == AWAITED {
            self.awaited.pop_front();
        }
        self.awaited.push_back(Awaited { nonce: response.nonce.clone(), type_url, version, since });
    }
}
