//! HTTP connections to endpoints, kept per worker, destination, endpoint and HTTP version. The tunnel
//! below carries the waypoint's identity, so connections serve every client.

mod connect;
mod send;

use std::{rc::Rc, time::Duration};

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use mesh_core::{
    balance::Endpoint,
    http::Failure,
    model::{Service, WorkloadUid},
    outcome::{Reason, Refusal},
};
use tokio::{sync::oneshot, time::timeout};

use crate::{
    body::Outgoing,
    endpoints::EndpointSet,
    io::BoxIo,
    limits::{Counted, Permit},
    peer::Peer,
    target::Target,
};

/// Time for connecting when the destination does not say (Istio's default).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a connection goes and on whose behalf.
#[derive(Clone, Copy)]
pub struct Hop<'a> {
    /// The endpoint.
    pub endpoint: &'a Endpoint,
    /// The client, described to the other side. An HTTP connection is shared by clients that come
    /// after it: for them the HTTP headers speak.
    pub client: &'a Peer,
    /// The service that the endpoint stands for.
    pub service: Option<&'a Service>,
}

/// Opens byte streams to endpoints.
pub trait Dial {
    /// Connects to an endpoint, over HBONE when it is in the mesh.
    fn dial<'a>(&'a self, hop: Hop<'a>) -> LocalBoxFuture<'a, Result<BoxIo, Refusal>>;

    /// Forgets what is kept for endpoints that are gone.
    fn retain(&self, _known: &dyn Fn(&WorkloadUid) -> bool) {}

    /// Closes what is kept and not used.
    fn release_idle(&self) {}
}

/// A try that failed.
pub struct SendError {
    /// How, for retries.
    pub failure: Failure,
    /// Why, for logs and the answer.
    pub refusal: Refusal,
    /// The body, when nothing of it was sent.
    pub body: Option<Outgoing>,
}

/// The raw stream of a connection after a protocol switch, with what was read beyond it.
pub type Switched = oneshot::Receiver<(BoxIo, Bytes)>;

/// The upstream side of one worker.
pub struct Upstreams {
    dial: Rc<dyn Dial>,
}

/// Where a request or connection is sent: an endpoint of a destination, for a client.
#[derive(Clone, Copy)]
pub struct To<'a> {
    /// The destination.
    pub set: &'a EndpointSet,
    /// Index of the endpoint.
    pub index: usize,
    /// On whose behalf.
    pub client: &'a Peer,
}

impl To<'_> {
    fn endpoint(&self) -> &Endpoint {
        &self.set.endpoints[self.index]
    }

    fn target(&self) -> &Rc<Target> {
        &self.set.targets[self.index]
    }

    fn over(&self, field: &str) -> Refusal {
        let at = self.set.name.as_deref().unwrap_or(&self.endpoint().workload.name);
        Refusal::new(Reason::LimitReached, format!("DestinationRule of {at}: {field}"))
    }
}

impl Upstreams {
    /// Connects through `dial`.
    pub fn new(dial: Rc<dyn Dial>) -> Self {
        Self { dial }
    }

    /// Forgets tunnels to endpoints that are gone.
    pub fn retain(&self, known: impl Fn(&WorkloadUid) -> bool) {
        self.dial.retain(&known);
    }

    /// Closes tunnels that nothing goes through. Called at intervals by the worker.
    pub fn release_idle(&self) {
        self.dial.release_idle();
    }

    /// Opens a byte stream within the destination's limits: TCP and protocol switches.
    ///
    /// # Errors
    /// `maxConnections`, the time limit, or whatever dialling met.
    pub async fn open(&self, to: To<'_>) -> Result<(BoxIo, Permit), Refusal> {
        let permit = to.set.limits.take(Counted::Connections, to.set.policy.max_connections);
        let permit = permit.ok_or_else(|| to.over("maxConnections"))?;
        Ok((self.dial(to).await?, permit))
    }

    /// Connects within `connectTimeout`.
    async fn dial(&self, to: To<'_>) -> Result<BoxIo, Refusal> {
        let limit = to.set.policy.connect_timeout.unwrap_or(CONNECT_TIMEOUT);
        let hop = Hop { endpoint: to.endpoint(), client: to.client, service: to.set.service.as_deref() };
        match timeout(limit, self.dial.dial(hop)).await {
            Ok(result) => result,
            Err(_) => Err(Refusal::new(
                Reason::ConnectTimeout,
                format!("{}:{} within {limit:?}", hop.endpoint.workload.uid, hop.endpoint.port),
            )),
        }
    }
}
