//! The client of a tunnel: what its certificate and its address prove.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use http::HeaderValue;
use mesh_core::{
    http::Client,
    identity::Identity,
    model::{Workload, l7::WorkloadLabels},
    snapshot::Snapshot,
};

/// One client connection.
#[derive(Debug)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// The identity of its certificate.
    pub identity: Identity,
    /// `td/ns/<ns>/sa/<sa>`, as policies spell it.
    pub principal: String,
    /// Its workload, if the control plane announced one at this address with this identity.
    pub workload: Option<Arc<Workload>>,
    /// That workload's labels.
    pub labels: Option<Arc<WorkloadLabels>>,
    /// Its address for `x-forwarded-for`.
    pub forwarded_for: HeaderValue,
}

impl Peer {
    /// Describes a client by address and verified identity.
    pub fn new(address: SocketAddr, identity: Identity, snapshot: &Snapshot) -> Self {
        let network = Arc::from("");
        let at = snapshot.workload_at(&network, address.ip());
        let workload = at.filter(|w| w.identity() == identity).cloned();
        let labels = workload.as_ref().and_then(|w| snapshot.labels(&w.uid)).cloned();
        let ip = address.ip().to_canonical().to_string();
        Self {
            address,
            principal: identity.principal(),
            identity,
            workload,
            labels,
            forwarded_for: HeaderValue::from_str(&ip).unwrap_or(HeaderValue::from_static("unknown")),
        }
    }

    /// Whether the control plane still says the same about it.
    pub fn is_same(&self, other: &Self) -> bool {
        fn same<T>(a: &Option<Arc<T>>, b: &Option<Arc<T>>) -> bool {
            a.as_ref().map(Arc::as_ptr) == b.as_ref().map(Arc::as_ptr)
        }
        self.identity == other.identity
            && same(&self.workload, &other.workload)
            && same(&self.labels, &other.labels)
    }

    /// The client as decisions see it.
    pub fn facts(&self) -> Client<'_> {
        Client {
            ip: self.ip(),
            principal: Some(&self.principal),
            namespace: Some(&self.identity.namespace),
            service_account: Some(&self.identity.service_account),
            labels: self.labels.as_deref(),
        }
    }

    /// Its address without port, IPv4-mapped addresses folded.
    pub fn ip(&self) -> IpAddr {
        self.address.ip().to_canonical()
    }
}
