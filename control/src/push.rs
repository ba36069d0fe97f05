//! Delta xDS server.

mod clients;
mod session;

use std::{pin::Pin, sync::Arc, time::Instant};

use mesh_net::api::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
    aggregated_discovery_service_server::AggregatedDiscoveryService,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

pub use self::{
    clients::{ClientState, Clients},
    session::{Asked, Awaited, ORDER, Removals, Session, TYPES},
};
use crate::{
    auth::{Caller, Callers},
    publish::Published,
};

/// Responses that wait for a slow client; then its stream waits, and only its own.
const QUEUE: usize = 8;

/// The service.
#[derive(Debug, Clone)]
pub struct Push {
    /// What is current.
    pub current: watch::Receiver<Arc<Published>>,
    /// Who may call.
    pub callers: Callers,
    /// Who is connected.
    pub clients: Arc<Clients>,
}

/// One client's stream.
struct Conversation {
    id: u64,
    caller: Caller,
    opened: Instant,
    session: Session,
    /// Version that was pushed last; types opened later have at least this one.
    pushed: u64,
    current: watch::Receiver<Arc<Published>>,
    clients: Arc<Clients>,
    out: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

/// The client is gone.
struct Gone;

impl Conversation {
    async fn run(mut self, mut requests: Streaming<DeltaDiscoveryRequest>) {
        let reason = match self.published().await {
            Ok(()) => self.talk(&mut requests).await,
            Err(Gone) => "the client is gone".into(),
        };
        self.clients.remove(self.id);
        tracing::info!(client = self.id, caller = %self.caller, reason, "client left");
    }

    /// Waits for the first configuration: an empty answer before it would mean "all is gone".
    async fn published(&mut self) -> Result<(), Gone> {
        let out = self.out.clone();
        tokio::select! {
            () = out.closed() => Err(Gone),
            first = self.current.wait_for(|p| p.version > 0) => first.map(drop).map_err(|_| Gone),
        }
    }

    /// Answers requests and pushes changes; returns why it ended. A request that is not understood ends
    /// nothing; one that cannot be decoded ends this client's stream only.
    async fn talk(&mut self, requests: &mut Streaming<DeltaDiscoveryRequest>) -> String {
        loop {
            let sent = tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(request)) => self.answer(&request).await,
                    Ok(None) => return "the client closed its stream".into(),
                    Err(status) => return status.message().into(),
                },
                changed = self.current.changed() => match changed {
                    Ok(()) => self.push().await,
                    Err(_) => return "the control plane ends".into(),
                },
            };
            if let Err(Gone) = sent {
                return "the client is gone".into();
            }
        }
    }

    async fn answer(&mut self, request: &DeltaDiscoveryRequest) -> Result<(), Gone> {
        if let Some(node) = &request.node {
            self.clients.named(self.id, &node.id);
        }
        let asked = self.session.request(request);
        if !matches!(asked, Asked::Unknown | Asked::Opened(_)) {
            self.demanded(request).await?;
        }
        match asked {
            Asked::Opened(type_url) => {
                let current = self.current.borrow().clone();
                let view = current.view(type_url, &self.caller);
                if let Some(first) = self.session.first(type_url, &view) {
                    self.send(first, &current, view.len()).await?;
                }
                self.demanded(request).await
            }
            Asked::Answered(awaited) => {
                let refusal = request.error_detail.as_ref().map(|error| error.message.as_str());
                self.clients.answered(self.id, &awaited, refusal);
                Ok(())
            }
            Asked::Unknown => {
                tracing::warn!(caller = %self.caller, type_url = %request.type_url, "asked for a type that is not served");
                self.clients.odd("unknown_type");
                let mut empty =
                    DeltaDiscoveryResponse { type_url: request.type_url.clone(), ..Default::default() };
                self.session.send(&mut empty, 0, Instant::now());
                self.out.send(Ok(empty)).await.map_err(|_| Gone)
            }
            Asked::Nothing(odd) => {
                odd.into_iter().for_each(|reason| self.clients.odd(reason));
                Ok(())
            }
        }
    }

    async fn demanded(&mut self, request: &DeltaDiscoveryRequest) -> Result<(), Gone> {
        let current = self.current.borrow().clone();
        let view = current.view(&request.type_url, &self.caller);
        match Session::demanded(request, &view) {
            Some(response) => self.send(response, &current, view.len()).await,
            None => Ok(()),
        }
    }

    async fn push(&mut self) -> Result<(), Gone> {
        let current = self.current.borrow_and_update().clone();
        let since = std::mem::replace(&mut self.pushed, current.version);
        for (type_url, removals) in ORDER {
            if current.unchanged(type_url, &self.caller, since) {
                continue;
            }
            let view = current.view(type_url, &self.caller);
            if let Some(response) = self.session.response(type_url, &view, removals) {
                self.send(response, &current, view.len()).await?;
            }
        }
        Ok(())
    }

    async fn send(
        &mut self,
        mut response: DeltaDiscoveryResponse,
        current: &Published,
        held: usize,
    ) -> Result<(), Gone> {
        self.session.send(&mut response, current.version, current.at.max(self.opened));
        self.clients.sent(self.id, &response.type_url, held, current.version);
        self.out.send(Ok(response)).await.map_err(|_| Gone)
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Push {
    type DeltaAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let caller = self.callers.caller(request.metadata()).await?;
        let id = self.clients.add(&caller);
        tracing::info!(client = id, caller = %caller, "client came");
        let (out, responses) = mpsc::channel(QUEUE);
        let conversation = Conversation {
            id,
            caller,
            opened: Instant::now(),
            session: Session::default(),
            pushed: 0,
            current: self.current.clone(),
            clients: self.clients.clone(),
            out,
        };
        tokio::spawn(conversation.run(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(responses))))
    }
}
