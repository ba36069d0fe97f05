//! Who is connected and what they accepted, for `/debug/clients` and metrics.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use serde::Serialize;

use super::session::Awaited;
use crate::{auth::Caller, metrics::Metrics};

/// A client, for `/debug/clients`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ClientState {
    /// Who.
    pub name: String,
    /// `agent` or `waypoint`.
    pub kind: &'static str,
    /// Node id that it says.
    pub node: String,
    /// Resources held, per type.
    pub held: BTreeMap<String, usize>,
    /// Responses sent.
    pub sent: u64,
    /// Accepted responses.
    pub acks: u64,
    /// Refused responses.
    pub nacks: u64,
    /// Reason of the last refusal per type; cleared by the next acceptance.
    pub refused: BTreeMap<String, String>,
    /// Version of the configuration that was last sent, per type.
    pub sent_version: BTreeMap<String, u64>,
    /// Version of the configuration that was last accepted, per type.
    pub accepted_version: BTreeMap<String, u64>,
}

/// Connected clients.
#[derive(Debug)]
pub struct Clients {
    metrics: Metrics,
    table: Mutex<(u64, BTreeMap<u64, ClientState>)>,
}

impl Clients {
    /// Nobody yet.
    pub fn new(metrics: Metrics) -> Self {
        Self { metrics, table: Mutex::default() }
    }

    fn with<T>(&self, f: impl FnOnce(&mut (u64, BTreeMap<u64, ClientState>)) -> T) -> T {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let result = f(&mut table);
        let refusing = table.1.values().filter(|c| !c.refused.is_empty()).count();
        self.metrics.clients_refusing.set(i64::try_from(refusing).unwrap_or(i64::MAX));
        result
    }

    /// The table.
    pub fn list(&self) -> Vec<ClientState> {
        self.with(|(_, table)| table.values().cloned().collect())
    }

    pub(super) fn add(&self, caller: &Caller) -> u64 {
        let kind = kind(caller);
        self.metrics.clients.with_label_values(&[kind]).inc();
        self.with(|(next, table)| {
            *next += 1;
            table.insert(*next, ClientState { name: caller.to_string(), kind, ..ClientState::default() });
            *next
        })
    }

    pub(super) fn remove(&self, id: u64) {
        if let Some(client) = self.with(|(_, table)| table.remove(&id)) {
            self.metrics.clients.with_label_values(&[client.kind]).dec();
        }
    }

    pub(super) fn named(&self, id: u64, node: &str) {
        self.update(id, |client| client.node = node.into());
    }

    pub(super) fn sent(&self, id: u64, type_url: &str, held: usize, version: u64) {
        self.count(type_url, "sent");
        self.update(id, |client| {
            client.sent += 1;
            client.held.insert(type_url.into(), held);
            client.sent_version.insert(type_url.into(), version);
        });
    }

    /// Notes the answer to a response; `refusal` is the reason of a refused one.
    pub(super) fn answered(&self, id: u64, awaited: &Awaited, refusal: Option<&str>) {
        let type_url = awaited.type_url;
        let took = awaited.since.elapsed().as_secs_f64();
        self.metrics.push.with_label_values(&[short(type_url)]).observe(took);
        self.count(type_url, if refusal.is_some() { "refused" } else { "accepted" });
        self.update(id, |client| match refusal {
            Some(reason) => {
                client.nacks += 1;
                client.refused.insert(type_url.into(), reason.into());
                tracing::warn!(client = %client.name, type_url, reason, "client refused a response");
            }
            None => {
                client.acks += 1;
                client.refused.remove(type_url);
                client.accepted_version.insert(type_url.into(), awaited.version);
            }
        });
    }

    pub(super) fn odd(&self, reason: &str) {
        self.metrics.odd_requests.with_label_values(&[reason]).inc();
    }

    fn count(&self, type_url: &str, result: &str) {
        self.metrics.responses.with_label_values(&[short(type_url), result]).inc();
    }

    fn update(&self, id: u64, f: impl FnOnce(&mut ClientState)) {
        self.with(|(_, table)| table.get_mut(&id).map(f));
    }
}

fn kind(caller: &Caller) -> &'static str {
    match caller {
        Caller::Node(_) => "agent",
        Caller::Waypoint(..) => "waypoint",
    }
}

/// `istio.workload.Address` of `type.googleapis.com/istio.workload.Address`: the types that are served
/// are a closed set.
fn short(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or(type_url)
}
