//! Compiled values → encoded resources with versions.

mod scope;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
    time::Instant,
};

use mesh_core::snapshot::Snapshot;

use mesh_net::{
    api::envoy::service::discovery::v3::Resource,
    wire::{self, ADDRESS_TYPE, AUTHORIZATION_TYPE, L7_POLICY_TYPE, LABELS_TYPE, ROUTES_TYPE},
};
use prost::Message;
use twox_hash::XxHash64;

use crate::{
    compile::{Compiled, accounts},
    finding::Finding,
    object::Key,
    source::{
        Store,
        api::{About, Api},
    },
};

/// Kinds whose objects are told nothing about themselves.
const UNTOLD: [&str; 5] = ["Namespace", "Node", "Pod", "ServiceAccount", "EndpointSlice"];

/// Resources of one type by name.
pub type Resources = BTreeMap<String, Arc<Resource>>;

/// What clients are given at one moment.
#[derive(Debug)]
pub struct Published {
    /// Counts up with every change; 0 before the folder was read once.
    pub version: u64,
    /// The version in which each type changed last.
    pub changed: BTreeMap<&'static str, u64>,
    /// When it was published.
    pub at: Instant,
    /// By type url.
    pub types: BTreeMap<&'static str, Resources>,
    /// The values behind them.
    pub compiled: Compiled,
    /// Findings.
    pub findings: Vec<Finding>,
    /// Node, namespace and service account of every pod.
    pub accounts: BTreeSet<(Arc<str>, Arc<str>, Arc<str>)>,
    /// Objects: key, file and line.
    pub objects: Vec<(Key, String, usize)>,
    /// Objects of the API server that are told about themselves.
    pub about: BTreeMap<Key, Arc<About>>,
    /// Kinds that the API server has not listed yet: nothing is compiled before.
    pub awaits: Vec<&'static str>,
    snapshot: OnceLock<Snapshot>,
}

impl Default for Published {
    fn default() -> Self {
        Self {
            version: 0,
            changed: BTreeMap::new(),
            at: Instant::now(),
            types: BTreeMap::new(),
            compiled: Compiled::default(),
            findings: Vec::new(),
            accounts: BTreeSet::new(),
            objects: Vec::new(),
            about: BTreeMap::new(),
            awaits: Vec::new(),
            snapshot: OnceLock::new(),
        }
    }
}

impl Published {
    /// Encodes what was compiled from a store, as the successor of another configuration.
    pub fn next(before: &Self, store: &Store, compiled: Compiled, findings: Vec<Finding>) -> Self {
        let types = if store.read { encode(before, &compiled) } else { BTreeMap::new() };
        let differs = |(name, now): (&&'static str, &Resources)| {
            let same = before.types.get(name).is_some_and(|then| same(then, now));
            (!same).then_some(*name)
        };
        let different: Vec<&str> = types.iter().filter_map(differs).collect();
        let moved = before.compiled.waypoint_of != compiled.waypoint_of;
        let version = before.version + u64::from(!different.is_empty() || moved);
        let mut changed = before.changed.clone();
        changed.extend(different.into_iter().map(|name| (name, version)));
        let api = store.api().into_iter();
        let about = api.flat_map(Api::about).filter(|(key, _)| !UNTOLD.contains(&&*key.kind));
        let objects = store.objects.iter().map(|(key, s)| (key.clone(), s.file.clone(), s.line));
        Self {
            version,
            changed,
            types,
            findings,
            accounts: accounts(store),
            objects: objects.collect(),
            about: about.map(|(key, about)| (key.clone(), about.clone())).collect(),
            awaits: store.api().map(Api::missing).unwrap_or_default(),
            compiled,
            ..Self::default()
        }
    }

    /// The world of a client that has everything; made when first asked for.
    pub fn snapshot(&self) -> &Snapshot {
        self.snapshot.get_or_init(|| self.compiled.snapshot())
    }
}

fn same(a: &Resources, b: &Resources) -> bool {
    let equal = |(x, y): (&Arc<Resource>, &Arc<Resource>)| {
        Arc::ptr_eq(x, y) || (x.name == y.name && x.version == y.version)
    };
    a.len() == b.len() && a.values().zip(b.values()).all(equal)
}

/// Encodes everything; what is as it was before is taken over from there.
pub fn encode(before: &Published, compiled: &Compiled) -> BTreeMap<&'static str, Resources> {
    let (old, new) = (&before.compiled, compiled);
    let mut address = Encoder::new(before, ADDRESS_TYPE);
    address.each(&new.workloads, &old.workloads, |w| {
        let aliases = w.addresses.iter().map(|ip| format!("{}/{ip}", w.network)).collect();
        (wire::workload::workload_address(w), aliases)
    });
    address.each(&new.services, &old.services, |s| {
        let alias = |v: &mesh_core::model::Vip| match v.range.prefix_len() == v.range.max_prefix_len() {
            true => format!("{}/{}", v.network, v.range.addr()),
            false => format!("{}/{}", v.network, v.range),
        };
        (wire::workload::service_address(s), s.vips.iter().map(alias).collect())
    });
    let mut policies = Encoder::new(before, AUTHORIZATION_TYPE);
    policies.each(&new.policies, &old.policies, |p| (wire::policy::to_authorization(p), Vec::new()));
    let mut routes = Encoder::new(before, ROUTES_TYPE);
    routes.each(&new.routes, &old.routes, |r| (wire::l7::to_routes(r), Vec::new()));
    let mut l7 = Encoder::new(before, L7_POLICY_TYPE);
    l7.each(&new.l7_policies, &old.l7_policies, |p| (wire::l7::to_l7_policy(p), Vec::new()));
    let mut labels = Encoder::new(before, LABELS_TYPE);
    labels.each(&new.labels, &old.labels, |l| (wire::l7::to_labels(l), Vec::new()));
    [address, policies, routes, l7, labels].map(|one| (one.type_url, one.into)).into()
}

/// Encodes the resources of one type.
struct Encoder<'a> {
    type_url: &'static str,
    before: Option<&'a Resources>,
    into: Resources,
}

impl<'a> Encoder<'a> {
    fn new(before: &'a Published, type_url: &'static str) -> Self {
        Self { type_url, before: before.types.get(type_url), into: Resources::new() }
    }

    /// Encodes each value as a message with other names that it is found by.
    fn each<K: Ord + ToString, V: PartialEq + serde::Serialize, M: Message>(
        &mut self,
        new: &BTreeMap<K, V>,
        old: &BTreeMap<K, V>,
        message: impl Fn(&V) -> (M, Vec<String>),
    ) {
        for (key, value) in new {
            let name = key.to_string();
            let same = old.get(key) == Some(value);
            let kept = self.before.filter(|_| same).and_then(|before| before.get(&name)).cloned();
            let resource = kept.unwrap_or_else(|| {
                let (message, aliases) = message(value);
                Arc::new(self.resource(name.clone(), value, &message, aliases))
            });
            self.into.insert(name, resource);
        }
    }

    /// The version is of the value, not of the bytes: maps are encoded in no particular order.
    fn resource(
        &self,
        name: String,
        value: &impl serde::Serialize,
        message: &impl Message,
        aliases: Vec<String>,
    ) -> Resource {
        let bytes = message.encode_to_vec();
        let text = serde_json::to_vec(value).unwrap_or_else(|_| bytes.clone());
        let version = format!("{:016x}", XxHash64::oneshot(0, &text));
        let body = prost_types::Any { type_url: self.type_url.into(), value: bytes };
        Resource { version, resource: Some(body), name, aliases }
    }
}
