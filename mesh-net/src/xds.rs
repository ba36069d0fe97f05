//! Delta xDS client: what istiod and our control plane speak to agents and waypoints.
//!
//! Rules (Istio's ztunnel): one request per type at stream open with the versions that are held, one
//! ACK or NACK per response, valid parts of a refused response stay applied, refused resources are not
//! recorded as held, the world is kept while disconnected.

mod backoff;
mod decode;
mod endpoint;
mod stand_in;
mod state;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use mesh_core::{delta::Change, error::chain};
use rand::Rng;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};

use self::backoff::Backoff;
use crate::{
    api::envoy::{
        config::core::v3::Node,
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    store::SnapshotStore,
    task::Pending,
};

pub use self::{
    decode::{decode, removal},
    endpoint::{ControlEndpoint, EndpointError},
    state::{Refused, Session},
};

/// Largest message that is accepted: a whole mesh in one response.
const MESSAGE_LIMIT: usize = 200 << 20;

/// What is asked for, and as whom.
#[derive(Debug, Clone)]
pub struct XdsConfig {
    /// Server.
    pub endpoint: ControlEndpoint,
    /// `ztunnel~<ip>~<pod>.<ns>~<ns>.svc.cluster.local` or `waypoint~…`.
    pub node_id: String,
    /// Node metadata: NAME, NAMESPACE, NODE_NAME, CLUSTER_ID, …
    pub metadata: BTreeMap<String, String>,
    /// Type URLs, referents first.
    pub types: Vec<&'static str>,
}

/// State of the stream, for readiness, metrics and `/debug`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct XdsStatus {
    /// A stream is open.
    pub connected: bool,
    /// Streams opened so far.
    pub connections: u64,
    /// Responses taken.
    pub responses: u64,
    /// Resources that were refused and not replaced since, with the reason.
    pub refused: BTreeMap<String, String>,
    /// Why the last stream ended.
    pub last_error: Option<String>,
}

/// Keeps the store up to date until cancelled. `session` holds the versions of what the store starts with.
pub async fn run(
    config: XdsConfig,
    store: Arc<SnapshotStore>,
    mut session: Session,
    status: watch::Sender<XdsStatus>,
    synced: Pending,
    cancel: CancellationToken,
) {
    let mut synced = Some(synced);
    let mut backoff = Backoff::default();
    loop {
        let (begun, before) = (Instant::now(), status.borrow().responses);
        let stream = stream(&config, &store, &mut session, &status, &mut synced);
        let Some(end) = cancel.run_until_cancelled(stream).await else { return };
        let good = if status.borrow().responses > before { begun.elapsed() } else { Duration::ZERO };
        let pause = backoff.after(end.code(), good, rand::rng().random());
        tracing::warn!(error = %end, ?pause, "control plane stream ended");
        status.send_modify(|s| {
            s.connected = false;
            s.last_error = Some(end.to_string());
        });
        if cancel.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

/// Why a stream ended. Prints every level: it is shown as `last_error`.
#[derive(Debug, thiserror::Error)]
enum StreamEnd {
    #[error("{}", chain(.0))]
    Endpoint(#[from] EndpointError),
    #[error("{:?}: {}", .0.code(), .0.message())]
    Status(#[from] Status),
    #[error("the server ended the stream")]
    Ended,
}

impl StreamEnd {
    fn code(&self) -> Option<Code> {
        match self {
            Self::Status(status) => Some(status.code()),
            Self::Endpoint(_) | Self::Ended => None,
        }
    }
}

async fn stream(
    config: &XdsConfig,
    store: &SnapshotStore,
    session: &mut Session,
    status: &watch::Sender<XdsStatus>,
    synced: &mut Option<Pending>,
) -> StreamEnd {
    match converse(config, store, session, status, synced).await {
        Ok(()) => StreamEnd::Ended,
        Err(end) => end,
    }
}

async fn converse(
    config: &XdsConfig,
    store: &SnapshotStore,
    session: &mut Session,
    status: &watch::Sender<XdsStatus>,
    synced: &mut Option<Pending>,
) -> Result<(), StreamEnd> {
    let channel = config.endpoint.connect().await?;
    // Room for the first request of each type, which are there before anybody reads.
    let (send, receive) = mpsc::channel(config.types.len().max(16));
    for type_url in &config.types {
        let request = session.open(type_url, node(config));
        send.send(request).await.map_err(|_| StreamEnd::Ended)?;
    }
    let mut call = Request::new(ReceiverStream::new(receive));
    config.endpoint.authorize(&mut call)?;
    let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT);
    let mut responses = client.delta_aggregated_resources(call).await?.into_inner();
    status.send_modify(|s| {
        s.connected = true;
        s.connections += 1;
        s.last_error = None;
    });
    while let Some(response) = responses.message().await? {
        let (answer, refused) = take(config, store, session, response);
        if session.complete(&config.types) {
            store.confirm();
            drop(synced.take());
        }
        status.send_modify(|s| {
            s.responses += 1;
            refused.update(&mut s.refused);
        });
        send.send(answer).await.map_err(|_| StreamEnd::Ended)?;
    }
    Ok(())
}

/// Applies a response before it is acknowledged.
fn take(
    config: &XdsConfig,
    store: &SnapshotStore,
    session: &mut Session,
    response: DeltaDiscoveryResponse,
) -> (DeltaDiscoveryRequest, Refused) {
    let mut said = None;
    store.update(|snapshot| {
        let (mut changes, answer, refused) = session.take(response, snapshot);
        if session.complete(&config.types) && !snapshot.is_complete() {
            changes.push(Change::Synced);
        }
        said = Some((answer, refused));
        (changes, session.shared())
    });
    said.unwrap_or_default()
}

fn node(config: &XdsConfig) -> Node {
    let text = |value: &String| prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(value.clone())),
    };
    let fields = config.metadata.iter().map(|(key, value)| (key.clone(), text(value))).collect();
    Node {
        id: config.node_id.clone(),
        cluster: config.endpoint.cluster.clone(),
        metadata: Some(prost_types::Struct { fields }),
    }
}

/// The request that opens a type; kept here so that tests can compare.
pub type OpenRequest = DeltaDiscoveryRequest;

#[cfg(test)]
mod tests;
