//! Delta xDS client: what istiod and our control plane speak to agents and waypoints.
//!
//! Rules (Istio's ztunnel): one request per type at stream open with the versions that are held, one
//! ACK or NACK per response, valid parts of a refused response stay applied, refused resources are not
//! recorded as held, the world is kept while disconnected.

mod decode;
mod keeper;
mod state;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use rand::Rng;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use keeper::Keeper;

pub use decode::{decode, removal};
pub use state::{Refused, Session};

use crate::{
    api::envoy::{
        config::core::v3::Node,
        service::discovery::v3::{
            DeltaDiscoveryRequest, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    store::SnapshotStore,
    task::Pending,
};

/// Largest message that is accepted: a whole mesh in one response.
const MESSAGE_LIMIT: usize = 200 << 20;
const FIRST_BACKOFF: Duration = Duration::from_millis(10);
const LAST_BACKOFF: Duration = Duration::from_secs(15);

/// How to reach a gRPC server of the control plane; also used for certificates.
#[derive(Debug, Clone)]
pub struct ControlEndpoint {
    /// `https://host:port`, or `http://` for a server without TLS on loopback.
    pub url: String,
    /// PEM file with the roots that its certificate must chain to; read at each connection.
    pub roots: Option<PathBuf>,
    /// Name to verify instead of the url's host.
    pub server_name: Option<String>,
    /// File with the bearer token; read for each call, because the kubelet rotates it.
    pub token: Option<PathBuf>,
    /// Cluster id, sent as `clusterid`.
    pub cluster: String,
}

/// Why the control plane cannot be called.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// A file cannot be read.
    #[error("{what} {path} cannot be read")]
    File {
        /// Which.
        what: &'static str,
        /// Path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The url or its TLS settings are not usable, or the connection failed.
    #[error("control plane {url} cannot be reached")]
    Transport {
        /// Url.
        url: String,
        /// Why.
        source: tonic::transport::Error,
    },
    /// The token holds characters that no header can.
    #[error("token file {path} does not hold a token")]
    Token {
        /// Path.
        path: PathBuf,
    },
}

impl ControlEndpoint {
    /// Opens a channel.
    ///
    /// # Errors
    /// See [`EndpointError`].
    pub async fn connect(&self) -> Result<Channel, EndpointError> {
        let failed = |source| EndpointError::Transport { url: self.url.clone(), source };
        let mut endpoint = Endpoint::from_shared(self.url.clone())
            .map_err(failed)?
            .connect_timeout(Duration::from_secs(5))
            .tcp_keepalive(Some(Duration::from_secs(300)))
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10));
        if let Some(roots) = &self.roots {
            let pem = read("root certificate", roots)?;
            let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
            if let Some(name) = &self.server_name {
                tls = tls.domain_name(name);
            }
            endpoint = endpoint.tls_config(tls).map_err(failed)?;
        }
        endpoint.connect().await.map_err(failed)
    }

    /// Adds the credentials to a call.
    ///
    /// # Errors
    /// The token file cannot be read or does not hold a token.
    pub fn authorize<T>(&self, request: &mut Request<T>) -> Result<(), EndpointError> {
        if let Some(path) = &self.token {
            let token = read("token file", path)?;
            let value: MetadataValue<Ascii> = format!("Bearer {}", token.trim())
                .parse()
                .map_err(|_| EndpointError::Token { path: path.clone() })?;
            request.metadata_mut().insert("authorization", value);
        }
        if let Ok(cluster) = self.cluster.parse() {
            request.metadata_mut().insert("clusterid", cluster);
        }
        Ok(())
    }
}

fn read(what: &'static str, path: &PathBuf) -> Result<String, EndpointError> {
    std::fs::read_to_string(path).map_err(|source| EndpointError::File { what, path: path.clone(), source })
}

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
    /// Where the last good snapshot is kept; nowhere when not given.
    pub cache: Option<PathBuf>,
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
    // A world from disk is enough to start with (I-7).
    let mut synced = Some(synced).filter(|_| !store.current().is_complete());
    let mut backoff = FIRST_BACKOFF;
    let mut keeper = Keeper::new(config.cache.clone());
    loop {
        let before = status.borrow().responses;
        let stream = stream(&config, &store, &mut session, &status, &mut synced, &mut keeper);
        let ended = cancel.run_until_cancelled(stream).await;
        keeper.save_now(&store, &session).await;
        let Some(end) = ended else { return };
        let reason = end.err().unwrap_or_else(|| "stream ended".into());
        tracing::warn!(error = %reason, "control plane stream ended");
        status.send_modify(|s| {
            s.connected = false;
            s.last_error = Some(reason);
        });
        if status.borrow().responses > before {
            backoff = FIRST_BACKOFF;
        }
        let jittered = backoff.mul_f64(rand::rng().random_range(0.8..1.2));
        if cancel.run_until_cancelled(tokio::time::sleep(jittered)).await.is_none() {
            return;
        }
        backoff = (backoff * 2).min(LAST_BACKOFF);
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

fn status_text(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

async fn stream(
    config: &XdsConfig,
    store: &SnapshotStore,
    session: &mut Session,
    status: &watch::Sender<XdsStatus>,
    synced: &mut Option<Pending>,
    keeper: &mut Keeper,
) -> Result<(), String> {
    let channel = config.endpoint.connect().await.map_err(|error| chain(&error))?;
    let (send, receive) = mpsc::channel(16);
    for type_url in &config.types {
        let request = session.open(type_url, node(config));
        send.send(request).await.map_err(|error| error.to_string())?;
    }
    let mut call = Request::new(ReceiverStream::new(receive));
    config.endpoint.authorize(&mut call).map_err(|error| chain(&error))?;
    let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT);
    let mut responses =
        client.delta_aggregated_resources(call).await.map_err(|error| status_text(&error))?.into_inner();
    status.send_modify(|s| {
        s.connected = true;
        s.connections += 1;
        s.last_error = None;
    });
    loop {
        let response = tokio::select! {
            response = responses.message() => response.map_err(|error| status_text(&error))?,
            () = keeper.due() => {
                keeper.save_now(store, session).await;
                continue;
            }
        };
        let Some(response) = response else { return Ok(()) };
        let snapshot = store.current();
        let (mut changes, answer, refused) = session.take(response, &snapshot);
        if session.complete(&config.types) && !snapshot.is_complete() {
            changes.push(mesh_core::delta::Change::Synced);
        }
        store.apply(changes);
        if session.complete(&config.types) {
            // The keeper writes it when it is whole.
            drop(synced.take());
            keeper.changed();
        }
        status.send_modify(|s| {
            s.responses += 1;
            refused.update(&mut s.refused);
        });
        send.send(answer).await.map_err(|error| error.to_string())?;
    }
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
